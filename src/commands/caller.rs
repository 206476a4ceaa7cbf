//! Commands whose sender waits for the result, in this process or over HTTP.
//!
//! They pass the same admission, are in the same log, and get their one result the same way; but the result goes
//! to who waits for it, not to a broker.
//!
//! Once a command is in the log it is executed, whoever waits. So no future that may be dropped at any moment
//! writes to the log; [`Caller::run`] does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, BATCH_MAX};
use crate::log_throttle::retry_while_full;
use crate::model::{CommandError, CommandId, ErrorCode, OutcomeStatus, ServerName};
use crate::port::{CommandAddress, Incoming, StoreError};

/// Results read from the command log at a time.
const RESULTS_MAX: u16 = 64;

type Key = (Option<ServerName>, CommandId);
type Waiter = oneshot::Sender<CallResult>;

/// The result of a command that a caller waits for.
#[derive(Clone, Debug)]
pub struct CallResult {
    /// How it ended.
    pub status: OutcomeStatus,
    /// The code of its error, if it has one.
    pub error: Option<ErrorCode>,
    /// The whole result, as brokers get it.
    pub body: Bytes,
}

/// Takes commands of one origin and returns their results. See the module.
pub struct Caller {
    admission: Admission,
    sender: mpsc::Sender<(Incoming, Waiter)>,
    receiver: AsyncMutex<mpsc::Receiver<(Incoming, Waiter)>>,
    waiting: Mutex<HashMap<Key, Vec<Waiter>>>,
}

impl Caller {
    /// The live state has to have a buffer for the origin of the admission, and the store to know that sink.
    pub fn new(admission: Admission) -> Self {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        Self { admission, sender, receiver: AsyncMutex::new(receiver), waiting: Mutex::default() }
    }

    /// Has a command executed and returns its result; `None` if `stop` comes first.
    ///
    /// Cancel-safe: a command is taken whole or not at all, and is executed although nobody waits any more.
    pub async fn call(
        &self,
        address: CommandAddress,
        body: Bytes,
        user: Option<String>,
        stop: &CancellationToken,
    ) -> Option<CallResult> {
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
        let answered = async {
            self.sender.send((incoming, waiter)).await.ok()?;
            result.await.ok()
        };
        tokio::select! {
            biased;
            result = answered => result,
            () = stop.cancelled() => None,
        }
    }

    /// Takes commands and returns results until `stop`.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        tokio::try_join!(self.take_commands(&stop), self.return_results(&stop)).map(|((), ())| ())
    }

    async fn take_commands(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let mut receiver = self.receiver.lock().await;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = receiver.recv_many(&mut batch, BATCH_MAX) => {}
            }
            let (messages, waiters): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|(incoming, waiter)| ((incoming, None), waiter)).unzip();
            let mut waiters = waiters.into_iter();
            let on_judged = |key: Key| self.waiting().entry(key).or_default().extend(waiters.next());
            self.admission.admit(messages, on_judged, stop).await?;
        }
    }

    async fn return_results(&self, stop: &CancellationToken) -> Result<(), StoreError> {
        let Some(buffer) = self.admission.live.buffer(&self.admission.origin) else { return Ok(()) };
        loop {
            self.return_unsent_results().await?;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = buffer.results.notified() => {}
                // Nobody here reads states, and the buffer is not to grow.
                () = buffer.changed.notified() => drop(buffer.take_states()),
            }
        }
    }

    async fn return_unsent_results(&self) -> Result<(), StoreError> {
        #[derive(serde::Deserialize)]
        struct Head {
            id: CommandId,
            status: OutcomeStatus,
            error: Option<CommandError>,
        }
        loop {
            let results = self.admission.store.unsent_results(&self.admission.origin, 0, RESULTS_MAX).await?;
            if results.is_empty() {
                return Ok(());
            }
            for result in &results {
                let Ok(Head { id, status, error }) = serde_json::from_slice(&result.body) else { continue };
                let returned = CallResult { status, error: error.map(|error| error.code), body: result.body.clone() };
                for waiter in self.waiting().remove(&(result.server.clone(), id)).into_iter().flatten() {
                    // Fails only if the sender of the command has gone, and then nobody misses it.
                    let _nobody_waits = waiter.send(returned.clone()).is_err();
                }
            }
            let numbers: Vec<i64> = results.iter().map(|result| result.number).collect();
            retry_while_full("results", || self.admission.store.mark_results_sent(numbers.clone())).await?;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Key, Vec<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
