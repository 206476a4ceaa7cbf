//! `dtorrent check`: validates the config and shows what will run.

use std::fmt::Write as _;

use clap::Args;

use super::terminal::print_bytes;
use super::{CommandResult, Exit, Options, print_message, report_peers, start_runtime};
use crate::app;
use crate::config::{self, Broker, BrokerKind, Client, Config, Webhook};
use crate::model::{Kind, printable};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Connect to every server, broker and webhook
    #[arg(long)]
    connect: bool,
}

pub(super) fn run(options: Options, arguments: &Arguments) -> CommandResult {
    let Arguments { connect } = arguments;
    let config = options.load_or_report()?;
    for warning in config::warnings(&config) {
        print_message(&format!("warning: {warning}"));
    }
    match print_bytes(summary(&config).as_bytes()) {
        // A closed stdout does not end the probe, whose answers go to stderr.
        Ok(()) | Err(Exit::Done) if *connect => report_peers(start_runtime()?.block_on(app::probe(&config))),
        printed => printed,
    }
}

/// Returns one line for each component that will run, without secrets.
fn summary(config: &Config) -> String {
    // Destructured by name, so that a new part of the config cannot be forgotten here.
    let Config {
        file,
        instance,
        data_dir,
        memory_max: _,
        add_urls: _,
        log: _,
        http,
        servers,
        brokers,
        webhooks,
        weak_secrets: _,
        mask: _,
    } = config;
    let file = file
        .as_ref()
        .map_or("none; everything comes from the environment".to_owned(), |path| path.display().to_string());
    let listen = http.listen.map_or("off".to_owned(), |listen| listen.to_string());
    let mut lines = vec![
        ("config".to_owned(), file),
        ("instance".to_owned(), instance.clone()),
        ("state".to_owned(), data_dir.display().to_string()),
        ("http".to_owned(), listen),
    ];
    for (name, server) in servers {
        let interval = humantime::format_duration(server.poll.interval);
        let what = match &server.client {
            Client::Rtorrent(settings) => settings.endpoint.to_string(),
            Client::Exec(settings) => format!("the program {}", settings.command.join(" ")),
        };
        let hooks = if server.hooks.is_some() { " and when a hook notifies" } else { "" };
        lines.push((format!("server {name}"), format!("{what}, every {interval}{hooks}")));
    }
    for (name, broker) in brokers {
        lines.push((format!("broker {name}"), describe(broker)));
    }
    for (name, webhook) in webhooks {
        lines.push((format!("webhook {name}"), describe_webhook(webhook)));
    }
    if brokers.is_empty() && webhooks.is_empty() {
        lines.push(("broker".to_owned(), "none: events are available over HTTP only".to_owned()));
    }
    let width = lines.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (what, line) in &lines {
        writeln!(text, "{what:width$}  {}", printable(line.as_bytes())).expect("a String takes everything");
    }
    text
}

fn describe(broker: &Broker) -> String {
    let servers: Vec<&str> = broker.servers().iter().map(|name| name.as_str()).collect();
    let commands: Vec<&str> = broker.commands.iter().collect();
    let commands = if commands.is_empty() { "none, read-only".to_owned() } else { commands.join(" ") };
    let (url, names) = match &broker.kind {
        BrokerKind::Mqtt(mqtt) => (mqtt.url.to_string(), format!("topics {}/…", mqtt.prefix)),
        BrokerKind::Nats(nats) => {
            let urls: Vec<String> = nats.urls.iter().map(ToString::to_string).collect();
            let stored = if nats.jetstream { "stored by JetStream" } else { "not stored" };
            (urls.join(", "), format!("subjects {}.…, {stored}", nats.prefix))
        }
    };
    format!("{url}, {names}, servers {}; commands: {commands}", servers.join(" "))
}

fn describe_webhook(webhook: &Webhook) -> String {
    let Webhook { servers, events, settings } = webhook;
    let servers: Vec<&str> = servers.iter().map(|name| name.as_str()).collect();
    let format = settings.format.name();
    let signed = if settings.secrets.is_some() { "signed" } else { "not signed" };
    let address = &settings.address;
    format!(
        "{address}, {format}, {signed}, servers {}; {} of {} kinds of events",
        servers.join(" "),
        events.len(),
        Kind::ALL.len()
    )
}
