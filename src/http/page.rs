//! The status page: what is so now, in HTML that is whole without scripts. Pure.
//!
//! Every text in it may come from a stranger: a torrent has the name that its maker gave it. All of it goes
//! through [`text`], and what goes into an attribute is one of our own words.

use serde_json::Value;

use crate::model::printable;

pub(super) const SCRIPT: &str = include_str!("page/page.js");
pub(super) const STYLE: &str = include_str!("page/page.css");

/// A server, as the API shows it, with some of its torrents and how many it has.
pub(super) struct Server {
    pub server: Value,
    pub torrents: Vec<Value>,
    pub total: u64,
}

pub(super) fn page(version: &str, servers: &[Server], sinks: &[Value]) -> String {
    let mut out = String::with_capacity(16 << 10);
    out += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    out += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    out += "<meta name=\"color-scheme\" content=\"light dark\">\n<title>dtorrent</title>\n";
    out += "<link rel=\"stylesheet\" href=\"page.css\">\n<script src=\"page.js\" defer></script>\n</head>\n<body>\n";
    out += &format!("<h1>dtorrent <small>{}</small></h1>\n<main id=\"state\">\n", text(version));
    table_of_servers(&mut out, servers);
    table_of_sinks(&mut out, sinks);
    for server in servers {
        table_of_torrents(&mut out, server);
    }
    out += "</main>\n<h2>Events</h2>\n<ol id=\"events\"></ol>\n</body>\n</html>\n";
    out
}

fn table_of_servers(out: &mut String, servers: &[Server]) {
    head(out, "Servers", &["server", "client", "status", "torrents", "down", "up", "free", "last look"]);
    for Server { server, .. } in servers {
        let stats = &server["stats"];
        row(
            out,
            &[
                text(&shown(&server["name"])),
                text(&shown(&stats["client"])),
                status(&server["status"], &server["problem"]),
                text(&shown(&server["torrents"])),
                rate(&stats["download_rate"]),
                rate(&stats["upload_rate"]),
                bytes(&stats["free_disk"]),
                seconds(&server["poll_age_seconds"]),
            ],
        );
    }
    *out += "</tbody></table>\n";
}

fn table_of_sinks(out: &mut String, sinks: &[Value]) {
    head(out, "Sinks", &["sink", "status", "events behind", "for", "torrents behind", "delivered", "rejected"]);
    for sink in sinks {
        row(
            out,
            &[
                text(&shown(&sink["name"])),
                status(&sink["status"], &sink["problem"]),
                text(&shown(&sink["lag_entries"])),
                seconds(&sink["lag_seconds"]),
                text(&shown(&sink["dirty"])),
                text(&shown(&sink["delivered"])),
                text(&shown(&sink["rejected"])),
            ],
        );
    }
    if sinks.is_empty() {
        row(out, &["none configured".to_owned()]);
    }
    *out += "</tbody></table>\n";
}

fn table_of_torrents(out: &mut String, Server { server, torrents, total }: &Server) {
    let name = shown(&server["name"]);
    let title = format!("Torrents of {name}");
    head(out, &title, &["name", "status", "done", "size", "ratio", "down", "up", "label"]);
    for torrent in torrents {
        row(
            out,
            &[
                text(&shown(&torrent["name"])),
                status(&torrent["status"], if torrent["error"] == true { &torrent["message"] } else { &Value::Null }),
                format!("{} %", text(&shown(&torrent["progress"]))),
                bytes(&torrent["length"]),
                text(&shown(&torrent["ratio"])),
                rate(&torrent["download_rate"]),
                rate(&torrent["upload_rate"]),
                text(&shown(&torrent["label"])),
            ],
        );
    }
    *out += "</tbody></table>\n";
    let count = torrents.len() as u64;
    if *total > count {
        // A server's name is a slug, so it may stand in an address.
        let more =
            format!("<p>{} more: <a href=\"api/v1/servers/{}/torrents\">all</a></p>\n", total - count, text(&name));
        *out += &more;
    }
}

fn head(out: &mut String, title: &str, columns: &[&str]) {
    *out += &format!("<h2>{}</h2>\n<table><thead><tr>", text(title));
    for column in columns {
        *out += &format!("<th>{}</th>", text(column));
    }
    *out += "</tr></thead><tbody>\n";
}

/// The cells are HTML.
fn row(out: &mut String, cells: &[String]) {
    *out += "<tr>";
    for cell in cells {
        *out += &format!("<td>{cell}</td>");
    }
    *out += "</tr>\n";
}

fn status(status: &Value, problem: &Value) -> String {
    let problem = shown(problem);
    let word = text(&shown(status));
    if problem == "–" || problem.is_empty() {
        word
    } else {
        format!("{word} <span class=\"problem\">{}</span>", text(&problem))
    }
}

/// A value as a text, not yet for HTML; a dash for none.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_f64() else { return text(&shown(value)) };
    let mut number = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if number < 1024.0 {
            let decimals = usize::from(unit != "B" && number < 100.0);
            return format!("{number:.decimals$} {unit}");
        }
        number /= 1024.0;
    }
    format!("{number:.1} PiB")
}

fn rate(value: &Value) -> String {
    if value.is_number() { format!("{}/s", bytes(value)) } else { text(&shown(value)) }
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| text(&shown(value)), |seconds| format!("{seconds:.1} s"))
}

/// Text as HTML that shows it and nothing else, wherever letters from right to left would put what follows.
fn text(plain: &str) -> String {
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
    use serde_json::json;

    use super::*;

    fn rendered(name: &str) -> String {
        let torrent = json!({"name": name, "status": name, "label": name, "message": name, "error": true,
                             "progress": 12.5, "length": 1536, "ratio": null, "download_rate": 0});
        let server = json!({"name": "home", "status": "online", "torrents": 1, "problem": name,
                            "stats": {"client": name}});
        let sink = json!({"name": "b", "status": "offline", "problem": name, "lag_entries": 7});
        page("1", &[Server { server, torrents: vec![torrent], total: 2 }], &[sink])
    }

    #[test]
    fn a_hostile_name_is_shown_and_does_nothing() {
        let page = rendered("<script>alert(1)</script>\"'&\u{202e}\u{0}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;\u{fffd}"), "{page}");
        assert_eq!(page.matches("<script").count(), 1, "our own");
        assert!(page.contains("1.5 KiB") && page.contains("12.5 %") && page.contains("1 more"));
    }

    proptest! {
        /// The tags of a page are the same whatever stands in it.
        #[test]
        fn no_text_makes_a_tag(name in "\\PC{0,40}|[<>&\"'/ a-z!-]{0,40}") {
            let tags = |page: &str| page.matches(['<', '>', '"', '\'', '`']).map(str::to_owned).collect::<String>();
            prop_assert_eq!(tags(&rendered(&format!("x{name}"))), tags(&rendered("x")));
        }
    }
}
