//! Prints the events of an rTorrent until Ctrl-C.
//!
//! ```console
//! $ cargo run --example listen -- unix:///run/rtorrent/rpc.sock
//! ```

use dtorrent::manager::{Manager, Server};
use dtorrent::model::{Event, Kind};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Prints events until one of them `is_enough`.
pub async fn listen(url: &str, mut is_enough: impl FnMut(&Event) -> bool) -> Result<(), Error> {
    let manager = Manager::builder().server("home", Server::rtorrent(url)).build().await?;
    manager.on(Kind::Finished, |event| {
        let name = event.torrent.as_ref().map_or("", |torrent| torrent.name.as_str());
        println!("finished: {name:?}");
    });
    let mut events = manager.events();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let name = event.torrent.as_ref().map_or("", |torrent| torrent.name.as_str());
                println!("{} {} {name:?} {:?}", event.server, event.event_type.as_str(), event.cause);
                if is_enough(&event) {
                    break;
                }
            }
            Err(missed) => eprintln!("{missed}"),
        }
    }
    manager.shutdown().await?;
    Ok(())
}

#[tokio::main]
#[allow(dead_code)] // when a test includes this file
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "unix:///run/rtorrent/rpc.sock".to_owned());
    tokio::select! {
        ended = listen(&url, |_| false) => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}
