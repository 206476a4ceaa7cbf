//! Commands whose sender waits for the result in this process: a user of the library, or one over HTTP.
//!
//! Such commands pass the same admission, are in the same log, and get their one result the same way; but the result goes
//! to who waits for it, not to a broker. A new command is answered with its outcome as soon as that is in the log. One that
//! repeats an id is answered from the log, as a repeated message of a broker is.
//!
//! Once a command is in the log it is executed, whoever waits. So no future that may be dropped at any moment
//! writes to the log; [`Caller::run`] does.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, BATCH_MAX, Received};
use super::request::Envelope;
use super::sender::{CallResult, Waiter};
use crate::log_throttle::retry_while_full;
use crate::model::{CommandId, Outcome, ServerName};
use crate::port::{CommandAddress, Incoming, StoreError};

/// Results read from the command log at a time.
const RESULTS_MAX: u16 = 64;

/// Who repeated a command that has no result yet, or had it before.
type Repeaters = HashMap<(Option<ServerName>, CommandId), Vec<Waiter>>;

/// Takes commands of one origin and returns their results. See the module.
pub struct Caller {
    admission: Admission,
    sender: mpsc::Sender<Received>,
    // Locked by `run` for as long as it runs; here, so that no command and no sender is lost when that is restarted.
    state: Mutex<State>,
}

struct State {
    receiver: mpsc::Receiver<Received>,
    repeaters: Repeaters,
}

impl Caller {
    /// Returns a caller for the origin of `admission`, of which the live state has a buffer and which the store knows.
    pub fn new(admission: Admission) -> Self {
        let (sender, receiver) = mpsc::channel(BATCH_MAX);
        Self { admission, sender, state: Mutex::new(State { receiver, repeaters: Repeaters::new() }) }
    }

    /// Reads what a body says besides what it asks for.
    pub fn envelope(&self, body: &[u8]) -> Envelope {
        Envelope::read(body, self.admission.bridge.trees()).0
    }

    /// Has a command executed and returns its result; `None` if `stop` comes first.
    ///
    /// Cancel-safe: a command is taken whole or not at all, and is executed also if the call is dropped.
    pub async fn call(
        &self,
        address: CommandAddress,
        body: Bytes,
        user: Option<String>,
        stop: &CancellationToken,
    ) -> Option<CallResult> {
        let incoming = Incoming {
            address,
            body_bytes: body.len(),
            body,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply: None,
            user,
            ack: Box::new(|| {}),
        };
        let (waiter, mut result) = Waiter::new();
        let answered = async {
            self.sender.send(Received { incoming, unattended_since: None, waiter: Some(waiter) }).await.ok()?;
            result.recv().await
        };
        stop.run_until_cancelled(answered).await.flatten()
    }

    /// Takes commands and returns results until `stop`.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        let Some(buffer) = self.admission.common.live.buffer(&self.admission.origin) else { return Ok(()) };
        let mut state = self.state.lock().await;
        let State { receiver, repeaters } = &mut *state;
        // Results of an earlier run, for which no caller waits any more.
        self.return_logged(repeaters).await?;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // A caller reads no states, and the buffer is not to grow.
                () = buffer.changed.notified() => drop(buffer.take_states()),
                // Before the results: those of a flood from another origin wake this task, too, again and again. And
                // commands cannot starve results, because each sender waits for its own.
                _ = receiver.recv_many(&mut batch, BATCH_MAX) => {
                    let on_repeated = |key, waiter| repeaters.entry(key).or_default().push(waiter);
                    self.admission.admit(batch, on_repeated, &stop).await?;
                }
                () = buffer.results.notified() => self.return_logged(repeaters).await?,
            }
        }
    }

    /// Takes the results of this origin out of the log, and returns them to those who repeated their commands.
    async fn return_logged(&self, repeaters: &mut Repeaters) -> Result<(), StoreError> {
        loop {
            let results = self.admission.common.store.unsent_results(&self.admission.origin, 0, RESULTS_MAX).await?;
            if results.is_empty() {
                return Ok(());
            }
            for result in &results {
                // A sender that did not repeat a command has its result already.
                if repeaters.is_empty() {
                    break;
                }
                let Ok(outcome) = serde_json::from_slice::<Outcome>(&result.body) else { continue };
                for waiter in repeaters.remove(&(result.server.clone(), outcome.id.clone())).into_iter().flatten() {
                    waiter.answer(outcome.clone(), result.body.clone());
                }
            }
            let numbers: Vec<i64> = results.iter().map(|result| result.number).collect();
            retry_while_full("results", || self.admission.common.store.mark_results_sent(numbers.clone())).await?;
        }
    }
}
