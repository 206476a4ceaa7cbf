//! `dtorrent health`: requests `/healthz` from the running bridge.
//!
//! Made for health checks in an image that has no shell and no curl. One plain HTTP exchange within a deadline; only the
//! status line of the answer counts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{CommandResult, Options, failed, usage};

/// Maximum time for the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of a status line. An answer that is not HTTP may have no line break.
const STATUS_LINE_BYTES_MAX: usize = 256;

pub(super) fn run(options: Options) -> CommandResult {
    let address = options.load_or_report()?.http.address();
    let address = address.ok_or_else(|| usage("http.listen is off; set it to an address, such as 127.0.0.1:8787"))?;
    ask(address).map_err(failed)
}

fn ask(address: SocketAddr) -> anyhow::Result<()> {
    // One deadline for the whole exchange: a read timeout alone would start again with each byte of a slow answer.
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connect to {address}"))?;
    stream.set_write_timeout(Some(TIMEOUT)).context("set a time limit")?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("send the request")?;
    let mut line = Vec::new();
    let mut buffer = [0; STATUS_LINE_BYTES_MAX];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer from {address} within {TIMEOUT:?}");
        }
        stream.set_read_timeout(Some(left)).context("set a time limit")?;
        match stream.read(&mut buffer).with_context(|| format!("no answer from {address}"))? {
            0 => break,
            count => line.extend_from_slice(&buffer[..count]),
        }
    }
    let line = line.split(|b| *b == b'\r' || *b == b'\n').next().unwrap_or_default();
    if line.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    bail!("{address} is unhealthy: {}", String::from_utf8_lossy(line))
}
