//! The bridge's side of the HTTP API: reads come from the live state, commands go through admission.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letters::Replayer;
use super::report::{age_seconds, lag_seconds, record_metrics};
use crate::commands::{CallResult, Caller, Envelope, TTL};
use crate::http::{
    self, CommandReply, ComponentReadiness, EventsQuery, Readiness, ServerView, SinkView, StreamItem, TorrentsQuery,
    Viewer,
};
use crate::live_state::{ChangeBuffer, CommandReception, LiveServer, LiveState, PollReport, SinkReport};
use crate::model::{InfoHash, ServerName, SinkName, Stats, Torrent, outside_text};
use crate::outbox::{Missed, ReadFrom, Reader, ReaderItem, ReaderParts};
use crate::port::{Clock, CommandAddress, Sink, Store};
use crate::store::SqliteStore;
use crate::telemetry::metrics::Metrics;

/// The user that the log names for commands over HTTP: the token is shared, so no person is known.
const USER: &str = "http";
/// Time that a request waits beyond the time to live of its command, for the effect to show.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time that a request waits for a result, whatever the time to live of its command.
const RESULT_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);
/// A listener that stays further behind than this, for longer than [`BEHIND_TIMEOUT`], is disconnected: it does not keep
/// up, and can resume from its last event.
const BEHIND_MAX: u64 = 1024;
/// See [`BEHIND_MAX`].
const BEHIND_TIMEOUT: Duration = Duration::from_secs(5);

/// The implementation of [`http::Api`].
pub(super) struct Api {
    /// Source of everything that is read.
    pub live: Arc<LiveState>,
    /// Source of what is to be known of each sink.
    pub sinks: BTreeMap<SinkName, Arc<dyn Sink>>,
    /// Source of older events, for streams that resume.
    pub store: Arc<SqliteStore>,
    /// Time to which the `age` of a filter refers.
    pub clock: Arc<dyn Clock>,
    /// Sender of commands, with admission as on a broker.
    pub caller: Arc<Caller>,
    /// Replays dead letters of webhooks.
    pub replayer: Replayer,
    /// Source of `/metrics`.
    pub metrics: Metrics,
    /// Time at which the bridge was started.
    pub start: Instant,
    /// Ends streams and waiting requests.
    pub stop: CancellationToken,
}

#[async_trait]
impl http::Api for Api {
    fn readiness(&self, viewer: Viewer) -> Readiness {
        let server = |name: &ServerName| {
            let problem = self.live.read(name, |server| match &server.poll {
                poll if poll.is_answering() => None,
                poll => Some(poll_problem(poll, viewer).unwrap_or_else(|| "not polled yet".to_owned())),
            })?;
            Some((name.clone(), ComponentReadiness::new(problem)))
        };
        let sink = |(name, buffer): (&SinkName, &Arc<ChangeBuffer>)| {
            let report = buffer.last_report();
            let not_connected = || (!report.is_connected).then(|| "not connected yet".to_owned());
            let notes = self.sinks.get(name).map(|sink| sink.notes()).unwrap_or_default();
            let problem = sink_problem(&report, viewer).or_else(not_connected);
            (name.clone(), ComponentReadiness::new(problem).with_notes(notes))
        };
        let servers: BTreeMap<_, _> = self.live.names().filter_map(server).collect();
        let sinks: BTreeMap<_, _> = self.live.buffers().map(sink).collect();
        let ready = servers.values().chain(sinks.values()).all(ComponentReadiness::is_ready);
        Readiness { ready, servers, sinks }
    }

    async fn metrics(&self) -> String {
        record_metrics(&self.live, &self.store, self.start).await;
        self.metrics.render()
    }

    fn servers(&self, viewer: Viewer) -> Vec<ServerView> {
        let view = |name: &ServerName| self.live.read(name, |server| server_view(name, server, viewer));
        self.live.names().filter_map(view).collect()
    }

    fn sinks(&self, viewer: Viewer) -> Vec<SinkView> {
        let sink = |(name, buffer): (&SinkName, &Arc<ChangeBuffer>)| {
            let report = buffer.last_report();
            SinkView {
                name: name.clone(),
                status: online(report.is_connected),
                problem: sink_problem(&report, viewer),
                lag_entries: report.lag_entries,
                lag_seconds: lag_seconds(&report),
                dirty: report.dirty,
                delivered: report.delivered,
                rejected: report.rejected,
            }
        };
        self.live.buffers().map(sink).collect()
    }

    fn torrents(&self, server: &ServerName, query: &TorrentsQuery) -> Option<(Vec<Arc<Torrent>>, u64)> {
        let now = self.clock.now();
        let TorrentsQuery { filter, page, page_size, busiest_first } = query;
        let mut matching: Vec<Arc<Torrent>> = self.live.read(server, |server| {
            let torrents = server.snapshot.values().map(|snapshot| &snapshot.torrent);
            torrents.filter(|torrent| filter.matches(torrent, now)).cloned().collect()
        })?;
        let total = matching.len() as u64;
        if *busiest_first {
            matching.sort_by_key(|torrent| {
                let rate = torrent.download_rate.unwrap_or(0) + torrent.upload_rate.unwrap_or(0);
                (Reverse(torrent.error), Reverse(rate), torrent.finished)
            });
        }
        // Both are from the query, so their product may overflow.
        let skipped = usize::try_from(page.saturating_mul(*page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(*page_size).unwrap_or(usize::MAX);
        Some((matching.into_iter().skip(skipped).take(size).collect(), total))
    }

    fn torrent(&self, server: &ServerName, hash: InfoHash) -> Option<Arc<Torrent>> {
        self.live.read(server, |server| Some(Arc::clone(&server.snapshot.get(&hash)?.torrent)))?
    }

    async fn command(&self, address: CommandAddress, body: Bytes) -> CommandReply {
        let Envelope { id, ttl, .. } = self.caller.envelope(&body);
        let timeout = (ttl.unwrap_or(TTL) + EFFECT_TIMEOUT).min(RESULT_TIMEOUT_MAX);
        let call = self.caller.call(address, body, Some(USER.to_owned()), &self.stop);
        match tokio::time::timeout(timeout, call).await {
            Ok(Some(CallResult { outcome, body })) => {
                CommandReply::Result { status: outcome.status, error: outcome.error.map(|error| error.code), body }
            }
            Ok(None) => CommandReply::Stopping,
            // Only the wait ends. The command is logged and continues; a request with the same id gets its result (I12).
            Err(_) => CommandReply::Running { id: id.map(|id| id.as_str().to_owned()) },
        }
    }

    fn events(&self, query: EventsQuery) -> BoxStream<'static, StreamItem> {
        let EventsQuery { servers, kinds, after } = query;
        let is_wanted = |name: &&ServerName| servers.as_ref().is_none_or(|servers| servers.contains(*name));
        let store: Arc<dyn Store> = self.store.clone();
        let reader = Reader::new(ReaderParts {
            live: Arc::clone(&self.live),
            store,
            servers: self.live.names().filter(is_wanted).cloned().collect(),
            events: kinds,
            begin: after.map_or_else(|| ReadFrom::Cursors(BTreeMap::new()), ReadFrom::AfterEvent),
            stop: self.stop.clone(),
        });
        stream::unfold(Some((reader, LagWatch::default())), next_item).boxed()
    }

    async fn replay(&self, webhook: &str, ids: Vec<String>) -> Result<Vec<Value>, String> {
        let replayed = self.replayer.replay(webhook, ids).await.map_err(|error| outside_text(&format!("{error:#}")))?;
        Ok(replayed.iter().map(|one| serde_json::to_value(one).expect("it is plain JSON")).collect())
    }
}

type Listening = (Reader, LagWatch);

async fn next_item(listening: Option<Listening>) -> Option<(StreamItem, Option<Listening>)> {
    let (mut reader, mut lag) = listening?;
    if lag.is_too_slow(reader.behind()) {
        return Some((StreamItem::End(format!("more than {BEHIND_MAX} events behind")), None));
    }
    let item = match reader.next().await {
        Ok(Some(ReaderItem::Entry(entry))) => StreamItem::Event { id: entry.id.to_string(), body: entry.body },
        Ok(Some(ReaderItem::Updated(event))) => StreamItem::Updated(event.to_json().into()),
        Ok(Some(ReaderItem::Missed(Missed { server, .. }))) => {
            StreamItem::Gap { server: Some(server), reason: "the journal no longer holds these events".to_owned() }
        }
        Ok(Some(ReaderItem::PositionUnknown(reason))) => StreamItem::Gap { server: None, reason: reason.to_owned() },
        Ok(None) => return None,
        Err(error) => return Some((StreamItem::End(error.to_string()), None)),
    };
    Some((item, Some((reader, lag))))
}

/// The lag of a listener. A listener that resumes may begin far behind, and is too slow only after it has caught up once.
#[derive(Default)]
struct LagWatch {
    has_caught_up: bool,
    behind_since: Option<Instant>,
}

impl LagWatch {
    fn is_too_slow(&mut self, behind: u64) -> bool {
        self.has_caught_up |= behind <= BEHIND_MAX;
        if !self.has_caught_up || behind <= BEHIND_MAX {
            self.behind_since = None;
            return false;
        }
        self.behind_since.get_or_insert_with(Instant::now).elapsed() > BEHIND_TIMEOUT
    }
}

/// Returns why the last poll failed, as far as this viewer may know.
fn poll_problem(poll: &PollReport, viewer: Viewer) -> Option<String> {
    let reason = poll.failure.clone()?;
    Some(shown_to(viewer, "the last poll failed", reason))
}

/// Returns what is wrong with a sink, as far as this viewer may know.
fn sink_problem(report: &SinkReport, viewer: Viewer) -> Option<String> {
    // Our own words: what somebody has to do here.
    if let Some(blocked) = &report.blocked_reason {
        return Some(blocked.clone());
    }
    if let Some(failure) = &report.failure {
        return Some(shown_to(viewer, "not connected", failure.clone()));
    }
    match &report.reception {
        CommandReception::Failed(reason) => Some(shown_to(viewer, "commands cannot be received", reason.clone())),
        reception => reception.failure().map(str::to_owned),
    }
}

/// Returns the reason of a problem for who has the token, and for anybody else where it is to be had.
fn shown_to(viewer: Viewer, summary: &str, reason: String) -> String {
    match viewer {
        Viewer::TokenHolder => reason,
        Viewer::Anybody => format!("{summary}; the log says why, and so does this address with the token"),
    }
}

fn online(is_online: bool) -> &'static str {
    if is_online { "online" } else { "offline" }
}

fn server_view(name: &ServerName, server: &LiveServer, viewer: Viewer) -> ServerView {
    let torrents = || server.snapshot.values().map(|snapshot| &*snapshot.torrent);
    ServerView {
        name: name.clone(),
        status: online(server.state.is_online),
        problem: poll_problem(&server.poll, viewer),
        poll_age_seconds: age_seconds(&server.poll),
        torrents: server.snapshot.len(),
        last_seq: server.last_seq,
        stats: server.poll.last_success.map(|_| Stats::of(server.stats.clone(), torrents())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listener_is_too_slow_only_after_it_caught_up_and_stayed_far_behind() {
        let mut lag = LagWatch::default();
        for (seconds, behind, is_too_slow) in [
            (0, 9000, false),
            (60, 9000, false),
            (60, 0, false),
            (60, 9000, false),
            (4, 9000, false),
            (4, BEHIND_MAX, false),
            (60, BEHIND_MAX + 1, false),
            (6, BEHIND_MAX + 1, true),
        ] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(lag.is_too_slow(behind), is_too_slow, "{seconds} {behind}");
        }
    }
}
