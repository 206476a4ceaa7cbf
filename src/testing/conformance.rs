//! The conformance suite of [`TorrentClient`]: what the engine expects of a client, tried on one.
//!
//! Reading is tried on whatever torrents there are. Acting is tried on a torrent of the suite, a magnet link without
//! peers, which is added and removed again; on others only as [`Options::may_act_on`] allows.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Action, Add, AddSource, CustomValues, InfoHash, Listing, Observed, Parts, Status, error_chain};
use crate::port::{ClientError, Scope, TorrentClient};

/// Time between two listings while an effect is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How the suite may act.
#[derive(Clone, Debug)]
pub struct Options {
    /// A torrent that may be paused and resumed.
    pub may_act_on: Option<InfoHash>,
    /// Maximum time for an effect to show.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { may_act_on: None, patience: Duration::from_secs(10) }
    }
}

/// The outcome of one expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The client behaves as expected.
    Met,
    /// The client states that it cannot do this, or there was nothing to try it on. Not a fault, but a function
    /// that will not work.
    Missing(String),
    /// The client behaves differently, with the observation.
    Broken(String),
}

impl From<ClientError> for Verdict {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unsupported { what } => Self::Missing(format!("it has no `{what}`")),
            error => Self::Broken(error_chain(&error)),
        }
    }
}

/// One expectation and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The expectation, in a sentence.
    pub expectation: &'static str,
    /// The outcome.
    pub verdict: Verdict,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Met => write!(out, "ok       {}", self.expectation),
            Verdict::Missing(what) => write!(out, "missing  {}: {what}", self.expectation),
            Verdict::Broken(what) => write!(out, "BROKEN   {}: {what}", self.expectation),
        }
    }
}

/// Tries every expectation and returns the findings in order. Takes up to [`Options::patience`] for each effect.
pub async fn client(client: &dyn TorrentClient, options: &Options) -> Vec<Finding> {
    let mut suite = Suite { client, options, findings: Vec::new() };
    let Some(listing) = suite.listing().await else { return suite.findings };
    suite.torrents_make_sense(&listing);
    suite.details(&listing).await;
    suite.unknown_torrents().await;
    suite.adding_and_removing(&listing).await;
    suite.pausing().await;
    suite.findings
}

struct Suite<'a> {
    client: &'a dyn TorrentClient,
    options: &'a Options,
    findings: Vec<Finding>,
}

/// Returns a random hash, which no torrent has.
fn unused_hash() -> InfoHash {
    InfoHash::V1(rand::random())
}

impl Suite<'_> {
    fn note(&mut self, expectation: &'static str, verdict: Verdict) {
        self.findings.push(Finding { expectation, verdict });
    }

    async fn listing(&mut self) -> Option<Listing> {
        const EXPECTED: &str = "`list` answers with every torrent";
        match self.client.list(Scope::Full).await {
            Ok(listing) if listing.complete => {
                self.note(EXPECTED, Verdict::Met);
                self.two_agree(&listing).await;
                Some(listing)
            }
            Ok(_) => {
                self.note(EXPECTED, Verdict::Broken("some torrents make no sense, see the log".to_owned()));
                None
            }
            Err(error) => {
                self.note(EXPECTED, Verdict::Broken(error_chain(&error)));
                None
            }
        }
    }

    async fn two_agree(&mut self, first: &Listing) {
        let verdict = match self.client.list(Scope::Full).await {
            Err(error) => Verdict::Broken(error_chain(&error)),
            Ok(second) if second.run != first.run => Verdict::Broken("its run has another id".to_owned()),
            Ok(second) => {
                let load = |seen: &Observed| seen.facts.load.clone();
                let differing = first
                    .torrents
                    .iter()
                    .find(|(hash, seen)| second.torrents.get(hash).is_some_and(|again| load(again) != load(seen)));
                match differing {
                    Some((hash, _)) => Verdict::Broken(format!("{hash} has another `load`, as if it were added again")),
                    None => Verdict::Met,
                }
            }
        };
        self.note("a second `list` is of the same run and the same torrents", verdict);
    }

    fn torrents_make_sense(&mut self, listing: &Listing) {
        let wrong = listing.torrents.values().find_map(|seen| nonsense(seen).map(|what| (seen.torrent.hash, what)));
        let verdict = match wrong {
            Some((hash, what)) => Verdict::Broken(format!("{hash}: {what}")),
            None if listing.torrents.is_empty() => Verdict::Missing("there is no torrent to read".to_owned()),
            None => Verdict::Met,
        };
        self.note("what a torrent says of itself fits together", verdict);
    }

    async fn details(&mut self, listing: &Listing) {
        const EXPECTED: &str = "`get` answers for a torrent of the list";
        let Some(hash) = listing.torrents.keys().next().copied() else {
            return self.note(EXPECTED, Verdict::Missing("there is no torrent to ask for".to_owned()));
        };
        let parts = Parts { torrent: true, files: true, ..Parts::default() };
        let verdict = match self.client.get_one(hash, parts).await {
            Ok(Some(details)) if details.observed.is_none() => {
                Verdict::Broken("it returned files without their torrent".to_owned())
            }
            Ok(Some(details)) if details.files.is_none() => Verdict::Missing("it lists no files".to_owned()),
            Ok(Some(_)) => Verdict::Met,
            Ok(None) => Verdict::Broken(format!("{hash} is listed, and then there is no such torrent")),
            Err(error) => error.into(),
        };
        self.note(EXPECTED, verdict);
    }

    async fn unknown_torrents(&mut self) {
        let hash = unused_hash();
        let verdict = match self.client.get_one(hash, Parts::default()).await {
            // The seam asks for `None`; clients that answer with an error are served as well.
            Ok(None) | Err(ClientError::UnknownHash(_) | ClientError::Fault { .. }) => Verdict::Met,
            Ok(Some(_)) => Verdict::Broken("it returned a torrent that does not exist".to_owned()),
            Err(error) => Verdict::Broken(error_chain(&error)),
        };
        self.note("`get` of a torrent that is not there says so", verdict);
        let verdict = match self.client.apply_one(&Action::Pause(hash)).await {
            Err(error @ ClientError::Unsupported { .. }) => error.into(),
            Err(_) => Verdict::Met,
            Ok(_) => Verdict::Broken("it reports no error, so the command ends as `unconfirmed` much later".to_owned()),
        };
        self.note("`pause` of a torrent that is not there is refused", verdict);
    }

    async fn adding_and_removing(&mut self, listing: &Listing) {
        const ADDED: &str = "what `add` adds is listed";
        const TWICE: &str = "`add` of what is there changes nothing";
        const REMOVED: &str = "what `remove` removes is not listed any more, and nothing else is gone";
        let hash = unused_hash();
        let add = Action::Add(Add {
            hash,
            // No peer has it, so it never gets metadata or content.
            source: AddSource::Magnet(format!("magnet:?xt=urn:btih:{hash}&dn=dtorrent-conformance")),
            // Not started: no tracker and no DHT is asked for it.
            start: false,
            label: None,
            directory: None,
            priority: None,
            custom: CustomValues::default(),
            checked: None,
        });
        let added = self.effect(&add, |listing| listing.torrents.contains_key(&hash)).await;
        let is_added = added == Verdict::Met;
        self.note(ADDED, added);
        if !is_added {
            let reason = || Verdict::Missing("nothing could be added".to_owned());
            self.note(TWICE, reason());
            return self.note(REMOVED, reason());
        }
        let twice = match self.client.apply_one(&add).await {
            // Either is right: nothing happened, or the client says that it is there.
            Ok(_) | Err(ClientError::Fault { .. } | ClientError::Precondition { .. }) => Verdict::Met,
            Err(error) => Verdict::Broken(error_chain(&error)),
        };
        self.note(TWICE, twice);
        let others: BTreeSet<InfoHash> = listing.torrents.keys().copied().collect();
        let removed = self
            .effect(&Action::Delete(hash), |listing| {
                !listing.torrents.contains_key(&hash) && others.iter().all(|other| listing.torrents.contains_key(other))
            })
            .await;
        self.note(REMOVED, removed);
    }

    async fn pausing(&mut self) {
        const PAUSED: &str = "a paused torrent is not active";
        const RESUMED: &str = "a resumed torrent is active, or wants to be";
        let Some(hash) = self.options.may_act_on else {
            let reason = || Verdict::Missing("no torrent was named that may be paused (--torrent)".to_owned());
            self.note(PAUSED, reason());
            return self.note(RESUMED, reason());
        };
        let is_active = |listing: &Listing| listing.torrents.get(&hash).map(|seen| seen.torrent.active);
        let wants = |listing: &Listing| {
            let status = listing.torrents.get(&hash).map(|seen| seen.torrent.status);
            // A client with a limit on running torrents, or one that checks first, does what was asked.
            matches!(status, Some(Status::Queued | Status::Checking))
        };
        let paused = self.effect(&Action::Pause(hash), |listing| is_active(listing) == Some(false)).await;
        self.note(PAUSED, paused);
        let resumed =
            self.effect(&Action::Resume(hash), |listing| is_active(listing) == Some(true) || wants(listing)).await;
        self.note(RESUMED, resumed);
    }

    /// Requests an action and waits until a listing shows its effect. A busy client is asked again meanwhile, as
    /// the engine does.
    async fn effect(&self, action: &Action, is_shown: impl Fn(&Listing) -> bool) -> Verdict {
        let deadline = Instant::now() + self.options.patience;
        loop {
            match self.client.apply_one(action).await {
                Ok(_) => break,
                Err(ClientError::Busy { .. }) if Instant::now() < deadline => tokio::time::sleep(POLL_INTERVAL).await,
                Err(error) => return error.into(),
            }
        }
        loop {
            match self.client.list(Scope::Full).await {
                Ok(listing) if is_shown(&listing) => return Verdict::Met,
                Ok(_) if Instant::now() < deadline => tokio::time::sleep(POLL_INTERVAL).await,
                Ok(_) => return Verdict::Broken(format!("not within {:?}", self.options.patience)),
                Err(error) => return Verdict::Broken(error_chain(&error)),
            }
        }
    }
}

fn nonsense(seen: &Observed) -> Option<String> {
    let torrent = &seen.torrent;
    if torrent.length > 0 && torrent.downloaded > torrent.length {
        return Some(format!("{} bytes of {} are downloaded", torrent.downloaded, torrent.length));
    }
    // With deselected files, bytes may be missing; then nothing is left.
    if torrent.finished && torrent.downloaded < torrent.length && torrent.left != Some(0) {
        return Some("it is finished, and bytes are missing".to_owned());
    }
    if torrent.status == Status::Stopped && torrent.active {
        return Some("it is active and stopped at once".to_owned());
    }
    if torrent.name.is_empty() {
        return Some("it has no name".to_owned());
    }
    None
}
