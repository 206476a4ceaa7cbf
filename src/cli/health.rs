//! `dtorrent health`: asks the running bridge whether it is alive.
//!
//! For health checks in an image that has no shell and no curl. One plain HTTP exchange within a
//! deadline; only the status line of the answer counts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{Exit, Options, tell};

const LIMIT: Duration = Duration::from_secs(5);
const STATUS_LINE_BYTES_MAX: usize = 256;

pub fn run(options: Options) -> Exit {
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let Some(address) = loaded.config.http.address() else {
        tell("http.listen is off, so nobody can be asked; set it to an address, 127.0.0.1:8787");
        return Exit::Usage;
    };
    match ask(address) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&format!("{error:#}"));
            Exit::Failed
        }
    }
}

fn ask(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect to {address}"))?;
    stream.set_write_timeout(Some(LIMIT)).context("set a time limit")?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("ask")?;
    let mut line = Vec::new();
    let mut buffer = [0; STATUS_LINE_BYTES_MAX];
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer from {address} within {LIMIT:?}");
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
    bail!("{address} says it is not well: {}", String::from_utf8_lossy(line))
}
