//! The projection under a clock of the tests' own: what it sends when, whatever moves.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::{
    Cause, Changes, DiffState, EVENT_SCHEMA, Entity, Epoch, Event, EventId, Kind, Rev, Seq, ServerState, ServerStats,
    SnapshotTorrent,
};
use crate::sinks::broker::prefix::Prefix;

fn home() -> ServerName {
    ServerName::parse("home").unwrap()
}

fn hash(n: u32) -> InfoHash {
    let mut bytes = [7; 20];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    InfoHash::V1(bytes)
}

fn torrent(n: u32, more: &[(&str, Value)]) -> Torrent {
    let mut json = json!({
        "hash": hash(n), "name": format!("torrent {n}"), "server": "home", "active": true, "downloaded": 500,
        "uploaded": 100, "length": 1_000, "progress": 50.0, "finished": false, "playing": true, "extra": {},
        "status": "downloading", "error": false, "stalled": false, "download_rate": 0, "upload_rate": 0,
        "added_at": Timestamp::from_seconds(i64::from(n)),
    });
    for (key, value) in more {
        json[*key] = value.clone();
    }
    serde_json::from_value(json).unwrap()
}

fn snapshot(torrents: impl IntoIterator<Item = Torrent>) -> Snapshot {
    let snapshot = |torrent: Torrent| {
        let (torrent, changed_at) = (Arc::new(torrent), Timestamp::from_seconds(0));
        (
            torrent.hash,
            SnapshotTorrent { torrent, rev: Rev(1), last_seq: Seq(1), changed_at, diff_state: DiffState::default() },
        )
    };
    torrents.into_iter().map(snapshot).collect()
}

fn settings(slots: u8) -> HomeAssistant {
    HomeAssistant {
        discovery_prefix: "homeassistant".into(),
        slots,
        torrents: None,
        torrents_max: 20,
        alternative: None,
        normal: Limits::default(),
        verbs: ["pause", "resume"].map(str::to_owned).into(),
    }
}

fn names() -> Names {
    Names {
        prefix: Prefix::of_topics("dtorrent").unwrap(),
        instance: "main".into(),
        discovery_prefix: "homeassistant".into(),
    }
}

fn entry(kind: Kind, cause: Cause) -> JournalEntry {
    let event = Event {
        schema: EVENT_SCHEMA,
        entity: Entity::Torrent,
        event_type: kind,
        id: EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(1) },
        seq: Some(Seq(1)),
        time: Timestamp::from_seconds(0),
        server: home(),
        hash: Some(hash(1)),
        cause,
        command_id: None,
        changes: Changes::new(),
        torrent: Some(Arc::new(torrent(1, &[]))),
    };
    JournalEntry::new(event, Rev(1))
}

/// A projection, what it is shown, and what it has sent.
struct TestRun {
    projection: HomeAssistantProjection,
    presence: Arc<Presence>,
    snapshot: Snapshot,
    stats: ServerStats,
    state: ServerState,
    at: Duration,
    sent: Vec<(Duration, Delivery)>,
}

impl TestRun {
    fn new(settings: HomeAssistant, snapshot: Snapshot) -> Self {
        let presence = Arc::new(Presence::default());
        let mut projection = HomeAssistantProjection::new(settings, names(), &[home()], Arc::clone(&presence));
        projection.begin(Duration::ZERO);
        let state = ServerState { is_known: true, is_online: true, ..ServerState::default() };
        let stats = ServerStats { client: Some("rTorrent 0.9.8".into()), ..ServerStats::default() };
        Self { projection, presence, snapshot, stats, state, at: Duration::ZERO, sent: Vec::new() }
    }

    /// Lets time pass as the dispatcher does: it asks when something is due, ten times a second at most.
    fn play(&mut self, seconds: u64, mut change: impl FnMut(&mut Self, u64)) {
        let end = self.at + Duration::from_secs(seconds);
        let mut tenth = 0;
        while self.at < end {
            change(self, tenth);
            tenth += 1;
            if self.projection.needs_view(&home(), self.at) {
                let view = ServerView {
                    snapshot: &self.snapshot,
                    state: &self.state,
                    stats: &self.stats,
                    poll: Duration::from_millis(5),
                    poll_age: Some(Duration::ZERO),
                    problem: None,
                    now: Timestamp::from_seconds(0),
                };
                self.projection.update(&home(), view, self.at);
            }
            while let Some(delivery) = self.projection.next(self.at) {
                if let Delivery::Projected { topic, .. } = &delivery {
                    self.projection.acknowledged(topic);
                }
                self.sent.push((self.at, delivery));
            }
            self.at += Duration::from_millis(100);
        }
    }

    fn sent_to(&self, topic: &str) -> Vec<(Duration, Value)> {
        let body = |(at, delivery): &(Duration, Delivery)| match delivery {
            Delivery::Projected { topic: to, body, .. } if to == topic => {
                Some((*at, serde_json::from_slice(body).unwrap()))
            }
            _ => None,
        };
        self.sent.iter().filter_map(body).collect()
    }

    fn discovery(&self) -> Vec<(Duration, Value)> {
        self.sent_to("homeassistant/device/dtorrent_main/home/config")
    }

    fn cleared(&self) -> Vec<&str> {
        let name = |(_, delivery): &'_ (Duration, Delivery)| matches!(delivery, Delivery::Clear { .. });
        let cleared = self.sent.iter().filter(|sent| name(sent));
        cleared
            .map(|(_, delivery)| if let Delivery::Clear { topic } = delivery { topic.as_str() } else { "" })
            .collect()
    }

    /// How many values of entities changed, by second.
    fn changes(&self, from: Duration) -> Vec<usize> {
        let mut last: BTreeMap<&str, Value> = BTreeMap::new();
        let mut seconds = vec![0; self.at.as_secs() as usize + 1];
        for (at, delivery) in &self.sent {
            let Delivery::Projected { topic, body, retain: true } = delivery else { continue };
            if topic.ends_with("/config") {
                continue;
            }
            let body: Value = serde_json::from_slice(body).unwrap();
            let before = last.insert(topic, body.clone()).unwrap_or_default();
            let entities = if topic.contains("/slot/") { 3 } else { 17 };
            let changed = body.as_object().unwrap().iter().filter(|(key, value)| before.get(*key) != Some(*value));
            seconds[at.as_secs() as usize] += changed.count().min(entities);
        }
        seconds.split_off(from.as_secs() as usize)
    }
}

/// Every torrent moves, starts and stalls all the time.
fn shake(test: &mut TestRun, tenth: u64) {
    for (n, snapshot) in test.snapshot.values_mut().enumerate() {
        let mut torrent = (*snapshot.torrent).clone();
        let n = n as u64 + tenth;
        torrent.download_rate = Some(n * 7_919 % 1_000_000);
        torrent.upload_rate = Some(n * 104_729 % 10_000 * (n % 2));
        torrent.progress = (n % 1000) as f64 / 10.0;
        torrent.stalled = n.is_multiple_of(13);
        snapshot.torrent = Arc::new(torrent);
    }
    test.stats.download_rate = Some(tenth * 7_919 % 10_000_000);
    test.stats.upload_rate = Some(tenth * 104_729 % 10_000_000);
    test.stats.downloaded = Some(tenth * 3_000_000);
    test.stats.uploaded = Some(tenth * 1_000_000);
    test.projection.on_change(&home());
}

#[test]
fn with_200_moving_torrents_fewer_than_five_values_change_a_second() {
    let mut test = TestRun::new(settings(10), snapshot((0..200).map(|n| torrent(n, &[]))));
    test.play(600, shake);
    let changes = test.changes(Duration::from_secs(30));
    let average = changes.iter().sum::<usize>() as f64 / changes.len() as f64;
    assert!((0.5..5.0).contains(&average), "{average} changes a second");
    assert!(changes.iter().all(|changes| *changes <= 50), "{changes:?}");
    let burst = test.changes(Duration::ZERO).into_iter().max().unwrap();
    assert!(burst <= 100, "{burst} changes in the first seconds");
    let rates = test.sent_to("dtorrent/home/homeassistant/rates");
    assert!(rates.len() > 20, "the rates are sent all the same: {}", rates.len());
}

#[test]
fn ten_thousand_torrents_make_no_more_entities_than_ten_do_and_the_list_stays_small() {
    let many = |count| {
        let mut test = TestRun::new(settings(10), snapshot((0..count).map(|n| torrent(n, &[]))));
        test.play(60, |_, _| {});
        test
    };
    let (few, many) = (many(10), many(10_000));
    assert_eq!(few.projection.retained_topics(), many.projection.retained_topics());
    let topics = |test: &TestRun| -> HashSet<String> {
        let topic = |(_, delivery): &(Duration, Delivery)| match delivery {
            Delivery::Projected { topic, .. } => topic.clone(),
            _ => String::new(),
        };
        test.sent.iter().map(topic).collect()
    };
    assert_eq!(topics(&few), topics(&many));
    assert_eq!(few.discovery(), many.discovery());
    let components = many.discovery()[0].1["components"].as_object().unwrap().len();
    assert!((40..=90).contains(&components), "{components} components");
    let list = &many.sent_to("dtorrent/home/homeassistant/list")[0].1;
    assert!(list.to_string().len() < 15 * 1024, "{} bytes", list.to_string().len());
    assert_eq!(list["total"], 10_000);
    assert!(list["shown"].as_u64().unwrap() > 20, "{}", list["shown"]);
    for (_, delivery) in &many.sent {
        if let Delivery::Projected { topic, body, .. } = delivery
            && !topic.ends_with("/config")
        {
            assert!(body.len() < 15 * 1024, "{topic} has {} bytes", body.len());
        }
    }
}

#[test]
fn discovery_is_repeated_after_half_a_minute_and_never_sent_twice_in_two_seconds() {
    let mut test = TestRun::new(settings(1), snapshot([]));
    test.stats.client = None;
    // The client says what it is a moment later, which changes its device.
    test.play(120, |test, tenth| {
        if tenth == 3 {
            test.stats.client = Some("rTorrent 0.9.8".into());
            test.projection.on_change(&home());
        }
    });
    let times: Vec<u64> = test.discovery().iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(times, [0, 2, 32]);
    assert_eq!(test.discovery()[1].1["device"]["sw_version"], "0.9.8");
}

#[test]
fn a_component_that_is_gone_is_removed_by_name_also_by_a_later_run() {
    let mut test = TestRun::new(settings(3), snapshot([]));
    test.play(60, |_, _| {});
    let saved =
        test.projection.state_to_save(test.at, true).or(Some(serde_json::to_string(&test.projection.state).unwrap()));
    let mut later = TestRun::new(settings(1), snapshot([]));
    later.projection.restore(&saved.unwrap());
    later.play(120, |_, _| {});
    let sent: Vec<Value> = later.discovery().into_iter().map(|(_, body)| body["components"].clone()).collect();
    assert_eq!(sent[0]["slot_3_run"], json!({"platform": "switch"}));
    assert_eq!(sent[1].get("slot_3_run"), None, "it is gone there by then");
    assert!(sent.iter().all(|components| components["slot_1"]["unique_id"].is_string()));
    let kept: SavedState = serde_json::from_str(&later.projection.state_to_save(later.at, true).unwrap()).unwrap();
    assert!(!kept.devices["home"].contains_key("slot_2"));
    assert!(kept.devices["home"].contains_key("slot_1"));
}

#[test]
fn a_device_is_saved_before_it_is_sent() {
    let mut test = TestRun::new(settings(1), snapshot([]));
    let view = ServerView {
        snapshot: &test.snapshot,
        state: &test.state,
        stats: &test.stats,
        poll: Duration::ZERO,
        poll_age: None,
        problem: None,
        now: Timestamp::from_seconds(0),
    };
    test.projection.update(&home(), view, Duration::ZERO);
    while let Some(delivery) = test.projection.next(Duration::from_secs(1)) {
        if matches!(&delivery, Delivery::Projected { topic, .. } if topic.ends_with("home/config")) {
            let saved = test.projection.state_to_save(Duration::from_secs(1), false).unwrap();
            assert!(saved.contains("slot_1_run"), "{saved}");
            return;
        }
        test.projection.state_to_save(Duration::from_secs(1), false);
        test.projection.discovery.next_at = Duration::ZERO;
    }
    panic!("the device was not sent");
}

#[test]
fn when_home_assistant_comes_online_discovery_is_repeated_before_the_events_that_waited() {
    let mut test = TestRun::new(settings(1), snapshot([torrent(1, &[])]));
    test.play(60, |_, _| {});
    test.presence.on_status(b"offline", false);
    let entry = entry(Kind::Finished, Cause::Observed);
    test.projection.on_event(&entry, test.at);
    test.play(60, |_, _| {});
    let events = "dtorrent/home/homeassistant/event";
    assert!(test.sent_to(events).is_empty());
    let (born, before) = (test.at, test.discovery().len());
    test.presence.on_status(b"online", false);
    test.play(60, |_, _| {});
    let again = &test.discovery()[before..];
    let (_, event) = &test.sent_to(events)[0];
    assert_eq!((&event["event_type"], &event["name"]), (&json!("finished"), &json!("torrent 1")));
    let pause = again[0].0 - born;
    assert!((Duration::from_millis(500)..Duration::from_secs(3)).contains(&pause), "{pause:?}");
    assert!(test.sent_to(events)[0].0 >= again[0].0 + SUBSCRIBED_AFTER);
    assert!(test.sent_to("dtorrent/home/homeassistant/counts").len() >= 2, "states come again");
    let first_sight = self::entry(Kind::Added, Cause::Snapshot);
    test.projection.on_event(&first_sight, test.at);
    test.play(10, |_, _| {});
    assert_eq!(test.sent_to(events).len(), 1, "the first snapshot is no event");
}

#[test]
fn what_happened_is_shown_within_a_second_and_what_drifts_is_not() {
    let mut test = TestRun::new(settings(1), snapshot([torrent(1, &[])]));
    test.play(61, |_, _| {});
    let (slot, before) = ("dtorrent/home/homeassistant/slot/1", test.at);
    test.snapshot = snapshot([torrent(1, &[("status", json!("paused"))])]);
    test.projection.on_change(&home());
    test.play(2, |_, _| {});
    let (at, body) = test.sent_to(slot).pop().unwrap();
    assert_eq!(body["running"], false);
    assert!(at - before <= Duration::from_secs(1));
    test.snapshot = snapshot([torrent(1, &[("status", json!("paused")), ("progress", json!(50.1))])]);
    test.projection.on_change(&home());
    test.play(5, |_, _| {});
    assert_eq!(test.sent_to(slot).pop().unwrap().1["progress"], 50.0);
    test.play(20, |_, _| {});
    assert_eq!(test.sent_to(slot).pop().unwrap().1["progress"], 50.1);
}

#[test]
fn all_time_totals_continue_after_a_restart_of_the_client_and_of_the_bridge() {
    let mut test = TestRun::new(settings(0), snapshot([torrent(1, &[])]));
    let totals = |test: &TestRun| test.projection.state.totals[&home()].uploaded;
    let session = |test: &mut TestRun, run: &str, uploaded: u64| {
        test.state.run = Some(run.into());
        (test.stats.downloaded, test.stats.uploaded) = (Some(0), Some(uploaded));
        test.projection.on_change(&home());
        test.play(2, |_, _| {});
        totals(test)
    };
    assert_eq!(session(&mut test, "1", 40), 100, "the torrents know of more than the session");
    assert_eq!(session(&mut test, "1", 90), 150);
    assert_eq!(session(&mut test, "2", 200), 350, "another run, whose count is larger");
    let saved = test.projection.state_to_save(test.at, true).unwrap();
    let mut later = TestRun::new(settings(0), snapshot([]));
    later.projection.restore(&saved);
    assert_eq!(session(&mut later, "2", 210), 360);
    assert_eq!(session(&mut later, "2", 5), 365, "it counts from 0 again");
}

#[test]
fn chosen_torrents_have_devices_up_to_a_number_and_keep_them_for_an_hour() {
    let filter = Filter::from_json(json!({"label": "ha"})).unwrap();
    let chosen = HomeAssistant { torrents: Some(filter), torrents_max: 2, ..settings(0) };
    let label = [("label", json!("ha"))];
    let all = || (0..5).map(|n| torrent(n, if n == 0 { &[] } else { &label }));
    let mut test = TestRun::new(chosen.clone(), snapshot(all()));
    test.play(40, |_, _| {});
    let topic = |n| names().discovery(&Device::Torrent(home(), hash(n)));
    let has_device = |test: &TestRun| (0..5).filter(|n| !test.sent_to(&topic(*n)).is_empty()).collect::<Vec<_>>();
    assert_eq!(has_device(&test), [1, 2]);
    let components = test.sent_to(&topic(1))[0].1["components"].as_object().unwrap().len();
    assert!(components <= 8, "{components}");
    test.snapshot = snapshot([torrent(1, &label)]);
    test.play(1_000, |_, _| {});
    let gone = test.sent_to(&names().torrent(&home(), hash(2))).pop().unwrap().1;
    assert_eq!((&gone["status"], test.cleared().len()), (&json!("gone"), 0));
    // A later run knows them, and does not have them cleared before its first view.
    let saved = serde_json::to_string(&test.projection.state).unwrap();
    let mut later = TestRun::new(chosen, snapshot([torrent(1, &label)]));
    later.projection.restore(&saved);
    assert!(later.projection.retained_topics().contains(&topic(2)));
    later.play(3_700, |_, _| {});
    assert_eq!(later.cleared(), [names().torrent(&home(), hash(2)), topic(2)]);
    assert!(!later.projection.retained_topics().contains(&topic(2)));
}

#[test]
fn a_message_of_a_switch_becomes_a_command_and_nonsense_one_that_gets_an_error() {
    let settings = HomeAssistant { alternative: Some(Limits { download: 1_000, upload: 500 }), ..settings(1) };
    let hash = hash(1).to_string();
    let check = |what: &str, body: &str, expected: &str| {
        let (address, body) = commands::command(&settings, "home", what, body.as_bytes());
        let hash = address.hash.map(|hash| format!("{} ", &hash[..8])).unwrap_or_default();
        assert_eq!(format!("{hash}{} {}", address.verb, String::from_utf8_lossy(&body)), expected);
        assert_eq!(address.server.as_deref(), Some("home"));
    };
    check("all", "ON", r#"start {"filter":{}}"#);
    check("all", "OFF", r#"stop {"filter":{}}"#);
    check("alternative", "ON", r#"limits {"download_limit":1000,"upload_limit":500}"#);
    check("alternative", "OFF", r#"limits {"download_limit":0,"upload_limit":0}"#);
    check("torrent", &json!({"state": "ON", "hash": hash}).to_string(), "00000001 resume {}");
    check("torrent", &json!({"state": "OFF", "hash": hash}).to_string(), "00000001 pause {}");
    for (what, body) in [("all", "on"), ("torrent", "{}"), ("torrent", "x"), ("alternative", ""), ("x", "ON")] {
        check(what, body, "homeassistant {}");
    }
}

#[test]
fn the_alternative_speed_is_on_when_the_client_has_its_limits_as_it_rounds_them() {
    let snapshot = Snapshot::new();
    let state = ServerState::default();
    let alternative = Limits { download: 100_000, upload: 0 };
    let is_on = |download, upload| {
        let stats =
            ServerStats { download_limit: Some(download), upload_limit: Some(upload), ..ServerStats::default() };
        let (snapshot, state, stats, poll) = (&snapshot, &state, &stats, Duration::ZERO);
        let view =
            ServerView { snapshot, state, stats, poll, poll_age: None, problem: None, now: Timestamp::from_seconds(0) };
        documents::limits(&view, Some(&alternative))["is_alternative"] == true
    };
    assert!(is_on(100_000, 0) && is_on(97 * 1024, 0) && is_on(98 * 1024, 0));
    assert!(!is_on(96 * 1024, 0) && !is_on(100_000, 1) && !is_on(0, 0));
}

proptest::proptest! {
    #[test]
    fn any_message_of_a_switch_becomes_one_command_to_its_server(what in ".{0,20}", body in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
        let (address, body) = commands::command(&settings(1), "home", &what, &body);
        proptest::prop_assert_eq!(address.server.as_deref(), Some("home"));
        proptest::prop_assert!(serde_json::from_slice::<Value>(&body).unwrap().is_object());
        let known = ["start", "stop", "pause", "resume", "limits", "homeassistant"];
        proptest::prop_assert!(known.contains(&address.verb.as_str()));
    }
}
