//! The door: which messages become commands.
//!
//! Each message gets exactly one result. A good one is in the command log before its broker is told
//! that it arrived; one that is refused has its result there instead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::queue::{Job, Queue};
use super::request::{BODY_BYTES_MAX, Envelope, Request, TTL};
use crate::board::Board;
use crate::deliver::backoff::Backoff;
use crate::model::{
    CommandError, CommandId, ErrorCode, InfoHash, InvalidInfoHash, InvalidServerName, Outcome, OutcomeStatus,
    RESULT_SCHEMA, ServerName, SinkName, Timestamp, Verb, printable,
};
use crate::port::{
    Admission, Answer, Clock, CommandAddress, CommandSource, Incoming, LoggedCommand, ReplyTo, Store, StoreError,
};
use crate::repeat::Repeat;

/// A connection that stood so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// How long to wait before a command is offered to a full disk again.
const FULL_EACH: Duration = Duration::from_secs(1);

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
    pub store: Arc<dyn Store>,
    pub board: Arc<Board>,
    pub clock: Arc<dyn Clock>,
}

/// A message, taken apart as far as that goes.
struct Taken {
    command: LoggedCommand,
    verb_text: String,
    /// What it says, or why it is not carried out.
    verdict: Result<Request, Refusal>,
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
        let mut repeat = Repeat::default();
        loop {
            let since = Instant::now();
            let incoming = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                incoming = self.source.next() => incoming,
            };
            match incoming {
                Ok(incoming) => {
                    backoff.reset();
                    repeat.ended();
                    if !incoming.may_have_waited {
                        self.away_since = None;
                    }
                    self.door.take(incoming, self.away_since, &stop).await?;
                }
                Err(error) => {
                    if since.elapsed() > GOOD_AFTER {
                        backoff.reset();
                        // It stood until now, or nearly so.
                        self.away_since = Some(self.door.clock.now());
                    }
                    if let Some(times) = repeat.failed() {
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

impl Door {
    async fn take(
        &self,
        incoming: Incoming,
        away_since: Option<Timestamp>,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let Incoming { address, body, is_retained, may_have_waited, expires_in, reply, ack } = incoming;
        // A broker that lets messages expire has counted the time that this one waited.
        let waited = away_since.filter(|_| may_have_waited && expires_in.is_none());
        let taken = self.read(address, body, is_retained, waited, expires_in, reply);
        // A full disk keeps the message at the broker until there is room. Writing is never broken
        // off: a message without an id that comes again would be another command.
        while let Err(error) = self.log(&taken).await {
            let StoreError::Full { reason } = error else { return Err(error) };
            warn!(sink = %self.origin, reason, "a command waits for room on the disk");
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(FULL_EACH) => {}
            }
        }
        ack();
        Ok(())
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
            self.addressed(&server, &hash, verb, body.len())
                .and_then(|(verb, hash)| Request::parse(verb, hash, &body).map_err(failed))
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
        Taken { command, verb_text, verdict }
    }

    /// The verb and the torrent, if server, torrent and verb are such that it may be carried out.
    fn addressed(
        &self,
        server: &Option<Result<ServerName, InvalidServerName>>,
        hash: &Option<Result<InfoHash, InvalidInfoHash>>,
        verb: Option<Verb>,
        body_bytes: usize,
    ) -> Result<(Verb, Option<InfoHash>), Refusal> {
        let error = |code, message: &str| Err(failed(CommandError::new(code, message)));
        let queue = match server {
            None => return error(ErrorCode::Unsupported, "this version takes no commands to the bridge itself"),
            Some(server) => server.as_ref().ok().and_then(|server| self.queues.get(server)),
        };
        let Some(queue) = queue else {
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
        if !(self.allows)(verb.as_str()) {
            return Err(refused(ErrorCode::Forbidden, "the config does not accept this command from this broker"));
        }
        if !queue.has_room(body_bytes) {
            let mut error = CommandError::new(ErrorCode::ClientOffline, "too many commands are waiting");
            error.retryable = true;
            return Err((OutcomeStatus::Refused, error));
        }
        Ok((verb, hash))
    }

    fn may_reply_to(&self, topic: &str) -> bool {
        let is_topic = !topic.contains(['+', '#', '\0']) && !topic.chars().any(char::is_control);
        let is_below = |prefix: &String| {
            topic.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
        };
        is_topic && self.reply_prefixes.iter().any(is_below)
    }

    /// Writes the command down, with its result if it is refused, and hands it on if it is not.
    async fn log(&self, taken: &Taken) -> Result<(), StoreError> {
        let Taken { command, verb_text, verdict } = taken;
        let LoggedCommand { id, server, origin, .. } = command;
        let answer = verdict.as_ref().err().map(|refusal| self.answer(command, verb_text, refusal));
        match self.store.log_command(command.clone(), answer).await? {
            Admission::New => {}
            Admission::Running => {
                info!(sink = %origin, %id, verb = verb_text, "the command came again and is being carried out");
                return Ok(());
            }
            Admission::Answered => {
                info!(sink = %origin, %id, verb = verb_text, "the command came again and is answered as before");
                self.wake_sink();
                return Ok(());
            }
        }
        match (verdict, server.as_ref().and_then(|server| self.queues.get(server))) {
            (Ok(request), Some(queue)) => queue.push(Job { command: command.clone(), request: request.clone() }),
            _ => self.wake_sink(),
        }
        Ok(())
    }

    fn answer(&self, command: &LoggedCommand, verb_text: &str, refusal: &Refusal) -> Answer {
        let LoggedCommand { id, server, origin, received_at, .. } = command;
        let (status, error) = refusal;
        info!(sink = %origin, %id, verb = verb_text, code = ?error.code, error = error.message, "command refused");
        let now = self.clock.now();
        let outcome = Outcome {
            schema: RESULT_SCHEMA,
            id: id.clone(),
            verb: verb_text.to_owned(),
            server: server.clone(),
            status: *status,
            time: now,
            took_ms: now.millis_since(*received_at),
            results: Vec::new(),
            error: Some(error.clone()),
            page: None,
        };
        let body = Bytes::from(serde_json::to_vec(&outcome).expect("an outcome is plain JSON"));
        Answer { status: *status, body }
    }

    fn wake_sink(&self) {
        if let Some(desk) = self.board.desk(&self.origin) {
            desk.answered.notify_one();
        }
    }
}

fn made_up_id() -> CommandId {
    CommandId::parse(&format!("dtorrent-{:016x}", rand::random::<u64>())).expect("24 plain letters are an id")
}
