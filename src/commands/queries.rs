//! Queries and resync: commands that ask a client for no change.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::errors::{bad_request, client_gone, precondition, unknown_hash};
use super::execution::{Attempt, Execution};
use super::request::{GET_MAX, Target};
use super::results::ResultBody;
use crate::model::{Details, Files, Filter, InfoHash, Page, Parts, Seq, SnapshotTorrent, Torrent, TorrentOutcome};
use crate::port::{ClientError, Delivery};

impl Execution<'_> {
    /// Reads torrents from the client, in batches, with the details that are asked for.
    pub(super) async fn get(&self, parts: Parts) -> Attempt<ResultBody> {
        let hashes = self.torrents()?;
        let mut rows = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(GET_MAX) {
            let found = match self.details(batch, parts).await {
                Ok(found) => found,
                // Rows that were read already would be lost with the attempt, which begins from the first torrent.
                Err(ClientError::Unreachable { .. }) if !rows.is_empty() => {
                    rows.extend(batch.iter().map(|hash| TorrentOutcome::failed(*hash, client_gone())));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            rows.extend(batch.iter().zip(found).map(|(hash, details)| {
                let row = details.and_then(|details| self.row_of_details(*hash, details));
                row.unwrap_or_else(|| TorrentOutcome::failed(*hash, unknown_hash(*hash)))
            }));
        }
        Ok(ResultBody::of_torrents(rows))
    }

    pub(super) async fn details(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let _permit = self.long_turn().await;
        self.parts.client.get(hashes, parts).await
    }

    fn row_of_details(&self, hash: InfoHash, details: Details) -> Option<TorrentOutcome> {
        let Details { observed, files, trackers, peers, .. } = details;
        let mut torrent = observed?.torrent;
        // Only the snapshot knows for how long nothing has moved.
        torrent.stalled = self.read(|server| server.snapshot.get(&hash).is_some_and(|one| one.torrent.stalled));
        let mut object = as_object(&torrent);
        if let Some(files) = files {
            let files = Files { hash, files };
            // What was read for one sender is the newest list of files for everybody, so it is published as well.
            let body = Bytes::from(serde_json::to_vec(&files).expect("files are plain JSON"));
            let server = self.parts.server.clone();
            self.parts.common.live.publish_ephemeral(&Delivery::Files { server, hash, body });
            object.insert("files".to_owned(), as_value(&files.files));
        }
        object.extend(trackers.map(|trackers| ("trackers".to_owned(), as_value(&self.shown_trackers(trackers)))));
        object.extend(peers.map(|peers| ("peers".to_owned(), as_value(&peers))));
        Some(TorrentOutcome { torrent: Some(Value::Object(object)), ..TorrentOutcome::ok(hash) })
    }

    /// Lists a page of the snapshot, after a poll that began after the command came.
    pub(super) async fn list(&self, fields: Option<&[String]>, page: u64, page_size: u64) -> Attempt<ResultBody> {
        self.poll_again().await?;
        // A wrong field is named even if no torrent matches, whose keys could be compared with it.
        Torrent::check_fields(fields.unwrap_or_default()).map_err(bad_request)?;
        let now = self.parts.common.clock.now();
        let everything = Filter::default();
        let filter = match &self.request.target {
            Target::Matching(filter) => filter,
            Target::Torrents(_) | Target::Server => &everything,
        };
        let skipped = usize::try_from(page.saturating_mul(page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(page_size).unwrap_or(usize::MAX);
        let row = |one: &SnapshotTorrent| {
            let mut object = as_object(&one.torrent);
            if let Some(fields) = fields {
                object.retain(|key, _| fields.iter().any(|field| field == key));
            }
            TorrentOutcome { torrent: Some(Value::Object(object)), ..TorrentOutcome::ok(one.torrent.hash) }
        };
        let (rows, total): (Vec<TorrentOutcome>, u64) = self.read(|server| {
            let matching: Vec<_> = server.snapshot.values().filter(|one| filter.matches(&one.torrent, now)).collect();
            (matching.iter().skip(skipped).take(size).map(|one| row(one)).collect(), matching.len() as u64)
        });
        let has_more = skipped.saturating_add(rows.len()) < usize::try_from(total).unwrap_or(usize::MAX);
        let next_page = (has_more && !rows.is_empty()).then_some(page + 1);
        Ok(ResultBody { page: Some(Page { total, page, page_size, next_page }), ..ResultBody::of_torrents(rows) })
    }

    /// Sends events again to the sink that the command came from, or the present state.
    pub(super) async fn resync(&self, from_seq: Option<Seq>) -> Attempt<ResultBody> {
        let Self { parts, command, request, .. } = self;
        let Some(buffer) = parts.common.live.buffer(&command.origin) else { return Ok(ResultBody::ok()) };
        let last = self.read(|server| server.last_seq);
        let Some(from) = from_seq.map(|seq| seq.max(Seq(1))) else {
            if !request.dry_run {
                buffer.reassert(Some(&parts.server));
            }
            return Ok(ResultBody::ok());
        };
        // A consumer that has all events asks for the one after the last: no error, and nothing is sent again.
        if from <= last {
            let oldest =
                parts.common.store.read_after(&parts.server, Seq(from.0 - 1), 1).await?.first().map(|entry| entry.seq);
            if oldest != Some(from) {
                let kept =
                    oldest.map_or_else(|| "none are kept".to_owned(), |seq| format!("the oldest kept is {}", seq.0));
                let message = format!("event {} is gone: {kept}", from.0);
                return Err(precondition(message).into());
            }
            if !request.dry_run {
                buffer.rewind(&parts.server, from);
            }
        }
        Ok(ResultBody { value: Some(json!({"from_seq": from, "to_seq": last})), ..ResultBody::ok() })
    }
}

fn as_object(torrent: &Torrent) -> Map<String, Value> {
    match as_value(torrent) {
        Value::Object(object) => object,
        _ => unreachable!("a torrent is a JSON object"),
    }
}

fn as_value(details: &impl Serialize) -> Value {
    serde_json::to_value(details).expect("it is plain JSON")
}
