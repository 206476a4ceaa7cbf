//! What the bridge says of itself: on the broker, and to whoever asks over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::board::{Board, HookReport};
use crate::commands::BODY_BYTES_MAX;
use crate::deliver::Reporter;
use crate::http;
use crate::model::{CommandId, EVENT_SCHEMA, RESULT_SCHEMA, ServerName, SinkName};
use crate::port::{Clock, Hooks, Sink, Store as _};
use crate::store::SqliteStore;
use crate::telemetry::metrics::{self, Metrics};

/// The bodies of the bridge's own messages.
pub(super) struct Reports {
    pub(super) board: Arc<Board>,
    pub(super) sinks: BTreeMap<SinkName, Arc<dyn Sink>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) instance: String,
    pub(super) start: Instant,
}

impl Reporter for Reports {
    fn info(&self) -> Bytes {
        let servers: Vec<&ServerName> = self.board.names().collect();
        let sinks: Vec<&SinkName> = self.board.desks().map(|(name, _)| name).collect();
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": self.instance,
            "servers": servers,
            "sinks": sinks,
            "schemas": [EVENT_SCHEMA, RESULT_SCHEMA],
            "limits": {"command_bytes": BODY_BYTES_MAX},
        });
        Bytes::from(body.to_string())
    }

    fn health(&self) -> Bytes {
        let servers: BTreeMap<&ServerName, Value> =
            self.board.names().map(|name| (name, server_health(&self.board, name))).collect();
        let sinks: BTreeMap<&SinkName, Value> = self
            .board
            .desks()
            .map(|(name, desk)| {
                let report = desk.last_report();
                let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
                let body = json!({
                    "connected": report.is_connected,
                    "problem": report.failure,
                    "lag_entries": report.lag_entries,
                    "lag_seconds": rounded(lag_seconds),
                    "dirty": report.dirty,
                    "delivered": report.delivered,
                    "rejected": report.rejected,
                    "notes": self.sinks.get(name).map(|sink| sink.notes()).unwrap_or_default(),
                });
                (name, body)
            })
            .collect();
        let body = json!({
            "time": self.clock.now(),
            "uptime_seconds": self.start.elapsed().as_secs(),
            "memory_bytes": metrics::resident_bytes(),
            "servers": servers,
            "sinks": sinks,
        });
        Bytes::from(body.to_string())
    }
}

fn server_health(board: &Board, name: &ServerName) -> Value {
    let read = board.read(name, |content| {
        let poll = &content.poll;
        json!({
            "online": content.state.is_online,
            "problem": poll.failure,
            "poll_age_seconds": poll.last_success.map(|at| rounded(at.elapsed().as_secs_f64())),
            "poll_seconds": rounded(poll.duration.as_secs_f64()),
            "polls": poll.polls,
            "polls_failed": poll.failures,
            "polls_full": poll.full,
            "interval_seconds": rounded(poll.interval.as_secs_f64()),
            "sweep_seconds": rounded(poll.sweep.as_secs_f64()),
            "torrents": content.told.len(),
        })
    });
    let mut health = read.unwrap_or(Value::Null);
    if let (Some(server), Some(health)) = (board.server(name), health.as_object_mut()) {
        let check = |(id, (read, total)): (&CommandId, &(u64, u64))| json!({"command_id": id, "read_bytes": read, "total_bytes": total});
        health.insert("checking".to_owned(), server.checks().iter().map(check).collect());
    }
    let report = board.server(name).map(|server| server.bell.last_report()).unwrap_or_default();
    if let (Some(health), Some(hooks)) = (health.as_object_mut(), hooks_health(&report)) {
        health.insert("hooks".to_owned(), hooks);
    }
    health
}

/// `None` where no hooks are wanted, or it is too early to say.
fn hooks_health(report: &HookReport) -> Option<Value> {
    let HookReport { hooks, problem, pokes } = report;
    if hooks.is_none() && problem.is_none() {
        return None;
    }
    let Hooks { ringing, left_alone, changed: _ } = hooks.clone().unwrap_or_default();
    Some(json!({"events": ringing, "left_alone": left_alone, "problem": problem, "pokes": pokes}))
}

pub(super) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// What the HTTP pages ask for.
pub(super) struct Shown {
    pub(super) board: Arc<Board>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) metrics: Metrics,
}

#[async_trait]
impl http::Observed for Shown {
    fn readiness(&self) -> (bool, Value) {
        let mut is_ready = true;
        let mut servers = BTreeMap::new();
        for name in self.board.names() {
            let problem = self.board.read(name, |content| match &content.poll {
                poll if poll.is_answering() => None,
                poll => Some(poll.failure.clone().unwrap_or_else(|| "not polled yet".to_owned())),
            });
            let problem = problem.flatten();
            is_ready &= problem.is_none();
            servers.insert(name.as_str(), json!({"ready": problem.is_none(), "problem": problem}));
        }
        let mut sinks = BTreeMap::new();
        for (name, desk) in self.board.desks() {
            let report = desk.last_report();
            is_ready &= report.is_connected;
            let problem =
                (!report.is_connected).then(|| report.failure.unwrap_or_else(|| "not connected yet".to_owned()));
            sinks.insert(name.as_str(), json!({"ready": report.is_connected, "problem": problem}));
        }
        (is_ready, json!({"ready": is_ready, "servers": servers, "sinks": sinks}))
    }

    async fn metrics(&self) -> String {
        for (name, desk) in self.board.desks() {
            metrics::note_sink(name, &desk.last_report());
        }
        for name in self.board.names() {
            self.board.read(name, |content| metrics::note_poll(name, &content.poll));
            if let Some(server) = self.board.server(name) {
                metrics::note_hooks(name, &server.bell.last_report());
            }
        }
        if let Ok(usage) = self.store.usage().await {
            metrics::note_usage(usage);
        }
        self.metrics.render()
    }
}
