//! Life-cycle events around restarts and between polls: each once, none invented.

use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use serde_json::json;

use super::{kinds_of, wait_for_newcomer};
use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

/// Starts another rTorrent that seeds the content.
async fn seeder(world: &World, content: &Content) -> Rtorrent {
    let seeder = Rtorrent::start(&world.folder.join("seeder"), &Options::default()).await.unwrap();
    content.write_to(&seeder.downloads).unwrap();
    seeder.load(&content.torrent, true).await.unwrap();
    seeder.wait_for(content.hash, "d.complete", "1").await.unwrap();
    seeder
}

/// Downloads the content without waiting for the bridge.
async fn download(world: &World, content: &Content, seeder: &Rtorrent) {
    world.home.act(content.hash, "d.start", &[]).await.unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    world.home.add_peer(content.hash, seeder.port).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
}

#[tokio::test]
async fn finished_while_the_bridge_was_down_is_emitted_once_as_recovered() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let content = Content::file("x", 200_000, 1);
    let seeder = seeder(&world, &content).await;
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    world.bridge().process().kill().unwrap();
    download(&world, &content, &seeder).await;
    world.bridge().restart();
    let finished = world.recorder.event("home", "finished", content.hash).await;
    assert_eq!(finished["cause"], "recovered", "{finished}");
    // A restart of the bridge does not repeat it.
    world.bridge().process().kill().unwrap();
    world.bridge().restart();
    wait_for_newcomer(&world).await;
    let kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    assert_eq!(kinds, ["added", "started", "finished"]);
}

#[tokio::test]
async fn finished_and_stopped_between_two_polls_are_both_emitted() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let content = Content::file("x", 200_000, 1);
    let seeder = seeder(&world, &content).await;
    world.home.load(&content.torrent, true).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    world.bridge().process().pause().unwrap();
    download(&world, &content, &seeder).await;
    world.home.wait_for(content.hash, "d.hashing", "0").await.unwrap();
    world.home.act(content.hash, "d.stop", &[]).await.unwrap();
    world.home.act(content.hash, "d.close", &[]).await.unwrap();
    world.bridge().process().unpause().unwrap();
    world.recorder.event("home", "stopped", content.hash).await;
    world.recorder.event("home", "finished", content.hash).await;
    wait_for_newcomer(&world).await;
    let mut kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    kinds.sort_unstable();
    assert_eq!(kinds, ["added", "finished", "stopped"]);
}

#[tokio::test]
async fn a_recheck_of_complete_data_emits_no_finished() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    // Large enough for a poll to see the check.
    let content = Content::file("large", 60 << 20, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    let state = format!("dtorrent/home/torrent/{}/state", content.hash);
    let is_seeding = |m: &Message| m.topic == state && m.json()["status"] == "seeding";
    world.recorder.wait_for("seeding", |all| all.iter().any(is_seeding).then_some(())).await;
    // A recheck runs from 0 to 100 % again, also across a restart of the bridge.
    for is_killed in [false, true] {
        world.home.act(content.hash, "d.check_hash", &[]).await.unwrap();
        if is_killed {
            world.bridge().process().kill().unwrap();
            world.bridge().restart();
        }
        world.home.wait_for(content.hash, "d.hashing", "0").await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    }
    wait_for_newcomer(&world).await;
    let kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    let others: Vec<_> =
        kinds.iter().filter(|kind| !["added", "checking", "checked"].contains(&kind.as_str())).collect();
    assert!(others.is_empty(), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| *kind == "added").count(), 1);
}

#[tokio::test]
async fn a_torrent_removed_and_added_again_between_two_polls_emits_both_events() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let content = Content::file("x", 20_000, 1);
    for round in 1..=3 {
        world.bridge().process().pause().unwrap();
        if round > 1 {
            world.home.act(content.hash, "d.erase", &[]).await.unwrap();
        }
        world.home.load(&content.torrent, false).await.unwrap();
        world.bridge().process().unpause().unwrap();
        let is_added = |m: &&Message| m.topic.ends_with(&format!("{}/event/added", content.hash));
        let times = |all: &[Message]| (all.iter().filter(is_added).count() >= round).then_some(());
        world.recorder.wait_for("added", times).await;
    }
    wait_for_newcomer(&world).await;
    let kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    assert_eq!(kinds, ["added", "removed", "added", "removed", "added"]);
}

#[tokio::test]
async fn a_magnet_link_that_gets_its_metadata_stays_the_same_torrent() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("from a magnet", 200_000, 1);
    let seeder = seeder(&world, &content).await;
    let link = format!("magnet:?xt=urn:btih:{}&dn=wanted", content.hash.to_rpc());
    world.home.rpc.call("load.start", &[Argument::Text(""), Argument::Text(&link)]).await.unwrap();
    let added = world.recorder.event("home", "added", content.hash).await;
    assert_eq!(added["torrent"]["status"], "metadata", "{added}");
    // rTorrent fetches the metadata from the peer, erases the placeholder, and adds a torrent with the same hash.
    world.home.add_peer(content.hash, seeder.port).await.unwrap();
    let metadata = world.recorder.event("home", "metadata", content.hash).await;
    assert_eq!(metadata["torrent"]["name"], "from a magnet", "{metadata}");
    world.home.add_peer(content.hash, seeder.port).await.unwrap();
    world.recorder.event("home", "finished", content.hash).await;
    wait_for_newcomer(&world).await;
    let mut kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    // Both rTorrents really check the data.
    kinds.retain(|kind| kind != "checking" && kind != "checked");
    assert_eq!(kinds, ["added", "metadata", "finished"]);
}

#[tokio::test]
async fn data_that_is_missing_after_a_restart_is_shown_as_incomplete() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let content = Content::file("gone", 300_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    world.home.act(content.hash, "d.save_full_session", &[]).await.unwrap();
    world.start_bridge().await;
    let mark = world.recorder.mark();
    world.home.process().kill().unwrap();
    content.remove_from(&world.home.downloads).unwrap();
    world.home.restart().await.unwrap();
    world.recorder.server_event_after(mark, "home", "server_restarted").await;
    // The published torrent is incomplete, as at rTorrent, and this is reported at most once.
    world
        .recorder
        .wait_for("a word on it", |all| {
            let is_word = |m: &&Message| {
                m.topic.contains(&content.hash.to_string())
                    && m.topic.contains("/event/")
                    && !m.topic.ends_with("/updated")
            };
            all[mark..].iter().find(is_word).map(|_| ())
        })
        .await;
    wait_for_newcomer(&world).await;
    let kinds = kinds_of(&world.recorder.assert_gap_free("home"), content.hash);
    let state = world
        .recorder
        .all()
        .into_iter()
        .rev()
        .find(|m| m.topic == format!("dtorrent/home/torrent/{}/state", content.hash))
        .unwrap()
        .json();
    assert!(!kinds.iter().any(|kind| kind == "removed" || kind == "finished"), "{kinds:?} {state}");
    assert_eq!(state["finished"], json!(false), "{kinds:?} {state}");
}
