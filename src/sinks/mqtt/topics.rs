//! Which topic a delivery goes to, and which command a topic is.
//!
//! What must hold: a name becomes at most one level of a topic, and only names that were parsed
//! ([`ServerName`], [`InfoHash`], [`Prefix`]) become one; what a command's sender asks to be answered on
//! can never be a topic of ours that means something.
//!
//! Pure: no I/O.

use crate::model::{InfoHash, ServerName};
use crate::port::{CommandAddress, Delivery};

use super::settings::Prefix;

/// What MQTT can say as the length of a topic.
const TOPIC_BYTES_MAX: usize = 65_535;

/// Levels that mean something below our prefix. `result` is left out: answers belong there.
const OUR_WORDS: [&str; 9] =
    ["command", "event", "state", "status", "stats", "files", "info", "health", "homeassistant"];

/// How sure a publish is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

/// Where a delivery goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub topic: String,
    pub qos: Qos,
    pub is_retained: bool,
}

/// All topics of one bridge on one broker.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: Prefix,
    instance: String,
    keeps_state: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnfitTopic {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {TOPIC_BYTES_MAX} bytes")]
    TooLong,
    #[error("it contains a wildcard")]
    Wildcard,
    #[error("it contains a control character")]
    Control,
    #[error("topics that begin with `$` are the broker's own")]
    Reserved,
    #[error("it is one of the bridge's own topics")]
    Ours,
}

impl Topics {
    /// `keeps_state`: whether the broker may keep a torrent's state at all.
    pub fn new(prefix: Prefix, instance: impl Into<String>, keeps_state: bool) -> Self {
        Self { prefix, instance: instance.into(), keeps_state }
    }

    pub fn bridge_status(&self) -> String {
        self.bridge("status")
    }

    pub fn route(&self, delivery: &Delivery) -> Route {
        use Qos::{AtLeastOnce, AtMostOnce};
        let prefix = &self.prefix;
        let (topic, qos, is_retained) = match delivery {
            Delivery::Event(entry) => {
                let (server, kind) = (&entry.server, entry.kind.as_str());
                let topic = match entry.hash {
                    Some(hash) => format!("{prefix}/{server}/torrent/{hash}/event/{kind}"),
                    None => format!("{prefix}/{server}/event/{kind}"),
                };
                (topic, AtLeastOnce, false)
            }
            Delivery::Updated { server, hash, .. } => {
                (format!("{prefix}/{server}/torrent/{hash}/event/updated"), AtMostOnce, false)
            }
            Delivery::State { server, hash, keep, .. } => {
                (format!("{prefix}/{server}/torrent/{hash}/state"), AtLeastOnce, *keep && self.keeps_state)
            }
            Delivery::Files { server, hash, .. } => {
                (format!("{prefix}/{server}/torrent/{hash}/files"), AtLeastOnce, false)
            }
            Delivery::ServerStatus { server, .. } => (format!("{prefix}/{server}/status"), AtLeastOnce, true),
            Delivery::Stats { server, .. } => (format!("{prefix}/{server}/stats"), AtLeastOnce, true),
            Delivery::Info { .. } => (self.bridge("info"), AtLeastOnce, true),
            Delivery::Health { .. } => (self.bridge("health"), AtMostOnce, false),
            Delivery::Result { server: Some(server), .. } => (format!("{prefix}/{server}/result"), AtLeastOnce, false),
            Delivery::Result { server: None, .. } => (self.bridge("result"), AtLeastOnce, false),
            Delivery::Shown { topic, keep, .. } => (topic.clone(), AtLeastOnce, *keep),
            Delivery::Clear { name } => (name.clone(), AtLeastOnce, true),
        };
        Route { topic, qos, is_retained }
    }

    /// The topic that the broker keeps this under.
    pub fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        if matches!(delivery, Delivery::Clear { .. }) {
            return None;
        }
        let route = self.route(delivery);
        route.is_retained.then_some(route.topic)
    }

    /// What is kept for the bridge itself, so that it is no leftover of a server or torrent.
    pub fn own(&self) -> Vec<String> {
        vec![self.bridge("status"), self.bridge("info")]
    }

    /// Filters for everything that is kept of a server.
    pub fn kept_of(&self, server: &ServerName) -> [String; 4] {
        ["status", "stats", "torrent/+/state", "homeassistant/#"]
            .map(|below| format!("{}/{server}/{below}", self.prefix))
    }

    /// Whose this is, if it is a topic under which something of a server is kept.
    pub fn server_of_kept(&self, topic: &str) -> Option<ServerName> {
        let below = topic.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?;
        let (server, below) = below.split_once('/')?;
        let server = ServerName::parse(server).ok()?;
        let is_kept = match below.split('/').collect::<Vec<_>>()[..] {
            ["status" | "stats"] => true,
            ["homeassistant", "command", ..] => false,
            ["homeassistant", _, ..] => true,
            // As we write it, else it is not ours.
            ["torrent", hash, "state"] => hash.parse::<InfoHash>().is_ok_and(|parsed| parsed.to_string() == hash),
            _ => false,
        };
        is_kept.then_some(server)
    }

    /// What to subscribe to for the commands of these servers and of the bridge.
    pub fn subscriptions(&self, servers: &[ServerName]) -> Vec<String> {
        let prefix = &self.prefix;
        let mut filters = vec![format!("{}/+", self.bridge("command"))];
        for server in servers {
            filters.push(format!("{prefix}/{server}/command/+"));
            filters.push(format!("{prefix}/{server}/torrent/+/command/+"));
        }
        filters
    }

    /// What to subscribe to for what Home Assistant's switches say.
    pub fn home_assistant_subscriptions(&self, servers: &[ServerName]) -> Vec<String> {
        servers.iter().map(|server| format!("{}/{server}/homeassistant/command/+", self.prefix)).collect()
    }

    /// The server and the last level of such a topic.
    pub fn home_assistant_command<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        let below = topic.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?;
        match below.split('/').collect::<Vec<_>>()[..] {
            [server, "homeassistant", "command", what] if !server.is_empty() && !what.is_empty() => {
                Some((server, what))
            }
            _ => None,
        }
    }

    /// The words of a command's topic; `None` if it is none for this bridge.
    pub fn command(&self, topic: &str) -> Option<CommandAddress> {
        let below = topic.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?;
        let levels: Vec<&str> = below.splitn(6, '/').collect();
        if levels.iter().any(|level| level.is_empty()) {
            return None;
        }
        let (server, hash, verb) = match levels[..] {
            ["bridge", instance, "command", verb] => return self.bridge_command(instance, verb),
            ["bridge", ..] => return None,
            [server, "command", verb] => (server, None, verb),
            [server, "torrent", hash, "command", verb] => (server, Some(hash), verb),
            _ => return None,
        };
        Some(CommandAddress { server: Some(server.into()), hash: hash.map(Into::into), verb: verb.into() })
    }

    fn bridge_command(&self, instance: &str, verb: &str) -> Option<CommandAddress> {
        (instance == self.instance).then(|| CommandAddress { server: None, hash: None, verb: verb.into() })
    }

    /// Whether the answer to a command may go to `topic`, which its sender chose.
    ///
    /// Below our prefix only what is no topic of ours, or a result's: otherwise who may only send
    /// commands could have us send further commands, or events that never happened.
    pub fn check_reply(&self, topic: &str) -> Result<(), UnfitTopic> {
        check_topic(topic)?;
        let below = topic.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('/'));
        if below.is_some_and(|below| below.split('/').any(|level| OUR_WORDS.contains(&level))) {
            return Err(UnfitTopic::Ours);
        }
        Ok(())
    }

    fn bridge(&self, word: &str) -> String {
        format!("{}/bridge/{}/{word}", self.prefix, self.instance)
    }
}

/// Whether a broker takes a publish to this topic.
pub fn check_topic(topic: &str) -> Result<(), UnfitTopic> {
    if topic.is_empty() {
        return Err(UnfitTopic::Empty);
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(UnfitTopic::TooLong);
    }
    if topic.contains(['+', '#']) {
        return Err(UnfitTopic::Wildcard);
    }
    if topic.chars().any(char::is_control) {
        return Err(UnfitTopic::Control);
    }
    if topic.starts_with('$') {
        return Err(UnfitTopic::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Epoch, EventId, JournalEntry, Kind, Rev, Seq, Timestamp};

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
            home(),
            Seq(1),
            EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(1) },
            kind,
            hash,
            Rev(1),
            Timestamp::from_millis(0),
            Bytes::new(),
        ))
    }

    /// Every delivery there is, beside what the contract says of it: topic, QoS, retained.
    fn golden() -> Vec<(Delivery, String, &'static str)> {
        let id = EventId::Updated { server: home(), epoch: Epoch(1), rev: Rev(1) };
        let (body, time) = (Bytes::new(), Timestamp::from_millis(0));
        let torrent = |rest: &str| format!("dtorrent/home/torrent/{HASH}/{rest}");
        let state = |keep| Delivery::State { server: home(), hash: hash(), body: Bytes::new(), keep };
        let result = |server| Delivery::Result { server, body: Bytes::new(), reply: None };
        vec![
            (event(Kind::Finished, Some(hash())), torrent("event/finished"), "1"),
            (event(Kind::ErrorCleared, Some(hash())), torrent("event/error_cleared"), "1"),
            (event(Kind::ServerOnline, None), "dtorrent/home/event/server_online".into(), "1"),
            (
                Delivery::Updated { server: home(), hash: hash(), id, time, body: body.clone() },
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
            (Delivery::Clear { name: "dtorrent/old/status".into() }, "dtorrent/old/status".into(), "1 retained"),
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
            let is_kept = is_retained && !matches!(delivery, Delivery::Clear { .. });
            assert_eq!(topics().retained_topic(&delivery), is_kept.then_some(topic));
        }
    }

    #[test]
    fn with_retain_none_no_state_is_kept_but_the_servers_status_is() {
        let topics = Topics::new(Prefix::default(), "main", false);
        let kept: Vec<_> = golden().iter().filter_map(|(delivery, ..)| topics.retained_topic(delivery)).collect();
        assert_eq!(kept, ["dtorrent/home/status", "dtorrent/home/stats", "dtorrent/bridge/main/info"]);
    }

    #[test]
    fn what_is_kept_of_a_server_is_known_by_its_topic_and_nothing_else_is() {
        for (_, topic, _) in golden() {
            let is_servers = ["/state", "/stats", "/status"].iter().any(|word| topic.ends_with(word));
            let server = is_servers.then(|| ServerName::parse(topic.split('/').nth(1).unwrap()).unwrap());
            assert_eq!(topics().server_of_kept(&topic), server, "{topic}");
        }
        for other in ["dtorrent/home/torrent/3F78/state", "dtorrent/Home/status", "x/home/status", "dtorrent/home", ""]
        {
            assert_eq!(topics().server_of_kept(other), None, "{other}");
        }
        let upper = format!("dtorrent/home/torrent/{}/state", HASH.to_uppercase());
        assert_eq!(topics().server_of_kept(&upper), None);
    }

    #[test]
    fn a_command_topic_is_taken_apart_and_nothing_else_is() {
        let check = |topic: &str, expected: Option<(Option<&str>, Option<&str>, &str)>| {
            let address = topics().command(topic);
            let words = address.as_ref().map(|a| (a.server.as_deref(), a.hash.as_deref(), a.verb.as_str()));
            assert_eq!(words, expected, "{topic}");
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
    fn an_answer_goes_anywhere_but_to_topics_of_ours() {
        for good in ["a", "reply/42", "dtorrent", "dtorrentx/home/state", "dtorrent/home/result", "dtorrent/answers/7"]
        {
            assert_eq!(topics().check_reply(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("", UnfitTopic::Empty),
            ("a/+", UnfitTopic::Wildcard),
            ("#", UnfitTopic::Wildcard),
            ("a\0", UnfitTopic::Control),
            ("$SYS/x", UnfitTopic::Reserved),
            (&"x".repeat(65_536), UnfitTopic::TooLong),
            ("dtorrent/home/command/delete", UnfitTopic::Ours),
            ("dtorrent/home/torrent/3f78/command/delete", UnfitTopic::Ours),
            ("dtorrent/bridge/main/command/resync", UnfitTopic::Ours),
            ("dtorrent/bridge/other/command/resync", UnfitTopic::Ours),
            ("dtorrent/bridge/main/status", UnfitTopic::Ours),
            ("dtorrent/home/event/server_offline", UnfitTopic::Ours),
            ("dtorrent/home/torrent/3f78/state", UnfitTopic::Ours),
        ] {
            assert_eq!(topics().check_reply(bad), Err(expected), "{bad}");
        }
    }

    fn word() -> impl Strategy<Value = String> {
        "[^/]{1,12}"
            .prop_filter("a level of its own", |word| word != "bridge" && word != "command" && word != "torrent")
    }

    proptest! {
        #[test]
        fn a_command_topic_reads_back_whatever_its_words(server in word(), hash in proptest::option::of(word()), verb in word()) {
            let topic = match &hash {
                Some(hash) => format!("dtorrent/{server}/torrent/{hash}/command/{verb}"),
                None => format!("dtorrent/{server}/command/{verb}"),
            };
            prop_assert_eq!(topics().command(&topic), Some(CommandAddress { server: Some(server), hash, verb }));
        }

        #[test]
        fn no_topic_panics_and_no_word_of_a_command_is_more_than_one_level(topic in ".{0,200}|dtorrent/[a-z/+#]{0,60}") {
            if let Some(CommandAddress { server, hash, verb }) = topics().command(&topic) {
                for word in [server, hash, Some(verb)].into_iter().flatten() {
                    prop_assert!(!word.is_empty() && !word.contains('/'));
                }
                prop_assert!(topics().check_reply(&topic).is_err(), "a command must not be answered with a command");
            }
        }

        #[test]
        fn what_is_sent_for_a_server_stays_below_its_levels(name in "[a-z0-9][a-z0-9_-]{0,20}", prefix in "[^/+#$\\x00-\\x1f\\x7f-\\u{9f}]{1,20}") {
            let (Ok(server), Ok(prefix)) = (ServerName::parse(&name), Prefix::of_topics(&prefix)) else { return Ok(()) };
            let topics = Topics::new(prefix.clone(), "main", true);
            let state = Delivery::State { server, hash: hash(), body: Bytes::new(), keep: true };
            let topic = topics.route(&state).topic;
            prop_assert_eq!(topic.split('/').collect::<Vec<_>>(), [prefix.as_str(), &name, "torrent", HASH, "state"]);
            prop_assert_eq!(check_topic(&topic), Ok(()));
        }
    }
}
