//! `dtorrent watch`: prints events as they happen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;

use super::run::stop_on_signal;
use super::terminal::server::Session;
use super::terminal::table::cut;
use super::terminal::{human, paint, print_json_text, print_text, width};
use super::{CommandResult, Options, failed, print_message};
use crate::manager::{Manager, Since};
use crate::model::{Cause, Event, Kind, ServerName, Torrent, known_names, printable};
use crate::outbox::{Reader, ReaderItem};

/// Interval at which the servers are checked for a change of their reachability.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// Columns of the progress bar.
const BAR: usize = 10;

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// Watch only these servers [default: all]
    servers: Vec<String>,
    /// Print only events of these kinds, separated by commas
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    events: Vec<Kind>,
    /// Print one JSON object a line, the same as on a broker
    #[arg(long)]
    json: bool,
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).ok_or_else(|| known_names(text, Kind::ALL.iter().map(|kind| kind.as_str())))
}

pub(super) fn run(options: Options, arguments: &Arguments) -> CommandResult {
    let Arguments { servers, events, json } = arguments;
    let session = Session::start(options)?;
    let servers = session.servers(servers)?;
    let kinds: BTreeSet<Kind> =
        if events.is_empty() { Kind::ALL.iter().copied().collect() } else { events.iter().copied().collect() };
    session.run(async {
        let stop = stop_on_signal().map_err(failed)?;
        let manager = session.watch(&servers).await?;
        // From the start of the manager, which has polled since: no event may be missed in between.
        let reader = manager.reader(&Since::Built, kinds);
        let printer = Printer { json: *json, shows_server: servers.len() > 1, width: width() };
        tokio::select! {
            // A signal first, however many events are ready.
            biased;
            () = stop.cancelled() => Ok(()),
            ended = print(reader, printer) => ended,
            () = report_problems(&manager, &servers) => Ok(()),
        }
    })
}

async fn print(mut reader: Reader, printer: Printer) -> CommandResult {
    loop {
        match reader.next().await {
            Ok(Some(ReaderItem::Missed(missed))) => print_message(&missed.to_string()),
            Ok(Some(heard)) => {
                let Some(body) = heard.body() else { continue };
                if printer.json {
                    print_json_text(&String::from_utf8_lossy(&body))?;
                } else if let Some(line) = printer.line(&body) {
                    print_text(&line)?;
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Prints to stderr when a server stops answering polls, and when it answers again.
async fn report_problems(manager: &Manager, servers: &[ServerName]) {
    let mut printed: BTreeMap<&ServerName, String> = BTreeMap::new();
    loop {
        for server in servers {
            let Some(watcher) = manager.watcher(server.as_str()) else { continue };
            match watcher.status().problem {
                Some(problem) if printed.get(server) != Some(&problem) => {
                    print_message(&format!("server {server} does not answer: {problem}"));
                    printed.insert(server, problem);
                }
                None if printed.remove(server).is_some() => print_message(&format!("server {server} answers")),
                _ => {}
            }
        }
        tokio::time::sleep(STATUS_INTERVAL).await;
    }
}

/// The format of events.
struct Printer {
    json: bool,
    shows_server: bool,
    width: Option<usize>,
}

impl Printer {
    /// Returns the line for an event; `None` for one that is not worth a line.
    fn line(&self, body: &[u8]) -> Option<String> {
        let event: Event = serde_json::from_slice(body).ok()?;
        // `watch` shows changes, and the first snapshot of a server contains none.
        if event.event_type == Kind::Added && event.cause == Cause::Snapshot {
            return None;
        }
        Some(self.pretty(&event))
    }

    fn pretty(&self, event: &Event) -> String {
        let time = event.time.to_string();
        // The time of day in RFC 3339.
        let time = time.get(11..19).unwrap_or_default();
        let server = if self.shows_server { format!("{}  ", event.server) } else { String::new() };
        // 16 is the length of the longest kinds, `priority_changed` and `server_restarted`.
        let kind = format!("{:16}", event.event_type.as_str());
        let about = event.torrent.as_deref().map(about).unwrap_or_default();
        let used = time.len() + 2 + server.len() + kind.len() + 1;
        let about = self.width.map_or(about.clone(), |width| cut(&about, width.saturating_sub(used).max(1)));
        let line = format!(
            "{}  {server}{} {about}",
            paint::painted(paint::FAINT, time),
            paint::painted(paint::kind(event.event_type), &kind)
        );
        format!("{}\n", line.trim_end())
    }
}

/// Returns the part of the line about the torrent: progress first, so that it is a column; the name last, because the
/// end is what is cut.
fn about(torrent: &Torrent) -> String {
    let (down, up) = (human::rate(torrent.download_rate), human::rate(torrent.upload_rate));
    let arrow = |arrow: char, rate: String| if rate.is_empty() { String::new() } else { format!("{arrow}{rate}  ") };
    let name = printable(torrent.name.as_bytes());
    let message = human::error(torrent).map(|text| format!(": {text}")).unwrap_or_default();
    format!("{}  {}{}{name}{message}", human::progress(torrent.progress, BAR), arrow('↓', down), arrow('↑', up))
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::model::{Changes, EVENT_SCHEMA, Entity, Epoch, EventId, InfoHash, Seq, Status, Timestamp};

    fn event() -> Event {
        let server = ServerName::parse("home").unwrap();
        let torrent = Torrent::new(server.clone(), InfoHash::V1([1; 20]), "漢字 \u{1b}[31m and a longer name");
        let mut torrent = torrent.with_bytes(1000, 453, 0).with_status(Status::Downloading);
        torrent.download_rate = Some(2 << 20);
        Event {
            schema: EVENT_SCHEMA,
            entity: Entity::Torrent,
            event_type: Kind::Resumed,
            id: EventId::Journal { server: server.clone(), epoch: Epoch(1), seq: Seq(1) },
            seq: Some(Seq(1)),
            time: Timestamp::from_millis(1_795_328_701_114),
            server,
            hash: Some(torrent.hash),
            cause: Cause::Observed,
            command_id: None,
            changes: Changes::new(),
            torrent: Some(std::sync::Arc::new(torrent)),
        }
    }

    fn printed(printer: &Printer, event: &Event) -> Option<String> {
        let line = printer.line(&event.to_json())?;
        Some(anstream::adapter::strip_str(&line).to_string())
    }

    #[test]
    fn an_event_is_a_line_that_fits_and_has_no_control_characters() {
        let wide = Printer { json: false, shows_server: true, width: None };
        let line = printed(&wide, &event()).unwrap();
        assert!(line.starts_with("06:25:01  home  resumed"), "{line}");
        assert!(line.contains("████▌       45.3%  ↓2.0 MiB/s  漢字 ") && !line.contains('\u{1b}'), "{line}");
        for width in 30..90 {
            let line = printed(&Printer { json: false, shows_server: false, width: Some(width) }, &event()).unwrap();
            assert!(line.trim_end().width() <= width, "{width}: {line}");
        }
    }

    #[test]
    fn the_first_snapshot_prints_no_lines() {
        let first = Event { event_type: Kind::Added, cause: Cause::Snapshot, ..event() };
        assert_eq!(printed(&Printer { json: false, shows_server: false, width: None }, &first), None);
    }
}
