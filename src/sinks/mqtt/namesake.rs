//! The suspicion that another bridge uses our `instance`, and so our client id.
//!
//! A broker disconnects a client when another one connects with its id (MQTT 5 §3.1.4), and brokers of MQTT 3.1.1 do not
//! say why. Two bridges with one `instance` would disconnect each other for ever.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::port::DeliverError;

use super::wire;

/// A connection that the broker closed sooner than this counts as short.
const SHORT_CONNECTION: Duration = Duration::from_secs(60);
/// Number of short connections in a row that raise the suspicion.
const SHORT_CONNECTIONS_MAX: u32 = 4;
/// Delay between two checks whether the other bridge is still online.
pub(super) const NAMESAKE_RETRY: Duration = Duration::from_secs(10);
/// Number of checks that find the other bridge online, after which a connection is made all the same: the `online` may be
/// our own, left behind by a broker that lost the last will.
const SIGHTINGS_MAX: u32 = 30;

#[derive(Debug, Default)]
pub(super) struct NamesakeSuspicion {
    /// In a row, since the last long connection or failed attempt.
    short_connections: AtomicU32,
    sightings: AtomicU32,
    /// The other bridge was online at the last check, so neither connection is made.
    pub is_online: AtomicBool,
}

impl NamesakeSuspicion {
    /// Notes how a connection ended; whether that raises the suspicion.
    pub fn connection_ended(&self, lasted: Duration, error: &DeliverError) -> bool {
        let DeliverError::Unavailable { reason, .. } = error else { return false };
        // With MQTT 5 the broker says so, with 3.1.1 it only closes the connection.
        let was_taken = lasted < SHORT_CONNECTION && [wire::CLOSED, wire::TAKEN_OVER].contains(&&**reason);
        if !was_taken {
            self.clear();
            return false;
        }
        self.short_connections.fetch_add(1, Ordering::Relaxed) + 1 == SHORT_CONNECTIONS_MAX
    }

    /// Whether the client id is to be left to the other bridge while that is online.
    pub fn is_raised(&self) -> bool {
        self.short_connections.load(Ordering::Relaxed) >= SHORT_CONNECTIONS_MAX
    }

    /// Drops the suspicion.
    pub fn clear(&self) {
        self.short_connections.store(0, Ordering::Relaxed);
        self.is_online.store(false, Ordering::Relaxed);
    }

    /// Notes that the other bridge is online; whether to connect all the same.
    pub fn seen(&self) -> bool {
        let is_time = (self.sightings.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(SIGHTINGS_MAX);
        if is_time {
            // One more short connection raises the suspicion again: the other bridge is there after all.
            self.short_connections.store(SHORT_CONNECTIONS_MAX - 1, Ordering::Relaxed);
            self.is_online.store(false, Ordering::Relaxed);
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_short_connections_in_a_row_raise_the_suspicion_and_a_long_one_clears_it() {
        let suspicion = NamesakeSuspicion::default();
        let short = |suspicion: &NamesakeSuspicion| {
            suspicion.connection_ended(Duration::from_secs(1), &DeliverError::unavailable(wire::CLOSED))
        };
        let long = |suspicion: &NamesakeSuspicion| {
            suspicion.connection_ended(SHORT_CONNECTION, &DeliverError::unavailable(wire::CLOSED))
        };
        assert!(!short(&suspicion) && !short(&suspicion) && !short(&suspicion) && !long(&suspicion));
        assert!(!short(&suspicion) && !short(&suspicion) && !short(&suspicion) && short(&suspicion));
        assert!(suspicion.is_raised());
        assert_eq!((1..=SIGHTINGS_MAX).filter(|_| suspicion.seen()).count(), 1);
        assert!(!suspicion.is_raised() && short(&suspicion), "one more is enough after a try");
    }
}
