//! For those who write a client of their own: what the engine expects of one, as a suite to run on it.

pub mod conformance;
