//! The data directory: torn, corrupt, emptied, deleted, full, locked, written by a newer version.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use dtorrent_peers::content::Content;
use dtorrent_peers::process::TIMEOUT;
use serde_json::{Value, json};

use super::{count, kinds_of, label_all, load_many, wait_for_newcomer};
use crate::harness::bridge::Bridge;
use crate::harness::disk::{FailingDisk, SmallDisk};
use crate::harness::proxy::{Mode, PUBLISH};
use crate::harness::recorder::{Command, Message, Recorder};
use crate::harness::{Setup, World, can_run};

fn database(world: &World) -> PathBuf {
    world.data_dir().join("dtorrent.sqlite3")
}

fn change_log(world: &World) -> PathBuf {
    world.data_dir().join("dtorrent.sqlite3-wal")
}

/// Returns the files of the data directory that were moved aside.
fn moved_aside(world: &World) -> usize {
    let names = fs::read_dir(world.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains("sqlite3.corrupt-")).count()
}

#[tokio::test]
async fn a_torn_last_record_is_dropped_and_its_events_are_emitted_again() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    let written = world.database().last_seq("home");
    // A power cut in the middle of a write: an incomplete record was never sent (I3).
    proxy.requests(Mode::HoldPackets(PUBLISH));
    let counted = fs::read(world.data_dir().join("dtorrent.used")).unwrap();
    let hash = world.home.load(&Content::file("torn", 1_000, 77).torrent, false).await.unwrap();
    world.database().until("the event is written down", |database| database.last_seq("home") == written + 1).await;
    world.bridge().process().kill().unwrap();
    proxy.cut();
    proxy.requests(Mode::Pass);
    let log = File::options().write(true).open(change_log(&world)).unwrap();
    log.set_len(log.metadata().unwrap().len() - 1_000).unwrap();
    fs::write(world.data_dir().join("dtorrent.used"), counted).unwrap(); // done only when a commit is whole
    assert_eq!(world.database().last_seq("home"), written, "the last commit is gone");
    world.bridge().restart();
    let added = world.recorder.event("home", "added", hash).await;
    assert_eq!((&added["seq"], &added["cause"]), (&json!(written + 1), &json!("recovered")), "{added}");
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added"), count(&events, "removed"), count(&events, "journal_reset")), (6, 0, 0));
}

/// Asserts that the bridge, whose state was damaged while it was dead, starts a new epoch and announces it.
async fn state_is_lost_by(spoil: impl Fn(&World)) {
    let mut world = World::new(Setup::default()).await;
    load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    world.bridge().process().kill().unwrap();
    spoil(&world);
    let mark = world.recorder.mark();
    world.bridge().restart();
    world.recorder.server_event_after(mark, "home", "snapshot_done").await;
    wait_for_newcomer(&world).await;
    let epochs = world.recorder.assert_gap_free_epochs("home");
    let [_, again] = &epochs[..] else { panic!("there should be two epochs: {epochs:#?}") };
    assert_eq!(again[0]["event_type"], "journal_reset", "the first word of the new epoch");
    assert_eq!((count(again, "added"), count(again, "removed"), count(again, "journal_reset")), (6, 0, 1));
    let snapshots = again.iter().filter(|event| event["cause"] == "snapshot" && event["event_type"] == "added");
    assert_eq!(snapshots.count(), 5, "what was there is known to have been there");
    assert!(world.bridge().log().contains("the state is lost"), "the loss is not logged");
    // A further restart announces nothing again.
    world.bridge().stop().await;
    let mark = world.recorder.mark();
    world.bridge().restart();
    world.home.act(kinds_anchor(again), "d.erase", &[]).await.unwrap();
    world.recorder.event_after(mark, "home", "removed", kinds_anchor(again)).await;
    assert_eq!(world.recorder.assert_gap_free_epochs("home").len(), 2);
}

/// Returns the hash of any torrent with an event.
fn kinds_anchor(events: &[Value]) -> dtorrent_peers::InfoHash {
    events.iter().find_map(|event| event["hash"].as_str()).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_corrupt_state_is_renamed_and_starts_a_new_epoch() {
    if !can_run() {
        return;
    }
    state_is_lost_by(|world| {
        // The write-ahead log is checkpointed into the database, then one bit of each page is flipped.
        let connection = rusqlite::Connection::open(database(world)).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(connection);
        let file = File::options().read(true).write(true).open(database(world)).unwrap();
        for page in 1..file.metadata().unwrap().len() / 4096 {
            let mut byte = [0];
            file.read_exact_at(&mut byte, page * 4096).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], page * 4096).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_empty_state_is_renamed_and_starts_a_new_epoch() {
    if !can_run() {
        return;
    }
    state_is_lost_by(|world| {
        fs::remove_file(change_log(world)).unwrap();
        File::create(database(world)).unwrap();
        assert_eq!(moved_aside(world), 0);
    })
    .await;
}

#[tokio::test]
async fn a_deleted_state_is_detected_and_starts_a_new_epoch() {
    if !can_run() {
        return;
    }
    state_is_lost_by(|world| {
        for file in [database(world), change_log(world)] {
            fs::remove_file(file).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_flipped_bit_in_the_write_ahead_log_is_detected_and_starts_a_new_epoch() {
    if !can_run() {
        return;
    }
    state_is_lost_by(|world| {
        let log = File::options().read(true).write(true).open(change_log(world)).unwrap();
        let middle = log.metadata().unwrap().len() / 2;
        let mut byte = [0];
        log.read_exact_at(&mut byte, middle).unwrap();
        log.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_lost_data_directory_is_detected_by_the_retained_messages() {
    if !can_run() {
        return;
    }
    for version in ["5", "3.1.1"] {
        let setup = Setup { sink: format!("version = \"{version}\""), ..Setup::default() };
        let mut world = World::new(setup).await;
        let hashes = load_many(&world.home, 0, 5).await;
        world.start_bridge().await;
        let state_of = |hash| format!("dtorrent/home/torrent/{hash}/state");
        world
            .recorder
            .wait_for("the last state", |all| {
                hashes.iter().all(|hash| all.iter().any(|message| message.topic == state_of(*hash))).then_some(())
            })
            .await;
        assert_eq!(count(&world.recorder.events("home"), "journal_reset"), 0, "a first start is no loss");
        world.bridge().process().kill().unwrap();
        fs::remove_dir_all(world.data_dir()).unwrap();
        world.home.act(hashes[0], "d.erase", &[]).await.unwrap();
        let mark = world.recorder.mark();
        world.bridge().restart();
        world.recorder.server_event_after(mark, "home", "journal_reset").await;
        world.recorder.server_event_after(mark, "home", "snapshot_done").await;
        // States of removed torrents are cleared, the others stay.
        let is_cleared = |all: &[Message]| {
            all[mark..]
                .iter()
                .any(|message| message.topic == state_of(hashes[0]) && message.payload.is_empty())
                .then_some(())
        };
        world.recorder.wait_for("the clearing", is_cleared).await;
        let emptied = world.recorder.all()[mark..].iter().filter(|message| message.payload.is_empty()).count();
        assert_eq!(emptied, 1, "only what is gone");
        wait_for_newcomer(&world).await;
        let epochs = world.recorder.assert_gap_free_epochs("home");
        assert_eq!(epochs.len(), 2);
        let is_snapshot = |event: &&Value| event["event_type"] == "added" && event["cause"] == "snapshot";
        assert_eq!(epochs[1].iter().filter(is_snapshot).count(), 4);
        assert_eq!(count(&epochs[1], "journal_reset"), 1);
        // A further restart announces nothing again.
        world.bridge().stop().await;
        world.bridge().restart();
        world.recorder.wait_for_last("dtorrent/bridge/main/status", "online").await;
        assert_eq!(count(&world.recorder.events("home"), "journal_reset"), 1);
    }
}

#[tokio::test]
async fn a_lost_data_directory_is_detected_although_the_broker_was_unreachable_for_several_runs() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    let hashes = load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    let state_of = |hash| format!("dtorrent/home/torrent/{hash}/state");
    world
        .recorder
        .wait_for("the last state", |all| {
            hashes.iter().all(|hash| all.iter().any(|message| message.topic == state_of(*hash))).then_some(())
        })
        .await;
    world.bridge().process().kill().unwrap();
    proxy.refuse();
    fs::remove_dir_all(world.data_dir()).unwrap();
    world.home.act(hashes[0], "d.erase", &[]).await.unwrap();
    let mark = world.recorder.mark();
    for run in 1..=2 {
        let tried = world.bridge().count_in_log("connection failed, retrying");
        world.bridge().restart();
        world.database().until("what is there is written down", |database| database.last_seq("home") >= 4).await;
        world.bridge().wait_for_log_again(tried, "connection failed, retrying").await;
        let before = world.database().last_seq("home");
        world.home.load(&Content::file("run", 1_000, 100 + run).torrent, false).await.unwrap();
        world.database().until("polling continues", |database| database.last_seq("home") > before).await;
        world.bridge().process().kill().unwrap();
    }
    world.bridge().restart();
    proxy.admit();
    world.recorder.server_event_after(mark, "home", "journal_reset").await;
    let is_cleared = |all: &[Message]| {
        let of_gone = |message: &&Message| message.topic == state_of(hashes[0]) && message.payload.is_empty();
        all[mark..].iter().find(of_gone).map(|_| ())
    };
    world.recorder.wait_for("the clearing", is_cleared).await;
    wait_for_newcomer(&world).await;
    let emptied = world.recorder.all()[mark..].iter().filter(|message| message.payload.is_empty()).count();
    assert_eq!(emptied, 1, "only what is gone");
    // A further restart announces nothing again.
    world.bridge().stop().await;
    world.bridge().restart();
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "online").await;
    let epochs = world.recorder.assert_gap_free_epochs("home");
    assert_eq!(epochs.len(), 2);
    assert_eq!((count(&epochs[0], "journal_reset"), count(&epochs[1], "journal_reset")), (0, 1));
}

#[tokio::test]
async fn a_renamed_broker_is_cleared_of_the_states_of_removed_torrents() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hashes = load_many(&world.home, 0, 3).await;
    world.start_bridge().await;
    world.bridge().stop().await;
    world.home.act(hashes[0], "d.erase", &[]).await.unwrap();
    let mark = world.recorder.mark();
    let config = world.data_dir().with_file_name("dtorrent.toml");
    let renamed = fs::read_to_string(&config).unwrap().replace("[brokers.b]", "[brokers.renamed]");
    fs::write(&config, renamed).unwrap();
    world.bridge().restart();
    let topic = format!("dtorrent/home/torrent/{}/state", hashes[0]);
    let is_cleared = |all: &[Message]| {
        all[mark..].iter().any(|message| message.topic == topic && message.payload.is_empty()).then_some(())
    };
    world.recorder.wait_for("the clearing", is_cleared).await;
    assert_eq!(count(&world.recorder.events("home"), "journal_reset"), 0, "the state is all there");
}

#[tokio::test]
async fn a_state_of_the_first_version_is_migrated() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    world.bridge().stop().await;
    // Format 1 had no commit counter, no projection state, no further origins of a command, and of sinks only the cursors.
    // Its tables and columns had other names.
    let connection = rusqlite::Connection::open(database(&world)).unwrap();
    let first_version = "
        DROP TABLE projections;
        DROP TABLE waiters;
        DROP TABLE sinks;
        ALTER TABLE servers DROP COLUMN journal_reset;
        DROP INDEX unfinished_commands;
        ALTER TABLE commands DROP COLUMN sees_secrets; ALTER TABLE commands DROP COLUMN begun;
        ALTER TABLE commands DROP COLUMN crashes; ALTER TABLE commands DROP COLUMN is_running; ALTER TABLE commands DROP COLUMN digest;
        ALTER TABLE servers RENAME COLUMN has_commits TO is_used;
        ALTER TABLE snapshot RENAME COLUMN diff_state TO memory;
        ALTER TABLE snapshot RENAME TO told;
        ALTER TABLE retained_topics RENAME COLUMN topic TO name;
        ALTER TABLE retained_topics RENAME TO retained;
        CREATE INDEX open_commands ON commands (number) WHERE result IS NULL;";
    connection.execute_batch(first_version).unwrap();
    connection.execute("DELETE FROM meta WHERE key = 'commits'", []).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    File::create(world.data_dir().join("dtorrent.used")).unwrap();
    world.bridge().restart();
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added"), count(&events, "journal_reset")), (6, 0));
    assert_eq!(moved_aside(&world), 0);
}

#[tokio::test]
async fn a_state_of_a_newer_version_is_refused_and_left_alone() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    world.bridge().stop().await;
    let connection = rusqlite::Connection::open(database(&world)).unwrap();
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    let before = fs::read(database(&world)).unwrap();
    world.bridge().restart();
    let status = world.bridge().process().wait(TIMEOUT).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(world.bridge().log().contains("written by a newer dtorrent"), "it does not say why");
    assert!(before == fs::read(database(&world)).unwrap(), "the file was touched");
    assert_eq!(moved_aside(&world), 0);
    // The newer version continues where it stopped.
    let connection = rusqlite::Connection::open(database(&world)).unwrap();
    connection.pragma_update(None, "user_version", version).unwrap();
    drop(connection);
    world.bridge().restart();
    wait_for_newcomer(&world).await;
    assert_eq!(count(&world.recorder.assert_gap_free("home"), "journal_reset"), 0);
}

#[tokio::test]
async fn a_second_bridge_on_the_same_data_directory_is_refused_and_the_first_continues() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let config = world.folder.join("second").join("dtorrent.toml");
    fs::create_dir(config.parent().unwrap()).unwrap();
    fs::copy(world.folder.join("dtorrent.toml"), &config).unwrap();
    let mut second = Bridge::start(&config);
    let status = second.process().wait(TIMEOUT).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(second.log().contains("another bridge uses the data directory"), "it does not say why:\n{}", second.log());
    wait_for_newcomer(&world).await;
    world.recorder.assert_gap_free("home");
    let late = Recorder::listen(world.broker.port).await;
    late.wait_for_last("dtorrent/bridge/main/status", "online").await;
    let printed = world.recorder.all().into_iter().filter(|message| message.topic == "dtorrent/bridge/main/status");
    assert_eq!(printed.map(|message| message.text()).collect::<Vec<_>>(), ["online"], "the first was disturbed");
    world.bridge().stop().await;
}

#[tokio::test]
async fn on_a_full_disk_polling_continues_and_events_are_emitted_once_there_is_space() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let Some(disk) = SmallDisk::mount(&world.data_dir()) else { return };
    let hashes = load_many(&world.home, 0, 30).await;
    world.start_bridge().await;
    disk.fill();
    // Free pages of the database may still hold a few entries.
    let mut number = 0;
    while !world.bridge().log().contains("store full, events held back") {
        number += 1;
        label_all(&world.home, &format!("full{number}")).await;
        assert!(world.bridge().process().exit_status().unwrap().is_none(), "it has ended:\n{}", world.bridge().log());
        assert!(number < 5_000, "the disk does not get full");
    }
    // A command is pending, and torrents at the client keep changing.
    let topic = format!("dtorrent/home/torrent/{}/command/priority", hashes[0]);
    let body = r#"{"priority": 3, "id": "on a full disk"}"#;
    world.recorder.send(Command::new(&topic, body)).await;
    world.home.act(hashes[1], "d.erase", &[]).await.unwrap();
    let newcomer = world.home.load(&Content::file("y", 1_000, 99).torrent, false).await.unwrap();
    label_all(&world.home, "last").await;
    world.bridge().wait_for_log("disk full, command waits").await;
    assert!(
        world.recorder.events("home").iter().all(|event| event["event_type"] != "removed"),
        "published and not written"
    );
    disk.free();
    world.recorder.event("home", "added", newcomer).await;
    world.recorder.event("home", "removed", hashes[1]).await;
    let result = world.recorder.result("on a full disk").await;
    assert_eq!(result["status"], "ok", "{result}");
    let state = format!("dtorrent/home/torrent/{}/state", hashes[2]);
    let is_last = |all: &[Message]| {
        all.iter().rev().find(|message| message.topic == state).filter(|m| m.json()["label"] == "last").map(|_| ())
    };
    world.recorder.wait_for("the last label", is_last).await;
    world.bridge().wait_for_log("store has room again").await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added"), count(&events, "removed"), count(&events, "journal_reset")), (31, 1, 0));
    assert!(world.bridge().process().exit_status().unwrap().is_none());
    world.bridge().stop().await;
}

#[tokio::test]
async fn a_full_disk_at_any_step_of_a_command_or_a_dead_letter_loses_neither() {
    if !can_run() {
        return;
    }
    let mut broker = super::patient_broker();
    broker.users = vec![("bridge".to_owned(), "p".to_owned())];
    broker.lines.push("allow_anonymous true".to_owned());
    broker.acl = Some("topic readwrite #\nuser bridge\ntopic readwrite dtorrent/bridge/#\ntopic readwrite dtorrent/home/result\ntopic readwrite dtorrent/home/command/#\n".to_owned());
    let sink = "username = \"bridge\"\npassword = \"p\"".to_owned();
    let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
    let Some(disk) = SmallDisk::mount(&world.data_dir()) else { return };
    let hashes = load_many(&world.home, 0, 10).await;
    world.launch_bridge();
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "online").await;
    for round in 0..4 {
        // Commands, some of them refused, and events that the broker rejects; then the disk fills up.
        let mut ids = Vec::new();
        for number in 0..12 {
            let id = format!("{round}-{number}");
            let mut body = json!({"hashes": [hashes[number % 10]], "label": id, "id": id});
            if number % 4 == 3 {
                body["label"] = json!(7);
            }
            world.recorder.send(Command::new("dtorrent/home/command/label", body.to_string())).await;
            ids.push(id);
        }
        if round % 2 == 0 {
            world.recorder.result(&ids[0]).await;
        }
        disk.fill();
        let sign = format!("full-{round}");
        let body = json!({"hashes": [hashes[0]], "label": sign, "id": sign}).to_string();
        let waited = world.bridge().count_in_log("disk full, command waits");
        world.recorder.send(Command::new("dtorrent/home/command/label", body)).await;
        world.bridge().wait_for_log_again(waited, "disk full, command waits").await;
        disk.free();
        for id in ids.iter().chain([&sign]) {
            let result = world.recorder.result(id).await;
            let wanted = if result["error"].is_null() { "ok" } else { "bad_request" };
            assert!(result["status"] == wanted || result["error"]["code"] == wanted, "{result}");
            assert_eq!(world.recorder.results(id).len(), 1, "{result}");
        }
    }
    world.bridge().stop().await;
    let dead_letters = world.database().dead_letters("b");
    let last = world.database().last_seq("home");
    assert_eq!((dead_letters.len() as u64, world.database().cursor("b", "home")), (last, last), "all were refused");
}

#[tokio::test]
async fn a_read_only_data_directory_is_reported_at_the_start_and_used_once_writable() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let Some(disk) = SmallDisk::mount(&world.data_dir()) else { return };
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    world.home.load(&Content::file("y", 1_000, 2).torrent, false).await.unwrap();
    world.start_bridge().await;
    world.bridge().stop().await;
    // (A file system with a file open for writing cannot be made read-only.)
    disk.remount("remount,ro");
    world.bridge().restart();
    let status = world.bridge().process().wait(TIMEOUT).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(world.bridge().log().to_lowercase().contains("read-only"), "it does not say why");
    disk.remount("remount,rw");
    world.bridge().restart();
    world.home.act(hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", hash).await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(kinds_of(&events, hash), ["added", "removed"]);
    world.bridge().stop().await;
}

#[tokio::test]
async fn a_start_on_a_full_disk_waits_for_space_and_loses_nothing() {
    if !can_run() {
        return;
    }
    for is_killed in [true, false] {
        let mut world = World::new(Setup::default()).await;
        let Some(disk) = SmallDisk::mount(&world.data_dir()) else { return };
        load_many(&world.home, 0, 5).await;
        world.start_bridge().await;
        let written = world.database().last_seq("home");
        match is_killed {
            true => world.bridge().process().kill().unwrap(),
            false => world.bridge().stop().await,
        }
        disk.fill();
        world.bridge().restart();
        world.bridge().wait_for_log("store full, retrying").await;
        let hash = world.home.load(&Content::file("meanwhile", 1_000, 77).torrent, false).await.unwrap();
        disk.free();
        let added = world.recorder.event("home", "added", hash).await;
        assert_eq!((&added["seq"], &added["cause"]), (&json!(written + 1), &json!("recovered")), "{added}");
        let events = world.recorder.assert_gap_free("home");
        assert_eq!((count(&events, "added"), count(&events, "journal_reset")), (6, 0));
        world.bridge().stop().await;
    }
}

#[tokio::test]
async fn on_a_disk_that_turns_read_only_polling_continues_and_events_are_emitted_once_writable() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let Some(disk) = FailingDisk::mount(&world.folder.join("disk"), &world.data_dir()) else { return };
    let hashes = load_many(&world.home, 0, 10).await;
    world.start_bridge().await;
    let mut newcomers = Vec::new();
    for (round, is_killed) in [false, true].into_iter().enumerate() {
        let first = world.home.load(&Content::file("first", 1_000, 100 + round as u64).torrent, false).await.unwrap();
        world.recorder.event("home", "added", first).await;
        let (mark, written) = (world.recorder.mark(), world.database().last_seq("home"));
        disk.fail();
        let held = world.bridge().count_in_log("store full, events held back");
        let second = world.home.load(&Content::file("second", 1_000, 200 + round as u64).torrent, false).await.unwrap();
        world.home.act(hashes[round], "d.erase", &[]).await.unwrap();
        let (id, label) = (format!("held {round}"), format!("last{round}"));
        label_all(&world.home, &label).await;
        let topic = format!("dtorrent/home/torrent/{}/command/priority", hashes[5]);
        let waited = world.bridge().count_in_log("disk full, command waits");
        world.recorder.send(Command::new(&topic, json!({"priority": 3 - round, "id": id}).to_string())).await;
        world.bridge().wait_for_log_again(waited, "disk full, command waits").await;
        // The log throttle reports the first and the tenth failed poll, so polling continues.
        world.bridge().wait_for_log_again(held + 1, "store full, events held back").await;
        assert!(world.bridge().log().contains("readonly") || world.bridge().log().contains("disk I/O error"));
        let seen = world.recorder.since(mark).into_iter().map(|message| message.topic);
        let seen: Vec<_> = seen.filter(|topic| topic.contains("/event/") || topic.ends_with("/result")).collect();
        assert!(seen.is_empty(), "published and not written: {seen:?}");
        assert_eq!(world.database().last_seq("home"), written);
        // The file system cannot be made writable while files on it are open.
        if is_killed {
            world.bridge().process().kill().unwrap();
        } else {
            world.bridge().stop().await;
        }
        disk.repair();
        world.bridge().restart();
        let added = world.recorder.event("home", "added", second).await;
        assert_eq!(added["cause"], "recovered", "{added}");
        world.recorder.event("home", "removed", hashes[round]).await;
        let result = world.recorder.result(&id).await;
        assert_eq!(result["status"], "ok", "{result}");
        let state = format!("dtorrent/home/torrent/{}/state", hashes[9]);
        let is_last = |all: &[Message]| {
            all.iter().rev().find(|m| m.topic == state).filter(|m| m.json()["label"] == label.as_str()).map(|_| ())
        };
        world.recorder.wait_for("the last label", is_last).await;
        assert_eq!(world.recorder.results(&id).len(), 1, "one command, one result");
        newcomers.extend([first, second]);
    }
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added"), count(&events, "removed"), count(&events, "journal_reset")), (14, 2, 0));
    assert!(newcomers.iter().all(|hash| kinds_of(&events, *hash)[0] == "added"));
    world.bridge().stop().await;
}
