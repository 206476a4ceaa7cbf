//! Disks of a test's own, mounted on a folder: one that is small, one that fails.
//!
//! Both are `None`, aloud, where we may not mount, or the kernel has not what they need.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn runs(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program).env("PATH", path + ":/usr/sbin:/sbin").args(arguments).arg(folder).output();
    output.is_ok_and(|output| output.status.success())
}

fn skipped(why: &str) {
    // Not by `eprintln`: of a test that passes nobody would see it.
    std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
}

/// Not waiting for those who still use it: a test that fails may leave a bridge on it for a moment.
fn leave(folder: &Path) {
    assert!(runs("umount", &["--lazy"], folder), "{} is still mounted", folder.display());
}

/// In memory, and soon full.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        if !runs("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs"], folder) {
            skipped("no right to mount a small disk");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    /// Until nothing more goes in.
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
        leave(&self.0);
    }
}

/// An ext4 in a file that becomes read-only when it meets an error, as Debian mounts them, and can be told
/// to meet one. It has no journal: that would take part in the error, and refuse to be mounted after it.
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
            skipped("no mkfs.ext4 (apt install e2fsprogs)");
        } else if !disk.appear() {
            skipped("no right to mount a disk from a file");
        } else if !disk.knob().is_file() {
            skipped("this kernel cannot make an ext4 fail");
            leave(folder);
        } else {
            return Some(disk);
        }
        std::mem::forget(disk); // it is not mounted
        None
    }

    /// From now on nobody can write to it, also not to files that are open.
    pub fn fail(&self) {
        // It says by an error, or not, that there was one.
        drop(fs::write(self.knob(), "1"));
        let error = fs::write(self.folder.join("probe"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    }

    /// Whoever used it has to be gone.
    pub fn mend(&self) {
        assert!(runs("umount", &[], &self.folder), "somebody still uses {}", self.folder.display());
        assert!(self.appear(), "cannot mount it again");
    }

    fn appear(&self) -> bool {
        let image = self.image.to_string_lossy();
        runs("mount", &["-o", "loop,errors=remount-ro", &image], &self.folder)
    }

    /// What the kernel shows of it.
    fn knob(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let folder = self.folder.to_string_lossy();
        let of_it = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[1] == folder);
        let device = of_it.expect("it is mounted")[0].trim_start_matches("/dev/").to_owned();
        Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error")
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        leave(&self.folder);
    }
}
