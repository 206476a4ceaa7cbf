//! Adding a torrent whose content is there: rTorrent has to look for it where it is, and to find it.
//!
//! rTorrent says neither before it loads a torrent: by `encoding.add` it may take other names than `name` and `path`,
//! and it may not have the right to read the content.

use std::time::Duration;

use tokio::time::Instant;

use super::super::content;
use super::super::map::TorrentRow;
use super::EFFECT_INTERVAL;
use super::single::{CurrentTorrent, SingleAction};
use crate::model::Content;
use crate::port::ClientError;

/// Maximum time after a start for rTorrent to find content that it need not read: some milliseconds, unless it is busy.
const FIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Progress of rTorrent with content that it was asked to find.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Found,
    /// The content is being read, or waits for its turn; polls show the end.
    Reading,
    Failed,
    /// Nothing is known yet.
    Undecided,
}

impl SingleAction<'_> {
    /// Checks that rTorrent looks for the content of a loaded torrent where it is. Nothing was created on disk yet.
    pub(super) async fn check_place(&self, expected: &Content) -> Result<(), ClientError> {
        let access = self.client.access().await;
        let Some(place) = content::other_place(&access, self.hash, expected).await? else { return Ok(()) };
        let reason = format!(
            "rTorrent would look for it at {}, not at {}: of the names in the torrent it takes those of its own \
             encoding (`encoding.add`)",
            place.display(),
            shown(expected)
        );
        Err(ClientError::Precondition { reason })
    }

    /// Waits until rTorrent has found the content of a torrent, or reads it for longer.
    pub(super) async fn wait_until_found(&self, expected: &Content, is_started: bool) -> Result<(), ClientError> {
        let until = Instant::now() + FIND_TIMEOUT;
        loop {
            let CurrentTorrent { access, row, .. } = self.read().await?;
            match progress(&row, is_started) {
                Progress::Found => return Ok(()),
                // A read that fails at once looks like this for a moment.
                Progress::Reading | Progress::Undecided if Instant::now() < until => {}
                Progress::Reading => return Ok(()),
                Progress::Failed | Progress::Undecided => {
                    let reason = format!(
                        "rTorrent does not find all of it at {}: it has to see the same files under this path, and to \
                         have the right to read them",
                        shown(expected)
                    );
                    return Err(ClientError::Precondition { reason });
                }
            }
            drop(access);
            tokio::time::sleep(EFFECT_INTERVAL).await;
        }
    }
}

fn progress(row: &TorrentRow, is_started: bool) -> Progress {
    match row {
        // Also with `hashing` above 0 for ever, where a folder cannot be opened.
        TorrentRow { hashing_failed: true, is_hash_checking: false, .. } => Progress::Failed,
        TorrentRow { hashing: 1.., .. } => Progress::Reading,
        // A file that cannot be opened leaves it complete and not active.
        TorrentRow { complete: true, is_active, .. } if *is_active || !is_started => Progress::Found,
        TorrentRow { .. } => Progress::Undecided,
    }
}

/// Returns the path of the content as its sender knows it.
fn shown(content: &Content) -> String {
    let file = content.files.first().filter(|_| content.folder_name.is_none());
    file.map_or_else(|| content.directory.clone(), |file| content.directory.join(&file.path)).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_found_read_or_out_of_reach() {
        let row = |complete, is_active, hashing, is_hash_checking, hashing_failed| {
            let row = TorrentRow::new(0);
            TorrentRow { complete, is_active, hashing, is_hash_checking, hashing_failed, ..row }
        };
        // As seen on rTorrent 0.9.8.
        for (row, is_started, expected) in [
            (row(true, true, 0, false, false), true, Progress::Found),
            (row(true, false, 0, false, false), false, Progress::Found),
            (row(false, false, 1, false, false), true, Progress::Reading),
            (row(false, false, 3, true, false), false, Progress::Reading),
            (row(true, false, 0, false, false), true, Progress::Undecided), // a file that it may not read
            (row(false, false, 0, false, false), true, Progress::Undecided), // a file that is not there
            (row(false, false, 1, false, true), true, Progress::Failed),    // a folder that it may not read
            (row(false, false, 3, false, true), false, Progress::Failed),
        ] {
            assert_eq!(progress(&row, is_started), expected, "{row:?}");
        }
    }
}
