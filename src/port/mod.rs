//! The seams between the engine and its adapters.
//!
//! The engine (diff, watch, outbox, commands) and the adapters (clients, sinks, store) know this
//! module and the model, never each other. Adapters report failures as the error types defined here;
//! whether to retry is the engine's decision alone, so no adapter retries.

mod byte_semaphore;
mod client;
mod clock;
mod command_source;
mod sink;
mod store;

pub use byte_semaphore::*;
pub use client::*;
pub use clock::*;
pub use command_source::*;
pub use sink::*;
pub use store::*;
