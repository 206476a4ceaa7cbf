//! Receivers of events: brokers and webhooks, each behind [`crate::port::Sink`].
//!
//! A sink makes one attempt and says what came of it. Order, retries and what is to be sent at all
//! are the dispatcher's.

#[cfg(any(feature = "mqtt", feature = "nats"))]
pub mod broker;
#[cfg(feature = "mqtt")]
pub mod home_assistant;
#[cfg(any(feature = "mqtt", feature = "nats", feature = "webhooks"))]
pub mod in_flight;
#[cfg(any(feature = "mqtt", feature = "nats", feature = "webhooks"))]
pub mod invalid;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "webhooks")]
pub mod webhook;
