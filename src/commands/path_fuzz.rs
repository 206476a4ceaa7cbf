//! Random file operations on a disk on which somebody swaps folders, files, links and pipes meanwhile.
//!
//! Nothing outside the roots may be opened, changed or removed: a watch (inotify) on the tree outside sees nothing, and its
//! content is the same afterwards. The tree is changed by way of the kernel's own `openat2`, which leads out of a root as
//! little, so that only the operations that are tested can do so.
//!
//! `DTORRENT_PATHS=10000` runs more operations than usual, `DTORRENT_PATHS_SEED=7` others.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, inotify};
use rustix::io::Errno;

use super::beneath::Place;
use super::data_check;
use super::errors::bad_request;
use super::file_moves::FileMove;
use super::files::FilePlan;
use super::in_the_way::InTheWay;
use super::roots::Roots;
use super::sources::read_torrent;
use crate::model::{CommandError, Content, ContentFile, Metainfo, MetainfoBuilder, WrittenNames};

const NAMES: [&str; 8] = ["a", "b", "c", "ü 🎉", "-rf", "..x", " ", "new\nline"];
/// The mount point in the first root, which is not swapped, or it would not be found to unmount it.
const MOUNTED: &str = "mounted";
/// Content of every file of a torrent, so that one may be in the place of another.
const CONTENT: &[u8] = b"0123456789";

/// The folders of a run, and what changes them.
struct Disk {
    roots: Vec<PathBuf>,
    descriptors: Vec<OwnedFd>,
    outside: PathBuf,
    outside_descriptor: OwnedFd,
}

impl Disk {
    fn new(roots: Vec<PathBuf>, outside: PathBuf) -> Self {
        for root in &roots {
            fs::create_dir_all(root).unwrap();
        }
        let folders = [outside.clone(), outside.join("a"), outside.join("b/c")];
        folders.iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
        for path in folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name))) {
            if path.symlink_metadata().is_err() {
                fs::write(path, CONTENT).unwrap();
            }
        }
        let open = |path: &PathBuf| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Self { descriptors: roots.iter().map(open).collect(), outside_descriptor: open(&outside), roots, outside }
    }

    /// Opens a folder below a root, without following a link; makes what is missing, with `clears` also in place of a link
    /// or a file: otherwise there would soon be nothing but links.
    fn folder(&self, root: usize, path: &Path, clears: bool) -> Option<OwnedFd> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat2(&self.descriptors[root], path, flags, Mode::empty(), how)
        };
        let mut folder = open(Path::new("")).ok()?;
        let mut reached = PathBuf::new();
        for part in path {
            reached.push(part);
            folder = match open(&reached) {
                Err(Errno::LOOP | Errno::NOTDIR) if clears => {
                    rustix::fs::unlinkat(&folder, part, AtFlags::empty()).ok()?;
                    rustix::fs::mkdirat(&folder, part, Mode::RWXU).ok()?;
                    open(&reached).ok()?
                }
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, part, Mode::RWXU).ok()?;
                    open(&reached).ok()?
                }
                opened => opened.ok()?,
            };
        }
        Some(folder)
    }

    /// Puts something in the place of what is there, or removes it.
    fn swap(&self, rng: &mut StdRng) {
        let root = rng.random_range(0..self.roots.len());
        let Some(folder) = self.folder(root, &path(rng, 2), false) else { return };
        let name = name(rng);
        let aside = format!("aside-{}", rng.random_range(0..8));
        let target = match rng.random_range(0..4) {
            0 => self.outside.clone(),
            1 => self.outside.join("b/c"),
            2 => self.outside.join(NAMES[2]),
            _ => self.roots[0].join(path(rng, 2)),
        };
        // Most fail, as there is nothing or something of another kind; that is as good.
        let swapped: Result<(), Errno> = match rng.random_range(0..10) {
            // What was checked goes on to exist under another name, and a link is in its place in the same moment.
            0..4 => rustix::fs::symlinkat(target, &folder, &*aside)
                .and_then(|()| rustix::fs::renameat_with(&folder, name, &folder, &*aside, RenameFlags::EXCHANGE)),
            4 => rustix::fs::renameat_with(&folder, name, &folder, &*aside, RenameFlags::EXCHANGE),
            5 => rustix::fs::unlinkat(&folder, name, AtFlags::empty()),
            6 => rustix::fs::unlinkat(&folder, &*aside, AtFlags::empty()),
            7 => rustix::fs::mkfifoat(&folder, name, Mode::RWXU),
            8 => rustix::fs::linkat(&self.outside_descriptor, "c", &folder, name, AtFlags::empty()),
            _ => rustix::fs::renameat(&folder, name, &self.descriptors[root], NAMES[rng.random_range(0..NAMES.len())]),
        };
        swapped.ok();
    }

    /// Writes a file of a torrent, in place of what is there.
    fn plant(&self, root: usize, file: &Path, clears: bool) {
        let (parent, name) = (file.parent().unwrap(), file.file_name().unwrap());
        let Some(folder) = self.folder(root, parent, clears) else { return };
        rustix::fs::unlinkat(&folder, name, AtFlags::empty()).ok();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR) {
            rustix::io::write(file, CONTENT).unwrap();
        }
    }

    /// Returns everything outside the roots: kind, time and content.
    fn outside(&self) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.outside.clone()]);
        while let Some(folder) = folders.pop() {
            let itself = folder.metadata().unwrap();
            found.insert(folder.clone(), (itself.mode(), itself.mtime_nsec(), Vec::new()));
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let itself = path.symlink_metadata().unwrap();
                if itself.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.clone(), (itself.mode(), itself.mtime_nsec(), fs::read(path).unwrap()));
                }
            }
        }
        found
    }

    /// Returns a watch on everything outside the roots.
    fn watch(&self) -> OwnedFd {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        for folder in [self.outside.clone(), self.outside.join("a"), self.outside.join("b"), self.outside.join("b/c")] {
            inotify::add_watch(&watch, folder, inotify::WatchFlags::ALL_EVENTS).unwrap();
        }
        watch
    }

    /// Returns a path of a directory as a client or a sender may name it.
    fn directory(&self, rng: &mut StdRng) -> (usize, PathBuf, String) {
        let root = rng.random_range(0..self.roots.len());
        let mounted = (root == 0 && rng.random_bool(0.2)).then_some(MOUNTED);
        let below = mounted.map(PathBuf::from).unwrap_or_default().join(path(rng, 2));
        let text = self.roots[root].join(&below).display().to_string();
        let odd = match rng.random_range(0..12) {
            0 => format!("{}/../outside", self.roots[root].display()),
            1 => format!("/proc/self/root{text}"),
            2 => self.outside.display().to_string(),
            3 => format!("{text}/"),
            4 => format!("{text}/./a/.."),
            _ => text,
        };
        (root, below, odd)
    }
}

fn name(rng: &mut StdRng) -> &'static str {
    NAMES[rng.random_range(0..NAMES.len())]
}

fn path(rng: &mut StdRng, depth: usize) -> PathBuf {
    (0..rng.random_range(0..=depth)).map(|_| name(rng)).collect()
}

/// A torrent with a folder or a file of its own, and where its files are below a directory.
struct Torrent {
    bytes: Vec<u8>,
    name: String,
    is_folder: bool,
    files: Vec<PathBuf>,
}

impl Torrent {
    fn new(rng: &mut StdRng) -> Self {
        let own = name(rng).to_owned();
        if rng.random_bool(0.3) {
            let bytes = MetainfoBuilder::single(own.as_bytes(), 16_384).content(CONTENT).build();
            return Self { bytes, is_folder: false, files: vec![PathBuf::from(&own)], name: own };
        }
        let mut files: Vec<PathBuf> = (0..rng.random_range(1..4)).map(|_| path(rng, 2).join(name(rng))).collect();
        files.sort();
        files.dedup();
        let mut builder = MetainfoBuilder::folder(own.as_bytes(), 16_384);
        for file in &files {
            let parts: Vec<Vec<u8>> = file.iter().map(|part| part.as_encoded_bytes().to_vec()).collect();
            builder = builder.file(parts).content(CONTENT);
        }
        let has_padding = rng.random_bool(0.5);
        if has_padding {
            builder = builder.file([".pad", "777"]).content(&[0; 777]);
        }
        let mut bytes = builder.build();
        // The builder knows no attributes.
        let at = b"d6:lengthi777e";
        if let Some(start) = bytes.windows(at.len()).position(|bytes| bytes == at) {
            bytes = [&bytes[..start], b"d4:attr1:p6:lengthi777e", &bytes[start + at.len()..]].concat();
        }
        Self { bytes, is_folder: true, name: own, files }
    }

    fn content(&self, directory: &str) -> Content {
        let file = |path: &PathBuf| {
            let is_begun = true;
            ContentFile { path: path.clone(), length: CONTENT.len() as u64, is_begun, is_complete: true }
        };
        let directory = PathBuf::from(directory);
        Content {
            directory: if self.is_folder { directory.join(&self.name) } else { directory },
            folder_name: self.is_folder.then(|| self.name.clone().into()),
            files: self.files.iter().map(file).collect(),
        }
    }
}

/// Executes one operation, as the commands do; returns its name.
async fn operate(disk: &Disk, roots: &Roots, rng: &mut StdRng) -> (&'static str, Result<(), CommandError>) {
    let torrent = Torrent::new(rng);
    let (root, below, directory) = disk.directory(rng);
    if rng.random_bool(0.8) {
        let own = if torrent.is_folder { below.join(&torrent.name) } else { below };
        let clears = rng.random_bool(0.3);
        for file in torrent.files.iter().filter(|_| rng.random_bool(0.9)) {
            disk.plant(root, &own.join(file), clears);
        }
    }
    let plan = || FilePlan::new(roots, &torrent.content(&directory));
    match rng.random_range(0..6) {
        0 => ("delete", plan().and_then(|plan| plan.check_removable().and_then(|()| plan.remove().map(drop)))),
        1 | 2 => {
            let to = disk.directory(rng).2;
            let place = if torrent.is_folder { Path::new(&to).join(&torrent.name) } else { PathBuf::from(&to) };
            let (is_repeated, is_undone) = (rng.random_bool(0.2), rng.random_bool(0.3));
            let moving = roots.check_directory(&to).and_then(|()| FileMove::new(plan()?, roots, &place, is_repeated));
            let moved = moving.and_then(|moving| {
                moving.run(&|| true)?;
                if is_undone { moving.undo() } else { moving.check_done() }
            });
            ("move", moved)
        }
        3 => {
            let data_file = Path::new(&directory).join(&torrent.name);
            ("data_file", take_data(roots, &torrent, data_file.to_str().unwrap(), rng.random_bool(0.5)).await)
        }
        4 => {
            let looked = async {
                roots.check_directory(&directory)?;
                match InTheWay::find(roots, &torrent.bytes, &directory).await? {
                    Some(found) => found.check(|_, _| {}).await,
                    None => Ok(()),
                }
            };
            ("add", looked.await)
        }
        _ => {
            let file = Path::new(&directory).join(name(rng));
            let read = roots.find("file", file.to_str().unwrap()).and_then(|place| read_torrent(&place).map(drop));
            ("file", read)
        }
    }
}

async fn take_data(roots: &Roots, torrent: &Torrent, path: &str, is_removed: bool) -> Result<(), CommandError> {
    let place: Place = roots.find("data_file", path)?;
    let metainfo = Metainfo::parse(&torrent.bytes).map_err(|error| bad_request(error.to_string()))?;
    let names = WrittenNames::parse(&torrent.bytes).unwrap();
    let checked = data_check::check(&metainfo, &names, place, |_, _| {}).await?;
    let made = checked.padding.make()?;
    if is_removed {
        made.remove();
    }
    Ok(())
}

/// A folder that is mounted in another place, too, as far as this user may mount.
struct Mounted(PathBuf);

impl Mounted {
    fn bind(what: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").arg("--bind").args([what, at]).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} is still mounted", self.0.display());
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn no_operation_leaves_the_roots_whatever_is_swapped_meanwhile() {
    let (count, seed) = (number("DTORRENT_PATHS", 2_000), number("DTORRENT_PATHS_SEED", rand::random::<u32>().into()));
    println!("DTORRENT_PATHS={count} DTORRENT_PATHS_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().canonicalize().unwrap();
    // On another disk, where there is one, so that files are copied.
    let other = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let there = other.path().canonicalize().unwrap();
    let disk = Disk::new(vec![here.join("root"), there.join("root")], here.join("outside"));
    let _mounted = Mounted::bind(&disk.roots[1], &disk.roots[0].join(MOUNTED));
    let roots = Roots::new(disk.roots.clone());
    let before = disk.outside();
    let (watch, is_over) = (disk.watch(), AtomicBool::new(false));
    let (mut outcomes, mut left) = (BTreeMap::<&str, (u64, u64)>::new(), None);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(seed ^ 1);
            while !is_over.load(Ordering::Relaxed) {
                disk.swap(&mut rng);
                std::thread::sleep(Duration::from_micros(rng.random_range(0..300)));
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        // The other thread has to be told before this one panics.
        left = (0..count).find_map(|operation| {
            let (what, outcome) = runtime.block_on(operate(&disk, &roots, &mut rng));
            let (done, refused) = outcomes.entry(what).or_default();
            *(if outcome.is_ok() { done } else { refused }) += 1;
            seen(&watch).map(|event| format!("operation {operation}, {what}: {event}, {outcome:?}"))
        });
        is_over.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
    });
    println!("done and refused: {outcomes:?}");
    assert_eq!(left.or_else(|| seen(&watch)), None);
    assert!(disk.outside() == before, "something outside was changed");
    assert!(outcomes.len() == 5 && outcomes.values().all(|(done, refused)| *done > 0 && *refused > 0), "{outcomes:?}");
}

/// Returns what was done outside the roots: the mask of the event, and the name.
fn seen(watch: &OwnedFd) -> Option<String> {
    let mut bytes = [0; 4096];
    match rustix::io::read(watch, &mut bytes) {
        Err(Errno::AGAIN) => None,
        read => {
            let length = read.unwrap();
            let mask = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
            Some(format!("{mask:#x} {:?}", String::from_utf8_lossy(&bytes[16..length])))
        }
    }
}
