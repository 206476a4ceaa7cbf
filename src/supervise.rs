//! Supervision of tasks. The only place that spawns.
//!
//! A task that panics is restarted with backoff, and the others do not notice (I13). A task that returns an error has
//! lost the store, which ends the process: no promise could be kept without it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::outbox::backoff::Backoff;
use crate::port::StoreError;

/// A group of tasks that are started and stopped together.
#[derive(Default)]
pub struct Group {
    tasks: JoinSet<Result<(), StoreError>>,
    /// The names of the tasks that have not ended.
    names: HashMap<Id, String>,
    stop: CancellationToken,
}

impl Group {
    /// Returns a group without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns the task that `make` returns, and a new one after each panic, until one returns or the group is stopped.
    pub fn spawn<F>(&mut self, name: String, make: impl Fn(CancellationToken) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let (task, stop) = (name.clone(), self.stop.clone());
        let restarted = async move {
            // Never reset: a task that panics once a day waits a little longer each time, and one that always does, up to
            // the limit.
            let mut backoff = Backoff::default();
            let restarts = metrics::counter!("dtorrent_task_restarts_total", "task" => task.clone());
            // Shown before the first restart, so that an alert sees it grow.
            restarts.increment(0);
            loop {
                // The call of `make` is inside the block, so that a panic in it is caught, too.
                let run = AssertUnwindSafe(async { make(stop.clone()).await }).catch_unwind();
                // The panic hook has printed the message.
                if let Ok(result) = run.await {
                    debug!(task, "ended");
                    return result;
                }
                error!(task, "task panicked, restarting it");
                restarts.increment(1);
                if stop.run_until_cancelled(tokio::time::sleep(backoff.next(rand::random()))).await.is_none() {
                    return Ok(());
                }
            }
        };
        self.names.insert(self.tasks.spawn(restarted).id(), name);
    }

    /// Waits until a task has lost the store; forever if none does. Cancel-safe.
    pub async fn failed(&mut self) -> StoreError {
        loop {
            match self.join_next().await {
                Some(Err(error)) => return error,
                Some(Ok(())) => {}
                // A group without tasks has not failed, and the caller waits for other things as well.
                None => std::future::pending().await,
            }
        }
    }

    /// Stops all tasks and waits for them; a task that has not ended after `timeout` is aborted and named in the log.
    ///
    /// An abort is as safe as a crash: what was not acknowledged is sent again.
    ///
    /// # Errors
    /// The last error with which a task ended.
    pub async fn stop(mut self, timeout: Duration) -> Result<(), StoreError> {
        self.stop.cancel();
        let mut result = Ok(());
        let ended = tokio::time::timeout(timeout, async {
            while let Some(ended) = self.join_next().await {
                // Not returned at once: the other tasks have to end as well.
                if ended.is_err() {
                    result = ended;
                }
            }
        });
        if ended.await.is_err() {
            for task in self.names.values() {
                warn!(task, ?timeout, "task did not stop in time, aborting it");
            }
            self.tasks.shutdown().await;
        }
        result
    }

    /// Waits for the next task to end; `None` if there is none. Cancel-safe.
    async fn join_next(&mut self) -> Option<Result<(), StoreError>> {
        let ended = self.tasks.join_next_with_id().await?;
        let name = self.names.remove(&ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id));
        Some(match ended {
            Ok((_, result)) => result,
            Err(error) => {
                // Panics of the task itself are caught, so this is one of the code that restarts it.
                error!(task = name, %error, "task ended unexpectedly");
                Ok(())
            }
        })
    }
}

/// Spawns a task that belongs to no group and runs until the process ends.
#[allow(clippy::disallowed_methods)] // `Group` holds the handles of all other tasks
pub fn spawn_detached(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        task.await;
        debug!(task = name, "ended");
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::{Event, Level, Metadata, Subscriber, span};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Collects the field `task` of each warning.
    #[derive(Clone, Default)]
    struct WarnedTasks(Arc<Mutex<Vec<String>>>);

    impl Subscriber for WarnedTasks {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    impl Visit for WarnedTasks {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == "task" {
                self.0.lock().unwrap().push(format!("{value:?}"));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stop_warns_of_each_task_that_did_not_end_in_time_by_name() {
        let mut group = Group::new();
        group.spawn("obedient".to_owned(), |stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        group.spawn("done".to_owned(), |_| async { Ok(()) });
        for name in ["watcher home", "sink b"] {
            group.spawn(name.to_owned(), |_| std::future::pending());
        }
        assert!(tokio::time::timeout(TIMEOUT, group.failed()).await.is_err(), "no task has lost the store");
        assert_eq!(group.names.len(), 3, "one task has ended");
        let warned = WarnedTasks::default();
        let _subscribed = tracing::subscriber::set_default(warned.clone());
        group.stop(TIMEOUT).await.unwrap();
        let mut tasks = warned.0.lock().unwrap().clone();
        tasks.sort_unstable();
        assert_eq!(tasks, ["\"sink b\"", "\"watcher home\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_restarted_and_an_error_is_reported() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let mut group = Group::new();
        group.spawn("flaky".to_owned(), move |_| {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(run == 2, "run {run} panics on purpose");
                Err(StoreError::Full { reason: "full".to_owned() })
            }
        });
        assert!(matches!(group.failed().await, StoreError::Full { .. }));
        assert_eq!(runs.load(Ordering::Relaxed), 3);
    }
}
