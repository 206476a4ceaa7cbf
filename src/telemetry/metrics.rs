//! Every metric, by name and meaning, and the text in which Prometheus reads them.
//!
//! No hash, name, path or URL is ever a label: there are as many series as servers, sinks and kinds.

use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::live_state::{HookReport, PollReport, SinkReport};
use crate::model::{ServerName, SinkName};
use crate::port::{ResultBacklog, Usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Counter,
    Gauge,
    Histogram,
}

/// Name, shape and meaning of each.
pub const ALL: &[(&str, Shape, &str)] = &[
    ("dtorrent_build_info", Shape::Gauge, "1, with the version as label"),
    ("dtorrent_polls_total", Shape::Counter, "Looks at a server, by result"),
    ("dtorrent_full_polls_total", Shape::Counter, "Looks at a server that read all its torrents"),
    ("dtorrent_poll_interval_seconds", Shape::Gauge, "From one look at a server to the next, as it is now"),
    ("dtorrent_poll_duration_seconds", Shape::Histogram, "How long a client takes to answer a look"),
    ("dtorrent_poll_age_seconds", Shape::Gauge, "Time since a server answered last"),
    ("dtorrent_torrents", Shape::Gauge, "Torrents of a server, by status"),
    ("dtorrent_events_total", Shape::Counter, "Life-cycle events written down, by kind"),
    ("dtorrent_commits_full_total", Shape::Counter, "Looks whose events could not be written down for want of room"),
    ("dtorrent_journal_entries", Shape::Gauge, "Events kept on disk"),
    ("dtorrent_journal_bytes", Shape::Gauge, "Bytes of the events kept on disk"),
    ("dtorrent_hooked_events", Shape::Gauge, "Kinds of events for which a client rings by itself (`hooks`)"),
    ("dtorrent_hook_wakes_total", Shape::Counter, "How often a client rang"),
    ("dtorrent_sink_connected", Shape::Gauge, "1 if a sink is connected"),
    ("dtorrent_sink_lag_entries", Shape::Gauge, "Events that a sink has not taken yet"),
    ("dtorrent_sink_lag_seconds", Shape::Gauge, "Since when a sink has been behind"),
    ("dtorrent_sink_dirty", Shape::Gauge, "Torrents of which a sink has an old picture"),
    ("dtorrent_sink_standstill", Shape::Gauge, "1 if a sink's events stand: one was rejected and finds no place aside"),
    ("dtorrent_dead_letters", Shape::Gauge, "Letters put aside for a sink, 10000 at most"),
    ("dtorrent_given_up_events", Shape::Gauge, "Events given up for a sink that stood, as its letters say"),
    ("dtorrent_results_waiting", Shape::Gauge, "Results of commands that a sink has not taken yet"),
    ("dtorrent_deliveries_total", Shape::Counter, "Messages that a sink took or rejected"),
    ("dtorrent_commands_total", Shape::Counter, "Commands carried out, by verb and status"),
    ("dtorrent_task_restarts_total", Shape::Counter, "Tasks started again after a fault in this program"),
];

/// The recorder of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Starts recording. To be called once.
    ///
    /// # Errors
    /// Somebody else has started.
    pub fn start() -> anyhow::Result<Self> {
        let buckets = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &buckets)
            .and_then(|builder| builder.install_recorder())
            .context("start the metrics")?;
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

    /// The text, with what was recorded until now; also keeps the histograms from growing.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Keeps the histograms from growing while nobody reads them.
    pub async fn upkeep(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.handle.run_upkeep();
        }
    }
}

pub fn note_sink(sink: &SinkName, report: &SinkReport) {
    let sink = sink.to_string();
    let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    gauge!("dtorrent_sink_connected", "sink" => sink.clone()).set(f64::from(u8::from(report.is_connected)));
    gauge!("dtorrent_sink_lag_entries", "sink" => sink.clone()).set(report.lag_entries as f64);
    gauge!("dtorrent_sink_lag_seconds", "sink" => sink.clone()).set(lag_seconds);
    gauge!("dtorrent_sink_dirty", "sink" => sink.clone()).set(report.dirty as f64);
    let stands = report.standstill.is_some();
    gauge!("dtorrent_sink_standstill", "sink" => sink.clone()).set(f64::from(u8::from(stands)));
    counter!("dtorrent_deliveries_total", "sink" => sink.clone(), "result" => "ok").absolute(report.delivered);
    counter!("dtorrent_deliveries_total", "sink" => sink, "result" => "rejected").absolute(report.rejected);
}

pub fn note_box(sink: &SinkName, letters: u64, given_up: u64) {
    gauge!("dtorrent_dead_letters", "sink" => sink.to_string()).set(letters as f64);
    gauge!("dtorrent_given_up_events", "sink" => sink.to_string()).set(given_up as f64);
}

pub fn note_poll(server: &ServerName, poll: &PollReport) {
    counter!("dtorrent_full_polls_total", "server" => server.to_string()).absolute(poll.full);
    gauge!("dtorrent_poll_interval_seconds", "server" => server.to_string()).set(poll.interval.as_secs_f64());
    if let Some(last) = poll.last_success {
        gauge!("dtorrent_poll_age_seconds", "server" => server.to_string()).set(last.elapsed().as_secs_f64());
    }
}

pub fn note_hooks(server: &ServerName, report: &HookReport) {
    let server = server.to_string();
    let hooked = report.hooks.as_ref().map_or(0, |hooks| hooks.installed.len());
    gauge!("dtorrent_hooked_events", "server" => server.clone()).set(hooked as f64);
    counter!("dtorrent_hook_wakes_total", "server" => server).absolute(report.wakes);
}

pub fn note_results(sink: &SinkName, waiting: ResultBacklog) {
    gauge!("dtorrent_results_waiting", "sink" => sink.to_string()).set(waiting.count as f64);
}

pub fn note_usage(usage: Usage) {
    gauge!("dtorrent_journal_entries").set(usage.journal_entries as f64);
    gauge!("dtorrent_journal_bytes").set(usage.journal_bytes as f64);
}

/// Memory of this process that is in RAM, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
