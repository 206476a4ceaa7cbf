//! The invariants that a finished run has to satisfy, checked for each torrent and each sink.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use dtorrent::model::{Action, EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, Timestamp};
use dtorrent::port::Delivery;
use dtorrent::testing::simulator::Presence;
use serde_json::{Map, Value};

use super::bridge::SinkPlan;
use super::disk::{Chronicle, short};
use super::env::lock;
use super::scenario::{Orphans, Run};

type Verdict = Result<(), String>;

pub async fn all(run: &Run) -> Verdict {
    let chronicle = lock(&run.disk.chronicle);
    for (server, entries) in &chronicle.entries {
        numbers_have_no_gaps(server, entries)?;
        a_state_loss_is_reported_once(run, server, entries)?;
        let reported = journaled_presences(server, entries)?;
        let bridge = run.bridge.as_ref().expect("the bridge runs at the end");
        let present: BTreeSet<InfoHash> =
            bridge.live.read(server, |content| content.snapshot.keys().copied().collect()).unwrap();
        journal_replay_yields_the_snapshot(server, &reported, &present)?;
        let presences = run.clients[server].change(|world| world.presences().to_vec());
        presences_match_the_client(server, &reported, &presences)?;
        finished_comes_once(server, &reported, &presences)?;
    }
    one_id_is_one_body(run)?;
    for plan in &run.sinks {
        events_came_in_order(plan, &chronicle, run)?;
        states_came_after_their_events(plan, &chronicle)?;
        updates_are_a_chain(plan, &chronicle, run)?;
    }
    commands_are_done_once(run)
}

/// Returns the sequence numbers of a server's events that arrived at a sink.
pub fn received(plan: &SinkPlan, server: &ServerName) -> BTreeSet<Seq> {
    plan.broker.change(|state| {
        let events = state.arrived.iter().filter_map(|arrived| match &arrived.delivery {
            Delivery::Event(entry) if entry.server == *server => Some(entry.seq),
            _ => None,
        });
        events.collect()
    })
}

pub fn results_of(plan: &SinkPlan, id: &str) -> Vec<Bytes> {
    let id = format!("\"id\":\"{id}\"");
    plan.broker.change(|state| {
        let results = state.arrived.iter().filter_map(|arrived| match &arrived.delivery {
            Delivery::Result { body, .. } if String::from_utf8_lossy(body).contains(&id) => Some(body.clone()),
            _ => None,
        });
        results.collect()
    })
}

/// I5: sequence numbers have no gap.
fn numbers_have_no_gaps(server: &ServerName, entries: &BTreeMap<Seq, JournalEntry>) -> Verdict {
    for (expected, seq) in (1..).zip(entries.keys()) {
        if seq.0 != expected {
            return Err(format!("I5: {server} has entry {} where {expected} should be", seq.0));
        }
    }
    Ok(())
}

/// A state directory that was lost before the run is detected by the broker's retained messages, and reported by exactly
/// one `journal_reset`, whenever the bridge is killed.
fn a_state_loss_is_reported_once(run: &Run, server: &ServerName, entries: &BTreeMap<Seq, JournalEntry>) -> Verdict {
    let resets = entries.values().filter(|entry| entry.kind == Kind::JournalReset).count();
    let is_right = match run.orphans {
        Orphans::None => resets == 0,
        Orphans::Retained => resets == 1,
        Orphans::Forgotten => resets <= 1,
    };
    if is_right { Ok(()) } else { Err(format!("{server}: {resets} journal_reset, orphans: {:?}", run.orphans)) }
}

/// The time from `added` to `removed` of a torrent, according to the journal.
struct JournaledPresence {
    hash: InfoHash,
    from: Timestamp,
    until: Option<Timestamp>,
    finished: usize,
}

/// I1, I2: no torrent is added twice, and none has an event before `added` or after `removed`.
fn journaled_presences(
    server: &ServerName,
    entries: &BTreeMap<Seq, JournalEntry>,
) -> Result<Vec<JournaledPresence>, String> {
    let mut presences: Vec<JournaledPresence> = Vec::new();
    let mut present: HashMap<InfoHash, usize> = HashMap::new();
    for entry in entries.values() {
        let Some(hash) = entry.hash else { continue };
        let is_present = present.contains_key(&hash);
        if is_present == (entry.kind == Kind::Added) {
            return Err(format!(
                "I1: {server} {}: {:?} of {} makes no sense",
                entry.seq.0,
                entry.kind,
                short(Some(hash))
            ));
        }
        match entry.kind {
            Kind::Added => {
                present.insert(hash, presences.len());
                presences.push(JournaledPresence { hash, from: entry.time, until: None, finished: 0 });
            }
            Kind::Removed => presences[present.remove(&hash).unwrap()].until = Some(entry.time),
            Kind::Finished => presences[present[&hash]].finished += 1,
            _ => {}
        }
    }
    Ok(presences)
}

fn journal_replay_yields_the_snapshot(
    server: &ServerName,
    presences: &[JournaledPresence],
    snapshot: &BTreeSet<InfoHash>,
) -> Verdict {
    let replayed: BTreeSet<InfoHash> =
        presences.iter().filter(|presence| presence.until.is_none()).map(|presence| presence.hash).collect();
    if replayed == *snapshot {
        return Ok(());
    }
    Err(format!("I1: {server}: the journal leads to {replayed:?}, the snapshot is {snapshot:?}"))
}

fn overlap(reported: &JournaledPresence, presence: &Presence) -> bool {
    reported.hash == presence.hash
        && reported.until.is_none_or(|until| presence.from <= until)
        && presence.until.is_none_or(|until| reported.from <= until)
}

/// I2: a torrent was at the client when `added` was written, and had left when `removed` was written.
fn presences_match_the_client(server: &ServerName, reported: &[JournaledPresence], presences: &[Presence]) -> Verdict {
    for reported in reported {
        let hash = short(Some(reported.hash));
        let of_hash = || presences.iter().filter(|presence| presence.hash == reported.hash);
        let was_there = |presence: &&Presence| {
            presence.from <= reported.from && presence.until.is_none_or(|until| reported.from <= until)
        };
        if !of_hash().any(|presence| was_there(&presence)) {
            return Err(format!("I2: {server}: {hash} was announced at {} and was not there", reported.from));
        }
        let Some(until) = reported.until else { continue };
        if !of_hash().any(|presence| presence.until.is_some_and(|gone| reported.from <= gone && gone <= until)) {
            return Err(format!(
                "I2: {server}: {hash} was reported as removed at {until} and was present since {}",
                reported.from
            ));
        }
    }
    Ok(())
}

fn finished_comes_once(server: &ServerName, reported: &[JournaledPresence], presences: &[Presence]) -> Verdict {
    for reported in reported {
        let overlapping: Vec<&Presence> = presences.iter().filter(|presence| overlap(reported, presence)).collect();
        let hash = short(Some(reported.hash));
        if reported.finished > overlapping.len() {
            return Err(format!("{server}: {hash} finished {} times", reported.finished));
        }
        let [presence] = overlapping[..] else { continue };
        let is_finished_later = presence.finished_at.is_some_and(|at| at > reported.from);
        let may_be_either = presence.finished_at == Some(reported.from) || reported.until.is_some();
        let expected = usize::from(is_finished_later);
        if reported.finished != expected && !(may_be_either && reported.finished <= 1) {
            return Err(format!(
                "{server}: {hash}, added at {}, finished {} times, truly {expected}",
                reported.from, reported.finished
            ));
        }
    }
    Ok(())
}

/// I6: no id names two different events.
fn one_id_is_one_body(run: &Run) -> Verdict {
    let mut events: HashMap<EventId, Bytes> = HashMap::new();
    let mut torrents: HashMap<EventId, Value> = HashMap::new();
    let mut check = |delivery: &Delivery| match delivery {
        Delivery::Event(entry) => {
            let first = events.entry(entry.id.clone()).or_insert_with(|| entry.body.clone());
            if *first == entry.body { Ok(()) } else { Err(format!("I6: {} names two events", entry.id)) }
        }
        Delivery::Updated { event, body, .. } => {
            let torrent = torrent_in(body);
            let first = torrents.entry(event.id.clone()).or_insert_with(|| torrent.clone());
            if *first == torrent { Ok(()) } else { Err(format!("I6: {} shows two torrents", event.id)) }
        }
        _ => Ok(()),
    };
    for plan in &run.sinks {
        plan.broker.change(|state| state.arrived.iter().try_for_each(|arrived| check(&arrived.delivery)))?;
    }
    Ok(())
}

fn torrent_in(body: &[u8]) -> Value {
    let mut event: Value = serde_json::from_slice(body).expect("an event is JSON");
    event["torrent"].take()
}

/// I3, I4, I5: every event that arrives is in the journal, and first deliveries are in its order.
fn events_came_in_order(plan: &SinkPlan, chronicle: &Chronicle, run: &Run) -> Verdict {
    let name = &plan.broker.name;
    let dead_letters = lock(&run.disk.dead_letters);
    let rejected = plan.broker.change(|state| state.rejected.clone());
    for server in &plan.servers {
        let nothing = BTreeMap::new();
        let entries = chronicle.entries.get(server).unwrap_or(&nothing);
        let began = chronicle.began.get(&(name.clone(), server.clone())).copied().unwrap_or(Seq(0));
        let wanted = entries.range(Seq(began.0 + 1)..).filter(|(_, entry)| plan.events.contains(&entry.kind));
        let mut next = wanted.map(|(seq, _)| *seq).peekable();
        let mut seen = BTreeSet::new();
        plan.broker.change(|state| {
            for arrived in &state.arrived {
                let Delivery::Event(entry) = &arrived.delivery else { continue };
                if entry.server != *server {
                    continue;
                }
                match entries.get(&entry.seq) {
                    Some(written) if written.body == entry.body => {}
                    _ => return Err(format!("I3: {name} got {server} {} that is not in the journal", entry.seq.0)),
                }
                if !seen.insert(entry.seq) {
                    continue;
                }
                // A rejected event is dead-lettered, or arrived in a later attempt.
                while next.peek().is_some_and(|next| *next < entry.seq && rejected.contains(&(server.clone(), *next))) {
                    next.next();
                }
                if rejected.contains(&(server.clone(), entry.seq)) && next.peek() != Some(&entry.seq) {
                    continue;
                }
                match next.next() {
                    Some(next) if next == entry.seq => {}
                    next => return Err(format!("I5: {name} got {server} {} where {next:?} was due", entry.seq.0)),
                }
            }
            Ok(())
        })?;
        for seq in next {
            if !dead_letters.iter().any(|(sink, of, letter)| sink == name && of == server && *letter == seq) {
                return Err(format!("I4: {name} never got {server} {}", seq.0));
            }
        }
    }
    Ok(())
}

/// I7: a state arrives after the events that led to it, and is never older than an event that has arrived.
fn states_came_after_their_events(plan: &SinkPlan, chronicle: &Chronicle) -> Verdict {
    let name = &plan.broker.name;
    for server in &plan.servers {
        let Some(entries) = chronicle.entries.get(server) else { continue };
        let mut seen = BTreeSet::new();
        let mut newest: BTreeMap<InfoHash, Rev> = BTreeMap::new();
        plan.broker.change(|state| {
            for arrived in &state.arrived {
                let (hash, not_before) = match &arrived.delivery {
                    Delivery::Event(entry) if entry.server == *server => {
                        seen.insert(entry.seq);
                        if let Some(hash) = entry.hash {
                            let newest = newest.entry(hash).or_default();
                            *newest = entry.rev.max(*newest);
                        }
                        continue;
                    }
                    Delivery::State { server: of, hash, body, .. } if of == server => {
                        let committed = chronicle.states.get(&(server.clone(), *hash)).into_iter().flatten();
                        let like_this: Vec<_> = committed.filter(|committed| committed.body == *body).collect();
                        let rev = like_this.iter().map(|committed| committed.rev).max();
                        if rev.is_some() && rev.as_ref() < newest.get(hash) {
                            let hash = short(Some(*hash));
                            return Err(format!("I7: {name} got a state of {server} {hash} from before its events"));
                        }
                        (*hash, like_this.iter().map(|committed| committed.last_seq).min())
                    }
                    Delivery::Updated { hash, event, .. } if event.server == *server => {
                        let EventId::Updated { rev, .. } = &event.id else { continue };
                        let committed = chronicle.states.get(&(server.clone(), *hash)).into_iter().flatten();
                        (
                            *hash,
                            committed
                                .filter(|committed| committed.rev == *rev)
                                .map(|committed| committed.last_seq)
                                .min(),
                        )
                    }
                    _ => continue,
                };
                let Some(not_before) = not_before else {
                    return Err(format!(
                        "I1: {name} got a state of {server} {} that was never committed",
                        short(Some(hash))
                    ));
                };
                let missing = entries.range(..=not_before).find(|(seq, entry)| {
                    let is_wanted = entry.hash == Some(hash) && plan.events.contains(&entry.kind);
                    is_wanted && !seen.contains(*seq) && !state.rejected.contains(&(server.clone(), **seq))
                });
                if let Some((seq, _)) = missing {
                    let hash = short(Some(hash));
                    return Err(format!("I7: {name} got the state of {server} {hash} before its entry {}", seq.0));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// I8: the `changes` of an update lead from a state that the sink has received to the new one.
///
/// A torrent is known from its events and updates. Only one whose `added` this sink rejected is known from its states,
/// until an event about it arrives. One of those that arrived without its acknowledgement is nothing that the bridge
/// knows of, so the next update may lead from any of them.
fn updates_are_a_chain(plan: &SinkPlan, chronicle: &Chronicle, run: &Run) -> Verdict {
    let name = &plan.broker.name;
    let mut known_states: HashMap<(ServerName, InfoHash), Vec<Map<String, Value>>> = HashMap::new();
    let mut reported: HashSet<(ServerName, InfoHash)> = HashSet::new();
    plan.broker.change(|state| {
        let rejected = state.rejected.iter().filter_map(|(server, seq)| chronicle.entries.get(server)?.get(seq));
        let not_added: HashSet<(ServerName, InfoHash)> = rejected
            .filter(|entry| entry.kind == Kind::Added)
            .filter_map(|entry| Some((entry.server.clone(), entry.hash?)))
            .collect();
        for arrived in &state.arrived {
            let (server, hash, body) = match &arrived.delivery {
                Delivery::Event(entry) => match entry.hash {
                    Some(hash) if entry.kind == Kind::Removed => {
                        known_states.remove(&(entry.server.clone(), hash));
                        reported.remove(&(entry.server.clone(), hash));
                        continue;
                    }
                    Some(hash) => (&entry.server, hash, &entry.body),
                    None => continue,
                },
                Delivery::Updated { hash, event, body } => (&event.server, *hash, body),
                Delivery::State { server, hash, body, .. } => {
                    let of_torrent = (server.clone(), *hash);
                    if not_added.contains(&of_torrent) && !reported.contains(&of_torrent) {
                        let state = serde_json::from_slice(body).expect("a state is a JSON object");
                        known_states.entry(of_torrent).or_default().push(state);
                    }
                    continue;
                }
                _ => continue,
            };
            let mut event: Value = serde_json::from_slice(body).expect("an event is JSON");
            let (Value::Object(torrent), Value::Object(changes)) = (event["torrent"].take(), event["changes"].take())
            else {
                return Err(format!("{name}: an event without a torrent"));
            };
            let known = known_states.entry((server.clone(), hash)).or_default();
            reported.insert((server.clone(), hash));
            if matches!(arrived.delivery, Delivery::Updated { .. }) && !changes.is_empty() {
                let leads_here = |state: &&Map<String, Value>| leads(state, &changes, &torrent);
                let newest = if run.had_faults { known.len() } else { 1 };
                if !known.iter().rev().take(newest).any(|state| leads_here(&state)) {
                    let hash = short(Some(hash));
                    return Err(format!(
                        "I8: {name} cannot follow an update of {server} {hash}: {changes:?} to {torrent:?}"
                    ));
                }
            }
            if known.last() != Some(&torrent) {
                known.push(torrent);
            }
        }
        Ok(())
    })
}

fn leads(from: &Map<String, Value>, changes: &Map<String, Value>, to: &Map<String, Value>) -> bool {
    to.iter().all(|(field, value)| match changes.get(field) {
        Some(change) => from.get(field) == change.get("from") && Some(value) == change.get("to"),
        None => from.get(field) == Some(value),
    })
}

/// I12: each command is executed once per run of the bridge at most, and answered the same each time.
fn commands_are_done_once(run: &Run) -> Verdict {
    let broker = &run.sinks[0];
    // A request whose answer was lost is made again if no poll shows its effect (I15).
    let runs_of = |server: &ServerName| run.restarts + 1 + run.hangs.get(server).copied().unwrap_or_default();
    for sent in &run.sent {
        let results = results_of(broker, &sent.id);
        if results.iter().any(|result| *result != results[0]) {
            return Err(format!("I12: {} was answered differently: {results:?}", sent.id));
        }
        let is_exact = !run.had_faults && sent.copies == 1;
        if results.is_empty() || (is_exact && results.len() > 1) {
            return Err(format!("I12: {} was answered {} times", sent.id, results.len()));
        }
        if let (Some(server), "label") = (&sent.server, sent.verb) {
            let is_this = |action: &Action| matches!(action, Action::Label(_, label) if *label == sent.id);
            let asked = run.clients[server].change(|world| world.asked().iter().filter(|(_, a)| is_this(a)).count());
            let runs = runs_of(server);
            if asked > runs {
                return Err(format!("I12: {} was done {asked} times in {runs} runs or hangs", sent.id));
            }
        }
    }
    for (server, client) in &run.clients {
        let asked = client.change(|world| world.asked().to_vec());
        let runs = runs_of(server);
        for verb in ["pause", "resume", "delete"] {
            let mut times: BTreeMap<InfoHash, usize> = BTreeMap::new();
            for (_, action) in &asked {
                match (verb, action) {
                    ("pause", Action::Pause(hash))
                    | ("resume", Action::Resume(hash))
                    | ("delete", Action::Delete(hash)) => {
                        *times.entry(*hash).or_default() += 1;
                    }
                    _ => {}
                }
            }
            for (hash, times) in times {
                let is_it = |sent: &&super::scenario::Sent| {
                    sent.verb == verb && sent.hash == Some(hash) && sent.server.as_ref() == Some(server)
                };
                let sent = run.sent.iter().filter(is_it).count();
                if times > sent * runs {
                    let hash = short(Some(hash));
                    return Err(format!(
                        "I12: {verb} {hash} was sent {sent} times, done {times} times in {runs} runs of the bridge"
                    ));
                }
            }
        }
    }
    Ok(())
}
