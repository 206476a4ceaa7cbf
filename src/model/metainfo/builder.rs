//! Building of .torrent files.

use sha1::{Digest, Sha1};

use crate::model::bencode::Encode::{self, List, Number, Text};

/// A builder of .torrent files of version 1, fed with the content once, in order.
///
/// Names are bytes and are not checked, so that tests can build malformed files.
pub struct MetainfoBuilder {
    name: Vec<u8>,
    piece_length: u32,
    trackers: Vec<String>,
    private: bool,
    /// `None` for a single file.
    files: Option<Vec<(Vec<Vec<u8>>, u64)>>,
    length: u64,
    piece: Sha1,
    pieces: Vec<u8>,
}

impl MetainfoBuilder {
    /// A single-file torrent. `piece_length` is above 0, by custom a power of two of at least 16 KiB.
    pub fn single(name: impl Into<Vec<u8>>, piece_length: u32) -> Self {
        assert!(piece_length > 0, "a piece has a length");
        Self {
            name: name.into(),
            piece_length,
            trackers: Vec::new(),
            private: false,
            files: None,
            length: 0,
            piece: Sha1::new(),
            pieces: Vec::new(),
        }
    }

    /// A torrent of a directory; [`Self::file`] begins each file in it.
    pub fn folder(name: impl Into<Vec<u8>>, piece_length: u32) -> Self {
        Self { files: Some(Vec::new()), ..Self::single(name, piece_length) }
    }

    /// Sets the private flag.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Adds a tracker, in a tier of its own.
    pub fn tracker(mut self, url: impl Into<String>) -> Self {
        self.trackers.push(url.into());
        self
    }

    /// Begins the next file of a directory.
    pub fn file<T: Into<Vec<u8>>>(mut self, path: impl IntoIterator<Item = T>) -> Self {
        let files = self.files.as_mut().expect("only a directory has several files");
        files.push((path.into_iter().map(Into::into).collect(), 0));
        self
    }

    /// Appends content to the file that was begun last.
    pub fn content(mut self, mut bytes: &[u8]) -> Self {
        if let Some(files) = &mut self.files {
            files.last_mut().expect("a file was begun").1 += bytes.len() as u64;
        }
        while !bytes.is_empty() {
            // Hashed as it comes, across files: no more than a hash state is held of the content.
            let in_piece = self.length % u64::from(self.piece_length);
            let room = usize::try_from(u64::from(self.piece_length) - in_piece).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(u64::from(self.piece_length)) {
                self.pieces.extend_from_slice(&self.piece.finalize_reset());
            }
            bytes = later;
        }
        self
    }

    /// Returns the bytes of the .torrent file.
    pub fn build(mut self) -> Vec<u8> {
        if !self.length.is_multiple_of(u64::from(self.piece_length)) {
            self.pieces.extend_from_slice(&self.piece.finalize_reset());
        }
        let mut torrent = Vec::new();
        if let Some(first) = self.trackers.first() {
            torrent.push(("announce", Text(first.as_bytes())));
        }
        if self.trackers.len() > 1 {
            let tiers = self.trackers.iter().map(|tracker| List(vec![Text(tracker.as_bytes())]));
            torrent.push(("announce-list", List(tiers.collect())));
        }
        torrent.push(("info", self.info()));
        Encode::dictionary(torrent).to_bytes()
    }

    fn info(&self) -> Encode<'_> {
        let content = match &self.files {
            Some(files) => {
                let files = files.iter().map(|(path, length)| {
                    let path = List(path.iter().map(|name| Text(name)).collect());
                    Encode::dictionary([("length", Number(*length)), ("path", path)])
                });
                ("files", List(files.collect()))
            }
            None => ("length", Number(self.length)),
        };
        let (name, pieces) = (Text(&self.name), Text(&self.pieces));
        let piece_length = Number(self.piece_length.into());
        let private = self.private.then_some(("private", Number(1)));
        let pairs = [content, ("name", name), ("piece length", piece_length), ("pieces", pieces)];
        Encode::dictionary(pairs.into_iter().chain(private))
    }
}
