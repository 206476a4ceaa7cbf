//! dtorrent: watches torrent clients and tells what happens there, to brokers or to your own program.
//!
//! # As a library
//!
//! A [`Manager`](manager::Manager) watches any number of servers, needs no broker, and keeps what it knows in memory
//! or in a folder. It gives a stream of events, listeners, and commands that return when their effect was seen.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use dtorrent::manager::{Manager, NewTorrent, Server};
//! use dtorrent::model::Kind;
//!
//! let manager = Manager::builder()
//!     .server("home", Server::rtorrent("unix:///run/rtorrent/rpc.sock").roots(["/downloads"]))
//!     .server("attic", Server::exec(["./my-client"]))
//!     .build()
//!     .await?;
//! let mut events = manager.events();
//! let hash = manager.add("home", NewTorrent::file("/downloads/debian.torrent").label("linux")).await?;
//! while let Some(event) = events.next().await {
//!     let event = event?;
//!     if event.hash == Some(hash) && event.event_type == Kind::Finished {
//!         manager.pause(hash).await?;
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client of your own is a type that implements [`TorrentClient`](port::TorrentClient); [`testing`] tries it out.
//!
//! | feature | adds |
//! |---|---|
//! | `sqlite` | a state that outlives the process: `Builder::data_dir` |
//! | `mqtt`, `nats`, `webhooks` | these sinks, as parts |
//! | `http` | what is shown over HTTP, as a part |
//! | `bridge` | all of them, and the whole bridge with its config, to be run from your own program |
//! | `cli` (default) | the program `dtorrent` |
//!
//! With `default-features = false` there is the manager, in memory, and nothing of these is compiled.
//!
//! # As a bridge
//!
//! ```text
//!  torrent clients          dtorrent (one process)                                   message world
//!
//!                     watch          diff           store          deliver       sinks
//!  rTorrent  ◄─list── Watcher ─────► Observer ────► told+journal ► Dispatcher ══► MQTT broker
//!            ◄─apply─ Worker ◄────── queue ◄─────── command log ◄ admission ◄════ commands
//!                     commands
//! ```
//!
//! A watcher looks at each server again and again and compares what it sees with what the world was
//! *told*. What is different is committed in one transaction: the new picture, and the events that tell
//! it. Only then is it sent, to each sink at its own pace. There are two ways out. The *journal* holds
//! every event but `updated`, without a gap, and each sink gets each entry, in order, at least once.
//! `updated` and state are *conflated*: a sink that was away hears the present, not the past.
//!
//! # Rooms
//!
//! | room | what it is |
//! |---|---|
//! | [`model`] | the words: torrents, events, commands, with their JSON. Pure |
//! | [`port`] | the seams: client, sink, link, command source, store, clock |
//! | [`diff`] | from looks to what is to be told. Pure |
//! | [`watch`], [`deliver`], [`commands`] | the engine: looking, handing over, carrying out |
//! | [`board`] | what was told, for all in the process to read |
//! | [`schema`] | the shapes of what is sent and taken, made from the types. Pure |
//! | [`clients`], [`sinks`], [`store`], `http` | adapters; they know the seams and never each other |
//! | `config`, `telemetry` | leaves |
//! | [`testing`] | what the engine expects of a client, to be tried on one's own |
//! | [`servers`], [`supervise`] | the engine of each server put together; tasks and their end |
//! | [`manager`] | the library face |
//! | `app`, `cli`, `demo` | the program |
//!
//! `tests/architecture.rs` fails on an arrow that points wrong.
//!
//! Versions are counted by [`manager`], [`model`], [`port`], [`clients`], [`testing`] and [`schema`]. What is public
//! there stands in `tests/golden/api.txt`, and a test fails when something of it vanishes or changes. The other rooms
//! are public for those who put parts together, and may change with any version.
//!
//! # What holds
//!
//! - **I1** What the world was told and the events that tell it are committed together, or neither is.
//! - **I2** A failed poll tells nothing. Absence counts only in complete listings, two in a row.
//! - **I3** An event is sent only after it is on stable storage. Queued is not delivered.
//! - **I4** Each sink acknowledges each event, or it is put aside with a reason. Nothing else ends it.
//! - **I5** Per sink and server, first deliveries are in the order of `seq`.
//! - **I6** A redelivery has the same id and the same bytes. No id ever names two events.
//! - **I7** When the world is quiet, what each sink shows is what was told is what the client has.
//! - **I8** Only `updated`, state and stats are conflated.
//! - **I9** Each queue, buffer, window, retry and file has a bound and a stated consequence.
//! - **I10** One writer: a lock on the data folder.
//! - **I11** Only a watcher makes events. A command or a hook pokes it; the watcher looks.
//! - **I12** A command's id is carried out once and answered the same again, also over a crash.
//! - **I13** A failing server or sink degrades itself only. A failing store stops the process.
//! - **I14** Secrets are in no log, event or error. What comes in is data.

#[cfg(feature = "bridge")]
pub mod app;
#[cfg(feature = "cli")]
pub mod cli;
pub mod clients;
pub mod commands;
#[cfg(feature = "bridge")]
pub mod config;
#[cfg(feature = "cli")]
pub mod demo;
pub mod diff;
#[cfg(feature = "http")]
pub mod http;
pub mod live_state;
pub mod log_throttle;
pub mod manager;
pub mod model;
pub mod outbox;
pub mod port;
pub mod schema;
pub mod servers;
pub mod sinks;
pub mod store;
pub mod supervise;
#[cfg(feature = "bridge")]
pub mod telemetry;
pub mod testing;
pub mod watch;
