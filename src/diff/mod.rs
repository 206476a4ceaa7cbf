//! The comparison of polls with the snapshot, and the events that follow.
//!
//! [`Differ`] takes one poll after another, successful or failed, together with the snapshot, and returns a
//! [`ChangeSet`](crate::model::ChangeSet) for each. Invariants:
//!
//! - a failed poll emits no torrent events; absence counts only in complete listings of a steady server, two
//!   in a row (I2);
//! - every poll is compared with the *snapshot*, not with the poll before it. A change too small to publish
//!   now is not lost, it grows; and a change set that could not be committed comes again with the next poll;
//! - the same input yields the same change set.
//!
//! Pure: time is an argument, nothing is read or sent.

mod compare;
mod differ;
mod threshold;
mod trust;

pub use differ::{Differ, Limits, PollTime};

#[cfg(test)]
mod tests;
