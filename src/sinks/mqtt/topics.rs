//! The MQTT topics of a bridge: where a delivery goes, and which command a topic is.
//!
//! Pure: no I/O.

use crate::model::{InfoHash, ServerName};
use crate::port::Delivery;
use crate::sinks::broker::address::{AddressSpace, Syntax};

use super::settings::Prefix;

/// The syntax of topics (MQTT 5 §4.7).
pub const SYNTAX: Syntax = Syntax {
    separator: '/',
    any_level: "+",
    has_wildcard: |topic| topic.contains(['+', '#']),
    is_lenient: true,
    // The length has two bytes in a packet (MQTT 5 §1.5.4).
    bytes_max: 65_535,
};

/// The quality of service of a publish. QoS 2 is not used: consumers drop repetitions by the event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
}

/// The topic of a publish, and how it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The topic, without wildcards.
    pub topic: String,
    /// Lowered to QoS 0 where the broker has nothing else.
    pub qos: Qos,
    /// Dropped where the broker retains nothing.
    pub is_retained: bool,
}

/// The topics of one bridge on one broker.
#[derive(Clone, Debug)]
pub struct Topics {
    /// The addresses that every broker has.
    pub addresses: AddressSpace,
    retains_state: bool,
}

impl Topics {
    /// Creates the topics below `prefix`; `retains_state`: whether states of torrents may be retained at all.
    pub fn new(prefix: Prefix, instance: impl Into<String>, retains_state: bool) -> Self {
        Self { addresses: AddressSpace::new(SYNTAX, prefix, instance), retains_state }
    }

    /// Returns the topic of a delivery, and how it is published.
    pub fn route(&self, delivery: &Delivery) -> Route {
        use Qos::{AtLeastOnce, AtMostOnce};
        let (qos, is_retained) = match delivery {
            // Conflated (I8) or repeated soon: one that is lost is made up for by the next.
            Delivery::Updated { .. } | Delivery::Health { .. } => (AtMostOnce, false),
            Delivery::Event(_) | Delivery::Files { .. } | Delivery::Result { .. } => (AtLeastOnce, false),
            Delivery::State { retain, .. } => (AtLeastOnce, *retain && self.retains_state),
            Delivery::Projected { retain, .. } => (AtLeastOnce, *retain),
            Delivery::ServerStatus { .. } | Delivery::Stats { .. } | Delivery::Info { .. } | Delivery::Clear { .. } => {
                (AtLeastOnce, true)
            }
        };
        Route { topic: self.addresses.of(delivery), qos, is_retained }
    }

    /// Returns the topic that the broker retains this delivery under, until it is cleared.
    pub fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        if matches!(delivery, Delivery::Clear { .. }) {
            return None;
        }
        let route = self.route(delivery);
        route.is_retained.then_some(route.topic)
    }

    /// Returns the topics that are retained for the bridge itself, and so are no orphans of a server or torrent.
    pub fn own_retained(&self) -> Vec<String> {
        vec![self.addresses.bridge_status(), self.addresses.bridge("info")]
    }

    /// Returns filters that match everything retained for a server.
    pub fn retained_filters(&self, server: &ServerName) -> [String; 4] {
        let below: [&[&str]; 4] = [&["status"], &["stats"], &["torrent", "+", "state"], &["homeassistant", "#"]];
        below.map(|below| self.addresses.join(&[&[server.as_str()], below].concat()))
    }

    /// Returns the server that a retained topic belongs to; `None` for a topic that no server retains.
    pub fn server_of_retained(&self, topic: &str) -> Option<ServerName> {
        let levels = self.addresses.levels(topic)?;
        let (server, below) = levels.split_first()?;
        let server = ServerName::parse(server).ok()?;
        let is_retained = match below {
            ["status" | "stats"] => true,
            // What the controls publish is not retained by us.
            ["homeassistant", "command", ..] => false,
            ["homeassistant", _, ..] => true,
            // A hash in another spelling than ours was published by somebody else.
            ["torrent", hash, "state"] => hash.parse::<InfoHash>().is_ok_and(|parsed| parsed.to_string() == *hash),
            _ => false,
        };
        is_retained.then_some(server)
    }

    /// Returns the filter that matches what every instance tells of itself.
    pub fn info_filter(&self) -> String {
        self.addresses.join(&["bridge", "+", "info"])
    }

    /// Returns the instance that tells of itself in this topic.
    pub fn instance_of_info<'t>(&self, topic: &'t str) -> Option<&'t str> {
        match self.addresses.levels(topic)?[..] {
            ["bridge", instance, "info"] => Some(instance),
            _ => None,
        }
    }

    /// Returns filters that match the commands to these servers and to the bridge.
    pub fn command_filters(&self, servers: &[ServerName]) -> Vec<String> {
        self.addresses.command_patterns(servers).into_iter().map(|commands| commands.pattern).collect()
    }

    /// Returns filters that match what Home Assistant's controls of these servers publish.
    pub fn home_assistant_filters(&self, servers: &[ServerName]) -> Vec<String> {
        let of_server = |server: &ServerName| self.addresses.join(&[server.as_str(), "homeassistant", "command", "+"]);
        servers.iter().map(of_server).collect()
    }

    /// Returns the server and the control of a topic that [`Self::home_assistant_filters`] match.
    pub fn home_assistant_command<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        match self.addresses.levels(topic)?[..] {
            [server, "homeassistant", "command", control] if !server.is_empty() && !control.is_empty() => {
                Some((server, control))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Epoch, Event, EventId, JournalEntry, Kind, Rev, Seq, Timestamp};
    use crate::port::CommandAddress;

    const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

    fn topics() -> Topics {
        Topics::new(Prefix::default(), "main", true)
    }

    fn home() -> ServerName {
        ServerName::parse("home").unwrap()
    }

    fn hash() -> InfoHash {
        HASH.parse().unwrap()
    }

    fn event(kind: Kind, hash: Option<InfoHash>) -> Delivery {
        Delivery::Event(JournalEntry::stored(
            EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(1) },
            kind,
            hash,
            Rev(1),
            Timestamp::from_millis(0),
            Bytes::new(),
        ))
    }

    /// Every delivery with its topic, QoS and retain flag as documented.
    fn golden() -> Vec<(Delivery, String, &'static str)> {
        let id = EventId::Updated { server: home(), epoch: Epoch(1), rev: Rev(1) };
        let (body, time) = (Bytes::new(), Timestamp::from_millis(0));
        let torrent = |rest: &str| format!("dtorrent/home/torrent/{HASH}/{rest}");
        let state = |retain| Delivery::State { server: home(), hash: hash(), body: Bytes::new(), retain };
        let result = |server| Delivery::Result { server, body: Bytes::new(), reply: None };
        vec![
            (event(Kind::Finished, Some(hash())), torrent("event/finished"), "1"),
            (event(Kind::ErrorCleared, Some(hash())), torrent("event/error_cleared"), "1"),
            (event(Kind::ServerOnline, None), "dtorrent/home/event/server_online".into(), "1"),
            (
                Delivery::Updated {
                    hash: hash(),
                    event: Arc::new(Event::new(id, Kind::Updated, time)),
                    body: body.clone(),
                },
                torrent("event/updated"),
                "0",
            ),
            (state(true), torrent("state"), "1 retained"),
            (state(false), torrent("state"), "1"),
            (Delivery::Files { server: home(), hash: hash(), body: body.clone() }, torrent("files"), "1"),
            (Delivery::ServerStatus { server: home(), is_online: true }, "dtorrent/home/status".into(), "1 retained"),
            (Delivery::Stats { server: home(), body: body.clone() }, "dtorrent/home/stats".into(), "1 retained"),
            (Delivery::Info { body: body.clone() }, "dtorrent/bridge/main/info".into(), "1 retained"),
            (Delivery::Health { body }, "dtorrent/bridge/main/health".into(), "0"),
            (result(Some(home())), "dtorrent/home/result".into(), "1"),
            (result(None), "dtorrent/bridge/main/result".into(), "1"),
            (Delivery::Clear { topic: "dtorrent/old/status".into() }, "dtorrent/old/status".into(), "1 retained"),
        ]
    }

    #[test]
    fn every_delivery_goes_where_the_contract_says() {
        for (delivery, topic, manner) in golden() {
            let route = topics().route(&delivery);
            assert_eq!(route.topic, topic);
            let (qos, is_retained) = match manner {
                "0" => (Qos::AtMostOnce, false),
                "1" => (Qos::AtLeastOnce, false),
                _ => (Qos::AtLeastOnce, true),
            };
            assert_eq!((route.qos, route.is_retained), (qos, is_retained), "{topic}");
            let has_retained_topic = is_retained && !matches!(delivery, Delivery::Clear { .. });
            assert_eq!(topics().retained_topic(&delivery), has_retained_topic.then_some(topic));
        }
    }

    #[test]
    fn with_retain_none_no_state_is_retained_but_the_servers_status_is() {
        let topics = Topics::new(Prefix::default(), "main", false);
        let retained: Vec<_> = golden().iter().filter_map(|(delivery, ..)| topics.retained_topic(delivery)).collect();
        assert_eq!(retained, ["dtorrent/home/status", "dtorrent/home/stats", "dtorrent/bridge/main/info"]);
    }

    #[test]
    fn a_retained_topic_names_its_server_and_no_other_topic_does() {
        for (_, topic, _) in golden() {
            let is_servers = ["/state", "/stats", "/status"].iter().any(|word| topic.ends_with(word));
            let server = is_servers.then(|| ServerName::parse(topic.split('/').nth(1).unwrap()).unwrap());
            assert_eq!(topics().server_of_retained(&topic), server, "{topic}");
        }
        for other in ["dtorrent/home/torrent/3F78/state", "dtorrent/Home/status", "x/home/status", "dtorrent/home", ""]
        {
            assert_eq!(topics().server_of_retained(other), None, "{other}");
        }
        let upper = format!("dtorrent/home/torrent/{}/state", HASH.to_uppercase());
        assert_eq!(topics().server_of_retained(&upper), None);
    }

    #[test]
    fn a_command_topic_is_parsed_and_no_other_topic_is() {
        let check = |topic: &str, expected: Option<(Option<&str>, Option<&str>, &str)>| {
            let address = topics().addresses.command(topic);
            let parts = address.as_ref().map(|a| (a.server.as_deref(), a.hash.as_deref(), a.verb.as_str()));
            assert_eq!(parts, expected, "{topic}");
        };
        check("dtorrent/home/command/add", Some((Some("home"), None, "add")));
        check("dtorrent/home/torrent/3F78/command/pause", Some((Some("home"), Some("3F78"), "pause")));
        check("dtorrent/bridge/main/command/resync", Some((None, None, "resync")));
        for none in [
            "",
            "dtorrent",
            "dtorrent/",
            "dtorrent/home/command",
            "dtorrent/home/command/",
            "dtorrent/home/command/add/more",
            "dtorrent//command/add",
            "dtorrent/home/event/added",
            "dtorrent/home/torrent/3f78/command",
            "dtorrent/home/torrent/3f78/command/pause/x",
            "dtorrent/bridge/other/command/resync",
            "dtorrent/bridge/command/resync",
            "dtorrent/bridge/torrent/3f78/command/pause",
            "dtorrentx/home/command/add",
            "other/home/command/add",
            "/dtorrent/home/command/add",
        ] {
            check(none, None);
        }
    }

    #[test]
    fn a_reply_goes_anywhere_but_to_topics_of_ours() {
        for good in ["a", "reply/42", "dtorrent", "dtorrentx/home/state", "dtorrent/home/result", "dtorrent/answers/7"]
        {
            assert_eq!(topics().addresses.check_reply(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("", "is empty"),
            ("a/+", "wildcard"),
            ("#", "wildcard"),
            ("a\0", "character"),
            ("$SYS/x", "reserved"),
            (&"x".repeat(65_536), "65535 bytes"),
            ("dtorrent/home/command/delete", "own addresses"),
            ("dtorrent/home/torrent/3f78/command/delete", "own addresses"),
            ("dtorrent/bridge/main/command/resync", "own addresses"),
            ("dtorrent/bridge/other/command/resync", "own addresses"),
            ("dtorrent/bridge/main/status", "own addresses"),
            ("dtorrent/home/event/server_offline", "own addresses"),
            ("dtorrent/home/torrent/3f78/state", "own addresses"),
        ] {
            let error = topics().addresses.check_reply(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    fn level() -> impl Strategy<Value = String> {
        "[^/]{1,12}"
            .prop_filter("a level of its own", |level| !["bridge", "command", "torrent"].contains(&level.as_str()))
    }

    proptest! {
        #[test]
        fn a_command_topic_parses_back_whatever_its_levels(server in level(), hash in proptest::option::of(level()), verb in level()) {
            let topic = match &hash {
                Some(hash) => format!("dtorrent/{server}/torrent/{hash}/command/{verb}"),
                None => format!("dtorrent/{server}/command/{verb}"),
            };
            prop_assert_eq!(topics().addresses.command(&topic), Some(CommandAddress { server: Some(server), hash, verb }));
        }

        #[test]
        fn no_topic_panics_and_no_part_of_a_command_is_more_than_one_level(topic in ".{0,200}|dtorrent/[a-z/+#]{0,60}") {
            if let Some(CommandAddress { server, hash, verb }) = topics().addresses.command(&topic) {
                for part in [server, hash, Some(verb)].into_iter().flatten() {
                    prop_assert!(!part.is_empty() && !part.contains('/'));
                }
                prop_assert!(topics().addresses.check_reply(&topic).is_err(), "a command must not be answered with a command");
            }
        }

        #[test]
        fn a_delivery_for_a_server_stays_below_its_levels(name in "[a-z0-9][a-z0-9_-]{0,20}", prefix in "[^/+#$\\x00-\\x1f\\x7f-\\u{9f}]{1,20}") {
            let (Ok(server), Ok(prefix)) = (ServerName::parse(&name), Prefix::of_topics(&prefix)) else { return Ok(()) };
            let topics = Topics::new(prefix.clone(), "main", true);
            let state = Delivery::State { server, hash: hash(), body: Bytes::new(), retain: true };
            let topic = topics.route(&state).topic;
            prop_assert_eq!(topic.split('/').collect::<Vec<_>>(), [prefix.as_str(), &name, "torrent", HASH, "state"]);
            prop_assert_eq!(SYNTAX.check(&topic), Ok(()));
        }
    }
}
