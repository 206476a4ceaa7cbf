//! The servers that other instances of the bridge publish on the same broker.
//!
//! Two instances with a server of one name share its addresses there, and neither knows what the other retains under them. What
//! is retained of such a server is therefore neither adopted nor cleared by a scan, a new link or a purge; a state of a torrent
//! whose removal this instance has seen itself is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tracing::{info, warn};

use crate::model::{ServerName, SinkName};

/// Maximum size of the information of another instance; a longer one is not read.
pub const INFO_BYTES_MAX: usize = 64 << 10;
/// Maximum number of instances that are remembered.
const INSTANCES_MAX: usize = 256;

/// The servers of other instances, as far as they are known.
#[derive(Debug)]
pub struct Claims {
    sink: SinkName,
    instance: String,
    servers: BTreeSet<ServerName>,
    others: Mutex<BTreeMap<String, BTreeSet<ServerName>>>,
    was_shared: AtomicBool,
}

impl Claims {
    /// Nothing is known yet. `instance` and `servers` are our own.
    pub fn new(sink: SinkName, instance: impl Into<String>, servers: &[ServerName]) -> Self {
        let (instance, servers) = (instance.into(), servers.iter().cloned().collect());
        Self { sink, instance, servers, others: Mutex::default(), was_shared: AtomicBool::default() }
    }

    /// Records the retained `info` of an instance; an empty one was cleared.
    pub fn on_info(&self, instance: &str, body: &[u8]) {
        #[derive(Deserialize)]
        struct Info {
            servers: Vec<String>,
            /// Those that it publishes on this broker; earlier versions do not say.
            published: Option<Vec<String>>,
        }
        let info = Some(body).filter(|body| body.len() <= INFO_BYTES_MAX);
        let servers = info
            .and_then(|body| serde_json::from_slice::<Info>(body).ok())
            .map(|info| info.published.unwrap_or(info.servers));
        let names = servers.unwrap_or_default();
        self.record(instance, names.iter().filter_map(|name| ServerName::parse(name).ok()).collect());
    }

    /// Records all servers of an instance.
    pub fn record(&self, instance: &str, servers: BTreeSet<ServerName>) {
        // Whoever may publish here chooses the text.
        if instance == self.instance || ServerName::parse(instance).is_err() {
            return;
        }
        let mut others = self.others();
        let shared = |servers: &BTreeSet<ServerName>| servers.intersection(&self.servers).cloned().collect();
        let before: BTreeSet<ServerName> = others.get(instance).map(shared).unwrap_or_default();
        let now: BTreeSet<ServerName> = shared(&servers);
        if servers.is_empty() {
            others.remove(instance);
        } else if others.len() < INSTANCES_MAX || others.contains_key(instance) {
            others.insert(instance.to_owned(), servers);
        }
        drop(others);
        self.was_shared.fetch_or(!now.is_empty(), Ordering::Relaxed);
        let sink = &self.sink;
        for server in now.difference(&before) {
            warn!(%sink, %server, instance, "another instance publishes a server of this name: rename it in one of them");
        }
        for server in before.difference(&now) {
            info!(%sink, %server, instance, "the other instance does not publish this server any more");
        }
    }

    /// Records the servers of all other instances; those that are not among them have none.
    pub fn record_all(&self, mut all: BTreeMap<String, BTreeSet<ServerName>>) {
        let gone: Vec<String> = self.others().keys().filter(|instance| !all.contains_key(*instance)).cloned().collect();
        all.extend(gone.into_iter().map(|instance| (instance, BTreeSet::new())));
        all.into_iter().for_each(|(instance, servers)| self.record(&instance, servers));
    }

    /// Whether another instance publishes this server.
    pub fn has(&self, server: &ServerName) -> bool {
        self.others().values().any(|servers| servers.contains(server))
    }

    /// Whether a server of ours is or was one of another instance, too.
    pub fn was_shared(&self) -> bool {
        self.was_shared.load(Ordering::Relaxed)
    }

    /// Returns what users should know, one sentence for each server and instance.
    pub fn notes(&self) -> Vec<String> {
        let others = self.others();
        let clashes = others.iter().flat_map(|(instance, servers)| {
            servers.intersection(&self.servers).map(move |server| {
                format!(
                    "instance `{instance}` publishes a server `{server}`, too: rename it in one of them; until then neither \
                     clears what is retained of it (if that instance is gone for good, run `dtorrent purge` with its name)"
                )
            })
        });
        clashes.collect()
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<ServerName>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<ServerName> {
        names.iter().map(|name| ServerName::parse(name).unwrap()).collect()
    }

    fn claims() -> Claims {
        Claims::new(SinkName::parse("b").unwrap(), "main", &names(&["home", "attic"]))
    }

    #[test]
    fn a_server_is_shared_while_the_info_of_another_instance_names_it() {
        let claims = claims();
        claims.on_info("main", br#"{"servers": ["home", "attic"]}"#);
        assert!(!claims.was_shared() && claims.notes().is_empty(), "our own");
        claims.on_info("other", br#"{"version": "1", "servers": ["home", "garage", "NOT A NAME"]}"#);
        assert!(claims.was_shared() && claims.has(&names(&["home"])[0]) && claims.has(&names(&["garage"])[0]));
        assert!(!claims.has(&names(&["attic"])[0]));
        let notes = claims.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("instance `other` publishes a server `home`, too"),
            "{notes:?}"
        );
        claims.on_info("other", br#"{"servers": ["home", "garage"], "published": ["garage"]}"#);
        assert!(!claims.has(&names(&["home"])[0]) && claims.has(&names(&["garage"])[0]), "another broker has it");
        claims.on_info("other", b"");
        assert!(!claims.has(&names(&["home"])[0]) && claims.notes().is_empty());
        assert!(claims.was_shared(), "it may have left something");
    }

    #[test]
    fn what_is_no_info_claims_nothing_and_the_number_of_instances_is_bounded() {
        let claims = claims();
        for body in [&b"x"[..], b"{}", br#"{"servers": "home"}"#, &[b' '; INFO_BYTES_MAX + 1]] {
            claims.on_info("other", body);
        }
        claims.on_info("+/#", br#"{"servers": ["home"]}"#);
        assert!(!claims.was_shared());
        for number in 0..2 * INSTANCES_MAX {
            claims.on_info(&format!("i{number}"), br#"{"servers": ["x"]}"#);
        }
        assert_eq!(claims.others().len(), INSTANCES_MAX);
    }
}
