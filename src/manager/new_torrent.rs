//! A torrent to add.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// A torrent to add: where it is, and how it is set up. It starts unless [`NewTorrent::stopped`] is called.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTorrent(Value);

impl NewTorrent {
    /// From a magnet link, `magnet:?xt=…`.
    pub fn magnet(link: impl Into<String>) -> Self {
        Self(json!({"magnet": link.into()}))
    }

    /// From the http(s) URL of a .torrent file, which this process fetches.
    pub fn url(url: impl Into<String>) -> Self {
        Self(json!({"url": url.into()}))
    }

    /// From the bytes of a .torrent file.
    pub fn torrent(bytes: impl AsRef<[u8]>) -> Self {
        Self(json!({"torrent": BASE64.encode(bytes)}))
    }

    /// From the path of a .torrent file on this machine, below the server's `roots`.
    pub fn file(path: impl Into<String>) -> Self {
        Self(json!({"file": path.into()}))
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0[key] = value.into();
        self
    }

    /// Loads it without starting it.
    pub fn stopped(self) -> Self {
        self.with("start", false)
    }

    /// Sets its label: at most 255 bytes, no control characters.
    pub fn label(self, label: impl Into<String>) -> Self {
        self.with("label", label.into())
    }

    /// Sets the directory of its data, below the server's `roots`.
    pub fn directory(self, directory: impl Into<String>) -> Self {
        self.with("directory", directory.into())
    }

    /// Sets its priority: 0 off, 1 low, 2 normal, 3 high.
    pub fn priority(self, priority: u8) -> Self {
        self.with("priority", priority)
    }

    /// Has the client keep a text with it, besides those of other keys. A key has at most 64 letters, digits and `._-`,
    /// and is no other program's.
    pub fn custom(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0["custom"][key] = Value::from(value.into());
        self
    }

    /// Uses data that is there already, below the server's `roots`: every piece is verified before anything is loaded.
    pub fn data_file(self, path: impl Into<String>) -> Self {
        self.with("data_file", path.into())
    }

    /// Returns the body of the command that adds it.
    pub(super) fn into_body(self) -> Value {
        self.0
    }
}
