//! dtorrent monitors torrent clients and publishes the state and the life-cycle events of every torrent: to MQTT, NATS
//! and webhooks, or to your own program.
//!
//! # As a library
//!
//! A [`Manager`](manager::Manager) monitors any number of servers without a broker, and keeps its state in memory or in a
//! folder. It gives a stream of events, listeners, and commands that return when their effect has been seen.
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
//! A client of your own is a type that implements [`TorrentClient`](port::TorrentClient); the conformance suite in
//! [`testing`] checks it.
//!
//! | feature | adds |
//! |---|---|
//! | `sqlite` | durable state: `Builder::data_dir` |
//! | `mqtt`, `nats`, `webhooks` | these sinks, as parts |
//! | `http` | the HTTP server, as a part |
//! | `bridge` | all of them, and the whole bridge with its config, to be run from your own program |
//! | `cli` (default) | the program `dtorrent` |
//!
//! With `default-features = false` there is the manager with its state in memory, and none of these is compiled.
//!
//! # As a bridge
//!
//! ```text
//!  torrent clients             dtorrent (one process)                                                      message world
//!
//!                       watch/           diff/ (pure)           store/         outbox/         sinks/
//!  rTorrent     ◄─poll─ Watcher ─Listing─► trust ► diff ─ChangeSet─► commit ─► Dispatcher ══ Link ══► MQTT ── Home Assistant
//!  exec child   ◄─────  Watcher     ▲                     (snapshot +       ─► Dispatcher ══ Link ══► NATS JetStream
//!                                   │ wake                 journal, one     ─► Dispatcher ══ Link ══► each webhook
//!                                   │                      transaction)          one per sink
//!                                   │                          ▲
//!  a client     ◄─apply─ Worker ◄───┴─ admission ◄─ command log┴◄── commands: MQTT, NATS, HTTP, command line
//!                      (per server)        └── result, once a later poll has shown the effect
//! ```
//!
//! The left half turns state into events, the store makes them durable, the right half delivers them at each sink's own
//! pace. There are two ways out. *Journal:* every event but `updated`, gap-free per server, at least once, in order.
//! *Conflated:* `updated`, state and statistics; the latest value wins. Nothing on the right slows, stops or reorders
//! the left, and no sink holds up another.
//!
//! # Rooms
//!
//! | room | holds |
//! |---|---|
//! | [`model`] | domain types with their JSON. Pure |
//! | [`port`] | the seams: client, sink, command source, store, clock |
//! | [`diff`] | trust in a poll, comparison with the snapshot, what is worth an event. Pure |
//! | [`watch`] | the poll loop of one server, and hooks |
//! | [`outbox`] | what each sink still has to be sent, and the dispatcher that sends it |
//! | [`commands`] | admission, queue, execution, pending effects, results; file operations |
//! | [`live_state`] | the latest committed state of every server, in memory |
//! | [`clients`], [`sinks`], [`store`], `http` | adapters; they know the seams and never each other |
//! | [`connect`] | outgoing TCP connections: every address of a name, staggered |
//! | [`tls`] | which certificate authorities a connection trusts; HTTP clients |
//! | `config` | file, environment and flags, parsed and checked |
//! | `telemetry`, [`supervise`], [`log_throttle`] | logs and metrics, tasks, repeated log messages |
//! | [`schema`] | JSON Schemas and the AsyncAPI document, made from the types. Pure |
//! | [`servers`] | the engine of one server, put together |
//! | [`manager`] | the library API |
//! | `app`, `cli`, `demo` | the program: composition, command line, demonstration |
//! | [`testing`] | the conformance suite for clients |
//!
//! `tests/architecture.rs` fails on an arrow that points the wrong way.
//!
//! [`manager`], [`model`], [`port`], [`clients`], [`testing`] and [`schema`] follow semantic versioning: their public
//! items are listed in `tests/golden/api.txt`, and a test fails when one of them vanishes or changes. The other rooms are
//! public for programs that compose parts themselves, and may change with any version.
//!
//! # Invariants
//!
//! - **I1 Atomic commit.** The new snapshot and the events that lead to it are committed in one transaction, or neither
//!   is.
//! - **I2 No guesses.** A failed or untrusted poll yields nothing. Absence counts only in complete listings, two in a
//!   row.
//! - **I3 Durable first.** A journal entry is sent only after fsync. Queued is not delivered: a cursor moves on PUBACK,
//!   PubAck, 2xx.
//! - **I4 At least once.** Each journal entry is, per enabled sink, acknowledged or dead-lettered. Nothing else ends it.
//! - **I5 Order.** Per sink and server, first deliveries are in `seq` order. A replay goes back; it never skips.
//! - **I6 Identity.** A redelivery has the same id and the same bytes. No id ever names two events.
//! - **I7 Convergence.** When nothing changes any more, what each sink shows equals the snapshot equals the client; what
//!   is gone is cleared.
//! - **I8 Conflation.** Only `updated`, state and statistics are conflated.
//! - **I9 Bounds.** Each queue, buffer, line, window, retry and file has a stated limit and a stated consequence.
//! - **I10 One writer** per server: a lock on the data directory.
//! - **I11 One source.** Only a watcher produces torrent events. A command or a hook wakes it; the watcher polls.
//! - **I12 Commands once.** A command id is executed once and answered the same again, also across a crash. Retained and
//!   expired commands are never executed.
//! - **I13 Isolation.** A failing server or sink degrades only itself. A failing store stops the process.
//! - **I14 Secrets** appear in no log, event, page, error or `Debug`. Input is data: never a command, a path outside
//!   `roots`, or a topic.
//! - **I15 Honest results.** `ok` means that a later poll showed the effect, and for files, that the file system shows
//!   it. Every command gets exactly one result before its time to live plus the verification time is over.

#[cfg(feature = "bridge")]
pub mod app;
#[cfg(feature = "cli")]
pub mod cli;
pub mod clients;
pub mod commands;
#[cfg(feature = "bridge")]
pub mod config;
pub mod connect;
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
pub mod tls;
pub mod watch;
