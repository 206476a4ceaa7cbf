//! Fetching of .torrent files, as far as the rules for links permit.
//!
//! Links are fetched here and not by the client, so that the info-hash is known before anything is loaded. A link may come
//! from anyone who may publish: each hop of a redirect is checked by its address, after resolution. Errors name the host of
//! a link and nothing else of it, because path and query often have a passkey (I14).

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use reqwest::Response;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, LOCATION, SET_COOKIE};
use url::{Host, Url};

use super::errors::bad_request;
use super::fetch_errors::{NotPermitted, NotResolved, Unreachable, reason_of};
use crate::connect::CONNECT_TIMEOUT;
use crate::model::{CommandError, ErrorCode, TorrentSource, UrlRules, printable};
use crate::port::BODY_BYTES_MAX;

/// Maximum time of fetching a .torrent file, redirects included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Most redirects that are followed; each is checked as the link was.
const REDIRECTS_MAX: usize = 5;
/// First bytes of gzip (RFC 1952), which no torrent begins with.
const GZIP: &[u8] = &[0x1f, 0x8b];
/// Most layers of gzip: of a file that is stored so, and of the server that sends it.
const GZIP_LAYERS_MAX: usize = 2;

/// Fetches links by the rules of one server.
pub(super) struct Fetcher {
    rules: Arc<UrlRules>,
    /// Made when a link is first fetched: it holds every certificate authority that this machine trusts.
    http: OnceLock<reqwest::Client>,
}

/// Where a link led to.
#[derive(Debug)]
pub(super) enum Fetched {
    /// The bytes of a .torrent file, or of something else.
    File(Bytes),
    /// A magnet link.
    Magnet(String),
}

impl Fetcher {
    pub(super) fn new(rules: UrlRules) -> Self {
        Self { rules: Arc::new(rules), http: OnceLock::new() }
    }

    /// Returns the client that fetches links.
    ///
    /// # Errors
    /// The TLS set-up of the machine cannot be used.
    fn http(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        // No proxy of the environment: it would resolve names itself, past the resolver that leaves addresses out. And a
        // connection for each request: servers close one that they have promised to keep, often after a redirect.
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .dns_resolver(Arc::new(GuardedResolver(Arc::clone(&self.rules))))
            .user_agent(concat!("dtorrent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(self.http.get_or_init(|| http))
    }

    /// Fetches what a link leads to.
    pub(super) async fn fetch(&self, link: &str) -> Result<Fetched, CommandError> {
        let url = Url::parse(link.trim()).map_err(|error| bad_request(format!("url: {error}")))?;
        let host = host_of(&url);
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.follow(url)).await;
        fetched.unwrap_or_else(|_| Err(failed(&host, "no complete answer within 30 seconds").retryable()))
    }

    async fn follow(&self, mut url: Url) -> Result<Fetched, CommandError> {
        let mut sets_cookies = false;
        for _ in 0..=REDIRECTS_MAX {
            let host = host_of(&url);
            let response = self.get(&url, &host).await?;
            if !response.status().is_redirection() {
                return read(response, &host).await;
            }
            sets_cookies |= response.headers().contains_key(SET_COOKIE);
            let location =
                response.headers().get(LOCATION).map(|location| String::from_utf8_lossy(location.as_bytes()));
            let Some(location) = location else {
                return Err(failed(&host, format!("it answered {} without an address to go to", response.status())));
            };
            // Indexers redirect to a magnet link where they have no .torrent file.
            if let Some(TorrentSource::Magnet(link)) = TorrentSource::from_link(&location) {
                return Ok(Fetched::Magnet(link));
            }
            url = url.join(&location).map_err(|error| failed(&host, format!("it redirects to no URL ({error})")))?;
        }
        let reason = match sets_cookies {
            true => {
                "it redirects in a circle and sets a cookie, as a login or a check for browsers does; cookies are not kept"
            }
            false => "more than 5 redirects",
        };
        Err(failed(&host_of(&url), reason))
    }

    /// Asks one host, if the rules permit it.
    async fn get(&self, url: &Url, host: &str) -> Result<Response, CommandError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(failed(host, format!("{} is not fetched; http or https is right", url.scheme())));
        }
        // A name is resolved later, by a resolver that asks the rules itself.
        let literal: Option<IpAddr> = match url.host() {
            Some(Host::Ipv4(address)) => Some(address.into()),
            Some(Host::Ipv6(address)) => Some(address.into()),
            Some(Host::Domain(_)) | None => None,
        };
        if self.rules.denies_host(host) || literal.is_some_and(|address| !self.rules.permit(host, address)) {
            return Err(forbidden(host));
        }
        let sent = async { self.http()?.get(url.clone()).send().await };
        sent.await.map_err(|error| unreachable_host(host, error))
    }
}

/// Returns the host of a link, as errors show it.
fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// Returns the error of a .torrent file that is larger than a body may be.
pub(super) fn too_large() -> CommandError {
    CommandError::new(ErrorCode::TooLarge, format!("a .torrent file of more than {BODY_BYTES_MAX} bytes is not taken"))
}

fn failed(host: &str, reason: impl std::fmt::Display) -> CommandError {
    bad_request(format!("url: {host}: {reason}"))
}

fn forbidden(host: &str) -> CommandError {
    let message = format!(
        "url: {host}: link-local addresses, metadata services, and what `add_urls` in the config excludes, are not fetched"
    );
    CommandError::new(ErrorCode::Forbidden, message)
}

fn unreachable_host(host: &str, error: reqwest::Error) -> CommandError {
    match reason_of(error) {
        Unreachable::NotPermitted => forbidden(host),
        Unreachable::ForNow(reason) => failed(host, reason).retryable(),
        Unreachable::ForGood(reason) => failed(host, reason),
    }
}

/// Reads the answer of the last hop.
async fn read(response: Response, host: &str) -> Result<Fetched, CommandError> {
    let status = response.status();
    if !status.is_success() {
        let is_temporary = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        let hint = if matches!(status.as_u16(), 401 | 403) { "; it may want a login or another key" } else { "" };
        let error = failed(host, format!("it answered {status}{hint}"));
        return Err(if is_temporary { error.retryable() } else { error });
    }
    let text_of = |name| response.headers().get(name).map(|value: &HeaderValue| printable(value.as_bytes()));
    let (encoding, kind) = (text_of(CONTENT_ENCODING), text_of(CONTENT_TYPE));
    let mut body = whole_body(response, host).await?;
    // Some servers send gzip unasked, some store the file so, and some do both: whatever they say, its first bytes show it.
    for _ in 0..GZIP_LAYERS_MAX {
        if body.starts_with(GZIP) {
            body = unzipped(&body, host)?;
        }
    }
    if let Some(TorrentSource::Magnet(link)) = std::str::from_utf8(&body).ok().and_then(TorrentSource::from_link) {
        return Ok(Fetched::Magnet(link));
    }
    // What is wrong behind the begin of a dictionary is said later, with its place.
    if matches!(*body, [b'd', b'0'..=b'9' | b'e', ..]) {
        return Ok(Fetched::File(body));
    }
    let is_page = body.trim_ascii_start().starts_with(b"<") || kind.as_ref().is_some_and(|kind| kind.contains("html"));
    // Nothing of the body is quoted: it may repeat the passkey.
    let reason = match (encoding, kind) {
        _ if body.is_empty() => {
            format!("it answered {status} and nothing else; the link may want a login or another key")
        }
        _ if is_page => "it answered with a web page, not with a .torrent file; the link may want a login".to_owned(),
        (Some(encoding), _) if !is_plain(&encoding) => {
            format!("it answered in the encoding `{encoding}`, which was not asked for")
        }
        (_, kind) => {
            let kind = kind.map_or_else(|| "something else".to_owned(), |kind| format!("`{kind}`"));
            format!("it answered with {kind}, not with a .torrent file; the link may want a login or another key")
        }
    };
    Err(failed(host, reason))
}

/// Whether a `Content-Encoding` says that the body is as it is, or gzip, which its first bytes show.
fn is_plain(encoding: &str) -> bool {
    ["", "identity", "gzip", "x-gzip"].iter().any(|plain| encoding.trim().eq_ignore_ascii_case(plain))
}

async fn whole_body(response: Response, host: &str) -> Result<Bytes, CommandError> {
    // In chunks, because a server may send more than its `Content-Length` says, or none.
    let mut body = BytesMut::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| unreachable_host(host, error))?;
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Decodes gzip, no further than one byte beyond the limit.
fn unzipped(body: &[u8], host: &str) -> Result<Bytes, CommandError> {
    let mut out = Vec::new();
    let mut decoder = MultiGzDecoder::new(body).take(BODY_BYTES_MAX as u64 + 1);
    decoder.read_to_end(&mut out).map_err(|error| failed(host, format!("its gzip is malformed: {error}")))?;
    if out.len() > BODY_BYTES_MAX { Err(too_large()) } else { Ok(out.into()) }
}

/// Leaves out addresses that a link must not reach, also when a name resolves to them.
struct GuardedResolver(Arc<UrlRules>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|_| NotResolved)?;
            let permitted = found.filter(|address| rules.permit(name.as_str(), address.ip()));
            let permitted: Vec<SocketAddr> = permitted.collect();
            if permitted.is_empty() {
                return Err(NotPermitted.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metadata_services_are_not_fetched_however_their_address_is_written() {
        let _already = rustls::crypto::ring::default_provider().install_default().is_err();
        for url in [
            "http://169.254.169.254/x",
            "http://2852039166/",
            "http://0xA9FEA9FE/",
            "http://[fe80::1]/x",
            "http://[::ffff:169.254.169.254]/",
            "http://0.0.0.0/",
        ] {
            let error = Fetcher::new(UrlRules::default()).fetch(url).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Forbidden, "{url}");
        }
    }

    #[test]
    fn gzip_is_decoded_up_to_the_limit() {
        use std::io::Write as _;
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let largest = vec![b'd'; BODY_BYTES_MAX];
        assert_eq!(unzipped(&gzip(&largest), "x").unwrap(), largest);
        assert_eq!(unzipped(&gzip(&[largest, vec![b'd']].concat()), "x").unwrap_err().code, ErrorCode::TooLarge);
        assert_eq!(unzipped(&gzip(b"d")[..9], "x").unwrap_err().code, ErrorCode::BadRequest);
    }
}
