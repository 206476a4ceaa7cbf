//! Settings that all clients have.

use std::time::Duration;

/// Limit for one exchange where none is configured.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
