//! The domain types: torrents, events, commands, and their JSON shapes.
//!
//! Everything here is a plain value. Ids are parsed once, where they enter the program, so a
//! [`ServerName`] or an [`InfoHash`] is always valid and may be written into a topic.
//!
//! Pure: no clock, no I/O, no async.

mod action;
mod arguments;
mod base64_text;
mod bencode;
mod change;
mod command;
mod content;
mod custom;
mod event;
mod filter;
mod hook;
mod ids;
mod json_size;
mod json_text;
mod listing;
mod magnet;
mod mask;
mod memory_budget;
mod metainfo;
pub(crate) mod nearest;
mod operation;
mod outcome;
mod outside_text;
mod policy;
mod report;
mod result_size;
mod server;
mod snapshot;
mod text;
mod text_limit;
mod time;
mod torrent;
mod tracker_changes;
mod tracker_name;
mod url_rules;
mod url_text;
mod verb;

pub(crate) use action::is_at_or_below;
pub use action::{Action, Add, AddSource, Limits, Move, Parts};
pub use bencode::NotBencoded;
pub use change::{Change, Changes};
pub use command::{AUDIT, CommandError, CommandId, ErrorCode, InvalidCommandId};
pub use content::{Content, ContentFile, WrittenNames};
pub(crate) use content::{client_texts, is_ambiguous, stands_for, text_at, with_line_feeds};
pub use custom::{CustomValues, InvalidCustomValues};
pub use event::{Cause, EVENT_SCHEMA, Entity, Event, EventId, InvalidEventId, Kind};
pub use filter::{Filter, FilterArguments, InvalidFilter, OneOrMore};
pub use hook::{Hook, HookFile, HookKey, HookSignals, InvalidHookFile};
pub use ids::{Epoch, InfoHash, InvalidInfoHash, InvalidServerName, Rev, Seq, ServerName, SinkName};
pub(crate) use json_size::json_tree_bytes;
pub use listing::{Covers, Details, Facts, File, Files, Listing, Observed, Peer, Tracker};
pub use magnet::{InvalidMagnet, MAGNET_BYTES_MAX, Magnet};
pub use mask::{ANYWHERE_CHARS_MIN, Mask, names_secret};
pub use memory_budget::{Holders, MemoryBudget, MemoryShares, PageBytes};
pub use metainfo::{
    InvalidMetainfo, MERKLE_BLOCK_BYTES, Metainfo, MetainfoBuilder, TorrentFile, merkle_root, with_resume_data,
    without_resume_data,
};
pub(crate) use metainfo::{NAME_BYTES_MAX, PATH_BYTES_MAX};
pub(crate) use nearest::known_names;
pub use operation::{ActionFor, AddRequest, Operation, TorrentSource};
pub use outcome::{DeletedFiles, Outcome, OutcomeStatus, Page, Part, RESULT_SCHEMA, RemainingFile, TorrentOutcome};
pub use outside_text::{OutsideText, error_chain, install_mask, masked_line, outside_text, reported_text};
pub use policy::{PollSettings, Retain};
pub use report::{Check, Health, HooksHealth, Info, ReportLimits, ServerHealth, SinkHealth};
pub use result_size::{in_parts, shorter, shortest};
pub use server::{LastFinished, ServerStats, Stats};
pub use snapshot::{
    ChangeSet, Committed, Completion, DiffState, JournalEntry, NewEvent, RunState, ServerState, Snapshot,
    SnapshotTorrent,
};
pub use text::{Interner, is_active, parse_bytes, printable, shown_bytes, truncated};
pub use text_limit::TextLimit;
pub use time::Timestamp;
pub use torrent::{Extra, Status, Torrent, eta_seconds, progress, ratio};
pub use tracker_changes::{InvalidTrackerChanges, TrackerChanges};
pub use tracker_name::TrackerNames;
pub use url_rules::{InvalidUrlRule, UrlRule, UrlRules};
pub use verb::{Capability, Level, SECRETS, Verb};
