//! Commands: taken in, written down, carried out once, answered when their effect was seen.

pub mod expect;
