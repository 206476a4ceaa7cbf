//! An HTTP server for one .torrent file that is too large to be sent in a request.
//!
//! Requests have a maximum size that no setting lifts; a file that rTorrent fetches has none. The file is
//! served under an unguessable name, on the address by which this machine reaches rTorrent (loopback if it
//! is this machine), and only until it is loaded. An rTorrent in a network of its own, such as a container's, whose
//! socket is shared, does not reach that address; whether it came is known here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Duration, timeout};

use super::settings::Endpoint;
use crate::connect::connect;
use crate::port::ClientError;

/// Maximum time for one request and its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of a request's header.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// A server that listens and has one file.
pub(super) struct TorrentFileServer {
    listener: TcpListener,
    address: SocketAddr,
    secret: String,
    body: Bytes,
    was_asked: Notify,
}

impl TorrentFileServer {
    pub(super) async fn new(endpoint: &Endpoint, body: Bytes) -> Result<Self, ClientError> {
        let listen = async {
            // On one address only: the file is for this rTorrent and not for the network.
            let listener = TcpListener::bind((own_address(endpoint).await?, 0)).await?;
            let address = listener.local_addr()?;
            Ok::<_, std::io::Error>((listener, address))
        };
        let (listener, address) = listen.await.map_err(|error| ClientError::Unsupported {
            what: format!("take a torrent as large as this: it cannot be offered for fetching ({error})"),
        })?;
        let secret = format!("{:032x}", rand::random::<u128>());
        Ok(Self { listener, address, secret, body, was_asked: Notify::new() })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the size of the file.
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/{}.torrent", self.address, self.secret)
    }

    /// Waits until somebody has connected; `false` if nobody has within `limit`.
    pub(super) async fn was_asked(&self, limit: Duration) -> bool {
        timeout(limit, self.was_asked.notified()).await.is_ok()
    }

    /// Answers requests until it is dropped; ends only if it can no longer listen.
    pub(super) async fn serve(&self) {
        while let Ok((stream, _)) = self.listener.accept().await {
            self.was_asked.notify_one();
            // Other clients get nothing, and must not delay rTorrent for long.
            if let Ok(Err(error)) = timeout(REQUEST_TIMEOUT, self.answer(stream)).await {
                tracing::debug!(%error, "serving a torrent file failed");
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
            if stream.read_buf(&mut request).await? == 0 {
                break;
            }
        }
        // Whoever else connects learns nothing without the secret.
        let is_ours = request.starts_with(format!("GET /{}.torrent ", self.secret).as_bytes());
        let (status, body) = if is_ours { ("200 OK", self.body.clone()) } else { ("404 Not Found", Bytes::new()) };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/x-bittorrent\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await
    }
}

/// Returns the address of this machine that rTorrent can reach.
async fn own_address(endpoint: &Endpoint) -> std::io::Result<IpAddr> {
    let (host, port) = match endpoint {
        Endpoint::Unix(_) => return Ok(Ipv4Addr::LOCALHOST.into()),
        Endpoint::Scgi { host, port } => (host.clone(), *port),
        Endpoint::Http(url) => {
            let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            (host, url.port_or_known_default().unwrap_or(80))
        }
    };
    // Of a name with several addresses, only a connection says which of them is reached, and from where.
    Ok(connect(&host, port).await?.local_addr()?.ip())
}
