//! The torrents of the simulated client.

use crate::model::{
    Extra, Facts, InfoHash, Observed, ServerName, Status, Timestamp, Torrent, eta_seconds, progress, ratio,
};

/// The state of a torrent apart from a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    /// Not wanted to run.
    Stopped,
    /// Open, and wanted to run later.
    Paused,
    /// Wanted to run.
    Running,
}

/// A torrent of the simulated client.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedTorrent {
    /// Name.
    pub name: String,
    /// Size of the content, in bytes.
    pub length: u64,
    /// Bytes of the content that are there.
    pub done: u64,
    /// Payload bytes received since it was loaded.
    pub received: u64,
    /// Payload bytes sent since it was loaded.
    pub uploaded: u64,
    /// Whether it runs when it is not checked.
    pub run_mode: RunMode,
    /// Bytes that the running check has read; `None` if there is no check.
    pub checked: Option<u64>,
    /// False for a magnet link that is not resolved.
    pub has_metadata: bool,
    /// Error message; `None` if there is no error.
    pub error: Option<String>,
    /// Label; empty for none.
    pub label: String,
    /// Directory of the content.
    pub directory: String,
    /// 0 off, 1 low, 2 normal, 3 high.
    pub priority: u8,
    /// Bytes per second.
    pub download_rate: u64,
    /// Bytes per second.
    pub upload_rate: u64,
    /// Connected peers.
    pub peers: u64,
    /// Number of the load, a new one each time.
    pub load: u64,
    /// Time at which it was loaded.
    pub added_at: Timestamp,
    /// Time at which its last byte was received; `None` before that.
    pub finished_at: Option<Timestamp>,
}

impl SimulatedTorrent {
    /// A running torrent with no content.
    pub fn new(name: impl Into<String>, length: u64) -> Self {
        Self {
            name: name.into(),
            length,
            done: 0,
            received: 0,
            uploaded: 0,
            run_mode: RunMode::Running,
            checked: None,
            has_metadata: true,
            error: None,
            label: String::new(),
            directory: "/downloads".to_owned(),
            priority: 2,
            download_rate: 0,
            upload_rate: 0,
            peers: 0,
            load: 0,
            added_at: Timestamp::from_millis(0),
            finished_at: None,
        }
    }

    /// Returns whether all of its content is there.
    pub fn is_complete(&self) -> bool {
        self.has_metadata && self.done == self.length
    }

    /// Returns the status that a listing shows.
    pub fn status(&self) -> Status {
        match (self.checked, self.run_mode) {
            (Some(_), _) => Status::Checking,
            (None, RunMode::Stopped) => Status::Stopped,
            (None, RunMode::Paused) => Status::Paused,
            (None, RunMode::Running) if !self.has_metadata => Status::Metadata,
            (None, RunMode::Running) if self.is_complete() => Status::Seeding,
            (None, RunMode::Running) => Status::Downloading,
        }
    }

    /// Returns the values by which a listing of changes notices a change.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            load: self.load,
            run_mode: self.run_mode,
            is_complete: self.is_complete(),
            is_moving: self.checked.is_some() || self.download_rate + self.upload_rate > 0,
        }
    }

    pub(super) fn observed(&self, server: &ServerName, hash: InfoHash) -> Observed {
        let status = self.status();
        // As rTorrent counts: what the check has read so far, not what was there before it.
        let downloaded = self.checked.unwrap_or(self.done);
        let left = self.length - downloaded;
        let facts = Facts {
            load: Some(self.load.to_string()),
            complete: self.is_complete(),
            has_metadata: self.has_metadata,
            received_bytes: self.received,
            moved_bytes: self.received + self.uploaded,
        };
        let torrent = Torrent {
            hash,
            name: self.name.clone(),
            server: server.clone(),
            active: matches!(status, Status::Downloading | Status::Seeding | Status::Metadata),
            downloaded,
            uploaded: self.uploaded,
            length: self.length,
            path: None,
            progress: progress(downloaded, self.length),
            ratio: ratio(self.uploaded, downloaded),
            finished: self.is_complete() && self.checked.is_none(),
            playing: self.download_rate + self.upload_rate > 0,
            extra: Extra::new(),
            status,
            error: self.error.is_some(),
            message: Some(self.error.as_deref().unwrap_or_default().into()),
            stalled: false,
            download_rate: Some(self.download_rate),
            upload_rate: Some(self.upload_rate),
            left: Some(left),
            eta: eta_seconds(left, self.download_rate),
            peers: Some(self.peers),
            seeds: Some(self.peers / 2),
            label: Some(self.label.as_str().into()),
            directory: Some(self.directory.as_str().into()),
            private: Some(false),
            priority: Some(self.priority),
            tracker: None,
            added_at: Some(self.added_at),
            started_at: None,
            finished_at: self.finished_at,
            size_files: Some(1),
        };
        Observed { torrent, facts }
    }
}

/// The values of a torrent that a listing of changes depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Number of the load.
    pub load: u64,
    /// How it would run without a check.
    pub run_mode: RunMode,
    /// Whether all of its content is there.
    pub is_complete: bool,
    /// Whether its numbers change from poll to poll.
    pub is_moving: bool,
}
