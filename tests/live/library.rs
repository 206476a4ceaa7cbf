//! The examples of the library with a real rTorrent.

use std::time::Duration;

use dtorrent::model::Kind;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Options, Rtorrent};

use crate::harness::can_run;

#[path = "../../examples/listen.rs"]
mod listen;
#[path = "../../examples/own_client.rs"]
mod own_client;
#[path = "../../examples/steer.rs"]
mod steer;

const TIMEOUT: Duration = Duration::from_secs(60);

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

#[tokio::test]
async fn the_listening_example_reports_a_torrent_added_and_removed() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let home = Rtorrent::start(folder.path(), &Options::default()).await.unwrap();
    let content = Content::file("a.iso", 20_000, 1);
    home.load(&content.torrent, false).await.unwrap();
    let (mut received, seen) = (Vec::new(), tokio::sync::Notify::new());
    let url = home.url();
    let listening = listen::listen(&url, |event| {
        received.push(event.event_type);
        if event.event_type == Kind::SnapshotDone {
            seen.notify_one();
        }
        event.event_type == Kind::Removed
    });
    let acting = async {
        seen.notified().await;
        home.act(content.hash, "d.start", &[]).await.unwrap();
        home.act(content.hash, "d.erase", &[]).await.unwrap();
    };
    in_time("listening", async { tokio::join!(listening, acting).0 }).await.unwrap();
    assert_eq!((received.first(), received.last()), (Some(&Kind::ServerOnline), Some(&Kind::Removed)), "{received:?}");
}

#[tokio::test]
async fn the_controlling_example_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let home = Rtorrent::start(folder.path(), &Options::default()).await.unwrap();
    let content = Content::folder("album", &[("one.flac", 90_000), ("more/two.flac", 40_000)], 3);
    in_time("steering", steer::steer(&home.url(), &content.torrent)).await.unwrap();
    assert_eq!(home.hashes().await.unwrap(), []);
}

#[tokio::test]
async fn the_custom_client_example_runs() {
    in_time("the example", own_client::run()).await.unwrap();
}
