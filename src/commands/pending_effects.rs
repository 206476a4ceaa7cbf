//! Pending effects: the changes that running commands expect, and the events that they explain.
//!
//! A command registers its action *before* it asks the client, so that an event of the next poll has the command as
//! its cause, however fast it comes. Whether the effect is there is judged only by polls that began *after* the
//! client was asked: an earlier one may show the state of before.
//!
//! What the client was asked for may show only when its command has ended, so an effect stays behind the command until a
//! later poll has shown what there is. A client may also check the data behind an action, for hours, and go on by itself
//! when the check is over: then the effect stays until the torrent is at rest, and the events of the check have that cause,
//! too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::model::{Action, Cause, ChangeSet, CommandId, Covers, InfoHash, Kind, Listing, Snapshot, Status, Torrent};

/// Time in which a torrent is as it has to be: paused again after a check, or gone.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The pending effects of one server.
#[derive(Default)]
pub struct PendingEffects {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Polls begun in this run.
    polls: u64,
    /// The last one that was judged.
    judged: u64,
    /// Effects registered in this run.
    registered: u64,
    /// The effects by their number, so the oldest first: of two commands, the first explains an event.
    pending: BTreeMap<u64, Pending>,
}

struct Pending {
    command: CommandId,
    action: Action,
    was_paused: bool,
    /// Polls begun when the client was asked; only later ones are judged. `None` until then.
    asked_after_poll: Option<u64>,
    /// `None` once the effect was shown.
    shown: Option<oneshot::Sender<()>>,
    /// The last poll has shown a check, or what follows one.
    is_checked: bool,
    /// Once nobody waits for it any more.
    left: Option<Left>,
}

/// An effect behind its command.
struct Left {
    /// Polls begun when the command ended; only later ones show that the torrent is at rest.
    after_poll: u64,
    /// None of these was judged yet.
    is_unseen: bool,
    /// Since when no check is shown.
    checked: Option<Instant>,
}

impl Pending {
    fn is_awaited(&self) -> bool {
        self.asked_after_poll.is_some() && self.shown.is_some() && self.left.is_none()
    }

    /// Whether it explains an event of this kind; `is_unfinished` says that less than before was found at the same time.
    fn explains(&self, kind: Kind, is_unfinished: bool) -> bool {
        // rTorrent stops a torrent of which a check finds less, and gives it an error.
        if is_unfinished && self.action.may_check() && matches!(kind, Kind::Unfinished | Kind::Stopped | Kind::Error) {
            return true;
        }
        let may_follow_check = match kind {
            Kind::Paused => self.was_paused,
            Kind::Checking | Kind::Checked | Kind::ErrorCleared | Kind::Started | Kind::Resumed => true,
            // Only the second listing without it shows that it is gone.
            Kind::Removed => true,
            _ => false,
        };
        let may_be_new = self.left.as_ref().is_none_or(|left| left.is_unseen);
        self.action.explains(kind) && (may_be_new || may_follow_check)
    }

    /// Whether a torrent is being checked, does not do yet what it did before, or is still there.
    fn is_unsettled(&self, torrent: &Torrent) -> bool {
        let is_deleted = matches!(self.action, Action::Delete(_));
        let is_as_before = !self.was_paused || matches!(torrent.status, Status::Paused | Status::Stopped);
        torrent.status == Status::Checking || !is_as_before || is_deleted
    }

    /// Whether what is left of it explains no further event; `torrent` is what `poll` has shown.
    fn is_over(&mut self, poll: u64, torrent: Option<&Torrent>) -> bool {
        let Some(left) = self.left.as_mut().filter(|left| left.after_poll < poll) else { return false };
        left.is_unseen = false;
        let Some(torrent) = torrent else { return true };
        if torrent.status == Status::Checking {
            left.checked = None;
            return false;
        }
        let since = *left.checked.get_or_insert_with(Instant::now);
        since.elapsed() >= SETTLE_TIMEOUT || !self.is_unsettled(torrent)
    }
}

/// Waits for one effect. Dropping it takes the effect back, or leaves it until a poll has shown it and a check is over.
pub struct EffectWaiter<'a> {
    effects: &'a PendingEffects,
    number: u64,
    shown: oneshot::Receiver<()>,
    was_shown: bool,
}

impl PendingEffects {
    /// Registers what `command` is about to ask for; of a torrent that `was_paused` is expected that it is so again.
    pub fn expect(&self, command: &CommandId, action: &Action, was_paused: bool) -> EffectWaiter<'_> {
        let (sender, shown) = oneshot::channel();
        let mut state = self.state();
        state.registered += 1;
        let number = state.registered;
        let pending = Pending {
            command: command.clone(),
            action: action.clone().without_source(),
            was_paused,
            asked_after_poll: None,
            shown: Some(sender),
            is_checked: false,
            left: None,
        };
        state.pending.insert(number, pending);
        EffectWaiter { effects: self, number, shown, was_shown: false }
    }

    /// Notes that a poll begins; returns its number.
    pub fn begin_poll(&self) -> u64 {
        let mut state = self.state();
        state.polls += 1;
        state.polls
    }

    /// Names the command as the cause of each event that it explains.
    pub fn attribute(&self, change_set: &mut ChangeSet) {
        let mut state = self.state();
        if change_set.events.iter().any(|event| event.kind == Kind::ServerRestarted) {
            // What a client does when it starts comes of no command.
            state.pending.retain(|_, pending| pending.left.is_none());
        }
        let of_unfinished = change_set.events.iter().filter(|event| event.kind == Kind::Unfinished);
        let unfinished: BTreeSet<InfoHash> =
            of_unfinished.filter_map(|event| Some(event.torrent.as_ref()?.hash)).collect();
        // One pass over the effects: an `add` of thousands has as many of both.
        let mut by_hash: HashMap<InfoHash, Vec<&Pending>> = HashMap::new();
        for pending in state.pending.values() {
            by_hash.entry(pending.action.hash()).or_default().push(pending);
        }
        for new_event in &mut change_set.events {
            let Some(hash) = new_event.torrent.as_ref().map(|torrent| torrent.hash) else { continue };
            let of_torrent = || by_hash.get(&hash).into_iter().flatten();
            // A command that runs explains more than one that has ended.
            let running = of_torrent().filter(|pending| pending.left.is_none());
            let mut all = running.chain(of_torrent().filter(|pending| pending.left.is_some()));
            let is_unfinished = unfinished.contains(&hash);
            if let Some(pending) = all.find(|pending| pending.explains(new_event.kind, is_unfinished)) {
                new_event.cause = Cause::Command;
                new_event.command_id = Some(pending.command.clone());
            }
        }
    }

    /// Resolves the effects that a poll shows, after its change set was committed.
    pub fn judge(&self, poll: u64, listing: &Listing, snapshot: &Snapshot) {
        let mut state = self.state();
        state.judged = poll;
        state.pending.retain(|_, pending| {
            let torrent = snapshot.get(&pending.action.hash()).map(|one| &*one.torrent);
            !pending.is_over(poll, torrent)
        });
        for pending in state.pending.values_mut().filter(|pending| pending.left.is_none()) {
            let hash = pending.action.hash();
            pending.is_checked = snapshot.get(&hash).is_some_and(|one| pending.is_unsettled(&one.torrent));
            let Pending { action, asked_after_poll, shown, .. } = pending;
            let is_delete = matches!(action, Action::Delete(_));
            let seen = listing.torrents.get(&hash);
            let is_later = asked_after_poll.is_some_and(|asked| asked < poll);
            // A quick poll lists only some torrents: absence proves nothing there (I2).
            let says_something = seen.is_some() || listing.covers == Covers::All;
            // `removed` is emitted only after two complete listings; the result is not to come before the event.
            let is_published = !is_delete || !snapshot.contains_key(&hash);
            if is_later
                && says_something
                && is_published
                && action.is_shown_by(seen)
                && let Some(shown) = shown.take()
            {
                // Fails only if the wait timed out this instant, and then there is no waiter.
                let _nobody_waits = shown.send(());
            }
        }
    }

    /// Whether a command waits for a poll.
    pub fn is_waiting(&self) -> bool {
        self.state().pending.values().any(Pending::is_awaited)
    }

    /// Adds the torrents for whose change a command waits.
    pub fn awaited(&self, into: &mut BTreeSet<InfoHash>) {
        let state = self.state();
        into.extend(state.pending.values().filter(|pending| pending.is_awaited()).map(|pending| pending.action.hash()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EffectWaiter<'_> {
    /// Notes that the client was asked: polls that begin from now on count.
    pub fn asked(&self) {
        let mut state = self.effects.state();
        let polls = state.polls;
        if let Some(pending) = state.pending.get_mut(&self.number) {
            pending.asked_after_poll = Some(polls);
        }
    }

    /// Whether a poll has shown the effect.
    pub fn is_shown(&mut self) -> bool {
        self.was_shown |= self.shown.try_recv().is_ok();
        self.was_shown
    }

    /// Waits until a poll shows the effect. Cancel-safe.
    pub async fn shown(&mut self) {
        if self.is_shown() {
            return;
        }
        if (&mut self.shown).await.is_ok() {
            self.was_shown = true;
        } else {
            // The sender exists as long as this waiter, or has sent.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for EffectWaiter<'_> {
    fn drop(&mut self) {
        let mut state = self.effects.state();
        let State { polls, judged, .. } = *state;
        let Some(mut pending) = state.pending.remove(&self.number) else { return };
        let Some(asked_after_poll) = pending.asked_after_poll else { return };
        let (hash, is_unseen) = (pending.action.hash(), judged <= asked_after_poll);
        // Only the first of a torrent is left, which has begun the check; so there are never more than torrents.
        let is_first = !state.pending.values().any(|other| other.left.is_some() && other.action.hash() == hash);
        if is_first && (is_unseen || pending.is_checked && pending.action.may_check()) {
            pending.left = Some(Left { after_poll: polls, is_unseen, checked: None });
            state.pending.insert(self.number, pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Changes, DiffState, Move, NewEvent, Rev, Seq, ServerName, ServerState, SnapshotTorrent, Timestamp,
    };

    const HASH: InfoHash = InfoHash::V1([1; 20]);

    fn torrent(status: Status) -> Arc<Torrent> {
        let json = serde_json::json!({
            "hash": HASH, "name": "a", "server": "home", "active": true, "downloaded": 0, "uploaded": 0, "length": 1,
            "progress": 0.0, "finished": false, "playing": false, "extra": {}, "status": status, "error": false,
            "stalled": false
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    /// A server whose polls show what happens to one torrent.
    #[derive(Default)]
    struct Polled(PendingEffects);

    impl Polled {
        fn expect(&self, id: &str, action: Action, status: Status) -> EffectWaiter<'_> {
            let waiter = self.0.expect(&CommandId::parse(id).unwrap(), &action, status == Status::Paused);
            waiter.asked();
            waiter
        }

        /// Polls, and returns the command that explains an event of this kind.
        fn poll(&self, status: Status, kind: Kind) -> Option<String> {
            self.poll_all(status, &[kind]).remove(0)
        }

        fn poll_all(&self, status: Status, kinds: &[Kind]) -> Vec<Option<String>> {
            let event = |kind: &Kind| NewEvent::of_torrent(*kind, Cause::Observed, torrent(status), Changes::new());
            let number = self.0.begin_poll();
            let mut change_set = ChangeSet {
                server: ServerName::parse("home").unwrap(),
                time: Timestamp::from_millis(0),
                events: kinds.iter().map(event).collect(),
                changes: BTreeMap::new(),
                state: Some(ServerState::default()),
            };
            self.0.attribute(&mut change_set);
            let one = SnapshotTorrent {
                torrent: torrent(status),
                rev: Rev(1),
                last_seq: Seq(1),
                changed_at: Timestamp::from_millis(0),
                diff_state: DiffState::default(),
            };
            // As a listing of changes in which it is not.
            let listing = Listing { covers: Covers::Changed, ..Listing::default() };
            self.0.judge(number, &listing, &[(HASH, one)].into_iter().collect());
            change_set.events.into_iter().map(|event| event.command_id.map(|id| id.to_string())).collect()
        }

        fn is_empty(&self) -> bool {
            self.0.state().pending.is_empty()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_of_a_check_has_the_command_as_its_cause_until_the_torrent_is_as_before() {
        let polled = Polled::default();
        let check = polled.expect("one", Action::Recheck(HASH), Status::Paused);
        let one = Some("one".to_owned());
        assert_eq!(polled.poll(Status::Checking, Kind::Checking), one);
        drop(check);
        assert_eq!(polled.poll(Status::Checking, Kind::Stopped), None);
        assert_eq!(polled.poll(Status::Checking, Kind::Error), None);
        // Somebody else's command comes first, and takes its own events alone.
        let label = polled.expect("two", Action::Label(HASH, "x".to_owned()), Status::Checking);
        assert_eq!(polled.poll(Status::Checking, Kind::LabelChanged), Some("two".to_owned()));
        drop(label);
        // Nothing is to be done for one that is being checked already.
        drop(polled.expect("three", Action::Recheck(HASH), Status::Checking));
        let start = polled.expect("four", Action::Start(HASH), Status::Checking);
        assert_eq!(polled.poll(Status::Checking, Kind::LabelChanged), None);
        drop(start);
        assert_eq!(polled.poll(Status::Seeding, Kind::Checked), one);
        assert_eq!(polled.poll(Status::Paused, Kind::Paused), one);
        assert_eq!(polled.poll(Status::Seeding, Kind::Resumed), None, "it was as before");
        assert!(polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_before_stops_a_torrent_because_of_the_check() {
        let polled = Polled::default();
        let start = polled.expect("one", Action::Start(HASH), Status::Stopped);
        polled.poll(Status::Checking, Kind::Checking);
        drop(start);
        let kinds = [Kind::Checked, Kind::Unfinished, Kind::Stopped, Kind::Error, Kind::LabelChanged];
        let [yes, no] = [Some("one".to_owned()), None];
        assert_eq!(polled.poll_all(Status::Stopped, &kinds), [&yes, &yes, &yes, &yes, &no].map(Clone::clone));
        assert!(polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_torrent_that_is_not_paused_again_is_not_waited_for_without_an_end() {
        let polled = Polled::default();
        let check = polled.expect("one", Action::Recheck(HASH), Status::Paused);
        assert!(polled.poll(Status::Checking, Kind::Checking).is_some());
        drop(check);
        tokio::time::advance(2 * SETTLE_TIMEOUT).await;
        assert!(polled.poll(Status::Seeding, Kind::Checked).is_some());
        tokio::time::advance(SETTLE_TIMEOUT).await;
        assert!(polled.poll(Status::Seeding, Kind::LabelChanged).is_none());
        assert!(polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_asked_for_or_is_not_checked_leaves_nothing() {
        let polled = Polled::default();
        let not_asked = polled.0.expect(&CommandId::parse("one").unwrap(), &Action::Recheck(HASH), false);
        polled.poll(Status::Checking, Kind::Checking);
        drop(not_asked);
        let paused = polled.expect("two", Action::Pause(HASH), Status::Seeding);
        polled.poll(Status::Checking, Kind::Checking);
        drop(paused);
        let moved = polled.expect("three", Action::Move(Move::new(HASH, "/d")), Status::Seeding);
        polled.poll(Status::Seeding, Kind::Moved);
        drop(moved);
        assert!(polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_poll_has_shown_yet_when_the_command_ends_is_of_the_command() {
        let polled = Polled::default();
        polled.poll(Status::Seeding, Kind::LabelChanged);
        drop(polled.expect("one", Action::Stop(HASH), Status::Seeding));
        assert_eq!(polled.poll(Status::Stopped, Kind::Stopped), Some("one".to_owned()));
        assert_eq!(polled.poll(Status::Stopped, Kind::Stopped), None);
        assert!(polled.is_empty());
        // Two listings without it show that it is gone.
        drop(polled.expect("two", Action::Delete(HASH), Status::Stopped));
        assert_eq!(polled.poll(Status::Stopped, Kind::LabelChanged), None);
        assert_eq!(polled.poll(Status::Stopped, Kind::Removed), Some("two".to_owned()));
        tokio::time::advance(SETTLE_TIMEOUT).await;
        polled.poll(Status::Stopped, Kind::LabelChanged);
        assert!(polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_began_before_the_end_of_a_command_ends_nothing() {
        let polled = Polled::default();
        let check = polled.expect("one", Action::Recheck(HASH), Status::Seeding);
        polled.poll(Status::Checking, Kind::Checking);
        let running = polled.0.begin_poll();
        drop(check);
        polled.0.judge(running, &Listing::default(), &Snapshot::default());
        assert!(!polled.is_empty());
        polled.0.begin_poll();
        polled.0.judge(running + 1, &Listing::default(), &Snapshot::default());
        assert!(polled.is_empty(), "the torrent is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_does_when_it_starts_comes_of_no_command() {
        let polled = Polled::default();
        let check = polled.expect("one", Action::Recheck(HASH), Status::Seeding);
        polled.poll(Status::Checking, Kind::Checking);
        drop(check);
        assert_eq!(polled.poll_all(Status::Seeding, &[Kind::ServerRestarted, Kind::Checked]), [None, None]);
        assert!(polled.is_empty());
    }
}
