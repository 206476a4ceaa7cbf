//! `dtorrent add`: adds torrents from links and files.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::terminal::server::{ServerChoice, Session, bytes_bar, report_error};
use super::terminal::{print_bytes, print_json};
use super::{CommandResult, Exit, Options, print_message, refused, usage};
use crate::manager::{ManagerError, NewTorrent, Watcher};
use crate::model::{InfoHash, TorrentSource};

/// Maximum size of a .torrent file, the limit of a command.
const TORRENT_BYTES_MAX: u64 = 10 << 20;
/// Interval at which the progress bar is drawn.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The server, if there are several, and magnet links, http(s) links or .torrent files; - for one on stdin
    #[arg(value_name = "[SERVER] SOURCE", required = true)]
    sources: Vec<OsString>,
    #[command(flatten)]
    choice: ServerChoice,
    /// Add without starting
    #[arg(long)]
    stopped: bool,
    /// Set this label
    #[arg(long)]
    label: Option<String>,
    /// Download into this folder, below the server's `roots`
    #[arg(long, value_name = "FOLDER")]
    directory: Option<String>,
    /// Set the priority: 0 off, 1 low, 2 normal, 3 high
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=3))]
    priority: Option<u8>,
    /// Have the client keep this value under this key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = custom_value)]
    custom: Vec<(String, String)>,
    /// Use existing content, below the server's `roots`; every piece is checked before the torrent is added
    #[arg(long, value_name = "PATH")]
    data_file: Option<String>,
    /// Print one JSON object a line, for each added torrent
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { sources, choice, stopped, label, directory, priority, custom, data_file, json } = arguments;
    let session = Session::start(options)?;
    let (server, sources) = session.server(&choice, sources)?;
    if sources.is_empty() {
        return Err(usage("nothing to add; give a magnet link, an http(s) URL or a .torrent file"));
    }
    // All sources are read before any torrent is added, so that a missing file adds none.
    let mut torrents = Vec::with_capacity(sources.len());
    for source in &sources {
        let mut torrent = read(source)?;
        if stopped {
            torrent = torrent.stopped();
        }
        if let Some(label) = &label {
            torrent = torrent.label(label);
        }
        if let Some(directory) = &directory {
            torrent = torrent.directory(directory);
        }
        if let Some(priority) = priority {
            torrent = torrent.priority(priority);
        }
        torrent = custom.iter().fold(torrent, |torrent, (key, value)| torrent.custom(key, value));
        if let Some(data_file) = &data_file {
            torrent = torrent.data_file(data_file);
        }
        torrents.push(torrent);
    }
    session.run(async {
        let (_manager, watcher, _) = session.reach(&server).await?;
        // A failure does not keep the other sources from being added.
        let mut result = Ok(());
        for (source, torrent) in sources.iter().map(|source| source.display().to_string()).zip(torrents) {
            match add_with_progress(&watcher, torrent).await {
                Ok(hash) => {
                    let printed = match json {
                        true => print_json(&json!({"source": source, "hash": hash})),
                        false => print_bytes(format!("{hash}\n").as_bytes()),
                    };
                    match printed {
                        // A closed stdout ends the output only; the other torrents are still added.
                        Ok(()) | Err(Exit::Done) => {}
                        Err(failed) => result = Err(failed),
                    }
                }
                Err(error) => {
                    if sources.len() > 1 {
                        print_message(&format!("{source}:"));
                    }
                    result = Err(report_error(&error));
                }
            }
        }
        result
    })
}

/// Adds a torrent, with a progress bar while its data is checked.
async fn add_with_progress(watcher: &Watcher, torrent: NewTorrent) -> Result<InfoHash, ManagerError> {
    let mut adding = std::pin::pin!(watcher.add(torrent));
    let bar = bytes_bar("checking", 0);
    loop {
        // The timeout only draws the bar: the pinned future continues in the next round.
        if let Ok(added) = tokio::time::timeout(BAR_INTERVAL, &mut adding).await {
            bar.finish_and_clear();
            return added;
        }
        if let Some((read, total)) = watcher.checks().into_iter().next() {
            bar.set_length(total);
            bar.set_position(read);
        }
    }
}

fn custom_value(argument: &str) -> Result<(String, String), &'static str> {
    let (key, value) = argument.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a source: a link by itself, or what the file of this name contains.
fn read(source: &OsStr) -> Result<NewTorrent, Exit> {
    if let Some(torrent) = source.to_str().and_then(from_link) {
        return Ok(torrent);
    }
    // One byte above the limit is read, to detect a larger file.
    let mut bytes = Vec::new();
    let read = match source.as_encoded_bytes() {
        b"-" => std::io::stdin().lock().take(TORRENT_BYTES_MAX + 1).read_to_end(&mut bytes),
        _ => std::fs::File::open(source).and_then(|file| file.take(TORRENT_BYTES_MAX + 1).read_to_end(&mut bytes)),
    };
    let source = source.display();
    match read {
        Err(error) => Err(refused(&format!("read {source}: {error}"))),
        Ok(length) if length as u64 > TORRENT_BYTES_MAX => {
            Err(refused(&format!("{source} is too large to be a .torrent file")))
        }
        Ok(_) => {
            let link = std::str::from_utf8(&bytes).ok().and_then(from_link);
            Ok(link.unwrap_or_else(|| NewTorrent::torrent(bytes)))
        }
    }
}

/// Returns the torrent of a text that is a magnet link or a URL.
fn from_link(text: &str) -> Option<NewTorrent> {
    match TorrentSource::from_link(text)? {
        TorrentSource::Magnet(link) => Some(NewTorrent::magnet(link)),
        TorrentSource::Url(url) => Some(NewTorrent::url(url)),
        TorrentSource::Torrent(_) | TorrentSource::File(_) => None,
    }
}
