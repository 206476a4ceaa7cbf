//! `dtorrent limits`: shows or sets the rate limits of a server.

use clap::Args;
use serde_json::json;

use super::terminal::server::{ServerChoice, Session, report_error};
use super::terminal::{human, print_json, print_text};
use super::{CommandResult, Options};
use crate::model::Limits;

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
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().trim_end_matches("/s") {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        _ => return Err("a number of bytes, or like 500KiB or 2MB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a number of bytes, or like 500KiB or 2MB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}
