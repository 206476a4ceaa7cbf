//! The status page: the present state as HTML that is complete without scripts. Pure.
//!
//! Any text on it may be hostile: a torrent has the name that its maker gave it. Hence every text goes through
//! [`escaped`], and attributes hold nothing but constants and server names, which are slugs.

use std::sync::Arc;

use super::api::{ServerView, SinkView};
use crate::model::{Torrent, printable, shown_bytes};

/// The script of the page: it refreshes the tables and lists events.
pub(super) const SCRIPT: &str = include_str!("page/page.js");
/// The style sheet of the page.
pub(super) const STYLE: &str = include_str!("page/page.css");

/// A server with some of its torrents.
pub(super) struct Server {
    /// The server itself.
    pub server: ServerView,
    /// The torrents on the page.
    pub torrents: Vec<Arc<Torrent>>,
    /// The number of torrents that the server has.
    pub total: u64,
}

/// The page up to its heading. Paths are relative, so that it also works below a path of a reverse proxy.
const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>dtorrent</title>
<link rel="stylesheet" href="page.css">
<script src="page.js" defer></script>
</head>
<body>
"#;

/// Renders the page.
pub(super) fn page(version: &str, servers: &[Server], sinks: &[SinkView]) -> String {
    let mut out = format!("{HEAD}<h1>dtorrent <small>{}</small></h1>\n<main id=\"state\">\n", escaped(version));
    out += &servers_table(servers);
    out += &sinks_table(sinks);
    out.extend(servers.iter().map(torrents_table));
    out += "</main>\n<h2>Events</h2>\n<ol id=\"events\"></ol>\n</body>\n</html>\n";
    out
}

fn servers_table(servers: &[Server]) -> String {
    let row = |Server { server, .. }: &Server| {
        let stats = server.stats.as_ref().map(|stats| &stats.server);
        vec![
            escaped(server.name.as_str()),
            stats.and_then(|stats| stats.client.as_deref()).map_or_else(none, escaped),
            status(server.status, server.problem.as_deref()),
            server.torrents.to_string(),
            rate(stats.and_then(|stats| stats.download_rate)),
            rate(stats.and_then(|stats| stats.upload_rate)),
            stats.and_then(|stats| stats.free_disk).map_or_else(none, shown_bytes),
            server.poll_age_seconds.map_or_else(none, seconds),
        ]
    };
    let columns = ["server", "client", "status", "torrents", "down", "up", "free", "last poll"];
    table("Servers", &columns, servers.iter().map(row))
}

fn sinks_table(sinks: &[SinkView]) -> String {
    let row = |sink: &SinkView| {
        vec![
            escaped(sink.name.as_str()),
            status(sink.status, sink.problem.as_deref()),
            sink.lag_entries.to_string(),
            seconds(sink.lag_seconds),
            sink.dirty.to_string(),
            sink.delivered.to_string(),
            sink.rejected.to_string(),
        ]
    };
    let without_sinks = sinks.is_empty().then(|| vec!["none configured".to_owned()]);
    let columns = ["sink", "status", "events behind", "for", "torrents behind", "delivered", "rejected"];
    table("Sinks", &columns, sinks.iter().map(row).chain(without_sinks))
}

fn torrents_table(Server { server, torrents, total }: &Server) -> String {
    let row = |torrent: &Arc<Torrent>| {
        let message = torrent.message.as_deref().filter(|text| !text.is_empty());
        let problem = torrent.error.then(|| message.unwrap_or("error"));
        vec![
            escaped(&torrent.name),
            status(torrent.status.as_str(), problem),
            format!("{:?} %", torrent.progress),
            shown_bytes(torrent.length),
            torrent.ratio.map_or_else(none, |ratio| format!("{ratio:?}")),
            rate(torrent.download_rate),
            rate(torrent.upload_rate),
            torrent.label.as_deref().map_or_else(none, escaped),
        ]
    };
    let columns = ["name", "status", "done", "size", "ratio", "down", "up", "label"];
    let mut out = table(&format!("Torrents of {}", server.name), &columns, torrents.iter().map(row));
    let more = total.saturating_sub(torrents.len() as u64);
    if more > 0 {
        let name = escaped(server.name.as_str());
        out += &format!("<p>{more} more: <a href=\"api/v1/servers/{name}/torrents\">all</a></p>\n");
    }
    out
}

/// Renders a table with rows of cells that are HTML already.
fn table(title: &str, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells =
        |tag: &str, cells: &[String]| -> String { cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>")).collect() };
    let columns: Vec<String> = columns.iter().map(|column| escaped(column)).collect();
    let rows: String = rows.map(|row| format!("<tr>{}</tr>\n", cells("td", &row))).collect();
    let (title, head) = (escaped(title), cells("th", &columns));
    format!("<h2>{title}</h2>\n<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n")
}

fn status(status: &str, problem: Option<&str>) -> String {
    let status = escaped(status);
    match problem {
        None | Some("") => status,
        Some(problem) => format!("{status} <span class=\"problem\">{}</span>", escaped(problem)),
    }
}

/// Returns the text for an unknown value.
fn none() -> String {
    "–".to_owned()
}

fn rate(bytes_per_second: Option<u64>) -> String {
    bytes_per_second.map_or_else(none, |rate| format!("{}/s", shown_bytes(rate)))
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.1} s")
}

/// Escapes a text for HTML, and removes what would reverse the direction of the text after it.
fn escaped(plain: &str) -> String {
    let mut out = String::with_capacity(plain.len() + 16);
    for c in printable(plain.as_bytes()).chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '`' => out += "&#96;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{InfoHash, Seq, ServerName, ServerStats, SinkName, Stats, Status};

    fn rendered(text: &str) -> String {
        let name = ServerName::parse("home").unwrap();
        let mut torrent = Torrent::new(name.clone(), InfoHash::V1([1; 20]), text).with_bytes(1536, 192, 0);
        torrent = torrent.with_status(Status::Downloading);
        torrent.label = Some(text.into());
        torrent.message = Some(text.into());
        torrent.error = true;
        torrent.download_rate = Some(0);
        let stats = ServerStats { client: Some(text.to_owned()), ..ServerStats::default() };
        let server = ServerView {
            name,
            status: "online",
            problem: Some(text.to_owned()),
            poll_age_seconds: None,
            torrents: 1,
            last_seq: Seq(7),
            stats: Some(Stats::of(stats, std::iter::empty())),
        };
        let sink = SinkView {
            name: SinkName::parse("b").unwrap(),
            status: "offline",
            problem: Some(text.to_owned()),
            lag_entries: 7,
            lag_seconds: 0.5,
            dirty: 0,
            delivered: 0,
            rejected: 0,
        };
        page("1", &[Server { server, torrents: vec![Arc::new(torrent)], total: 2 }], &[sink])
    }

    #[test]
    fn a_hostile_name_is_shown_and_does_nothing() {
        let page = rendered("<script>alert(1)</script>\"'&\u{202e}\u{0}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\u{fffd}"), "{page}");
        assert_eq!(page.matches("<script").count(), 1, "our own");
        assert!(page.contains("1.5 KiB") && page.contains("12.5 %") && page.contains("1 more"));
    }

    proptest! {
        /// The tags of a page do not depend on the texts in it.
        #[test]
        fn no_text_makes_a_tag(name in "\\PC{0,40}|[<>&\"'/ a-z!-]{0,40}") {
            let tags = |page: &str| page.matches(['<', '>', '"', '\'', '`']).map(str::to_owned).collect::<String>();
            prop_assert_eq!(tags(&rendered(&format!("x{name}"))), tags(&rendered("x")));
        }
    }
}
