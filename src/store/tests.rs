//! What every store has to do, run on each of them; and what only a file can get wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::model::*;
use crate::port::*;

const START: i64 = 1_795_328_701_114; // 2026-11-22T06:25:01.114Z

/// A clock that stands still until it is moved.
#[derive(Debug)]
struct HandClock(AtomicI64);

impl HandClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(START)))
    }

    fn forward(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn server(name: &str) -> ServerName {
    ServerName::parse(name).unwrap()
}

fn sink(name: &str) -> SinkName {
    SinkName::parse(name).unwrap()
}

fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

fn torrent(server: &ServerName, number: u8, downloaded: u64) -> Arc<Torrent> {
    Arc::new(Torrent {
        hash: hash(number),
        name: format!("torrent {number} ☃"),
        server: server.clone(),
        active: true,
        downloaded,
        uploaded: 7,
        length: 1_000,
        path: None,
        progress: progress(downloaded, 1_000),
        ratio: ratio(7, downloaded),
        finished: downloaded >= 1_000,
        playing: false,
        extra: [("tag".into(), "x".into())].into(),
        status: Status::Downloading,
        error: false,
        message: Some("".into()),
        stalled: false,
        download_rate: Some(5),
        upload_rate: None,
        left: None,
        eta: None,
        peers: None,
        seeds: None,
        label: None,
        directory: Some("/downloads".into()),
        private: Some(true),
        priority: Some(2),
        tracker: None,
        added_at: Some(Timestamp::from_seconds(1_700_000_000)),
        started_at: None,
        finished_at: None,
        size_files: Some(1),
    })
}

fn new_event(kind: Kind, torrent: Option<Arc<Torrent>>) -> NewEvent {
    NewEvent { kind, cause: Cause::Observed, command_id: None, changes: Changes::new(), torrent }
}

fn change_set(server: &ServerName, millis: i64) -> ChangeSet {
    let time = Timestamp::from_millis(START + millis);
    ChangeSet { server: server.clone(), time, events: Vec::new(), changes: BTreeMap::new(), state: None }
}

/// A tick that tells torrent `number` as added.
fn added(server: &ServerName, number: u8) -> ChangeSet {
    let torrent = torrent(server, number, 0);
    let changes = [(torrent.hash, Some((torrent.clone(), DiffState::default())))].into();
    ChangeSet { events: vec![new_event(Kind::Added, Some(torrent))], changes, ..change_set(server, 1_000) }
}

/// A tick that tells torrent `number` differently, without an event.
fn updated(server: &ServerName, number: u8, downloaded: u64) -> ChangeSet {
    let change = Some((torrent(server, number, downloaded), DiffState::default()));
    ChangeSet { changes: [(hash(number), change)].into(), ..change_set(server, 2_000) }
}

fn open(folder: &Path) -> (SqliteStore, Recovery) {
    SqliteStore::open(folder, Options::default(), HandClock::new()).unwrap()
}

fn at(cursor: u64, sent_rev: u64) -> SinkProgress {
    SinkProgress { cursor: Seq(cursor), sent_rev: Rev(sent_rev) }
}

async fn seqs(store: &dyn Store, server: &ServerName) -> Vec<u64> {
    store.read(server, Seq(0), u16::MAX).await.unwrap().iter().map(|entry| entry.seq.0).collect()
}

/// Runs `test` on each kind of store, with its clock.
async fn on_each(options: Options, test: impl AsyncFn(&dyn Store, &HandClock)) {
    let clock = HandClock::new();
    test(&MemoryStore::new(options.clone(), clock.clone()), &clock).await;
    let folder = tempfile::tempdir().unwrap();
    let clock = HandClock::new();
    let (store, _) = SqliteStore::open(folder.path(), options, clock.clone()).unwrap();
    test(&store, &clock).await;
}

// --- on every store ------------------------------------------------------------------------------

/// Nothing was found but a folder that was in use when the test began.
fn after_a_kill() -> Recovery {
    Recovery { last_alive: Some(Timestamp::from_millis(START)), ..Recovery::default() }
}

#[tokio::test]
async fn entries_are_numbered_without_gaps_and_say_their_own_names() {
    on_each(Options::default(), async |store, _| {
        let (home, attic) = (server("home"), server("attic"));
        let mut first = added(&home, 1);
        first.events.insert(0, new_event(Kind::ServerOnline, None));
        assert_eq!(store.commit(first).await.unwrap().last_seq, Seq(2));
        assert_eq!(store.commit(added(&attic, 1)).await.unwrap().last_seq, Seq(1));
        assert_eq!(store.commit(added(&home, 2)).await.unwrap().last_seq, Seq(3));
        assert_eq!(seqs(store, &home).await, [1, 2, 3]);
        assert_eq!(seqs(store, &attic).await, [1]);
        assert!(seqs(store, &server("nobody")).await.is_empty());

        let epoch = store.load(&home).await.unwrap().epoch;
        let page = store.read(&home, Seq(1), 1).await.unwrap();
        let [entry] = &page[..] else { panic!("{page:?}") };
        assert_eq!((entry.kind, entry.hash, entry.rev), (Kind::Added, Some(hash(1)), Rev(1)));
        let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
        assert_eq!(body["schema"], "dtorrent.event/1");
        assert_eq!(body["id"], format!("home-{epoch}-000000000002"));
        assert_eq!((&body["seq"], &body["time"]), (&2.into(), &"2026-11-22T06:25:02.114Z".into()));
        assert_eq!(body["torrent"]["name"], "torrent 1 ☃");
        let first = &store.read(&home, Seq(0), 1).await.unwrap()[0];
        assert_eq!((first.hash, first.rev), (None, Rev(0)));
        assert!(!String::from_utf8_lossy(&first.body).contains("torrent\":"), "{:?}", first.body);
        let usage = store.usage().await.unwrap();
        assert_eq!(usage.journal_entries, 4);
        assert!(usage.journal_bytes > 400, "{usage:?}");
    })
    .await;
}

#[tokio::test]
async fn entries_of_all_servers_stand_in_the_order_of_their_commits() {
    on_each(Options::default(), async |store, _| {
        let (home, attic) = (server("home"), server("attic"));
        for (of, number) in [(&home, 1), (&attic, 1), (&attic, 2), (&home, 2)] {
            store.commit(added(of, number)).await.unwrap();
        }
        let shown = |page: Vec<(JournalPosition, JournalEntry)>| -> Vec<(String, u64)> {
            page.iter().map(|(_, entry)| (entry.server.to_string(), entry.seq.0)).collect()
        };
        let all = [("home", 1), ("attic", 1), ("attic", 2), ("home", 2)].map(|(of, seq)| (of.to_owned(), seq));
        assert_eq!(shown(store.read_all_after(None, 9).await.unwrap()), all);
        for (index, (of, seq)) in all.iter().enumerate() {
            let position = store.position(&server(of), Seq(*seq)).await.unwrap();
            assert!(position.is_some());
            assert_eq!(shown(store.read_all_after(position, 9).await.unwrap()), all[index + 1..]);
        }
        assert_eq!(shown(store.read_all_after(None, 2).await.unwrap()), all[..2]);
        let entry = &store.read_all_after(None, 1).await.unwrap()[0].1;
        assert_eq!(*entry, store.read(&home, Seq(0), 1).await.unwrap()[0]);
        for (of, seq) in [(&home, 3), (&home, 0), (&server("garage"), 1)] {
            assert_eq!(store.position(of, Seq(seq)).await.unwrap(), None);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_told_carries_its_revision_and_its_newest_entry() {
    on_each(Options::default(), async |store, _| {
        let home = server("home");
        store.commit(added(&home, 1)).await.unwrap();
        store.commit(added(&home, 2)).await.unwrap();
        let snapshot = store.commit(updated(&home, 1, 500)).await.unwrap().snapshot;
        let one = snapshot[&hash(1)].clone().unwrap();
        assert_eq!((one.rev, one.last_seq, one.changed_at.as_millis() - START), (Rev(3), Seq(1), 2_000));
        assert_eq!(one.torrent.downloaded, 500);

        // An entry without a change: the picture stays, but the entry has to arrive before it.
        let events = vec![new_event(Kind::Stalled, Some(torrent(&home, 1, 500)))];
        let committed = store.commit(ChangeSet { events, ..change_set(&home, 3_000) }).await.unwrap();
        let one = committed.snapshot[&hash(1)].clone().unwrap();
        assert_eq!((one.rev, one.last_seq, one.changed_at.as_millis() - START), (Rev(3), Seq(3), 2_000));

        let state = ServerState {
            is_known: true,
            is_online: true,
            run: Some("4711".to_owned()),
            generation: 3,
            settling_since: Some(Timestamp::from_millis(7)),
        };
        let events = vec![new_event(Kind::Removed, Some(torrent(&home, 2, 0)))];
        let removal = ChangeSet {
            events,
            changes: [(hash(2), None)].into(),
            state: Some(state.clone()),
            ..change_set(&home, 4_000)
        };
        let committed = store.commit(removal).await.unwrap();
        assert_eq!(committed.snapshot, [(hash(2), None)].into());
        assert_eq!(store.read(&home, Seq(3), 9).await.unwrap()[0].rev, Rev(4));

        let loaded = store.load(&home).await.unwrap();
        assert_eq!((loaded.snapshot, loaded.state), ([(hash(1), one)].into(), state));
        assert_eq!((loaded.last_seq, loaded.is_new), (Seq(4), false));
        store.commit(added(&home, 2)).await.unwrap();
        let again = &store.load(&home).await.unwrap().snapshot[&hash(2)];
        assert_eq!((again.rev, again.last_seq), (Rev(5), Seq(5)));
    })
    .await;
}

#[tokio::test]
async fn a_store_is_new_to_a_server_until_it_was_told_something() {
    on_each(Options::default(), async |store, _| {
        let home = server("home");
        let loaded = store.load(&home).await.unwrap();
        assert!(loaded.is_new && loaded.snapshot.is_empty() && loaded.state == ServerState::default());
        store.commit(ChangeSet { state: Some(ServerState::default()), ..change_set(&home, 1) }).await.unwrap();
        assert!(!store.load(&home).await.unwrap().is_new);
        assert!(store.load(&server("attic")).await.unwrap().is_new);
    })
    .await;
}

#[tokio::test]
async fn each_sink_has_its_own_progress_names_and_graves() {
    on_each(Options::default(), async |store, _| {
        let (home, mqtt, hook) = (server("home"), sink("mqtt"), sink("hook"));
        assert!(store.progress(&mqtt).await.unwrap().is_empty());
        store.save_progress(&mqtt, [(home.clone(), at(4, 9))].into()).await.unwrap();
        store.save_progress(&mqtt, [(server("attic"), at(1, 1))].into()).await.unwrap();
        store.save_progress(&mqtt, [(home.clone(), at(3, 10))].into()).await.unwrap();
        let expected = [(home.clone(), at(3, 10)), (server("attic"), at(1, 1))].into();
        assert_eq!(store.progress(&mqtt).await.unwrap(), expected);
        assert!(store.progress(&hook).await.unwrap().is_empty());

        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        store.register_topics(&mqtt, names(&["b", "a", "b"])).await.unwrap();
        store.register_topics(&mqtt, names(&["a", "c"])).await.unwrap();
        store.unregister_topics(&mqtt, names(&["b", "x"])).await.unwrap();
        assert_eq!(store.retained_topics(&mqtt).await.unwrap(), ["a", "c"]);
        assert!(store.retained_topics(&hook).await.unwrap().is_empty());

        store.commit(added(&home, 1)).await.unwrap();
        let entry = &store.read(&home, Seq(0), 1).await.unwrap()[0];
        store.add_dead_letter(&hook, entry, "413").await.unwrap();
        store.add_dead_letter(&hook, entry, "again").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_search_that_is_owed_stays_owed_until_it_was_made() {
    on_each(Options::default(), async |store, _| {
        let (mqtt, hook) = (sink("mqtt"), sink("hook"));
        let owed =
            async |sink: &SinkName| store.sink_notes(sink).await.unwrap().search.map(|search| search.is_of_first_life);
        assert_eq!(store.sink_notes(&mqtt).await.unwrap(), SinkNotes::default());
        store.require_retained_scan(&mqtt, true).await.unwrap();
        store.require_retained_scan(&mqtt, false).await.unwrap();
        store.require_retained_scan(&hook, false).await.unwrap();
        assert_eq!((owed(&mqtt).await, owed(&hook).await), (Some(true), Some(false)));
        store.adopt_retained(&mqtt, vec!["a".to_owned()], Vec::new()).await.unwrap();
        assert_eq!(owed(&mqtt).await, Some(false), "what was found is not dealt with");
        store.scan_completed(&mqtt).await.unwrap();
        store.scan_completed(&sink("nobody")).await.unwrap();
        assert_eq!((owed(&mqtt).await, owed(&hook).await), (None, Some(false)));
        store.note_strict_ordering(&hook).await.unwrap();
        let sink_notes = store.sink_notes(&hook).await.unwrap();
        assert_eq!(
            sink_notes,
            SinkNotes { search: Some(RetainedScan { is_of_first_life: false }), is_strict_ordering: true }
        );
        assert!(!store.sink_notes(&mqtt).await.unwrap().is_strict_ordering);
    })
    .await;
}

#[tokio::test]
async fn a_journal_reset_is_owed_once_by_each_server_until_it_is_told() {
    on_each(Options::default(), async |store, _| {
        let (home, attic, mqtt, bus) = (server("home"), server("attic"), sink("mqtt"), sink("bus"));
        let names = || vec!["b".to_owned(), "a".to_owned()];
        let owes = async |server: &ServerName| store.load(server).await.unwrap().needs_reset;
        // Before anything was told of it.
        assert_eq!(store.adopt_retained(&mqtt, names(), vec![home.clone()]).await.unwrap(), vec![home.clone()]);
        assert_eq!(store.retained_topics(&mqtt).await.unwrap(), ["a", "b"]);
        assert!(owes(&home).await && !owes(&attic).await);
        let loaded = store.load(&home).await.unwrap();
        assert!(loaded.is_new && loaded.snapshot.is_empty() && loaded.last_seq == Seq(0));
        // Another sink knows it, too.
        store.commit(added(&home, 1)).await.unwrap();
        store.commit(added(&attic, 1)).await.unwrap();
        let both = vec![home.clone(), attic.clone()];
        assert_eq!(store.adopt_retained(&bus, names(), both.clone()).await.unwrap(), vec![attic.clone()]);
        assert!(owes(&home).await && owes(&attic).await);
        let reset = ChangeSet { events: vec![new_event(Kind::JournalReset, None)], ..change_set(&home, 2_000) };
        assert_eq!(store.commit(reset).await.unwrap().last_seq, Seq(2));
        assert!(!owes(&home).await && owes(&attic).await);
        assert!(store.adopt_retained(&bus, names(), both).await.unwrap().is_empty(), "told once in an epoch");
        assert!(!owes(&home).await);
    })
    .await;
}

#[tokio::test]
async fn results_that_wait_are_counted_for_each_sink() {
    on_each(Options::default(), async |store, clock| {
        let mqtt = sink("mqtt");
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog::default());
        let answer = || LoggedResult { status: OutcomeStatus::Refused, body: Bytes::from_static(b"12345") };
        for (id, origin) in [("1", "mqtt"), ("2", "mqtt"), ("3", "bus"), ("1", "mqtt")] {
            store.record_command(command(id, origin, clock.now()), Some(answer())).await.unwrap();
        }
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog { count: 3, bytes: 15 });
        let first = store.unsent_results(&mqtt, 0, 1).await.unwrap()[0].number;
        store.mark_results_sent(vec![first]).await.unwrap();
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog { count: 2, bytes: 10 });
    })
    .await;
}

fn command(id: &str, origin: &str, received_at: Timestamp) -> LoggedCommand {
    LoggedCommand {
        id: CommandId::parse(id).unwrap(),
        server: Some(server("home")),
        origin: sink(origin),
        hash: Some(hash(1)),
        verb: Some(Verb::Pause),
        body: Bytes::from_static(b"\x00not text\xff"),
        received_at,
        expires_at: received_at.plus_millis(300_000),
        reply: Some(ReplyTo { topic: "a/b".to_owned(), correlation: Some(vec![0, 255]) }),
        is_started: false,
    }
}

#[tokio::test]
async fn commands_that_come_together_are_each_what_they_are() {
    on_each(Options::default(), async |store, clock| {
        let refused = LoggedResult { status: OutcomeStatus::Refused, body: Bytes::from_static(b"no") };
        let all = ["one", "two", "one"].map(|id| command(id, "bus", clock.now()));
        let [one, two, again] = all.clone();
        let admissions =
            store.record_commands(vec![(one, None), (two, Some(refused)), (again.clone(), None)]).await.unwrap();
        assert_eq!(admissions, [Recorded::New, Recorded::New, Recorded::Running]);
        assert_eq!(store.unfinished_commands().await.unwrap(), [again]);
        let unsent = store.unsent_results(&sink("bus"), 0, 10).await.unwrap();
        assert_eq!(unsent.iter().map(|result| &result.body[..]).collect::<Vec<_>>(), [b"no"]);
        assert!(store.unsent_results(&sink("bus"), unsent[0].number, 10).await.unwrap().is_empty());
        assert_eq!(store.record_command(command("two", "bus", clock.now()), None).await.unwrap(), Recorded::Answered);
        let more = store.unsent_results(&sink("bus"), unsent[0].number, 10).await.unwrap();
        assert_eq!(more.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn who_repeats_a_command_while_it_runs_is_answered_with_the_first_and_the_number_of_them_is_bounded() {
    on_each(Options::default(), async |store, clock| {
        let (home, mqtt, bus) = (server("home"), sink("mqtt"), sink("bus"));
        let to = |topic: &str| Some(ReplyTo { topic: topic.to_owned(), correlation: None });
        let from = |sink: &str, reply| LoggedCommand { reply, ..command("c1", sink, clock.now()) };
        let admitted = async |command: LoggedCommand| store.record_command(command, None).await.unwrap();
        assert_eq!(admitted(from("mqtt", to("a"))).await, Recorded::New);
        for again in [
            from("mqtt", to("a")),
            from("mqtt", to("b")),
            from("mqtt", to("b")),
            from("mqtt", None),
            from("bus", to("a")),
            from("bus", None),
        ] {
            assert_eq!(admitted(again).await, Recorded::Running);
        }
        for number in 4..ASKERS_MAX {
            assert_eq!(admitted(from("bus", to(&number.to_string()))).await, Recorded::Running);
        }
        assert_eq!(admitted(from("bus", to("one more"))).await, Recorded::WaitersFull);
        assert_eq!(admitted(from("mqtt", to("a"))).await, Recorded::Running);
        assert_eq!(admitted(from("page", None)).await, Recorded::Running);
        assert_eq!(store.unfinished_commands().await.unwrap().len(), 1);

        let done = LoggedResult { status: OutcomeStatus::Ok, body: Bytes::from_static(b"done") };
        let id = CommandId::parse("c1").unwrap();
        for _ in 0..2 {
            store.finish_command(Some(&home), &id, done.clone()).await.unwrap();
        }
        let topics = async |sink: &SinkName| {
            let unsent = store.unsent_results(sink, 0, 1_000).await.unwrap();
            assert!(unsent.iter().all(|result| result.body == done.body && result.server.as_ref() == Some(&home)));
            unsent.into_iter().map(|result| result.reply.map(|reply| reply.topic)).collect::<Vec<_>>()
        };
        assert_eq!(topics(&mqtt).await, [Some("a".to_owned()), Some("b".to_owned()), None]);
        let of_bus = topics(&bus).await;
        assert_eq!(of_bus[..2], [Some("a".to_owned()), None]);
        assert_eq!(of_bus.len() as u64, ASKERS_MAX - 2);
        assert_eq!(admitted(from("mqtt", to("c"))).await, Recorded::Answered);
    })
    .await;
}

#[tokio::test]
async fn a_command_is_done_once_a_day_and_answered_whenever_it_comes() {
    on_each(Options::default(), async |store, clock| {
        let (home, mqtt, bus) = (server("home"), sink("mqtt"), sink("bus"));
        let first = command("c1", "mqtt", clock.now());
        let to_bridge = LoggedCommand { server: None, hash: None, verb: None, reply: None, ..first.clone() };
        assert_eq!(store.record_command(first.clone(), None).await.unwrap(), Recorded::New);
        assert_eq!(store.record_command(first.clone(), None).await.unwrap(), Recorded::Running);
        assert_eq!(store.record_command(to_bridge.clone(), None).await.unwrap(), Recorded::New);
        assert_eq!(store.unfinished_commands().await.unwrap(), [first.clone(), to_bridge.clone()]);

        store.start_command(Some(&home), &first.id).await.unwrap();
        let started = LoggedCommand { is_started: true, ..first.clone() };
        assert_eq!(store.unfinished_commands().await.unwrap(), [started, to_bridge]);

        let done = Bytes::from_static(b"{\"status\":\"ok\"}");
        store
            .finish_command(Some(&home), &first.id, LoggedResult { status: OutcomeStatus::Ok, body: done.clone() })
            .await
            .unwrap();
        let other = Bytes::from_static(b"another");
        store
            .finish_command(Some(&home), &first.id, LoggedResult { status: OutcomeStatus::Error, body: other.clone() })
            .await
            .unwrap();
        store
            .finish_command(None, &first.id, LoggedResult { status: OutcomeStatus::Refused, body: other.clone() })
            .await
            .unwrap();
        assert!(store.unfinished_commands().await.unwrap().is_empty());
        let unsent = store.unsent_results(&mqtt, 0, 10).await.unwrap();
        let shown: Vec<_> = unsent.iter().map(|u| (u.server.clone(), u.body.clone(), u.reply.clone())).collect();
        assert_eq!(shown, [(Some(home.clone()), done.clone(), first.reply.clone()), (None, other, None)]);
        assert_eq!(store.unsent_results(&mqtt, 0, 1).await.unwrap(), unsent[..1]);
        store.mark_results_sent(vec![unsent[0].number]).await.unwrap();
        assert_eq!(store.unsent_results(&mqtt, 0, 10).await.unwrap(), unsent[1..]);

        clock.forward(Duration::from_secs(24 * 3600 - 1));
        let again = LoggedCommand { reply: None, ..command("c1", "bus", clock.now()) };
        assert_eq!(store.record_command(again.clone(), None).await.unwrap(), Recorded::Answered);
        let unsent = store.unsent_results(&bus, 0, 10).await.unwrap();
        assert_eq!((&unsent[0].body, &unsent[0].reply), (&done, &None));

        clock.forward(Duration::from_secs(1));
        assert_eq!(store.record_command(again, None).await.unwrap(), Recorded::New);
        let nobody = CommandId::parse("nobody").unwrap();
        assert!(store.start_command(Some(&home), &nobody).await.is_err());
        assert!(
            store.finish_command(None, &nobody, LoggedResult { status: OutcomeStatus::Ok, body: done }).await.is_err()
        );
    })
    .await;
}

#[tokio::test]
async fn a_journal_that_waits_for_a_sink_is_full_until_the_sink_has_it() {
    let options = Options { journal_bytes_max: 8_000, ..Options::default() };
    on_each(options, async |store, _| {
        let (home, slow) = (server("home"), sink("slow"));
        store.save_progress(&slow, [(home.clone(), at(2, 0))].into()).await.unwrap();
        let mut last = 0;
        let refused = loop {
            match store.commit(added(&home, 1)).await {
                Ok(committed) => last = committed.last_seq.0,
                Err(error) => break error,
            }
            assert!(last < 100, "nothing stops it");
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        let kept = seqs(store, &home).await;
        assert!(kept[0] <= 3 && kept.last() == Some(&last), "{kept:?}");
        let before = store.load(&home).await.unwrap();
        assert!(store.commit(added(&home, 9)).await.is_err());
        assert_eq!(store.load(&home).await.unwrap().snapshot, before.snapshot);
        store.commit(updated(&home, 9, 1)).await.unwrap();
        store.commit(added(&server("attic"), 1)).await.unwrap_err();

        store.save_progress(&slow, [(home.clone(), at(last, 0))].into()).await.unwrap();
        for next in last + 1..last + 20 {
            assert_eq!(store.commit(added(&home, 1)).await.unwrap().last_seq, Seq(next));
            let noted = [(home.clone(), at(next, 0))].into();
            store.save_progress(&slow, noted).await.unwrap();
        }
        let usage = store.usage().await.unwrap();
        assert!(usage.journal_bytes <= 4_000, "{usage:?}");
        let kept = seqs(store, &home).await;
        assert_eq!(usage.journal_entries, kept.len() as u64);
        assert_eq!(kept, (kept[0]..last + 20).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn a_tick_larger_than_the_budget_is_taken_by_an_empty_journal_only() {
    let options = Options { journal_bytes_max: 100, ..Options::default() };
    on_each(options, async |store, _| {
        let home = server("home");
        store.save_progress(&sink("slow"), [(home.clone(), at(0, 0))].into()).await.unwrap();
        store.commit(added(&home, 1)).await.unwrap();
        assert!(matches!(store.commit(added(&home, 2)).await, Err(StoreError::Full { .. })));
        assert_eq!(seqs(store, &home).await, [1]);
    })
    .await;
}

/// A sink whose box is full stands at an entry that finds no place in it; another takes everything.
async fn one_stands(store: &dyn Store, letters: impl AsyncFn() -> Vec<DeadLetter>, forget: impl AsyncFn(String)) {
    let (home, attic, stuck, well) = (server("home"), server("attic"), sink("stuck"), sink("well"));
    store.save_progress(&stuck, [(home.clone(), at(1, 7))].into()).await.unwrap();
    store.save_progress(&well, [(home.clone(), at(0, 0))].into()).await.unwrap();
    for _ in 0..2 {
        store.commit(added(&home, 1)).await.unwrap();
    }
    let entries = store.read(&home, Seq(0), 9).await.unwrap();
    store.add_dead_letter(&stuck, &entries[0], "no").await.unwrap();
    let refused = store.add_dead_letter(&stuck, &entries[1], "no").await;
    assert!(
        matches!(&refused, Err(StoreError::Full { reason }) if reason.contains("dtorrent dead-letters")),
        "{refused:?}"
    );
    // Far more than the journal holds: nobody is held up, and each that goes is accounted for.
    let mut last = 2;
    for _ in 0..40 {
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
        last = store.commit(added(&home, 1)).await.unwrap().last_seq.0;
        store.commit(updated(&home, 1, last)).await.unwrap();
    }
    store.commit(added(&attic, 1)).await.unwrap();
    let kept = seqs(store, &home).await;
    assert!(kept[0] > 10 && kept == (kept[0]..=last).collect::<Vec<_>>(), "{kept:?}");
    let gap = |letters: Vec<DeadLetter>| letters.last().and_then(DeadLetter::gap);
    assert_eq!(letters().await.len(), 2, "the gap is one letter");
    assert_eq!(gap(letters().await), Some((Seq(2), Seq(kept[0] - 1))));
    assert_eq!(store.progress(&stuck).await.unwrap()[&home], at(kept[0] - 1, 7));
    // An older note of the cursor does not have it counted twice.
    store.save_progress(&stuck, [(home.clone(), at(1, 7))].into()).await.unwrap();
    store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
    for _ in 0..5 {
        last = store.commit(added(&home, 1)).await.unwrap().last_seq.0;
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
    }
    let kept = seqs(store, &home).await;
    assert_eq!((letters().await.len(), gap(letters().await)), (2, Some((Seq(2), Seq(kept[0] - 1)))));
    // With room it stands no longer, and then the journal waits for it as for any other.
    for letter in letters().await {
        forget(letter.id).await;
    }
    store.add_dead_letter(&stuck, &entries[1], "no").await.unwrap();
    while let Ok(committed) = store.commit(added(&home, 1)).await {
        last = committed.last_seq.0;
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
        assert!(last < 200, "nothing stops it");
    }
    assert_eq!(letters().await.len(), 1);
}

#[tokio::test]
async fn a_sink_that_stands_holds_up_nobody_else_and_a_letter_says_what_it_lost() {
    let options = Options { journal_bytes_max: 8_000, dead_letters_max: 1, ..Options::default() };
    let stuck = sink("stuck");
    let projection_state = MemoryStore::new(options.clone(), HandClock::new());
    let forget = async |id: String| assert!(projection_state.forget_dead_letter(&stuck, &id));
    one_stands(&projection_state, async || projection_state.dead_letters(&stuck), forget).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = SqliteStore::open(folder.path(), options, HandClock::new()).unwrap();
    let drop_letter = async |id: String| {
        assert_eq!(SqliteStore::drop_dead_letters(folder.path(), &[("stuck".to_owned(), id)]).unwrap(), 1);
    };
    one_stands(&file, async || file.dead_letters(&stuck).await.unwrap(), drop_letter).await;
    assert_eq!(file.boxes().await.unwrap(), [("stuck".to_owned(), BoxUsage { letters: 1, given_up: 0 })].into());
}

#[tokio::test]
async fn nothing_is_given_up_where_nobody_else_hears_of_the_server() {
    let options = Options { journal_bytes_max: 8_000, dead_letters_max: 0, ..Options::default() };
    on_each(options, async |store, _| {
        let (home, stuck) = (server("home"), sink("stuck"));
        store.save_progress(&stuck, [(home.clone(), at(0, 0))].into()).await.unwrap();
        store.commit(added(&home, 1)).await.unwrap();
        let entry = &store.read(&home, Seq(0), 1).await.unwrap()[0];
        store.add_dead_letter(&stuck, entry, "no").await.unwrap_err();
        let mut last = 1;
        while let Ok(committed) = store.commit(added(&home, 1)).await {
            last = committed.last_seq.0;
            assert!(last < 100, "nothing stops it");
        }
        assert_eq!(seqs(store, &home).await, (1..=last).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn what_every_sink_has_goes_when_it_is_old() {
    let options = Options { journal_age_max: Duration::from_secs(60), ..Options::default() };
    on_each(options, async |store, clock| {
        let home = server("home");
        store.save_progress(&sink("a"), [(home.clone(), at(2, 0))].into()).await.unwrap();
        store.save_progress(&sink("b"), [(home.clone(), at(3, 0))].into()).await.unwrap();
        for number in 1..=4 {
            store.commit(ChangeSet { time: clock.now(), ..added(&home, number) }).await.unwrap();
        }
        assert_eq!(seqs(store, &home).await, [1, 2, 3, 4]);
        clock.forward(Duration::from_secs(61));
        store.commit(ChangeSet { time: clock.now(), ..added(&home, 5) }).await.unwrap();
        assert_eq!(seqs(store, &home).await, [3, 4, 5]);
    })
    .await;
}

// --- of the file alone ---------------------------------------------------------------------------

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let (store, recovery) = open(folder.path());
    assert_eq!(recovery, Recovery { is_new: true, ..Recovery::default() });
    let committed = store.commit(added(&home, 1)).await.unwrap();
    assert_eq!(committed.last_seq, Seq(1));
    let entries = store.read(&home, Seq(0), 10).await.unwrap();
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
    assert_eq!(store.read(&home, Seq(0), 10).await.unwrap(), entries);
    assert_eq!(store.progress(&sink("mqtt")).await.unwrap()[&home], at(1, 1));
    assert!(!store.load(&server("attic")).await.unwrap().is_new);
}

#[tokio::test]
async fn a_revision_is_not_given_again_after_an_unclean_stop() {
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
async fn cursors_and_results_of_sinks_that_are_gone_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let (home, here, gone) = (server("home"), sink("here"), sink("gone"));
    store.commit(added(&home, 1)).await.unwrap();
    let entry = &store.read(&home, Seq(0), 1).await.unwrap()[0];
    for sink in [&here, &gone] {
        store.save_progress(sink, [(home.clone(), at(1, 1))].into()).await.unwrap();
        store.note_strict_ordering(sink).await.unwrap();
        store.register_topics(sink, vec!["topic".to_owned()]).await.unwrap();
        store.add_dead_letter(sink, entry, "413").await.unwrap();
        store.add_dead_letter(sink, entry, "again").await.unwrap();
        let command = command(sink.as_str(), sink.as_str(), entry.time);
        store.record_command(command.clone(), None).await.unwrap();
        store
            .finish_command(Some(&home), &command.id, LoggedResult { status: OutcomeStatus::Ok, body: Bytes::new() })
            .await
            .unwrap();
    }
    let other = server("other");
    store.save_progress(&here, [(other.clone(), at(1, 1))].into()).await.unwrap();
    store.declare_sinks(&[(here.clone(), vec![home.clone()])].into()).await.unwrap();
    assert!(!store.progress(&here).await.unwrap().contains_key(&other), "a server that it no longer gets");
    for (sink, held) in [(&here, 1), (&gone, 0)] {
        assert_eq!(store.progress(sink).await.unwrap().len(), held);
        assert_eq!(store.unsent_results(sink, 0, 9).await.unwrap().len(), held);
        assert_eq!(store.sink_notes(sink).await.unwrap().is_strict_ordering, held == 1);
        assert_eq!(store.retained_topics(sink).await.unwrap(), ["topic"]);
        let letters = store.dead_letters(sink).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert_eq!((&letters[0].reason, &letters[0].body), (&"413".to_owned(), &entry.body));
    }
}

#[tokio::test]
async fn dead_letters_can_be_looked_at_beside_a_store_that_is_open_and_go_when_they_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let look = || SqliteStore::look_at_dead_letters(folder.path()).unwrap();
    assert_eq!(look(), [], "there is not even a file");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "and none was made");
    let (store, _) = open(folder.path());
    let home = server("home");
    for number in [1, 2] {
        store.commit(added(&home, number)).await.unwrap();
    }
    let entries = store.read(&home, Seq(0), 9).await.unwrap();
    let line = sink("hook").line(&home);
    for entry in &entries {
        store.add_dead_letter(&line, entry, "422").await.unwrap();
    }
    let expected: Vec<_> =
        store.dead_letters(&line).await.unwrap().into_iter().map(|letter| ("hook.home".to_owned(), letter)).collect();
    assert_eq!((look(), expected.len()), (expected.clone(), 2));
    store.forget_dead_letter(&line, &entries[0].id.to_string()).await.unwrap();
    assert_eq!(look(), expected[1..]);
    store.close().await.unwrap();
    drop(store);
    assert_eq!(look(), expected[1..]);
    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost, "whoever looked left no trace: {recovery:?}");
    store.close().await.unwrap();
    drop(store);
    let last = [("hook.home".to_owned(), entries[1].id.to_string()), ("hook.home".to_owned(), "none".to_owned())];
    assert_eq!(SqliteStore::drop_dead_letters(folder.path(), &last).unwrap(), 1);
    assert_eq!(look(), []);
    let (store, recovery) = open(folder.path());
    assert!(recovery.was_clean && !recovery.lost, "nor did whoever dropped one: {recovery:?}");
    assert_eq!((seqs(&store, &home).await, store.dead_letters(&line).await.unwrap()), (vec![1, 2], Vec::new()));
}

#[test]
fn a_folder_is_used_by_one_store_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = open(folder.path());
    let Err(StoreError::Io(error)) = SqliteStore::open(folder.path(), Options::default(), HandClock::new()) else {
        panic!("two stores in one folder");
    };
    let expected = format!("another bridge uses the data folder {}: ", folder.path().display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    drop(first);
    open(folder.path());
}

#[test]
fn a_missing_folder_is_made_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a/b");
    open(&folder);
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A folder whose store held entries, left as a crash leaves it; its epoch.
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
    // As after a crash: the file has to be looked at.
    drop(store);
    drop(std::fs::remove_file(folder.path().join("dtorrent.clean")));
    (folder, epoch)
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_moved_aside_and_said() {
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
            assert_eq!(kept, found, "{name}: what was found is kept as it was");
        }
        let loaded = store.load(&server("home")).await.unwrap();
        assert!(loaded.is_new && loaded.epoch != epoch, "{name}");
        store.commit(added(&server("home"), 1)).await.unwrap();
        drop(store);
        let (_, recovery) = open(folder.path());
        assert!(recovery.found.is_none() && !recovery.is_new, "{name}: found once");
        assert!(recovery.lost, "{name}: a server that comes later has lost its history all the same");
    }
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_loss_is_said_until_something_was_told_since() {
    let (folder, _) = used_folder(true).await;
    std::fs::remove_file(folder.path().join("dtorrent.sqlite3")).unwrap();
    for _ in 0..2 {
        let (store, recovery) = open(folder.path());
        assert!(recovery.lost && recovery.is_new, "{recovery:?}");
        assert!(store.load(&server("home")).await.unwrap().is_new);
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
async fn a_synced_commit_that_is_gone_is_missed_and_ends_the_epoch() {
    let (folder, epoch) = used_folder(false).await;
    for cut in [1, 30_000] {
        let other = torn_copy(folder.path(), cut);
        let (store, recovery) = open(other.path());
        let found = recovery.found.unwrap();
        assert!(recovery.lost && found.contains("the newest changes are gone"), "{found}");
        assert!(recovery.moved_to.is_some());
        assert_ne!(store.load(&server("home")).await.unwrap().epoch, epoch, "else numbers would be given again");
    }
    // What is noted of another epoch says nothing of this one, and what cannot be read says nothing.
    for note in ["4294967295 00000000000000009999", "no number", "1 2", ""] {
        let other = torn_copy(folder.path(), 0);
        std::fs::write(other.path().join("dtorrent.used"), note).unwrap();
        let (store, recovery) = open(other.path());
        assert_eq!(recovery.found, None, "{note:?}");
        assert_eq!(store.load(&server("home")).await.unwrap().epoch, epoch);
    }
}

/// The folder without the last `cut` bytes of its change log.
fn torn_copy(folder: &Path, cut: usize) -> tempfile::TempDir {
    let other = tempfile::tempdir().unwrap();
    for name in ["dtorrent.sqlite3", "dtorrent.sqlite3-wal", "dtorrent.used"] {
        std::fs::copy(folder.join(name), other.path().join(name)).unwrap();
    }
    change(&other.path().join("dtorrent.sqlite3-wal"), |bytes| bytes.truncate(bytes.len() - cut));
    other
}

#[tokio::test]
async fn what_a_sink_wants_remembered_is_its_own_and_the_last_word_counts() {
    on_each(Options::default(), async |store, _| {
        let (one, other) = (SinkName::parse("one").unwrap(), SinkName::parse("other").unwrap());
        assert_eq!(store.projection_state(&one).await.unwrap(), None);
        store.save_projection_state(&one, "first".to_owned()).await.unwrap();
        store.save_projection_state(&one, "last".to_owned()).await.unwrap();
        assert_eq!(store.projection_state(&one).await.unwrap().as_deref(), Some("last"));
        assert_eq!(store.projection_state(&other).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_file_of_an_older_version_is_brought_up_to_date_with_all_that_is_in_it() {
    let (folder, epoch) = used_folder(true).await;
    let connection = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
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
async fn a_file_left_while_it_was_being_made_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let half = rusqlite::Connection::open(folder.path().join("dtorrent.sqlite3")).unwrap();
    half.pragma_update(None, "journal_mode", "WAL").unwrap();
    drop(half);
    let (_, recovery) = open(folder.path());
    assert_eq!(recovery, Recovery { is_new: true, ..Recovery::default() });
}

#[tokio::test]
async fn a_full_disk_refuses_commits_and_then_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let home = server("home");
    store.commit(added(&home, 1)).await.unwrap();
    let set_pages = async |count: &'static str| {
        let count = move |db: &mut thread::Db| {
            Ok(db.connection.query_row(&format!("PRAGMA max_page_count = {count}"), [], |row| row.get::<_, i64>(0))?)
        };
        store.writer.ask(thread::Mode::Read, None, count).await.unwrap();
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
async fn a_disk_filled_by_others_refuses_every_write_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(4 << 20) else {
        eprintln!("skipped: no right to mount a small disk; the test before it uses SQLite's own limit");
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
        let settled = store.save_progress(&mqtt, [(home.clone(), at(1, 1))].into()).await;
        assert!(matches!(settled, Ok(()) | Err(StoreError::Full { .. })), "{settled:?}");
        let logged =
            store.record_command(command(&"x".repeat(100), "mqtt", before.snapshot[&hash(1)].changed_at), None).await;
        assert!(logged.is_err() || round > 0, "{logged:?}");
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
async fn commits_that_come_together_stand_and_fall_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { journal_bytes_max: 20_000, ..Options::default() };
    let (store, _) = SqliteStore::open(folder.path(), options, HandClock::new()).unwrap();
    let names: Vec<_> = (0..20).map(|number| server(&format!("s{number}"))).collect();
    let slow = names.iter().map(|name| (name.clone(), SinkProgress::default())).collect();
    store.save_progress(&sink("slow"), slow).await.unwrap();
    // While the thread is held, everything else waits and becomes one group.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let hold = store.writer.ask(thread::Mode::Read, None, move |_| {
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
    assert_eq!(store.usage().await.unwrap().journal_entries, 10);
}

#[tokio::test]
async fn after_the_end_of_the_thread_every_call_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open(folder.path());
    let fall = |_: &mut thread::Db| -> Result<(), thread::Failure> { panic!("on purpose") };
    assert!(matches!(store.writer.ask(thread::Mode::Read, None, fall).await, Err(StoreError::Io(_))));
    assert!(matches!(store.commit(added(&server("home"), 1)).await, Err(StoreError::Io(_))));
    assert!(matches!(store.usage().await, Err(StoreError::Io(_))));
}

// --- against the model ---------------------------------------------------------------------------

mod model {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Commit { server: u8, events: Vec<(u8, bool)>, changes: BTreeMap<u8, Option<u64>>, state: Option<bool> },
        Settle { sink: u8, server: u8, cursor: u64, rev: u64 },
        Declare { sinks: Vec<u8> },
        Bury { sink: u8, server: u8, seq: u64 },
        Register { sink: u8, names: Vec<u8> },
        Unregister { sink: u8, names: Vec<u8> },
        Log { server: Option<u8>, id: u8, origin: u8 },
        Start { server: Option<u8>, id: u8 },
        Finish { server: Option<u8>, id: u8, result: u8 },
        Sent { number: i64 },
        OweSearch { sink: u8, is_first_life: bool },
        TakeOver { sink: u8, names: Vec<u8>, servers: Vec<u8> },
        Searched { sink: u8 },
        Careful { sink: u8 },
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let of = || prop::option::of(0..2u8);
        let names = || prop::collection::vec(0..4u8, 0..4);
        let changes = prop::collection::btree_map(0..5u8, prop::option::of(0..2_000u64), 0..5);
        let events = prop::collection::vec((0..5u8, any::<bool>()), 0..4);
        let commit = (0..2u8, events, changes, prop::option::of(any::<bool>()));
        let step = prop_oneof![
            8 => commit.prop_map(|(server, events, changes, state)| Step::Commit { server, events, changes, state }),
            2 => (0..2u8, 0..2u8, 0..9u64, 0..9u64)
                .prop_map(|(sink, server, cursor, rev)| Step::Settle { sink, server, cursor, rev }),
            1 => prop::collection::vec(0..2u8, 0..3).prop_map(|sinks| Step::Declare { sinks }),
            1 => (0..2u8, 0..2u8, 0..9u64).prop_map(|(sink, server, seq)| Step::Bury { sink, server, seq }),
            1 => (0..2u8, names()).prop_map(|(sink, names)| Step::Register { sink, names }),
            1 => (0..2u8, names()).prop_map(|(sink, names)| Step::Unregister { sink, names }),
            3 => (of(), 0..3u8, 0..2u8).prop_map(|(server, id, origin)| Step::Log { server, id, origin }),
            1 => (of(), 0..3u8).prop_map(|(server, id)| Step::Start { server, id }),
            2 => (of(), 0..3u8, any::<u8>()).prop_map(|(server, id, result)| Step::Finish { server, id, result }),
            1 => (0..5i64).prop_map(|number| Step::Sent { number }),
            1 => (0..2u8, any::<bool>()).prop_map(|(sink, is_first_life)| Step::OweSearch { sink, is_first_life }),
            1 => (0..2u8, names(), prop::collection::vec(0..2u8, 0..3))
                .prop_map(|(sink, names, servers)| Step::TakeOver { sink, names, servers }),
            1 => (0..2u8).prop_map(|sink| Step::Searched { sink }),
            1 => (0..2u8).prop_map(|sink| Step::Careful { sink }),
            2 => Just(Step::Reopen),
        ];
        prop::collection::vec(step, 1..40)
    }

    fn nth_server(number: u8) -> ServerName {
        server(["home", "attic"][usize::from(number)])
    }

    fn nth_sink(number: u8) -> SinkName {
        sink(["mqtt", "hook"][usize::from(number)])
    }

    fn id(number: u8) -> CommandId {
        CommandId::parse(&format!("id {number}")).unwrap()
    }

    /// Does a step and says all that came back.
    async fn act(store: &dyn Store, step: &Step) -> String {
        match step.clone() {
            Step::Commit { server, events, changes, state } => {
                let server = nth_server(server);
                let snapshot = |number, downloaded| (torrent(&server, number, downloaded), DiffState::default());
                let events = events.iter().map(|(number, is_torrent)| match is_torrent {
                    true => new_event(Kind::Started, Some(torrent(&server, *number, 1))),
                    false if *number == 0 => new_event(Kind::JournalReset, None),
                    false => new_event(Kind::ServerOnline, None),
                });
                let state = state.map(|is_online| ServerState {
                    is_known: true,
                    is_online,
                    run: None,
                    generation: 0,
                    settling_since: None,
                });
                let events = events.collect();
                let changes = changes
                    .iter()
                    .map(|(number, downloaded)| (hash(*number), downloaded.map(|d| snapshot(*number, d))));
                let change_set = ChangeSet { events, changes: changes.collect(), state, ..change_set(&server, 5) };
                format!("{:?}", store.commit(change_set).await)
            }
            Step::Settle { sink, server, cursor, rev } => {
                format!(
                    "{:?}",
                    store.save_progress(&nth_sink(sink), [(nth_server(server), at(cursor, rev))].into()).await
                )
            }
            Step::Bury { sink, server, seq } => {
                let entries = store.read(&nth_server(server), Seq(seq), 1).await.unwrap();
                for entry in &entries {
                    store.add_dead_letter(&nth_sink(sink), entry, "no").await.unwrap();
                }
                format!("{entries:?}")
            }
            Step::Register { sink, names } => {
                format!("{:?}", store.register_topics(&nth_sink(sink), names.iter().map(u8::to_string).collect()).await)
            }
            Step::Unregister { sink, names } => {
                format!(
                    "{:?}",
                    store.unregister_topics(&nth_sink(sink), names.iter().map(u8::to_string).collect()).await
                )
            }
            Step::Log { server, id: number, origin } => {
                let base = command("x", "x", Timestamp::from_millis(START));
                let (server, origin) = (server.map(nth_server), nth_sink(origin));
                let logged = LoggedCommand { id: id(number), server, origin, ..base };
                format!("{:?}", store.record_command(logged, None).await)
            }
            Step::Start { server, id: number } => {
                let server = server.map(nth_server);
                format!("{:?}", store.start_command(server.as_ref(), &id(number)).await)
            }
            Step::Finish { server, id: number, result } => {
                let server = server.map(nth_server);
                let result = vec![result].into();
                format!(
                    "{:?}",
                    store
                        .finish_command(
                            server.as_ref(),
                            &id(number),
                            LoggedResult { status: OutcomeStatus::Ok, body: result }
                        )
                        .await
                )
            }
            Step::Sent { number } => format!("{:?}", store.mark_results_sent(vec![number]).await),
            Step::OweSearch { sink, is_first_life } => {
                format!("{:?}", store.require_retained_scan(&nth_sink(sink), is_first_life).await)
            }
            Step::TakeOver { sink, names, servers } => {
                let names = names.iter().map(u8::to_string).collect();
                let servers: BTreeSet<ServerName> = servers.iter().map(|server| nth_server(*server)).collect();
                format!("{:?}", store.adopt_retained(&nth_sink(sink), names, servers.into_iter().collect()).await)
            }
            Step::Searched { sink } => format!("{:?}", store.scan_completed(&nth_sink(sink)).await),
            Step::Careful { sink } => format!("{:?}", store.note_strict_ordering(&nth_sink(sink)).await),
            Step::Declare { .. } | Step::Reopen => unreachable!("not a step of the seam"),
        }
    }

    /// Everything that can be read.
    async fn look(store: &dyn Store) -> String {
        let mut seen = Vec::new();
        for number in 0..2 {
            let (server, sink) = (nth_server(number), nth_sink(number));
            seen.push(format!("{:?}", store.load(&server).await));
            seen.push(format!("{:?}", store.read(&server, Seq(0), 1_000).await));
            seen.push(format!("{:?}", store.read(&server, Seq(2), 3).await));
            seen.push(format!("{:?}", store.progress(&sink).await));
            seen.push(format!("{:?}", store.retained_topics(&sink).await));
            seen.push(format!("{:?}", store.unsent_results(&sink, 0, 100).await));
            seen.push(format!("{:?}", store.result_backlog(&sink).await));
            seen.push(format!("{:?}", store.sink_notes(&sink).await));
        }
        seen.push(format!("{:?}", store.unfinished_commands().await));
        seen.push(format!("{:?}", store.usage().await));
        seen.join("\n")
    }

    async fn agree(steps: Vec<Step>) {
        let folder = tempfile::tempdir().unwrap();
        let projection_state = MemoryStore::new(Options::default(), HandClock::new());
        let (mut file, _) = open(folder.path());
        let epoch = file.load(&nth_server(0)).await.unwrap().epoch;
        projection_state.reopen(epoch);
        for step in &steps {
            match step {
                Step::Reopen => {
                    file.close().await.unwrap();
                    drop(file);
                    (file, _) = open(folder.path());
                    projection_state.reopen(epoch);
                }
                Step::Declare { sinks } => {
                    let servers = vec![nth_server(0)];
                    let sinks = sinks.iter().map(|sink| (nth_sink(*sink), servers.clone())).collect();
                    projection_state.declare_sinks(&sinks);
                    file.declare_sinks(&sinks).await.unwrap();
                }
                step => assert_eq!(act(&file, step).await, act(&projection_state, step).await, "{step:?}"),
            }
            assert_eq!(look(&file).await, look(&projection_state).await, "after {step:?}");
            for sink in [0, 1].map(nth_sink) {
                assert_eq!(file.dead_letters(&sink).await.unwrap(), projection_state.dead_letters(&sink));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_file_and_the_memory_answer_the_same(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(agree(steps));
        }
    }
}

// --- killed --------------------------------------------------------------------------------------

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
        writeln!(std::io::stdout(), "told {} {}", synced.last_seq.0, rev.0).unwrap();
    }
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_answered_and_no_number_comes_again() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let (mut last_seq, mut last_rev) = (0, 0);
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::commits_until_killed", "--nocapture"])
            .env(KILLED_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut snapshot = 0;
        // Reads on after the kill: what was written before it still counts.
        for line in lines.map(Result::unwrap) {
            let Some((seq, rev)) = line.split_once("told ").and_then(|(_, rest)| rest.split_once(' ')) else {
                continue;
            };
            let Ok(rev) = rev.parse::<u64>() else { break }; // cut by the kill
            let seq = seq.parse::<u64>().unwrap();
            assert!(seq > last_seq && rev > last_rev, "round {round}: {line} after {last_seq} {last_rev}");
            (last_seq, last_rev) = (seq, rev);
            snapshot += 1;
            if snapshot == 20 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(snapshot >= 20, "the child ended by itself after {snapshot}");

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
