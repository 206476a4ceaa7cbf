//! Texts from outside: the words of brokers, endpoints, clients and trackers, and of errors that quote them.
//!
//! The process has one mask, which it sets when it has read its config, before anything is logged or sent. Whoever takes
//! a text in from outside makes an [`OutsideText`] of it, or an error whose text is taken by [`error_chain`].

use std::borrow::Cow;
use std::error::Error;
use std::sync::OnceLock;

use super::mask::Mask;
use super::text::{printable, truncated};
use super::url_text::hide_urls;

/// Most characters of a text from outside.
const CHARS_MAX: usize = 2000;

/// The mask of this process; none before it is set.
static INSTALLED: OnceLock<Mask> = OnceLock::new();

/// A text from outside, as [`outside_text`] makes it.
#[derive(Clone, Debug, Default, derive_more::Display, PartialEq, Eq)]
pub struct OutsideText(String);

impl<T: Into<String>> From<T> for OutsideText {
    fn from(text: T) -> Self {
        Self(outside_text(&text.into()))
    }
}

impl std::ops::Deref for OutsideText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Sets the mask of this process, once.
pub fn install_mask(mask: Mask) {
    // A process reads one config; a library user may have none.
    let _is_set = INSTALLED.set(mask).is_err();
}

/// Returns a text from outside with the secrets of the config masked, on one line and cut to 2,000 characters.
pub fn outside_text(text: &str) -> String {
    // Masked before it is cut, so that no part of a secret is left at the end.
    let text = INSTALLED.get().map_or(text.into(), |mask| mask.masked(text));
    truncated(&printable(text.as_bytes()), CHARS_MAX)
}

/// Returns a text that a client or a tracker wrote: as [`outside_text`], without what may be a passkey in a URL.
pub fn reported_text(text: &str) -> Cow<'_, str> {
    match (hide_urls(text), INSTALLED.get()) {
        (hidden, None) => hidden,
        (Cow::Borrowed(text), Some(mask)) => mask.masked(text),
        (Cow::Owned(hidden), Some(mask)) => mask.masked(&hidden).into_owned().into(),
    }
}

/// Returns a text of the log with the secrets of the config masked: a net below what should have been masked before.
pub fn masked_line(text: &str) -> Cow<'_, str> {
    INSTALLED.get().map_or(text.into(), |mask| mask.masked_anywhere(text))
}

/// Returns the text of an error followed by the texts of its causes, joined by `: `, as [`outside_text`] makes it: a cause
/// may have the words of a broker, a client or a server.
///
/// A cause that the text already contains is left out: some libraries (async-nats, for one) repeat the cause in
/// their own message.
pub fn error_chain(error: &dyn Error) -> String {
    let chain =
        std::iter::successors(error.source(), |cause| (*cause).source()).fold(error.to_string(), |text, cause| {
            let cause = cause.to_string();
            if text.contains(&cause) { text } else { format!("{text}: {cause}") }
        });
    outside_text(&chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_outside_is_one_short_line_without_secrets() {
        let mut mask = Mask::default();
        mask.add("zyxwvuts");
        install_mask(mask.built());
        // At the place where the text is cut.
        let text = format!("{}zyxwvuts {}", "x".repeat(CHARS_MAX - 4), "y".repeat(CHARS_MAX));
        let shown = OutsideText::from(text);
        assert!(!shown.contains("zyx") && shown.ends_with('…') && shown.chars().count() == CHARS_MAX, "{shown}");
        assert_eq!(outside_text("a\nZyxwvuts\x1b[2J"), "a ***\u{fffd}[2J");
        assert_eq!(reported_text("zyxwvuts at http://t/zyxwvuts"), "*** at http://t/…");
        assert_eq!(error_chain(&std::io::Error::other("no zyxwvuts")), "no ***");
        assert_eq!(masked_line("open zyxwvuts"), "open ***");
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
}
