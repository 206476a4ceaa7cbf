//! File systems mounted on a folder: a small one, and one that fails on demand.
//!
//! `mount` returns `None`, after it has skipped the test, where the right to mount is missing or the kernel lacks
//! something.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip::skip;

fn runs(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program).env("PATH", path + ":/usr/sbin:/sbin").args(arguments).arg(folder).output();
    output.is_ok_and(|output| output.status.success())
}

/// Unmounts lazily: after a test that failed, a bridge may use the disk for another moment.
fn unmount(folder: &Path) {
    assert!(runs("umount", &["--lazy"], folder), "{} is still mounted", folder.display());
}

/// Gives a folder with all that is in it to another user.
pub fn give(folder: &Path, user: u32) {
    assert!(runs("chown", &["--recursive", &format!("{user}:{user}")], folder), "{} is not given", folder.display());
}

/// Takes every right to a folder from everybody but root.
pub fn close(folder: &Path) {
    assert!(runs("chown", &["0:0"], folder) && runs("chmod", &["0700"], folder), "{} is open", folder.display());
}

/// A tmpfs of 24 MiB.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        if !runs("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs"], folder) {
            skip("no right to mount a tmpfs");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    /// Fills the disk completely.
    pub fn fill(&self) {
        assert!(fs::write(self.0.join("ballast"), vec![1; 25 << 20]).is_err(), "the disk has to be full");
    }

    pub fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }

    pub fn remount(&self, how: &str) {
        assert!(runs("mount", &["-o", how], &self.0), "cannot remount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// A file or a folder that is mounted in another place, too.
pub struct BindMount(PathBuf);

impl BindMount {
    pub fn of(what: &Path, at: &Path) -> Option<Self> {
        if !runs("mount", &["--bind", &what.to_string_lossy()], at) {
            skip("no right to mount");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

/// An ext4 file system in a file that becomes read-only on an error, as Debian mounts them, and an error on demand.
///
/// It has no journal: an aborted journal would prevent the file system from being mounted again.
pub struct FailingDisk {
    image: PathBuf,
    folder: PathBuf,
}

impl FailingDisk {
    pub fn mount(image: &Path, folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        fs::File::create(image).unwrap().set_len(32 << 20).unwrap();
        let disk = Self { image: image.to_owned(), folder: folder.to_owned() };
        if !runs("mkfs.ext4", &["-q", "-O", "^has_journal"], image) {
            skip("`mkfs.ext4` is not installed; on Debian and Ubuntu: apt install e2fsprogs");
        } else if !disk.mounts() {
            skip("no right to mount an image, or no loop device");
        } else if !disk.trigger().is_file() {
            skip("the kernel has no /sys/fs/ext4/*/trigger_fs_error");
            unmount(folder);
        } else {
            return Some(disk);
        }
        std::mem::forget(disk); // it is not mounted, so `drop` must not unmount it
        None
    }

    /// Makes the file system read-only, for open files too.
    pub fn fail(&self) {
        // The write itself may or may not return the error that it triggers.
        drop(fs::write(self.trigger(), "1"));
        let error = fs::write(self.folder.join("probe"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    }

    /// Makes the file system writable again. No file on it may be open.
    pub fn repair(&self) {
        assert!(runs("umount", &[], &self.folder), "{} is still in use", self.folder.display());
        assert!(self.mounts(), "cannot mount it again");
    }

    /// Makes everything that changes the file system wait.
    pub fn freeze(&self) {
        assert!(runs("fsfreeze", &["--freeze"], &self.folder), "{} does not freeze", self.folder.display());
    }

    /// Lets what has waited go on.
    pub fn thaw(&self) {
        assert!(runs("fsfreeze", &["--unfreeze"], &self.folder), "{} is not frozen", self.folder.display());
    }

    fn mounts(&self) -> bool {
        let image = self.image.to_string_lossy();
        runs("mount", &["-o", "loop,errors=remount-ro", &image], &self.folder)
    }

    /// Returns the file that triggers an error when it is written to.
    fn trigger(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let folder = self.folder.to_string_lossy();
        let of_it = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[1] == folder);
        let device = of_it.expect("it is mounted")[0].trim_start_matches("/dev/").to_owned();
        Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error")
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // One that stays frozen after a test that failed would never be gone. Most are not.
        let _was_frozen = runs("fsfreeze", &["--unfreeze"], &self.folder);
        unmount(&self.folder);
    }
}
