//! Reports of the bridge about itself: its messages on the brokers, and its metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::commands::CommandMemory;
use crate::live_state::{HookReport, LiveState, PollReport, SinkReport};
use crate::model::{
    Check, CommandId, EVENT_SCHEMA, Health, HooksHealth, Info, MemoryBudget, RESULT_SCHEMA, ReportLimits, ServerHealth,
    ServerName, SinkHealth, SinkName,
};
use crate::outbox::Reporter;
use crate::port::{BODY_BYTES_MAX, Clock, CommandLog as _, Hooks, Journal as _, Sink};
use crate::store::{DeadLetterUsage, SqliteStore};
use crate::telemetry::metrics;

/// Renders `{p}/bridge/{inst}/info` and `{p}/bridge/{inst}/health`.
pub(super) struct BridgeReporter {
    pub(super) live: Arc<LiveState>,
    pub(super) sinks: BTreeMap<SinkName, Arc<dyn Sink>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) instance: String,
    /// The rights of each broker.
    pub(super) commands: BTreeMap<SinkName, Vec<&'static str>>,
    pub(super) memory_max: MemoryBudget,
    pub(super) memory: Arc<CommandMemory>,
    pub(super) start: Instant,
}

impl Reporter for BridgeReporter {
    fn info(&self, sink: &SinkName, published: &[ServerName]) -> Bytes {
        let body = Info {
            version: env!("CARGO_PKG_VERSION"),
            instance: self.instance.clone(),
            servers: self.live.names().cloned().collect(),
            published: published.to_vec(),
            commands: self.commands.get(sink).cloned().unwrap_or_default(),
            sinks: self.live.buffers().map(|(name, _)| name.clone()).collect(),
            schemas: vec![EVENT_SCHEMA, RESULT_SCHEMA],
            limits: ReportLimits { command_bytes: BODY_BYTES_MAX },
        };
        Bytes::from(serde_json::to_vec(&body).expect("it is plain JSON"))
    }

    fn health(&self) -> Bytes {
        let server = |name: &ServerName| Some((name.clone(), server_health(&self.live, name)?));
        let sinks = self.live.buffers().map(|(name, buffer)| {
            let notes = self.sinks.get(name).map(|sink| sink.notes()).unwrap_or_default();
            (name.clone(), sink_health(buffer.last_report(), notes))
        });
        let body = Health {
            time: self.clock.now(),
            uptime_seconds: self.start.elapsed().as_secs(),
            memory_bytes: metrics::resident_bytes(),
            memory_max_bytes: self.memory_max.bytes(),
            commands_bytes: self.memory.bytes(),
            servers: self.live.names().filter_map(server).collect(),
            sinks: sinks.collect(),
        };
        Bytes::from(serde_json::to_vec(&body).expect("it is plain JSON"))
    }
}

fn sink_health(report: SinkReport, notes: Vec<String>) -> SinkHealth {
    SinkHealth {
        connected: report.is_connected,
        problem: report.problem(),
        receives_commands: report.reception.is_complete(),
        lag_entries: report.lag_entries,
        lag_seconds: lag_seconds(&report),
        dirty: report.dirty,
        delivered: report.delivered,
        rejected: report.rejected,
        notes,
    }
}

fn server_health(live: &LiveState, name: &ServerName) -> Option<ServerHealth> {
    let server = live.server(name)?;
    let check = |(id, (read, total)): (&CommandId, &(u64, u64))| Check {
        command_id: id.clone(),
        read_bytes: *read,
        total_bytes: *total,
    };
    let checking = server.checks().iter().map(check).collect();
    let hooks = hooks_health(server.hook_notifier.last_report());
    live.read(name, |content| {
        let poll = &content.poll;
        ServerHealth {
            online: content.state.is_online,
            problem: poll.failure.clone(),
            poll_age_seconds: age_seconds(poll),
            poll_seconds: rounded(poll.duration.as_secs_f64()),
            polls: poll.polls,
            polls_failed: poll.failures,
            polls_full: poll.full,
            interval_seconds: rounded(poll.interval.as_secs_f64()),
            sweep_seconds: rounded(poll.full_interval.as_secs_f64()),
            torrents: content.snapshot.len(),
            checking,
            hooks,
        }
    })
}

/// Returns `None` where the config has no hooks, or nothing is known of them yet.
fn hooks_health(report: HookReport) -> Option<HooksHealth> {
    let HookReport { hooks, problem, wakes } = report;
    if hooks.is_none() && problem.is_none() {
        return None;
    }
    let Hooks { installed, skipped, changed: _ } = hooks.unwrap_or_default();
    Some(HooksHealth { events: installed, left_alone: skipped, problem, wakes })
}

/// Returns the seconds since the last poll that was answered; `None` before the first.
pub(super) fn age_seconds(poll: &PollReport) -> Option<f64> {
    poll.last_success.map(|at| rounded(at.elapsed().as_secs_f64()))
}

/// Returns the seconds since a sink fell behind; 0 if it has not.
pub(super) fn lag_seconds(report: &SinkReport) -> f64 {
    report.behind_since.map_or(0.0, |since| rounded(since.elapsed().as_secs_f64()))
}

/// Rounds to milliseconds.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Updates the metrics that are read from the live state and the store.
///
/// A metric that cannot be read from the store keeps its last value.
pub(super) async fn record_metrics(live: &LiveState, store: &SqliteStore, start: Instant) {
    let usage = store.dead_letter_usage().await.ok();
    for (name, buffer) in live.buffers() {
        metrics::record_sink(name, &buffer.last_report());
        if let Some(usage) = &usage {
            let DeadLetterUsage { dead_letters, given_up } = usage.get(name.as_str()).copied().unwrap_or_default();
            metrics::record_dead_letters(name, dead_letters, given_up);
        }
        if let Ok(backlog) = store.result_backlog(name).await {
            metrics::record_results(name, backlog);
        }
    }
    for name in live.names() {
        live.read(name, |server| metrics::record_poll(name, &server.poll, start));
        if let Some(server) = live.server(name) {
            metrics::record_hooks(name, &server.hook_notifier.last_report());
        }
    }
    if let Ok(usage) = store.usage().await {
        metrics::record_journal(usage);
    }
}
