//! A port, with a limit on how many are let in at once, how long each may stay, and how much it may say.
//!
//! Without one, whoever reaches the port can hold connections open until this process may open no
//! more files, and then neither clients nor brokers are reached either.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Whoever takes nothing of what is sent to him for so long has to leave, whatever was granted.
const STALL_MAX: Duration = Duration::from_secs(10);

/// What is granted to visitors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    /// Others wait until one of these has left.
    pub visitors: usize,
    /// For all requests of a connection together.
    pub time: Duration,
    /// Of all requests of a connection together.
    pub bytes: usize,
}

pub(super) struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    visit: Visit,
}

impl Door {
    pub(super) fn new(listener: TcpListener, visit: Visit) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(visit.visitors)), visit }
    }
}

impl Listener for Door {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let Visit { visitors: _, time, bytes } = self.visit;
        let leaves = Box::pin(tokio::time::sleep(time));
        let pass = Pass { stays: Arc::default(), bytes_left: Arc::new(AtomicUsize::new(bytes)) };
        (Visitor { stream, leaves, pass, stalled: None, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// By which a request gets more granted to its connection than others.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    stays: Arc<AtomicBool>,
    bytes_left: Arc<AtomicUsize>,
}

impl Pass {
    /// It may stay for as long as it takes what is sent to it.
    pub(super) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// It may say so much more.
    pub(super) fn allow(&self, bytes: usize) {
        self.bytes_left.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Door>> for Pass {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().pass.clone()
    }
}

/// A connection that ends by itself.
pub(super) struct Visitor {
    stream: TcpStream,
    leaves: Pin<Box<Sleep>>,
    pass: Pass,
    /// Until when it has to take something.
    stalled: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Visitor {
    /// The stream, unless the visit has lasted long enough.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let is_over = self.leaves.as_mut().poll(context).is_ready();
        if is_over && !self.pass.stays.load(Ordering::Relaxed) {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }

    /// Ends a connection that takes nothing.
    fn unless_stalled<T>(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.stalled = None;
            return sent;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_MAX)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = self.stream(context)?.poll_read(context, buffer);
        let said = buffer.filled().len() - before;
        let take = |left: usize| left.checked_sub(said);
        match self.pass.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => poll,
            Err(_) => Poll::Ready(Err(ErrorKind::FileTooLarge.into())),
        }
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = self.stream(context)?.poll_write(context, bytes);
        self.unless_stalled(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    const VISIT: Visit = Visit { visitors: 8, time: Duration::from_secs(30), bytes: 100 };

    #[tokio::test(start_paused = true)]
    async fn idle_visitors_take_only_so_many_places_and_have_to_leave() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = Door::new(listener, VISIT);
        let mut idle = Vec::new();
        let mut inside = Vec::new();
        for _ in 0..VISIT.visitors {
            idle.push(TcpStream::connect(address).await.unwrap());
            inside.push(door.accept().await.0);
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(b"x").await.unwrap();
        assert_eq!(door.places.available_permits(), 0, "the next one waits");
        let told_to_leave = inside.pop().unwrap().read_u8().await.unwrap_err();
        assert_eq!(told_to_leave.kind(), ErrorKind::TimedOut);
        let (mut visitor, _) = door.accept().await;
        assert_eq!(visitor.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_stay_stays_until_he_takes_nothing_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = Door::new(listener, VISIT);
        let mut viewer = TcpStream::connect(address).await.unwrap();
        let mut visitor = door.accept().await.0;
        visitor.pass.stay();
        visitor.pass.allow(100);
        tokio::time::advance(2 * VISIT.time).await;
        visitor.write_all(b"x").await.unwrap();
        assert_eq!(viewer.read_u8().await.unwrap(), b'x');
        viewer.write_all(&[b'x'; 200]).await.unwrap();
        visitor.read_exact(&mut [0; 200]).await.unwrap();
        let failure = loop {
            if let Err(failure) = visitor.write_all(&[b'x'; 1 << 20]).await {
                break failure;
            }
        };
        assert_eq!(failure.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_visitor_who_says_too_much_is_not_listened_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = Door::new(listener, VISIT);
        let mut talker = TcpStream::connect(address).await.unwrap();
        let mut visitor = door.accept().await.0;
        talker.write_all(&[b'x'; 100]).await.unwrap();
        visitor.read_exact(&mut [0; 100]).await.unwrap();
        talker.write_all(b"x").await.unwrap();
        assert_eq!(visitor.read_u8().await.unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}
