//! The library API on a simulated client, as documented.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dtorrent::manager::{BuildError, Builder, Events, Manager, ManagerError, NewTorrent, Server, Since};
use dtorrent::model::{
    Action, Cause, Change, Details, ErrorCode, Event, InfoHash, Kind, Listing, Parts, ServerName, Status, Verb,
};
use dtorrent::port::{Applied, Capabilities, ClientError, Scope, SystemClock, TorrentClient};
use dtorrent::testing::simulator::{Behavior, RunMode, SimulatedTorrent, Simulator};
use futures_util::future::join_all;
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(30);

fn hash(n: u8) -> InfoHash {
    InfoHash::V1([n; 20])
}

/// A client with this many idle torrents in run mode.
fn simulator(server: &str, torrents: u8) -> Simulator {
    let simulator = Simulator::new(ServerName::parse(server).unwrap(), Arc::new(SystemClock));
    simulator.change(|world| {
        for n in 1..=torrents {
            world.add(hash(n), SimulatedTorrent::new(format!("torrent {n}"), 1000));
        }
    });
    simulator
}

fn quick(simulator: &Simulator) -> Server {
    Server::new(simulator.clone()).interval(Duration::from_millis(100))
}

fn builder(simulator: &Simulator) -> Builder {
    Manager::builder().server("home", quick(simulator))
}

async fn next(events: &mut Events) -> Event {
    let next = tokio::time::timeout(TIMEOUT, events.next()).await.expect("an event in time");
    next.expect("the stream continues").expect("nothing is missed")
}

async fn until(events: &mut Events, kind: Kind) -> Event {
    loop {
        let event = next(events).await;
        if event.event_type == kind {
            return event;
        }
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "timed out waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stream_yields_every_event_since_the_manager_was_built_without_a_gap() {
    let client = simulator("home", 3);
    let manager = builder(&client).build().await.unwrap();
    assert_eq!(manager.get_all().await.unwrap().len(), 3);
    let mut events = manager.events();
    let mut snapshot = Vec::new();
    while snapshot.last().is_none_or(|event: &Event| event.event_type != Kind::SnapshotDone) {
        snapshot.push(next(&mut events).await);
    }
    let numbers: Vec<u64> = snapshot.iter().filter_map(|event| event.seq).map(|seq| seq.0).collect();
    assert_eq!(numbers, (1..=5).collect::<Vec<u64>>());
    assert!(
        snapshot.iter().filter(|event| event.event_type == Kind::Added).all(|event| event.cause == Cause::Snapshot)
    );
    let mut late = manager.events_since(Since::Now);
    client.change(|world| world.add(hash(4), SimulatedTorrent::new("new", 10)));
    assert_eq!(next(&mut late).await, until(&mut events, Kind::Added).await);
}

#[tokio::test]
async fn a_command_returns_once_a_poll_showed_its_effect() {
    let client = simulator("home", 2);
    let manager = builder(&client).build().await.unwrap();
    let mut events = manager.events();
    manager.pause(hash(1)).await.unwrap();
    let paused = until(&mut events, Kind::Paused).await;
    assert_eq!((paused.cause, paused.hash), (Cause::Command, Some(hash(1))));
    let status = |torrents: Vec<dtorrent::model::Torrent>| torrents[0].status;
    assert_eq!(status(manager.get_all().await.unwrap()), Status::Paused);
    manager.resume(hash(1)).await.unwrap();
    let home = manager.watcher("home").unwrap();
    home.stop(hash(1)).await.unwrap();
    home.start(hash(1)).await.unwrap();
    home.label(hash(1), "linux").await.unwrap();
    home.priority(hash(1), 3).await.unwrap();
    home.recheck(hash(2)).await.unwrap();
    let found = manager.get_one(hash(1)).await.unwrap();
    assert_eq!((found.torrent.label.as_deref(), found.torrent.priority), (Some("linux"), Some(3)));
    assert!(found.files.is_some());
    let link = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let added = manager.add("home", NewTorrent::magnet(link).stopped()).await.unwrap();
    assert_eq!(manager.get_all().await.unwrap().len(), 3);
    manager.delete(added).await.unwrap();
    assert_eq!(manager.get_all().await.unwrap().len(), 2);
    let all = home.command(Verb::Stop, None, json!({"filter": {}}).as_object().unwrap().clone()).await.unwrap();
    assert_eq!(all.results.len(), 2);
    assert!(client.change(|world| world.torrents().values().all(|torrent| torrent.run_mode == RunMode::Stopped)));
}

/// Dropping the call at any moment leaves no command half done.
#[tokio::test]
async fn a_command_is_executed_even_if_its_caller_stops_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let client = simulator("home", 1);
    let manager = builder(&client).data_dir(folder.path()).build().await.unwrap();
    let home = manager.watcher("home").unwrap();
    manager.get_all().await.unwrap();
    for drive in [RunMode::Stopped, RunMode::Running].into_iter().cycle().take(6) {
        tokio::select! {
            biased;
            _ = async { if drive == RunMode::Stopped { home.stop(hash(1)).await } else { home.start(hash(1)).await } } => {}
            () = std::future::ready(()) => {}
        }
        eventually("it is done", || client.change(|world| world.torrents()[&hash(1)].run_mode == drive)).await;
    }
}

/// A command that runs and one that is done are both answered with the result of the first.
#[tokio::test]
async fn an_id_that_is_repeated_gets_the_result_of_the_first() {
    let client = simulator("home", 1);
    let manager = builder(&client).build().await.unwrap();
    let home = manager.watcher("home").unwrap();
    manager.get_all().await.unwrap();
    let arguments = |id: &str| json!({ "id": id }).as_object().unwrap().clone();
    let stop = |id: &str| home.command(Verb::Stop, Some(hash(1)), arguments(id));
    let all = async { tokio::join!(stop("7"), stop("7"), stop("8")) };
    let (one, same, other) = tokio::time::timeout(TIMEOUT, all).await.unwrap();
    let (one, same, other) = (one.unwrap(), same.unwrap(), other.unwrap());
    assert_eq!(one, same);
    assert_eq!((one.id.as_str(), other.id.as_str()), ("7", "8"));
    let later = tokio::time::timeout(TIMEOUT, stop("7")).await.unwrap().unwrap();
    assert_eq!(one, later);
}

/// A client that panics when it is asked for some things.
#[derive(Clone)]
struct Fragile {
    simulator: Simulator,
    panics: Arc<AtomicUsize>,
}

impl Fragile {
    fn new(simulator: &Simulator) -> Self {
        Self { simulator: simulator.clone(), panics: Arc::default() }
    }

    fn panic(&self) -> ! {
        self.panics.fetch_add(1, Ordering::Relaxed);
        panic!("on purpose");
    }

    fn panics(&self) -> usize {
        self.panics.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl TorrentClient for Fragile {
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError> {
        self.simulator.list(scope).await
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        if parts.trackers {
            self.panic();
        }
        self.simulator.get(hashes, parts).await
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        let is_fatal = |action: &Action| {
            matches!(action, Action::Label(_, label) if label == "fatal") || *action == Action::Recheck(hash(1))
        };
        if actions.iter().any(is_fatal) {
            self.panic();
        }
        self.simulator.apply(actions).await
    }

    fn capabilities(&self) -> Capabilities<'_> {
        self.simulator.capabilities()
    }
}

#[tokio::test]
async fn a_command_that_panics_fails_alone_and_is_not_executed_again() {
    let folder = tempfile::tempdir().unwrap();
    let client = Fragile::new(&simulator("home", 40));
    let build = || {
        let server = Server::new(client.clone()).interval(Duration::from_millis(100));
        Manager::builder().server("home", server).data_dir(folder.path()).build()
    };
    let manager = build().await.unwrap();
    manager.get_all().await.unwrap();
    let home = manager.watcher("home").unwrap();
    let commands = [
        (Verb::Label, json!({"id": "fatal label", "label": "fatal"})),
        (Verb::Recheck, json!({"id": "fatal check"})),
        (Verb::Get, json!({"id": "fatal get", "trackers": true})),
    ];
    let command =
        |(verb, body): (Verb, serde_json::Value)| home.command(verb, Some(hash(1)), body.as_object().unwrap().clone());
    let fatal = join_all(commands.iter().cloned().map(command));
    // Enough of them to share an exchange with the one that panics.
    let others = join_all((2..=40).map(|n| home.label(hash(n), "fine")));
    let all = async { tokio::join!(fatal, others) };
    let (fatal, others) = tokio::time::timeout(TIMEOUT, all).await.unwrap();
    let fatal: Vec<_> = fatal.into_iter().map(Result::unwrap).collect();
    for outcome in &fatal {
        assert_eq!(outcome.error.as_ref().map(|error| error.code), Some(ErrorCode::ClientFault), "{outcome:?}");
        assert!(
            outcome.error.as_ref().is_some_and(|error| error.message.contains("its log says which")),
            "{outcome:?}"
        );
    }
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    home.label(hash(1), "fine").await.unwrap();
    let panics = client.panics();
    manager.shutdown().await.unwrap();

    let manager = build().await.unwrap();
    manager.get_all().await.unwrap();
    let home = manager.watcher("home").unwrap();
    for ((verb, body), before) in commands.into_iter().zip(fatal) {
        let again = home.command(verb, Some(hash(1)), body.as_object().unwrap().clone()).await.unwrap();
        assert_eq!(again, before, "as in the log");
    }
    assert_eq!(client.panics(), panics);
}

#[tokio::test]
async fn an_error_names_its_cause() {
    let (client, other) = (simulator("home", 2), simulator("attic", 1));
    let manager =
        builder(&client).server("attic", quick(&other)).patience(Duration::from_millis(300)).build().await.unwrap();
    let ambiguous = manager.pause(hash(1)).await.unwrap_err();
    assert!(ambiguous.to_string().contains("attic, home"), "{ambiguous}");
    assert!(matches!(manager.pause(hash(9)).await, Err(ManagerError::UnknownHash(_))));
    assert!(matches!(manager.add("cellar", NewTorrent::magnet("x")).await, Err(ManagerError::UnknownServer(_))));
    let Err(ManagerError::Command(error)) = manager.add("home", NewTorrent::magnet("x")).await else { panic!() };
    assert_eq!(error.code, ErrorCode::BadRequest);
    let file = manager.add("home", NewTorrent::file("/etc/passwd")).await.unwrap_err();
    assert!(matches!(file, ManagerError::Command(error) if error.code == ErrorCode::Forbidden));
    client.change(|world| world.behavior = Behavior::Unreachable);
    let home = manager.watcher("home").unwrap();
    eventually("it is known to be away", || home.status().problem.is_some()).await;
    let Err(ManagerError::Command(error)) = home.pause(hash(2)).await else { panic!() };
    assert_eq!((error.code, error.retryable), (ErrorCode::ClientOffline, true));
    assert!(matches!(home.get_one(hash(2)).await, Err(ManagerError::Client(_))));
    manager.shutdown().await.unwrap();
    assert!(matches!(home.pause(hash(2)).await, Err(ManagerError::Stopped)));
    assert!(matches!(home.get_one(hash(2)).await, Err(ManagerError::Stopped)));
}

#[tokio::test]
async fn a_server_that_never_answered_is_offline_and_not_empty() {
    let client = simulator("home", 2);
    client.change(|world| world.behavior = Behavior::Unreachable);
    let manager = builder(&client).build().await.unwrap();
    let error = manager.get_all().await.unwrap_err();
    assert!(matches!(error, ManagerError::Offline { .. }), "{error}");
    client.change(|world| world.behavior = Behavior::Well);
    let mut events = manager.events();
    until(&mut events, Kind::SnapshotDone).await;
    assert_eq!(manager.get_all().await.unwrap().len(), 2);
}

#[tokio::test]
async fn listeners_are_called_in_order_and_a_panic_in_one_affects_no_other() {
    let client = simulator("home", 0);
    let manager = builder(&client).build().await.unwrap();
    let received = Arc::new(Mutex::new(Vec::new()));
    let (recorded, panicked) = (Arc::clone(&received), Arc::new(AtomicUsize::new(0)));
    manager.on(Kind::Added, move |event| recorded.lock().unwrap().push(event.hash.unwrap()));
    let count = Arc::clone(&panicked);
    manager.on(Kind::Added, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        panic!("a listener that panics, on purpose");
    });
    let removed = manager.on(Kind::Added, |_| panic!("a removed listener was called"));
    manager.off(removed);
    for n in 1..=3 {
        client.change(|world| world.add(hash(n), SimulatedTorrent::new("new", 10)));
        eventually("the event arrives", || received.lock().unwrap().len() == usize::from(n)).await;
    }
    assert_eq!(*received.lock().unwrap(), [hash(1), hash(2), hash(3)]);
    eventually("it is called again", || panicked.load(Ordering::Relaxed) == 3).await;
}

#[tokio::test]
async fn a_slow_reader_of_a_stream_learns_how_many_events_it_missed() {
    let client = simulator("home", 2);
    let manager = builder(&client).journal_bytes(4000).build().await.unwrap();
    let mut slow = manager.events();
    for _ in 0..10 {
        manager.pause(hash(1)).await.unwrap();
        manager.resume(hash(1)).await.unwrap();
    }
    let mut reader = manager.events();
    let missed = tokio::time::timeout(TIMEOUT, slow.next()).await.unwrap().unwrap().unwrap_err();
    assert!(missed.events > 10, "{missed}");
    let first = next(&mut slow).await;
    assert_eq!(first.seq.unwrap().0, missed.events + 1, "it continues where the journal begins");
    assert_eq!(reader.next().await.unwrap(), Err(missed));
}

#[tokio::test]
async fn a_reader_that_paused_gets_changed_counters_as_one_update() {
    let client = simulator("home", 1);
    let manager = builder(&client).build().await.unwrap();
    let mut events = manager.events();
    until(&mut events, Kind::SnapshotDone).await;
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    for (bytes, total) in [(100, 100), (200, 300)] {
        client.change(|world| world.receive(&hash(1), bytes, 100));
        while manager.get_all().await.unwrap()[0].downloaded != total {
            assert!(tokio::time::Instant::now() < deadline, "{total} never arrived");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let updated = until(&mut events, Kind::Updated).await;
    assert_eq!(updated.changes["downloaded"], Change { from: json!(0), to: json!(300) }, "{updated:?}");
    assert_eq!((updated.seq, updated.torrent.unwrap().downloaded), (None, 300));
}

#[tokio::test]
async fn with_a_data_directory_missed_changes_are_recovered_and_numbering_continues() {
    async fn manager(client: &Simulator, folder: &Path) -> Manager {
        builder(client).data_dir(folder).build().await.unwrap()
    }
    let folder = tempfile::tempdir().unwrap();
    let client = simulator("home", 2);
    let first = manager(&client, folder.path()).await;
    let mut events = first.events();
    let done = until(&mut events, Kind::SnapshotDone).await;
    let busy = builder(&client).data_dir(folder.path()).build().await;
    assert!(matches!(busy, Err(BuildError::Store(_))), "one process, one manager");
    first.shutdown().await.unwrap();
    assert_eq!(events.next().await, None, "the stream ends with the manager");
    client.change(|world| world.remove(&hash(1)));

    let second = manager(&client, folder.path()).await;
    let mut events = second.events();
    let removed = until(&mut events, Kind::Removed).await;
    assert_eq!((removed.cause, removed.hash), (Cause::Recovered, Some(hash(1))));
    assert!(removed.seq > done.seq, "{removed:?}");
    let mut after = second.events_since(Since::After(vec![done.id]));
    assert_eq!(next(&mut after).await.seq.unwrap().0, done.seq.unwrap().0 + 1);
    drop(second);
    eventually("a dropped manager lets go of its folder", || {
        std::fs::File::open(folder.path().join("dtorrent.lock")).unwrap().try_lock().is_ok()
    })
    .await;
}

#[tokio::test]
async fn building_a_manager_fails_with_the_setting_that_is_wrong() {
    let build = |builder: Builder| async { builder.build().await.err().expect("an error").to_string() };
    assert_eq!(build(Manager::builder()).await, "no server was given");
    let twice = Manager::builder().server("a", quick(&simulator("a", 0))).server("a", quick(&simulator("a", 0)));
    assert_eq!(build(twice).await, "server a was given twice");
    assert!(
        build(Manager::builder().server("A", Server::rtorrent("unix:///x"))).await.contains("`A` is not a valid name")
    );
    assert_eq!(build(Manager::builder().server("a", Server::rtorrent("nonsense"))).await, "set up server a");
}

#[test]
fn public_types_can_be_sent_between_threads() {
    fn is_fine<T: Send + Sync + 'static>() {}
    fn is_send<T: Send + 'static>() {}
    is_fine::<Manager>();
    is_fine::<dtorrent::manager::Watcher>();
    is_fine::<ManagerError>();
    is_send::<Events>();
}
