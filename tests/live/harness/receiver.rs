//! A webhook endpoint that accepts requests, or fails as configured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A received request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Headers by their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Status of the response.
    pub answer: Answer,
}

impl Request {
    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the event in a body of the format `standard`.
    pub fn event(&self) -> Value {
        self.json()["data"].clone()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// This status with one more header, `Name: value`.
    With(u16, String),
    /// Status 204 at once, then an endless body, one byte at a time.
    TakenSlowly,
    /// Status 204 after a delay in which other requests could arrive.
    Late,
    /// No response; the connection stays open.
    Hang,
    /// An endless response header, one byte at a time.
    Drip,
    /// The connection is closed without a response.
    Reset,
    /// This status, and a body larger than a client should read.
    Huge(u16),
    /// A response that is not HTTP.
    Garbage,
    /// This status, and a body of one line that repeats the path and the values of all headers.
    Echo(u16),
}

impl Answer {
    pub fn is_accepted(&self) -> bool {
        matches!(
            self,
            Self::Status(200..=299) | Self::With(200..=299, _) | Self::TakenSlowly | Self::Late | Self::Huge(200..=299)
        )
    }
}

type Decide = Box<dyn FnMut(&Request) -> Answer + Send>;

struct Shared {
    requests: Vec<Request>,
    decide: Decide,
    /// Concurrent requests without a response: now, and at most.
    at_once: usize,
    most_at_once: usize,
}

pub struct Receiver {
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Starts a server that answers 204 to everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let decide: Decide = Box::new(|_| Answer::Status(204));
        let shared = Arc::new(Mutex::new(Shared { requests: Vec::new(), decide, at_once: 0, most_at_once: 0 }));
        #[allow(clippy::disallowed_methods)] // a test's own task
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Answers each further request as `decide` returns.
    pub fn answer(&self, decide: impl FnMut(&Request) -> Answer + Send + 'static) {
        self.shared().decide = Box::new(decide);
    }

    /// Answers the next requests in this order, and all later ones with 204.
    pub fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        let mut answers = answers.into_iter().collect::<Vec<_>>().into_iter();
        self.answer(move |_| answers.next().unwrap_or(Answer::Status(204)));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared().requests.clone()
    }

    /// Returns the maximum number of concurrent requests.
    pub fn most_at_once(&self) -> usize {
        self.shared().most_at_once
    }

    /// Waits until the requests satisfy a condition, and returns them.
    pub async fn until(&self, what: &str, is_so: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let requests = self.requests();
            if is_so(&requests) {
                return requests;
            }
            if Instant::now() >= deadline {
                let received = requests.iter().map(|r| (r.headers.get("webhook-id"), &r.answer)).collect::<Vec<_>>();
                panic!("timed out waiting until {what}; received {received:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until an event of this kind about this torrent was accepted.
    pub async fn wait_for_event(&self, server: &str, kind: &str, name: &str) -> Request {
        let is_it = |request: &Request| {
            let event = request.event();
            request.answer.is_accepted()
                && event["server"] == server
                && event["event_type"] == kind
                && (name.is_empty() || event["torrent"]["name"] == name)
        };
        let what = format!("{kind} {name} of {server} was accepted");
        let requests = self.until(&what, |requests| requests.iter().any(is_it)).await;
        requests.into_iter().find(is_it).unwrap()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(converse(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection, request after request, until it ends.
async fn converse(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut bytes = Vec::new();
    while let Some(mut request) = read(&mut stream, &mut bytes).await {
        let answer = {
            let mut shared = shared.lock().unwrap();
            request.answer = (shared.decide)(&request);
            shared.requests.push(request.clone());
            shared.at_once += 1;
            shared.most_at_once = shared.most_at_once.max(shared.at_once);
            request.answer.clone()
        };
        if answer == Answer::Late {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        shared.lock().unwrap().at_once -= 1;
        let said = match &answer {
            Answer::Echo(status) => echo(&mut stream, *status, &request).await,
            answer => say(&mut stream, answer).await,
        };
        if said.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(bytes, b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    while bytes.len() < head_end + 4 + length {
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
    let rest = bytes.split_off(head_end + 4 + length);
    let body = std::mem::replace(bytes, rest).split_off(head_end + 4);
    Some(Request { method, path, headers, body, answer: Answer::Hang })
}

/// Answers one request. An error ends the connection.
async fn say(stream: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    let over = || Err(std::io::ErrorKind::ConnectionAborted.into());
    match answer {
        Answer::Status(204) | Answer::Late => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await,
        Answer::Status(status) => {
            let text = format!("HTTP/1.1 {status} So\r\nContent-Length: 9\r\n\r\nbecause 1");
            stream.write_all(text.as_bytes()).await
        }
        Answer::With(status, header) => {
            let text = format!("HTTP/1.1 {status} So\r\n{header}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await
        }
        Answer::TakenSlowly => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await?;
            drip(stream, b"x").await
        }
        Answer::Hang => {
            // Until the client closes the connection.
            let _ended = stream.read_u8().await;
            over()
        }
        Answer::Drip => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await?;
            drip(stream, b"x").await
        }
        Answer::Reset => {
            stream.set_zero_linger()?;
            over()
        }
        Answer::Huge(status) => {
            stream.write_all(format!("HTTP/1.1 {status} So\r\nContent-Length: 99999999999\r\n\r\n").as_bytes()).await?;
            loop {
                stream.write_all(&[b'x'; 65536]).await?;
            }
        }
        Answer::Garbage => {
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await?;
            over()
        }
        Answer::Echo(_) => unreachable!("needs the request"),
    }
}

/// Answers with what was asked, on one line: the path and the values of the headers.
async fn echo(stream: &mut TcpStream, status: u16, request: &Request) -> std::io::Result<()> {
    let headers: Vec<&str> = request.headers.values().map(String::as_str).collect();
    let body = format!("no route {} for {}", request.path, headers.join(" "));
    let text = format!("HTTP/1.1 {status} So\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await
}

async fn drip(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    loop {
        stream.write_all(bytes).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
