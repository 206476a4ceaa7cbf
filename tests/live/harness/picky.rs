//! A broker that does not take every packet, as some services do: a real one behind a judge of what clients send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::proxy::packet_length;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The broker gets it.
    Pass,
    /// The connection is closed without a word.
    Close,
    /// Nothing is answered from now on, and nothing closed.
    Ignore,
    /// The client gets this answer and nothing else, and nothing is closed.
    Answer(&'static [u8]),
}

/// A packet from a client of MQTT 5 or 3.1.1.
pub struct Packet<'p> {
    bytes: &'p [u8],
    /// The protocol level of the connection's CONNECT.
    pub level: u8,
}

impl Packet<'_> {
    pub fn is_connect(&self) -> bool {
        self.bytes[0] >> 4 == 1
    }

    /// Returns QoS and retain flag of the last will of a CONNECT.
    pub fn will(&self) -> Option<(u8, bool)> {
        let flags = self.is_connect().then(|| self.bytes[level_at(self.bytes) + 1])?;
        (flags & 0x04 != 0).then_some(((flags >> 3) & 3, flags & 0x20 != 0))
    }

    /// Returns whether a CONNECT asks for a session that outlasts the connection.
    pub fn keeps_session(&self) -> bool {
        self.is_connect() && self.bytes[level_at(self.bytes) + 1] & 0x02 == 0
    }

    /// Returns QoS and retain flag of a PUBLISH.
    pub fn publish(&self) -> Option<(u8, bool)> {
        let first = self.bytes[0];
        (first >> 4 == 3).then_some(((first >> 1) & 3, first & 1 != 0))
    }

    /// Returns the filters of a SUBSCRIBE.
    pub fn filters(&self) -> Vec<String> {
        if self.bytes[0] >> 4 != 8 {
            return Vec::new();
        }
        // Behind type, length, packet id and, with MQTT 5, the length of no properties.
        let mut rest = &self.bytes[header_bytes(self.bytes) + if self.level == 5 { 3 } else { 2 }..];
        let mut filters = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(rest.get_u16());
            filters.push(String::from_utf8(rest[..length].to_vec()).unwrap());
            rest.advance(length + 1);
        }
        filters
    }
}

fn header_bytes(packet: &[u8]) -> usize {
    1 + packet[1..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1
}

fn level_at(connect: &[u8]) -> usize {
    header_bytes(connect) + b"\0\x04MQTT".len()
}

pub struct PickyBroker {
    pub port: u16,
    refused: Arc<AtomicUsize>,
}

impl PickyBroker {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    pub async fn before(broker_port: u16, judge: impl Fn(&Packet<'_>) -> Verdict + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (judge, refused) = (Arc::new(judge), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&refused);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (judge, count) = (Arc::clone(&judge), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker_port)).await else { return };
                    // Either side may close at any time.
                    between(client, broker, &*judge, &count).await.ok();
                });
            }
        });
        Self { port, refused }
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Returns how many packets did not pass.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

async fn between(
    client: TcpStream,
    broker: TcpStream,
    judge: &(impl Fn(&Packet<'_>) -> Verdict + ?Sized),
    refused: &AtomicUsize,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let (mut read, mut answers) = (BytesMut::new(), BytesMut::new());
    let (mut level, mut is_deaf) = (0, false);
    loop {
        while let Some(length) = packet_length(&read).filter(|length| *length <= read.len()) {
            let bytes = read.split_to(length);
            if bytes[0] >> 4 == 1 {
                level = bytes[level_at(&bytes)];
            }
            let verdict = if is_deaf { Verdict::Ignore } else { judge(&Packet { bytes: &bytes, level }) };
            if verdict != Verdict::Pass && !is_deaf {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            match verdict {
                Verdict::Pass => to_broker.write_all(&bytes).await?,
                Verdict::Close => return Ok(()),
                Verdict::Ignore => is_deaf = true,
                Verdict::Answer(answer) => {
                    to_client.write_all(answer).await?;
                    is_deaf = true;
                }
            }
        }
        tokio::select! {
            count = from_client.read_buf(&mut read) => if count? == 0 { return Ok(()) },
            count = from_broker.read_buf(&mut answers), if !is_deaf => {
                if count? == 0 {
                    return Ok(());
                }
                to_client.write_all(&answers.split()).await?;
            }
        }
    }
}
