//! A .torrent file for rTorrent to fetch, where it is too large to be sent.
//!
//! Requests have a size that no setting lifts; what rTorrent fetches by HTTP has none. The bytes are
//! served under a name that nobody can guess, on the address by which this machine reaches rTorrent (loopback if it
//! is on this machine), and only as long as it takes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Duration, timeout};

use super::settings::Endpoint;
use crate::port::ClientError;

/// For one request and its answer.
const SERVED_WITHIN: Duration = Duration::from_secs(20);
const REQUEST_BYTES_MAX: usize = 8 << 10;

pub(super) struct Handover {
    listener: TcpListener,
    address: SocketAddr,
    secret: String,
    body: Bytes,
}

impl Handover {
    pub(super) async fn new(endpoint: &Endpoint, body: Bytes) -> Result<Self, ClientError> {
        let listen = async {
            let listener = TcpListener::bind((own_address(endpoint).await?, 0)).await?;
            let address = listener.local_addr()?;
            Ok::<_, std::io::Error>((listener, address))
        };
        let (listener, address) = listen.await.map_err(|error| ClientError::Unsupported {
            what: format!("take a torrent as large as this: it cannot be offered for fetching ({error})"),
        })?;
        let secret = format!("{:032x}", rand::random::<u128>());
        Ok(Self { listener, address, secret, body })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/{}.torrent", self.address, self.secret)
    }

    /// Answers until it is dropped; ends only if it cannot listen any more.
    pub(super) async fn serve(&self) {
        while let Ok((stream, _)) = self.listener.accept().await {
            // Whoever else comes gets nothing, and may not keep rTorrent waiting for long.
            if let Ok(Err(error)) = timeout(SERVED_WITHIN, self.answer(stream)).await {
                tracing::debug!(%error, "a torrent could not be handed over");
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

/// The address of this machine that rTorrent can reach.
async fn own_address(endpoint: &Endpoint) -> std::io::Result<IpAddr> {
    let (host, port) = match endpoint {
        Endpoint::Unix(_) => return Ok(Ipv4Addr::LOCALHOST.into()),
        Endpoint::Scgi { host, port } => (host.clone(), *port),
        Endpoint::Http(url) => {
            let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            (host, url.port_or_known_default().unwrap_or(80))
        }
    };
    let mut found = tokio::net::lookup_host((host, port)).await?;
    let there = found.next().ok_or(std::io::ErrorKind::NotFound)?;
    // Sends nothing: it only asks the routing table.
    let any: SocketAddr = if there.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(there).await?;
    Ok(socket.local_addr()?.ip())
}
