//! Text from outside: made fit to show, and kept once.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;

/// Replaces control characters, marks that turn the direction of what follows, and bytes that are not UTF-8 by
/// U+FFFD, line breaks and tabs by blanks.
///
/// For text that goes to a log, a terminal, a page or a message for people. The result may be longer in
/// bytes than the input, at most three times.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            c if is_active(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Whether a character does something to a terminal or to the text around it, and shows nothing itself.
pub fn is_active(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// Returns the text of an error followed by the texts of its causes, joined by `: `.
///
/// A cause that the text already contains is left out: some libraries (async-nats, for one) repeat the cause in
/// their own message.
pub fn error_chain(error: &dyn Error) -> String {
    std::iter::successors(error.source(), |cause| (*cause).source()).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Texts of which many torrents have the same (labels, folders, trackers), each kept once.
#[derive(Debug, Default)]
pub struct Words(HashSet<Arc<str>>);

impl Words {
    /// The one that is kept of this text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.0.get(text) {
            return Arc::clone(kept);
        }
        let kept: Arc<str> = text.into();
        self.0.insert(Arc::clone(&kept));
        kept
    }

    /// Keeps only what somebody else has too.
    pub fn forget_unused(&mut self) {
        self.0.retain(|kept| Arc::strong_count(kept) > 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_kept_once_and_as_long_as_somebody_has_it() {
        let mut words = Words::default();
        let (one, same, other) = (words.share("linux"), words.share("linux"), words.share("bsd"));
        assert!(Arc::ptr_eq(&one, &same) && *other == *"bsd");
        drop((same, other));
        words.forget_unused();
        assert_eq!(words.0.len(), 1);
        assert!(Arc::ptr_eq(&one, &words.share("linux")));
    }

    #[test]
    fn an_error_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Step {
            text: &'static str,
            source: Option<Box<Step>>,
        }
        let chain = |texts: &[&'static str]| {
            let step = |source, text: &&'static str| Some(Box::new(Step { text, source }));
            error_chain(&*texts.iter().rev().fold(None, step).unwrap())
        };
        assert_eq!(chain(&["open the store"]), "open the store");
        assert_eq!(chain(&["start", "open the store", "disk full"]), "start: open the store: disk full");
        assert_eq!(chain(&["send: refused", "refused", "os error 111"]), "send: refused: os error 111");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable(b"a\x1b[31mb\xff\nc\x00"), "a\u{fffd}[31mb\u{fffd} c\u{fffd}");
        assert_eq!(printable("Ünï ☃ 🦀".as_bytes()), "Ünï ☃ 🦀");
    }

    /// `gpj.exe` would be shown as `exe.jpg`.
    #[test]
    fn no_mark_turns_what_follows() {
        assert_eq!(
            printable("a\u{202e}gpj.exe\u{2066}\u{200f}\u{2028}b".as_bytes()),
            "a\u{fffd}gpj.exe\u{fffd}\u{fffd} b"
        );
    }

    proptest! {
        #[test]
        fn whatever_comes_is_one_line_that_does_nothing(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let text = printable(&bytes);
            prop_assert!(!text.chars().any(is_active) && text.lines().count() <= 1 && text.len() <= 3 * bytes.len());
            prop_assert_eq!(printable(text.as_bytes()), text);
        }
    }
}
