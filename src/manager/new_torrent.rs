//! A torrent to add.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// A torrent to add: where it is, and how it is set up. It starts unless [`NewTorrent::stopped`] is called.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTorrent(Map<String, Value>);

impl NewTorrent {
    /// From a magnet link, `magnet:?xt=…`.
    pub fn magnet(link: impl Into<String>) -> Self {
        Self::from("magnet", json!(link.into()))
    }

    /// From the http(s) URL of a .torrent file, which this process fetches.
    pub fn url(url: impl Into<String>) -> Self {
        Self::from("url", json!(url.into()))
    }

    /// From the bytes of a .torrent file.
    pub fn torrent(bytes: impl AsRef<[u8]>) -> Self {
        Self::from("torrent", json!(BASE64.encode(bytes)))
    }

    /// From the path of a .torrent file on this machine, below the server's `roots`.
    pub fn file(path: impl Into<String>) -> Self {
        Self::from("file", json!(path.into()))
    }

    fn from(key: &str, value: Value) -> Self {
        Self(Map::from_iter([(key.to_owned(), value)]))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    /// Loads it without starting it.
    pub fn stopped(self) -> Self {
        self.with("start", json!(false))
    }

    /// Sets its label: at most 255 bytes, no control characters.
    pub fn label(self, label: impl Into<String>) -> Self {
        self.with("label", json!(label.into()))
    }

    /// Sets the directory of its data, below the server's `roots`.
    pub fn directory(self, directory: impl Into<String>) -> Self {
        self.with("directory", json!(directory.into()))
    }

    /// Sets its priority: 0 off, 1 low, 2 normal, 3 high.
    pub fn priority(self, priority: u8) -> Self {
        self.with("priority", json!(priority))
    }

    /// Uses data that is there already, below the server's `roots`: every piece is verified before anything is loaded.
    pub fn data_file(self, path: impl Into<String>) -> Self {
        self.with("data_file", json!(path.into()))
    }

    pub(super) fn into_body(self) -> Map<String, Value> {
        self.0
    }
}
