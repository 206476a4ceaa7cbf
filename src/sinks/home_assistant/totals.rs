//! The all-time totals of a server, which no client reports by itself.
//!
//! Pure.

use serde::{Deserialize, Serialize};

use crate::model::Torrent;
use crate::port::ServerView;

/// Bytes transferred in total, which count on through restarts of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes.
    pub downloaded: u64,
    /// Bytes.
    pub uploaded: u64,
    /// The client's own counts and run at the last addition.
    session: (u64, u64),
    run: Option<String>,
}

impl Totals {
    /// Returns totals that begin with what the torrents report of their own past.
    pub fn begin(view: &ServerView<'_>) -> Self {
        let sum = |of: fn(&Torrent) -> u64| view.snapshot.values().map(|row| of(&row.torrent)).sum::<u64>();
        let (down, up) = (view.stats.downloaded.unwrap_or(0), view.stats.uploaded.unwrap_or(0));
        Self {
            // The session counts torrents too that were removed since.
            downloaded: sum(|torrent| torrent.downloaded).max(down),
            uploaded: sum(|torrent| torrent.uploaded).max(up),
            session: (down, up),
            run: view.state.run.clone(),
        }
    }

    /// Adds what the client has transferred since the last addition.
    pub fn add(&mut self, view: &ServerView<'_>) {
        let (Some(down), Some(up)) = (view.stats.downloaded, view.stats.uploaded) else { return };
        // Another run counts from 0, which the counts alone do not show: they may be larger than before by now.
        let is_same_run = self.run == view.state.run && down >= self.session.0 && up >= self.session.1;
        let (before_down, before_up) = if is_same_run { self.session } else { (0, 0) };
        self.downloaded = self.downloaded.saturating_add(down - before_down);
        self.uploaded = self.uploaded.saturating_add(up - before_up);
        self.session = (down, up);
        self.run.clone_from(&view.state.run);
    }
}
