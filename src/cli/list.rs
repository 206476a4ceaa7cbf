//! `dtorrent list`: prints the torrents of servers as a table.

use std::cmp::Reverse;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::terminal::select::Conditions;
use super::terminal::server::{Session, exit_for_client_error, with_spinner};
use super::terminal::table::{Cell, Column, table};
use super::terminal::{human, paint, print_json_text, print_text, width};
use super::{CommandResult, Exit, Options, print_message, usage};
use crate::app;
use crate::model::{ServerName, Torrent, printable};
use crate::port::{ClientError, Clock as _, Scope, SystemClock};

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// List only these servers [default: all]
    servers: Vec<String>,
    #[command(flatten)]
    conditions: Conditions,
    /// List only torrents whose name matches a pattern like '*.iso'
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Set the sort key
    #[arg(long, value_enum, default_value_t = Order::Name)]
    sort: Order,
    /// Reverse the order
    #[arg(long)]
    reverse: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    Name,
    Size,
    Progress,
    Rate,
    Ratio,
    Added,
}

const COLUMNS: [Column; 12] = [
    Column::left("SERVER", 3),
    Column::left("HASH", 1),
    Column::left("STATUS", 2),
    Column::left("ERROR", 2),
    Column::right("DONE", 4),
    Column::right("SIZE", 5),
    Column::right("DOWN", 6),
    Column::right("UP", 7),
    Column::right("ETA", 9),
    Column::right("RATIO", 10),
    Column::left("LABEL", 8),
    Column::left("NAME", 0),
];

pub(super) fn run(options: Options, arguments: &Arguments) -> CommandResult {
    let Arguments { servers, conditions, name, sort, reverse, json } = arguments;
    let session = Session::start(options)?;
    let servers = session.servers(servers)?;
    let filter = conditions.filter(name.as_deref()).map_err(|error| usage(&error))?;
    let (torrents, result) = session.run(with_spinner("reading", read_all(&session, &servers)));
    let now = SystemClock.now();
    let mut found: Vec<&Torrent> = torrents.iter().filter(|torrent| filter.matches(torrent, now)).collect();
    // The sorts are stable, so this is the order of torrents that are equal in the chosen one.
    found.sort_by_key(|torrent| torrent.name.to_lowercase());
    let rate = |torrent: &Torrent| torrent.download_rate.unwrap_or(0) + torrent.upload_rate.unwrap_or(0);
    match sort {
        Order::Name => {}
        Order::Size => found.sort_by_key(|torrent| Reverse(torrent.length)),
        Order::Progress => found.sort_by(|a, b| b.progress.total_cmp(&a.progress)),
        Order::Rate => found.sort_by_key(|torrent| Reverse(rate(torrent))),
        Order::Ratio => found.sort_by(|a, b| b.ratio.unwrap_or(0.0).total_cmp(&a.ratio.unwrap_or(0.0))),
        Order::Added => found.sort_by_key(|torrent| Reverse(torrent.added_at)),
    }
    if *reverse {
        found.reverse();
    }
    if *json {
        let lines: Vec<String> =
            found.iter().map(|torrent| serde_json::to_string(torrent).expect("a torrent is plain JSON")).collect();
        print_json_text(&format!("[{}]", lines.join(",\n")))?;
    } else if !found.is_empty() {
        let rows: Vec<Vec<Cell>> = found.iter().map(|torrent| row(torrent, servers.len() > 1)).collect();
        print_text(&table(&COLUMNS, &rows, width()))?;
    }
    result
}

/// Returns the torrents of the servers that answered, and the exit code of one that did not.
async fn read_all(session: &Session, servers: &[ServerName]) -> (Vec<Torrent>, CommandResult) {
    let read = |name: ServerName| async move {
        let server = &session.config.servers[&name];
        let client = app::client(&server.client).map_err(|error| (format!("{error:#}"), Exit::Usage))?;
        let failed = |error: ClientError| {
            let exit = exit_for_client_error(&error);
            (format!("{:#}", anyhow::Error::new(error)), exit)
        };
        let listing = client.list(Scope::Full).await.map_err(failed)?;
        // A partial listing would show torrents as missing (I2).
        if !listing.complete {
            return Err(("the listing is incomplete; try again".to_owned(), Exit::Failed));
        }
        Ok(listing.torrents.into_values().map(|observed| observed.torrent).collect::<Vec<_>>())
    };
    // All at once, so that servers that do not answer cost one timeout in total.
    let answers = futures_util::future::join_all(servers.iter().cloned().map(read)).await;
    let (mut torrents, mut result) = (Vec::new(), Ok(()));
    for (name, answer) in servers.iter().zip(answers) {
        match answer {
            Ok(all) => torrents.extend(all),
            Err((reason, exit)) => {
                print_message(&format!("server {name}: {reason}"));
                result = Err(exit);
            }
        }
    }
    (torrents, result)
}

fn row(torrent: &Torrent, shows_server: bool) -> Vec<Cell> {
    let Torrent { hash, name, server, status, error, progress, length, ratio, eta, label, .. } = torrent;
    let server = if shows_server { server.to_string() } else { String::new() };
    let text = |text: &str| Cell::from(printable(text.as_bytes()));
    let eta = eta.map(|seconds| human::duration(Duration::from_secs(seconds))).unwrap_or_default();
    vec![
        Cell::from(server),
        // Eight digits distinguish torrents, and are a valid selector.
        Cell::painted(hash.to_string()[..8].to_owned(), paint::FAINT),
        Cell::painted(status.as_str(), paint::status(*status)),
        // The message is as long as a tracker likes, so it is shown by `show`.
        Cell::painted(if *error { "yes" } else { "" }, paint::BAD),
        Cell::from(format!("{progress:.1}%")),
        Cell::from(human::bytes(*length)),
        Cell::from(human::rate(torrent.download_rate)),
        Cell::from(human::rate(torrent.upload_rate)),
        Cell::from(eta),
        Cell::from(ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
        text(label.as_deref().unwrap_or_default()),
        text(name),
    ]
}
