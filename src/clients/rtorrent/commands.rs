//! Carrying out actions, each as rTorrent wants it and old versions survive it.
//!
//! The row of the torrent is read first, in the same turn, and decides what is asked for. Two things
//! are waited for within the deadline of an action, and then refused with the reason:
//! - versions before 0.15.4 can hang for ever when a torrent that is hash-checked is stopped,
//!   paused, closed, erased or checked again;
//! - versions before 0.15.2 abort on ten announces of one torrent within ten seconds, and each start
//!   and stop is one.
//!
//! A re-check un-pauses a torrent. One that was paused is paused again as soon as the check is over:
//! at once if that is soon, else after the listing that shows it. That is forgotten if the bridge ends
//! meanwhile.
//!
//! Text from outside is only ever a typed argument, which rTorrent stores as it is. The commands that
//! go with a magnet link, which must be there before it is resolved, are made of numbers,
//! percent-encoded text, and a directory of harmless letters.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::calls::{Call, Value};
use super::handover::Handover;
use super::map::{self, Raw};
use super::probe::{BackEnd, Probe};
use super::{RtorrentClient, Turn, xmlrpc};
use crate::model::{Action, Add, AddSource, Covers, InfoHash, Listing, Status};
use crate::port::{Applied, ClientError};

const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A loaded torrent is there within a millisecond or two, unless rTorrent is busy.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);
/// The same for one that rTorrent fetches.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(30);
/// What a torrent is told to remember while it is held: whether it ran.
const HELD: &str = "dtorrent_held";
/// So many files are asked for together.
const FILES_BATCH: usize = 500;
/// How long a re-check of a paused torrent is waited for before the listings take over.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);
/// How long an announce may take to show.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(3);
/// What xmlrpc-c takes in one request unless it is told otherwise.
const REQUEST_BYTES_DEFAULT: usize = 512 << 10;
/// Modern versions save each torrent that they load on a thread of its own, and a save that is asked for
/// meanwhile can be overtaken by it: on disk is then what was before. Seen on 0.16.20.
const SAVED_WITHIN: Duration = Duration::from_millis(300);
/// How rTorrent says that a command that went with a torrent failed; the torrent is a ghost then.
const CREATION_FAILED: &str = "Command on torrent creation failed";

#[derive(Default)]
pub(super) struct Memory {
    announces: Announces,
    /// Torrents that a re-check un-pauses.
    pause_again: BTreeSet<InfoHash>,
}

pub(super) async fn apply(client: &RtorrentClient, action: &Action) -> Result<Applied, ClientError> {
    client.memory().commands.forget_pause(action);
    let job = |hash: InfoHash| Job { client, hash, deadline: Instant::now() + client.settings.timeout };
    match action {
        Action::Pause(hash) => job(*hash).run("paused", Rest::Always, pause).await,
        Action::Resume(hash) | Action::Start(hash) => job(*hash).start().await,
        Action::Stop(hash) => job(*hash).run("stopped", Rest::IfLegacy, stop).await,
        Action::Delete(hash) => job(*hash).run("deleted", Rest::IfLegacy, delete).await,
        Action::Recheck(hash) => job(*hash).recheck().await,
        Action::Announce(hash) => job(*hash).announce().await,
        Action::Label(hash, label) => job(*hash).label(label).await,
        Action::Priority(hash, priority) => job(*hash).priority(*priority).await,
        Action::Hold(hash) => job(*hash).hold().await,
        Action::Move(hash, directory) => job(*hash).relocate(directory).await,
        Action::Throttle(hash, group) => job(*hash).throttle(group).await,
        Action::FilePriority(hash, files, priority) => job(*hash).file_priority(files, *priority).await,
        Action::Add(add) => job(add.hash).add(add).await,
    }
}

/// How an action that can be asked for together with others finds out what to ask for.
pub(super) enum Planned {
    Calls(Vec<Call>),
    Decided { decision: fn(&Raw) -> Decision, rest: Rest },
}

/// `None` for what needs several exchanges of its own.
pub(super) fn plan_of(action: &Action) -> Option<(InfoHash, Planned)> {
    let decided = |hash: &InfoHash, decision, rest| Some((*hash, Planned::Decided { decision, rest }));
    match action {
        Action::Pause(hash) => decided(hash, pause, Rest::Always),
        Action::Resume(hash) | Action::Start(hash) => decided(hash, start, Rest::Always),
        Action::Stop(hash) => decided(hash, stop, Rest::IfLegacy),
        Action::Delete(hash) => decided(hash, delete, Rest::IfLegacy),
        Action::Label(hash, label) => Some((*hash, Planned::Calls(label_calls(*hash, label)))),
        Action::Priority(hash, priority) if *priority <= 3 => {
            Some((*hash, Planned::Calls(priority_calls(*hash, *priority))))
        }
        _ => None,
    }
}

impl Memory {
    /// Whoever says whether a torrent is to run, wants no pause of an earlier command any more.
    pub(super) fn forget_pause(&mut self, action: &Action) {
        if let Action::Resume(hash) | Action::Start(hash) | Action::Stop(hash) | Action::Delete(hash) = action {
            self.pause_again.remove(hash);
        }
    }

    /// Whether it may announce now; if so that counts.
    pub(super) fn may_announce(&mut self, hash: InfoHash, now: Instant) -> bool {
        let may = self.announces.wait(hash, now).is_none();
        if may {
            self.announces.note(hash, now);
        }
        may
    }
}

fn label_calls(hash: InfoHash, label: &str) -> Vec<Call> {
    vec![Call::on(hash, "d.custom1.set").text(map::encode_label(label)), Call::on(hash, "d.save_full_session")]
}

fn priority_calls(hash: InfoHash, priority: u8) -> Vec<Call> {
    let set = Call::on(hash, "d.priority.set").int(priority.into());
    vec![set, Call::on(hash, "d.update_priorities"), Call::on(hash, "d.save_full_session")]
}

/// Pauses what a re-check has un-paused, once it is over; what fails is tried after the next listing.
pub(super) async fn pause_again(turn: &Turn<'_>, listing: &Listing) {
    let waiting = turn.client.memory().commands.pause_again.clone();
    for hash in waiting {
        let observed = listing.torrents.get(&hash);
        if observed.is_none() && listing.covers == Covers::Changed {
            continue;
        }
        if observed.is_some_and(|observed| observed.torrent.status == Status::Checking) {
            continue;
        }
        if observed.is_some_and(|observed| observed.torrent.active) {
            if turn.client.memory().commands.announces.wait(hash, Instant::now()).is_some() {
                continue;
            }
            turn.client.memory().commands.announces.note(hash, Instant::now());
            match turn.ask_about(hash, &[Call::on(hash, "d.pause")]).await {
                Ok(_) | Err(ClientError::UnknownHash(_)) => {}
                Err(error) => {
                    tracing::warn!(server = %turn.client.settings.server, %hash, %error, "not paused again after a check");
                    return;
                }
            }
        }
        turn.client.memory().commands.pause_again.remove(&hash);
    }
}

// --- what to ask for, by what the torrent is ------------------------------------------------------

/// `None` if it is so already.
pub(super) type Decision = Result<Option<Vec<&'static str>>, String>;

fn pause(raw: &Raw) -> Decision {
    match raw {
        // What is checked goes on by itself when that is over, and is to be paused then.
        Raw { is_active: true, .. } | Raw { state: true, hashing: 1.., .. } => Ok(Some(vec!["d.pause"])),
        Raw { state: true, is_open: true, .. } => Ok(None),
        Raw { state: true, .. } => {
            Err("it waits for its turn; only what runs can be paused, stop it instead".to_owned())
        }
        Raw { .. } => Err("it is stopped; only what runs can be paused".to_owned()),
    }
}

fn start(raw: &Raw) -> Decision {
    Ok(match raw {
        Raw { is_active: true, .. } => None,
        // It goes on by itself when the check is over.
        Raw { state: true, hashing: 1.., .. } => None,
        // Start does nothing for what wants to run already, even where it does not run.
        Raw { state: true, hashing_failed: true, .. } => Some(vec!["d.stop", "d.start"]),
        Raw { state: true, .. } => Some(vec!["d.resume"]),
        Raw { .. } => Some(vec!["d.start"]),
    })
}

fn stop(raw: &Raw) -> Decision {
    let is_stopped = !(raw.state || raw.is_active || raw.is_open);
    Ok((!is_stopped).then(|| vec!["d.stop", "d.close"]))
}

fn delete(_: &Raw) -> Decision {
    Ok(Some(vec!["d.stop", "d.close", "d.erase"]))
}

fn hold(raw: &Raw) -> Decision {
    if raw.is_meta {
        return Err("a magnet link has no content before it is resolved".to_owned());
    }
    Ok((raw.state || raw.is_active || raw.is_open).then(|| vec!["d.stop", "d.close"]))
}

fn pause_to_change(raw: &Raw) -> Decision {
    Ok(raw.is_active.then(|| vec!["d.pause"]))
}

fn recheck(raw: &Raw) -> Decision {
    match raw {
        Raw { hashing: 1.., .. } => Ok(None),
        Raw { is_meta: true, .. } => Err("a magnet link has nothing to check before it is resolved".to_owned()),
        Raw { .. } => Ok(Some(vec!["d.check_hash"])),
    }
}

fn announce(raw: &Raw) -> Decision {
    if raw.is_active {
        Ok(Some(vec!["d.tracker_announce"]))
    } else {
        Err("it does not run, so no tracker is asked; start it first".to_owned())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Not while it is hashed: it would not hold, or not be safe.
    Always,
    /// Not while it is hashed, where that can hang rTorrent.
    IfLegacy,
    Never,
}

// --- one action -----------------------------------------------------------------------------------

struct Job<'a> {
    client: &'a RtorrentClient,
    hash: InfoHash,
    deadline: Instant,
}

/// The torrent as it was read in the turn that is still held.
struct Ready<'a> {
    turn: Turn<'a>,
    probe: Arc<Probe>,
    raw: Raw,
}

impl<'a> Job<'a> {
    fn call(&self, method: &'static str) -> Call {
        Call::on(self.hash, method)
    }

    async fn look(&self) -> Result<Ready<'a>, ClientError> {
        if matches!(self.hash, InfoHash::V2(_)) {
            return Err(ClientError::UnknownHash(self.hash));
        }
        let turn = self.client.turn().await;
        let probe = turn.probe().await?;
        let (raw, _) = turn.read(self.hash, Vec::new()).await?.ok_or(ClientError::UnknownHash(self.hash))?;
        Ok(Ready { turn, probe, raw })
    }

    /// Reads the torrent and returns what to ask for; `None` if it is so already.
    ///
    /// Announces are counted here, so what is handed out must be asked for.
    async fn decide(
        &self,
        done: &str,
        rest: Rest,
        decision: impl Fn(&Raw) -> Decision,
    ) -> Result<(Ready<'a>, Option<Vec<Call>>), ClientError> {
        let ready = self.look().await?;
        let is_legacy = ready.probe.is_legacy;
        let wanted = decision(&ready.raw).map_err(|reason| ClientError::Precondition { reason })?;
        let Some(methods) = wanted else { return Ok((ready, None)) };
        let must_rest = rest == Rest::Always || (rest == Rest::IfLegacy && is_legacy);
        if ready.raw.hashing != 0 && must_rest {
            let version = &ready.probe.version;
            let danger = if is_legacy { format!(" (rTorrent {version} can hang for ever)") } else { String::new() };
            let reason =
                format!("it is being checked and cannot be {done} meanwhile{danger}; try again when the check is over");
            return Err(ClientError::Busy { reason });
        }
        if is_legacy && !self.client.memory().commands.may_announce(self.hash, Instant::now()) {
            let reason = "its trackers were asked three times within ten seconds, more could abort this rTorrent; \
                          try again in ten seconds"
                .to_owned();
            return Err(ClientError::Busy { reason });
        }
        Ok((ready, Some(methods.into_iter().map(|method| self.call(method)).collect())))
    }

    async fn run(&self, done: &str, rest: Rest, decision: impl Fn(&Raw) -> Decision) -> Result<Applied, ClientError> {
        if let (ready, Some(calls)) = self.decide(done, rest, decision).await? {
            ready.turn.ask_about(self.hash, &calls).await?;
        }
        Ok(Applied::Asked)
    }

    async fn start(&self) -> Result<Applied, ClientError> {
        let (ready, calls) = self.decide("started", Rest::Always, start).await?;
        let Some(mut calls) = calls else { return Ok(Applied::Asked) };
        calls.push(Call::column(self.hash, "d.state", None));
        let values = ready.turn.ask_about(self.hash, &calls).await?;
        if values.last().and_then(Value::int) == Some(0) {
            // In the view of the started, though it is not: start does nothing for those.
            ready.turn.ask_about(self.hash, &[self.call("d.stop"), self.call("d.start")]).await?;
        }
        Ok(Applied::Asked)
    }

    async fn recheck(&self) -> Result<Applied, ClientError> {
        let (ready, calls) = self.decide("checked again", Rest::Always, recheck).await?;
        let Some(mut calls) = calls else { return Ok(Applied::Seen) };
        let was_paused = ready.raw.state && ready.raw.is_open && !ready.raw.is_active;
        calls.push(Call::column(self.hash, "d.hashing", None));
        let values = ready.turn.ask_about(self.hash, &calls).await?;
        drop(ready);
        let is_seen = values.last().and_then(Value::int).is_some_and(|hashing| hashing != 0);
        if was_paused {
            self.client.memory().commands.pause_again.insert(self.hash);
            self.pause_when_checked().await?;
        }
        Ok(if is_seen { Applied::Seen } else { Applied::Asked })
    }

    async fn pause_when_checked(&self) -> Result<(), ClientError> {
        let until = self.deadline.min(Instant::now() + CHECKED_WITHIN);
        while Instant::now() < until {
            let Ready { turn, raw, .. } = self.look().await?;
            let is_over = raw.hashing == 0;
            let may_ask = self.client.memory().commands.announces.wait(self.hash, Instant::now()).is_none();
            if is_over && raw.is_active && may_ask {
                self.client.memory().commands.announces.note(self.hash, Instant::now());
                turn.ask_about(self.hash, &[self.call("d.pause")]).await?;
            }
            if is_over && may_ask {
                self.client.memory().commands.pause_again.remove(&self.hash);
                return Ok(());
            }
            drop(turn);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn announce(&self) -> Result<Applied, ClientError> {
        let trackers = [
            "t.is_enabled=",
            "t.type=",
            "t.is_busy=",
            "t.success_counter=",
            "t.failed_counter=",
            "t.activity_time_last=",
        ]
        .iter()
        .fold(self.call("t.multicall").text(""), |call, column| call.text(*column));
        let (ready, calls) = self.decide("announced", Rest::Never, announce).await?;
        let before = ready.turn.ask_about(self.hash, std::slice::from_ref(&trackers)).await?;
        let [before] = before.as_slice() else { return Ok(Applied::Asked) };
        let is_asked =
            |row: &Value| matches!(row.array(), [on, kind, ..] if on.int() == Some(1) && kind.int() != Some(3));
        if !before.array().iter().any(is_asked) {
            let reason = "it has no tracker that is switched on".to_owned();
            return Err(ClientError::Precondition { reason });
        }
        let mut calls = calls.unwrap_or_default();
        calls.push(trackers.clone());
        let mut values = ready.turn.ask_about(self.hash, &calls).await?;
        drop(ready);
        let until = self.deadline.min(Instant::now() + ANNOUNCED_WITHIN);
        loop {
            // Busy, or a counter or a time has moved.
            if values.last().is_some_and(|after| is_announced(before, after)) {
                return Ok(Applied::Seen);
            }
            if Instant::now() >= until {
                return Ok(Applied::Asked);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            let turn = self.client.turn().await;
            values = turn.ask_about(self.hash, std::slice::from_ref(&trackers)).await?;
        }
    }

    async fn label(&self, label: &str) -> Result<Applied, ClientError> {
        let ready = self.look().await?;
        ready.turn.ask_about(self.hash, &label_calls(self.hash, label)).await?;
        Ok(Applied::Asked)
    }

    async fn priority(&self, priority: u8) -> Result<Applied, ClientError> {
        check_priority(priority)?;
        let ready = self.look().await?;
        ready.turn.ask_about(self.hash, &priority_calls(self.hash, priority)).await?;
        Ok(Applied::Asked)
    }

    /// Stops and closes it, and writes into it how it was.
    async fn hold(&self) -> Result<Applied, ClientError> {
        let (ready, calls) = self.decide("held", Rest::Always, hold).await?;
        let Some(calls) = calls else { return Ok(Applied::Seen) };
        let Raw { state, is_active, is_open, .. } = ready.raw;
        let was = match (state, is_active, is_open) {
            (false, false, _) => "stopped",
            (true, false, true) => "paused",
            _ => "running",
        };
        let mut all = Vec::new();
        // What stands there is of a command that was interrupted, and still true.
        if ready.turn.ask_about(self.hash, &[self.held()]).await?.first().and_then(Value::str).is_none_or(str::is_empty)
        {
            all.extend([self.call("d.custom.set").text(HELD).text(was), self.call("d.save_full_session")]);
        }
        all.extend(calls);
        all.push(Call::column(self.hash, "d.is_open", None));
        let values = ready.turn.ask_about(self.hash, &all).await?;
        match values.last().and_then(Value::int) {
            Some(0) => Ok(Applied::Seen),
            _ => Err(ClientError::Fault { message: "it did not close its files".to_owned() }),
        }
    }

    fn held(&self) -> Call {
        Call::column(self.hash, "d.custom", Some(HELD))
    }

    /// Has it look for its content elsewhere. On a torrent that is open rTorrent would close it without a word.
    async fn relocate(&self, directory: &str) -> Result<Applied, ClientError> {
        check_directory(directory)?;
        self.hold().await?;
        let ready = self.look().await?;
        let calls = [
            self.call("d.directory.set").text(directory),
            self.call("d.save_full_session"),
            Call::column(self.hash, "d.directory", None),
            self.held(),
        ];
        let values = ready.turn.ask_about(self.hash, &calls).await?;
        let [_, _, now, was] = values.as_slice() else { return Ok(Applied::Asked) };
        let now = now.str().unwrap_or_default();
        let is_there = now
            .strip_prefix(directory.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !is_there {
            return Err(ClientError::Fault {
                message: format!("its directory is {:?} after it was set", crate::model::printable(now.as_bytes())),
            });
        }
        let was = was.str().unwrap_or_default().to_owned();
        let mut calls = vec![self.call("d.custom.set").text(HELD).text(""), self.call("d.save_full_session")];
        if was != "stopped" && !was.is_empty() {
            self.client.memory().commands.announces.note(self.hash, Instant::now());
            calls.insert(0, self.call("d.start"));
        }
        ready.turn.ask_about(self.hash, &calls).await?;
        drop(ready);
        if was == "paused" {
            self.client.memory().commands.pause_again.insert(self.hash);
            self.pause_when_checked().await?;
        }
        Ok(Applied::Seen)
    }

    /// Puts it into a group that has a limit of its own.
    async fn throttle(&self, group: &str) -> Result<Applied, ClientError> {
        if !matches!(group, "" | "NULL") {
            let turn = self.client.turn().await;
            let limit = turn.ask(&[Call::global("throttle.up.max").text(group)]).await?;
            // Unknown names are taken without a word.
            if limit.first().and_then(|limit| limit.as_ref().ok()?.int()).is_none_or(|limit| limit < 0) {
                let reason = "rTorrent has no throttle group of this name; its config makes one".to_owned();
                return Err(ClientError::Precondition { reason });
            }
        }
        // Not while it runs. To it a pause and a resume are two announces.
        let (ready, calls) = self.decide("throttled", Rest::Always, pause_to_change).await?;
        let mut all = calls.unwrap_or_default();
        let must_resume = !all.is_empty();
        all.push(self.call("d.throttle_name.set").text(group));
        if must_resume {
            all.push(self.call("d.resume"));
            self.client.memory().commands.announces.note(self.hash, Instant::now());
        }
        all.extend([self.call("d.save_full_session"), Call::column(self.hash, "d.throttle_name", None)]);
        let answers = ready.turn.ask(&all).await?;
        if let Some(fault) = answers.iter().find_map(|answer| answer.as_ref().err()) {
            return Err(if fault.is_unknown_hash() {
                ClientError::UnknownHash(self.hash)
            } else {
                self.client.fault(fault)
            });
        }
        let now = answers.last().and_then(|answer| answer.as_ref().ok()?.str());
        if now.unwrap_or_default() == group {
            return Ok(Applied::Seen);
        }
        Err(ClientError::Fault { message: "the throttle group is another one after it was set".to_owned() })
    }

    async fn file_priority(&self, files: &[u32], priority: u8) -> Result<Applied, ClientError> {
        if priority > 2 {
            return Err(ClientError::Precondition { reason: "the priority of a file is 0, 1 or 2".to_owned() });
        }
        let ready = self.look().await?;
        let count = ready.raw.size_files;
        if let Some(file) = files.iter().find(|file| u64::from(**file) >= count) {
            let reason = format!("it has no file {file}: it has {count}, counted from 0");
            return Err(ClientError::Precondition { reason });
        }
        for batch in files.chunks(FILES_BATCH) {
            let call = |file: &u32| Call::on_file(self.hash, *file, "f.priority.set").int(priority.into());
            ready.turn.ask_about(self.hash, &batch.iter().map(call).collect::<Vec<_>>()).await?;
        }
        let calls = [
            self.call("d.update_priorities"),
            self.call("d.save_full_session"),
            self.call("f.multicall").text("").text("f.priority="),
        ];
        let values = ready.turn.ask_about(self.hash, &calls).await?;
        let now = values.last().map(Value::array).unwrap_or_default();
        let is_set = |file: &u32| {
            let row = usize::try_from(*file).ok().and_then(|file| now.get(file)).map(Value::array);
            row.and_then(|row| row.first()?.int()) == Some(priority.into())
        };
        if files.iter().all(is_set) {
            return Ok(Applied::Seen);
        }
        Err(ClientError::Fault { message: "the priority of a file is another one after it was set".to_owned() })
    }

    // --- adding ---

    async fn add(&self, add: &Add) -> Result<Applied, ClientError> {
        if let Some(priority) = add.priority {
            check_priority(priority)?;
        }
        if let Some(directory) = &add.directory {
            check_directory(directory)?;
        }
        if matches!(self.hash, InfoHash::V2(_)) {
            return Err(ClientError::Unsupported { what: "load a torrent that is only of version 2".to_owned() });
        }
        let turn = self.client.turn().await;
        let probe = turn.probe().await?;
        // A second load is ignored by rTorrent, and the commands that go with it too.
        if turn.read(self.hash, Vec::new()).await?.is_some() {
            return Ok(Applied::Asked);
        }
        let time = turn.ask(&[Call::global("system.time_seconds")]).await?;
        let now = time.first().and_then(|time| time.as_ref().ok()?.int());
        match &add.source {
            AddSource::Magnet(link) => {
                let load = magnet_call(link, add, now)?;
                turn.ask_about(self.hash, &[load]).await?;
                drop(turn);
                self.appears(APPEARS_WITHIN).await?;
            }
            AddSource::Torrent(bytes) => {
                let load = [Call::global("load.raw").bytes(bytes.clone())];
                let request_bytes = xmlrpc::write(&load).len();
                if request_bytes > probe.request_bytes_max() {
                    drop(turn);
                    self.hand_over(bytes).await?;
                } else {
                    make_room(&turn, &probe, request_bytes).await?;
                    turn.ask_about(self.hash, &load).await?;
                    drop(turn);
                    self.appears(APPEARS_WITHIN).await?;
                }
                let dressed = self.dress(add, now).await;
                if let Err(ClientError::Fault { .. }) = dressed {
                    self.erase().await?;
                }
                dressed?;
                if !probe.is_legacy {
                    tokio::time::sleep(SAVED_WITHIN).await;
                    let turn = self.client.turn().await;
                    turn.ask_about(self.hash, &[self.call("d.save_full_session")]).await?;
                }
            }
        }
        Ok(Applied::Asked)
    }

    /// A torrent that is too large for one request is fetched by rTorrent itself, from us.
    async fn hand_over(&self, torrent: &bytes::Bytes) -> Result<(), ClientError> {
        let handover = Handover::new(&self.client.settings.endpoint, torrent.clone()).await?;
        let load = [Call::global("load.normal").text(handover.url())];
        let load_and_wait = async {
            self.client.turn().await.ask_about(self.hash, &load).await?;
            self.appears(HANDED_OVER_WITHIN).await
        };
        tokio::select! {
            appeared = load_and_wait => appeared,
            () = handover.serve() => Err(ClientError::Fault { message: "rTorrent could not be served".to_owned() }),
        }
    }

    /// Every load answers 0, whatever became of it: only the torrent itself tells.
    async fn appears(&self, within: Duration) -> Result<(), ClientError> {
        let until = Instant::now() + within;
        let raw = loop {
            match self.look().await {
                Ok(Ready { raw, .. }) => break raw,
                Err(ClientError::UnknownHash(_)) if Instant::now() < until => {}
                Err(ClientError::UnknownHash(_)) => {
                    let message =
                        "the torrent did not appear: rTorrent takes none without content, with a `/` in its name, \
                                   or, in many versions, without a tracker while DHT is off"
                            .to_owned();
                    return Err(ClientError::Fault { message });
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        if raw.hashing_failed && raw.message.starts_with(CREATION_FAILED) {
            self.erase().await?;
            let message = crate::model::printable(raw.message.as_bytes());
            return Err(ClientError::Fault { message });
        }
        Ok(())
    }

    async fn erase(&self) -> Result<(), ClientError> {
        let turn = self.client.turn().await;
        turn.ask_about(self.hash, &[self.call("d.erase")]).await.map(drop)
    }

    /// What belongs to a torrent that was loaded stopped; then starts it.
    async fn dress(&self, add: &Add, now: Option<i64>) -> Result<(), ClientError> {
        let mut calls = Vec::new();
        if let Some(directory) = &add.directory {
            calls.push(self.call("d.directory.set").text(directory));
        }
        if let Some(label) = &add.label {
            calls.push(self.call("d.custom1.set").text(map::encode_label(label)));
        }
        if let Some(now) = now {
            calls.push(self.call("d.custom.set").text("addtime").text(now.to_string()));
        }
        if let Some(priority) = add.priority {
            calls.extend(priority_calls(self.hash, priority));
        }
        calls.push(self.call("d.save_full_session"));
        if add.start {
            calls.push(self.call("d.start"));
        } else if add.is_checked {
            // Only what is started looks at what it was told of its content; what is not has to read it.
            calls.push(self.call("d.check_hash"));
        }
        let turn = self.client.turn().await;
        turn.ask_about(self.hash, &calls).await.map(drop)
    }
}

fn check_directory(directory: &str) -> Result<(), ClientError> {
    if directory.starts_with('/') && !directory.chars().any(char::is_control) {
        return Ok(());
    }
    let reason = "the directory has to be an absolute path without control characters".to_owned();
    Err(ClientError::Precondition { reason })
}

fn check_priority(priority: u8) -> Result<(), ClientError> {
    if priority <= 3 {
        return Ok(());
    }
    // rTorrent would take it modulo 4.
    Err(ClientError::Precondition { reason: format!("a priority is 0, 1, 2 or 3, not {priority}") })
}

fn is_announced(before: &Value, after: &Value) -> bool {
    before.array().len() != after.array().len()
        || before.array().iter().zip(after.array()).any(|(before, after)| match after.array() {
            [_, _, is_busy, ..] => is_busy.int() == Some(1) || before != after,
            _ => false,
        })
}

/// xmlrpc-c refuses large requests unless it is told how large they may be.
async fn make_room(turn: &Turn<'_>, probe: &Probe, request_bytes: usize) -> Result<(), ClientError> {
    if probe.back_end == BackEnd::TinyXml2 || request_bytes <= REQUEST_BYTES_DEFAULT {
        return Ok(());
    }
    let wanted = i64::try_from(request_bytes + 4096).unwrap_or(i64::MAX);
    let limits = turn.ask(&[Call::global("network.xmlrpc.size_limit")]).await?;
    let limit = limits.first().and_then(|limit| limit.as_ref().ok()?.int());
    if limit.is_some_and(|limit| limit < wanted) {
        let results = turn.ask(&[Call::global("network.xmlrpc.size_limit.set").int(wanted)]).await?;
        if let Some(Err(fault)) = results.first() {
            return Err(turn.client.fault(fault));
        }
    }
    Ok(())
}

/// Loads a magnet link, with what has to be said of the torrent that it will become.
///
/// rTorrent replaces the placeholder when the link is resolved and forgets what was set on it, but runs
/// these commands again. They are code, so nothing from outside is in them as it came.
fn magnet_call(link: &str, add: &Add, now: Option<i64>) -> Result<Call, ClientError> {
    let is_link = link.starts_with("magnet:?") && !link.chars().any(|c| c.is_control() || c.is_whitespace());
    if !is_link {
        let reason = "a magnet link begins with `magnet:?` and has no blanks".to_owned();
        return Err(ClientError::Precondition { reason });
    }
    let load = Call::global(if add.start { "load.start" } else { "load.normal" });
    let mut call = load.text(link);
    if let Some(directory) = &add.directory {
        if !directory.chars().all(|c| c.is_alphanumeric() || "/._-+ ".contains(c)) {
            let what =
                "put a magnet link into a directory whose name has other signs than letters, digits, blanks and ._-+; \
                        add its .torrent file instead"
                    .to_owned();
            return Err(ClientError::Unsupported { what });
        }
        call = call.text(format!("d.directory.set=\"{directory}\""));
    }
    if let Some(label) = &add.label {
        call = call.text(format!("d.custom1.set={}", map::encode_fully(label)));
    }
    if let Some(now) = now {
        call = call.text(format!("d.custom.set=addtime,{now}"));
    }
    if let Some(priority) = add.priority {
        call = call.text(format!("d.priority.set={priority}"));
    }
    Ok(call)
}

// --- announces ------------------------------------------------------------------------------------

const ANNOUNCES_MAX: usize = 3;
const ANNOUNCES_WITHIN: Duration = Duration::from_secs(10);

/// When each torrent was made to announce, within the last ten seconds.
#[derive(Default)]
struct Announces(HashMap<InfoHash, VecDeque<Instant>>);

impl Announces {
    /// How long to wait before the next; `None` if it may be now.
    fn wait(&mut self, hash: InfoHash, now: Instant) -> Option<Duration> {
        self.0.retain(|_, times| {
            times.retain(|time| now.duration_since(*time) < ANNOUNCES_WITHIN);
            !times.is_empty()
        });
        let times = self.0.get(&hash).filter(|times| times.len() >= ANNOUNCES_MAX)?;
        times.front().map(|first| (*first + ANNOUNCES_WITHIN).saturating_duration_since(now))
    }

    fn note(&mut self, hash: InfoHash, now: Instant) {
        self.0.entry(hash).or_default().push_back(now);
    }
}
#[cfg(test)]
mod tests {
    use super::super::calls::Param;
    use super::*;

    const HASH: InfoHash = InfoHash::V1([1; 20]);

    #[test]
    fn each_action_asks_for_what_the_state_of_the_torrent_needs() {
        let stopped = Raw::default();
        let open = Raw { is_open: true, ..Raw::default() };
        let queued = Raw { state: true, ..Raw::default() };
        let paused = Raw { state: true, is_open: true, ..Raw::default() };
        let running = Raw { is_active: true, ..paused.clone() };
        let checking = Raw { hashing: 3, ..paused.clone() };
        let failed = Raw { hashing_failed: true, ..queued.clone() };
        let magnet = Raw { is_meta: true, ..running.clone() };
        type Action = fn(&Raw) -> Decision;
        let table: &[(&str, Action, &Raw, Option<&str>)] = &[
            ("pause running", pause, &running, Some("d.pause")),
            ("pause paused", pause, &paused, Some("")),
            ("pause stopped", pause, &stopped, None),
            ("pause queued", pause, &queued, None),
            ("pause checking", pause, &checking, Some("d.pause")),
            ("start running", start, &running, Some("")),
            ("start paused", start, &paused, Some("d.resume")),
            ("start queued", start, &queued, Some("d.resume")),
            ("start stopped", start, &stopped, Some("d.start")),
            ("start checking", start, &checking, Some("")),
            ("start failed", start, &failed, Some("d.stop d.start")),
            ("stop running", stop, &running, Some("d.stop d.close")),
            ("stop open", stop, &open, Some("d.stop d.close")),
            ("stop stopped", stop, &stopped, Some("")),
            ("delete stopped", delete, &stopped, Some("d.stop d.close d.erase")),
            ("hold running", hold, &running, Some("d.stop d.close")),
            ("hold stopped", hold, &stopped, Some("")),
            ("hold magnet", hold, &magnet, None),
            ("recheck stopped", recheck, &stopped, Some("d.check_hash")),
            ("recheck checking", recheck, &checking, Some("")),
            ("recheck magnet", recheck, &magnet, None),
            ("announce running", announce, &running, Some("d.tracker_announce")),
            ("announce stopped", announce, &stopped, None),
        ];
        for (what, action, raw, expected) in table {
            let decided = action(raw).ok().map(|methods| methods.unwrap_or_default().join(" "));
            assert_eq!(decided.as_deref(), *expected, "{what}");
        }
    }

    #[test]
    fn rule_4_a_fourth_announce_waits_for_the_first_to_be_ten_seconds_old() {
        let mut announces = Announces::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in [0, 1, 2] {
            assert_eq!(announces.wait(HASH, at(second)), None);
            announces.note(HASH, at(second));
        }
        assert_eq!(announces.wait(HASH, at(3)), Some(Duration::from_secs(7)));
        assert_eq!(announces.wait(InfoHash::V1([2; 20]), at(3)), None, "another torrent");
        assert_eq!(announces.wait(HASH, at(10)), None);
        announces.note(HASH, at(10));
        assert_eq!(announces.wait(HASH, at(10)), Some(Duration::from_secs(1)));
        assert_eq!(announces.wait(HASH, at(30)), None);
        assert!(announces.0.is_empty(), "nothing is kept for longer than it counts");
    }

    #[test]
    fn rule_7_the_commands_of_a_magnet_link_hold_nothing_that_could_run() {
        let link = "magnet:?xt=urn:btih:0101010101010101010101010101010101010101";
        let add = Add {
            hash: HASH,
            source: AddSource::Magnet(link.to_owned()),
            start: true,
            label: Some("$execute={x}, \"q\"; 🦀".to_owned()),
            directory: Some("/downloads/a b/Ünï-1.x".to_owned()),
            priority: Some(2),
            is_checked: false,
        };
        let call = magnet_call(link, &add, Some(1_700_000_000)).unwrap();
        assert_eq!(call.method, "load.start");
        let texts = call.params.iter().map(|param| match param {
            Param::Text(text) => text.as_str(),
            Param::Int(_) | Param::Bytes(_) => panic!("only text"),
        });
        let texts = texts.collect::<Vec<_>>();
        assert_eq!(
            texts,
            [
                "",
                link,
                "d.directory.set=\"/downloads/a b/Ünï-1.x\"",
                "d.custom1.set=%24execute%3D%7Bx%7D%2C%20%22q%22%3B%20%F0%9F%A6%80",
                "d.custom.set=addtime,1700000000",
                "d.priority.set=2",
            ]
        );
        for bad in ["/a\"b", "/a\\b", "/$a", "/a,b", "/a;b", "/a{b}", "/a'b", "/a=b", "/a(b)"] {
            let add = Add { directory: Some(bad.to_owned()), ..add.clone() };
            let error = magnet_call(link, &add, None).unwrap_err();
            assert!(matches!(error, ClientError::Unsupported { .. }), "{bad}");
        }
        for bad in ["", "http://x/", "MAGNET:?xt=", "magnet:?xt=\n", "/etc/passwd", "$cat=magnet:?"] {
            assert!(magnet_call(bad, &add, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn rule_10_a_priority_is_checked_here_because_rtorrent_takes_it_modulo_four() {
        for (priority, is_right) in [(0, true), (3, true), (4, false), (9, false), (255, false)] {
            assert_eq!(check_priority(priority).is_ok(), is_right, "{priority}");
        }
    }

    #[test]
    fn an_announce_shows_as_a_busy_tracker_or_a_moved_counter() {
        let tracker = |is_busy, failed| {
            let row = [1, 1, is_busy, 0, failed, 0].map(Value::Int).to_vec();
            Value::Array(vec![Value::Array(row)])
        };
        assert!(!is_announced(&tracker(0, 1), &tracker(0, 1)));
        assert!(is_announced(&tracker(0, 1), &tracker(1, 1)));
        assert!(is_announced(&tracker(0, 1), &tracker(0, 2)));
    }
}
