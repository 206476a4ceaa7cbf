//! Faults of the broker: unreachable at the start or for long, without its state, killed, silent, rejecting, slow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::rtorrent::Argument;
use rumqttc::v5::mqttbytes::QoS;
use serde_json::{Value, json};

use super::{count, label_all, load_many, patient_broker, wait_for_newcomer};
use crate::harness::bridge::Bridge;
use crate::harness::database::StateDatabase;
use crate::harness::proxy::{Mode, PUBACK, PUBLISH, Proxy};
use crate::harness::recorder::{Command, Message, Recorder, events_in};
use crate::harness::{Setup, World, can_run};

const STATUS: &str = "dtorrent/bridge/main/status";

/// Maximum time for ten thousand events on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Limit for actions that take two or three seconds on an idle machine, and a minute or more in case of a fault.
const SECONDS: Duration = Duration::from_secs(20);

/// Kills the broker, which has no persistence, and starts another on its port. The bridge can connect once the recorder
/// has subscribed again.
async fn replace_broker(world: &mut World, proxy: &crate::harness::proxy::Proxy) {
    let times = world.recorder.subscriptions();
    let messages = ["connected sink=b", "accepting commands sink=b"];
    let opened = messages.map(|message| world.bridge().count_in_log(message));
    world.broker.process().kill().unwrap();
    proxy.refuse();
    world.broker.restart().await.unwrap();
    world.recorder.subscribed(times + 1).await;
    proxy.answers(Mode::Pass);
    proxy.admit();
    // The session is lost, so the broker drops a command that arrives before the subscription.
    for (message, times) in messages.into_iter().zip(opened) {
        world.bridge().wait_for_log_again(times, message).await;
    }
}

#[tokio::test]
async fn a_broker_that_is_down_at_the_start_gets_everything_once_it_is_up() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    proxy.refuse();
    world.launch_bridge();
    world.bridge().wait_for_log("connection failed, retrying").await;
    world.database().until("the first snapshot is written down", |database| database.last_seq("home") >= 3).await;
    world.home.act(hash, "d.erase", &[]).await.unwrap();
    world.database().until("the removal is written down", |database| database.last_seq("home") >= 4).await;
    proxy.admit();
    world.recorder.event("home", "removed", hash).await;
    world.recorder.wait_for_last(STATUS, "online").await;
    assert_eq!(super::kinds_of(&world.recorder.assert_gap_free("home"), hash), ["added", "removed"]);
}

#[tokio::test]
async fn after_a_long_outage_ten_thousand_events_arrive_in_order_and_one_update_for_each_torrent() {
    if !can_run() {
        return;
    }
    let server = "extra = { note = \"d.custom2=\" }\nsweep = \"1s\"".to_owned();
    let mut world = World::new(Setup { broker: patient_broker(), server, ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    let hashes = load_many(&world.home, 0, 500).await;
    world.start_bridge().await;
    let is_noted = |all: &[Message]| all.iter().filter(|m| m.topic.ends_with("/state")).count() >= 500;
    world.recorder.wait_for("all states", |all| is_noted(all).then_some(())).await;
    let mark = world.recorder.mark();
    replace_broker(&mut world, &proxy).await;
    proxy.refuse();
    let before = world.database().last_seq("home");
    for round in 1..=20 {
        label_all(&world.home, &format!("l{round}")).await;
        world
            .database()
            .until("all is written down", |database| database.last_seq("home") >= before + round * 500)
            .await;
    }
    // Only `updated` publishes a changed message, so each torrent has one update pending.
    let arguments = ["", "main", "d.custom2.set=n20"].map(Argument::Text);
    world.home.rpc.call("d.multicall2", &arguments).await.unwrap();
    world.database().until("every note is committed", |database| database.snapshots_with("\"n20\"") == 500).await;
    let memory = resident_kib(world.bridge().process().pid());
    proxy.admit();
    let last = format!("-{:012}", before + 10_000);
    let is_last = |m: &Message| m.topic.ends_with("/label_changed") && m.text().contains(&last);
    let has_last = |all: &[Message]| all.iter().rev().take(200).any(is_last).then_some(());
    world.recorder.wait_within(LONG, "the last event", has_last).await;
    let torrents_with = |all: &[Message], suffix: &str| {
        let shown = all[mark..].iter().filter(|m| m.topic.ends_with(suffix) && m.text().contains("\"n20\""));
        shown.map(|message| message.topic.clone()).collect::<BTreeSet<_>>().len()
    };
    for suffix in ["/state", "/event/updated"] {
        let is_all = |all: &[Message]| (torrents_with(all, suffix) == 500).then_some(());
        world.recorder.wait_within(LONG, &format!("{suffix} of each torrent"), is_all).await;
    }
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(count(&events, "label_changed"), 10_000);
    let mut updates: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for message in world.recorder.since(mark).iter().filter(|message| message.topic.ends_with("/event/updated")) {
        let update = message.json();
        assert_eq!(update["torrent"]["extra"]["note"], "n20", "{update}");
        updates.entry(message.topic.clone()).or_default().push(update["changes"]["extra"].clone());
    }
    for (topic, changes) in &updates {
        assert!(changes.len() <= 2, "{topic}: more than one, and one repetition: {changes:?}");
        // The label was sent with each event, the message never, so its change starts at the value from before the outage.
        let change = json!({"from": {"note": ""}, "to": {"note": "n20"}});
        assert_eq!(changes.iter().filter(|extra| **extra == change).count(), 1, "{topic}: {changes:?}");
    }
    assert!(memory < 300_000, "{memory} KiB for a backlog of 10,000 events");
    let topic = format!("home/torrent/{}/command/label", hashes[0]);
    let result = world.recorder.command(&topic, json!({"label": "x"})).await;
    assert_eq!(result["status"], "ok", "commands work again: {result}");
}

/// Returns the resident memory of a process.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_broker_that_lost_everything_has_every_state_again_within_seconds() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { broker: patient_broker(), ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    let hashes = load_many(&world.home, 0, 100).await;
    world.start_bridge().await;
    for _ in 0..3 {
        let listened = world.bridge().count_in_log("accepting commands");
        replace_broker(&mut world, &proxy).await;
        let back_at = tokio::time::Instant::now();
        let mut wanted: Vec<String> = hashes.iter().map(|hash| format!("dtorrent/home/torrent/{hash}/state")).collect();
        wanted.extend(
            ["bridge/main/status", "bridge/main/info", "home/status", "home/stats"].map(|t| format!("dtorrent/{t}")),
        );
        // A new subscriber receives it.
        let late = Recorder::listen(world.broker.port).await;
        for topic in &wanted {
            late.wait_for(topic, |all| all.iter().any(|m| m.topic == *topic && m.retain).then_some(())).await;
        }
        assert!(back_at.elapsed() < SECONDS, "it took {:?}", back_at.elapsed());
        // A broker without its sessions drops messages until the recorder has subscribed again.
        world.bridge().wait_for_log_again(listened, "accepting commands").await;
        assert!(back_at.elapsed() < SECONDS, "it took {:?}", back_at.elapsed());
        let topic = format!("home/torrent/{}/command/label", hashes[0]);
        let result = world.recorder.command(&topic, json!({"label": format!("l{:?}", back_at)})).await;
        assert_eq!(result["status"], "ok", "commands work again: {result}");
    }
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_broker_killed_with_messages_in_flight_gets_them_again() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { broker: patient_broker(), ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    for round in 0..5 {
        let all_is_noted = |database: &StateDatabase| database.cursor("b", "home") == database.last_seq("home");
        world.database().until("nothing is in flight", all_is_noted).await;
        // The broker is killed after an event arrived and before its acknowledgement.
        proxy.answers(Mode::HoldPackets(PUBACK));
        let mark = world.recorder.mark();
        let hashes = load_many(&world.home, round * 30, 30).await;
        let is_sent = |m: &Message| m.topic.starts_with("dtorrent/home/torrent/");
        world.recorder.wait_for("something in flight", |all| all[mark..].iter().any(is_sent).then_some(())).await;
        replace_broker(&mut world, &proxy).await;
        for hash in hashes {
            world.recorder.event("home", "added", hash).await;
        }
    }
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added"), count(&events, "removed")), (151, 0));
    world.recorder.wait_for_last(STATUS, "online").await;
}

#[tokio::test]
async fn a_silently_dropped_connection_is_detected_and_reestablished() {
    if !can_run() {
        return;
    }
    // On MQTT 5 the broker sets the keep-alive, so that the detection takes seconds.
    let mut broker = patient_broker();
    broker.lines.push("max_keepalive 10".to_owned());
    let mut world = World::new(Setup { broker, ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    proxy.requests(Mode::Hold);
    proxy.answers(Mode::Hold);
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    let times = world.bridge().count_in_log("connection failed, retrying");
    let patience = Duration::from_secs(45);
    let dead_at = tokio::time::Instant::now();
    while world.bridge().count_in_log("connection failed, retrying") == times {
        assert!(dead_at.elapsed() < patience, "it is not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Connections that hang stay so; new ones work.
    proxy.cut();
    proxy.requests(Mode::Pass);
    proxy.answers(Mode::Pass);
    world.recorder.event("home", "added", hash).await;
    world.recorder.wait_for_last(STATUS, "online").await;
    let topic = format!("home/torrent/{hash}/command/label");
    let patient = Command::new(&format!("dtorrent/{topic}"), r#"{"label": "x", "id": "patient"}"#).topic.to_owned();
    world.recorder.send(Command::new(&patient, r#"{"label": "x", "id": "patient"}"#)).await;
    let result = world
        .recorder
        .wait_within(patience, "the result", |all| {
            all.iter().map(Message::json).find(|m| m["id"] == "patient" && m["status"].is_string())
        })
        .await;
    assert_eq!(result["status"], "ok", "{result}");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn an_event_that_a_broker_refuses_is_dead_lettered_with_the_reason_and_the_others_arrive() {
    if !can_run() {
        return;
    }
    let refused = Content::file("refused", 1_000, 1);
    let allowed = Content::file("allowed", 1_000, 2);
    // (The access rules of this version have no `deny`, so everything else is allowed explicitly.)
    let rules = format!(
        "topic read #\n\
         topic readwrite dtorrent/bridge/#\n\
         topic readwrite dtorrent/home/+\n\
         topic readwrite dtorrent/home/event/#\n\
         topic readwrite dtorrent/home/torrent/{hash}/#\n\
         topic readwrite dtorrent/+/torrent/+/command/#\n",
        hash = allowed.hash
    );
    let broker = mosquitto::Options { acl: Some(rules), ..patient_broker() };
    let mut world = World::running(Setup { broker, ..Setup::default() }).await;
    world.home.load(&refused.torrent, false).await.unwrap();
    world.database().until("it is dead-lettered", |database| !database.dead_letters("b").is_empty()).await;
    world.home.load(&allowed.torrent, false).await.unwrap();
    world.recorder.event("home", "added", allowed.hash).await;
    let dead_letters = world.database().dead_letters("b");
    let [(body, reason)] = &dead_letters[..] else { panic!("one is dead-lettered: {dead_letters:?}") };
    let dead_letter: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&dead_letter["event_type"], &dead_letter["hash"]), (&json!("added"), &json!(refused.hash.to_string())));
    assert!(reason.contains("not allow"), "{reason}");
    world.bridge().wait_for_log("event rejected, moving it to the dead-letter queue").await;
    assert!(world.bridge().log().contains("does not allow this user to publish to the topic"));
    // A consumer detects which event is missing.
    let seqs: Vec<u64> = world.recorder.events("home").iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    let missing: Vec<u64> = (1..=*seqs.last().unwrap()).filter(|seq| !seqs.contains(seq)).collect();
    assert_eq!(missing, [dead_letter["seq"].as_u64().unwrap()]);
    // After a restart it stays a dead letter, and is not sent again.
    world.bridge().stop().await;
    world.bridge().restart();
    world.home.act(allowed.hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", allowed.hash).await;
    assert_eq!(world.database().dead_letters("b").len(), 1);
}

#[tokio::test]
async fn an_event_too_large_for_a_broker_is_dead_lettered_with_and_without_a_stated_limit() {
    if !can_run() {
        return;
    }
    for limit in ["max_packet_size 2500", "message_size_limit 2500"] {
        let mut broker = patient_broker();
        broker.lines.push(limit.to_owned());
        let world = World::running(Setup { broker, ..Setup::default() }).await;
        let large = world.home.load(&Content::file("large", 1_000, 1).torrent, false).await.unwrap();
        world.recorder.event("home", "added", large).await;
        // rTorrent accepts any label, also one that the bridge would refuse to set.
        let label = "x".repeat(2_000);
        world.home.act(large, "d.custom1.set", &[Argument::Text(&label)]).await.unwrap();
        world.database().until("it is dead-lettered", |database| !database.dead_letters("b").is_empty()).await;
        world.home.act(large, "d.custom1.set", &[Argument::Text("short")]).await.unwrap();
        let small = world.home.load(&Content::file("small", 1_000, 2).torrent, false).await.unwrap();
        world.recorder.event("home", "added", small).await;
        let dead_letters = world.database().dead_letters("b");
        assert!(
            dead_letters.iter().all(|(body, reason)| body.len() > 2_000 && reason.contains("bytes")),
            "{limit}: {dead_letters:?}"
        );
        assert!(
            (1..=2).contains(&dead_letters.len()),
            "{limit}: the change to it, and perhaps the one from it: {dead_letters:?}"
        );
    }
}

/// Replaces the access rules, for open connections too.
pub(super) async fn set_rules(world: &mut World, rules: &str) {
    let reread = |world: &mut World| world.broker.process().output().matches("Reloading config").count();
    std::fs::write(world.folder.join("broker").join("acl"), rules).unwrap();
    let before = reread(world);
    world.broker.process().signal("HUP").unwrap();
    let begun = tokio::time::Instant::now();
    while reread(world) == before {
        assert!(begun.elapsed() < LONG, "the broker does not read its rules again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_event_that_a_broker_cannot_accept_now_is_retried_and_all_arrive_in_order() {
    if !can_run() {
        return;
    }
    // All at the same time, because the bridge waits half a minute after "quota exceeded".
    tokio::join!(
        is_waited_for(0x97, "a quota of the broker is used up"),
        is_waited_for(0x80, "the broker could not take a message, and gives no reason"),
        is_waited_for(0x83, "the broker could not take a message, and gives no reason"),
    );
}

/// mosquitto has no quota with this reason code. It rejects by its access rules, which can change at run time, and the
/// proxy replaces the reason code.
async fn is_waited_for(reason: u8, words: &str) {
    const NOT_AUTHORIZED: u8 = 0x87;
    let bridge_rules = "topic readwrite #\nuser bridge\ntopic readwrite dtorrent/bridge/#\n";
    let open = format!("{bridge_rules}topic readwrite dtorrent/home/#\n");
    let closed = format!("{bridge_rules}topic read dtorrent/home/#\n");
    let mut broker = patient_broker();
    broker.users = vec![("bridge".to_owned(), "p".to_owned())];
    broker.acl = Some(open.clone());
    broker.lines.push("allow_anonymous true".to_owned());
    let sink = "username = \"bridge\"\npassword = \"p\"".to_owned();
    let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    let early = load_many(&world.home, 0, 20).await;
    world.start_bridge().await;
    proxy.answers(Mode::Reason { instead_of: NOT_AUTHORIZED, say: reason });
    set_rules(&mut world, &closed).await;
    let (mark, before) = (world.recorder.mark(), world.database().last_seq("home"));
    let waits = world.bridge().count_in_log(words);
    load_many(&world.home, 20, 20).await;
    world.bridge().wait_for_log_again(waits, words).await;
    let written = async |world: &World, count: u64| {
        world.database().until("all is written down", |database| database.last_seq("home") == before + count).await;
    };
    written(&world, 20).await;
    label_all(&world.home, "later").await;
    written(&world, 20 + 40).await;
    world.home.act(early[0], "d.erase", &[]).await.unwrap();
    written(&world, 20 + 40 + 1).await;
    let seen = world.recorder.since(mark).into_iter().filter(|message| message.topic.contains("/event/")).count();
    assert_eq!(seen, 0, "the broker has accepted an event");
    // (No event is in flight while the rules change: the broker would accept later events and not the first.)
    proxy.refuse();
    set_rules(&mut world, &open).await;
    proxy.admit();
    world.recorder.event("home", "removed", early[0]).await;
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    let counts = ["added", "label_changed", "removed"].map(|kind| count(&events, kind));
    assert_eq!(counts, [41, 40, 1], "something is missing");
    assert!(world.database().dead_letters("b").is_empty(), "nothing was refused for good");
    assert!(world.bridge().process().exit_status().unwrap().is_none());
}

/// Has the broker defer the event of the first torrent. Returns how many of the events after it were accepted all the
/// same.
async fn one_of_twenty_is_deferred(world: &mut World, open: &str, first: u64) -> (Vec<InfoHash>, usize) {
    world.bridge().stop().await;
    let mut hashes = load_many(&world.home, first, 20).await;
    hashes.sort();
    set_rules(world, &format!("{open}topic deny dtorrent/home/torrent/{}/event/#\n", hashes[0])).await;
    let (mark, waits) = (world.recorder.mark(), world.bridge().count_in_log(USED_UP));
    world.bridge().restart();
    world.bridge().wait_for_log_again(waits, USED_UP).await;
    world.bridge().process().kill().unwrap();
    // After this message, every accepted event has been received.
    world.recorder.send(Command::new("dtorrent/behind", "all")).await;
    let is_behind =
        |all: &[Message]| all[mark..].iter().any(|message| message.topic == "dtorrent/behind").then_some(());
    world.recorder.wait_for("what was sent last", is_behind).await;
    let seen = world.recorder.since(mark).into_iter().filter(|message| message.topic.ends_with("/event/added")).count();
    set_rules(world, open).await;
    (hashes, seen)
}

const USED_UP: &str = "a quota of the broker is used up";

/// A bridge at a broker with changeable access rules, which answers "quota exceeded" in place of "not authorized".
async fn with_a_broker_with_access_rules(open: &str) -> (World, Proxy) {
    let mut broker = patient_broker();
    broker.users = vec![("bridge".to_owned(), "p".to_owned())];
    broker.acl = Some(open.to_owned());
    broker.lines.push("allow_anonymous true".to_owned());
    let sink = "username = \"bridge\"\npassword = \"p\"".to_owned();
    let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    proxy.answers(Mode::Reason { instead_of: 0x87, say: 0x97 });
    world.start_bridge().await;
    (world, proxy)
}

#[tokio::test]
async fn a_broker_that_defers_one_event_gets_all_in_order_from_the_first_on() {
    if !can_run() {
        return;
    }
    // It does not name its product.
    let open = "topic readwrite #\nuser bridge\ntopic readwrite dtorrent/#\n";
    let (mut world, _proxy) = with_a_broker_with_access_rules(open).await;
    let (hashes, seen) = one_of_twenty_is_deferred(&mut world, open, 0).await;
    assert_eq!(seen, 0, "an event before the deferred one was accepted");
    world.bridge().restart();
    world.recorder.event("home", "added", hashes[19]).await;
    wait_for_newcomer(&world).await;
    assert_eq!(count(&world.recorder.assert_gap_free("home"), "added"), 21);
    assert!(world.database().dead_letters("b").is_empty());
}

/// Delivery to mosquitto is pipelined until it has deferred one event, and strictly ordered from then on.
#[tokio::test]
async fn a_mosquitto_that_defers_an_event_gets_all_in_order_from_then_on() {
    if !can_run() {
        return;
    }
    let open = "topic readwrite #\nuser bridge\ntopic readwrite dtorrent/#\ntopic read $SYS/broker/version\n";
    let (mut world, _proxy) = with_a_broker_with_access_rules(open).await;
    // Some of the events after it may have been accepted.
    let (hashes, _) = one_of_twenty_is_deferred(&mut world, open, 0).await;
    world.bridge().restart();
    world.recorder.event("home", "added", hashes[0]).await;
    wait_for_newcomer(&world).await;
    let (mark, before) = (world.recorder.mark(), world.database().last_seq("home"));
    let (hashes, seen) = one_of_twenty_is_deferred(&mut world, open, 20).await;
    assert_eq!(seen, 0, "an event before the deferred one was accepted");
    world.bridge().restart();
    world.recorder.event("home", "added", hashes[19]).await;
    let mut newest = before;
    for event in events_in(&world.recorder.since(mark), "home") {
        let seq = event["seq"].as_u64().unwrap();
        assert!(seq <= newest + 1, "{seq} after {newest}");
        newest = newest.max(seq);
    }
    assert_eq!(newest, world.database().last_seq("home"));
    assert!(world.database().dead_letters("b").is_empty());
}

#[tokio::test]
async fn while_results_are_not_accepted_commands_wait_at_the_broker_and_each_gets_one_result() {
    if !can_run() {
        return;
    }
    const SENT: usize = 2_000;
    let mut world = World::new(Setup { broker: patient_broker(), ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    // The connection for commands works, the other is blocked.
    proxy.requests(Mode::HoldPackets(PUBLISH));
    for _ in 0..SENT {
        world.recorder.send(Command::new("dtorrent/home/command/unheard_of", "{}")).await;
    }
    let held = "results are not taken, command source paused";
    world.bridge().wait_for_log(held).await;
    let waiting = world.database().result_backlog("b");
    assert!((1_000..1_600).contains(&waiting), "{waiting} results wait");
    // The next run still knows it.
    world.bridge().process().kill().unwrap();
    world.bridge().restart();
    world.bridge().wait_for_log_again(1, held).await;
    assert_eq!(world.database().result_backlog("b"), waiting);
    proxy.requests(Mode::Pass);
    let results = |all: &[Message]| -> Vec<String> {
        let results = all.iter().filter(|message| message.topic == "dtorrent/home/result").map(Message::json);
        results.map(|result| result["id"].as_str().unwrap().to_owned()).collect()
    };
    let all_are_there = |all: &[Message]| (results(all).len() >= SENT).then_some(());
    world.recorder.wait_within(LONG, "a result for each", all_are_there).await;
    world.database().until("all are noted", |database| database.result_backlog("b") == 0).await;
    let answer = world.recorder.command("home/command/limits", json!({})).await;
    assert!(answer["status"].is_string(), "{answer}");
    let results = results(&world.recorder.all());
    let ids: BTreeSet<&String> = results.iter().collect();
    assert_eq!(ids.len(), SENT + 1, "each command is one");
}

/// In MQTT 3.1.1 a broker cannot reject a packet that is too large: it closes the connection.
#[tokio::test]
async fn an_event_that_makes_a_broker_disconnect_is_dead_lettered_and_the_others_arrive_in_order() {
    if !can_run() {
        return;
    }
    let mut broker = patient_broker();
    broker.lines.push("max_packet_size 2500".to_owned());
    let sink = "version = \"3.1.1\"".to_owned();
    let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
    let hashes = load_many(&world.home, 0, 3).await;
    world.start_bridge().await;
    world.home.act(hashes[1], "d.custom1.set", &[Argument::Text(&"x".repeat(2_000))]).await.unwrap();
    world.database().until("the large one is written down", |database| database.last_seq("home") > 5).await;
    let small = world.home.load(&Content::file("small", 1_000, 9).torrent, false).await.unwrap();
    world
        .recorder
        .wait_within(Duration::from_secs(60), "the one behind it", |all| {
            let topic = format!("dtorrent/home/torrent/{small}/event/added");
            all.iter().any(|message| message.topic == topic).then_some(())
        })
        .await;
    world.home.act(hashes[1], "d.custom1.set", &[Argument::Text("short")]).await.unwrap();
    let dead_letters = world.database().dead_letters("b");
    assert!(!dead_letters.is_empty() && dead_letters.iter().all(|(body, _)| body.len() > 2_000), "{dead_letters:?}");
    assert!(dead_letters[0].1.contains("without a reason"), "{dead_letters:?}");
    world.bridge().wait_for_log("sending one message at a time").await;
}

/// A query whose result is too large is still answered.
#[tokio::test]
async fn a_result_that_makes_a_broker_disconnect_is_sent_without_its_rows() {
    if !can_run() {
        return;
    }
    let mut broker = patient_broker();
    broker.lines.push("max_packet_size 4000".to_owned());
    let sink = "version = \"3.1.1\"".to_owned();
    let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
    let names: Vec<String> = (0..60).map(|number| format!("a file with a long name, number {number}")).collect();
    let files: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 100)).collect();
    let large = world.home.load(&Content::folder("many files", &files, 1).torrent, false).await.unwrap();
    let small = world.home.load(&Content::file("small", 1_000, 2).torrent, false).await.unwrap();
    world.start_bridge().await;
    let ask = async |id: &str, hash| {
        let body = json!({"id": id, "hashes": [hash], "files": true}).to_string();
        world.recorder.send(Command::new("dtorrent/home/command/get", body)).await;
    };
    // (In sequence, so that the result does not depend on other messages that the broker accepts in between.)
    for (id, hash, status) in [("large", large, "error"), ("small", small, "ok"), ("again", large, "error")] {
        ask(id, hash).await;
        let is_there = |all: &[Message]| all.iter().map(Message::json).find(|m| m["id"] == id && m["verb"] == "get");
        let result = world.recorder.wait_within(LONG, id, is_there).await;
        assert_eq!(result["status"], status, "{result}");
        assert_eq!(result["error"]["code"] == "too_large", hash == large, "{result}");
        assert_eq!(result["results"].as_array().unwrap().is_empty(), hash == large, "{result}");
    }
    // The oversized result is not sent again.
    let connections = world.bridge().count_in_log("connected sink=b");
    wait_for_newcomer(&world).await;
    assert_eq!(world.bridge().count_in_log("connected sink=b"), connections);
}

/// Support for QoS 1 and for retained messages is stated separately; a broker may lack either.
#[tokio::test]
async fn a_broker_without_qos_1_or_without_retained_messages_still_publishes_the_will() {
    if !can_run() {
        return;
    }
    for (lines, qos, is_kept) in [
        (&["max_qos 0"][..], QoS::AtMostOnce, true),
        (&["retain_available false"], QoS::AtLeastOnce, false),
        (&["max_qos 0", "retain_available false"], QoS::AtMostOnce, false),
    ] {
        let mut broker = patient_broker();
        broker.lines.extend(lines.iter().map(|line| (*line).to_owned()));
        let mut world = World::running(Setup { broker, ..Setup::default() }).await;
        if is_kept {
            Recorder::listen(world.broker.port).await.wait_for_last(STATUS, "online").await;
        }
        world.bridge().process().kill().unwrap();
        world.recorder.wait_for_last(STATUS, "offline").await;
        let will = world.recorder.all().into_iter().rev().find(|message| message.topic == STATUS).unwrap();
        assert_eq!((will.qos, will.retain), (qos, is_kept), "{lines:?}");
        // A new subscriber does not receive `online`.
        let late = Recorder::listen(world.broker.port).await;
        if is_kept {
            late.wait_for_last(STATUS, "offline").await;
        }
        world.bridge().restart();
        late.wait_for_last(STATUS, "online").await;
        world.bridge().stop().await;
        late.wait_for_last(STATUS, "offline").await;
    }
}

#[tokio::test]
async fn a_broker_with_receive_maximum_1_gets_all_in_order() {
    if !can_run() {
        return;
    }
    let lines = ["max_inflight_messages 1", "max_queued_messages 100000"].map(str::to_owned).into();
    let broker = mosquitto::Options { lines, ..mosquitto::Options::default() };
    let world = World::running(Setup { broker, ..Setup::default() }).await;
    load_many(&world.home, 0, 100).await;
    wait_for_newcomer(&world).await;
    assert_eq!(count(&world.recorder.assert_gap_free("home"), "added"), 101);
}

#[tokio::test]
async fn a_late_will_does_not_overwrite_online() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    for _ in 0..3 {
        // The bridge is killed and its connection stays open: the broker notices when the next one connects.
        proxy.requests(Mode::Hold);
        proxy.answers(Mode::Hold);
        world.bridge().process().kill().unwrap();
        let mark = world.recorder.mark();
        // The next bridge connects to the broker directly; the old connection is cut after `online`.
        let direct = world.folder.join("direct").join("dtorrent.toml");
        std::fs::create_dir_all(direct.parent().unwrap()).unwrap();
        let text = std::fs::read_to_string(world.folder.join("dtorrent.toml")).unwrap();
        let proxied = format!("mqtt://{}", proxy.address);
        std::fs::write(&direct, text.replace(&proxied, &world.broker.url())).unwrap();
        let mut next = Bridge::start(&direct);
        let is_online = |m: &Message| m.topic == STATUS && m.payload == "online";
        world.recorder.wait_for("online", |all| all[mark..].iter().any(is_online).then_some(())).await;
        proxy.cut();
        // A will that is published even later.
        let mark = world.recorder.mark();
        world.recorder.send(Command { retain: true, ..Command::new(STATUS, "offline") }).await;
        world.recorder.wait_for("online", |all| all[mark..].iter().any(is_online).then_some(())).await;
        let late = Recorder::listen(world.broker.port).await;
        late.wait_for_last(STATUS, "online").await;
        next.stop().await;
        proxy.requests(Mode::Pass);
        proxy.answers(Mode::Pass);
        let mark = world.recorder.mark();
        world.bridge().restart();
        world.recorder.wait_for("online", |all| all[mark..].iter().any(is_online).then_some(())).await;
    }
}

#[tokio::test]
async fn two_bridges_of_one_instance_are_reported_once_and_one_waits_for_the_other() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let text = std::fs::read_to_string(world.folder.join("dtorrent.toml")).unwrap();
    let config = world.folder.join("second").join("dtorrent.toml");
    std::fs::create_dir(config.parent().unwrap()).unwrap();
    let data = |name: &str| world.folder.join(name).to_string_lossy().into_owned();
    std::fs::write(&config, text.replace(&data("data"), &data("second-data"))).unwrap();
    let second = Bridge::start(&config);
    let begun = tokio::time::Instant::now();
    let named = "the same `instance`";
    let waits = |log: &str| log.contains("another bridge is online in this name");
    while !waits(&world.bridge().log()) && !waits(&second.log()) {
        assert!(begun.elapsed() < LONG, "neither bridge waits:\n{}\n{}", world.bridge().log(), second.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Afterwards one bridge keeps the connection, and nothing else is logged.
    let connections = |log: String| log.matches("connected sink=b").count();
    let before = connections(world.bridge().log()) + connections(second.log());
    for n in 1..=3 {
        let content = Content::file(&format!("n{n}"), 1_000, n);
        world.home.load(&content.torrent, false).await.unwrap();
        world.recorder.event("home", "added", content.hash).await;
    }
    assert_eq!(connections(world.bridge().log()) + connections(second.log()), before, "{}", second.log());
    let is_wordy = |log: &str| log.matches(named).count() > 1;
    assert!(!is_wordy(&world.bridge().log()) && !is_wordy(&second.log()), "{}", second.log());
    // When one stops, the other recovers.
    drop(second);
    wait_for_newcomer(&world).await;
    let late = Recorder::listen(world.broker.port).await;
    late.wait_for_last(STATUS, "online").await;
}

#[tokio::test]
async fn a_broker_that_hangs_does_not_delay_the_other() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut hanging = Mosquitto::start(folder.path(), &patient_broker()).await.unwrap();
    let sink = format!("[brokers.c]\nkind = \"mqtt\"\nurl = \"{}\"", hanging.url());
    let mut world =
        World::new(Setup { broker: patient_broker(), sink, server: "sweep = \"1s\"".to_owned(), ..Setup::default() })
            .await;
    let at_other = Recorder::listen(hanging.port).await;
    load_many(&world.home, 0, 200).await;
    world.start_bridge().await;
    at_other.server_event_after(0, "home", "snapshot_done").await;
    let memory = resident_kib(world.bridge().process().pid());
    hanging.process().pause().unwrap();
    let before = world.database().last_seq("home");
    let mut slowest = Duration::ZERO;
    for round in 1..=20 {
        label_all(&world.home, &format!("l{round}")).await;
        world
            .database()
            .until("all is written down", |database| database.last_seq("home") >= before + round * 200)
            .await;
        let written_at = tokio::time::Instant::now();
        let last = format!("-{:012}", before + round * 200);
        let is_there = |m: &Message| m.topic.ends_with("/label_changed") && m.text().contains(&last);
        world
            .recorder
            .wait_for("the last of a round", |all| all.iter().rev().take(800).any(is_there).then_some(()))
            .await;
        slowest = slowest.max(written_at.elapsed());
    }
    assert!(slowest < SECONDS, "the other waited {slowest:?}");
    let now = resident_kib(world.bridge().process().pid());
    assert!(now < memory + 100_000, "{memory} KiB before, {now} KiB with 4,000 events waiting");
    hanging.process().unpause().unwrap();
    let last = before + 4_000;
    at_other
        .wait_within(LONG, "the last event", |all| {
            all.iter().rev().any(|m| m.topic.ends_with("/label_changed") && m.json()["seq"] == last).then_some(())
        })
        .await;
    at_other.assert_gap_free("home");
    world.recorder.assert_gap_free("home");
}
