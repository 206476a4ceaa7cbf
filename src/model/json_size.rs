//! The memory that JSON from outside takes, before it takes it.

/// Returns the memory that a JSON text takes as a tree, estimated from above without making it.
///
/// `[{"":0},` is nine bytes, and 700 as a tree.
pub(crate) fn json_tree_bytes(json: &[u8]) -> usize {
    // Outside of texts each of these begins one value at most, and `{` a node of the map besides.
    let mut bytes = json.len();
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' => bytes += 640,
            b':' => bytes += 64,
            b',' | b'[' => bytes += 48,
            _ => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_within_texts_take_no_memory() {
        assert_eq!(json_tree_bytes(br#""{[:,\"{[""#), br#""{[:,\"{[""#.len());
        assert!(json_tree_bytes(br#"{"a":1}"#) > 640);
    }
}
