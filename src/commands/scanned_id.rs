//! The id in a body that is no JSON: cut off, malformed, or written as another language writes its objects.
//!
//! A sender waits for the answer under its id, most of all where something is wrong. So the id is looked for among the
//! keys of the outermost object, whatever else is there.
//!
//! Pure.

use crate::model::CommandId;

/// Returns the last `id` among the keys of the outermost object, a number as its text; `None` if none can be read.
pub(super) fn scanned_id(body: &[u8]) -> Option<CommandId> {
    // A text that contains the object comes from a sender that encoded it twice.
    match serde_json::from_slice::<String>(body) {
        Ok(inner) => id_in_object(inner.as_bytes()),
        Err(_) => id_in_object(body),
    }
}

fn id_in_object(body: &[u8]) -> Option<CommandId> {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body).trim_ascii_start();
    // The bytes of a .torrent file may contain anything.
    if !body.starts_with(b"{") && !body.starts_with(b"[") {
        return None;
    }
    let (mut rest, mut depth, mut id) = (body, 0_usize, None);
    while let Some((token, after)) = token(rest) {
        rest = after;
        match token {
            b"{" => depth += 1,
            b"}" => depth = depth.saturating_sub(1),
            b"\"id\"" | b"'id'" | b"id" if depth == 1 => {
                let value = after.trim_ascii_start().strip_prefix(b":");
                id = value.and_then(self::token).and_then(|(value, _)| id_of(value)).or(id);
            }
            _ => {}
        }
    }
    id
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

/// Reads an id from a token.
fn id_of(token: &[u8]) -> Option<CommandId> {
    let text = match token.first()? {
        b'"' => serde_json::from_slice(token).ok()?,
        b'\'' => String::from_utf8(token[1..token.len() - 1].to_vec()).ok()?,
        b'0'..=b'9' | b'-' => String::from_utf8(token.to_vec()).ok()?,
        _ => return None,
    };
    CommandId::parse(&text).ok()
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
