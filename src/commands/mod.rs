//! Commands: taken in, written down, carried out once, answered when their effect was seen.
//!
//! ```text
//! broker ─► intake: may it? what is it? ─► command log ─► ack ─► worker of the server ─► client
//!                    └─ no: a result at once                        │  looks, asks, waits for the watcher
//! sink ◄── its dispatcher ◄── result in the command log ◄───────────┘
//! ```
//!
//! Whatever comes in a body is data. It is parsed into a [`request::Request`] whose values are
//! checked, and only those reach a client.

mod asks;
mod bridge;
mod call;
pub mod expect;
mod files;
mod intake;
mod outcome;
mod queue;
mod request;
mod roots;
mod shape;
mod source;
mod verify;
mod worker;

pub use bridge::{BridgeWorker, SetLogLevel};
pub use call::Caller;
pub use intake::{Door, Intake};
pub use outcome::give_up;
pub use queue::{Job, Queue};
pub use request::{BODY_BYTES_MAX, Envelope, Request, TTL};
pub use shape::body;
pub use source::{Sources, SourcesSettings};
pub use worker::{Worker, WorkerParts};
