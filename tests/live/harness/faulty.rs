//! A web server in front of an rTorrent, which loses answers: on request, or at random.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// What happens to one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The request waits, and is carried out when its sender has given up.
    DelayRequest,
    /// The request is carried out, and the answer comes when its sender has given up.
    DelayAnswer,
    /// The request is not carried out, and no answer comes.
    SwallowRequest,
    /// The request is carried out, and no answer comes.
    SwallowAnswer,
    /// The connection is closed before the request is carried out.
    CutRequest,
    /// The connection is closed after the request was carried out.
    CutAnswer,
    /// Half of the answer comes, then the connection is closed.
    CutInAnswer,
    /// The web server gives up, and the request is not carried out.
    GatewayTimeoutBefore,
    /// The web server gives up, and the request is carried out.
    GatewayTimeoutAfter,
    /// rTorrent is killed in place of carrying out the request.
    Kill,
}

/// The faults that lose a single answer.
pub const LOSSES: [Fault; 9] = [
    Fault::DelayRequest,
    Fault::DelayAnswer,
    Fault::SwallowRequest,
    Fault::SwallowAnswer,
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::CutInAnswer,
    Fault::GatewayTimeoutBefore,
    Fault::GatewayTimeoutAfter,
];

pub struct FaultyServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    target: SocketAddr,
    /// Longer than the sender waits.
    delay: Duration,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// Exchanges of a hundred that have a fault.
    percent: u32,
    /// The fault of the next exchanges that contain a text, and of how many.
    planned: Option<(&'static str, Fault, usize)>,
    /// The process to kill.
    victim: Option<u32>,
    counts: BTreeMap<Fault, usize>,
}

impl FaultyServer {
    /// Starts a server whose senders give up an exchange after `timeout`.
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    pub async fn to(target: SocketAddr, timeout: Duration, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            percent: 0,
            planned: None,
            victim: None,
            counts: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { target, delay: timeout * 3 / 2, state: Mutex::new(state) });
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&of_task);
                tokio::spawn(async move {
                    // Either side may close at any time.
                    shared.exchange(near).await.ok();
                });
            }
        });
        Self { address, shared, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}/RPC2", self.address)
    }

    /// Makes so many of a hundred exchanges fail, each in a way chosen at random.
    pub fn fail_at_random(&self, percent: u32) {
        self.shared.state.lock().unwrap().percent = percent;
    }

    /// Makes the next `times` exchanges whose request contains `text` fail.
    pub fn fail_next(&self, text: &'static str, fault: Fault, times: usize) {
        self.shared.state.lock().unwrap().planned = Some((text, fault, times));
    }

    /// Sets the process that [`Fault::Kill`] kills.
    pub fn set_victim(&self, process: u32) {
        self.shared.state.lock().unwrap().victim = Some(process);
    }

    /// Returns how often an exchange had this fault.
    pub fn count(&self, fault: Fault) -> usize {
        self.shared.state.lock().unwrap().counts.get(&fault).copied().unwrap_or(0)
    }

    /// Returns how often each fault happened.
    pub fn counts(&self) -> BTreeMap<Fault, usize> {
        self.shared.state.lock().unwrap().counts.clone()
    }

    /// Waits until an exchange had this fault `times` times.
    pub async fn wait_for(&self, fault: Fault, times: usize) {
        let deadline = Instant::now() + TIMEOUT;
        while self.count(fault) < times {
            assert!(Instant::now() < deadline, "no request that is to be met with {fault:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn exchange(&self, mut near: TcpStream) -> std::io::Result<()> {
        const GATEWAY_TIMEOUT: &[u8] =
            b"HTTP/1.1 504 Gateway Time-out\r\nContent-Type: text/html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let body = read_body(&mut near).await?;
        let fault = self.fault_of(&body);
        match fault {
            Some(Fault::CutRequest) => return Ok(()),
            Some(Fault::SwallowRequest) => return until_closed(&mut near).await,
            Some(Fault::GatewayTimeoutBefore) => return near.write_all(GATEWAY_TIMEOUT).await,
            Some(Fault::DelayRequest) => tokio::time::sleep(self.delay).await,
            Some(Fault::Kill) => return self.kill(),
            _ => {}
        }
        let answer = self.carry_out(&body).await?;
        match fault {
            Some(Fault::CutAnswer) => return Ok(()),
            Some(Fault::CutInAnswer) => return near.write_all(&answer[..answer.len() / 2]).await,
            Some(Fault::SwallowAnswer) => return until_closed(&mut near).await,
            Some(Fault::GatewayTimeoutAfter) => return near.write_all(GATEWAY_TIMEOUT).await,
            Some(Fault::DelayAnswer) => tokio::time::sleep(self.delay).await,
            _ => {}
        }
        near.write_all(&answer).await
    }

    fn fault_of(&self, body: &[u8]) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let State { rng, percent, planned, counts, .. } = &mut *state;
        let fault = match planned {
            Some((text, fault, times)) if *times > 0 && memchr::memmem::find(body, text.as_bytes()).is_some() => {
                *times -= 1;
                Some(*fault)
            }
            _ if rng.random_range(0..100) < *percent => Some(LOSSES[rng.random_range(0..LOSSES.len())]),
            _ => None,
        };
        if let Some(fault) = fault {
            *counts.entry(fault).or_default() += 1;
        }
        fault
    }

    fn kill(&self) -> std::io::Result<()> {
        let victim = self.state.lock().unwrap().victim.expect("the test has named a process");
        std::process::Command::new("kill").args(["-9", &victim.to_string()]).status().map(drop)
    }

    /// Has rTorrent carry out a request, and returns the answer as HTTP.
    async fn carry_out(&self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut far = TcpStream::connect(self.target).await?;
        let headers = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
        far.write_all(format!("{}:{headers},", headers.len()).as_bytes()).await?;
        far.write_all(body).await?;
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await?;
        let rest = answer.strip_prefix(b"Status: 200 OK\r\n".as_slice()).unwrap_or_default();
        Ok([b"HTTP/1.1 200 OK\r\nConnection: close\r\n".as_slice(), rest].concat())
    }
}

/// Reads one request of HTTP, and returns its body.
async fn read_body(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (start, length) = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        break (end + 4, length);
    };
    let mut body = bytes.split_off(start);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(body)
}

async fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map(drop)
}
