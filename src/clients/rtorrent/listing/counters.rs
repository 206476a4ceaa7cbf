//! rTorrent's own counters, which are read along with every listing.

use super::super::calls::{Call, Cell};

const THROTTLE: [&str; 6] = [
    "throttle.global_down.rate",
    "throttle.global_up.rate",
    "throttle.global_down.max_rate",
    "throttle.global_up.max_rate",
    "throttle.global_down.total",
    "throttle.global_up.total",
];

/// The views that rTorrent keeps by itself. Each torrent that is added, removed, started, stopped or completed
/// changes the size of one of them.
pub(super) const VIEWS: [&str; 4] = ["main", "started", "active", "complete"];

/// Counters of one exchange, in rTorrent's units: bytes, bytes per second, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    /// Process id, the run of a listing.
    pub pid: Option<i64>,
    /// rTorrent's own clock.
    pub time: Option<i64>,
    /// Sizes of [`VIEWS`].
    pub views: [Option<u64>; VIEWS.len()],
    /// Values of the methods of `THROTTLE`.
    pub throttle: [Option<u64>; THROTTLE.len()],
}

impl Counters {
    /// The place of the listing among the calls.
    pub(super) const ROWS: usize = 1;
    /// The place of the size of `main`.
    pub(super) const COUNT: usize = 2;
    const THROTTLE: usize = 3;
    const TIME: usize = Self::THROTTLE + THROTTLE.len();
    /// Number of calls, the listing included.
    pub(super) const CALLS: usize = Self::TIME + VIEWS.len();

    /// The calls for the counters, with the listing at [`Self::ROWS`].
    pub(super) fn calls_with(listing: Call) -> Vec<Call> {
        let size = |view| Call::global("view.size").text(view);
        // In one exchange with the rows, between which rTorrent does nothing else: sizes and rows agree.
        let mut calls = vec![Call::global("system.pid"), listing, size(VIEWS[0])];
        calls.extend(THROTTLE.map(Call::global));
        calls.push(Call::global("system.time_seconds"));
        calls.extend(VIEWS[1..].iter().map(|view| size(view)));
        calls
    }

    /// Stores the answer to the call at `place`.
    pub(super) fn set(&mut self, place: usize, cell: &Cell<'_>) {
        let number = cell.int();
        // Old builds of the XML library return 32 bits, negative when they overflow: unknown is better.
        let unsigned = number.and_then(|number| u64::try_from(number).ok());
        match place {
            0 => self.pid = number,
            Self::COUNT => self.views[0] = unsigned,
            Self::THROTTLE..Self::TIME => self.throttle[place - Self::THROTTLE] = unsigned,
            Self::TIME => self.time = number,
            place if (Self::TIME..Self::CALLS).contains(&place) => self.views[place - Self::TIME] = unsigned,
            _ => {}
        }
    }

    /// Number of torrents.
    pub(super) fn count(&self) -> Option<u64> {
        self.views[0]
    }

    /// Bytes that ever moved, down and up.
    pub(super) fn moved_bytes(&self) -> [Option<u64>; 2] {
        let [_, _, _, _, down, up] = self.throttle;
        [down, up]
    }
}
