//! `dtorrent health`: requests `/healthz` from the running bridge.
//!
//! Made for health checks in an image that has no shell and no curl. One plain HTTP exchange within a deadline; only the
//! status line of the answer counts. An exchange that is cut off is tried again: a bridge that many connect to closes
//! connections to make room for others.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{CommandResult, Options, failed, usage};

/// Maximum time for all attempts together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Delay between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum length of a status line. An answer that is not HTTP may have no line break.
const STATUS_LINE_BYTES_MAX: usize = 256;

pub(super) fn run(options: Options) -> CommandResult {
    let address = options.load_or_report()?.http.address();
    let address = address.ok_or_else(|| usage("http.listen is off; set it to an address, such as 127.0.0.1:8787"))?;
    ask(address).map_err(failed)
}

fn ask(address: SocketAddr) -> anyhow::Result<()> {
    // One deadline for everything: a read timeout alone would start again with each byte of a slow answer.
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match status_line(address, deadline) {
            Ok(line) if line.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(line) if !line.is_empty() => bail!("{address} is unhealthy: {line}"),
            // Closed before an answer: to make room, perhaps.
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {}
                ErrorKind::TimedOut | ErrorKind::WouldBlock => bail!("no answer from {address} within {TIMEOUT:?}"),
                _ => return Err(error).with_context(|| format!("no answer from {address}")),
            },
        }
        if Instant::now() + RETRY_INTERVAL > deadline {
            bail!("no answer from {address}: it closes each connection");
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// Returns the first line of the answer; it is empty if the connection was closed before.
fn status_line(address: SocketAddr, deadline: Instant) -> io::Result<String> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut line = Vec::new();
    let mut buffer = [0; STATUS_LINE_BYTES_MAX];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES_MAX {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => line.extend_from_slice(&buffer[..count]),
        }
    }
    let line = line.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}
