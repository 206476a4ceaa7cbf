//! Actions, each requested the way rTorrent needs it and old versions survive it.
//!
//! The row of a torrent is read first, within the same [`Access`], and decides which methods are called
//! ([`rules`]). Two things are refused as busy, with the reason; the engine asks again later:
//! - versions before 0.15.4 can hang for ever when a torrent that is hash-checked is stopped, paused,
//!   closed, erased or checked again;
//! - versions before 0.15.2 abort on ten announces of one torrent within ten seconds, and each start and
//!   stop is one ([`announces`]).
//!
//! A re-check un-pauses a torrent. One that was paused is paused again when the check is over: at once if
//! that is soon, else after the poll that shows it. This is forgotten if the bridge ends meanwhile.
//!
//! Text from outside is only ever a typed argument, which rTorrent stores unchanged. The commands that go
//! with a magnet link ([`add`]) have to be there before it is resolved; they consist of numbers,
//! percent-encoded text, a directory of harmless characters, and custom values in quotes without a sign that could
//! end these or begin code.
//!
//! Every sleep here waits for rTorrent to show the effect of a request that it has accepted; nothing sleeps
//! in order to request again.

mod add;
mod announces;
mod batch;
mod custom;
pub(super) mod forgotten;
mod large;
mod rules;
mod single;
mod trackers;
mod verified;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

pub(super) use self::add::SAVE_DELAY;
use self::announces::AnnounceLimiter;
use self::single::{SingleAction, pause_again};
pub(super) use self::single::{held_state, run_state};
use super::calls::Call;
use super::{Access, RtorrentClient, map};
use crate::model::{Action, Covers, InfoHash, Listing, Status};
use crate::port::{Applied, ClientError};

/// Time between two readings of a torrent while an effect is waited for.
const EFFECT_INTERVAL: Duration = Duration::from_millis(50);

type Outcome = Result<Applied, ClientError>;

/// State between actions.
#[derive(Default)]
pub(super) struct ActionState {
    announces: AnnounceLimiter,
    /// Torrents that were paused before a re-check, which un-pauses them.
    pause_after_check: BTreeSet<InfoHash>,
}

impl ActionState {
    /// Drops a pending pause if `action` itself says whether the torrent runs.
    fn cancel_pause(&mut self, action: &Action) {
        if let Action::Resume(hash) | Action::Start(hash) | Action::Stop(hash) | Action::Delete(hash) = action {
            self.pause_after_check.remove(hash);
        }
    }
}

/// Checks what can be said of an action before it is requested.
pub(super) async fn check(client: &RtorrentClient, action: &Action) -> Result<(), ClientError> {
    match action {
        Action::Add(add) => add::check(add, &*client.access().await.probe().await?),
        Action::Trackers(_, changes) => trackers::check(changes),
        _ => Ok(()),
    }
}

/// Requests `actions`: those that one exchange can hold go together, the others one by one.
pub(super) async fn apply(client: &RtorrentClient, actions: &[Action]) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = actions.iter().map(|_| None).collect();
    // By place, because the results have to come in the order of the actions.
    let (planned, others): (Vec<usize>, Vec<usize>) =
        (0..actions.len()).partition(|place| rules::plan(&actions[*place]).is_some());
    if !planned.is_empty() {
        let chosen: Vec<&Action> = planned.iter().map(|place| &actions[*place]).collect();
        for (place, outcome) in planned.iter().zip(batch::apply(client, &chosen).await) {
            outcomes[*place] = Some(outcome);
        }
    }
    for place in others {
        outcomes[place] = Some(apply_singly(client, &actions[place]).await);
    }
    outcomes.into_iter().map(|outcome| outcome.expect("each action is planned or applied singly")).collect()
}

async fn apply_singly(client: &RtorrentClient, action: &Action) -> Outcome {
    let single = |hash: InfoHash| SingleAction { client, hash, deadline: Instant::now() + client.settings.timeout };
    match action {
        Action::Recheck(hash) => single(*hash).recheck().await,
        Action::Announce(hash) => single(*hash).announce().await,
        Action::Hold(hash) => single(*hash).hold().await,
        Action::Release(hash) => single(*hash).release().await,
        Action::Move(moved) => single(moved.hash).relocate(moved).await,
        Action::Throttle(hash, group) => single(*hash).throttle(group).await,
        Action::FilePriority(hash, files, priority) => single(*hash).file_priority(files, *priority).await,
        Action::Trackers(hash, changes) => single(*hash).trackers(changes).await,
        Action::Custom(hash, values) => single(*hash).custom(values).await,
        Action::Add(add) => single(add.hash).add(add).await,
        other => Err(ClientError::Unsupported { what: format!("carry out {other:?}") }),
    }
}

/// Pauses torrents whose re-check is over and un-paused them. A failure is repeated after the next poll.
pub(super) async fn pause_after_check(access: &Access<'_>, listing: &Listing) {
    let waiting = access.client.state().actions.pause_after_check.clone();
    for hash in waiting {
        let observed = listing.torrents.get(&hash);
        // Not covered by this listing, which says nothing of it.
        if observed.is_none() && listing.covers == Covers::Changed {
            continue;
        }
        if observed.is_some_and(|observed| observed.torrent.status == Status::Checking) {
            continue;
        }
        // It went on by itself when the check was over; one that was stopped meanwhile stays so.
        if observed.is_some_and(|observed| observed.torrent.active) {
            if !access.client.state().actions.announces.try_announce(hash, Instant::now()) {
                continue;
            }
            match access.call_torrent(hash, &pause_again(hash)).await {
                Ok(_) | Err(ClientError::UnknownHash(_)) => {}
                Err(error) => {
                    let server = &access.client.settings.server;
                    tracing::warn!(%server, %hash, %error, "pause after re-check failed");
                    return;
                }
            }
        }
        access.client.state().actions.pause_after_check.remove(&hash);
    }
}

fn label_calls(hash: InfoHash, label: &str) -> Vec<Call> {
    vec![Call::on(hash, "d.custom1.set").text(map::encode_label(label)), Call::on(hash, "d.save_full_session")]
}

fn priority_calls(hash: InfoHash, priority: u8) -> Vec<Call> {
    // A priority has no effect before the update, and is lost in a crash before the save.
    let set = Call::on(hash, "d.priority.set").int(priority.into());
    vec![set, Call::on(hash, "d.update_priorities"), Call::on(hash, "d.save_full_session")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_10_a_priority_is_checked_here_because_rtorrent_takes_it_modulo_four() {
        for (priority, is_right) in [(0, true), (3, true), (4, false), (9, false), (255, false)] {
            assert_eq!(check_priority(priority).is_ok(), is_right, "{priority}");
        }
    }
}
