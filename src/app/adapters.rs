//! From the config to the adapters: which client, which sink, with which settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clients::exec::{self, ExecClient};
use crate::clients::rtorrent::RtorrentClient;
use crate::clients::rtorrent::settings as rtorrent;
use crate::config::{self, Broker, BrokerKind, Client, Mqtt, MqttVersion, Nats, Rtorrent, Server, Webhook};
use crate::model::{Seq, ServerName, SinkName, Verb};
use crate::outbox::retention::Retain;
use crate::port::{Clock, CommandSource, Connected, DeliverError, Sink, TorrentClient};
use crate::sinks::mqtt::{self, MqttSink};
use crate::sinks::nats::{self, NatsSink};
use crate::sinks::webhook::{Endpoint, WebhookSink};

/// A broker of either kind.
#[derive(Clone)]
pub(super) enum Reached {
    Mqtt(Arc<MqttSink>),
    Nats(Arc<NatsSink>),
}

impl Reached {
    /// `before`: the newest journal entry of each server when this run began.
    pub(super) fn new(
        name: &SinkName,
        instance: &str,
        broker: &Broker,
        before: BTreeMap<ServerName, Seq>,
    ) -> anyhow::Result<Self> {
        Ok(match &broker.kind {
            BrokerKind::Mqtt(mqtt) => {
                Self::Mqtt(Arc::new(MqttSink::new(mqtt_settings(name, instance, broker, mqtt)?)?))
            }
            BrokerKind::Nats(nats) => {
                Self::Nats(Arc::new(NatsSink::new(nats_settings(name, instance, broker, nats)?, before)?))
            }
        })
    }

    pub(super) fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Self::Mqtt(sink) => sink.clone(),
            Self::Nats(sink) => sink.clone(),
        }
    }

    /// `None`: nothing is to be taken from there.
    pub(super) fn commands(&self, broker: &Broker, clock: &Arc<dyn Clock>) -> Option<Box<dyn CommandSource>> {
        match self {
            Self::Mqtt(_) if broker.commands.is_empty() => None,
            Self::Mqtt(sink) => Some(Box::new(sink.commands())),
            // Also one that is read-only shows that it is there.
            Self::Nats(sink) => Some(Box::new(sink.commands(&**clock))),
        }
    }

    /// A connection for what a bridge that does not run hands over; it says nothing of the bridge.
    pub(super) async fn connect_aside(&self) -> Result<Connected, DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.connect_aside().await,
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

/// The adapter for one server of the config.
pub fn build_client(name: &ServerName, server: &Server) -> anyhow::Result<Arc<dyn TorrentClient>> {
    let (server_name, timeout) = (name.clone(), server.timeout);
    Ok(match &server.client {
        Client::Rtorrent(rtorrent) => {
            Arc::new(RtorrentClient::new(rtorrent_settings(server_name, rtorrent, timeout)?)?)
        }
        Client::Exec { command } => {
            Arc::new(ExecClient::new(exec::Settings { server: server_name, command: command.clone(), timeout }))
        }
    })
}

fn rtorrent_settings(server: ServerName, of: &Rtorrent, timeout: Duration) -> anyhow::Result<rtorrent::Settings> {
    let Rtorrent { url, username, password, ca_pem, hooks: _, extra, rpc } = of;
    let column = |(key, column): (&String, &String)| Ok((key.as_str().into(), rtorrent::ExtraColumn::parse(column)?));
    Ok(rtorrent::Settings {
        server,
        endpoint: rtorrent::Endpoint::parse(url)?,
        username: username.clone(),
        password: password.clone(),
        ca_pem: ca_pem.clone(),
        timeout,
        extra: extra.iter().map(column).collect::<anyhow::Result<_>>()?,
        rpc: rpc.iter().map(|method| Ok(rtorrent::AllowedMethod::parse(method)?)).collect::<anyhow::Result<_>>()?,
    })
}

/// The settings of one broker of the config.
fn mqtt_settings(name: &SinkName, instance: &str, broker: &Broker, mqtt: &Mqtt) -> anyhow::Result<mqtt::Settings> {
    let Mqtt { version, retain, home_assistant } = mqtt;
    Ok(mqtt::Settings {
        name: name.clone(),
        instance: instance.to_owned(),
        url: mqtt::BrokerUrl::parse(&broker.url)?,
        username: broker.username.clone(),
        password: broker.password.clone(),
        ca_pem: broker.ca_pem.clone(),
        client_cert: broker
            .client_auth
            .as_ref()
            .map(|auth| mqtt::ClientCert { cert_pem: auth.cert_pem.clone(), key_pem: auth.key_pem.clone() }),
        version: match version {
            MqttVersion::Auto => mqtt::Version::Auto,
            MqttVersion::V5 => mqtt::Version::V5,
            MqttVersion::V311 => mqtt::Version::V311,
        },
        prefix: mqtt::Prefix::parse(&broker.prefix)?,
        servers: broker.servers.clone(),
        retain: *retain != config::Retain::None,
        home_assistant: home_assistant.as_ref().map(|wanted| home_assistant_settings(wanted, broker)),
    })
}

fn home_assistant_settings(wanted: &config::HomeAssistant, broker: &Broker) -> mqtt::HomeAssistant {
    let config::HomeAssistant { discovery_prefix, slots, torrents, torrents_max, alternative, normal } = wanted;
    let limits = |(download, upload)| mqtt::Limits { download, upload };
    mqtt::HomeAssistant {
        discovery_prefix: discovery_prefix.clone(),
        slots: *slots,
        torrents: torrents.clone(),
        torrents_max: *torrents_max,
        alternative: alternative.map(limits),
        normal: limits(*normal),
        // Only what this version carries out becomes a button.
        verbs: broker.commands.iter().filter(|verb| Verb::parse(verb).is_some()).map(str::to_owned).collect(),
    }
}

fn nats_settings(name: &SinkName, instance: &str, broker: &Broker, nats: &Nats) -> anyhow::Result<nats::Settings> {
    let Nats { urls, login, jetstream, replicas } = nats;
    Ok(nats::Settings {
        name: name.clone(),
        instance: instance.to_owned(),
        urls: urls.iter().map(|url| Ok(nats::ServerUrl::parse(url)?)).collect::<anyhow::Result<_>>()?,
        login: login.clone(),
        ca_pem: broker.ca_pem.clone(),
        client_cert: broker
            .client_auth
            .as_ref()
            .map(|auth| nats::ClientCert { cert_pem: auth.cert_pem.clone(), key_pem: auth.key_pem.clone() }),
        prefix: nats::Prefix::parse(&broker.prefix)?,
        servers: broker.servers.clone(),
        jetstream: *jetstream,
        replicas: *replicas,
        takes_commands: !broker.commands.is_empty(),
    })
}

/// Where the events of a webhook go.
pub(super) fn build_endpoint(webhook: &Webhook, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<Endpoint>> {
    Ok(Arc::new(Endpoint::new(webhook.endpoint.clone(), Arc::clone(clock))?))
}

/// The sinks of a webhook, one for each of its servers, with its server.
pub(super) fn lines<'a>(name: &'a SinkName, webhook: &'a Webhook) -> impl Iterator<Item = (SinkName, &'a ServerName)> {
    webhook.servers.iter().map(|server| (name.line(server), server))
}

pub(super) fn build_line(line: SinkName, endpoint: &Arc<Endpoint>) -> Arc<dyn Sink> {
    Arc::new(WebhookSink::new(line, Arc::clone(endpoint)))
}

/// Which states a sink keeps. A bucket has room for any number of torrents.
pub(super) fn retain(broker: &Broker) -> Retain {
    match &broker.kind {
        BrokerKind::Nats(_) => Retain::All,
        BrokerKind::Mqtt(mqtt) => match mqtt.retain {
            config::Retain::Auto => Retain::Auto,
            config::Retain::All => Retain::All,
            config::Retain::None => Retain::None,
        },
    }
}
