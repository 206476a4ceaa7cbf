//! Journal entries per second that reach the disk, compared with a bare file.
//!
//! Both write the same bytes in the same batches and sync each batch, in alternation, so that other load affects both.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dtorrent::model::{Cause, ChangeSet, Changes, DiffState, Kind, NewEvent, Seq, ServerName, Timestamp, Torrent};
use dtorrent::port::{Journal as _, SystemClock};
use dtorrent::store::{Options, SqliteStore};

use crate::sample::torrent;
use crate::table::{Line, Measured};

const ENTRIES: usize = 20_000;

fn change_set(server: &ServerName, numbers: std::ops::Range<usize>) -> ChangeSet {
    let torrents: Vec<_> = numbers.map(|number| torrent(server, number)).collect();
    let new_event = |torrent: &Arc<Torrent>| NewEvent {
        kind: Kind::Started,
        cause: Cause::Observed,
        command_id: None,
        changes: Changes::new(),
        torrent: Some(torrent.clone()),
    };
    let events = torrents.iter().map(new_event).collect();
    let changes: BTreeMap<_, _> = torrents.iter().map(|t| (t.hash, Some((t.clone(), DiffState::default())))).collect();
    ChangeSet { server: server.clone(), time: Timestamp::from_seconds(1_795_328_701), events, changes, state: None }
}

pub async fn run() -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for batch in [1, 10, 100, 1_000] {
        let folder = tempfile::tempdir_in(".")?; // not on a tmpfs, where a sync costs nothing
        let (store, _) = SqliteStore::open(folder.path(), Options::default(), Arc::new(SystemClock))?;
        let server = ServerName::parse("home")?;
        let mut file = File::create(folder.path().join("bare"))?;
        let entries = if batch == 1 { ENTRIES / 20 } else { ENTRIES };
        let (mut in_store, mut in_file) = (Duration::ZERO, Duration::ZERO);
        let mut commits = Vec::new();
        let mut last = Seq(0);
        for first in (0..entries).step_by(batch) {
            let change_set = change_set(&server, first..first + batch);
            let started = Instant::now();
            let committed = store.commit(change_set).await?;
            commits.push(started.elapsed());
            in_store += started.elapsed();
            let mut bytes = Vec::new();
            while last < committed.last_seq {
                let written = store.read_after(&server, last, u16::try_from(batch)?).await?;
                last = written.last().context("an entry was committed")?.seq;
                bytes.extend(written.iter().flat_map(|entry| entry.body.to_vec()));
            }
            let started = Instant::now();
            file.write_all(&bytes)?;
            file.sync_data()?;
            in_file += started.elapsed();
        }
        store.close().await?;
        commits.sort();
        let [of_store, of_file] = [in_store, in_file].map(|time| entries as f64 / time.as_secs_f64());
        let p50 = commits[commits.len() / 2].as_secs_f64() * 1_000.0;
        lines.push(Line {
            what: format!("events to the disk, {batch} a commit"),
            figure: format!("{of_store:.0}/s, a commit takes {p50:.2} ms"),
            baseline: format!("the same bytes into a file: {of_file:.0}/s"),
            measured: Measured::snapshot(of_store / of_file, "×"),
            reason: "",
        });
    }
    Ok(lines)
}
