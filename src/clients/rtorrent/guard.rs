//! Columns with texts that others choose: rTorrent itself leaves out those that are long.
//!
//! The name comes from the torrent's maker, the message from a tracker, and neither rTorrent nor its protocol limits
//! them: a name of 9 MB in eleven torrents makes a listing that rTorrent aborts on. So such a column is asked for on
//! the condition that its text is short, and rTorrent answers [`LONG`] otherwise. Long texts are then read one by
//! one ([`super::listing::long_texts`](super::listing)).
//!
//! `match` is a regular expression, which costs 30 µs a row on 0.9.8. It is not tried on empty texts, nor on loads
//! that an earlier listing has shown to have short ones. The pattern is bounded: `.*` on a text of megabytes makes 0.9.8
//! exceed its stack.

use super::calls::Call;
use crate::model::InfoHash;

/// The answer in place of a long text. Not a possible name or directory; a tracker that sends it has its message read.
pub(super) const LONG: &str = "//";

/// Matches whole texts up to 255 bytes without a line break, which is every name that a file system takes. A class that
/// has line breaks would take three times as long.
const SHORT: &str = ".{0,255}";

/// The methods that guards are made of.
pub(super) const METHODS: &[&str] = &["branch", "cat", "d.load_date", "equal", "less", "match", "value"];

/// A column with the condition under which rTorrent answers it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guard(Vec<String>);

impl Guard {
    /// A guard that lets empty texts pass unseen.
    pub(super) fn unless_empty(column: &str) -> Self {
        Self::when(format!("equal={column},cat="), column)
    }

    /// A guard that lets the texts of loads pass that are older than `time`, by rTorrent's clock.
    pub(super) fn unless_older(column: &str, time: i64) -> Self {
        Self::when(format!("less=d.load_date=,value={time}"), column)
    }

    fn when(passes: String, column: &str) -> Self {
        let is_short = format!("match={column},{}", quoted(SHORT));
        Self(vec![passes, column.to_owned(), is_short, column.to_owned(), format!("cat={LONG}")])
    }

    /// The guard of the URL of a tracker.
    pub(super) fn of_tracker_url() -> Self {
        Self(vec![format!("match=t.url=,{}", quoted(SHORT)), "t.url=".to_owned(), format!("cat={LONG}")])
    }

    /// Returns the column as an argument of a listing.
    pub(super) fn command(&self) -> String {
        let arguments: Vec<String> = self.0.iter().map(|argument| quoted(argument)).collect();
        format!("branch={}", arguments.join(","))
    }

    /// Returns the call that reads the column of one torrent.
    pub(super) fn call(&self, hash: InfoHash) -> Call {
        self.0.iter().fold(Call::on(hash, "branch"), |call, argument| call.text(argument))
    }
}

/// Quotes a text for rTorrent's commands. Of constants alone: text from outside is never part of a command.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_a_branch_of_constants_with_each_level_quoted() {
        assert_eq!(
            Guard::unless_older("d.name=", 7).command(),
            r#"branch="less=d.load_date=,value=7","d.name=","match=d.name=,\".{0,255}\"","d.name=","cat=//""#
        );
    }
}
