//! Retained messages on a broker: reading what is there, and clearing it.

use std::time::Duration;

use bytes::Bytes;

use super::message::Message;
use super::topics::Qos;
use super::wire::{Client, ConnectionError, Event, EventLoop, PubAck};

/// Maximum pause between two retained messages after the last answer.
const RETAINED_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of retained messages that a scan collects; no server has as many torrents.
const RETAINED_MAX: usize = 200_000;
/// Maximum size of their topics and bodies together. Others may retain anything below the prefix; what a scan does not
/// reach stays retained.
const RETAINED_BYTES_MAX: usize = 32 << 20;
/// Maximum size of the body of a status.
pub(super) const STATUS_BYTES_MAX: usize = 64;

/// Connects, reads what is retained under these filters, and disconnects. A body of more than `body_bytes_max` is left empty.
pub(super) async fn read(
    client: Client,
    mut events: EventLoop,
    filters: Vec<String>,
    body_bytes_max: usize,
) -> Result<Vec<(String, Bytes)>, ConnectionError> {
    events.connected().await?;
    let retained = match filters.is_empty() {
        true => Vec::new(),
        false => read_filters(&client, &mut events, filters, body_bytes_max).await?,
    };
    if client.disconnect().is_ok() {
        events.disconnected().await.map_err(ConnectionError::once_connected)?;
    }
    Ok(retained)
}

async fn read_filters(
    client: &Client,
    events: &mut EventLoop,
    filters: Vec<String>,
    body_bytes_max: usize,
) -> Result<Vec<(String, Bytes)>, ConnectionError> {
    client.subscribe(filters.clone().into_iter(), Qos::AtMostOnce)?;
    // MQTT does not say where retained messages end. The answer to this one comes behind those that the first has brought.
    client.subscribe(filters.into_iter().take(1), Qos::AtMostOnce)?;
    let mut answers = 0;
    let mut retained: Vec<(String, Bytes)> = Vec::new();
    let mut bytes = 0;
    while retained.len() < RETAINED_MAX && bytes < RETAINED_BYTES_MAX {
        let event = match answers {
            0 | 1 => events.next().await.map_err(ConnectionError::once_connected),
            // Most brokers send retained messages before they answer a later subscription; some fetch them meanwhile.
            _ => match tokio::time::timeout(RETAINED_PAUSE, events.next()).await {
                Ok(event) => event.map_err(ConnectionError::once_connected),
                Err(_) => break,
            },
        };
        match event? {
            Event::Subscribed(_) => answers += 1,
            // A message without the flag was published just now, by a bridge that runs: it is not left over.
            Event::Received(received) if received.is_retained => {
                // Copied: a part of what was read would keep all of it, which is up to 16 MiB.
                let is_short = received.body.len() <= body_bytes_max;
                let body = if is_short { Bytes::copy_from_slice(&received.body) } else { Bytes::new() };
                bytes += received.topic.len() + body.len() + size_of::<(String, Bytes)>();
                retained.push((received.topic, body));
            }
            _ => {}
        }
    }
    Ok(retained)
}

/// Connects, clears these topics, and disconnects.
pub(super) async fn clear(client: Client, mut events: EventLoop, topics: Vec<String>) -> Result<(), ConnectionError> {
    let connack = events.connected().await?;
    for topic in topics.into_iter().filter(|_| connack.can_retain) {
        let mut message = Message::cleared(topic);
        if !connack.can_acknowledge {
            message.route.qos = Qos::AtMostOnce;
        }
        client.publish(message)?;
        // One at a time: slow, but never more than the broker's Receive Maximum, and a refusal is this topic's.
        loop {
            match events.next().await.map_err(ConnectionError::once_connected)? {
                Event::Acknowledged(_, PubAck::Accepted) | Event::Written(0) => break,
                Event::Acknowledged(_, PubAck::Refused(reason) | PubAck::Deferred(reason)) => {
                    return Err(ConnectionError::other(format!("the broker does not let us clear: {reason}")));
                }
                _ => {}
            }
        }
    }
    if client.disconnect().is_ok() {
        events.disconnected().await.map_err(ConnectionError::once_connected)?;
    }
    Ok(())
}
