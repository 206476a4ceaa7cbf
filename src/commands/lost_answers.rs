//! Commands whose client gave no answer: it was too slow, the connection broke, or a proxy answered in its place.
//!
//! The client may have carried out such a request all the same, so the command goes on once the client answers again:
//! with what is missing. What kills the client is not asked for a third time: a supervisor that restarts it would make
//! that a loop.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::execution::Execution;
use crate::model::{CommandError, ErrorCode};
use crate::port::ClientError;

/// Deaths of the client right behind the requests of one command, after which it is not asked again. One may be a
/// coincidence.
const DEATHS_MAX: u32 = 2;

impl Execution<'_> {
    /// Returns the number of restarts of the client that polls have noticed, to be compared after a lost answer.
    pub fn restarts(&self) -> u64 {
        self.read(|server| server.state.generation)
    }

    /// Waits, without an end, until a poll that begins from now on shows that the client answers.
    pub async fn client_answers(&self) {
        let since = Instant::now();
        self.wake();
        self.server().wait_for(|server| server.poll.last_began.is_some_and(|began| began >= since).then_some(())).await;
    }

    /// Waits, after a lost answer, until a poll shows that the client answers again; `false` if the time for that is
    /// over. `restarts` is the number of before the client was asked.
    ///
    /// # Errors
    /// The client has died twice right behind this command.
    pub async fn answers_again(&self, lost: &ClientError, restarts: u64) -> Result<bool, CommandError> {
        let lost_at = Instant::now();
        self.wake();
        let answers = self.server().wait_for(|server| {
            let is_later = server.poll.last_began.is_some_and(|began| began >= lost_at);
            is_later.then_some(server.state.generation)
        });
        let Some(now) = self.within_verification(answers).await else { return Ok(false) };
        if now != restarts && self.deaths.fetch_add(1, Ordering::Relaxed) + 1 >= DEATHS_MAX {
            return Err(CommandError::new(
                ErrorCode::ClientFault,
                format!(
                    "the client ended {DEATHS_MAX} times right after it was asked for this, so it is not asked again; \
                     its own log may say why ({lost})"
                ),
            ));
        }
        Ok(true)
    }
}
