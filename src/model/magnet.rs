//! Magnet links: parsing, and building them anew.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::InfoHash;

/// The content of a magnet link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Magnet {
    /// Info-hash of version 1 (`urn:btih:`).
    pub v1: Option<InfoHash>,
    /// Info-hash of version 2 (`urn:btmh:`).
    pub v2: Option<InfoHash>,
    /// Display name (`dn`).
    pub name: Option<String>,
    /// Trackers (`tr`).
    pub trackers: Vec<String>,
    /// Web seeds (`ws`).
    pub web_seeds: Vec<String>,
    /// Addresses of peers (`x.pe`).
    pub peers: Vec<String>,
}

/// Limit on the length of a magnet link.
pub const MAGNET_BYTES_MAX: usize = 64 * 1024;

/// The characters that a value is written with; every other one is percent-encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A magnet link is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid magnet link: {0}")]
pub struct InvalidMagnet(&'static str);

impl Magnet {
    /// Reads `magnet:?xt=urn:btih:…`, as people and programs write it: the scheme in any case, numbered keys (`xt.1`), blanks
    /// and bare `%` in values, `&amp;` from a web page. Other keys are ignored.
    ///
    /// # Errors
    /// No info-hash, a malformed one, or two different ones of one version.
    pub fn parse(link: &str) -> Result<Self, InvalidMagnet> {
        if link.len() > MAGNET_BYTES_MAX {
            return Err(InvalidMagnet("it is longer than 64 KiB"));
        }
        let link = link.trim();
        let (scheme, query) = link.split_at_checked(SCHEME.len()).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(InvalidMagnet("it does not start with `magnet:?`"));
        }
        if link.chars().any(char::is_control) {
            return Err(InvalidMagnet("it contains control characters"));
        }
        let (trackers, web_seeds, peers) = (Vec::new(), Vec::new(), Vec::new());
        let mut magnet = Self { v1: None, v2: None, name: None, trackers, web_seeds, peers };
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            magnet.take(key.strip_prefix("amp;").unwrap_or(key), value)?;
        }
        if magnet.v1.is_none() && magnet.v2.is_none() {
            return Err(InvalidMagnet("it has no `xt=urn:btih:` or `xt=urn:btmh:`"));
        }
        Ok(magnet)
    }

    /// Takes one parameter, as it is written.
    fn take(&mut self, key: &str, value: &str) -> Result<(), InvalidMagnet> {
        let key = key.to_ascii_lowercase();
        let text = percent_decode_str(value).decode_utf8_lossy();
        let base = match key.split_once('.') {
            Some((base, number)) if is_number(number) => base,
            _ => key.as_str(),
        };
        match base {
            "xt" => self.take_topic(&text)?,
            // A blank may be written as `+` there. In a URL it is a plus sign.
            "dn" if self.name.is_none() => {
                let value = value.replace('+', " ");
                self.name = Some(percent_decode_str(&value).decode_utf8_lossy().into_owned());
            }
            "tr" => take_address(&mut self.trackers, &text),
            "ws" => take_address(&mut self.web_seeds, &text),
            "x.pe" => take_address(&mut self.peers, &text),
            _ => {}
        }
        Ok(())
    }

    /// Takes a topic, which is an info-hash or something that only other networks know.
    fn take_topic(&mut self, topic: &str) -> Result<(), InvalidMagnet> {
        // The names of URNs have no case (RFC 8141).
        let (kind, hash) = topic.split_at_checked(BTIH.len()).unwrap_or_default();
        let (known, hash) = match kind.to_ascii_lowercase().as_str() {
            BTIH => (&mut self.v1, btih(hash)?),
            BTMH => (&mut self.v2, btmh(hash)?),
            _ => return Ok(()),
        };
        match known.replace(hash) {
            Some(other) if other != hash => {
                Err(InvalidMagnet("it has two different info-hashes; a link is for one torrent"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the hash by which clients know it: that of version 1 if there is one.
    pub fn client_hash(&self) -> InfoHash {
        self.v1.or(self.v2).expect("`parse` gives a link with one hash at least")
    }

    /// Returns the link in the form that every client reads, with the hash by which clients know the torrent alone.
    ///
    /// rTorrent refuses a link with a second topic, ignores numbered keys, and takes a bare `%` or a blank for the end.
    pub fn to_link(&self) -> String {
        let hash = self.client_hash();
        let topic = match hash {
            InfoHash::V1(_) => format!("{BTIH}{hash}"),
            InfoHash::V2(_) => format!("{BTMH}{MULTIHASH}{hash}"),
        };
        let name = self.name.iter().map(|name| ("dn", name));
        let trackers = self.trackers.iter().map(|url| ("tr", url));
        let web_seeds = self.web_seeds.iter().map(|url| ("ws", url));
        let peers = self.peers.iter().map(|address| ("x.pe", address));
        name.chain(trackers).chain(web_seeds).chain(peers).fold(format!("{SCHEME}xt={topic}"), |link, (key, value)| {
            format!("{link}&{key}={}", utf8_percent_encode(value, ENCODED))
        })
    }
}

const SCHEME: &str = "magnet:?";
const BTIH: &str = "urn:btih:";
const BTMH: &str = "urn:btmh:";
/// Begin of a multihash: 0x12 is SHA-256, 0x20 its length in bytes.
const MULTIHASH: &str = "1220";

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Takes an address, each once; one that is empty or has encoded control characters is left out.
fn take_address(addresses: &mut Vec<String>, text: &str) {
    let text = text.trim();
    if !text.is_empty() && !text.chars().any(char::is_control) && addresses.iter().all(|known| known != text) {
        addresses.push(text.to_owned());
    }
}

fn btih(text: &str) -> Result<InfoHash, InvalidMagnet> {
    let error = InvalidMagnet("its hash is neither 40 hex digits nor 32 letters of base32");
    match text.len() {
        40 => InfoHash::from_hex(text.as_bytes()).map_err(|_| error),
        // Base32, as older clients write it (BEP 9).
        32 => {
            let bytes = data_encoding::BASE32.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| error)?;
            Ok(InfoHash::V1(bytes.try_into().map_err(|_| error)?))
        }
        _ => Err(error),
    }
}

fn btmh(text: &str) -> Result<InfoHash, InvalidMagnet> {
    let error = InvalidMagnet("its hash of version 2 is not `1220` and 64 hex digits");
    let hex = text.strip_prefix(MULTIHASH).filter(|hex| hex.len() == 64).ok_or(error)?;
    InfoHash::from_hex(hex.as_bytes()).map_err(|_| error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_magnet_link_is_read_in_all_its_spellings() {
        let hex = "ABCDEF0123456789abcdef0123456789ABCDEF01";
        let lower = hex.to_lowercase();
        let base32 = data_encoding::BASE32.encode(hex.parse::<InfoHash>().unwrap().as_bytes());
        let v2 = "0123456789abcdef".repeat(4);
        for (link, hash, name) in [
            (format!("magnet:?xt=urn:btih:{hex}"), &lower, None),
            (format!("magnet:?xt=urn:btih:{base32}&dn=a+b%20c&tr=http%3A%2F%2Fx"), &lower, Some("a b c")),
            (format!("magnet:?dn=x&xt=urn:btih:{}", base32.to_lowercase()), &lower, Some("x")),
            (format!("magnet:?xt=urn:btmh:1220{v2}"), &v2, None),
            (format!("magnet:?xt.1=urn:btmh:1220{v2}&xt.2=urn%3Abtih%3A{hex}"), &lower, None),
        ] {
            let magnet = Magnet::parse(&link).unwrap();
            assert_eq!((&magnet.client_hash().to_string(), magnet.name.as_deref()), (hash, name), "{link}");
        }
    }

    #[test]
    fn a_link_is_built_anew_for_clients_that_read_one_form_only() {
        let hash = "c0ffee".repeat(7)[..40].to_owned();
        let plain = format!("magnet:?xt=urn:btih:{hash}");
        let v2 = "ab".repeat(32);
        for (query, rebuilt) in [
            (format!("xt=urn:btih:{hash}&xt=urn:btmh:1220{v2}&dn=a"), "&dn=a"),
            (format!("xt.1=urn:btih:{hash}&tr.1=http%3A%2F%2Fx%2Fa"), "&tr=http%3A%2F%2Fx%2Fa"),
            (format!("xt=urn:btih:{hash}&dn=100%+real"), "&dn=100%25%20real"),
            (format!("xt=urn:btih:{hash}&dn=Some Name 2020"), "&dn=Some%20Name%202020"),
            (format!("XT=URN:BTIH:{}&amp;tr=udp://x:1&tr=udp://x:1&tr=", hash.to_uppercase()), "&tr=udp%3A%2F%2Fx%3A1"),
            (
                format!("xt=urn:btih:{hash}&tr=http://x/?k%3D1%262&tr=http://x/a+b"),
                "&tr=http%3A%2F%2Fx%2F%3Fk%3D1%262&tr=http%3A%2F%2Fx%2Fa%2Bb",
            ),
            (
                format!("xt=urn:btih:{hash}&x.pe=1.2.3.4:5&ws=http://x/&x.y=1&so=0"),
                "&ws=http%3A%2F%2Fx%2F&x.pe=1.2.3.4%3A5",
            ),
            (format!("xt=urn:btih:{hash}&xt=urn:sha1:X&dn=%F0%9F%98%80&tr=a%0Ab"), "&dn=%F0%9F%98%80"),
        ] {
            for link in [format!("magnet:?{query}"), format!(" MAGNET:?{query}\n")] {
                let magnet = Magnet::parse(&link).unwrap();
                assert_eq!(magnet.to_link(), format!("{plain}{rebuilt}"), "{link}");
                assert_eq!(Magnet { v2: magnet.v2, ..Magnet::parse(&magnet.to_link()).unwrap() }, magnet, "{link}");
            }
        }
        let only_v2 = format!("magnet:?xt=urn:btmh:1220{v2}");
        assert_eq!(Magnet::parse(&only_v2).unwrap().to_link(), only_v2);
    }

    #[test]
    fn what_is_not_a_magnet_link_is_refused() {
        let hash = "a".repeat(40);
        for link in [
            "".to_owned(),
            format!("http://x/?xt=urn:btih:{hash}"),
            "magnet:?dn=x".to_owned(),
            "magnet:?xt=urn:btih:".to_owned(),
            "magnet:?xt=urn:btih:zz".to_owned(),
            format!("magnet:?xt=urn:btih:{}", "1".repeat(32)),
            format!("magnet:?xt=urn:btmh:1220{hash}"),
            format!("magnet:?xt=urn:btih:{hash}&dn=a\nb"),
            format!("magnet:?xt=urn:btih:{hash}&xt=urn:btih:{}", "b".repeat(40)),
            format!("magnet:?xt=urn:btih:{hash}&xt.2=urn:btih:{}", "b".repeat(40)),
            format!("magnet:?xt=urn:btih:{hash}&dn={}", "x".repeat(MAGNET_BYTES_MAX)),
        ] {
            assert!(Magnet::parse(&link).is_err(), "{}", &link[..link.len().min(80)]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_never_a_panic(text in ".{0,200}") {
            drop(Magnet::parse(&text));
            drop(Magnet::parse(&format!("magnet:?{text}")));
        }

        #[test]
        fn a_rebuilt_link_says_the_same_in_harmless_characters(
            name in ".{0,40}", address in ".{0,40}", separator in "&|&amp;|&tr.3=",
        ) {
            let query = format!("xt=urn:btih:{}&tr={address}{separator}dn={name}", "a".repeat(40));
            if let Ok(magnet) = Magnet::parse(&format!("magnet:?{query}")) {
                let link = magnet.to_link();
                prop_assert!(link.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%&=:?".contains(&byte)), "{link}");
                prop_assert_eq!(Magnet::parse(&link), Ok(magnet));
            }
        }
    }
}
