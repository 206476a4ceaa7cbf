//! NATS: what the contract promises there, on Debian's nats-server and on a current one.

mod bridge;

use std::path::Path;

use crate::harness::Setup;
use crate::harness::nats::NatsServer;

/// A second broker beside the MQTT one, with more lines.
fn bus(server: &NatsServer, lines: &str) -> Setup {
    bus_at(&server.url(), lines)
}

fn bus_at(url: &str, lines: &str) -> Setup {
    let sink = format!("[brokers.bus]\nkind = \"nats\"\nurl = \"{url}\"\n{lines}\n");
    Setup { sink, ..Setup::default() }
}

/// `2.9.10`, for what a test says.
fn version(program: &Path) -> String {
    let output = std::process::Command::new(program).arg("--version").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
