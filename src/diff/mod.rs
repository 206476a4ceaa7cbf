//! From looks at a server to what is to be told of it.
//!
//! [`Differ`] takes one poll after another, good or failed, together with what the world was told
//! so far, and makes of each a [`ChangeSet`](crate::model::ChangeSet). What holds:
//!
//! - a failed poll tells nothing of any torrent; absence counts only in complete listings of a
//!   steady server, two in a row (I2);
//! - every look is compared with what was *told*, not with the look before it. So a change too
//!   small to tell now is not lost, it grows; and a tick that could not be written is told by the next;
//! - the same input makes the same tick.
//!
//! Pure: time comes in as an argument, nothing is read or sent.

mod compare;
mod differ;
mod trust;
mod worth;

pub use differ::{Differ, Limits, Moment};

#[cfg(test)]
mod tests;
