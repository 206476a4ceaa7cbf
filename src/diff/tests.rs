//! Sequences of polls, and the events that follow from each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Differ, Limits, PollTime};
use crate::model::*;

fn hash(name: &str) -> InfoHash {
    InfoHash::V1([name.as_bytes()[0]; 20])
}

/// A torrent of 1000 bytes in words: `a downloading 40%`, `b seeding label=x load=2 error`.
fn seen(words: &str) -> Observed {
    let mut words = words.split_whitespace();
    let name = words.next().unwrap();
    let status = words.next().unwrap();
    let status: Status = serde_json::from_value(status.into()).unwrap();
    let mut torrent = Torrent {
        hash: hash(name),
        name: name.to_owned(),
        server: ServerName::parse("home").unwrap(),
        active: false,
        downloaded: if status == Status::Seeding { 1000 } else { 0 },
        uploaded: 0,
        length: 1000,
        path: None,
        progress: 0.0,
        ratio: None,
        finished: false,
        playing: false,
        extra: Extra::new(),
        status,
        error: false,
        message: Some("".into()),
        stalled: false,
        download_rate: Some(0),
        upload_rate: Some(0),
        left: Some(0),
        eta: None,
        peers: Some(0),
        seeds: Some(0),
        label: Some("".into()),
        directory: Some("/d".into()),
        private: Some(false),
        priority: Some(2),
        tracker: None,
        added_at: None,
        started_at: None,
        finished_at: None,
        size_files: Some(1),
    };
    let mut facts = Facts { load: Some("1".to_owned()), has_metadata: status != Status::Metadata, ..Facts::default() };
    facts.received_bytes = 1;
    let mut is_received = false;
    for word in words {
        is_received |= word.starts_with("received=");
        match word.split_once('=') {
            Some(("label", label)) => torrent.label = Some(label.into()),
            Some(("load", load)) => facts.load = Some(load.to_owned()),
            Some(("received", bytes)) => facts.received_bytes = bytes.parse().unwrap(),
            Some(("name", name)) => torrent.name = name.to_owned(),
            Some(("dir", dir)) => torrent.directory = Some(dir.into()),
            Some(("priority", priority)) => torrent.priority = priority.parse().ok(),
            Some(("peers", peers)) => torrent.peers = peers.parse().ok(),
            Some(("rate", rate)) => torrent.download_rate = rate.parse().ok(),
            None if word == "error" => torrent.error = true,
            None if word.ends_with('%') => {
                torrent.downloaded = word.trim_end_matches('%').parse::<u64>().unwrap() * 10;
            }
            _ => panic!("{word}"),
        }
    }
    if !is_received && status != Status::Checking {
        facts.received_bytes = torrent.downloaded;
    }
    facts.complete = torrent.downloaded == 1000;
    torrent.progress = progress(torrent.downloaded, 1000);
    torrent.finished = facts.complete && status != Status::Checking;
    facts.moved_bytes = facts.received_bytes;
    Observed { torrent, facts }
}

/// A listing of all torrents, incomplete with `@cut`, of another run with `@8`; after `only` a listing of changes.
fn listing(torrents: &str) -> Listing {
    let (torrents, covers) = match torrents.strip_prefix("only ") {
        Some(torrents) => (torrents, Covers::Changed),
        None => (torrents, Covers::All),
    };
    let (torrents, run, complete) = match torrents.split_once('@') {
        Some((torrents, "cut")) => (torrents, "7", false),
        Some((torrents, run)) => (torrents, run, true),
        None => (torrents, "7", true),
    };
    let torrents = torrents.split(',').filter(|words| !words.trim().is_empty()).map(|words| {
        let observed = seen(words);
        (observed.torrent.hash, observed)
    });
    let complete = complete && covers == Covers::All;
    Listing { covers, run: Some(run.to_owned()), complete, torrents: torrents.collect(), ..Listing::default() }
}

/// A server with its differ, and a store that is never full.
struct TestServer {
    differ: Differ,
    snapshot: Snapshot,
    state: ServerState,
    rev: u64,
    second: u64,
}

impl TestServer {
    fn new() -> Self {
        Self {
            differ: Differ::new(ServerName::parse("home").unwrap(), Limits::default()),
            snapshot: Snapshot::new(),
            state: ServerState::default(),
            rev: 0,
            second: 0,
        }
    }

    /// A server whose initial snapshot is committed.
    fn knowing(torrents: &str) -> Self {
        let mut server = Self::new();
        server.poll(torrents);
        server.poll(torrents);
        assert!(server.state.is_known);
        server
    }

    fn now(&self) -> PollTime {
        let at = Duration::from_secs(self.second);
        PollTime { time: Timestamp::from_seconds(1_000_000 + self.second as i64), at }
    }

    fn change_set(&mut self, torrents: &str) -> ChangeSet {
        match torrents {
            "failed" => self.differ.failed(&self.state, self.now()),
            torrents => self.differ.polled(&self.snapshot, &self.state, &listing(torrents), self.now()),
        }
    }

    /// Polls and commits. Returns the events in short: `finished a`, with `!cause` if not observed.
    fn poll(&mut self, torrents: &str) -> String {
        self.second += 1;
        let change_set = self.change_set(torrents);
        self.commit(&change_set);
        events(&change_set)
    }

    fn commit(&mut self, change_set: &ChangeSet) {
        let mut committed = Committed::default();
        for (hash, change) in &change_set.changes {
            self.rev += 1;
            let snapshot = change.clone().map(|(torrent, diff_state)| SnapshotTorrent {
                torrent,
                rev: Rev(self.rev),
                last_seq: Seq(0),
                changed_at: change_set.time,
                diff_state,
            });
            match &snapshot {
                Some(snapshot) => self.snapshot.insert(*hash, snapshot.clone()),
                None => self.snapshot.remove(hash),
            };
            committed.snapshot.insert(*hash, snapshot);
        }
        if let Some(state) = &change_set.state {
            self.state = state.clone();
        }
        self.differ.committed(&committed, self.now().at);
    }

    fn restart_bridge(&mut self) {
        self.differ = Differ::new(ServerName::parse("home").unwrap(), Limits::default());
    }
}

fn events(change_set: &ChangeSet) -> String {
    let events = change_set.events.iter().map(|event| {
        let name = event.torrent.as_ref().map(|torrent| format!(" {}", torrent.name)).unwrap_or_default();
        let cause = match event.cause {
            Cause::Observed => "",
            Cause::Snapshot => " !snapshot",
            Cause::Recovered => " !recovered",
            Cause::Command => " !command",
        };
        format!("{}{name}{cause}", event.kind.as_str())
    });
    events.collect::<Vec<_>>().join(", ")
}

#[test]
fn diff_reports_each_change_once() {
    //  snapshot                          seen                              expected
    for (snapshot, seen, expected) in [
        ("a downloading 40%", "a downloading 40%", ""),
        ("a downloading 40%", "a seeding", "finished a"),
        ("a seeding", "a downloading 90%", "unfinished a"),
        ("a downloading 40%", "a paused 40%", "paused a"),
        ("a paused 40%", "a downloading 40%", "resumed a"),
        ("a downloading 40%", "a stopped 40%", "stopped a"),
        ("a stopped 40%", "a downloading 40%", "started a"),
        ("a stopped 40%", "a queued 40%", "started a"),
        ("a queued 40%", "a downloading 40%", ""),
        ("a paused 40%", "a stopped 40%", "stopped a"),
        ("a downloading 40%", "a stopped 100%", "finished a, stopped a"),
        ("a seeding", "a seeding error", "error a"),
        ("a seeding error", "a seeding", "error_cleared a"),
        ("a seeding", "a seeding label=x", "label_changed a"),
        ("a seeding", "a seeding priority=3", "priority_changed a"),
        ("a seeding", "a seeding dir=/e", "moved a"),
        ("a seeding", "a seeding name=b", "renamed b"),
        ("a metadata", "a downloading 0% load=2 name=b dir=/e", "metadata b"),
        ("a seeding", "a checking 10%", "checking a"),
        ("a downloading 40%", "a downloading 40%, b seeding", "added b"),
        ("a seeding, b seeding", "a seeding", ""), // once proves nothing
        ("a seeding", "a seeding load=2", "removed a, added a"),
        ("a seeding, b stopped 0%", "a paused 100%, b downloading 0%", "paused a, started b"),
    ] {
        assert_eq!(TestServer::knowing(snapshot).poll(seen), expected, "{snapshot} → {seen}");
    }
}

#[test]
fn the_initial_snapshot_is_marked_as_such_and_ends() {
    let mut server = TestServer::new();
    assert_eq!(server.poll("a seeding, b downloading 1%"), "server_online, added a !snapshot, added b !snapshot");
    assert_eq!(server.poll("a seeding, b downloading 1%, c stopped 0%"), "added c !snapshot");
    assert_eq!(server.poll("a seeding, b downloading 1%, c stopped 0%"), "snapshot_done !snapshot");
    assert_eq!(server.poll("a seeding, b downloading 1%, c stopped 0%, d seeding"), "added d");
}

#[test]
fn a_torrent_is_gone_when_two_complete_listings_lack_it() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    assert_eq!(server.poll("a seeding"), "");
    assert_eq!(server.poll("a seeding"), "removed b");
    assert_eq!(server.poll("a seeding"), "");
    let mut server = TestServer::knowing("a seeding, b seeding");
    for torrents in ["a seeding", "a seeding, b seeding", "a seeding", "failed", "a seeding @cut", "a seeding"] {
        assert_eq!(server.poll(torrents), "", "{torrents}: not two complete ones in a row");
    }
    assert_eq!(server.poll("a seeding"), "removed b");
}

#[test]
fn a_failed_poll_between_two_that_lack_a_torrent_does_not_count_as_either() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    assert_eq!(server.poll("a seeding"), "");
    assert_eq!(server.poll("failed"), "");
    assert_eq!(server.poll("a seeding"), "removed b", "the same run answered twice without it");
}

#[test]
fn rechecking_a_complete_torrent_is_not_finished() {
    let mut server = TestServer::knowing("a seeding");
    assert_eq!(server.poll("a checking 0%"), "checking a");
    let snapshot = Arc::clone(&server.snapshot[&hash("a")].torrent);
    assert_eq!(
        (snapshot.downloaded, snapshot.progress, snapshot.finished),
        (1000, 100.0, true),
        "what is here is not unlearned"
    );
    assert_eq!(server.poll("a checking 50%"), "");
    assert_eq!(server.poll("a seeding"), "checked a");
}

#[test]
fn a_torrent_added_complete_is_not_finished_even_if_its_first_check_was_seen() {
    let mut server = TestServer::knowing("b seeding");
    assert_eq!(server.poll("b seeding, a checking 0% received=5"), "added a");
    assert_eq!(server.poll("b seeding, a checking 50% received=5"), "");
    assert_eq!(server.poll("b seeding, a seeding received=5"), "checked a");
    let mut server = TestServer::knowing("b seeding");
    assert_eq!(server.poll("b seeding, a checking 0%"), "added a");
    assert_eq!(
        server.poll("b seeding, a seeding received=1000"),
        "checked a, finished a",
        "it was downloaded meanwhile"
    );
}

#[test]
fn a_check_that_finds_a_download_complete_is_finished() {
    let mut server = TestServer::knowing("a downloading 90%");
    assert_eq!(server.poll("a checking 10%"), "checking a");
    server.restart_bridge();
    assert_eq!(server.poll("a seeding"), "checked a !recovered, finished a !recovered");
}

#[test]
fn content_that_somebody_put_there_is_no_download() {
    let mut server = TestServer::knowing("a stopped 0%");
    assert_eq!(server.poll("a checking 10% received=0"), "checking a");
    assert_eq!(server.poll("a stopped 100% received=0"), "checked a");
    let mut server = TestServer::knowing("b seeding");
    assert_eq!(server.poll("b seeding, a downloading 99% received=1000"), "added a");
    assert_eq!(
        server.poll("b seeding, a seeding received=1000"),
        "finished a",
        "all had come, and was not checked yet"
    );
}

#[test]
fn content_that_was_gone_and_is_back_is_no_second_download() {
    for lost in ["a stopped 30% received=1000", "a downloading 30% received=1000"] {
        let mut server = TestServer::knowing("a seeding");
        server.poll("a checking 0% received=1000");
        assert!(server.poll(lost).contains("unfinished a"));
        server.poll("a checking 0% received=1000");
        server.restart_bridge();
        let snapshot = server.poll("a seeding received=1000");
        assert!(snapshot.contains("checked a") && !snapshot.contains("finished"), "{snapshot}");
        let mut server = TestServer::knowing("a seeding");
        server.poll(lost);
        assert!(server.poll("a seeding received=1700").contains("finished a"), "it came again");
    }
    // A client that counts what is here: `received` is as much.
    let mut server = TestServer::knowing("a seeding");
    server.poll("a downloading 30%");
    assert!(server.poll("a seeding").contains("finished a"), "it came again");
}

#[test]
fn a_check_that_starts_a_paused_torrent_says_so() {
    let mut server = TestServer::knowing("a paused 40%");
    assert_eq!(server.poll("a checking 10%"), "checking a");
    assert_eq!(server.poll("a downloading 40%"), "checked a, resumed a");
}

#[test]
fn what_happened_while_the_bridge_was_down_is_recovered_and_what_comes_then_is_observed() {
    let mut server = TestServer::knowing("a downloading 40%, b seeding, c seeding");
    server.restart_bridge();
    assert_eq!(server.poll("a seeding, c seeding, d seeding"), "finished a !recovered, added d !recovered");
    assert_eq!(server.poll("a seeding, d seeding"), "removed b !recovered", "first missed when it came back");
    assert_eq!(server.poll("a seeding, d seeding, e seeding"), "removed c, added e");
}

#[test]
fn a_restarted_client_that_still_loads_its_session_loses_nothing() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    assert_eq!(server.poll("@8"), "server_restarted");
    assert_eq!(server.poll("@8"), "");
    assert_eq!(server.poll("a seeding load=9, b seeding load=9 @8"), "", "another load, but another run, too");
    assert_eq!(server.poll("a seeding load=9 @8"), "");
    assert_eq!(server.poll("a seeding load=9 @8"), "removed b");
}

#[test]
fn a_client_in_a_container_restarts_under_the_same_process_id() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    assert_eq!(server.poll("failed"), "");
    assert_eq!(server.poll("a seeding load=8, b seeding load=9"), "server_restarted");
    assert_eq!(server.poll("a seeding load=8, b seeding load=9"), "");
    assert_eq!(server.poll("a seeding load=8, b seeding load=7"), "removed b, added b", "loaded again in one run");
    server.restart_bridge();
    assert_eq!(server.poll("a seeding load=1, b seeding load=2"), "server_restarted !recovered");
    assert_eq!(server.poll("a seeding load=3, b seeding load=4"), "server_restarted", "between two polls");
    assert_eq!(server.poll("failed"), "");
    assert_eq!(server.poll(""), "", "back, and its session is not loaded yet");
    assert_eq!(server.poll(""), "");
    assert_eq!(server.poll("a seeding load=5, b seeding load=6"), "server_restarted");
}

#[test]
fn what_is_missing_after_a_restart_has_settled_is_gone() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    assert_eq!(server.poll("a seeding load=2 @8"), "server_restarted");
    server.second += 40;
    assert_eq!(server.poll("a seeding load=2 @8"), "", "settled now, and missed for the first time");
    assert_eq!(server.poll("a seeding load=2 @8"), "removed b");
}

#[test]
fn a_server_is_offline_once_and_back_once() {
    let mut server = TestServer::knowing("a seeding");
    let events: Vec<String> = (0..5).map(|_| server.poll("failed")).collect();
    assert_eq!(events, ["", "", "server_offline", "", ""]);
    assert_eq!(server.poll("a seeding"), "server_online");
    assert_eq!(server.poll("failed"), "");
    assert_eq!(server.poll("a seeding"), "");
}

#[test]
fn a_dry_download_stalls_after_a_minute_and_stays_so_until_bytes_come() {
    let mut server = TestServer::knowing("a downloading 40% received=400");
    let mut stalled_at = None;
    for _ in 0..100 {
        match server.poll("a downloading 40% received=400").as_str() {
            "" => {}
            "stalled a" if stalled_at.is_none() => stalled_at = Some(server.second),
            other => panic!("{other}"),
        }
    }
    assert!((60..=63).contains(&stalled_at.unwrap()), "{stalled_at:?}");
    server.restart_bridge();
    assert_eq!(server.poll("a downloading 40% received=400"), "", "a new bridge does not forget it");
    assert_eq!(server.poll("a downloading 41% received=410"), "unstalled a");
}

#[test]
fn what_could_not_be_committed_is_found_by_the_next_poll() {
    let mut server = TestServer::knowing("a downloading 40%, b seeding");
    server.second += 1;
    let lost = server.change_set("a seeding, b seeding, c seeding");
    assert_eq!(events(&lost), "finished a, added c");
    assert_eq!(server.poll("a seeding, b seeding, c seeding"), "finished a, added c");
}

#[test]
fn moving_numbers_are_published_every_few_seconds_and_the_last_ones_always() {
    let mut server = TestServer::knowing("a downloading 10% rate=5000 received=100");
    let mut told_at = Vec::new();
    for percent in 11..31 {
        server.second += 1;
        let words = format!("a downloading {percent}% rate=5000 received={percent}0");
        let change_set = server.change_set(&words);
        if !change_set.changes.is_empty() {
            told_at.push(server.second);
        }
        server.commit(&change_set);
    }
    assert!(told_at.windows(2).all(|pair| pair[1] - pair[0] >= 2), "{told_at:?}");
    assert!(told_at.len() >= 3, "{told_at:?}");
    for _ in 0..7 {
        server.poll("a stopped 30% received=300");
    }
    let seen = listing("a stopped 30% received=300");
    assert_eq!(*server.snapshot[&hash("a")].torrent, seen.torrents[&hash("a")].torrent, "exact when it is at rest");
}

#[test]
fn absence_from_a_listing_of_changes_means_nothing() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    for _ in 0..5 {
        assert_eq!(server.poll("only "), "");
        assert_eq!(server.poll("only a seeding label=x"), if server.second == 4 { "label_changed a" } else { "" });
    }
    assert_eq!(server.poll("a seeding label=x"), "");
    assert!(server.differ.needs_full_poll(&server.state), "to confirm that b is gone");
    assert_eq!(server.poll("a seeding label=x"), "removed b");
    assert!(!server.differ.needs_full_poll(&server.state));
}

#[test]
fn only_a_known_and_steady_server_is_asked_for_changes() {
    let mut server = TestServer::new();
    for torrents in ["a seeding", "a seeding"] {
        assert!(server.differ.needs_full_poll(&server.state));
        server.poll(torrents);
    }
    assert!(!server.differ.needs_full_poll(&server.state));
    server.poll("failed");
    assert!(server.differ.needs_full_poll(&server.state), "after a failure");
    server.poll("a seeding");
    assert!(!server.differ.needs_full_poll(&server.state));
    server.poll("a seeding load=2@8");
    server.poll("a seeding load=2@8");
    assert_eq!(server.poll("only a seeding load=2@9"), "", "another run is not trusted from a listing of changes");
    assert!(server.differ.needs_full_poll(&server.state));
}

#[test]
fn what_could_not_be_committed_needs_a_full_poll() {
    let mut server = TestServer::knowing("a seeding, b seeding");
    server.second += 1;
    let lost = server.change_set("only a paused 100%");
    assert_eq!(events(&lost), "paused a");
    assert!(server.differ.needs_full_poll(&server.state));
    assert_eq!(server.poll("a paused 100%, b seeding"), "paused a");
    assert!(!server.differ.needs_full_poll(&server.state));
}

#[test]
fn pending_changes_are_published_after_a_time_without_another_change() {
    let mut server = TestServer::knowing("a downloading 40% rate=9, b downloading 10%");
    server.poll("only a downloading 50% rate=9");
    // The last numbers come too soon after the others to be published, and nothing comes after them.
    server.poll("only a downloading 60% rate=0");
    for _ in 0..3 {
        server.poll("only ");
    }
    let snapshot = &server.snapshot[&hash("a")].torrent;
    assert_eq!((snapshot.downloaded, snapshot.download_rate, snapshot.playing), (600, Some(0), false));
    let mut all_events = Vec::new();
    for _ in 0..70 {
        let events = server.poll("only ");
        all_events.extend((!events.is_empty()).then_some(events));
    }
    assert_eq!(all_events, ["stalled b", "stalled a"]);
    assert_eq!(server.poll("only "), "");
}

fn any_words() -> impl Strategy<Value = String> {
    let status =
        prop::sample::select(vec!["checking", "downloading", "seeding", "paused", "stopped", "queued", "metadata"]);
    let torrent =
        (status, 0_u8..=100, any::<bool>(), 1_u8..3, 0_u8..3).prop_map(|(status, percent, error, load, label)| {
            let percent = if status == "seeding" { 100 } else { percent };
            let error = if error { " error" } else { "" };
            format!("{status} {percent}%{error} load={load} label=l{label}")
        });
    prop::collection::vec(prop::option::of(torrent), 4).prop_map(|torrents| {
        let named = torrents.into_iter().zip(["a", "b", "c", "d"]);
        named.filter_map(|(words, name)| words.map(|words| format!("{name} {words}"))).collect::<Vec<_>>().join(",")
    })
}

proptest! {
    /// The same poll twice emits nothing the second time (except where removal and calm need time).
    #[test]
    fn a_poll_equal_to_the_snapshot_emits_nothing(words in any_words()) {
        let mut server = TestServer::knowing(&words);
        server.poll(&words);
        prop_assert_eq!(server.poll(&words), "");
    }

    /// Whatever happens on the way: when nothing changes any more, the snapshot is what is listed (I7).
    #[test]
    fn the_snapshot_becomes_what_is_listed(steps in prop::collection::vec(any_words(), 1..8)) {
        let mut server = TestServer::new();
        for words in &steps {
            server.poll(words);
        }
        let last = steps.last().unwrap();
        for _ in 0..10 {
            server.second += 4;
            server.poll(last);
        }
        let seen = listing(last).torrents;
        let snapshot: BTreeMap<_, _> = server.snapshot.iter().map(|(hash, snapshot)| (*hash, snapshot.torrent.status)).collect();
        let statuses: BTreeMap<_, _> = seen.iter().map(|(hash, seen)| (*hash, seen.torrent.status)).collect();
        prop_assert_eq!(snapshot, statuses);
        for (hash, seen) in &seen {
            let snapshot = &server.snapshot[hash].torrent;
            prop_assert_eq!((snapshot.error, &snapshot.label), (seen.torrent.error, &seen.torrent.label));
            if seen.torrent.status != Status::Checking {
                prop_assert_eq!(&**snapshot, &seen.torrent);
            }
        }
    }

    /// The `changes` of a torrent lead from each state to the next.
    #[test]
    fn changes_lead_from_picture_to_picture(steps in prop::collection::vec(any_words(), 2..8)) {
        let mut server = TestServer::new();
        let mut states: BTreeMap<InfoHash, serde_json::Value> = BTreeMap::new();
        for words in &steps {
            server.second += 1;
            let change_set = server.change_set(words);
            for event in &change_set.events {
                let Some(torrent) = &event.torrent else { continue };
                let now = serde_json::to_value(&**torrent).unwrap();
                match event.kind {
                    Kind::Removed => drop(states.remove(&torrent.hash)),
                    Kind::Added => drop(states.insert(torrent.hash, now)),
                    _ => {
                        let Some(state) = states.get_mut(&torrent.hash) else { continue };
                        for (key, change) in &event.changes {
                            state[key] = change.to.clone();
                        }
                        prop_assert_eq!(&*state, &now);
                    }
                }
            }
            for (hash, change) in &change_set.changes {
                if let Some((torrent, _)) = change {
                    states.insert(*hash, serde_json::to_value(&**torrent).unwrap());
                }
            }
            server.commit(&change_set);
        }
    }
}
