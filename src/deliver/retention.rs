//! Which torrents' states a broker keeps for those who come later.

use std::collections::HashSet;

use crate::model::{InfoHash, Status, Timestamp, Told, ToldTorrent};

/// A default mosquitto drops retained messages beyond about 1,000 for a slow subscriber; two topics
/// a torrent and some room for others make 500.
pub const AUTO_MAX: usize = 500;

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    All,
    None,
    /// All up to [`AUTO_MAX`] torrents; beyond that those that matter now.
    Auto,
}

/// The choice for one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    All,
    None,
    These(HashSet<InfoHash>),
}

impl Kept {
    pub fn contains(&self, hash: &InfoHash) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::These(these) => these.contains(hash),
        }
    }

    /// Chooses by policy. Of more than [`AUTO_MAX`] that matter the ones that changed last are kept.
    pub fn choose(told: &Told, retain: Retain, now: Timestamp) -> Self {
        match retain {
            Retain::All => Self::All,
            Retain::None => Self::None,
            Retain::Auto if told.len() <= AUTO_MAX => Self::All,
            Retain::Auto => {
                let mut chosen: Vec<_> = told.iter().filter(|(_, told)| matters(told, now)).collect();
                chosen.sort_by_key(|(hash, told)| (std::cmp::Reverse(told.changed_at), **hash));
                Self::These(chosen.into_iter().take(AUTO_MAX).map(|(hash, _)| *hash).collect())
            }
        }
    }
}

fn matters(told: &ToldTorrent, now: Timestamp) -> bool {
    let torrent = &told.torrent;
    let is_working = matches!(torrent.status, Status::Downloading | Status::Metadata | Status::Checking);
    let is_moving = torrent.playing || torrent.download_rate.unwrap_or(0) > 0 || torrent.upload_rate.unwrap_or(0) > 0;
    is_working || is_moving || !torrent.finished || torrent.error || now.millis_since(told.changed_at) < DAY_MILLIS
}
