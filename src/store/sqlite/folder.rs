//! The data directory: its lock, and the marks of its last user.
//!
//! Two files next to the database describe the last run. `dtorrent.used` is created with the database
//! and stays: where it exists and the database does not, a state was lost. It also counts the synced
//! commits of the database: with fewer than that, some were lost (SQLite takes a change log that is
//! damaged in its middle for one that ends there). `dtorrent.clean` exists only between a clean close
//! and the next open. Removing a file takes no space, so a full disk cannot make a crash look clean.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::model::{Epoch, Timestamp};
use crate::port::StoreError;

/// Permissions of directory and files: names, paths and trackers of torrents are private.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The directory, locked.
pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as the directory is in use.
    lock: File,
}

/// The file that holds the count of synced commits. Not synced itself: a power cut can only make the
/// count lower, which is harmless.
pub(super) struct CommitMark {
    file: File,
    epoch: Epoch,
}

impl CommitMark {
    /// Records the count: the same number of bytes each time, so that it takes no space on a full disk.
    pub fn note(&self, commits: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{:010} {commits:020}\n", self.epoch.0).as_bytes(), 0)
    }
}

/// Records in the modification time of the lock file that the directory is in use, which costs no data write.
pub(super) struct AliveMark(File);

impl AliveMark {
    /// Sets the modification time.
    pub fn note(&self, now: Timestamp) -> io::Result<()> {
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        self.0.set_modified(UNIX_EPOCH + Duration::from_millis(millis))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Explicitly, because a child process that is just being started has the file open, too, and would keep the lock.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "data directory not unlocked");
        }
    }
}

impl Folder {
    /// Creates the directory if it is missing and locks it for this process.
    pub fn lock(path: &Path) -> Result<Self, StoreError> {
        let at = |what: &str, source: io::Error| {
            let text = format!("{what} {}: {source}", path.display());
            StoreError::Io(io::Error::new(source.kind(), text).into())
        };
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(path)
            .map_err(|e| at("create the data directory", e))?;
        let lock = open_private(&path.join("dtorrent.lock")).map_err(|e| at("create the lock file in", e))?;
        match lock.try_lock() {
            Ok(()) => {
                make_private(path).map_err(|e| at("make private for this user the data directory", e))?;
                Ok(Self { path: path.to_owned(), lock })
            }
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "another bridge uses the data directory {}: stop it, or give this one a data_dir of its own",
                    path.display()
                );
                Err(StoreError::Io(io::Error::new(io::ErrorKind::WouldBlock, text).into()))
            }
            Err(TryLockError::Error(e)) => Err(at("lock the data directory", e)),
        }
    }

    /// Returns whether a process has locked the directory. Nothing is created.
    pub fn is_locked(path: &Path) -> bool {
        let lock = File::open(path.join("dtorrent.lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Returns the time at which the directory was last in use; see [`AliveMark`].
    pub fn last_alive(&self) -> io::Result<Timestamp> {
        let modified = self.lock.metadata()?.modified()?;
        let since = modified.duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        Ok(Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the mark by which a run records that it is alive.
    pub fn alive_mark(&self) -> io::Result<AliveMark> {
        self.lock.try_clone().map(AliveMark)
    }

    /// Returns the secret key of the directory, which is made at its first use and stays.
    pub fn key(&self) -> io::Result<[u8; 32]> {
        let file = open_private(&self.path.join("dtorrent.key"))?;
        let mut key = [0; 32];
        match file.read_exact_at(&mut key, 0) {
            // New, or torn when it was.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                key = rand::random();
                file.write_all_at(&key, 0)?;
                file.sync_all()?;
            }
            read => read?,
        }
        Ok(key)
    }

    /// Returns the path of the database.
    pub fn database(&self) -> PathBuf {
        Self::database_in(&self.path)
    }

    /// Creates an empty database if there is none; SQLite gives its other files the same permissions.
    pub fn create_database(&self) -> io::Result<()> {
        open_private(&self.database()).map(drop)
    }

    /// Returns the path of the database of a directory that is not locked.
    pub fn database_in(path: &Path) -> PathBuf {
        path.join("dtorrent.sqlite3")
    }

    /// The files that SQLite keeps next to a database: its change log, and the index of that.
    fn side_files(database: &Path) -> [PathBuf; 2] {
        ["-wal", "-shm"].map(|suffix| with_suffix(database, suffix))
    }

    fn used_mark(&self) -> PathBuf {
        self.path.join("dtorrent.used")
    }

    fn clean_mark(&self) -> PathBuf {
        self.path.join("dtorrent.clean")
    }

    /// Whether a database was ever created here.
    pub fn was_used(&self) -> io::Result<bool> {
        self.used_mark().try_exists()
    }

    /// Records that a database is created here.
    pub fn mark_used(&self) -> io::Result<()> {
        self.create(&self.used_mark())
    }

    /// Returns how many synced commits a database of this epoch has had at least; 0 if none are recorded.
    pub fn commits_noted(&self, epoch: Epoch) -> io::Result<u64> {
        let text = fs::read(self.used_mark())?;
        let mut fields = std::str::from_utf8(&text).unwrap_or_default().split_ascii_whitespace();
        let of = fields.next().and_then(|field| field.parse().ok());
        // Shorter than it was written: the file is torn.
        let commits = fields.next().filter(|field| field.len() == 20).and_then(|field| field.parse().ok());
        Ok(commits.filter(|_| of == Some(epoch.0)).unwrap_or(0))
    }

    /// Opens the count of synced commits.
    pub fn commit_mark(&self, epoch: Epoch) -> io::Result<CommitMark> {
        let file = File::options().write(true).open(self.used_mark())?;
        Ok(CommitMark { file, epoch })
    }

    /// Records that the store is closed.
    pub fn mark_clean(&self) -> io::Result<()> {
        self.create(&self.clean_mark())
    }

    /// Removes the clean mark; returns whether it was there.
    pub fn take_clean_mark(&self) -> io::Result<bool> {
        match fs::remove_file(self.clean_mark()) {
            // Synced before anything is written: otherwise a power cut could bring the mark back beside a changed file.
            Ok(()) => self.sync().map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns the bytes of the database and of its change log, `None` for one that does not exist.
    pub fn sizes(&self) -> io::Result<[Option<u64>; 2]> {
        let database = self.database();
        let [log, _] = Self::side_files(&database);
        let size = |path: &Path| match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        Ok([size(&database)?, size(&log)?])
    }

    /// Renames the database and its side files, so that a fresh one can be created; returns the new path.
    pub fn move_aside(&self, now: Timestamp) -> io::Result<PathBuf> {
        let database = self.database();
        let base = with_suffix(&database, &format!(".corrupt-{}", now.to_string().replace(':', "")));
        let mut target = base.clone();
        let mut number = 1;
        while target.try_exists()? || Self::side_files(&target)[0].try_exists()? {
            number += 1;
            target = with_suffix(&base, &format!(".{number}"));
        }
        // The database last: while it is there, a next start finds it, and this begins again.
        let pairs = Self::side_files(&database).into_iter().zip(Self::side_files(&target));
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

    fn create(&self, path: &Path) -> io::Result<()> {
        let file = open_private(path)?;
        file.set_len(0)?;
        file.sync_all()?;
        self.sync()
    }

    /// Makes new and removed names durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Opens a file for writing, created for this user alone whatever the umask.
fn open_private(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(FILE_MODE).open(path)?;
    restrict(&file, FILE_MODE)?;
    Ok(file)
}

/// Takes from other users what an earlier version, an administrator or a copy has let them do with the directory.
fn make_private(path: &Path) -> io::Result<()> {
    // First, so that nobody can put another file in the place of one of these.
    restrict(&File::open(path)?, FOLDER_MODE)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // What else is there is not ours.
        if entry.file_type()?.is_file() && entry.file_name().as_bytes().starts_with(b"dtorrent.") {
            restrict(&File::open(entry.path())?, FILE_MODE)?;
        }
    }
    Ok(())
}

/// Sets the permissions, unless nobody but the owner has any and the owner has these.
fn restrict(file: &File, mode: u32) -> io::Result<()> {
    let now = file.metadata()?.permissions().mode();
    if now & 0o777 == mode { Ok(()) } else { file.set_permissions(Permissions::from_mode(mode)) }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
