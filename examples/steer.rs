//! Adds a torrent to an rTorrent, acts on it, and removes it again. Each step returns when its effect was seen.
//!
//! ```console
//! $ cargo run --example steer -- unix:///run/rtorrent/rpc.sock some.torrent
//! ```

use dtorrent::manager::{Manager, NewTorrent, Server};

type Error = Box<dyn std::error::Error + Send + Sync>;

pub async fn steer(url: &str, torrent: &[u8]) -> Result<(), Error> {
    let manager = Manager::builder().server("home", Server::rtorrent(url)).build().await?;
    let hash = manager.add("home", NewTorrent::torrent(torrent).label("example")).await?;
    println!("added {hash}, among {} others", manager.get_all().await?.len() - 1);

    manager.pause(hash).await?;
    manager.resume(hash).await?;
    // Commands that the manager itself lacks are on its watcher of that server.
    let home = manager.of(hash).await?;
    home.priority(hash, 3).await?;
    home.stop(hash).await?;

    let found = manager.get_one(hash).await?;
    println!("{:?} is {}, with:", found.torrent.name, found.torrent.status.as_str());
    for file in found.files.unwrap_or_default() {
        println!("  {:?} {} bytes, {} %", file.path, file.length, file.progress);
    }
    manager.delete(hash).await?;
    println!("removed {hash}; its files are still there");
    manager.shutdown().await?;
    Ok(())
}

#[tokio::main]
#[allow(dead_code)] // when a test includes this file
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("say where rTorrent is, and which .torrent file to add".into());
    };
    steer(&url, &std::fs::read(path)?).await
}
