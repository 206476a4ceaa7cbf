//! Magnet links: parsing, and building them anew.

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
}

/// Limit on the length of a magnet link.
pub const MAGNET_BYTES_MAX: usize = 64 * 1024;

/// A magnet link is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid magnet link: {0}")]
pub struct InvalidMagnet(&'static str);

impl Magnet {
    /// Reads `magnet:?xt=urn:btih:…`; the scheme must be in lower case, as clients require.
    pub fn parse(link: &str) -> Result<Self, InvalidMagnet> {
        if link.len() > MAGNET_BYTES_MAX {
            return Err(InvalidMagnet("it is longer than 64 KiB"));
        }
        // rTorrent knows the scheme in lower case only.
        let query = link.strip_prefix("magnet:?").ok_or(InvalidMagnet("it does not start with `magnet:?`"))?;
        if link.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(InvalidMagnet("it contains blanks or control characters"));
        }
        let mut magnet = Self { v1: None, v2: None, name: None };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let is_topic = key == "xt" || key.starts_with("xt.");
            if is_topic && let Some(hash) = value.strip_prefix("urn:btih:") {
                magnet.v1 = magnet.v1.or(Some(btih(hash)?));
            } else if is_topic && let Some(hash) = value.strip_prefix("urn:btmh:") {
                magnet.v2 = magnet.v2.or(Some(btmh(hash)?));
            } else if key == "dn" && magnet.name.is_none() {
                magnet.name = Some(value.into_owned());
            }
        }
        if magnet.v1.is_none() && magnet.v2.is_none() {
            return Err(InvalidMagnet("it has no `xt=urn:btih:` or `xt=urn:btmh:`"));
        }
        Ok(magnet)
    }

    /// Returns the hash by which clients know it: that of version 1 if there is one.
    pub fn client_hash(&self) -> InfoHash {
        self.v1.or(self.v2).expect("`parse` gives a link with one hash at least")
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
    // A multihash: 0x12 is SHA-256, 0x20 its length in bytes.
    let hex = text.strip_prefix("1220").filter(|hex| hex.len() == 64).ok_or(error)?;
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
    fn what_is_not_a_magnet_link_is_refused() {
        let hash = "a".repeat(40);
        for link in [
            "".to_owned(),
            format!("http://x/?xt=urn:btih:{hash}"),
            format!("MAGNET:?xt=urn:btih:{hash}"),
            "magnet:?dn=x".to_owned(),
            "magnet:?xt=urn:btih:".to_owned(),
            "magnet:?xt=urn:btih:zz".to_owned(),
            format!("magnet:?xt=urn:btih:{}", "1".repeat(32)),
            format!("magnet:?xt=urn:btmh:1220{hash}"),
            format!("magnet:?xt=urn:btih:{hash}\n"),
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
    }
}
