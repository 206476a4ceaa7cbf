//! Real downloads from one rTorrent to another.

use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use serde_json::json;

use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn a_download_is_finished_once_and_a_recheck_does_not_finish_it_again() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { download_limit: 60, ..Options::default() };
    let world = World::running(Setup { rtorrent, ..Setup::default() }).await;
    let seeder = Rtorrent::start(&world.folder.join("seeder"), &Options::default()).await.unwrap();
    let content = Content::folder("album", &[("one.flac", 900_000), ("more/two.flac", 400_000)], 3);
    let hash = content.hash;
    content.write_to(&seeder.downloads).unwrap();
    seeder.load(&content.torrent, true).await.unwrap();
    seeder.wait_for(hash, "d.complete", "1").await.unwrap();

    world.home.load(&content.torrent, true).await.unwrap();
    world.home.add_peer(hash, seeder.port).await.unwrap();
    let added = world.recorder.event("home", "added", hash).await;
    assert_eq!(added["torrent"]["finished"], false);
    // Its progress is published meanwhile.
    let topic = format!("dtorrent/home/torrent/{hash}/state");
    let is_halfway =
        |m: &&Message| m.topic == topic && m.json()["progress"].as_f64().is_some_and(|p| p > 0.0 && p < 100.0);
    let halfway =
        world.recorder.wait_for("a state between 0 and 100 %", |all| all.iter().find(is_halfway).cloned()).await;
    assert_eq!((&halfway.json()["status"], &halfway.json()["playing"]), (&json!("downloading"), &json!(true)));
    world
        .home
        .rpc
        .call("throttle.global_down.max_rate.set_kb", &[Argument::Text(""), Argument::Text("0")])
        .await
        .unwrap();
    let finished = world.recorder.event("home", "finished", hash).await;
    assert_eq!((&finished["cause"], &finished["torrent"]["progress"]), (&json!("observed"), &json!(100.0)));
    assert_eq!(finished["torrent"]["finished"], true);
    assert_eq!(world.home.get(hash, "d.complete").await.unwrap(), "1");
    for (path, bytes) in &content.files {
        assert_eq!(std::fs::read(world.home.downloads.join(path)).unwrap(), *bytes);
    }
    let files = format!("dtorrent/home/torrent/{hash}/files");
    let has_files = |m: &&Message| m.topic == files && m.json()["files"].as_array().is_some_and(|list| list.len() == 2);
    world.recorder.wait_for("its files", |all| all.iter().any(|m| has_files(&m)).then_some(())).await;

    let recheck = world.recorder.command(&format!("home/torrent/{hash}/command/recheck"), json!({})).await;
    assert_eq!(recheck["status"], "ok", "{recheck}");
    let label = world.recorder.command(&format!("home/torrent/{hash}/command/label"), json!({"label": "last"})).await;
    assert_eq!(label["status"], "ok", "{label}");
    world.recorder.event("home", "label_changed", hash).await;
    let events = world.recorder.assert_gap_free("home");
    let count = |kind: &str| events.iter().filter(|event| event["event_type"] == kind).count();
    assert_eq!((count("finished"), count("unfinished"), count("added"), count("removed")), (1, 0, 1, 0), "{events:#?}");
}

#[tokio::test]
async fn a_torrent_that_is_added_complete_is_not_finished_again() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("here already", 500_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let topic = format!("dtorrent/home/torrent/{}/state", content.hash);
    world
        .recorder
        .wait_for("a seeding state", |all| {
            all.iter().any(|m| m.topic == topic && m.json()["status"] == "seeding").then_some(())
        })
        .await;
    world.home.act(content.hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", content.hash).await;
    let events = world.recorder.assert_gap_free("home");
    assert!(events.iter().all(|event| event["event_type"] != "finished"), "{events:#?}");
}
