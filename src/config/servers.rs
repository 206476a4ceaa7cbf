//! The tables `[servers.NAME]`.

use std::collections::BTreeMap;

use super::checked::{Client, Hooks, Server};
use super::login::{login, take_login};
use super::read::{Fault, Table};
use super::values::{root, trust};
use crate::clients::exec::settings as exec;
use crate::clients::rtorrent::settings::{AllowedMethod, Endpoint, ExtraColumn, Settings};
use crate::model::{PollSettings, ServerName};

/// Reads all servers. The names also have those of servers with errors, so that sinks may choose them.
pub fn servers(root: &Table<'_>) -> (Vec<ServerName>, BTreeMap<ServerName, Server>) {
    let mut names = Vec::new();
    let mut servers = BTreeMap::new();
    for (name, table) in root.named("servers", ServerName::parse) {
        // Also of a server with errors, or each sink that names it would report an unknown server.
        names.extend(name.clone());
        let server = server(name.clone(), &table);
        servers.extend(name.zip(server));
    }
    (names, servers)
}

fn server(name: Option<ServerName>, table: &Table<'_>) -> Option<Server> {
    let (client, hooks) = match table.tag() {
        "exec" => (exec(name, table).map(Client::Exec), None),
        _ => (rtorrent(name, table).map(|settings| Client::Rtorrent(Box::new(settings))), hooks(table)),
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
    let environment = table.each("environment", table.texts("environment"), variable);
    let timeout = table.duration("timeout");
    Some(exec::Settings { server: server?, command: command?, environment: environment?, timeout: timeout? })
}

/// Reads the name of a variable that a program may have.
fn variable(name: &str) -> Result<String, Fault> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Fault::new(format!("`{name}` is no name of a variable"), "write names only, [\"API_KEY\"]"));
    }
    if name.starts_with("DTORRENT_") {
        let right = "give the program a variable of its own";
        return Err(Fault::new(format!("`{name}` is a setting of the bridge, and may be a secret"), right));
    }
    Ok(name.to_owned())
}

fn rtorrent(server: Option<ServerName>, table: &Table<'_>) -> Option<Settings> {
    // All keys are read before the first `?`, so that every error is reported at once.
    let mut in_url = None;
    let endpoint = table.parsed("url", |text| {
        // Only HTTP knows a login; elsewhere it is an error of the URL.
        let text = if text.starts_with("http") { take_login(text, &mut in_url)? } else { text.to_owned() };
        Endpoint::parse(&text).map_err(Fault::from)
    });
    if let Some(Endpoint::Http(url)) = &endpoint {
        table.mask(|mask| mask.add_query(url));
    }
    let (username, password) = login(table, in_url);
    let trust = trust(table);
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
        trust,
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

fn hooks(table: &Table<'_>) -> Option<Hooks> {
    let dir = table.parsed("hooks_dir", root);
    (table.boolean("hooks") == Some(true)).then_some(Hooks { dir })
}
