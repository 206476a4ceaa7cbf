//! The memory of clients' answers, which all servers share.
//!
//! Each server has a small part to itself, so that what is small never waits. A larger answer waits until others have been
//! read; best before it is asked for, because rTorrent waits as well while nobody reads its answer.

use std::sync::Arc;

use crate::model::MemoryShares;
use crate::port::{BytePermit, ByteSemaphore};

/// Largest answer, whatever the memory. rTorrent itself aborts at 100 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Most that a server has to itself.
const SMALL_BYTES_MAX: usize = 512 << 10;

/// The memory; a clone is the same. See the module.
#[derive(Clone, Debug)]
pub struct AnswerMemory {
    small_bytes: usize,
    large_bytes: usize,
    large: Arc<ByteSemaphore>,
}

/// The memory of one answer.
#[derive(Debug)]
pub struct AnswerPermit {
    bytes: usize,
    permit: Option<BytePermit>,
}

impl AnswerPermit {
    /// Whether it is enough for so many bytes.
    pub fn has(&self, bytes: usize) -> bool {
        bytes <= self.bytes
    }
}

impl AnswerMemory {
    /// Divides so many bytes among so many servers.
    pub fn new(bytes: usize, servers: usize) -> Self {
        let small_bytes = SMALL_BYTES_MAX.min(bytes / 8 / servers.max(1));
        // The server with a large answer has no other.
        let large_bytes = bytes - small_bytes * servers.saturating_sub(1);
        Self { small_bytes, large_bytes, large: Arc::new(ByteSemaphore::new(large_bytes)) }
    }

    /// Returns the size of the largest answer.
    pub fn answer_bytes_max(&self) -> usize {
        ANSWER_BYTES_MAX.min(self.large_bytes)
    }

    /// Takes memory for an answer, and waits for it in turn. Cancel-safe.
    pub async fn take(&self, bytes: usize) -> AnswerPermit {
        let permit = if bytes > self.small_bytes { Some(self.large.take(bytes).await) } else { None };
        AnswerPermit { bytes: bytes.max(self.small_bytes), permit }
    }

    /// Takes more memory for an answer that is larger than expected. What it has is given back before: two that wait for
    /// each other's would wait for ever.
    pub async fn grow(&self, answer: &mut AnswerPermit, bytes: usize) {
        if !answer.has(bytes) {
            answer.permit = None;
            *answer = self.take(bytes).await;
        }
    }
}

/// The default share, for one server.
impl Default for AnswerMemory {
    fn default() -> Self {
        Self::new(MemoryShares::default().answers, 1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn all_parts_together_are_the_memory_and_one_server_has_64_mib_by_default() {
        assert_eq!(AnswerMemory::default().answer_bytes_max(), 64 * MIB);
        for (bytes, servers) in [(8 * MIB, 1), (8 * MIB, 5), (64 * MIB, 10), (64 * MIB, 1_000), (1 << 30, 1)] {
            let memory = AnswerMemory::new(bytes, servers);
            assert!(memory.small_bytes * (servers - 1) + memory.large_bytes <= bytes);
            assert!(memory.answer_bytes_max() >= (bytes / 8 * 7).min(64 * MIB), "{bytes} for {servers}");
        }
    }

    #[test]
    fn large_answers_wait_for_each_other_and_small_ones_for_none() {
        let memory = AnswerMemory::new(8 * MIB, 2);
        let mut first = memory.take(5 * MIB).now_or_never().unwrap();
        assert!(memory.take(3 * MIB).now_or_never().is_none());
        let mut second = memory.take(2 * MIB).now_or_never().unwrap();
        let small = memory.take(512 << 10).now_or_never().unwrap();
        assert!(memory.take(MIB).now_or_never().is_none(), "all is taken");
        // Both turn out to be larger: neither holds what the other one waits for.
        let mut larger = Box::pin(memory.grow(&mut first, 7 * MIB));
        assert!(larger.as_mut().now_or_never().is_none());
        assert!(memory.grow(&mut second, 3 * MIB).now_or_never().is_none(), "it is behind the first");
        larger.now_or_never().unwrap();
        drop((first, small));
        memory.grow(&mut second, 100 * MIB).now_or_never().expect("alone it may have all");
    }
}
