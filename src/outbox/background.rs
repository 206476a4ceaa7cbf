//! Requests to the store that sending does not wait for.

use futures_util::FutureExt;
use tokio_util::sync::ReusableBoxFuture;
use tracing::debug;

use crate::port::StoreError;

/// A request to the store that was started.
pub(super) type Request<T> = ReusableBoxFuture<'static, Result<T, StoreError>>;

/// Starts a request: the store's thread works on it while something else is done here.
pub(super) fn start<T: Send + 'static>(
    request: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Request<T> {
    let mut request = ReusableBoxFuture::new(request);
    // A future does nothing before its first poll, and must not be polled again once it has ended.
    if let Some(answer) = (&mut request).now_or_never() {
        request.set(std::future::ready(answer));
    }
    request
}

/// At most one write at a time, with a note of what it writes.
pub(super) struct BackgroundWrite<T> {
    running: Option<(T, Request<()>)>,
}

impl<T> Default for BackgroundWrite<T> {
    fn default() -> Self {
        Self { running: None }
    }
}

impl<T> BackgroundWrite<T> {
    /// Whether a write was started and its end was not taken yet.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts a write; an earlier one has to be finished.
    pub fn start(&mut self, what: T, write: impl Future<Output = Result<(), StoreError>> + Send + 'static) {
        debug_assert!(!self.is_running());
        self.running = Some((what, start(write)));
    }

    /// Returns what was written if the write has ended since the last call; does not wait.
    pub fn try_finish(&mut self) -> Result<Option<T>, StoreError> {
        let Some(written) = self.running.as_mut().and_then(|(_, write)| write.now_or_never()) else { return Ok(None) };
        self.end(written)
    }

    /// Waits for the write, if one is running, and returns what was written. Cancel-safe.
    pub async fn finish(&mut self) -> Result<Option<T>, StoreError> {
        let Some((_, write)) = &mut self.running else { return Ok(None) };
        let written = write.await;
        self.end(written)
    }

    fn end(&mut self, written: Result<(), StoreError>) -> Result<Option<T>, StoreError> {
        let what = self.running.take().map(|(what, _)| what);
        Ok(unless_full(written)?.and(what))
    }
}

/// Returns `None` if the disk is full: that is no failure of the sink, and the same write is made again later.
pub(super) fn unless_full<T>(written: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match written {
        Ok(done) => Ok(Some(done)),
        Err(StoreError::Full { reason }) => {
            debug!(reason, "disk full, write postponed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
