//! Commands from within the process: asked for as from anywhere else, and waited for.
//!
//! They come through the same door, stand in the same log, and get their one result the same way; only that
//! the result goes to who waits for it, not to a broker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::intake::Door;
use crate::model::{CommandId, ServerName};
use crate::port::{CommandAddress, Incoming, StoreError};

/// Results read from the command log at once.
const RESULTS_MAX: u16 = 64;

type Key = (Option<ServerName>, CommandId);

/// Takes commands for one origin, and hands on what they came to. See the module.
pub struct Caller {
    door: Door,
    waiting: Mutex<HashMap<Key, Vec<oneshot::Sender<Bytes>>>>,
}

impl Caller {
    /// The board has to have a desk for the door's origin, and the store to know of it.
    pub fn new(door: Door) -> Self {
        Self { door, waiting: Mutex::default() }
    }

    /// Takes a command and waits for its result, in the bytes of the wire; `None` if `stop` comes first.
    ///
    /// Not cancel-safe in what it does: a command that was taken is carried out, whoever waits.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn call(
        &self,
        address: CommandAddress,
        body: Bytes,
        user: Option<String>,
        stop: &CancellationToken,
    ) -> Result<Option<Bytes>, StoreError> {
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
        let mut result = None;
        let expect = |key: Key| {
            let (sender, receiver) = oneshot::channel();
            self.waiting().entry(key).or_default().push(sender);
            result = Some(receiver);
        };
        self.door.take_one(incoming, expect, stop).await?;
        let Some(result) = result else { return Ok(None) };
        tokio::select! {
            biased;
            result = result => Ok(result.ok()),
            () = stop.cancelled() => Ok(None),
        }
    }

    /// Hands results to those who wait for them, until `stop`.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        let Some(desk) = self.door.board.desk(&self.door.origin) else { return Ok(()) };
        loop {
            self.hand_out().await?;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = desk.answered.notified() => {}
                // Nobody here wants states, and they shall not pile up.
                () = desk.laid.notified() => drop(desk.take()),
            }
        }
    }

    async fn hand_out(&self) -> Result<(), StoreError> {
        #[derive(serde::Deserialize)]
        struct Named {
            id: CommandId,
        }
        loop {
            let results = self.door.store.unsent_results(&self.door.origin, 0, RESULTS_MAX).await?;
            if results.is_empty() {
                return Ok(());
            }
            for result in results {
                let named = serde_json::from_slice::<Named>(&result.body).ok();
                let waiting = named.and_then(|named| self.waiting().remove(&(result.server.clone(), named.id)));
                for sender in waiting.into_iter().flatten() {
                    // Who does not wait any more has gone, and misses nothing.
                    let _nobody_waits = sender.send(result.body.clone()).is_err();
                }
                self.door.store.results_sent(vec![result.number]).await?;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Key, Vec<oneshot::Sender<Bytes>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
