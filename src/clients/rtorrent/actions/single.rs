//! Actions that need several exchanges of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::calls::{Call, Value};
use super::super::map::TorrentRow;
use super::super::probe::Probe;
use super::super::{Access, RtorrentClient};
use super::rules::{self, Rule};
use super::{EFFECT_INTERVAL, Outcome, check_directory, forgotten};
use crate::model::{InfoHash, Move, RunState, is_at_or_below, printable};
use crate::port::{Applied, ClientError};

/// The custom value of a held torrent that says how it was: `running`, `paused` or `stopped`.
const HELD_KEY: &str = "dtorrent_held";
/// Its value for one that goes on, and is to be paused as soon as that is possible.
const PAUSING: &str = "pausing";
/// The custom value of a torrent whose directory was set that says where it was, until it goes on.
const HOME_KEY: &str = "dtorrent_home";
/// Files whose priority is set in one exchange.
const FILES_BATCH: usize = 500;
/// Maximum time for which a re-check of a paused torrent is waited for before the polls take over.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for which polls wait for a check of a held torrent: without content it takes some milliseconds.
const HELD_CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum time for a started torrent to open its files: some milliseconds, unless rTorrent is busy.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for an announce to show.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(3);

/// One action on one torrent.
pub(super) struct SingleAction<'a> {
    pub(super) client: &'a RtorrentClient,
    pub(super) hash: InfoHash,
    pub(super) deadline: Instant,
}

/// Where a torrent is, and, while it is held and moved, where it was and how.
struct Places {
    /// The directory of its files.
    at: String,
    /// The files are in a folder of its name.
    is_folder: bool,
    /// Empty unless it is being moved.
    home: String,
    /// Empty unless it is held.
    was: String,
}

impl Places {
    /// Whether nothing is left of a move but to let the torrent go on: its old directory is forgotten last.
    fn is_moved(&self, directory: &str, name: &str) -> bool {
        let place = if self.is_folder { Path::new(directory).join(name) } else { PathBuf::from(directory) };
        self.home.is_empty() && Path::new(&self.at) == place
    }

    /// Whether the directory of one that ran was set.
    fn is_begun(&self, directory: &str) -> bool {
        let has_run = matches!(self.was.as_str(), "running" | "paused");
        !self.home.is_empty() && has_run && is_at_or_below(&self.at, directory)
    }
}

/// A torrent as it was read, with the access that keeps others from changing it meanwhile.
pub(super) struct CurrentTorrent<'a> {
    pub(super) access: Access<'a>,
    pub(super) probe: Arc<Probe>,
    pub(super) row: TorrentRow,
}

impl<'a> SingleAction<'a> {
    pub(super) fn call(&self, method: &'static str) -> Call {
        Call::on(self.hash, method)
    }

    pub(super) async fn read(&self) -> Result<CurrentTorrent<'a>, ClientError> {
        let access = self.client.access().await;
        let probe = access.probe().await?;
        let (row, _) = access.read_row(self.hash, Vec::new()).await?.ok_or(ClientError::UnknownHash(self.hash))?;
        Ok(CurrentTorrent { access, probe, row })
    }

    /// Reads the torrent and returns the calls that `rule` prescribes; none if it is already as requested.
    ///
    /// Announces are counted here, so the calls have to be made.
    async fn prepare(&self, rule: &Rule) -> Result<(CurrentTorrent<'a>, Vec<Call>), ClientError> {
        let mut current = self.read().await?;
        forgotten::mark(&current.access, [&mut current.row]).await?;
        let methods = rule.methods(&current.row, &current.probe)?;
        if !methods.is_empty() {
            // To the trackers a stop, a start and a re-check are announces as well.
            self.client.admit_announce(self.hash, &current.probe)?;
        }
        Ok((current, methods.iter().map(|method| self.call(method)).collect()))
    }

    pub(super) async fn recheck(&self) -> Outcome {
        let (current, mut calls) = self.prepare(&rules::RECHECK).await?;
        if calls.is_empty() {
            return Ok(Applied::Seen);
        }
        // rTorrent resumes what wants to run when a check is over, also what was paused.
        let was_paused = current.row.state && current.row.is_open && !current.row.is_active;
        // Read in the same exchange: a check of a small torrent is over before the next poll.
        calls.push(Call::column(self.hash, "d.hashing", None));
        let values = current.access.call_torrent(self.hash, &calls).await?;
        drop(current);
        let is_seen = values.last().and_then(Value::int).is_some_and(|hashing| hashing != 0);
        if was_paused {
            self.client.state().actions.pause_after_check.insert(self.hash);
            self.pause_when_checked().await?;
        }
        // No listing shows that a check has ended, so one that did not begin is not to be taken for it.
        let refused = || ClientError::Fault { message: "rTorrent did not begin the check".to_owned() };
        is_seen.then_some(Applied::Seen).ok_or_else(refused)
    }

    /// Pauses the torrent when its check is over, if that is soon.
    ///
    /// rTorrent itself resumes it then. Pausing it before the next poll keeps a `resumed` that nobody asked
    /// for out of the events; for a longer check the polls do the same later.
    async fn pause_when_checked(&self) -> Result<(), ClientError> {
        let until = self.deadline.min(Instant::now() + CHECK_TIMEOUT);
        while Instant::now() < until {
            let CurrentTorrent { access, row, .. } = self.read().await?;
            let may_pause =
                || !row.is_active || self.client.state().actions.announces.try_announce(self.hash, Instant::now());
            if !row.is_checking() && may_pause() {
                if row.is_active {
                    access.call_torrent(self.hash, &pause_again(self.hash)).await?;
                }
                self.client.state().actions.pause_after_check.remove(&self.hash);
                return Ok(());
            }
            drop(access);
            tokio::time::sleep(EFFECT_INTERVAL).await;
        }
        Ok(())
    }

    /// Announces to the trackers, and waits a moment until one of them shows it: no column of a torrent does.
    pub(super) async fn announce(&self) -> Outcome {
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
        let (current, mut calls) = self.prepare(&rules::ANNOUNCE).await?;
        // Counters before and after, because an announce changes no column of the torrent.
        let before = current.access.call_torrent(self.hash, std::slice::from_ref(&trackers)).await?;
        let [before] = before.as_slice() else { return Ok(Applied::Asked) };
        // Type 3 is DHT, which is no tracker to ask.
        let is_asked =
            |row: &Value| matches!(row.array(), [on, kind, ..] if on.int() == Some(1) && kind.int() != Some(3));
        if !before.array().iter().any(is_asked) {
            let reason = "it has no tracker that is switched on".to_owned();
            return Err(ClientError::Precondition { reason });
        }
        calls.push(trackers.clone());
        let mut values = current.access.call_torrent(self.hash, &calls).await?;
        drop(current);
        let until = self.deadline.min(Instant::now() + ANNOUNCE_TIMEOUT);
        loop {
            if values.last().is_some_and(|after| is_announced(before, after)) {
                return Ok(Applied::Seen);
            }
            if Instant::now() >= until {
                return Ok(Applied::Asked);
            }
            tokio::time::sleep(EFFECT_INTERVAL).await;
            let access = self.client.access().await;
            values = access.call_torrent(self.hash, std::slice::from_ref(&trackers)).await?;
        }
    }

    /// Stops and closes the torrent, and stores in it how it was.
    pub(super) async fn hold(&self) -> Outcome {
        let (current, calls) = self.prepare(&rules::HOLD).await?;
        if calls.is_empty() {
            return Ok(Applied::Seen);
        }
        let TorrentRow { state, is_active, is_open, .. } = current.row;
        let is_to_be_paused = self.client.state().actions.pause_after_check.contains(&self.hash);
        let was = match (state, is_active, is_open) {
            (false, false, _) => "stopped",
            _ if is_to_be_paused => "paused",
            // A torrent that is closed or waits runs again after a start.
            (true, false, true) => "paused",
            _ => "running",
        };
        let stored = current.access.call_torrent(self.hash, &[held_state(self.hash)]).await?;
        let mut all = Vec::new();
        // A value that is there belongs to a command that was interrupted, and is still true, unless somebody has started the
        // torrent since.
        if state || stored.first().and_then(Value::str).and_then(run_state).is_none() {
            all.extend([self.call("d.custom.set").text(HELD_KEY).text(was), self.call("d.save_full_session")]);
        }
        all.extend(calls);
        all.push(Call::column(self.hash, "d.is_open", None));
        let values = current.access.call_torrent(self.hash, &all).await?;
        // It is paused when it goes on, and not by the next poll.
        self.client.state().actions.pause_after_check.remove(&self.hash);
        match values.last().and_then(Value::int) {
            // Only a closed torrent lets its files be touched, so this is read back.
            Some(0) => Ok(Applied::Seen),
            _ => Err(ClientError::Fault { message: "it did not close its files".to_owned() }),
        }
    }

    /// Sets the directory of the content, and lets the torrent go on as before a hold.
    ///
    /// The torrent is held first, because rTorrent silently closes one whose directory is set while it is open. If it cannot be
    /// in the new directory as it was, it gets its old one back, and stays held.
    pub(super) async fn relocate(&self, Move { directory, recheck, must_find, .. }: &Move) -> Outcome {
        check_directory(directory)?;
        let current = self.read().await?;
        let places = self.places(&current).await?;
        let CurrentTorrent { access, row, .. } = current;
        drop(access);
        if places.is_moved(directory, &row.fixed.name) {
            return self.release().await;
        }
        // By an earlier attempt, of which the answer was lost. It is not held once more then, because by now rTorrent may be
        // checking it, or writing to its files.
        let was_let_go = row.state && places.is_begun(directory);
        // What finds its content may wait for its turn when it runs.
        if *recheck && must_find.is_none() && !was_let_go {
            self.check_may_be_checked().await?;
        }
        if !was_let_go {
            self.hold().await?;
        }
        let current = self.read().await?;
        let Places { at, home, was, .. } = self.places(&current).await?;
        let CurrentTorrent { access, .. } = current;
        // An earlier attempt may have set the directory.
        let home = if is_at_or_below(&at, directory) && !home.is_empty() { &home } else { &at };
        let was = was.as_str();
        if !was_let_go {
            self.set_directory(&access, home, directory).await?;
        }
        drop(access);
        let mut problem = None;
        if *recheck && !was_let_go {
            problem = match self.check_held(was, *must_find).await {
                // Let go on before its turn, it would stop where it finds nothing.
                Err(busy @ ClientError::Busy { .. }) => {
                    self.take_back(home, was).await?;
                    return Err(busy);
                }
                checked => checked?,
            };
        }
        if problem.is_none() {
            // After the directory was seen to be right: a crash before this lets the command be repeated.
            self.let_go(was).await?;
            if matches!(was, "running" | "paused") {
                problem = self.run_problem(was == "paused").await?;
            }
        }
        let Some(problem) = problem else { return self.forget_hold().await };
        let reason = format!("rTorrent cannot use {directory} for its content: {problem}");
        match self.take_back(home, was).await {
            Ok(()) => {
                Err(ClientError::Precondition { reason: format!("{reason}; its directory is the old one again") })
            }
            Err(error) => Err(ClientError::Fault { message: format!("{reason}; it could not go back: {error}") }),
        }
    }

    async fn places(&self, CurrentTorrent { access, row, .. }: &CurrentTorrent<'_>) -> Result<Places, ClientError> {
        let calls = [
            Call::column(self.hash, "d.directory_base", None),
            Call::column(self.hash, "d.is_multi_file", None),
            Call::column(self.hash, "d.custom", Some(HOME_KEY)),
            held_state(self.hash),
        ];
        let values = access.call_torrent(self.hash, &calls).await?;
        let text = |place: usize| values.get(place).and_then(Value::str).unwrap_or_default().to_owned();
        let is_folder = values.get(1).and_then(Value::int) == Some(1);
        // One that was stopped since is not to be paused any more.
        let was = text(3);
        let was = if was == PAUSING && !row.state { String::new() } else { was };
        Ok(Places { at: text(0), is_folder, home: text(2), was })
    }

    async fn set_directory(&self, access: &Access<'_>, home: &str, directory: &str) -> Result<(), ClientError> {
        let calls = [
            self.call("d.custom.set").text(HOME_KEY).text(home),
            self.call("d.directory.set").text(directory),
            self.call("d.save_full_session"),
            Call::column(self.hash, "d.directory", None),
        ];
        let values = access.call_torrent(self.hash, &calls).await?;
        let now = values.last().and_then(Value::str).unwrap_or_default();
        if is_at_or_below(now, directory) {
            return Ok(());
        }
        let message = format!("its directory is {:?} after it was set", printable(now.as_bytes()));
        Err(ClientError::Fault { message })
    }

    /// Checks that rTorrent would check this torrent at once. One that is complete and runs would be held until its turn
    /// comes.
    async fn check_may_be_checked(&self) -> Result<(), ClientError> {
        let CurrentTorrent { access, row, .. } = self.read().await?;
        if row.complete && row.state && forgotten::is_any_checked(&access).await? {
            return Err(behind_another_check());
        }
        Ok(())
    }

    /// Has rTorrent find out what a held torrent has in its directory; returns why it cannot. A check that takes longer goes
    /// on behind this.
    ///
    /// A start alone does not: rTorrent 0.9.8 stops a torrent that it takes for complete and that is not, with a message.
    async fn check_held(&self, was: &str, must_find: Option<u64>) -> Result<Option<String>, ClientError> {
        let mut current = self.read().await?;
        current.access.call_torrent(self.hash, &[self.call("d.check_hash")]).await?;
        let was_complete = current.row.complete;
        let until = Instant::now() + HELD_CHECK_TIMEOUT;
        loop {
            // Under one access, so that no poll shows the message of a check that found less than before.
            tokio::time::sleep(EFFECT_INTERVAL).await;
            let Some((row, _)) = current.access.read_row(self.hash, Vec::new()).await? else {
                return Err(ClientError::UnknownHash(self.hash));
            };
            current.row = row;
            if current.row.hashing_failed && !current.row.is_hash_checking {
                return Ok(Some(problem_of(&current.row)));
            }
            let is_over = Instant::now() >= until;
            if is_over {
                forgotten::mark(&current.access, [&mut current.row]).await?;
                // Nothing was read, so nobody knows what is there.
                if must_find.is_some() && current.row.hashing_failed {
                    return Err(behind_another_check());
                }
            }
            match (current.row.is_checking(), must_find) {
                (true, _) if !is_over => {}
                // It would be stopped at the end of the check. Nothing is there to be read, so it only waits.
                (true, None) if was_complete && matches!(was, "running" | "paused") => {
                    return Err(behind_another_check());
                }
                (true, _) => return Ok(None),
                (false, Some(bytes)) if current.row.completed_bytes < bytes => {
                    let found = current.row.completed_bytes;
                    return Ok(Some(format!("it finds {found} of {bytes} bytes of its content")));
                }
                (false, _) => {
                    let calls =
                        [self.call("d.close"), self.call("d.message.set").text(""), self.call("d.save_full_session")];
                    return current.access.call_torrent(self.hash, &calls).await.map(|_| None);
                }
            }
        }
    }

    /// Returns why a torrent that was started with another directory does not run, or is not `paused`; one whose content is
    /// being read has no problem yet.
    async fn run_problem(&self, paused: bool) -> Result<Option<String>, ClientError> {
        let (until, mut restart_at) = (Instant::now() + OPEN_TIMEOUT, Some(Instant::now() + OPEN_TIMEOUT / 4));
        loop {
            let CurrentTorrent { access, row, .. } = self.read().await?;
            match &row {
                TorrentRow { state: false, .. } | TorrentRow { hashing_failed: true, is_hash_checking: false, .. } => {
                    return Ok(Some(problem_of(&row)));
                }
                TorrentRow { is_active: true, .. } | TorrentRow { is_hash_checking: true, .. } => return Ok(None),
                TorrentRow { hashing: 0, is_open: true, .. } if paused => return Ok(None),
                // In the queue of checks.
                TorrentRow { hashing: 1.., .. } if Instant::now() >= until => return Ok(None),
                TorrentRow { .. } if Instant::now() >= until => return Ok(Some(problem_of(&row))),
                // 0.9.8 does not start what had a file before and has none now, and does at the second time.
                TorrentRow { hashing: 0, .. } if restart_at.take_if(|at| Instant::now() >= *at).is_some() => {
                    self.client.state().actions.announces.record(self.hash, Instant::now());
                    if paused {
                        self.client.state().actions.pause_after_check.insert(self.hash);
                    }
                    let calls = ["d.stop", "d.close", "d.start"].map(|method| self.call(method));
                    access.call_torrent(self.hash, &calls).await?;
                }
                TorrentRow { .. } => {}
            }
            drop(access);
            tokio::time::sleep(EFFECT_INTERVAL).await;
        }
    }

    /// Gives a torrent that does not run its old directory back, held as it was before.
    async fn take_back(&self, home: &str, was: &str) -> Result<(), ClientError> {
        // rTorrent 0.9 writes both in place of what it cannot say, so this may be another directory.
        if home.is_empty() || home.contains(['?', '%']) {
            let reason = "its old directory is not known exactly".to_owned();
            return Err(ClientError::Precondition { reason });
        }
        let calls = [
            self.call("d.custom.set").text(HELD_KEY).text(was),
            self.call("d.stop"),
            self.call("d.close"),
            self.call("d.directory_base.set").text(home),
            self.call("d.custom.set").text(HOME_KEY).text(""),
            // The error of a torrent that did not find its content there.
            self.call("d.message.set").text(""),
        ];
        self.read().await?.access.call_torrent(self.hash, &calls).await?;
        self.client.state().actions.pause_after_check.remove(&self.hash);
        Ok(())
    }

    /// Lets the torrent go on as it was when it was held; does nothing for one that is not held.
    pub(super) async fn release(&self) -> Outcome {
        let current = self.read().await?;
        let Places { home, was, .. } = self.places(&current).await?;
        drop(current);
        if was.is_empty() && home.is_empty() {
            return Ok(Applied::Seen);
        }
        self.let_go(&was).await?;
        self.forget_hold().await
    }

    /// Has a held torrent do what it did before.
    async fn let_go(&self, was: &str) -> Result<(), ClientError> {
        if matches!(was, "" | "stopped") {
            return Ok(());
        }
        let CurrentTorrent { access, .. } = self.read().await?;
        self.client.state().actions.announces.record(self.hash, Instant::now());
        // Not `d.resume`, which leaves a stopped torrent active with the state of a stopped one.
        access.call_torrent(self.hash, &[self.call("d.start")]).await?;
        drop(access);
        if matches!(was, "paused" | PAUSING) {
            self.client.state().actions.pause_after_check.insert(self.hash);
            self.pause_when_checked().await?;
        }
        Ok(())
    }

    /// Forgets how the torrent was before it was held: only when it is so again. Until then it looks like another one, for
    /// which an action that is repeated must not take it. For one that is paused later, [`pause_again`] does it.
    async fn forget_hold(&self) -> Outcome {
        let access = self.read().await?.access;
        let is_paused_later = self.client.state().actions.pause_after_check.contains(&self.hash);
        let calls = [
            self.call("d.custom.set").text(HELD_KEY).text(if is_paused_later { PAUSING } else { "" }),
            self.call("d.custom.set").text(HOME_KEY).text(""),
            self.call("d.save_full_session"),
        ];
        access.call_torrent(self.hash, &calls).await.map(|_| Applied::Seen)
    }

    /// Puts the torrent into a throttle group, which has limits of its own.
    pub(super) async fn throttle(&self, group: &str) -> Outcome {
        // The global group and the one without a limit exist in every rTorrent.
        if !matches!(group, "" | "NULL") {
            let access = self.client.access().await;
            let limit = access.call(&[Call::global("throttle.up.max").text(group)]).await?;
            // rTorrent accepts an unknown name without an error; its limit is -1.
            if limit.first().and_then(|limit| limit.as_ref().ok()?.int()).is_none_or(|limit| limit < 0) {
                let reason = "rTorrent has no throttle group of this name; its config makes one".to_owned();
                return Err(ClientError::Precondition { reason });
            }
        }
        let (current, mut calls) = self.prepare(&rules::THROTTLE).await?;
        let must_resume = !calls.is_empty();
        calls.push(self.call("d.throttle_name.set").text(group));
        if must_resume {
            calls.push(self.call("d.resume"));
            // To the trackers a pause and a resume are two announces.
            self.client.state().actions.announces.record(self.hash, Instant::now());
        }
        calls.extend([self.call("d.save_full_session"), Call::column(self.hash, "d.throttle_name", None)]);
        let values = current.access.call_torrent(self.hash, &calls).await?;
        if values.last().and_then(Value::str).unwrap_or_default() == group {
            return Ok(Applied::Seen);
        }
        Err(ClientError::Fault { message: "the throttle group is another one after it was set".to_owned() })
    }

    pub(super) async fn file_priority(&self, files: &[u32], priority: u8) -> Outcome {
        if priority > 2 {
            return Err(ClientError::Precondition { reason: "the priority of a file is 0, 1 or 2".to_owned() });
        }
        let current = self.read().await?;
        let count = current.row.fixed.size_files;
        if let Some(file) = files.iter().find(|file| u64::from(**file) >= count) {
            let reason = format!("it has no file {file}: it has {count}, counted from 0");
            return Err(ClientError::Precondition { reason });
        }
        for batch in files.chunks(FILES_BATCH) {
            let call = |file: &u32| Call::on_file(self.hash, *file, "f.priority.set").int(priority.into());
            current.access.call_torrent(self.hash, &batch.iter().map(call).collect::<Vec<_>>()).await?;
        }
        let calls = [
            self.call("d.update_priorities"),
            self.call("d.save_full_session"),
            self.call("f.multicall").text("").text("f.priority="),
        ];
        let values = current.access.call_torrent(self.hash, &calls).await?;
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
}

/// The call for how a held torrent ran before.
pub(in super::super) fn held_state(hash: InfoHash) -> Call {
    Call::column(hash, "d.custom", Some(HELD_KEY))
}

/// The calls that pause a torrent that was paused before a check or a hold, and that rTorrent has made run.
pub(super) fn pause_again(hash: InfoHash) -> [Call; 3] {
    let forget = Call::on(hash, "d.custom.set").text(HELD_KEY).text("");
    [Call::on(hash, "d.pause"), forget, Call::on(hash, "d.save_full_session")]
}

/// Parses the answer to [`held_state`]; `None` for a torrent that is not held.
pub(in super::super) fn run_state(stored: &str) -> Option<RunState> {
    match stored {
        "running" => Some(RunState::Running),
        "paused" => Some(RunState::Paused),
        "stopped" => Some(RunState::Stopped),
        _ => None,
    }
}

fn behind_another_check() -> ClientError {
    let reason = "rTorrent checks another torrent, and then what this one has in its new directory".to_owned();
    ClientError::Busy { reason }
}

/// Returns what rTorrent says of a torrent that does not run.
fn problem_of(row: &TorrentRow) -> String {
    match printable(row.message.as_bytes()) {
        said if said.is_empty() => "it does not start there, and rTorrent gives no reason".to_owned(),
        said => said,
    }
}

/// Returns whether the trackers show an announce: one is busy, or a counter or a time has moved.
fn is_announced(before: &Value, after: &Value) -> bool {
    before.array().len() != after.array().len()
        || before.array().iter().zip(after.array()).any(|(before, after)| match after.array() {
            [_, _, is_busy, ..] => is_busy.int() == Some(1) || before != after,
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

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
