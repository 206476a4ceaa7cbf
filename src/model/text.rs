//! Text from outside: sanitized for display, and interned.

use std::collections::HashSet;
use std::sync::Arc;

/// A pattern for schemas: text without control characters.
pub(super) const NO_CONTROL_PATTERN: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// Sanitizes text for a log, a terminal, a page or a message for people.
///
/// Control characters, bidirectional marks and bytes that are not UTF-8 become U+FFFD, line breaks and tabs
/// become blanks. The result may be longer in bytes than the input, at most three times.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            // As a blank, words stay apart.
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            c if is_active(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Shortens a text to `chars_max` characters; one that was cut ends in an ellipsis.
pub fn truncated(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

/// Whether a character is a control character or a bidirectional mark, which act on the terminal or the text around
/// them and show nothing themselves.
pub fn is_active(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// Parses an amount of bytes as people write it: `700MiB`, `500 kB`, or a number without a unit.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Returns an amount of bytes as `4.2 GiB`: at most three digits before the point, and one after it below a hundred.
pub fn shown_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match (unit, value < 99.95) {
        (0, _) => format!("{bytes} B"),
        (_, true) => format!("{value:.1} {}", UNITS[unit]),
        (_, false) => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A pool of strings that many torrents share (labels, directories, trackers), each held in memory once.
#[derive(Debug, Default)]
pub struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// Returns the shared copy of a text.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(text) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = text.into();
        self.0.insert(Arc::clone(&shared));
        shared
    }

    /// Drops the strings that no torrent holds any more.
    pub fn drop_unused(&mut self) {
        self.0.retain(|shared| Arc::strong_count(shared) > 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_string_is_held_once_and_as_long_as_it_is_used() {
        let mut interner = Interner::default();
        let (one, same, other) = (interner.intern("linux"), interner.intern("linux"), interner.intern("bsd"));
        assert!(Arc::ptr_eq(&one, &same) && *other == *"bsd");
        drop((same, other));
        interner.drop_unused();
        assert_eq!(interner.0.len(), 1);
        assert!(Arc::ptr_eq(&one, &interner.intern("linux")));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\xff\nc\x00"), "a\u{fffd}[31mb\u{fffd} c\u{fffd}");
        assert_eq!(printable("Ünï ☃ 🦀".as_bytes()), "Ünï ☃ 🦀");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters_and_ends_in_an_ellipsis() {
        assert_eq!(truncated("äöü", 3), "äöü");
        assert_eq!(truncated("äöüß", 3), "äö…");
    }

    /// `gpj.exe` would be shown as `exe.jpg`.
    #[test]
    fn bidirectional_marks_are_replaced() {
        assert_eq!(
            printable("a\u{202e}gpj.exe\u{2066}\u{200f}\u{2028}b".as_bytes()),
            "a\u{fffd}gpj.exe\u{fffd}\u{fffd} b"
        );
    }

    proptest! {
        #[test]
        fn any_input_becomes_one_line_without_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = printable(&bytes);
            prop_assert!(!text.chars().any(is_active) && text.lines().count() <= 1 && text.len() <= 3 * bytes.len());
            prop_assert_eq!(printable(text.as_bytes()), text);
        }
    }
}
