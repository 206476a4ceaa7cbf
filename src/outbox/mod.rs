//! Handing over to the sinks, at each one's own pace.
//!
//! A [`Dispatcher`] owns one sink. Two things are owed to it: the journal, entry by entry from its
//! cursor on ([`lane`]), and the present of each torrent that it has an old picture of ([`dirty`]).
//! Whatever fails, everything unacknowledged is sent again, in order, on the next connection.
//!
//! A [`Reader`] is for those who only listen for a while, in this process: nothing waits for it.

pub mod backoff;
mod beside;
pub mod caution;
pub mod dirty;
mod dispatch;
pub mod lane;
mod pick;
mod reader;
pub mod registry;
pub mod retention;
mod unburied;

pub use dispatch::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, note_start};
pub use reader::{Begin, Heard, Missed, Reader, ReaderParts};
