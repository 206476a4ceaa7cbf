//! What is done once, without a running bridge: to see who is there, and to take everything back.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

use super::adapters::{Reached, build_client, build_endpoint};
use super::open_store;
use crate::config::{Broker, Config, Server, Webhook};
use crate::model::{HookKey, ServerName, SinkName};
use crate::port::{Clock, HookRequest, Hooks, Scope, SinkStore as _, SystemClock};
use crate::store::SqliteStore;

/// Reaches every server, broker and webhook once; no event is sent. Returns, by name, what answered or why nobody did.
pub async fn reach(config: &Config) -> Vec<(String, anyhow::Result<String>)> {
    let mut found = Vec::new();
    for (name, server) in &config.servers {
        found.push((format!("server {name}"), reach_server(name, &config.instance, server).await));
    }
    for (name, broker) in &config.brokers {
        found.push((format!("broker {name}"), reach_broker(name, &config.instance, broker).await));
    }
    for (name, webhook) in &config.webhooks {
        found.push((format!("webhook {name}"), reach_webhook(webhook).await));
    }
    found
}

/// Clears all that each broker keeps in the name of this instance; says how many names that were, or why
/// it could not be done.
///
/// # Errors
/// The state cannot be opened: another process uses it, for one.
pub async fn purge(config: &Config) -> anyhow::Result<Vec<(SinkName, anyhow::Result<usize>)>> {
    let (store, _) = open_store(config, Arc::new(SystemClock))?;
    let mut purged = Vec::new();
    for (name, broker) in &config.brokers {
        purged.push((name.clone(), purge_broker(name, &config.instance, broker, &store).await));
    }
    store.close().await.context("keep the state")?;
    Ok(purged)
}

async fn purge_broker(name: &SinkName, instance: &str, broker: &Broker, store: &SqliteStore) -> anyhow::Result<usize> {
    let names = store.retained_topics(name).await.context("read what is kept")?;
    let count = Reached::new(name, instance, broker, BTreeMap::new())?.purge(names.clone()).await?;
    store.unregister_topics(name, names).await.context("note what is cleared")?;
    store.save_projection_state(name, "{}".to_owned()).await.context("note what is cleared")?;
    Ok(count)
}

async fn reach_server(name: &ServerName, instance: &str, server: &Server) -> anyhow::Result<String> {
    let client = build_client(name, server)?;
    let listing = client.list(Scope::Full).await?;
    let kind = listing.stats.client.unwrap_or_else(|| "a client".to_owned());
    let found = format!("{kind} with {} torrents", listing.torrents.len());
    if !server.rtorrent().is_some_and(|server| server.hooks.is_wanted) {
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
    format!("{set}; never for {}, where others hang hooks that may run programs", skipped.join(" "))
}

async fn reach_broker(name: &SinkName, instance: &str, broker: &Broker) -> anyhow::Result<String> {
    Reached::new(name, instance, broker, BTreeMap::new())?.probe().await?;
    Ok("lets us in".to_owned())
}

async fn reach_webhook(webhook: &Webhook) -> anyhow::Result<String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    build_endpoint(webhook, &clock)?.probe().await?;
    Ok("answers; whether it takes events, the first one will show".to_owned())
}
