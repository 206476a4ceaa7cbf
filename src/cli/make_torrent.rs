//! `dtorrent make-torrent`: creates a .torrent file from local content.
//!
//! Version 1, which every client can load. Files are in the order of their names, so that the same content makes the same
//! torrent wherever it is. Links are followed to files, not to folders.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rustix::fs::Access;
use url::Url;

use super::terminal::server::bytes_bar;
use super::terminal::{human, print_bytes};
use super::{CommandResult, failed, print_message};
use crate::model::{Metainfo, MetainfoBuilder};

/// Number of pieces to aim at: with fewer, a bad one costs more data; with more, the .torrent file grows.
const PIECES_WANTED: u64 = 1500;
const PIECE_MIN: u64 = 16 << 10;
const PIECE_MAX: u64 = 16 << 20;
/// Maximum number of files in a torrent.
const FILES_MAX: usize = 100_000;
/// Maximum size of a .torrent file that other programs accept.
const TORRENT_BYTES_MAX: usize = 10 << 20;

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The content: a file or a folder
    path: PathBuf,
    /// Write the torrent to this file, or to stdout with - [default: the name of PATH with .torrent, in this folder]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add a tracker; may be repeated, each in a tier of its own
    #[arg(long, short, value_name = "URL", value_parser = tracker)]
    tracker: Vec<String>,
    /// Mark the torrent as private: peers only from its trackers
    #[arg(long)]
    private: bool,
    /// Set the length of a piece in KiB, a power of two from 16 to 16384 [default: by the size of the content]
    #[arg(long, value_name = "KIB", value_parser = piece_length)]
    piece_length: Option<u64>,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> CommandResult {
    let Made { summary, for_stdout } = make(arguments).map_err(failed)?;
    let printed = for_stdout.map_or(Ok(()), |torrent| print_bytes(&torrent));
    print_message(&summary);
    printed
}

fn tracker(text: &str) -> Result<String, String> {
    let parsed = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https" | "udp"));
    parsed.map(|_| text.to_owned()).ok_or_else(|| "expected a URL with http, https or udp".to_owned())
}

fn piece_length(text: &str) -> Result<u64, String> {
    let kib = text.parse::<u64>().ok().filter(|kib| kib.is_power_of_two());
    let kib = kib.filter(|kib| (PIECE_MIN..=PIECE_MAX).contains(&kib.saturating_mul(1024)));
    kib.ok_or_else(|| "expected a power of two from 16 to 16384".to_owned())
}

struct Source {
    /// The path inside the torrent; of a single file, its name.
    path: Vec<Vec<u8>>,
    file: PathBuf,
    length: u64,
    identity: Identity,
}

/// Device and inode of a file, the same by each of its names.
type Identity = (u64, u64);

fn identity(found: &fs::Metadata) -> Identity {
    (found.dev(), found.ino())
}

struct Made {
    summary: String,
    /// The torrent, if it was not written to a file.
    for_stdout: Option<Vec<u8>>,
}

fn make(arguments: &Arguments) -> anyhow::Result<Made> {
    let Arguments { path, output, tracker, private, piece_length, force } = arguments;
    // `.` and `..` have no file name of their own.
    let whole = path.canonicalize().with_context(|| format!("read {}", path.display()))?;
    let name = whole.file_name().context("the root of the file system has no name")?;
    let is_folder = whole.is_dir();
    let output = output.clone().unwrap_or_else(|| {
        let mut file = name.to_owned();
        file.push(".torrent");
        PathBuf::from(file)
    });
    let is_stdout = output.as_os_str() == "-";
    ensure!(
        // Not `exists`: a dangling link counts as a file, because writing would create its target.
        is_stdout || *force || output.symlink_metadata().is_err(),
        "{} exists; --force overwrites it",
        output.display()
    );

    // The place of the file is checked before anything is hashed, which may take hours.
    let own_output = if is_stdout { None } else { check_output(&output)? };
    let mut sources = Vec::new();
    if is_folder {
        collect(&whole, &mut Vec::new(), &mut sources)?;
        // A run before this one may have put it into the folder.
        sources.retain(|source| own_output.is_none_or(|own| source.identity != own));
    } else {
        let found = whole.metadata().context("read the size of the file")?;
        let (identity, length) = (identity(&found), found.len());
        ensure!(own_output != Some(identity), "{} is the content itself; choose another --output", output.display());
        sources.push(Source { path: vec![name.as_bytes().to_vec()], file: whole.clone(), length, identity });
    }
    let total: u64 = sources.iter().map(|source| source.length).sum();
    // Without content there would be no piece to share.
    ensure!(total > 0, "{} is empty", path.display());
    let piece_bytes = piece_length.map_or_else(|| default_piece_bytes(total), |kib| kib * 1024);
    let piece_bytes = u32::try_from(piece_bytes).context("a piece is too long")?;
    let mut builder = if is_folder {
        MetainfoBuilder::folder(name.as_bytes(), piece_bytes)
    } else {
        MetainfoBuilder::single(name.as_bytes(), piece_bytes)
    };
    if *private {
        builder = builder.private();
    }
    builder = tracker.iter().fold(builder, |builder, url| builder.tracker(url.as_str()));
    let bar = bytes_bar("reading", total);
    for source in &sources {
        if is_folder {
            builder = builder.file(source.path.iter().cloned());
        }
        builder = add_content(builder, source, &bar)?;
    }
    bar.finish_and_clear();
    let torrent = builder.build();
    ensure!(
        torrent.len() <= TORRENT_BYTES_MAX,
        "the torrent has {} bytes, more than other programs accept; choose longer pieces",
        torrent.len()
    );
    // The parser that `add` uses has to accept the result.
    let metainfo = Metainfo::parse(&torrent).context("check the torrent")?;
    if !is_stdout {
        fs::write(&output, &torrent).with_context(|| format!("write {}", output.display()))?;
    }
    let (hash, pieces) = (metainfo.client_hash(), metainfo.pieces.len() / 20);
    let output = output.display();
    let files = human::count(sources.len() as u64, "file");
    let summary = format!("{output}: {hash}, {files}, {total} bytes in {pieces} pieces of {piece_bytes}");
    Ok(Made { summary, for_stdout: is_stdout.then_some(torrent) })
}

/// Checks that the file can be written; returns which one it is, if there is one.
///
/// # Errors
/// The path is a folder, the file cannot be written, or its own folder does not exist or cannot be written.
fn check_output(output: &Path) -> anyhow::Result<Option<Identity>> {
    let is_folder = output.is_dir() || output.as_os_str().as_bytes().ends_with(b"/");
    ensure!(!is_folder, "{} is a folder; name a file in it", output.display());
    output.file_name().with_context(|| format!("{} names no file", output.display()))?;
    // By way of a link, it is what the link leads to that is written.
    if let Ok(found) = output.metadata() {
        rustix::fs::access(output, Access::WRITE_OK).with_context(|| format!("write {}", output.display()))?;
        return Ok(Some(identity(&found)));
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::access(folder, Access::EXEC_OK | Access::WRITE_OK)
        .with_context(|| format!("write {}: its folder {} cannot be used", output.display(), folder.display()))?;
    Ok(None)
}

/// Collects the files below a folder, in the order of their names.
fn collect(folder: &Path, path: &mut Vec<Vec<u8>>, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    let read = || format!("read {}", folder.display());
    let mut names: Vec<_> = Vec::new();
    for entry in fs::read_dir(folder).with_context(read)? {
        names.push(entry.with_context(read)?.file_name());
    }
    names.sort();
    for name in names {
        let file = folder.join(&name);
        // A link to a folder may lead in a circle: it is not followed here, and is no regular file below.
        let found = file.symlink_metadata().with_context(|| format!("read {}", file.display()))?;
        path.push(name.as_bytes().to_vec());
        if found.is_dir() {
            ensure!(path.len() < 64, "{}: folders are nested too deeply", file.display());
            collect(&file, path, sources)?;
        } else {
            let target = file.metadata().with_context(|| format!("read {}", file.display()))?;
            ensure!(target.is_file(), "{} is not a regular file", file.display());
            ensure!(sources.len() < FILES_MAX, "more than {FILES_MAX} files");
            let (length, identity) = (target.len(), identity(&target));
            sources.push(Source { path: path.clone(), file, length, identity });
        }
        path.pop();
    }
    Ok(())
}

fn add_content(mut builder: MetainfoBuilder, source: &Source, bar: &ProgressBar) -> anyhow::Result<MetainfoBuilder> {
    let read = || format!("read {}", source.file.display());
    let mut file = fs::File::open(&source.file).with_context(read)?;
    let mut buffer = vec![0; 1 << 20];
    let mut read_bytes = 0;
    loop {
        let length = file.read(&mut buffer).with_context(read)?;
        if length == 0 {
            break;
        }
        read_bytes += length as u64;
        bar.inc(length as u64);
        builder = builder.content(&buffer[..length]);
    }
    // The length is already in the torrent, and pieces run across files.
    ensure!(read_bytes == source.length, "{} changed while it was read", source.file.display());
    Ok(builder)
}

fn default_piece_bytes(total: u64) -> u64 {
    (total / PIECES_WANTED).max(1).next_power_of_two().clamp(PIECE_MIN, PIECE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_piece_length_makes_about_fifteen_hundred_pieces() {
        for (total, expected) in [(1, PIECE_MIN), (100 << 20, 128 << 10), (4 << 30, 4 << 20), (1 << 50, PIECE_MAX)] {
            assert_eq!(default_piece_bytes(total), expected, "{total}");
        }
    }

    #[test]
    fn a_folder_becomes_a_torrent_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("my folder");
        fs::create_dir_all(content.join("sub")).unwrap();
        for (name, bytes) in [("b", "1234"), ("a", "56"), ("sub/c", "7")] {
            fs::write(content.join(name), bytes).unwrap();
        }
        let output = folder.path().join("x.torrent");
        let arguments = Arguments {
            path: content.clone(),
            output: Some(output.clone()),
            tracker: vec!["http://one.example/announce".into(), "udp://two.example:1".into()],
            private: true,
            piece_length: Some(32),
            force: false,
        };
        make(&arguments).unwrap();
        let metainfo = Metainfo::parse(&fs::read(&output).unwrap()).unwrap();
        let paths: Vec<String> =
            metainfo.files.iter().map(|file| String::from_utf8(file.path.join(&b'/')).unwrap()).collect();
        assert_eq!(paths, ["a", "b", "sub/c"]);
        assert_eq!((metainfo.name.as_str(), metainfo.piece_length, metainfo.length), ("my folder", 32 << 10, 7));
        assert_eq!((metainfo.private, metainfo.tracker.as_deref()), (true, Some("one.example")));
        assert!(make(&arguments).err().unwrap().to_string().contains("--force"));
        // The torrent of an earlier run is in the folder, and not in the torrent.
        let inside = Arguments { output: Some(content.join("sub/../x.torrent")), force: true, ..arguments.clone() };
        for _ in 0..2 {
            make(&inside).unwrap();
            assert_eq!(fs::read(content.join("x.torrent")).unwrap(), fs::read(&output).unwrap());
        }
        // Also by another name of the same file.
        let (link, hard) = (folder.path().join("link"), folder.path().join("hard"));
        std::os::unix::fs::symlink(content.join("x.torrent"), &link).unwrap();
        fs::hard_link(content.join("x.torrent"), &hard).unwrap();
        for other_name in [link, hard] {
            make(&Arguments { output: Some(other_name.clone()), ..inside.clone() }).unwrap();
            assert_eq!(fs::read(&other_name).unwrap(), fs::read(&output).unwrap(), "{other_name:?}");
        }
        let alone = Arguments { path: content.join("a"), output: Some(content.join("a")), ..inside };
        assert!(make(&alone).err().unwrap().to_string().contains("the content itself"));
        for wrong in [
            Arguments { path: folder.path().join("none"), force: true, ..arguments.clone() },
            Arguments { output: Some(folder.path().join("none/x.torrent")), ..arguments.clone() },
            Arguments { output: Some(folder.path().to_owned()), force: true, ..arguments.clone() },
            Arguments { output: Some(folder.path().join("new/")), ..arguments.clone() },
        ] {
            assert!(make(&wrong).is_err(), "{wrong:?}");
        }
        for (text, is_right) in
            [("16", true), ("16384", true), ("8", false), ("33", false), ("32768", false), ("", false)]
        {
            assert_eq!(piece_length(text).is_ok(), is_right, "{text}");
        }
        assert!(piece_length(&(1u64 << 63).to_string()).is_err() && tracker("ftp://x").is_err());
    }
}
