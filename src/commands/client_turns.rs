//! The order in which commands may ask a client.
//!
//! A client answers one request at a time. If a thousand commands asked at once, whoever comes next would wait for
//! all of them; so would the watcher, by whose polls commands are confirmed. So:
//!
//! - actions that take one short exchange go out one batch after the other, and the origins (a broker, HTTP) take
//!   turns; when many wait, many share an exchange, because the exchange is most of what an action costs;
//! - of requests that may take longer, each origin has a few at the client, and the others wait.
//!
//! Made for one run of a worker, so that nothing is asked for on behalf of an earlier one.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::model::{Action, SinkName};
use crate::port::{Applied, ClientError, TorrentClient};

/// With fewer requests waiting, each goes out alone: a shared exchange costs the client a listing of all torrents.
const BATCH_REQUESTS_MIN: usize = 16;
/// A shared exchange with so many actions takes no further request.
const BATCH_ACTIONS: usize = 100;
/// Requests of one origin that may be at the client and take longer.
const LONG_REQUESTS_MAX: usize = 8;

type Answers = Vec<Result<Applied, ClientError>>;

#[derive(Default)]
pub(super) struct ClientTurns {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    long: Mutex<BTreeMap<SinkName, Arc<Semaphore>>>,
}

/// The short requests that wait, by origin.
#[derive(Default)]
struct Waiting {
    requests: BTreeMap<SinkName, VecDeque<ShortRequest>>,
    /// The origin that had the last turn.
    last: Option<SinkName>,
}

struct ShortRequest {
    actions: Vec<Action>,
    answers: oneshot::Sender<Answers>,
}

impl ClientTurns {
    /// Has short actions asked for, when it is their turn; answers in their order.
    pub async fn apply(&self, origin: &SinkName, actions: Vec<Action>) -> Answers {
        let (sender, answers) = oneshot::channel();
        self.waiting().requests.entry(origin.clone()).or_default().push_back(ShortRequest { actions, answers: sender });
        self.arrived.notify_one();
        match answers.await {
            Ok(answers) => answers,
            // The worker has ended, and drops this future, too.
            Err(_) => pending().await,
        }
    }

    /// Waits for the right to make a request that takes longer; it ends with the permit.
    pub async fn long(&self, origin: &SinkName) -> OwnedSemaphorePermit {
        let permits = {
            let mut long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(long.entry(origin.clone()).or_insert_with(|| Arc::new(Semaphore::new(LONG_REQUESTS_MAX))))
        };
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Makes the short requests, as long as it is polled.
    pub async fn serve(&self, client: &dyn TorrentClient) -> Infallible {
        loop {
            let batch = self.waiting().next_batch();
            if batch.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let actions: Vec<Action> = batch.iter().flat_map(|request| request.actions.iter().cloned()).collect();
            // The call is inside the block, so that a panic in it is caught, too.
            let applied = AssertUnwindSafe(async { client.apply(&actions).await }).catch_unwind().await;
            // Each command asks again on its own account then, so that the one whose action it is panics alone.
            let all = applied.unwrap_or_else(|_| actions.iter().map(|_| Err(panicked())).collect());
            let mut all = all.into_iter();
            for ShortRequest { actions, answers } in batch {
                // Fails only if the command has ended with its worker.
                let _nobody_waits = answers.send(all.by_ref().take(actions.len()).collect()).is_err();
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the answer to a request that ended in a panic of the client: what was carried out is not known.
fn panicked() -> ClientError {
    ClientError::Broken { reason: "a fault in this program, its log says which".to_owned() }
}

impl Waiting {
    /// The requests that share the next exchange.
    fn next_batch(&mut self) -> Vec<ShortRequest> {
        let waiting: usize = self.requests.values().map(VecDeque::len).sum();
        let (mut batch, mut actions) = (Vec::new(), 0);
        while actions < BATCH_ACTIONS
            && (batch.is_empty() || waiting >= BATCH_REQUESTS_MIN)
            && let Some(request) = self.take_turn()
        {
            actions += request.actions.len();
            batch.push(request);
        }
        batch
    }

    /// The first request of the origin that comes after the one that had the last turn.
    fn take_turn(&mut self) -> Option<ShortRequest> {
        let is_after = |origin: &&SinkName| self.last.as_ref().is_none_or(|last| *origin > last);
        let origin = self.requests.keys().find(is_after).or_else(|| self.requests.keys().next())?.clone();
        let of_origin = self.requests.get_mut(&origin)?;
        let request = of_origin.pop_front();
        if of_origin.is_empty() {
            self.requests.remove(&origin);
        }
        self.last = Some(origin);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InfoHash;

    /// As many requests of one action each as `counts` says for each origin.
    fn waiting(counts: &[(&str, usize)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (origin, count) in counts {
            let requests = (0..*count).map(|n| ShortRequest {
                actions: vec![Action::Label(InfoHash::V1([n as u8; 20]), (*origin).to_owned())],
                answers: oneshot::channel().0,
            });
            waiting.requests.insert(SinkName::parse(origin).unwrap(), requests.collect());
        }
        waiting
    }

    fn origins(batch: &[ShortRequest]) -> String {
        batch
            .iter()
            .flat_map(|request| &request.actions)
            .map(|action| format!("{action:?}").chars().rev().nth(2).unwrap())
            .collect()
    }

    #[test]
    fn few_requests_go_out_one_by_one_in_turns() {
        let mut waiting = waiting(&[("a", 3), ("b", 1), ("c", 2)]);
        let turns: Vec<String> =
            std::iter::from_fn(|| Some(origins(&waiting.next_batch())).filter(|o| !o.is_empty())).collect();
        assert_eq!(turns, ["a", "b", "c", "a", "c", "a"]);
    }

    #[test]
    fn an_origin_with_many_requests_leaves_others_their_turn() {
        let mut waiting = waiting(&[("a", 1000), ("b", 2)]);
        let first = origins(&waiting.next_batch());
        assert_eq!(first.len(), BATCH_ACTIONS);
        assert_eq!(&first[..5], "ababa");
        assert_eq!(origins(&waiting.next_batch()), "a".repeat(BATCH_ACTIONS));
    }

    #[tokio::test]
    async fn each_origin_has_a_few_long_requests_at_the_client() {
        let turns = ClientTurns::default();
        let [one, other] = ["one", "other"].map(|name| SinkName::parse(name).unwrap());
        let mut held = Vec::new();
        for _ in 0..LONG_REQUESTS_MAX {
            held.push(turns.long(&one).await);
        }
        let mut waits = Box::pin(turns.long(&one));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(turns.long(&other).await);
        held.pop();
        drop(waits.await);
    }
}
