//! Notifications from hooks in the client of one server.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::model::InfoHash;
use crate::port::Hooks;

/// Maximum number of torrents that hooks can name between two polls; beyond that, a full poll is cheaper.
const NAMED_MAX: usize = 256;

/// Notifications from hooks in the client of one server.
///
/// A notification is not believed, it only causes a poll; the hashes say which torrents to poll first.
#[derive(Default)]
pub struct HookNotifier {
    /// Wakes the watcher; notifications in the meantime count as one.
    pub notified: Notify,
    /// Wakes the task that installs hooks: the client is reachable again, or is another process.
    pub client_is_new: Notify,
    /// Wakes the task that installs hooks: the client has written where the bridge reads.
    pub proved: Notify,
    named: Mutex<Named>,
    report: Mutex<HookReport>,
}

/// Torrents that hooks named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// These torrents, at most 256.
    These(BTreeSet<InfoHash>),
    /// More than are worth polling one by one.
    Many,
}

impl Default for Named {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// State of the hooks in a client, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct HookReport {
    /// `None` until it is known; always, if no hooks are wanted.
    pub hooks: Option<Hooks>,
    /// Why they could not be installed or checked last time.
    pub problem: Option<String>,
    /// Notifications since the start of the process.
    pub wakes: u64,
}

impl HookNotifier {
    /// Records a notification about a torrent and wakes the watcher.
    pub fn notify(&self, hash: InfoHash) {
        self.report(|report| report.wakes += 1);
        {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            if let Named::These(hashes) = &mut *named {
                hashes.insert(hash);
                // One full poll is cheaper for the client than so many torrents read by name.
                if hashes.len() > NAMED_MAX {
                    *named = Named::Many;
                }
            }
        }
        self.notified.notify_one();
    }

    /// Records that torrents were notified about, nobody knows which, and wakes the watcher.
    pub fn notify_of_many(&self) {
        self.report(|report| report.wakes += 1);
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Named::Many;
        self.notified.notify_one();
    }

    /// Takes the torrents named since the last call. For the watcher only.
    pub fn take_named(&self) -> Named {
        std::mem::take(&mut *self.named.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Updates the report. For the task that installs hooks, and for [`Self::notify`].
    pub fn report(&self, write: impl FnOnce(&mut HookReport)) {
        write(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns a copy of the report.
    pub fn last_report(&self) -> HookReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
