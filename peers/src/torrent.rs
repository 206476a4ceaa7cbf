//! .torrent files of version 1: writing one, and computing the hash of one.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha1::{Digest, Sha1};

const PIECE_BYTES: usize = 32 * 1024;

/// The SHA-1 of a torrent's info dictionary. Displayed as 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHash([u8; 20]);

impl InfoHash {
    /// Computes the hash of a .torrent file.
    ///
    /// # Errors
    /// The bytes are not a bencoded dictionary with the key `info`.
    pub fn of_torrent(torrent: &[u8]) -> anyhow::Result<Self> {
        let info = info_dictionary(torrent).context("the torrent has no info dictionary")?;
        Ok(Self(Sha1::digest(info).into()))
    }

    /// Returns the hash as rTorrent writes it: 40 upper-case hex digits.
    pub fn to_rpc(self) -> String {
        self.to_string().to_uppercase()
    }
}

impl From<[u8; 20]> for InfoHash {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Serializes as the text that is displayed.
impl serde::Serialize for InfoHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads 40 hex digits of either case.
impl FromStr for InfoHash {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).with_context(|| format!("{text:?} is not hex"))?;
        let bytes = bytes.try_into().ok().with_context(|| format!("{text:?} is not 40 digits long"))?;
        Ok(Self(bytes))
    }
}

/// Returns the .torrent file of one file, or of a folder where `files` have paths below it.
pub(crate) fn build(name: &str, files: &[(Option<&str>, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = files.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let pieces: Vec<u8> = content.chunks(PIECE_BYTES).flat_map(|piece| Sha1::digest(piece).to_vec()).collect();
    let mut out = b"d4:infod".to_vec();
    match files {
        [(None, bytes)] => out.extend(format!("6:lengthi{}e", bytes.len()).bytes()),
        _ => {
            out.extend(b"5:filesl");
            for (path, bytes) in files {
                out.extend(format!("d6:lengthi{}e4:pathl", bytes.len()).bytes());
                path.unwrap_or_default().split('/').for_each(|part| write_text(&mut out, part.as_bytes()));
                out.extend(b"ee");
            }
            out.push(b'e');
        }
    }
    out.extend(b"4:name");
    write_text(&mut out, name.as_bytes());
    out.extend(format!("12:piece lengthi{PIECE_BYTES}e6:pieces").bytes());
    write_text(&mut out, &pieces);
    out.extend(b"ee");
    out
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(format!("{}:", text.len()).bytes());
    out.extend(text);
}

/// Returns the bytes of the value of `info`, unchanged: hashing a re-encoded one would hide wrong order of keys.
fn info_dictionary(torrent: &[u8]) -> Option<&[u8]> {
    let mut rest = torrent.strip_prefix(b"d")?;
    while rest.first()? != &b'e' {
        let (key, value) = split_value(rest)?;
        let (value, after) = split_value(value)?;
        if key == b"4:info" {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// Splits off the first bencoded value.
fn split_value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = match bytes.first()? {
        b'i' => memchr::memchr(b'e', bytes)? + 1,
        b'l' | b'd' => {
            let mut rest = &bytes[1..];
            while rest.first()? != &b'e' {
                rest = split_value(rest)?.1;
            }
            bytes.len() - rest.len() + 1
        }
        _ => {
            let colon = memchr::memchr(b':', bytes)?;
            let length: usize = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
            colon + 1 + length
        }
    };
    bytes.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_torrent_is_that_of_its_info_dictionary_as_it_stands() {
        let torrent = b"d8:announce3:x:y4:infod6:lengthi5e4:name5:hello12:piece lengthi16384e6:pieces20:\
                        aaaaaaaaaaaaaaaaaaaae4:lastle5:zlistli1ed1:a1:beee";
        let at = memchr::memmem::find(torrent, b"4:info").unwrap() + 6;
        let end = memchr::memmem::find(torrent, b"4:last").unwrap();
        let expected = InfoHash(Sha1::digest(&torrent[at..end]).into());
        assert_eq!(InfoHash::of_torrent(torrent).unwrap(), expected);
        assert_eq!(expected.to_rpc().parse::<InfoHash>().unwrap(), expected);
        for broken in [&b""[..], b"d", b"de", b"4:info", b"d4:infod", b"d9:info"] {
            assert!(InfoHash::of_torrent(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_torrent_has_its_keys_in_order_and_a_hash_for_each_piece() {
        let torrent = build("f", &[(Some("a/b"), &[1; PIECE_BYTES]), (Some("c"), &[2])]);
        let text = String::from_utf8_lossy(&torrent);
        let start = "d4:infod5:filesld6:lengthi32768e4:pathl1:a1:beed6:lengthi1e4:pathl1:ceee4:name1:f12:piece \
                     lengthi32768e6:pieces40:";
        assert!(text.starts_with(start) && text.ends_with("ee"), "{text}");
        assert_eq!(split_value(&torrent), Some((&torrent[..], &b""[..])));
    }
}
