//! Long texts of torrents, which rTorrent has left out of the listing: read one by one, once for each load.

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
        (key.1 == "d.name" || known.read_at.elapsed() < age_max).then_some(known)
    }
}

/// Returns the texts of a row that are guarded, by their columns.
fn texts(row: &mut TorrentRow) -> [(&'static str, TextLimit, &mut String); 3] {
    let TorrentRow { fixed, directory, message, .. } = row;
    [
        ("d.name", TextLimit::Name, &mut fixed.name),
        ("d.directory", TextLimit::Path, directory),
        ("d.message", TextLimit::Message, message),
    ]
}

/// Puts the long texts of a listing in their places.
pub(super) async fn fill(access: &Access<'_>, raw: &mut RawListing) -> Result<(), ClientError> {
    // A listing of changes holds what a command has changed, and shows its effect.
    let age_max = if raw.covers == Covers::All { TEXT_AGE_MAX } else { Duration::ZERO };
    let long = read(access, raw.rows.iter_mut().map(|(hash, row)| (*hash, row)), age_max).await?;
    if raw.covers == Covers::All {
        let texts = &mut access.client.state().listing.long_texts;
        // A listing without the names says nothing about them.
        let is_named = |(hash, method): &TextKey| {
            raw.columns == Columns::Changing && *method == "d.name" && raw.rows.contains_key(hash)
        };
        texts.known.retain(|key, _| long.contains(key) || is_named(key));
        let has_long_loads = long.iter().chain(texts.known.keys()).any(|(_, method)| *method != "d.message");
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
    let mut long = HashSet::new();
    let mut exchanges = 0;
    for (hash, row) in rows {
        let load = row.local_id.clone();
        for (method, limit, text) in texts(row).into_iter().filter(|(_, _, text)| *text == LONG) {
            long.insert((hash, method));
            let known = access
                .client
                .state()
                .listing
                .long_texts
                .find((hash, method), &load, age_max)
                .map(|known| known.text.clone());
            *text = match known {
                Some(text) => text,
                None if exchanges == READ_MAX => UNREAD.to_owned(),
                None => {
                    exchanges += 1;
                    read_one(access, (hash, method), limit, &load).await?
                }
            };
        }
    }
    Ok(long)
}

async fn read_one(access: &Access<'_>, key: TextKey, limit: TextLimit, load: &str) -> Result<String, ClientError> {
    let (hash, method) = key;
    let text = match access.call_torrent(hash, &[Call::column(hash, method, None)]).await {
        Ok(values) => {
            values.first().and_then(|value| value.str()).map_or_else(String::new, |text| limit.cut(text).into_owned())
        }
        // One text that cannot be read is no reason to do without the others.
        Err(ClientError::Protocol { .. } | ClientError::Fault { .. } | ClientError::UnknownHash(_)) => {
            UNREAD.to_owned()
        }
        Err(error) => return Err(error),
    };
    warn!(server = %access.client.settings.server, %hash, method, bytes_max = limit.bytes_max(), "text too long, cut");
    let known = KnownText { load: load.to_owned(), text: text.clone(), read_at: Instant::now() };
    access.client.state().listing.long_texts.known.insert(key, known);
    Ok(text)
}
