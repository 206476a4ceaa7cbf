//! The intake: requests that were received and are not admitted yet, and the memory that they take.
//!
//! NATS does not wait for who reads slowly, so all are taken in as they come. One for which there is no memory keeps its
//! beginning, which has the id, and is refused in its turn.
//!
//! Bodies are copies, because a slice of async-nats's read buffer keeps all of that.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::port::{BODY_BYTES_MAX, BytePermit, ByteSemaphore, Incoming};

/// Memory of a request besides its texts: its entry in the queue, and what allocations cost.
const REQUEST_BYTES: usize = 1 << 10;
/// What is kept of a body for which there is no memory. Most senders write the id first.
const START_BYTES: usize = 2 << 10;

/// The requests of one service, of all its endpoints, in the order in which they came.
pub struct Intake {
    requests: Mutex<VecDeque<Incoming>>,
    arrived: Notify,
    /// Memory for requests that are whole.
    whole: ByteSemaphore,
    /// Memory for those that are cut, and for small ones where that for whole ones is taken.
    starts: ByteSemaphore,
}

/// The memory of one request until it is admitted.
pub struct RequestMemory {
    kept_bytes: usize,
    permit: BytePermit,
}

impl RequestMemory {
    /// Returns a copy of the body, or of its beginning, and what gives the memory back.
    pub fn copy(self, body: &[u8]) -> (Bytes, Box<dyn FnOnce() + Send>) {
        (Bytes::copy_from_slice(&body[..self.kept_bytes]), Box::new(move || drop(self.permit)))
    }
}

impl Intake {
    /// Makes one without requests that takes so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        // Half, because what finds not even that is lost without an answer.
        let starts = bytes_max / 2;
        let (whole, starts) = (ByteSemaphore::new(bytes_max - starts), ByteSemaphore::new(starts));
        Self { requests: Mutex::default(), arrived: Notify::new(), whole, starts }
    }

    /// Takes memory for a request with a body of `body_bytes` and other texts of `text_bytes`; `None` if there is not even
    /// enough for its beginning.
    pub fn take_memory(&self, body_bytes: usize, text_bytes: usize) -> Option<RequestMemory> {
        let take = |memory: &ByteSemaphore, kept_bytes: usize| {
            let permit = memory.try_take(kept_bytes + text_bytes + REQUEST_BYTES)?;
            Some(RequestMemory { kept_bytes, permit })
        };
        // A larger one is not read.
        let whole = (body_bytes <= BODY_BYTES_MAX).then(|| take(&self.whole, body_bytes)).flatten();
        whole.or_else(|| take(&self.starts, body_bytes.min(START_BYTES)))
    }

    /// Appends a request.
    pub fn push(&self, request: Incoming) {
        self.requests().push_back(request);
        self.arrived.notify_one();
    }

    /// Removes the oldest request; `None` if there is none now.
    pub fn pop(&self) -> Option<Incoming> {
        self.requests().pop_front()
    }

    /// Waits for the next request. Cancel-safe.
    pub async fn next(&self) -> Incoming {
        loop {
            if let Some(request) = self.pop() {
                return request;
            }
            self.arrived.notified().await;
        }
    }

    /// Marks all as requests that may have waited.
    pub fn mark_waited(&self) {
        self.requests().iter_mut().for_each(|request| request.may_have_waited = true);
    }

    fn requests(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_finds_no_memory_keeps_its_beginning_and_gives_it_back_when_it_is_admitted() {
        let intake = Intake::new(4 * MIB);
        let body = vec![b'x'; 2 * MIB];
        let (whole, admitted) = intake.take_memory(body.len(), 0).unwrap().copy(&body);
        assert_eq!(whole, body);
        let (cut, _cut_admitted) = intake.take_memory(body.len(), 0).unwrap().copy(&body);
        assert_eq!(cut, body[..START_BYTES]);
        admitted();
        assert_eq!(intake.take_memory(body.len(), 0).unwrap().kept_bytes, body.len());
    }

    #[test]
    fn a_request_alone_is_whole_unless_it_is_larger_than_what_is_read() {
        let intake = Intake::new(1);
        assert_eq!(intake.take_memory(BODY_BYTES_MAX, 0).unwrap().kept_bytes, BODY_BYTES_MAX);
        assert_eq!(intake.take_memory(BODY_BYTES_MAX + 1, 0).unwrap().kept_bytes, START_BYTES);
    }

    #[test]
    fn all_together_stay_within_the_memory_and_small_ones_are_whole_to_the_end() {
        let intake = Intake::new(MIB);
        for (body_bytes, text_bytes, count_max) in [(9_000, 3_000, 300), (100, 0, 1_024), (0, MIB, 2)] {
            let taken: Vec<_> = std::iter::from_fn(|| intake.take_memory(body_bytes, text_bytes)).take(2_000).collect();
            assert!((1..=count_max).contains(&taken.len()), "{body_bytes}: {}", taken.len());
            let kept: usize = taken.iter().map(|memory| memory.kept_bytes + text_bytes).sum();
            assert!(kept <= MIB || taken.len() <= 2, "{body_bytes}: {kept}");
            assert!(body_bytes > START_BYTES || taken.iter().all(|memory| memory.kept_bytes == body_bytes));
        }
    }
}
