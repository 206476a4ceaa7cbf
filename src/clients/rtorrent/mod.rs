//! rTorrent, over SCGI (unix socket, TCP) or HTTP.
//!
//! Rules that hold here, because rTorrent hangs, aborts or loses data otherwise:
//! - one exchange at a time, each with a deadline, each answer read as fast as it arrives and to its end
//!   ([`transport`]);
//! - a listing is split before its answer gets large ([`listing`]);
//! - between two full listings only what can have changed is read;
//! - every method that can be called is in one list, and text from outside is never part of a command
//!   ([`calls`]);
//! - old versions are not asked to stop what they are hash-checking, nor to announce too often
//!   ([`actions`]), nor to change the hooks of an event that may run programs ([`hooks`]).
//!
//! The abilities of a server are probed at the first exchange, after any failure, and whenever its process
//! id changes. That id is the `run` of a listing. A container that restarts may keep it; then the `load` of
//! every torrent changes at once, which says the same.
//!
//! Retrying, and judging whether a listing can be trusted, are the engine's.

mod actions;
// Public for the fuzz targets and benchmarks, which cannot see what is not.
#[doc(hidden)]
pub mod calls;
mod content;
mod details;
mod file_server;
mod guard;
mod hooks;
#[doc(hidden)]
pub mod jsonrpc;
mod listing;
mod map;
mod methods;
mod probe;
mod server_control;
pub mod settings;
pub mod signal_file;
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
use tokio::time::Instant;

use self::calls::{Call, Fault, Unreadable, Value};
use self::map::TorrentRow;
use self::probe::Probe;
use self::settings::Settings;
use self::transport::{Transport, WireFormat};
use crate::model::{
    Action, Content, Details, InfoHash, Interner, Limits, Listing, Parts, Verb, printable, reported_text,
};
use crate::port::{
    Applied, Capabilities, ClientError, EventHooks, HookRequest, Hooks, Scope, ServerControl, TorrentClient,
};
use crate::tls::TlsError;

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
    Verb::Trackers,
];

/// Maximum length of a fault's text, in characters.
const FAULT_CHARS_MAX: usize = 500;

/// The client of one rTorrent.
pub struct RtorrentClient {
    settings: Settings,
    transport: Transport,
    /// Has one permit, so that exchanges that belong together are not interrupted by others.
    exchanges: Semaphore,
    state: Mutex<ClientState>,
}

/// State between calls. The lock is never held over an exchange.
#[derive(Default)]
struct ClientState {
    probe: Option<Arc<Probe>>,
    listing: listing::ListingState,
    actions: actions::ActionState,
    interner: Interner,
}

/// Exclusive access to the rTorrent: while it is held, no other exchange begins.
struct Access<'a> {
    client: &'a RtorrentClient,
    _permit: SemaphorePermit<'a>,
}

impl RtorrentClient {
    /// Prepares a client. Nothing is connected yet.
    ///
    /// # Errors
    /// The certificates or credentials of an HTTP endpoint cannot be used.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        let transport = Transport::new(&settings)?;
        // One at a time: rTorrent serializes calls itself, and a second connection would only occupy one of its
        // slots.
        Ok(Self { settings, transport, exchanges: Semaphore::new(1), state: Mutex::default() })
    }

    /// Sets the largest answer that is read.
    pub fn with_answer_bytes(mut self, bytes: usize) -> Self {
        self.transport.answer_bytes_max = bytes;
        self
    }

    async fn access(&self) -> Access<'_> {
        let permit = self.exchanges.acquire().await.expect("the semaphore is never closed");
        Access { client: self, _permit: permit }
    }

    fn state(&self) -> MutexGuard<'_, ClientState> {
        // After a panic the state is at worst stale, and the next probe renews it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, fault: &Fault) -> ClientError {
        // What a web server in front repeats of the login is masked before the text is cut to its size.
        let start: String = fault.text.chars().take(16 * FAULT_CHARS_MAX).collect();
        let message = reported_text(&printable(start.as_bytes())).chars().take(FAULT_CHARS_MAX).collect();
        ClientError::Fault { message }
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

impl Access<'_> {
    /// One exchange. After a failure the server is probed again before the next listing.
    async fn exchange(&self, format: WireFormat, body: &[u8], limit: Duration) -> Result<Vec<u8>, ClientError> {
        let answer = self.client.transport.exchange(format, body, limit).await;
        if answer.is_err() {
            // What answers next may be another version.
            self.client.state().probe = None;
        }
        answer
    }

    /// Makes several calls in one exchange, and returns for each its result or its fault.
    async fn call(&self, calls: &[Call]) -> Result<Vec<Result<Value, Fault>>, ClientError> {
        // Every version has XML-RPC, and only there every text can be sent, as base64 if need be.
        let answer = self.exchange(WireFormat::Xml, &xmlrpc::write(calls), self.client.settings.timeout).await?;
        let results = xmlrpc::read(&answer).map_err(|reason| self.client.unreadable(reason))?;
        // Results belong to calls by their place alone.
        if results.len() == calls.len() {
            return Ok(results);
        }
        let reason = format!("{} calls got {} answers", calls.len(), results.len());
        Err(ClientError::Protocol { reason })
    }

    /// Makes several calls about one torrent, all of which have to succeed.
    async fn call_torrent(&self, hash: InfoHash, calls: &[Call]) -> Result<Vec<Value>, ClientError> {
        let results = self.call(calls).await?;
        results.into_iter().collect::<Result<_, _>>().map_err(|fault| match fault {
            fault if fault.is_unknown_hash() => ClientError::UnknownHash(hash),
            fault => self.client.fault(&fault),
        })
    }

    async fn probe(&self) -> Result<Arc<Probe>, ClientError> {
        let known = self.client.state().probe.clone();
        if let Some(probe) = known {
            return Ok(probe);
        }
        let probe = Arc::new(probe::probe(self).await?);
        self.client.state().probe = Some(Arc::clone(&probe));
        Ok(probe)
    }

    /// Reads the row of one torrent, and makes `more` calls in the same exchange; `None` if there is no such
    /// torrent.
    async fn read_row(&self, hash: InfoHash, more: Vec<Call>) -> Result<Option<(TorrentRow, Vec<Value>)>, ClientError> {
        // rTorrent knows torrents by their version 1 hash alone.
        if matches!(hash, InfoHash::V2(_)) {
            return Ok(None);
        }
        let settings = &self.client.settings;
        let fields = self.probe().await?.fields(&settings.extra, None);
        let mut calls: Vec<Call> = fields.iter().map(|field| field.call(hash)).collect();
        calls.extend(more);
        let mut values = match self.call_torrent(hash, &calls).await {
            Ok(values) => values,
            Err(ClientError::UnknownHash(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let rest = values.split_off(fields.len());
        let mut row = TorrentRow::new(settings.extra.len());
        for (field, value) in fields.iter().zip(&values) {
            value.as_cell().and_then(|cell| field.set(&mut row, &cell)).ok_or_else(|| ClientError::Protocol {
                reason: format!("{}: {} is of the wrong kind", settings.endpoint, field.method()),
            })?;
        }
        listing::read_long_texts(self, std::iter::once((hash, &mut row)), Duration::ZERO).await?;
        Ok(Some((row, rest)))
    }
}

#[async_trait]
impl TorrentClient for RtorrentClient {
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError> {
        let asked = Instant::now();
        let access = self.access().await;
        let waited = asked.elapsed();
        let listing = Listing { waited, ..listing::list(&access, scope).await? };
        // Under the same access: a command in between could have resumed the torrent on purpose.
        actions::pause_after_check(&access, &listing).await;
        Ok(listing)
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        details::read(self, hashes, parts).await
    }

    async fn content(&self, hash: InfoHash) -> Result<Option<Content>, ClientError> {
        content::read(self, hash).await
    }

    async fn default_directory(&self) -> Result<Option<String>, ClientError> {
        content::default_directory(self).await
    }

    async fn check(&self, action: &Action) -> Result<(), ClientError> {
        actions::check(self, action).await
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        actions::apply(self, actions).await
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities { server: Some(self), hooks: Some(self), ..Capabilities::of_verbs(VERBS) }
    }
}

#[async_trait]
impl ServerControl for RtorrentClient {
    fn check_limits(&self, limits: Limits) -> Result<(), ClientError> {
        server_control::check_limits(limits)
    }

    async fn set_limits(&self, limits: Limits) -> Result<(), ClientError> {
        server_control::set_limits(&self.access().await, limits).await
    }

    fn check_call(&self, method: &str, params: &[Json]) -> Result<(), ClientError> {
        server_control::checked_call(&self.settings.rpc, method, params).map(drop)
    }

    async fn call(&self, method: &str, params: &[Json]) -> Result<Json, ClientError> {
        server_control::call(&self.access().await, method, params).await
    }
}

#[async_trait]
impl EventHooks for RtorrentClient {
    async fn hooks(&self, request: HookRequest<'_>) -> Result<Hooks, ClientError> {
        hooks::hooks(&self.access().await, request).await
    }
}

/// The settings of extra columns, in the order of [`TorrentRow::extra`].
type ExtraColumns = BTreeMap<Arc<str>, settings::ExtraColumn>;
