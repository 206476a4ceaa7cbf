//! The names of things in Home Assistant: topics and identifiers.
//!
//! Invariants:
//! - the same thing has the same name for ever, since Home Assistant knows entities by it;
//! - two things never share one: names of instances and servers have no dot and no capital, which therefore separate them.
//!
//! Pure.

use crate::model::{InfoHash, ServerName};
use crate::sinks::broker::prefix::Prefix;

/// Names of one bridge on one broker.
#[derive(Clone, Debug)]
pub struct Names {
    /// First levels of every topic of ours.
    pub prefix: Prefix,
    /// Name of the bridge.
    pub instance: String,
    /// First levels of Home Assistant's own topics.
    pub discovery_prefix: String,
}

/// A device in Home Assistant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// The bridge itself.
    Bridge,
    /// A server with its client.
    Server(ServerName),
    /// A torrent that the config selects.
    Torrent(ServerName, InfoHash),
}

/// The text between server and hash in a device's id. No server's name has a capital, and discovery topics allow no dot.
const OF_TORRENT: &str = "-T-";

impl Device {
    /// Returns the id in the discovery topic and in the saved state.
    pub fn id(&self) -> String {
        match self {
            Self::Bridge => "bridge".to_owned(),
            Self::Server(server) => server.to_string(),
            Self::Torrent(server, hash) => format!("{server}{OF_TORRENT}{hash}"),
        }
    }

    /// Parses an id; `None` if it is none of ours.
    pub fn parse(id: &str) -> Option<Self> {
        if id == "bridge" {
            return Some(Self::Bridge);
        }
        match id.split_once(OF_TORRENT) {
            None => ServerName::parse(id).ok().map(Self::Server),
            Some((server, hash)) => Some(Self::Torrent(ServerName::parse(server).ok()?, hash.parse().ok()?)),
        }
    }
}

impl Names {
    /// Returns the topic of a device's discovery message.
    pub fn discovery(&self, device: &Device) -> String {
        format!("{}/device/dtorrent_{}/{}/config", self.discovery_prefix, self.instance, device.id())
    }

    /// Returns the filter that matches every discovery message of this instance.
    pub fn all_discovery(&self) -> String {
        format!("{}/device/dtorrent_{}/+/config", self.discovery_prefix, self.instance)
    }

    /// Returns the device whose discovery message goes to this topic; `None` for any other topic.
    pub fn device_of(&self, topic: &str) -> Option<Device> {
        let head = format!("{}/device/dtorrent_{}/", self.discovery_prefix, self.instance);
        Device::parse(topic.strip_prefix(&head)?.strip_suffix("/config")?)
    }

    /// Returns the topic where Home Assistant publishes `online` and `offline`.
    pub fn birth(&self) -> String {
        format!("{}/status", self.discovery_prefix)
    }

    /// Returns the identifier of a device, with which the unique ids of its entities begin.
    pub fn identifier(&self, device: &Device) -> String {
        let instance = &self.instance;
        match device {
            Device::Bridge => format!("dtorrent.{instance}"),
            Device::Server(server) => format!("dtorrent.{instance}.{server}"),
            Device::Torrent(server, hash) => format!("dtorrent.{instance}.{server}.{hash}"),
        }
    }

    /// Returns a topic of the bridge itself.
    pub fn bridge(&self, word: &str) -> String {
        format!("{}/bridge/{}/{word}", self.prefix, self.instance)
    }

    /// Returns a topic of a server.
    pub fn server(&self, server: &ServerName, word: &str) -> String {
        format!("{}/{server}/{word}", self.prefix)
    }

    /// Returns the topic of a document about a server.
    pub fn document(&self, server: &ServerName, word: &str) -> String {
        format!("{}/{server}/homeassistant/{word}", self.prefix)
    }

    /// Returns the topic of the document of a slot; the first is number 1.
    pub fn slot(&self, server: &ServerName, number: u8) -> String {
        self.document(server, &format!("slot/{number}"))
    }

    /// Returns the topic of the document of a torrent with a device of its own.
    pub fn torrent(&self, server: &ServerName, hash: InfoHash) -> String {
        self.document(server, &format!("torrent/{hash}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reads_back_from_its_topic_and_nothing_else_is_one() {
        let names = Names {
            prefix: Prefix::of_topics("dtorrent").unwrap(),
            instance: "main".into(),
            discovery_prefix: "homeassistant".into(),
        };
        let home = ServerName::parse("home").unwrap();
        for device in [Device::Bridge, Device::Server(home.clone()), Device::Torrent(home, InfoHash::V1([7; 20]))] {
            let topic = names.discovery(&device);
            let id = topic.split('/').nth(3).unwrap();
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{id}");
            assert_eq!(names.device_of(&topic), Some(device));
        }
        for other in ["", "homeassistant/device/dtorrent_other/home/config", "homeassistant/status", "x"] {
            assert_eq!(names.device_of(other), None, "{other}");
        }
    }
}
