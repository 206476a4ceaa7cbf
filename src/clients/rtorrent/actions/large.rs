//! Torrent files that are too large for one request.
//!
//! rTorrent fetches such a file from this program. Where it cannot, because it is in a network of its own, it reads the
//! file from its default directory, if this program sees that under the same path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt as _;

use super::super::calls::Call;
use super::super::file_server::TorrentFileServer;
use super::super::probe::Probe;
use super::add::{LOAD_TIMEOUT, names_tracker};
use super::single::SingleAction;
use crate::model::printable;
use crate::port::ClientError;

/// Maximum time for rTorrent to begin to fetch: it does so at once, unless it is busy.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for a torrent file that rTorrent fetches to appear.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// A file that exists as long as this does.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    async fn new(folder: &Path, content: &Bytes) -> std::io::Result<Self> {
        let path = folder.join(format!(".dtorrent-{:032x}.torrent", rand::random::<u128>()));
        // Only a file that was made here is written, and removed later.
        let mut opened = OpenOptions::new().write(true).create_new(true).open(&path).await?;
        let file = Self(path);
        opened.write_all(content).await?;
        opened.flush().await?;
        Ok(file)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "a temporary file was not removed");
        }
    }
}

impl SingleAction<'_> {
    /// Loads a torrent file in another way than with a request.
    pub(super) async fn load_large(&self, probe: &Probe, file: &Bytes) -> Result<(), ClientError> {
        let server = TorrentFileServer::new(&self.client.settings.endpoint, file.clone()).await?;
        if self.load_by_fetch(&server).await? {
            return Ok(());
        }
        let address = server.address();
        drop(server);
        let what = match self.load_from_disk(probe, file).await? {
            Ok(()) => return Ok(()),
            Err(reason) => format!(
                "take a torrent as large as this: it did not fetch it from {address} (a network of its own, such as a \
                 container's, does not reach that), and {reason}"
            ),
        };
        Err(ClientError::Unsupported { what })
    }

    /// Has rTorrent fetch the file; `false` if it does not come for it.
    async fn load_by_fetch(&self, server: &TorrentFileServer) -> Result<bool, ClientError> {
        let load = [Call::global("load.normal").text(server.url())];
        let load_and_wait = async {
            self.client.access().await.call_torrent(self.hash, &load).await?;
            if !server.was_asked(REACH_TIMEOUT).await {
                return Ok(false);
            }
            let sent = format!("{} bytes, which it fetched from {},", server.bytes(), server.address());
            self.wait_until_loaded(FETCH_TIMEOUT, &sent, true).await.map(|()| true)
        };
        tokio::select! {
            loaded = load_and_wait => loaded,
            () = server.serve() => Err(ClientError::Fault { message: "rTorrent could not be served".to_owned() }),
        }
    }

    /// Has rTorrent read the file from its default directory, or returns why it cannot.
    async fn load_from_disk(&self, probe: &Probe, content: &Bytes) -> Result<Result<(), String>, ClientError> {
        let folder = Path::new(&probe.default_directory);
        let shown = printable(probe.default_directory.as_bytes());
        // rTorrent expands wildcards in the path.
        if !folder.is_absolute() || probe.default_directory.contains(['*', '?', '[', ']', '\\', '~']) {
            return Ok(Err(format!("its default directory {shown:?} cannot be used to hand it over")));
        }
        let file = match TemporaryFile::new(folder, content).await {
            Ok(file) => file,
            Err(error) => return Ok(Err(format!("its default directory {shown} cannot be written here: {error}"))),
        };
        let load = Call::global("load.normal").text(file.0.to_string_lossy());
        self.client.access().await.call_torrent(self.hash, &[load]).await?;
        match self.wait_until_loaded(LOAD_TIMEOUT, &format!("a file in {shown}"), names_tracker(content)).await {
            Ok(()) => {}
            Err(ClientError::Fault { .. }) => return Ok(Err(format!("did not load it from {shown}"))),
            Err(error) => return Err(error),
        }
        // Or a schedule of its user's (`stop_untied`, `remove_untied`) would act when the file is gone.
        let untie = self.call("d.tied_to_file.set").text("");
        self.client.access().await.call_torrent(self.hash, &[untie]).await?;
        Ok(Ok(()))
    }
}
