//! Metrics: the table of all of them, their recorder, and their text for Prometheus.
//!
//! No hash, torrent name, path or URL is ever a label, so the number of series is bounded by servers, sinks and kinds.

use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;

use crate::live_state::{HookReport, PollReport, SinkReport};
use crate::model::{Kind, OutcomeStatus, ServerName, SinkName, Verb};
use crate::port::{JournalUsage, ResultBacklog};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Only grows, until the process ends.
    Counter,
    /// Has a present value.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// The name, shape and meaning of every metric. The table in docs/operations.md is held against it by a test.
pub const ALL: &[(&str, Shape, &str)] = &[
    ("dtorrent_build_info", Shape::Gauge, "1, with the version as label"),
    ("dtorrent_polls_total", Shape::Counter, "Polls of a server, by result"),
    ("dtorrent_full_polls_total", Shape::Counter, "Polls of a server that read all of its torrents"),
    ("dtorrent_poll_interval_seconds", Shape::Gauge, "Current interval between two polls of a server"),
    ("dtorrent_poll_duration_seconds", Shape::Histogram, "Time that a client takes to answer a poll"),
    (
        "dtorrent_poll_age_seconds",
        Shape::Gauge,
        "Time since a server last answered a poll, or since the start of the bridge",
    ),
    ("dtorrent_torrents", Shape::Gauge, "Torrents of a server, by status"),
    ("dtorrent_events_total", Shape::Counter, "Events written to the journal, by kind"),
    ("dtorrent_commits_full_total", Shape::Counter, "Polls whose events could not be committed: journal or disk full"),
    ("dtorrent_journal_entries", Shape::Gauge, "Events in the journal"),
    ("dtorrent_journal_bytes", Shape::Gauge, "Bytes of the events in the journal"),
    ("dtorrent_hooked_events", Shape::Gauge, "Kinds of events for which a client has a hook set (`hooks`)"),
    ("dtorrent_hook_wakes_total", Shape::Counter, "Hook signals received from a client"),
    ("dtorrent_sink_connected", Shape::Gauge, "1 if a sink is connected"),
    ("dtorrent_sink_receives_commands", Shape::Gauge, "1 if every command topic of a broker is subscribed to"),
    ("dtorrent_sink_lag_entries", Shape::Gauge, "Journal entries that a sink has not acknowledged"),
    ("dtorrent_sink_lag_seconds", Shape::Gauge, "Time since a sink fell behind"),
    ("dtorrent_sink_dirty", Shape::Gauge, "Torrents whose latest state a sink has not received"),
    ("dtorrent_sink_blocked", Shape::Gauge, "1 if delivery to a sink is blocked: its dead-letter queue is full"),
    ("dtorrent_dead_letters", Shape::Gauge, "Dead letters of a sink, 10000 at most"),
    ("dtorrent_given_up_events", Shape::Gauge, "Events given up for a blocked sink, as its dead letters say"),
    ("dtorrent_results_waiting", Shape::Gauge, "Results of commands that a sink has not acknowledged"),
    ("dtorrent_deliveries_total", Shape::Counter, "Messages that a sink acknowledged or rejected"),
    ("dtorrent_commands_total", Shape::Counter, "Commands answered, by verb and status; refused ones included"),
    ("dtorrent_http_wrong_tokens_total", Shape::Counter, "Requests over HTTP with a wrong token"),
    ("dtorrent_task_restarts_total", Shape::Counter, "Tasks restarted after a panic"),
];

/// The recorder of metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder. To be called once.
    ///
    /// # Errors
    /// The process has a recorder already.
    pub fn start() -> anyhow::Result<Self> {
        // From a poll of an idle client on a local socket to one that hangs until its timeout.
        let buckets = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &buckets)
            .and_then(|builder| builder.install_recorder())
            .context("install the recorder of metrics")?;
        for (name, shape, meaning) in ALL {
            match shape {
                Shape::Counter => describe_counter!(*name, *meaning),
                Shape::Gauge => describe_gauge!(*name, *meaning),
                Shape::Histogram => describe_histogram!(*name, *meaning),
            }
        }
        gauge!("dtorrent_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self { handle })
    }

    /// Returns the present text, and drains the histograms.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Drains the histograms every few seconds, forever: they buffer observations without a bound until they are rendered.
    pub async fn upkeep(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.handle.run_upkeep();
        }
    }
}

/// Registers the counters of these servers, and of the bridge itself: an alert on the growth of a counter that appears
/// with its first event would miss that event. The others are registered where they are recorded.
pub fn register_counters<'a>(servers: impl IntoIterator<Item = &'a ServerName>) {
    let register = |name: &'static str, labels: &[(&'static str, String)]| counter!(name, labels).increment(0);
    let server_label = |server: &str| ("server", server.to_owned());
    let register_commands = |server: &str, is_meant: fn(Verb) -> bool| {
        // The empty verb is that of a command whose verb is unknown.
        let verbs = Verb::ALL.iter().filter(|verb| is_meant(**verb)).map(|verb| verb.as_str()).chain([""]);
        for (verb, status) in verbs.flat_map(|verb| OutcomeStatus::ALL.map(|status| (verb, status))) {
            let labels = [server_label(server), ("verb", verb.to_owned()), ("status", status.to_string())];
            register("dtorrent_commands_total", &labels);
        }
    };
    register_commands("", Verb::is_for_bridge);
    register("dtorrent_http_wrong_tokens_total", &[]);
    for server in servers.into_iter().map(ServerName::as_str) {
        register_commands(server, |verb| verb != Verb::LogLevel);
        register("dtorrent_commits_full_total", &[server_label(server)]);
        for result in ["ok", "failed"] {
            register("dtorrent_polls_total", &[server_label(server), ("result", result.to_owned())]);
        }
        for kind in Kind::ALL {
            register("dtorrent_events_total", &[server_label(server), ("kind", kind.as_str().to_owned())]);
        }
    }
}

/// Records connection, commands, lag and deliveries of a sink.
pub fn record_sink(sink: &SinkName, report: &SinkReport) {
    let sink = sink.to_string();
    let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    gauge!("dtorrent_sink_connected", "sink" => sink.clone()).set(f64::from(u8::from(report.is_connected)));
    if let Some(is_complete) = report.reception.is_complete() {
        gauge!("dtorrent_sink_receives_commands", "sink" => sink.clone()).set(f64::from(u8::from(is_complete)));
    }
    gauge!("dtorrent_sink_lag_entries", "sink" => sink.clone()).set(report.lag_entries as f64);
    gauge!("dtorrent_sink_lag_seconds", "sink" => sink.clone()).set(lag_seconds);
    gauge!("dtorrent_sink_dirty", "sink" => sink.clone()).set(report.dirty as f64);
    let is_blocked = report.blocked_reason.is_some();
    gauge!("dtorrent_sink_blocked", "sink" => sink.clone()).set(f64::from(u8::from(is_blocked)));
    // Absolute, because the report holds the totals of this run.
    counter!("dtorrent_deliveries_total", "sink" => sink.clone(), "result" => "ok").absolute(report.delivered);
    counter!("dtorrent_deliveries_total", "sink" => sink, "result" => "rejected").absolute(report.rejected);
}

/// Records the number of dead letters of a sink, and of the events given up for it.
pub fn record_dead_letters(sink: &SinkName, count: u64, given_up: u64) {
    gauge!("dtorrent_dead_letters", "sink" => sink.to_string()).set(count as f64);
    gauge!("dtorrent_given_up_events", "sink" => sink.to_string()).set(given_up as f64);
}

/// Records the polls of a server. `start`: when the bridge was started, from where the age counts before the first answer.
pub fn record_poll(server: &ServerName, poll: &PollReport, start: Instant) {
    counter!("dtorrent_full_polls_total", "server" => server.to_string()).absolute(poll.full);
    gauge!("dtorrent_poll_interval_seconds", "server" => server.to_string()).set(poll.interval.as_secs_f64());
    let last = poll.last_success.unwrap_or(start);
    gauge!("dtorrent_poll_age_seconds", "server" => server.to_string()).set(last.elapsed().as_secs_f64());
}

/// Records the hooks of a server.
pub fn record_hooks(server: &ServerName, report: &HookReport) {
    let server = server.to_string();
    let hooked = report.hooks.as_ref().map_or(0, |hooks| hooks.installed.len());
    gauge!("dtorrent_hooked_events", "server" => server.clone()).set(hooked as f64);
    counter!("dtorrent_hook_wakes_total", "server" => server).absolute(report.wakes);
}

/// Records the results that wait for a sink.
pub fn record_results(sink: &SinkName, backlog: ResultBacklog) {
    gauge!("dtorrent_results_waiting", "sink" => sink.to_string()).set(backlog.count as f64);
}

/// Records the size of the journal.
pub fn record_journal(usage: JournalUsage) {
    gauge!("dtorrent_journal_entries").set(usage.entries as f64);
    gauge!("dtorrent_journal_bytes").set(usage.bytes as f64);
}

/// Returns the resident memory of this process in bytes; `None` where `/proc` does not have it.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
