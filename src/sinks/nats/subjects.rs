//! Which subject a delivery goes to, what the stream catches, and which command a subject is.
//!
//! The subjects are the topics of MQTT with `.` between the levels. What must hold: a name becomes at
//! most one token, and only names that were parsed become one; `updated` is no subject of the stream;
//! what a command's sender asks to be answered on can never be a subject of ours that means something.
//!
//! Pure: no I/O.

use crate::model::{Entity, InfoHash, Kind, ServerName};
use crate::port::{CommandAddress, Delivery};

use super::settings::Prefix;

/// The stream that keeps all events but `updated`.
pub const STREAM: &str = "DTORRENT_EVENTS";
/// The bucket that keeps the last state of each torrent.
pub const BUCKET: &str = "dtorrent_state";
/// What a bucket is on the server: a stream of this name.
pub const BUCKET_STREAM: &str = "KV_dtorrent_state";

/// More than any subject of ours, less than a server takes on one line.
const SUBJECT_BYTES_MAX: usize = 1024;

/// Tokens that mean something below our prefix. `result` is left out: answers belong there.
const OUR_WORDS: [&str; 8] = ["command", "event", "state", "status", "stats", "files", "info", "health"];

/// All subjects of one bridge on one NATS system.
#[derive(Clone, Debug)]
pub struct Subjects {
    prefix: Prefix,
    instance: String,
    keeps_state: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnfitSubject {
    #[error("it is empty or has an empty token")]
    Empty,
    #[error("it is longer than {SUBJECT_BYTES_MAX} bytes")]
    TooLong,
    #[error("it contains a wildcard")]
    Wildcard,
    #[error("it contains a space or a control character")]
    Unprintable,
    #[error("subjects that begin with `$` are the server's own")]
    Reserved,
    #[error("it is one of the bridge's own subjects")]
    Ours,
}

impl Subjects {
    /// `keeps_state`: there is a bucket for the torrents' states.
    pub fn new(prefix: Prefix, instance: impl Into<String>, keeps_state: bool) -> Self {
        Self { prefix, instance: instance.into(), keeps_state }
    }

    pub fn bridge_status(&self) -> String {
        self.bridge("status")
    }

    /// Where a delivery is published; for what is taken back from the bucket, its subject there.
    pub fn of(&self, delivery: &Delivery) -> String {
        let prefix = &self.prefix;
        match delivery {
            Delivery::Event(entry) => match entry.hash {
                Some(hash) => self.torrent_event(&entry.server, hash, entry.kind),
                None => format!("{prefix}.{}.event.{}", entry.server, entry.kind.as_str()),
            },
            Delivery::Updated { server, hash, .. } => self.torrent_event(server, *hash, Kind::Updated),
            Delivery::State { server, hash, .. } => format!("{prefix}.{server}.torrent.{hash}.state"),
            Delivery::Files { server, hash, .. } => format!("{prefix}.{server}.torrent.{hash}.files"),
            Delivery::ServerStatus { server, .. } => format!("{prefix}.{server}.status"),
            Delivery::Stats { server, .. } => format!("{prefix}.{server}.stats"),
            Delivery::Info { .. } => self.bridge("info"),
            Delivery::Health { .. } => self.bridge("health"),
            Delivery::Result { server: Some(server), .. } => format!("{prefix}.{server}.result"),
            Delivery::Result { server: None, .. } => self.bridge("result"),
            Delivery::Shown { topic, .. } => topic.clone(),
            Delivery::Clear { name } => bucket_subject(name),
        }
    }

    fn torrent_event(&self, server: &ServerName, hash: InfoHash, kind: Kind) -> String {
        format!("{}.{server}.torrent.{hash}.event.{}", self.prefix, kind.as_str())
    }

    /// The key that the bucket keeps this under.
    pub fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        match delivery {
            Delivery::State { server, hash, keep: true, .. } if self.keeps_state => Some(format!("{server}.{hash}")),
            _ => None,
        }
    }

    /// What the stream catches: each kind of event but `updated`, which shares its subjects with the others.
    pub fn of_stream(&self) -> Vec<String> {
        let prefix = &self.prefix;
        let of_torrents = Kind::ALL.iter().filter(|kind| kind.entity() == Entity::Torrent && **kind != Kind::Updated);
        let of_torrents = of_torrents.map(|kind| format!("{prefix}.*.torrent.*.event.{}", kind.as_str()));
        std::iter::once(format!("{prefix}.*.event.>")).chain(of_torrents).collect()
    }

    /// What the stream must not catch: there would be more of it than of everything else.
    pub fn of_updates(&self) -> String {
        format!("{}.*.torrent.*.event.updated", self.prefix)
    }

    /// The endpoints of the service, each with its name: commands to these servers, and to the bridge.
    pub fn endpoints(&self, servers: &[ServerName]) -> Vec<(String, String)> {
        let prefix = &self.prefix;
        let mut endpoints = vec![("bridge".to_owned(), format!("{}.*", self.bridge("command")))];
        for server in servers {
            endpoints.push((format!("{server}-command"), format!("{prefix}.{server}.command.*")));
            endpoints.push((format!("{server}-torrent-command"), format!("{prefix}.{server}.torrent.*.command.*")));
        }
        endpoints
    }

    /// The words of a command's subject; `None` if it is none for this bridge.
    pub fn command(&self, subject: &str) -> Option<CommandAddress> {
        let below = subject.strip_prefix(self.prefix.as_str())?.strip_prefix('.')?;
        let tokens: Vec<&str> = below.splitn(6, '.').collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return None;
        }
        let (server, hash, verb) = match tokens[..] {
            ["bridge", instance, "command", verb] if instance == self.instance => (None, None, verb),
            ["bridge", ..] => return None,
            [server, "command", verb] => (Some(server), None, verb),
            [server, "torrent", hash, "command", verb] => (Some(server), Some(hash), verb),
            _ => return None,
        };
        Some(CommandAddress { server: server.map(Into::into), hash: hash.map(Into::into), verb: verb.into() })
    }

    /// Whether the answer to a command may go to `subject`, which its sender chose.
    ///
    /// Below our prefix only what is no subject of ours, or a result's, and never to what makes a server
    /// act: otherwise who may only send commands could have us do more in his place.
    pub fn check_reply(&self, subject: &str) -> Result<(), UnfitSubject> {
        check_subject(subject)?;
        let below = subject.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
        if below.is_some_and(|below| below.split('.').any(|token| OUR_WORDS.contains(&token))) {
            return Err(UnfitSubject::Ours);
        }
        Ok(())
    }

    fn bridge(&self, word: &str) -> String {
        format!("{}.bridge.{}.{word}", self.prefix, self.instance)
    }
}

/// Where the value of a key is put.
pub fn bucket_subject(key: &str) -> String {
    format!("$KV.{BUCKET}.{key}")
}

/// Whether a server takes a publish to this subject from anybody.
fn check_subject(subject: &str) -> Result<(), UnfitSubject> {
    if subject.split('.').any(str::is_empty) {
        return Err(UnfitSubject::Empty);
    }
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err(UnfitSubject::TooLong);
    }
    if subject.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(UnfitSubject::Unprintable);
    }
    if subject.split('.').any(|token| token == "*" || token == ">") {
        return Err(UnfitSubject::Wildcard);
    }
    if subject.starts_with('$') {
        return Err(UnfitSubject::Reserved);
    }
    Ok(())
}

/// Whether every subject that matches `inner` matches `outer`.
pub fn covers(outer: &str, inner: &str) -> bool {
    let mut inner = inner.split('.');
    let mut outer = outer.split('.');
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(outer), Some(inner)) if outer == inner => {}
            _ => return false,
        }
    }
}

/// Whether some subject matches both.
pub fn overlap(one: &str, other: &str) -> bool {
    let mut one = one.split('.');
    let mut other = other.split('.');
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Epoch, EventId, JournalEntry, Rev, Seq, Timestamp};

    const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

    fn subjects() -> Subjects {
        Subjects::new(Prefix::default(), "main", true)
    }

    fn home() -> ServerName {
        ServerName::parse("home").unwrap()
    }

    fn event(kind: Kind) -> Delivery {
        let id = EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(1) };
        let hash = (kind.entity() == Entity::Torrent).then(|| HASH.parse().unwrap());
        let time = Timestamp::from_millis(0);
        Delivery::Event(JournalEntry::stored(home(), Seq(1), id, kind, hash, Rev(1), time, Bytes::new()))
    }

    #[test]
    fn the_stream_catches_every_kind_but_updated() {
        let stream = subjects().of_stream();
        for kind in Kind::ALL {
            let subject = subjects().of(&event(*kind));
            let is_caught = stream.iter().any(|caught| covers(caught, &subject));
            assert_eq!(is_caught, *kind != Kind::Updated, "{subject}");
        }
        assert!(stream.iter().all(|caught| !overlap(caught, &subjects().of_updates())));
        for status in ["dtorrent.home.status", "dtorrent.bridge.main.health", "dtorrent.home.command.add"] {
            assert!(stream.iter().all(|caught| !covers(caught, status)), "{status}");
        }
    }

    #[test]
    fn a_state_is_kept_under_its_server_and_hash_and_nothing_else_is() {
        let state = |keep| Delivery::State { server: home(), hash: HASH.parse().unwrap(), body: Bytes::new(), keep };
        let key = format!("home.{HASH}");
        assert_eq!(subjects().retained_topic(&state(true)).as_deref(), Some(&*key));
        assert_eq!(subjects().retained_topic(&state(false)), None);
        assert_eq!(Subjects::new(Prefix::default(), "main", false).retained_topic(&state(true)), None);
        assert_eq!(subjects().retained_topic(&event(Kind::Added)), None);
        let clear = Delivery::Clear { name: key.clone() };
        assert_eq!(
            (subjects().retained_topic(&clear), subjects().of(&clear)),
            (None, format!("$KV.dtorrent_state.{key}"))
        );
    }

    #[test]
    fn subjects_cover_and_overlap_as_a_server_says() {
        for (outer, inner, is_covered, is_overlapping) in [
            ("a.b", "a.b", true, true),
            ("a.*", "a.b", true, true),
            ("a.b", "a.*", false, true),
            ("a.>", "a.b.c", true, true),
            ("a.>", "a", false, false),
            ("a.*", "a.>", false, true),
            (">", "a", true, true),
            ("a.*.c", "a.b.*", false, true),
            ("a.b", "a.c", false, false),
            ("a.*", "a.b.c", false, false),
        ] {
            assert_eq!(covers(outer, inner), is_covered, "{outer} {inner}");
            assert_eq!(overlap(outer, inner), is_overlapping, "{outer} {inner}");
        }
    }

    #[test]
    fn a_command_subject_is_taken_apart_and_nothing_else_is() {
        let check = |subject: &str, expected: Option<(Option<&str>, Option<&str>, &str)>| {
            let address = subjects().command(subject);
            let words = address.as_ref().map(|a| (a.server.as_deref(), a.hash.as_deref(), a.verb.as_str()));
            assert_eq!(words, expected, "{subject}");
        };
        check("dtorrent.home.command.add", Some((Some("home"), None, "add")));
        check("dtorrent.home.torrent.3F78.command.pause", Some((Some("home"), Some("3F78"), "pause")));
        check("dtorrent.bridge.main.command.resync", Some((None, None, "resync")));
        for none in [
            "",
            "dtorrent",
            "dtorrent.home.command",
            "dtorrent.home.command.",
            "dtorrent.home.command.add.more",
            "dtorrent..command.add",
            "dtorrent.home.event.added",
            "dtorrent.bridge.other.command.resync",
            "dtorrent.bridge.command.resync",
            "dtorrentx.home.command.add",
            "other.home.command.add",
        ] {
            check(none, None);
        }
    }

    #[test]
    fn an_answer_goes_anywhere_but_to_subjects_of_ours_and_of_the_server() {
        for good in ["_INBOX.x.1", "_R_.x", "a", "dtorrent.home.result", "dtorrent.answers.7", "dtorrentx.home.state"] {
            assert_eq!(subjects().check_reply(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("", UnfitSubject::Empty),
            ("a..b", UnfitSubject::Empty),
            ("a.*", UnfitSubject::Wildcard),
            ("a.>", UnfitSubject::Wildcard),
            ("a b", UnfitSubject::Unprintable),
            ("$JS.API.STREAM.DELETE.DTORRENT_EVENTS", UnfitSubject::Reserved),
            ("$KV.dtorrent_state.home.x", UnfitSubject::Reserved),
            (&"x".repeat(1025), UnfitSubject::TooLong),
            ("dtorrent.home.command.delete", UnfitSubject::Ours),
            ("dtorrent.bridge.main.status", UnfitSubject::Ours),
            ("dtorrent.home.torrent.3f78.event.finished", UnfitSubject::Ours),
        ] {
            assert_eq!(subjects().check_reply(bad), Err(expected), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_subject_panics_and_no_command_is_answered_with_a_command(subject in ".{0,200}|dtorrent\\.[a-z.*>]{0,60}") {
            if let Some(CommandAddress { server, hash, verb }) = subjects().command(&subject) {
                for word in [server, hash, Some(verb)].into_iter().flatten() {
                    prop_assert!(!word.is_empty() && !word.contains('.'));
                }
                prop_assert!(subjects().check_reply(&subject).is_err());
            }
        }

        #[test]
        fn what_covers_overlaps_too(one in "[ab*]{1}(\\.[ab*]){0,3}(\\.>)?", other in "[ab*]{1}(\\.[ab*]){0,3}(\\.>)?") {
            prop_assert!(!covers(&one, &other) || overlap(&one, &other));
            prop_assert_eq!(overlap(&one, &other), overlap(&other, &one));
        }
    }
}
