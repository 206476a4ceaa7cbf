//! A TCP proxy that cuts, stalls, refuses, truncates or forges.
//!
//! Each direction has a [`Mode`], which may be changed while connections are open. Held bytes are buffered, not lost:
//! neither side notices, as with a silently dropped connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The treatment of the bytes of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Passes this many bytes of each connection, then closes it.
    Bytes(u64),
    /// Holds every byte, and closes nothing.
    Hold,
    /// Holds the first MQTT packet of this type, and everything after it.
    HoldPackets(u8),
    /// Holds the first NATS message whose subject contains this text, and everything after it.
    HoldPublishes(&'static str),
    /// Replaces everything by these bytes, then closes the connection.
    Say(Bytes),
    /// Closes a connection in place of passing on an MQTT packet that contains this text.
    CloseOver(&'static str),
    /// Replaces one reason code of PUBACK (MQTT 5) by another, without changing what the broker did.
    Reason {
        instead_of: u8,
        say: u8,
    },
}

pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
/// A packet type that no packet has.
const NONE: u8 = 0;

pub struct Proxy {
    pub address: SocketAddr,
    cut: watch::Sender<()>,
    requests: watch::Sender<Mode>,
    answers: watch::Sender<Mode>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Closes each new connection at once.
    is_refusing: AtomicBool,
    opened: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

/// An open connection, counted until its near side ends.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.opened.fetch_add(1, Ordering::SeqCst);
        let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_open.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        Self::start(target, false).await
    }

    /// Starts a proxy to a broker on this machine. Only whole packets are passed on, so that single ones can be held.
    pub async fn to_broker(port: u16) -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], port)), true).await
    }

    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    async fn start(target: SocketAddr, is_mqtt: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(());
        let (requests, request_mode) = watch::channel(Mode::Pass);
        let (answers, answer_mode) = watch::channel(Mode::Pass);
        let shared = Arc::new(Shared::default());
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if of_task.is_refusing.load(Ordering::SeqCst) {
                    continue;
                }
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                let (request_mode, answer_mode) = (request_mode.clone(), answer_mode.clone());
                // A connection that was closed before this one was opened must not be counted as open.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let counted = Counted::new(&of_task);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        biased; // what is cut passes nothing on, though its mode may be free by now
                        _ = cuts.changed() => {}
                        () = pass(near, far, request_mode, answer_mode, counted, is_mqtt) => {}
                    }
                });
            }
        });
        Self { address, cut, requests, answers, shared, task }
    }

    /// Closes all open connections without a DISCONNECT.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Closes all connections and refuses new ones until [`Self::admit`].
    pub fn refuse(&self) {
        self.shared.is_refusing.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub fn admit(&self) {
        self.shared.is_refusing.store(false, Ordering::SeqCst);
    }

    /// Sets the mode of the bytes from the near side.
    pub fn requests(&self, mode: Mode) {
        self.requests.send_replace(mode);
    }

    /// Sets the mode of the bytes from the server.
    pub fn answers(&self, mode: Mode) {
        self.answers.send_replace(mode);
    }

    /// Passes this many bytes of each connection's answers from now on, then closes it.
    pub fn truncate_answers(&self, bytes: u64) {
        self.answers(Mode::Bytes(bytes));
    }

    /// Returns the number of connections opened.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// Returns the maximum number of simultaneous connections.
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// Resets the counters.
    pub fn reset_most_open(&self) {
        self.shared.most_open.store(self.shared.open.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

async fn pass(
    near: TcpStream,
    far: TcpStream,
    request_mode: watch::Receiver<Mode>,
    answer_mode: watch::Receiver<Mode>,
    counted: Counted,
    is_mqtt: bool,
) {
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let forward = async {
        if relay(from_near, to_far, request_mode, is_mqtt).await {
            drop(counted);
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = forward => {}
        _ = relay(from_far, to_near, answer_mode, is_mqtt) => {}
    }
}

/// Copies bytes until one side ends, which returns `true`, or the mode ends the connection.
async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    is_mqtt: bool,
) -> bool {
    let (mut passed, mut held, mut has_ended) = (0, BytesMut::new(), false);
    loop {
        let current = mode.borrow_and_update().clone();
        let may_go = match &current {
            Mode::Pass if is_mqtt && !has_ended => before_packet(&held, NONE),
            Mode::Reason { .. } => before_packet(&held, NONE),
            Mode::CloseOver(text) if memchr::memmem::find(&held, text.as_bytes()).is_some() => 0,
            Mode::CloseOver(_) => before_packet(&held, NONE),
            Mode::Pass => held.len(),
            Mode::Bytes(limit) => held.len().min(usize::try_from(limit.saturating_sub(passed)).unwrap_or(usize::MAX)),
            Mode::Hold | Mode::Say(_) => 0,
            Mode::HoldPackets(kind) => before_packet(&held, *kind),
            Mode::HoldPublishes(word) => before_publish(&held, word),
        };
        if let Mode::Reason { instead_of, say } = current {
            reword(&mut held[..may_go], instead_of, say);
        }
        if to.write_all(&held[..may_go]).await.is_err() {
            return false;
        }
        held.advance(may_go);
        passed += may_go as u64;
        let is_over = match &current {
            Mode::Bytes(limit) => passed >= *limit && (!held.is_empty() || has_ended),
            Mode::CloseOver(_) => may_go == 0 && before_packet(&held, NONE) > 0,
            Mode::Say(words) if !held.is_empty() => {
                drop(to.write_all(words).await);
                true
            }
            _ => false,
        };
        if is_over {
            return false;
        }
        if has_ended && held.is_empty() {
            drop(to.shutdown().await);
            return true;
        }
        tokio::select! {
            read = from.read_buf(&mut held), if !has_ended => has_ended = read.unwrap_or(0) == 0,
            changed = mode.changed() => if changed.is_err() { return false },
        }
    }
}

/// Returns the number of bytes before the first MQTT packet of this type; only whole packets count.
fn before_packet(bytes: &[u8], kind: u8) -> usize {
    let mut start = 0;
    while let Some(length) = packet_length(&bytes[start..]) {
        if bytes[start] >> 4 == kind || start + length > bytes.len() {
            break;
        }
        start += length;
    }
    start
}

/// Returns the number of bytes before the first NATS message on such a subject. Only whole operations count, because one
/// may arrive in several reads.
fn before_publish(bytes: &[u8], word: &str) -> usize {
    let mut start = 0;
    while let Some(end) = bytes[start..].windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&bytes[start..start + end]);
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let mut length = end + 2;
        if let ["PUB" | "HPUB", subject, .., size] = words[..] {
            if subject.contains(word) {
                break;
            }
            length += size.parse::<usize>().unwrap() + 2;
        }
        if start + length > bytes.len() {
            break;
        }
        start += length;
    }
    start
}

/// Replaces the reason code of each PUBACK that has this one.
fn reword(packets: &mut [u8], instead_of: u8, say: u8) {
    let mut start = 0;
    while let Some(length) = packet_length(&packets[start..]) {
        let packet = &mut packets[start..start + length];
        if packet[0] >> 4 == PUBACK && packet.get(4) == Some(&instead_of) {
            packet[4] = say;
        }
        start += length;
    }
}

pub fn packet_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (index, byte) in bytes.get(1..)?.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(length + index + 2);
        }
    }
    None
}
