//! Commands: admitted, logged, executed once, and answered when a poll has shown their effect.
//!
//! ```text
//! broker ─► receiver ─► admission ─► command log ─► ack ─► queue ─► execution ─► client
//! HTTP   ─► caller   ─►     └─ refused: a result at once                │ wakes the watcher, waits for the effect
//! sink   ◄── dispatcher ◄── result in the command log ◄─────────────────┘
//! ```
//!
//! A body is data. It is parsed into a [`request::Request`] whose values are checked, and only those reach a client.

mod actions;
mod admission;
mod asking;
mod bare_moves;
mod beneath;
mod body_schema;
mod bridge;
mod caller;
mod client_turns;
mod common;
mod data_check;
mod disk_rights;
mod errors;
mod execution;
mod fetch;
mod fetch_errors;
mod file_moves;
mod file_operations;
mod file_progress;
mod files;
mod in_the_way;
mod lost_answers;
mod memory;
mod padding;
#[cfg(test)]
mod path_fuzz;
mod pending_effects;
mod queries;
mod queue;
mod receiver;
mod reception;
mod request;
mod results;
mod roots;
mod scanned_text;
mod sender;
mod sources;
mod tracker_names;
mod tree_memory;
mod unfinished;
mod winding_up;
mod worker;

pub use admission::Admission;
pub use body_schema::body_schema;
pub use bridge::{BridgeWorker, SetLogLevel};
pub use caller::Caller;
pub use common::Common;
pub use execution::WorkerParts;
pub use memory::CommandMemory;
pub use pending_effects::{EffectWaiter, PendingEffects};
pub use queue::{Queue, QueuedCommand};
pub use receiver::CommandReceiver;
pub use request::{Envelope, Request, TTL, Target};
pub use sender::{CallResult, CommandSender};
pub use sources::Sources;
pub use tree_memory::TreeMemory;
pub use unfinished::{answer_for_removed_servers, take_up_unfinished};
pub use worker::Worker;
