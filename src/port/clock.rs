//! The seam to wall-clock time.

use crate::model::Timestamp;

/// A source of wall-clock time. Durations are measured with tokio's monotonic clock instead, which tests can pause.
pub trait Clock: Send + Sync {
    /// Returns the present time. May step back, when the machine's clock is set.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    /// Returns the present time. May step back, when the machine's clock is set.
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }
}
