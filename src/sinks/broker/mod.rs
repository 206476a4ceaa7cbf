//! Parts that MQTT and NATS brokers have in common.

pub mod prefix;
pub mod url;
