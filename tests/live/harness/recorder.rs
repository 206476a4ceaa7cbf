//! A consumer at the broker that records every message and sends commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dtorrent_peers::InfoHash;
use dtorrent_peers::process::TIMEOUT;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::schemas;

#[derive(Clone, Debug)]
pub struct Message {
    pub at: Instant,
    pub topic: String,
    pub payload: Bytes,
    /// The retain flag as published (`retain as published` is set in the subscription).
    pub retain: bool,
    pub qos: QoS,
    pub properties: PublishProperties,
}

impl Message {
    /// Returns the body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

pub struct Recorder {
    received: Arc<Mutex<Vec<Message>>>,
    /// Messages sent by the test, which may be malformed.
    sent: Mutex<BTreeSet<(String, Bytes)>>,
    arrivals: watch::Receiver<()>,
    subscriptions: watch::Receiver<usize>,
    client: AsyncClient,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Recorder {
    /// Checks every received message against the schemas.
    fn drop(&mut self) {
        self.task.abort();
        let (all, sent) = (self.all(), self.sent.lock().unwrap());
        let by_others = all.iter().filter(|message| !sent.contains(&(message.topic.clone(), message.payload.clone())));
        // An empty retained message clears the topic.
        let bodies = by_others.filter(|message| !(message.retain && message.payload.is_empty()));
        schemas::assert_fit(bodies.map(|message| (message.topic.as_str(), &message.payload[..])));
    }
}

/// A command sent by a test: topic and body.
pub struct Command<'a> {
    pub topic: &'a str,
    pub body: Vec<u8>,
    pub retain: bool,
    pub properties: PublishProperties,
}

impl<'a> Command<'a> {
    pub fn new(topic: &'a str, body: impl Into<Vec<u8>>) -> Self {
        Self { topic, body: body.into(), retain: false, properties: PublishProperties::default() }
    }
}

impl Recorder {
    /// Connects, subscribes to everything, and returns once the broker has acknowledged the subscription.
    #[allow(clippy::disallowed_methods)] // a test's own task
    pub async fn listen(port: u16) -> Self {
        let name = format!("recorder-{}", rand::random::<u32>());
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(Some(64 << 20)).set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = AsyncClient::new(options, 100);
        let (wake, arrivals) = watch::channel(());
        let (subscribed, subscriptions) = watch::channel(0);
        let received = Arc::new(Mutex::new(Vec::new()));
        let (all, subscriber) = (Arc::clone(&received), client.clone());
        let task = tokio::spawn(async move {
            loop {
                match connection.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let filter = Filter { preserve_retain: true, ..Filter::new("#", QoS::AtLeastOnce) };
                        subscriber.try_subscribe_many([filter]).expect("the queue has room for a subscription");
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => subscribed.send_modify(|count| *count += 1),
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        all.lock().unwrap().push(Message {
                            at: Instant::now(),
                            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                            payload: publish.payload,
                            retain: publish.retain,
                            qos: publish.qos,
                            properties: publish.properties.unwrap_or_default(),
                        });
                        wake.send_replace(());
                    }
                    Ok(_) => {}
                    // Some tests stop the broker.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let recorder = Self { received, sent: Mutex::default(), arrivals, subscriptions, client, task };
        recorder.subscribed(1).await;
        recorder
    }

    /// Waits for the `count`-th subscription: messages published afterwards are received.
    pub async fn subscribed(&self, times: usize) {
        let mut subscriptions = self.subscriptions.clone();
        let enough = subscriptions.wait_for(|count| *count >= times);
        tokio::time::timeout(TIMEOUT, enough).await.expect("the broker accepts the subscription").unwrap();
    }

    /// Returns the number of subscriptions so far.
    pub fn subscriptions(&self) -> usize {
        *self.subscriptions.borrow()
    }

    /// Returns every message received so far.
    pub fn all(&self) -> Vec<Message> {
        self.received.lock().unwrap().clone()
    }

    /// Returns the number of messages so far, for [`Self::since`].
    pub fn mark(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    pub fn since(&self, mark: usize) -> Vec<Message> {
        self.received.lock().unwrap()[mark..].to_vec()
    }

    /// Waits until `find` returns a value for the received messages.
    pub async fn wait_for<T>(&self, what: &str, find: impl FnMut(&[Message]) -> Option<T>) -> T {
        self.wait_within(TIMEOUT, what, find).await
    }

    /// As [`Self::wait_for`], with another timeout.
    pub async fn wait_within<T>(
        &self,
        patience: Duration,
        what: &str,
        mut find: impl FnMut(&[Message]) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + patience;
        let mut arrivals = self.arrivals.clone();
        loop {
            arrivals.mark_unchanged();
            if let Some(found) = find(&self.received.lock().unwrap()) {
                return found;
            }
            if tokio::time::timeout_at(deadline, arrivals.changed()).await.is_err() {
                panic!("timed out waiting for {what}; last messages:\n{}", self.last_received());
            }
        }
    }

    fn last_received(&self) -> String {
        let all = self.all();
        let last = all.iter().skip(all.len().saturating_sub(25));
        let lines = last.map(|message| {
            let text: String = message.text().chars().take(300).collect();
            format!("  {}{} {text}\n", message.topic, if message.retain { " (retained)" } else { "" })
        });
        lines.collect()
    }

    /// Returns all events of a server except `updated`, in the order of arrival.
    pub fn events(&self, server: &str) -> Vec<Value> {
        events_in(&self.all(), server)
    }

    /// Waits for an event of a torrent.
    pub async fn event(&self, server: &str, kind: &str, hash: InfoHash) -> Value {
        self.event_after(0, server, kind, hash).await
    }

    /// Waits for an event of a torrent that was received after `mark`.
    pub async fn event_after(&self, mark: usize, server: &str, kind: &str, hash: InfoHash) -> Value {
        let topic = format!("dtorrent/{server}/torrent/{hash}/event/{kind}");
        self.wait_for(&topic, |all| all[mark..].iter().find(|m| m.topic == topic).map(Message::json)).await
    }

    /// Waits for an event of a server that was received after `mark`.
    pub async fn server_event_after(&self, mark: usize, server: &str, kind: &str) -> Value {
        let topic = format!("dtorrent/{server}/event/{kind}");
        self.wait_for(&topic, |all| all[mark..].iter().find(|m| m.topic == topic).map(Message::json)).await
    }

    /// Waits until the latest message on a topic is `text`.
    pub async fn wait_for_last(&self, topic: &str, text: &str) {
        let what = format!("{topic} to say {text}");
        self.wait_for(&what, |all| {
            let last = all.iter().rev().find(|message| message.topic == topic)?;
            (last.payload == text.as_bytes()).then_some(())
        })
        .await;
    }

    /// Sends a message.
    pub async fn send(&self, command: Command<'_>) {
        let Command { topic, body, retain, properties } = command;
        self.sent.lock().unwrap().insert((topic.to_owned(), body.clone().into()));
        self.client.publish_with_properties(topic, QoS::AtLeastOnce, retain, body, properties).await.unwrap();
    }

    /// Sends a command below `dtorrent/` with an id of its own, and waits for its result.
    pub async fn command(&self, topic: &str, mut body: Value) -> Value {
        if body.is_null() {
            body = json!({});
        }
        if body["id"].is_null() {
            body["id"] = json!(format!("test-{:016x}", rand::random::<u64>()));
        }
        let id = body["id"].as_str().unwrap().to_owned();
        self.send(Command::new(&format!("dtorrent/{topic}"), body.to_string())).await;
        self.result(&id).await
    }

    /// Waits for the result with this id.
    pub async fn result(&self, id: &str) -> Value {
        self.wait_for(&format!("the result of {id}"), |all| results_in(all, id).into_iter().next()).await
    }

    /// Waits longer for the result with this id.
    pub async fn result_within(&self, patience: Duration, id: &str) -> Value {
        self.wait_within(patience, id, |all| results_in(all, id).into_iter().next()).await
    }

    /// Returns all results with this id on result topics.
    pub fn results(&self, id: &str) -> Vec<Value> {
        results_in(&self.all(), id)
    }

    /// Asserts as a consumer would that no event of a server is missing, and returns its events.
    ///
    /// There is one epoch, numbers run from 1 without a gap, first deliveries are in order, and a redelivery has the same
    /// body.
    pub fn assert_gap_free(&self, server: &str) -> Vec<Value> {
        let mut epochs = self.assert_gap_free_epochs(server);
        assert!(epochs.len() <= 1, "the state was lost: there are several epochs");
        self.assert_states_follow_events(server);
        epochs.pop().unwrap_or_default()
    }

    /// Asserts the same for each epoch of a server, in the order in which they began.
    pub fn assert_gap_free_epochs(&self, server: &str) -> Vec<Vec<Value>> {
        let mut bodies: BTreeMap<String, Value> = BTreeMap::new();
        let mut epochs: Vec<(String, Vec<Value>)> = Vec::new();
        for event in self.events(server) {
            let id = event["id"].as_str().expect("an event has an id").to_owned();
            if let Some(known) = bodies.get(&id) {
                assert_eq!(*known, event, "one id, two bodies");
                continue;
            }
            let (epoch, number) = id.rsplit_once('-').expect("an id ends with a number");
            if epochs.last().is_none_or(|(last, _)| last != epoch) {
                assert!(epochs.iter().all(|(before, _)| before != epoch), "{epoch} is over, and continues at {event}");
                epochs.push((epoch.to_owned(), Vec::new()));
            }
            let (_, events) = epochs.last_mut().expect("there is one now");
            let expected = events.len() as u64 + 1;
            assert_eq!(event["seq"], expected, "a gap or a change of order on {server} at {event}");
            assert_eq!(number, format!("{expected:012}"), "{id}");
            bodies.insert(id, event.clone());
            events.push(event);
        }
        epochs.into_iter().map(|(_, events)| events).collect()
    }

    /// Asserts that no state is published before the event that led to it, nor cleared before `removed`.
    fn assert_states_follow_events(&self, server: &str) {
        let prefix = format!("dtorrent/{server}/torrent/");
        let mut present: BTreeMap<String, bool> = BTreeMap::new();
        // Above the limit not every state is retained, and one that no longer is gets cleared without a `removed`.
        let is_added = |message: &&Message| message.topic.ends_with("/event/added");
        let were_many = self.all().iter().filter(is_added).count() > 500;
        for message in self.all() {
            let Some((hash, rest)) = message.topic.strip_prefix(&prefix).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            match (rest, message.payload.is_empty()) {
                ("event/added", _) => drop(present.insert(hash.to_owned(), true)),
                ("event/removed", _) => drop(present.insert(hash.to_owned(), false)),
                ("state", is_cleared) => {
                    let is_present = present.get(hash).copied().unwrap_or(false);
                    if were_many && is_present && is_cleared {
                        continue;
                    }
                    assert_eq!(is_present, !is_cleared, "the state of {hash} contradicts its events");
                }
                _ => {}
            }
        }
    }
}

/// Returns the error code of a result or of its first row.
pub fn error_code(result: &Value) -> &Value {
    if result["error"].is_null() { &result["results"][0]["error"]["code"] } else { &result["error"]["code"] }
}

pub fn events_in(messages: &[Message], server: &str) -> Vec<Value> {
    let of_torrents = format!("dtorrent/{server}/torrent/");
    let of_server = format!("dtorrent/{server}/event/");
    let events = messages.iter().filter(|message| {
        let topic = &message.topic;
        let is_event = topic.starts_with(&of_server) || (topic.starts_with(&of_torrents) && topic.contains("/event/"));
        is_event && !topic.ends_with("/updated")
    });
    events.map(Message::json).collect()
}

fn results_in(messages: &[Message], id: &str) -> Vec<Value> {
    let on_topic = messages.iter().filter(|message| message.topic.ends_with("/result"));
    on_topic.map(Message::json).filter(|result| result["id"] == id).collect()
}
