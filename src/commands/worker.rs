//! The worker: carries out the commands of one server.
//!
//! Commands for one torrent run in the order they came, others beside each other, a few at once.
//! Each waits until its client is there (or its time is over), says what it expects, asks, and waits
//! until the watcher has seen it. The client's own answer proves nothing: rTorrent says 0 to everything.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::expect::{Effect, Expectations, Ticket};
use super::queue::Queue;
use super::request::{AddRequest, Request, Target, What};
use super::source::Sources;
use crate::board::Board;
use crate::model::{
    Action, CommandError, Details, ErrorCode, InfoHash, Outcome, OutcomeStatus, Page, Parts, RESULT_SCHEMA, Row,
    ServerName, Status, Torrent,
};
use crate::port::{Applied, ClientError, Clock, Delivery, LoggedCommand, Store, StoreError, TorrentClient};
use crate::repeat::until_there_is_room;

/// Commands under way at once.
const PARALLEL_MAX: usize = 16;
/// How long an effect may take to show after the client was asked.
const SHOW_MAX: Duration = Duration::from_secs(15);
/// How often a worker looks whether an absent client is back.
const OFFLINE_EACH: Duration = Duration::from_millis(250);

pub struct WorkerParts {
    pub server: ServerName,
    pub client: Arc<dyn TorrentClient>,
    pub store: Arc<dyn Store>,
    pub board: Arc<Board>,
    pub clock: Arc<dyn Clock>,
    pub expectations: Arc<Expectations>,
    pub sources: Sources,
}

/// Runs the commands of one server; see the module.
pub struct Worker {
    pub parts: Arc<WorkerParts>,
    pub queue: Arc<Queue>,
}

/// What was done, before it is wrapped into a result.
struct Done {
    status: OutcomeStatus,
    rows: Vec<Row>,
    error: Option<CommandError>,
    page: Option<Page>,
}

impl Done {
    fn failed(error: CommandError) -> Self {
        Self { status: OutcomeStatus::Error, rows: Vec::new(), error: Some(error), page: None }
    }

    fn rows(rows: Vec<Row>) -> Self {
        let failures = rows.iter().filter(|row| row.status != OutcomeStatus::Ok).count();
        let first_error = rows.iter().find_map(|row| row.error.clone());
        let (status, error) = match failures {
            0 => (OutcomeStatus::Ok, None),
            n if n == rows.len() => (OutcomeStatus::Error, first_error),
            _ => (OutcomeStatus::Partial, first_error),
        };
        Self { status, rows, error, page: None }
    }
}

impl Worker {
    /// Carries out commands until `stop`; those under way are dropped then and go on at the next start.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Self { parts, queue } = &self;
        queue.begin();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < PARALLEL_MAX
                && let Some(command) = queue.next()
            {
                running.push(async move {
                    let id = command.id.clone();
                    (id, parts.carry_out(command).await)
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some((id, result)) = running.next(), if !running.is_empty() => {
                    result?;
                    queue.done(&id);
                }
                () = queue.arrived.notified() => {}
            }
        }
    }
}

impl WorkerParts {
    /// From the log to the result in the log.
    async fn carry_out(&self, command: LoggedCommand) -> Result<(), StoreError> {
        let done = self.attempt(&command).await?;
        let now = self.clock.now();
        let took_ms = now.millis_since(command.received_at);
        let verb = command.verb.map_or("", |verb| verb.as_str());
        let Done { status, rows, error, page } = done;
        info!(
            server = %self.server, sink = %command.origin, id = %command.id, verb, ?status, took_ms,
            torrents = rows.len(), error = error.as_ref().map(|error| error.message.as_str()), "command done"
        );
        let labels = [
            ("server", self.server.to_string()),
            ("verb", verb.to_owned()),
            ("status", format!("{status:?}").to_lowercase()),
        ];
        metrics::counter!("dtorrent_commands_total", &labels).increment(1);
        let outcome = Outcome {
            schema: RESULT_SCHEMA,
            id: command.id.clone(),
            verb: verb.to_owned(),
            server: Some(self.server.clone()),
            status,
            time: now,
            took_ms,
            results: rows,
            error,
            page,
        };
        let body = Bytes::from(serde_json::to_vec(&outcome).expect("an outcome is plain JSON"));
        let finish = || self.store.finish_command(command.server.as_ref(), &command.id, status, body.clone());
        until_there_is_room("a result", finish).await?;
        if let Some(desk) = self.board.desk(&command.origin) {
            desk.answered.notify_one();
        }
        Ok(())
    }

    async fn attempt(&self, command: &LoggedCommand) -> Result<Done, StoreError> {
        let request = match command.verb.map(|verb| Request::parse(verb, command.hash, &command.body)) {
            Some(Ok(request)) => request,
            Some(Err(error)) => return Ok(Done::failed(error)),
            None => {
                let message = "the log of this command cannot be read; send it again under another id";
                return Ok(Done::failed(CommandError::new(ErrorCode::BadRequest, message)));
            }
        };
        if let What::List { fields, page, page_size } = &request.what {
            return Ok(self.list(&request.target, fields.as_deref(), *page, *page_size));
        }
        if !self.wait_for_client(command).await {
            let message = "its time to live was over before it could be done";
            let error = CommandError::new(ErrorCode::ClientOffline, message);
            return Ok(Done { status: OutcomeStatus::Expired, rows: Vec::new(), error: Some(error), page: None });
        }
        if let What::Get(parts) = &request.what {
            return Ok(self.get(&self.torrents(&request.target), *parts).await);
        }
        let actions = match self.actions(&request).await {
            Ok(actions) => actions,
            Err(done) => return Ok(*done),
        };
        if !request.dry_run {
            let start = || self.store.start_command(command.server.as_ref(), &command.id);
            until_there_is_room("a command", start).await?;
        }
        Ok(self.perform(command, &request, actions).await)
    }

    /// Whether the client is there before the command's time is over.
    async fn wait_for_client(&self, command: &LoggedCommand) -> bool {
        loop {
            if self.clock.now() >= command.expires_at {
                return false;
            }
            if self.board.read(&self.server, |content| content.poll.is_answering()) == Some(true) {
                return true;
            }
            tokio::time::sleep(OFFLINE_EACH).await;
        }
    }

    fn torrents(&self, target: &Target) -> Vec<InfoHash> {
        match target {
            Target::These(hashes) => hashes.clone(),
            Target::Matching(filter) => self
                .board
                .read(&self.server, |content| {
                    let matching = content.told.iter().filter(|(_, told)| filter.matches(&told.torrent));
                    matching.map(|(hash, _)| *hash).collect()
                })
                .unwrap_or_default(),
            Target::Server => Vec::new(),
        }
    }

    /// What the client is to be asked for, torrent by torrent.
    async fn actions(&self, request: &Request) -> Result<Vec<Action>, Box<Done>> {
        if let What::Add(add) = &request.what {
            return self
                .add_action(add)
                .await
                .map(|action| vec![action])
                .map_err(|error| Box::new(Done::failed(error)));
        }
        let action = |hash| match &request.what {
            What::Pause => Some(Action::Pause(hash)),
            What::Resume => Some(Action::Resume(hash)),
            What::Start => Some(Action::Start(hash)),
            What::Stop => Some(Action::Stop(hash)),
            What::Delete => Some(Action::Delete(hash)),
            What::Recheck => Some(Action::Recheck(hash)),
            What::Announce => Some(Action::Announce(hash)),
            What::Label(label) => Some(Action::Label(hash, label.clone())),
            What::Priority(priority) => Some(Action::Priority(hash, *priority)),
            What::Get(_) | What::List { .. } | What::Add(_) => None,
        };
        Ok(self.torrents(&request.target).into_iter().filter_map(action).collect())
    }

    async fn add_action(&self, add: &AddRequest) -> Result<Action, CommandError> {
        self.sources.resolve(add).await.map(Action::Add)
    }

    /// Asks for all, then waits for all: a hundred torrents need no more looks than one.
    async fn perform(&self, command: &LoggedCommand, request: &Request, actions: Vec<Action>) -> Done {
        let mut rows = Vec::with_capacity(actions.len());
        let mut asked: Vec<(InfoHash, bool, Ticket<'_>)> = Vec::new();
        for action in actions {
            let (hash, effect) = Effect::of(&action);
            if let Err(error) = self.check(hash, request) {
                rows.push(Row::failed(hash, error));
                continue;
            }
            if request.dry_run {
                rows.push(Row::ok(hash));
                continue;
            }
            if matches!(action, Action::Add(_)) && self.is_there(hash).await {
                rows.push(Row::ok(hash));
                continue;
            }
            let ticket = self.expectations.expect(&command.id, hash, effect);
            match self.client.apply(&action).await {
                Ok(applied) => {
                    ticket.asked();
                    asked.push((hash, applied == Applied::Seen, ticket));
                }
                // A delete that a crash interrupted has done its work.
                Err(ClientError::UnknownHash(_)) if command.is_started && matches!(action, Action::Delete(_)) => {
                    rows.push(Row::ok(hash));
                }
                Err(error) => rows.push(Row::failed(hash, command_error(&error))),
            }
        }
        if let Some(server) = self.board.server(&self.server) {
            server.poke.notify_one();
        }
        let is_add = matches!(request.what, What::Add(_));
        let until = Instant::now() + SHOW_MAX;
        for (hash, is_seen, mut ticket) in asked {
            let is_shown = timeout_at(until, ticket.shown()).await.is_ok() || is_seen;
            rows.push(if is_shown { Row::ok(hash) } else { Row::failed(hash, unconfirmed(is_add)) });
        }
        rows.sort_by_key(|row| row.hash);
        Done::rows(rows)
    }

    /// What the command itself demands of a torrent before anything is asked.
    fn check(&self, hash: InfoHash, request: &Request) -> Result<(), CommandError> {
        let Some(allowed) = &request.if_status else { return Ok(()) };
        let status: Option<Status> =
            self.board.read(&self.server, |content| content.told.get(&hash).map(|told| told.torrent.status)).flatten();
        match status {
            Some(status) if allowed.contains(&status) => Ok(()),
            Some(status) => {
                Err(CommandError::new(ErrorCode::Precondition, format!("its status is {}", status.as_str())))
            }
            None => Err(CommandError::new(ErrorCode::UnknownHash, format!("there is no torrent {hash}"))),
        }
    }

    async fn is_there(&self, hash: InfoHash) -> bool {
        matches!(self.client.get(hash, Parts::default()).await, Ok(Some(_)))
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Done {
        let mut rows = Vec::with_capacity(hashes.len());
        for hash in hashes {
            rows.push(match self.client.get(*hash, parts).await {
                Ok(Some(details)) => self.detailed_row(*hash, details),
                Ok(None) => Row::failed(*hash, command_error(&ClientError::UnknownHash(*hash))),
                Err(error) => Row::failed(*hash, command_error(&error)),
            });
        }
        Done::rows(rows)
    }

    fn detailed_row(&self, hash: InfoHash, details: Details) -> Row {
        let Details { observed, files, trackers, peers } = details;
        let mut torrent = observed.torrent;
        torrent.stalled = self
            .board
            .read(&self.server, |content| content.told.get(&hash).is_some_and(|told| told.torrent.stalled))
            .unwrap_or(false);
        let mut object = as_object(&torrent);
        if let Some(files) = files {
            let files = serde_json::to_value(files).expect("files are plain JSON");
            let body = serde_json::json!({"hash": hash, "files": files}).to_string();
            self.board.tell_aside(&Delivery::Files { server: self.server.clone(), hash, body: Bytes::from(body) });
            object.insert("files".to_owned(), files);
        }
        if let Some(trackers) = trackers {
            object.insert("trackers".to_owned(), serde_json::to_value(trackers).expect("trackers are plain JSON"));
        }
        if let Some(peers) = peers {
            object.insert("peers".to_owned(), serde_json::to_value(peers).expect("peers are plain JSON"));
        }
        Row { torrent: Some(Value::Object(object)), ..Row::ok(hash) }
    }

    fn list(&self, target: &Target, fields: Option<&[String]>, page: u64, page_size: u64) -> Done {
        let everything = crate::model::Filter::default();
        let filter = match target {
            Target::Matching(filter) => filter,
            Target::These(_) | Target::Server => &everything,
        };
        let skipped = usize::try_from(page.saturating_mul(page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let listed = self.board.read(&self.server, |content| {
            let matching: Vec<_> = content.told.values().filter(|told| filter.matches(&told.torrent)).collect();
            let rows: Vec<Row> = matching
                .iter()
                .skip(skipped)
                .take(size)
                .map(|told| {
                    let mut object = as_object(&told.torrent);
                    if let Some(fields) = fields {
                        object.retain(|key, _| fields.iter().any(|field| field == key));
                    }
                    Row { torrent: Some(Value::Object(object)), ..Row::ok(told.torrent.hash) }
                })
                .collect();
            (rows, matching.len() as u64)
        });
        let (rows, total) = listed.unwrap_or_default();
        Done { page: Some(Page { total, page, page_size }), ..Done::rows(rows) }
    }
}

fn as_object(torrent: &Torrent) -> Map<String, Value> {
    match serde_json::to_value(torrent) {
        Ok(Value::Object(object)) => object,
        _ => unreachable!("a torrent is a JSON object"),
    }
}

fn unconfirmed(is_add: bool) -> CommandError {
    if is_add {
        let message = "the client did not take it: it is not there, or not as it should be, after a while";
        return CommandError::new(ErrorCode::ClientFault, message);
    }
    CommandError::new(ErrorCode::Unconfirmed, "the client was asked, but its effect did not show in time")
}

fn command_error(error: &ClientError) -> CommandError {
    let code = match error {
        ClientError::Unreachable { .. } => ErrorCode::ClientOffline,
        ClientError::Timeout { .. } => ErrorCode::Unconfirmed,
        ClientError::Unauthorized { .. } | ClientError::Protocol { .. } | ClientError::Fault { .. } => {
            ErrorCode::ClientFault
        }
        ClientError::UnknownHash(_) => ErrorCode::UnknownHash,
        ClientError::Precondition { .. } => ErrorCode::Precondition,
        ClientError::Unsupported { .. } => ErrorCode::Unsupported,
    };
    CommandError::new(code, error.to_string())
}
