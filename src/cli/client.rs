//! `dtorrent client check`: whether a program will do as a client.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::terminal::put;
use super::{Exit, tell};
use crate::clients::exec::{ExecClient, Settings};
use crate::config::{Log, LogFormat};
use crate::model::{InfoHash, ServerName, printable};
use crate::telemetry;
use crate::testing::conformance::{self, Finding, Verdict};

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// Try out a program that is to be a client, and print what works, what is missing and what is broken
    Check(CheckArguments),
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// A torrent of it that may be paused and resumed
    #[arg(long, value_name = "HASH")]
    torrent: Option<InfoHash>,
    /// How long an answer may take, and an effect to show
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

pub fn run(arguments: Arguments) -> Exit {
    let Arguments::Check(CheckArguments { torrent, timeout, command }) = arguments;
    let log = Log { level: Some(tracing::Level::WARN), format: LogFormat::Pretty };
    if let Err(error) = telemetry::start(log) {
        tell(&format!("dtorrent client check: {error:#}"));
        return Exit::Failed;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&format!("dtorrent client check: start the runtime: {error}"));
            return Exit::Failed;
        }
    };
    let server = ServerName::parse("check").expect("it is a slug");
    let client = ExecClient::new(Settings { server, command, timeout });
    let options = conformance::Options { may_act_on: torrent, patience: timeout };
    let findings = runtime.block_on(conformance::client(&client, &options));
    let said = put(report(&findings).as_bytes());
    let is_broken = findings.iter().any(|finding| matches!(finding.verdict, Verdict::Broken(_)));
    if is_broken { Exit::Failed } else { said.map_or_else(|exit| exit, |()| Exit::Done) }
}

fn report(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{}\n", printable(finding.to_string().as_bytes()))).collect()
}
