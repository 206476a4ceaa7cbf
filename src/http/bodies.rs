//! Bodies of requests, and the memory that all of them together may take.

use std::time::Duration;

use axum::body::{Body, HttpBody as _, to_bytes};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::port::{BODY_BYTES_MAX, BytePermit, ByteSemaphore};

/// Maximum time for the body of an authorised request to arrive, the wait for its memory included.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The memory that bodies may take.
pub(super) struct BodyMemory(ByteSemaphore);

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It has more than [`BODY_BYTES_MAX`].
    TooLarge,
    /// It did not arrive in time.
    TooSlow,
    /// Other bodies took the memory for as long.
    NoRoom,
}

/// A body with its share of the memory.
struct Held {
    body: Bytes,
    _permit: BytePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl BodyMemory {
    /// Makes one of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(ByteSemaphore::new(bytes))
    }

    /// Reads a body; its memory is free again when the last copy of it is dropped.
    pub async fn read(&self, body: Body) -> Result<Bytes, BodyError> {
        let until = Instant::now() + BODY_TIMEOUT;
        // What a chunked body will have is not known before.
        let bytes = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(BODY_BYTES_MAX);
        if bytes > BODY_BYTES_MAX {
            return Err(BodyError::TooLarge);
        }
        let permit = timeout_at(until, self.0.take(bytes)).await.map_err(|_| BodyError::NoRoom)?;
        match timeout_at(until, to_bytes(body, BODY_BYTES_MAX)).await {
            Ok(Ok(body)) => Ok(Bytes::from_owner(Held { body, _permit: permit })),
            Ok(Err(_)) => Err(BodyError::TooLarge),
            Err(_) => Err(BodyError::TooSlow),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt as _, stream};

    use super::*;

    fn chunked(chunks: impl IntoIterator<Item = Vec<u8>, IntoIter: Send + 'static>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_bytes_and_in_time() {
        let memory = BodyMemory::new(BODY_BYTES_MAX);
        assert_eq!(memory.read(Body::from("{}")).await.unwrap(), "{}");
        for large in [Body::from(vec![b'x'; BODY_BYTES_MAX + 1]), chunked((0..11).map(|_| vec![b'x'; 1 << 20]))] {
            assert_eq!(memory.read(large).await.unwrap_err(), BodyError::TooLarge);
        }
        let endless = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(memory.read(endless).await.unwrap_err(), BodyError::TooSlow);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_are_in_use_leave_no_room_for_others() {
        let memory = BodyMemory::new(1 << 20);
        let first = memory.read(Body::from(vec![b'x'; 600 << 10])).await.unwrap();
        let small = memory.read(Body::from("{}")).await.unwrap();
        assert_eq!(memory.read(Body::from(vec![b'x'; 500 << 10])).await.unwrap_err(), BodyError::NoRoom);
        let copy = first.slice(..10);
        drop(first);
        assert!(memory.read(chunked([vec![b'x'; 10]])).now_or_never().is_none(), "the copy holds it");
        drop((copy, small));
        let whole = memory.read(Body::from(vec![b'x'; 2 << 20])).await.unwrap();
        assert_eq!(whole.len(), 2 << 20, "alone it may be larger");
    }
}
