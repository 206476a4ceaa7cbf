//! Dead letters of webhooks: what an endpoint would not take, looked at and sent once more.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};

use super::adapters::build_endpoint;
use super::open_store;
use crate::config::Config;
use crate::model::{ServerName, SinkName};
use crate::port::{Clock, DeliverError, SystemClock};
use crate::store::{DeadLetter, SqliteStore};

/// An event that the endpoint of a webhook would not take.
pub struct Letter {
    pub webhook: SinkName,
    /// The sink that was to hand it over.
    line: SinkName,
    pub letter: DeadLetter,
}

impl Letter {
    /// `None`: it was for a broker.
    fn of(sink: &str, letter: DeadLetter) -> Option<Self> {
        let (webhook, server) = sink.split_once('.')?;
        let webhook = SinkName::parse(webhook).ok()?;
        let line = webhook.line(&ServerName::parse(server).ok()?);
        Some(Self { webhook, line, letter })
    }
}

/// All of them, oldest first, also of webhooks that the config does not have any more. The bridge may run.
pub fn dead_letters(config: &Config) -> anyhow::Result<Vec<Letter>> {
    let found = SqliteStore::look_at_dead_letters(&config.data_dir)
        .with_context(|| format!("read the state in {}", config.data_dir.display()))?;
    Ok(found.into_iter().filter_map(|(sink, letter)| Letter::of(&sink, letter)).collect())
}

/// Sends dead letters once more, oldest first, with their ids and bodies; what is taken is one no longer.
///
/// `ids`: these; all, if there are none. An endpoint that cannot be reached is not asked again for the rest.
/// Returns each that was tried, with what became of it.
///
/// # Errors
/// There is no such webhook or letter, or the state cannot be opened: the bridge uses it, for one.
pub async fn replay(
    config: &Config,
    webhook: &SinkName,
    ids: &[String],
) -> anyhow::Result<Vec<(Letter, Result<(), DeliverError>)>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let Some(wanted) = config.webhooks.get(webhook) else { bail!("the config has no webhook {webhook}") };
    let endpoint = build_endpoint(wanted, &clock)?;
    let mut letters = dead_letters(config)?;
    letters.retain(|letter| letter.webhook == *webhook);
    if let Some(unknown) = ids.iter().find(|id| !letters.iter().any(|letter| letter.letter.id == **id)) {
        bail!("{webhook} has no dead letter {unknown}");
    }
    letters.retain(|letter| ids.is_empty() || ids.contains(&letter.letter.id));
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (store, recovery) = open_store(config, clock).context("stop the bridge first, it would send beside us")?;
    ensure!(!recovery.lost, "the state could not be used as it was, and the dead letters with it");
    let mut tried = Vec::new();
    for letter in letters {
        let result = endpoint.deliver(&letter.letter.id, letter.letter.body.clone()).await;
        if result.is_ok() {
            store.forget_dead_letter(&letter.line, &letter.letter.id).await.context("note what was taken")?;
        }
        let is_away = matches!(result, Err(DeliverError::Unavailable { .. }));
        tried.push((letter, result));
        if is_away {
            break;
        }
    }
    // After a crash the next start of the bridge has to see that it was one, so the state is left as it is.
    if recovery.was_clean {
        store.close().await.context("keep the state")?;
    }
    Ok(tried)
}
