//! Admission: the checks before a message becomes a command.
//!
//! Each message gets exactly one result. An accepted command is in the command log before its message is
//! acknowledged; for a refused one the log has its result instead; a repeated one gets the result of the first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::common::Common;
use super::queue::{Queue, QueuedCommand};
use super::request::{Envelope, Request, TTL};
use super::results::{self, ResultBody};
use super::sender::{CommandSender, Waiter};
use crate::model::{
    AUDIT, CommandError, CommandId, ErrorCode, InfoHash, InvalidInfoHash, Outcome, OutcomeStatus, SECRETS, ServerName,
    SinkName, Timestamp, Verb, known_names, printable,
};
use crate::port::{
    BODY_BYTES_MAX, CommandAddress, CommandDigest, Incoming, LoggedCommand, LoggedResult, Recorded, ReplyTo,
    ResultBacklog, StoreError,
};

/// Interval of offering a command to a full disk again.
pub(super) const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// Most messages that share one write to the command log.
pub(super) const BATCH_MAX: usize = 256;

/// Decides which messages of one sink become commands.
pub struct Admission {
    /// The sink that the messages come from.
    pub origin: SinkName,
    /// Whether this sink has a right: the name of a verb, or one that some bodies need besides.
    pub allows: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// The topics below which a body's `reply_to` may be.
    pub reply_prefixes: Vec<String>,
    /// The queues of the servers that this sink may command.
    pub queues: BTreeMap<ServerName, Arc<Queue>>,
    /// The queue of the bridge itself.
    pub bridge: Arc<Queue>,
    /// Store, live state and clock.
    pub common: Common,
}

/// A message, with its way to admission.
pub(super) struct Received {
    /// The message itself.
    pub incoming: Incoming,
    /// Since when it may have waited at the broker.
    pub unattended_since: Option<Timestamp>,
    /// Where its sender waits for the result, if it is in this process.
    pub waiter: Option<Waiter>,
}

/// A message that was judged.
struct Judged {
    command: LoggedCommand,
    /// As in the topic, also where there is no such verb.
    verb_text: String,
    sender: CommandSender,
    /// The parsed body, or the result of a message that is refused.
    verdict: Result<Request, Outcome>,
}

impl Judged {
    fn log_entry(&self) -> (LoggedCommand, Option<LoggedResult>) {
        (self.command.clone(), self.verdict.as_ref().err().map(results::logged))
    }
}

type Ack = Box<dyn FnOnce() + Send>;
type Refusal = (OutcomeStatus, CommandError);

fn refused(code: ErrorCode, message: impl Into<String>) -> Refusal {
    (OutcomeStatus::Refused, CommandError::new(code, message))
}

fn failed(code: ErrorCode, message: impl Into<String>) -> Refusal {
    (OutcomeStatus::Error, CommandError::new(code, message))
}

fn error(error: CommandError) -> Refusal {
    (OutcomeStatus::Error, error)
}

impl Admission {
    /// Whether so many results, or so many bytes of them, wait to be taken by the sink.
    pub(super) async fn has_results_waiting(&self, max: ResultBacklog) -> Result<bool, StoreError> {
        let ResultBacklog { count, bytes } = self.common.store.result_backlog(&self.origin).await?;
        Ok(count >= max.count || bytes >= max.bytes)
    }

    /// Decides about messages in their order; one write puts all of them into the command log.
    ///
    /// `on_repeated` gets server and id of each command whose result comes from the log, and who waits for it here.
    pub(super) async fn admit(
        &self,
        batch: Vec<Received>,
        mut on_repeated: impl FnMut((Option<ServerName>, CommandId), Waiter),
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let (judged, acks): (Vec<Judged>, Vec<Ack>) = batch.into_iter().map(|received| self.judge(received)).unzip();
        let entries = judged.iter().map(Judged::log_entry).collect();
        let mut written = self.common.store.record_commands(entries).await.map(Vec::into_iter);
        for (judged, ack) in judged.into_iter().zip(acks) {
            let recorded = match &mut written {
                Ok(written) => Ok(written.next().expect("one for each command")),
                // None was written. Each on its own may still find room.
                Err(_) => self.record(&judged).await,
            };
            let Some(recorded) = self.finish(&judged, ack, recorded, stop).await? else { break };
            let Judged { command: LoggedCommand { server, id, .. }, sender, .. } = judged;
            if let (Recorded::Running | Recorded::Answered, Some(waiter)) = (recorded, sender.waiter) {
                on_repeated((server, id), waiter);
            }
        }
        Ok(())
    }

    /// Queues what was recorded, and acknowledges its message; `None` if `stop` came first.
    async fn finish(
        &self,
        judged: &Judged,
        ack: Ack,
        recorded: Result<Recorded, StoreError>,
        stop: &CancellationToken,
    ) -> Result<Option<Recorded>, StoreError> {
        let Some(recorded) = self.wait_for_room(judged, recorded, stop).await? else { return Ok(None) };
        self.hand_on(judged, &recorded);
        let refused = match recorded {
            Recorded::WaitersFull => Some(self.too_many_waiters(judged)),
            Recorded::IdTaken => self.id_taken(judged),
            Recorded::New | Recorded::Running | Recorded::Answered => None,
        };
        if let Some(refused) = refused {
            let recorded = self.record(&refused).await;
            let Some(recorded) = self.wait_for_room(&refused, recorded, stop).await? else { return Ok(None) };
            self.hand_on(&refused, &recorded);
        }
        // Last: until here the broker has the only copy of what is not in the log (I12).
        ack();
        Ok(Some(recorded))
    }

    /// Leaves the message at the broker while the disk is full; `None` if the bridge stops before it has room.
    ///
    /// A write is never broken off: a message without an id that comes again would be another command.
    async fn wait_for_room(
        &self,
        judged: &Judged,
        mut recorded: Result<Recorded, StoreError>,
        stop: &CancellationToken,
    ) -> Result<Option<Recorded>, StoreError> {
        while let Err(StoreError::Full { reason }) = recorded {
            warn!(sink = %self.origin, reason, "disk full, command waits");
            if stop.run_until_cancelled(tokio::time::sleep(ROOM_INTERVAL)).await.is_none() {
                return Ok(None);
            }
            recorded = self.record(judged).await;
        }
        recorded.map(Some)
    }

    /// Writes the command to the log, with its result if it is refused.
    async fn record(&self, judged: &Judged) -> Result<Recorded, StoreError> {
        let mut recorded = self.common.store.record_commands(vec![judged.log_entry()]).await?;
        Ok(recorded.pop().expect("one for each command"))
    }

    /// Judges a message. Cheap checks come first; a body that is too large, or was cut, is not read.
    fn judge(&self, Received { incoming, unattended_since, waiter }: Received) -> (Judged, Ack) {
        let Incoming { address, body, body_bytes, is_retained, may_have_waited, expires_in, reply, user, ack } =
            incoming;
        let CommandAddress { server, hash, verb: verb_text } = address;
        let now = self.common.clock.now();
        // A broker that expires messages has counted the time that this one waited. Otherwise it may have
        // waited since the last command was taken, and an expired command is never executed (I12).
        let waited_since = unattended_since.filter(|_| may_have_waited && expires_in.is_none());
        let waited_at_most = Duration::from_millis(waited_since.map_or(0, |since| now.millis_since(since)));
        let (is_too_large, is_cut) = (body_bytes > BODY_BYTES_MAX, body.len() < body_bytes);
        let (envelope, envelope_is_right) = match is_too_large || is_cut {
            true => (Envelope::read_start(&body), Ok(())),
            false => Envelope::read(&body, self.bridge.trees()),
        };
        // `Some(None)` is no name of a server; `None` is the bridge.
        let server = server.as_deref().map(|name| ServerName::parse(name).ok());
        let hash = hash.as_deref().map(str::parse::<InfoHash>).transpose();
        let verb = Verb::parse(&verb_text);
        let ttl = envelope.ttl.unwrap_or(TTL).min(expires_in.unwrap_or(Duration::MAX));
        let reply_to = envelope.reply_to.as_deref();
        let sees_secrets = (self.allows)(SECRETS);
        let mut digest = digest(&verb_text, hash.as_ref().ok().and_then(Option::as_ref), &envelope.arguments);
        if sees_secrets && matches!(verb, Some(Verb::Get | Verb::Rpc)) {
            // Another command, because another result: who may not see it does not get it by repeating the id.
            digest.0 = Sha256::new().chain_update(digest.0).chain_update(SECRETS).finalize().into();
        }
        let verdict = if is_retained {
            Err(refused(ErrorCode::Retained, "a retained command is never carried out; publish it without retain"))
        } else if is_too_large {
            Err(failed(ErrorCode::TooLarge, format!("a body of more than {BODY_BYTES_MAX} bytes is not read")))
        } else if is_cut {
            Err(refused(ErrorCode::ClientOffline, "too many commands are waiting"))
        } else if let Err(wrong) = envelope_is_right {
            Err(error(wrong))
        } else if waited_at_most > ttl {
            let message = "it may have waited at the broker for longer than its time to live";
            Err((OutcomeStatus::Expired, CommandError::new(ErrorCode::ClientOffline, message)))
        } else if reply_to.is_some_and(|topic| !self.may_reply_to(topic)) {
            Err(refused(ErrorCode::Forbidden, "reply_to: the config allows no answers to that topic"))
        } else {
            self.accept(server.as_ref(), hash.as_ref(), &verb_text, &body)
        };
        let reply_to = reply_to.filter(|topic| self.may_reply_to(topic));
        let command = LoggedCommand {
            id: envelope.id.unwrap_or_else(made_up_id),
            server: server.flatten(),
            origin: self.origin.clone(),
            hash: hash.ok().flatten(),
            verb,
            // A refused command is never executed, and its body would only fill the log.
            body: if verdict.is_ok() { body } else { Bytes::new() },
            digest: Some(digest),
            received_at: now,
            expires_at: now.plus_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            reply: reply.or_else(|| reply_to.map(|topic| ReplyTo { topic: topic.to_owned(), correlation: None })),
            sees_secrets,
            is_started: false,
            begun: Vec::new(),
            is_answered: false,
            crashes: 0,
        };
        let verb_text = printable(verb_text.as_bytes());
        let verdict = verdict.map_err(|refusal| self.refusal(&command, &verb_text, refusal));
        // Nobody knows what a cut one asks for, so it is neither compared with another command under its id nor in the way
        // of one that comes later.
        let command = if is_cut { LoggedCommand { id: made_up_id(), ..command } } else { command };
        (Judged { command, verb_text, sender: CommandSender { user, waiter }, verdict }, ack)
    }

    /// Checks address, rights, body and room in the queue, in this order.
    fn accept(
        &self,
        server: Option<&Option<ServerName>>,
        hash: Result<&Option<InfoHash>, &InvalidInfoHash>,
        verb: &str,
        body: &[u8],
    ) -> Result<Request, Refusal> {
        let queue = match server {
            None => Some(&self.bridge),
            Some(name) => name.as_ref().and_then(|name| self.queues.get(name)),
        };
        let Some(queue) = queue else {
            let written = server.and_then(Option::as_ref).map_or("", ServerName::as_str);
            let known = known_names(written, self.queues.keys().map(ServerName::as_str));
            return Err(failed(ErrorCode::UnknownServer, format!("no such server is configured here; {known}")));
        };
        let hash = *hash.map_err(|invalid| failed(ErrorCode::BadRequest, invalid.to_string()))?;
        let Some(verb) = Verb::parse(verb) else {
            let known = known_names(verb, names(|_| true));
            return Err(failed(ErrorCode::Unsupported, format!("no such command; {known}")));
        };
        if server.is_none() && !verb.is_for_bridge() {
            let known = names(Verb::is_for_bridge).join(" and ");
            let message = format!("the bridge itself takes {known}; this is for a server");
            return Err(failed(ErrorCode::Unsupported, message));
        }
        if !(self.allows)(verb.as_str()) {
            return Err(refused(ErrorCode::Forbidden, "the config does not accept this command from this broker"));
        }
        let request = Request::parse(verb, hash, body, queue.trees()).map_err(error)?;
        if let Some(right) = verb.extra_right(&request.operation).filter(|right| !(self.allows)(right)) {
            let message = format!("the config does not give this broker the right to {right}");
            return Err(refused(ErrorCode::Forbidden, message));
        }
        // Last, because a place that was taken has to be given back if the command is not queued.
        if !queue.reserve(&self.origin, &request, body.len()) {
            return Err(refused(ErrorCode::ClientOffline, "too many commands are waiting"));
        }
        Ok(request)
    }

    fn may_reply_to(&self, topic: &str) -> bool {
        // Wildcards are for filters: a broker ends the connection that publishes to one.
        let is_topic = !topic.contains(['+', '#', '\0']) && !topic.chars().any(char::is_control);
        let is_below = |prefix: &String| {
            topic.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
        };
        is_topic && self.reply_prefixes.iter().any(is_below)
    }

    /// Queues a new command; of what has a result already, wakes the sink.
    fn hand_on(&self, judged: &Judged, recorded: &Recorded) {
        let Judged { command, verb_text, sender, verdict } = judged;
        let LoggedCommand { id, server, origin, .. } = command;
        let queue = match server {
            None => Some(&self.bridge),
            Some(server) => self.queues.get(server),
        };
        match (recorded, verdict, queue) {
            (Recorded::New, Ok(request), Some(queue)) => {
                return queue.push(QueuedCommand::new(command.clone(), request.clone(), sender.clone()));
            }
            // A repeated id runs already, or is answered: the place in the queue was not needed.
            (_, Ok(request), Some(queue)) => queue.give_back(origin, request, command.body.len()),
            (Recorded::New, Err(outcome), _) => {
                results::report(&self.common, command, verb_text, sender.user.as_deref(), outcome);
                if let Some(waiter) = &sender.waiter {
                    waiter.answer(outcome.clone(), results::logged(outcome).body);
                }
            }
            (_, Err(_), _) => {}
            (_, Ok(_), None) => unreachable!("a command for no server is refused"),
        }
        match recorded {
            Recorded::New | Recorded::IdTaken => {}
            Recorded::Running | Recorded::WaitersFull => {
                return info!(target: AUDIT, sink = %origin, %id, verb = verb_text, "command repeated, it is being executed");
            }
            Recorded::Answered => {
                info!(target: AUDIT, sink = %origin, %id, verb = verb_text, "command repeated, it is answered as before");
            }
        }
        if let Some(buffer) = self.common.live.buffer(&self.origin) {
            buffer.results.notify_one();
        }
    }

    fn refusal(&self, command: &LoggedCommand, verb_text: &str, (status, error): Refusal) -> Outcome {
        ResultBody { status, ..ResultBody::failed(error) }.into_outcome(command, verb_text, self.common.clock.now())
    }

    /// Answers a message whose id is that of another command. The answer has the id as it came, and is logged under one of its
    /// own; `None` if its sender waits in this process, has it already and needs no log.
    ///
    /// Not logged, because [`Caller`](super::Caller) finds those who repeat the other command by the id in a result.
    fn id_taken(&self, judged: &Judged) -> Option<Judged> {
        let Judged { command, verb_text, sender, verdict: _ } = judged;
        let message =
            format!("the id {} is taken: another command had it within the last 24 hours; use another id", command.id);
        let outcome = self.refusal(command, verb_text, failed(ErrorCode::BadRequest, message));
        if let Some(waiter) = &sender.waiter {
            results::report(&self.common, command, verb_text, sender.user.as_deref(), &outcome);
            waiter.answer(outcome.clone(), results::logged(&outcome).body);
            return None;
        }
        let command = LoggedCommand { id: made_up_id(), body: Bytes::new(), ..command.clone() };
        Some(Judged { command, verb_text: verb_text.clone(), sender: sender.clone(), verdict: Err(outcome) })
    }

    /// Answers a message that repeats a command for whose result too many wait already. The answer has an id of its
    /// own, so that it is not taken for the result of the command.
    fn too_many_waiters(&self, judged: &Judged) -> Judged {
        let Judged { command, verb_text, sender, verdict: _ } = judged;
        let message = format!("too many wait for the result of {} already; ask again when it is done", command.id);
        let command = LoggedCommand { id: made_up_id(), body: Bytes::new(), ..command.clone() };
        let outcome = self.refusal(&command, verb_text, refused(ErrorCode::ClientOffline, message));
        Judged { command, verb_text: verb_text.clone(), sender: sender.clone(), verdict: Err(outcome) }
    }
}

/// The digest of what a message asks for; `arguments` is that of its body.
fn digest(verb: &str, hash: Option<&InfoHash>, arguments: &[u8; 32]) -> CommandDigest {
    let hash = hash.map(InfoHash::to_string).unwrap_or_default();
    // Lengths are not needed: neither a level of a topic nor a hash has a line end.
    CommandDigest(Sha256::new().chain_update(format!("{verb}\n{hash}\n")).chain_update(arguments).finalize().into())
}

fn names(is_meant: impl Fn(Verb) -> bool) -> Vec<&'static str> {
    Verb::ALL.iter().filter(|verb| is_meant(**verb)).map(|verb| verb.as_str()).collect()
}

fn made_up_id() -> CommandId {
    CommandId::parse(&format!("dtorrent-{:016x}", rand::random::<u64>())).expect("25 plain characters are an id")
}
