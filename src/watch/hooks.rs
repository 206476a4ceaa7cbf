//! Hooks in a client, and the signals that they send: what happens there is polled at once.
//!
//! Two loops run at the same time. One installs the hooks: as soon as the client answers, again when it is
//! another run, and each minute it checks that they are still there. The other turns signals into wakes of the
//! watcher. A signal says nothing but "poll" (I11): hooks that are missing or late, and signals sent by
//! somebody else, cost promptness or a poll, never an event.
//!
//! The first signal wakes the watcher at once. Those that follow are answered together, and not before the
//! client has had twice the duration of a poll for itself. So however many signals arrive, polls take a third
//! of the client's time.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::PAUSE_MIN;
use crate::live_state::{LiveState, ServerHandle};
use crate::log_throttle::LogThrottle;
use crate::model::{Hook, ServerName, error_chain};
use crate::port::{ClientError, EventHooks, HookRequest, Hooks, TorrentClient};

/// Maximum time from the line that a client writes at an installation until the bridge has read it.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for which missing hooks go unnoticed in a client that did not restart.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(60);

/// The task that keeps the hooks of one server installed and receives their signals.
#[derive(Clone)]
pub struct HookInstaller {
    /// The server whose client is hooked.
    pub server: ServerName,
    /// A client with [`EventHooks`]; without them nothing is done.
    pub client: Arc<dyn TorrentClient>,
    /// Where signals arrive and the watcher is woken.
    pub live: Arc<LiveState>,
    /// The hook to install.
    pub hook: Hook,
}

impl HookInstaller {
    /// Keeps the hooks installed until `stop`, and removes them then.
    pub async fn run(self, stop: CancellationToken) {
        let Some(live) = self.live.server(&self.server) else { return };
        let Some(hooks) = self.client.capabilities().hooks else { return };
        tokio::join!(self.receive_hook_signals(live, &stop), self.install(live, hooks, &stop));
        // Hooks that stay after a crash write to a file that nobody reads; the next run replaces them.
        match hooks.hooks(HookRequest::Remove(&self.hook.key)).await {
            Ok(hooks) => debug!(server = %self.server, removed = hooks.changed, "hooks removed"),
            Err(error) => warn!(server = %self.server, error = error_chain(&error), "removing hooks failed"),
        }
    }

    async fn receive_hook_signals(&self, live: &ServerHandle, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = live.hook_notifier.notified.notified() => live.wake.notify_one(),
            }
            let pause = PAUSE_MIN.max(2 * live.read(|server| server.poll.duration));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn install(&self, live: &ServerHandle, hooks: &dyn EventHooks, stop: &CancellationToken) {
        let mut failures = LogThrottle::default();
        while !stop.is_cancelled() {
            // Only while the client answers polls: otherwise this request would fail, too.
            if live.read(|server| server.poll.is_answering()) {
                let result = self.install_once(live, hooks).await;
                self.note(live, result, &mut failures);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = live.hook_notifier.client_is_new.notified() => {}
                () = tokio::time::sleep(INSPECTION_INTERVAL) => {}
            }
        }
    }

    /// Installs the hooks, and removes them again where their signals do not arrive.
    async fn install_once(&self, live: &ServerHandle, hooks: &dyn EventHooks) -> Result<Hooks, ClientError> {
        let installed = hooks.hooks(HookRequest::Install(&self.hook)).await?;
        let proved = live.hook_notifier.proved.notified();
        if installed.installed.is_empty() || tokio::time::timeout(PROOF_TIMEOUT, proved).await.is_ok() {
            return Ok(installed);
        }
        hooks.hooks(HookRequest::Remove(&self.hook.key)).await?;
        let file = &self.hook.file;
        let reason = format!(
            "the client wrote to {file} and nothing arrived there: both have to run on one machine, and see the same \
             folder under this path (hooks_dir)"
        );
        Err(ClientError::Precondition { reason })
    }

    fn note(&self, live: &ServerHandle, result: Result<Hooks, ClientError>, failures: &mut LogThrottle) {
        match result {
            Ok(hooks) => {
                if let Some(times) = failures.recovered() {
                    info!(server = %self.server, times, "hooks can be installed again");
                }
                let Hooks { installed, skipped, changed } = &hooks;
                if *changed > 0 {
                    info!(server = %self.server, events = ?installed, ?skipped, "hooks installed");
                    // What happened before has sent no signal.
                    live.wake.notify_one();
                } else if installed.is_empty() && live.hook_notifier.last_report().hooks.as_ref() != Some(&hooks) {
                    warn!(server = %self.server, ?skipped, "no hooks installed: every event has hooks of others");
                }
                live.hook_notifier.report(|report| (report.hooks, report.problem) = (Some(hooks), None));
            }
            Err(error) => {
                let problem = error_chain(&error);
                if let Some(times) = failures.failed() {
                    warn!(server = %self.server, times, problem, "installing hooks failed, polling at the interval");
                }
                live.hook_notifier.report(|report| (report.hooks, report.problem) = (None, Some(problem)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tokio::time::Instant;

    use super::*;
    use crate::live_state::{LiveServer, Named, PollReport};
    use crate::model::{
        Action, Details, Epoch, HookFile, HookKey, InfoHash, Listing, Parts, Seq, ServerState, Snapshot,
    };
    use crate::port::{Applied, Capabilities, EventHooks, Loaded, Scope};

    /// A client with hooks and nothing else.
    #[derive(Default)]
    struct Hookable {
        is_hooked: Mutex<bool>,
        asked: Mutex<Vec<&'static str>>,
    }

    #[async_trait]
    impl TorrentClient for Hookable {
        async fn list(&self, _: Scope<'_>) -> Result<Listing, ClientError> {
            unreachable!("hooks need no listing")
        }
        async fn get(&self, _: &[InfoHash], _: Parts) -> Result<Vec<Option<Details>>, ClientError> {
            unreachable!("hooks need no torrent")
        }
        async fn apply(&self, _: &[Action]) -> Vec<Result<Applied, ClientError>> {
            unreachable!("hooks change no torrent")
        }
        fn capabilities(&self) -> Capabilities<'_> {
            Capabilities { hooks: Some(self), ..Capabilities::default() }
        }
    }

    #[async_trait]
    impl EventHooks for Hookable {
        async fn hooks(&self, request: HookRequest<'_>) -> Result<Hooks, ClientError> {
            let mut is_hooked = self.is_hooked.lock().unwrap();
            let (name, is_wanted) = match request {
                HookRequest::Inspect(_) => ("inspect", *is_hooked),
                HookRequest::Install(_) => ("install", true),
                HookRequest::Remove(_) => ("remove", false),
            };
            self.asked.lock().unwrap().push(name);
            let changed = usize::from(*is_hooked != is_wanted);
            *is_hooked = is_wanted;
            Ok(Hooks { installed: vec!["paused"], skipped: Vec::new(), changed })
        }
    }

    struct TestServer {
        live: Arc<LiveState>,
        server: ServerName,
        client: Arc<Hookable>,
        installer: HookInstaller,
    }

    impl TestServer {
        fn new() -> Self {
            let server = ServerName::parse("home").unwrap();
            let (epoch, snapshot, state) = (Epoch(1), Snapshot::new(), ServerState::default());
            let loaded = Loaded { epoch, snapshot, state, last_seq: Seq(0), needs_reset: false };
            let live_server = LiveServer::from(loaded);
            let live = Arc::new(LiveState::new(BTreeMap::from([(server.clone(), live_server)]), []));
            let key = HookKey::new("main", &server).unwrap();
            let hook = Hook { key, file: HookFile::parse("/hooks/main.home").unwrap() };
            let client = Arc::new(Hookable::default());
            let dyn_client: Arc<dyn TorrentClient> = client.clone();
            let installer = HookInstaller { server: server.clone(), client: dyn_client, live: Arc::clone(&live), hook };
            Self { live, server, client, installer }
        }

        fn live(&self) -> &ServerHandle {
            self.live.server(&self.server).unwrap()
        }

        /// Reports an answered poll of this duration.
        fn answers(&self, took: Duration) {
            // As if the client had written to the file.
            self.live().hook_notifier.proved.notify_one();
            self.live().write(|server| {
                server.poll =
                    PollReport { last_success: Some(Instant::now()), duration: took, ..PollReport::default() };
            });
            self.live().hook_notifier.client_is_new.notify_one();
        }

        fn asked(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.client.asked.lock().unwrap())
        }

        /// Runs the installer while `test` runs, and until it has ended.
        async fn while_running(&self, test: impl Future<Output = ()>) {
            let stop = CancellationToken::new();
            tokio::join!(self.installer.clone().run(stop.clone()), async {
                test.await;
                stop.cancel();
            });
        }
    }

    const HASH: InfoHash = InfoHash::V1([7; 20]);

    async fn pass(seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn hooks_are_installed_when_the_client_answers_checked_and_removed() {
        let test = TestServer::new();
        test.while_running(async {
            pass(100.0).await;
            assert!(test.asked().is_empty(), "the client does not answer");
            test.answers(Duration::ZERO);
            pass(1.0).await;
            assert_eq!(test.asked(), ["install"]);
            tokio::time::timeout(Duration::ZERO, test.live().wake.notified()).await.expect("a first poll");
            assert_eq!(test.live().hook_notifier.last_report().hooks.unwrap().installed, ["paused"]);
            test.live().hook_notifier.proved.notify_one();
            pass(60.0).await;
            assert_eq!(test.asked(), ["install"], "each minute");
            let wake = tokio::time::timeout(Duration::ZERO, test.live().wake.notified()).await;
            assert!(wake.is_err(), "nothing was changed");
            *test.client.is_hooked.lock().unwrap() = false;
            test.answers(Duration::ZERO);
            pass(1.0).await;
            assert_eq!(test.asked(), ["install"], "another run has none");
        })
        .await;
        assert_eq!(test.asked(), ["remove"]);
        assert!(!*test.client.is_hooked.lock().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn hooks_whose_signals_do_not_arrive_are_removed_and_reported() {
        let test = TestServer::new();
        test.while_running(async {
            test.answers(Duration::ZERO);
            test.live().hook_notifier.proved.notified().await;
            pass(3.0).await;
            assert_eq!(test.asked(), ["install", "remove"]);
            let report = test.live().hook_notifier.last_report();
            assert!(report.hooks.is_none() && report.problem.unwrap().contains("/hooks/main.home"), "where they go");
            test.answers(Duration::ZERO);
            pass(1.0).await;
            assert_eq!(test.asked(), ["install"]);
            assert_eq!(test.live().hook_notifier.last_report().problem, None);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_wakes_at_once_and_many_as_one_after_a_pause() {
        for (poll, pause) in [(Duration::ZERO, 0.1), (Duration::from_secs(1), 2.0)] {
            let test = TestServer::new();
            test.live().write(|server| server.poll.duration = poll);
            test.while_running(async {
                let woken = async || {
                    let began = Instant::now();
                    test.live().wake.notified().await;
                    began.elapsed().as_secs_f64()
                };
                test.live().hook_notifier.notify(HASH);
                assert_eq!(woken().await, 0.0, "at once");
                for _ in 0..10_000 {
                    test.live().hook_notifier.notify(HASH);
                }
                let waited = woken().await;
                assert!((waited - pause).abs() < 0.01, "{waited} s after a poll of {poll:?}");
                let more = tokio::time::timeout(Duration::from_secs(10), woken()).await;
                assert!(more.is_err(), "all were answered");
                assert_eq!(test.live().hook_notifier.last_report().wakes, 10_001);
            })
            .await;
        }
    }

    #[test]
    fn named_torrents_are_collected_up_to_a_limit() {
        let test = TestServer::new();
        let hook_notifier = &test.live().hook_notifier;
        hook_notifier.notify(HASH);
        hook_notifier.notify(HASH);
        assert_eq!(hook_notifier.take_named(), Named::These([HASH].into()));
        assert_eq!(hook_notifier.take_named(), Named::default());
        for number in 0..10_000_u16 {
            let mut hash = [0; 20];
            hash[..2].copy_from_slice(&number.to_be_bytes());
            hook_notifier.notify(InfoHash::V1(hash));
        }
        assert_eq!(hook_notifier.take_named(), Named::Many);
    }
}
