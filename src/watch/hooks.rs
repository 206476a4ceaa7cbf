//! Hooks in a client, and the bell that they ring: what happens there is looked for at once.
//!
//! Two things run side by side. One has the client ring: as soon as it answers, again when it is another
//! run of it, and each minute it looks whether the hooks still hang. The other answers the bell, by poking
//! the watcher. A ring says nothing but "look" (I11): hooks that are missing, late or rung by somebody else
//! cost promptness or a look, never an event.
//!
//! The first ring pokes at once; those that follow are answered together, and not before the client has
//! had twice the time of a look to itself. So however often it is rung, looking is a third of what it does.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{SHORTEST_PAUSE, with_causes};
use crate::board::{Board, ServerBoard};
use crate::model::{Hook, ServerName};
use crate::port::{ClientError, HookWish, Hooks, TorrentClient};
use crate::repeat::Repeat;

/// How long hooks may be gone unnoticed in a client that did not restart.
const LOOK_FOR_HOOKS_EACH: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct HookKeeper {
    pub server: ServerName,
    pub client: Arc<dyn TorrentClient>,
    pub board: Arc<Board>,
    pub hook: Hook,
}

impl HookKeeper {
    /// Keeps the hooks until `stop`, and takes them back then.
    pub async fn run(self, stop: CancellationToken) {
        let Some(board) = self.board.server(&self.server) else { return };
        tokio::join!(self.answer_bell(board, &stop), self.keep(board, &stop));
        match self.client.hooks(HookWish::Take(&self.hook.key)).await {
            Ok(hooks) => debug!(server = %self.server, taken = hooks.changed, "hooks taken back"),
            Err(error) => warn!(server = %self.server, error = with_causes(&error), "hooks could not be taken back"),
        }
    }

    async fn answer_bell(&self, board: &ServerBoard, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = board.bell.rung.notified() => board.poke.notify_one(),
            }
            let pause = SHORTEST_PAUSE.max(2 * board.read(|content| content.poll.duration));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn keep(&self, board: &ServerBoard, stop: &CancellationToken) {
        let mut failures = Repeat::default();
        while !stop.is_cancelled() {
            if board.read(|content| content.poll.is_answering()) {
                let result = self.client.hooks(HookWish::Set(&self.hook)).await;
                self.note(board, result, &mut failures);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = board.bell.client_is_new.notified() => {}
                () = tokio::time::sleep(LOOK_FOR_HOOKS_EACH) => {}
            }
        }
    }

    fn note(&self, board: &ServerBoard, result: Result<Hooks, ClientError>, failures: &mut Repeat) {
        match result {
            Ok(hooks) => {
                if let Some(times) = failures.ended() {
                    info!(server = %self.server, times, "hooks can be set again");
                }
                let Hooks { ringing, left_alone, changed } = &hooks;
                if *changed > 0 {
                    info!(server = %self.server, events = ?ringing, ?left_alone, "the client rings by itself");
                    // Nobody rang for what happened before.
                    board.poke.notify_one();
                } else if ringing.is_empty() && board.bell.last_report().hooks.as_ref() != Some(&hooks) {
                    warn!(server = %self.server, ?left_alone, "no event can be hooked: others hang there");
                }
                board.bell.report(|report| (report.hooks, report.problem) = (Some(hooks), None));
            }
            Err(error) => {
                let problem = with_causes(&error);
                if let Some(times) = failures.failed() {
                    warn!(server = %self.server, times, problem, "hooks cannot be set, looking each interval all the same");
                }
                board.bell.report(|report| (report.hooks, report.problem) = (None, Some(problem)));
            }
        }
    }
}
