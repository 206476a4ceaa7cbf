//! The id and other texts in a body that is no JSON: cut off, malformed, or written as another language writes its objects.
//!
//! A sender waits for the answer under its id, most of all where something is wrong. So they are looked for among the
//! keys of the outermost object, whatever else is there.
//!
//! Pure.

use crate::model::CommandId;

/// Returns the last `id` among the keys of the outermost object, a number as its text; `None` if none can be read.
pub(super) fn scanned_id(body: &[u8]) -> Option<CommandId> {
    scanned(body, "id", |text| CommandId::parse(&text).ok())
}

/// Returns the last text under `key` among the keys of the outermost object.
pub(super) fn scanned_text(body: &[u8], key: &str) -> Option<String> {
    scanned(body, key, Some)
}

fn scanned<T>(body: &[u8], key: &str, parse: impl Fn(String) -> Option<T>) -> Option<T> {
    // A text that contains the object comes from a sender that encoded it twice.
    match serde_json::from_slice::<String>(body) {
        Ok(inner) => find_in_object(inner.as_bytes(), key, parse),
        Err(_) => find_in_object(body, key, parse),
    }
}

fn find_in_object<T>(body: &[u8], key: &str, parse: impl Fn(String) -> Option<T>) -> Option<T> {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii_start();
    // The bytes of a .torrent file may contain anything.
    if !body.starts_with(b"{") && !body.starts_with(b"[") {
        return None;
    }
    let (mut rest, mut depth, mut found) = (body, 0_usize, None);
    while let Some((token, after)) = token(rest) {
        rest = after;
        match token {
            b"{" => depth += 1,
            b"}" => depth = depth.saturating_sub(1),
            _ if depth == 1 && is_key(token, key) => {
                let value = after.trim_ascii_start().strip_prefix(b":");
                found = value.and_then(self::token).and_then(|(value, _)| parse(text_of(value)?)).or(found);
            }
            _ => {}
        }
    }
    found
}

/// Splits off a token: a text with its quotes, a word or a number, or a single other character.
///
/// `None` at the end, and for a token that may go on behind it: half an id would be another one.
fn token(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let input = input.trim_ascii_start();
    let length = match *input.first()? {
        quote @ (b'"' | b'\'') => quoted_length(input, quote)?,
        byte if is_of_word(byte) => input.iter().position(|byte| !is_of_word(*byte))?,
        _ => 1,
    };
    input.split_at_checked(length)
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.')
}

/// Returns the length of a text, quotes included.
fn quoted_length(input: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    while *input.get(at)? != quote {
        at += if input[at] == b'\\' { 2 } else { 1 };
    }
    Some(at + 1)
}

/// Whether a token is this key, with quotes or without.
fn is_key(token: &[u8], key: &str) -> bool {
    let bare = |quote: &[u8]| token.strip_prefix(quote)?.strip_suffix(quote);
    bare(b"\"").or_else(|| bare(b"'")).unwrap_or(token) == key.as_bytes()
}

/// Reads a text or a number from a token.
fn text_of(token: &[u8]) -> Option<String> {
    match token.first()? {
        b'"' => serde_json::from_slice(token).ok(),
        b'\'' => String::from_utf8(token[1..token.len() - 1].to_vec()).ok(),
        b'0'..=b'9' | b'-' => String::from_utf8(token.to_vec()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_id_is_that_of_the_outermost_object() {
        for (body, id) in [
            (&br#"{"id": "7", "x": }"#[..], Some("7")),
            (br#"{"x": {"id": "8"}, "id": 7, "hashes": ["ab"#, Some("7")),
            (br#"{"id": "a\"b\u0041", oops"#, Some("a\"bA")),
            (br#"{label: 'x', id: 7}"#, Some("7")),
            (br#"{'id': 'it', 'label': None}"#, Some("it")),
            (br#" [{"id": 7}]"#, Some("7")),
            (br#""{\"id\": \"7\"}""#, Some("7")),
            (b"{\"label\": \"caf\xe9\", \"id\": \"7\"}", Some("7")),
            (br#"{"id": "7", "id": {}}"#, Some("7")),
            (br#"{"x": {"id": "8"}, "id"#, None),
            (br#"{"id": "half"#, None),
            (br#"{"id": 12"#, None),
            (br#"{"x": "\"id\": 8", "y": "id"}"#, None),
            (br#"{"id": true}"#, None),
            (br#"d4:info{"id": "8"}"#, None),
            (br#"magnet:?dn={"id": "8"}"#, None),
            (b"", None),
        ] {
            let found = scanned_id(body);
            assert_eq!(found.as_ref().map(CommandId::as_str), id, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn other_texts_are_found_in_the_same_way() {
        let cut = br#"{"id": "7", "reply_to": "app/\u0061", "x": {"reply_to": "b"}, "torrent": "AAAA"#;
        assert_eq!(scanned_text(cut, "reply_to").as_deref(), Some("app/a"));
        assert_eq!(scanned_text(cut, "torrent"), None, "half a text would be another one");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(scanned_id(&body));
            drop(scanned_id(&[b"{", &body[..]].concat()));
        }

        #[test]
        fn an_id_is_found_wherever_an_object_is_cut_off_behind_it(
            id in "[a-z0-9\"\\\\ é]{1,20}", label in ".{0,40}", cut in 0..100_usize,
        ) {
            let whole = serde_json::json!({"id": id, "label": label}).to_string();
            let mut end = (whole.find(r#","label""#).unwrap() + cut).min(whole.len());
            while !whole.is_char_boundary(end) { end += 1 }
            let found = scanned_id(&whole.as_bytes()[..end]);
            prop_assert_eq!(found.as_ref().map(CommandId::as_str), Some(id.as_str()));
        }
    }
}
