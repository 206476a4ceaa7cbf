//! Defaults that hold for every client, in a config and in the library.

use std::time::Duration;

/// Time between two polls.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time between two full polls.
pub const DEFAULT_SWEEP: Duration = Duration::from_secs(30);
/// Limit for one exchange.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
