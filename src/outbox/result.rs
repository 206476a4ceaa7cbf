//! The results of commands that came by one sink, from the command log.
//!
//! A result is sent whole, or in parts where the receiver takes no message of its size; counted as delivered when its last
//! part is. One that is rejected is replaced by a shorter one, as long as there is one: a command never stays without an
//! answer. Which results were delivered is written in the background, and until then none of them is read again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::background::{BackgroundWrite, Request, start};
use super::parts::DispatcherParts;
use super::{DeliveryId, Outbox, Outcome, Outgoing, Piece, Rejection};
use crate::model::{JournalEntry, in_parts, shorter, shortest};
use crate::port::{Delivery, StoreError, UnsentResult};

/// Results read from the command log at once.
const READ_MAX: u16 = 256;
/// Rows of a list in one part of its result.
const ROWS_MAX: usize = 1000;

/// See the module.
pub(super) struct ResultOutbox {
    parts: Arc<DispatcherParts>,
    /// Largest message of the link, in bytes.
    bytes_max: Option<usize>,
    /// There may be results in the store that were not read.
    may_have_more: bool,
    /// All results up to this number were read on this link.
    read_to: i64,
    read_ahead: Option<Request<Vec<UnsentResult>>>,
    /// Read, and not saved as delivered.
    open: HashMap<i64, OpenResult>,
    /// Parts to be sent, in this order.
    pending: VecDeque<Outgoing>,
    /// The last substitute of each rejected result: on another link the whole is not tried once more.
    shortened: HashMap<i64, Bytes>,
    /// Delivered, which is not saved yet.
    unsaved: BTreeSet<i64>,
    saving: BackgroundWrite<Vec<i64>>,
}

/// A result that is being delivered.
struct OpenResult {
    result: UnsentResult,
    /// Parts that are not acknowledged or given up.
    parts_left: usize,
    /// A part was rejected, and a shorter result goes in place of the whole.
    is_replaced: bool,
}

impl ResultOutbox {
    /// An outbox that reads the command log with the first batch.
    pub fn new(parts: &Arc<DispatcherParts>) -> Self {
        Self {
            parts: Arc::clone(parts),
            bytes_max: None,
            may_have_more: true,
            read_to: 0,
            read_ahead: None,
            open: HashMap::new(),
            pending: VecDeque::new(),
            shortened: HashMap::new(),
            unsaved: BTreeSet::new(),
            saving: BackgroundWrite::default(),
        }
    }

    /// Splits results that are larger than the link takes.
    pub fn set_bytes_max(&mut self, bytes_max: Option<usize>) {
        self.bytes_max = bytes_max;
    }

    /// Reads the command log again: a result was written.
    pub fn wake(&mut self) {
        self.may_have_more = true;
    }

    /// Whether more may be read: what is in flight is less than a page.
    fn has_room(&self) -> bool {
        let bytes: usize = self.open.values().map(|open| open.result.body.len()).sum();
        bytes < self.parts.store.results_page_bytes()
    }

    fn start_reading(&self) -> Request<Vec<UnsentResult>> {
        let (store, sink, after) = (Arc::clone(&self.parts.store), self.parts.settings.name.clone(), self.read_to);
        start(async move { store.unsent_results(&sink, after, READ_MAX).await })
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let ahead = self.read_ahead.take();
        // A result that was written after the read ahead began is not in it, and its wake is used up: read once more.
        self.may_have_more = ahead.is_some();
        let results = ahead.unwrap_or_else(|| self.start_reading()).await?;
        self.read_to = results.last().map_or(self.read_to, |result| result.number);
        let bytes: usize = results.iter().map(|result| result.body.len()).sum();
        if results.len() >= usize::from(READ_MAX) || bytes >= self.parts.store.results_page_bytes() {
            self.read_ahead = Some(self.start_reading());
            self.may_have_more = true;
        }
        for result in results {
            if !self.open.contains_key(&result.number) {
                self.open(result);
            }
        }
        Ok(())
    }

    fn open(&mut self, result: UnsentResult) {
        let number = result.number;
        let (pieces, is_replaced) = match (self.shortened.get(&number), self.bytes_max) {
            (Some(body), _) => (vec![(Piece::Substitute(body.len()), body.clone())], true),
            (None, None) => (vec![(Piece::Part(0), result.body.clone())], false),
            (None, Some(bytes_max)) => {
                let parts = in_parts(&result.body, ROWS_MAX, bytes_max).into_iter().enumerate();
                (parts.map(|(at, body)| (Piece::Part(at), body)).collect(), false)
            }
        };
        let parts_left = pieces.len();
        self.pending.extend(pieces.into_iter().map(|(piece, body)| outgoing(&result, piece, body)));
        self.open.insert(number, OpenResult { result, parts_left, is_replaced });
    }

    /// Puts a shorter result in place of a rejected one; where each attempt costs several connections, the shortest.
    fn replace(&mut self, number: i64, piece: Piece, reason: &str, is_poison: bool) {
        let Some(open) = self.open.get_mut(&number) else { return };
        let is_part = matches!(piece, Piece::Part(_));
        if is_part && std::mem::replace(&mut open.is_replaced, true) {
            // Other parts were rejected as well: one substitute is enough.
            return;
        }
        let rejected = self.shortened.get(&number).filter(|_| !is_part).unwrap_or(&open.result.body);
        let shorten = if is_poison { shortest } else { shorter };
        let Some(body) = shorten(rejected, reason).map(Bytes::from) else { return };
        // The substitute counts as a part: the result is not delivered before that is acknowledged.
        open.parts_left += 1;
        self.pending.push_front(outgoing(&open.result, Piece::Substitute(body.len()), body.clone()));
        self.shortened.insert(number, body);
    }

    fn saved(&mut self, numbers: Vec<i64>) {
        for number in numbers {
            self.unsaved.remove(&number);
            self.open.remove(&number);
            self.shortened.remove(&number);
        }
        self.parts.buffer.results_sent.notify_one();
    }

    fn start_saving(&mut self) {
        if self.saving.is_running() || self.unsaved.is_empty() {
            return;
        }
        let numbers: Vec<i64> = self.unsaved.iter().copied().collect();
        let (store, sent) = (Arc::clone(&self.parts.store), numbers.clone());
        self.saving.start(numbers, async move { store.mark_results_sent(sent).await });
    }
}

fn outgoing(result: &UnsentResult, piece: Piece, body: Bytes) -> Outgoing {
    let UnsentResult { number, server, reply, .. } = result;
    let delivery = Delivery::Result { server: server.clone(), body, reply: reply.clone() };
    (DeliveryId::Result(*number, piece), delivery)
}

impl Outbox for ResultOutbox {
    async fn next(&mut self, budget: usize) -> Result<Vec<Outgoing>, StoreError> {
        if let Some(numbers) = self.saving.try_finish()? {
            self.saved(numbers);
        }
        if self.pending.is_empty() && self.may_have_more && self.has_room() {
            self.read().await?;
        }
        let count = budget.min(self.pending.len());
        Ok(self.pending.drain(..count).collect())
    }

    async fn resolve(&mut self, id: DeliveryId, outcome: Outcome) -> Result<Option<JournalEntry>, StoreError> {
        let DeliveryId::Result(number, piece) = id else { return Ok(None) };
        if let Err(Rejection { reason, is_poison }) = outcome {
            warn!(sink = %self.parts.settings.name, reason = &*reason, "result rejected");
            self.replace(number, piece, &reason, is_poison);
        }
        if let Some(open) = self.open.get_mut(&number) {
            open.parts_left = open.parts_left.saturating_sub(1);
            if open.parts_left == 0 {
                // Only that it was delivered is still to be saved.
                open.result.body = Bytes::new();
                self.unsaved.insert(number);
                self.start_saving();
            }
        }
        Ok(None)
    }

    async fn save(&mut self) -> Result<(), StoreError> {
        // Twice: results that were delivered while the first write was running are in the second.
        for _ in 0..2 {
            if let Some(numbers) = self.saving.finish().await? {
                self.saved(numbers);
            }
            self.start_saving();
        }
        Ok(())
    }

    fn reset_in_flight(&mut self) {
        self.pending.clear();
        // From the first unsent result on: those in flight may not have arrived.
        self.read_to = 0;
        self.read_ahead = None;
        self.may_have_more = true;
        // Results that only wait to be saved are not sent again.
        self.open.retain(|number, _| self.unsaved.contains(number));
    }

    /// Results that were read; a stopping process does not wait for others.
    fn backlog(&self) -> u64 {
        self.pending.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use serde_json::{Value, json};

    use super::super::testing::{TestSetup, acknowledge, ids, rejected, sink_name};
    use super::*;
    use crate::model::{CommandId, MemoryShares, OutcomeStatus, PageBytes, Timestamp};
    use crate::port::{CommandLog as _, LoggedCommand, LoggedResult};

    /// Writes a result down, as one that is refused at once.
    async fn write(setup: &TestSetup, id: &str, body: impl Into<Bytes>) {
        let command = LoggedCommand {
            id: CommandId::parse(id).unwrap(),
            server: None,
            origin: sink_name(),
            hash: None,
            verb: None,
            body: Bytes::new(),
            digest: None,
            received_at: Timestamp::from_seconds(0),
            expires_at: Timestamp::from_seconds(300),
            reply: None,
            sees_secrets: false,
            is_started: false,
            begun: Vec::new(),
            is_answered: false,
            crashes: 0,
        };
        let result = LoggedResult { status: OutcomeStatus::Refused, body: body.into() };
        setup.store.record_commands(vec![(command, Some(result))]).await.unwrap();
    }

    /// The result of a command that was done, with so many rows.
    fn rows(count: usize) -> String {
        let rows: Vec<Value> = (0..count).map(|row| json!({"hash": format!("{row:040}"), "status": "ok"})).collect();
        json!({"id": "one", "status": "ok", "results": rows}).to_string()
    }

    fn bodies(batch: &[Outgoing]) -> Vec<String> {
        let body = |(_, delivery): &Outgoing| match delivery {
            Delivery::Result { body, .. } => String::from_utf8(body.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        batch.iter().map(body).collect()
    }

    async fn unsent(setup: &TestSetup) -> usize {
        setup.store.unsent_results(&sink_name(), 0, 9).await.unwrap().len()
    }

    #[tokio::test]
    async fn about_a_page_of_results_is_in_flight_and_one_whatever_its_size() {
        let pages = PageBytes { results: 1_000, ..PageBytes::default() };
        let setup = TestSetup::with_shares(MemoryShares { pages, ..MemoryShares::default() }).await;
        let mut outbox = ResultOutbox::new(&setup.parts);
        let sent: Vec<String> =
            (0..8).map(|number| number.to_string().repeat(if number == 5 { 5_000 } else { 400 })).collect();
        for (number, body) in sent.iter().enumerate() {
            write(&setup, &number.to_string(), body.clone()).await;
        }
        let (mut taken, mut sizes) = (Vec::new(), Vec::new());
        loop {
            let batch = outbox.next(99).await.unwrap();
            if batch.is_empty() {
                break;
            }
            assert!(outbox.next(99).await.unwrap().is_empty(), "nothing more before an acknowledgement");
            sizes.push(batch.len());
            taken.extend(bodies(&batch));
            acknowledge(&mut outbox, batch).await;
        }
        assert_eq!((taken, sizes), (sent, vec![3, 3, 2]));
    }

    #[tokio::test]
    async fn a_result_is_sent_once_on_each_link_until_that_it_was_delivered_is_saved() {
        let setup = TestSetup::new().await;
        let mut outbox = ResultOutbox::new(&setup.parts);
        write(&setup, "one", "1").await;
        write(&setup, "two", "2").await;
        let batch = outbox.next(9).await.unwrap();
        assert_eq!(bodies(&batch), ["1", "2"]);
        outbox.wake();
        assert!(outbox.next(9).await.unwrap().is_empty());
        setup.store.is_full.store(true, Ordering::Relaxed);
        let mut batch = batch.into_iter();
        acknowledge(&mut outbox, batch.by_ref().take(1).collect()).await;
        outbox.save().await.unwrap();
        outbox.reset_in_flight();
        assert_eq!(bodies(&outbox.next(9).await.unwrap()), ["2"], "the other only waits for the disk");
        setup.store.is_full.store(false, Ordering::Relaxed);
        outbox.save().await.unwrap();
        assert_eq!(unsent(&setup).await, 1);
    }

    #[tokio::test]
    async fn a_result_is_delivered_when_its_last_part_is() {
        let setup = TestSetup::new().await;
        let mut outbox = ResultOutbox::new(&setup.parts);
        outbox.set_bytes_max(Some(2_000));
        write(&setup, "one", rows(60)).await;
        let mut batch = outbox.next(100).await.unwrap();
        assert!(batch.len() > 1 && bodies(&batch).iter().all(|body| body.len() <= 2_000));
        let last = batch.pop().unwrap();
        acknowledge(&mut outbox, batch).await;
        outbox.save().await.unwrap();
        assert_eq!(unsent(&setup).await, 1);
        acknowledge(&mut outbox, vec![last]).await;
        outbox.save().await.unwrap();
        assert_eq!(unsent(&setup).await, 0);
    }

    #[tokio::test]
    async fn a_rejected_result_is_replaced_by_a_shorter_one_also_on_the_next_link() {
        let setup = TestSetup::new().await;
        let mut outbox = ResultOutbox::new(&setup.parts);
        write(&setup, "one", rows(3)).await;
        let whole = outbox.next(9).await.unwrap();
        outbox.resolve(ids(&whole)[0].clone(), rejected("too large")).await.unwrap();
        let substitute = outbox.next(9).await.unwrap();
        assert!(bodies(&substitute)[0].len() < bodies(&whole)[0].len());
        outbox.reset_in_flight();
        let again = outbox.next(9).await.unwrap();
        assert_eq!(bodies(&again), bodies(&substitute));
        acknowledge(&mut outbox, again).await;
        outbox.save().await.unwrap();
        assert_eq!(unsent(&setup).await, 0);
    }
}
