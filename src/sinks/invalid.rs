//! The refusal of a text from outside: of a URL, a prefix, a login file or a header in the config, of the reply address in a
//! command.

use std::borrow::Cow;

/// Reason why a text is refused, and what would be right. Never repeats a text that may contain a secret (I14).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidText(Cow<'static, str>);

/// Returns the refusal for this reason.
pub(crate) fn invalid(reason: impl Into<Cow<'static, str>>) -> InvalidText {
    InvalidText(reason.into())
}
