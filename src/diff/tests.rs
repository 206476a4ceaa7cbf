//! Looks, one after another, and what each tells.

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

/// Whole torrents, `@cut` if some are lacking, `@8` in another run; after `only` those that changed.
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
    Listing { covers, run: Some(run.to_owned()), complete, torrents: torrents.collect(), stats: ServerStats::default() }
}

/// A server with its observer, and a store that always has room.
struct World {
    differ: Differ,
    snapshot: Snapshot,
    state: ServerState,
    rev: u64,
    second: u64,
}

impl World {
    fn new() -> Self {
        Self {
            differ: Differ::new(ServerName::parse("home").unwrap(), Limits::default()),
            snapshot: Snapshot::new(),
            state: ServerState::default(),
            rev: 0,
            second: 0,
        }
    }

    /// A server whose first snapshot was told.
    fn knowing(torrents: &str) -> Self {
        let mut world = Self::new();
        world.look(torrents);
        world.look(torrents);
        assert!(world.state.is_known);
        world
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

    /// Looks and commits. Returns the events in short: `finished a`, with `!cause` if not observed.
    fn look(&mut self, torrents: &str) -> String {
        self.second += 1;
        let change_set = self.change_set(torrents);
        self.commit(&change_set);
        said(&change_set)
    }

    fn commit(&mut self, change_set: &ChangeSet) {
        let mut committed = Committed::default();
        for (hash, change) in &change_set.changes {
            self.rev += 1;
            let snapshot = change.clone().map(|(torrent, memory)| SnapshotTorrent {
                torrent,
                rev: Rev(self.rev),
                last_seq: Seq(0),
                changed_at: change_set.time,
                memory,
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

fn said(change_set: &ChangeSet) -> String {
    let events = change_set.events.iter().map(|fact| {
        let name = fact.torrent.as_ref().map(|torrent| format!(" {}", torrent.name)).unwrap_or_default();
        let cause = match fact.cause {
            Cause::Observed => "",
            Cause::Snapshot => " !snapshot",
            Cause::Recovered => " !recovered",
            Cause::Command => " !command",
        };
        format!("{}{name}{cause}", fact.kind.as_str())
    });
    events.collect::<Vec<_>>().join(", ")
}

#[test]
fn diff_tells_each_change_once() {
    //  told                              seen                              expected
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
        assert_eq!(World::knowing(snapshot).look(seen), expected, "{snapshot} → {seen}");
    }
}

#[test]
fn the_first_snapshot_is_told_as_such_and_then_over() {
    let mut world = World::new();
    assert_eq!(world.look("a seeding, b downloading 1%"), "server_online, added a !snapshot, added b !snapshot");
    assert_eq!(world.look("a seeding, b downloading 1%, c stopped 0%"), "added c !snapshot");
    assert_eq!(world.look("a seeding, b downloading 1%, c stopped 0%"), "snapshot_done !snapshot");
    assert_eq!(world.look("a seeding, b downloading 1%, c stopped 0%, d seeding"), "added d");
}

#[test]
fn a_torrent_is_gone_when_two_complete_listings_lack_it() {
    let mut world = World::knowing("a seeding, b seeding");
    assert_eq!(world.look("a seeding"), "");
    assert_eq!(world.look("a seeding"), "removed b");
    assert_eq!(world.look("a seeding"), "");
    let mut world = World::knowing("a seeding, b seeding");
    for torrents in ["a seeding", "a seeding, b seeding", "a seeding", "failed", "a seeding @cut", "a seeding"] {
        assert_eq!(world.look(torrents), "", "{torrents}: not two complete ones in a row");
    }
    assert_eq!(world.look("a seeding"), "removed b");
}

#[test]
fn a_failed_poll_between_two_that_lack_a_torrent_does_not_count_as_either() {
    let mut world = World::knowing("a seeding, b seeding");
    assert_eq!(world.look("a seeding"), "");
    assert_eq!(world.look("failed"), "");
    assert_eq!(world.look("a seeding"), "removed b", "the same run answered twice without it");
}

#[test]
fn rechecking_a_complete_torrent_is_not_finished() {
    let mut world = World::knowing("a seeding");
    assert_eq!(world.look("a checking 0%"), "checking a");
    let snapshot = Arc::clone(&world.snapshot[&hash("a")].torrent);
    assert_eq!(
        (snapshot.downloaded, snapshot.progress, snapshot.finished),
        (1000, 100.0, true),
        "what is here is not unlearned"
    );
    assert_eq!(world.look("a checking 50%"), "");
    assert_eq!(world.look("a seeding"), "checked a");
}

#[test]
fn a_torrent_added_complete_is_not_finished_even_if_its_first_check_was_seen() {
    let mut world = World::knowing("b seeding");
    assert_eq!(world.look("b seeding, a checking 0% received=5"), "added a");
    assert_eq!(world.look("b seeding, a checking 50% received=5"), "");
    assert_eq!(world.look("b seeding, a seeding received=5"), "checked a");
    let mut world = World::knowing("b seeding");
    assert_eq!(world.look("b seeding, a checking 0%"), "added a");
    assert_eq!(
        world.look("b seeding, a seeding received=1000"),
        "checked a, finished a",
        "it was downloaded meanwhile"
    );
}

#[test]
fn a_check_that_finds_a_download_complete_is_finished() {
    let mut world = World::knowing("a downloading 90%");
    assert_eq!(world.look("a checking 10%"), "checking a");
    world.restart_bridge();
    assert_eq!(world.look("a seeding"), "checked a !recovered, finished a !recovered");
}

#[test]
fn content_that_somebody_put_there_is_no_download() {
    let mut world = World::knowing("a stopped 0%");
    assert_eq!(world.look("a checking 10% received=0"), "checking a");
    assert_eq!(world.look("a stopped 100% received=0"), "checked a");
    let mut world = World::knowing("b seeding");
    assert_eq!(world.look("b seeding, a downloading 99% received=1000"), "added a");
    assert_eq!(world.look("b seeding, a seeding received=1000"), "finished a", "all had come, and was not checked yet");
}

#[test]
fn content_that_was_gone_and_is_back_is_no_second_download() {
    for lost in ["a stopped 30% received=1000", "a downloading 30% received=1000"] {
        let mut world = World::knowing("a seeding");
        world.look("a checking 0% received=1000");
        assert!(world.look(lost).contains("unfinished a"));
        world.look("a checking 0% received=1000");
        world.restart_bridge();
        let snapshot = world.look("a seeding received=1000");
        assert!(snapshot.contains("checked a") && !snapshot.contains("finished"), "{snapshot}");
        let mut world = World::knowing("a seeding");
        world.look(lost);
        assert!(world.look("a seeding received=1700").contains("finished a"), "it came again");
    }
    // A client that counts what is here: `received` is as much.
    let mut world = World::knowing("a seeding");
    world.look("a downloading 30%");
    assert!(world.look("a seeding").contains("finished a"), "it came again");
}

#[test]
fn a_check_that_starts_a_paused_torrent_says_so() {
    let mut world = World::knowing("a paused 40%");
    assert_eq!(world.look("a checking 10%"), "checking a");
    assert_eq!(world.look("a downloading 40%"), "checked a, resumed a");
}

#[test]
fn what_happened_while_the_bridge_was_down_is_recovered_and_what_comes_then_is_observed() {
    let mut world = World::knowing("a downloading 40%, b seeding, c seeding");
    world.restart_bridge();
    assert_eq!(world.look("a seeding, c seeding, d seeding"), "finished a !recovered, added d !recovered");
    assert_eq!(world.look("a seeding, d seeding"), "removed b !recovered", "first missed when it came back");
    assert_eq!(world.look("a seeding, d seeding, e seeding"), "removed c, added e");
}

#[test]
fn a_restarted_client_that_still_loads_its_session_loses_nothing() {
    let mut world = World::knowing("a seeding, b seeding");
    assert_eq!(world.look("@8"), "server_restarted");
    assert_eq!(world.look("@8"), "");
    assert_eq!(world.look("a seeding load=9, b seeding load=9 @8"), "", "another load, but another run, too");
    assert_eq!(world.look("a seeding load=9 @8"), "");
    assert_eq!(world.look("a seeding load=9 @8"), "removed b");
}

#[test]
fn a_client_in_a_container_restarts_under_the_same_process_id() {
    let mut world = World::knowing("a seeding, b seeding");
    assert_eq!(world.look("failed"), "");
    assert_eq!(world.look("a seeding load=8, b seeding load=9"), "server_restarted");
    assert_eq!(world.look("a seeding load=8, b seeding load=9"), "");
    assert_eq!(world.look("a seeding load=8, b seeding load=7"), "removed b, added b", "loaded again in one run");
    world.restart_bridge();
    assert_eq!(world.look("a seeding load=1, b seeding load=2"), "server_restarted !recovered");
    assert_eq!(world.look("a seeding load=3, b seeding load=4"), "server_restarted", "between two looks");
    assert_eq!(world.look("failed"), "");
    assert_eq!(world.look(""), "", "back, and its session is not loaded yet");
    assert_eq!(world.look(""), "");
    assert_eq!(world.look("a seeding load=5, b seeding load=6"), "server_restarted");
}

#[test]
fn what_is_missing_after_a_restart_has_settled_is_gone() {
    let mut world = World::knowing("a seeding, b seeding");
    assert_eq!(world.look("a seeding load=2 @8"), "server_restarted");
    world.second += 40;
    assert_eq!(world.look("a seeding load=2 @8"), "", "settled now, and missed for the first time");
    assert_eq!(world.look("a seeding load=2 @8"), "removed b");
}

#[test]
fn a_server_is_offline_once_and_back_once() {
    let mut world = World::knowing("a seeding");
    let said: Vec<String> = (0..5).map(|_| world.look("failed")).collect();
    assert_eq!(said, ["", "", "server_offline", "", ""]);
    assert_eq!(world.look("a seeding"), "server_online");
    assert_eq!(world.look("failed"), "");
    assert_eq!(world.look("a seeding"), "");
}

#[test]
fn a_dry_download_stalls_after_a_minute_and_stays_so_until_bytes_come() {
    let mut world = World::knowing("a downloading 40% received=400");
    let mut stalled_at = None;
    for _ in 0..100 {
        match world.look("a downloading 40% received=400").as_str() {
            "" => {}
            "stalled a" if stalled_at.is_none() => stalled_at = Some(world.second),
            other => panic!("{other}"),
        }
    }
    assert!((60..=63).contains(&stalled_at.unwrap()), "{stalled_at:?}");
    world.restart_bridge();
    assert_eq!(world.look("a downloading 40% received=400"), "", "a new bridge does not forget it");
    assert_eq!(world.look("a downloading 41% received=410"), "unstalled a");
}

#[test]
fn what_could_not_be_written_is_told_by_the_next_look() {
    let mut world = World::knowing("a downloading 40%, b seeding");
    world.second += 1;
    let lost = world.change_set("a seeding, b seeding, c seeding");
    assert_eq!(said(&lost), "finished a, added c");
    assert_eq!(world.look("a seeding, b seeding, c seeding"), "finished a, added c");
}

#[test]
fn numbers_that_flow_are_told_every_few_seconds_and_the_last_ones_always() {
    let mut world = World::knowing("a downloading 10% rate=5000 received=100");
    let mut told_at = Vec::new();
    for percent in 11..31 {
        world.second += 1;
        let words = format!("a downloading {percent}% rate=5000 received={percent}0");
        let change_set = world.change_set(&words);
        if !change_set.changes.is_empty() {
            told_at.push(world.second);
        }
        world.commit(&change_set);
    }
    assert!(told_at.windows(2).all(|pair| pair[1] - pair[0] >= 2), "{told_at:?}");
    assert!(told_at.len() >= 3, "{told_at:?}");
    for _ in 0..7 {
        world.look("a stopped 30% received=300");
    }
    let seen = listing("a stopped 30% received=300");
    assert_eq!(*world.snapshot[&hash("a")].torrent, seen.torrents[&hash("a")].torrent, "exact when it is at rest");
}

#[test]
fn absence_from_a_look_at_what_changed_says_nothing() {
    let mut world = World::knowing("a seeding, b seeding");
    for _ in 0..5 {
        assert_eq!(world.look("only "), "");
        assert_eq!(world.look("only a seeding label=x"), if world.second == 4 { "label_changed a" } else { "" });
    }
    assert_eq!(world.look("a seeding label=x"), "");
    assert!(world.differ.needs_full_poll(&world.state), "to confirm that b is gone");
    assert_eq!(world.look("a seeding label=x"), "removed b");
    assert!(!world.differ.needs_full_poll(&world.state));
}

#[test]
fn only_a_known_and_steady_server_is_asked_for_changes() {
    let mut world = World::new();
    for torrents in ["a seeding", "a seeding"] {
        assert!(world.differ.needs_full_poll(&world.state));
        world.look(torrents);
    }
    assert!(!world.differ.needs_full_poll(&world.state));
    world.look("failed");
    assert!(world.differ.needs_full_poll(&world.state), "after a failure");
    world.look("a seeding");
    assert!(!world.differ.needs_full_poll(&world.state));
    world.look("a seeding load=2@8");
    world.look("a seeding load=2@8");
    assert_eq!(world.look("only a seeding load=2@9"), "", "another run is not believed from a part");
    assert!(world.differ.needs_full_poll(&world.state));
}

#[test]
fn what_could_not_be_written_down_is_looked_for_in_all() {
    let mut world = World::knowing("a seeding, b seeding");
    world.second += 1;
    let lost = world.change_set("only a paused 100%");
    assert_eq!(said(&lost), "paused a");
    assert!(world.differ.needs_full_poll(&world.state));
    assert_eq!(world.look("a paused 100%, b seeding"), "paused a");
    assert!(!world.differ.needs_full_poll(&world.state));
}

#[test]
fn what_time_alone_brings_is_told_without_another_word_of_the_client() {
    let mut world = World::knowing("a downloading 40% rate=9, b downloading 10%");
    world.look("only a downloading 50% rate=9");
    // Its last numbers come too soon after the others to be told, and nothing comes after them.
    world.look("only a downloading 60% rate=0");
    for _ in 0..3 {
        world.look("only ");
    }
    let snapshot = &world.snapshot[&hash("a")].torrent;
    assert_eq!((snapshot.downloaded, snapshot.download_rate, snapshot.playing), (600, Some(0), false));
    let mut heard = Vec::new();
    for _ in 0..70 {
        let said = world.look("only ");
        heard.extend((!said.is_empty()).then_some(said));
    }
    assert_eq!(heard, ["stalled b", "stalled a"]);
    assert_eq!(world.look("only "), "");
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
    /// The same look twice tells nothing the second time (but what removal and calm need time for).
    #[test]
    fn a_look_at_what_was_told_tells_nothing(words in any_words()) {
        let mut world = World::knowing(&words);
        world.look(&words);
        prop_assert_eq!(world.look(&words), "");
    }

    /// Whatever is seen on the way: when a picture stands still, it is what was told (I7).
    #[test]
    fn told_becomes_what_is_seen(steps in prop::collection::vec(any_words(), 1..8)) {
        let mut world = World::new();
        for words in &steps {
            world.look(words);
        }
        let last = steps.last().unwrap();
        for _ in 0..10 {
            world.second += 4;
            world.look(last);
        }
        let seen = listing(last).torrents;
        let snapshot: BTreeMap<_, _> = world.snapshot.iter().map(|(hash, snapshot)| (*hash, snapshot.torrent.status)).collect();
        let statuses: BTreeMap<_, _> = seen.iter().map(|(hash, seen)| (*hash, seen.torrent.status)).collect();
        prop_assert_eq!(snapshot, statuses);
        for (hash, seen) in &seen {
            let snapshot = &world.snapshot[hash].torrent;
            prop_assert_eq!((snapshot.error, &snapshot.label), (seen.torrent.error, &seen.torrent.label));
            if seen.torrent.status != Status::Checking {
                prop_assert_eq!(&**snapshot, &seen.torrent);
            }
        }
    }

    /// The chain of `changes` of a torrent leads from each picture to the next.
    #[test]
    fn changes_lead_from_picture_to_picture(steps in prop::collection::vec(any_words(), 2..8)) {
        let mut world = World::new();
        let mut pictures: BTreeMap<InfoHash, serde_json::Value> = BTreeMap::new();
        for words in &steps {
            world.second += 1;
            let change_set = world.change_set(words);
            for fact in &change_set.events {
                let Some(torrent) = &fact.torrent else { continue };
                let now = serde_json::to_value(&**torrent).unwrap();
                match fact.kind {
                    Kind::Removed => drop(pictures.remove(&torrent.hash)),
                    Kind::Added => drop(pictures.insert(torrent.hash, now)),
                    _ => {
                        let Some(picture) = pictures.get_mut(&torrent.hash) else { continue };
                        for (key, change) in &fact.changes {
                            picture[key] = change.to.clone();
                        }
                        prop_assert_eq!(&*picture, &now);
                    }
                }
            }
            for (hash, change) in &change_set.changes {
                if let Some((torrent, _)) = change {
                    pictures.insert(*hash, serde_json::to_value(&**torrent).unwrap());
                }
            }
            world.commit(&change_set);
        }
    }
}
