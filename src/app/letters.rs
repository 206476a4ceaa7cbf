//! Dead letters of webhooks: what an endpoint would not take, looked at and sent once more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;

use super::adapters::build_endpoint;
use super::open_store;
use crate::config::{Config, Http};
use crate::model::{ServerName, SinkName};
use crate::port::{Clock, DeliverError, SystemClock};
use crate::repeat::until_there_is_room;
use crate::sinks::tls;
use crate::sinks::webhook::Endpoint;
use crate::store::{DeadLetter, SqliteStore};

/// The bridge is on this machine.
const CONNECT_MAX: Duration = Duration::from_secs(5);

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
    dead_letters_in(&config.data_dir)
}

fn dead_letters_in(data_dir: &Path) -> anyhow::Result<Vec<Letter>> {
    let found = SqliteStore::look_at_dead_letters(data_dir)
        .with_context(|| format!("read the state in {}", data_dir.display()))?;
    Ok(found.into_iter().filter_map(|(sink, letter)| Letter::of(&sink, letter)).collect())
}

/// A dead letter that was sent once more, and what became of it.
pub struct Tried {
    pub id: String,
    pub result: Result<(), DeliverError>,
}

/// Sends dead letters once more, oldest first, with their ids and bodies; what is taken is one no longer. If the
/// bridge runs, it is asked to do so.
///
/// `ids`: these; all, if there are none. An endpoint that cannot be reached is not asked again for the rest.
/// Returns each that was tried.
///
/// # Errors
/// There is no such webhook or letter, or the state cannot be opened, or the bridge will not be asked.
pub async fn replay(config: &Config, webhook: &SinkName, ids: &[String]) -> anyhow::Result<Vec<Tried>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let Some(wanted) = config.webhooks.get(webhook) else { bail!("the config has no webhook {webhook}") };
    let endpoint = build_endpoint(wanted, &clock)?;
    let letters = chosen(&config.data_dir, webhook, ids)?;
    if letters.is_empty() {
        return Ok(Vec::new());
    }
    let (store, recovery) = match open_store(config, clock) {
        Ok(opened) => opened,
        Err(error) if is_in_use(&error) => return ask_bridge(&config.http, webhook, ids).await,
        Err(error) => return Err(error),
    };
    ensure!(!recovery.lost, "the state could not be used as it was, and the dead letters with it");
    let tried = send_again(&store, &endpoint, letters).await?;
    // After a crash the next start of the bridge has to see that it was one, so the state is left as it is.
    if recovery.was_clean {
        store.close().await.context("keep the state")?;
    }
    Ok(tried)
}

/// The dead letters of a webhook; of these ids, if there are any. Blocks.
fn chosen(data_dir: &Path, webhook: &SinkName, ids: &[String]) -> anyhow::Result<Vec<Letter>> {
    let mut letters = dead_letters_in(data_dir)?;
    letters.retain(|letter| letter.webhook == *webhook);
    if let Some(unknown) = ids.iter().find(|id| !letters.iter().any(|letter| letter.letter.id == **id)) {
        bail!("{webhook} has no dead letter {unknown}");
    }
    letters.retain(|letter| ids.is_empty() || ids.contains(&letter.letter.id));
    Ok(letters)
}

async fn send_again(store: &SqliteStore, endpoint: &Endpoint, letters: Vec<Letter>) -> anyhow::Result<Vec<Tried>> {
    let mut tried = Vec::new();
    for Letter { line, letter, .. } in letters {
        let result = endpoint.deliver(&line, &letter.id, letter.body).await;
        if result.is_ok() {
            let forget = || store.forget_dead_letter(&line, &letter.id);
            until_there_is_room("a dead letter", forget).await.context("note what was taken")?;
        }
        let is_away = matches!(result, Err(DeliverError::Unavailable { .. }));
        tried.push(Tried { id: letter.id, result });
        if is_away {
            break;
        }
    }
    Ok(tried)
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
        let letters = spawn_blocking(move || chosen(&data_dir, &webhook, &ids)).await.context("read the state")??;
        send_again(&self.store, endpoint, letters).await
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let is_locked = |cause: &io::Error| cause.kind() == io::ErrorKind::WouldBlock;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_locked))
}

async fn ask_bridge(http: &Http, webhook: &SinkName, ids: &[String]) -> anyhow::Result<Vec<Tried>> {
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
    let body = json!({"ids": ids, "all": ids.is_empty()});
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
        let is_away = matches!(result, Err(DeliverError::Unavailable { .. }));
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
