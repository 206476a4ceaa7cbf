//! Places below a root: folders that are held open, and names in them.
//!
//! A path is a text. Between the moment at which it is checked and the moment at which it is used, whoever may write below
//! a root can put a symbolic link in its way. So nothing here acts on a path: a [`Folder`] is a descriptor, reached from
//! a root one component at a time, and each operation names one entry of such a folder.
//!
//! - No component is followed as a symbolic link, nor as one of the magic links of /proc, and none is `..`.
//! - What was checked is recognized by its [`Identity`] when it is used, and something else in its place is left alone.
//! - Nothing is overwritten: files are created and renamed only where there is nothing.
//!
//! One component at a time, and not `openat2`: this works on every kernel and file system, and an error can name the
//! component that is a link. Everything here blocks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, accessat, flock, fstat,
    mkdirat, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use super::errors::precondition;
use crate::model::{CommandError, ErrorCode};

/// A folder that is held open, with the path by which it was reached.
#[derive(Debug)]
pub(super) struct Folder {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// A name in a folder that is held open. There need not be anything.
#[derive(Debug)]
pub(super) struct Place {
    /// The folder.
    pub folder: Folder,
    /// One component.
    pub name: OsString,
}

/// An entry of a folder, itself and not what it may point to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Its type.
    pub kind: Kind,
    /// Which one it is.
    pub identity: Identity,
    /// Its size.
    pub bytes: u64,
    /// The user whose it is.
    pub owner: u32,
    /// Its bits of permission, the sticky bit included.
    pub mode: u32,
    /// Time of modification, in seconds.
    pub modified_seconds: u64,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A pipe, a socket or a device.
    Special,
}

/// The file itself, whatever it is called: the same as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// The file system.
    pub device: u64,
    inode: u64,
}

/// The reason why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// A component is a symbolic link.
    #[error("{} is a symbolic link, and none is followed below the allowed folders", .0.display())]
    Link(PathBuf),
    /// Something else is in the place of what was checked.
    #[error("{}: it was replaced by something else meanwhile", .0.display())]
    Replaced(PathBuf),
    /// The file system refuses.
    #[error("{}: {reason}", .path.display())]
    Io {
        /// The place.
        path: PathBuf,
        /// The refusal.
        reason: io::Error,
    },
}

type Result<T> = std::result::Result<T, PlaceError>;

impl PlaceError {
    /// Whether nothing is there that could be a folder.
    pub fn is_missing(&self) -> bool {
        use io::ErrorKind::{NotADirectory, NotFound};
        matches!(self, Self::Io { reason, .. } if matches!(reason.kind(), NotFound | NotADirectory))
    }
}

impl From<PlaceError> for CommandError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Link(_) => Self::new(ErrorCode::Forbidden, error.to_string()),
            PlaceError::Replaced(_) | PlaceError::Io { .. } => precondition(error.to_string()),
        }
    }
}

impl From<Stat> for Found {
    fn from(stat: Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Special,
        };
        Self {
            kind,
            identity: Identity { device: stat.st_dev, inode: stat.st_ino },
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            owner: stat.st_uid,
            mode: stat.st_mode & 0o7777,
            modified_seconds: u64::try_from(stat.st_mtime).unwrap_or(0),
        }
    }
}

impl Folder {
    /// Opens the folder at an absolute path without following a link.
    pub fn open(path: &Path) -> Result<Self> {
        let root = Path::new("/");
        let descriptor = openat(CWD, root, folder_flags(), Mode::empty()).map_err(io_error(root))?;
        Self { descriptor, path: root.to_owned() }.into_below(path.strip_prefix(root).unwrap_or(path))
    }

    /// Returns the path by which the folder was reached, for messages and for comparing.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder itself as an entry.
    pub fn itself(&self) -> Result<Found> {
        fstat(&self.descriptor).map(Found::from).map_err(io_error(&self.path))
    }

    /// Opens a folder in this one.
    pub fn folder(&self, name: &OsStr) -> Result<Self> {
        let path = self.path_of(name)?;
        match openat(&self.descriptor, name, folder_flags(), Mode::empty()) {
            Ok(descriptor) => Ok(Self { descriptor, path }),
            // Of a link the kernel says that it is not a folder.
            Err(Errno::NOTDIR | Errno::LOOP) if self.is_link(name) => Err(PlaceError::Link(path)),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Opens a folder below this one; an empty path leads to this one.
    pub fn below(&self, relative: &Path) -> Result<Self> {
        self.again()?.into_below(relative)
    }

    /// Opens as much of a path below this folder as there is; returns the rest, too.
    pub fn start_of(&self, relative: &Path) -> Result<(Self, PathBuf)> {
        let (mut folder, mut rest) = (self.again()?, relative.components());
        loop {
            let missing = rest.as_path().to_owned();
            let Some(part) = rest.next() else { return Ok((folder, missing)) };
            folder = match folder.folder(part.as_os_str()) {
                Ok(next) => next,
                Err(error) if folder.found(part.as_os_str())?.is_some() => return Err(error),
                Err(error) if error.is_missing() => return Ok((folder, missing)),
                Err(error) => return Err(error),
            };
        }
    }

    /// Opens a folder below this one, and makes what is missing.
    pub fn make_below(&self, relative: &Path) -> Result<Self> {
        let mut folder = self.again()?;
        for part in relative.components() {
            let name = part.as_os_str();
            folder = match folder.folder(name) {
                Err(PlaceError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => {
                    let path = folder.path_of(name)?;
                    match mkdirat(&folder.descriptor, name, Mode::from_raw_mode(0o777)) {
                        // Whoever made it first: it is opened as a folder, or not at all.
                        Ok(()) | Err(Errno::EXIST) => folder.folder(name)?,
                        Err(error) => return Err(io_error(&path)(error)),
                    }
                }
                opened => opened?,
            };
        }
        Ok(folder)
    }

    /// Looks at an entry; `None` if there is none.
    pub fn found(&self, name: &OsStr) -> Result<Option<Found>> {
        let path = self.path_of(name)?;
        match statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Opens a regular file to read it; with `identity`, only this one.
    pub fn open_file(&self, name: &OsStr, identity: Option<Identity>) -> Result<(File, Found)> {
        let path = self.path_of(name)?;
        // Opening a pipe or a device may block, or do something, so it is looked at first, and NONBLOCK is for one that was
        // put there since.
        match self.found(name)?.map(|found| found.kind) {
            Some(Kind::File) | None => {}
            Some(Kind::Link) => return Err(PlaceError::Link(path)),
            Some(Kind::Folder | Kind::Special) => return Err(not_plain(&path)),
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat(&self.descriptor, name, flags, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => PlaceError::Link(path.clone()),
            error => io_error(&path)(error),
        })?;
        let found = Found::from(fstat(&opened).map_err(io_error(&path))?);
        match identity {
            _ if found.kind != Kind::File => Err(not_plain(&path)),
            Some(identity) if identity != found.identity => Err(PlaceError::Replaced(path)),
            _ => Ok((opened.into(), found)),
        }
    }

    /// Creates a file with this mode where there is nothing.
    pub fn create_file(&self, name: &OsStr, mode: u32) -> Result<(File, Identity)> {
        let path = self.path_of(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = openat(&self.descriptor, name, flags, Mode::from_raw_mode(mode)).map_err(io_error(&path))?;
        let found = Found::from(fstat(&created).map_err(io_error(&path))?);
        Ok((created.into(), found.identity))
    }

    /// Removes a file, if it is still this one.
    pub fn remove_file(&self, name: &OsStr, identity: Identity) -> Result<()> {
        let path = self.path_of(name)?;
        self.check_identity(name, identity)?;
        unlinkat(&self.descriptor, name, AtFlags::empty()).map_err(io_error(&path))
    }

    /// Removes a folder that is empty.
    pub fn remove_folder(&self, name: &OsStr) -> Result<()> {
        let path = self.path_of(name)?;
        unlinkat(&self.descriptor, name, AtFlags::REMOVEDIR).map_err(io_error(&path))
    }

    /// Renames a file, if it is still this one, to where there is nothing; `false` if that is on another file system.
    pub fn rename(&self, name: &OsStr, identity: Identity, to: &Place) -> Result<bool> {
        let (path, new) = (self.path_of(name)?, to.folder.path_of(&to.name)?);
        self.check_identity(name, identity)?;
        let (from, into) = (&self.descriptor, &to.folder.descriptor);
        let renamed = match renameat_with(from, name, into, &to.name, RenameFlags::NOREPLACE) {
            // Some file systems (NFS, FUSE) do not know the flag.
            Err(Errno::INVAL | Errno::NOSYS) if to.folder.found(&to.name)?.is_none() => {
                renameat(from, name, into, &to.name)
            }
            renamed => renamed,
        };
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::XDEV) => Ok(false),
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => Err(io_error(&new)(Errno::EXIST)),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Returns the names of all entries.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let listed = self.readable().and_then(Dir::new).map_err(io_error(&self.path))?;
        let mut names = Vec::new();
        for entry in listed {
            let name = entry.map_err(io_error(&self.path))?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Writes the entries of the folder to stable storage.
    pub fn sync(&self) -> Result<()> {
        self.readable().and_then(rustix::fs::fsync).map_err(io_error(&self.path))
    }

    /// Returns why this process may not use the folder, or an entry of it, in these ways.
    pub fn check_access(&self, name: Option<&OsStr>, access: Access) -> std::result::Result<(), Errno> {
        let flags = AtFlags::EACCESS;
        match name {
            None => accessat(&self.descriptor, ".", access, flags),
            Some(name) => match accessat(&self.descriptor, name, access, flags | AtFlags::SYMLINK_NOFOLLOW) {
                // Kernels before 5.8 cannot tell without following; the answer is used for a message alone.
                Err(Errno::NOSYS | Errno::NOTSUP) => accessat(&self.descriptor, name, access, flags),
                answer => answer,
            },
        }
    }

    /// Returns the same folder under a descriptor of its own.
    fn again(&self) -> Result<Self> {
        let descriptor = self.descriptor.try_clone().map_err(|reason| failed(&self.path, reason))?;
        Ok(Self { descriptor, path: self.path.clone() })
    }

    fn into_below(self, relative: &Path) -> Result<Self> {
        relative.components().try_fold(self, |folder, part| folder.folder(part.as_os_str()))
    }

    /// Opens the folder to read it: the descriptor itself only stands for a place.
    fn readable(&self) -> std::result::Result<OwnedFd, Errno> {
        openat(&self.descriptor, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    fn is_link(&self, name: &OsStr) -> bool {
        self.found(name).is_ok_and(|found| found.is_some_and(|found| found.kind == Kind::Link))
    }

    fn check_identity(&self, name: &OsStr, identity: Identity) -> Result<()> {
        match self.found(name)? {
            Some(found) if found.identity == identity => Ok(()),
            Some(_) => Err(PlaceError::Replaced(self.path.join(name))),
            None => Err(io_error(&self.path.join(name))(Errno::NOENT)),
        }
    }

    /// Returns the path of an entry, after checking that the name is one component.
    fn path_of(&self, name: &OsStr) -> Result<PathBuf> {
        let path = self.path.join(name);
        let mut parts = Path::new(name).components();
        let is_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
        if is_name && !name.as_bytes().contains(&0) { Ok(path) } else { Err(io_error(&path)(Errno::INVAL)) }
    }
}

impl Place {
    /// Returns the path, for messages.
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// Looks at what is there.
    pub fn found(&self) -> Result<Option<Found>> {
        self.folder.found(&self.name)
    }
}

/// The folders below one, opened one after the other: with all of them open, a torrent of many folders would use up the
/// descriptors of this process.
pub(super) struct Walk<'a> {
    base: &'a Folder,
    last: Option<(PathBuf, Folder)>,
}

impl<'a> Walk<'a> {
    /// Returns a walk that begins at `base`.
    pub fn new(base: &'a Folder) -> Self {
        Self { base, last: None }
    }

    /// Returns the folder of a file, by the path of the file below the base, and the file's name.
    pub fn folder_of<'b>(&mut self, file: &'b Path) -> Result<(&Folder, &'b OsStr)> {
        let parent = file.parent().unwrap_or(Path::new(""));
        let name = file.file_name().unwrap_or_default();
        if self.last.as_ref().is_none_or(|(path, _)| path != parent) {
            self.last = Some((parent.to_owned(), self.base.below(parent)?));
        }
        let (_, folder) = self.last.as_ref().expect("it was opened above");
        Ok((folder, name))
    }

    /// Looks at a file; `None` if there is none.
    pub fn found(&mut self, file: &Path) -> Result<Option<Found>> {
        self.found_folder_of(file)?.map_or(Ok(None), |(folder, name)| folder.found(name))
    }

    /// Returns the same as [`Self::folder_of`], and `None` where the folder does not exist.
    pub fn found_folder_of<'b>(&mut self, file: &'b Path) -> Result<Option<(&Folder, &'b OsStr)>> {
        match self.folder_of(file) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Takes the lock of a file that is being written; `false` if another process or thread has it.
pub(super) fn lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn folder_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn not_plain(path: &Path) -> PlaceError {
    failed(path, io::Error::other("it is not a regular file"))
}

fn failed(path: &Path, reason: io::Error) -> PlaceError {
    PlaceError::Io { path: path.to_owned(), reason }
}

fn io_error(path: &Path) -> impl FnOnce(Errno) -> PlaceError + '_ {
    |error| failed(path, error.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(&temporary.path().canonicalize().unwrap()).unwrap();
        (temporary, folder)
    }

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_name_is_one_component() {
        let (_temporary, folder) = folder();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for bad in ["", ".", "..", "/", "sub/", "sub/..", "../x", "a\0b", "/etc"] {
            let name = name(bad);
            assert!(folder.folder(name).is_err() && folder.found(name).is_err(), "{bad:?}");
            assert!(folder.create_file(name, 0o600).is_err() && folder.remove_folder(name).is_err(), "{bad:?}");
        }
        for bad in ["..", "sub/../..", "/etc"] {
            assert!(folder.below(Path::new(bad)).is_err() && folder.make_below(Path::new(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_link_is_followed_by_any_operation() {
        let (_outer, outside) = folder();
        let (_temporary, folder) = folder();
        fs::write(outside.path().join("secret"), b"secret").unwrap();
        for (link, target) in
            [("folder", outside.path()), ("file", &outside.path().join("secret")), ("none", Path::new("/none"))]
        {
            symlink(target, folder.path().join(link)).unwrap();
        }
        symlink("/proc/self/cwd", folder.path().join("magic")).unwrap();
        for link in ["folder", "file", "none", "magic"] {
            let path = Path::new(link);
            for error in [
                folder.folder(name(link)).unwrap_err(),
                folder.start_of(&path.join("x")).unwrap_err(),
                folder.make_below(&path.join("x")).unwrap_err(),
                folder.open_file(name(link), None).unwrap_err(),
            ] {
                assert!(matches!(error, PlaceError::Link(_)), "{link}: {error}");
            }
            assert!(folder.create_file(name(link), 0o600).is_err() && folder.remove_folder(name(link)).is_err());
            assert_eq!(folder.found(name(link)).unwrap().unwrap().kind, Kind::Link);
        }
        assert!(Folder::open(&folder.path().join("folder")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_regular_file_is_opened_and_only_the_one_that_was_checked() {
        let (_temporary, folder) = folder();
        fs::write(folder.path().join("a"), b"a").unwrap();
        fs::write(folder.path().join("b"), b"b").unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        rustix::fs::mkfifoat(&folder.descriptor, "pipe", Mode::RWXU).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        for special in ["sub", "pipe", "socket", "none"] {
            assert!(folder.open_file(name(special), None).is_err(), "{special}");
        }
        drop(socket);
        let [a, b] = ["a", "b"].map(|file| folder.found(name(file)).unwrap().unwrap().identity);
        assert!(folder.open_file(name("a"), Some(a)).is_ok());
        assert!(matches!(folder.open_file(name("a"), Some(b)), Err(PlaceError::Replaced(_))));
        assert!(matches!(folder.remove_file(name("a"), b), Err(PlaceError::Replaced(_))));
        let to = |file: &str| Place { folder: folder.again().unwrap(), name: file.into() };
        assert!(folder.rename(name("a"), b, &to("c")).is_err());
        assert!(folder.rename(name("a"), a, &to("b")).is_err(), "nothing is overwritten");
        assert!(folder.rename(name("a"), a, &to("c")).unwrap());
        folder.remove_file(name("c"), a).unwrap();
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"b");
    }
}
