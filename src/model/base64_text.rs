//! Base64 as senders write it.
//!
//! Pure.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;

/// Decodes base64 with or without padding and line breaks, in the common or the URL-safe alphabet, or as a `data:` URL.
///
/// # Errors
/// Other characters, letters of both alphabets, or a length that no bytes have.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let data = data_of_url(text.trim_start());
    // In a URL every sign may be percent-encoded.
    let text: Cow<'_, [u8]> = data.map_or(text.as_bytes().into(), |data| percent_decode_str(data).into());
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let is_url_safe = text.iter().any(|byte| matches!(byte, b'-' | b'_'));
    decoder(if is_url_safe { &URL_SAFE } else { &STANDARD }).decode(text)
}

/// Returns the base64 in a `data:` URL.
fn data_of_url(text: &str) -> Option<&str> {
    let scheme = text.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"))?;
    let (kind, data) = text[scheme.len()..].split_once(',')?;
    let (_, encoding) = kind.rsplit_once(';')?;
    encoding.trim().eq_ignore_ascii_case("base64").then_some(data)
}

fn decoder(alphabet: &Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_has_no_single_meaning_is_refused() {
        for bad in [
            "***",
            "ZGU*",
            "-_+/",
            "ZG=U",
            "ZGUxZ",
            "ZH",
            "data:ZGU=",
            "data:,ZGU=",
            "data:a/b,ZGU=",
            "ZGU%3D",
            "ZGU=====",
            "Ä",
        ] {
            assert!(decode_base64(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn each_spelling_of_bytes_gives_the_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), width in 1..80_usize) {
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                let text = engine.encode(&bytes);
                let letters: Vec<char> = text.chars().collect();
                let lines: Vec<String> = letters.chunks(width).map(|line| line.iter().collect()).collect();
                for text in [lines.join("\n"), lines.join("\r\n") + "\r\n", format!("data:a/b;base64,{text}"),
                    format!("DATA:a/b;charset=x;Base64,{}", text.replace('=', "%3D").replace('/', "%2f"))] {
                    prop_assert_eq!(decode_base64(&text), Ok(bytes.clone()), "{}", text);
                }
            }
        }

        #[test]
        fn arbitrary_text_is_never_a_panic(text in ".{0,100}") {
            drop(decode_base64(&text));
        }
    }
}
