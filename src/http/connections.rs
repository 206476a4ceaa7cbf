//! A listener that bounds how many connections are open, how long each lasts and how much each may send.
//!
//! Without these bounds anybody who reaches the port could hold connections open until the process has no file
//! descriptors left, and could then reach neither clients nor brokers.
//!
//! Where all places are taken, the oldest connection of the peer with most of them makes room for a new one, unless
//! a long request is on it. So a health check is answered, however many connections others hold open.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Maximum time for which a peer may read nothing of what is sent to it. No permit lifts this limit.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Open connections at once; a further one takes the place of another.
    pub connections: usize,
    /// Duration of a connection, for all of its requests together.
    pub time: Duration,
    /// Bytes that a connection may send, in all of its requests together.
    pub bytes: usize,
}

/// A TCP listener that enforces [`Limits`].
pub(super) struct ConnectionLimit {
    listener: TcpListener,
    open: Arc<OpenConnections>,
    limits: Limits,
}

/// The open connections, by the order in which they were accepted.
#[derive(Default)]
struct OpenConnections(Mutex<BTreeMap<u64, OpenConnection>>);

struct OpenConnection {
    peer: IpAddr,
    permit: Permit,
    close: CancellationToken,
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, OpenConnection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, and closes another if there are more than `max` then.
    fn add(self: &Arc<Self>, connection: OpenConnection, max: usize) -> Place {
        let mut open = self.lock();
        let id = open.last_key_value().map_or(0, |(last, _)| last + 1);
        open.insert(id, connection);
        if open.len() > max
            && let Some(victim) = oldest_of_the_largest(&open)
            && let Some(closed) = open.remove(&victim)
        {
            closed.close.cancel();
        }
        Place { id, open: Arc::clone(self) }
    }
}

/// Returns the oldest connection without a long request, of the peer with most of these.
fn oldest_of_the_largest(open: &BTreeMap<u64, OpenConnection>) -> Option<u64> {
    let evictable = || open.iter().filter(|(_, connection)| !connection.permit.is_unlimited());
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for (_, connection) in evictable() {
        *counts.entry(connection.peer).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    evictable().find(|(_, connection)| counts.get(&connection.peer) == Some(&most)).map(|(id, _)| *id)
}

/// The place of one connection, which is free again when this is dropped.
struct Place {
    id: u64,
    open: Arc<OpenConnections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
    }
}

impl ConnectionLimit {
    pub(super) fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, open: Arc::default(), limits }
    }
}

impl Listener for ConnectionLimit {
    type Io = Peer;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Peer, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let Limits { connections, time, bytes } = self.limits;
        let deadline = Box::pin(tokio::time::sleep(time));
        let (peer, bytes_left) = (address.ip(), Arc::new(AtomicUsize::new(bytes)));
        let permit = Permit { peer, is_unlimited: Arc::default(), bytes_left };
        let close = CancellationToken::new();
        let closed = Box::pin(close.clone().cancelled_owned());
        let place = self.open.add(OpenConnection { peer, permit: permit.clone(), close }, connections);
        (Peer { stream, deadline, permit, closed, stalled: None, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The limits of one connection, which a request that was authorised may raise.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    peer: IpAddr,
    is_unlimited: Arc<AtomicBool>,
    bytes_left: Arc<AtomicUsize>,
}

impl Permit {
    /// Returns the address that the connection comes from.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    fn is_unlimited(&self) -> bool {
        self.is_unlimited.load(Ordering::Relaxed)
    }

    /// Lifts the time limit, and keeps the connection from making room for another, for as long as the peer reads what is sent to it.
    pub(super) fn lift_time_limit(&self) {
        self.is_unlimited.store(true, Ordering::Relaxed);
    }

    /// Lets the connection send so many more bytes.
    pub(super) fn allow(&self, bytes: usize) {
        self.bytes_left.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, ConnectionLimit>> for Permit {
    fn connect_info(stream: IncomingStream<'_, ConnectionLimit>) -> Self {
        stream.io().permit.clone()
    }
}

/// A connection that fails when it exceeds its limits.
pub(super) struct Peer {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    permit: Permit,
    /// Set while a write is blocked: when the connection is given up.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Ready when the connection has to make room for another.
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Place,
}

impl Peer {
    /// Returns the stream, unless the time of the connection is over.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let is_over = self.deadline.as_mut().poll(context).is_ready();
        if is_over && !self.permit.is_unlimited() {
            return Err(ErrorKind::TimedOut.into());
        }
        if self.closed.as_mut().poll(context).is_ready() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.stream))
    }

    /// Passes on the result of a write, and fails one that has been blocked for too long.
    fn unless_stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_MAX)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Counted below HTTP, so that headers, chunked bodies and pipelined requests count alike.
        let before = buffer.filled().len();
        let poll = self.stream(context)?.poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        let take = |left: usize| left.checked_sub(read);
        match self.permit.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => poll,
            Err(_) => Poll::Ready(Err(ErrorKind::FileTooLarge.into())),
        }
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream(context)?.poll_write(context, bytes);
        self.unless_stalled(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not timed: a TCP stream buffers nothing here, so a flush never waits for the peer.
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMITS: Limits = Limits { connections: 8, time: Duration::from_secs(30), bytes: 100 };

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_bounded_in_number_and_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut limit = ConnectionLimit::new(listener, LIMITS);
        let mut idle = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..LIMITS.connections {
            idle.push(TcpStream::connect(address).await.unwrap());
            accepted.push(limit.accept().await.0);
        }
        accepted[0].permit.lift_time_limit();
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(b"x").await.unwrap();
        let (mut peer, _) = limit.accept().await;
        assert_eq!(peer.read_u8().await.unwrap(), b'x', "it does not wait");
        let ended = accepted[1].read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionAborted, "the oldest that nobody has authorised");
        assert_eq!(limit.open.lock().len(), LIMITS.connections);
        let ended = accepted.pop().unwrap().read_u8().await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::TimedOut);
        drop((accepted, peer));
        assert!(limit.open.lock().is_empty(), "each place is free again");
    }

    #[test]
    fn the_peer_with_most_connections_makes_room() {
        let open = Arc::new(OpenConnections::default());
        let peers = [1, 2, 2, 3, 2, 1].map(|last| IpAddr::from([192, 0, 2, last]));
        let places = peers.map(|peer| {
            let permit = Permit { peer, is_unlimited: Arc::default(), bytes_left: Arc::default() };
            open.add(OpenConnection { peer, permit, close: CancellationToken::new() }, 5)
        });
        assert!(open.lock().keys().eq(&[0, 2, 3, 4, 5]), "the oldest of the second peer");
        drop(places);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permitted_connection_lasts_until_its_peer_stops_reading() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut limit = ConnectionLimit::new(listener, LIMITS);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut peer = limit.accept().await.0;
        peer.permit.lift_time_limit();
        peer.permit.allow(100);
        tokio::time::advance(2 * LIMITS.time).await;
        peer.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        client.write_all(&[b'x'; 200]).await.unwrap();
        peer.read_exact(&mut [0; 200]).await.unwrap();
        let failure = loop {
            if let Err(failure) = peer.write_all(&[b'x'; 1 << 20]).await {
                break failure;
            }
        };
        assert_eq!(failure.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_sends_more_than_its_limit_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut limit = ConnectionLimit::new(listener, LIMITS);
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut peer = limit.accept().await.0;
        client.write_all(&[b'x'; 100]).await.unwrap();
        peer.read_exact(&mut [0; 100]).await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(peer.read_u8().await.unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
