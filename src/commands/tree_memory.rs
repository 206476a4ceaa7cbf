//! The memory of a body while it is a tree of JSON values, which may be a hundred times its size.
//!
//! There is one such tree at a time in a process. It takes milliseconds, so others wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::{CommandError, ErrorCode, MemoryShares, json_tree_bytes};

/// The memory for a tree, and whose turn it is. See the module.
pub struct TreeMemory {
    bytes: usize,
    turn: Mutex<()>,
}

impl TreeMemory {
    /// Makes one of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, turn: Mutex::default() }
    }

    /// Waits for the turn of a body. It lasts until what is returned is dropped.
    ///
    /// # Errors
    /// As a tree the body would take more. What it has itself is never too much: it is taken whatever its size.
    pub(super) fn take(&self, body: &[u8]) -> Result<MutexGuard<'_, ()>, CommandError> {
        let bytes_max = self.bytes.max(body.len() + self.bytes / 2);
        if json_tree_bytes(body) > bytes_max {
            // A body of 10 MiB that has nothing but `{"":0},` would take a hundred times as much.
            let message = format!("the body has so many values that it takes more than {bytes_max} bytes of memory");
            return Err(CommandError::new(ErrorCode::TooLarge, message));
        }
        Ok(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The share of the default budget.
impl Default for TreeMemory {
    fn default() -> Self {
        Self::new(MemoryShares::default().trees)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_body_is_a_tree_within_the_share_and_its_own_bytes_are_never_too_much() {
        let trees = TreeMemory::new(1 << 20);
        let values = |count| format!("[{}0]", "0,".repeat(count)).into_bytes();
        let text = |bytes| format!("{{\"torrent\":\"{}\"}}", "x".repeat(bytes)).into_bytes();
        for (body, fits) in [
            (values(20_000), true),
            (values(22_000), false),
            (text(10 << 20), true),
            ([text(2 << 20), values(9_000)].concat(), true),
            ([text(2 << 20), values(12_000)].concat(), false),
        ] {
            let taken = trees.take(&body).map(drop).map_err(|error| error.code);
            assert_eq!(taken, if fits { Ok(()) } else { Err(ErrorCode::TooLarge) }, "{} bytes", body.len());
        }
    }

    #[test]
    fn one_body_is_a_tree_at_a_time() {
        let trees = TreeMemory::new(1 << 20);
        let first = trees.take(b"{}").unwrap();
        std::thread::scope(|scope| {
            let (taken, is_taken) = mpsc::channel();
            let trees = &trees;
            scope.spawn(move || {
                let second = trees.take(b"{}").unwrap();
                taken.send(()).unwrap();
                drop(second);
            });
            assert!(is_taken.recv_timeout(Duration::from_millis(100)).is_err(), "the first one is there");
            drop(first);
            is_taken.recv_timeout(Duration::from_secs(10)).unwrap();
        });
    }
}
