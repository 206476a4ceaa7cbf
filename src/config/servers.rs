//! The tables `[servers.NAME]`.

use std::collections::BTreeMap;

use super::checked::{Client, Hooks, Http, Server};
use super::read::{Fault, Table};
use super::values::{certificates, login, root};
use crate::clients::exec::settings as exec;
use crate::clients::rtorrent::settings::{AllowedMethod, Endpoint, ExtraColumn, Settings};
use crate::model::{HookAddress, PollSettings, ServerName};

/// Reads all servers. The names also have those of servers with errors, so that sinks may choose them.
pub fn servers(root: &Table<'_>, http: Option<&Http>) -> (Vec<ServerName>, BTreeMap<ServerName, Server>) {
    let mut names = Vec::new();
    let mut servers = BTreeMap::new();
    for (name, table) in root.named("servers", ServerName::parse) {
        // Also of a server with errors, or each sink that names it would report an unknown server.
        names.extend(name.clone());
        let server = server(name.clone(), &table, http);
        servers.extend(name.zip(server));
    }
    (names, servers)
}

fn server(name: Option<ServerName>, table: &Table<'_>, http: Option<&Http>) -> Option<Server> {
    let (client, hooks) = match table.tag() {
        "exec" => (exec(name, table).map(Client::Exec), None),
        _ => (rtorrent(name, table).map(|settings| Client::Rtorrent(Box::new(settings))), hooks(table, http)),
    };
    let (interval, sweep) = (table.duration("interval"), table.duration("sweep"));
    let roots = table.each("roots", table.texts("roots"), root);
    Some(Server { client: client?, poll: PollSettings::new(interval?, sweep?), roots: roots?, hooks })
}

fn exec(server: Option<ServerName>, table: &Table<'_>) -> Option<exec::Settings> {
    let command = table.texts("command");
    if command.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
        table.fault("command", Fault::new("names no program", "write the program and its arguments"));
    }
    let timeout = table.duration("timeout");
    Some(exec::Settings { server: server?, command: command?, timeout: timeout? })
}

fn rtorrent(server: Option<ServerName>, table: &Table<'_>) -> Option<Settings> {
    // All keys are read before the first `?`, so that every error is reported at once.
    let endpoint = table.parsed("url", Endpoint::parse);
    if let Some(Endpoint::Http(url)) = &endpoint {
        table.mask(|mask| mask.add_query(url));
    }
    let (username, password) = login(table);
    let ca_pem = table.parsed("ca_file", certificates);
    let timeout = table.duration("timeout");
    let columns = table.named_texts("extra").into_iter();
    let extra = columns.filter_map(|(name, column)| {
        extra_column(&name, &column)
            .map_err(|fault| table.fault("extra", fault))
            .ok()
            .map(|column| (name.into(), column))
    });
    let extra = extra.collect();
    let rpc = table.each("rpc", table.texts("rpc"), AllowedMethod::parse);
    Some(Settings {
        server: server?,
        endpoint: endpoint?,
        username,
        password,
        ca_pem,
        timeout: timeout?,
        extra,
        rpc: rpc?,
    })
}

fn extra_column(name: &str, column: &str) -> Result<ExtraColumn, Fault> {
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(Fault::new(format!("`{name}` is not a column name"), "use 1 to 64 bytes of text"));
    }
    ExtraColumn::parse(column).map_err(|error| {
        let Fault { wrong, right } = error.into();
        Fault::new(format!("`{column}`: {wrong}"), right)
    })
}

fn hooks(table: &Table<'_>, http: Option<&Http>) -> Option<Hooks> {
    let address = table.parsed("hooks_address", HookAddress::parse);
    if table.boolean("hooks") != Some(true) {
        return None;
    }
    let listen = http?.hooks_listen;
    if listen.ip().is_unspecified() && !table.has("hooks_address") {
        let right = "http.hooks_listen is every address: write hooks_address = \"host:port\", as the client reaches it";
        table.missing("hooks_address", right);
    }
    // Behind the address is a mapped or opened port, which has to be the same after a restart.
    if address.is_some() && listen.port() == 0 {
        let wrong = "needs a fixed port, and http.hooks_listen has another one with each start";
        table.fault("hooks_address", Fault::new(wrong, "write http.hooks_listen with a port that is not 0"));
    }
    Some(Hooks { address })
}
