//! Whose turn it is to ask the client.
//!
//! A client answers one question at a time. A thousand commands that come at once would stand before it in one line, and
//! whoever comes next would wait for all of them; so would the watcher, by whose looks commands are answered. So:
//!
//! - what is asked and answered in one short exchange goes out one batch after the other, the origins (a broker, HTTP)
//!   taking turns; when many wait, many go together, for most of an exchange is what it costs anyway;
//! - of what may take longer, each origin has a few under way, and the rest waits.
//!
//! Lives as long as one run of a worker, so that nothing is asked for a command of an earlier one.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::model::{Action, SinkName};
use crate::port::{Applied, ClientError, TorrentClient};

/// Fewer than this many go one by one: together they would cost the client a look at all torrents.
const TOGETHER_MIN: usize = 16;
/// With so many actions no more go together.
const TOGETHER_ACTIONS: usize = 100;
/// Of one origin so many may be under way that take longer.
const LONG_MAX: usize = 8;

type Answers = Vec<Result<Applied, ClientError>>;

#[derive(Default)]
pub(super) struct Asks {
    lines: Mutex<Lines>,
    arrived: Notify,
    long: Mutex<BTreeMap<SinkName, Arc<Semaphore>>>,
}

/// What waits, by origin.
#[derive(Default)]
struct Lines {
    waiting: BTreeMap<SinkName, VecDeque<Ask>>,
    /// Who had the last turn.
    last: Option<SinkName>,
}

struct Ask {
    actions: Vec<Action>,
    answers: oneshot::Sender<Answers>,
}

impl Asks {
    /// Has short actions asked for, when it is their turn.
    pub async fn ask(&self, origin: &SinkName, actions: Vec<Action>) -> Answers {
        let (sender, answers) = oneshot::channel();
        self.lines().waiting.entry(origin.clone()).or_default().push_back(Ask { actions, answers: sender });
        self.arrived.notify_one();
        match answers.await {
            Ok(answers) => answers,
            // Only when the worker ends, and this with it.
            Err(_) => pending().await,
        }
    }

    /// The right to ask for something that takes longer.
    pub async fn turn(&self, origin: &SinkName) -> OwnedSemaphorePermit {
        let places = {
            let mut long = self.long.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(long.entry(origin.clone()).or_insert_with(|| Arc::new(Semaphore::new(LONG_MAX))))
        };
        places.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Asks the client for what waits, as long as it is polled.
    pub async fn serve(&self, client: &dyn TorrentClient) -> Infallible {
        loop {
            let asks = self.lines().next();
            if asks.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let actions: Vec<Action> = asks.iter().flat_map(|ask| ask.actions.iter().cloned()).collect();
            let mut all = client.apply(&actions).await.into_iter();
            for Ask { actions, answers } in asks {
                // Who does not wait any more has ended with its worker.
                let _nobody_waits = answers.send(all.by_ref().take(actions.len()).collect()).is_err();
            }
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// What goes out next, together.
    fn next(&mut self) -> Vec<Ask> {
        let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
        let (mut asks, mut actions) = (Vec::new(), 0);
        while actions < TOGETHER_ACTIONS
            && (asks.is_empty() || waiting >= TOGETHER_MIN)
            && let Some(ask) = self.take_turn()
        {
            actions += ask.actions.len();
            asks.push(ask);
        }
        asks
    }

    /// The first of the origin that comes after the one whose turn it was.
    fn take_turn(&mut self) -> Option<Ask> {
        let is_after = |origin: &&SinkName| self.last.as_ref().is_none_or(|last| *origin > last);
        let origin = self.waiting.keys().find(is_after).or_else(|| self.waiting.keys().next())?.clone();
        let line = self.waiting.get_mut(&origin)?;
        let ask = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&origin);
        }
        self.last = Some(origin);
        ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InfoHash;

    /// As many asks of one action each as stand in `text` for each origin.
    fn lines(text: &[(&str, usize)]) -> Lines {
        let mut lines = Lines::default();
        for (origin, count) in text {
            let asks = (0..*count).map(|n| Ask {
                actions: vec![Action::Label(InfoHash::V1([n as u8; 20]), (*origin).to_owned())],
                answers: oneshot::channel().0,
            });
            lines.waiting.insert(SinkName::parse(origin).unwrap(), asks.collect());
        }
        lines
    }

    fn origins(asks: &[Ask]) -> String {
        asks.iter()
            .flat_map(|ask| &ask.actions)
            .map(|action| format!("{action:?}").chars().rev().nth(2).unwrap())
            .collect()
    }

    #[test]
    fn few_go_one_by_one_in_turns() {
        let mut lines = lines(&[("a", 3), ("b", 1), ("c", 2)]);
        let turns: Vec<String> =
            std::iter::from_fn(|| Some(origins(&lines.next())).filter(|o| !o.is_empty())).collect();
        assert_eq!(turns, ["a", "b", "c", "a", "c", "a"]);
    }

    #[test]
    fn whoever_sends_many_leaves_others_their_turn() {
        let mut lines = lines(&[("a", 1000), ("b", 2)]);
        let first = origins(&lines.next());
        assert_eq!(first.len(), TOGETHER_ACTIONS);
        assert_eq!(&first[..5], "ababa");
        assert_eq!(origins(&lines.next()), "a".repeat(TOGETHER_ACTIONS));
    }

    #[tokio::test]
    async fn each_origin_has_a_few_that_take_longer() {
        let asks = Asks::default();
        let [one, other] = ["one", "other"].map(|name| SinkName::parse(name).unwrap());
        let mut held = Vec::new();
        for _ in 0..LONG_MAX {
            held.push(asks.turn(&one).await);
        }
        let mut waits = Box::pin(asks.turn(&one));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(asks.turn(&other).await);
        held.pop();
        drop(waits.await);
    }
}
