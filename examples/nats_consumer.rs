//! Reads dtorrent's events from NATS and proves that none is missing.
//!
//! ```console
//! $ cargo run --example nats_consumer -- nats://localhost:4222
//! ```
//!
//! `seq` counts up by one for each server and epoch, over all events except `updated`. The epoch is in
//! the id, before the last `-`; a new epoch starts at 1. A redelivery has the id of the first delivery.

use std::collections::BTreeMap;

use async_nats::jetstream::{self, consumer::AckPolicy, consumer::pull};
use futures_util::StreamExt as _;
use serde_json::Value;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The last `seq` of each epoch of each server.
#[derive(Default)]
pub struct LastSeqs(BTreeMap<String, u64>);

impl LastSeqs {
    /// Returns whether the event is new; an error if one before it is missing.
    pub fn record(&mut self, event: &Value) -> Result<bool, Error> {
        let id = event["id"].as_str().ok_or("an event has an id")?;
        let seq = event["seq"].as_u64().ok_or("a stored event has a number")?;
        let epoch = id.rsplit_once('-').map_or(id, |(epoch, _)| epoch);
        let last = self.0.entry(epoch.to_owned()).or_default();
        if seq <= *last {
            return Ok(false);
        }
        if seq > *last + 1 && *last > 0 {
            return Err(format!("{} of {epoch} is missing", *last + 1).into());
        }
        *last = seq;
        Ok(true)
    }
}

/// Reads until `is_enough` of an event that is new.
pub async fn consume(url: &str, mut is_enough: impl FnMut(&Value) -> bool) -> Result<(), Error> {
    let jetstream = jetstream::new(async_nats::connect(url).await?);
    let stream = jetstream.get_stream("DTORRENT_EVENTS").await?;
    let config = pull::Config {
        durable_name: Some("example-rs".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let mut messages = stream.get_or_create_consumer("example-rs", config).await?.messages().await?;
    let mut last_seqs = LastSeqs::default();
    while let Some(message) = messages.next().await {
        let message = message?;
        let event: Value = serde_json::from_slice(&message.payload)?;
        let is_new = last_seqs.record(&event)?;
        message.ack().await?;
        if is_new && is_enough(&event) {
            break;
        }
    }
    Ok(())
}

#[tokio::main]
#[allow(dead_code, reason = "the tests call the function above")]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "nats://localhost:4222".to_owned());
    consume(&url, |event| {
        println!("{} {} {}", event["server"], event["seq"], event["event_type"]);
        false
    })
    .await
}
