//! What must be true of a run that is over, by what truly happened, hash by hash and sink by sink.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use dtorrent::model::{Action, EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, Timestamp};
use dtorrent::port::Delivery;
use dtorrent::testing::simulator::Presence;
use serde_json::{Map, Value};

use super::bridge::SinkPlan;
use super::disk::{Chronicle, short};
use super::scenario::{Ghosts, Run};
use super::stage::lock;

type Verdict = Result<(), String>;

pub async fn all(run: &Run) -> Verdict {
    let chronicle = lock(&run.disk.chronicle);
    for (server, entries) in &chronicle.entries {
        numbers_have_no_gaps(server, entries)?;
        a_loss_is_told_once(run, server, entries)?;
        let snapshot = told_lives(server, entries)?;
        let bridge = run.bridge.as_ref().expect("the bridge runs at the end");
        let present: BTreeSet<InfoHash> =
            bridge.live.read(server, |content| content.snapshot.keys().copied().collect()).unwrap();
        journal_leads_to_told(server, &snapshot, &present)?;
        let lives = run.clients[server].change(|world| world.presences().to_vec());
        told_lives_are_true(server, &snapshot, &lives)?;
        finished_comes_once(server, &snapshot, &lives)?;
    }
    one_id_is_one_body(run)?;
    for plan in &run.sinks {
        events_came_in_order(plan, &chronicle, run)?;
        states_came_after_their_events(plan, &chronicle)?;
        updates_are_a_chain(plan, run)?;
    }
    commands_are_done_once(run)
}

/// The entries of a server that have arrived at a sink.
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

/// I5
fn numbers_have_no_gaps(server: &ServerName, entries: &BTreeMap<Seq, JournalEntry>) -> Verdict {
    for (expected, seq) in (1..).zip(entries.keys()) {
        if seq.0 != expected {
            return Err(format!("I5: {server} has entry {} where {expected} should be", seq.0));
        }
    }
    Ok(())
}

/// A folder that was lost before the run is known by what a broker keeps, and told once, whatever is killed.
fn a_loss_is_told_once(run: &Run, server: &ServerName, entries: &BTreeMap<Seq, JournalEntry>) -> Verdict {
    let snapshot = entries.values().filter(|entry| entry.kind == Kind::JournalReset).count();
    let is_right = match run.ghosts {
        Ghosts::None => snapshot == 0,
        Ghosts::Kept => snapshot == 1,
        Ghosts::Forgotten => snapshot <= 1,
    };
    if is_right { Ok(()) } else { Err(format!("{server}: {snapshot} journal_reset, ghosts: {:?}", run.ghosts)) }
}

/// From `added` to `removed`, as the journal tells it.
struct ToldLife {
    hash: InfoHash,
    from: Timestamp,
    until: Option<Timestamp>,
    finished: usize,
}

/// I1, I2: what the journal says of who was there makes sense by itself.
fn told_lives(server: &ServerName, entries: &BTreeMap<Seq, JournalEntry>) -> Result<Vec<ToldLife>, String> {
    let mut lives: Vec<ToldLife> = Vec::new();
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
                present.insert(hash, lives.len());
                lives.push(ToldLife { hash, from: entry.time, until: None, finished: 0 });
            }
            Kind::Removed => lives[present.remove(&hash).unwrap()].until = Some(entry.time),
            Kind::Finished => lives[present[&hash]].finished += 1,
            _ => {}
        }
    }
    Ok(lives)
}

fn journal_leads_to_told(server: &ServerName, lives: &[ToldLife], snapshot: &BTreeSet<InfoHash>) -> Verdict {
    let replayed: BTreeSet<InfoHash> = lives.iter().filter(|life| life.until.is_none()).map(|life| life.hash).collect();
    if replayed == *snapshot {
        return Ok(());
    }
    Err(format!("I1: {server}: the journal leads to {replayed:?}, told is {snapshot:?}"))
}

fn overlap(snapshot: &ToldLife, life: &Presence) -> bool {
    snapshot.hash == life.hash
        && snapshot.until.is_none_or(|until| life.from <= until)
        && life.until.is_none_or(|until| snapshot.from <= until)
}

/// I2: what was announced was there, and what was said to be gone had gone.
fn told_lives_are_true(server: &ServerName, snapshot: &[ToldLife], lives: &[Presence]) -> Verdict {
    for snapshot in snapshot {
        let hash = short(Some(snapshot.hash));
        let of_hash = || lives.iter().filter(|life| life.hash == snapshot.hash);
        let was_there =
            |life: &&Presence| life.from <= snapshot.from && life.until.is_none_or(|until| snapshot.from <= until);
        if !of_hash().any(|life| was_there(&life)) {
            return Err(format!("I2: {server}: {hash} was announced at {} and was not there", snapshot.from));
        }
        let Some(until) = snapshot.until else { continue };
        if !of_hash().any(|life| life.until.is_some_and(|gone| snapshot.from <= gone && gone <= until)) {
            return Err(format!(
                "I2: {server}: {hash} was said to be gone at {until} and had not left since {}",
                snapshot.from
            ));
        }
    }
    Ok(())
}

fn finished_comes_once(server: &ServerName, snapshot: &[ToldLife], lives: &[Presence]) -> Verdict {
    for snapshot in snapshot {
        let overlapping: Vec<&Presence> = lives.iter().filter(|life| overlap(snapshot, life)).collect();
        let hash = short(Some(snapshot.hash));
        if snapshot.finished > overlapping.len() {
            return Err(format!("{server}: {hash} finished {} times", snapshot.finished));
        }
        let [life] = overlapping[..] else { continue };
        let is_finished_later = life.finished_at.is_some_and(|at| at > snapshot.from);
        let may_be_either = life.finished_at == Some(snapshot.from) || snapshot.until.is_some();
        let expected = usize::from(is_finished_later);
        if snapshot.finished != expected && !(may_be_either && snapshot.finished <= 1) {
            return Err(format!(
                "{server}: {hash}, added at {}, finished {} times, truly {expected}",
                snapshot.from, snapshot.finished
            ));
        }
    }
    Ok(())
}

/// I6
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

/// I3, I4, I5: what arrives is in the journal for good, and arrives first in its order.
fn events_came_in_order(plan: &SinkPlan, chronicle: &Chronicle, run: &Run) -> Verdict {
    let name = &plan.broker.name;
    let buried = lock(&run.disk.buried);
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
                // What was refused may be buried, or have come by another try.
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
            if !buried.iter().any(|(sink, of, buried)| sink == name && of == server && *buried == seq) {
                return Err(format!("I4: {name} never got {server} {}", seq.0));
            }
        }
    }
    Ok(())
}

/// I7: no state before the events that led to it, and none from before an event that came.
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
                        let snapshot = chronicle.snapshot.get(&(server.clone(), *hash)).into_iter().flatten();
                        let like_this: Vec<_> = snapshot.filter(|snapshot| snapshot.body == *body).collect();
                        let rev = like_this.iter().map(|snapshot| snapshot.rev).max();
                        if rev.is_some() && rev.as_ref() < newest.get(hash) {
                            let hash = short(Some(*hash));
                            return Err(format!("I7: {name} got a state of {server} {hash} from before its events"));
                        }
                        (*hash, like_this.iter().map(|snapshot| snapshot.last_seq).min())
                    }
                    Delivery::Updated { hash, event, .. } if event.server == *server => {
                        let EventId::Updated { rev, .. } = &event.id else { continue };
                        let snapshot = chronicle.snapshot.get(&(server.clone(), *hash)).into_iter().flatten();
                        (
                            *hash,
                            snapshot.filter(|snapshot| snapshot.rev == *rev).map(|snapshot| snapshot.last_seq).min(),
                        )
                    }
                    _ => continue,
                };
                let Some(not_before) = not_before else {
                    return Err(format!(
                        "I1: {name} got a state of {server} {} that was never told",
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

/// I8: `changes` lead from a picture that the sink has got to the one that it gets.
fn updates_are_a_chain(plan: &SinkPlan, run: &Run) -> Verdict {
    let name = &plan.broker.name;
    let mut pictures: HashMap<(ServerName, InfoHash), Vec<Map<String, Value>>> = HashMap::new();
    let mut reported: HashSet<(ServerName, InfoHash)> = HashSet::new();
    plan.broker.change(|state| {
        for arrived in &state.arrived {
            let (server, hash, body) = match &arrived.delivery {
                Delivery::Event(entry) => match entry.hash {
                    Some(hash) if entry.kind == Kind::Removed => {
                        pictures.remove(&(entry.server.clone(), hash));
                        reported.remove(&(entry.server.clone(), hash));
                        continue;
                    }
                    Some(hash) => (&entry.server, hash, &entry.body),
                    None => continue,
                },
                Delivery::Updated { hash, event, body } => (&event.server, *hash, body),
                // One whose `added` was refused is known by its states alone, until it is the subject of an event.
                Delivery::State { server, hash, body, .. } => {
                    let of_torrent = (server.clone(), *hash);
                    if !reported.contains(&of_torrent) {
                        let state = serde_json::from_slice(body).expect("a state is a JSON object");
                        pictures.entry(of_torrent).or_default().push(state);
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
            let known = pictures.entry((server.clone(), hash)).or_default();
            reported.insert((server.clone(), hash));
            if matches!(arrived.delivery, Delivery::Updated { .. }) && !changes.is_empty() {
                let leads_here = |picture: &&Map<String, Value>| leads(picture, &changes, &torrent);
                let newest = if run.is_rough { known.len() } else { 1 };
                if !known.iter().rev().take(newest).any(|picture| leads_here(&picture)) {
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

/// I12
fn commands_are_done_once(run: &Run) -> Verdict {
    let broker = &run.sinks[0];
    let lives = run.restarts + 1;
    for sent in &run.sent {
        let results = results_of(broker, &sent.id);
        if results.iter().any(|result| *result != results[0]) {
            return Err(format!("I12: {} was answered differently: {results:?}", sent.id));
        }
        let is_smooth = !run.is_rough && sent.copies == 1;
        if results.is_empty() || (is_smooth && results.len() > 1) {
            return Err(format!("I12: {} was answered {} times", sent.id, results.len()));
        }
        if let (Some(server), "label") = (&sent.server, sent.verb) {
            let is_this = |action: &Action| matches!(action, Action::Label(_, label) if *label == sent.id);
            let asked = run.clients[server].change(|world| world.asked().iter().filter(|(_, a)| is_this(a)).count());
            if asked > lives {
                return Err(format!("I12: {} was done {asked} times in {lives} lives", sent.id));
            }
        }
    }
    for (server, client) in &run.clients {
        let asked = client.change(|world| world.asked().to_vec());
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
                if times > sent * lives {
                    let hash = short(Some(hash));
                    return Err(format!(
                        "I12: {verb} {hash} was sent {sent} times, done {times} times in {lives} lives"
                    ));
                }
            }
        }
    }
    Ok(())
}
