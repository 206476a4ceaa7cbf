//! What is asked over HTTP: read from the board, or handed to the same intake as commands of brokers.
//!
//! A command waits for its result as a broker's does: it is in the log, under the sink's name `@http`, and
//! its result is taken from there. Nobody may be waiting for it any more; it is crossed out all the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Content};
use crate::commands::{Envelope, TTL};
use crate::deliver::viewer::{Shown, Viewer, ViewerError, Wish};
use crate::http::{self, Answered, EventsWish, ListWish, Notice, Order};
use crate::model::{InfoHash, ServerName, SinkName, Torrent};
use crate::port::{
    Clock, CommandAddress, CommandSource, DeliverError, Incoming, ReplyTo, Store, StoreError, UnsentResult,
};
use crate::repeat::until_there_is_room;

/// Who asks over HTTP, in the line for whoever checks.
const USER: &str = "http";
/// Commands that wait to be taken in.
const ORDERS_MAX: usize = 64;
/// Beyond its time to live, for the effect to show.
const GRACE: Duration = Duration::from_secs(30);
/// Whatever its time to live, an answer is not waited for longer.
const PATIENCE_MAX: Duration = Duration::from_secs(10 * 60);
/// Results read from the command log at once.
const RESULTS_MAX: u16 = 64;

pub(super) struct Api {
    board: Arc<Board>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    orders: mpsc::Sender<Incoming>,
    incoming: Arc<AsyncMutex<mpsc::Receiver<Incoming>>>,
    waiting: Arc<Waiting>,
}

impl Api {
    pub(super) fn new(board: Arc<Board>, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let (orders, incoming) = mpsc::channel(ORDERS_MAX);
        let incoming = Arc::new(AsyncMutex::new(incoming));
        Self { board, store, clock, orders, incoming, waiting: Arc::default() }
    }

    /// Where the commands come from.
    pub(super) fn commands(&self) -> Box<dyn CommandSource> {
        Box::new(Orders { incoming: Arc::clone(&self.incoming) })
    }

    /// Takes results to who waits for them, until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub(super) async fn answer(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        let http = SinkName::http();
        let desk = Arc::clone(self.board.desk(&http).expect("the board has a desk for HTTP"));
        loop {
            let results = self.store.unsent_results(&http, 0, RESULTS_MAX).await?;
            for result in &results {
                self.waiting.answer(result);
            }
            if !results.is_empty() {
                let numbers: Vec<i64> = results.iter().map(|result| result.number).collect();
                until_there_is_room("results over HTTP", || self.store.results_sent(numbers.clone())).await?;
                continue;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = desk.answered.notified() => {}
            }
        }
    }
}

struct Orders {
    incoming: Arc<AsyncMutex<mpsc::Receiver<Incoming>>>,
}

#[async_trait]
impl CommandSource for Orders {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        let gone = || DeliverError::unavailable("HTTP is no longer served");
        self.incoming.lock().await.recv().await.ok_or_else(gone)
    }
}

/// Who waits for which result.
#[derive(Default)]
struct Waiting {
    book: Mutex<BTreeMap<u64, oneshot::Sender<Bytes>>>,
}

/// A place in the book; dropping it gives it up.
struct Ticket<'a> {
    waiting: &'a Waiting,
    number: u64,
    answer: oneshot::Receiver<Bytes>,
}

impl Waiting {
    fn wait(&self) -> Ticket<'_> {
        let (sender, answer) = oneshot::channel();
        // By chance, so that what a former life was asked for is not taken for what this one is.
        let number = rand::random();
        self.book().insert(number, sender);
        Ticket { waiting: self, number, answer }
    }

    fn answer(&self, result: &UnsentResult) {
        let number = result.reply.as_ref().and_then(|reply| reply.topic.parse::<u64>().ok());
        if let Some(waiter) = number.and_then(|number| self.book().remove(&number)) {
            // Refused only if the wait ended this instant: then nobody is interested.
            let _nobody_waits = waiter.send(result.body.clone());
        }
    }

    fn book(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Bytes>>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.waiting.book().remove(&self.number);
    }
}

#[async_trait]
impl http::Api for Api {
    fn servers(&self) -> Vec<Value> {
        let server = |name: &ServerName| self.board.read(name, |content| server(name, content));
        self.board.names().filter_map(server).collect()
    }

    fn sinks(&self) -> Vec<Value> {
        let sink = |(name, desk): (&SinkName, &Arc<crate::board::Desk>)| {
            let report = desk.last_report();
            let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            json!({
                "name": name,
                "status": if report.is_connected { "online" } else { "offline" },
                "problem": report.problem(),
                "lag_entries": report.lag_entries,
                "lag_seconds": super::report::rounded(lag_seconds),
                "dirty": report.dirty,
                "delivered": report.delivered,
                "rejected": report.rejected,
            })
        };
        self.board.desks().map(sink).collect()
    }

    fn torrents(&self, server: &ServerName, wish: &ListWish) -> Option<(Vec<Value>, u64)> {
        let now = self.clock.now();
        let ListWish { filter, fields, page, page_size, busiest_first } = wish;
        let matching: Vec<Arc<Torrent>> = self.board.read(server, |content| {
            let matching = content.told.values().filter(|told| filter.matches(&told.torrent, now));
            matching.map(|told| Arc::clone(&told.torrent)).collect()
        })?;
        let total = matching.len() as u64;
        let mut matching = matching;
        if *busiest_first {
            matching.sort_by_key(|torrent| {
                let rate = torrent.download_rate.unwrap_or(0) + torrent.upload_rate.unwrap_or(0);
                (Reverse(torrent.error), Reverse(rate), torrent.finished)
            });
        }
        let skipped = usize::try_from(page.saturating_mul(*page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(*page_size).unwrap_or(usize::MAX);
        let shown = matching.iter().skip(skipped).take(size).map(|torrent| {
            let mut torrent = serde_json::to_value(&**torrent).expect("a torrent is plain JSON");
            if let (Some(fields), Some(object)) = (fields, torrent.as_object_mut()) {
                object.retain(|key, _| fields.contains(key));
            }
            torrent
        });
        Some((shown.collect(), total))
    }

    fn torrent(&self, server: &ServerName, hash: InfoHash) -> Option<Value> {
        let torrent = self.board.read(server, |content| Some(Arc::clone(&content.told.get(&hash)?.torrent)))??;
        Some(serde_json::to_value(&*torrent).expect("a torrent is plain JSON"))
    }

    async fn command(&self, order: Order) -> Answered {
        let Order { server, hash, verb, body } = order;
        let (Envelope { id, ttl, .. }, _) = Envelope::read(&body);
        let patience = (ttl.unwrap_or(TTL) + GRACE).min(PATIENCE_MAX);
        let mut ticket = self.waiting.wait();
        let incoming = Incoming {
            address: CommandAddress { server: Some(server), hash, verb },
            body,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply: Some(ReplyTo { topic: ticket.number.to_string(), correlation: None }),
            user: Some(USER.to_owned()),
            ack: Box::new(|| ()),
        };
        if self.orders.send(incoming).await.is_err() {
            return Answered::Stopping;
        }
        match tokio::time::timeout(patience, &mut ticket.answer).await {
            Ok(Ok(body)) => Answered::Result(body),
            Ok(Err(_)) => Answered::Stopping,
            Err(_) => Answered::Running { id: id.map(|id| id.as_str().to_owned()) },
        }
    }

    fn events(&self, wish: EventsWish) -> BoxStream<'static, Notice> {
        let EventsWish { servers, kinds, after } = wish;
        let is_wanted = |name: &&ServerName| servers.as_ref().is_none_or(|servers| servers.contains(*name));
        let servers = self.board.names().filter(is_wanted).cloned().collect();
        let wish = Wish { servers, kinds, after };
        let viewer = Viewer::new(Arc::clone(&self.store), Arc::clone(&self.board), Arc::clone(&self.clock), wish);
        let begun = stream::once(async { viewer.await.map_err(ViewerError::from) });
        begun.flat_map(|viewer| stream::unfold(Some(viewer), next_notice)).boxed()
    }
}

type Begun = Result<Viewer, ViewerError>;

async fn next_notice(viewer: Option<Begun>) -> Option<(Notice, Option<Begun>)> {
    let shown = match viewer? {
        Ok(mut viewer) => viewer.next().await.map(|shown| (shown, viewer)),
        Err(error) => Err(error),
    };
    Some(match shown {
        Ok((Shown::Event(entry), viewer)) => {
            (Notice::Event { id: entry.id.to_string(), body: entry.body }, Some(Ok(viewer)))
        }
        Ok((Shown::Updated(body), viewer)) => (Notice::Updated(body), Some(Ok(viewer))),
        Ok((Shown::Gap { server, reason }, viewer)) => {
            (Notice::Gap(json!({"server": server, "reason": reason})), Some(Ok(viewer)))
        }
        Err(error) => (Notice::End(error.to_string()), None),
    })
}

fn server(name: &ServerName, content: &Content) -> Value {
    let poll = &content.poll;
    let stats: Value = serde_json::from_slice(&content.stats_body).unwrap_or_default();
    json!({
        "name": name,
        "status": if content.state.is_online { "online" } else { "offline" },
        "problem": poll.failure,
        "poll_age_seconds": poll.last_success.map(|at| super::report::rounded(at.elapsed().as_secs_f64())),
        "torrents": content.told.len(),
        "last_seq": content.last_seq,
        "stats": stats,
    })
}
