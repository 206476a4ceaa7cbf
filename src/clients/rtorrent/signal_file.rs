//! The file that the hooks of one rTorrent append to, and that the bridge reads as it grows.
//!
//! Only this user and rTorrent's may write to its folder. So nobody else can take the bridge's place, whether that runs or
//! not, and rTorrent reads nothing back. While no bridge runs the file grows by a line for each event; the next one
//! empties it.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;

use crate::model::{HookFile, HookSignals, InvalidHookFile};

/// Size from which the file is emptied once it was read, and the most that is read of it: some 1,600 signals.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Room for the notifications of one read; what is in them does not matter.
const NOTIFICATION_BYTES: usize = 4 << 10;

/// The file of one server.
#[derive(Clone, Debug)]
pub struct SignalFile {
    folder: PathBuf,
    path: PathBuf,
    /// Permissions of the file: for the group, too, where rTorrent is another user.
    mode: u32,
}

/// A part of the file, as it was read.
#[derive(Debug)]
pub struct Received {
    /// The signals.
    pub signals: HookSignals,
    /// Nothing was skipped: the signals are all that were written.
    pub is_complete: bool,
}

impl SignalFile {
    /// Prepares the file `name` in a folder of the bridge's own, which is created if it is missing.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn private(folder: &Path, name: &str) -> io::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| at(folder, &error))?;
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(|error| at(folder, &error))?;
        Self::at(folder, name, 0o600)
    }

    /// Prepares the file `name` in a folder of the administrator's, for the folder's group as well.
    ///
    /// # Errors
    /// There is no such folder, or every user may write there and so put something else in the place of the file.
    pub fn shared(folder: &Path, name: &str) -> io::Result<Self> {
        let mode = fs::metadata(folder).map_err(|error| at(folder, &error))?.permissions().mode();
        if mode & 0o002 != 0 {
            let path = folder.display();
            return Err(io::Error::other(format!("every user may write to {path}: `chmod o-w {path}`")));
        }
        Self::at(folder, name, 0o660)
    }

    fn at(folder: &Path, name: &str, mode: u32) -> io::Result<Self> {
        let folder = fs::canonicalize(folder).map_err(|error| at(folder, &error))?;
        Ok(Self { path: folder.join(name), folder, mode })
    }

    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// Something else is in its place, for example.
    pub fn create(&self) -> io::Result<()> {
        let opened = match self.open() {
            // Made by another user: by an rTorrent whose bridge was away, for example. It appends to ours from now on.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                // Where it may not be removed either, or is not there to be removed, the first error says why.
                fs::remove_file(&self.path).map_err(|_| error)?;
                self.open()
            }
            opened => opened,
        };
        opened?.set_len(0)
    }

    /// Returns the path for the hook.
    ///
    /// # Errors
    /// The path has characters that rTorrent would interpret.
    pub fn hook_file(&self) -> Result<HookFile, InvalidHookFile> {
        HookFile::parse(&self.path.to_string_lossy())
    }

    /// Passes on the signals as they are written. Cancel-safe: those that are lost cost a poll at the interval.
    ///
    /// # Errors
    /// The file cannot be watched or read.
    pub async fn receive(&self, received: impl Fn(Received)) -> io::Result<Infallible> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let watch = inotify::init(flags)?;
        // The folder, because rTorrent makes another file where ours was deleted.
        inotify::add_watch(&watch, &self.folder, inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::ONLYDIR)?;
        // No pipe, and read like one.
        let mut notifications = pipe::Receiver::from_owned_fd_unchecked(watch)?;
        let mut ignored = [0; NOTIFICATION_BYTES];
        let mut offset = 0;
        loop {
            let (from, file) = (offset, self.clone());
            let (some, next) = spawn_blocking(move || file.read(from)).await.map_err(io::Error::other)??;
            offset = next;
            received(some);
            if notifications.read(&mut ignored).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what was written behind `from`, and returns it with the place of what follows.
    fn read(&self, from: u64) -> io::Result<(Received, u64)> {
        // For reading only: the end of a write is what the watch waits for.
        let mut file = OpenOptions::new().read(true).custom_flags(flags()).open(&self.path)?;
        let length = file.metadata()?.len();
        // A file that is shorter is another one.
        let from = if length < from { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut lines = Vec::new();
        (&mut file).take(FILE_BYTES_MAX).read_to_end(&mut lines)?;
        // A line of which a part was written is read with its rest.
        lines.truncate(lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let next = from + lines.len() as u64;
        let signals = HookSignals::parse(&lines);
        if length < FILE_BYTES_MAX {
            return Ok((Received { signals, is_complete: true }, next));
        }
        // rTorrent opens the file for each line and appends, so it goes on at the beginning; a line may have come meanwhile.
        self.open()?.set_len(0)?;
        Ok((Received { signals, is_complete: false }, 0))
    }

    fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(self.mode)
            .custom_flags(flags())
            .open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("something else than a file is there"));
        }
        // Whatever the umask.
        if metadata.permissions().mode() & 0o777 != self.mode {
            file.set_permissions(Permissions::from_mode(self.mode))?;
        }
        Ok(file)
    }
}

/// No link is followed, and nothing waits for the other end of a pipe.
fn flags() -> i32 {
    i32::from_ne_bytes((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().to_ne_bytes())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const HASH: &str = "ABCDEF0123456789ABCDEF0123456789ABCDEF01";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn whole_lines_are_read_once_and_the_file_is_emptied_when_it_is_large() {
        let folder = tempfile::tempdir().unwrap();
        let file = SignalFile::private(&folder.path().join("hooks"), "main.home").unwrap();
        file.create().unwrap();
        append(&file.path, &format!("{HASH}\n{}", &HASH[..7]));
        let (received, next) = file.read(0).unwrap();
        assert_eq!((received.signals.hashes.len(), received.is_complete, next), (1, true, 41));
        append(&file.path, &format!("{}\n", &HASH[7..]));
        assert_eq!(file.read(next).unwrap().0.signals.hashes.len(), 1, "the line has its end");
        append(&file.path, &"\n".repeat(64 << 10));
        let (received, next) = file.read(82).unwrap();
        assert_eq!((received.signals.has_proof, received.is_complete, next), (true, false, 0));
        assert_eq!(fs::metadata(&file.path).unwrap().len(), 0);
        assert_eq!(file.read(82).unwrap().1, 0, "another file is read from its beginning");
    }

    #[test]
    fn a_link_or_a_pipe_in_the_place_of_the_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, "precious").unwrap();
        let hooks = folder.path().join("hooks");
        fs::create_dir(&hooks).unwrap();
        std::os::unix::fs::symlink(&elsewhere, hooks.join("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, hooks.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let before = ["elsewhere", "hooks/pipe"].map(|path| mode(&folder.path().join(path)));
        for name in ["link", "pipe"] {
            let file = SignalFile::shared(&hooks, name).unwrap();
            assert!(file.create().is_err(), "{name}");
            // Also where it is put there later.
            let (sender, read) = mpsc::channel();
            std::thread::spawn(move || sender.send(file.read(0).map(|(_, next)| next)));
            let read = read.recv_timeout(Duration::from_secs(10)).expect("nobody waits for the other end of a pipe");
            assert!(read.is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        assert_eq!(["elsewhere", "hooks/pipe"].map(|path| mode(&folder.path().join(path))), before);
    }

    #[test]
    fn folder_and_file_are_for_those_who_are_to_write_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = SignalFile::private(&folder.path().join("hooks"), "a").unwrap();
        file.create().unwrap();
        assert_eq!((mode(&file.folder), mode(&file.path)), (0o700, 0o600));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o770)).unwrap();
        let file = SignalFile::shared(folder.path(), "a").unwrap();
        file.create().unwrap();
        assert_eq!((mode(&file.folder), mode(&file.path)), (0o770, 0o660));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let error = SignalFile::shared(folder.path(), "a").unwrap_err().to_string();
        assert!(error.contains("every user may write"), "{error}");
        assert!(SignalFile::shared(&folder.path().join("missing"), "a").is_err());
    }
}
