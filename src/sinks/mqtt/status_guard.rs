//! The guard of the bridge's retained status: when to publish `online` again after somebody published something else.
//!
//! The last will of an earlier connection may be published after we are connected again; a second bridge with our
//! `instance` keeps publishing it.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum time between two corrections.
const CORRECTION_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct StatusGuard {
    due: Option<Instant>,
    corrected_at: Option<Instant>,
    corrections: u32,
}

impl StatusGuard {
    /// Notes that the status is wrong; a correction is due now, or when the interval has passed.
    pub fn wrong_status_seen(&mut self) {
        // Two bridges with one `instance` must not flood the topic.
        let earliest = self.corrected_at.map_or_else(Instant::now, |at| at + CORRECTION_INTERVAL);
        self.due.get_or_insert(earliest);
    }

    /// Waits until a correction is due. Cancel-safe.
    pub fn correction_due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.due;
        async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Drops a correction that is due.
    pub fn cancel(&mut self) {
        self.due = None;
    }

    /// Notes a correction, and returns how many there were on this connection.
    pub fn corrected(&mut self) -> u32 {
        self.due = None;
        self.corrected_at = Some(Instant::now());
        self.corrections += 1;
        self.corrections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_correction_is_due_at_once_and_the_next_after_the_interval() {
        let mut guard = StatusGuard::default();
        let begin = Instant::now();
        guard.wrong_status_seen();
        guard.correction_due().await;
        assert_eq!((begin.elapsed(), guard.corrected()), (Duration::ZERO, 1));
        guard.wrong_status_seen();
        guard.wrong_status_seen();
        guard.correction_due().await;
        assert_eq!((begin.elapsed(), guard.corrected()), (CORRECTION_INTERVAL, 2));
        guard.wrong_status_seen();
        guard.cancel();
        let is_due = tokio::time::timeout(10 * CORRECTION_INTERVAL, guard.correction_due()).await.is_ok();
        assert!(!is_due);
    }
}
