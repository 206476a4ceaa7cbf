//! The worker: carries out the commands of one server.
//!
//! Commands for one torrent run in the order they came, others beside each other. Each waits until
//! its client is there (or its time is over), says what it expects, asks, and waits until the watcher
//! has seen it. The client's own answer proves nothing: rTorrent says 0 to everything.
//!
//! What a client must not be asked now (rTorrent, while it hashes the torrent) is asked later, as
//! long as the command's time allows; the log says what it waits for.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::asks::Asks;
use super::expect::{Effect, Expectations, Ticket};
use super::files::Plan;
use super::outcome::{Asker, Done, finish};
use super::queue::{Job, Queue};
use super::request::{GET_MAX, HASHES_MAX, Request, Target, What};
use super::source::Sources;
use crate::live_state::LiveState;
use crate::log_throttle::retry_while_full;
use crate::model::{
    Action, Add, CommandError, Deleted, Details, ErrorCode, Files, InfoHash, Listing, Page, Parts, Row, Seq,
    ServerName, Status, Torrent,
};
use crate::port::{
    Applied, ClientError, Clock, Delivery, LoggedCommand, Scope, ServerControl, Store, StoreError, TorrentClient,
};

/// How long an effect may take to show after the client was asked.
const SHOW_MAX: Duration = Duration::from_secs(15);
/// How often a worker looks whether an absent client is back.
const AGAIN_EACH: Duration = Duration::from_millis(250);
/// How soon a client that must not be asked now is asked again, at growing distances.
const BUSY_FIRST: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(2);
/// What waits and has its time over is looked for so often.
const OVERDUE_EACH: Duration = Duration::from_secs(1);
/// Whether there was a look is looked at so often.
const LOOKED_EACH: Duration = Duration::from_millis(20);
/// So many torrents are asked for together; between two such batches others have their turn.
const BATCH: usize = 100;
/// Torrents whose files are compared at once, and how many files they may have together.
const COMPARED_FILES_MAX: u64 = 20_000;

pub struct WorkerParts {
    pub server: ServerName,
    pub client: Arc<dyn TorrentClient>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    pub clock: Arc<dyn Clock>,
    pub expectations: Arc<Expectations>,
    pub sources: Sources,
}

/// Runs the commands of one server; see the module.
pub struct Worker {
    pub parts: Arc<WorkerParts>,
    pub queue: Arc<Queue>,
}

/// A command at work.
struct Work<'a> {
    parts: &'a WorkerParts,
    queue: &'a Queue,
    asks: &'a Asks,
    command: &'a LoggedCommand,
    request: &'a Request,
}

/// Why something was not done.
enum Stopped {
    /// Nobody was there, and nothing was asked.
    Unreachable,
    Refused(CommandError),
    Store(StoreError),
}

impl From<CommandError> for Stopped {
    fn from(error: CommandError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Self::Unreachable,
            error => Self::Refused(command_error(&error)),
        }
    }
}

type Attempt<T> = Result<T, Stopped>;

impl Worker {
    /// Carries out commands until `stop`; those under way are dropped then and go on at the next start.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Self { parts, queue } = &self;
        queue.begin();
        let asks = &Asks::default();
        let mut asking = std::pin::pin!(asks.serve(&*parts.client));
        let mut running = FuturesUnordered::new();
        loop {
            // Those that wait cost nothing, and ask the client by turns: all that may run do.
            while let Some(job) = queue.next(parts.clock.now()) {
                running.push(async move {
                    let result = parts.carry_out(queue, asks, &job).await;
                    (job.command.id, result)
                });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                never = &mut asking => match never {},
                Some((id, result)) = running.next(), if !running.is_empty() => {
                    result?;
                    queue.done(&id);
                }
                () = queue.arrived.notified() => {}
                () = tokio::time::sleep(OVERDUE_EACH) => {}
            }
        }
    }
}

impl WorkerParts {
    /// From the log to the result in the log.
    async fn carry_out(
        &self,
        queue: &Queue,
        asks: &Asks,
        Job { command, request, user }: &Job,
    ) -> Result<(), StoreError> {
        let done = Work { parts: self, queue, asks, command, request }.attempt().await?;
        let asker = Asker { user: user.as_deref() };
        finish(&*self.store, &self.live, &*self.clock, command, asker, done).await
    }

    fn wake(&self) {
        if let Some(server) = self.live.server(&self.server) {
            server.wake.notify_one();
        }
    }
}

impl Work<'_> {
    async fn attempt(&self) -> Result<Done, StoreError> {
        loop {
            if !self.wait_for_client().await {
                return Ok(Done::expired());
            }
            match self.attempt_now().await {
                Ok(done) => return Ok(done),
                Err(Stopped::Refused(error)) => return Ok(Done::failed(error)),
                Err(Stopped::Store(error)) => return Err(error),
                Err(Stopped::Unreachable) => {}
            }
            // Nobody was there after all, and nothing was asked: the watcher will notice, too.
            self.parts.wake();
            tokio::time::sleep(AGAIN_EACH).await;
        }
    }

    async fn attempt_now(&self) -> Attempt<Done> {
        match &self.request.what {
            What::List { fields, page, page_size } => {
                self.look_again().await?;
                Ok(self.list(fields.as_deref(), *page, *page_size)?)
            }
            What::Get(parts) => self.get(*parts).await,
            What::Resync { from_seq } => self.resync(*from_seq).await,
            What::Limits(_) | What::Rpc { .. } if self.request.dry_run => Ok(Done::ok()),
            What::Limits(limits) => {
                self.note_start().await?;
                let _turn = self.turn().await;
                self.server_control("limit its rates")?.set_limits(*limits).await?;
                self.parts.wake();
                Ok(Done::ok())
            }
            What::Rpc { method, params } => {
                // What a method does cannot be looked for, so after a crash it is not called again.
                if self.command.is_started {
                    let message = "the bridge was interrupted while the client was asked, and does not know its answer";
                    return Err(CommandError::new(ErrorCode::Unconfirmed, message).into());
                }
                self.note_start().await?;
                let _turn = self.turn().await;
                let value = match self.server_control("be called in its own words")?.call(method, params).await {
                    Err(ClientError::Unauthorized { reason }) => {
                        return Err(CommandError::new(ErrorCode::Forbidden, reason).into());
                    }
                    answer => answer?,
                };
                self.parts.wake();
                Ok(Done::with_value(value))
            }
            What::LogLevel(_) => {
                Err(CommandError::new(ErrorCode::BadRequest, "log_level is a command to the bridge itself").into())
            }
            What::Delete { data: true } => self.delete_with_data().await,
            What::Move { directory, data } => {
                self.parts.sources.roots.check_directory(directory)?;
                if *data { self.move_with_data(directory).await } else { self.act().await }
            }
            _ => self.act().await,
        }
    }

    /// Held while the client is asked for something that may take long. Whoever holds one asks for no other.
    async fn turn(&self) -> OwnedSemaphorePermit {
        self.asks.turn(&self.command.origin).await
    }

    async fn note_start(&self) -> Result<(), StoreError> {
        let (server, id) = (self.command.server.as_ref(), &self.command.id);
        retry_while_full("a command", || self.parts.store.start_command(server, id)).await
    }

    /// Whether the client is there before the command's time is over. What is only said again is of what was
    /// told, so for that it need not be there now.
    async fn wait_for_client(&self) -> bool {
        let is_of_the_board = matches!(self.request.what, What::Resync { .. });
        loop {
            if self.is_over() {
                return false;
            }
            let is_there = self.parts.live.read(&self.parts.server, |content| {
                content.poll.is_answering() || is_of_the_board && content.state.is_known
            });
            if is_there == Some(true) {
                return true;
            }
            tokio::time::sleep(AGAIN_EACH).await;
        }
    }

    /// Waits for a look that began from now on, so that what is answered is not older than the question.
    async fn look_again(&self) -> Attempt<()> {
        let asked = Instant::now();
        self.parts.wake();
        loop {
            let looked = self.parts.live.read(&self.parts.server, |content| {
                let is_fresh = content.poll.last_began.is_some_and(|began| began >= asked);
                content.poll.is_answering().then_some(is_fresh)
            });
            match looked.flatten() {
                Some(true) => return Ok(()),
                Some(false) if !self.is_over() => tokio::time::sleep(LOOKED_EACH).await,
                Some(false) | None => return Err(Stopped::Unreachable),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.parts.clock.now() >= self.command.expires_at
    }

    /// Which torrents are meant. Whatever a filter comes to stays so while the command runs.
    fn torrents(&self) -> Attempt<Vec<InfoHash>> {
        match &self.request.target {
            Target::These(hashes) => Ok(hashes.clone()),
            Target::Server => Ok(Vec::new()),
            Target::Matching(filter) => {
                let now = self.parts.clock.now();
                let matching = self.parts.live.read(&self.parts.server, |content| {
                    let matching =
                        content.snapshot.iter().filter(|(_, snapshot)| filter.matches(&snapshot.torrent, now));
                    matching.map(|(hash, _)| *hash).collect::<Vec<_>>()
                });
                let hashes = matching.unwrap_or_default();
                if hashes.len() > HASHES_MAX {
                    let message = format!("the filter matches {} torrents; at most {HASHES_MAX} at once", hashes.len());
                    return Err(CommandError::new(ErrorCode::TooLarge, message).into());
                }
                self.queue.narrow(&self.command.id, &hashes);
                Ok(hashes)
            }
        }
    }

    // --- doing ---

    async fn act(&self) -> Attempt<Done> {
        let actions = self.actions().await?;
        if !self.request.dry_run {
            self.note_start().await?;
        }
        self.perform(actions).await
    }

    /// What the client is to be asked for, torrent by torrent.
    async fn actions(&self) -> Attempt<Vec<Action>> {
        if let What::Add(add) = &self.request.what {
            return Ok(vec![Action::Add(self.resolve(add).await?)]);
        }
        let action = |hash| match &self.request.what {
            What::Pause => Some(Action::Pause(hash)),
            What::Resume => Some(Action::Resume(hash)),
            What::Start => Some(Action::Start(hash)),
            What::Stop => Some(Action::Stop(hash)),
            What::Delete { .. } => Some(Action::Delete(hash)),
            What::Recheck => Some(Action::Recheck(hash)),
            What::Announce => Some(Action::Announce(hash)),
            What::Label(label) => Some(Action::Label(hash, label.clone())),
            What::Priority(priority) => Some(Action::Priority(hash, *priority)),
            What::Move { directory, .. } => Some(Action::Move(hash, directory.clone())),
            What::Throttle(group) => Some(Action::Throttle(hash, group.clone())),
            What::FilePriority { files, priority } => Some(Action::FilePriority(hash, files.clone(), *priority)),
            What::Get(_) | What::List { .. } | What::Add(_) | What::Limits(_) => None,
            What::Resync { .. } | What::Rpc { .. } | What::LogLevel(_) => None,
        };
        Ok(self.torrents()?.into_iter().filter_map(action).collect())
    }

    /// Gets hold of what is to be added; while its content is checked, health says how far that is.
    async fn resolve(&self, add: &super::request::AddRequest) -> Result<Add, CommandError> {
        let live = self.parts.live.server(&self.parts.server);
        let checking = live.map(|live| live.begin_check(&self.command.id));
        self.parts
            .sources
            .resolve(add, |read, total| {
                if let Some(checking) = &checking {
                    checking.progress(read, total);
                }
            })
            .await
    }

    /// Asks for all, then waits for all: a hundred torrents need no more looks than one.
    async fn perform(&self, actions: Vec<Action>) -> Attempt<Done> {
        let mut rows = Vec::with_capacity(actions.len());
        let mut asked: Vec<(InfoHash, bool, Ticket<'_>)> = Vec::new();
        let mut waiting: Vec<Action> = Vec::new();
        for action in actions {
            let (hash, _) = Effect::of(&action);
            match self.check(hash) {
                Err(error) => rows.push(Row::failed(hash, error)),
                Ok(()) if self.request.dry_run => rows.push(self.row_of_dry_run(&action)),
                Ok(()) => waiting.push(action),
            }
        }
        let (mut has_said, mut again) = (false, BUSY_FIRST);
        while !waiting.is_empty() {
            let mut busy = Vec::new();
            for batch in waiting.chunks(BATCH) {
                let tickets: Vec<Ticket<'_>> = batch.iter().map(|action| self.expect(action)).collect();
                let answers = self.ask(batch).await;
                for ((action, ticket), answer) in batch.iter().zip(tickets).zip(answers) {
                    let (hash, _) = Effect::of(action);
                    match answer {
                        Ok(Some(applied)) => {
                            ticket.asked();
                            asked.push((hash, applied == Applied::Seen, ticket));
                        }
                        Ok(None) => rows.push(Row::ok(hash)),
                        Err(ClientError::Busy { reason }) => busy.push((action.clone(), reason)),
                        Err(ClientError::Unreachable { .. }) if rows.is_empty() && asked.is_empty() => {
                            return Err(Stopped::Unreachable);
                        }
                        Err(error) => rows.push(Row::failed(hash, command_error(&error))),
                    }
                }
            }
            let is_over = self.is_over();
            if let Some((_, reason)) = busy.first()
                && !std::mem::replace(&mut has_said, true)
            {
                info!(server = %self.parts.server, id = %self.command.id, torrents = busy.len(), reason, "a command waits");
            }
            if is_over {
                rows.extend(busy.iter().map(|(action, reason)| Row::failed(Effect::of(action).0, still_busy(reason))));
                break;
            }
            waiting = busy.into_iter().map(|(action, _)| action).collect();
            if !waiting.is_empty() {
                tokio::time::sleep(again).await;
                again = (2 * again).min(BUSY_MAX);
            }
        }
        self.parts.wake();
        rows.extend(self.await_effects(asked).await);
        rows.sort_by_key(|row| row.hash);
        Ok(Done::rows(rows))
    }

    fn expect(&self, action: &Action) -> Ticket<'_> {
        let (hash, effect) = Effect::of(action);
        self.parts.expectations.expect(&self.command.id, hash, effect)
    }

    async fn await_effects(&self, asked: Vec<(InfoHash, bool, Ticket<'_>)>) -> Vec<Row> {
        let is_add = matches!(self.request.what, What::Add(_));
        let until = Instant::now() + SHOW_MAX;
        let mut rows = Vec::with_capacity(asked.len());
        for (hash, is_seen, mut ticket) in asked {
            let mut is_shown = timeout_at(until, ticket.shown()).await.is_ok() || is_seen;
            // Content that was checked by us may be read once more by the client, which takes as long as it takes.
            while is_add && !is_shown && self.status(hash) == Some(Status::Checking) {
                is_shown = timeout_at(Instant::now() + SHOW_MAX, ticket.shown()).await.is_ok();
            }
            rows.push(if is_shown { Row::ok(hash) } else { Row::failed(hash, unconfirmed(is_add)) });
        }
        rows
    }

    /// A dry run knows what was told: a torrent that nobody was told of is none.
    fn row_of_dry_run(&self, action: &Action) -> Row {
        let (hash, _) = Effect::of(action);
        let is_known = matches!(action, Action::Add(_))
            || self.parts.live.read(&self.parts.server, |content| content.snapshot.contains_key(&hash)) == Some(true);
        if is_known { Row::ok(hash) } else { Row::failed(hash, unknown_hash(hash)) }
    }

    /// Asks the client. `None`: it is as it should be already.
    async fn ask(&self, actions: &[Action]) -> Vec<Result<Option<Applied>, ClientError>> {
        let answers = if actions.iter().all(Action::is_short) {
            self.asks.ask(&self.command.origin, actions.to_vec()).await
        } else {
            let _turn = self.turn().await;
            if let [Action::Add(add)] = actions {
                return vec![self.ask_to_add(add).await];
            }
            self.parts.client.apply(actions).await
        };
        let is_done_before = |action: &Action| self.command.is_started && matches!(action, Action::Delete(_));
        let judge = |(action, answer)| match answer {
            // A delete that a crash interrupted has done its work.
            Err(ClientError::UnknownHash(_)) if is_done_before(action) => Ok(None),
            answer => answer.map(Some),
        };
        actions.iter().zip(answers).map(judge).collect()
    }

    /// What is to be added may be there. If this command has loaded it and was interrupted, the rest is
    /// done now; a torrent of somebody else is left alone, and only fine if it is as was asked.
    async fn ask_to_add(&self, add: &Add) -> Result<Option<Applied>, ClientError> {
        let client = &self.parts.client;
        let action = Action::Add(add.clone());
        let Some(details) = client.get_one(add.hash, Parts::default()).await? else {
            return client.apply_one(&action).await.map(Some);
        };
        let (hash, effect) = Effect::of(&action);
        if effect.shows(Some(&details.observed)) {
            return Ok(None);
        }
        if !self.command.is_started {
            let reason = "the torrent is already there, not as this command wants it, and is left alone".to_owned();
            return Err(ClientError::Precondition { reason });
        }
        let label = add.label.clone().map(|label| Action::Label(hash, label));
        let priority = add.priority.map(|priority| Action::Priority(hash, priority));
        let start = add.start.then_some(Action::Start(hash));
        for action in [label, priority, start].into_iter().flatten() {
            client.apply_one(&action).await?;
        }
        Ok(Some(Applied::Asked))
    }

    fn status(&self, hash: InfoHash) -> Option<Status> {
        let read = |content: &crate::live_state::LiveServer| {
            content.snapshot.get(&hash).map(|snapshot| snapshot.torrent.status)
        };
        self.parts.live.read(&self.parts.server, read).flatten()
    }

    /// What the command itself demands of a torrent before anything is asked.
    fn check(&self, hash: InfoHash) -> Result<(), CommandError> {
        let Some(allowed) = &self.request.if_status else { return Ok(()) };
        match self.status(hash) {
            Some(status) if allowed.contains(&status) => Ok(()),
            Some(status) => {
                Err(CommandError::new(ErrorCode::Precondition, format!("its status is {}", status.as_str())))
            }
            None => Err(unknown_hash(hash)),
        }
    }

    // --- with the content ---

    /// Removes the files first, and then the torrent: interrupted in between, it is still there to go on with.
    async fn delete_with_data(&self) -> Attempt<Done> {
        let hashes = self.torrents()?;
        let listing = self.list_all().await?;
        if !self.request.dry_run {
            self.note_start().await?;
        }
        let mut rows = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let row = match self.delete_one_with_data(hash, &listing).await {
                Ok(deleted) => Row { deleted: Some(deleted), ..Row::ok(hash) },
                Err(Stopped::Refused(error)) => Row::failed(hash, error),
                Err(Stopped::Unreachable) if rows.is_empty() => return Err(Stopped::Unreachable),
                Err(Stopped::Unreachable) => Row::failed(hash, went_away()),
                Err(stopped @ Stopped::Store(_)) => return Err(stopped),
            };
            rows.push(row);
        }
        Ok(Done::rows(rows))
    }

    fn server_control(&self, what: &str) -> Result<&dyn ServerControl, ClientError> {
        let missing = || ClientError::Unsupported { what: what.to_owned() };
        self.parts.client.capabilities().server.ok_or_else(missing)
    }

    async fn list_all(&self) -> Result<Listing, ClientError> {
        let _turn = self.turn().await;
        self.parts.client.list(Scope::Full).await
    }

    async fn details(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let _turn = self.turn().await;
        self.parts.client.get(hashes, parts).await
    }

    async fn delete_one_with_data(&self, hash: InfoHash, listing: &Listing) -> Attempt<Deleted> {
        self.check(hash)?;
        let found = match self.plan(hash, listing).await {
            // Interrupted when all was done but the answer.
            Err(Stopped::Refused(error)) if self.command.is_started && error.code == ErrorCode::UnknownHash => {
                return Ok(Deleted::default());
            }
            found => found?,
        };
        if self.request.dry_run {
            return Ok(found.plan.preview());
        }
        let mut ticket = self.expect(&Action::Delete(hash));
        self.insist(&Action::Hold(hash)).await?;
        let deleted = blocking(move || found.plan.remove()).await?;
        if !deleted.files.is_empty() || !deleted.left.is_empty() {
            info!(
                server = %self.parts.server, id = %self.command.id, %hash, files = deleted.count,
                bytes = deleted.bytes, left = deleted.left.len(), "content deleted"
            );
        }
        self.insist(&Action::Delete(hash)).await?;
        ticket.asked();
        self.parts.wake();
        let is_gone = timeout_at(Instant::now() + SHOW_MAX, ticket.shown()).await.is_ok();
        if is_gone { Ok(deleted) } else { Err(unconfirmed(false).into()) }
    }

    async fn move_with_data(&self, directory: &str) -> Attempt<Done> {
        let hashes = self.torrents()?;
        let listing = self.list_all().await?;
        if !self.request.dry_run {
            self.note_start().await?;
        }
        let mut rows = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let row = match self.move_one_with_data(hash, directory, &listing).await {
                Ok(()) => Row::ok(hash),
                Err(Stopped::Refused(error)) => Row::failed(hash, error),
                Err(Stopped::Unreachable) if rows.is_empty() => return Err(Stopped::Unreachable),
                Err(Stopped::Unreachable) => Row::failed(hash, went_away()),
                Err(stopped @ Stopped::Store(_)) => return Err(stopped),
            };
            rows.push(row);
        }
        Ok(Done::rows(rows))
    }

    /// Stop, close, move the files, tell the client, start: in this order no file is open while it moves.
    async fn move_one_with_data(&self, hash: InfoHash, directory: &str, listing: &Listing) -> Attempt<()> {
        self.check(hash)?;
        let Found { plan, own_folder, home } = self.plan(hash, listing).await?;
        let to: PathBuf = own_folder.map_or_else(|| PathBuf::from(directory), |name| Path::new(directory).join(name));
        if self.request.dry_run {
            return Ok(());
        }
        let action = Action::Move(hash, directory.to_owned());
        let mut ticket = self.expect(&action);
        self.insist(&Action::Hold(hash)).await?;
        let is_repeated = self.command.is_started;
        let moved = blocking(move || plan.move_to(&to, is_repeated)).await?;
        if let Err(error) = moved {
            // As before, as far as that goes: each file is whole at one of the two places.
            self.insist(&Action::Move(hash, home)).await?;
            return Err(error.into());
        }
        self.insist(&action).await?;
        ticket.asked();
        self.parts.wake();
        let is_there = timeout_at(Instant::now() + SHOW_MAX, ticket.shown()).await.is_ok();
        if is_there { Ok(()) } else { Err(unconfirmed(false).into()) }
    }

    /// Asks for one action, also of a client that must not be asked now, until the command's time is over.
    async fn insist(&self, action: &Action) -> Attempt<()> {
        let mut has_said = false;
        loop {
            let answer = {
                let _turn = self.turn().await;
                self.parts.client.apply_one(action).await
            };
            match answer {
                Ok(_) => return Ok(()),
                Err(ClientError::UnknownHash(_)) if matches!(action, Action::Delete(_)) => return Ok(()),
                Err(ClientError::Busy { reason }) if self.is_over() => return Err(still_busy(&reason).into()),
                Err(ClientError::Busy { reason }) => {
                    if !std::mem::replace(&mut has_said, true) {
                        info!(server = %self.parts.server, id = %self.command.id, reason, "a command waits");
                    }
                }
                // Half done: what is under way goes on as soon as it can.
                Err(ClientError::Unreachable { .. }) if !self.is_over() => {}
                Err(error) => return Err(command_error(&error).into()),
            }
            tokio::time::sleep(AGAIN_EACH).await;
        }
    }

    /// The files of a torrent as the client has them now, none of which another torrent has too.
    async fn plan(&self, hash: InfoHash, listing: &Listing) -> Attempt<Found> {
        let parts = Parts { files: true, ..Parts::default() };
        let details = self.details(&[hash], parts).await?.into_iter().next().flatten();
        let Some(Details { observed, is_folder, files, .. }) = details else {
            return Err(unknown_hash(hash).into());
        };
        let refuse = |message: &str| CommandError::new(ErrorCode::Precondition, message);
        let directory = observed.torrent.directory.ok_or_else(|| refuse("the client does not say where it is"))?;
        let files = files.ok_or_else(|| refuse("the client does not say which files it has"))?;
        if !observed.facts.has_metadata {
            return Err(refuse("a magnet link has no content before it is resolved; delete it without data").into());
        }
        let is_folder = is_folder.unwrap_or(files.len() > 1);
        let roots = self.parts.sources.roots.clone();
        let above = Path::new(&*directory).parent().map(|above| above.to_string_lossy().into_owned());
        let home = above.filter(|_| is_folder).unwrap_or_else(|| directory.to_string());
        let name = Path::new(&*directory).file_name().map(|name| name.to_string_lossy().into_owned());
        let plan = blocking(move || Plan::of(&roots, &directory, &files, is_folder)).await??;
        let plan = self.check_claims(hash, listing, plan).await?;
        let own_folder = name.filter(|_| is_folder);
        if matches!(self.request.what, What::Move { .. })
            && own_folder.as_ref().is_some_and(|name| *name != observed.torrent.name)
        {
            return Err(refuse("its folder is not called like it, so the client would look for it elsewhere").into());
        }
        Ok(Found { plan, own_folder, home })
    }

    /// Compares with the files of every torrent that could share one.
    async fn check_claims(&self, hash: InfoHash, listing: &Listing, plan: Plan) -> Attempt<Plan> {
        let mut others: BTreeMap<InfoHash, (PathBuf, u64)> = BTreeMap::new();
        for (other, observed) in listing.torrents.iter().filter(|(other, _)| **other != hash) {
            let Torrent { directory: Some(directory), size_files, .. } = &observed.torrent else { continue };
            others.insert(*other, (PathBuf::from(&**directory), size_files.unwrap_or(1)));
        }
        let (plan, others) = blocking(move || {
            let mut known: BTreeMap<PathBuf, bool> = BTreeMap::new();
            others.retain(|_, (directory, _)| {
                *known.entry(directory.clone()).or_insert_with(|| plan.may_share(directory))
            });
            (plan, others)
        })
        .await?;
        let mut waiting: VecDeque<(InfoHash, PathBuf, u64)> =
            others.into_iter().map(|(hash, (directory, files))| (hash, directory, files)).collect();
        while !waiting.is_empty() {
            let (mut batch, mut files) = (Vec::new(), 0);
            while let Some((_, _, count)) = waiting.front()
                && (batch.is_empty() || files + count <= COMPARED_FILES_MAX)
            {
                files += count;
                batch.extend(waiting.pop_front());
            }
            let hashes: Vec<InfoHash> = batch.iter().map(|(hash, ..)| *hash).collect();
            let parts = Parts { files: true, ..Parts::default() };
            let details = self.details(&hashes, parts).await?;
            for ((other, directory, _), details) in batch.iter().zip(details) {
                let Some(files) = details.and_then(|details| details.files) else { continue };
                if let Some(path) = plan.claimed_by(directory, &files) {
                    let message = format!("{} is a file of torrent {other} too", path.display());
                    return Err(CommandError::new(ErrorCode::Precondition, message).into());
                }
            }
        }
        Ok(plan)
    }

    // --- asking ---

    async fn get(&self, parts: Parts) -> Attempt<Done> {
        let hashes = self.torrents()?;
        let mut rows = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(GET_MAX) {
            let found = match self.details(batch, parts).await {
                Ok(found) => found,
                Err(ClientError::Unreachable { .. }) if !rows.is_empty() => {
                    rows.extend(batch.iter().map(|hash| Row::failed(*hash, went_away())));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            rows.extend(batch.iter().zip(found).map(|(hash, details)| match details {
                Some(details) => self.detailed_row(*hash, details),
                None => Row::failed(*hash, unknown_hash(*hash)),
            }));
        }
        Ok(Done::rows(rows))
    }

    /// Has events sent again to the sink that asked, or the present asserted.
    async fn resync(&self, from_seq: Option<Seq>) -> Attempt<Done> {
        let Self { parts, command, request, .. } = self;
        let Some(buffer) = parts.live.buffer(&command.origin) else { return Ok(Done::ok()) };
        let last = parts.live.read(&parts.server, |content| content.last_seq).unwrap_or_default();
        let Some(from) = from_seq.map(|seq| seq.max(Seq(1))) else {
            if !request.dry_run {
                buffer.reassert(Some(&parts.server));
            }
            return Ok(Done::ok());
        };
        if from <= last {
            let oldest = parts.store.read(&parts.server, Seq(from.0 - 1), 1).await?.first().map(|entry| entry.seq);
            if oldest != Some(from) {
                let kept =
                    oldest.map_or_else(|| "none are kept".to_owned(), |seq| format!("the oldest kept is {}", seq.0));
                let message = format!("event {} is gone: {kept}", from.0);
                return Err(CommandError::new(ErrorCode::Precondition, message).into());
            }
            if !request.dry_run {
                buffer.rewind(&parts.server, from);
            }
        }
        Ok(Done::with_value(json!({"from_seq": from, "to_seq": last})))
    }

    fn detailed_row(&self, hash: InfoHash, details: Details) -> Row {
        let Details { observed, files, trackers, peers, .. } = details;
        let mut torrent = observed.torrent;
        torrent.stalled = self
            .parts
            .live
            .read(&self.parts.server, |content| {
                content.snapshot.get(&hash).is_some_and(|snapshot| snapshot.torrent.stalled)
            })
            .unwrap_or(false);
        let mut object = as_object(&torrent);
        if let Some(files) = files {
            let files = Files { hash, files };
            let body = serde_json::to_vec(&files).expect("files are plain JSON");
            self.parts.live.publish_ephemeral(&Delivery::Files {
                server: self.parts.server.clone(),
                hash,
                body: Bytes::from(body),
            });
            object.insert("files".to_owned(), serde_json::to_value(files.files).expect("files are plain JSON"));
        }
        if let Some(trackers) = trackers {
            object.insert("trackers".to_owned(), serde_json::to_value(trackers).expect("trackers are plain JSON"));
        }
        if let Some(peers) = peers {
            object.insert("peers".to_owned(), serde_json::to_value(peers).expect("peers are plain JSON"));
        }
        Row { torrent: Some(Value::Object(object)), ..Row::ok(hash) }
    }

    fn list(&self, fields: Option<&[String]>, page: u64, page_size: u64) -> Result<Done, CommandError> {
        check_fields(fields.unwrap_or_default())?;
        let now = self.parts.clock.now();
        let everything = crate::model::Filter::default();
        let filter = match &self.request.target {
            Target::Matching(filter) => filter,
            Target::These(_) | Target::Server => &everything,
        };
        let skipped = usize::try_from(page.saturating_mul(page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let listed = self.parts.live.read(&self.parts.server, |content| {
            let matching: Vec<_> =
                content.snapshot.values().filter(|snapshot| filter.matches(&snapshot.torrent, now)).collect();
            let rows: Vec<Row> = matching
                .iter()
                .skip(skipped)
                .take(size)
                .map(|snapshot| {
                    let mut object = as_object(&snapshot.torrent);
                    if let Some(fields) = fields {
                        object.retain(|key, _| fields.iter().any(|field| field == key));
                    }
                    Row { torrent: Some(Value::Object(object)), ..Row::ok(snapshot.torrent.hash) }
                })
                .collect();
            (rows, matching.len() as u64)
        });
        let (rows, total) = listed.unwrap_or_default();
        let has_more = skipped.saturating_add(rows.len()) < usize::try_from(total).unwrap_or(usize::MAX);
        let next_page = (has_more && !rows.is_empty()).then_some(page + 1);
        Ok(Done { page: Some(Page { total, page, page_size, next_page }), ..Done::rows(rows) })
    }
}

fn check_fields(fields: &[String]) -> Result<(), CommandError> {
    let server = ServerName::parse("a").expect("a letter is a name");
    let known = as_object(&Torrent::new(server, InfoHash::V1([0; 20]), ""));
    match fields.iter().find(|field| !known.contains_key(*field)) {
        None => Ok(()),
        Some(unknown) => {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let message =
                format!("fields: a torrent has no `{}`; there are {}", unknown.escape_default(), names.join(", "));
            Err(CommandError::new(ErrorCode::BadRequest, message))
        }
    }
}

fn as_object(torrent: &Torrent) -> Map<String, Value> {
    match serde_json::to_value(torrent) {
        Ok(Value::Object(object)) => object,
        _ => unreachable!("a torrent is a JSON object"),
    }
}

/// What a plan is of.
struct Found {
    plan: Plan,
    /// The folder that is the torrent's own.
    own_folder: Option<String>,
    /// The directory that the client would be told to come to this place.
    home: String,
}

/// Has files dealt with beside the other tasks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    let failed = |_| CommandError::new(ErrorCode::ClientFault, "a fault in this program; its log says which");
    spawn_blocking(work).await.map_err(failed)
}

fn unknown_hash(hash: InfoHash) -> CommandError {
    command_error(&ClientError::UnknownHash(hash))
}

fn went_away() -> CommandError {
    CommandError::new(ErrorCode::ClientOffline, "the client went away")
}

fn still_busy(reason: &str) -> CommandError {
    let mut error = CommandError::new(ErrorCode::Precondition, reason);
    error.retryable = true;
    error
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
        ClientError::Precondition { .. } | ClientError::Busy { .. } => ErrorCode::Precondition,
        ClientError::Unsupported { .. } => ErrorCode::Unsupported,
    };
    CommandError::new(code, error.to_string())
}
