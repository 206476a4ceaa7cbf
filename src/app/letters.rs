//! Dead letters: what a broker or an endpoint would not take, looked at, sent once more, or dropped.

use std::collections::btree_map::Entry::Vacant;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;

use super::adapters::{Reached, build_endpoint};
use super::open_store;
use crate::config::{Config, Http};
use crate::log_throttle::retry_while_full;
use crate::model::{EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Clock, Connected, DeliverError, Delivery, SystemClock};
use crate::sinks::tls;
use crate::sinks::webhook::Endpoint;
use crate::store::{DeadLetter, SqliteStore};

/// The bridge is on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// An event that a broker or the endpoint of a webhook would not take.
pub struct Letter {
    /// Of the broker or webhook, as it is called in the config.
    pub name: SinkName,
    pub is_webhook: bool,
    /// The sink that was to hand it over; a webhook has one for each server.
    line: SinkName,
    pub letter: DeadLetter,
}

impl Letter {
    fn of(sink: &str, letter: DeadLetter) -> Option<Self> {
        let (name, is_webhook) = match sink.split_once('.') {
            Some((webhook, _server)) => (webhook, true),
            None => (sink, false),
        };
        let name = SinkName::parse(name).ok()?;
        let line = if is_webhook { name.line(&letter.server) } else { name.clone() };
        Some(Self { name, is_webhook, line, letter })
    }

    /// Of these, the ones with these ids; all of them, if there are none.
    ///
    /// # Errors
    /// There is none with such an id.
    pub fn chosen(mut letters: Vec<Self>, ids: &[String]) -> anyhow::Result<Vec<Self>> {
        let known: BTreeSet<&str> = letters.iter().map(|letter| letter.letter.id.as_str()).collect();
        if let Some(unknown) = ids.iter().find(|id| !known.contains(id.as_str())) {
            bail!("there is no dead letter {unknown}");
        }
        let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        letters.retain(|letter| ids.is_empty() || ids.contains(letter.letter.id.as_str()));
        Ok(letters)
    }
}

/// All of them, oldest first, also of sinks that the config does not have any more. The bridge may run. Blocks.
pub fn dead_letters(data_dir: &Path) -> anyhow::Result<Vec<Letter>> {
    let found = SqliteStore::look_at_dead_letters(data_dir)
        .with_context(|| format!("read the state in {}", data_dir.display()))?;
    Ok(found.into_iter().filter_map(|(sink, letter)| Letter::of(&sink, letter)).collect())
}

/// Drops these for good, and says how many of them were still there. The bridge may run: a sink that stands for want of
/// room goes on.
pub fn drop_letters(config: &Config, letters: &[Letter]) -> anyhow::Result<usize> {
    let ids: Vec<_> = letters.iter().map(|letter| (letter.line.to_string(), letter.letter.id.clone())).collect();
    SqliteStore::drop_dead_letters(&config.data_dir, &ids)
        .with_context(|| format!("write the state in {}", config.data_dir.display()))
}

/// A dead letter that was sent once more, and what became of it.
pub struct Tried {
    pub id: String,
    pub result: Result<(), DeliverError>,
}

/// Sends these once more, in this order, with their ids and bodies; what is taken is a dead letter no longer. If the
/// bridge runs, it is asked to send those of a webhook.
///
/// A sink that cannot be reached is not asked again for the rest. Returns each that was tried.
///
/// # Errors
/// The config has no such sink, or the state cannot be opened, or the bridge uses it and will not be asked.
pub async fn replay(config: &Config, letters: Vec<Letter>) -> anyhow::Result<Vec<Tried>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut ways = Ways::new();
    for Letter { name, is_webhook, .. } in &letters {
        if let Vacant(way) = ways.entry((name.clone(), *is_webhook)) {
            way.insert(Way::to(config, name, *is_webhook, &letters, &clock)?);
        }
    }
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (store, recovery) = match open_store(config, clock) {
        Ok(opened) => opened,
        Err(error) if is_in_use(&error) => return ask_bridge(&config.http, &letters).await,
        Err(error) => return Err(error),
    };
    ensure!(!recovery.lost, "the state could not be used as it was, and the dead letters with it");
    let tried = send_again(&store, &mut ways, letters).await?;
    for way in ways.into_values() {
        way.close().await;
    }
    // After a crash the next start of the bridge has to see that it was one, so the state is left as it is.
    if recovery.was_clean {
        store.close().await.context("keep the state")?;
    }
    Ok(tried)
}

/// By the name in the config, and whether it is a webhook's.
type Ways = BTreeMap<(SinkName, bool), Way>;

async fn send_again(store: &SqliteStore, ways: &mut Ways, letters: Vec<Letter>) -> anyhow::Result<Vec<Tried>> {
    let mut tried = Vec::new();
    for Letter { name, is_webhook, line, letter } in letters {
        let way = ways.get_mut(&(name, is_webhook)).expect("one was built for each");
        let result = match letter.gap() {
            None => way.outbox(&line, &letter).await,
            Some(_) => Err(rejected("what was given up is not kept any more: this letter can only be dropped")),
        };
        if result.is_ok() {
            let forget = || store.forget_dead_letter(&line, &letter.id);
            retry_while_full("a dead letter", forget).await.context("note what was taken")?;
        }
        let is_away = result.as_ref().is_err_and(|error| !error.is_rejected());
        tried.push(Tried { id: letter.id, result });
        if is_away {
            break;
        }
    }
    Ok(tried)
}

fn rejected(reason: impl Into<String>) -> DeliverError {
    DeliverError::Rejected { reason: reason.into() }
}

/// How a letter is sent.
enum Way {
    Webhook(Arc<Endpoint>),
    /// Connected when there is something to send.
    Broker(Reached, Option<Connected>),
}

impl Way {
    fn to(
        config: &Config,
        name: &SinkName,
        is_webhook: bool,
        letters: &[Letter],
        clock: &Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        if is_webhook {
            let Some(webhook) = config.webhooks.get(name) else { bail!("the config has no webhook {name}") };
            return Ok(Self::Webhook(build_endpoint(webhook, clock)?));
        }
        let Some(broker) = config.brokers.get(name) else { bail!("the config has no broker {name}") };
        // None of these is sent for the first time.
        let mut before: BTreeMap<ServerName, Seq> = BTreeMap::new();
        for Letter { letter, .. } in letters {
            let newest = before.entry(letter.server.clone()).or_default();
            *newest = letter.seq.max(*newest);
        }
        Ok(Self::Broker(Reached::new(name, &config.instance, broker, before)?, None))
    }

    async fn outbox(&mut self, line: &SinkName, letter: &DeadLetter) -> Result<(), DeliverError> {
        let entry = entry(letter).map_err(|error| rejected(format!("its body is no event: {error}")))?;
        let (broker, connected) = match self {
            Self::Webhook(endpoint) => return endpoint.deliver(line, &entry).await,
            Self::Broker(broker, connected) => (broker, connected),
        };
        let Connected { mut link, mut drive } = match connected.take() {
            Some(connected) => connected,
            None => broker.connect_aside().await?,
        };
        let mut sent = link.send(Delivery::Event(entry));
        tokio::select! {
            biased;
            verdict = &mut sent => {
                *connected = Some(Connected { link, drive });
                verdict
            }
            // Over it the connection may have ended: then that is what became of it.
            failure = &mut drive => sent.now_or_never().unwrap_or(Err(failure)),
        }
    }

    async fn close(self) {
        if let Self::Broker(_, Some(Connected { link, drive })) = self {
            // All that was sent is settled, so it does not matter which of them is first.
            tokio::select! {
                closed = link.close() => drop(closed),
                failure = drive => drop(failure),
            }
        }
    }
}

/// The journal entry that a letter was.
fn entry(DeadLetter { server, seq, body, .. }: &DeadLetter) -> Result<JournalEntry, serde_json::Error> {
    #[derive(Deserialize)]
    struct Head {
        id: EventId,
        event_type: Kind,
        hash: Option<InfoHash>,
        time: Timestamp,
    }
    let Head { id, event_type, hash, time } = serde_json::from_slice(body)?;
    let (server, seq, body) = (server.clone(), *seq, body.clone());
    Ok(JournalEntry::stored(server, seq, id, event_type, hash, Rev(0), time, body))
}

/// What the running bridge replays with.
pub(super) struct Letters {
    pub data_dir: PathBuf,
    pub store: Arc<SqliteStore>,
    pub endpoints: BTreeMap<SinkName, Arc<Endpoint>>,
    /// Two who want the same shall not both send it.
    pub one_at_a_time: AsyncMutex<()>,
}

impl Letters {
    /// As [`replay`]. Who stops waiting ends it, after the letter that is under way.
    pub(super) async fn replay(&self, webhook: &str, ids: Vec<String>) -> anyhow::Result<Vec<Tried>> {
        let found = self.endpoints.iter().find(|(name, _)| name.as_str() == webhook);
        let (name, endpoint) = found.context("the config has no webhook of that name")?;
        let _turn = self.one_at_a_time.lock().await;
        let (data_dir, webhook) = (self.data_dir.clone(), name.clone());
        let chosen = spawn_blocking(move || {
            let mut letters = dead_letters(&data_dir)?;
            letters.retain(|letter| letter.is_webhook && letter.name == webhook);
            Letter::chosen(letters, &ids)
        });
        let letters = chosen.await.context("read the state")??;
        let mut ways = Ways::from([((name.clone(), true), Way::Webhook(Arc::clone(endpoint)))]);
        send_again(&self.store, &mut ways, letters).await
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let is_locked = |cause: &io::Error| cause.kind() == io::ErrorKind::WouldBlock;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_locked))
}

async fn ask_bridge(http: &Http, letters: &[Letter]) -> anyhow::Result<Vec<Tried>> {
    let [Letter { name: webhook, .. }, ..] = letters else { return Ok(Vec::new()) };
    if letters.iter().any(|letter| !letter.is_webhook || letter.name != *webhook) {
        bail!("stop the bridge first: it would send beside us");
    }
    let (Some(address), Some(token)) = (http.address(), &http.token) else {
        bail!("the bridge runs: stop it first, or give it http.token, so that it can be asked over HTTP");
    };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(Arc::unwrap_or_clone(tls::trusting_nobody()?))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .build()?;
    let url = format!("http://{address}/api/v1/webhooks/{webhook}/replay");
    let ids: Vec<&str> = letters.iter().map(|letter| letter.letter.id.as_str()).collect();
    let body = json!({"ids": ids});
    let asked = client.post(url).bearer_auth(token.expose_secret()).json(&body).send().await;
    let answer = asked.context("the bridge runs, and does not answer over HTTP")?;
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        let reason = answer["error"]["message"].as_str().unwrap_or("without a reason");
        bail!("the bridge runs, and refuses: {status}, {reason}");
    }
    let tried = serde_json::from_value::<Vec<Told>>(answer["tried"].clone()).context("what the bridge answers")?;
    Ok(tried.into_iter().map(Tried::from).collect())
}

/// A [`Tried`] on its way from the bridge.
#[derive(Deserialize, Serialize)]
pub(super) struct Told {
    id: String,
    is_taken: bool,
    /// It could not be reached, and may be later.
    is_away: bool,
    reason: Option<String>,
}

impl From<Tried> for Told {
    fn from(Tried { id, result }: Tried) -> Self {
        let is_away = result.as_ref().is_err_and(|error| !error.is_rejected());
        Self { id, is_taken: result.is_ok(), is_away, reason: result.err().map(|error| error.to_string()) }
    }
}

impl From<Told> for Tried {
    fn from(Told { id, is_taken, is_away, reason }: Told) -> Self {
        let reason = reason.unwrap_or_default();
        let result = match (is_taken, is_away) {
            (true, _) => Ok(()),
            (false, true) => Err(DeliverError::unavailable(reason)),
            (false, false) => Err(DeliverError::Rejected { reason }),
        };
        Self { id, result }
    }
}
