//! The NATS subjects of a bridge: where a delivery goes, what the stream captures, and which command a subject is.
//!
//! Invariant: `updated` is not a subject of the stream; there would be more of it than of everything else.
//!
//! Pure: no I/O.

use crate::model::{Entity, Kind};
use crate::port::Delivery;
use crate::sinks::broker::address::{AddressSpace, Syntax};

use super::settings::Prefix;

/// The stream that stores all events but `updated`.
pub const STREAM: &str = "DTORRENT_EVENTS";
/// The key-value bucket that stores the last state of each torrent.
pub const BUCKET: &str = "dtorrent_state";
/// The stream that implements the bucket on the server.
pub const BUCKET_STREAM: &str = "KV_dtorrent_state";

const SYNTAX: Syntax = Syntax {
    separator: '.',
    any_level: "*",
    // Only a whole token is a wildcard: `a*` is a subject that servers accept.
    has_wildcard: |subject| subject.split('.').any(|token| token == "*" || token == ">"),
    is_lenient: false,
    // Longer than any subject of ours, shorter than the 4096 bytes that a server accepts as one protocol line.
    bytes_max: 1024,
};

/// The subjects of one bridge on one NATS system.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// The addresses that every broker has.
    pub addresses: AddressSpace,
    stores_state: bool,
}

impl Subjects {
    /// Creates the subjects below `prefix`; `stores_state`: whether there is a bucket for the torrents' states.
    pub fn new(prefix: Prefix, instance: impl Into<String>, stores_state: bool) -> Self {
        Self { addresses: AddressSpace::new(SYNTAX, prefix, instance), stores_state }
    }

    /// Returns the subject that a delivery is published to; of a clearing, the subject of its key in the bucket.
    pub fn of(&self, delivery: &Delivery) -> String {
        match delivery {
            Delivery::Clear { topic } => bucket_subject(topic),
            _ => self.addresses.of(delivery),
        }
    }

    /// Returns the key that the bucket stores this delivery under.
    pub fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        match delivery {
            Delivery::State { server, hash, retain: true, .. } if self.stores_state => Some(format!("{server}.{hash}")),
            _ => None,
        }
    }

    /// Returns the subjects that the stream captures: each kind of event but `updated`, which only a subject per kind
    /// can leave out.
    pub fn of_stream(&self) -> Vec<String> {
        let of_torrents = Kind::ALL.iter().filter(|kind| kind.entity() == Entity::Torrent && **kind != Kind::Updated);
        let of_torrents = of_torrents.map(|kind| self.torrent_events(*kind));
        std::iter::once(self.addresses.join(&["*", "event", ">"])).chain(of_torrents).collect()
    }

    /// Returns the subject that the stream must not capture.
    pub fn of_updates(&self) -> String {
        self.torrent_events(Kind::Updated)
    }

    fn torrent_events(&self, kind: Kind) -> String {
        self.addresses.join(&["*", "torrent", "*", "event", kind.as_str()])
    }
}

/// Returns the subject that stores the value of a key in the bucket.
pub fn bucket_subject(key: &str) -> String {
    format!("$KV.{BUCKET}.{key}")
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

/// Whether some subject matches both patterns.
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
    use crate::model::{Epoch, EventId, JournalEntry, Rev, Seq, ServerName, Timestamp};
    use crate::port::CommandAddress;

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
        Delivery::Event(JournalEntry::stored(id, kind, hash, Rev(1), time, Bytes::new()))
    }

    #[test]
    fn the_stream_captures_every_kind_but_updated() {
        let stream = subjects().of_stream();
        for kind in Kind::ALL {
            let subject = subjects().of(&event(*kind));
            let is_captured = stream.iter().any(|pattern| covers(pattern, &subject));
            assert_eq!(is_captured, *kind != Kind::Updated, "{subject}");
        }
        assert!(stream.iter().all(|pattern| !overlap(pattern, &subjects().of_updates())));
        for status in ["dtorrent.home.status", "dtorrent.bridge.main.health", "dtorrent.home.command.add"] {
            assert!(stream.iter().all(|pattern| !covers(pattern, status)), "{status}");
        }
    }

    #[test]
    fn a_state_is_stored_under_its_server_and_hash_and_nothing_else_is() {
        let state =
            |retain| Delivery::State { server: home(), hash: HASH.parse().unwrap(), body: Bytes::new(), retain };
        let key = format!("home.{HASH}");
        assert_eq!(subjects().retained_topic(&state(true)).as_deref(), Some(&*key));
        assert_eq!(subjects().retained_topic(&state(false)), None);
        assert_eq!(Subjects::new(Prefix::default(), "main", false).retained_topic(&state(true)), None);
        assert_eq!(subjects().retained_topic(&event(Kind::Added)), None);
        let clear = Delivery::Clear { topic: key.clone() };
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
    fn a_command_subject_is_parsed_and_no_other_subject_is() {
        let check = |subject: &str, expected: Option<(Option<&str>, Option<&str>, &str)>| {
            let address = subjects().addresses.command(subject);
            let parts = address.as_ref().map(|a| (a.server.as_deref(), a.hash.as_deref(), a.verb.as_str()));
            assert_eq!(parts, expected, "{subject}");
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
    fn a_reply_goes_anywhere_but_to_subjects_of_ours_and_of_the_server() {
        for good in ["_INBOX.x.1", "_R_.x", "a", "dtorrent.home.result", "dtorrent.answers.7", "dtorrentx.home.state"] {
            assert_eq!(subjects().addresses.check_reply(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("", "is empty"),
            ("a..b", "is empty"),
            ("a.*", "wildcard"),
            ("a.>", "wildcard"),
            ("a b", "character"),
            ("$JS.API.STREAM.DELETE.DTORRENT_EVENTS", "reserved"),
            ("$KV.dtorrent_state.home.x", "reserved"),
            (&"x".repeat(1025), "1024 bytes"),
            ("dtorrent.home.command.delete", "own addresses"),
            ("dtorrent.bridge.main.status", "own addresses"),
            ("dtorrent.home.torrent.3f78.event.finished", "own addresses"),
        ] {
            let error = subjects().addresses.check_reply(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_subject_panics_and_no_command_is_answered_with_a_command(subject in ".{0,200}|dtorrent\\.[a-z.*>]{0,60}") {
            if let Some(CommandAddress { server, hash, verb }) = subjects().addresses.command(&subject) {
                for part in [server, hash, Some(verb)].into_iter().flatten() {
                    prop_assert!(!part.is_empty() && !part.contains('.'));
                }
                prop_assert!(subjects().addresses.check_reply(&subject).is_err());
            }
        }

        #[test]
        fn a_pattern_that_covers_another_overlaps_it(one in "[ab*]{1}(\\.[ab*]){0,3}(\\.>)?", other in "[ab*]{1}(\\.[ab*]){0,3}(\\.>)?") {
            prop_assert!(!covers(&one, &other) || overlap(&one, &other));
            prop_assert_eq!(overlap(&one, &other), overlap(&other, &one));
        }
    }
}
