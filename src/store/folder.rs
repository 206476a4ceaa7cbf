//! The data folder: who may use it, and what its last user left.
//!
//! Two files beside the database speak of the last run. `dtorrent.used` is made with the database
//! and stays: where it is and the database is not, a state was lost. It also says how many synced
//! commits the database has had: with fewer than that, a part of them was lost (SQLite takes a change
//! log that is damaged in its middle for one that ends there). `dtorrent.clean` is there only between a
//! clean close and the next open. (Removing a file needs no room on the disk, so a full disk cannot make
//! a crash look clean.)

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::model::{Epoch, Timestamp};
use crate::port::StoreError;

pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as the folder is in use.
    lock: File,
}

/// Where the count of synced commits is noted. It is not synced itself: what a power cut takes of it
/// makes it older, which is no alarm.
pub(super) struct CommitMark {
    file: File,
    epoch: Epoch,
}

impl CommitMark {
    /// As many bytes each time, so that it needs no room on a full disk.
    pub fn note(&self, commits: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{:010} {commits:020}\n", self.epoch.0).as_bytes(), 0)
    }
}

/// Says by the age of the lock file that the folder is in use: that costs no write of its own.
pub(super) struct AliveMark(File);

impl AliveMark {
    pub fn note(&self, now: Timestamp) -> io::Result<()> {
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        self.0.set_modified(UNIX_EPOCH + Duration::from_millis(millis))
    }
}

impl Drop for Folder {
    /// Closing the file would not do: a child process that is just being started has it open too.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data folder could not be unlocked");
        }
    }
}

impl Folder {
    /// Makes the folder if it is missing and takes it for this process.
    pub fn lock(path: &Path) -> Result<Self, StoreError> {
        let at = |what: &str, source: io::Error| {
            let text = format!("{what} {}: {source}", path.display());
            StoreError::Io(io::Error::new(source.kind(), text).into())
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| at("make the data folder", e))?;
        let lock_path = path.join("dtorrent.lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock_path);
        let lock = lock.map_err(|e| at("make the lock file in", e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "another bridge uses the data folder {}: stop it, or give this one a data_dir of its own",
                    path.display()
                );
                Err(StoreError::Io(io::Error::new(io::ErrorKind::WouldBlock, text).into()))
            }
            Err(TryLockError::Error(e)) => Err(at("lock the data folder", e)),
        }
    }

    /// When somebody last noted that he uses the folder; see [`AliveMark`].
    pub fn last_alive(&self) -> io::Result<Timestamp> {
        let modified = self.lock.metadata()?.modified()?;
        let since = modified.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        Ok(Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
    }

    pub fn alive_mark(&self) -> io::Result<AliveMark> {
        self.lock.try_clone().map(AliveMark)
    }

    pub fn database(&self) -> PathBuf {
        Self::database_in(&self.path)
    }

    pub fn database_in(path: &Path) -> PathBuf {
        path.join("dtorrent.sqlite3")
    }

    /// The database's own companions: its log of changes, and the index of that.
    fn companions(database: &Path) -> [PathBuf; 2] {
        ["-wal", "-shm"].map(|suffix| with_suffix(database, suffix))
    }

    fn used_mark(&self) -> PathBuf {
        self.path.join("dtorrent.used")
    }

    fn clean_mark(&self) -> PathBuf {
        self.path.join("dtorrent.clean")
    }

    pub fn was_used(&self) -> io::Result<bool> {
        self.used_mark().try_exists()
    }

    pub fn mark_used(&self) -> io::Result<()> {
        self.make(&self.used_mark())
    }

    /// How many synced commits a database of this epoch has had at least; 0 where nothing is noted of it.
    pub fn commits_noted(&self, epoch: Epoch) -> io::Result<u64> {
        let text = fs::read(self.used_mark())?;
        let mut words = std::str::from_utf8(&text).unwrap_or_default().split_ascii_whitespace();
        let of = words.next().and_then(|word| word.parse().ok());
        let commits = words.next().filter(|word| word.len() == 20).and_then(|word| word.parse().ok());
        Ok(commits.filter(|_| of == Some(epoch.0)).unwrap_or(0))
    }

    pub fn commit_mark(&self, epoch: Epoch) -> io::Result<CommitMark> {
        let file = File::options().write(true).open(self.used_mark())?;
        Ok(CommitMark { file, epoch })
    }

    pub fn mark_clean(&self) -> io::Result<()> {
        self.make(&self.clean_mark())
    }

    /// Takes the clean mark away and says whether it was there.
    pub fn take_clean_mark(&self) -> io::Result<bool> {
        match fs::remove_file(self.clean_mark()) {
            Ok(()) => self.sync().map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The bytes of the database and of its change log, `None` for what is not there.
    pub fn sizes(&self) -> io::Result<[Option<u64>; 2]> {
        let database = self.database();
        let [log, _] = Self::companions(&database);
        let size = |path: &Path| match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        Ok([size(&database)?, size(&log)?])
    }

    /// Renames the database and its companions, so that a fresh one can be made; returns the new name.
    pub fn move_aside(&self, now: Timestamp) -> io::Result<PathBuf> {
        let database = self.database();
        let base = with_suffix(&database, &format!(".corrupt-{}", now.to_string().replace(':', "")));
        let mut target = base.clone();
        let mut number = 1;
        while target.try_exists()? || Self::companions(&target)[0].try_exists()? {
            number += 1;
            target = with_suffix(&base, &format!(".{number}"));
        }
        let pairs = Self::companions(&database).into_iter().zip(Self::companions(&target));
        for (from, to) in pairs.chain([(database, target.clone())]) {
            match fs::rename(&from, &to) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        self.sync()?;
        Ok(target)
    }

    fn make(&self, path: &Path) -> io::Result<()> {
        File::create(path)?.sync_all()?;
        self.sync()
    }

    /// Makes new and vanished names durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
