//! The seams between the engine and what it is plugged into.
//!
//! The engine (diff, watch, deliver, commands) and the adapters (clients, sinks, store) know this
//! file and the model, never each other. Adapters say what went wrong in the terms of these error
//! types; whether to try again is the engine's decision alone, so no adapter retries.

mod client;
mod clock;
mod command_source;
mod sink;
mod store;

pub use client::*;
pub use clock::*;
pub use command_source::*;
pub use sink::*;
pub use store::*;
