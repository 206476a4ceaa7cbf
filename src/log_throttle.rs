//! Retries of writes to a full store, and rate limits on log messages about repeated failures.

use std::time::Duration;

use tracing::warn;

use crate::port::StoreError;

/// Interval between two attempts to write to a full store.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Repeats a write until the store is not full. `who` names the waiting part of the program in the log.
///
/// # Errors
/// Every error but [`StoreError::Full`].
pub async fn retry_while_full<T, F>(who: &str, write: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut log_throttle = LogThrottle::default();
    loop {
        match write().await {
            Err(StoreError::Full { reason }) => {
                if let Some(times) = log_throttle.failed() {
                    warn!(who, times, reason, "store full, retrying");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            other => return other,
        }
    }
}

/// A count of consecutive failures that decides which of them are logged.
#[derive(Debug, Default)]
pub struct LogThrottle {
    failures: u32,
}

impl LogThrottle {
    /// Counts a failure. Returns `Some(n)` if the n-th one is to be logged: 1, 10, 100, then every 1,000th.
    pub fn failed(&mut self) -> Option<u32> {
        self.failures = self.failures.saturating_add(1);
        let is_logged = matches!(self.failures, 1 | 10 | 100) || self.failures.is_multiple_of(1000);
        is_logged.then_some(self.failures)
    }

    /// Resets the count. Returns `Some(n)` after n failures.
    pub fn recovered(&mut self) -> Option<u32> {
        let failures = std::mem::take(&mut self.failures);
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::LogThrottle;

    #[test]
    fn a_repeated_failure_is_logged_at_the_start_at_growing_distances_and_at_the_end() {
        let mut log_throttle = LogThrottle::default();
        assert_eq!(log_throttle.recovered(), None);
        let logged: Vec<u32> = (0..2500).filter_map(|_| log_throttle.failed()).collect();
        assert_eq!(logged, [1, 10, 100, 1000, 2000]);
        assert_eq!(log_throttle.recovered(), Some(2500));
        assert_eq!(log_throttle.failed(), Some(1));
    }
}
