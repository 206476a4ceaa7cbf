//! Home Assistant: devices appear, show the present state, and are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dtorrent::commands::Common;
use dtorrent::live_state::LiveState;
use dtorrent::model::{Health, Info, Kind, PollSettings, ReportLimits, ServerName, SinkName, Timestamp};
use dtorrent::outbox::retention::Retain;
use dtorrent::outbox::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter};
use dtorrent::port::{Clock, Store, SystemClock};
use dtorrent::servers::load;
use dtorrent::sinks::mqtt::{BrokerUrl, HomeAssistant, Limits, MqttSink, Prefix, Settings, Version};
use dtorrent::store::MemoryStore;
use dtorrent::testing::simulator::Simulator;
use dtorrent::watch::Watcher;
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::recorder::{Command, Message, Recorder};
use crate::harness::{Setup, World, can_run};

#[path = "../rules/homeassistant.rs"]
mod rules;

const ENABLED: &str = "[brokers.b.home_assistant]\nenabled = true\n";

fn enabled() -> Setup {
    Setup { sink: ENABLED.to_owned(), ..Setup::default() }
}

fn discovery(id: &str) -> String {
    format!("homeassistant/device/dtorrent_main/{id}/config")
}

/// Returns the first message on a topic that satisfies `is_right`, received after `mark`.
async fn message(recorder: &Recorder, mark: usize, topic: &str, is_right: impl Fn(&Value) -> bool) -> Message {
    let find = |all: &[Message]| {
        let mut of_topic = all[mark..].iter().filter(|m| m.topic == topic && !m.payload.is_empty());
        of_topic.find(|m| is_right(&m.json())).cloned()
    };
    recorder.wait_for(topic, find).await
}

async fn device(recorder: &Recorder, mark: usize, id: &str) -> Value {
    let topic = discovery(id);
    let message = message(recorder, mark, &topic, |_| true).await;
    assert!(message.retain, "{topic}");
    let faults = rules::faults(&topic, &message.payload);
    assert!(faults.is_empty(), "{faults:#?}");
    message.json()
}

/// Returns what a new client finds retained below `homeassistant/` and in the bridge's documents.
async fn retained(world: &World) -> BTreeMap<String, Value> {
    let late = Recorder::listen(world.broker.port).await;
    let marker = format!("marker/{}", rand::random::<u64>());
    late.send(Command::new(&marker, "x")).await;
    late.wait_for(&marker, |all| all.iter().any(|m| m.topic == marker).then_some(())).await;
    let of_home_assistant = |m: &&Message| m.topic.starts_with("homeassistant/") || m.topic.contains("/homeassistant/");
    late.all().iter().filter(|m| m.retain).filter(of_home_assistant).map(|m| (m.topic.clone(), m.json())).collect()
}

#[tokio::test]
async fn devices_appear_and_are_removed_when_home_assistant_is_switched_off() {
    if !can_run() {
        return;
    }
    let mut world = World::running(enabled()).await;
    let bridge = device(&world.recorder, 0, "bridge").await;
    let home = device(&world.recorder, 0, "home").await;
    assert_eq!(home["device"]["via_device"], bridge["device"]["identifiers"][0]);
    let rates = message(&world.recorder, 0, "dtorrent/home/homeassistant/rates", |_| true).await;
    assert!(rates.retain);
    assert_eq!(rates.json()["status"], "idle");
    message(&world.recorder, 0, "dtorrent/home/homeassistant/slot/10", |_| true).await;
    world.bridge().stop().await;
    let config = std::fs::read_to_string(world.folder.join("dtorrent.toml")).unwrap();
    std::fs::write(world.folder.join("dtorrent.toml"), config.replace("enabled = true", "enabled = false")).unwrap();
    world.bridge().restart();
    world.recorder.wait_for_last(&discovery("home"), "").await;
    world.recorder.wait_for_last(&discovery("bridge"), "").await;
    world.recorder.wait_for_last("dtorrent/home/homeassistant/rates", "").await;
    world.bridge().stop().await;
    assert_eq!(retained(&world).await, BTreeMap::new());
}

#[tokio::test]
async fn the_device_of_a_server_that_left_the_config_while_the_bridge_was_down_is_removed() {
    if !can_run() {
        return;
    }
    let mut world = World::new(enabled()).await;
    let attic = Rtorrent::start(&world.folder.join("attic"), &Options::default()).await.unwrap();
    let (home_url, attic_url) = (world.home.url(), attic.url());
    world.start_bridge_for(&[("home", &home_url), ("attic", &attic_url)]).await;
    device(&world.recorder, 0, "attic").await;
    world.bridge().process().kill().unwrap();
    world.start_bridge_for(&[("home", &home_url)]).await;
    world.recorder.wait_for_last(&discovery("attic"), "").await;
    world.recorder.wait_for_last("dtorrent/attic/homeassistant/counts", "").await;
    assert!(retained(&world).await.keys().all(|topic| !topic.contains("attic")));
}

#[tokio::test]
async fn the_birth_message_of_home_assistant_republishes_everything_and_events_wait_while_it_is_offline() {
    if !can_run() {
        return;
    }
    let world = World::running(enabled()).await;
    device(&world.recorder, 0, "home").await;
    world.recorder.send(Command::new("homeassistant/status", "offline")).await;
    // Results are delivered after earlier messages.
    let hash = world.home.load(&Content::file("one", 20_000, 1).torrent, false).await.unwrap();
    world.recorder.event("home", "added", hash).await;
    let label = format!("home/torrent/{hash}/command/label");
    world.recorder.command(&label, json!({"label": "x"})).await;
    world.recorder.event("home", "label_changed", hash).await;
    let event = "dtorrent/home/homeassistant/event";
    let is_news = |message: &&Message| message.topic == event && message.json()["name"] == "one";
    assert_eq!(world.recorder.all().iter().filter(is_news).count(), 0, "it waits");
    let mark = world.recorder.mark();
    world.recorder.send(Command::new("homeassistant/status", "online")).await;
    device(&world.recorder, mark, "bridge").await;
    device(&world.recorder, mark, "home").await;
    message(&world.recorder, mark, "dtorrent/home/homeassistant/counts", |counts| counts["all"] == 1).await;
    let added = message(&world.recorder, mark, event, |event| event["event_type"] == "added").await;
    assert!(!added.retain);
    assert_eq!(added.json()["name"], "one");
    message(&world.recorder, mark, event, |event| event["event_type"] == "label_changed").await;
    let since = world.recorder.since(mark);
    let at = |topic: &str| since.iter().position(|m| m.topic == topic).unwrap();
    assert!(at(&discovery("home")) < at(event));
}

#[tokio::test]
async fn a_slot_s_switch_pauses_its_torrent_and_the_buttons_pause_and_resume_all() {
    if !can_run() {
        return;
    }
    let mut world = World::new(enabled()).await;
    let hash = world.home.load(&Content::file("one", 20_000, 1).torrent, true).await.unwrap();
    world.start_bridge().await;
    let home = device(&world.recorder, 0, "home").await;
    let slot = "dtorrent/home/homeassistant/slot/1";
    let shown = message(&world.recorder, 0, slot, |slot| slot["running"] == true).await.json();
    assert_eq!((&shown["name"], &shown["hash"]), (&json!("one"), &json!(hash)));
    let topic = home["components"]["slot_1_run"]["command_topic"].as_str().unwrap().to_owned();
    for (state, running) in [("OFF", false), ("ON", true)] {
        let mark = world.recorder.mark();
        // The payload that the switch's template renders.
        let body = json!({"state": state, "hash": hash}).to_string();
        world.recorder.send(Command::new(&topic, body.as_str())).await;
        message(&world.recorder, mark, slot, |slot| slot["running"] == running).await;
        message(&world.recorder, mark, "dtorrent/home/result", |result| result["status"] == "ok").await;
    }
    for (button, running) in [("pause_all", false), ("resume_all", true)] {
        let mark = world.recorder.mark();
        let button = &home["components"][button];
        let (topic, press) = (button["command_topic"].as_str().unwrap(), button["payload_press"].as_str().unwrap());
        world.recorder.send(Command::new(topic, press)).await;
        message(&world.recorder, mark, slot, |slot| slot["running"] == running).await;
    }
    let all = home["components"]["all_switch"]["command_topic"].as_str().unwrap();
    for (state, started) in [("OFF", 0), ("ON", 1)] {
        let mark = world.recorder.mark();
        world.recorder.send(Command::new(all, state)).await;
        let counts = "dtorrent/home/homeassistant/counts";
        message(&world.recorder, mark, counts, |counts| counts["started"] == started).await;
    }
    let mark = world.recorder.mark();
    world.recorder.send(Command::new(&topic, "nonsense")).await;
    message(&world.recorder, mark, "dtorrent/home/result", |result| result["error"]["code"] == "unsupported").await;
}

#[tokio::test]
async fn limits_and_the_alternative_speed_are_set_and_resync_republishes_everything() {
    if !can_run() {
        return;
    }
    let sink = format!(
        "{ENABLED}alternative_download = \"100KiB\"\nalternative_upload = \"50KiB\"\nnormal_upload = \"1MiB\"\n"
    );
    let mut world = World::running(Setup { sink, ..Setup::default() }).await;
    let home = device(&world.recorder, 0, "home").await;
    let limits = "dtorrent/home/homeassistant/limits";
    let topic = |component: &str| home["components"][component]["command_topic"].as_str().unwrap().to_owned();
    // The payload that the number's template renders.
    let body = json!({"download_limit": 300 * 1024}).to_string();
    world.recorder.send(Command::new(topic("download_limit").as_str(), body.as_str())).await;
    message(&world.recorder, 0, limits, |limits| limits["download_limit"] == 300 * 1024).await;
    for (state, down, up) in [("ON", 100, 50), ("OFF", 0, 1024)] {
        let mark = world.recorder.mark();
        world.recorder.send(Command::new(topic("alternative").as_str(), state)).await;
        let is_set = |limits: &Value| {
            limits["download_limit"] == down * 1024
                && limits["upload_limit"] == up * 1024
                && limits["is_alternative"] == (state == "ON")
        };
        message(&world.recorder, mark, limits, is_set).await;
        let rates = ["throttle.global_down.max_rate", "throttle.global_up.max_rate"];
        for (rate, kib) in rates.into_iter().zip([down, up]) {
            let really = world.home.rpc.call(rate, &[Argument::Text("")]).await.unwrap();
            assert_eq!(really, [(kib * 1024).to_string()]);
        }
    }
    let bridge = device(&world.recorder, 0, "bridge").await;
    let of_bridge = bridge["components"]["resync"]["command_topic"].as_str().unwrap();
    for (answer, topic) in [("home/result", topic("resync").as_str()), ("bridge/main/result", of_bridge)] {
        let mark = world.recorder.mark();
        world.recorder.send(Command::new(topic, "")).await;
        let answer = format!("dtorrent/{answer}");
        message(&world.recorder, mark, &answer, |result| result["verb"] == "resync" && result["status"] == "ok").await;
    }
    world.bridge().stop().await;
}

/// The engine with a simulated client and a real broker.
struct SimulatedEngine {
    recorder: Recorder,
    client: Simulator,
    stop: CancellationToken,
    _broker: Mosquitto,
    _folder: tempfile::TempDir,
}

impl Drop for SimulatedEngine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A reporter for an engine without a bridge around it.
struct EmptyReporter;

impl Reporter for EmptyReporter {
    fn info(&self, _: &dtorrent::model::SinkName, published: &[ServerName]) -> Bytes {
        let info = Info {
            version: "0",
            instance: "main".to_owned(),
            servers: Vec::new(),
            published: published.to_vec(),
            commands: Vec::new(),
            sinks: Vec::new(),
            schemas: Vec::new(),
            limits: ReportLimits { command_bytes: 0 },
        };
        serde_json::to_vec(&info).unwrap().into()
    }

    fn health(&self) -> Bytes {
        let (servers, sinks) = (BTreeMap::new(), BTreeMap::new());
        let time = Timestamp::from_millis(0);
        let (memory_max_bytes, commands_bytes) = (0, 0);
        let health =
            Health { time, uptime_seconds: 0, memory_bytes: None, memory_max_bytes, commands_bytes, servers, sinks };
        serde_json::to_vec(&health).unwrap().into()
    }
}

impl SimulatedEngine {
    #[allow(clippy::disallowed_methods)] // a test's own tasks
    async fn with(torrents: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let broker = Mosquitto::start(folder.path(), &mosquitto::Options::default()).await.unwrap();
        let recorder = Recorder::listen(broker.port).await;
        let (server, sink) = (ServerName::parse("home").unwrap(), SinkName::parse("b").unwrap());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client = Simulator::populated(server.clone(), Arc::clone(&clock), torrents);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let committed = load(&*store, &server).await.unwrap();
        let live = Arc::new(LiveState::new(BTreeMap::from([(server.clone(), committed)]), [sink.clone()]));
        let home_assistant = HomeAssistant {
            discovery_prefix: "homeassistant".to_owned(),
            slots: 10,
            torrents: None,
            torrents_max: 20,
            alternative: None,
            normal: Limits::default(),
            verbs: ["pause", "resume"].map(str::to_owned).into(),
        };
        let settings = Settings {
            name: sink.clone(),
            instance: "main".to_owned(),
            url: BrokerUrl::parse(&broker.url()).unwrap(),
            username: None,
            password: None,
            trust: dtorrent::tls::Trust::default(),
            client_id: None,
            client_cert: None,
            version: Version::Auto,
            prefix: Prefix::default(),
            servers: vec![server.clone()],
            retain: Retain::All,
            home_assistant: Some(home_assistant),
        };
        let parts = DispatcherParts {
            settings: DispatcherSettings {
                name: sink.clone(),
                servers: vec![server.clone()],
                events: Kind::ALL.iter().copied().collect(),
                retain: Retain::None,
                was_clean_shutdown: true,
            },
            sink: Arc::new(MqttSink::new(settings).unwrap()),
            store: Arc::clone(&store),
            live: Arc::clone(&live),
            buffer: live.buffer(&sink).cloned().unwrap(),
            clock: Arc::clone(&clock),
            reporter: Arc::new(EmptyReporter),
        };
        let watcher = Watcher {
            server,
            poll: PollSettings::new(Duration::from_millis(250), Duration::from_secs(30)),
            client: Arc::new(client.clone()),
            common: Common { store, live, clock },
            pending_effects: Arc::default(),
            files: Arc::default(),
            is_state_lost: false,
        };
        let stop = CancellationToken::new();
        tokio::spawn(Dispatcher::new(parts).await.unwrap().run(stop.clone()));
        tokio::spawn(watcher.run(stop.clone()));
        Self { recorder, client, stop, _broker: broker, _folder: folder }
    }

    /// Returns all topics of Home Assistant's, once every slot has been published.
    async fn topics(&self, torrents: u32) -> BTreeSet<String> {
        let counts = "dtorrent/home/homeassistant/counts";
        message(&self.recorder, 0, counts, |counts| counts["all"] == torrents).await;
        message(&self.recorder, 0, "dtorrent/home/homeassistant/slot/10", |slot| slot["hash"].is_string()).await;
        message(&self.recorder, 0, "dtorrent/home/homeassistant/list", |list| list["total"] == torrents).await;
        device(&self.recorder, 0, "home").await;
        let of_home_assistant = |topic: &String| topic.contains("homeassistant") && !topic.ends_with("/event");
        let topics = |all: &[Message]| -> BTreeSet<String> {
            all.iter().map(|message| message.topic.clone()).filter(of_home_assistant).collect()
        };
        // Seven documents, ten slots, two devices; the last of them may arrive some seconds later.
        self.recorder.wait_for("all documents", |all| Some(topics(all)).filter(|topics| topics.len() >= 19)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_torrents_make_no_more_entities_than_ten() {
    if !can_run() {
        return;
    }
    let (few, many) = (SimulatedEngine::with(10).await, SimulatedEngine::with(10_000).await);
    assert_eq!(few.topics(10).await, many.topics(10_000).await);
    let components = async |of: &SimulatedEngine| device(&of.recorder, 0, "home").await["components"].clone();
    assert_eq!(components(&few).await, components(&many).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_200_active_torrents_home_assistant_gets_a_few_changes_a_second() {
    if !can_run() {
        return;
    }
    let world = SimulatedEngine::with(200).await;
    world.topics(200).await;
    let (mark, since) = (world.recorder.mark(), tokio::time::Instant::now());
    let hashes: Vec<_> = world.client.change(|world| world.torrents().keys().copied().collect());
    // Every torrent transfers until the rates have been published four more times.
    let moved = async {
        for round in 1u64.. {
            world.client.change(|world| {
                for (n, hash) in (0u64..).zip(&hashes) {
                    world.receive(hash, 1_000 + n, 1_000_000 + (n * round * 7_919) % 1_000_000);
                }
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let topic = "dtorrent/home/homeassistant/rates";
    let published = world.recorder.wait_within(Duration::from_secs(180), "rates", |all| {
        (all[mark..].iter().filter(|message| message.topic == topic).count() >= 4).then_some(())
    });
    tokio::select! {
        () = moved => unreachable!(),
        () = published => {}
    }
    let seconds = since.elapsed().as_secs_f64();
    let documents = world.recorder.since(mark).into_iter().filter(|m| m.topic.contains("/homeassistant/"));
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    let mut changes = 0;
    for message in documents.filter(|message| !message.topic.ends_with("/event")) {
        let body = message.json();
        let before = last.insert(message.topic.clone(), body.clone()).unwrap_or_default();
        let entities = if message.topic.contains("/slot/") { 3 } else { 17 };
        changes += body.as_object().unwrap().iter().filter(|(k, v)| before.get(*k) != Some(*v)).count().min(entities);
    }
    // The budget saved up before the measurement may be used in it.
    assert!((changes as f64) < 5.0 * seconds + 50.0, "{changes} changes in {seconds} s");
}

#[tokio::test]
async fn purge_clears_every_retained_message() {
    if !can_run() {
        return;
    }
    let mut world = World::new(enabled()).await;
    world.home.load(&Content::file("one", 20_000, 1).torrent, false).await.unwrap();
    world.start_bridge().await;
    device(&world.recorder, 0, "home").await;
    message(&world.recorder, 0, "dtorrent/home/homeassistant/slot/10", |_| true).await;
    let config = world.folder.join("dtorrent.toml");
    let purge = || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        command.arg("purge").arg("--config").arg(&config);
        command
    };
    let refused = purge().output().await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "the bridge runs: {refused:?}");
    world.bridge().stop().await;
    let done = purge().output().await.unwrap();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let late = Recorder::listen(world.broker.port).await;
    late.send(Command::new("marker", "x")).await;
    late.wait_for_last("marker", "x").await;
    let left: Vec<String> = late.all().into_iter().filter(|m| m.retain).map(|m| m.topic).collect();
    assert_eq!(left, [""; 0], "something is still retained");
    // With a lost store, too: purge scans the broker for retained messages.
    world.bridge().restart();
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "online").await;
    world.bridge().stop().await;
    std::fs::remove_dir_all(world.data_dir()).unwrap();
    let again = purge().output().await.unwrap();
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let late = Recorder::listen(world.broker.port).await;
    late.send(Command::new("marker", "x")).await;
    late.wait_for_last("marker", "x").await;
    let left: Vec<String> = late.all().into_iter().filter(|m| m.retain).map(|m| m.topic).collect();
    assert_eq!(left, [""; 0], "something is still retained");
}
