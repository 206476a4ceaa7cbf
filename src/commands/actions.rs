//! Changes of torrents: asked for in batches, confirmed by the watcher.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::info;

use super::asking::{Request, Stage};
use super::common::blocking;
use super::errors::{client_gone, command_error, precondition, still_busy, unanswered, unconfirmed, unknown_hash};
use super::execution::{Attempt, EFFECT_TIMEOUT, Execution, Failure};
use super::in_the_way::InTheWay;
use super::padding::Padding;
use super::pending_effects::EffectWaiter;
use super::results::ResultBody;
use crate::model::{
    Action, Add, AddRequest, AddSource, CommandError, ErrorCode, InfoHash, Move, OutcomeStatus, Parts, Status, Torrent,
    TorrentOutcome, is_at_or_below,
};
use crate::port::ClientError;

/// Pause before a busy client is asked again; it doubles up to [`BUSY_PAUSE_MAX`].
pub(super) const BUSY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a busy client is asked again.
pub(super) const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Treatment of actions that the client must not be asked for now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhileBusy {
    /// They are asked for again until the time to live is over.
    AskAgain,
    /// They are left for later.
    Leave,
}

impl Execution<'_> {
    /// Asks for all actions, then waits for all effects: a hundred torrents need no more polls than one.
    ///
    /// Actions that the client must not be asked for now (rTorrent, while it checks the torrent) are asked for again
    /// until the time to live is over. So are those whose answer was lost, until they are seen to be done.
    pub(super) async fn act(&self, actions: Vec<Action>) -> Attempt<ResultBody> {
        if self.request.dry_run {
            let mut rows = Vec::with_capacity(actions.len());
            for action in &actions {
                rows.push(self.dry_run(action).await);
            }
            return Ok(ResultBody::of_torrents(rows));
        }
        // In one write for all of them, and before the first is asked for: after a crash each may have been.
        self.note_start().await?;
        let check = |action: Action| match self.check(action.hash()) {
            Ok(()) => Request::new(action),
            Err(error) => Request::failed(action, error),
        };
        let mut requests: Vec<Request<'_>> = actions.into_iter().map(check).collect();
        self.ask_until_taken(&mut requests, WhileBusy::AskAgain).await?;
        let mut rows = self.see_effects(requests).await;
        rows.sort_by_key(|row| row.hash);
        Ok(ResultBody::of_torrents(rows))
    }

    /// Waits for the effects of what the client has taken, and returns the outcome of each action.
    pub(super) async fn see_effects(&self, requests: Vec<Request<'_>>) -> Vec<TorrentOutcome> {
        // Once for all of them: every poll that begins from now on can show all effects.
        self.wake();
        self.queue.set_waiting(&self.command.id);
        self.conclude(requests).await
    }

    /// Asks until the client has taken or refused each action, as long as there is time.
    ///
    /// # Errors
    /// Nothing was asked for at all, so the command can begin from the start.
    pub(super) async fn ask_until_taken<'e>(
        &'e self,
        requests: &mut [Request<'e>],
        while_busy: WhileBusy,
    ) -> Attempt<()> {
        let (mut is_first, mut was_logged, mut pause) = (true, false, BUSY_PAUSE_MIN);
        loop {
            let restarts = self.restarts();
            self.ask_all(requests).await;
            if std::mem::take(&mut is_first)
                && let Some(error) = take_unreached(requests)
            {
                return Err(error.into());
            }
            let busy: Vec<&str> = requests.iter().filter_map(Request::busy).collect();
            if let Some(reason) = busy.first()
                && while_busy == WhileBusy::AskAgain
                && !std::mem::replace(&mut was_logged, true)
            {
                self.log_busy(busy.len(), reason);
            }
            if let Some(lost) = requests.iter().find_map(Request::lost) {
                match self.answers_again(lost, restarts).await {
                    Ok(true) => requests.iter_mut().for_each(Request::take_shown),
                    Ok(false) => return Ok(()),
                    Err(error) => {
                        let lost = requests.iter_mut().filter(|request| request.lost().is_some());
                        lost.for_each(|request| request.fail(error.clone()));
                    }
                }
            }
            let is_over = self.is_over();
            let is_left = |request: &Request<'_>| while_busy == WhileBusy::Leave && request.busy().is_some();
            if !requests.iter().any(|request| request.is_open(is_over) && !is_left(request)) {
                return Ok(());
            }
            sleep(pause).await;
            pause = (2 * pause).min(BUSY_PAUSE_MAX);
        }
    }

    /// Waits for the effects, and returns the outcome of each action.
    async fn conclude(&self, requests: Vec<Request<'_>>) -> Vec<TorrentOutcome> {
        let until = Instant::now() + self.effect_timeout();
        let mut rows = Vec::with_capacity(requests.len());
        // Nothing is loaded any more, and the wait may be long.
        let requests =
            requests.into_iter().map(|request| Request { action: request.action.without_source(), ..request });
        for Request { action, stage, effect } in requests.collect::<Vec<_>>() {
            let error = match stage {
                Stage::Done(row) => {
                    rows.push(row);
                    continue;
                }
                Stage::New | Stage::Unreached(_) => Some(client_gone()),
                Stage::Busy(reason) => Some(still_busy(&reason)),
                Stage::Lost(error) => {
                    let is_shown = action.is_listed() && self.is_shown(&action, effect, until).await;
                    (!is_shown).then(|| unanswered(&error))
                }
                Stage::Asked { is_seen, error } => {
                    // No poll shows an announce; only the client itself can have seen it.
                    let may_be_shown = is_seen || !matches!(action, Action::Announce(_));
                    let is_done = may_be_shown && self.is_shown(&action, effect, until).await || is_seen;
                    (!is_done).then(|| error.unwrap_or_else(|| self.not_shown(&action)))
                }
            };
            let hash = action.hash();
            rows.push(error.map_or_else(|| TorrentOutcome::ok(hash), |error| TorrentOutcome::failed(hash, error)));
        }
        rows
    }

    /// Waits for one effect until `until`; for a torrent that was added and is being checked, as long as there is
    /// time: a client may read data that was verified here once more.
    async fn is_shown(&self, action: &Action, effect: Option<EffectWaiter<'_>>, until: Instant) -> bool {
        let Some(mut effect) = effect else { return false };
        if timeout_at(until, effect.shown()).await.is_ok() {
            return true;
        }
        let hash = action.hash();
        let is_checking = || matches!(action, Action::Add(_)) && self.status(hash) == Some(Status::Checking);
        while is_checking() {
            let next = timeout(EFFECT_TIMEOUT, effect.shown());
            match self.within_verification(next).await {
                Some(Ok(())) => return true,
                Some(Err(_)) => {}
                None => return false,
            }
        }
        false
    }

    /// Returns the error of an action that the client has taken and no poll has shown.
    fn not_shown(&self, action: &Action) -> CommandError {
        let add = match action {
            Action::Add(add) => add,
            Action::Announce(_) => {
                let message = "the client was asked, and within some seconds none of the trackers showed an announce: \
                               one that was asked a short time ago is asked again when its own interval is over";
                return CommandError::new(ErrorCode::Unconfirmed, message);
            }
            _ => return unconfirmed(),
        };
        let reason = self.read(|server| server.snapshot.get(&add.hash).map(|one| difference(add, &one.torrent)));
        let reason = reason.unwrap_or_else(|| "the client does not list it".to_owned());
        CommandError::new(ErrorCode::Unconfirmed, format!("the client has taken it, but after a while {reason}"))
    }

    pub(super) fn log_busy(&self, torrents: usize, reason: &str) {
        info!(server = %self.parts.server, id = %self.command.id, torrents, reason, "client busy, command waits");
    }

    /// Registers what the client is about to be asked for.
    pub(super) fn expect(&self, action: &Action) -> EffectWaiter<'_> {
        let was_paused = match action {
            // By now it may be held.
            Action::Move(Move { was_paused, .. }) => *was_paused,
            Action::Recheck(hash) => self.status(*hash) == Some(Status::Paused),
            _ => false,
        };
        self.expect_of(action, was_paused)
    }

    /// The same, of a torrent that was paused, or was not, before this command.
    pub(super) fn expect_of(&self, action: &Action, was_paused: bool) -> EffectWaiter<'_> {
        self.parts.pending_effects.expect(&self.command.id, action, was_paused)
    }

    /// The outcome of a dry run, which knows the snapshot and asks the client for no change.
    pub(super) async fn dry_run(&self, action: &Action) -> TorrentOutcome {
        let hash = action.hash();
        let is_known = matches!(action, Action::Add(_)) || self.read(|server| server.snapshot.contains_key(&hash));
        if let Err(error) = self.check(hash) {
            return TorrentOutcome::failed(hash, error);
        }
        if !is_known {
            return TorrentOutcome::failed(hash, unknown_hash(hash));
        }
        match self.parts.client.check(action).await {
            Ok(()) => TorrentOutcome::ok(hash),
            Err(error) => TorrentOutcome::failed(hash, command_error(&error)),
        }
    }

    /// Resolves a torrent and adds it. One whose data is there is not left behind if the client does not find it complete.
    pub(super) async fn add(&self, request: &AddRequest) -> Attempt<ResultBody> {
        let (add, padding) = self.resolve(request).await?;
        if add.checked.is_none() || self.request.dry_run {
            return self.act(vec![Action::Add(add)]).await;
        }
        let hash = add.hash;
        // After an interruption it is this command that has loaded it.
        let was_there = !self.command.is_started
            && self.details(&[hash], Parts::default()).await?.first().is_some_and(Option::is_some);
        let made = blocking(move || padding.make()).await??;
        let added = self.act(vec![Action::Add(add)]).await;
        if matches!(&added, Ok(body) if body.status == OutcomeStatus::Ok) {
            return added;
        }
        let body = match added {
            Ok(body) if !was_there => {
                let action = Action::Delete(hash);
                let effect = self.expect(&action);
                let deleted = self.insist(&action).await;
                effect.asked();
                match deleted {
                    Ok(()) => body,
                    Err(Failure::Command(kept)) => return Ok(left_behind(hash, body, &kept)),
                    Err(failure) => return Err(failure),
                }
            }
            added => added?,
        };
        blocking(move || made.remove()).await?;
        Ok(body)
    }

    /// Resolves a torrent to add; while its data is checked, health shows how far the check is.
    async fn resolve(&self, add: &AddRequest) -> Attempt<(Add, Padding)> {
        let checking = self.server().begin_check(&self.command.id);
        let progress = |read, total| checking.progress(read, total);
        let resolved = async {
            let (add, padding) = self.parts.sources.resolve(add, progress).await?;
            if add.checked.is_none() {
                self.check_in_the_way(&add, progress).await?;
            }
            Ok((add, padding))
        };
        self.within_ttl(resolved).await.unwrap_or_else(|| {
            let message = "its time to live was over before the torrent was fetched and its data checked; \
                           give it a longer `ttl`";
            Err(precondition(message).retryable().into())
        })
    }

    /// Checks that the client will not overwrite anything but the torrent's own content.
    async fn check_in_the_way(&self, add: &Add, progress: impl FnMut(u64, u64)) -> Attempt<()> {
        let AddSource::Torrent(torrent) = &add.source else { return Ok(()) };
        let directory = match &add.directory {
            Some(directory) => Some(directory.clone()),
            None => {
                let _permit = self.long_turn().await;
                self.parts.client.default_directory().await?
            }
        };
        let Some(directory) = directory else { return Ok(()) };
        let Some(found) = InTheWay::find(&self.parts.sources.roots, torrent, &directory).await? else { return Ok(()) };
        // A torrent that is loaded already is downloading to these files; also after an interruption.
        if self.details(&[add.hash], Parts::default()).await?.first().is_some_and(Option::is_some) {
            return Ok(());
        }
        Ok(found.check(progress).await?)
    }

    fn status(&self, hash: InfoHash) -> Option<Status> {
        self.read(|server| server.snapshot.get(&hash).map(|one| one.torrent.status))
    }

    /// Checks what can be said of a torrent before the client is asked: the capability of the client, and `if_status`.
    pub(super) fn check(&self, hash: InfoHash) -> Result<(), CommandError> {
        self.check_capability().map_err(|error| command_error(&error))?;
        // What was begun is held, and was as it had to be.
        let is_begun = self.command.begun.contains(&hash);
        let Some(allowed) = self.request.if_status.as_ref().filter(|_| !is_begun) else { return Ok(()) };
        match self.status(hash) {
            Some(status) if allowed.contains(&status) => Ok(()),
            Some(status) => Err(precondition(format!("its status is {}", status.as_str()))),
            None => Err(unknown_hash(hash)),
        }
    }
}

/// Returns why nothing was asked for, if that is so, and makes the requests new again.
fn take_unreached(requests: &mut [Request<'_>]) -> Option<ClientError> {
    let is_unreached = |request: &Request<'_>| matches!(request.stage, Stage::Unreached(_) | Stage::Done(_));
    if !requests.iter().all(is_unreached) {
        return None;
    }
    let unreached = requests.iter_mut().find(|request| request.lost().is_some())?;
    match std::mem::replace(&mut unreached.stage, Stage::New) {
        Stage::Unreached(error) => Some(error),
        _ => None,
    }
}

/// Returns the result of an add that has failed and could not be taken back.
fn left_behind(hash: InfoHash, body: ResultBody, kept: &CommandError) -> ResultBody {
    let error = body.error.unwrap_or_else(unconfirmed);
    let message = format!("{}; and it could not be removed again: {}", error.message, kept.message);
    ResultBody::of_torrents(vec![TorrentOutcome::failed(hash, CommandError { message, ..error })])
}

/// Returns in what a torrent that was added differs from what was asked for.
fn difference(add: &Add, torrent: &Torrent) -> String {
    let directory = torrent.directory.as_deref().unwrap_or_default();
    let differences = [
        (add.directory.as_ref().is_some_and(|wanted| !is_at_or_below(directory, wanted)))
            .then(|| format!("its directory is {directory:?}")),
        (add.label.is_some() && torrent.label.as_deref() != add.label.as_deref())
            .then(|| format!("its label is {:?}", torrent.label.as_deref().unwrap_or_default())),
        (add.priority.is_some() && torrent.priority != add.priority).then(|| "its priority is another one".to_owned()),
        (add.start && torrent.status == Status::Stopped).then(|| "it is not started".to_owned()),
        (add.checked.is_some() && !torrent.finished).then(|| {
            format!(
                "it is {} with {} % of its data: can the client read it?",
                torrent.status.as_str(),
                torrent.progress
            )
        }),
    ];
    let all: Vec<String> = differences.into_iter().flatten().collect();
    // Only a later listing than the one that decided can show it as it was asked for.
    if all.is_empty() { "it did not show in time".to_owned() } else { all.join(", ") }
}
