//! Hooks in a client, and the bell that they ring: what happens there is looked for at once.
//!
//! Two things run side by side. One has the client ring: as soon as it answers, again when it is another
//! run of it, and each minute it looks whether the hooks still hang. The other answers the bell, by poking
//! the watcher. A ring says nothing but "look" (I11): hooks that are missing, late or rung by somebody else
//! cost promptness or a look, never an event.
//!
//! The first ring pokes at once; those that follow are answered together, and not before the client has
//! had twice the time of a look to itself. So however often it is rung, looking is a third of what it does.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::SHORTEST_PAUSE;
use crate::live_state::{LiveState, ServerHandle};
use crate::log_throttle::LogThrottle;
use crate::model::{Hook, ServerName, error_chain};
use crate::port::{ClientError, EventHooks, HookRequest, Hooks, TorrentClient};

/// How long hooks may be gone unnoticed in a client that did not restart.
const LOOK_FOR_HOOKS_EACH: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct HookKeeper {
    pub server: ServerName,
    pub client: Arc<dyn TorrentClient>,
    pub live: Arc<LiveState>,
    pub hook: Hook,
}

impl HookKeeper {
    /// Keeps the hooks until `stop`, and takes them back then.
    pub async fn run(self, stop: CancellationToken) {
        let Some(live) = self.live.server(&self.server) else { return };
        let Some(hooks) = self.client.capabilities().hooks else { return };
        tokio::join!(self.receive_hook_signals(live, &stop), self.keep(live, hooks, &stop));
        match hooks.hooks(HookRequest::Remove(&self.hook.key)).await {
            Ok(hooks) => debug!(server = %self.server, taken = hooks.changed, "hooks taken back"),
            Err(error) => warn!(server = %self.server, error = error_chain(&error), "hooks could not be taken back"),
        }
    }

    async fn receive_hook_signals(&self, live: &ServerHandle, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = live.hook_notifier.notified.notified() => live.wake.notify_one(),
            }
            let pause = SHORTEST_PAUSE.max(2 * live.read(|content| content.poll.duration));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn keep(&self, live: &ServerHandle, hooks: &dyn EventHooks, stop: &CancellationToken) {
        let mut failures = LogThrottle::default();
        while !stop.is_cancelled() {
            if live.read(|content| content.poll.is_answering()) {
                let result = hooks.hooks(HookRequest::Install(&self.hook)).await;
                self.note(live, result, &mut failures);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = live.hook_notifier.client_is_new.notified() => {}
                () = tokio::time::sleep(LOOK_FOR_HOOKS_EACH) => {}
            }
        }
    }

    fn note(&self, live: &ServerHandle, result: Result<Hooks, ClientError>, failures: &mut LogThrottle) {
        match result {
            Ok(hooks) => {
                if let Some(times) = failures.recovered() {
                    info!(server = %self.server, times, "hooks can be set again");
                }
                let Hooks { installed, skipped, changed } = &hooks;
                if *changed > 0 {
                    info!(server = %self.server, events = ?installed, ?skipped, "the client rings by itself");
                    // Nobody rang for what happened before.
                    live.wake.notify_one();
                } else if installed.is_empty() && live.hook_notifier.last_report().hooks.as_ref() != Some(&hooks) {
                    warn!(server = %self.server, ?skipped, "no event can be hooked: others hang there");
                }
                live.hook_notifier.report(|report| (report.hooks, report.problem) = (Some(hooks), None));
            }
            Err(error) => {
                let problem = error_chain(&error);
                if let Some(times) = failures.failed() {
                    warn!(server = %self.server, times, problem, "hooks cannot be set, looking each interval all the same");
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
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::live_state::{LiveServer, Named, PollReport};
    use crate::model::{
        Action, Details, Epoch, HookAddress, HookKey, HookSecret, InfoHash, Listing, Parts, Seq, ServerState,
        ServerStats, Snapshot,
    };
    use crate::port::{Applied, Capabilities, EventHooks, Scope};

    /// Has hooks and nothing else.
    #[derive(Default)]
    struct Hookable {
        is_hooked: Mutex<bool>,
        asked: Mutex<Vec<&'static str>>,
    }

    #[async_trait]
    impl TorrentClient for Hookable {
        async fn list(&self, _: Scope<'_>) -> Result<Listing, ClientError> {
            unreachable!("hooks are not looked for in a listing")
        }
        async fn get(&self, _: &[InfoHash], _: Parts) -> Result<Vec<Option<Details>>, ClientError> {
            unreachable!("hooks are not looked for in a torrent")
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
        async fn hooks(&self, wish: HookRequest<'_>) -> Result<Hooks, ClientError> {
            let mut is_hooked = self.is_hooked.lock().unwrap();
            let (word, is_wanted) = match wish {
                HookRequest::Inspect(_) => ("look", *is_hooked),
                HookRequest::Install(_) => ("set", true),
                HookRequest::Remove(_) => ("take", false),
            };
            self.asked.lock().unwrap().push(word);
            let changed = usize::from(*is_hooked != is_wanted);
            *is_hooked = is_wanted;
            Ok(Hooks { installed: vec!["paused"], skipped: Vec::new(), changed })
        }
    }

    struct Stage {
        live: Arc<LiveState>,
        server: ServerName,
        client: Arc<Hookable>,
        keeper: HookKeeper,
    }

    impl Stage {
        fn new() -> Self {
            let server = ServerName::parse("home").unwrap();
            let content = LiveServer {
                epoch: Epoch(1),
                snapshot: Snapshot::new(),
                state: ServerState::default(),
                last_seq: Seq(0),
                needs_reset: false,
                stats: ServerStats::default(),
                stats_body: Bytes::new(),
                poll: PollReport::default(),
            };
            let live = Arc::new(LiveState::new(BTreeMap::from([(server.clone(), content)]), []));
            let hook = Hook {
                key: HookKey::new("main", &server).unwrap(),
                address: HookAddress::parse("127.0.0.1:1").unwrap(),
                secret: HookSecret::new([1; 16]),
                server: server.clone(),
            };
            let client = Arc::new(Hookable::default());
            let dyn_client: Arc<dyn TorrentClient> = client.clone();
            let keeper = HookKeeper { server: server.clone(), client: dyn_client, live: Arc::clone(&live), hook };
            Self { live, server, client, keeper }
        }

        fn live(&self) -> &ServerHandle {
            self.live.server(&self.server).unwrap()
        }

        /// The client answered a look that took so long.
        fn answers(&self, took: Duration) {
            self.live().write(|content| {
                content.poll =
                    PollReport { last_success: Some(Instant::now()), duration: took, ..PollReport::default() };
            });
            self.live().hook_notifier.client_is_new.notify_one();
        }

        fn asked(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.client.asked.lock().unwrap())
        }

        /// Runs the keeper beside `test`, and until it has ended.
        async fn while_running(&self, test: impl Future<Output = ()>) {
            let stop = CancellationToken::new();
            tokio::join!(self.keeper.clone().run(stop.clone()), async {
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
    async fn hooks_are_hung_when_the_client_answers_looked_after_and_taken_back() {
        let stage = Stage::new();
        stage
            .while_running(async {
                pass(100.0).await;
                assert!(stage.asked().is_empty(), "nobody answers");
                stage.answers(Duration::ZERO);
                pass(1.0).await;
                assert_eq!(stage.asked(), ["set"]);
                tokio::time::timeout(Duration::ZERO, stage.live().wake.notified()).await.expect("a first look");
                assert_eq!(stage.live().hook_notifier.last_report().hooks.unwrap().installed, ["paused"]);
                pass(60.0).await;
                assert_eq!(stage.asked(), ["set"], "each minute");
                let wake = tokio::time::timeout(Duration::ZERO, stage.live().wake.notified()).await;
                assert!(wake.is_err(), "nothing was changed");
                *stage.client.is_hooked.lock().unwrap() = false;
                stage.answers(Duration::ZERO);
                pass(1.0).await;
                assert_eq!(stage.asked(), ["set"], "another run has none");
            })
            .await;
        assert_eq!(stage.asked(), ["take"]);
        assert!(!*stage.client.is_hooked.lock().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_is_answered_at_once_and_many_as_one_and_the_client_has_time_for_itself() {
        for (look, pause) in [(Duration::ZERO, 0.1), (Duration::from_secs(1), 2.0)] {
            let stage = Stage::new();
            stage.live().write(|content| content.poll.duration = look);
            stage
                .while_running(async {
                    let poked = async || {
                        let began = Instant::now();
                        stage.live().wake.notified().await;
                        began.elapsed().as_secs_f64()
                    };
                    stage.live().hook_notifier.notify(HASH);
                    assert_eq!(poked().await, 0.0, "at once");
                    for _ in 0..10_000 {
                        stage.live().hook_notifier.notify(HASH);
                    }
                    let waited = poked().await;
                    assert!((waited - pause).abs() < 0.01, "{waited} s after a look of {look:?}");
                    let more = tokio::time::timeout(Duration::from_secs(10), poked()).await;
                    assert!(more.is_err(), "all were answered");
                    assert_eq!(stage.live().hook_notifier.last_report().wakes, 10_001);
                })
                .await;
        }
    }

    #[test]
    fn what_is_named_is_kept_until_it_is_too_much_to_be_worth_it() {
        let stage = Stage::new();
        let hook_notifier = &stage.live().hook_notifier;
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
