//! The byte stream below MQTT: TCP, TLS or a WebSocket.

use std::sync::Arc;

use async_tungstenite::tungstenite::client::IntoClientRequest as _;
use async_tungstenite::tungstenite::http::HeaderValue;
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use ws_stream_tungstenite::WsStream;

use crate::connect::connect;

use super::super::settings::{BrokerUrl, Transport};
use super::error::{self, ConnectionError};
use super::event::PACKET_BYTES_MAX;

/// The name of MQTT in the opening handshake of a WebSocket (MQTT 5 §6).
const SUBPROTOCOL: (&str, &str) = ("Sec-WebSocket-Protocol", "mqtt");

pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// Connects to a broker; `tls` is there for an encrypted transport.
pub(super) async fn open(
    url: &BrokerUrl,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Box<dyn ByteStream>, ConnectionError> {
    let host = &url.endpoint.host;
    let stream = connect(host, url.endpoint.port).await.map_err(|error| error::from_io(&error))?;
    let stream: Box<dyn ByteStream> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let wrong = |_| ConnectionError::other("TLS: the host in `url` is no name that a certificate can have");
            let name = ServerName::try_from(host.clone()).map_err(wrong)?;
            let secured = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
            Box::new(secured.map_err(|error| error::from_io(&error))?)
        }
    };
    match url.transport {
        Transport::Tcp | Transport::Tls => Ok(stream),
        Transport::WebSocket | Transport::SecureWebSocket => web_socket(url, stream).await,
    }
}

async fn web_socket(url: &BrokerUrl, stream: Box<dyn ByteStream>) -> Result<Box<dyn ByteStream>, ConnectionError> {
    let (header, mqtt) = SUBPROTOCOL;
    let mut request = url.with_query().into_client_request().map_err(|error| error::from_web_socket(&error))?;
    request.headers_mut().insert(header, HeaderValue::from_static(mqtt));
    // A packet may come in several frames, but a message has no reason to be larger than a packet.
    let config = WebSocketConfig::default().max_message_size(Some(PACKET_BYTES_MAX as usize));
    let handshake = async_tungstenite::tokio::client_async_with_config(request, stream, Some(config)).await;
    // An answer with another subprotocol, or with none, is refused there (RFC 6455 §4.1).
    let (socket, _response) = handshake.map_err(|error| error::from_web_socket(&error))?;
    Ok(Box::new(WsStream::new(socket)))
}
