//! `dtorrent limits`: shows or sets the rate limits of a server.

use clap::Args;
use serde_json::json;

use super::terminal::server::{ServerChoice, Session, report_error};
use super::terminal::{human, print_json, print_text};
use super::{CommandResult, Options};
use crate::model::{Limits, parse_bytes};

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The server, if there are several
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    /// Set the download limit: bytes a second, like 500KiB; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download: Option<u64>,
    /// Set the upload limit: bytes a second, like 500KiB; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload: Option<u64>,
    /// Print the limits as JSON, in bytes a second
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { server, download, upload, json } = arguments;
    let session = Session::start(options)?;
    let (server, _) = session.server(&ServerChoice { server }, Vec::<String>::new())?;
    session.run(async {
        let (_manager, watcher, _) = session.reach(&server).await?;
        if download.is_some() || upload.is_some() {
            watcher.limits(Limits { download, upload }).await.map_err(|error| report_error(&error))?;
        }
        let stats = watcher.status().stats.server;
        let (download, upload) = (download.or(stats.download_limit), upload.or(stats.upload_limit));
        if json {
            return print_json(&json!({"download_limit": download, "upload_limit": upload}));
        }
        let shown = |limit: Option<u64>| match limit {
            None => "not known".to_owned(),
            Some(0) => "no limit".to_owned(),
            Some(rate) => human::rate(Some(rate)),
        };
        print_text(&format!("download  {}\nupload    {}\n", shown(download), shown(upload)))
    })
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = parse_bytes(text.trim_end().trim_end_matches("/s"));
    rate.ok_or_else(|| "a number of bytes, or like 500KiB or 2MB".to_owned())
}
