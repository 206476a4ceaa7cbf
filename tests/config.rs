//! The config as users see it: refused values, error messages, and precedence of the layers.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[path = "rules/config_keys.rs"]
mod config_keys;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use dtorrent::clients::rtorrent;
use dtorrent::config::{self, Broker, BrokerKind, Client, Config, ConfigErrors, Flag, LogFormat, Server, Sources};
use dtorrent::model::{Kind, Retain, Verb};
use dtorrent::sinks::{mqtt, nats, webhook};
use jsonschema::Validator;
use proptest::prelude::*;
use secrecy::ExposeSecret;
use serde_json::Value;

const SERVER: &str = "[servers.home]\nurl = \"unix:///run/rtorrent.sock\"\n";
const BROKER: &str = "[brokers.home]\nkind = \"mqtt\"\nurl = \"mqtt://localhost\"\n";

/// Asserts that every config that is read is valid by the schema, too.
fn parse(toml: &str) -> Result<Config, ConfigErrors> {
    let config = config::parse(Path::new("x.toml"), toml.as_bytes());
    if config.is_ok() {
        assert_eq!(faults_by_schema(toml), [] as [String; 0], "{toml}");
    }
    config
}

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| jsonschema::validator_for(&config::schema().to_value()).unwrap());

fn faults_by_schema(toml: &str) -> Vec<String> {
    let table: toml::Table = toml.parse().unwrap_or_else(|error| panic!("{error}\n{toml}"));
    let config = serde_json::to_value(table).unwrap();
    SCHEMA.iter_errors(&config).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn the_schema_has_every_key_and_no_other() {
    let mut found = BTreeSet::new();
    keys_below(&config::schema().to_value(), "", &mut found);
    // The keys of a filter are not in the table of keys.
    found.retain(|key| !key.contains(".torrents."));
    assert_eq!(found, config_keys::keys());
}

fn keys_below(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        keys_below(form, path, found);
    }
    for (key, below) in schema["properties"].as_object().into_iter().flatten() {
        found.insert(format!("{path}{key}"));
        keys_below(below, &format!("{path}{key}."), found);
        keys_below(&below["additionalProperties"], &format!("{path}{key}.*."), found);
    }
}

/// A date is valid for no key, so every key that is read reports one.
#[test]
fn every_key_of_the_table_is_read() {
    let forms = |path: &str| match path {
        "servers.x" => &["url = 'unix:///x'", "client = 'exec'\ncommand = ['x']"][..],
        "brokers.x" => &["kind = 'mqtt'\nurl = 'mqtt://x'", "kind = 'nats'\nurl = 'nats://x'"],
        "webhooks.x" => &["url = 'http://x'"],
        "brokers.x.home_assistant" => &["[brokers.x]\nkind = 'mqtt'\nurl = 'mqtt://x'"],
        _ => &[""],
    };
    for key in config_keys::keys() {
        let path = key.replace('*', "x");
        let (table, name) = path.rsplit_once('.').unwrap_or(("", &path));
        let is_read = |form: &&str| {
            let form: String = form
                .lines()
                .filter(|line| !line.starts_with(&format!("{} =", name.trim_end_matches("_file"))))
                .map(|line| format!("{line}\n"))
                .collect();
            let toml = match (table, form.starts_with('[')) {
                ("", _) => format!("{name} = 2026-11-22\n"),
                (_, true) => format!("{form}[{table}]\n{name} = 2026-11-22\n"),
                _ => format!("[{table}]\n{form}{name} = 2026-11-22\n"),
            };
            let errors = parse(&toml).unwrap_err();
            errors.0.iter().any(|error| error.key == path && error.wrong.starts_with("is a date, not"))
        };
        assert!(forms(table).iter().any(is_read), "{key}");
    }
}

#[test]
fn values_of_a_wrong_type_are_invalid_by_the_schema() {
    let broken_server = |line: &str| format!("{SERVER}{line}");
    let broken_broker = |line: &str| format!("{BROKER}{line}");
    let webhook = |line: &str| format!("[webhooks.x]\nurl = \"https://x\"\n{line}");
    let nats = |line: &str| format!("[brokers.bus]\nkind = \"nats\"\n{line}");
    for toml in [
        "instance = \"Main\"".to_owned(),
        "colour = \"red\"".to_owned(),
        "servers = 1".to_owned(),
        "log = []".to_owned(),
        "log.level = \"loud\"".to_owned(),
        "http.listen = \"somewhere\"".to_owned(),
        "data_dir = 5".to_owned(),
        "[servers.Home]\nurl = \"unix:///x\"".to_owned(),
        "[servers.bridge]\nurl = \"unix:///x\"".to_owned(),
        "[servers.a]\nurl = \"ftp://host\"".to_owned(),
        "[servers.a]".to_owned(),
        broken_server("pasword = \"sesame\""),
        broken_server("timeout = 5"),
        broken_server("interval = \"soon\""),
        broken_server("hooks = \"no\""),
        broken_server("hooks_dir = \"bridge\""),
        broken_server("roots = \"/x\""),
        broken_server("roots = [\"downloads\"]"),
        broken_server("extra = 1"),
        broken_server("extra.x = 1"),
        broken_server("client = \"deluge\""),
        broken_server("client = \"exec\""),
        broken_server("command = [\"./c\"]"),
        "[servers.x]\nclient = \"exec\"\ncommand = []".to_owned(),
        "[servers.x]\nclient = \"exec\"\ncommand = \"./c\"".to_owned(),
        "[servers.x]\nclient = \"exec\"\ncommand = [\"./c\"]\nurl = \"unix:///x\"".to_owned(),
        "[brokers.x]\nurl = \"mqtt://x\"".to_owned(),
        "[brokers.x]\nkind = \"amqp\"\nurl = \"mqtt://x\"".to_owned(),
        "[brokers.x]\nkind = \"mqtt\"".to_owned(),
        "[brokers.x]\nkind = \"mqtt\"\nurl = \"nats://x\"".to_owned(),
        broken_broker("password = 12345"),
        broken_broker("version = \"4\""),
        broken_broker("version = 5"),
        broken_broker("commands = [\"*\", \"-explode\"]"),
        broken_broker("home_assistant.normal_upload = \"fast\""),
        broken_broker("home_assistant.slots = 51"),
        broken_broker("home_assistant.torrents.colour = \"red\""),
        broken_broker("jetstream = true"),
        nats("url = []"),
        nats("url = [\"nats://a\", \"mqtt://x\"]"),
        nats("url = \"nats://a\"\nreplicas = 7"),
        nats("url = \"nats://a\"\nretain = \"all\""),
        nats("url = \"nats://a\"\nhome_assistant = {}"),
        "[webhooks.x]".to_owned(),
        "[webhooks.x]\nurl = \"https://example.org\"\nheaders = [\"X: y\"]".to_owned(),
        "[webhooks.X]\nurl = \"https://x\"".to_owned(),
        webhook("format = \"xml\""),
        webhook("secret = \"sesame\""),
        webhook("content_type = \"text\""),
        webhook("keep_trying = 3"),
        webhook("headers = { x = 1 }"),
        webhook("torrents.colour = \"red\""),
        webhook("colour = \"red\""),
        "[webhooks.x]\nurl = \"ftp://x\"".to_owned(),
    ] {
        assert!(!faults_by_schema(&toml).is_empty(), "{toml}");
        assert!(parse(&format!("{}\n[servers.good]\nurl = \"unix:///x\"", toml)).is_err(), "{toml}");
    }
}

/// Returns the only server of a config.
fn server(config: &Config) -> &Server {
    config.servers.values().next().unwrap()
}

/// Returns the only broker of a config.
fn broker(config: &Config) -> &Broker {
    config.brokers.values().next().unwrap()
}

fn rtorrent(config: &Config) -> &rtorrent::settings::Settings {
    match &server(config).client {
        Client::Rtorrent(settings) => settings,
        Client::Exec(_) => panic!("it is an rTorrent"),
    }
}

fn mqtt(config: &Config) -> &mqtt::Settings {
    match &broker(config).kind {
        BrokerKind::Mqtt(settings) => settings,
        BrokerKind::Nats(_) => panic!("it is MQTT"),
    }
}

fn nats(config: &Config) -> &nats::Settings {
    match &broker(config).kind {
        BrokerKind::Nats(settings) => settings,
        BrokerKind::Mqtt(_) => panic!("it is NATS"),
    }
}

fn parsed(toml: &str) -> Config {
    parse(toml).unwrap_or_else(|errors| panic!("{errors}\nin\n{toml}"))
}

/// Loads the file `toml` (none if empty) with these variables and flags.
fn load(toml: &str, variables: &[(&str, &str)], flags: Vec<Flag>) -> Result<Config, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    if !toml.is_empty() {
        fs::write(folder.path().join("dtorrent.toml"), toml).unwrap();
    }
    let variables = variables.iter().map(|(name, text)| (OsString::from(name), OsString::from(text))).collect();
    config::load(&Sources { file: None, flags, variables, folder: folder.path().to_owned() })
}

fn loaded(toml: &str, variables: &[(&str, &str)]) -> Config {
    load(toml, variables, Vec::new()).unwrap_or_else(|errors| panic!("{errors}\nin\n{toml}\n{variables:?}"))
}

fn faults(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match load(toml, variables, Vec::new()) {
        Ok(_) => panic!("nothing wrong was found in\n{toml}\n{variables:?}"),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_server_with_only_a_url_is_a_valid_config() {
    let config = parsed(SERVER);
    let server = server(&config);
    assert_eq!(config.instance, "main");
    assert_eq!(config.data_dir, Path::new("data"));
    assert_eq!(config.http.listen.unwrap().to_string(), "127.0.0.1:8787");
    assert_eq!(config.log.level, Some(tracing::Level::INFO));
    assert_eq!(server.poll.interval, Duration::from_secs(1));
    assert_eq!(server.poll.full_interval, Duration::from_secs(30));
    assert_eq!(rtorrent(&config).timeout, Duration::from_secs(10));
    assert_eq!(rtorrent(&config).endpoint.to_string(), "unix:///run/rtorrent.sock");
    assert!(server.roots.is_empty() && rtorrent(&config).extra.is_empty() && config.brokers.is_empty());
}

#[test]
fn every_error_is_reported_at_once_with_line_key_and_remedy() {
    let toml = r#"instance = "Main"
colour = "red"
[log]
level = "loud"
[http]
listen = "somewhere"
# No address for hooks: they need none.
[servers.Home]
url = "unix:///x"
[servers.a]
url = "ftp://host"
pasword = "sesame"
interval = "100ms"
timeout = 5
hooks = true
hooks_dir = "bridge"
roots = ["downloads", "/a/../b"]
extra = { x = "execute=" }
[servers.b]
client = "exec"
[brokers.home]
kind = "mqtt"
url = "mqtt://me:ses/ame@host"
password = 12345
version = "4"
prefix = "a/+"
servers = ["c*"]
events = ["done"]
commands = ["*", "-explode"]
cert_file = "/nonexistent.pem"
[brokers.home.home_assistant]
normal_upload = "fast"
[brokers.bus]
kind = "nats"
url = ["nats://me:sesame%ff@host", "mqtt://x"]
token = "t"
nkey_file = "/nonexistent.nk"
replicas = 7
retain = "all"
[webhooks.x]
url = "https://me:sesame@host/sesame"
format = "xml"
secret = "sesame"
servers = ["z"]
causes = ["because"]
content_type = "text/plain"
headers = { Host = "sesame", "X-A" = "sesame\n" }
keep_trying = "40days"
username = "u"
token = "sesame"
colour = "red"
[webhooks.y]
template = '{"text": "{{ title }}"}'
"#;
    let errors = parse(toml).unwrap_err().to_string();
    let expected = r#"
x.toml:1: instance: `Main` is not an instance name; use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved
x.toml:2: colour: is an unknown key; known here: add_urls, brokers, data_dir, http, instance, log, memory_max, servers, webhooks
x.toml:4: log.level: `loud` is an unknown value; write "error" or "warn" or "info" or "debug" or "trace" or "off"
x.toml:6: http.listen: `somewhere` is not an address to listen on; write an IP address and a port, "127.0.0.1:8787", or "off"
x.toml:8: servers.Home: `Home` is not a valid name; use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved
x.toml:11: servers.a.url: unknown scheme `ftp`; write `unix:///path/to/rpc.sock`, `scgi://host:5000` or `http://host/RPC2`
x.toml:12: servers.a.pasword: is an unknown key; did you mean `password`? known here: ca_file, client, extra, hooks, hooks_dir, interval, password, password_file, roots, rpc, sweep, timeout, tls_fingerprint, url, username
x.toml:13: servers.a.interval: `100ms` is too short; write 250ms to 1h with a unit, as in "1s" or "500ms"
x.toml:14: servers.a.timeout: is a number without a unit; write it with a unit, in quotes: timeout = "5s"
x.toml:16: servers.a.hooks_dir: `bridge` is not an absolute path; write directories that begin with `/`, without `..`
x.toml:17: servers.a.roots: `downloads` is not an absolute path; write directories that begin with `/`, without `..`
x.toml:17: servers.a.roots: `/a/../b` is not an absolute path; write directories that begin with `/`, without `..`
x.toml:18: servers.a.extra: `execute=`: `execute` is not among the values that can be read (like `d.throttle_name=`, `d.ratio=`, `d.custom2=` or `d.custom=my-tag`); commands and expensive ones are left out on purpose
x.toml:19: servers.b.command: is missing; write command = ["./my-client", "an argument"]
x.toml:21: brokers.home.key_file: is missing; cert_file needs the key of the certificate: write both or none
x.toml:23: brokers.home.url: contains a login with `/`, `?` or `#`; write `/` as %2F, `?` as %3F and `#` as %23, or use `username` and `password_file`
x.toml:24: brokers.home.password: is a number, not a string; write password = "…", in quotes
x.toml:25: brokers.home.version: `4` is an unknown value; write "auto" or "5" or "3.1.1"
x.toml:26: brokers.home.prefix: the prefix contains a wildcard of MQTT (`+` or `#`); use other characters
x.toml:27: brokers.home.servers: `c*` is an unknown server; known: *, a, b
x.toml:27: brokers.home.servers: leaves no server; name at least one, or leave the key out for all
x.toml:28: brokers.home.events: `done` is an unknown kind of event; known: *, KINDS
x.toml:29: brokers.home.commands: `-explode` is an unknown command; known: *, pause, resume, start, stop, delete, add, recheck, announce, label, priority, get, list, move, throttle, file_priority, trackers, limits, resync, rpc, log_level, delete_data, secrets; a `-` before one removes it
x.toml:30: brokers.home.cert_file: `/nonexistent.pem` cannot be read: No such file or directory (os error 2); name a file that this user may read; a relative path starts at the working directory
x.toml:32: brokers.home.home_assistant.normal_upload: `fast` is not a rate; write bytes a second with a unit, as in "500kB" or "2MiB"; "0" is no limit
x.toml:35: brokers.bus.url: contains a login that is not UTF-8; write it in `username` and `password_file`
x.toml:35: brokers.bus.url: unknown scheme; write nats://host or tls://host
x.toml:37: brokers.bus.nkey_file: `/nonexistent.nk` cannot be read: No such file or directory (os error 2); name a file that this user may read; a relative path starts at the working directory
x.toml:38: brokers.bus.replicas: is not a whole number in its range; write a whole number from 1 to 5, without quotes
x.toml:39: brokers.bus.retain: is not a key of kind = "nats"; remove it, or write kind = "mqtt"
x.toml:42: webhooks.x.format: `xml` is an unknown value; write "standard" or "dtorrent" or "ntfy" or "discord" or "slack" or "apprise"
x.toml:43: webhooks.x.secret: is not a webhook secret; write whsec_ and 24 to 64 random bytes in base64 (`echo whsec_$(openssl rand -base64 32)`), separate several with a space
x.toml:44: webhooks.x.servers: `z` is an unknown server; known: *, a, b
x.toml:44: webhooks.x.servers: leaves no server; name at least one, or leave the key out for all
x.toml:45: webhooks.x.causes: `because` is an unknown cause; known: *, observed, command, recovered, snapshot
x.toml:46: webhooks.x.content_type: applies only to a template of your own; leave it out, or write a template
x.toml:47: webhooks.x.headers: `Host` is written by dtorrent itself; leave it out
x.toml:47: webhooks.x.headers: the value of `X-A` has a line break or another control character; write one line of text
x.toml:48: webhooks.x.keep_trying: `40days` is too long; write 1s to 30days with a unit, as in "1s" or "500ms"
x.toml:49: webhooks.x.username: and the login in `url` are both given; keep one of them
x.toml:51: webhooks.x.colour: is an unknown key; known here: ca_file, causes, content_type, events, format, header_files, headers, keep_trying, password, password_file, secret, secret_file, servers, template, template_file, timeout, tls_fingerprint, token, token_file, torrents, url, url_file, username
x.toml:52: webhooks.y.url: is missing; write url = "http://localhost:8080/hook", or url_file = "/run/secrets/url"
x.toml:53: webhooks.y.template: fails with an event of a torrent: its output is not valid JSON: expected `,` or `}` at line 1 column 12; in JSON write {{ value }} without quotes around it; see docs/webhooks.md
"#;
    let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    let expected = expected.trim().replace("KINDS", &kinds.join(", "));
    assert_eq!(errors, expected);
    assert!(!errors.contains("sesame") && !errors.contains("12345"));
}

#[test]
fn a_table_with_a_wrong_kind_has_its_other_errors_reported_too() {
    for (table, kind, expected) in [
        (
            "brokers.b",
            "kind = 'mqqt'\nurl = 'mqtt://h'\nretain = 'some'",
            "did you mean \"mqtt\"? write \"mqtt\" or \"nats\"",
        ),
        (
            "brokers.b",
            "kind = 'nat'\nurl = 'nats://h'\nreplicas = 9",
            "did you mean \"nats\"? write \"mqtt\" or \"nats\"",
        ),
        ("brokers.b", "url = 'nats://h'\nevents = ['x']", "brokers.b.kind: is missing; write kind = \"mqtt\""),
        (
            "brokers.b",
            "kind = 5\nurl = 'tls://h'\njetstream = true\nreplicas = 9",
            "brokers.b.kind: is a number, not a string",
        ),
        ("servers.b", "client = 'rtorent'\nurl = 'unix:///x'\ninterval = '1ms'", "did you mean \"rtorrent\"?"),
        ("servers.b", "client = 'exe'\ncommand = ['x']\nurl = 'x'", "did you mean \"exec\"?"),
    ] {
        let toml = format!("[servers.a]\nurl = 'unix:///x'\n[{table}]\n{kind}\n");
        let errors = parse(&toml).unwrap_err().0;
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{kind}: {texts:#?}");
        assert!(texts.iter().any(|text| text.contains(expected)), "{kind}: {texts:#?}");
    }
}

#[test]
fn a_duration_or_rate_without_a_unit_is_answered_with_one() {
    for (line, expected) in [
        ("interval = 5", "interval: is a number without a unit; write it with a unit, in quotes: interval = \"5s\""),
        ("interval = \"5\"", "interval: `5` is not a duration; write 250ms to 1h with a unit, as in \"5s\""),
        ("sweep = 1.5", "in quotes: sweep = \"5s\""),
        ("timeout = 30", "in quotes: timeout = \"30s\""),
    ] {
        let errors = parse(&format!("[servers.a]\nurl = 'unix:///x'\n{line}\n")).unwrap_err().to_string();
        assert!(errors.contains(expected), "{line}: {errors}");
    }
    for (table, line, expected) in [
        ("brokers.b.home_assistant", "normal_download = 500", "in quotes: normal_download = \"500kB\""),
        ("webhooks.b", "timeout = 10", "in quotes: timeout = \"10s\""),
        ("webhooks.b", "keep_trying = 86400", "in quotes: keep_trying = \"86400s\""),
    ] {
        let sinks = "[brokers.b]\nkind = 'mqtt'\nurl = 'mqtt://h'\n[webhooks.b]\nurl = 'http://h'\n";
        let toml = match table {
            "webhooks.b" => format!("[servers.a]\nurl = 'unix:///x'\n{sinks}{line}\n"),
            _ => format!("[servers.a]\nurl = 'unix:///x'\n{sinks}[{table}]\n{line}\n"),
        };
        let errors = parse(&toml).unwrap_err().to_string();
        assert!(errors.contains(expected), "{line}: {errors}");
    }
}

#[test]
fn the_memory_for_queues_has_a_lower_bound() {
    let servers = "[servers.a]\nurl = 'unix:///x'\n";
    for (line, expected) in
        [("", 256 << 20), ("memory_max = '32MiB'", 32 << 20), ("memory_max = '1 GB'", 1_000_000_000)]
    {
        assert_eq!(parse(&format!("{line}\n{servers}")).unwrap().memory_max.bytes(), expected);
    }
    for (line, expected) in [
        ("memory_max = '31MiB'", "memory_max: `31MiB` is less than 32MiB; write at least 32MiB, as in \"256MiB\""),
        ("memory_max = 'much'", "memory_max: `much` is not an amount of bytes; write at least 32MiB"),
        ("memory_max = 256", "memory_max: is a number without a unit; write it with a unit, in quotes"),
    ] {
        let errors = parse(&format!("{line}\n{servers}")).unwrap_err().to_string();
        assert!(errors.contains(expected), "{line}: {errors}");
    }
}

#[test]
fn a_program_may_get_variables_by_name_but_none_of_the_bridges_settings() {
    let parse = |names: &str| parse(&format!("[servers.x]\nclient = 'exec'\ncommand = ['p']\nenvironment = [{names}]"));
    assert!(parse("'API_KEY', 'HTTP_PROXY'").is_ok());
    for (names, expected) in [
        ("'API_KEY=x'", "servers.x.environment: `API_KEY=x` is no name of a variable"),
        ("''", "is no name of a variable"),
        ("'DTORRENT_HTTP__TOKEN'", "`DTORRENT_HTTP__TOKEN` is a setting of the bridge"),
    ] {
        let errors = parse(names).unwrap_err().to_string();
        assert!(errors.contains(expected), "{names}: {errors}");
    }
}

#[test]
fn hooks_have_a_folder_that_is_absolute() {
    for (dir, expected) in [("", None), ("hooks_dir = '/run/dtorrent'", Some("/run/dtorrent"))] {
        let config = parse(&format!("[servers.x]\nurl = 'unix:///x'\nhooks = true\n{dir}")).unwrap();
        assert_eq!(server(&config).hooks.as_ref().unwrap().dir.as_deref(), expected.map(Path::new));
    }
    let errors = parse("[servers.x]\nurl = 'unix:///x'\nhooks_dir = 'run'").unwrap_err().to_string();
    assert!(errors.contains("servers.x.hooks_dir: `run` is not an absolute path"), "{errors}");
}

#[test]
fn a_value_of_a_wrong_type_is_reported_with_both_types() {
    for (toml, expected) in [
        ("servers = 1", "servers: is a number, not a table; write [servers] and its keys below"),
        ("servers.home = \"x\"", "servers.home: is a string, not a table; write [servers.home] and its keys below"),
        ("log = []", "log: is a list, not a table; write [log] and its keys below"),
        ("data_dir = 2026-11-22", "data_dir: is a date, not a string; write data_dir = \"…\", in quotes"),
        ("data_dir = 99999999999999999999", "data_dir: is a number, not a string; write data_dir = \"…\", in quotes"),
        ("servers.home.roots = \"/x\"", "roots: is a string, not a list; write roots = [\"…\", \"…\"]"),
        ("servers.home.roots = [1]", "roots: contains something other than strings; write roots = [\"…\", \"…\"]"),
        ("servers.home.hooks = \"no\"", "hooks: is a string, not a boolean; write hooks = true or hooks = false"),
        ("servers.home.extra = 1", "extra: is a number, not a table"),
        ("servers.home.extra.x = 1", "extra.x: is a number, not a string"),
    ] {
        let errors = parse(toml).unwrap_err().to_string();
        assert!(errors.contains(expected), "{toml}: {errors}");
    }
}

#[test]
fn an_empty_config_reports_what_is_missing() {
    let text = faults("", &[("XDG_CONFIG_HOME", "/nonexistent/xdg")]).join("\n");
    for part in ["no file was found", "/nonexistent/xdg/dtorrent/dtorrent.toml", "[servers.NAME]", "/etc/dtorrent/"] {
        assert!(text.contains(part), "{text}");
    }
    let text = faults("[log]\n", &[]).join("\n");
    assert!(text.contains("dtorrent.toml: no server is given"), "{text}");
    let text = faults("", &[("DTORRENT_CONFIG", "/nonexistent.toml")]).join("\n");
    assert!(text.starts_with("/nonexistent.toml: cannot be read"), "{text}");
}

#[test]
fn the_config_file_is_searched_in_order() {
    let here = tempfile::tempdir().unwrap();
    let xdg = tempfile::tempdir().unwrap();
    let write = |path: &Path, name: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("instance = \"{name}\"\n{SERVER}")).unwrap();
    };
    let (flag, variable) = (here.path().join("flag.toml"), here.path().join("variable.toml"));
    write(&flag, "flag");
    write(&variable, "variable");
    write(&xdg.path().join("dtorrent/dtorrent.toml"), "xdg");
    let mut sources = Sources { folder: here.path().to_owned(), ..Sources::default() };
    sources.variables.push(("XDG_CONFIG_HOME".into(), xdg.path().into()));
    let instance = |sources: &Sources| config::load(sources).unwrap().instance;
    assert_eq!(instance(&sources), "xdg");
    write(&here.path().join("dtorrent.toml"), "here");
    assert_eq!(instance(&sources), "here");
    sources.variables.push(("DTORRENT_CONFIG".into(), variable.into()));
    assert_eq!(instance(&sources), "variable");
    sources.file = Some(flag);
    assert_eq!(instance(&sources), "flag");
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let toml = format!("[log]\nlevel = \"warn\"\nformat = \"json\"\n[http]\nlisten = \"off\"\n{SERVER}");
    let variables = [("DTORRENT_LOG__LEVEL", "debug"), ("DTORRENT_HTTP__LISTEN", "127.0.0.1:1")];
    let flags = vec![Flag::flag("--listen", "http.listen", "127.0.0.1:2".to_owned())];
    let config = load(&toml, &variables, flags).unwrap();
    assert_eq!(config.instance, "main");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.level, Some(tracing::Level::DEBUG));
    assert_eq!(config.http.listen.unwrap().port(), 2);
    let flags = vec![Flag::flag("--listen", "http.listen", "x".to_owned())];
    let errors = load(SERVER, &[], flags).unwrap_err().to_string();
    assert!(errors.starts_with("flag --listen: http.listen: `x` is not an address"), "{errors}");
}

#[test]
fn the_environment_alone_is_enough() {
    let config = loaded(
        "",
        &[
            ("DTORRENT_SERVERS__HOME__URL", "scgi://localhost:5000"),
            ("DTORRENT_SERVERS__HOME__ROOTS", "/a, /b c"),
            ("DTORRENT_SERVERS__HOME__HOOKS", "false"),
            ("DTORRENT_SERVERS__HOME__EXTRA__THROTTLE", "d.throttle_name="),
            ("DTORRENT_BROKERS__BUS__KIND", "mqtt"),
            ("DTORRENT_BROKERS__BUS__URL", "mqtt://x"),
            ("DTORRENT_BROKERS__BUS__COMMANDS", "[]"),
            ("DTORRENT_BROKERS__BUS__VERSION", "5"),
            ("DTORRENT_BROKERS__BUS__HOME_ASSISTANT__SLOTS", "3"),
            ("DTORRENT_LIVE", "required"),
            ("DTORRENT_PORT_8787_TCP", "tcp://10.0.0.1:8787"),
            ("DTORRENT_SERVICE_HOST", "10.0.0.1"),
            ("OTHER", "x"),
        ],
    );
    assert_eq!(server(&config).roots, [Path::new("/a"), Path::new("/b c")]);
    assert_eq!(rtorrent(&config).extra["throttle"].to_string(), "d.throttle_name=");
    assert!(broker(&config).commands.is_empty());
    assert_eq!(mqtt(&config).version, mqtt::Version::V5);
}

#[test]
fn a_text_from_the_environment_is_used_verbatim() {
    for text in ["12345", "true", " 007 ", "{a=b}", "[1]", "\"12345\"", "1.0", "a,b", "  "] {
        let config = loaded(
            &format!("{SERVER}{BROKER}"),
            &[("DTORRENT_BROKERS__HOME__USERNAME", text), ("DTORRENT_BROKERS__HOME__PASSWORD", text)],
        );
        assert_eq!(mqtt(&config).username.as_deref(), Some(text));
        assert_eq!(mqtt(&config).password.as_ref().unwrap().expose_secret(), text);
    }
}

#[test]
fn a_variable_finds_the_name_in_the_file_whatever_its_case() {
    let toml = "[servers.seed-box]\nurl = \"unix:///x\"\nextra = { My-Tag = \"d.custom=a\" }\n";
    let config = loaded(
        toml,
        &[
            ("DTORRENT_SERVERS__SEED_BOX__URL", "unix:///y"),
            ("DTORRENT_SERVERS__SEED_BOX__EXTRA__MY_TAG", "d.custom=b"),
        ],
    );
    assert_eq!(config.servers.len(), 1);
    let settings = rtorrent(&config);
    assert_eq!(
        (settings.endpoint.to_string(), settings.extra["My-Tag"].to_string()),
        ("unix:///y".into(), "d.custom=b".into())
    );
}

#[test]
fn variables_that_kubernetes_makes_for_services_are_no_keys() {
    let url = "tcp://10.0.0.7:8787";
    let variables = ["DTORRENT", "DTORRENT_HTTP", "DTORRENT_SERVERS_2"].map(|service| {
        [
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_PORT", "8787"),
            ("SERVICE_PORT_METRICS", "8788"),
            ("PORT", url),
            ("PORT_8787_TCP", url),
            ("PORT_8787_TCP_PROTO", "tcp"),
            ("PORT_8787_TCP_PORT", "8787"),
            ("PORT_8787_TCP_ADDR", "10.0.0.7"),
            ("PORT_53_UDP_ADDR", "10.0.0.7"),
        ]
        .map(|(name, text)| (format!("{service}_{name}"), text))
    });
    let variables: Vec<(&str, &str)> = variables.iter().flatten().map(|(name, text)| (name.as_str(), *text)).collect();
    loaded(SERVER, &variables);
}

#[test]
fn a_fault_from_the_environment_names_the_variable() {
    for (name, text, expected) in [
        (
            "DTORRENT_SERVERS__HOME__INTERVAL",
            "5",
            "INTERVAL: servers.home.interval: `5` is not a duration; write 250ms to",
        ),
        ("DTORRENT_SERVERS__HOME__HOOKS", "x", "HOOKS: servers.home.hooks: is neither true nor false; set it to"),
        ("DTORRENT_SERVERS__HOME__URI", "x", "URI: servers.home.uri: is an unknown key; did you mean `url`?"),
        (
            "DTORRENT_SERVERS__HOME",
            "x",
            "HOME: servers.home: is a string, not a table; write [servers.home] and its keys",
        ),
        ("DTORRENT_COLOUR", "x", "COLOUR: colour: is an unknown key; known here:"),
        ("DTORRENT_HTTP_TOKEN", "x", "http_token: is an unknown key; did you mean `DTORRENT_HTTP__TOKEN`?"),
        ("DTORRENT_HTTP_PORT", "8787", "http_port: is an unknown key; did you mean `DTORRENT_HTTP__PORT`?"),
        ("DTORRENT_SERVERS_HOME_URL", "x", "did you mean `DTORRENT_SERVERS__HOME__URL`?"),
        ("DTORRENT_SERVERS__HOME_URL", "x", "did you mean `DTORRENT_SERVERS__HOME__URL`? write [servers.home_url]"),
        ("DTORRENT_LOG__", "x", "LOG__: names no key; write"),
        ("DTORRENT_", "x", "DTORRENT_: names no key; write"),
        ("DTORRENT_HTTP__TOKEN", "", "TOKEN: http.token: is empty; write the secret"),
    ] {
        let errors = faults(SERVER, &[(name, text)]);
        let found =
            errors.iter().any(|e| e.starts_with(&format!("environment variable {name}: ")) && e.contains(expected));
        assert!(found, "{name}={text}: {errors:#?}");
    }
}

#[test]
fn a_secret_is_read_from_its_file_without_the_trailing_newline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let secret = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let config = parse(&format!("[http]\ntoken_file = \"{}\"\n{SERVER}", path.display()));
        config.map(|config| config.http.token.unwrap().expose_secret().to_owned()).map_err(|errors| errors.to_string())
    };
    for (content, expected) in [("sesame\n", "sesame"), (" s e \r\n", " s e "), ("a\nb\n", "a\nb"), ("x", "x")] {
        assert_eq!(secret(content.as_bytes()).as_deref(), Ok(expected));
    }
    assert!(secret(b"\n").unwrap_err().contains("is empty"));
    let not_text = secret(b"sesame\xff").unwrap_err();
    assert!(not_text.contains("x.toml:2: http.token_file") && !not_text.contains("sesame"), "{not_text}");
}

#[test]
fn a_secret_given_twice_is_an_error_unless_a_higher_layer_sets_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "from-file").unwrap();
    let path = path.to_str().unwrap();
    let in_file = format!("[http]\ntoken_file = \"{path}\"\n");
    let errors = parse(&format!("{in_file}token = \"x\"\n{SERVER}")).unwrap_err().to_string();
    assert_eq!(errors, "x.toml:2: http.token_file: and `token` are both given; keep one of them");
    let config = loaded(&format!("{in_file}{SERVER}"), &[("DTORRENT_HTTP__TOKEN", "from-env")]);
    assert_eq!(config.http.token.unwrap().expose_secret(), "from-env");
    let config = loaded(&format!("[http]\ntoken = \"x\"\n{SERVER}"), &[("DTORRENT_HTTP__TOKEN_FILE", path)]);
    assert_eq!(config.http.token.unwrap().expose_secret(), "from-file");
}

#[test]
fn no_secret_is_in_a_debug_text() {
    let toml = format!("[http]\ntoken = \"sesame\"\n{SERVER}{BROKER}username = \"u\"\npassword = \"sesame\"\n");
    let config = parsed(&toml);
    assert!(!format!("{config:?} {config:#?}").contains("sesame"));
}

#[test]
fn each_secret_of_a_config_is_masked_where_others_repeat_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, "secret-of-a-file\n").unwrap();
    let file = file.display();
    let creds = folder.path().join("creds");
    let jwt = format!("eyJ0eXAi.{}.sig", "j".repeat(40));
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    fs::write(&creds, text).unwrap();
    let toml = format!(
        "[http]\ntoken = \"token-of-http\"\n[servers.home]\nurl = \"http://h/RPC2\"\nusername = \"me\"\n\
         password = \"password-of-server\"\n\
         [brokers.m]\nkind = \"mqtt\"\nurl = \"mqtt://localhost\"\nusername = \"u\"\npassword_file = \"{file}\"\n\
         [brokers.n]\nkind = \"nats\"\nurl = \"nats://localhost\"\ntoken = \"token-of-nats\"\n\
         [brokers.c]\nkind = \"nats\"\nurl = \"nats://127.0.0.1\"\ncreds_file = \"{}\"\n\
         [webhooks.w]\nurl = \"https://h/part-of-path/x?key=value-of-query\"\ntoken = \"token-of-webhook\"\n\
         secret = \"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\"\nheaders = {{ X-Key = \"value-of-header\" }}\n\
         header_files = {{ X-Other = \"{file}\" }}\n",
        creds.display()
    );
    let mask = parsed(&toml).mask;
    for secret in [
        "token-of-http",
        "password-of-server",
        // `me:password-of-server`, as HTTP sends it.
        "bWU6cGFzc3dvcmQtb2Ytc2VydmVy",
        "secret-of-a-file",
        "token-of-nats",
        &jwt,
        &seed,
        "part-of-path",
        "value-of-query",
        "token-of-webhook",
        "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "value-of-header",
    ] {
        assert_eq!(mask.masked(&format!("not with {secret}!")), "not with ***!", "{secret}");
    }
    assert_eq!(mask.masked("me at https://h, mqtt://localhost"), "me at https://h, mqtt://localhost");
}

#[test]
fn what_a_program_gets_from_the_environment_is_masked() {
    let toml = "[servers.x]\nclient = \"exec\"\ncommand = [\"a\"]\nenvironment = [\"API_KEY\", \"DEBUG\"]\n";
    let variables = [("API_KEY", "for-the-program"), ("DEBUG", "1"), ("OTHER", "of-somebody-else")];
    let mask = loaded(toml, &variables).mask;
    assert_eq!(mask.masked("1 for-the-program of-somebody-else"), "1 *** of-somebody-else");
}

#[test]
fn rights_are_given_with_a_star_and_taken_with_a_minus() {
    let rights =
        |commands: &str| parsed(&format!("{SERVER}{BROKER}{commands}")).brokers.into_values().next().unwrap().commands;
    let default = rights("");
    let is_safe = |verb: Verb| verb != Verb::Rpc && verb != Verb::LogLevel;
    assert!(Verb::ALL.iter().all(|verb| default.allows(verb.as_str()) == is_safe(*verb)));
    // Two have to be named: what ends the log, and what shows passkeys.
    for right in ["log_level", "secrets"] {
        assert!(!rights(r#"commands = ["*"]"#).allows(right));
        assert!(!rights(&format!(r#"commands = ["*", "{right}", "-{right}"]"#)).allows(right));
        assert!(rights(&format!(r#"commands = ["*", "{right}"]"#)).allows(right));
    }
    assert!(!default.allows("delete_data") && !default.allows("rpc") && !default.allows("*") && !default.is_empty());
    assert_eq!(default, rights(r#"commands = ["*", "-delete_data", "-rpc"]"#));
    assert!(rights(r#"commands = ["*"]"#).allows("delete_data"));
    assert!(rights("commands = []").is_empty());
    let some = rights(r#"commands = ["pause", "resume"]"#);
    assert_eq!(some.iter().collect::<Vec<_>>(), ["pause", "resume"]);
    let errors = parse(&format!("{SERVER}{BROKER}commands = [\"-rpc\"]")).unwrap_err().to_string();
    assert!(errors.contains("`-rpc` removes something from an empty list; write [\"*\", \"-rpc\"]"), "{errors}");
}

#[test]
fn servers_and_events_are_chosen_by_patterns() {
    let toml = "[servers.a1]\nurl = 'unix:///x'\n[servers.a2]\nurl = 'unix:///x'\n[servers.b]\nurl = 'unix:///x'\n";
    let with = |more: &str| parsed(&format!("{toml}{BROKER}{more}")).brokers.into_values().next().unwrap();
    for (servers, expected) in
        [("", "a1 a2 b"), ("'*'", "a1 a2 b"), ("'a*'", "a1 a2"), ("'b','a2'", "a2 b"), ("'*','-a?'", "b")]
    {
        let line = if servers.is_empty() { String::new() } else { format!("servers = [{servers}]") };
        let names: Vec<String> = with(&line).servers().iter().map(ToString::to_string).collect();
        assert_eq!(names.join(" "), expected, "{servers}");
    }
    let broker = with("events = ['*', '-updated']\nretain = 'none'");
    assert!(broker.events.contains(&Kind::Finished) && !broker.events.contains(&Kind::Updated));
    assert!(matches!(&broker.kind, BrokerKind::Mqtt(mqtt) if mqtt.retain == Retain::None));
    let events = with("events = ['finished', 'server_*']").events;
    assert!(events.contains(&Kind::ServerOnline) && events.contains(&Kind::Finished) && !events.contains(&Kind::Added));
}

#[test]
fn likely_mistakes_are_warnings() {
    for (toml, expected) in [
        ("[servers.x]\nurl = 'scgi://10.0.0.1:5000'", "servers.x.url: SCGI has no login"),
        ("[servers.x]\nurl = 'scgi://127.0.0.1:5000'", ""),
        ("[servers.x]\nurl = 'scgi://127.0.0.1:5000'\nhooks = true", ""),
        ("[servers.x]\nurl = 'https://h/RPC2'\nhooks = true", "servers.x.hooks: rTorrent runs on another machine"),
        ("[servers.x]\nurl = 'http://h/RPC2'\nusername = 'u'\npassword = 'sesame'", "unencrypted"),
        ("[servers.x]\nurl = 'unix:///x'\nusername = 'u'\npassword = 'sesame'", "is not used"),
        ("http.listen = '0.0.0.0:80'\n[servers.x]\nurl = 'unix:///x'", "open to the network"),
        ("[servers.x]\nurl = 'unix:///x'", ""),
        ("[servers.x]\nurl = 'unix:///x'\nroots = ['/']", "servers.x.roots: is every folder of this machine"),
        ("[servers.x]\nurl = 'unix:///x'\nroots = ['/srv']", ""),
        ("http.token = '0123456789abcde'", "http.token: fewer than 16 characters"),
        ("http.token = '0123456789abcdef'", ""),
        (
            "[brokers.b]\nkind = 'mqtt'\nurl = 'mqtt://h'\nusername = 'u'\npassword = 'sesame'",
            "brokers.b.url: the password crosses the network unencrypted; use mqtts or wss",
        ),
        ("[brokers.b]\nkind = 'mqtt'\nurl = 'mqtt://[::1]'\nusername = 'u'\npassword = 'sesame'", ""),
        (
            "[brokers.b]\nkind = 'nats'\nurl = 'nats://h'\ntoken = 'sesame'",
            "brokers.b.url: the token crosses the network",
        ),
        ("[brokers.b]\nkind = 'nats'\nurl = ['tls://h', 'nats://localhost']\ntoken = 'sesame'", ""),
        (
            "[webhooks.w]\nurl = 'http://h'\ntoken = 'sesame'",
            "webhooks.w.url: the login crosses the network unencrypted",
        ),
        ("[webhooks.w]\nurl = 'https://h'\ntoken = 'sesame'", ""),
        ("memory_max = '32MiB'\n[webhooks.w]\nurl = 'https://h'", ""),
        ("[webhooks.w]\nurl = 'https://h'\ntoken = 'sesam'", "webhooks.w.token: has fewer than 6 characters"),
    ] {
        let toml = if toml.contains("[servers.") { toml.to_owned() } else { format!("{toml}\n{SERVER}") };
        let warnings = config::warnings(&parsed(&toml)).join("\n");
        assert!(warnings.contains(expected) && (warnings.is_empty() == expected.is_empty()), "{toml}: {warnings}");
    }
}

#[test]
fn too_little_memory_for_so_many_servers_and_receivers_is_warned_of() {
    let servers = |count| (0..count).map(|server| format!("[servers.s{server}]\nurl = 'unix:///{server}'\n"));
    let warnings = |memory_max: &str, count| {
        let hook = "[webhooks.w]\nurl = 'https://h'\n";
        let toml = format!("memory_max = '{memory_max}'\n{hook}{}", servers(count).collect::<String>());
        config::warnings(&parsed(&toml)).join("\n")
    };
    let little = "memory_max: 32MiB leave 3 KiB for the events of each of 100 pairs of server and receiver";
    let warning = warnings("32MiB", 100);
    assert!(warning.starts_with(little) && warning.ends_with("at least 135MiB is right"), "{warning}");
    assert_eq!([warnings("135MiB", 100), warnings("32MiB", 17)], ["", ""]);
}

#[test]
fn files_with_secrets_that_every_user_may_read_are_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (config, secret) = (folder.path().join("x.toml"), folder.path().join("secret"));
    let with_mode = |file: &Path, mode| fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&secret, "sesame of forty thieves").unwrap();
    let path = secret.display();
    for (toml, key, file) in [
        (format!("http.token_file = '{path}'"), "http.token_file", &secret),
        (format!("[brokers.b]\nkind = 'nats'\nurl = 'nats://localhost'\ntoken_file = '{path}'"), "token_file", &secret),
        (format!("[webhooks.w]\nurl = 'https://h'\nheader_files = {{ X-Key = '{path}' }}"), "header_files", &secret),
        ("http.token = 'sesame of forty thieves'".to_owned(), "http.token", &config),
        ("[webhooks.w]\nurl = 'https://h/sesame'".to_owned(), "webhooks.w.url", &config),
    ] {
        fs::write(&config, format!("{toml}\n{SERVER}")).unwrap();
        let warnings = || {
            let sources = config::Sources { file: Some(config.clone()), ..config::Sources::default() };
            config::warnings(&config::load(&sources).unwrap()).join("\n")
        };
        with_mode(&config, 0o640);
        with_mode(&secret, 0o640);
        assert_eq!(warnings(), "", "{toml}");
        with_mode(file, 0o644);
        let warnings = warnings();
        assert!(
            warnings.contains(key) && warnings.contains("every user of this machine may read"),
            "{toml}: {warnings}"
        );
    }
}

#[test]
fn certificates_are_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    fs::write(&path, "no certificate").unwrap();
    let toml = format!("{SERVER}ca_file = \"{}\"\n", path.display());
    assert!(parse(&toml).unwrap_err().to_string().contains("holds no certificate; name a certificate file"));
}

fn toml_like() -> impl Strategy<Value = String> {
    let keys = config_keys::keys().into_iter().map(|key| key.replace('*', "home")).collect::<Vec<_>>();
    let value = prop_oneof![
        Just("true".to_owned()),
        "[0-9]{1,3}(ms|s|h)?",
        Just("'mqtt'".to_owned()),
        "'[a-z0-9:/*$ -]{0,12}'",
        "\\['[a-z*-]{0,9}', [1'x]{1,3}\\]",
        "\\{ [a-z]{1,2} = 'd\\.x=' \\}",
    ];
    let line = (proptest::sample::select(keys), value).prop_map(|(key, value)| format!("{key} = {value}\n"));
    proptest::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn no_file_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), toml in toml_like()) {
        let _checked = config::parse(Path::new("x"), &bytes).is_ok();
        let _checked = parse(&toml).map_err(|errors| errors.to_string()).is_ok();
    }

    #[test]
    fn no_environment_makes_the_parser_panic(name in "DTORRENT_[A-Z_*.]{0,30}", text in ".{0,20}") {
        let sources = Sources { variables: vec![(name.into(), text.into())], folder: "/nonexistent".into(), ..Sources::default() };
        let _checked = config::load(&sources).map_err(|errors| errors.to_string()).is_ok();
    }
}

#[test]
fn a_nats_system_is_one_server_or_a_list_and_has_one_login() {
    let bus = |more: &str| format!("{SERVER}[brokers.bus]\nkind = \"nats\"\n{more}");
    let one = parsed(&bus("url = \"nats://a\"\n"));
    assert_eq!((nats(&one).urls.len(), nats(&one).jetstream, nats(&one).replicas), (1, true, 1));
    let two =
        parsed(&bus("url = [\"tls://a\", \"tls://b:4223\"]\njetstream = false\nreplicas = 3\ntoken = \"sesame\"\n"));
    assert_eq!((nats(&two).urls.len(), nats(&two).jetstream, nats(&two).replicas), (2, false, 3));
    assert!(matches!(&nats(&two).login, nats::Login::Token(token) if token.expose_secret() == "sesame"));
    assert!(!format!("{two:?}").contains("sesame"));
    let from_outside = loaded(&bus(""), &[("DTORRENT_BROKERS__BUS__URL", "nats://a,nats://b")]);
    let urls: Vec<String> = nats(&from_outside).urls.iter().map(ToString::to_string).collect();
    assert_eq!(urls, ["nats://a:4222", "nats://b:4222"]);
    for (more, expected) in [
        ("", "brokers.bus.url: is missing; write url = \"nats://localhost:4222\""),
        ("url = []", "brokers.bus.url: is an empty list"),
        (
            "url = \"nats://a\"\nusername = \"u\"\ntoken = \"t\"",
            "brokers.bus.token: and `username` are two ways to log in",
        ),
        ("url = \"nats://a\"\nprefix = \"a.*\"", "a wildcard of NATS"),
        (
            "url = \"nats://a\"\nhome_assistant = {}",
            "home_assistant: is not a key of kind = \"nats\"; remove it, or write kind = \"mqtt\"",
        ),
    ] {
        let snapshot = faults(&bus(more), &[]).join("\n");
        assert!(snapshot.contains(expected), "{snapshot}");
    }
    let snapshot = parse(&format!("instance = \"event\"\n{}", bus("url = \"nats://a\""))).unwrap_err().to_string();
    assert!(snapshot.contains("its subjects would look like events"), "{snapshot}");
}

/// A password with every character that means something in a URL, and as it is written there.
const ODD: (&str, &str) = ("p:@/?#%&+ ü", "p:%40%2F%3F%23%25&+%20ü");

#[test]
fn a_login_in_a_url_is_that_of_the_keys_and_never_shown() {
    let broker = |lines: &str| format!("{SERVER}[brokers.bus]\nkind = \"mqtt\"\n{lines}");
    let login = |config: &Config| {
        let BrokerKind::Mqtt(mqtt) = &config.brokers.values().next().unwrap().kind else { unreachable!("it is MQTT") };
        assert_eq!(mqtt.url.to_string(), "mqtt://h:1883");
        let shown = format!("{config:?}");
        assert!(!shown.contains("p:@/") && !shown.contains("sesame"), "{shown}");
        (mqtt.username.clone(), mqtt.password.as_ref().map(|password| password.expose_secret().to_owned()))
    };
    let texts = |user: &str, password: &str| (Some(user.to_owned()), Some(password.to_owned()));
    let (odd, written) = ODD;
    for (lines, expected) in [
        (format!("url = \"mqtt://me%40home:{written}@h\""), texts("me@home", odd)),
        (format!("url = \"mqtt://h\"\nusername = \"me@home\"\npassword = \"{odd}\""), texts("me@home", odd)),
        ("url = \"mqtt://me@h\"\npassword = \"sesame\"".to_owned(), texts("me", "sesame")),
        ("url = \"mqtt://me:100%@h\"".to_owned(), texts("me", "100%")),
        ("url = \"mqtt://a@b:sesame@h\"".to_owned(), texts("a@b", "sesame")),
        ("url = \"mqtt://:sesame@h\"\nusername = \"me\"".to_owned(), texts("me", "sesame")),
        ("url = \"mqtt://@h\"".to_owned(), (None, None)),
        ("url = \"mqtt://:@h/\"".to_owned(), (None, None)),
    ] {
        assert_eq!(login(&parsed(&broker(&lines))), expected, "{lines}");
    }
    let higher = [("DTORRENT_BROKERS__BUS__PASSWORD", "other words")];
    assert_eq!(login(&loaded(&broker("url = \"mqtt://me:sesame@h\""), &higher)), texts("me", "other words"));
    for (lines, expected) in [
        ("url = \"mqtt://me:sesame@h\"\nusername = \"me\"", "brokers.bus.username: and the login in `url`"),
        ("url = \"mqtt://me:sesame@h\"\npassword = \"x\"", "brokers.bus.password: and the login in `url`"),
        ("url = \"mqtt://:sesame@h\"", "brokers.bus.username: is missing"),
        ("url = \"mqtt://me:ses?ame@h\"", "with `/`, `?` or `#`"),
    ] {
        let faults = faults(&broker(lines), &[]).join("\n");
        assert!(faults.contains(expected) && !faults.contains("sesame") && !faults.contains("ses?ame"), "{faults}");
    }
}

#[test]
fn a_login_in_the_url_of_a_client_a_webhook_or_nats_is_taken_too() {
    let (odd, written) = ODD;
    let config = parsed(&format!(
        "[servers.x]\nurl = \"https://me:{written}@h/RPC2\"\n[webhooks.w]\nurl = \"https://me:{written}@h/hook\"\n"
    ));
    let client = rtorrent(&config);
    assert_eq!((client.username.as_deref(), client.password.as_ref().unwrap().expose_secret()), (Some("me"), odd));
    assert_eq!(client.endpoint.to_string(), "https://h/RPC2");
    let webhook = &config.webhooks.values().next().unwrap().settings;
    let Some(webhook::Login::User { name, password }) = &webhook.login else { unreachable!("{:?}", webhook.login) };
    assert_eq!((name.as_str(), password.expose_secret()), ("me", odd));
    let bus = |more: &str| format!("{SERVER}[brokers.bus]\nkind = \"nats\"\n{more}");
    let token = parsed(&bus("url = [\"nats://sesame@a\", \"nats://b\"]"));
    assert!(matches!(&nats(&token).login, nats::Login::Token(token) if token.expose_secret() == "sesame"));
    let user = parsed(&bus(&format!("url = \"tls://me:{written}@a\"")));
    assert!(matches!(&nats(&user).login, nats::Login::User { password, .. } if password.expose_secret() == odd));
    for (lines, expected) in [
        ("url = [\"nats://a:1@x\", \"nats://b:1@y\"]", "brokers.bus.url: contains different logins"),
        ("url = \"nats://sesame@a\"\ntoken = \"t\"", "brokers.bus.token: and `url` are two ways to log in"),
    ] {
        let faults = faults(&bus(lines), &[]).join("\n");
        assert!(faults.contains(expected) && !faults.contains("sesame"), "{faults}");
    }
    let faults = faults("[servers.x]\nurl = \"scgi://me:sesame@h:5000\"", &[]).join("\n");
    assert!(faults.contains("servers.x.url: ") && !faults.contains("sesame"), "{faults}");
}

#[test]
fn an_exec_server_needs_a_command_and_accepts_no_rtorrent_keys() {
    for (lines, expected) in [
        ("client = 'exec'\ncommand = ['./c', 'a b']", ""),
        ("client = 'exec'\ncommand = []", "servers.x.command: names no program"),
        ("client = 'exec'\ncommand = ['']", "servers.x.command: names no program"),
        ("client = 'exec'\ncommand = './c'", "servers.x.command: "),
        ("client = 'exec'\ncommand = ['./c']\nurl = 'unix:///x'", "servers.x.url: is not a key of client = \"exec\""),
        ("url = 'unix:///x'\ncommand = ['./c']", "servers.x.command: is not a key of client = \"rtorrent\""),
        (
            "client = 'deluge'\nurl = 'unix:///x'",
            "servers.x.client: `deluge` is an unknown value; write \"rtorrent\" or \"exec\"",
        ),
    ] {
        match parse(&format!("[servers.x]\n{lines}\n")) {
            Ok(config) => {
                assert_eq!(expected, "", "{lines}");
                let Client::Exec(settings) = &server(&config).client else { panic!() };
                assert_eq!(settings.command, ["./c", "a b"]);
            }
            Err(errors) => assert!(!expected.is_empty() && errors.to_string().contains(expected), "{lines}\n{errors}"),
        }
    }
}

#[test]
fn a_webhook_with_only_a_url_is_a_valid_config() {
    let config = parsed(&format!("{SERVER}[webhooks.hook]\nurl = 'https://example.org/hook?key=sesame'\n"));
    let webhook = config.webhooks.values().next().unwrap();
    assert_eq!(webhook.servers, config.servers.keys().cloned().collect::<Vec<_>>());
    let kinds: Vec<_> = Kind::ALL.iter().filter(|kind| !webhook.events.contains(kind)).collect();
    assert_eq!(kinds, [&Kind::Updated], "everything but what comes each second");
    let endpoint = &webhook.settings;
    assert_eq!(endpoint.address.to_string(), "https://example.org/…");
    assert_eq!(endpoint.format.name(), "standard");
    assert_eq!(endpoint.timeout, Duration::from_secs(20));
    assert_eq!(endpoint.keep_trying, Duration::from_secs(3 * 24 * 60 * 60));
    assert_eq!(endpoint.filter.causes.len(), 4);
    assert!(endpoint.secrets.is_none() && endpoint.login.is_none() && endpoint.headers.is_empty());
    assert!(!format!("{config:?}").contains("sesame"));
}

#[test]
fn chat_formats_leave_the_initial_snapshot_out_unless_configured() {
    for (lines, has_snapshot, has_updates) in [
        ("", true, false),
        ("format = 'dtorrent'", true, false),
        ("format = 'ntfy'", false, false),
        ("format = 'ntfy'\ncauses = ['*']", true, false),
        ("causes = ['*', '-snapshot']", false, false),
        ("events = ['*']", true, true),
        ("events = ['finished', 'upd*']", true, true),
    ] {
        let config = parsed(&format!("{SERVER}[webhooks.hook]\nurl = 'https://ntfy.sh/topic'\n{lines}\n"));
        let filter = &config.webhooks.values().next().unwrap().settings.filter;
        assert_eq!((filter.causes.contains("snapshot"), filter.has_updates), (has_snapshot, has_updates), "{lines}");
    }
}

#[test]
fn secrets_of_a_webhook_may_be_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let toml = format!(
        "{SERVER}[webhooks.hook]\nurl_file = {:?}\nsecret_file = {:?}\ntoken_file = {:?}\n[webhooks.hook.header_files]\n\
         X-Api-Key = {:?}\n",
        file("url", "https://example.org/sesame\n"),
        file("secret", &format!("{secret}\n{secret}\n")),
        file("token", "sesame\n"),
        file("key", "sesame\n"),
    );
    let config = parsed(&toml);
    let endpoint = &config.webhooks.values().next().unwrap().settings;
    assert_eq!(endpoint.address.url().as_str(), "https://example.org/sesame");
    assert_eq!(endpoint.secrets.as_ref().unwrap().sign("i", 1, b"b").split(' ').count(), 2);
    assert_eq!(endpoint.headers["x-api-key"], "sesame");
    let shown = format!("{config:?}");
    assert!(!shown.contains("sesame") && !shown.contains(secret), "{shown}");
}
