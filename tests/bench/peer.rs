//! A server that answers like rTorrent 0.9.8 with any number of torrents, all idle.
//!
//! For sizes that a real rTorrent cannot reach: a hundred thousand torrents, fifty servers. It resolves columns and calls
//! by name, so that it serves any combination of them; unknown ones are refused as by rTorrent. One exchange at a time,
//! on a separate thread.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;

use crate::listing::{COLUMNS, Value, hash, number, value, write_xml_rows};

/// Cached answers: rendering one takes longer than reading it.
const ANSWERS_KEPT: usize = 4;
const ANSWER_KEPT_BYTES_MAX: usize = 40 << 20;

/// The received requests.
#[derive(Default)]
pub struct Received {
    /// Times at which all torrents were requested, with the size of each answer in bytes.
    pub listings: Vec<(Instant, usize)>,
    /// Number of requests.
    pub requests: usize,
    /// Number of calls in all requests.
    pub calls: usize,
}

pub struct Peer {
    pub socket: PathBuf,
    received: Arc<Mutex<Received>>,
    is_hanging: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Peer {
    pub fn start(socket: &Path, count: usize) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
        let received = Arc::<Mutex<Received>>::default();
        let (is_hanging, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let mut responder = Responder { count, received: Arc::clone(&received), answers: VecDeque::new() };
        let (hanging, over) = (Arc::clone(&is_hanging), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if hanging.load(Ordering::Relaxed) {
                    unanswered.push(stream);
                } else {
                    // The client may have disconnected.
                    let _is_served = responder.serve(stream).is_ok();
                }
            }
        });
        Ok(Self { socket: socket.to_owned(), received, is_hanging, is_over, thread: Some(thread) })
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Accepts further connections without answering.
    pub fn hang(&self) {
        self.is_hanging.store(true, Ordering::Relaxed);
    }

    pub fn received<T>(&self, read: impl FnOnce(&mut Received) -> T) -> T {
        read(&mut self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the accept loop; a failure means that it has ended.
        let _is_awake = UnixStream::connect(&self.socket).is_ok();
        if let Some(thread) = self.thread.take() {
            let _has_panicked = thread.join().is_err();
        }
    }
}

struct Responder {
    count: usize,
    received: Arc<Mutex<Received>>,
    answers: VecDeque<(Vec<u8>, Arc<String>)>,
}

/// A call of a request: method, and arguments as texts.
struct Call {
    method: String,
    arguments: Vec<String>,
}

impl Responder {
    fn serve(&mut self, mut stream: UnixStream) -> anyhow::Result<()> {
        let request = read_request(&mut stream)?;
        let answer = match self.answers.iter().find(|(known, _)| *known == request) {
            Some((_, answer)) => Arc::clone(answer),
            None => {
                let answer = Arc::new(self.answer(&request));
                if answer.len() > 100_000 && answer.len() < ANSWER_KEPT_BYTES_MAX {
                    self.answers.push_back((request.clone(), Arc::clone(&answer)));
                    while self.answers.len() > ANSWERS_KEPT {
                        self.answers.pop_front();
                    }
                }
                answer
            }
        };
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.requests += 1;
        received.calls += memchr::memmem::find_iter(&request, b"<name>methodName</name>").count().max(1);
        if memchr::memmem::find(&request, b"d.multicall").is_some() {
            received.listings.push((Instant::now(), answer.len()));
        }
        drop(received);
        let header = format!("Status: 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all(header.as_bytes())?;
        stream.write_all(answer.as_bytes())?;
        Ok(())
    }

    fn answer(&self, request: &[u8]) -> String {
        let mut out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>\r\n".to_owned();
        let text = String::from_utf8_lossy(request);
        if !text.starts_with('<') {
            out.push_str("<fault>\r\n<value>");
            write_fault(&mut out, "RPC protocol error: not XML");
            out.push_str("</value>\r\n</fault>\r\n</methodResponse>\r\n");
            return out;
        }
        let (is_multicall, calls) = calls(&text);
        out.push_str("<params>\r\n<param><value>");
        if is_multicall {
            out.push_str("<array><data>\r\n");
        }
        for call in &calls {
            let mut result = String::new();
            let is_known = self.result(&mut result, call);
            match (is_known, is_multicall) {
                (true, true) => {
                    write!(out, "<value><array><data>\r\n<value>{result}</value>\r\n</data></array></value>\r\n")
                        .expect("a string takes everything")
                }
                (true, false) => out.push_str(&result),
                (false, _) => {
                    out.push_str("<value>");
                    write_fault(&mut out, &format!("Method '{}' not defined", call.method));
                    out.push_str("</value>\r\n");
                }
            }
        }
        if is_multicall {
            out.push_str("</data></array>");
        }
        out.push_str("</value></param>\r\n</params>\r\n</methodResponse>\r\n");
        out
    }

    /// Writes the answer of a call; `false` for an unknown method.
    fn result(&self, out: &mut String, call: &Call) -> bool {
        let Call { method, arguments } = call;
        let int = |out: &mut String, int: usize| write!(out, "<i8>{int}</i8>").is_ok();
        let text = |out: &mut String, text: &str| write!(out, "<string>{text}</string>").is_ok();
        match method.as_str() {
            "system.client_version" => text(out, "0.9.8"),
            "system.library_version" => text(out, "0.13.8"),
            "system.api_version" => int(out, 10),
            "system.pid" => int(out, 4711),
            "system.time_seconds" => int(out, 1_795_328_701),
            "network.xmlrpc.size_limit" => int(out, 16 << 20),
            "directory.default" => text(out, "/srv/downloads"),
            "view.size" => int(out, self.count),
            "d.free_diskspace" => int(out, 1 << 40),
            "system.listMethods" => {
                let more = ["d.multicall2", "d.multicall.filtered", "t.multicall", "f.multicall", "view.size"];
                let columns = COLUMNS.iter().map(|column| column.split('=').next().unwrap_or_default());
                out.push_str("<array><data>\r\n");
                for method in columns.chain(more) {
                    write!(out, "<value><string>{method}</string></value>\r\n").expect("a string takes everything");
                }
                out.push_str("</data></array>");
                true
            }
            "d.multicall2" => {
                let columns: Vec<&str> = arguments.iter().skip(2).map(|argument| column(argument)).collect();
                rows(out, |out| write_xml_rows(out, &columns, 0..self.count))
            }
            // All torrents are idle, so no filter matches any.
            "d.multicall.filtered" => rows(out, |_| ()),
            "t.multicall" => rows(out, |out| {
                let columns: Vec<&str> = arguments.iter().skip(2).map(String::as_str).collect();
                out.push_str("<value><array><data>\r\n");
                for column in columns {
                    match column {
                        "t.url=" => {
                            out.push_str("<value><string>https://tracker.example.org/announce</string></value>\r\n")
                        }
                        _ => out.push_str("<value><i8>1</i8></value>\r\n"),
                    }
                }
                out.push_str("</data></array></value>\r\n");
            }),
            "f.multicall" => rows(out, |out| {
                out.push_str("<value><array><data>\r\n<value><string>a.mkv</string></value>\r\n");
                for int in [700_000_000, 2_671, 2_671, 1] {
                    write!(out, "<value><i8>{int}</i8></value>\r\n").expect("a string takes everything");
                }
                out.push_str("</data></array></value>\r\n");
            }),
            method if method.starts_with("throttle.") => int(out, 0),
            method if method.starts_with("d.") => {
                let Some(number) =
                    arguments.first().and_then(|hash| number(hash)).filter(|number| *number < self.count)
                else {
                    return false;
                };
                debug_assert_eq!(arguments[0], hash(number));
                match value(method, number) {
                    Some(Value::Text(value)) => text(out, &value),
                    Some(Value::Int(value)) => write!(out, "<i8>{value}</i8>").is_ok(),
                    None => int(out, 0),
                }
            }
            _ => false,
        }
    }
}

/// A column as written in a request; `cat="$t.multicall=…"` requests the trackers in one text.
fn column(argument: &str) -> &str {
    if argument.starts_with("cat=") { "cat" } else { argument }
}

fn rows(out: &mut String, write: impl FnOnce(&mut String)) -> bool {
    out.push_str("<array><data>\r\n");
    write(out);
    out.push_str("</data></array>");
    true
}

fn write_fault(out: &mut String, text: &str) {
    write!(
        out,
        "<struct>\r\n<member><name>faultCode</name>\r\n<value><i4>-506</i4></value></member>\r\n\
         <member><name>faultString</name>\r\n<value><string>{text}</string></value></member>\r\n</struct>"
    )
    .expect("a string takes everything");
}

fn read_request(stream: &mut UnixStream) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        let count = stream.read(&mut chunk)?;
        anyhow::ensure!(count > 0, "the request ends too early");
        bytes.extend_from_slice(&chunk[..count]);
        let Some(colon) = memchr::memchr(b':', &bytes) else { continue };
        let header_bytes: usize = std::str::from_utf8(&bytes[..colon])?.parse()?;
        let body_at = colon + 1 + header_bytes + 1;
        if bytes.len() < body_at {
            continue;
        }
        let header = String::from_utf8_lossy(&bytes[colon + 1..body_at]).into_owned();
        let length: usize = header.split('\0').nth(1).context("no length")?.parse()?;
        if bytes.len() >= body_at + length {
            return Ok(bytes[body_at..body_at + length].to_vec());
        }
    }
}

/// Parses the calls of a request of the adapter or of a bare client.
fn calls(text: &str) -> (bool, Vec<Call>) {
    let between = |text: &str, from: &str, to: &str| {
        let start = text.find(from)? + from.len();
        Some(text[start..start + text[start..].find(to)?].to_owned())
    };
    let arguments = |text: &str| {
        let values = text.split("<value>").skip(1).filter(|value| !value.starts_with("<array>"));
        values.filter_map(|value| between(value, ">", "</")).map(|value| unescaped(&value)).collect()
    };
    let method = between(text, "<methodName>", "</methodName>").unwrap_or_default();
    if method != "system.multicall" {
        return (false, vec![Call { arguments: arguments(text), method }]);
    }
    let calls = text.split("<name>methodName</name><value><string>").skip(1).map(|call| {
        let (method, rest) = call.split_once("</string>").unwrap_or((call, ""));
        let rest = rest.split_once("<name>params</name>").map_or("", |(_, params)| params);
        Call { method: method.to_owned(), arguments: arguments(rest) }
    });
    (true, calls.collect())
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}
