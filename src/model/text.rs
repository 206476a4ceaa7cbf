//! Text from outside, made fit to show.

/// Replaces control characters and bytes that are not UTF-8 by U+FFFD, line breaks and tabs by blanks.
///
/// For text that goes to a log, a terminal or a message for people. The result may be longer in
/// bytes than the input, at most three times.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\xff\nc\x00"), "a\u{fffd}[31mb\u{fffd} c\u{fffd}");
        assert_eq!(printable("Ünï ☃ 🦀".as_bytes()), "Ünï ☃ 🦀");
    }
}
