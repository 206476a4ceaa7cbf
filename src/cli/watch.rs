//! `dtorrent watch`: what happens, as it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;

use super::run::stop_by_signal;
use super::terminal::server::Session;
use super::terminal::table::cut;
use super::terminal::{human, paint, put_json, say, width};
use super::{Exit, Options, tell};
use crate::manager::{Manager, Since};
use crate::model::{Cause, Event, Kind, ServerName, Torrent, printable};
use crate::outbox::{Heard, Reader};

/// How often is looked whether a server still answers.
const LOOK_EACH: Duration = Duration::from_millis(500);
const BAR: usize = 10;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Only these servers [default: all]
    servers: Vec<String>,
    /// Only events of these kinds; several with commas
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    events: Vec<Kind>,
    /// Print one JSON object a line, the same that brokers get
    #[arg(long)]
    json: bool,
}

fn kind(text: &str) -> Result<Kind, String> {
    let names = || Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    Kind::parse(text).ok_or_else(|| format!("one of {}", names()))
}

pub fn run(options: Options, arguments: &Arguments) -> Exit {
    watch(options, arguments).map_or_else(|exit| exit, |()| Exit::Done)
}

fn watch(options: Options, arguments: &Arguments) -> Result<(), Exit> {
    let Arguments { servers, events, json } = arguments;
    let session = Session::start(options)?;
    let servers = session.servers(servers)?;
    let kinds: BTreeSet<Kind> =
        if events.is_empty() { Kind::ALL.iter().copied().collect() } else { events.iter().copied().collect() };
    session.run(async {
        let stop = stop_by_signal().map_err(|error| {
            tell(&format!("dtorrent watch: {error:#}"));
            Exit::Failed
        })?;
        let manager = session.watch(&servers).await?;
        let reader = manager.reader(&Since::Built, kinds);
        let printer = Printer { json: *json, tells_server: servers.len() > 1, width: width() };
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = print(reader, printer) => ended,
            () = tell_problems(&manager, &servers) => Ok(()),
        }
    })
}

async fn print(mut reader: Reader, printer: Printer) -> Result<(), Exit> {
    loop {
        match reader.next().await {
            Ok(Some(Heard::Missed(missed))) => tell(&missed.to_string()),
            Ok(Some(heard)) => {
                let Some(body) = heard.body() else { continue };
                if printer.json {
                    put_json(&String::from_utf8_lossy(&body))?;
                } else if let Some(line) = printer.line(&body) {
                    say(&line)?;
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                tell(&format!("dtorrent watch: {error}"));
                return Err(Exit::Failed);
            }
        }
    }
}

/// Says on stderr when a server does not answer, and when it does again.
async fn tell_problems(manager: &Manager, servers: &[ServerName]) {
    let mut told: BTreeMap<&ServerName, String> = BTreeMap::new();
    loop {
        for server in servers {
            let Some(watcher) = manager.watcher(server.as_str()) else { continue };
            match watcher.status().problem {
                Some(problem) if told.get(server) != Some(&problem) => {
                    tell(&format!("server {server} does not answer: {problem}"));
                    told.insert(server, problem);
                }
                None if told.remove(server).is_some() => tell(&format!("server {server} answers")),
                _ => {}
            }
        }
        tokio::time::sleep(LOOK_EACH).await;
    }
}

/// How events look.
struct Printer {
    json: bool,
    tells_server: bool,
    width: Option<usize>,
}

impl Printer {
    /// The line for an event to people; `None` for one that is not worth it.
    fn line(&self, body: &[u8]) -> Option<String> {
        let event: Event = serde_json::from_slice(body).ok()?;
        // The first picture is no news; `snapshot_done` says how much it is.
        if event.event_type == Kind::Added && event.cause == Cause::Snapshot {
            return None;
        }
        Some(self.pretty(&event))
    }

    fn pretty(&self, event: &Event) -> String {
        let time = event.time.to_string();
        let time = time.get(11..19).unwrap_or_default();
        let server = if self.tells_server { format!("{}  ", event.server) } else { String::new() };
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

/// Progress first, so that it is a column; the name last, so that it is what is cut.
fn about(torrent: &Torrent) -> String {
    let (down, up) = (human::rate(torrent.download_rate), human::rate(torrent.upload_rate));
    let arrow = |arrow: char, rate: String| if rate.is_empty() { String::new() } else { format!("{arrow}{rate}  ") };
    let name = printable(torrent.name.as_bytes());
    let message = torrent.message.as_deref().filter(|text| torrent.error && !text.is_empty());
    let message = message.map(|text| format!(": {}", printable(text.as_bytes()))).unwrap_or_default();
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
    fn an_event_is_a_line_that_fits_and_cannot_paint() {
        let wide = Printer { json: false, tells_server: true, width: None };
        let line = printed(&wide, &event()).unwrap();
        assert!(line.starts_with("06:25:01  home  resumed"), "{line}");
        assert!(line.contains("████▌       45.3%  ↓2.0 MiB/s  漢字 ") && !line.contains('\u{1b}'), "{line}");
        for width in 30..90 {
            let line = printed(&Printer { json: false, tells_server: false, width: Some(width) }, &event()).unwrap();
            assert!(line.trim_end().width() <= width, "{width}: {line}");
        }
    }

    #[test]
    fn people_are_spared_the_first_picture() {
        let first = Event { event_type: Kind::Added, cause: Cause::Snapshot, ..event() };
        assert_eq!(printed(&Printer { json: false, tells_server: false, width: None }, &first), None);
    }
}
