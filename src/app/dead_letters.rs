//! Dead letters: events that a broker or an endpoint refused for good, to be listed, replayed or dropped.
//!
//! Listing and dropping work beside a running bridge. A replay to a broker needs the bridge stopped, because two
//! processes would otherwise deliver for one sink; a replay to a webhook is handed to the running bridge over HTTP.

use std::collections::btree_map::Entry::Vacant;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;

use super::adapters::{build_broker, build_endpoint};
use super::open_store;
use crate::config::{Config, Http};
use crate::log_throttle::retry_while_full;
use crate::model::{
    EventId, InfoHash, JournalEntry, Kind, OutsideText, Rev, Seq, ServerName, SinkName, Timestamp, known_names,
};
use crate::port::{Clock, Connected, DeliverError, Delivery, SystemClock};
use crate::sinks::broker::BrokerSink;
use crate::sinks::webhook::Endpoint;
use crate::store::{DeadLetter, SqliteStore};
use crate::tls;

/// A broker or a webhook, by its name in the config.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receiver {
    /// A `[brokers.NAME]`.
    #[display("broker {_0}")]
    Broker(SinkName),
    /// A `[webhooks.NAME]`.
    #[display("webhook {_0}")]
    Webhook(SinkName),
}

impl Receiver {
    /// Returns the name in the config.
    pub fn name(&self) -> &SinkName {
        match self {
            Self::Broker(name) | Self::Webhook(name) => name,
        }
    }
}

/// A dead letter, with the broker or webhook that refused it.
pub struct SinkDeadLetter {
    /// The broker or webhook that refused the event.
    pub receiver: Receiver,
    /// The sink whose queue holds it. A webhook has one for each of its servers.
    sink: SinkName,
    /// The event and the reason.
    pub dead_letter: DeadLetter,
}

impl SinkDeadLetter {
    /// Returns `None` for a sink whose name this version could not have written.
    fn new(sink: &str, dead_letter: DeadLetter) -> Option<Self> {
        let receiver = match sink.split_once('.') {
            Some((webhook, _server)) => Receiver::Webhook(SinkName::parse(webhook).ok()?),
            None => Receiver::Broker(SinkName::parse(sink).ok()?),
        };
        let sink = match &receiver {
            Receiver::Broker(name) => name.clone(),
            Receiver::Webhook(name) => name.line(&dead_letter.server),
        };
        Some(Self { receiver, sink, dead_letter })
    }
}

/// Returns the dead letters with these ids; all of them, if `ids` is empty.
///
/// # Errors
/// An id that none of them has.
pub fn select(mut dead_letters: Vec<SinkDeadLetter>, ids: &[String]) -> anyhow::Result<Vec<SinkDeadLetter>> {
    let known: BTreeSet<&str> = dead_letters.iter().map(|one| one.dead_letter.id.as_str()).collect();
    if let Some(unknown) = ids.iter().find(|id| !known.contains(id.as_str())) {
        bail!("there is no dead letter {unknown}");
    }
    let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    dead_letters.retain(|one| ids.is_empty() || ids.contains(one.dead_letter.id.as_str()));
    Ok(dead_letters)
}

/// Returns all dead letters, oldest first, those of sinks that left the config included. Blocks.
///
/// # Errors
/// The state cannot be read. A running bridge is no hindrance.
pub fn list(data_dir: &Path) -> anyhow::Result<Vec<SinkDeadLetter>> {
    let found = SqliteStore::read_dead_letters(data_dir)
        .with_context(|| format!("read the state in {}", data_dir.display()))?;
    Ok(found.into_iter().filter_map(|(sink, dead_letter)| SinkDeadLetter::new(&sink, dead_letter)).collect())
}

/// Deletes dead letters and returns how many of them were still there. Blocks.
///
/// A running bridge notices the room within a second, and unblocks a sink that waited for it.
///
/// # Errors
/// The state cannot be written.
pub fn delete(data_dir: &Path, dead_letters: &[SinkDeadLetter]) -> anyhow::Result<usize> {
    let ids: Vec<_> = dead_letters.iter().map(|one| (one.sink.to_string(), one.dead_letter.id.clone())).collect();
    SqliteStore::drop_dead_letters(data_dir, &ids).with_context(|| format!("write the state in {}", data_dir.display()))
}

/// The outcome of one replayed dead letter. Also its JSON on `/api/v1/dead-letters/{webhook}/replay`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Replayed {
    /// The id of the event.
    pub id: String,
    /// The verdict of the receiver.
    pub status: ReplayStatus,
    /// Why the event was not delivered.
    pub reason: Option<String>,
}

/// How a replay of one dead letter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayStatus {
    /// Acknowledged by the receiver, and no longer a dead letter.
    Delivered,
    /// Refused once more.
    Rejected,
    /// The receiver is unreachable; later dead letters were not sent.
    Unreachable,
}

impl Replayed {
    fn new(id: String, result: Result<(), DeliverError>) -> Self {
        let status = match &result {
            Ok(()) => ReplayStatus::Delivered,
            Err(error) if error.is_rejected() => ReplayStatus::Rejected,
            Err(_) => ReplayStatus::Unreachable,
        };
        Self { id, status, reason: result.err().map(|error| error.to_string()) }
    }
}

/// Sends dead letters again, in their order, with their ids and bodies. Those of a webhook are sent by the running bridge,
/// if there is one.
///
/// Returns the outcome of each one sent, up to the first unreachable receiver.
///
/// # Errors
/// The config has no such receiver, the state cannot be opened, or the running bridge does not accept the request.
pub async fn replay(config: &Config, dead_letters: Vec<SinkDeadLetter>) -> anyhow::Result<Vec<Replayed>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut targets = ReplayTargets::new();
    for SinkDeadLetter { receiver, .. } in &dead_letters {
        // All targets before the first event, so that a receiver that left the config sends nothing.
        if let Vacant(target) = targets.entry(receiver.clone()) {
            target.insert(ReplayTarget::new(config, receiver, &dead_letters, &clock)?);
        }
    }
    if dead_letters.is_empty() {
        return Ok(Vec::new());
    }
    let (store, recovery) = match open_store(config, clock) {
        Ok(opened) => opened,
        Err(error) if is_in_use(&error) => return ask_bridge(&config.http, &dead_letters).await,
        Err(error) => return Err(error),
    };
    ensure!(!recovery.lost, "the state was unusable and has been moved aside, and the dead letters with it");
    let replayed = replay_each(&store, &mut targets, dead_letters).await?;
    for target in targets.into_values() {
        target.close().await;
    }
    // After a crash the clean mark must stay off: the next start of the bridge still has to assert every state again.
    if recovery.was_clean {
        store.close().await.context("save the state")?;
    }
    Ok(replayed)
}

type ReplayTargets = BTreeMap<Receiver, ReplayTarget>;

async fn replay_each(
    store: &SqliteStore,
    targets: &mut ReplayTargets,
    dead_letters: Vec<SinkDeadLetter>,
) -> anyhow::Result<Vec<Replayed>> {
    let mut replayed = Vec::new();
    for SinkDeadLetter { receiver, sink, dead_letter } in dead_letters {
        let target = targets.get_mut(&receiver).expect("each receiver has a target");
        let result = match dead_letter.gap() {
            None => target.send(&sink, &dead_letter).await,
            Some(_) => Err(rejected("the events of this range are no longer stored; it can only be dropped")),
        };
        // Only after the acknowledgement (I4): a crash before this line sends the event again.
        if result.is_ok() {
            let forget = || store.drop_dead_letter(&sink, &dead_letter.id);
            retry_while_full("a dead letter", forget).await.context("delete the delivered dead letter")?;
        }
        let one = Replayed::new(dead_letter.id, result);
        let is_unreachable = one.status == ReplayStatus::Unreachable;
        replayed.push(one);
        // Each further event would wait for the same timeout.
        if is_unreachable {
            break;
        }
    }
    Ok(replayed)
}

fn rejected(reason: impl Into<OutsideText>) -> DeliverError {
    DeliverError::Rejected { reason: reason.into() }
}

/// The destination of the dead letters of one receiver.
enum ReplayTarget {
    Webhook(Arc<Endpoint>),
    /// The connection is opened with the first event.
    Broker(Arc<dyn BrokerSink>, Option<Connected>),
}

impl ReplayTarget {
    fn new(
        config: &Config,
        receiver: &Receiver,
        dead_letters: &[SinkDeadLetter],
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        match receiver {
            Receiver::Webhook(name) => {
                let webhook = config.webhooks.get(name).with_context(|| format!("the config has no {receiver}"))?;
                Ok(Self::Webhook(build_endpoint(webhook, clock)?))
            }
            Receiver::Broker(name) => {
                let broker = config.brokers.get(name).with_context(|| format!("the config has no {receiver}"))?;
                // Marks each of them as sent before this run, so that JetStream's answer "duplicate" is believed.
                let mut newest: BTreeMap<ServerName, Seq> = BTreeMap::new();
                for SinkDeadLetter { dead_letter, .. } in dead_letters {
                    let seq = newest.entry(dead_letter.server.clone()).or_default();
                    *seq = dead_letter.seq.max(*seq);
                }
                Ok(Self::Broker(build_broker(broker, newest)?, None))
            }
        }
    }

    async fn send(&mut self, sink: &SinkName, dead_letter: &DeadLetter) -> Result<(), DeliverError> {
        let entry =
            journal_entry(dead_letter).map_err(|error| rejected(format!("the body is not an event: {error}")))?;
        let (broker, connected) = match self {
            Self::Webhook(endpoint) => return endpoint.deliver(sink, &entry).await,
            Self::Broker(broker, connected) => (broker, connected),
        };
        let Connected { mut link, mut drive } = match connected.take() {
            Some(connected) => connected,
            None => broker.connect_detached().await?,
        };
        let mut sent = link.send(Delivery::Event(entry));
        tokio::select! {
            biased;
            verdict = &mut sent => {
                *connected = Some(Connected { link, drive });
                verdict
            }
            // The message itself may have ended the connection; its verdict, if there is one, says more.
            failure = &mut drive => sent.now_or_never().unwrap_or(Err(failure)),
        }
    }

    async fn close(self) {
        if let Self::Broker(_, Some(Connected { link, drive })) = self {
            // Everything sent is resolved, so either end of the connection will do.
            tokio::select! {
                closed = link.close() => drop(closed),
                failure = drive => drop(failure),
            }
        }
    }
}

/// Returns the journal entry of a dead letter.
fn journal_entry(DeadLetter { body, .. }: &DeadLetter) -> Result<JournalEntry, serde_json::Error> {
    #[derive(Deserialize)]
    struct Head {
        id: EventId,
        event_type: Kind,
        hash: Option<InfoHash>,
        time: Timestamp,
    }
    let Head { id, event_type, hash, time } = serde_json::from_slice(body)?;
    if let EventId::Updated { .. } = id {
        return Err(serde_json::Error::custom("an `updated` is in no journal"));
    }
    // The revision orders states, and a replay sends none.
    Ok(JournalEntry::stored(id, event_type, hash, Rev(0), time, body.clone()))
}

/// Replays inside the running bridge.
pub(super) struct Replayer {
    /// Directory of the store, from which dead letters are read.
    pub data_dir: PathBuf,
    /// The open store, in which delivered dead letters are deleted.
    pub store: Arc<SqliteStore>,
    /// Endpoints of the webhooks, by their names in the config.
    pub endpoints: BTreeMap<SinkName, Arc<Endpoint>>,
    /// Held during a replay, so that two requests for the same events do not both send them.
    pub one_at_a_time: AsyncMutex<()>,
}

impl Replayer {
    /// Replays dead letters of a webhook, as [`replay`]. A caller that stops waiting ends the replay after the event in
    /// flight.
    pub(super) async fn replay(&self, webhook: &str, ids: Vec<String>) -> anyhow::Result<Vec<Replayed>> {
        let found = self.endpoints.iter().find(|(name, _)| name.as_str() == webhook);
        let (name, endpoint) = found.with_context(|| {
            let known = known_names(webhook, self.endpoints.keys().map(SinkName::as_str));
            format!("unknown webhook `{}`; {known}", webhook.escape_default())
        })?;
        let receiver = Receiver::Webhook(name.clone());
        let _turn = self.one_at_a_time.lock().await;
        let (data_dir, of_webhook) = (self.data_dir.clone(), receiver.clone());
        let selected = spawn_blocking(move || {
            let mut dead_letters = list(&data_dir)?;
            dead_letters.retain(|one| one.receiver == of_webhook);
            select(dead_letters, &ids)
        });
        let dead_letters = selected.await.context("read the state")??;
        let mut targets = ReplayTargets::from([(receiver, ReplayTarget::Webhook(Arc::clone(endpoint)))]);
        replay_each(&self.store, &mut targets, dead_letters).await
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let is_locked = |cause: &io::Error| cause.kind() == io::ErrorKind::WouldBlock;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_locked))
}

async fn ask_bridge(http: &Http, dead_letters: &[SinkDeadLetter]) -> anyhow::Result<Vec<Replayed>> {
    let [SinkDeadLetter { receiver, .. }, ..] = dead_letters else { return Ok(Vec::new()) };
    let (Receiver::Webhook(webhook), true) = (receiver, dead_letters.iter().all(|one| one.receiver == *receiver))
    else {
        // Two connections of one sink to a broker would break its order (I5).
        bail!("the bridge is running: stop it first");
    };
    let (Some(address), Some(token)) = (http.address(), &http.token) else {
        bail!("the bridge is running: stop it first, or set http.token so that it can be asked over HTTP");
    };
    let client = tls::http_client(false, &tls::Trust::default(), |client| client)?;
    let url = format!("http://{address}/api/v1/dead-letters/{webhook}/replay");
    let ids: Vec<&str> = dead_letters.iter().map(|one| one.dead_letter.id.as_str()).collect();
    let asked = client.post(url).bearer_auth(token.expose_secret()).json(&json!({"ids": ids})).send().await;
    let answer = asked.context("the bridge is running, and does not answer over HTTP")?;
    let status = answer.status();
    let mut answer: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        let reason = answer["error"]["message"].as_str().unwrap_or("no reason given");
        bail!("the running bridge refused: {status}, {reason}");
    }
    serde_json::from_value(answer["replayed"].take()).context("read the answer of the running bridge")
}
