//! A plain HTTP client that can send malformed requests.

use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends one request. A header `Host` is added unless one is given; HTTP/1.0, so that an answer is not cut in chunks.
async fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> BufReader<TcpStream> {
    ask_over(connect(port).await, port, method, path, headers, body).await
}

async fn ask_over(
    mut stream: TcpStream,
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> BufReader<TcpStream> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
    if headers.iter().all(|(name, _)| *name != "Host") {
        head += &format!("Host: 127.0.0.1:{port}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    // A server that refuses a request early may close before it has read all of it.
    drop(stream.write_all(body).await);
    BufReader::new(stream)
}

async fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "connect: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn head(stream: &mut BufReader<TcpStream>) -> (u16, String) {
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") {
        let count = stream.read_line(&mut headers).await.unwrap();
        assert!(count > 0, "the answer has an end of its head: {headers}");
    }
    (headers.split(' ').nth(1).unwrap().parse().unwrap(), headers.to_lowercase())
}

pub async fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = ask(port, method, path, headers, body).await;
    let whole = async {
        let (status, headers) = head(&mut stream).await;
        let mut body = Vec::new();
        // A server that closes with unread bytes resets the connection.
        drop(stream.read_to_end(&mut body).await);
        Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() }
    };
    timeout(2 * TIMEOUT, whole).await.unwrap_or_else(|_| panic!("no answer to {method} {path}"))
}

pub async fn get(port: u16, path: &str) -> Answer {
    request(port, "GET", path, &[], b"").await
}

/// Polls a page until its body satisfies a condition, and returns the body.
pub async fn get_until(port: u16, path: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = get(port, path).await;
        if answer.status == 200 && is_right(&answer.json()) {
            return answer.json();
        }
        assert!(Instant::now() < deadline, "timed out waiting for {path}: {} {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A server-sent event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    pub id: Option<String>,
    pub kind: Option<String>,
    pub data: Value,
}

/// A client of the event stream.
pub struct Listener {
    stream: BufReader<TcpStream>,
    pub received: Vec<Event>,
}

impl Listener {
    pub async fn listen(port: u16, query: &str, last: Option<&str>) -> Self {
        let headers: Vec<_> = last.map(|last| ("Last-Event-ID", last)).into_iter().collect();
        let mut stream = ask(port, "GET", &format!("/api/v1/events{query}"), &headers, b"").await;
        let (status, headers) = head(&mut stream).await;
        assert_eq!(status, 200);
        assert!(headers.contains("content-type: text/event-stream"), "{headers}");
        Self { stream, received: Vec::new() }
    }

    /// Connects with a receive buffer of a few kilobytes; returns the client's port too.
    pub async fn listen_with_small_buffer(port: u16) -> (Self, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
        let own = stream.local_addr().unwrap().port();
        let mut stream = ask_over(stream, port, "GET", "/api/v1/events", &[], b"").await;
        assert_eq!(head(&mut stream).await.0, 200);
        (Self { stream, received: Vec::new() }, own)
    }

    /// Returns the next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Event> {
        let mut event = Event::default();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut line = String::new();
            // A keep-alive comment does not extend the deadline.
            let read = timeout_at(deadline, self.stream.read_line(&mut line)).await;
            read.unwrap_or_else(|_| panic!("no more events after {:?}", self.received)).ok()?;
            if !line.ends_with('\n') {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("event", kind)) => event.kind = Some(kind.to_owned()),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                Some(_) => {}
                None if event.data.is_null() => {}
                None => {
                    self.received.push(event.clone());
                    return Some(event);
                }
            }
        }
    }

    /// Returns the first event that satisfies a condition.
    pub async fn until(&mut self, is_right: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the stream continues");
            if is_right(&event) {
                return event;
            }
        }
    }

    pub async fn event(&mut self, server: &str, kind: &str) -> Event {
        self.until(|event| event.data["server"] == server && event.data["event_type"] == kind).await
    }
}
