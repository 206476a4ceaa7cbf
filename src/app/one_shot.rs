//! One-shot work without a running bridge: probing every peer, and clearing every retained message.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

use super::adapters::{build_broker, build_client, build_endpoint};
use super::open_store;
use crate::config::{Broker, Config, Server, Webhook};
use crate::model::{HookKey, ServerName, SinkName};
use crate::port::{Clock, HookRequest, Hooks, Scope, SinkStore as _, SystemClock};
use crate::sinks::broker::{BrokerSink, Purged};
use crate::store::SqliteStore;

/// Connects to every server, broker and webhook once, without sending an event. Returns what each answered, or why it
/// did not, under `server NAME`, `broker NAME` or `webhook NAME`.
pub async fn probe(config: &Config) -> Vec<(String, anyhow::Result<String>)> {
    let mut answers = Vec::new();
    for (name, server) in &config.servers {
        answers.push((format!("server {name}"), probe_server(name, &config.instance, server).await));
    }
    for (name, broker) in &config.brokers {
        answers.push((format!("broker {name}"), probe_broker(broker).await));
    }
    for (name, webhook) in &config.webhooks {
        answers.push((format!("webhook {name}"), probe_webhook(webhook).await));
    }
    answers
}

/// Clears every retained message and bucket entry that this instance published, and nothing of another one. Returns, for
/// each broker, what was cleared and what was not, or why nothing could be.
///
/// # Errors
/// The state cannot be opened; a running bridge uses it, for one.
pub async fn purge(config: &Config) -> anyhow::Result<Vec<(SinkName, anyhow::Result<String>)>> {
    // The lock of the store also proves that no bridge is running, which would publish everything again.
    let (store, _) = open_store(config, Arc::new(SystemClock))?;
    let mut purged = Vec::new();
    for (name, broker) in &config.brokers {
        purged.push((name.clone(), purge_broker(name, broker, &store).await));
    }
    store.close().await.context("save the state")?;
    Ok(purged)
}

async fn purge_broker(name: &SinkName, broker: &Broker, store: &SqliteStore) -> anyhow::Result<String> {
    let state = store.load_sink(name).await.context("read the retained topics")?;
    let topics: Vec<String> = state.retained_topics.into_iter().collect();
    let sink = build_broker(broker, BTreeMap::new())?;
    let Purged { cleared, kept } = sink.purge(topics.clone()).await?;
    let topics = topics.into_iter().filter(|topic| !kept.contains(topic)).collect();
    // Only after the broker has acknowledged: an interrupted purge finds the rest in the registry.
    store.unregister_topics(name, topics).await.context("unregister the cleared topics")?;
    store.save_projection_state(name, "{}".to_owned()).await.context("reset the saved projection")?;
    let kept = if kept.is_empty() { String::new() } else { format!(", {} kept", kept.len()) };
    Ok(with_notes(format!("{cleared} topics cleared{kept}"), &*sink))
}

/// Appends what users should know of a sink.
fn with_notes(text: String, sink: &dyn BrokerSink) -> String {
    std::iter::once(text).chain(sink.notes()).collect::<Vec<_>>().join("; ")
}

async fn probe_server(name: &ServerName, instance: &str, server: &Server) -> anyhow::Result<String> {
    let client = build_client(&server.client)?;
    let listing = client.list(Scope::Full).await?;
    let kind = listing.stats.client.unwrap_or_else(|| "a client".to_owned());
    let found = format!("{kind} with {} torrents", listing.torrents.len());
    if server.hooks.is_none() {
        return Ok(found);
    }
    let Some(hooks) = client.capabilities().hooks else { return Ok(found) };
    let key = HookKey::new(instance, name)?;
    Ok(match hooks.hooks(HookRequest::Inspect(&key)).await {
        Ok(hooks) => format!("{found}; {}", describe_hooks(&hooks)),
        Err(error) => format!("{found}; hooks cannot be set: {error}"),
    })
}

fn describe_hooks(hooks: &Hooks) -> String {
    let Hooks { installed, skipped, changed: _ } = hooks;
    let set = match installed.as_slice() {
        [] => "no hook is set now".to_owned(),
        events => format!("hooks are set for {}", events.join(" ")),
    };
    if skipped.is_empty() {
        return set;
    }
    format!("{set}; skipped {}: hooks of others that may run programs are set there", skipped.join(" "))
}

async fn probe_broker(broker: &Broker) -> anyhow::Result<String> {
    let sink = build_broker(broker, BTreeMap::new())?;
    sink.probe().await?;
    Ok(with_notes("accepts this login".to_owned(), &*sink))
}

async fn probe_webhook(webhook: &Webhook) -> anyhow::Result<String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    build_endpoint(webhook, &clock)?.probe().await?;
    Ok("answers; no event was posted".to_owned())
}
