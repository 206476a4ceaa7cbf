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
use super::queue::{Job, Queue};
use super::request::{Request, Target, What};
use super::source::Sources;
use crate::board::Board;
use crate::model::{
    Action, Add, CommandError, Details, ErrorCode, InfoHash, Outcome, OutcomeStatus, Page, Parts, RESULT_SCHEMA, Row,
    ServerName, Status, Torrent,
};
use crate::port::{Answer, Applied, ClientError, Clock, Delivery, LoggedCommand, Store, StoreError, TorrentClient};
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

/// Why a client did not take an action.
enum Asking {
    Unreachable(CommandError),
    Refused(CommandError),
}

impl Asking {
    fn of(error: ClientError) -> Self {
        let refusal = command_error(&error);
        match error {
            ClientError::Unreachable { .. } => Self::Unreachable(refusal),
            _ => Self::Refused(refusal),
        }
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
                && let Some(job) = queue.next()
            {
                running.push(async move {
                    let result = parts.carry_out(&job).await;
                    (job.command.id, result)
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
    async fn carry_out(&self, Job { command, request }: &Job) -> Result<(), StoreError> {
        let done = self.attempt(command, request).await?;
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
        let (server, answer) = (command.server.as_ref(), Answer { status, body });
        until_there_is_room("a result", || self.store.finish_command(server, &command.id, answer.clone())).await?;
        if let Some(desk) = self.board.desk(&command.origin) {
            desk.answered.notify_one();
        }
        Ok(())
    }

    async fn attempt(&self, command: &LoggedCommand, request: &Request) -> Result<Done, StoreError> {
        let expired = || {
            let message = "its time to live was over before it could be done";
            let error = CommandError::new(ErrorCode::ClientOffline, message);
            Done { status: OutcomeStatus::Expired, rows: Vec::new(), error: Some(error), page: None }
        };
        loop {
            if !self.wait_for_client(command, request).await {
                return Ok(expired());
            }
            let done = match &request.what {
                What::List { fields, page, page_size } => {
                    return Ok(self.list(&request.target, fields.as_deref(), *page, *page_size));
                }
                What::Get(parts) => self.get(&self.torrents(&request.target), *parts).await,
                _ => self.act(command, request).await?,
            };
            if let Some(done) = done {
                return Ok(done);
            }
            // Nobody was there after all, and nothing was asked: the watcher will notice, too.
            self.poke();
            tokio::time::sleep(OFFLINE_EACH).await;
        }
    }

    /// `None` if the client could not be reached and nothing was asked of it.
    async fn act(&self, command: &LoggedCommand, request: &Request) -> Result<Option<Done>, StoreError> {
        let actions = match self.actions(request).await {
            Ok(actions) => actions,
            Err(error) => return Ok(Some(Done::failed(error))),
        };
        if !request.dry_run {
            let server = command.server.as_ref();
            until_there_is_room("a command", || self.store.start_command(server, &command.id)).await?;
        }
        Ok(self.perform(command, request, actions).await)
    }

    /// Whether the client is there before the command's time is over. A list is of what was told,
    /// so for that it need not be there now.
    async fn wait_for_client(&self, command: &LoggedCommand, request: &Request) -> bool {
        let is_list = matches!(request.what, What::List { .. });
        loop {
            if self.clock.now() >= command.expires_at {
                return false;
            }
            let is_there = self
                .board
                .read(&self.server, |content| content.poll.is_answering() || is_list && content.state.is_known);
            if is_there == Some(true) {
                return true;
            }
            tokio::time::sleep(OFFLINE_EACH).await;
        }
    }

    fn poke(&self) {
        if let Some(server) = self.board.server(&self.server) {
            server.poke.notify_one();
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
    async fn actions(&self, request: &Request) -> Result<Vec<Action>, CommandError> {
        if let What::Add(add) = &request.what {
            return Ok(vec![Action::Add(self.sources.resolve(add).await?)]);
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

    /// Asks for all, then waits for all: a hundred torrents need no more looks than one.
    ///
    /// `None` if the client could not be reached and nothing was asked of it.
    async fn perform(&self, command: &LoggedCommand, request: &Request, actions: Vec<Action>) -> Option<Done> {
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
            let ticket = self.expectations.expect(&command.id, hash, effect);
            match self.ask(command, &action).await {
                Ok(Some(applied)) => {
                    ticket.asked();
                    asked.push((hash, applied == Applied::Seen, ticket));
                }
                Ok(None) => rows.push(Row::ok(hash)),
                Err(Asking::Unreachable(_)) if rows.is_empty() && asked.is_empty() => return None,
                Err(Asking::Unreachable(error) | Asking::Refused(error)) => rows.push(Row::failed(hash, error)),
            }
        }
        self.poke();
        let is_add = matches!(request.what, What::Add(_));
        let until = Instant::now() + SHOW_MAX;
        for (hash, is_seen, mut ticket) in asked {
            let is_shown = timeout_at(until, ticket.shown()).await.is_ok() || is_seen;
            rows.push(if is_shown { Row::ok(hash) } else { Row::failed(hash, unconfirmed(is_add)) });
        }
        rows.sort_by_key(|row| row.hash);
        Some(Done::rows(rows))
    }

    /// Asks the client for one action. `None`: it is as it should be already.
    async fn ask(&self, command: &LoggedCommand, action: &Action) -> Result<Option<Applied>, Asking> {
        if let Action::Add(add) = action
            && let Some(details) = self.client.get(add.hash, Parts::default()).await.map_err(Asking::of)?
        {
            return self.ask_for_rest(command, add, &details).await;
        }
        match self.client.apply(action).await {
            Ok(applied) => Ok(Some(applied)),
            // A delete that a crash interrupted has done its work.
            Err(ClientError::UnknownHash(_)) if command.is_started && matches!(action, Action::Delete(_)) => Ok(None),
            Err(error) => Err(Asking::of(error)),
        }
    }

    /// What is to be added is there. If this command has loaded it and was interrupted, the rest is
    /// done now; a torrent of somebody else is left alone, and only fine if it is as was asked.
    async fn ask_for_rest(
        &self,
        command: &LoggedCommand,
        add: &Add,
        details: &Details,
    ) -> Result<Option<Applied>, Asking> {
        let (hash, effect) = Effect::of(&Action::Add(add.clone()));
        if effect.shows(Some(&details.observed)) {
            return Ok(None);
        }
        if !command.is_started {
            let message = "the torrent is already there, not as this command wants it, and is left alone";
            return Err(Asking::Refused(CommandError::new(ErrorCode::Precondition, message)));
        }
        let label = add.label.clone().map(|label| Action::Label(hash, label));
        let priority = add.priority.map(|priority| Action::Priority(hash, priority));
        let start = add.start.then_some(Action::Start(hash));
        for action in [label, priority, start].into_iter().flatten() {
            self.client.apply(&action).await.map_err(Asking::of)?;
        }
        Ok(Some(Applied::Asked))
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

    /// `None` if the client could not be reached.
    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Option<Done> {
        let mut rows = Vec::with_capacity(hashes.len());
        for hash in hashes {
            rows.push(match self.client.get(*hash, parts).await {
                Ok(Some(details)) => self.detailed_row(*hash, details),
                Ok(None) => Row::failed(*hash, command_error(&ClientError::UnknownHash(*hash))),
                Err(ClientError::Unreachable { .. }) if rows.is_empty() => return None,
                Err(error) => Row::failed(*hash, command_error(&error)),
            });
        }
        Some(Done::rows(rows))
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
