//! Torrents to add: read, fetched or parsed, until their bytes, info-hash and directory are known.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tracing::info;

use super::beneath::{Place, PlaceError};
use super::common::blocking;
use super::data_check::{self, Checked};
use super::errors::{bad_request, precondition};
use super::fetch::{Fetched, Fetcher, too_large};
use super::padding::Padding;
use super::roots::Roots;
use crate::model::{
    Add, AddRequest, AddSource, CommandError, Content, ContentFile, ErrorCode, InvalidMetainfo, Magnet, Metainfo,
    TorrentSource, UrlRules, WrittenNames, with_resume_data, without_resume_data,
};
use crate::port::BODY_BYTES_MAX;

/// Resolves the add requests of one server.
pub struct Sources {
    pub(super) roots: Roots,
    fetcher: Fetcher,
}

impl Sources {
    /// Returns the resolver of a server; only below `roots` are files read and torrents put, and links lead where `urls`
    /// permits it.
    pub fn new(roots: Vec<PathBuf>, urls: UrlRules) -> Self {
        Self { roots: Roots::new(roots), fetcher: Fetcher::new(urls) }
    }

    /// Resolves a request into what a client can be asked for, and the padding that it needs on disk. `progress` is called
    /// with the bytes of data that were checked, and all bytes.
    pub(super) async fn resolve(
        &self,
        request: &AddRequest,
        progress: impl FnMut(u64, u64),
    ) -> Result<(Add, Padding), CommandError> {
        let AddRequest { source, start, label, directory, priority, custom, data_file } = request;
        if let Some(directory) = directory {
            self.roots.check_directory(directory)?;
        }
        let add = |hash, source, directory, checked| Add {
            hash,
            source,
            start: *start,
            label: label.clone(),
            directory,
            priority: *priority,
            custom: custom.clone(),
            checked,
        };
        let fetched = match source {
            TorrentSource::Magnet(link) => Fetched::Magnet(link.clone()),
            TorrentSource::Torrent(bytes) => Fetched::File(bytes.clone()),
            TorrentSource::Url(url) => self.fetcher.fetch(url).await?,
            TorrentSource::File(path) => Fetched::File(self.read_file(path).await?),
        };
        let torrent = match fetched {
            Fetched::Magnet(_) if data_file.is_some() => {
                return Err(bad_request("data_file needs the torrent itself, and the link leads to a magnet link"));
            }
            Fetched::Magnet(link) => {
                let magnet = Magnet::parse(&link).map_err(|error| bad_request(error.to_string()))?;
                let source = AddSource::Magnet(magnet.to_link());
                return Ok((add(magnet.client_hash(), source, directory.clone(), None), Padding::default()));
            }
            Fetched::File(bytes) => bytes,
        };
        let metainfo = Metainfo::parse(&torrent).map_err(no_torrent)?;
        let hash = metainfo.client_hash();
        let Some(data_file) = data_file else {
            // Resume data of the sender would make the client believe in content that was not verified here.
            let torrent = without_resume_data(&torrent).map_err(no_torrent)?;
            let add = add(hash, AddSource::Torrent(torrent.into()), directory.clone(), None);
            return Ok((add, Padding::default()));
        };
        let (torrent, parent, content, padding) = self.check_data(&torrent, &metainfo, data_file, progress).await?;
        if directory.as_ref().is_some_and(|directory| Path::new(directory) != Path::new(&parent)) {
            return Err(bad_request(format!("data_file is in {parent}, so that is its directory")));
        }
        Ok((add(hash, AddSource::Torrent(torrent), Some(parent), Some(content)), padding))
    }

    async fn read_file(&self, path: &str) -> Result<Bytes, CommandError> {
        let (roots, path) = (self.roots.clone(), path.to_owned());
        blocking(move || read_torrent(&roots.find("file", &path)?)).await?
    }

    /// Verifies data that is there already, and adds resume data that says so.
    async fn check_data(
        &self,
        torrent: &Bytes,
        metainfo: &Metainfo,
        data_file: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<(Bytes, String, Content, Padding), CommandError> {
        if metainfo.v1.is_none() {
            info!(name = metainfo.name, "torrent of version 2 only, the client may refuse it");
        }
        // The client gets the directory as the sender wrote it: if the root is a link, it may lead elsewhere there.
        let place = self.roots.find("data_file", data_file)?;
        let directory = Path::new(data_file).parent().and_then(Path::to_str).map(str::to_owned);
        let names = WrittenNames::parse(torrent).ok_or_else(|| bad_request("invalid torrent file: no names"))?;
        // Which of its names the client takes is only known when it has loaded the torrent.
        let name = place.name.clone();
        let name = Some(name).filter(|name| names.names.iter().any(|known| known == name.as_bytes()));
        let (Some(directory), Some(name)) = (directory, name) else {
            let message =
                format!("data_file: the torrent calls it {:?}, so its path has to end in that", metainfo.name);
            return Err(precondition(message));
        };
        let Checked { paths, stamps, padding } = data_check::check(metainfo, &names, place, progress).await?;
        // 20 bytes of SHA-1 each.
        let pieces = metainfo.pieces.len() as u64 / 20;
        let torrent = with_resume_data(torrent, pieces, &stamps).map_err(no_torrent)?;
        let lengths = metainfo.files.iter().map(|file| file.length);
        let is_complete = true;
        let file = |(path, length)| ContentFile { path, length, is_begun: length > 0, is_complete };
        let content = Content {
            directory: if metainfo.is_folder { Path::new(&directory).join(&name) } else { PathBuf::from(&directory) },
            folder_name: metainfo.is_folder.then_some(name),
            files: paths.into_iter().zip(lengths).map(file).collect(),
        };
        Ok((torrent.into(), directory, content, padding))
    }
}

/// Reads a .torrent file on this machine.
pub(super) fn read_torrent(place: &Place) -> Result<Bytes, CommandError> {
    let unreadable = |error: PlaceError| match error {
        PlaceError::Link(_) => error.into(),
        error => bad_request(format!("file: {error}")),
    };
    let (file, found) = place.folder.open_file(&place.name, None).map_err(unreadable)?;
    // Before it is read: a path may name anything, also what fills the memory.
    if found.bytes > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let read = file.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| bad_request(format!("file: {}: {error}", place.path().display())))?;
    // It may have grown since.
    if bytes.len() > BODY_BYTES_MAX { Err(too_large()) } else { Ok(bytes.into()) }
}

fn no_torrent(error: InvalidMetainfo) -> CommandError {
    let code = match error {
        InvalidMetainfo::Outside { .. } => ErrorCode::Forbidden,
        _ => ErrorCode::BadRequest,
    };
    CommandError::new(code, error.to_string())
}
