//! Addresses on a broker: levels below the bridge's prefix, joined as the broker joins them.
//!
//! MQTT's topics and NATS's subjects are the same levels with another separator; `docs/reference.md` lists them.
//!
//! Invariants:
//! - a name is exactly one level, and only parsed names ([`ServerName`], [`InfoHash`](crate::model::InfoHash)) become one;
//! - a reply address chosen by a command's sender is never an address of ours that means something: whoever may only
//!   send commands could otherwise have the bridge publish further commands, or events that never happened.
//!
//! Pure: no I/O.

use tracing::info;

use super::prefix::Prefix;
use crate::model::{JournalEntry, Kind, ServerName, SinkName};
use crate::port::{CommandAddress, Delivery, ReplyTo};
use crate::sinks::invalid::{InvalidText, invalid};

/// Levels below the prefix that mean something on some broker. `result` is not among them: replies belong there.
const RESERVED_LEVELS: [&str; 9] =
    ["command", "event", "state", "status", "stats", "files", "info", "health", "homeassistant"];

/// Number of levels of the longest address below the prefix that is parsed.
const LEVELS_MAX: usize = 5;

/// How a broker writes addresses.
#[derive(Clone, Copy, Debug)]
pub struct Syntax {
    /// The character between two levels.
    pub separator: char,
    /// The wildcard for exactly one level.
    pub any_level: &'static str,
    /// Whether an address has a wildcard, with which it is a pattern.
    pub has_wildcard: fn(&str) -> bool,
    /// Whether levels may be empty, or have white space in them.
    pub is_lenient: bool,
    /// Maximum length of an address.
    pub bytes_max: usize,
}

impl Syntax {
    /// Checks that a broker accepts a publish to this address from any client.
    pub fn check(&self, address: &str) -> Result<(), InvalidText> {
        let is_empty = |level: &str| level.is_empty() && !self.is_lenient;
        let is_unprintable = |c: char| c.is_control() || (c.is_whitespace() && !self.is_lenient);
        let wrong = if address.is_empty() || address.split(self.separator).any(is_empty) {
            "it is empty or has an empty level"
        } else if address.len() > self.bytes_max {
            return Err(invalid(format!("it is longer than {} bytes", self.bytes_max)));
        } else if (self.has_wildcard)(address) {
            "it contains a wildcard"
        } else if address.chars().any(is_unprintable) {
            "it contains a character that the broker does not allow"
        } else if address.starts_with('$') {
            // MQTT 5 §4.7.2. On NATS (`$JS.API.…`, `$KV.…`, `$SRV.…`) a publish makes the server or another service act.
            "addresses that begin with `$` are reserved for the broker"
        } else {
            return Ok(());
        };
        Err(invalid(wrong))
    }
}

/// The addresses of one bridge on one broker.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    syntax: Syntax,
    prefix: Prefix,
    instance: String,
}

/// The commands to one part of a bridge.
#[derive(Clone, Debug)]
pub struct CommandPattern {
    /// Name of the NATS service's endpoint for them, as requesters see it in `$SRV.INFO`.
    pub name: String,
    /// The pattern of their addresses.
    pub pattern: String,
}

impl AddressSpace {
    /// Creates the addresses below `prefix`, which was parsed for this syntax; `instance` is one level.
    pub fn new(syntax: Syntax, prefix: Prefix, instance: impl Into<String>) -> Self {
        Self { syntax, prefix, instance: instance.into() }
    }

    /// Returns the address of `online` and `offline` of the bridge; on MQTT the last will goes there as well.
    pub fn bridge_status(&self) -> String {
        self.bridge("status")
    }

    /// Returns the address of something of the bridge itself.
    pub fn bridge(&self, leaf: &str) -> String {
        self.join(&["bridge", &self.instance, leaf])
    }

    /// Returns the address that a delivery is published to.
    pub fn of(&self, delivery: &Delivery) -> String {
        let (server, hash, leaf): (_, _, &[&str]) = match delivery {
            Delivery::Event(JournalEntry { server, hash, kind, .. }) => {
                (Some(server), *hash, &["event", kind.as_str()])
            }
            Delivery::Updated { hash, event, .. } => {
                (Some(&event.server), Some(*hash), &["event", Kind::Updated.as_str()])
            }
            Delivery::State { server, hash, .. } => (Some(server), Some(*hash), &["state"]),
            Delivery::Files { server, hash, .. } => (Some(server), Some(*hash), &["files"]),
            Delivery::ServerStatus { server, .. } => (Some(server), None, &["status"]),
            Delivery::Stats { server, .. } => (Some(server), None, &["stats"]),
            Delivery::Result { server, .. } => (server.as_ref(), None, &["result"]),
            Delivery::Info { .. } => (None, None, &["info"]),
            Delivery::Health { .. } => (None, None, &["health"]),
            Delivery::Projected { topic, .. } | Delivery::Clear { topic } => return topic.clone(),
        };
        let owner: &[&str] = match (server, hash) {
            (Some(server), Some(hash)) => &[server.as_str(), "torrent", &hash.to_string()],
            (Some(server), None) => &[server.as_str()],
            (None, _) => &["bridge", &self.instance],
        };
        self.join(&[owner, leaf].concat())
    }

    /// Joins levels below the prefix, to an address or to a pattern.
    pub fn join(&self, levels: &[&str]) -> String {
        let mut address = self.prefix.as_str().to_owned();
        for level in levels {
            address.push(self.syntax.separator);
            address.push_str(level);
        }
        address
    }

    /// Returns the patterns of all commands: to the bridge itself, to these servers, and to their torrents.
    pub fn command_patterns(&self, servers: &[ServerName]) -> Vec<CommandPattern> {
        let any = self.syntax.any_level;
        let pattern = |name: String, levels: &[&str]| CommandPattern { name, pattern: self.join(levels) };
        let of_server = |server: &ServerName| {
            [
                pattern(format!("{server}-command"), &[server.as_str(), "command", any]),
                pattern(format!("{server}-torrent-command"), &[server.as_str(), "torrent", any, "command", any]),
            ]
        };
        let bridge = pattern("bridge".to_owned(), &["bridge", &self.instance, "command", any]);
        std::iter::once(bridge).chain(servers.iter().flat_map(of_server)).collect()
    }

    /// Returns the levels below the prefix, the rest from the sixth on in one; `None` for an address elsewhere.
    pub fn levels<'a>(&self, address: &'a str) -> Option<Vec<&'a str>> {
        Some(self.below_prefix(address)?.splitn(LEVELS_MAX + 1, self.syntax.separator).collect())
    }

    fn below_prefix<'a>(&self, address: &'a str) -> Option<&'a str> {
        address.strip_prefix(self.prefix.as_str())?.strip_prefix(self.syntax.separator)
    }

    /// Parses the address of a command; `None` if it is no command for this bridge.
    ///
    /// Server, hash and verb are one non-empty level each, not checked further.
    pub fn command(&self, address: &str) -> Option<CommandAddress> {
        let levels = self.levels(address)?;
        // MQTT allows empty levels in a topic; an empty server, hash or verb is none.
        if levels.iter().any(|level| level.is_empty()) {
            return None;
        }
        let (server, hash, verb) = match levels[..] {
            ["bridge", instance, "command", verb] if instance == self.instance => (None, None, verb),
            // No server can be called `bridge`; without this arm `bridge/command/…` would be a command to one.
            ["bridge", ..] => return None,
            [server, "command", verb] => (Some(server), None, verb),
            [server, "torrent", hash, "command", verb] => (Some(server), Some(hash), verb),
            _ => return None,
        };
        Some(CommandAddress { server: server.map(Into::into), hash: hash.map(Into::into), verb: verb.into() })
    }

    /// Returns where a command's sender wants its result; `None` if nowhere, or at an address that must not be published to.
    pub fn reply_to(&self, sink: &SinkName, topic: Option<String>, correlation: Option<Vec<u8>>) -> Option<ReplyTo> {
        let topic = topic?;
        match self.check_reply(&topic) {
            Ok(()) => Some(ReplyTo { topic, correlation }),
            // The command is executed all the same: its result is on the result address in any case.
            Err(error) => {
                info!(%sink, %error, "reply address of a command ignored");
                None
            }
        }
    }

    /// Checks that a command's result may be published to `address`, which the command's sender chose.
    pub fn check_reply(&self, address: &str) -> Result<(), InvalidText> {
        self.syntax.check(address)?;
        // Whichever bridge's it is: a second one below the same prefix would execute a reply to its command topic.
        let below = self.below_prefix(address).unwrap_or_default();
        match below.split(self.syntax.separator).any(|level| RESERVED_LEVELS.contains(&level)) {
            true => Err(invalid("it is one of the bridge's own addresses")),
            false => Ok(()),
        }
    }
}
