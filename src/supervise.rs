//! Tasks and their end. The only place that spawns.
//!
//! A task that panics is started again after a while, and the others do not notice (I13). A task
//! that returns an error has lost the store, and that ends the process: it would go on without
//! being able to keep a promise.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::outbox::backoff::Backoff;
use crate::port::StoreError;

/// Tasks that begin and end together.
pub struct Group {
    tasks: JoinSet<Result<(), StoreError>>,
    stop: CancellationToken,
}

impl Group {
    pub fn new() -> Self {
        Self { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    /// Runs what `make` makes, again after a panic, until it ends by itself or the group is stopped.
    pub fn spawn<F>(&mut self, name: String, make: impl Fn(CancellationToken) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut backoff = Backoff::default();
            loop {
                let task = AssertUnwindSafe(async { make(stop.clone()).await }).catch_unwind();
                match task.await {
                    Ok(result) => {
                        debug!(task = name, "ended");
                        return result;
                    }
                    Err(_told_by_the_panic_hook) => {}
                }
                error!(task = name, "a task failed by a fault in this program and is started again");
                metrics::counter!("dtorrent_task_restarts_total", "task" => name.clone()).increment(1);
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(backoff.next(rand::random())) => {}
                }
            }
        });
    }

    /// Waits until a task has lost the store; for ever if none does. Cancel-safe.
    pub async fn failed(&mut self) -> StoreError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Ok(Ok(()))) => {}
                Some(Err(error)) => error!(%error, "a task ended in an unforeseen way"),
                None => std::future::pending().await,
            }
        }
    }

    /// Asks all to end, and ends those that have not after `limit`, which is as safe as a crash.
    pub async fn stop(mut self, limit: Duration) -> Result<(), StoreError> {
        self.stop.cancel();
        let mut result = Ok(());
        let ended = tokio::time::timeout(limit, async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok(Err(error)) = ended {
                    result = Err(error);
                }
            }
        });
        if ended.await.is_err() {
            debug!(left = self.tasks.len(), "tasks that did not end in time are ended");
            self.tasks.shutdown().await;
        }
        result
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs something beside all else until the process ends.
#[allow(clippy::disallowed_methods)] // the one place where it is allowed
pub fn for_ever(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        task.await;
        debug!(task = name, "ended");
    });
}
