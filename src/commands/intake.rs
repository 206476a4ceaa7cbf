//! The door: which messages become commands.
//!
//! Each message gets exactly one result. A good one is in the command log before its broker is told
//! that it arrived; one that is refused has its result there instead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::queue::Queue;
use super::request::{BODY_BYTES_MAX, Envelope, Request, TTL};
use crate::board::Board;
use crate::deliver::backoff::Backoff;
use crate::model::{
    CommandError, CommandId, ErrorCode, InfoHash, Outcome, OutcomeStatus, RESULT_SCHEMA, ServerName, SinkName, Verb,
    printable,
};
use crate::port::{
    Admission, Clock, CommandAddress, CommandSource, Incoming, LoggedCommand, ReplyTo, Store, StoreError,
};
use crate::repeat::{Repeat, until_there_is_room};

/// How long to wait before a command is offered to a full disk again.
const FULL_EACH: Duration = Duration::from_secs(1);

/// Takes what comes from one source to its door.
pub struct Intake {
    pub source: Box<dyn CommandSource>,
    pub door: Door,
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
    refusal: Option<(OutcomeStatus, CommandError)>,
}

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
            let incoming = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                incoming = self.source.next() => incoming,
            };
            match incoming {
                Ok(incoming) => {
                    backoff.reset();
                    repeat.ended();
                    self.door.take(incoming, &stop).await?;
                }
                Err(error) => {
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
    async fn take(&self, incoming: Incoming, stop: &CancellationToken) -> Result<(), StoreError> {
        let Incoming { address, body, is_retained, expires_in, reply, ack } = incoming;
        let taken = self.read(address, body, is_retained, expires_in, reply);
        // A full disk keeps the message at the broker until there is room.
        while let Err(error) = self.log(&taken).await {
            let StoreError::Full { reason } = error else { return Err(error) };
            warn!(sink = %self.origin, reason, "a command waits for room on the disk");
            tokio::select! {
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
        expires_in: Option<Duration>,
        reply: Option<ReplyTo>,
    ) -> Taken {
        let now = self.clock.now();
        let is_too_large = body.len() > BODY_BYTES_MAX;
        let (envelope, envelope_is_right) =
            if is_too_large { (Envelope::default(), Ok(())) } else { Envelope::read(&body) };
        let server = address.server.as_deref().map(ServerName::parse);
        let hash = address.hash.as_deref().map(str::parse::<InfoHash>);
        let verb = Verb::parse(&address.verb);
        let ttl = envelope.ttl.unwrap_or(TTL).min(expires_in.unwrap_or(Duration::MAX));
        let reply_to = envelope.reply_to.as_deref();
        let refusal = if is_retained {
            Some(refused(ErrorCode::Retained, "a retained command is never carried out; publish it without retain"))
        } else if is_too_large {
            let message = format!("a body of more than {BODY_BYTES_MAX} bytes is not read");
            Some(failed(CommandError::new(ErrorCode::TooLarge, message)))
        } else if let Err(error) = envelope_is_right {
            Some(failed(error))
        } else if let Some(refusal) = self.wrong_address(&address, &server, &hash, verb) {
            Some(refusal)
        } else if reply_to.is_some_and(|topic| !self.may_reply_to(topic)) {
            Some(refused(ErrorCode::Forbidden, "reply_to: the config allows no answers to that topic"))
        } else if let Some(verb) = verb
            && let Err(error) = Request::parse(verb, hash.clone().and_then(Result::ok), &body)
        {
            Some(failed(error))
        } else {
            None
        };
        let allowed_reply_to = reply_to.filter(|topic| self.may_reply_to(topic));
        let command = LoggedCommand {
            id: envelope.id.unwrap_or_else(made_up_id),
            server: server.and_then(Result::ok),
            origin: self.origin.clone(),
            hash: hash.and_then(Result::ok),
            verb: verb.filter(|_| refusal.is_none()),
            body: if refusal.is_none() { body } else { Bytes::new() },
            received_at: now,
            expires_at: now.plus_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            reply: reply
                .or_else(|| allowed_reply_to.map(|topic| ReplyTo { topic: topic.to_owned(), correlation: None })),
            is_started: false,
        };
        let verb_text = printable(address.verb.as_bytes());
        Taken { command, verb_text, refusal }
    }

    fn wrong_address(
        &self,
        address: &CommandAddress,
        server: &Option<Result<ServerName, crate::model::InvalidServerName>>,
        hash: &Option<Result<InfoHash, crate::model::InvalidInfoHash>>,
        verb: Option<Verb>,
    ) -> Option<(OutcomeStatus, CommandError)> {
        let known = |server: &ServerName| self.queues.contains_key(server);
        match server {
            None => {
                let message = "this version takes no commands to the bridge itself";
                return Some(failed(CommandError::new(ErrorCode::Unsupported, message)));
            }
            Some(Ok(server)) if known(server) => {}
            Some(_) => {
                let message = "no server of that name is configured for this broker";
                return Some(failed(CommandError::new(ErrorCode::UnknownServer, message)));
            }
        }
        if let Some(Err(error)) = hash {
            return Some(failed(CommandError::new(ErrorCode::BadRequest, error.to_string())));
        }
        if verb.is_none() {
            let known: Vec<&str> = Verb::ALL.iter().map(|verb| verb.as_str()).collect();
            let message = format!("no such command; there are {}", known.join(", "));
            return Some(failed(CommandError::new(ErrorCode::Unsupported, message)));
        }
        if !(self.allows)(&address.verb) {
            return Some(refused(ErrorCode::Forbidden, "the config does not accept this command from this broker"));
        }
        None
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
        let Taken { command, verb_text, refusal } = taken;
        let LoggedCommand { id, server, origin, .. } = command;
        match self.store.log_command(command.clone()).await? {
            Admission::New => {}
            Admission::Running if refusal.is_some() && self.is_refused_already(command).await? => {}
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
        let refusal = match refusal {
            Some(refusal) => Some(refusal.clone()),
            None => self.hand_on(command),
        };
        if let Some((status, error)) = refusal {
            info!(sink = %origin, %id, verb = verb_text, code = ?error.code, error = error.message, "command refused");
            let now = self.clock.now();
            let outcome = Outcome {
                schema: RESULT_SCHEMA,
                id: id.clone(),
                verb: verb_text.clone(),
                server: server.clone(),
                status,
                time: now,
                took_ms: now.millis_since(command.received_at),
                results: Vec::new(),
                error: Some(error),
                page: None,
            };
            let body = Bytes::from(serde_json::to_vec(&outcome).expect("an outcome is plain JSON"));
            let finish = || self.store.finish_command(server.as_ref(), id, status, body.clone());
            until_there_is_room("a result", finish).await?;
            self.wake_sink();
        }
        Ok(())
    }

    /// The same refusal was logged before, and a crash came between it and its result.
    async fn is_refused_already(&self, command: &LoggedCommand) -> Result<bool, StoreError> {
        let open = self.store.open_commands().await?;
        let is_it = |open: &LoggedCommand| open.id == command.id && open.server == command.server;
        Ok(open.iter().any(|open| is_it(open) && open.verb.is_none()))
    }

    /// Gives the command to its server's worker; a refusal if that has too much to do.
    fn hand_on(&self, command: &LoggedCommand) -> Option<(OutcomeStatus, CommandError)> {
        let queue = command.server.as_ref().and_then(|server| self.queues.get(server))?;
        let _too_many = queue.push(command.clone()).err()?;
        let mut error = CommandError::new(ErrorCode::ClientOffline, "too many commands are waiting");
        error.retryable = true;
        Some((OutcomeStatus::Refused, error))
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
