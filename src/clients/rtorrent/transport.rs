//! One exchange with rTorrent: bytes out, bytes in, over SCGI or HTTP.
//!
//! rTorrent blocks while a peer does not read its answer, so an answer is read into memory as fast as it
//! arrives, up to a limit, and a call that is given up closes its connection, which unblocks rTorrent. A
//! connection carries one exchange. The content is for others; that an answer
//! is complete, as long as its header said, is checked here.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{self, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::settings::{Endpoint, Settings};
use crate::connect::{CONNECT_TIMEOUT, connect};
use crate::model::{MemoryShares, error_chain, printable};
use crate::port::ClientError;
use crate::tls::{self, TlsError};

/// Maximum size of a reply header, which has about 80 bytes.
const REPLY_HEADER_BYTES_MAX: usize = 4096;

/// The encoding of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireFormat {
    Xml,
    Json,
}

impl WireFormat {
    fn content_type(self) -> &'static str {
        match self {
            // Modern versions close the connection on `application/xml` without an answer.
            Self::Xml => "text/xml",
            Self::Json => "application/json",
        }
    }
}

/// The transport to one rTorrent.
#[derive(Debug)]
pub(super) struct Transport {
    address: String,
    route: Route,
    /// Maximum size of an answer.
    pub(super) answer_bytes_max: usize,
}

#[derive(Debug)]
enum Route {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
    Http { client: reqwest::Client, url: url::Url, login: Option<(String, SecretString)> },
}

impl Transport {
    pub(super) fn new(settings: &Settings) -> Result<Self, TlsError> {
        let Settings { endpoint, username, password, trust, .. } = settings;
        let route = match endpoint {
            Endpoint::Unix(path) => Route::Unix(path.clone()),
            Endpoint::Scgi { host, port } => Route::Tcp { host: host.clone(), port: *port },
            Endpoint::Http(url) => {
                let client =
                    tls::http_client(url.scheme() == "https", trust, |client| client.pool_max_idle_per_host(1))?;
                let has_login = username.is_some() || password.is_some();
                let login =
                    has_login.then(|| (username.clone().unwrap_or_default(), password.clone().unwrap_or_default()));
                Route::Http { client, url: url.clone(), login }
            }
        };
        let address = printable(settings.endpoint.to_string().as_bytes());
        Ok(Self { address, route, answer_bytes_max: MemoryShares::default().answer })
    }

    /// Sends one request and returns the body of its answer.
    pub(super) async fn exchange(
        &self,
        format: WireFormat,
        body: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let deadline = Instant::now() + limit;
        let exchange = async {
            match &self.route {
                Route::Unix(path) => {
                    let mut stream = self.connect(limit, UnixStream::connect(path)).await?;
                    self.scgi(&mut stream, format, body).await
                }
                Route::Tcp { host, port } => {
                    let mut stream = self.connect(limit, connect(host, *port)).await?;
                    self.scgi(&mut stream, format, body).await
                }
                Route::Http { client, url, login } => {
                    let mut request = client
                        .post(url.clone())
                        .header(header::CONTENT_TYPE, format.content_type())
                        .body(body.to_vec());
                    if let Some((user, password)) = login {
                        request = request.basic_auth(user, Some(password.expose_secret()));
                    }
                    self.http(request, body.len()).await
                }
            }
        };
        tokio::time::timeout_at(deadline, exchange).await.map_err(|_| ClientError::Timeout { limit })?
    }

    async fn connect<S>(
        &self,
        limit: Duration,
        connecting: impl Future<Output = io::Result<S>>,
    ) -> Result<S, ClientError> {
        let connected = tokio::time::timeout(limit.min(CONNECT_TIMEOUT), connecting).await;
        let error = match connected {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(ErrorKind::TimedOut, "no answer to the attempt to connect"),
        };
        let remedy = match error.kind() {
            ErrorKind::NotFound => {
                "there is no such socket: is rTorrent running, with network.scgi.open_local set to this path?"
            }
            ErrorKind::PermissionDenied => {
                "not allowed to write to the socket: give this user (or a common group) write permission on it"
            }
            ErrorKind::ConnectionRefused => "nothing listens there: is rTorrent running?",
            ErrorKind::TimedOut => "no answer to the attempt to connect: is the host right, and no firewall between?",
            _ => return Err(self.unreachable(error)),
        };
        Err(self.unreachable(io::Error::new(error.kind(), remedy)))
    }

    fn unreachable(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), source: source.into() }
    }

    /// The request was sent, and its answer is lost.
    fn broken(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Broken { reason: format!("{}: {reason}", self.address) }
    }

    fn protocol(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol { reason: format!("{}: {reason}", self.address) }
    }

    async fn scgi(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        format: WireFormat,
        body: &[u8],
    ) -> Result<Vec<u8>, ClientError> {
        let broken = |error: io::Error| {
            self.broken(format_args!(
                "the connection broke ({}); rTorrent closes it without an answer when a request is too large or not SCGI",
                error.kind()
            ))
        };
        stream.write_all(&scgi_header(format, body.len())).await.map_err(broken)?;
        stream.write_all(body).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;

        let mut answer = Vec::with_capacity(16 << 10);
        let (body_at, length) = loop {
            if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
                let reason = if answer.is_empty() {
                    "the connection was closed without an answer: does rTorrent's SCGI listen there, and not HTTP?"
                } else {
                    "the answer ends within its header"
                };
                return Err(self.broken(reason));
            }
            match reply_header(&answer) {
                Ok(Some(found)) => break found,
                Ok(None) if answer.len() < REPLY_HEADER_BYTES_MAX => {}
                Ok(None) => return Err(self.protocol("the answer does not begin with a header")),
                Err(reason) => return Err(self.protocol(reason)),
            }
        };
        if length > self.answer_bytes_max {
            return Err(self.too_large(format_args!("{length}")));
        }
        answer.drain(..body_at);
        // In one step; the length was checked above, so a wrong header cannot make this large.
        answer.reserve(length.saturating_sub(answer.len()));
        while answer.len() < length {
            if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
                return Err(self.broken(format_args!("the answer ends after {} of {length} bytes", answer.len())));
            }
        }
        // A body longer than announced is another program's, or two answers in one.
        if answer.len() > length {
            return Err(self.protocol("the answer is longer than its header says"));
        }
        Ok(answer)
    }

    async fn http(&self, request: reqwest::RequestBuilder, sent_bytes: usize) -> Result<Vec<u8>, ClientError> {
        let mut response = request.send().await.map_err(|error| self.http_error(error))?;
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        self.check_status(response.status(), header(header::WWW_AUTHENTICATE), sent_bytes)?;
        // A login form or the page of a web interface comes with status 200.
        if header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html")) {
            return Err(self.web_page());
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.http_error(error))? {
            if answer.len() + chunk.len() > self.answer_bytes_max {
                return Err(self.too_large(format_args!("more than {}", self.answer_bytes_max)));
            }
            answer.extend_from_slice(&chunk);
        }
        if is_web_page(&answer) {
            return Err(self.web_page());
        }
        Ok(answer)
    }

    fn too_large(&self, bytes: std::fmt::Arguments<'_>) -> ClientError {
        self.protocol(format_args!(
            "the answer has {bytes} bytes, the limit by memory_max is {}",
            self.answer_bytes_max
        ))
    }

    fn web_page(&self) -> ClientError {
        let reason = "the answer is a web page, not rTorrent's: write the path of the RPC interface (usually `/RPC2`; \
                      ruTorrent's is `/plugins/httprpc/action.php` below its own), and one that needs no login form";
        self.protocol(reason)
    }

    fn http_error(&self, error: reqwest::Error) -> ClientError {
        // The URL may hold a token in its query (I14).
        let error = error.without_url();
        let problem = tls::problem_of(&error, "http://");
        // Only an attempt to connect proves that nothing was asked.
        if error.is_connect() || error.is_builder() {
            return match problem {
                Some(problem) => self.unreachable(io::Error::other(problem)),
                None => self.unreachable(error),
            };
        }
        let reason = printable(problem.unwrap_or_else(|| error_chain(&error)).as_bytes());
        if error.is_request() {
            let remedy =
                "if rTorrent's own SCGI port is there and no web server, write `scgi://` in place of `http://`";
            return self.broken(format_args!("{reason}; {remedy}"));
        }
        self.broken(reason)
    }

    /// `challenge` is the way in which the server wants a login.
    fn check_status(&self, status: StatusCode, challenge: Option<&str>, sent_bytes: usize) -> Result<(), ClientError> {
        let reason = match status.as_u16() {
            200 => return Ok(()),
            401 | 403 | 407 => {
                let reason = format!("{} answers {status}: {}", self.address, login_remedy(challenge));
                return Err(ClientError::Unauthorized { reason });
            }
            300..=399 => "redirects are not followed: write the address that it leads to".to_owned(),
            400 => "the web server does not take the request: if it speaks TLS, write `https://`".to_owned(),
            404 | 405 | 410 => "there is no RPC interface at this path; the usual path is `/RPC2`".to_owned(),
            413 => format!("the web server refuses {sent_bytes} bytes: raise its client_max_body_size"),
            502 => "the web server got nothing from rTorrent: is it running, and is scgi_pass right?".to_owned(),
            504 => "rTorrent was too slow for the web server (scgi_read_timeout); the request may still be carried out"
                .to_owned(),
            _ => "this is not an answer of rTorrent's".to_owned(),
        };
        let reason = format!("HTTP {status}: {reason}");
        // The web server has passed on the request, or not: it does not say.
        Err(if status.is_server_error() { self.broken(reason) } else { self.protocol(reason) })
    }
}

/// Returns what to do about a login that the web server refuses.
fn login_remedy(challenge: Option<&str>) -> &'static str {
    let offers = |scheme: &str| challenge.is_some_and(|text| text.to_ascii_lowercase().contains(scheme));
    match () {
        () if offers("basic") || challenge.is_none() => "check username and password",
        () if offers("digest") => {
            "it demands Digest authentication, and only Basic is spoken here: set `auth_basic` (nginx) or \
             `AuthType Basic` (Apache) for this path, over https if others share the network"
        }
        () => {
            "it demands a login that is not Basic authentication, the only one spoken here: make it ask for Basic at \
             this path"
        }
    }
}

/// Whether this is a page for people, whatever its header says.
fn is_web_page(answer: &[u8]) -> bool {
    let start = answer.trim_ascii_start();
    let is_tag = |tag: &[u8]| start.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag));
    is_tag(b"<!doctype html") || is_tag(b"<html")
}

/// Returns the netstring before a body. `CONTENT_LENGTH` has to come first, and the block to stay below 2000
/// bytes (SCGI specification; rTorrent's limit).
fn scgi_header(format: WireFormat, body_bytes: usize) -> Vec<u8> {
    let block = format!("CONTENT_LENGTH\0{body_bytes}\0SCGI\x001\0CONTENT_TYPE\0{}\0", format.content_type());
    format!("{}:{block},", block.len()).into_bytes()
}

/// Returns where the body begins and its length; `None` while the header is incomplete.
///
/// # Errors
/// The bytes are not a header that rTorrent writes, or lack the length.
pub fn reply_header(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    const FIRST: &[u8] = b"Status: ";
    let seen = bytes.len().min(FIRST.len());
    if bytes[..seen] != FIRST[..seen] {
        if bytes.starts_with(b"HTTP/") {
            return Err(
                "a web server answers: write `http://` in place of `scgi://`, and the path of the RPC interface \
                        (usually `/RPC2`)"
                    .to_owned(),
            );
        }
        let shown = printable(&bytes[..bytes.len().min(40)]);
        return Err(format!(
            "the answer begins with `{shown}`, not with the header of SCGI: is it another program's port?"
        ));
    }
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let header = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = header.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("Status: ")).unwrap_or("").trim();
    if status.split(' ').next() != Some("200") {
        return Err(format!("the answer has the status `{}`", printable(status.as_bytes())));
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or("the header of the answer does not say its length")?;
    Ok(Some((end + 4, length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn transport() -> Transport {
        Transport { address: "unix:///test".to_owned(), route: Route::Unix("/test".into()), answer_bytes_max: 64 << 20 }
    }

    const ANSWER: &[u8] = b"Status: 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 11\r\n\r\nhello world";

    /// Reads the request, answers with these bytes, closes.
    async fn answer_with(mut far: DuplexStream, bytes: &[u8]) {
        let mut request = vec![0; 4096];
        while !request.ends_with(b"?") {
            let mut part = [0; 512];
            let read = far.read(&mut part).await.unwrap();
            request.extend_from_slice(&part[..read]);
        }
        far.write_all(bytes).await.unwrap();
    }

    /// To be called with the clock paused: time advances only while both sides wait, however slow the machine is.
    async fn exchange(answer: &[u8]) -> Result<Vec<u8>, ClientError> {
        let (mut near, far) = duplex(64);
        let transport = transport();
        let (result, ()) = tokio::join!(
            async {
                let result = transport.scgi(&mut near, WireFormat::Xml, b"?").await;
                drop(near);
                result
            },
            async {
                // The reader may have gone at the first wrong byte.
                let _gone = tokio::time::timeout(Duration::from_secs(5), answer_with(far, answer)).await.is_err();
            }
        );
        result
    }

    #[test]
    fn the_header_begins_with_the_length_and_is_short() {
        let header = scgi_header(WireFormat::Xml, 5);
        let block = b"CONTENT_LENGTH\x005\0SCGI\x001\0CONTENT_TYPE\0text/xml\0";
        assert_eq!(header, [b"46:".as_slice(), block, b","].concat());
        assert_eq!(block.len(), 46);
        assert!(scgi_header(WireFormat::Json, usize::MAX).len() < 2000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_answer_is_read() {
        assert_eq!(exchange(ANSWER).await.unwrap(), b"hello world");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_cut_at_any_byte_is_an_error() {
        for cut in 0..ANSWER.len() {
            let result = exchange(&ANSWER[..cut]).await;
            assert!(matches!(result, Err(ClientError::Broken { .. })), "cut at {cut}: {result:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rule_1_an_answer_larger_than_every_buffer_is_read_while_it_is_sent() {
        let body = vec![b'x'; 3 << 20];
        let mut answer = format!("Status: 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(&body);
        assert_eq!(exchange(&answer).await.unwrap().len(), body.len());
    }

    #[tokio::test(start_paused = true)]
    async fn rule_1_an_exchange_that_is_given_up_closes_its_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let transport = Transport { route: Route::Unix(path), ..transport() };
        let limit = Duration::from_secs(3);
        let (result, read) = tokio::join!(transport.exchange(WireFormat::Xml, b"?", limit), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap()
        });
        assert!(matches!(result, Err(ClientError::Timeout { limit: said }) if said == limit));
        assert!(read > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_2_an_answer_over_the_limit_is_not_read() {
        let answer = format!("Status: 200 OK\r\nContent-Length: {}\r\n\r\n", transport().answer_bytes_max + 1);
        let said = exchange(answer.as_bytes()).await.unwrap_err().to_string();
        assert!(said.contains("limit"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_scgi_is_quoted_without_its_control_characters() {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x1b[31mred\x00", b"Status: 500 x\x1b\r\n\r\n"] {
            let said = exchange(answer).await.unwrap_err().to_string();
            assert!(said.contains("unix:///test") && !said.chars().any(char::is_control), "{said}");
        }
    }

    #[test]
    fn each_http_status_says_what_to_do() {
        for (status, needle) in [(401, "password"), (413, "client_max_body_size"), (502, "scgi_pass"), (504, "slow")] {
            let status = StatusCode::from_u16(status).unwrap();
            let said = transport().check_status(status, None, 7).unwrap_err().to_string();
            assert!(said.contains(needle) && said.contains("unix:///test"), "{said}");
        }
    }

    #[test]
    fn only_an_answer_of_the_web_server_about_rtorrent_leaves_the_outcome_open() {
        for (status, is_open) in [(401, false), (404, false), (413, false), (500, true), (502, true), (504, true)] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = transport().check_status(status, None, 7).unwrap_err();
            assert_eq!(error.leaves_outcome_open(), is_open, "{status}");
        }
    }

    #[test]
    fn a_login_that_is_not_basic_is_named() {
        for (challenge, needle) in [
            (None, "check username"),
            (Some("Basic realm=\"x\""), "check username"),
            (Some("Digest realm=\"x\", Basic realm=\"x\""), "check username"),
            (Some("Digest realm=\"x\", nonce=\"1\""), "AuthType Basic"),
            (Some("Negotiate"), "not Basic"),
        ] {
            assert!(login_remedy(challenge).contains(needle), "{challenge:?}");
        }
    }

    #[test]
    fn a_page_for_people_is_told_from_an_answer() {
        for (answer, is_page) in [
            (&b"\r\n <!DOCTYPE HTML><html>"[..], true),
            (b"<html lang=\"en\">", true),
            (b"<?xml version=\"1.0\"?><methodResponse>", false),
            (b"{\"result\": 1}", false),
            (b"", false),
        ] {
            assert_eq!(is_web_page(answer), is_page);
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_what_to_do() {
        let (address, route) = ("unix:///nowhere".to_owned(), Route::Unix("/nowhere/x".into()));
        let transport = Transport { address, route, ..transport() };
        let error = transport.exchange(WireFormat::Xml, b"", Duration::from_secs(5)).await.unwrap_err();
        let said = error_chain(&error);
        assert!(said.contains("unix:///nowhere") && said.contains("is rTorrent running"), "{said}");
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_make_the_header_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = reply_header(&bytes).is_ok();
            let _either = reply_header(&[b"Status: 200 OK\r\n", bytes.as_slice(), b"\r\n\r\n"].concat()).is_ok();
        }
    }
}
