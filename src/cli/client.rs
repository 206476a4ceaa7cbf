//! `dtorrent client check`: runs the conformance suite on a custom client.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::terminal::print_bytes;
use super::{CommandResult, Exit, failed, start_runtime};
use crate::clients::exec::{ExecClient, Settings};
use crate::config::{Log, LogFormat};
use crate::model::{InfoHash, ServerName, printable};
use crate::telemetry::{self, Audit};
use crate::testing::conformance::{self, Finding, Verdict};

#[derive(Debug, Subcommand)]
pub(super) enum Arguments {
    /// Run the conformance suite on a program, and print what works, what is missing and what is broken
    Check(CheckArguments),
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Pause and resume this torrent of the program
    #[arg(long, value_name = "HASH")]
    torrent: Option<InfoHash>,
    /// Set the maximum time for an answer, and for an effect
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

pub(super) fn run(arguments: Arguments) -> CommandResult {
    let Arguments::Check(CheckArguments { torrent, timeout, command }) = arguments;
    let log = Log { level: Some(tracing::Level::WARN), format: LogFormat::Pretty };
    telemetry::start(log, Audit::ByLevel).map_err(failed)?;
    let runtime = start_runtime()?;
    let server = ServerName::parse("check").expect("it is a slug");
    let client = ExecClient::new(Settings { server, command, environment: Vec::new(), timeout });
    let options = conformance::Options { may_act_on: torrent, patience: timeout };
    let findings = runtime.block_on(conformance::client(&client, &options));
    let printed = print_bytes(report(&findings).as_bytes());
    let is_broken = findings.iter().any(|finding| matches!(finding.verdict, Verdict::Broken(_)));
    // A closed stdout must not hide a broken client, so its exit code takes precedence.
    if is_broken { Err(Exit::Failed) } else { printed }
}

fn report(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{}\n", printable(finding.to_string().as_bytes()))).collect()
}
