//! Receivers of events: brokers and webhooks, each behind [`crate::port::Sink`].
//!
//! A sink makes one attempt and says what came of it. Order, retries and what is to be sent at all
//! are the dispatcher's.

pub mod mqtt;
pub mod nats;
mod tls;
pub mod webhook;
