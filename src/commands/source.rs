//! Getting hold of what is to be added: its bytes, its info-hash, its place.
//!
//! Links are fetched here and not by the client, so that the info-hash is known before anything is
//! loaded. A link may come from anyone who may publish; it must not reach what only this machine can
//! reach by link-local addresses (cloud metadata services live there).

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::request::{AddRequest, BODY_BYTES_MAX, Content};
use crate::model::{Add, AddSource, CommandError, ErrorCode, Magnet, Metainfo};

const FETCH_MAX: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 5;

pub struct SourcesSettings {
    /// The only folders that files are read from and torrents may be put into.
    pub roots: Vec<PathBuf>,
}

/// Resolves add requests of one server.
#[derive(Clone)]
pub struct Sources {
    roots: Vec<PathBuf>,
    http: reqwest::Client,
}

fn refuse(code: ErrorCode, message: impl Into<String>) -> CommandError {
    CommandError::new(code, message)
}

impl Sources {
    /// # Errors
    /// The TLS set-up of the machine cannot be used.
    pub fn new(settings: SourcesSettings) -> Result<Self, reqwest::Error> {
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let is_allowed = attempt.previous().len() <= REDIRECTS_MAX && is_allowed_host(attempt.url());
            if is_allowed { attempt.follow() } else { attempt.stop() }
        });
        let http = reqwest::Client::builder()
            .timeout(FETCH_MAX)
            .redirect(redirects)
            .no_proxy()
            .dns_resolver(Arc::new(GuardedResolver))
            .user_agent(concat!("dtorrent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { roots: settings.roots, http })
    }

    /// Makes of a request what a client can be asked for.
    pub async fn resolve(&self, request: &AddRequest) -> Result<Add, CommandError> {
        let AddRequest { content, start, label, directory, priority } = request;
        let directory = directory.as_deref().map(|directory| self.checked_directory(directory)).transpose()?;
        let (hash, source) = match content {
            Content::Magnet(link) => {
                let magnet = Magnet::parse(link).map_err(|error| refuse(ErrorCode::BadRequest, error.to_string()))?;
                (magnet.client_hash(), AddSource::Magnet(link.clone()))
            }
            Content::Torrent(bytes) => with_hash(bytes.clone())?,
            Content::Url(url) => with_hash(self.fetch(url).await?)?,
            Content::File(path) => with_hash(self.read_file(path).await?)?,
        };
        Ok(Add { hash, source, start: *start, label: label.clone(), directory, priority: *priority })
    }

    /// A directory on the client's machine: absolute, without `..`, below a root.
    ///
    /// Where that folder is on this machine too, links in it are followed before it is compared.
    fn checked_directory(&self, directory: &str) -> Result<String, CommandError> {
        let path = Path::new(directory);
        let is_plain = path.is_absolute()
            && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && !directory.chars().any(char::is_control);
        if !is_plain {
            let message = "directory: an absolute path without `..` and control characters is right";
            return Err(refuse(ErrorCode::BadRequest, message));
        }
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let is_below = |path: &Path| self.roots.iter().any(|root| path.starts_with(root));
        let is_below_resolved =
            self.roots.iter().any(|root| resolved.starts_with(root.canonicalize().as_deref().unwrap_or(root)));
        if is_below(path) && is_below_resolved {
            Ok(directory.to_owned())
        } else {
            Err(self.outside_roots("directory"))
        }
    }

    async fn read_file(&self, path: &str) -> Result<Bytes, CommandError> {
        let unreadable = |error: std::io::Error| refuse(ErrorCode::BadRequest, format!("file: {error}"));
        // The answer for a path outside is the same whether there is such a file or not.
        let resolved = tokio::fs::canonicalize(path).await.map_err(|_| self.outside_roots("file"))?;
        let is_below = self.roots.iter().any(|root| {
            let root = root.canonicalize().unwrap_or_else(|_| root.clone());
            resolved.starts_with(root)
        });
        if !is_below {
            return Err(self.outside_roots("file"));
        }
        let found = tokio::fs::metadata(&resolved).await.map_err(unreadable)?;
        if !found.is_file() {
            return Err(refuse(ErrorCode::BadRequest, "file: not a regular file"));
        }
        if found.len() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        tokio::fs::read(&resolved).await.map(Bytes::from).map_err(unreadable)
    }

    fn outside_roots(&self, key: &str) -> CommandError {
        let roots: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
        let message = if roots.is_empty() {
            format!("{key}: this server has no `roots` in the config, so no path may be named")
        } else {
            format!("{key}: not found below the allowed folders ({})", roots.join(", "))
        };
        refuse(ErrorCode::Forbidden, message)
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, CommandError> {
        let failed = |error: reqwest::Error| {
            let mut refusal = refuse(ErrorCode::BadRequest, format!("url: {}", without_url(error)));
            refusal.retryable = true;
            refusal
        };
        let parsed = url::Url::parse(url).map_err(|error| refuse(ErrorCode::BadRequest, format!("url: {error}")))?;
        if !is_allowed_host(&parsed) {
            return Err(refuse(ErrorCode::Forbidden, "url: link-local addresses are not fetched"));
        }
        let response = self.http.get(parsed).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(refuse(ErrorCode::BadRequest, format!("url: the server answered {}", response.status())));
        }
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

/// A link may hold a passkey, so it is in no message.
fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn too_large() -> CommandError {
    refuse(ErrorCode::TooLarge, format!("a .torrent file of more than {BODY_BYTES_MAX} bytes is not taken"))
}

fn with_hash(bytes: Bytes) -> Result<(crate::model::InfoHash, AddSource), CommandError> {
    let metainfo = Metainfo::parse(&bytes).map_err(|error| refuse(ErrorCode::BadRequest, error.to_string()))?;
    Ok((metainfo.client_hash(), AddSource::Torrent(bytes)))
}

fn is_allowed_host(url: &url::Url) -> bool {
    let is_web = matches!(url.scheme(), "http" | "https");
    is_web
        && match url.host() {
            Some(url::Host::Ipv4(address)) => is_allowed_address(address.into()),
            Some(url::Host::Ipv6(address)) => is_allowed_address(address.into()),
            Some(url::Host::Domain(_)) => true,
            None => false,
        }
}

fn is_allowed_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_unspecified() && !address.is_broadcast(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_unspecified(),
    }
}

/// Leaves out addresses that a link must not reach, also when a name leads there.
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
        Sources::new(SourcesSettings { roots: roots.iter().map(|root| root.to_path_buf()).collect() }).unwrap()
    }

    #[test]
    fn a_directory_is_below_a_root_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        let sources = sources(&[&root]);
        let below = root.join("films/new").display().to_string();
        assert_eq!(sources.checked_directory(&below), Ok(below));
        for bad in [
            "films",
            "/etc",
            &format!("{}/../x", root.display()),
            &format!("{}x", root.display()),
            &root.join("link").display().to_string(),
            &format!("{}/a\nb", root.display()),
        ] {
            assert!(sources.checked_directory(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_file_outside_the_roots_is_not_read_whether_it_is_there_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        std::fs::write(root.join("a.torrent"), b"x").unwrap();
        let sources = sources(&[&root]);
        let path = |name: &str| root.join(name).display().to_string();
        assert_eq!(sources.read_file(&path("a.torrent")).await.unwrap(), "x");
        let mut refusals = Vec::new();
        for bad in [&path("link"), "/etc/passwd", "/no/such", &path("../x")] {
            refusals.push(sources.read_file(bad).await.unwrap_err());
        }
        assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
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
