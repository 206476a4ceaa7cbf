//! Torrents to add: read, fetched or parsed, until their bytes, info-hash and directory are known.
//!
//! Links are fetched here and not by the client, so that the info-hash is known before anything is loaded. A link
//! may come from anyone who may publish, so it must not reach link-local addresses, which only this machine can
//! reach: cloud metadata services live there.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tracing::info;

use super::data_check;
use super::errors::{bad_request, precondition};
use super::request::BODY_BYTES_MAX;
use super::roots::Roots;
use crate::model::{
    Add, AddRequest, AddSource, CommandError, ErrorCode, InvalidMetainfo, Magnet, Metainfo, TorrentSource,
    with_resume_data, without_resume_data,
};

/// Maximum time of fetching a .torrent file, redirects included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Most redirects that are followed; each is checked as the link was.
const REDIRECTS_MAX: usize = 5;

/// Resolves the add requests of one server.
pub struct Sources {
    pub(super) roots: Roots,
    /// Made when a link is first fetched: it holds every certificate authority that this machine trusts.
    http: OnceLock<reqwest::Client>,
}

impl Sources {
    /// Returns the resolver of a server; only below `roots` are files read and torrents put.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots: Roots::new(roots), http: OnceLock::new() }
    }

    /// Returns the client that fetches links.
    ///
    /// # Errors
    /// The TLS set-up of the machine cannot be used.
    fn http(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let is_allowed = attempt.previous().len() <= REDIRECTS_MAX && is_allowed_host(attempt.url());
            if is_allowed { attempt.follow() } else { attempt.stop() }
        });
        // No proxy of the environment: it would resolve names itself, past the resolver that leaves addresses out.
        let http = reqwest::Client::builder()
            .timeout(FETCH_TIMEOUT)
            .redirect(redirects)
            .no_proxy()
            .dns_resolver(Arc::new(GuardedResolver))
            .user_agent(concat!("dtorrent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(self.http.get_or_init(|| http))
    }

    /// Resolves a request into what a client can be asked for. `progress` is called with the bytes of data that were
    /// checked, and all bytes.
    pub async fn resolve(&self, request: &AddRequest, progress: impl FnMut(u64, u64)) -> Result<Add, CommandError> {
        let AddRequest { source, start, label, directory, priority, custom, data_file } = request;
        if let Some(directory) = directory {
            self.roots.check_directory(directory)?;
        }
        let add = |hash, source, directory, is_checked| Add {
            hash,
            source,
            start: *start,
            label: label.clone(),
            directory,
            priority: *priority,
            custom: custom.clone(),
            is_checked,
        };
        let torrent = match source {
            TorrentSource::Magnet(link) => {
                let magnet = Magnet::parse(link).map_err(|error| bad_request(error.to_string()))?;
                return Ok(add(magnet.client_hash(), AddSource::Magnet(magnet.to_link()), directory.clone(), false));
            }
            TorrentSource::Torrent(bytes) => bytes.clone(),
            TorrentSource::Url(url) => self.fetch(url).await?,
            TorrentSource::File(path) => self.read_file(path).await?,
        };
        let metainfo = Metainfo::parse(&torrent).map_err(no_torrent)?;
        let hash = metainfo.client_hash();
        let Some(data_file) = data_file else {
            // Resume data of the sender would make the client believe in content that was not verified here.
            let torrent = without_resume_data(&torrent).map_err(no_torrent)?;
            return Ok(add(hash, AddSource::Torrent(torrent.into()), directory.clone(), false));
        };
        let (torrent, parent) = self.check_data(&torrent, &metainfo, data_file, progress).await?;
        if directory.as_ref().is_some_and(|directory| Path::new(directory) != Path::new(&parent)) {
            return Err(bad_request(format!("data_file is in {parent}, so that is its directory")));
        }
        Ok(add(hash, AddSource::Torrent(torrent), Some(parent), true))
    }

    async fn read_file(&self, path: &str) -> Result<Bytes, CommandError> {
        let unreadable = |error: std::io::Error| bad_request(format!("file: {error}"));
        let resolved = self.roots.find("file", path)?;
        let found = tokio::fs::metadata(&resolved).await.map_err(unreadable)?;
        if !found.is_file() {
            return Err(bad_request("file: not a regular file"));
        }
        // Before it is read: a path may name anything, also what fills the memory.
        if found.len() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        tokio::fs::read(&resolved).await.map(Bytes::from).map_err(unreadable)
    }

    /// Verifies data that is there already, and adds resume data that says so.
    async fn check_data(
        &self,
        torrent: &Bytes,
        metainfo: &Metainfo,
        data_file: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<(Bytes, String), CommandError> {
        if metainfo.v1.is_none() {
            info!(name = metainfo.name, "torrent of version 2 only, the client may refuse it");
        }
        // The check reads the resolved path; the client gets the sender's, as links may lead elsewhere on its machine.
        let place = self.roots.find("data_file", data_file)?;
        let directory = Path::new(data_file).parent().and_then(Path::to_str).map(str::to_owned);
        let directory = directory.filter(|_| place.file_name().is_some_and(|name| *name == *metainfo.name));
        let Some(directory) = directory else {
            let message =
                format!("data_file: the torrent calls it {:?}, so its path has to end in that", metainfo.name);
            return Err(precondition(message));
        };
        let checked = data_check::check(metainfo, &place, &self.roots, progress).await?;
        // 20 bytes of SHA-1 each.
        let pieces = metainfo.pieces.len() as u64 / 20;
        let torrent = with_resume_data(torrent, pieces, &checked).map_err(no_torrent)?;
        Ok((torrent.into(), directory))
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, CommandError> {
        let failed = |error| bad_request(format!("url: {}", without_url(error))).retryable();
        let parsed = url::Url::parse(url).map_err(|error| bad_request(format!("url: {error}")))?;
        if !is_allowed_host(&parsed) {
            return Err(CommandError::new(ErrorCode::Forbidden, "url: link-local addresses are not fetched"));
        }
        let response = self.http().map_err(failed)?.get(parsed).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(bad_request(format!("url: the server answered {}", response.status())));
        }
        // In chunks, because a server may send more than its `Content-Length` says, or none.
        let mut body = BytesMut::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

/// Returns the text of an error without the link, which may have a passkey (I14).
fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn too_large() -> CommandError {
    CommandError::new(ErrorCode::TooLarge, format!("a .torrent file of more than {BODY_BYTES_MAX} bytes is not taken"))
}

fn no_torrent(error: InvalidMetainfo) -> CommandError {
    let code = match error {
        InvalidMetainfo::Outside { .. } => ErrorCode::Forbidden,
        _ => ErrorCode::BadRequest,
    };
    CommandError::new(code, error.to_string())
}

fn is_allowed_host(url: &url::Url) -> bool {
    let is_allowed = |host| match host {
        url::Host::Ipv4(address) => is_allowed_address(address.into()),
        url::Host::Ipv6(address) => is_allowed_address(address.into()),
        // Resolved later, by a resolver that leaves such addresses out.
        url::Host::Domain(_) => true,
    };
    matches!(url.scheme(), "http" | "https") && url.host().is_some_and(is_allowed)
}

fn is_allowed_address(address: IpAddr) -> bool {
    // Canonical, or an IPv4 address written as `::ffff:169.254.169.254` would pass as IPv6.
    match address.to_canonical() {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_unspecified() && !address.is_broadcast(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_unspecified(),
    }
}

/// Leaves out addresses that a link must not reach, also when a name resolves to them.
struct GuardedResolver;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| is_allowed_address(address.ip())).collect();
            if allowed.is_empty() {
                return Err("no address that may be fetched from".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(roots: &[&Path]) -> Sources {
        let _already = rustls::crypto::ring::default_provider().install_default().is_err();
        Sources::new(roots.iter().map(|root| root.to_path_buf()).collect())
    }

    #[tokio::test]
    async fn link_local_addresses_are_not_fetched() {
        for url in
            ["http://169.254.169.254/x", "http://[fe80::1]/x", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/"]
        {
            let error = sources(&[]).fetch(url).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Forbidden, "{url}");
        }
    }
}
