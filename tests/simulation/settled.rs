//! What is still owed when everything is calm (I4, I7, I12).

use bytes::Bytes;
use dtorrent::model::{Seq, ServerName};
use dtorrent::outbox::retention::{Retain, Retained};
use dtorrent::port::{Clock, Journal as _, SinkStore as _};
use std::collections::BTreeSet;

use super::bridge::{Bridge, SinkPlan};
use super::checks::{received, results_of};
use super::disk::short;
use super::scenario::Run;
use super::stage::lock;

/// Everything that is not as it will have to be; empty when the run is settled.
pub async fn open(run: &Run) -> Vec<String> {
    let mut open = Vec::new();
    let Some(bridge) = &run.bridge else { return vec!["the bridge is down".to_owned()] };
    for server in run.clients.keys() {
        told_is_the_truth(run, bridge, server, &mut open).await;
    }
    if !open.is_empty() {
        return open;
    }
    for plan in &run.sinks {
        shown_is_told(run, bridge, plan, &mut open).await;
        all_entries_are_there(run, plan, &mut open);
    }
    for sent in &run.sent {
        if results_of(&run.sinks[0], &sent.id).is_empty() {
            open.push(format!("{} ({}) has no result", sent.id, sent.verb));
        }
    }
    if run.sinks[0].broker.has_waiting_commands() {
        open.push("commands wait at the broker".to_owned());
    }
    open
}

async fn told_is_the_truth(run: &Run, bridge: &Bridge, server: &ServerName, open: &mut Vec<String>) {
    let snapshot = bridge.live.read(server, |content| content.snapshot.clone()).unwrap();
    let stored = bridge.store.load(server).await.unwrap();
    if stored.needs_reset {
        open.push(format!("{server}: journal_reset is owed"));
    }
    if stored.snapshot != snapshot {
        open.push(format!("{server}: the board and the store differ"));
    }
    run.clients[server].change(|world| {
        let truth = world.torrents();
        if !snapshot.keys().eq(truth.keys()) {
            let snapshot: Vec<_> = snapshot.keys().map(|hash| short(Some(*hash))).collect();
            let truth: Vec<_> = truth.keys().map(|hash| short(Some(*hash))).collect();
            open.push(format!("{server}: told of {snapshot:?}, there are {truth:?}"));
            return;
        }
        for (hash, imagined) in truth {
            let torrent = &snapshot[hash].torrent;
            let is_told = torrent.name == imagined.name
                && torrent.status == imagined.status()
                && torrent.downloaded == imagined.done
                && torrent.uploaded == imagined.uploaded
                && torrent.finished == imagined.is_complete()
                && torrent.error == imagined.error.is_some()
                && torrent.label.as_deref() == Some(imagined.label.as_str())
                && torrent.directory.as_deref() == Some(imagined.directory.as_str())
                && torrent.priority == Some(imagined.priority)
                && torrent.download_rate == Some(0);
            if !is_told {
                open.push(format!("{server}: told {torrent:?}, but it is {imagined:?}"));
            }
        }
    });
}

async fn shown_is_told(run: &Run, bridge: &Bridge, plan: &SinkPlan, open: &mut Vec<String>) {
    let broker = &plan.broker;
    let mut names = Vec::new();
    for server in &plan.servers {
        let snapshot = bridge.live.read(server, |content| content.snapshot.clone()).unwrap();
        let kept = Retained::choose(&snapshot, plan.retain, run.stage.now(), &Retained::None);
        for (hash, snapshot) in &snapshot {
            let body = Bytes::from(serde_json::to_vec(&*snapshot.torrent).unwrap());
            broker.change(|state| {
                if state.shown.get(&(server.clone(), *hash)) != Some(&body) {
                    open.push(format!("{}: {server} {} is shown as it was", broker.name, short(Some(*hash))));
                }
                if plan.retain != Retain::None && kept.contains(hash) {
                    let name = broker.name_of_state(server, *hash).unwrap();
                    if state.kept.get(&name) != Some(&body) {
                        open.push(format!("{}: {name} is kept as it was", broker.name));
                    }
                    names.push(name);
                }
            });
        }
        let tells_removals = plan.events.contains(&dtorrent::model::Kind::Removed);
        broker.change(|state| {
            let rejected_removal = !state.rejected.is_empty();
            for (of, hash) in state.shown.keys() {
                if of == server && !snapshot.contains_key(hash) && tells_removals && !rejected_removal {
                    open.push(format!("{}: {server} {} is still shown", broker.name, short(Some(*hash))));
                }
            }
        });
    }
    let registry = bridge.store.inner().load_sink(&broker.name).await.unwrap().retained_topics;
    let kept: BTreeSet<String> = broker.change(|state| state.kept.keys().cloned().collect());
    if registry != kept {
        open.push(format!("{}: keeps {kept:?}, the registry has {registry:?}", broker.name));
    }
    let states: Vec<&String> = kept.iter().filter(|name| name.ends_with("/state")).collect();
    names.sort();
    if !states.iter().copied().eq(names.iter()) {
        open.push(format!("{}: keeps states {states:?}, wanted are {names:?}", broker.name));
    }
}

/// Each entry that the sink wants has arrived or is buried.
fn all_entries_are_there(run: &Run, plan: &SinkPlan, open: &mut Vec<String>) {
    let chronicle = lock(&run.disk.chronicle);
    let buried = lock(&run.disk.buried);
    for server in &plan.servers {
        let received = received(plan, server);
        let began = chronicle.began.get(&(plan.broker.name.clone(), server.clone())).copied().unwrap_or(Seq(0));
        for (seq, entry) in chronicle.entries.get(server).into_iter().flatten() {
            let is_wanted = *seq > began && plan.events.contains(&entry.kind);
            let is_buried =
                || buried.iter().any(|(sink, of, buried)| *sink == plan.broker.name && of == server && buried == seq);
            if is_wanted && !received.contains(seq) && !is_buried() {
                open.push(format!("{}: {server} {} {:?} never arrived", plan.broker.name, seq.0, entry.kind));
            }
        }
    }
}
