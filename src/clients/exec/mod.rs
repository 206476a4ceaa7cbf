//! A client that is a program of the user, in any language.
//!
//! The program is started without a shell, in a process group of its own, and speaks JSON-RPC 2.0 over its
//! standard input and output, one message per line. Its standard error goes to the log.
//!
//! ```text
//! → {"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1,"server":"attic"}}
//! ← {"jsonrpc":"2.0","id":1,"result":{"protocol":1,"run":"4711","methods":["list","pause","resume"]}}
//! → {"jsonrpc":"2.0","id":2,"method":"list"}
//! ← {"jsonrpc":"2.0","id":2,"result":[{"hash":"…","name":"…","length":1,"active":true, … }]}
//! → {"jsonrpc":"2.0","id":3,"method":"pause","params":{"hash":"…"}}
//! ← {"jsonrpc":"2.0","id":3,"result":null}
//! ```
//!
//! Invariants: one exchange at a time; each ends within the deadline; a program that hangs, ends, writes a line
//! that is too long or an invalid answer is killed with its whole process group, and started again by a later
//! call, at growing distances. Nothing of an invalid answer is used.

mod answer;
mod child;
pub mod settings;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use crate::model::{
    Action, Add, AddSource, Covers, Details, InfoHash, Listing, MemoryShares, Parts, ServerStats, reported_text,
};
use crate::port::{Applied, Capabilities, ClientError, Scope, TorrentClient};

pub use settings::Settings;

use child::{Child, Failure};

/// Version of the protocol.
const PROTOCOL: u64 = 1;
/// JSON-RPC 2.0, section 5.1.
const METHOD_NOT_FOUND: i64 = -32601;
/// Minimum time before a program that ended is started again, doubled each time until [`RESTART_DELAY_MAX`].
///
/// A call within this time fails at once. Nothing here waits: the engine polls again by itself.
const RESTART_DELAY_FIRST: Duration = Duration::from_millis(500);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);
/// Run time of a program after which its failures no longer count.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// The client of one program.
pub struct ExecClient {
    settings: Settings,
    /// Memory that an answer may take as a tree.
    tree_bytes_max: usize,
    running: tokio::sync::Mutex<Running>,
    /// The reason why the last listing left torrents out, so that it is logged once.
    listing_defect: Mutex<Option<String>>,
}

/// The program, if it runs, and when it may be started again.
#[derive(Default)]
struct Running {
    child: Option<Started>,
    not_before: Option<Instant>,
    failures: u32,
}

struct Started {
    child: Child,
    since: Instant,
    /// The run that it states; its process id if it states none.
    run: String,
    name: Option<String>,
    /// The methods that it has; `None` if it did not say, then all are tried.
    methods: Option<Vec<String>>,
}

impl ExecClient {
    /// A client whose program is not started yet.
    pub fn new(settings: Settings) -> Self {
        let client = Self {
            settings,
            tree_bytes_max: 0,
            running: tokio::sync::Mutex::default(),
            listing_defect: Mutex::default(),
        };
        client.with_answer_bytes(MemoryShares::default().answer)
    }

    /// Sets the share of the memory that an answer may take; as a tree half as much again, because that is short-lived.
    pub fn with_answer_bytes(self, bytes: usize) -> Self {
        Self { tree_bytes_max: bytes / 2 * 3, ..self }
    }

    /// Makes one exchange, starting the program if it does not run.
    async fn call(&self, method: &str, params: Option<Value>) -> Result<(Value, Responder), ClientError> {
        // Held until the answer: watcher and commands share the program, and the protocol has one request at a time.
        let mut running = self.running.lock().await;
        let limit = self.settings.timeout;
        let exchange = async {
            let started = running.started(&self.settings, self.tree_bytes_max).await?;
            if started.methods.as_ref().is_some_and(|methods| !methods.iter().any(|known| known == method)) {
                return Err(Failure::Unsupported);
            }
            let called = started.child.call(method, params, self.tree_bytes_max).await;
            let result = called.map_err(Failure::of_request)?;
            Ok((result, Responder { run: started.run.clone(), name: started.name.clone() }))
        };
        // The start of the program counts, too: one that hangs in `initialize` is as silent as any other.
        let outcome = match tokio::time::timeout(limit, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Silent),
        };
        outcome.map_err(|failure| {
            // After a timeout or a wrong line the next answer could belong to this request.
            if failure.ends_the_child() {
                running.ended();
            }
            self.explain(method, failure)
        })
    }

    fn explain(&self, method: &str, failure: Failure) -> ClientError {
        let program = &self.settings.command[0];
        match failure {
            Failure::Silent => ClientError::Timeout { limit: self.settings.timeout },
            Failure::NotStarted(source) => ClientError::Unreachable { address: program.clone(), source: source.into() },
            Failure::Ended(how) => ClientError::Unreachable { address: program.clone(), source: how.into() },
            Failure::Died(how) => ClientError::Broken { reason: format!("{program}: `{method}`: {how}") },
            Failure::Invalid(reason) => {
                ClientError::Protocol { reason: format!("{program}: `{method}`: {}", reported_text(&reason)) }
            }
            // A program that listed no methods in `initialize` shows only now that it lacks this one.
            Failure::Refused { code: METHOD_NOT_FOUND, .. } | Failure::Unsupported => {
                ClientError::Unsupported { what: method.to_owned() }
            }
            Failure::Refused { message, .. } => ClientError::Fault { message: reported_text(&message).into_owned() },
        }
    }

    /// Logs once that torrents are left out of listings, and once that none are any more.
    fn log_listing_defect(&self, defect: Option<String>) {
        let mut last = self.listing_defect.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != defect {
            match &defect {
                Some(reason) => {
                    warn!(server = %self.settings.server, reason, "torrent unreadable, left out of the listing")
                }
                None => warn!(server = %self.settings.server, "all torrents are readable again"),
            }
            *last = defect;
        }
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { reason: format!("{}: {reason}", self.settings.command[0]) }
    }

    async fn details(&self, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError> {
        // A program answers `get` with the whole torrent, requested or not.
        let Parts { torrent: _, files, trackers, peers } = parts;
        let params = json!({"hash": hash, "files": files, "trackers": trackers, "peers": peers});
        match self.call("get", Some(params)).await {
            Ok((Value::Null, _)) => Ok(None),
            Ok((result, _)) => {
                let details = answer::details(&self.settings.server, hash, result);
                details.map(Some).map_err(|reason| self.protocol(reason))
            }
            Err(ClientError::Unsupported { .. }) => {
                Ok(self.list(Scope::Full).await?.torrents.remove(&hash).map(Details::from))
            }
            Err(error) => Err(error),
        }
    }

    async fn request(&self, action: &Action) -> Result<Applied, ClientError> {
        check_custom(action)?;
        let (method, params) = match action {
            Action::Pause(hash) => ("pause", json!({"hash": hash})),
            Action::Resume(hash) => ("resume", json!({"hash": hash})),
            Action::Start(hash) => ("start", json!({"hash": hash})),
            Action::Stop(hash) => ("stop", json!({"hash": hash})),
            Action::Delete(hash) => ("remove", json!({"hash": hash})),
            Action::Recheck(hash) => ("recheck", json!({"hash": hash})),
            Action::Announce(hash) => ("announce", json!({"hash": hash})),
            Action::Label(hash, label) => ("label", json!({"hash": hash, "label": label})),
            Action::Priority(hash, priority) => ("priority", json!({"hash": hash, "priority": priority})),
            Action::Add(add) => ("add", params_of_add(add)),
            Action::Hold(_)
            | Action::Release(_)
            | Action::Move(_)
            | Action::Throttle(..)
            | Action::FilePriority(..)
            | Action::Trackers(..)
            | Action::Custom(..) => {
                return Err(ClientError::Unsupported { what: "do that: a program has no method for it".to_owned() });
            }
        };
        self.call(method, Some(params)).await?;
        // A listing does not show these, so the answer has to do.
        let is_over = matches!(action, Action::Announce(_) | Action::Recheck(_));
        Ok(if is_over { Applied::Seen } else { Applied::Asked })
    }
}

/// Refuses custom values: the protocol has no key for them, and a program that ignored them would make the result untrue.
fn check_custom(action: &Action) -> Result<(), ClientError> {
    if matches!(action, Action::Add(add) if !add.custom.is_empty()) {
        let what = "keep custom values: a program has no place for them".to_owned();
        return Err(ClientError::Unsupported { what });
    }
    Ok(())
}

/// The program that answered.
struct Responder {
    run: String,
    name: Option<String>,
}

impl Running {
    async fn started(&mut self, settings: &Settings, tree_bytes_max: usize) -> Result<&mut Started, Failure> {
        if self.child.is_none() {
            if let Some(wait) = self.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
                let how = format!("it ended {} times, next start in {} s", self.failures, wait.as_secs() + 1);
                return Err(Failure::Ended(how));
            }
            let mut child = Child::start(settings).map_err(Failure::NotStarted)?;
            let params = json!({"protocol": PROTOCOL, "server": settings.server});
            let id = child.id();
            let (initialized, child) = match child.call("initialize", Some(params), tree_bytes_max).await {
                Ok(result) => (answer::initialized(&result).map_err(Failure::Invalid)?, child),
                // `initialize` is optional: a script of a few lines answers it like every unknown method.
                Err(Failure::Refused { .. }) => (answer::Initialized::default(), child),
                Err(failure) => {
                    self.note_failure(Duration::ZERO);
                    return Err(failure);
                }
            };
            let answer::Initialized { run, name, methods } = initialized;
            // Another process id is another run, so the engine settles again after a restart.
            let run = run.unwrap_or_else(|| id.to_string());
            self.child = Some(Started { child, since: Instant::now(), run, name, methods });
        }
        Ok(self.child.as_mut().expect("it was started above"))
    }

    /// Kills the program, if it still runs, and delays its next start.
    fn ended(&mut self) {
        if let Some(Started { since, .. }) = self.child.take() {
            self.note_failure(since.elapsed());
        // No child was there to end: it did not start, or hung in `initialize`. A refusal there has been counted
        // already.
        } else if self.not_before.is_none_or(|at| at <= Instant::now()) {
            self.note_failure(Duration::ZERO);
        }
    }

    fn note_failure(&mut self, run_time: Duration) {
        self.failures = if run_time >= STABLE_AFTER { 1 } else { self.failures.saturating_add(1) };
        // The shift is bounded well above the largest delay, so that it cannot overflow.
        let wait = RESTART_DELAY_FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(RESTART_DELAY_MAX);
        self.not_before = Some(Instant::now() + wait);
    }
}

#[async_trait]
impl TorrentClient for ExecClient {
    async fn list(&self, _scope: Scope<'_>) -> Result<Listing, ClientError> {
        let (result, responder) = self.call("list", None).await?;
        let (torrents, defect) =
            answer::listing(&self.settings.server, result).map_err(|reason| self.protocol(reason))?;
        let complete = defect.is_none();
        self.log_listing_defect(defect);
        let stats = ServerStats { client: responder.name, ..ServerStats::default() };
        Ok(Listing { covers: Covers::All, run: Some(responder.run), complete, torrents, stats, ..Listing::default() })
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let mut found = Vec::with_capacity(hashes.len());
        // The protocol reads one torrent for each request.
        for hash in hashes {
            found.push(self.details(*hash, parts).await?);
        }
        Ok(found)
    }

    async fn check(&self, action: &Action) -> Result<(), ClientError> {
        check_custom(action)
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        let mut results = Vec::with_capacity(actions.len());
        for action in actions {
            results.push(self.request(action).await);
        }
        results
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::of_verbs(Capabilities::WHOLE_TORRENTS)
    }
}

fn params_of_add(add: &Add) -> Value {
    let Add { hash, source, start, label, directory, priority, custom: _, checked: _ } = add;
    let (key, value) = match source {
        AddSource::Magnet(link) => ("magnet", link.clone()),
        AddSource::Torrent(bytes) => ("torrent", BASE64.encode(bytes)),
    };
    json!({"hash": hash, key: value, "start": start, "label": label, "directory": directory, "priority": priority})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServerName;
    use crate::testing::conformance::{self, Finding, Verdict};

    /// A client whose program is these lines of shell.
    fn shell(script: &str) -> ExecClient {
        let command = ["sh", "-c", script, "client"].map(str::to_owned).to_vec();
        client(command, Duration::from_secs(20))
    }

    fn client(command: Vec<String>, timeout: Duration) -> ExecClient {
        ExecClient::new(Settings {
            server: ServerName::parse("attic").unwrap(),
            command,
            environment: Vec::new(),
            timeout,
        })
    }

    fn example(name: &str, argument: &std::path::Path) -> Vec<String> {
        let program = format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"));
        vec![program, argument.to_string_lossy().into_owned()]
    }

    const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

    fn torrents_file(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let path = folder.path().join("torrents.json");
        let torrent = json!({"hash": HASH, "name": "n", "length": 10, "active": true,
            "downloaded": 4, "uploaded": 2, "path": null});
        std::fs::write(&path, json!([torrent]).to_string()).unwrap();
        path
    }

    fn is_running(process: &str) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", process.trim()));
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    #[tokio::test]
    async fn twenty_lines_of_python_meet_every_expectation() {
        let folder = tempfile::tempdir().unwrap();
        let client = client(example("client.py", &torrents_file(&folder)), Duration::from_secs(20));
        let options = conformance::Options { may_act_on: HASH.parse().ok(), ..Default::default() };
        let findings = conformance::client(&client, &options).await;
        let short: Vec<_> = findings.iter().filter(|finding| finding.verdict != Verdict::Met).collect();
        let [Finding { verdict: Verdict::Missing(what), .. }] = short[..] else { panic!("{short:#?}") };
        assert_eq!(what, "it lists no files", "without `get` it answers from the list");
        assert_eq!(findings.len(), 11);
        assert_eq!(client.list(Scope::Full).await.unwrap().stats.client.as_deref(), Some("twenty lines"));
    }

    #[tokio::test]
    async fn a_shell_script_is_enough_to_be_polled() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a \"quoted\" one"), "12345").unwrap();
        let client = client(example("client.sh", folder.path()), Duration::from_secs(20));
        let findings = conformance::client(&client, &conformance::Options::default()).await;
        assert!(findings.iter().all(|finding| !matches!(finding.verdict, Verdict::Broken(_))), "{findings:#?}");
        let torrents = client.list(Scope::Full).await.unwrap().torrents;
        let seen = &torrents.values().next().unwrap().torrent;
        assert_eq!((seen.name.as_str(), seen.length, seen.finished), ("a quoted one", 5, true));
        let error = (&client as &dyn TorrentClient).apply_one(&Action::Pause(seen.hash)).await.unwrap_err();
        assert!(matches!(error, ClientError::Unsupported { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("pids");
        let script = format!("sleep 1000 & echo $$ $! > {}; wait", note.display());
        let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let client = client(command, Duration::from_secs(1));
        let error = client.list(Scope::Full).await.unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
        let pids = std::fs::read_to_string(&note).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while pids.split_whitespace().any(is_running) {
            assert!(Instant::now() < deadline, "one of {pids} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_ends_is_started_again_and_not_too_soon() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("starts");
        let client = shell(&format!("echo x >> {}; exit 3", note.display()));
        let mut reasons = Vec::new();
        for _ in 0..20 {
            let ClientError::Unreachable { source, .. } = client.list(Scope::Full).await.unwrap_err() else { panic!() };
            reasons.push(source.to_string());
        }
        assert!(reasons[0].contains("exit status: 3") || reasons[0].contains("closed"), "{reasons:?}");
        assert!(reasons[19].contains("next start in"), "{reasons:?}");
        let starts = std::fs::read_to_string(&note).unwrap().lines().count();
        assert!((1..5).contains(&starts), "{starts} starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::read_to_string(&note).unwrap().lines().count() == starts {
            assert!(Instant::now() < deadline, "it is not started again");
            client.list(Scope::Full).await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn an_invalid_answer_is_a_protocol_error_and_ends_the_program() {
        for (script, reason) in [
            ("read l; echo hello", "not a JSON-RPC message"),
            (r#"read l; echo '{"id":99,"result":1}'"#, "was not made"),
            (r#"read l; echo '{"id":1,"result":{"protocol":9}}'"#, "protocol 9"),
            ("read l; head -c 17000000 /dev/zero; sleep 1000", "a line of more than"),
            (r#"read l; echo '{"id":1,"result":null}'; read l; echo '{"id":2,"result":{}}'"#, "not an array"),
        ] {
            let client = shell(script);
            let error = client.list(Scope::Full).await.unwrap_err();
            assert!(matches!(error, ClientError::Protocol { .. }), "{script}: {error}");
            assert!(error.to_string().contains(reason), "{script}: {error}");
        }
        let absent = client(vec!["/absent/program".to_owned()], Duration::from_secs(20));
        assert!(matches!(absent.list(Scope::Full).await.unwrap_err(), ClientError::Unreachable { .. }));
    }

    #[tokio::test]
    async fn much_output_on_the_standard_error_does_not_block() {
        let client = shell(
            r#"head -c 1000000 /dev/zero | tr '\0' 'x' >&2; echo >&2; echo "a word" >&2
            read l; echo '{"id":1,"error":{"code":-32601,"message":"what?"}}'
            read l; echo '{"method":"note"}'; echo '{"id":2,"result":[]}'; read l"#,
        );
        let listing = client.list(Scope::Full).await.unwrap();
        assert!(listing.complete && listing.torrents.is_empty() && listing.run.is_some());
    }

    #[tokio::test]
    async fn a_program_that_was_started_again_is_another_run() {
        let client = shell(
            r#"read l; echo '{"id":1,"result":{"protocol":1}}'; read l; echo '{"id":2,"result":[]}'; read l; exit"#,
        );
        let first = client.list(Scope::Full).await.unwrap().run;
        client.list(Scope::Full).await.unwrap_err();
        let deadline = Instant::now() + Duration::from_secs(20);
        let second = loop {
            match client.list(Scope::Full).await {
                Ok(listing) => break listing.run,
                Err(_) => assert!(Instant::now() < deadline),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_ne!(first, second);
    }
}
