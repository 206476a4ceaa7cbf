//! Builds adapters from their settings in the config.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clients::exec::ExecClient;
use crate::clients::rtorrent::RtorrentClient;
use crate::config::{Broker, BrokerKind, Client, Webhook};
use crate::model::{MemoryShares, Seq, ServerName, SinkName};
use crate::port::{Clock, TorrentClient};
use crate::sinks::broker::BrokerSink;
use crate::sinks::mqtt::MqttSink;
use crate::sinks::nats::NatsSink;
use crate::sinks::webhook::Endpoint;

/// Builds the adapter of a broker. `before`: the newest journal entry of each server when this run began.
pub(super) fn build_broker(broker: &Broker, before: BTreeMap<ServerName, Seq>) -> anyhow::Result<Arc<dyn BrokerSink>> {
    Ok(match &broker.kind {
        BrokerKind::Mqtt(settings) => Arc::new(MqttSink::new(settings.as_ref().clone())?),
        BrokerKind::Nats(settings) => Arc::new(NatsSink::new(settings.as_ref().clone(), before)?),
    })
}

/// Builds the adapter of a torrent client.
pub fn build_client(client: &Client) -> anyhow::Result<Arc<dyn TorrentClient>> {
    build_limited_client(client, MemoryShares::default().answer)
}

/// The same, of which an answer may take so much memory.
pub(super) fn build_limited_client(client: &Client, answer_bytes: usize) -> anyhow::Result<Arc<dyn TorrentClient>> {
    Ok(match client {
        Client::Rtorrent(settings) => {
            Arc::new(RtorrentClient::new(settings.as_ref().clone())?.with_answer_bytes(answer_bytes))
        }
        Client::Exec(settings) => Arc::new(ExecClient::new(settings.clone()).with_answer_bytes(answer_bytes)),
    })
}

/// Builds the endpoint of a webhook.
pub(super) fn build_endpoint(webhook: &Webhook, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<Endpoint>> {
    Ok(Arc::new(Endpoint::new(webhook.settings.clone(), Arc::clone(clock))?))
}

/// Returns the sinks of a webhook, one for each of its servers, with the server.
pub(super) fn webhook_sinks<'a>(
    name: &'a SinkName,
    webhook: &'a Webhook,
) -> impl Iterator<Item = (SinkName, &'a ServerName)> {
    webhook.servers.iter().map(|server| (name.line(server), server))
}
