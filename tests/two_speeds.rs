//! Partial polls between full polls: after the next full poll, the snapshot equals the client.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dtorrent::diff::{Differ, Limits, PollTime};
use dtorrent::model::{
    ChangeSet, Committed, Covers, InfoHash, Rev, Seq, ServerName, ServerState, Snapshot, SnapshotTorrent, Timestamp,
};
use dtorrent::port::{Scope, SystemClock, TorrentClient as _};
use dtorrent::testing::simulator::{RunMode, SimulatedTorrent, Simulator};
use proptest::prelude::*;

/// A change of one torrent: index of the torrent, kind of change, amount.
type Step = (u8, u8, u8);

struct TestServer {
    simulator: Simulator,
    differ: Differ,
    snapshot: Snapshot,
    state: ServerState,
    second: u64,
}

impl TestServer {
    fn new() -> Self {
        let server = ServerName::parse("home").unwrap();
        Self {
            simulator: Simulator::new(server.clone(), Arc::new(SystemClock)),
            differ: Differ::new(server, Limits::default()),
            snapshot: Snapshot::new(),
            state: ServerState::default(),
            second: 0,
        }
    }

    async fn poll(&mut self, is_full: bool) -> Covers {
        self.second += 1;
        let nothing = BTreeSet::new();
        let needs_all = is_full || self.differ.needs_full_poll(&self.state);
        let scope = if needs_all { Scope::Full } else { Scope::Changed { named: &nothing } };
        let listing = self.simulator.list(scope).await.unwrap();
        let at = Duration::from_secs(self.second);
        let time = Timestamp::from_seconds(1_000_000 + i64::try_from(self.second).unwrap());
        let change_set = self.differ.polled(&self.snapshot, &self.state, &listing, PollTime { time, at });
        self.commit(change_set, at);
        listing.covers
    }

    fn commit(&mut self, change_set: ChangeSet, at: Duration) {
        if change_set.is_empty() {
            return;
        }
        let mut committed = Committed::default();
        self.state = change_set.state.unwrap_or_else(|| self.state.clone());
        for (hash, change) in change_set.changes {
            let snapshot = change.map(|(torrent, diff_state)| SnapshotTorrent {
                torrent,
                diff_state,
                rev: Rev(1),
                last_seq: Seq(0),
                changed_at: change_set.time,
            });
            match &snapshot {
                Some(snapshot) => drop(self.snapshot.insert(hash, snapshot.clone())),
                None => drop(self.snapshot.remove(&hash)),
            }
            committed.snapshot.insert(hash, snapshot);
        }
        self.differ.committed(&committed, at);
    }

    fn happen(&self, (which, what, much): Step) {
        let hash = InfoHash::V1([which % 6; 20]);
        self.simulator.change(|state| match what % 12 {
            0 | 1 => state.add(hash, SimulatedTorrent::new(format!("torrent {which}"), 10_000)),
            2 => drop(state.remove(&hash)),
            3 => state.reload(&hash),
            4 => state.receive(&hash, u64::from(much) * 50, u64::from(much) * 10),
            5 => state.begin_check(&hash),
            6 => state.end_check(&hash),
            7 => state.rest(),
            _ => {
                let Some(torrent) = state.torrent_mut(&hash) else { return };
                match what % 12 {
                    8 => torrent.label = format!("label {much}"),
                    9 => {
                        torrent.run_mode = [RunMode::Stopped, RunMode::Paused, RunMode::Running][usize::from(much % 3)]
                    }
                    10 => torrent.error = (much % 2 == 0).then(|| "no space".to_owned()),
                    _ => torrent.uploaded += u64::from(much),
                }
            }
        });
    }
}

proptest! {
    #[test]
    fn one_full_poll_later_the_snapshot_is_what_the_client_has(steps in prop::collection::vec(any::<(bool, Step)>(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut server = TestServer::new();
            server.poll(false).await;
            server.poll(false).await;
            for (polls, step) in steps {
                server.happen(step);
                if polls {
                    server.poll(false).await;
                }
            }
            server.simulator.change(|state| {
                let hashes: Vec<InfoHash> = state.torrents().keys().copied().collect();
                hashes.iter().for_each(|hash| state.end_check(hash));
                state.rest();
            });
            server.poll(true).await;
            // A removal needs two polls, small changes are reported with a delay, and a client all of whose torrents were
            // loaded again is taken to load its session for half a minute.
            for _ in 0..40 {
                server.poll(false).await;
            }
            prop_assert_eq!(server.poll(false).await, Covers::Changed, "no full poll is needed");
            let truth = server.simulator.list(Scope::Full).await.unwrap().torrents;
            prop_assert!(server.snapshot.keys().eq(truth.keys()));
            for (hash, seen) in &truth {
                let mut snapshot = (*server.snapshot[hash].torrent).clone();
                snapshot.stalled = false;
                prop_assert_eq!(&snapshot, &seen.torrent);
            }
            Ok(())
        })?;
    }
}
