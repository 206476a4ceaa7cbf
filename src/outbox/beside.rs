//! What a sink shows beside events and states: its companion, asked and served.
//!
//! The companion decides what is due and when; here its messages get their names into the registry, its
//! memory onto the disk before what depends on it is sent, and the board is held open for its looks.

use std::time::Duration;

use tokio::time::Instant;

use super::dispatch::{Dispatcher, Sent};
use super::pick::Batch;
use crate::live_state::LiveServer;
use crate::model::{JournalEntry, ServerName};
use crate::port::{Companion, Delivery, StoreError, View};

/// However often a companion wants to be woken, no sooner.
const WAKE_EACH: Duration = Duration::from_millis(20);

pub(super) struct Beside {
    companion: Box<dyn Companion>,
    began: Instant,
    /// To be kept, and not written down yet.
    unnoted: Option<String>,
}

fn view(content: &LiveServer) -> View<'_> {
    View {
        snapshot: &content.snapshot,
        state: &content.state,
        stats: &content.stats,
        poll: content.poll.duration,
        poll_age: content.poll.last_success.map(|at| at.elapsed()),
        problem: content.poll.failure.as_deref(),
    }
}

impl Beside {
    pub fn new(mut companion: Box<dyn Companion>, memory: Option<String>) -> Self {
        if let Some(memory) = memory {
            companion.remember(&memory);
        }
        Self { companion, began: Instant::now(), unnoted: None }
    }

    fn at(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn begin(&mut self) {
        self.companion.begin(self.at());
    }

    pub fn names(&self) -> Vec<String> {
        self.companion.names()
    }

    pub fn heard(&mut self, entry: &JournalEntry) {
        self.companion.heard(entry, self.at());
    }

    pub fn taken(&mut self, topic: &str) {
        self.companion.taken(topic);
    }

    pub fn touch(&mut self, server: &ServerName) {
        self.companion.touch(server);
    }

    /// Waits until something is due, or there is news from the far side. Cancel-safe.
    pub async fn due(&self) {
        let news = self.companion.news();
        let at = self.began + self.companion.wake_at(self.at());
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep_until(at.max(Instant::now() + WAKE_EACH)) => {}
        }
    }
}

impl Dispatcher {
    pub(super) fn pick_beside(&mut self, free: usize, batch: &mut Batch) {
        let Some(beside) = &mut self.beside else { return };
        let at = beside.at();
        for server in self.lanes.keys().filter(|_| batch.len() < free) {
            if beside.companion.wants(server, at) {
                self.parts.live.read(server, |content| beside.companion.look(server, view(content), at));
            }
        }
        while batch.len() < free
            && let Some(delivery) = beside.companion.next(at)
        {
            match delivery {
                Delivery::Clear { name } if self.registry.knows(&name) => {
                    self.registry.clear(&name);
                    batch.push((Delivery::Clear { name: name.clone() }, Sent::Cleared { name }));
                }
                Delivery::Shown { topic, body, keep } => {
                    let sent = Sent::Shown { topic: topic.clone() };
                    let delivery = Delivery::Shown { topic, body, keep };
                    if let Some(name) = self.parts.sink.retained_topic(&delivery) {
                        self.registry.keep(&name);
                    }
                    batch.push((delivery, sent));
                }
                _ => {}
            }
        }
        if let Some(memory) = beside.companion.memory(at, false) {
            beside.unnoted = Some(memory);
        }
    }

    /// Writes down what the companion must not forget; without room it is tried again later.
    pub(super) async fn note_memory(&mut self, is_last: bool) -> Result<(), StoreError> {
        let Some(beside) = &mut self.beside else { return Ok(()) };
        if is_last && let Some(memory) = beside.companion.memory(beside.began.elapsed(), true) {
            beside.unnoted = Some(memory);
        }
        let Some(memory) = beside.unnoted.clone() else { return Ok(()) };
        let written = self.parts.store.save_projection_state(&self.parts.settings.name, memory).await;
        if self.unless_full(written)?.is_some()
            && let Some(beside) = &mut self.beside
        {
            beside.unnoted = None;
        }
        Ok(())
    }
}
