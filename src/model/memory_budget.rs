//! The memory that queues and buffers may take, and the share of each.
//!
//! What the snapshot takes comes on top, because that follows from what is monitored. Shares are of sixteenths:
//!
//! ```text
//! commands that wait  ███               among the origins: each broker, HTTP
//! commands that run   ██████            among the origins
//! incoming bodies     ███               among the origins
//! outgoing            ████              among the sinks: journal entries, lists of files, results
//! ```
//!
//! A share that is used up makes its queue full. Where nothing is in it yet, one item is taken whatever its size, so that
//! a small budget makes the bridge slow and never stops it.

/// The memory for everything that comes from outside and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    bytes: usize,
}

/// The shares of a budget, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryShares {
    /// Commands of one origin that wait.
    pub waiting_commands: usize,
    /// Commands of one origin that run.
    pub running_commands: usize,
    /// Bodies of one origin that are not admitted yet.
    pub incoming: usize,
    /// Messages that wait for one sink.
    pub outgoing: usize,
}

impl MemoryBudget {
    /// Smallest budget: with less, the largest body would be more than the whole.
    pub const BYTES_MIN: u64 = 32 << 20;

    /// Makes a budget; `None` if that is less than [`Self::BYTES_MIN`].
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        (bytes as u64 >= Self::BYTES_MIN).then_some(Self { bytes })
    }

    /// Returns the whole budget.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// Divides the budget among so many origins of commands and sinks.
    pub fn shares(self, origins: usize, sinks: usize) -> MemoryShares {
        let share = |sixteenths: usize, among: usize| self.bytes / 16 * sixteenths / among.max(1);
        MemoryShares {
            waiting_commands: share(3, origins),
            running_commands: share(6, origins),
            incoming: share(3, origins),
            outgoing: share(4, sinks),
        }
    }
}

/// 256 MiB.
impl Default for MemoryBudget {
    fn default() -> Self {
        Self { bytes: 256 << 20 }
    }
}

/// The shares of one origin and one sink in the default budget.
impl Default for MemoryShares {
    fn default() -> Self {
        MemoryBudget::default().shares(1, 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_budget_that_is_too_small_is_none() {
        assert_eq!(MemoryBudget::new(MemoryBudget::BYTES_MIN - 1), None);
        assert_eq!(MemoryBudget::new(MemoryBudget::BYTES_MIN).map(MemoryBudget::bytes), Some(32 << 20));
    }

    proptest! {
        #[test]
        fn all_shares_together_are_the_budget_at_most(bytes in MemoryBudget::BYTES_MIN..1 << 40, origins in 0_usize..50, sinks in 0_usize..50) {
            let budget = MemoryBudget::new(bytes).unwrap();
            let MemoryShares { waiting_commands, running_commands, incoming, outgoing } = budget.shares(origins, sinks);
            let all = (waiting_commands + running_commands + incoming) * origins + outgoing * sinks;
            prop_assert!(all <= budget.bytes());
            prop_assert!(origins == 0 || sinks == 0 || all >= budget.bytes() - 16 - 50 * 4);
        }
    }
}
