//! Changes of torrents: asked for in batches, confirmed by the watcher.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::common::blocking;
use super::errors::{command_error, precondition, still_busy, unconfirmed, unknown_hash};
use super::execution::{Attempt, Execution, Failure};
use super::padding::Padding;
use super::pending_effects::EffectWaiter;
use super::results::ResultBody;
use crate::model::{
    Action, Add, AddRequest, CommandError, Details, ErrorCode, InfoHash, Operation, OutcomeStatus, Parts, Status,
    TorrentOutcome,
};
use crate::port::{Applied, ClientError};

/// Maximum time from asking a client until a poll shows the effect.
pub(super) const EFFECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a busy client is asked again; it doubles up to [`BUSY_PAUSE_MAX`].
pub(super) const BUSY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause before a busy client is asked again.
pub(super) const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most torrents of one request to the client; between two such batches other commands have their turn.
const BATCH: usize = 100;

/// An action that the client was asked for.
struct Asked<'a> {
    hash: InfoHash,
    /// The client was read again and showed the effect, so a poll only has to name its events.
    is_seen: bool,
    effect: EffectWaiter<'a>,
}

impl Execution<'_> {
    /// Asks for all actions, then waits for all effects: a hundred torrents need no more polls than one.
    ///
    /// Actions that the client must not be asked for now (rTorrent, while it checks the torrent) are asked for again
    /// until the time to live is over.
    pub(super) async fn act(&self, actions: Vec<Action>) -> Attempt<ResultBody> {
        if self.request.dry_run {
            return Ok(ResultBody::of_torrents(actions.iter().map(|action| self.dry_run(action)).collect()));
        }
        // In one write for all of them, and before the first is asked for: after a crash each may have been.
        self.note_start().await?;
        let (mut rows, mut asked, mut waiting) = (Vec::with_capacity(actions.len()), Vec::new(), Vec::new());
        for action in actions {
            match self.check(action.hash()) {
                Err(error) => rows.push(TorrentOutcome::failed(action.hash(), error)),
                Ok(()) => waiting.push(action),
            }
        }
        let (mut was_logged, mut pause) = (false, BUSY_PAUSE_MIN);
        while !waiting.is_empty() {
            let busy = self.ask_all(&waiting, &mut rows, &mut asked).await?;
            if let Some((_, reason)) = busy.first()
                && !std::mem::replace(&mut was_logged, true)
            {
                self.log_busy(busy.len(), reason);
            }
            if self.is_over() {
                let too_late =
                    |(action, reason): &(Action, String)| TorrentOutcome::failed(action.hash(), still_busy(reason));
                rows.extend(busy.iter().map(too_late));
                break;
            }
            waiting = busy.into_iter().map(|(action, _)| action).collect();
            if !waiting.is_empty() {
                sleep(pause).await;
                pause = (2 * pause).min(BUSY_PAUSE_MAX);
            }
        }
        // Once for all of them: every poll that begins from now on can show all effects.
        self.wake();
        rows.extend(self.await_effects(asked).await);
        rows.sort_by_key(|row| row.hash);
        Ok(ResultBody::of_torrents(rows))
    }

    /// Asks for each action once; returns those for which the client is busy, each with the reason.
    async fn ask_all<'e>(
        &'e self,
        actions: &[Action],
        rows: &mut Vec<TorrentOutcome>,
        asked: &mut Vec<Asked<'e>>,
    ) -> Attempt<Vec<(Action, String)>> {
        let mut busy = Vec::new();
        for batch in actions.chunks(BATCH) {
            // Before the client is asked: a poll may show the effect before its answer is here.
            let effects: Vec<EffectWaiter<'e>> = batch.iter().map(|action| self.expect(action)).collect();
            let answers = self.ask(batch).await;
            for ((action, effect), answer) in batch.iter().zip(effects).zip(answers) {
                let hash = action.hash();
                match answer {
                    Ok(Some(applied)) => {
                        effect.asked();
                        asked.push(Asked { hash, is_seen: applied == Applied::Seen, effect });
                    }
                    Ok(None) => rows.push(TorrentOutcome::ok(hash)),
                    Err(ClientError::Busy { reason }) => busy.push((action.clone(), reason)),
                    // Nothing was done yet, so the command can wait for the client and begin from the start.
                    Err(ClientError::Unreachable { .. }) if rows.is_empty() && asked.is_empty() => {
                        return Err(Failure::Unreachable);
                    }
                    Err(error) => rows.push(TorrentOutcome::failed(hash, command_error(&error))),
                }
            }
        }
        Ok(busy)
    }

    pub(super) fn log_busy(&self, torrents: usize, reason: &str) {
        info!(server = %self.parts.server, id = %self.command.id, torrents, reason, "client busy, command waits");
    }

    pub(super) fn expect(&self, action: &Action) -> EffectWaiter<'_> {
        self.parts.pending_effects.expect(&self.command.id, action)
    }

    async fn await_effects(&self, asked: Vec<Asked<'_>>) -> Vec<TorrentOutcome> {
        let is_add = matches!(self.request.operation, Operation::Add(_));
        let until = Instant::now() + EFFECT_TIMEOUT;
        let mut rows = Vec::with_capacity(asked.len());
        for Asked { hash, is_seen, mut effect } in asked {
            let mut is_shown = timeout_at(until, effect.shown()).await.is_ok() || is_seen;
            // A client may read data that was verified here once more, which takes as long as it takes.
            while is_add && !is_shown && self.status(hash) == Some(Status::Checking) {
                is_shown = timeout_at(Instant::now() + EFFECT_TIMEOUT, effect.shown()).await.is_ok();
            }
            rows.push(match (is_shown, is_add) {
                (true, _) => TorrentOutcome::ok(hash),
                (false, true) => {
                    let message = "the client did not take it: it is not there, or not as it should be, after a while";
                    TorrentOutcome::failed(hash, CommandError::new(ErrorCode::ClientFault, message))
                }
                (false, false) => TorrentOutcome::failed(hash, unconfirmed()),
            });
        }
        rows
    }

    /// The outcome of a dry run, which knows the snapshot and does not ask the client.
    fn dry_run(&self, action: &Action) -> TorrentOutcome {
        let hash = action.hash();
        let is_known = matches!(action, Action::Add(_)) || self.read(|server| server.snapshot.contains_key(&hash));
        match self.check(hash) {
            Err(error) => TorrentOutcome::failed(hash, error),
            Ok(()) if is_known => TorrentOutcome::ok(hash),
            Ok(()) => TorrentOutcome::failed(hash, unknown_hash(hash)),
        }
    }

    /// Asks the client for a batch; `None` for an action whose effect is there already.
    async fn ask(&self, actions: &[Action]) -> Vec<Result<Option<Applied>, ClientError>> {
        let answers = if actions.iter().all(Action::is_short) {
            self.turns.apply(&self.command.origin, actions.to_vec()).await
        } else {
            let _permit = self.long_turn().await;
            // `add` reads the client first; the batch consists of it alone, as a command adds one torrent.
            if let [Action::Add(add)] = actions {
                return vec![self.ask_to_add(add).await];
            }
            self.parts.client.apply(actions).await
        };
        let was_deleted = |action: &Action| self.command.is_started && matches!(action, Action::Delete(_));
        let judge = |(action, answer)| match answer {
            // A crash came between the delete and its result.
            Err(ClientError::UnknownHash(_)) if was_deleted(action) => Ok(None),
            answer => answer.map(Some),
        };
        actions.iter().zip(answers).map(judge).collect()
    }

    /// Adds a torrent, which may be there already.
    ///
    /// If this command has loaded it and was interrupted, the missing steps are applied. A torrent of somebody else is
    /// left alone, and only accepted if it is as this command wants it.
    async fn ask_to_add(&self, add: &Add) -> Result<Option<Applied>, ClientError> {
        let client = &self.parts.client;
        let action = Action::Add(add.clone());
        let parts = Parts { torrent: true, ..Parts::default() };
        let Some(Details { observed, .. }) = client.get_one(add.hash, parts).await? else {
            return client.apply_one(&action).await.map(Some);
        };
        // No listing shows custom values, so the client itself compares or sets them.
        let custom = (!add.custom.is_empty()).then(|| Action::Custom(add.hash, add.custom.clone()));
        let is_as_listed = action.is_shown_by(observed.as_ref());
        if is_as_listed && custom.is_none() {
            return Ok(None);
        }
        if !self.command.is_started {
            if is_as_listed {
                return client.apply_one(&action).await.map(Some);
            }
            let reason = "the torrent is already there, not as this command wants it, and is left alone".to_owned();
            return Err(ClientError::Precondition { reason });
        }
        let hash = add.hash;
        let label = add.label.clone().map(|label| Action::Label(hash, label));
        let priority = add.priority.map(|priority| Action::Priority(hash, priority));
        // Started last, so that it does not transfer before it is set up.
        let start = add.start.then_some(Action::Start(hash));
        for action in [label, priority, custom, start].into_iter().flatten() {
            client.apply_one(&action).await?;
        }
        Ok(Some(Applied::Asked))
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
        if !was_there && added.is_ok() {
            self.insist(&Action::Delete(hash)).await?;
        }
        blocking(move || made.remove()).await?;
        added
    }

    /// Resolves a torrent to add; while its data is checked, health shows how far the check is.
    async fn resolve(&self, add: &AddRequest) -> Result<(Add, Padding), CommandError> {
        let checking = self.server().begin_check(&self.command.id);
        self.parts.sources.resolve(add, |read, total| checking.progress(read, total)).await
    }

    fn status(&self, hash: InfoHash) -> Option<Status> {
        self.read(|server| server.snapshot.get(&hash).map(|one| one.torrent.status))
    }

    /// Checks what can be said of a torrent before the client is asked: the capability of the client, and `if_status`.
    pub(super) fn check(&self, hash: InfoHash) -> Result<(), CommandError> {
        self.check_capability().map_err(|error| command_error(&error))?;
        let Some(allowed) = &self.request.if_status else { return Ok(()) };
        match self.status(hash) {
            Some(status) if allowed.contains(&status) => Ok(()),
            Some(status) => Err(precondition(format!("its status is {}", status.as_str()))),
            None => Err(unknown_hash(hash)),
        }
    }
}
