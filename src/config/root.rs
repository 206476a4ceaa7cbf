//! The top level of the config: `instance`, `data_dir`, `[log]`, `[http]`, and the named tables.

use std::path::PathBuf;

use super::checked::{Config, Http};
use super::choose::commands;
use super::log::{Log, LogFormat};
use super::read::Table;
use super::secret::secret;
use super::{brokers, servers, values, webhooks};
use crate::model::{Mask, UrlRules};

/// Reads the whole config; `None` only if an error was noted. `file`: the one that was read.
pub(super) fn config(root: &Table<'_>, file: Option<PathBuf>) -> Option<Config> {
    let instance = root.parsed("instance", values::instance);
    let data_dir = root.parsed("data_dir", values::directory);
    let memory_max = root.parsed("memory_max", values::memory);
    let add_urls = root.table("add_urls").and_then(|table| add_urls(&table));
    let log = root.table("log").and_then(|table| log(&table));
    let http = root.table("http").and_then(|table| http(&table));
    let (names, servers) = servers::servers(root);
    let brokers = brokers::brokers(root, &names, instance.as_deref().unwrap_or_default());
    let webhooks = webhooks::webhooks(root, &names);
    Some(Config {
        file,
        instance: instance?,
        data_dir: data_dir?,
        memory_max: memory_max?,
        add_urls: add_urls?,
        log: log?,
        http: http?,
        servers,
        brokers,
        webhooks,
        weak_secrets: Vec::new(),
        mask: Mask::default(),
    })
}

fn add_urls(table: &Table<'_>) -> Option<UrlRules> {
    let rules = |key| table.each(key, table.texts(key), values::url_rule);
    let (allow, deny) = (rules("allow"), rules("deny"));
    Some(UrlRules::new(allow?, deny?))
}

fn log(table: &Table<'_>) -> Option<Log> {
    let level = table.choice("level", &Log::LEVELS);
    let format = table.choice("format", &LogFormat::NAMES);
    Some(Log { level: level?, format: format? })
}

fn http(table: &Table<'_>) -> Option<Http> {
    let listen = table.parsed("listen", values::listener);
    let token = secret(table, "token");
    let commands = commands(table);
    let hosts = table.each("hosts", table.texts("hosts"), values::host);
    Some(Http { listen: listen?, token, commands: commands?, hosts: hosts? })
}
