//! Tools for those who write a client of their own: what the engine expects of one, as a suite to run on it,
//! and a simulated client to run the engine on.

pub mod conformance;
pub mod simulator;
