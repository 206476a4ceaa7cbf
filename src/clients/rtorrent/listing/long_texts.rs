//! Long texts of torrents, which rTorrent has left out of the listing: read one by one, once for each load.
//!
//! An rTorrent without guards leaves out all of them. Then none is known to be long, and a few are read together.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::Access;
use super::super::calls::Call;
use super::super::guard::LONG;
use super::super::map::TorrentRow;
use super::{Columns, RawListing};
use crate::model::{Covers, InfoHash, TextLimit};
use crate::port::ClientError;

/// Long texts that are read for one listing, each in an exchange of its own; the others follow with the next ones.
const READ_MAX: usize = 32;
/// Texts of an rTorrent without guards that are read in one exchange: rTorrent aborts at 100 MiB, and no text is longer than
/// the .torrent file that it comes from.
const UNGUARDED_BATCH: usize = 4;
/// Columns that stay the same as long as a torrent is loaded.
const FIXED: [&str; 2] = ["d.name", "d.tied_to_file"];
/// Time after which full listings read a message or directory again: they change without another load.
const TEXT_AGE_MAX: Duration = Duration::from_secs(5 * 60);
/// Whole seconds of rTorrent's clock, and what happens within a call may bear the one before.
const TIME_MARGIN_SECONDS: i64 = 2;
/// Shown while a long text is not read, or cannot be.
const UNREAD: &str = "…";

/// A text of a torrent, by its column.
type TextKey = (InfoHash, &'static str);

/// The long texts that are known, cut, and the loads that have none.
#[derive(Default)]
pub(in super::super) struct LongTexts {
    known: HashMap<TextKey, KnownText>,
    /// The run of rTorrent, and the time up to which its loads have short names and directories.
    short_until: Option<(Option<i64>, i64)>,
}

struct KnownText {
    load: String,
    text: String,
    read_at: Instant,
}

impl LongTexts {
    /// Returns the time up to which every load is known to have a short name and directory.
    pub(super) fn short_until(&self, pid: Option<i64>) -> Option<i64> {
        self.short_until.filter(|(of, _)| *of == pid).map(|(_, time)| time)
    }

    /// Returns the text if it is known, and young enough where it may have changed.
    fn find(&self, key: TextKey, load: &str, age_max: Duration) -> Option<&KnownText> {
        let known = self.known.get(&key).filter(|known| known.load == load)?;
        (FIXED.contains(&key.1) || known.read_at.elapsed() < age_max).then_some(known)
    }
}

/// Returns the texts of a row that are guarded, by their columns.
fn texts(row: &mut TorrentRow) -> [(&'static str, TextLimit, &mut String); 4] {
    let TorrentRow { fixed, directory, message, .. } = row;
    [
        ("d.name", TextLimit::Name, &mut fixed.name),
        ("d.directory", TextLimit::Path, directory),
        ("d.message", TextLimit::Message, message),
        ("d.tied_to_file", TextLimit::Path, &mut fixed.tied_to_file),
    ]
}

/// Puts the long texts of a listing in their places.
pub(super) async fn fill(access: &Access<'_>, raw: &mut RawListing) -> Result<(), ClientError> {
    // A listing of changes holds what a command has changed, and shows its effect.
    let age_max = if raw.covers == Covers::All { TEXT_AGE_MAX } else { Duration::ZERO };
    let long = read(access, raw.rows.iter_mut().map(|(hash, row)| (*hash, row)), age_max).await?;
    if raw.covers == Covers::All {
        let texts = &mut access.client.state().listing.long_texts;
        // A listing without the fixed columns says nothing about them.
        let is_fixed = |(hash, method): &TextKey| {
            raw.columns == Columns::Changing && FIXED.contains(method) && raw.rows.contains_key(hash)
        };
        texts.known.retain(|key, _| long.contains(key) || is_fixed(key));
        let is_of_load = |(_, method): &TextKey| matches!(*method, "d.name" | "d.directory");
        let has_long_loads = long.iter().chain(texts.known.keys()).any(is_of_load);
        // With one long name all loads are asked for with the condition, for the sake of the one.
        texts.short_until = raw
            .counters
            .time
            .filter(|_| raw.complete && !has_long_loads)
            .map(|time| (raw.counters.pid, time - TIME_MARGIN_SECONDS));
    }
    Ok(())
}

/// Puts the long texts of rows in their places, and returns which there are.
pub(in super::super) async fn read<'r>(
    access: &Access<'_>,
    rows: impl Iterator<Item = (InfoHash, &'r mut TorrentRow)>,
    age_max: Duration,
) -> Result<HashSet<TextKey>, ClientError> {
    let (mut long, mut unknown) = (HashSet::new(), Vec::new());
    for (hash, row) in rows {
        let load = row.local_id.clone();
        for (method, limit, text) in texts(row).into_iter().filter(|(_, _, text)| *text == LONG) {
            long.insert((hash, method));
            let state = access.client.state();
            match state.listing.long_texts.find((hash, method), &load, age_max) {
                Some(known) => *text = known.text.clone(),
                None => unknown.push(LeftOut { key: (hash, method), load: load.clone(), limit, text }),
            }
        }
    }
    if unknown.is_empty() {
        return Ok(long);
    }
    let has_guards = access.probe().await?.has_guards();
    let (batch, read_max) =
        if has_guards { (1, READ_MAX.min(unknown.len())) } else { (UNGUARDED_BATCH, unknown.len()) };
    let (read, later) = unknown.split_at_mut(read_max);
    later.iter_mut().for_each(|left_out| UNREAD.clone_into(left_out.text));
    for batch in read.chunks_mut(batch) {
        read_together(access, batch).await?;
    }
    Ok(long)
}

/// A text that a listing has left out, and its place in the row.
struct LeftOut<'r> {
    key: TextKey,
    load: String,
    limit: TextLimit,
    text: &'r mut String,
}

async fn read_together(access: &Access<'_>, texts: &mut [LeftOut<'_>]) -> Result<(), ClientError> {
    let calls: Vec<Call> =
        texts.iter().map(|LeftOut { key: (hash, method), .. }| Call::column(*hash, method, None)).collect();
    let answers = match access.call(&calls).await {
        Ok(answers) => answers,
        // A text that cannot be read is no reason to do without the others.
        Err(ClientError::Protocol { .. } | ClientError::Fault { .. }) if texts.len() > 1 => {
            for text in texts.chunks_mut(1) {
                Box::pin(read_together(access, text)).await?;
            }
            return Ok(());
        }
        Err(ClientError::Protocol { .. } | ClientError::Fault { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut answers = answers.into_iter();
    for LeftOut { key, load, limit, text } in texts {
        let (hash, method) = *key;
        **text = match answers.next() {
            Some(Ok(value)) => {
                let whole = value.str().unwrap_or_default();
                let cut = limit.cut(whole);
                if cut != whole {
                    warn!(server = %access.client.settings.server, %hash, method, bytes_max = limit.bytes_max(), "text too long, cut");
                }
                cut.into_owned()
            }
            Some(Err(_)) | None => UNREAD.to_owned(),
        };
        let known = KnownText { load: load.clone(), text: text.clone(), read_at: Instant::now() };
        access.client.state().listing.long_texts.known.insert(*key, known);
    }
    Ok(())
}
