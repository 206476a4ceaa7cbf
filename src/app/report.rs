//! What the bridge says of itself: on the broker, and to whoever asks over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::commands::BODY_BYTES_MAX;
use crate::http;
use crate::live_state::{HookReport, LiveState, SinkReport};
use crate::model::{
    Check, CommandId, EVENT_SCHEMA, Health, HooksHealth, Info, RESULT_SCHEMA, ReportLimits, ServerHealth, ServerName,
    SinkHealth, SinkName,
};
use crate::outbox::Reporter;
use crate::port::{Clock, CommandLog as _, Hooks, Journal as _, Sink};
use crate::store::{BoxUsage, SqliteStore};
use crate::telemetry::metrics::{self, Metrics};

/// The bodies of the bridge's own messages.
pub(super) struct Reports {
    pub(super) live: Arc<LiveState>,
    pub(super) sinks: BTreeMap<SinkName, Arc<dyn Sink>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) instance: String,
    pub(super) start: Instant,
}

impl Reporter for Reports {
    fn info(&self) -> Bytes {
        let body = Info {
            version: env!("CARGO_PKG_VERSION"),
            instance: self.instance.clone(),
            servers: self.live.names().cloned().collect(),
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
        lag_entries: report.lag_entries,
        lag_seconds: rounded(report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64())),
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
            poll_age_seconds: poll.last_success.map(|at| rounded(at.elapsed().as_secs_f64())),
            poll_seconds: rounded(poll.duration.as_secs_f64()),
            polls: poll.polls,
            polls_failed: poll.failures,
            polls_full: poll.full,
            interval_seconds: rounded(poll.interval.as_secs_f64()),
            sweep_seconds: rounded(poll.sweep.as_secs_f64()),
            torrents: content.snapshot.len(),
            checking,
            hooks,
        }
    })
}

/// `None` where no hooks are wanted, or it is too early to say.
fn hooks_health(report: HookReport) -> Option<HooksHealth> {
    let HookReport { hooks, problem, wakes } = report;
    if hooks.is_none() && problem.is_none() {
        return None;
    }
    let Hooks { installed, skipped, changed: _ } = hooks.unwrap_or_default();
    Some(HooksHealth { events: installed, left_alone: skipped, problem, wakes })
}

pub(super) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// What the HTTP pages ask for.
pub(super) struct Shown {
    pub(super) live: Arc<LiveState>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) metrics: Metrics,
}

#[async_trait]
impl http::Observed for Shown {
    fn readiness(&self) -> (bool, Value) {
        let mut is_ready = true;
        let mut servers = BTreeMap::new();
        for name in self.live.names() {
            let problem = self.live.read(name, |content| match &content.poll {
                poll if poll.is_answering() => None,
                poll => Some(poll.failure.clone().unwrap_or_else(|| "not polled yet".to_owned())),
            });
            let problem = problem.flatten();
            is_ready &= problem.is_none();
            servers.insert(name.as_str(), json!({"ready": problem.is_none(), "problem": problem}));
        }
        let mut sinks = BTreeMap::new();
        for (name, buffer) in self.live.buffers() {
            let report = buffer.last_report();
            let not_yet = || (!report.is_connected).then(|| "not connected yet".to_owned());
            let problem = report.problem().or_else(not_yet);
            is_ready &= problem.is_none();
            sinks.insert(name.as_str(), json!({"ready": problem.is_none(), "problem": problem}));
        }
        (is_ready, json!({"ready": is_ready, "servers": servers, "sinks": sinks}))
    }

    async fn metrics(&self) -> String {
        // Where they cannot be counted now, they are as they were.
        let boxes = self.store.boxes().await.ok();
        for (name, buffer) in self.live.buffers() {
            metrics::note_sink(name, &buffer.last_report());
            if let Some(boxes) = &boxes {
                let BoxUsage { letters, given_up } = boxes.get(name.as_str()).copied().unwrap_or_default();
                metrics::note_box(name, letters, given_up);
            }
            if let Ok(waiting) = self.store.result_backlog(name).await {
                metrics::note_results(name, waiting);
            }
        }
        for name in self.live.names() {
            self.live.read(name, |content| metrics::note_poll(name, &content.poll));
            if let Some(server) = self.live.server(name) {
                metrics::note_hooks(name, &server.hook_notifier.last_report());
            }
        }
        if let Ok(usage) = self.store.usage().await {
            metrics::note_usage(usage);
        }
        self.metrics.render()
    }
}
