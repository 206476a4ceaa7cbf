//! A semaphore for bytes of memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An amount of memory that several holders share.
pub struct ByteSemaphore {
    /// One permit for each KiB.
    room: Arc<Semaphore>,
    kib: u32,
}

/// A part of the memory, which is free again when this is dropped.
pub struct BytePermit {
    _permit: Option<OwnedSemaphorePermit>,
}

impl ByteSemaphore {
    /// Makes one of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        Self { room: Arc::new(Semaphore::new(kib as usize)), kib }
    }

    /// Takes so many bytes, and waits for them in turn. Cancel-safe.
    pub async fn take(&self, bytes: usize) -> BytePermit {
        BytePermit { _permit: Arc::clone(&self.room).acquire_many_owned(self.kib(bytes)).await.ok() }
    }

    /// Takes so many bytes; `None` if others have them.
    pub fn try_take(&self, bytes: usize) -> Option<BytePermit> {
        let permit = Arc::clone(&self.room).try_acquire_many_owned(self.kib(bytes)).ok()?;
        Some(BytePermit { _permit: Some(permit) })
    }

    /// More than all of it takes all of it, so that one item finds room whatever its size.
    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.kib)
    }
}
