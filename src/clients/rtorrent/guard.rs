//! Columns with texts that others choose: rTorrent itself leaves out those that are long.
//!
//! The name comes from the torrent's maker, the message from a tracker, and neither rTorrent nor its protocol limits
//! them: a name of 9 MB in eleven torrents makes a listing that rTorrent aborts on. So such a column is asked for on
//! the condition that its text is short, and rTorrent answers [`LONG`] otherwise. Long texts are then read one by
//! one ([`super::listing::long_texts`](super::listing)), as is every text of an rTorrent that cannot check such a condition.
//!
//! `match` is a regular expression, which 0.9.8 compiles for each row in 0.1 µs per character that its pattern may match.
//! A match therefore comes last, after conditions that cost a tenth: a text is empty, an earlier listing has shown that the load has
//! short ones, or the torrent is active. The latter has its directory and files open, so its paths are some that a file
//! system takes, and so is its name if its file or folder is called like that. The patterns are bounded: `.*` on a text of
//! megabytes makes 0.9.8 exceed its stack.

use super::calls::Call;
use crate::model::InfoHash;

/// The answer in place of a long text. Not a possible name or directory; a tracker that sends it has its message read.
pub(super) const LONG: &str = "//";

/// Patterns that are tried one after the other: for most texts, and for texts up to 255 bytes, which is every name that a
/// file system takes. Texts with a line break match neither. A class that has line breaks would take three times as long.
const SHORT: [&str; 2] = [".{0,100}", ".{0,255}"];

/// Holds for a torrent whose directory and files are open.
const IS_ON_DISK: &str = "d.is_active=";
/// Holds for a torrent whose file or folder is on disk under its name. A folder need not be (`d.directory_base.set`).
const HAS_NAME_ON_DISK: &str = r#"and="d.is_active=","equal=d.base_filename=,d.name=""#;

/// The methods that guards are made of.
pub(super) const METHODS: &[&str] =
    &["and", "branch", "cat", "d.base_filename", "d.is_active", "d.load_date", "equal", "less", "match", "value"];

/// A column with the condition under which rTorrent answers it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Guard {
    method: &'static str,
    arguments: Vec<String>,
}

impl Guard {
    /// A guard that lets empty texts pass unseen.
    pub(super) fn unless_empty(column: &str) -> Self {
        Self::of(column, [format!("equal={column},cat=")])
    }

    /// The guard of the name, which lets the names of loads pass that are older than `short_until`, by rTorrent's clock.
    pub(super) fn of_name(short_until: Option<i64>) -> Self {
        Self::of("d.name=", older_than(short_until).into_iter().chain([HAS_NAME_ON_DISK.to_owned()]))
    }

    /// The guard of a path of the torrent, which lets the paths of loads pass that are older than `short_until`.
    pub(super) fn of_path(column: &str, short_until: Option<i64>) -> Self {
        Self::of(column, older_than(short_until).into_iter().chain([IS_ON_DISK.to_owned()]))
    }

    /// A guard that lets no text pass, for an rTorrent that lacks one of [`METHODS`]: each is read by itself.
    pub(super) fn left_out() -> Self {
        Self { method: "cat", arguments: vec![LONG.to_owned()] }
    }

    /// The guard of the URL of a tracker.
    pub(super) fn of_tracker_url() -> Self {
        Self::of("t.url=", [])
    }

    /// A guard that lets texts pass under any of these conditions, and short ones.
    fn of(column: &str, conditions: impl IntoIterator<Item = String>) -> Self {
        let is_short = SHORT.map(|pattern| format!("match={column},{}", quoted(pattern)));
        let pass = conditions.into_iter().chain(is_short).flat_map(|condition| [condition, column.to_owned()]);
        Self { method: "branch", arguments: pass.chain([format!("cat={LONG}")]).collect() }
    }

    /// Returns the column as an argument of a listing.
    pub(super) fn command(&self) -> String {
        let arguments: Vec<String> = self.arguments.iter().map(|argument| quoted(argument)).collect();
        format!("{}={}", self.method, arguments.join(","))
    }

    /// Returns the call that reads the column of one torrent.
    pub(super) fn call(&self, hash: InfoHash) -> Call {
        self.arguments.iter().fold(Call::on(hash, self.method), |call, argument| call.text(argument))
    }
}

fn older_than(short_until: Option<i64>) -> Option<String> {
    short_until.map(|time| format!("less=d.load_date=,value={time}"))
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
            Guard::of_path("d.directory=", Some(7)).command(),
            r#"branch="less=d.load_date=,value=7","d.directory=","d.is_active=","d.directory=","match=d.directory=,\".{0,100}\"","d.directory=","match=d.directory=,\".{0,255}\"","d.directory=","cat=//""#
        );
        assert!(Guard::of_name(None).command().starts_with(
            r#"branch="and=\"d.is_active=\",\"equal=d.base_filename=,d.name=\"","d.name=","match=d.name=,"#
        ));
    }
}
