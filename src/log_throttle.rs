//! Trying again: until there is room on the disk; and saying a repeated failure when it starts, at
//! growing distances, and when it ends.

use std::time::Duration;

use tracing::warn;

use crate::port::StoreError;

/// How long to wait before a full store is asked again.
const ROOM_EACH: Duration = Duration::from_secs(1);

/// Asks the store for the same write until it has room. `who` waits meanwhile, for the log.
///
/// # Errors
/// Everything but [`StoreError::Full`].
pub async fn retry_while_full<T, F>(who: &str, write: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut log_throttle = LogThrottle::default();
    loop {
        match write().await {
            Err(StoreError::Full { reason }) => {
                if let Some(times) = log_throttle.failed() {
                    warn!(who, times, reason, "no room on the disk, waiting for some");
                }
                tokio::time::sleep(ROOM_EACH).await;
            }
            other => return other,
        }
    }
}

/// Counts failures in a row and decides which of them are worth a line in the log.
#[derive(Debug, Default)]
pub struct LogThrottle {
    failures: u32,
}

impl LogThrottle {
    /// Counts a failure; `Some(n)` if the n-th one is to be logged: 1, 10, 100, then each 1,000.
    pub fn failed(&mut self) -> Option<u32> {
        self.failures = self.failures.saturating_add(1);
        let is_worth_a_line = matches!(self.failures, 1 | 10 | 100) || self.failures.is_multiple_of(1000);
        is_worth_a_line.then_some(self.failures)
    }

    /// It works again; `Some(n)` after n failures.
    pub fn recovered(&mut self) -> Option<u32> {
        let failures = std::mem::take(&mut self.failures);
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::LogThrottle;

    #[test]
    fn a_failure_is_said_when_it_starts_rarely_and_when_it_ends() {
        let mut log_throttle = LogThrottle::default();
        assert_eq!(log_throttle.recovered(), None);
        let said: Vec<u32> = (0..2500).filter_map(|_| log_throttle.failed()).collect();
        assert_eq!(said, [1, 10, 100, 1000, 2000]);
        assert_eq!(log_throttle.recovered(), Some(2500));
        assert_eq!(log_throttle.failed(), Some(1));
    }
}
