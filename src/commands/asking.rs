//! Requests to a client on behalf of one command: how far each of its actions has come.
//!
//! ```text
//!  ┌─ Busy, Unreached ◄─┐
//!  ▼                     │
//! New ─► the client is asked ─► taken ─────► Asked ─► a poll shows it ─► ok
//!  ▲                     │ └──► refused ───► Done
//!  │                     └────► no answer ─► Lost ──► shown meanwhile ─► Asked
//!  └───────────────────── the client answers again ◄──┘
//! ```

use std::pin::pin;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::warn;

use super::errors::command_error;
use super::execution::Execution;
use super::pending_effects::EffectWaiter;
use crate::model::{Action, Add, CommandError, Details, Move, Observed, Parts, TorrentOutcome};
use crate::port::{Applied, ClientError};

/// Most torrents of one request to the client; between two such batches other commands have their turn.
const BATCH: usize = 100;
/// Maximum time for which an `add` keeps others of its origin waiting: after that it mostly waits for the client itself.
const ADD_TURN: Duration = Duration::from_millis(500);
/// A torrent of more bytes keeps its turn: many such at once would be too much for the memory.
const SMALL_BYTES_MAX: usize = 512 << 10;

/// An action of a command, and how far it has come.
pub(super) struct Request<'a> {
    pub action: Action,
    pub stage: Stage,
    /// The effect that a poll has to show, and the events that the command explains: from the first time on that the
    /// client may have carried out the action.
    pub effect: Option<EffectWaiter<'a>>,
}

/// How far an action has come.
pub(super) enum Stage {
    /// The client was not asked yet.
    New,
    /// The client must not be asked for it now, with the reason.
    Busy(String),
    /// The client could not be reached or read, so it was not asked.
    Unreached(ClientError),
    /// The client was asked and gave no answer.
    Lost(ClientError),
    /// The client was asked.
    Asked {
        /// The client was read again and showed the effect, so a poll only has to name the events.
        is_seen: bool,
        /// Its answer was no sense; this is the error unless a poll shows the effect all the same.
        error: Option<CommandError>,
    },
    /// Nothing is left to do.
    Done(TorrentOutcome),
}

/// The answer to one request.
enum Answer {
    Applied(Applied),
    /// The effect was there already.
    AlreadySo,
    /// Nothing was asked, because the client could not be reached or read.
    NotAsked(ClientError),
    Failed(ClientError),
}

impl<'a> Request<'a> {
    pub fn new(action: Action) -> Self {
        Self { action, stage: Stage::New, effect: None }
    }

    /// Makes one that has failed before it was asked for.
    pub fn failed(action: Action, error: CommandError) -> Self {
        let row = TorrentOutcome::failed(action.hash(), error);
        Self { stage: Stage::Done(row), ..Self::new(action) }
    }

    /// Whether it has to be asked for, for the first time or again. When the time to live is over nothing is begun,
    /// and what was begun is completed.
    pub fn is_open(&self, is_over: bool) -> bool {
        match self.stage {
            Stage::New | Stage::Busy(_) | Stage::Unreached(_) => !is_over || self.may_be_done(),
            Stage::Lost(_) => true,
            Stage::Asked { .. } | Stage::Done(_) => false,
        }
    }

    /// Returns why the last request for it got no answer.
    pub fn lost(&self) -> Option<&ClientError> {
        match &self.stage {
            Stage::Unreached(error) | Stage::Lost(error) => Some(error),
            _ => None,
        }
    }

    /// Returns why the client must not be asked for it now.
    pub fn busy(&self) -> Option<&str> {
        match &self.stage {
            Stage::Busy(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether the client may have carried it out already.
    fn may_be_done(&self) -> bool {
        self.effect.is_some()
    }

    /// Takes what a poll has shown for an answer that was lost.
    pub fn take_shown(&mut self) {
        let is_shown = self.effect.as_mut().is_some_and(EffectWaiter::is_shown);
        if is_shown && self.action.is_listed() && matches!(self.stage, Stage::Lost(_)) {
            self.stage = Stage::Asked { is_seen: true, error: None };
        }
    }

    /// Ends one that is still open.
    pub fn fail(&mut self, error: CommandError) {
        self.stage = Stage::Done(TorrentOutcome::failed(self.action.hash(), error));
    }

    /// Notes the answer to a request that was made under `effect`.
    fn answered(&mut self, answer: Answer, effect: EffectWaiter<'a>) {
        let (was_asked, hash) = (self.may_be_done(), self.action.hash());
        let stage = match answer {
            Answer::Applied(applied) => Stage::Asked { is_seen: applied == Applied::Seen, error: None },
            // Done by a request whose answer was lost: its events are still to come.
            Answer::AlreadySo if was_asked => Stage::Asked { is_seen: true, error: None },
            Answer::AlreadySo => Stage::Done(TorrentOutcome::ok(hash)),
            Answer::NotAsked(error) if was_asked => Stage::Lost(error),
            Answer::NotAsked(error) => Stage::Unreached(error),
            Answer::Failed(ClientError::Busy { reason }) => Stage::Busy(reason),
            Answer::Failed(error) if error.leaves_outcome_open() => Stage::Lost(error),
            // A request of several exchanges, and not the first found nobody.
            Answer::Failed(error @ ClientError::Unreachable { .. }) => Stage::Lost(error),
            Answer::Failed(error @ ClientError::Protocol { .. }) if self.action.is_listed() => {
                Stage::Asked { is_seen: false, error: Some(command_error(&error)) }
            }
            Answer::Failed(error) => Stage::Done(TorrentOutcome::failed(hash, command_error(&error))),
        };
        let is_move = matches!(self.action, Action::Move(_));
        // While the client is only busy, an event is not of this command, unless it holds the torrent for a move by then. One
        // that was refused was moved and back.
        match stage {
            Stage::Asked { .. } | Stage::Lost(_) => self.effect.insert(effect).asked(),
            Stage::Busy(_) if is_move => self.effect = Some(effect),
            Stage::Done(_) if is_move => effect.asked(),
            _ => {}
        }
        self.stage = stage;
    }
}

impl Execution<'_> {
    /// Asks once for each action that is open.
    pub(super) async fn ask_all<'e>(&'e self, requests: &mut [Request<'e>]) {
        let is_over = self.is_over();
        let mut open: Vec<&mut Request<'e>> = requests.iter_mut().filter(|request| request.is_open(is_over)).collect();
        for batch in open.chunks_mut(BATCH) {
            // Before the client is asked: a poll may show the effect before its answer is here.
            let effects: Vec<EffectWaiter<'e>> = batch.iter().map(|request| self.expect(&request.action)).collect();
            let answers = self.ask(batch).await;
            for ((request, effect), answer) in batch.iter_mut().zip(effects).zip(answers) {
                request.answered(answer, effect);
            }
        }
    }

    async fn ask(&self, requests: &[&mut Request<'_>]) -> Vec<Answer> {
        // What was lost once is asked for alone: if it is what kills the client, others do not share its fate.
        let is_short = requests.iter().all(|request| request.action.is_short() && !request.may_be_done());
        let actions = || requests.iter().map(|request| request.action.clone()).collect::<Vec<Action>>();
        let answers = if is_short {
            self.turns.apply(&self.command.origin, actions()).await
        } else {
            let permit = self.long_turn().await;
            // `add` reads the client first; the batch consists of it alone, as a command adds one torrent.
            if let [request] = requests
                && let Action::Add(add) = &request.action
            {
                let asking = self.ask_to_add(add, self.command.is_started || request.may_be_done());
                return vec![self.in_turn(permit, add.source.bytes() <= SMALL_BYTES_MAX, asking).await];
            }
            let mut answers = self.parts.client.apply(&actions()).await;
            // Not held while another turn is waited for.
            drop(permit);
            self.release_refused(requests, &mut answers).await;
            answers
        };
        let judge = |(request, answer): (&&mut Request<'_>, Result<Applied, ClientError>)| match answer {
            Ok(applied) => Answer::Applied(applied),
            // Deleted by a request whose answer was lost, or before a crash.
            Err(ClientError::UnknownHash(_)) if self.was_deleted(request) => Answer::AlreadySo,
            Err(error @ ClientError::Unreachable { .. }) if request.action.is_short() => Answer::NotAsked(error),
            Err(error) => Answer::Failed(error),
        };
        requests.iter().zip(answers).map(judge).collect()
    }

    /// Lets torrents go on whose move the client has refused: they were held for it. A client that did not find the content
    /// at the new place has forgotten what it has, so it looks again.
    async fn release_refused(&self, requests: &[&mut Request<'_>], answers: &mut [Result<Applied, ClientError>]) {
        for (request, answer) in requests.iter().zip(answers) {
            let (Action::Move(Move { hash, .. }), Err(error)) = (&request.action, &*answer) else { continue };
            if !matches!(error, ClientError::Precondition { .. } | ClientError::Fault { .. }) {
                continue;
            }
            let (server, id) = (&self.parts.server, &self.command.id);
            if let Err(error) = self.insist(&Action::Release(*hash)).await {
                warn!(%server, %id, %hash, %error, "torrent stays stopped");
                // Nobody knows how it is, so the command goes on with it behind its result.
                *answer = Err(ClientError::Timeout { limit: self.effect_timeout() });
            } else if let Err(error) = self.insist(&Action::Recheck(*hash)).await {
                warn!(%server, %id, %hash, %error, "torrent not checked");
            }
        }
    }

    /// Returns what `asking` comes to. If it takes long it gives its turn to others, where it may.
    async fn in_turn<T>(&self, permit: OwnedSemaphorePermit, may_give: bool, asking: impl Future<Output = T>) -> T {
        let mut asking = pin!(asking);
        if !may_give {
            return asking.await;
        }
        if let Ok(answer) = timeout(ADD_TURN, &mut asking).await {
            return answer;
        }
        drop(permit);
        self.queue.set_waiting(&self.command.id);
        asking.await
    }

    fn was_deleted(&self, request: &Request<'_>) -> bool {
        matches!(request.action, Action::Delete(_)) && (self.command.is_started || request.may_be_done())
    }

    /// Adds a torrent, which may be there already.
    ///
    /// If this command may have loaded it, the missing steps are applied. A torrent of somebody else is left alone,
    /// and only accepted if it is as this command wants it.
    async fn ask_to_add(&self, add: &Add, may_be_ours: bool) -> Answer {
        let client = &self.parts.client;
        let action = Action::Add(add.clone());
        let parts = Parts { torrent: true, ..Parts::default() };
        let found = match client.get_one(add.hash, parts).await {
            Ok(found) => found,
            Err(error) => return Answer::NotAsked(error),
        };
        let Some(Details { observed, .. }) = found else {
            return client.apply_one(&action).await.map_or_else(Answer::Failed, Answer::Applied);
        };
        let is_as_listed = action.is_shown_by(observed.as_ref());
        if is_as_listed && add.custom.is_empty() {
            return Answer::AlreadySo;
        }
        if is_as_listed && !may_be_ours {
            // No listing shows custom values, so the client itself compares them.
            return client.apply_one(&action).await.map_or_else(Answer::Failed, Answer::Applied);
        }
        if !may_be_ours {
            let reason = "the torrent is already there, not as this command wants it, and is left alone".to_owned();
            return Answer::Failed(ClientError::Precondition { reason });
        }
        for step in missing_steps(add, observed.as_ref()) {
            if let Err(error) = client.apply_one(&step).await {
                return Answer::Failed(error);
            }
        }
        Answer::Applied(Applied::Asked)
    }
}

/// Returns what is left to do for a torrent that was loaded, in the order in which it has to be done.
fn missing_steps(add: &Add, observed: Option<&Observed>) -> Vec<Action> {
    let hash = add.hash;
    let is_unchecked = add.checked.is_some() && !observed.is_some_and(|observed| observed.torrent.finished);
    let steps = [
        add.directory.clone().map(|directory| Action::Move(Move::new(hash, directory))),
        add.label.clone().map(|label| Action::Label(hash, label)),
        add.priority.map(|priority| Action::Priority(hash, priority)),
        (!add.custom.is_empty()).then(|| Action::Custom(hash, add.custom.clone())),
        // Started last, so that it does not transfer before it is set up.
        add.start.then_some(Action::Start(hash)),
    ];
    let missing = steps
        .into_iter()
        .flatten()
        .filter(|step| !(step.is_listed() || matches!(step, Action::Move(..))) || !step.is_shown_by(observed));
    // Without a start only a check makes the client find its content.
    missing.chain((is_unchecked && !add.start).then_some(Action::Recheck(hash))).collect()
}
