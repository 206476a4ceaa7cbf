//! The content of a torrent, byte for byte.
//!
//! rTorrent reports paths as text, in which bytes may have been replaced ([`crate::model::Content`]). Where a text
//! could stand for several paths, the torrent itself tells: rTorrent keeps a copy in its session, with the directory
//! in a second file. Both are used only if they fit what rTorrent reports.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::actions::SAVE_DELAY;
use super::calls::{Call, Value};
use super::details::{FILE_COLUMNS, file};
use super::{Access, RtorrentClient};
use crate::model::{Content, ContentFile, File, InfoHash, WrittenNames, is_ambiguous, stands_for, text_at};
use crate::port::ClientError;

/// Largest file that is read from the session: far more than a .torrent file that rTorrent can be sent.
const SESSION_FILE_BYTES_MAX: u64 = 64 << 20;

/// The content of one torrent as rTorrent reports it.
struct Reported {
    is_folder: bool,
    name: String,
    directory: String,
    files: Vec<File>,
}

/// Returns where the content of a torrent is; `None` if rTorrent does not have the torrent.
pub(super) async fn read(client: &RtorrentClient, hash: InfoHash) -> Result<Option<Content>, ClientError> {
    // rTorrent knows torrents by their version 1 hash alone.
    if matches!(hash, InfoHash::V2(_)) {
        return Ok(None);
    }
    let access = client.access().await;
    let Some(reported) = Reported::read(&access, hash).await? else { return Ok(None) };
    if !reported.is_ambiguous() {
        return Ok(Some(reported.as_spelled()));
    }
    // The state with the directory is only written now and then.
    let calls = [Call::on(hash, "d.save_full_session"), Call::global("system.cwd"), Call::global("session.path")];
    let values = access.call_torrent(hash, &calls).await?;
    let is_legacy = access.probe().await?.is_legacy;
    drop(access);
    if !is_legacy {
        tokio::time::sleep(SAVE_DELAY).await;
    }
    let text = |place: usize| values.get(place).and_then(Value::to_text).unwrap_or_default();
    // Relative to the folder that rTorrent was started in, if it is relative.
    let session = Path::new(&text(1)).join(text(2));
    let copy = session.join(format!("{}.torrent", hash.to_string().to_uppercase()));
    let (torrent, state) =
        (read_session_file(&copy).await?, read_session_file(&copy.with_extension("torrent.rtorrent")).await?);
    let names = WrittenNames::parse(&torrent).filter(|names| names.hash == hash);
    let content = names.and_then(|names| reported.resolve(&names, text_at(&state, b"directory")?));
    let differs = || {
        let session = session.display();
        let reason = format!(
            "rTorrent does not report its paths exactly ({:?}), and its copy of the torrent in {session} does not fit \
             them: is that the session of this rTorrent?",
            reported.directory
        );
        ClientError::Precondition { reason }
    };
    content.map(Some).ok_or_else(differs)
}

/// Returns the directory to which rTorrent adds torrents, if its text has one meaning.
pub(super) async fn default_directory(client: &RtorrentClient) -> Result<Option<String>, ClientError> {
    // Each time, because it may be set while rTorrent runs.
    let calls = [Call::global("directory.default"), Call::global("system.cwd")];
    let values = client.access().await.call(&calls).await?;
    let text = |place: usize| values.get(place).and_then(|value| value.as_ref().ok()?.to_text()).unwrap_or_default();
    // Relative to the folder that rTorrent was started in, if it is relative.
    let directory: PathBuf = Path::new(&text(1)).join(text(0)).components().collect();
    let directory = directory.into_os_string().into_string().unwrap_or_default();
    let is_exact = directory.starts_with('/') && !directory.contains('~') && !is_ambiguous(&directory);
    Ok(is_exact.then_some(directory))
}

/// Returns where rTorrent looks for the content of a torrent, if it is not where it is expected.
///
/// Texts that may stand for the expected paths are taken as such: nothing is deleted or moved by the answer.
pub(super) async fn other_place(
    access: &Access<'_>,
    hash: InfoHash,
    expected: &Content,
) -> Result<Option<PathBuf>, ClientError> {
    let reported = Reported::read(access, hash).await?.ok_or(ClientError::UnknownHash(hash))?;
    let is_meant = |text: &str, path: &Path| stands_for(text, path.as_os_str().as_bytes());
    if !is_meant(&reported.directory, &expected.directory) {
        return Ok(Some(PathBuf::from(reported.directory)));
    }
    let Content { files, .. } = reported.as_spelled();
    let texts = files.iter().map(|file| file.path.to_str().unwrap_or_default());
    let expected_paths = expected.files.iter().map(|file| file.path.as_path());
    let differing = texts.zip(expected_paths).find(|(text, path)| !is_meant(text, path));
    Ok(differing.map(|(text, _)| expected.directory.join(text)))
}

async fn read_session_file(path: &Path) -> Result<Vec<u8>, ClientError> {
    let unreadable = |error: io::Error| {
        let reason = format!(
            "rTorrent does not report its paths exactly, and {} cannot be read, which has them ({error}); let the \
             bridge read the session folder of rTorrent under the same path, or change the files by hand",
            path.display()
        );
        ClientError::Precondition { reason }
    };
    let found = tokio::fs::metadata(path).await.map_err(unreadable)?;
    if !found.is_file() || found.len() > SESSION_FILE_BYTES_MAX {
        return Err(unreadable(io::ErrorKind::InvalidData.into()));
    }
    tokio::fs::read(path).await.map_err(unreadable)
}

impl Reported {
    async fn read(access: &Access<'_>, hash: InfoHash) -> Result<Option<Self>, ClientError> {
        let files = FILE_COLUMNS.iter().fold(Call::on(hash, "f.multicall").text(""), |call, column| call.text(*column));
        let calls = [
            Call::column(hash, "d.is_multi_file", None),
            Call::column(hash, "d.name", None),
            Call::column(hash, "d.directory", None),
            files,
        ];
        let values = match access.call_torrent(hash, &calls).await {
            Ok(values) => values,
            Err(ClientError::UnknownHash(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = || ClientError::Protocol { reason: "the paths of the torrent are not there".to_owned() };
        let [is_folder, name, directory, files] = values.as_slice() else { return Err(unreadable()) };
        let text = |value: &Value| value.to_text().ok_or_else(unreadable);
        Ok(Some(Self {
            is_folder: is_folder.int().ok_or_else(unreadable)? != 0,
            name: text(name)?,
            directory: text(directory)?,
            // A row that cannot be read must not be left out: the others would be taken for all of the content.
            files: files.array().iter().map(file).collect::<Option<_>>().ok_or_else(unreadable)?,
        }))
    }

    fn is_ambiguous(&self) -> bool {
        let texts = [&self.name, &self.directory].into_iter().chain(self.files.iter().map(|file| &file.path));
        texts.into_iter().any(|text| is_ambiguous(text))
    }

    fn as_spelled(&self) -> Content {
        self.content(
            self.directory.as_bytes().to_vec(),
            self.name.as_bytes().to_vec(),
            self.files.iter().map(|file| file.path.as_bytes().to_vec()),
        )
    }

    /// Returns the content with the paths that the texts stand for; `None` if one of them stands for none or several.
    fn resolve(&self, names: &WrittenNames, directory: &[u8]) -> Option<Content> {
        let name = only(&self.name, &names.names)?;
        let files: Vec<Vec<u8>> = match &names.files {
            Some(files) if files.len() == self.files.len() => {
                let pairs = self.files.iter().zip(files);
                pairs.map(|(file, paths)| only(&file.path, paths)).collect::<Option<_>>()?
            }
            None if self.files.len() == 1 => vec![name.clone()],
            _ => return None,
        };
        let directory = stands_for(&self.directory, directory).then(|| directory.to_vec())?;
        Some(self.content(directory, name, files))
    }

    fn content(&self, directory: Vec<u8>, name: Vec<u8>, paths: impl IntoIterator<Item = Vec<u8>>) -> Content {
        let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
        // A path that begins with an empty name begins with a slash, and is no absolute one.
        let relative = |bytes: Vec<u8>| path(bytes.into_iter().skip_while(|byte| *byte == b'/').collect());
        Content {
            directory: path(directory),
            folder_name: self.is_folder.then(|| OsString::from_vec(name)),
            files: paths
                .into_iter()
                .zip(&self.files)
                .map(|(bytes, file)| ContentFile::new(relative(bytes), file))
                .collect(),
        }
    }
}

/// Returns the one of several names that a text stands for.
fn only(text: &str, names: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut meant = names.iter().filter(|name| stands_for(text, name));
    let first = meant.next()?;
    // The same name in two encodings is still one.
    meant.all(|name| name == first).then(|| first.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(directory: &str, path: &str) -> Reported {
        let file = File { name: String::new(), path: path.to_owned(), length: 10, progress: 100.0, priority: Some(1) };
        Reported { is_folder: true, name: "????".to_owned(), directory: directory.to_owned(), files: vec![file] }
    }

    fn names(path: &[&str]) -> WrittenNames {
        let paths = path.iter().map(|path| path.as_bytes().to_vec()).collect();
        WrittenNames { hash: InfoHash::V1([1; 20]), names: vec!["🎉".into()], files: Some(vec![paths]) }
    }

    #[test]
    fn texts_become_the_paths_that_they_stand_for() {
        let content = reported("/d/????", "????/a").resolve(&names(&["🎬/a", "x/a"]), "/d/🎉".as_bytes()).unwrap();
        assert_eq!((content.directory, content.folder_name), ("/d/🎉".into(), Some("🎉".into())));
        assert_eq!(content.files[0].path, Path::new("🎬/a"));
    }

    #[test]
    fn a_text_that_stands_for_none_or_several_is_refused() {
        for (reported, path, directory) in [
            // The session is of another time, or of another rTorrent.
            (reported("/e/????", "a"), &["a"][..], "/d/🎉"),
            (reported("/d/????", "b"), &["a"], "/d/🎉"),
            // Two encodings that rTorrent writes alike.
            (reported("/d/????", "????"), &["🎬", "🎉"], "/d/🎉"),
        ] {
            assert_eq!(reported.resolve(&names(path), directory.as_bytes()), None);
        }
    }
}
