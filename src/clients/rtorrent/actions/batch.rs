//! Several actions in one exchange.
//!
//! rTorrent finds a torrent by walking along its list, so a thousand torrents asked for one value each cost a
//! thousand walks, where one listing of a few columns costs one. The rows that decide what to call are read
//! in one listing, and all calls go out together, within the same [`Access`].

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::super::calls::{Answers, Call, Cell, Fault, Value};
use super::super::map::{FixedColumns, TorrentRow};
use super::super::probe::Probe;
use super::super::transport::WireFormat;
use super::super::{Access, RtorrentClient, xmlrpc};
use super::rules::{self, Plan};
use super::{Outcome, check_priority, forgotten};
use crate::model::{Action, InfoHash};
use crate::port::{Applied, ClientError};

/// Requests actions that all have a [plan](rules::plan).
pub(super) async fn apply(client: &RtorrentClient, actions: &[&Action]) -> Vec<Outcome> {
    let access = client.access().await;
    let read = async {
        let probe = access.probe().await?;
        let mut rows = rows_of(&access, actions).await?;
        let hashes: BTreeSet<InfoHash> =
            actions.iter().filter_map(|action| rules::plan(action)).map(|(hash, _)| hash).collect();
        let of_actions = rows.iter_mut().filter(|(hash, _)| hashes.contains(*hash)).map(|(_, row)| row);
        forgotten::mark(&access, of_actions).await?;
        Ok::<_, ClientError>((probe, rows))
    };
    let (probe, rows) = match read.await {
        Ok(read) => read,
        Err(error) => return actions.iter().map(|_| Err(repeat(&error))).collect(),
    };
    // For each action its calls, or why it has none.
    let requests: Vec<Result<Vec<Call>, ClientError>> =
        actions.iter().map(|action| calls_for(client, action, &rows, &probe)).collect();
    let calls: Vec<Call> = requests.iter().flatten().flatten().cloned().collect();
    let answers = if calls.is_empty() { Ok(Vec::new()) } else { access.call(&calls).await };
    let mut answers = match answers {
        Ok(answers) => answers.into_iter(),
        Err(error) => return requests.into_iter().map(|calls| calls.and_then(|_| Err(repeat(&error)))).collect(),
    };
    let mut outcomes = Vec::with_capacity(actions.len());
    let mut not_started = BTreeSet::new();
    for (action, calls) in actions.iter().zip(requests) {
        outcomes.push(calls.and_then(|calls| {
            // In the order of the requests; one that has no calls takes no answers.
            let of_action: Vec<Result<Value, Fault>> = answers.by_ref().take(calls.len()).collect();
            let (hash, _) = rules::plan(action).expect("only planned actions are batched");
            let is_stopped = || of_action.last().is_some_and(|last| last.as_ref().is_ok_and(|v| v.int() == Some(0)));
            // Both answer 0 whether or not they did anything, so the state was read after them.
            if is_start(action) && is_stopped() {
                not_started.insert(hash);
            }
            match of_action.iter().find_map(|answer| answer.as_ref().err()) {
                None => Ok(Applied::Asked),
                Some(fault) if fault.is_unknown_hash() => Err(ClientError::UnknownHash(hash)),
                Some(fault) => Err(client.fault(fault)),
            }
        }));
    }
    if let Err(error) = restart(&access, &not_started).await {
        for (action, outcome) in actions.iter().zip(&mut outcomes) {
            if rules::plan(action).is_some_and(|(hash, _)| not_started.contains(&hash)) {
                *outcome = Err(repeat(&error));
            }
        }
    }
    outcomes
}

fn is_start(action: &Action) -> bool {
    matches!(action, Action::Resume(_) | Action::Start(_))
}

/// Stops, closes and starts torrents that are not started: `d.start` does nothing for one that is in the view of the
/// started torrents, and `d.resume` nothing for one whose files were gone when it was started.
async fn restart(access: &Access<'_>, hashes: &BTreeSet<InfoHash>) -> Result<(), ClientError> {
    let calls: Vec<Call> =
        hashes.iter().flat_map(|hash| ["d.stop", "d.close", "d.start"].map(|method| Call::on(*hash, method))).collect();
    if calls.is_empty() { Ok(()) } else { access.call(&calls).await.map(drop) }
}

/// Returns the calls of an action, by the state of its torrent; none if it is already as requested.
fn calls_for(
    client: &RtorrentClient,
    action: &Action,
    rows: &HashMap<InfoHash, TorrentRow>,
    probe: &Probe,
) -> Result<Vec<Call>, ClientError> {
    let (hash, plan) = rules::plan(action).expect("only planned actions are batched");
    let row = rows.get(&hash).ok_or(ClientError::UnknownHash(hash))?;
    if let Action::Priority(_, priority) = action {
        check_priority(*priority)?;
    }
    // Even if nothing has to be called: a pause that is still to come would undo this action.
    client.state().actions.cancel_pause(action);
    let rule = match plan {
        Plan::Calls(calls) => return Ok(calls),
        Plan::ByState(rule) => rule,
    };
    let methods = rule.methods(row, probe)?;
    if methods.is_empty() {
        return Ok(Vec::new());
    }
    // Each start and stop is an announce to the trackers, too.
    client.admit_announce(hash, probe)?;
    let mut calls: Vec<Call> = methods.iter().map(|method| Call::on(hash, method)).collect();
    if is_start(action) {
        // One that is open and paused runs at once; of others only the state says that they were started.
        let column = if methods == ["d.resume"] && row.is_open { "d.is_active" } else { "d.state" };
        calls.push(Call::column(hash, column, None));
    }
    Ok(calls)
}

impl RtorrentClient {
    /// Counts an announce of the torrent, where the version has to be protected from many.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if one more could abort rTorrent.
    pub(super) fn admit_announce(&self, hash: InfoHash, probe: &Probe) -> Result<(), ClientError> {
        if !probe.is_legacy || self.state().actions.announces.try_announce(hash, Instant::now()) {
            return Ok(());
        }
        let reason = "its trackers were asked three times within ten seconds, more could abort this rTorrent; \
                      try again in ten seconds"
            .to_owned();
        Err(ClientError::Busy { reason })
    }
}

/// The rows of the torrents that `actions` are about: of one by its hash, of several from one listing.
async fn rows_of(access: &Access<'_>, actions: &[&Action]) -> Result<HashMap<InfoHash, TorrentRow>, ClientError> {
    if let [action] = actions {
        let (hash, _) = rules::plan(action).expect("only planned actions are batched");
        // For one torrent a few calls by its hash are cheaper than a walk over all of them.
        return Ok(access.read_row(hash, Vec::new()).await?.map(|(row, _)| (hash, row)).into_iter().collect());
    }
    let call = STATE_COLUMNS.iter().fold(Call::global("d.multicall2").text("main"), |call, column| call.text(*column));
    let limit = access.client.settings.timeout;
    let answer = access.exchange(WireFormat::Xml, &xmlrpc::write(&[call]), limit).await?;
    let mut reader = StateReader::default();
    xmlrpc::scan(&answer, &mut reader).map_err(|reason| access.client.unreadable(reason))?;
    match reader.fault {
        Some(fault) => Err(access.client.fault(&fault)),
        None => Ok(reader.rows),
    }
}

/// The columns that [`rules`] decide by, of every torrent.
const STATE_COLUMNS: &[&str] = &[
    "d.hash=",
    "d.state=",
    "d.is_active=",
    "d.is_open=",
    "d.hashing=",
    "d.hashing_failed=",
    "d.is_meta=",
    "d.is_hash_checking=",
];

/// Collects rows of [`STATE_COLUMNS`].
#[derive(Default)]
struct StateReader {
    rows: HashMap<InfoHash, TorrentRow>,
    fault: Option<Fault>,
}

impl Answers for StateReader {
    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        let [hash, numbers @ ..] = cells else { return };
        let Some(hash) = hash.text().and_then(|hash| hash.parse().ok()) else { return };
        let flag = |place: usize| numbers.get(place).and_then(Cell::int).is_some_and(|number| number != 0);
        let hashing = numbers.get(3).and_then(Cell::int).and_then(|number| u64::try_from(number).ok());
        let row = TorrentRow {
            state: flag(0),
            is_active: flag(1),
            is_open: flag(2),
            // Unreadable counts as being checked: the safe side.
            hashing: hashing.unwrap_or(1),
            hashing_failed: flag(4),
            is_hash_checking: numbers.get(6).and_then(Cell::int) != Some(0),
            fixed: FixedColumns { is_meta: flag(5), ..FixedColumns::default() },
            ..TorrentRow::default()
        };
        self.rows.insert(hash, row);
    }
    fn fault(&mut self, _: usize, fault: Fault) {
        self.fault = Some(fault);
    }
}

/// The same failure, for another torrent of the batch.
fn repeat(error: &ClientError) -> ClientError {
    match error {
        ClientError::Unreachable { address, source } => {
            ClientError::Unreachable { address: address.clone(), source: source.to_string().into() }
        }
        ClientError::Timeout { limit } => ClientError::Timeout { limit: *limit },
        ClientError::Broken { reason } => ClientError::Broken { reason: reason.clone() },
        ClientError::Unauthorized { reason } => ClientError::Unauthorized { reason: reason.clone() },
        ClientError::Protocol { reason } => ClientError::Protocol { reason: reason.clone() },
        ClientError::Fault { message } => ClientError::Fault { message: message.clone() },
        ClientError::UnknownHash(hash) => ClientError::UnknownHash(*hash),
        other => ClientError::Protocol { reason: other.to_string() },
    }
}
