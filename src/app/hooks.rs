//! The set-up of hooks: the file of each hooked client, and the task that reads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clients::rtorrent::signal_file::{Received, SignalFile};
use crate::config::{self, Config};
use crate::live_state::LiveState;
use crate::model::{Hook, HookKey, ServerName, error_chain};

/// Time until a file that could not be read is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The hook of a client, and the file that it writes to.
pub(super) struct HookedClient {
    pub hook: Hook,
    pub file: SignalFile,
}

/// Prepares the file of each server whose config wants hooks, and its folder.
///
/// # Errors
/// A folder cannot be used; the text names the config key.
pub(super) fn prepare(config: &Config) -> anyhow::Result<BTreeMap<ServerName, HookedClient>> {
    let hooked = config.servers.iter().filter_map(|(name, server)| Some((name, server.hooks.as_ref()?)));
    let prepare = |(name, hooks): (&ServerName, &config::Hooks)| {
        // The same in each run, so that what an earlier one left is emptied.
        let file_name = format!("{}.{name}", config.instance);
        let file = match &hooks.dir {
            Some(dir) => SignalFile::shared(dir, &file_name).with_context(|| format!("servers.{name}.hooks_dir")),
            None => SignalFile::private(&config.data_dir.join("hooks"), &file_name).context("data_dir"),
        }?;
        let hook_file = file.hook_file().with_context(|| format!("servers.{name}.hooks: set hooks_dir"))?;
        let hook = Hook { key: HookKey::new(&config.instance, name)?, file: hook_file };
        anyhow::Ok((name.clone(), HookedClient { hook, file }))
    };
    hooked.map(prepare).collect()
}

/// Creates the file of one client; `false` if it cannot be used, so that its server runs without hooks.
pub(super) fn create_file(file: &SignalFile, server: &ServerName, live: &LiveState) -> bool {
    let Err(error) = file.create() else { return true };
    warn!(%server, ?file, error = error_chain(&error), "file for hook signals cannot be used: no hooks");
    if let Some(handle) = live.server(server) {
        let problem = format!("the file for their signals cannot be used: {}", error_chain(&error));
        handle.hook_notifier.report(|report| report.problem = Some(problem));
    }
    false
}

/// Passes the signals of one client on to its watcher until `stop`.
pub(super) async fn receive(file: SignalFile, server: ServerName, live: Arc<LiveState>, stop: CancellationToken) {
    let Some(handle) = live.server(&server) else { return };
    // A signal is a hint to poll, and nothing else in it is believed (I11).
    let notify = |Received { signals, is_complete }: Received| {
        let notifier = &handle.hook_notifier;
        signals.hashes.into_iter().for_each(|hash| notifier.notify(hash));
        if !is_complete {
            notifier.notify_of_many();
        }
        if signals.has_proof {
            notifier.proved.notify_one();
        }
    };
    while let Some(Err(error)) = stop.run_until_cancelled(file.receive(notify)).await {
        warn!(%server, error = error_chain(&error), retry_in = ?RETRY_INTERVAL, "hook signals cannot be read");
        if stop.run_until_cancelled(tokio::time::sleep(RETRY_INTERVAL)).await.is_none() {
            return;
        }
    }
}
