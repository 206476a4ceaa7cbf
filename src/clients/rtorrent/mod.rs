//! rTorrent, over SCGI (unix socket, TCP) or HTTP.
//!
//! What holds here, because rTorrent hangs, aborts or loses data otherwise:
//! - one exchange at a time, each with a deadline, each answer read as fast as it comes and to its
//!   end ([`transport`]);
//! - a listing is split before its answer gets large ([`listing`]);
//! - between two full listings only what can have changed is asked for ([`quick`]);
//! - everything that can be asked for stands in one list, and text from outside is never part of a
//!   command ([`calls`]);
//! - old versions are not asked to stop what they are hash-checking, nor to announce too often
//!   ([`commands`]);
//! - nor to change the hooks of an event that may run programs ([`hooks`]).
//!
//! What a server can do is found out at the first exchange, after any failure, and whenever its
//! process id changes. That id is the `run` of a listing. A container that restarts may keep it;
//! then every torrent's `load` changes at once, which says the same.
//!
//! Trying again, and judging whether a listing is believed, are the engine's.

// Public for the fuzz targets alone, which cannot see what is not.
#[doc(hidden)]
pub mod calls;
mod commands;
mod handover;
mod hooks;
#[doc(hidden)]
pub mod jsonrpc;
mod listing;
mod many;
mod map;
mod probe;
mod quick;
pub mod settings;
mod settings_of_all;
#[doc(hidden)]
pub mod transport;
#[doc(hidden)]
pub mod xmlrpc;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value as Json;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::calls::{Call, Fault, Unreadable, Value};
use self::map::{Field, Raw};
use self::probe::Probe;
use self::settings::Settings;
pub use self::transport::SetupError;
use self::transport::{Dialect, Transport};
use crate::model::{
    Action, Details, File, InfoHash, Limits, Listing, Parts, Peer, Timestamp, Tracker, Verb, Words, printable, progress,
};
use crate::port::{
    Applied, Capabilities, ClientError, EventHooks, HookRequest, Hooks, Scope, ServerControl, TorrentClient,
};

const VERBS: &[Verb] = &[
    Verb::Pause,
    Verb::Resume,
    Verb::Start,
    Verb::Stop,
    Verb::Delete,
    Verb::Add,
    Verb::Recheck,
    Verb::Announce,
    Verb::Label,
    Verb::Priority,
    Verb::Move,
    Verb::Throttle,
    Verb::FilePriority,
];

/// One rTorrent.
pub struct RtorrentClient {
    settings: Settings,
    transport: Transport,
    /// Whoever talks holds it.
    turn: Semaphore,
    memory: Mutex<Memory>,
}

/// What is kept between calls. Never held over an exchange.
#[derive(Default)]
struct Memory {
    probe: Option<Arc<Probe>>,
    listing: listing::Memory,
    quick: quick::Memory,
    commands: commands::Memory,
    words: Words,
}

/// The right to talk; there is one.
struct Turn<'a> {
    client: &'a RtorrentClient,
    _permit: SemaphorePermit<'a>,
}

impl RtorrentClient {
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let transport = Transport::new(&settings)?;
        Ok(Self { settings, transport, turn: Semaphore::new(1), memory: Mutex::default() })
    }

    async fn turn(&self) -> Turn<'_> {
        let permit = self.turn.acquire().await.expect("the semaphore is never closed");
        Turn { client: self, _permit: permit }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere leaves at worst a stale memory, which the next probe renews.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_details(&self, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError> {
        if matches!(hash, InfoHash::V2(_)) {
            return Ok(None);
        }
        let turn = self.turn().await;
        let multicall = |method, columns: &[&str]| {
            columns.iter().fold(Call::on(hash, method).text(""), |call, column| call.text(*column))
        };
        let mut calls = vec![Call::column(hash, "d.is_multi_file", None), multicall("t.multicall", TRACKER_COLUMNS)];
        if parts.files {
            calls.push(files_call(hash));
        }
        if parts.peers {
            calls.push(multicall("p.multicall", PEER_COLUMNS));
        }
        let Some((raw, rest)) = turn.read(hash, calls).await? else { return Ok(None) };
        let mut rest = rest.into_iter();
        let is_folder = rest.next().as_ref().and_then(Value::int).map(|number| number != 0);
        let trackers: Vec<Tracker> = rest.next().as_ref().map(rows).unwrap_or_default().filter_map(tracker).collect();
        let files = parts.files.then(|| rest.next().as_ref().map(rows).unwrap_or_default().filter_map(file).collect());
        let peers = parts.peers.then(|| rest.next().as_ref().map(rows).unwrap_or_default().filter_map(peer).collect());
        let host = map::tracker_host(trackers.iter().map(|tracker| (tracker.enabled, tracker.url.as_str())));
        let names = self.settings.extra.keys().cloned();
        let words = &mut self.memory().words;
        let observed = map::observed(&self.settings.server, hash, raw, host.map(Arc::from), names, words);
        Ok(Some(Details { observed, is_folder, files, trackers: parts.trackers.then_some(trackers), peers }))
    }

    fn fault(&self, fault: &Fault) -> ClientError {
        ClientError::Fault { message: printable(fault.text.chars().take(500).collect::<String>().as_bytes()) }
    }

    fn unreadable(&self, reason: Unreadable) -> ClientError {
        match reason {
            Unreadable::Refused(fault) => self.fault(&fault),
            Unreadable::Malformed { at, expected } => ClientError::Protocol {
                reason: format!("{}: at byte {at} of the answer there should be {expected}", self.settings.endpoint),
            },
        }
    }
}

impl Turn<'_> {
    /// One exchange. After a failure the server is looked at anew before the next listing.
    async fn exchange(&self, dialect: Dialect, body: &[u8], limit: Duration) -> Result<Vec<u8>, ClientError> {
        let answer = self.client.transport.exchange(dialect, body, limit).await;
        if answer.is_err() {
            self.client.memory().probe = None;
        }
        answer
    }

    /// Several calls in one exchange: for each its result or its fault.
    async fn ask(&self, calls: &[Call]) -> Result<Vec<Result<Value, Fault>>, ClientError> {
        let answer = self.exchange(Dialect::Xml, &xmlrpc::write(calls), self.client.settings.timeout).await?;
        let results = xmlrpc::read(&answer).map_err(|reason| self.client.unreadable(reason))?;
        if results.len() == calls.len() {
            return Ok(results);
        }
        let reason = format!("{} calls got {} answers", calls.len(), results.len());
        Err(ClientError::Protocol { reason })
    }

    /// Several calls about one torrent, all of which have to succeed.
    async fn ask_about(&self, hash: InfoHash, calls: &[Call]) -> Result<Vec<Value>, ClientError> {
        let results = self.ask(calls).await?;
        results.into_iter().collect::<Result<_, _>>().map_err(|fault| match fault {
            fault if fault.is_unknown_hash() => ClientError::UnknownHash(hash),
            fault => self.client.fault(&fault),
        })
    }

    async fn probe(&self) -> Result<Arc<Probe>, ClientError> {
        let known = self.client.memory().probe.clone();
        if let Some(probe) = known {
            return Ok(probe);
        }
        let probe = Arc::new(probe::look(self).await?);
        self.client.memory().probe = Some(Arc::clone(&probe));
        Ok(probe)
    }

    /// One torrent, read now; `None` if there is none of this hash.
    async fn read(&self, hash: InfoHash, more: Vec<Call>) -> Result<Option<(Raw, Vec<Value>)>, ClientError> {
        let probe = self.probe().await?;
        let fields = probe.fields(&self.client.settings.extra);
        let mut calls: Vec<Call> = fields.iter().map(|field| column_call(hash, field)).collect();
        calls.extend(more);
        let mut values = match self.ask_about(hash, &calls).await {
            Ok(values) => values,
            Err(ClientError::UnknownHash(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let rest = values.split_off(fields.len());
        let mut raw = Raw { extra: vec![None; self.client.settings.extra.len()], ..Raw::default() };
        for (field, value) in fields.iter().zip(&values) {
            value.as_cell().and_then(|cell| field.set(&mut raw, &cell)).ok_or_else(|| ClientError::Protocol {
                reason: format!("{}: {} is of the wrong kind", self.client.settings.endpoint, field.method()),
            })?;
        }
        Ok(Some((raw, rest)))
    }
}

fn column_call(hash: InfoHash, field: &Field) -> Call {
    Call::column(hash, field.method(), field.key())
}

#[async_trait]
impl TorrentClient for RtorrentClient {
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError> {
        let turn = self.turn().await;
        let listing = listing::list(&turn, scope).await?;
        commands::pause_again(&turn, &listing).await;
        Ok(listing)
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        match hashes {
            [hash] => Ok(vec![self.read_details(*hash, parts).await?]),
            hashes => many::get(self, hashes, parts).await,
        }
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        many::apply(self, actions).await
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities { server: Some(self), hooks: Some(self), ..Capabilities::of_verbs(VERBS) }
    }
}

#[async_trait]
impl ServerControl for RtorrentClient {
    async fn set_limits(&self, limits: Limits) -> Result<(), ClientError> {
        settings_of_all::set_limits(&self.turn().await, limits).await
    }

    async fn call(&self, method: &str, params: &[Json]) -> Result<Json, ClientError> {
        settings_of_all::call(&self.turn().await, method, params).await
    }
}

#[async_trait]
impl EventHooks for RtorrentClient {
    async fn hooks(&self, request: HookRequest<'_>) -> Result<Hooks, ClientError> {
        hooks::hooks(&self.turn().await, request).await
    }
}

// --- parts of a torrent --------------------------------------------------------------------------

const TRACKER_COLUMNS: &[&str] = &[
    "t.url=",
    "t.type=",
    "t.is_enabled=",
    "t.scrape_complete=",
    "t.scrape_incomplete=",
    "t.success_counter=",
    "t.failed_counter=",
    "t.activity_time_last=",
];

const FILE_COLUMNS: &[&str] = &["f.path=", "f.size_bytes=", "f.completed_chunks=", "f.size_chunks=", "f.priority="];

fn files_call(hash: InfoHash) -> Call {
    FILE_COLUMNS.iter().fold(Call::on(hash, "f.multicall").text(""), |call, column| call.text(*column))
}

const PEER_COLUMNS: &[&str] = &[
    "p.address=",
    "p.port=",
    "p.client_version=",
    "p.completed_percent=",
    "p.is_encrypted=",
    "p.is_incoming=",
    "p.down_total=",
];

fn rows(value: &Value) -> std::slice::Iter<'_, Value> {
    value.array().iter()
}

fn unsigned(value: &Value) -> Option<u64> {
    u64::try_from(value.int()?).ok()
}

fn tracker(row: &Value) -> Option<Tracker> {
    let [url, kind, is_enabled, seeds, leeches, succeeded, failed, last] = row.array() else { return None };
    Some(Tracker {
        url: url.to_text()?,
        kind: match kind.int()? {
            1 => Some("http"),
            2 => Some("udp"),
            3 => Some("dht"),
            _ => None,
        },
        enabled: is_enabled.int()? != 0,
        seeds: unsigned(seeds),
        leeches: unsigned(leeches),
        succeeded: unsigned(succeeded),
        failed: unsigned(failed),
        last_announce_at: last.int().filter(|seconds| *seconds > 0).map(Timestamp::from_seconds),
    })
}

fn file(row: &Value) -> Option<File> {
    let [path, length, completed, chunks, priority] = row.array() else { return None };
    let (path, length) = (path.to_text()?, unsigned(length)?);
    Some(File {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        // A file of no bytes has no pieces, and is all here.
        progress: if length == 0 { 100.0 } else { progress(unsigned(completed)?, unsigned(chunks)?) },
        length,
        priority: priority.int().and_then(|priority| u8::try_from(priority).ok()),
        path,
    })
}

fn peer(row: &Value) -> Option<Peer> {
    let [address, port, client, percent, is_encrypted, is_incoming, downloaded] = row.array() else { return None };
    Some(Peer {
        address: address.to_text()?,
        port: port.int().and_then(|port| u16::try_from(port).ok()),
        client: client.to_text(),
        progress: percent.int().map(|percent| percent.clamp(0, 100) as f64),
        encrypted: is_encrypted.int().map(|number| number != 0),
        incoming: is_incoming.int().map(|number| number != 0),
        downloaded: unsigned(downloaded),
    })
}

/// The settings of extra columns, in the order of [`Raw::extra`].
type ExtraColumns = BTreeMap<Arc<str>, settings::ExtraColumn>;
