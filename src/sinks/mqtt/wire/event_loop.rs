//! The event loop of one connection: makes it, writes what the client queues, and reads what comes.
//!
//! Invariants:
//! - a publish is reported as written once it is with the operating system, and before its acknowledgement (I3);
//! - what was read is reported before the error that ended the connection;
//! - requests wait in their channel while earlier ones are not written yet, or as many publishes are unacknowledged as the
//!   broker allows, so that no buffer grows with the broker's slowness (I9).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::super::demands::Protocol;
use super::super::settings::{BrokerUrl, Settings};
use super::super::topics::Qos;
use super::error::{self, ConnectionError, ErrorKind};
use super::event::{AckToken, ConnAck, Event, Incoming, Outgoing, PubAck};
use super::stream::{self, ByteStream};
use super::{Client, ConnectOptions, KEEP_ALIVE, Request, v5, v311};

/// Maximum time until CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum pause in what is still read when nothing can be written any more.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Requests are put into one write up to this size. A larger message is a write of its own.
const WRITE_BYTES: usize = 64 << 10;
/// Room for a read.
const READ_BYTES: usize = 8 << 10;
/// Maximum number of unacknowledged publishes, whatever the broker allows; far above the window of a link.
const UNACKNOWLEDGED_MAX: usize = 1_000;
/// Maximum number of SUBSCRIBE packets without an answer, after which no request is taken.
const SUBSCRIBES_MAX: usize = 1_000;
/// Capacity of a buffer that is kept after a large packet went through it.
const KEPT_BYTES: usize = 256 << 10;

/// The side of a connection that moves it on.
pub struct EventLoop {
    protocol: Protocol,
    url: BrokerUrl,
    tls: Option<Arc<ClientConfig>>,
    /// CONNECT, until it is written.
    hello: Result<BytesMut, ConnectionError>,
    /// Maximum size of packets that are accepted.
    packet_bytes_max: u32,
    has_manual_acks: bool,
    filters_max: usize,
    requests: mpsc::Receiver<Request>,
    connection: Option<Connection>,
    ids: PacketIds,
    /// Read and not decoded yet.
    input: BytesMut,
    /// Encoded and not written yet.
    output: BytesMut,
    /// Something of it, or of what a TLS stream buffers, is not with the operating system yet.
    needs_write: bool,
    /// Why nothing can be written any more. What the broker sent before, perhaps the reason, is read first.
    write_error: Option<ConnectionError>,
    /// Becomes events when the output is written.
    unwritten: VecDeque<Event>,
    /// Not answered completely yet.
    subscriptions: Vec<Subscription>,
    /// Not reported yet.
    events: VecDeque<Event>,
}

/// A subscription, which is made in several packets.
#[derive(Default)]
struct Subscription {
    /// The filters of the packets without an answer, by packet id.
    unanswered: HashMap<u16, Vec<String>>,
    answers: Vec<(String, Option<String>)>,
}

struct Connection {
    reader: ReadHalf<Box<dyn ByteStream>>,
    writer: WriteHalf<Box<dyn ByteStream>>,
    ping: Interval,
    awaits_pong: bool,
    /// Bytes that were not written yet when the last ping was due.
    unwritten_at_ping: usize,
}

/// Something that a step has waited for.
enum Step {
    Read(std::io::Result<usize>),
    Written(std::io::Result<()>),
    Requested(Option<Request>),
    PingDue,
}

/// Prepares a connection; [`EventLoop::connected`] makes it.
pub fn open(settings: &Settings, tls: Option<&Arc<ClientConfig>>, options: &ConnectOptions) -> (Client, EventLoop) {
    let (sender, requests) = mpsc::channel(options.channel);
    let client = Client { protocol: options.protocol, requests: sender };
    let hello = match options.protocol {
        Protocol::V311 => v311::connect(settings, options),
        Protocol::V5 => v5::connect(settings, options),
    };
    let events = EventLoop {
        protocol: options.protocol,
        url: settings.url.clone(),
        tls: tls.cloned(),
        hello,
        packet_bytes_max: options.packet_bytes_max,
        has_manual_acks: options.has_manual_acks,
        filters_max: options.filters_max,
        requests,
        connection: None,
        ids: PacketIds::default(),
        input: BytesMut::new(),
        output: BytesMut::new(),
        needs_write: false,
        write_error: None,
        unwritten: VecDeque::new(),
        subscriptions: Vec::new(),
        events: VecDeque::new(),
    };
    (client, events)
}

impl EventLoop {
    /// Connects and returns what the broker granted, within [`CONNECT_TIMEOUT`]. Not cancel-safe, and only called once.
    pub async fn connected(&mut self) -> Result<ConnAck, ConnectionError> {
        let timed_out =
            |_| ConnectionError::new(ErrorKind::Silent, format!("no connection within {CONNECT_TIMEOUT:?}"));
        timeout(CONNECT_TIMEOUT, self.handshake()).await.map_err(timed_out)?
    }

    async fn handshake(&mut self) -> Result<ConnAck, ConnectionError> {
        let hello = std::mem::replace(&mut self.hello, Err(ConnectionError::other("already connected")))?;
        let stream = stream::open(&self.url, self.tls.as_ref()).await.map_err(ConnectionError::before_connect)?;
        self.greet(hello, stream).await
    }

    /// Sends CONNECT, and waits for CONNACK.
    async fn greet(&mut self, mut hello: BytesMut, stream: Box<dyn ByteStream>) -> Result<ConnAck, ConnectionError> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        // A broker that lets nobody in may say so and close the connection, whatever we have to say.
        self.write_error = write(&mut writer, &mut hello).await.err().map(|error| error::from_io(&error));
        let connack = loop {
            match self.decode()? {
                Some(Incoming::ConnAck(connack)) => break connack,
                Some(_) => return Err(ConnectionError::new(ErrorKind::Unreadable, error::UNREADABLE)),
                None => {}
            }
            match &self.write_error {
                Some(error) => read_last_words(&mut reader, &mut self.input, error).await?,
                None if reader.read_buf(&mut self.input).await.map_err(|error| error::from_io(&error))? == 0 => {
                    return Err(error::closed());
                }
                None => {}
            }
        };
        // 0 switches it off (MQTT 5 §3.2.2.3.14) and a broker may grant hours, but a connection that is dead without a FIN is to be
        // noticed, and a client may ask sooner.
        let granted = connack.keep_alive.filter(|keep_alive| !keep_alive.is_zero());
        let keep_alive = granted.map_or(KEEP_ALIVE, |granted| granted.min(KEEP_ALIVE));
        self.ids.unacknowledged_max = usize::from(connack.receive_max).clamp(1, UNACKNOWLEDGED_MAX);
        let ping = ping_interval(keep_alive);
        self.connection = Some(Connection { reader, writer, ping, awaits_pong: false, unwritten_at_ping: 0 });
        Ok(connack)
    }

    /// Moves the connection on until the next event. Cancel-safe. Must not be called again after an error.
    pub async fn next(&mut self) -> Result<Event, ConnectionError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            match self.decode()? {
                Some(packet) => self.on_packet(packet)?,
                None => self.step().await?,
            }
        }
    }

    /// Waits until our DISCONNECT was written.
    pub async fn disconnected(&mut self) -> Result<(), ConnectionError> {
        while !matches!(self.next().await?, Event::Disconnected) {}
        Ok(())
    }

    fn decode(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        match self.protocol {
            Protocol::V311 => v311::decode(&mut self.input, self.packet_bytes_max),
            Protocol::V5 => v5::decode(&mut self.input, self.packet_bytes_max),
        }
    }

    fn encode(&mut self, packet: Outgoing) -> Result<(), ConnectionError> {
        self.needs_write = true;
        match self.protocol {
            Protocol::V311 => v311::encode(packet, &mut self.output),
            Protocol::V5 => v5::encode(packet, &mut self.output),
        }
    }

    /// Waits for one thing and does it. Cancel-safe: nothing is waited for after something was taken.
    async fn step(&mut self) -> Result<(), ConnectionError> {
        let Some(Connection { reader, writer, ping, .. }) = &mut self.connection else {
            return Err(ConnectionError::other("not connected"));
        };
        if let Some(error) = &self.write_error {
            return read_last_words(reader, &mut self.input, error).await;
        }
        let can_take = !self.needs_write && self.ids.has_room();
        self.input.reserve(READ_BYTES);
        let step = tokio::select! {
            read = reader.read_buf(&mut self.input) => Step::Read(read),
            written = write(writer, &mut self.output), if self.needs_write => Step::Written(written),
            request = self.requests.recv(), if can_take => Step::Requested(request),
            _ = ping.tick() => Step::PingDue,
        };
        match step {
            Step::Read(Ok(0)) => return Err(error::closed()),
            Step::Read(Ok(_)) => {}
            Step::Read(Err(error)) => return Err(error::from_io(&error)),
            Step::Written(Err(error)) => self.write_error = Some(error::from_io(&error)),
            Step::Written(Ok(())) => self.on_written(),
            Step::Requested(Some(request)) => return self.take_requests(request),
            Step::Requested(None) => return Err(ConnectionError::other("the connection was given up")),
            Step::PingDue => return self.on_ping_due(),
        }
        Ok(())
    }

    /// Encodes a request, and those that wait behind it, as one write.
    fn take_requests(&mut self, first: Request) -> Result<(), ConnectionError> {
        let mut next = Some(first);
        while let Some(request) = next {
            self.take_request(request)?;
            let has_room = self.output.len() < WRITE_BYTES && self.ids.has_room();
            next = if has_room { self.requests.try_recv().ok() } else { None };
        }
        Ok(())
    }

    fn take_request(&mut self, request: Request) -> Result<(), ConnectionError> {
        match request {
            Request::Publish(message) => {
                let id = if message.route.qos == Qos::AtMostOnce { 0 } else { self.ids.of_publish() };
                self.unwritten.push_back(Event::Written(id));
                self.encode(Outgoing::Publish(id, message))
            }
            Request::Subscribe(filters, qos) => self.subscribe(&filters, qos),
            Request::Acknowledge(ack_token) => self.encode(Outgoing::Acknowledge(ack_token)),
            Request::Disconnect => {
                self.unwritten.push_back(Event::Disconnected);
                self.encode(Outgoing::Disconnect)
            }
        }
    }

    fn subscribe(&mut self, filters: &[String], qos: Qos) -> Result<(), ConnectionError> {
        let mut subscription = Subscription::default();
        for filters in filters.chunks(self.filters_max) {
            let id = self.ids.unused();
            self.ids.reserved.insert(id);
            subscription.unanswered.insert(id, filters.to_vec());
            self.encode(Outgoing::Subscribe(id, filters.to_vec(), qos))?;
        }
        self.subscriptions.push(subscription);
        Ok(())
    }

    fn on_packet(&mut self, packet: Incoming) -> Result<(), ConnectionError> {
        match packet {
            Incoming::PubAck(id, puback) => self.on_puback(id, puback),
            Incoming::SubAck(id, answers) => return self.on_suback(id, answers),
            Incoming::Publish(received) => {
                if !self.has_manual_acks && received.ack_token != AckToken::None {
                    self.encode(Outgoing::Acknowledge(received.ack_token))?;
                }
                self.events.push_back(Event::Received(Box::new(received)));
            }
            Incoming::PubRel(id) => self.encode(Outgoing::PubComp(id))?,
            Incoming::PingResponse => {
                if let Some(connection) = &mut self.connection {
                    connection.awaits_pong = false;
                }
            }
            Incoming::ConnAck(_) | Incoming::Ignored => {}
        }
        Ok(())
    }

    /// Reports a subscription when its last packet is answered.
    fn on_suback(&mut self, id: u16, answers: Vec<Option<String>>) -> Result<(), ConnectionError> {
        self.ids.reserved.remove(&id);
        let unasked = || ConnectionError::other("the broker answered a subscription that was not made");
        let is_asked = |subscription: &Subscription| subscription.unanswered.contains_key(&id);
        let index = self.subscriptions.iter().position(is_asked).ok_or_else(unasked)?;
        let subscription = &mut self.subscriptions[index];
        let filters = subscription.unanswered.remove(&id).unwrap_or_default();
        let missing = || Some("the broker gave no answer".to_owned());
        let answers = answers.into_iter().chain(std::iter::repeat_with(missing));
        subscription.answers.extend(filters.into_iter().zip(answers));
        if subscription.unanswered.is_empty() {
            let answers = self.subscriptions.remove(index).answers;
            self.events.push_back(Event::Subscribed(answers));
        }
        Ok(())
    }

    fn on_puback(&mut self, id: u16, puback: PubAck) {
        self.ids.unacknowledged.remove(&id);
        // With TLS a part may be at the broker while the rest is not written yet: what is acknowledged was.
        if self.unwritten.iter().any(|event| matches!(event, Event::Written(written) if *written == id)) {
            while let Some(event) = self.unwritten.pop_front() {
                let is_acknowledged = matches!(event, Event::Written(written) if written == id);
                self.events.push_back(event);
                if is_acknowledged {
                    break;
                }
            }
        }
        self.events.push_back(Event::Acknowledged(id, puback));
    }

    fn on_written(&mut self) {
        self.needs_write = false;
        self.events.append(&mut self.unwritten);
        if self.output.capacity() > KEPT_BYTES {
            self.output = BytesMut::new();
        }
        // A ping that was behind a large message is on its way only now.
        if let Some(Connection { ping, unwritten_at_ping: behind @ 1.., .. }) = &mut self.connection {
            *behind = 0;
            ping.reset();
        }
    }

    fn on_ping_due(&mut self) -> Result<(), ConnectionError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let unwritten = self.output.len();
        let is_progressing = self.needs_write && unwritten < connection.unwritten_at_ping;
        connection.unwritten_at_ping = unwritten;
        match connection.awaits_pong {
            true if is_progressing => Ok(()),
            true if self.needs_write => Err(ConnectionError::other("the broker has stopped reading")),
            // No PINGRESP within the keep-alive: the connection is dead without a FIN or RST.
            true => Err(ConnectionError::other(error::SILENT)),
            false => {
                connection.awaits_pong = true;
                self.encode(Outgoing::Ping)
            }
        }
    }
}

/// Reads what the broker sent before nothing could be written any more because of `error`, which is returned when that is
/// all. Cancel-safe.
async fn read_last_words(
    reader: &mut ReadHalf<Box<dyn ByteStream>>,
    input: &mut BytesMut,
    error: &ConnectionError,
) -> Result<(), ConnectionError> {
    let read = timeout(LAST_WORDS_TIMEOUT, reader.read_buf(input)).await;
    if matches!(read, Ok(Ok(1..))) { Ok(()) } else { Err(error.clone()) }
}

/// Writes everything. Cancel-safe: what was written is no longer in `output`.
async fn write(writer: &mut WriteHalf<Box<dyn ByteStream>>, output: &mut BytesMut) -> std::io::Result<()> {
    while !output.is_empty() {
        if writer.write_buf(output).await? == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await
}

fn ping_interval(keep_alive: Duration) -> Interval {
    let mut ping = interval_at(Instant::now() + keep_alive, keep_alive);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping
}

/// The packet ids in use (MQTT 5 §2.2.1). They go round, so that one that is answered late does not meet its successor.
#[derive(Default)]
struct PacketIds {
    last: u16,
    /// Of publishes.
    unacknowledged: HashSet<u16>,
    /// Receive Maximum.
    unacknowledged_max: usize,
    /// Of subscriptions.
    reserved: HashSet<u16>,
}

impl PacketIds {
    fn has_room(&self) -> bool {
        self.unacknowledged.len() < self.unacknowledged_max && self.reserved.len() < SUBSCRIBES_MAX
    }

    fn of_publish(&mut self) -> u16 {
        let id = self.unused();
        self.unacknowledged.insert(id);
        id
    }

    fn unused(&mut self) -> u16 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.unacknowledged.contains(&self.last) && !self.reserved.contains(&self.last) {
                return self.last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use bytes::Bytes;
    use tokio::io::Interest;
    use tokio::net::TcpStream;

    use super::super::super::demands::Demands;
    use super::super::super::message::Message;
    use super::super::super::topics::Route;
    use super::*;

    #[tokio::test]
    async fn the_reason_that_a_broker_gave_before_a_write_failed_is_the_error() {
        // Whether a step reads or writes first is random.
        for _ in 0..20 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let options = ConnectOptions::new(&Demands::all(Protocol::V5), "us".to_owned(), 10);
            let settings = Settings::of_tests(&format!("mqtt://{}", listener.local_addr().unwrap()));
            let (client, mut events) = open(&settings, None, &options);
            let accepted = tokio::task::spawn_blocking(move || {
                let (mut broker, _) = listener.accept().unwrap();
                broker.write_all(&[0x20, 0x03, 0x00, 0x00, 0x00]).unwrap();
                broker
            });
            events.connected().await.unwrap();
            let mut broker = accepted.await.unwrap();
            let route = Route { topic: "a".to_owned(), qos: Qos::AtLeastOnce, is_retained: false };
            client.publish(Message::text(route, Bytes::new())).unwrap();
            broker.write_all(&[0xE0, 0x01, 0x8E]).unwrap();
            // With our CONNECT unread, so the connection is reset and nothing can be written any more.
            drop(broker);
            let error = loop {
                match events.next().await {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.reason, error::TAKEN_OVER);
        }
    }
    /// Returns the error of a handshake with a broker that says this, and has reset the connection before CONNECT is written.
    async fn refused(protocol: Protocol, said: &[u8]) -> ConnectionError {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut broker, _) = listener.accept().unwrap();
        // What is unread there makes the end of the connection a reset.
        stream.write_all(b"x").await.unwrap();
        broker.peek(&mut [0]).unwrap();
        broker.write_all(said).unwrap();
        drop(broker);
        stream.ready(Interest::ERROR).await.unwrap();
        let options = ConnectOptions::new(&Demands::all(protocol), "us".to_owned(), 10);
        let (_client, mut events) = open(&Settings::of_tests("mqtt://127.0.0.1:1"), None, &options);
        events.greet(BytesMut::from("CONNECT"), Box::new(stream)).await.unwrap_err()
    }

    #[tokio::test]
    async fn what_a_broker_said_in_place_of_connack_is_the_error_though_connect_was_not_written() {
        let http = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request";
        for (protocol, said, kind, reason) in [
            (Protocol::V5, &[0x20, 0x03, 0x00, 0x86, 0x00][..], ErrorKind::Other, error::BAD_PASSWORD),
            (Protocol::V5, &[0x20, 0x03, 0x00, 0x84, 0x00], ErrorKind::VersionRefused, ""),
            (Protocol::V311, &[0x20, 0x02, 0x00, 0x05], ErrorKind::Other, error::NOT_AUTHORIZED),
            (Protocol::V5, http, ErrorKind::Unreadable, error::UNREADABLE),
            (Protocol::V311, http, ErrorKind::Unreadable, error::UNREADABLE),
            (Protocol::V5, b"", ErrorKind::Closed, error::CLOSED),
        ] {
            let error = refused(protocol, said).await;
            assert_eq!(error.kind, kind, "{said:?}: {error:?}");
            assert!(error.reason.contains(reason), "{said:?}: {error:?}");
        }
    }
}
