//! The file: crashes, damage, full disks, older and newer formats.

use std::path::Path;

use bytes::Bytes;

use super::super::conformance::*;
use super::*;
use crate::model::*;
use crate::port::*;

fn open(folder: &Path) -> (SqliteStore, Recovery) {
    SqliteStore::open(folder, Options::default(), HandClock::new()).unwrap()
}

/// Nothing was found but a directory that was in use when the test began.
fn after_a_kill() -> Recovery {
    Recovery { last_alive: Some(Timestamp::from_millis(START)), ..Recovery::default() }
}

#[tokio::test]
async fn a_restart_finds_everything_that_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let (store, recovery) = open(folder.path());
    assert_eq!(recovery, Recovery { is_new: true, ..Recovery::default() });
    let committed = store.commit(added(&home, 1)).await.unwrap();
    assert_eq!(committed.last_seq, Seq(1));
    let entries = store.read_after(&home, Seq(0), 10).await.unwrap();
    store.save_progress(&sink("mqtt"), [(home.clone(), at(1, 1))].into()).await.unwrap();
    let before = store.load(&home).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.load(&home).await, Err(StoreError::Io(_))));

    let (store, recovery) = open(folder.path());
    assert_eq!(
        recovery,
        Recovery { was_clean: true, last_alive: Some(Timestamp::from_millis(START)), ..Recovery::default() }
    );
    let after = store.load(&home).await.unwrap();
    assert_eq!((after.snapshot, after.last_seq, after.epoch), (before.snapshot, before.last_seq, before.epoch));
    assert_eq!(store.read_after(&home, Seq(0), 10).await.unwrap(), entries);
    assert_eq!(store.load_sink(&sink("mqtt")).await.unwrap().progress[&home], at(1, 1));
    assert_eq!(store.load(&server("attic")).await.unwrap().snapshot.len(), 0);
}

#[tokio::test]
async fn a_revision_is_not_assigned_again_after_an_unclean_stop() {
    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let mut last = Rev(0);
    for is_clean in [false, true, false, true] {
        let (store, _) = open(folder.path());
        for downloaded in 0..3 {
            let snapshot = store.commit(updated(&home, 1, downloaded)).await.unwrap().snapshot;
            let rev = snapshot[&hash(1)].as_ref().unwrap().rev;
            assert!(rev > last, "{rev:?} after {last:?}");
            last = rev;
        }
        if is_clean {
            store.close().await.unwrap();
        }
    }
    assert_eq!(last, Rev(20_006)); // after each unclean stop on goes the next block
}

#[tokio::test]
async fn cursors_and_results_of_removed_sinks_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let (home, here, gone) = (server("home"), sink("here"), sink("gone"));
    store.commit(added(&home, 1)).await.unwrap();
    let entry = &store.read_after(&home, Seq(0), 1).await.unwrap()[0];
    for sink in [&here, &gone] {
        store.save_progress(sink, [(home.clone(), at(1, 1))].into()).await.unwrap();
        store.set_strict_ordering(sink).await.unwrap();
        store.register_topics(sink, vec!["topic".to_owned()]).await.unwrap();
        store.add_dead_letter(sink, entry, "413").await.unwrap();
        store.add_dead_letter(sink, entry, "again").await.unwrap();
        let command = command(sink.as_str(), sink.as_str(), entry.time);
        record(&store, command.clone(), None).await;
        store
            .finish_command(Some(&home), &command.id, LoggedResult { status: OutcomeStatus::Ok, body: Bytes::new() })
            .await
            .unwrap();
    }
    let other = server("other");
    store.save_progress(&here, [(other.clone(), at(1, 1))].into()).await.unwrap();
    store.declare_sinks(&[(here.clone(), vec![home.clone()])].into()).await.unwrap();
    assert!(!store.load_sink(&here).await.unwrap().progress.contains_key(&other), "a server that it no longer gets");
    for (sink, held) in [(&here, 1), (&gone, 0)] {
        let state = store.load_sink(sink).await.unwrap();
        assert_eq!((state.progress.len(), state.has_strict_ordering), (held, held == 1));
        assert_eq!(store.unsent_results(sink, 0, 9).await.unwrap().len(), held);
        assert_eq!(Vec::from_iter(state.retained_topics), ["topic"]);
        let queue = store.dead_letters(sink).await.unwrap();
        assert_eq!(queue.len(), 1);
        assert_eq!((&queue[0].reason, &queue[0].body), (&"413".to_owned(), &entry.body));
    }
}

#[tokio::test]
async fn dead_letters_can_be_read_and_dropped_while_a_store_is_open_and_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let read = || SqliteStore::read_dead_letters(folder.path()).unwrap();
    assert_eq!(read(), [], "there is not even a file");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "and none was made");
    let (store, _) = open(folder.path());
    let home = server("home");
    for number in [1, 2] {
        store.commit(added(&home, number)).await.unwrap();
    }
    let entries = store.read_after(&home, Seq(0), 9).await.unwrap();
    let line = sink("hook").line(&home);
    for entry in &entries {
        store.add_dead_letter(&line, entry, "422").await.unwrap();
    }
    let expected: Vec<_> = store
        .dead_letters(&line)
        .await
        .unwrap()
        .into_iter()
        .map(|dead_letter| ("hook.home".to_owned(), dead_letter))
        .collect();
    assert_eq!((read(), expected.len()), (expected.clone(), 2));
    store.drop_dead_letter(&line, &entries[0].id.to_string()).await.unwrap();
    assert_eq!(read(), expected[1..]);
    store.close().await.unwrap();
    drop(store);
    assert_eq!(read(), expected[1..]);
    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost, "reading leaves no trace: {recovery:?}");
    store.close().await.unwrap();
    drop(store);
    let last = [("hook.home".to_owned(), entries[1].id.to_string()), ("hook.home".to_owned(), "none".to_owned())];
    assert_eq!(SqliteStore::drop_dead_letters(folder.path(), &last).unwrap(), 1);
    assert_eq!(read(), []);
    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost, "nor does dropping one: {recovery:?}");
    assert_eq!((seqs(&store, &home).await, store.dead_letters(&line).await.unwrap()), (vec![1, 2], Vec::new()));
}

#[test]
fn a_directory_is_used_by_one_store_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = open(folder.path());
    let Err(StoreError::Io(error)) = SqliteStore::open(folder.path(), Options::default(), HandClock::new()) else {
        panic!("two stores in one folder");
    };
    let expected = format!("another bridge uses the data directory {}: ", folder.path().display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    drop(first);
    open(folder.path());
}

#[tokio::test]
async fn directory_and_files_are_for_their_owner_only_also_where_they_were_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let modes = |folder: &Path| {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut modes: Vec<(String, u32)> =
            files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), mode(&path))).collect();
        modes.push((".".to_owned(), mode(folder)));
        modes.retain(|(name, _)| name != "not-ours");
        modes
    };
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let (missing, existing) = (parent.path().join("a/b"), parent.path().join("c"));
    std::fs::create_dir(&existing).unwrap();
    set(&existing, 0o755);
    std::fs::write(existing.join("not-ours"), "").unwrap();
    set(&existing.join("not-ours"), 0o644);
    for folder in [&missing, &existing] {
        let (store, _) = open(folder);
        store.commit(added(&server("home"), 1)).await.unwrap();
        let found = modes(folder);
        assert!(found.len() >= 5, "{found:?}");
        let is_private = |(name, mode): &(String, u32)| *mode == if name == "." { 0o700 } else { 0o600 };
        assert!(found.iter().all(is_private), "while it is in use: {found:?}");
        store.close().await.unwrap();
        drop(store);
        assert!(modes(folder).iter().all(is_private), "{:?}", modes(folder));

        // As an earlier version has left it.
        for (name, _) in modes(folder) {
            set(&folder.join(name), 0o777);
        }
        let (_store, recovery) = open(folder);
        assert!(recovery.was_clean, "{recovery:?}");
        assert!(modes(folder).iter().all(is_private), "{:?}", modes(folder));
    }
    let kept = std::fs::metadata(existing.join("not-ours")).unwrap().permissions().mode() & 0o777;
    assert_eq!(kept, 0o644, "a file of others is left alone");
}

/// A directory whose store held entries, left as a crash leaves it; its epoch.
async fn used_folder(is_clean: bool) -> (tempfile::TempDir, Epoch) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let home = server("home");
    for number in 1..=100 {
        store.commit(added(&home, number)).await.unwrap();
    }
    let epoch = store.load(&home).await.unwrap().epoch;
    if is_clean {
        store.close().await.unwrap();
    }
    // As after a crash: the file has to be checked.
    drop(store);
    drop(std::fs::remove_file(folder.path().join("dtorrent.clean")));
    (folder, epoch)
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_moved_aside_and_reported() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("gone", |file| std::fs::remove_file(file).unwrap()),
        ("empty", |file| std::fs::write(file, "").unwrap()),
        ("text", |file| std::fs::write(file, "no database\n".repeat(1_000)).unwrap()),
        ("header", |file| change(file, |bytes| bytes[..16].fill(b'x'))),
        ("cut in half", |file| change(file, |bytes| bytes.truncate(bytes.len() / 2))),
        ("cut within a page", |file| change(file, |bytes| bytes.truncate(bytes.len() - 1_000))),
        ("a page of zeros", |file| change(file, |bytes| bytes[4_096 * 3..4_096 * 4].fill(0))),
        ("another program's", |file| {
            std::fs::remove_file(file).unwrap();
            let other = rusqlite::Connection::open(file).unwrap();
            other.execute_batch("CREATE TABLE theirs (a)").unwrap();
        }),
    ];
    for (name, damage) in damages {
        let (folder, epoch) = used_folder(true).await;
        let file = folder.path().join("dtorrent.sqlite3");
        damage(&file);
        let found = std::fs::read(&file).ok();
        let (store, recovery) = open(folder.path());
        assert!(recovery.lost && recovery.is_new, "{name}: {recovery:?}");
        assert!(recovery.found.is_some(), "{name}");
        if name == "gone" || name == "empty" {
            assert!(recovery.found.as_ref().unwrap().contains(name), "{recovery:?}");
        }
        let kept = recovery.moved_to.as_ref().map(|path| std::fs::read(path).unwrap());
        assert_eq!(kept.is_some(), found.is_some(), "{name}: {recovery:?}");
        if name != "another program's" {
            assert_eq!(kept, found, "{name}: the file that was found stays as it was");
        }
        let loaded = store.load(&server("home")).await.unwrap();
        assert!(loaded.last_seq == Seq(0) && loaded.epoch != epoch, "{name}");
        store.commit(added(&server("home"), 1)).await.unwrap();
        drop(store);
        let (_, recovery) = open(folder.path());
        assert!(recovery.found.is_none() && !recovery.is_new, "{name}: found once");
        assert!(recovery.lost, "{name}: a server that is added later has lost its state all the same");
    }
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_loss_is_reported_until_something_is_committed() {
    let (folder, _) = used_folder(true).await;
    std::fs::remove_file(folder.path().join("dtorrent.sqlite3")).unwrap();
    for _ in 0..2 {
        let (store, recovery) = open(folder.path());
        assert!(recovery.lost && recovery.is_new, "{recovery:?}");
        assert!(store.load(&server("home")).await.unwrap().snapshot.is_empty());
    }
}

#[tokio::test]
async fn a_flipped_bit_is_found_or_harmless_but_never_a_panic() {
    let (folder, epoch) = used_folder(true).await;
    let file = folder.path().join("dtorrent.sqlite3");
    let whole = std::fs::read(&file).unwrap();
    for step in 0..40 {
        let mut bytes = whole.clone();
        let position = bytes.len() * step / 40 + step;
        bytes[position] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();
        let other = tempfile::tempdir().unwrap();
        for name in ["dtorrent.sqlite3", "dtorrent.used"] {
            std::fs::copy(folder.path().join(name), other.path().join(name)).unwrap();
        }
        let (store, recovery) = match SqliteStore::open(other.path(), Options::default(), HandClock::new()) {
            Ok(opened) => opened,
            Err(StoreError::Corrupt { .. }) => continue, // the bit is in the format's number
            Err(error) => panic!("byte {position}: {error:?}"),
        };
        let loaded = match store.load(&server("home")).await {
            Ok(loaded) => loaded,
            Err(StoreError::Corrupt { .. }) => continue,
            Err(error) => panic!("byte {position}: {error:?}"),
        };
        assert_eq!(recovery.lost, recovery.moved_to.is_some());
        assert!(recovery.lost == (loaded.epoch != epoch) || !recovery.lost, "byte {position}: {recovery:?}");
    }
}

#[tokio::test]
async fn a_torn_change_log_loses_its_torn_end_only() {
    let (folder, epoch) = used_folder(false).await;
    let home = server("home");
    let mut before = 100;
    for cut in [1, 3_000, 30_000, 300_000] {
        // A power cut: what is torn was never synced, so it was not counted either.
        let other = torn_copy(folder.path(), cut);
        std::fs::write(other.path().join("dtorrent.used"), "").unwrap();
        let (store, recovery) = open(other.path());
        assert_eq!(Recovery { last_alive: None, ..recovery }, Recovery::default(), "cut {cut}");
        let loaded = store.load(&home).await.unwrap();
        let kept = seqs(&store, &home).await;
        assert_eq!(kept, (1..=loaded.last_seq.0).collect::<Vec<_>>());
        assert_eq!((loaded.snapshot.len() as u64, loaded.epoch), (loaded.last_seq.0, epoch));
        assert!(loaded.last_seq.0 < before || cut == 3_000, "cut {cut}: {:?}", loaded.last_seq);
        before = loaded.last_seq.0;
    }
}

#[tokio::test]
async fn a_missing_synced_commit_is_noticed_and_ends_the_epoch() {
    let (folder, epoch) = used_folder(false).await;
    for cut in [1, 30_000] {
        let other = torn_copy(folder.path(), cut);
        let (store, recovery) = open(other.path());
        let found = recovery.found.unwrap();
        assert!(recovery.lost && found.contains("the newest changes are gone"), "{found}");
        assert!(recovery.moved_to.is_some());
        assert_ne!(store.load(&server("home")).await.unwrap().epoch, epoch, "else numbers would be given again");
    }
    // A count of another epoch, or one that cannot be read, is ignored.
    for note in ["4294967295 00000000000000009999", "no number", "1 2", ""] {
        let other = torn_copy(folder.path(), 0);
        std::fs::write(other.path().join("dtorrent.used"), note).unwrap();
        let (store, recovery) = open(other.path());
        assert_eq!(recovery.found, None, "{note:?}");
        assert_eq!(store.load(&server("home")).await.unwrap().epoch, epoch);
    }
}

/// The directory without the last `cut` bytes of its change log.
fn torn_copy(folder: &Path, cut: usize) -> tempfile::TempDir {
    let other = tempfile::tempdir().unwrap();
    for name in ["dtorrent.sqlite3", "dtorrent.sqlite3-wal", "dtorrent.used"] {
        std::fs::copy(folder.join(name), other.path().join(name)).unwrap();
    }
    change(&other.path().join("dtorrent.sqlite3-wal"), |bytes| bytes.truncate(bytes.len() - cut));
    other
}

/// Drops what the steps behind the sixth have added.
const TO_FORMAT_6: &str = "
    DROP INDEX unfinished_commands;
    CREATE INDEX unfinished_commands ON commands (number) WHERE result IS NULL;
    ALTER TABLE commands DROP COLUMN sees_secrets;
    ALTER TABLE commands DROP COLUMN begun;
    ALTER TABLE commands DROP COLUMN crashes;
    ALTER TABLE commands DROP COLUMN is_running;
    ALTER TABLE commands DROP COLUMN digest;";

/// Gives tables and columns the names that they had before the sixth step.
fn to_format_5(connection: &rusqlite::Connection) {
    let renames = "
        ALTER TABLE servers RENAME COLUMN has_commits TO is_used;
        ALTER TABLE servers RENAME COLUMN journal_reset TO reset;
        ALTER TABLE snapshot RENAME COLUMN diff_state TO memory;
        ALTER TABLE snapshot RENAME TO told;
        ALTER TABLE retained_topics RENAME COLUMN topic TO name;
        ALTER TABLE retained_topics RENAME TO retained;
        ALTER TABLE sinks RENAME COLUMN retained_scan TO search;
        ALTER TABLE sinks RENAME COLUMN has_strict_ordering TO is_careful;
        ALTER TABLE projections RENAME COLUMN state TO memory;
        ALTER TABLE projections RENAME TO memories;
        ALTER TABLE waiters RENAME TO askers;
        DROP INDEX waiters_of_command;
        CREATE INDEX askers_of_command ON askers (server, id, number);
        DROP INDEX unfinished_commands;
        CREATE INDEX open_commands ON commands (number) WHERE result IS NULL;";
    connection.execute_batch(TO_FORMAT_6).unwrap();
    connection.execute_batch(renames).unwrap();
    connection.pragma_update(None, "user_version", 5).unwrap();
}

#[tokio::test]
async fn a_file_of_the_format_before_the_renames_is_migrated_with_everything_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let (home, mqtt) = (server("home"), sink("mqtt"));
    let (store, _) = open(folder.path());
    for number in 1..=3 {
        store.commit(added(&home, number)).await.unwrap();
    }
    let diff_state = DiffState { load: Some("4711".to_owned()), received_bytes: 5, ..DiffState::default() };
    let change = Some((torrent(&home, 1, 500), diff_state));
    store.commit(ChangeSet { changes: [(hash(1), change)].into(), ..change_set(&home, 1) }).await.unwrap();
    store.save_progress(&mqtt, [(home.clone(), at(2, 3))].into()).await.unwrap();
    store.register_topics(&mqtt, vec!["a/b".to_owned()]).await.unwrap();
    store.set_retained_scan(&mqtt, Some(RetainedScan { is_first_run: true })).await.unwrap();
    store.set_strict_ordering(&mqtt).await.unwrap();
    store.save_projection_state(&mqtt, "{}".to_owned()).await.unwrap();
    store.adopt_retained(&sink("bus"), Vec::new(), vec![home.clone()]).await.unwrap();
    let first = command("c1", "mqtt", Timestamp::from_millis(START));
    let again = LoggedCommand { reply: None, ..first.clone() };
    for command in [first.clone(), again] {
        record(&store, command, None).await;
    }
    let (before, sink_before) = (store.load(&home).await.unwrap(), store.load_sink(&mqtt).await.unwrap());
    let entries = store.read_after(&home, Seq(0), 9).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
    to_format_5(&connection);
    drop(connection);

    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost && !recovery.is_new, "{recovery:?}");
    let after = store.load(&home).await.unwrap();
    assert_eq!((after.epoch, after.last_seq, after.state), (before.epoch, before.last_seq, before.state));
    assert_eq!((&after.snapshot, after.needs_reset), (&before.snapshot, true));
    assert_eq!(after.snapshot[&hash(1)].diff_state.load.as_deref(), Some("4711"));
    assert_eq!(store.read_after(&home, Seq(0), 9).await.unwrap(), entries);
    assert_eq!(store.load_sink(&mqtt).await.unwrap(), sink_before);
    let of_before = LoggedCommand { digest: None, sees_secrets: false, ..first.clone() };
    assert_eq!(unfinished(&store).await, [of_before]);
    let done = LoggedResult { status: OutcomeStatus::Ok, body: Bytes::from_static(b"done") };
    store.finish_command(Some(&home), &first.id, done).await.unwrap();
    assert_eq!(store.unsent_results(&mqtt, 0, 9).await.unwrap().len(), 2, "the first sender and the second");
}

#[tokio::test]
async fn a_file_of_the_format_without_digests_keeps_its_commands_and_tells_new_ones_apart() {
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp::from_millis(START);
    let (store, _) = open(folder.path());
    record(&store, command("before", "mqtt", now), None).await;
    store.close().await.unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
    connection.execute_batch(TO_FORMAT_6).unwrap();
    connection.pragma_update(None, "user_version", 6).unwrap();
    drop(connection);

    let other = |id| LoggedCommand { digest: Some(CommandDigest([8; 32])), ..command(id, "mqtt", now) };
    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost, "{recovery:?}");
    assert_eq!(record(&store, command("before", "mqtt", now), None).await, Recorded::Running);
    assert_eq!(record(&store, command("after", "mqtt", now), None).await, Recorded::New);
    store.close().await.unwrap();
    drop(store);
    let (store, _) = open(folder.path());
    assert_eq!(record(&store, other("before"), None).await, Recorded::Running, "its digest is not known");
    assert_eq!(record(&store, other("after"), None).await, Recorded::IdTaken, "also after a restart");
}

#[tokio::test]
async fn a_file_of_the_first_format_is_migrated_with_everything_in_it() {
    let (folder, epoch) = used_folder(true).await;
    let connection = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
    to_format_5(&connection);
    connection.execute("DELETE FROM meta WHERE key = 'commits'", []).unwrap();
    let later = "DROP TABLE memories; DROP TABLE askers; DROP TABLE sinks; ALTER TABLE servers DROP COLUMN reset";
    connection.execute_batch(later).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    std::fs::write(folder.path().join("dtorrent.used"), "").unwrap();
    let home = server("home");
    for commits in [100, 101_u8] {
        let (store, recovery) = open(folder.path());
        assert_eq!((recovery.found, recovery.is_new), (None, false));
        let loaded = store.load(&home).await.unwrap();
        assert_eq!(
            (loaded.epoch, loaded.last_seq, loaded.snapshot.len()),
            (epoch, Seq(commits.into()), commits.into())
        );
        assert!(!loaded.needs_reset);
        store.commit(added(&home, commits + 1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let (folder, _) = used_folder(true).await;
    let file = folder.path().join("dtorrent.sqlite3");
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&file).unwrap();
    let Err(StoreError::Corrupt { reason }) = SqliteStore::open(folder.path(), Options::default(), HandClock::new())
    else {
        panic!("a file from the future was opened");
    };
    assert!(reason.contains("newer dtorrent (format 99"), "{reason}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_file_left_half_created_is_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let half = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
    half.pragma_update(None, "journal_mode", "WAL").unwrap();
    drop(half);
    let (_, recovery) = open(folder.path());
    assert_eq!(recovery, Recovery { is_new: true, ..Recovery::default() });
}

#[tokio::test]
async fn a_full_disk_refuses_commits_until_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let home = server("home");
    store.commit(added(&home, 1)).await.unwrap();
    let set_pages = async |count: &'static str| {
        let count = move |db: &mut db::Db| {
            Ok(db.connection.query_row(&format!("PRAGMA max_page_count = {count}"), [], |row| row.get::<_, i64>(0))?)
        };
        store.writer.ask(db::Mode::Read, count).await.unwrap();
    };
    set_pages("1").await; // the least that SQLite takes is what the file has
    let mut last = Seq(1);
    let refused = loop {
        match store.commit(added(&home, 1)).await {
            Ok(committed) => last = committed.last_seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
    let before = store.load(&home).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(store.commit(added(&home, 2)).await, Err(StoreError::Full { .. })));
    }
    let after = store.load(&home).await.unwrap();
    assert_eq!((&after.snapshot, after.last_seq), (&before.snapshot, last));

    set_pages("1000000").await;
    assert_eq!(store.commit(added(&home, 2)).await.unwrap().last_seq.0, last.0 + 1);
    assert_eq!(seqs(&store, &home).await, (1..=last.0 + 1).collect::<Vec<_>>());
}

/// A file system of its own and of this many bytes; `None` where we may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "{} is still mounted", self.0.path().display());
    }
}

#[tokio::test]
async fn a_disk_filled_by_others_refuses_every_write_until_there_is_space() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        eprintln!("skipped: no right to mount a small disk; another test uses SQLite's own limit");
        return;
    };
    let folder = disk.0.path().join("data");
    let ballast = disk.0.path().join("ballast");
    let (store, _) = open(&folder);
    let (home, mqtt) = (server("home"), sink("mqtt"));
    store.commit(added(&home, 1)).await.unwrap();
    for round in 0..3u64 {
        let before = store.load(&home).await.unwrap();
        assert!(std::fs::write(&ballast, vec![1; 5 << 20]).is_err(), "the disk has to be full");
        // What is left of the last page of the file system may still take something.
        let mut last = before.last_seq;
        let refused = loop {
            match store.commit(added(&home, 1)).await {
                Ok(committed) => last = committed.last_seq,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
        let saved = store.save_progress(&mqtt, [(home.clone(), at(1, 1))].into()).await;
        assert!(matches!(saved, Ok(()) | Err(StoreError::Full { .. })), "{saved:?}");
        let command = command(&"x".repeat(100), "mqtt", before.snapshot[&hash(1)].changed_at);
        let recorded = store.record_commands(vec![(command, None)]).await;
        assert!(recorded.is_err() || round > 0, "{recorded:?}");
        assert_eq!(seqs(&store, &home).await, (1..=last.0).collect::<Vec<_>>());

        std::fs::remove_file(&ballast).unwrap();
        assert_eq!(store.commit(added(&home, 1)).await.unwrap().last_seq.0, last.0 + 1);
    }
    drop(store);
    let (store, recovery) = open(&folder);
    assert_eq!(recovery, after_a_kill());
    let last = store.load(&home).await.unwrap().last_seq.0;
    assert_eq!(seqs(&store, &home).await, (1..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn commits_of_one_group_succeed_and_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { journal_bytes_max: 20_000, ..Options::default() };
    let (store, _) = SqliteStore::open(folder.path(), options, HandClock::new()).unwrap();
    let names: Vec<_> = (0..20).map(|number| server(&format!("s{number}"))).collect();
    let slow = names.iter().map(|name| (name.clone(), SinkProgress::default())).collect();
    store.save_progress(&sink("slow"), slow).await.unwrap();
    // While the thread is held, everything else waits and becomes one group.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let hold = store.writer.ask(db::Mode::Read, move |_| {
        held.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let commits = futures_util::future::join_all(names.iter().enumerate().map(|(number, name)| {
        let mut big = added(name, 1);
        if number % 2 == 1 {
            big.events = vec![big.events[0].clone(); 30]; // does not fit
        }
        store.commit(big)
    }));
    let let_go = async move { release.send(()).unwrap() };
    let (_, outcomes, ()) = tokio::join!(hold, commits, let_go);
    for (number, (name, outcome)) in names.iter().zip(outcomes).enumerate() {
        let fits = number % 2 == 0;
        assert_eq!(outcome.is_ok(), fits, "{number}: {outcome:?}");
        let loaded = store.load(name).await.unwrap();
        assert_eq!((loaded.snapshot.len(), loaded.last_seq.0), (usize::from(fits), u64::from(fits)));
    }
    assert_eq!(store.usage().await.unwrap().entries, 10);
}

#[tokio::test]
async fn every_call_fails_after_the_thread_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let fall = |_: &mut db::Db| -> Result<(), failure::Failure> { panic!("on purpose") };
    assert!(matches!(store.writer.ask(db::Mode::Read, fall).await, Err(StoreError::Io(_))));
    assert!(matches!(store.commit(added(&server("home"), 1)).await, Err(StoreError::Io(_))));
    assert!(matches!(store.usage().await, Err(StoreError::Io(_))));
}

const KILLED_FOLDER: &str = "DTORRENT_TEST_KILLED_FOLDER";

/// Does nothing, unless the test below runs it in a process of its own: commits until it is killed.
#[tokio::test]
async fn commits_until_killed() {
    use std::io::Write;

    let Some(folder) = std::env::var_os(KILLED_FOLDER) else { return };
    let (store, _) = open(Path::new(&folder));
    let home = server("home");
    for number in 0u64.. {
        let mut both = added(&home, (number % 50) as u8);
        both.events.push(new_event(Kind::Started, both.events[0].torrent.clone()));
        let synced = store.commit(both).await.unwrap();
        let lazy = store.commit(updated(&home, 77, number)).await.unwrap();
        let rev = lazy.snapshot[&hash(77)].as_ref().unwrap().rev;
        // Not println!, which the test harness may hold back.
        writeln!(std::io::stdout(), "committed {} {}", synced.last_seq.0, rev.0).unwrap();
    }
}

#[tokio::test]
async fn a_kill_loses_no_answered_commit_and_no_number_comes_again() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let (mut last_seq, mut last_rev) = (0, 0);
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::sqlite::tests::commits_until_killed", "--nocapture"])
            .env(KILLED_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        // Reads on after the kill: what was written before it still counts.
        for line in lines.map(Result::unwrap) {
            let Some((seq, rev)) = line.split_once("committed ").and_then(|(_, rest)| rest.split_once(' ')) else {
                continue;
            };
            let Ok(rev) = rev.parse::<u64>() else { break }; // cut by the kill
            let seq = seq.parse::<u64>().unwrap();
            assert!(seq > last_seq && rev > last_rev, "round {round}: {line} after {last_seq} {last_rev}");
            (last_seq, last_rev) = (seq, rev);
            count += 1;
            if count == 20 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(count >= 20, "the child ended by itself after {count}");

        let (store, recovery) = open(folder.path());
        assert_eq!(recovery, after_a_kill());
        let loaded = store.load(&home).await.unwrap();
        assert!(loaded.last_seq.0 >= last_seq, "{:?} after {last_seq}", loaded.last_seq);
        assert_eq!(seqs(&store, &home).await, (1..=loaded.last_seq.0).collect::<Vec<_>>());
        // The process died, not the machine: what was written without fsync is there too.
        assert!(loaded.snapshot[&hash(77)].rev.0 >= last_rev);
        (last_seq, last_rev) = (loaded.last_seq.0, last_rev.max(loaded.snapshot[&hash(77)].rev.0));
    }
}
