//! The methods of rTorrent that are known to be harmless: getters for columns, and what `rpc` may call.
//!
//! Lists of what is allowed, by full names. rTorrent has methods that run programs under names like those of fields
//! (`p.call_target`), and each version brings new ones, so a list of what is forbidden is never complete.

/// Getters of a torrent that cost no more than a field, and so may be columns of a listing. Left out are getters that fail on
/// some torrents and with them the whole listing (`d.custom.items`), and expensive ones (`d.bitfield`).
pub(super) const COLUMNS: &[&str] = &[
    "d.accepting_seeders",
    "d.base_filename",
    "d.base_path",
    "d.bytes_done",
    "d.chunk_size",
    "d.chunks_hashed",
    "d.complete",
    "d.completed_bytes",
    "d.completed_chunks",
    "d.connection_current",
    "d.connection_leech",
    "d.connection_seed",
    "d.creation_date",
    "d.custom1",
    "d.custom2",
    "d.custom3",
    "d.custom4",
    "d.custom5",
    "d.directory",
    "d.directory_base",
    "d.down.rate",
    "d.down.sequential",
    "d.down.total",
    "d.downloads_max",
    "d.downloads_min",
    "d.group",
    "d.group.name",
    "d.hash",
    "d.hashing",
    "d.hashing_failed",
    "d.ignore_commands",
    "d.incomplete",
    "d.is_active",
    "d.is_hash_checked",
    "d.is_hash_checking",
    "d.is_meta",
    "d.is_multi_file",
    "d.is_not_partially_done",
    "d.is_open",
    "d.is_partially_done",
    "d.is_pex_active",
    "d.is_private",
    "d.left_bytes",
    "d.load_date",
    "d.loaded_file",
    "d.local_id",
    "d.max_file_size",
    "d.max_size_pex",
    "d.message",
    "d.mode",
    "d.name",
    "d.peer_exchange",
    "d.peers_accounted",
    "d.peers_complete",
    "d.peers_connected",
    "d.peers_max",
    "d.peers_min",
    "d.peers_not_connected",
    "d.priority",
    "d.priority_str",
    "d.ratio",
    "d.size_bytes",
    "d.size_chunks",
    "d.size_files",
    "d.size_pex",
    "d.skip.rate",
    "d.skip.total",
    "d.state",
    "d.state_changed",
    "d.state_counter",
    "d.throttle_name",
    "d.tied_to_file",
    "d.timestamp.finished",
    "d.timestamp.last_active",
    "d.timestamp.started",
    "d.tracker_focus",
    "d.tracker_numwant",
    "d.tracker_size",
    "d.up.rate",
    "d.up.total",
    "d.uploads_max",
    "d.uploads_min",
    "d.wanted_chunks",
];

/// Further methods that only read. Not among them: `t.url`, which has the passkey of a private tracker, `system.env`, the
/// addresses of proxies, which may have a password, and `d.views.has` and its like, which no user has missed.
const READERS: &[&str] = &[
    "d.bitfield",
    "d.chunks_seen",
    "d.custom",
    "d.custom.items",
    "d.custom.keys",
    "d.custom_throw",
    "d.down.choke_heuristics",
    "d.free_diskspace",
    "d.local_id_html",
    "d.up.choke_heuristics",
    "d.views",
    "dht.port",
    "dht.statistics",
    "dht.throttle.name",
    "directory.default",
    "f.completed_chunks",
    "f.is_create_queued",
    "f.is_created",
    "f.is_open",
    "f.is_resize_queued",
    "f.last_touched",
    "f.offset",
    "f.path",
    "f.path_components",
    "f.path_depth",
    "f.prioritize_first",
    "f.prioritize_last",
    "f.priority",
    "f.range_first",
    "f.range_second",
    "f.size_bytes",
    "f.size_chunks",
    "network.bind_address",
    "network.http.current_open",
    "network.http.dns_cache_timeout",
    "network.http.max_open",
    "network.http.ssl_verify_host",
    "network.http.ssl_verify_peer",
    "network.listen.backlog",
    "network.listen.port",
    "network.local_address",
    "network.max_open_files",
    "network.max_open_sockets",
    "network.open_sockets",
    "network.port_open",
    "network.port_random",
    "network.port_range",
    "network.receive_buffer.size",
    "network.send_buffer.size",
    "network.xmlrpc.size_limit",
    "p.address",
    "p.banned",
    "p.client_version",
    "p.completed_percent",
    "p.down_rate",
    "p.down_total",
    "p.id",
    "p.id_html",
    "p.is_encrypted",
    "p.is_incoming",
    "p.is_obfuscated",
    "p.is_preferred",
    "p.is_snubbed",
    "p.is_unwanted",
    "p.options_str",
    "p.peer_rate",
    "p.peer_total",
    "p.port",
    "p.snubbed",
    "p.up_rate",
    "p.up_total",
    "pieces.hash.on_completion",
    "pieces.hash.queue_size",
    "pieces.memory.block_count",
    "pieces.memory.current",
    "pieces.memory.max",
    "pieces.memory.sync_queue",
    "pieces.preload.min_rate",
    "pieces.preload.min_size",
    "pieces.preload.type",
    "pieces.stats.total_size",
    "pieces.stats_not_preloaded",
    "pieces.stats_preloaded",
    "pieces.sync.always_safe",
    "pieces.sync.queue_size",
    "pieces.sync.safe_free_diskspace",
    "pieces.sync.timeout",
    "pieces.sync.timeout_safe",
    "protocol.choke_heuristics.down.leech",
    "protocol.choke_heuristics.down.seed",
    "protocol.choke_heuristics.up.leech",
    "protocol.choke_heuristics.up.seed",
    "protocol.connection.leech",
    "protocol.connection.seed",
    "protocol.pex",
    "session.name",
    "session.on_completion",
    "session.path",
    "session.use_lock",
    "system.api_version",
    "system.capabilities",
    "system.client_version",
    "system.cwd",
    "system.daemon",
    "system.file.allocate",
    "system.file.max_size",
    "system.file.split_size",
    "system.file.split_suffix",
    "system.file_status_cache.size",
    "system.files.closed_counter",
    "system.files.failed_counter",
    "system.files.opened_counter",
    "system.hostname",
    "system.library_version",
    "system.pid",
    "system.time",
    "system.time_seconds",
    "system.time_usec",
    "t.activity_time_last",
    "t.activity_time_next",
    "t.can_scrape",
    "t.failed_counter",
    "t.failed_time_last",
    "t.failed_time_next",
    "t.group",
    "t.id",
    "t.is_busy",
    "t.is_enabled",
    "t.is_extra_tracker",
    "t.is_open",
    "t.is_usable",
    "t.latest_event",
    "t.latest_new_peers",
    "t.latest_sum_peers",
    "t.min_interval",
    "t.normal_interval",
    "t.scrape_complete",
    "t.scrape_counter",
    "t.scrape_downloaded",
    "t.scrape_incomplete",
    "t.scrape_time_last",
    "t.success_counter",
    "t.success_time_last",
    "t.success_time_next",
    "t.type",
    "throttle.down.max",
    "throttle.down.rate",
    "throttle.global_down.max_rate",
    "throttle.global_down.rate",
    "throttle.global_down.total",
    "throttle.global_up.max_rate",
    "throttle.global_up.rate",
    "throttle.global_up.total",
    "throttle.max_downloads",
    "throttle.max_downloads.div",
    "throttle.max_downloads.global",
    "throttle.max_peers.normal",
    "throttle.max_peers.seed",
    "throttle.max_uploads",
    "throttle.max_uploads.div",
    "throttle.max_uploads.global",
    "throttle.min_downloads",
    "throttle.min_peers.normal",
    "throttle.min_peers.seed",
    "throttle.min_uploads",
    "throttle.unchoked_downloads",
    "throttle.unchoked_uploads",
    "throttle.up.max",
    "throttle.up.rate",
    "trackers.numwant",
    "trackers.use_udp",
    "view.list",
    "view.size",
    "view.size_not_visible",
];

/// Methods that set a number or a text. Not among them: what moves or names files (`d.directory.set`, `session.path.set`), decides
/// where rTorrent listens and whom it trusts (`network.port_range.set`, `network.http.ssl_verify_peer.set`), or needs the
/// care of a command (`d.hashing_failed.set`, `d.state`).
const SETTERS: &[&str] = &[
    "d.connection_current.set",
    "d.custom.set",
    "d.custom1.set",
    "d.custom2.set",
    "d.custom3.set",
    "d.custom4.set",
    "d.custom5.set",
    "d.downloads_max.set",
    "d.downloads_min.set",
    "d.ignore_commands.set",
    "d.max_file_size.set",
    "d.message.set",
    "d.peer_exchange.set",
    "d.peers_max.set",
    "d.peers_min.set",
    "d.priority.set",
    "d.throttle_name.set",
    "d.tracker_numwant.set",
    "d.uploads_max.set",
    "d.uploads_min.set",
    "dht.throttle.name.set",
    "f.priority.set",
    "network.http.dns_cache_timeout.set",
    "network.http.max_open.set",
    "network.listen.backlog.set",
    "network.max_open_files.set",
    "network.max_open_sockets.set",
    "network.receive_buffer.size.set",
    "network.send_buffer.size.set",
    "network.tos.set",
    "p.banned.set",
    "p.snubbed.set",
    "pieces.hash.on_completion.set",
    "pieces.memory.max.set",
    "pieces.preload.min_rate.set",
    "pieces.preload.min_size.set",
    "pieces.preload.type.set",
    "pieces.sync.always_safe.set",
    "pieces.sync.timeout.set",
    "pieces.sync.timeout_safe.set",
    "protocol.choke_heuristics.down.leech.set",
    "protocol.choke_heuristics.down.seed.set",
    "protocol.choke_heuristics.up.leech.set",
    "protocol.choke_heuristics.up.seed.set",
    "protocol.connection.leech.set",
    "protocol.connection.seed.set",
    "protocol.encryption.set",
    "protocol.pex.set",
    "system.file.allocate.set",
    "system.file.max_size.set",
    "system.file.split_size.set",
    "t.is_enabled.set",
    "throttle.global_down.max_rate.set",
    "throttle.global_up.max_rate.set",
    "throttle.max_downloads.div.set",
    "throttle.max_downloads.global.set",
    "throttle.max_downloads.set",
    "throttle.max_peers.normal.set",
    "throttle.max_peers.seed.set",
    "throttle.max_uploads.div.set",
    "throttle.max_uploads.global.set",
    "throttle.max_uploads.set",
    "throttle.min_downloads.set",
    "throttle.min_peers.normal.set",
    "throttle.min_peers.seed.set",
    "throttle.min_uploads.set",
    "trackers.numwant.set",
    "trackers.use_udp.set",
    "throttle.global_down.max_rate.set_kb",
    "throttle.global_up.max_rate.set_kb",
];

/// A method that the command `rpc` may call, because the config names it.
///
/// Created by [`AllowedMethod::parse`] alone, which takes methods that only read, and setters by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedMethod(&'static str);

/// Reason why a text is not an [`AllowedMethod`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMethod {
    /// Other characters than a name has, or no dot.
    #[error(
        "`{0}` is not a method name; write letters, digits, `_` and at least one dot, as in `system.client_version`"
    )]
    NotAName(String),
    /// A method that takes commands, and so could run a program.
    #[error("`{0}` runs commands that it is given, programs among them, and may not be called from outside")]
    RunsCommands(String),
    /// A setter that does more than to set a number or a text.
    #[error(
        "`{0}` is no setter that may be called from outside: those that move files, open ports or lower the security of \
         connections are not, nor are those whose work a command does (`move`, `limits`, `file_priority`)"
    )]
    NotASetter(String),
    /// No method that is known to read only.
    #[error(
        "`{0}` is not known as a method that only reads, so it may not be called from outside; for what changes a torrent \
         there are commands (`start`, `stop`, `delete`, `recheck`, `move`)"
    )]
    NotAReader(String),
}

impl AllowedMethod {
    /// Parses the full name of a method.
    ///
    /// # Errors
    /// The text is not a name, or names a method that is not in a list.
    pub fn parse(text: &str) -> Result<Self, InvalidMethod> {
        if let Some(known) = [COLUMNS, READERS, SETTERS].into_iter().flatten().find(|known| **known == text) {
            return Ok(Self(known));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        // Logic and old aliases have no dot (`cat`, `if`, `print`).
        if text.len() > 100 || !text.contains('.') || !text.chars().all(is_name) {
            return Err(InvalidMethod::NotAName(text.chars().filter(|c| !c.is_control()).take(100).collect()));
        }
        // Only the reason that is given depends on these: what is in no list is refused.
        let takes_commands = ["multicall", "call_target", "execute", "schedule", "method.", "event.", "filter", "sort"];
        Err(if takes_commands.iter().any(|part| text.contains(part)) {
            InvalidMethod::RunsCommands(text.to_owned())
        } else if text.ends_with(".set") {
            InvalidMethod::NotASetter(text.to_owned())
        } else {
            InvalidMethod::NotAReader(text.to_owned())
        })
    }

    /// Returns the name of the method.
    pub fn as_str(&self) -> &'static str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_getters_and_named_setters_may_be_called_and_a_refusal_says_why() {
        for good in [
            "system.client_version",
            "throttle.global_down.max_rate.set",
            "d.ratio",
            "d.state",
            "d.directory",
            "d.custom.set",
            "pieces.memory.current",
            "view.size",
            "t.is_enabled.set",
            "dht.statistics",
        ] {
            assert_eq!(AllowedMethod::parse(good).map(|method| method.as_str()).as_deref(), Ok(good));
        }
        //    name                            refused because
        for (bad, reason) in [
            ("p.call_target", "runs commands"),
            ("system.multicall", "runs commands"),
            ("d.multicall2", "runs commands"),
            ("f.multicall", "runs commands"),
            ("execute.throw", "runs commands"),
            ("schedule2.x", "runs commands"),
            ("method.set_key", "runs commands"),
            ("event.download.finished", "runs commands"),
            ("view.filter.temp", "runs commands"),
            ("view.sort_new", "runs commands"),
            ("d.directory.set", "no setter"),
            ("session.path.set", "no setter"),
            ("network.port_range.set", "no setter"),
            ("network.http.ssl_verify_peer.set", "no setter"),
            ("network.http.capath.set", "no setter"),
            ("network.xmlrpc.size_limit.set", "no setter"),
            ("system.umask.set", "no setter"),
            ("file.append", "only reads"),
            ("d.erase", "only reads"),
            ("d.stop", "only reads"),
            ("d.tracker.insert", "only reads"),
            ("d.save_full_session", "only reads"),
            ("dht.add_node", "only reads"),
            ("f.set_create_queued", "only reads"),
            ("p.disconnect", "only reads"),
            ("throttle.ip", "only reads"),
            ("network.scgi.open_port", "only reads"),
            ("system.env", "only reads"),
            ("system.shutdown.normal", "only reads"),
            ("t.url", "only reads"),
            ("log.open_file", "only reads"),
            ("d.of_a_later_version", "only reads"),
            ("", "not a method name"),
            ("cat", "not a method name"),
            ("execute2", "not a method name"),
            ("d.ratio=", "not a method name"),
            ("d.ratio;x", "not a method name"),
            ("d.\n", "not a method name"),
        ] {
            let error = AllowedMethod::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
