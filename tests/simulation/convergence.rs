//! Conditions that still have to be met after the last fault (I4, I7, I12).

use bytes::Bytes;
use dtorrent::model::{Seq, ServerName};
use dtorrent::outbox::retention::{Retain, Retained};
use dtorrent::port::{Clock, Journal as _, SinkStore as _};
use std::collections::BTreeSet;

use super::bridge::{Bridge, SinkPlan};
use super::checks::{received, results_of};
use super::disk::short;
use super::env::lock;
use super::scenario::Run;

/// Returns every unmet condition; none when the run has converged.
pub async fn unmet(run: &Run) -> Vec<String> {
    let mut unmet = Vec::new();
    let Some(bridge) = &run.bridge else { return vec!["the bridge is down".to_owned()] };
    for server in run.clients.keys() {
        snapshot_equals_client(run, bridge, server, &mut unmet).await;
    }
    if !unmet.is_empty() {
        return unmet;
    }
    for plan in &run.sinks {
        sink_shows_snapshot(run, bridge, plan, &mut unmet).await;
        every_wanted_entry_arrived(run, plan, &mut unmet);
    }
    for sent in &run.sent {
        if results_of(&run.sinks[0], &sent.id).is_empty() {
            unmet.push(format!("{} ({}) has no result", sent.id, sent.verb));
        }
    }
    if run.sinks[0].broker.has_waiting_commands() {
        unmet.push("commands wait at the broker".to_owned());
    }
    unmet
}

async fn snapshot_equals_client(run: &Run, bridge: &Bridge, server: &ServerName, unmet: &mut Vec<String>) {
    let snapshot = bridge.live.read(server, |content| content.snapshot.clone()).unwrap();
    let stored = bridge.store.load(server).await.unwrap();
    if stored.needs_reset {
        unmet.push(format!("{server}: journal_reset is pending"));
    }
    if stored.snapshot != snapshot {
        unmet.push(format!("{server}: the live state and the store differ"));
    }
    run.clients[server].change(|world| {
        let truth = world.torrents();
        if !snapshot.keys().eq(truth.keys()) {
            let snapshot: Vec<_> = snapshot.keys().map(|hash| short(Some(*hash))).collect();
            let truth: Vec<_> = truth.keys().map(|hash| short(Some(*hash))).collect();
            unmet.push(format!("{server}: the snapshot has {snapshot:?}, the client {truth:?}"));
            return;
        }
        for (hash, simulated) in truth {
            let torrent = &snapshot[hash].torrent;
            let is_equal = torrent.name == simulated.name
                && torrent.status == simulated.status()
                && torrent.downloaded == simulated.done
                && torrent.uploaded == simulated.uploaded
                && torrent.finished == simulated.is_complete()
                && torrent.error == simulated.error.is_some()
                && torrent.label.as_deref() == Some(simulated.label.as_str())
                && torrent.directory.as_deref() == Some(simulated.directory.as_str())
                && torrent.priority == Some(simulated.priority)
                && torrent.download_rate == Some(0);
            if !is_equal {
                unmet.push(format!("{server}: the snapshot has {torrent:?}, the client {simulated:?}"));
            }
        }
    });
}

async fn sink_shows_snapshot(run: &Run, bridge: &Bridge, plan: &SinkPlan, unmet: &mut Vec<String>) {
    let broker = &plan.broker;
    let mut names = Vec::new();
    for server in &plan.servers {
        let snapshot = bridge.live.read(server, |content| content.snapshot.clone()).unwrap();
        let retained = Retained::choose(&snapshot, plan.retain, run.env.now(), &Retained::None);
        for (hash, snapshot) in &snapshot {
            let body = Bytes::from(serde_json::to_vec(&*snapshot.torrent).unwrap());
            broker.change(|state| {
                if state.subscriber_states.get(&(server.clone(), *hash)) != Some(&body) {
                    unmet.push(format!(
                        "{}: {server} {} has an old state at the subscriber",
                        broker.name,
                        short(Some(*hash))
                    ));
                }
                if plan.retain != Retain::None && retained.contains(hash) {
                    let name = broker.state_topic(server, *hash).unwrap();
                    if state.retained.get(&name) != Some(&body) {
                        unmet.push(format!("{}: {name} retains an old state", broker.name));
                    }
                    names.push(name);
                }
            });
        }
        let wants_removals = plan.events.contains(&dtorrent::model::Kind::Removed);
        broker.change(|state| {
            let rejected_removal = !state.rejected.is_empty();
            for (of, hash) in state.subscriber_states.keys() {
                if of == server && !snapshot.contains_key(hash) && wants_removals && !rejected_removal {
                    unmet.push(format!(
                        "{}: {server} {} still has a state at the subscriber",
                        broker.name,
                        short(Some(*hash))
                    ));
                }
            }
        });
    }
    let registry = bridge.store.inner().load_sink(&broker.name).await.unwrap().retained_topics;
    let retained: BTreeSet<String> = broker.change(|state| state.retained.keys().cloned().collect());
    if registry != retained {
        unmet.push(format!("{}: retains {retained:?}, the registry has {registry:?}", broker.name));
    }
    let states: Vec<&String> = retained.iter().filter(|name| name.ends_with("/state")).collect();
    names.sort();
    if !states.iter().copied().eq(names.iter()) {
        unmet.push(format!("{}: retains states {states:?}, expected are {names:?}", broker.name));
    }
}

/// Each entry that the sink is configured to receive has arrived or is dead-lettered.
fn every_wanted_entry_arrived(run: &Run, plan: &SinkPlan, unmet: &mut Vec<String>) {
    let chronicle = lock(&run.disk.chronicle);
    let dead_letters = lock(&run.disk.dead_letters);
    for server in &plan.servers {
        let received = received(plan, server);
        let began = chronicle.began.get(&(plan.broker.name.clone(), server.clone())).copied().unwrap_or(Seq(0));
        for (seq, entry) in chronicle.entries.get(server).into_iter().flatten() {
            let is_wanted = *seq > began && plan.events.contains(&entry.kind);
            let is_dead_lettered = || {
                dead_letters.iter().any(|(sink, of, letter)| *sink == plan.broker.name && of == server && letter == seq)
            };
            if is_wanted && !received.contains(seq) && !is_dead_lettered() {
                unmet.push(format!("{}: {server} {} {:?} never arrived", plan.broker.name, seq.0, entry.kind));
            }
        }
    }
}
