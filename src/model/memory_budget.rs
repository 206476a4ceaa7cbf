//! The memory that queues and buffers may take, and the share of each.
//!
//! The memory of the snapshot comes on top, because that follows from what is monitored. Shares are of 32 parts:
//!
//! ```text
//! commands that wait  ████              among the origins: each broker, HTTP
//! commands that run   ███████████       among the origins
//! incoming bodies     ████              among the origins
//! a body as a tree    █                 one at a time
//! events              ██                among the servers of each sink, and the listeners over HTTP
//! lossy messages      █                 among the sinks
//! results             █                 among the sinks
//! answer of a client  ████████          among the servers, at least 16 MiB and at most 64 each
//! ```
//!
//! Events of one server for one sink are at five places: in the change buffer, pending, read ahead, in a replay, in flight.
//! Lossy messages (lists of files, statistics) are at three: in the change buffer, pending, in flight; states in flight are
//! the fourth quarter.
//!
//! A share that is used up makes its queue full. Where nothing is in it yet, one item is taken whatever its size, so that
//! a small budget makes the bridge slow and never stops it.

/// The memory for everything that comes from outside and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    bytes: usize,
}

/// The holders among whom a budget is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Origins of commands: each broker, and HTTP.
    pub origins: usize,
    /// Receivers of events.
    pub sinks: usize,
    /// Servers of each sink, all together.
    pub cursors: usize,
    /// Servers that are monitored.
    pub servers: usize,
    /// Listeners over HTTP, at most.
    pub listeners: usize,
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
    /// The tree of a body.
    pub trees: usize,
    /// Events of one server for one sink, at each of five places (see the module); of a listener.
    pub events: usize,
    /// Messages for one sink that are neither event nor result: of states only those in flight.
    pub ephemeral: usize,
    /// The largest answer of a client.
    pub answer: usize,
    /// Pages that are read from the store.
    pub pages: PageBytes,
}

impl MemoryShares {
    /// With less for events they would be read from the store nearly one by one: an event has a thousand bytes, and one with
    /// long texts 20,000.
    pub const EVENTS_BYTES_MIN: usize = 16 << 10;
}

/// Part of the budget for events.
const EVENT_PARTS: usize = 2;
/// Smallest limit of an answer: with less, trackers and files of usual servers could not be read any more.
const ANSWER_BYTES_MIN: usize = 16 << 20;
/// Largest limit of an answer. rTorrent itself aborts at 100 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Places where events of one server for one sink are.
const EVENT_PLACES: usize = 5;

/// Bytes of bodies after which a page from the store ends, with the item with which it holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBytes {
    /// Page of journal entries.
    pub entries: usize,
    /// Page of results.
    pub results: usize,
    /// Page of the bodies of unfinished commands.
    pub commands: usize,
}

/// The largest pages. Of usual size these are some hundred entries: a smaller page would be a query for a few.
impl Default for PageBytes {
    fn default() -> Self {
        Self { entries: 256 << 10, results: 1 << 20, commands: 1 << 20 }
    }
}

impl MemoryBudget {
    /// Smallest budget: with less, the largest body would be more than the whole.
    pub const BYTES_MIN: u64 = 32 << 20;

    /// Most listeners over HTTP at once.
    pub const LISTENERS_MAX: usize = 40;

    /// Makes a budget; `None` if that is less than [`Self::BYTES_MIN`].
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        (bytes as u64 >= Self::BYTES_MIN).then_some(Self { bytes })
    }

    /// Returns the smallest budget with [`MemoryShares::EVENTS_BYTES_MIN`] for events.
    pub fn bytes_for_events(holders: Holders) -> usize {
        MemoryShares::EVENTS_BYTES_MIN * holders.event_places() * 32 / EVENT_PARTS
    }

    /// Returns the whole budget.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// Divides the budget.
    pub fn shares(self, holders: Holders) -> MemoryShares {
        let Holders { origins, sinks, servers, .. } = holders;
        let share = |parts: usize, among: usize| self.bytes / 32 * parts / among.max(1);
        let (events, results) = (share(EVENT_PARTS, holders.event_places()), share(1, sinks));
        let (largest, waiting) = (PageBytes::default(), share(4, 1));
        // With its last item a page is larger; half of a place is for that. Results are pending and read ahead.
        // At least a byte, with which every page has an item.
        let at_most = |largest: usize, bytes: usize| bytes.clamp(1, largest);
        let (entries, results) = (at_most(largest.entries, events / 2), at_most(largest.results, results / 4));
        // Each server may read one, and the bridge itself.
        let commands = at_most(largest.commands, waiting / 8 / (servers + 1));
        MemoryShares {
            waiting_commands: waiting / 8 * 7 / origins.max(1),
            running_commands: share(11, origins),
            incoming: share(4, origins),
            trees: share(1, 1),
            events,
            ephemeral: share(1, sinks),
            answer: share(8, servers).clamp(ANSWER_BYTES_MIN, ANSWER_BYTES_MAX),
            pages: PageBytes { entries, results, commands },
        }
    }
}

/// 256 MiB.
impl Default for MemoryBudget {
    fn default() -> Self {
        Self { bytes: 256 << 20 }
    }
}

impl Holders {
    fn event_places(self) -> usize {
        EVENT_PLACES * self.cursors + self.listeners
    }
}

/// One of each, and no listener.
impl Default for Holders {
    fn default() -> Self {
        Self { origins: 1, sinks: 1, cursors: 1, servers: 1, listeners: 0 }
    }
}

/// The shares of the default budget, undivided.
impl Default for MemoryShares {
    fn default() -> Self {
        MemoryBudget::default().shares(Holders::default())
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
        fn all_shares_together_are_the_budget_at_most(
            bytes in MemoryBudget::BYTES_MIN..1 << 40, origins in 1_usize..50, sinks in 1_usize..50,
            servers in 1_usize..50, listeners in 0_usize..50,
        ) {
            let budget = MemoryBudget::new(bytes).unwrap();
            let cursors = sinks * servers;
            let holders = Holders { origins, sinks, cursors, servers, listeners };
            let shares = budget.shares(holders);
            let MemoryShares { waiting_commands, running_commands, incoming, trees, events, ephemeral, answer, pages } = shares;
            let commands = (waiting_commands + running_commands + incoming) * origins;
            let places = 5 * cursors + listeners;
            prop_assert!(pages.commands * (servers + 1) <= bytes as usize / 64, "an eighth of what waits");
            let answers = bytes as usize / 32 * 8;
            prop_assert_eq!(answer, (answers / servers).clamp(16 << 20, 64 << 20));
            let all = bytes as usize / 64 + commands + trees + answers + events * places + ephemeral * sinks;
            prop_assert!(all + bytes as usize / 32 <= budget.bytes(), "a part is for results");
            prop_assert!(all + bytes as usize / 32 >= budget.bytes() - 10 * 50 - places - 200);
            let least = MemoryBudget::bytes_for_events(holders);
            prop_assert_eq!(events >= MemoryShares::EVENTS_BYTES_MIN, bytes as usize / 32 * 32 >= least);
            prop_assert!(2 * pages.entries <= events && 4 * pages.results * sinks <= bytes as usize / 32);
            let PageBytes { entries, results, commands } = PageBytes::default();
            prop_assert!(pages.entries <= entries && pages.results <= results && pages.commands <= commands);
        }
    }
}
