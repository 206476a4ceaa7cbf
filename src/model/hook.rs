//! Hooks of a client that notify the bridge, and the signals that they send.
//!
//! A client with hooks requests `http://ADDRESS/SECRET/SERVER/EVENT/HASH` when something happens in it. The
//! address is part of a command of the client, so it consists of characters that no client interprets: names,
//! digits, dots and hyphens. A signal is a hint, never evidence: the hash says which torrent to poll, and the
//! event is not read at all.

use super::{InfoHash, InvalidServerName, ServerName};

/// The address of the hook listener, as a client reaches it: a host name or an IP address, and a port.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
#[display("{host}:{port}")]
pub struct HookAddress {
    host: String,
    port: u16,
}

/// Text that is no [`HookAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an address with a port: write `host:8788`, `10.0.0.5:8788` or `[fd00::5]:8788`", .0.escape_default())]
pub struct InvalidHookAddress(String);

impl HookAddress {
    /// Parses `host:port`, with an IPv6 address in brackets.
    ///
    /// # Errors
    /// The text is not of this form, or has a character that a client could interpret.
    pub fn parse(text: &str) -> Result<Self, InvalidHookAddress> {
        let invalid = || InvalidHookAddress(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match in_brackets {
            Some(host) => host.contains(':') && host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.'),
            None => {
                let is_edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
                is_edge(host.bytes().next())
                    && is_edge(host.bytes().last())
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
            }
        };
        // `parse` takes a sign, too, and the text becomes part of a command of the client.
        let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if port > 0 && is_number && is_host && host.len() <= 253 => {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(invalid()),
        }
    }
}

/// The part of the path that authenticates a signal. Each start of the bridge has its own.
#[derive(Clone, derive_more::Debug)]
#[debug("[secret]")]
pub struct HookSecret(String);

impl HookSecret {
    /// Makes a secret from 16 random bytes.
    pub fn new(random: [u8; 16]) -> Self {
        // Hex, because it becomes part of a command of the client.
        Self(data_encoding::HEXLOWER.encode(&random))
    }

    fn is(&self, text: &str) -> bool {
        // In constant time for any text of the right length, so that the time reveals nothing.
        let (ours, theirs) = (self.0.as_bytes(), text.as_bytes());
        ours.len() == theirs.len() && ours.iter().zip(theirs).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// The name of the bridge's hooks in a client.
///
/// The same in each run of a bridge, so that hooks of an earlier run are found and replaced, and different for each
/// bridge and server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookKey(String);

impl HookKey {
    /// Begin of every key of this program. rTorrent runs hooks in the order of their keys, so these run first.
    // Behind a foreign hook that erases the torrent, 0.15.7 and 0.16.20 crash when ours asks for its hash.
    pub const PREFIX: &str = "!!dtorrent.";
    /// Begin of the keys that earlier versions of this program used.
    pub(crate) const FORMER_PREFIX: &str = "zz_dtorrent.";

    /// Makes the key of a bridge and a server.
    ///
    /// # Errors
    /// The instance is no slug.
    pub fn new(instance: &str, server: &ServerName) -> Result<Self, InvalidServerName> {
        let instance = ServerName::parse(instance)?;
        // A slug has no dot, so no two pairs make the same key.
        Ok(Self(format!("{}{instance}.{server}", Self::PREFIX)))
    }

    /// Returns the key that earlier versions used for the same bridge and server.
    pub(crate) fn former(&self) -> Self {
        Self(self.0.replacen(Self::PREFIX, Self::FORMER_PREFIX, 1))
    }

    /// Returns the key as the client stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A hook to install in a client.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The name under which the client stores it.
    pub key: HookKey,
    /// Where it sends its signals.
    pub address: HookAddress,
    /// Authentication of the signals.
    pub secret: HookSecret,
    /// The server that the client is.
    pub server: ServerName,
}

impl Hook {
    /// Returns the URL to request for an event, to which the client appends the hash.
    pub fn url(&self, event: &'static str) -> String {
        let Self { key: _, address, secret, server } = self;
        format!("http://{address}/{}/{server}/{event}/", secret.0)
    }
}

/// A signal of a hook, from a sender that knows the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSignal {
    /// The server in which something happened.
    pub server: ServerName,
    /// The torrent to poll. A hint.
    pub hash: InfoHash,
}

impl HookSignal {
    /// Parses the path of a request; `None` if it is not one of a hook with this secret.
    pub fn parse(path: &str, secret: &HookSecret) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let (theirs, server, event, hash) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // The event is not read: a signal causes a poll, whatever it says.
        let is_ours = secret.is(theirs) && !event.is_empty() && parts.next().is_none();
        if !is_ours {
            return None;
        }
        Some(Self { server: ServerName::parse(server).ok()?, hash: InfoHash::from_hex(hash.as_bytes()).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "ABCDEF0123456789abcdef0123456789ABCDEF01";

    fn secret() -> HookSecret {
        HookSecret::new([0xa5; 16])
    }

    fn hook(address: &str, server: &str) -> Hook {
        let server = ServerName::parse(server).unwrap();
        let key = HookKey::new("main", &server).unwrap();
        Hook { key, address: HookAddress::parse(address).unwrap(), secret: secret(), server }
    }

    #[test]
    fn an_address_has_no_character_that_a_command_interprets() {
        for good in ["127.0.0.1:1", "bridge:8788", "a-b.example.org:65535", "[::1]:80", "[fd00::5]:8788"] {
            assert_eq!(HookAddress::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "ho st:80",
            "host/x:80",
            "a$b:80",
            "a,b:80",
            "a\":80",
            "a;b:80",
            "a=b:80",
            "a(b):80",
            "{a}:80",
            "-a:80",
            "a.:80",
            "::1:80",
            "[::1:80",
            "[]:80",
            "[a]:80",
            "http://host:80",
            "me@host:80",
            "ä:80",
            "host:80\n",
        ] {
            assert!(HookAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_bridge_and_server_has_a_key_of_its_own() {
        let key = |instance, server| HookKey::new(instance, &ServerName::parse(server).unwrap()).unwrap();
        assert_eq!(key("main", "home").as_str(), "!!dtorrent.main.home");
        assert_eq!(key("main", "home").former().as_str(), "zz_dtorrent.main.home");
        assert_ne!(key("a_b", "c"), key("a", "b_c"));
        assert!(HookKey::new("a.b", &ServerName::parse("c").unwrap()).is_err());
    }

    #[test]
    fn a_key_sorts_before_those_of_rtorrent_and_of_others() {
        for theirs in
            ["!_timestamp", "!view.seeding", "+first", "00_first", "1_prepare", "A", "_first", "move_complete"]
        {
            assert!(HookKey::PREFIX < theirs, "{theirs}");
        }
    }

    #[test]
    fn the_url_of_a_hook_parses_as_its_signal() {
        let url = hook("127.0.0.1:4711", "seed-box_2").url("paused");
        let path = url.strip_prefix("http://127.0.0.1:4711").unwrap();
        let signal = HookSignal::parse(&format!("{path}{HASH}"), &secret()).unwrap();
        assert_eq!((signal.server.as_str(), signal.hash.to_string()), ("seed-box_2", HASH.to_lowercase()));
    }

    #[test]
    fn an_incomplete_or_wrong_path_is_no_signal() {
        let right = "a5".repeat(16);
        let is_signal = |path: String| HookSignal::parse(&path, &secret()).is_some();
        assert!(is_signal(format!("/{right}/home/paused/{HASH}")));
        for wrong in [
            String::new(),
            "/".to_owned(),
            format!("/{right}"),
            format!("{right}/home/paused/{HASH}"),
            format!("/{right}/home/paused"),
            format!("/{right}/home/paused/"),
            format!("/{right}/home//{HASH}"),
            format!("/{right}/home/paused/{HASH}/"),
            format!("/{right}/Home/paused/{HASH}"),
            format!("/{right}/home/paused/{}", &HASH[1..]),
            format!("/{}/home/paused/{HASH}", "a6".repeat(16)),
            format!("/{}/home/paused/{HASH}", &right[1..]),
            format!("//home/paused/{HASH}"),
        ] {
            assert!(!is_signal(wrong.clone()), "{wrong}");
        }
        assert_eq!(format!("{:?}", secret()), "[secret]");
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_a_panic(path in ".*") {
            prop_assert_eq!(HookSignal::parse(&path, &secret()), None);
        }

        #[test]
        fn any_end_of_a_path_is_read_without_a_panic(rest in "(/[a-z0-9_]{0,4}){0,4}|.*") {
            if let Some(signal) = HookSignal::parse(&format!("/{}{rest}", secret().0), &secret()) {
                prop_assert!(rest.contains(signal.server.as_str()));
            }
        }

        #[test]
        fn any_text_taken_for_an_address_stays_as_it_is(text in ".*|[a-z.:0-9-]{1,12}:[0-9]{1,6}") {
            if let Ok(address) = HookAddress::parse(&text) {
                prop_assert!(address.to_string().bytes().all(|b| b.is_ascii_alphanumeric() || b"[]:.-".contains(&b)));
                prop_assert_eq!(HookAddress::parse(&address.to_string()), Ok(address));
            }
        }
    }
}
