//! The size of texts from outside: how much is kept of each.

use std::borrow::Cow;

/// The end of a text that was cut.
const CUT: &str = "…";

/// A kind of text that a client reports, which may come from a torrent's maker, a tracker or a peer.
///
/// The limits stand here and nowhere else; `docs/reference.md` has the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextLimit {
    /// Name of a torrent.
    Name,
    /// Message of a tracker or of the client.
    Message,
    /// Label.
    Label,
    /// Directory, path of a .torrent file, path of a file in a torrent.
    Path,
    /// URL of a tracker.
    Url,
    /// Value of a configured extra column.
    Extra,
    /// Name of a program, address of a peer, identity of a load.
    Word,
}

impl TextLimit {
    /// Returns the maximum in bytes, the mark of a cut included.
    pub const fn bytes_max(self) -> usize {
        match self {
            // The longest path of Linux (`PATH_MAX`); no file system has longer names.
            Self::Name | Self::Path => 4 << 10,
            Self::Url => 2 << 10,
            Self::Message | Self::Label | Self::Extra => 1 << 10,
            Self::Word => 256,
        }
    }

    /// Returns the text; one that is too long is cut between two characters and ends in `…`.
    pub fn cut(self, text: &str) -> Cow<'_, str> {
        if text.len() <= self.bytes_max() {
            return Cow::Borrowed(text);
        }
        let mut end = self.bytes_max() - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Cow::Owned(format!("{}{CUT}", &text[..end]))
    }

    /// As [`Self::cut`], for bytes of which those that are not UTF-8 are replaced.
    pub fn cut_bytes(self, bytes: &[u8]) -> String {
        // One byte more than the limit is enough to see that the text is too long; a replacement is longer than a byte.
        let start = &bytes[..bytes.len().min(self.bytes_max() + CUT.len() + 1)];
        let text = String::from_utf8_lossy(start);
        match self.cut(&text) {
            Cow::Borrowed(_) => text.into_owned(),
            Cow::Owned(cut) => cut,
        }
    }

    /// Cuts a text where it stands.
    pub fn apply(self, text: &mut String) {
        if let Cow::Owned(cut) = self.cut(text) {
            *text = cut;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_says_so() {
        let limit = TextLimit::Word.bytes_max();
        let longest = "x".repeat(limit);
        assert_eq!(TextLimit::Word.cut(&longest), longest);
        let cut = TextLimit::Word.cut_bytes("é".repeat(limit).as_bytes());
        assert!(cut.len() <= limit && cut.ends_with("é…"), "{cut}");
        let cut = TextLimit::Word.cut_bytes(&vec![0xff; 9 << 20]);
        assert!(cut.len() <= limit && cut.ends_with('…'));
    }

    proptest! {
        #[test]
        fn any_bytes_become_a_text_within_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let cut = TextLimit::Word.cut_bytes(&bytes);
            prop_assert!(cut.len() <= TextLimit::Word.bytes_max());
            prop_assert_eq!(&cut, &*TextLimit::Word.cut(&whole));
        }
    }
}
