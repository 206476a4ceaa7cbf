//! Commands of those who wait for the result: in this process, or over HTTP.
//!
//! They come through the same door, stand in the same log, and get their one result the same way; only that
//! the result goes to who waits for it, not to a broker.
//!
//! What must hold: once a command is in the log it is carried out, whoever waits. So nobody who may leave at any
//! moment writes there himself; [`Caller::run`] does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::intake::{Door, TOGETHER_MAX};
use crate::log_throttle::retry_while_full;
use crate::model::{CommandId, ServerName};
use crate::port::{CommandAddress, Incoming, StoreError};

/// Results read from the command log at once.
const RESULTS_MAX: u16 = 64;

type Key = (Option<ServerName>, CommandId);
type Waiter = oneshot::Sender<Bytes>;

/// Takes commands for one origin, and hands on what they came to. See the module.
pub struct Caller {
    door: Door,
    orders: mpsc::Sender<(Incoming, Waiter)>,
    taken: AsyncMutex<mpsc::Receiver<(Incoming, Waiter)>>,
    waiting: Mutex<HashMap<Key, Vec<Waiter>>>,
}

impl Caller {
    /// The board has to have a desk for the door's origin, and the store to know of it.
    pub fn new(door: Door) -> Self {
        let (orders, taken) = mpsc::channel(TOGETHER_MAX);
        Self { door, orders, taken: AsyncMutex::new(taken), waiting: Mutex::default() }
    }

    /// Has a command carried out and waits for its result, in the bytes of the wire; `None` if `stop` comes first.
    ///
    /// Cancel-safe, in that a command is taken whole or not at all: it is carried out, whoever waits.
    pub async fn call(
        &self,
        address: CommandAddress,
        body: Bytes,
        user: Option<String>,
        stop: &CancellationToken,
    ) -> Option<Bytes> {
        let incoming = Incoming {
            address,
            body,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply: None,
            user,
            ack: Box::new(|| {}),
        };
        let (waiter, result) = oneshot::channel();
        let asked = async {
            self.orders.send((incoming, waiter)).await.ok()?;
            result.await.ok()
        };
        tokio::select! {
            biased;
            result = asked => result,
            () = stop.cancelled() => None,
        }
    }

    /// Takes commands in and hands results out, until `stop`.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        tokio::try_join!(self.take_in(&stop), self.hand_out(&stop)).map(|((), ())| ())
    }

    async fn take_in(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let mut taken = self.taken.lock().await;
        loop {
            let mut all = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = taken.recv_many(&mut all, TOGETHER_MAX) => {}
            }
            let (messages, waiters): (Vec<_>, Vec<_>) =
                all.into_iter().map(|(incoming, waiter)| ((incoming, None), waiter)).unzip();
            let mut waiters = waiters.into_iter();
            let expect = |key: Key| self.waiting().entry(key).or_default().extend(waiters.next());
            self.door.take(messages, expect, stop).await?;
        }
    }

    async fn hand_out(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let Some(buffer) = self.door.live.buffer(&self.door.origin) else { return Ok(()) };
        loop {
            self.hand_out_what_is_there().await?;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = buffer.results.notified() => {}
                // Nobody here wants states, and they shall not pile up.
                () = buffer.changed.notified() => drop(buffer.drain()),
            }
        }
    }

    async fn hand_out_what_is_there(&self) -> Result<(), StoreError> {
        #[derive(serde::Deserialize)]
        struct Named {
            id: CommandId,
        }
        loop {
            let results = self.door.store.unsent_results(&self.door.origin, 0, RESULTS_MAX).await?;
            if results.is_empty() {
                return Ok(());
            }
            for result in &results {
                let named = serde_json::from_slice::<Named>(&result.body).ok();
                let waiting = named.and_then(|named| self.waiting().remove(&(result.server.clone(), named.id)));
                for waiter in waiting.into_iter().flatten() {
                    // Who does not wait any more has gone, and misses nothing.
                    let _nobody_waits = waiter.send(result.body.clone()).is_err();
                }
            }
            let numbers: Vec<i64> = results.iter().map(|result| result.number).collect();
            retry_while_full("results", || self.door.store.mark_results_sent(numbers.clone())).await?;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Key, Vec<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
