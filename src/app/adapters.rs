//! Builds adapters from their settings in the config.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clients::exec::ExecClient;
use crate::clients::rtorrent::RtorrentClient;
use crate::config::{Broker, BrokerKind, Client, Webhook};
use crate::model::{Seq, ServerName, SinkName};
use crate::port::{Clock, CommandSource, Connected, DeliverError, Sink, TorrentClient};
use crate::sinks::mqtt::MqttSink;
use crate::sinks::nats::NatsSink;
use crate::sinks::webhook::Endpoint;

/// The adapter of a broker, of either kind.
#[derive(Clone)]
pub(super) enum BrokerAdapter {
    Mqtt(Arc<MqttSink>),
    Nats(Arc<NatsSink>),
}

impl BrokerAdapter {
    /// Builds the adapter of a broker. `before`: the newest journal entry of each server when this run began.
    pub(super) fn new(broker: &Broker, before: BTreeMap<ServerName, Seq>) -> anyhow::Result<Self> {
        Ok(match &broker.kind {
            BrokerKind::Mqtt(settings) => Self::Mqtt(Arc::new(MqttSink::new(settings.as_ref().clone())?)),
            BrokerKind::Nats(settings) => Self::Nats(Arc::new(NatsSink::new(settings.as_ref().clone(), before)?)),
        })
    }

    pub(super) fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Self::Mqtt(sink) => sink.clone(),
            Self::Nats(sink) => sink.clone(),
        }
    }

    /// Returns the source of commands; `None` if the broker needs none.
    pub(super) fn commands(&self, broker: &Broker, clock: &Arc<dyn Clock>) -> Option<Box<dyn CommandSource>> {
        match self {
            // Without a subscription there is no second connection to an MQTT broker.
            Self::Mqtt(_) if broker.commands.is_empty() => None,
            Self::Mqtt(sink) => Some(Box::new(sink.commands())),
            // A read-only bridge answers `$SRV.PING` too, because NATS has no last will (docs/nats.md, Presence).
            Self::Nats(sink) => Some(Box::new(sink.commands(&**clock))),
        }
    }

    /// Opens a connection while the bridge is stopped. On MQTT it has no last will and leaves the status topic alone.
    pub(super) async fn connect_detached(&self) -> Result<Connected, DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.connect_detached().await,
            Self::Nats(sink) => sink.connect().await,
        }
    }

    pub(super) async fn probe(&self) -> Result<(), DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.probe().await,
            Self::Nats(sink) => sink.probe().await,
        }
    }

    pub(super) async fn purge(&self, names: Vec<String>) -> Result<usize, DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.purge(names).await,
            Self::Nats(sink) => sink.purge(names).await,
        }
    }
}

/// Builds the adapter of a torrent client.
pub fn build_client(client: &Client) -> anyhow::Result<Arc<dyn TorrentClient>> {
    Ok(match client {
        Client::Rtorrent(settings) => Arc::new(RtorrentClient::new(settings.as_ref().clone())?),
        Client::Exec(settings) => Arc::new(ExecClient::new(settings.clone())),
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
