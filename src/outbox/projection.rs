//! The projection of a sink: driven with the live state and the clock.
//!
//! A [`Projection`] decides what is due and when; here it is shown servers and events, and its state is on disk before a
//! message is sent that depends on it.

use std::time::Duration;

use tokio::time::Instant;

use super::background::unless_full;
use super::parts::DispatcherParts;
use crate::live_state::LiveServer;
use crate::model::{JournalEntry, ServerName, Timestamp};
use crate::port::{Delivery, Projection, ServerView, StoreError};

/// Shortest time between two wakes, however often a projection wants to be woken.
const WAKE_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// A projection, and how long it has been running.
pub(super) struct ProjectionDriver {
    projection: Box<dyn Projection>,
    began: Instant,
    /// To be saved, and not written yet.
    unsaved: Option<String>,
}

fn view(live: &LiveServer, now: Timestamp) -> ServerView<'_> {
    ServerView {
        snapshot: &live.snapshot,
        state: &live.state,
        stats: &live.stats,
        poll: live.poll.duration,
        poll_age: live.poll.last_success.map(|at| at.elapsed()),
        problem: live.poll.failure.as_deref(),
        now,
    }
}

impl ProjectionDriver {
    /// Continues with `saved`, the state that an earlier run saved.
    pub fn new(mut projection: Box<dyn Projection>, saved: Option<String>) -> Self {
        if let Some(saved) = saved {
            projection.restore(&saved);
        }
        Self { projection, began: Instant::now(), unsaved: None }
    }

    fn at(&self) -> Duration {
        self.began.elapsed()
    }

    /// Begins a new link: everything is due again.
    pub fn begin_link(&mut self) {
        self.projection.begin(self.at());
    }

    /// Returns the topics where it retains something, or soon will.
    pub fn retained_topics(&self) -> Vec<String> {
        self.projection.retained_topics()
    }

    /// Takes in an event that the sink acknowledged.
    pub fn on_event(&mut self, entry: &JournalEntry) {
        self.projection.on_event(entry, self.at());
    }

    /// Takes in that something about this server was published.
    pub fn on_change(&mut self, server: &ServerName) {
        self.projection.on_change(server);
    }

    /// Records that the sink acknowledged or refused a message to this topic.
    pub fn acknowledged(&mut self, topic: &str) {
        self.projection.acknowledged(topic);
    }

    /// Returns the next message that is due.
    pub fn next(&mut self) -> Option<Delivery> {
        self.projection.next(self.at())
    }

    /// Shows the projection the servers that it wants to see.
    pub fn refresh(&mut self, parts: &DispatcherParts) {
        let at = self.at();
        for server in &parts.settings.servers {
            if self.projection.needs_view(server, at) {
                parts.live.read(server, |live| self.projection.update(server, view(live, parts.clock.now()), at));
            }
        }
    }

    /// Waits until something is due, or something has come from the receiver. Cancel-safe.
    pub async fn due(&self) {
        let wake = self.projection.wake();
        let at = self.began + self.projection.wake_at(self.at());
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep_until(at.max(Instant::now() + WAKE_INTERVAL_MIN)) => {}
        }
    }

    /// Saves what must not be forgotten, or everything if the link has ended; on a full disk, later.
    pub async fn save(&mut self, parts: &DispatcherParts, is_last: bool) -> Result<(), StoreError> {
        if let Some(state) = self.projection.state_to_save(self.at(), is_last) {
            self.unsaved = Some(state);
        }
        let Some(state) = self.unsaved.clone() else { return Ok(()) };
        // The text is kept until it is written: the projection hands it out once.
        let saved = parts.store.save_projection_state(&parts.settings.name, state).await;
        if unless_full(saved)?.is_some() {
            self.unsaved = None;
        }
        Ok(())
    }
}
