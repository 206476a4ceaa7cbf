//! Pending effects: the changes that running commands expect, and the events that they explain.
//!
//! A command registers its action *before* it asks the client, so that an event of the next poll has the command as
//! its cause, however fast it comes. Whether the effect is there is judged only by polls that began *after* the
//! client was asked: an earlier one may show the state of before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::{Action, Cause, ChangeSet, CommandId, Covers, InfoHash, Listing, Snapshot};

/// The pending effects of one server.
#[derive(Default)]
pub struct PendingEffects {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Polls begun in this run.
    polls: u64,
    /// Effects registered in this run.
    registered: u64,
    /// The effects by their number, so the oldest first: of two commands, the first explains an event.
    pending: BTreeMap<u64, Pending>,
}

struct Pending {
    command: CommandId,
    action: Action,
    /// Polls begun when the client was asked; only later ones are judged. `None` until then.
    asked_after_poll: Option<u64>,
    /// `None` once the effect was shown.
    shown: Option<oneshot::Sender<()>>,
}

impl Pending {
    fn is_awaited(&self) -> bool {
        self.asked_after_poll.is_some() && self.shown.is_some()
    }
}

/// Waits for one effect; dropping it takes the effect back.
pub struct EffectWaiter<'a> {
    effects: &'a PendingEffects,
    number: u64,
    shown: oneshot::Receiver<()>,
    was_shown: bool,
}

impl PendingEffects {
    /// Registers what `command` is about to ask for.
    pub fn expect(&self, command: &CommandId, action: &Action) -> EffectWaiter<'_> {
        let (sender, shown) = oneshot::channel();
        let mut state = self.state();
        state.registered += 1;
        let number = state.registered;
        let (command, action) = (command.clone(), action.clone().without_source());
        state.pending.insert(number, Pending { command, action, asked_after_poll: None, shown: Some(sender) });
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
        let state = self.state();
        // One pass over the effects: an `add` of thousands has as many of both.
        let mut by_hash: HashMap<InfoHash, Vec<&Pending>> = HashMap::new();
        for pending in state.pending.values() {
            by_hash.entry(pending.action.hash()).or_default().push(pending);
        }
        for new_event in &mut change_set.events {
            let Some(hash) = new_event.torrent.as_ref().map(|torrent| torrent.hash) else { continue };
            let mut of_torrent = by_hash.get(&hash).into_iter().flatten();
            if let Some(pending) = of_torrent.find(|pending| pending.action.explains(new_event.kind)) {
                new_event.cause = Cause::Command;
                new_event.command_id = Some(pending.command.clone());
            }
        }
    }

    /// Resolves the effects that a poll shows, after its change set was committed.
    pub fn judge(&self, poll: u64, listing: &Listing, snapshot: &Snapshot) {
        for pending in self.state().pending.values_mut() {
            let Pending { action, asked_after_poll, shown, .. } = pending;
            let (hash, is_delete) = (action.hash(), matches!(action, Action::Delete(_)));
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
        self.effects.state().pending.remove(&self.number);
    }
}
