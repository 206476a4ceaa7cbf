//! Dead letters: what a broker or an endpoint would not take, looked at, sent once more, or dropped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use serde::Deserialize;

use super::adapters::{Reached, build_endpoint};
use super::open_store;
use crate::config::Config;
use crate::model::{Entry, EventId, InfoHash, Kind, Rev, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Clock, Connected, DeliverError, Delivery, SystemClock};
use crate::sinks::webhook::Endpoint;
use crate::store::{DeadLetter, SqliteStore};

/// An event that a broker or the endpoint of a webhook would not take.
pub struct Letter {
    /// Of the broker or webhook, as it is called in the config.
    pub name: SinkName,
    pub is_webhook: bool,
    /// The sink that was to hand it over; a webhook has one for each server.
    line: String,
    pub letter: DeadLetter,
}

impl Letter {
    fn of(line: String, letter: DeadLetter) -> Option<Self> {
        let (name, is_webhook) = match line.split_once('.') {
            Some((webhook, _server)) => (webhook, true),
            None => (line.as_str(), false),
        };
        Some(Self { name: SinkName::parse(name).ok()?, is_webhook, line, letter })
    }
}

/// All of them, oldest first, also of sinks that the config does not have any more. The bridge may run.
pub fn dead_letters(config: &Config) -> anyhow::Result<Vec<Letter>> {
    let found = SqliteStore::look_at_dead_letters(&config.data_dir)
        .with_context(|| format!("read the state in {}", config.data_dir.display()))?;
    Ok(found.into_iter().filter_map(|(line, letter)| Letter::of(line, letter)).collect())
}

/// Drops these for good, and says how many of them were still there. The bridge may run: a sink that stands for want of
/// room goes on.
pub fn drop_letters(config: &Config, letters: &[Letter]) -> anyhow::Result<usize> {
    let ids: Vec<_> = letters.iter().map(|letter| (letter.line.clone(), letter.letter.id.clone())).collect();
    SqliteStore::drop_dead_letters(&config.data_dir, &ids)
        .with_context(|| format!("write the state in {}", config.data_dir.display()))
}

/// Sends these once more, in this order, with their ids and bodies; what is taken is a dead letter no longer.
///
/// A sink that cannot be reached is not asked again for the rest. Returns each that was tried, with what became of it.
///
/// # Errors
/// The config has no such sink, or the state cannot be opened: the bridge uses it, for one.
pub async fn replay(config: &Config, letters: Vec<Letter>) -> anyhow::Result<Vec<(Letter, Result<(), DeliverError>)>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut ways: BTreeMap<(SinkName, bool), Way> = BTreeMap::new();
    for Letter { name, is_webhook, .. } in &letters {
        if let Vacant(way) = ways.entry((name.clone(), *is_webhook)) {
            way.insert(Way::to(config, name, *is_webhook, &letters, &clock)?);
        }
    }
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (store, recovery) = open_store(config, clock).context("stop the bridge first, it would send beside us")?;
    ensure!(!recovery.lost, "the state could not be used as it was, and the dead letters with it");
    let mut tried = Vec::new();
    for letter in letters {
        let way = ways.get_mut(&(letter.name.clone(), letter.is_webhook)).expect("one was built for each");
        let result = match letter.letter.gap() {
            None => way.deliver(&letter.letter).await,
            Some(_) => Err(rejected("what was given up is not kept any more: this letter can only be dropped")),
        };
        if result.is_ok() {
            store.forget_dead_letter(&letter.line, &letter.letter.id).await.context("note what was taken")?;
        }
        let is_away = matches!(result, Err(DeliverError::Unavailable { .. }));
        tried.push((letter, result));
        if is_away {
            break;
        }
    }
    for way in ways.into_values() {
        way.close().await;
    }
    // After a crash the next start of the bridge has to see that it was one, so the state is left as it is.
    if recovery.was_clean {
        store.close().await.context("keep the state")?;
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

    async fn deliver(&mut self, letter: &DeadLetter) -> Result<(), DeliverError> {
        let (broker, connected) = match self {
            Self::Webhook(endpoint) => return endpoint.deliver(&letter.id, letter.body.clone()).await,
            Self::Broker(broker, connected) => (broker, connected),
        };
        let entry = entry(letter).map_err(|error| rejected(format!("its body is no event: {error}")))?;
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
fn entry(DeadLetter { server, seq, body, .. }: &DeadLetter) -> Result<Entry, serde_json::Error> {
    #[derive(Deserialize)]
    struct Head {
        id: EventId,
        event_type: Kind,
        hash: Option<InfoHash>,
        time: Timestamp,
    }
    let Head { id, event_type, hash, time } = serde_json::from_slice(body)?;
    let (server, seq, body) = (server.clone(), *seq, body.clone());
    Ok(Entry { server, seq, id, kind: event_type, hash, rev: Rev(0), time, body })
}
