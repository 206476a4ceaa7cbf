//! The door: which messages become commands.
//!
//! Each message gets exactly one result. A good one is in the command log before its broker is told
//! that it arrived; one that is refused has its result there instead; one that comes again gets the
//! result of the first, when there is one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bridge;
use super::outcome::{self, Asker, Done};
use super::queue::{Job, Queue};
use super::request::{BODY_BYTES_MAX, Envelope, Request, TTL};
use crate::live_state::LiveState;
use crate::log_throttle::LogThrottle;
use crate::model::{
    CommandError, CommandId, ErrorCode, InfoHash, InvalidInfoHash, InvalidServerName, Outcome, OutcomeStatus,
    ServerName, SinkName, Timestamp, Verb, printable,
};
use crate::outbox::backoff::Backoff;
use crate::port::{
    Clock, CommandAddress, CommandSource, Incoming, LoggedCommand, LoggedResult, Recorded, ReplyTo, ResultBacklog,
    Store, StoreError,
};

/// A connection that stood so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// No attempt to connect takes so long: what ends after that had stood.
const STOOD_AFTER: Duration = Duration::from_secs(15);
/// How long to wait before a command is offered to a full disk again.
const FULL_EACH: Duration = Duration::from_secs(1);
/// So many messages are written down together.
pub(super) const TOGETHER_MAX: usize = 256;
/// With so many bytes no more are waited for.
const TOGETHER_BYTES_MAX: usize = 16 << 20;

/// So many results, or bytes of them, wait for their sink: until half of them are gone, its commands wait where they
/// come from. What is in the queues by then is carried out and has its results, too.
const RESULTS_MAX: ResultBacklog = ResultBacklog { count: 1_000, bytes: 64 << 20 };
/// After so many messages that is looked at again.
const RESULTS_EACH: usize = 250;
/// A sink that takes its results, but slower than commands come, is waited for so often,
const RESULTS_LOOK: Duration = Duration::from_millis(20);
/// and for so long; then it is left until it takes them again.
const RESULTS_PATIENCE: Duration = Duration::from_secs(10);

/// Takes what comes from one source to its door.
pub struct Intake {
    pub source: Box<dyn CommandSource>,
    pub door: Door,
    /// Since when nobody took commands, as far as is known; `None`: never before.
    pub away_since: Option<Timestamp>,
}

/// Decides what becomes of a message.
pub struct Door {
    /// The sink whose commands these are.
    pub origin: SinkName,
    /// Whether a verb is accepted from this sink.
    pub allows: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// Below these topics a body's `reply_to` may point.
    pub reply_prefixes: Vec<String>,
    /// Of the servers that this sink may command.
    pub queues: BTreeMap<ServerName, Arc<Queue>>,
    /// Of commands to the bridge itself.
    pub bridge: Arc<Queue>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    pub clock: Arc<dyn Clock>,
}

/// A message, taken apart as far as that goes.
struct Taken {
    command: LoggedCommand,
    verb_text: String,
    user: Option<String>,
    /// What it says, or its result if it is not carried out.
    verdict: Result<Request, Outcome>,
}

type Refusal = (OutcomeStatus, CommandError);

fn refused(code: ErrorCode, message: impl Into<String>) -> (OutcomeStatus, CommandError) {
    (OutcomeStatus::Refused, CommandError::new(code, message))
}

fn failed(error: CommandError) -> (OutcomeStatus, CommandError) {
    (OutcomeStatus::Error, error)
}

impl Intake {
    /// Takes commands until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        let mut log_throttle = LogThrottle::default();
        // Messages since it was looked at how many results wait.
        let mut unlooked = RESULTS_EACH;
        // The source had a message for us, and has not failed since.
        let mut is_heard = false;
        let mut failed = None;
        loop {
            if unlooked >= RESULTS_EACH {
                self.until_results_go(&stop).await?;
                unlooked = 0;
            }
            let since = Instant::now();
            let incoming = match failed.take() {
                Some(error) => Err(error),
                None => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    incoming = self.source.next() => incoming,
                },
            };
            match incoming {
                Ok(incoming) => {
                    is_heard = true;
                    backoff.reset();
                    log_throttle.recovered();
                    let mut bytes = incoming.body.len();
                    let mut all = vec![self.noted(incoming)];
                    // What is there already shares a write with it.
                    while all.len() < TOGETHER_MAX
                        && bytes < TOGETHER_BYTES_MAX
                        && failed.is_none()
                        && let Some(next) = self.source.next().now_or_never()
                    {
                        match next {
                            Ok(incoming) => {
                                bytes += incoming.body.len();
                                all.push(self.noted(incoming));
                            }
                            Err(error) => failed = Some(error),
                        }
                    }
                    unlooked += all.len();
                    self.door.take(all, |_| {}, &stop).await?;
                }
                Err(error) => {
                    if since.elapsed() > GOOD_AFTER {
                        backoff.reset();
                    }
                    let now = self.door.clock.now();
                    if std::mem::take(&mut is_heard) || since.elapsed() > STOOD_AFTER {
                        // It stood until now, or nearly so.
                        self.away_since = Some(now);
                    } else {
                        self.away_since.get_or_insert(now);
                    }
                    if let Some(times) = log_throttle.failed() {
                        warn!(sink = %self.door.origin, times, %error, "no commands from here, trying on");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(backoff.next(rand::random())) => {}
                    }
                }
            }
        }
    }
}

impl Intake {
    /// A sink that takes no results gets no more of them; returns when there is room, or on `stop`.
    async fn until_results_go(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let ResultBacklog { count, bytes } = RESULTS_MAX;
        if !self.door.do_results_wait(RESULTS_MAX).await? {
            return Ok(());
        }
        let (sink, since) = (self.door.origin.clone(), Instant::now());
        let mut has_left = false;
        while self.door.do_results_wait(ResultBacklog { count: count / 2, bytes: bytes / 2 }).await? {
            if !has_left && since.elapsed() > RESULTS_PATIENCE {
                has_left = true;
                self.source.pause().await;
                warn!(%sink, "{count} results wait, or {bytes} bytes, and are not taken: no more commands are taken from there");
                self.away_since.get_or_insert_with(|| self.door.clock.now());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(if has_left { FULL_EACH } else { RESULTS_LOOK }) => {}
            }
        }
        if has_left {
            info!(%sink, "results are taken there: commands are taken from there again");
        }
        Ok(())
    }

    /// With the time since when it may have waited.
    fn noted(&mut self, incoming: Incoming) -> (Incoming, Option<Timestamp>) {
        if !incoming.may_have_waited {
            self.away_since = None;
        }
        (incoming, self.away_since)
    }
}

impl Door {
    async fn do_results_wait(&self, max: ResultBacklog) -> Result<bool, StoreError> {
        let ResultBacklog { count, bytes } = self.store.result_backlog(&self.origin).await?;
        Ok(count >= max.count || bytes >= max.bytes)
    }

    /// Takes messages in their order; those that came together are written down together. `expect` hears of each,
    /// in that order, under which name its result will be written down, before it is.
    pub(super) async fn take(
        &self,
        all: Vec<(Incoming, Option<Timestamp>)>,
        mut expect: impl FnMut((Option<ServerName>, CommandId)),
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let (taken, acks): (Vec<Taken>, Vec<_>) =
            all.into_iter().map(|(incoming, away_since)| self.judge(incoming, away_since)).unzip();
        for Taken { command, .. } in &taken {
            expect((command.server.clone(), command.id.clone()));
        }
        let entries = taken.iter().map(entry).collect();
        let mut admissions = self.store.record_commands(entries).await.map(Vec::into_iter);
        for (taken, ack) in taken.iter().zip(acks) {
            let written = match &mut admissions {
                Ok(admissions) => Ok(admissions.next().expect("one for each command")),
                // None was written: maybe one of them alone has no room.
                Err(_) => self.log(taken).await,
            };
            if !self.settle(taken, ack, written, stop).await? {
                break;
            }
        }
        Ok(())
    }

    /// Hands on what is written down, when it is; `false` if `stop` came first.
    async fn settle(
        &self,
        taken: &Taken,
        ack: Box<dyn FnOnce() + Send>,
        written: Result<Recorded, StoreError>,
        stop: &CancellationToken,
    ) -> Result<bool, StoreError> {
        let Some(admission) = self.once_there_is_room(taken, written, stop).await? else { return Ok(false) };
        if admission == Recorded::WaitersFull {
            self.hand_on(taken, admission);
            let turned_away = self.turned_away(taken);
            let written = self.log(&turned_away).await;
            let Some(admission) = self.once_there_is_room(&turned_away, written, stop).await? else {
                return Ok(false);
            };
            self.hand_on(&turned_away, admission);
        } else {
            self.hand_on(taken, admission);
        }
        ack();
        Ok(true)
    }

    /// A full disk keeps the message at the broker until there is room; `None` if the bridge stops before. Writing
    /// is never broken off: a message without an id that comes again would be another command.
    async fn once_there_is_room(
        &self,
        taken: &Taken,
        mut written: Result<Recorded, StoreError>,
        stop: &CancellationToken,
    ) -> Result<Option<Recorded>, StoreError> {
        while let Err(StoreError::Full { reason }) = written {
            warn!(sink = %self.origin, reason, "a command waits for room on the disk");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(FULL_EACH) => {}
            }
            written = self.log(taken).await;
        }
        written.map(Some)
    }

    fn judge(&self, incoming: Incoming, away_since: Option<Timestamp>) -> (Taken, Box<dyn FnOnce() + Send>) {
        let Incoming { address, body, is_retained, may_have_waited, expires_in, reply, user, ack } = incoming;
        // A broker that lets messages expire has counted the time that this one waited.
        let waited = away_since.filter(|_| may_have_waited && expires_in.is_none());
        let taken = Taken { user, ..self.read(address, body, is_retained, waited, expires_in, reply) };
        (taken, ack)
    }

    /// Judges a message. Cheap checks first; the body is not touched if it is too large.
    fn read(
        &self,
        address: CommandAddress,
        body: Bytes,
        is_retained: bool,
        waited_since: Option<Timestamp>,
        expires_in: Option<Duration>,
        reply: Option<ReplyTo>,
    ) -> Taken {
        let now = self.clock.now();
        let waited_at_most = Duration::from_millis(waited_since.map_or(0, |since| now.millis_since(since)));
        let is_too_large = body.len() > BODY_BYTES_MAX;
        let (envelope, envelope_is_right) =
            if is_too_large { (Envelope::default(), Ok(())) } else { Envelope::read(&body) };
        let server = address.server.as_deref().map(ServerName::parse);
        let hash = address.hash.as_deref().map(str::parse::<InfoHash>);
        let verb = Verb::parse(&address.verb);
        let ttl = envelope.ttl.unwrap_or(TTL).min(expires_in.unwrap_or(Duration::MAX));
        let reply_to = envelope.reply_to.as_deref();
        let verdict = if is_retained {
            Err(refused(ErrorCode::Retained, "a retained command is never carried out; publish it without retain"))
        } else if is_too_large {
            let message = format!("a body of more than {BODY_BYTES_MAX} bytes is not read");
            Err(failed(CommandError::new(ErrorCode::TooLarge, message)))
        } else if let Err(error) = envelope_is_right {
            Err(failed(error))
        } else if waited_at_most > ttl {
            let message = "it may have waited at the broker for longer than its time to live";
            Err((OutcomeStatus::Expired, CommandError::new(ErrorCode::ClientOffline, message)))
        } else if reply_to.is_some_and(|topic| !self.may_reply_to(topic)) {
            Err(refused(ErrorCode::Forbidden, "reply_to: the config allows no answers to that topic"))
        } else {
            self.addressed(&server, &hash, verb)
                .and_then(|(verb, hash)| Request::parse(verb, hash, &body).map_err(failed))
                .and_then(|request| self.with_rights(request))
                .and_then(|request| self.with_room(&server, request, body.len()))
        };
        let allowed_reply_to = reply_to.filter(|topic| self.may_reply_to(topic));
        let command = LoggedCommand {
            id: envelope.id.unwrap_or_else(made_up_id),
            server: server.and_then(Result::ok),
            origin: self.origin.clone(),
            hash: hash.and_then(Result::ok),
            verb,
            body: if verdict.is_ok() { body } else { Bytes::new() },
            received_at: now,
            expires_at: now.plus_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            reply: reply
                .or_else(|| allowed_reply_to.map(|topic| ReplyTo { topic: topic.to_owned(), correlation: None })),
            is_started: false,
        };
        let verb_text = printable(address.verb.as_bytes());
        let verdict = verdict.map_err(|refusal| self.outcome(&command, &verb_text, refusal));
        Taken { command, verb_text, user: None, verdict }
    }

    /// The verb and the torrent, if server, torrent and verb are such that it may be carried out.
    fn addressed(
        &self,
        server: &Option<Result<ServerName, InvalidServerName>>,
        hash: &Option<Result<InfoHash, InvalidInfoHash>>,
        verb: Option<Verb>,
    ) -> Result<(Verb, Option<InfoHash>), Refusal> {
        let error = |code, message: &str| Err(failed(CommandError::new(code, message)));
        let queue = match server {
            None => Some(&self.bridge),
            Some(server) => server.as_ref().ok().and_then(|server| self.queues.get(server)),
        };
        if queue.is_none() {
            return error(ErrorCode::UnknownServer, "no server of that name is configured for this broker");
        };
        let hash = match hash {
            Some(Err(invalid)) => return error(ErrorCode::BadRequest, &invalid.to_string()),
            Some(Ok(hash)) => Some(*hash),
            None => None,
        };
        let Some(verb) = verb else {
            let known: Vec<&str> = Verb::ALL.iter().map(|verb| verb.as_str()).collect();
            return error(ErrorCode::Unsupported, &format!("no such command; there are {}", known.join(", ")));
        };
        if server.is_none() && !bridge::VERBS.contains(&verb) {
            return error(ErrorCode::Unsupported, "the bridge itself takes resync and log_level; this is for a server");
        }
        if !(self.allows)(verb.as_str()) {
            return Err(refused(ErrorCode::Forbidden, "the config does not accept this command from this broker"));
        }
        Ok((verb, hash))
    }

    /// Some of what a verb can do needs a right of its own.
    fn with_rights(&self, request: Request) -> Result<Request, Refusal> {
        match request.what.extra_right() {
            Some(right) if !(self.allows)(right) => {
                Err(refused(ErrorCode::Forbidden, format!("the config does not give this broker the right to {right}")))
            }
            _ => Ok(request),
        }
    }

    /// A queue that is full, or has enough for these torrents, takes no more.
    fn with_room(
        &self,
        server: &Option<Result<ServerName, InvalidServerName>>,
        request: Request,
        body_bytes: usize,
    ) -> Result<Request, Refusal> {
        let server = server.as_ref().and_then(|server| server.as_ref().ok());
        let queue = server.map_or(Some(&self.bridge), |server| self.queues.get(server));
        if queue.is_some_and(|queue| queue.reserve(&self.origin, &request, body_bytes)) {
            return Ok(request);
        }
        let mut error = CommandError::new(ErrorCode::ClientOffline, "too many commands are waiting");
        error.retryable = true;
        Err((OutcomeStatus::Refused, error))
    }

    fn may_reply_to(&self, topic: &str) -> bool {
        let is_topic = !topic.contains(['+', '#', '\0']) && !topic.chars().any(char::is_control);
        let is_below = |prefix: &String| {
            topic.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
        };
        is_topic && self.reply_prefixes.iter().any(is_below)
    }

    /// Writes the command down, with its result if it is refused.
    async fn log(&self, taken: &Taken) -> Result<Recorded, StoreError> {
        let (command, answer) = entry(taken);
        self.store.record_command(command, answer).await
    }

    /// Hands on what is to be done.
    fn hand_on(&self, taken: &Taken, admission: Recorded) {
        let Taken { command, verb_text, user, verdict } = taken;
        let LoggedCommand { id, server, origin, .. } = command;
        let queue = match server {
            None => Some(&self.bridge),
            Some(server) => self.queues.get(server),
        };
        match (&admission, verdict, queue) {
            (Recorded::New, Ok(request), Some(queue)) => {
                queue.push(Job { command: command.clone(), request: request.clone(), user: user.clone() });
                return;
            }
            (_, Ok(request), Some(queue)) => queue.give_back(origin, request, command.body.len()),
            (Recorded::New, Err(outcome), _) => {
                outcome::audit(command, verb_text, &Asker { user: user.as_deref() }, outcome);
            }
            (_, Err(_), _) => {}
            (_, Ok(_), None) => unreachable!("a command for no server is refused"),
        }
        match admission {
            Recorded::New => {}
            Recorded::Running | Recorded::WaitersFull => {
                return info!(sink = %origin, %id, verb = verb_text, "the command came again and is being carried out");
            }
            Recorded::Answered => {
                info!(sink = %origin, %id, verb = verb_text, "the command came again and is answered as before");
            }
        }
        self.wake_sink();
    }

    /// The result of what is not carried out.
    fn outcome(&self, command: &LoggedCommand, verb_text: &str, (status, error): Refusal) -> Outcome {
        let now = self.clock.now();
        let done = Done { status, ..Done::failed(error) };
        outcome::outcome(command, verb_text, now.millis_since(command.received_at), now, done)
    }

    /// In place of a message that repeats a command for whose result too many wait already: its answer is one of its
    /// own, so that nobody takes it for the command's.
    fn turned_away(&self, taken: &Taken) -> Taken {
        let Taken { command, verb_text, user, verdict: _ } = taken;
        let message = format!("too many wait for the result of {} already; ask again when it is done", command.id);
        let mut error = CommandError::new(ErrorCode::ClientOffline, message);
        error.retryable = true;
        let command = LoggedCommand { id: made_up_id(), body: Bytes::new(), ..command.clone() };
        let outcome = self.outcome(&command, verb_text, (OutcomeStatus::Refused, error));
        Taken { command, verb_text: verb_text.clone(), user: user.clone(), verdict: Err(outcome) }
    }

    fn wake_sink(&self) {
        if let Some(buffer) = self.live.buffer(&self.origin) {
            buffer.results.notify_one();
        }
    }
}

/// As it stands in the log.
fn entry(taken: &Taken) -> (LoggedCommand, Option<LoggedResult>) {
    let answer = taken.verdict.as_ref().err().map(|outcome| {
        let body = Bytes::from(serde_json::to_vec(outcome).expect("an outcome is plain JSON"));
        LoggedResult { status: outcome.status, body }
    });
    (taken.command.clone(), answer)
}

fn made_up_id() -> CommandId {
    CommandId::parse(&format!("dtorrent-{:016x}", rand::random::<u64>())).expect("24 plain letters are an id")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicI64, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::port::{CommandLog as _, DeliverError};
    use crate::store::{MemoryStore, Options};

    struct HandClock(AtomicI64);

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    /// What a source says next; each failure takes a minute of the clock.
    enum Step {
        Message { id: &'static str, may_have_waited: bool },
        Failure,
    }

    struct Script {
        steps: VecDeque<Step>,
        clock: Arc<HandClock>,
    }

    #[async_trait]
    impl CommandSource for Script {
        async fn next(&mut self) -> Result<Incoming, DeliverError> {
            match self.steps.pop_front() {
                None => std::future::pending().await,
                Some(Step::Failure) => {
                    self.clock.0.fetch_add(60_000, Ordering::SeqCst);
                    Err(DeliverError::unavailable("gone"))
                }
                Some(Step::Message { id, may_have_waited }) => Ok(Incoming {
                    address: CommandAddress {
                        server: Some("home".to_owned()),
                        hash: Some("ab".repeat(20)),
                        verb: "pause".to_owned(),
                    },
                    body: format!("{{\"id\": \"{id}\"}}").into(),
                    is_retained: false,
                    may_have_waited,
                    expires_in: None,
                    reply: None,
                    user: None,
                    ack: Box::new(|| {}),
                }),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_behind_a_line_that_broke_right_after_a_command_is_not_done_late() {
        let message = |id, may_have_waited| Step::Message { id, may_have_waited };
        for (minutes, is_done) in [(3, true), (10, false)] {
            let clock = Arc::new(HandClock(AtomicI64::new(1_000_000)));
            let mut steps = VecDeque::from([message("live", false)]);
            steps.extend((0..minutes).map(|_| Step::Failure));
            steps.push_back(message("waited", true));
            let (origin, home) = (SinkName::parse("b").unwrap(), ServerName::parse("home").unwrap());
            let store = Arc::new(MemoryStore::new(Options::default(), clock.clone()));
            let queue = Arc::new(Queue::default());
            let door = Door {
                origin: origin.clone(),
                allows: Box::new(|_| true),
                reply_prefixes: Vec::new(),
                queues: [(home, Arc::clone(&queue))].into(),
                bridge: Arc::default(),
                store: store.clone(),
                live: Arc::new(LiveState::new(BTreeMap::new(), [origin.clone()])),
                clock: clock.clone(),
            };
            let intake = Intake { source: Box::new(Script { steps, clock: clock.clone() }), door, away_since: None };
            let an_hour = Duration::from_secs(3600);
            tokio::time::timeout(an_hour, intake.run(CancellationToken::new())).await.unwrap_err();
            let results = store.unsent_results(&origin, 0, 10).await.unwrap();
            let expired = results.iter().filter(|result| {
                let text = String::from_utf8_lossy(&result.body);
                text.contains("\"waited\"") && text.contains("\"expired\"")
            });
            assert_eq!(expired.count(), usize::from(!is_done), "after {minutes} minutes");
            assert_eq!(queue.next(Timestamp::from_millis(0)).unwrap().command.id.as_str(), "live");
            queue.done(&CommandId::parse("live").unwrap());
            assert_eq!(queue.next(Timestamp::from_millis(0)).is_some(), is_done, "after {minutes} minutes");
        }
    }
}
