//! Many torrents in a few exchanges.
//!
//! rTorrent looks for a torrent by walking along its list, so a thousand torrents asked for one value
//! each cost a thousand walks; one listing of a few columns costs one. So the rows that decide what to ask
//! for are read in one listing, and what is asked for goes out together, in the same turn.

use std::collections::HashMap;

use tokio::time::Instant;

use super::calls::{Answers, Call, Cell, Fault, Value};
use super::commands::{self, Rest};
use super::map::Raw;
use super::transport::Dialect;
use super::{FILE_COLUMNS, PEER_COLUMNS, RtorrentClient, TRACKER_COLUMNS, Turn, file, peer, rows, tracker, xmlrpc};
use crate::model::{Action, Details, InfoHash, Observed, Parts};
use crate::port::{Applied, ClientError, Scope, TorrentClient as _};

type Outcome = Result<Applied, ClientError>;

/// So many are asked for their parts together.
const PARTS_BATCH: usize = 50;

/// Asks for several actions. What each torrent is decides what is asked of it, as for one.
pub(super) async fn apply(client: &RtorrentClient, actions: &[Action]) -> Vec<Outcome> {
    if let [action] = actions {
        return vec![commands::apply(client, action).await];
    }
    let mut outcomes: Vec<Option<Outcome>> = actions.iter().map(|_| None).collect();
    let (together, singly): (Vec<usize>, Vec<usize>) =
        (0..actions.len()).partition(|place| commands::plan_of(&actions[*place]).is_some());
    if !together.is_empty() {
        let chosen: Vec<&Action> = together.iter().map(|place| &actions[*place]).collect();
        for (place, outcome) in together.iter().zip(apply_together(client, &chosen).await) {
            outcomes[*place] = Some(outcome);
        }
    }
    for place in singly {
        outcomes[place] = Some(commands::apply(client, &actions[place]).await);
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Ok(Applied::Asked))).collect()
}

async fn apply_together(client: &RtorrentClient, actions: &[&Action]) -> Vec<Outcome> {
    let turn = client.turn().await;
    let read = async {
        let probe = turn.probe().await?;
        Ok::<_, ClientError>((probe, rows_of_all(&turn).await?))
    };
    let (probe, mut raws) = match read.await {
        Ok(read) => read,
        Err(error) => return actions.iter().map(|_| Err(again(&error))).collect(),
    };
    let mut calls: Vec<Call> = Vec::new();
    let mut outcomes: Vec<Result<usize, ClientError>> = Vec::with_capacity(actions.len());
    for action in actions {
        let asked = calls_of(client, action, &mut raws, probe.is_legacy);
        outcomes.push(asked.map(|mut asked| {
            calls.append(&mut asked);
            calls.len()
        }));
    }
    let answers = if calls.is_empty() { Ok(Vec::new()) } else { turn.ask(&calls).await };
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => return outcomes.into_iter().map(|outcome| outcome.and_then(|_| Err(again(&error)))).collect(),
    };
    let mut from = 0;
    let mut stuck = Vec::new();
    let mut results = Vec::with_capacity(actions.len());
    for (action, outcome) in actions.iter().zip(outcomes) {
        let result = outcome.and_then(|to| {
            let of_action = &answers[from..to];
            from = to;
            let (hash, _) = commands::plan_of(action).expect("only those with a plan are asked together");
            if matches!(action, Action::Resume(_) | Action::Start(_))
                && of_action.last().is_some_and(|last| last.as_ref().is_ok_and(|value| value.int() == Some(0)))
            {
                stuck.push(hash);
            }
            match of_action.iter().find_map(|answer| answer.as_ref().err()) {
                None => Ok(Applied::Asked),
                Some(fault) if fault.is_unknown_hash() => Err(ClientError::UnknownHash(hash)),
                Some(fault) => Err(client.fault(fault)),
            }
        });
        results.push(result);
    }
    // In the view of the started, though they are not: start does nothing for those.
    let calls: Vec<Call> =
        stuck.iter().flat_map(|hash| ["d.stop", "d.start"].map(|method| Call::on(*hash, method))).collect();
    if !calls.is_empty()
        && let Err(error) = turn.ask(&calls).await
    {
        tracing::debug!(%error, "torrents that do not start could not be asked again");
    }
    results
}

/// What is asked for, by what the torrent is; nothing if it is so already.
fn calls_of(
    client: &RtorrentClient,
    action: &Action,
    raws: &mut HashMap<InfoHash, Raw>,
    is_legacy: bool,
) -> Result<Vec<Call>, ClientError> {
    let (hash, plan) = commands::plan_of(action).expect("only those with a plan are asked together");
    let raw = raws.get(&hash).ok_or(ClientError::UnknownHash(hash))?;
    client.memory().commands.forget_pause(action);
    let (methods, rest) = match plan {
        commands::Planned::Calls(calls) => return Ok(calls),
        commands::Planned::Decided { decision, rest } => {
            (decision(raw).map_err(|reason| ClientError::Precondition { reason })?, rest)
        }
    };
    let Some(methods) = methods else { return Ok(Vec::new()) };
    if raw.hashing != 0 && (rest == Rest::Always || (rest == Rest::IfLegacy && is_legacy)) {
        let reason = "it is being checked; it is asked when that is over".to_owned();
        return Err(ClientError::Busy { reason });
    }
    if is_legacy && !client.memory().commands.may_announce(hash, Instant::now()) {
        let reason = "its trackers were asked three times within ten seconds".to_owned();
        return Err(ClientError::Busy { reason });
    }
    let mut calls: Vec<Call> = methods.into_iter().map(|method| Call::on(hash, method)).collect();
    if matches!(action, Action::Resume(_) | Action::Start(_)) {
        calls.push(Call::column(hash, "d.state", None));
    }
    Ok(calls)
}

/// The columns that decisions need, of every torrent.
const DECIDING: &[&str] =
    &["d.hash=", "d.state=", "d.is_active=", "d.is_open=", "d.hashing=", "d.hashing_failed=", "d.is_meta="];

async fn rows_of_all(turn: &Turn<'_>) -> Result<HashMap<InfoHash, Raw>, ClientError> {
    let call = DECIDING.iter().fold(Call::global("d.multicall2").text("main"), |call, column| call.text(*column));
    let limit = turn.client.settings.timeout;
    let answer = turn.exchange(Dialect::Xml, &xmlrpc::write(&[call]), limit).await?;
    let mut deciding = Deciding::default();
    xmlrpc::scan(&answer, &mut deciding).map_err(|reason| turn.client.unreadable(reason))?;
    match deciding.fault {
        Some(fault) => Err(turn.client.fault(&fault)),
        None => Ok(deciding.raws),
    }
}

#[derive(Default)]
struct Deciding {
    raws: HashMap<InfoHash, Raw>,
    fault: Option<Fault>,
}

impl Answers for Deciding {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        let [hash, numbers @ ..] = cells else { return };
        let Some(hash) = hash.text().and_then(|hash| hash.parse().ok()) else { return };
        let flag = |place: usize| numbers.get(place).and_then(Cell::int).is_some_and(|number| number != 0);
        let hashing = numbers.get(3).and_then(Cell::int).and_then(|number| u64::try_from(number).ok());
        let raw = Raw {
            state: flag(0),
            is_active: flag(1),
            is_open: flag(2),
            hashing: hashing.unwrap_or(1),
            hashing_failed: flag(4),
            is_meta: flag(5),
            ..Raw::default()
        };
        self.raws.insert(hash, raw);
    }
    fn broken_row(&mut self, _: usize) {}
    fn fault(&mut self, _: usize, fault: Fault) {
        self.fault = Some(fault);
    }
}

/// The same failure for another torrent.
fn again(error: &ClientError) -> ClientError {
    match error {
        ClientError::Unreachable { address, source } => {
            ClientError::Unreachable { address: address.clone(), source: source.to_string().into() }
        }
        ClientError::Timeout { limit } => ClientError::Timeout { limit: *limit },
        ClientError::Unauthorized { reason } => ClientError::Unauthorized { reason: reason.clone() },
        ClientError::Fault { message } => ClientError::Fault { message: message.clone() },
        other => ClientError::Protocol { reason: other.to_string() },
    }
}

/// Reads several torrents: what each is from one listing, its parts a batch at a time.
pub(super) async fn get(
    client: &RtorrentClient,
    hashes: &[InfoHash],
    parts: Parts,
) -> Result<Vec<Option<Details>>, ClientError> {
    let mut listing = client.list(Scope::Full).await?;
    let mut found: Vec<Option<Details>> = hashes.iter().map(|hash| listing.torrents.remove(hash).map(bare)).collect();
    if !(parts.files || parts.trackers || parts.peers) {
        return Ok(found);
    }
    let wanted = [
        (parts.files, "f.multicall", FILE_COLUMNS),
        (parts.trackers, "t.multicall", TRACKER_COLUMNS),
        (parts.peers, "p.multicall", PEER_COLUMNS),
    ];
    let present: Vec<usize> = (0..hashes.len()).filter(|place| found[*place].is_some()).collect();
    for batch in present.chunks(PARTS_BATCH) {
        let mut calls = Vec::new();
        for place in batch {
            for (_, method, columns) in wanted.iter().filter(|(is_wanted, ..)| *is_wanted) {
                let call = Call::on(hashes[*place], method).text("");
                calls.push(columns.iter().fold(call, |call, column| call.text(*column)));
            }
        }
        let mut answers = client.turn().await.ask(&calls).await?.into_iter();
        for place in batch {
            let mut of_torrent = wanted.iter().map(|(is_wanted, ..)| is_wanted.then(|| answers.next()).flatten());
            let (files, trackers, peers) = (of_torrent.next(), of_torrent.next(), of_torrent.next());
            let value = |answer: Option<Option<Result<Value, Fault>>>| answer.flatten();
            let (files, trackers, peers) = (value(files), value(trackers), value(peers));
            let is_gone = [&files, &trackers, &peers]
                .into_iter()
                .flatten()
                .any(|answer| answer.as_ref().is_err_and(Fault::is_unknown_hash));
            if is_gone {
                found[*place] = None;
                continue;
            }
            let Some(details) = &mut found[*place] else { continue };
            let failed = |fault: Fault| client.fault(&fault);
            details.files = files.transpose().map_err(failed)?.map(|value| rows(&value).filter_map(file).collect());
            details.trackers =
                trackers.transpose().map_err(failed)?.map(|value| rows(&value).filter_map(tracker).collect());
            details.peers = peers.transpose().map_err(failed)?.map(|value| rows(&value).filter_map(peer).collect());
        }
    }
    Ok(found)
}

fn bare(observed: Observed) -> Details {
    Details { observed, is_folder: None, files: None, trackers: None, peers: None }
}
