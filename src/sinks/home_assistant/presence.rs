//! Whether Home Assistant is online, as its status topic says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;

/// The presence of one Home Assistant. The connection to the broker writes it, the projection reads it.
#[derive(Debug, Default)]
pub struct Presence {
    is_offline: AtomicBool,
    births: AtomicU32,
    changed: Arc<Notify>,
}

impl Presence {
    /// Takes in a message of the status topic.
    pub fn on_status(&self, body: &[u8], is_retained: bool) {
        match body {
            b"online" => {
                self.is_offline.store(false, Ordering::Relaxed);
                // A retained one is old, and no start of Home Assistant.
                if !is_retained {
                    self.births.fetch_add(1, Ordering::Relaxed);
                }
            }
            b"offline" => self.is_offline.store(true, Ordering::Relaxed),
            _ => return,
        }
        self.changed.notify_one();
    }

    /// Whether the last message was `offline`. Before the first one it is taken to be online: the birth message is not retained,
    /// so that a bridge that starts later sees none.
    pub fn is_offline(&self) -> bool {
        self.is_offline.load(Ordering::Relaxed)
    }

    /// Returns how often it came online in this run of the bridge.
    pub fn births(&self) -> u32 {
        self.births.load(Ordering::Relaxed)
    }

    /// Returns what is notified after each change.
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}
