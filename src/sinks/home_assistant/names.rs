//! How things are called in Home Assistant: topics, identifiers.
//!
//! What must hold: the same thing has the same name for ever, since Home Assistant knows entities by
//! them; two things never share one. Names of instances and servers have no dot and no capital, which
//! therefore part them.
//!
//! Pure.

use crate::model::{InfoHash, ServerName};
use crate::sinks::broker::prefix::Prefix;

/// Names of one bridge on one broker.
#[derive(Clone, Debug)]
pub struct Names {
    /// First levels of every topic of ours.
    pub prefix: Prefix,
    pub instance: String,
    pub discovery_prefix: String,
}

/// A device in Home Assistant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    Bridge,
    Server(ServerName),
    Torrent(ServerName, InfoHash),
}

const OF_TORRENT: &str = "-T-";

impl Device {
    /// As it stands in the discovery topic and in our memory.
    pub fn id(&self) -> String {
        match self {
            Self::Bridge => "bridge".to_owned(),
            Self::Server(server) => server.to_string(),
            Self::Torrent(server, hash) => format!("{server}{OF_TORRENT}{hash}"),
        }
    }

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
    pub fn discovery(&self, device: &Device) -> String {
        format!("{}/device/dtorrent_{}/{}/config", self.discovery_prefix, self.instance, device.id())
    }

    /// Matches every discovery message of this instance.
    pub fn all_discovery(&self) -> String {
        format!("{}/device/dtorrent_{}/+/config", self.discovery_prefix, self.instance)
    }

    /// Whose discovery message this topic is for.
    pub fn device_of(&self, topic: &str) -> Option<Device> {
        let head = format!("{}/device/dtorrent_{}/", self.discovery_prefix, self.instance);
        Device::parse(topic.strip_prefix(&head)?.strip_suffix("/config")?)
    }

    /// Where Home Assistant says that it is there.
    pub fn birth(&self) -> String {
        format!("{}/status", self.discovery_prefix)
    }

    pub fn identifier(&self, device: &Device) -> String {
        let instance = &self.instance;
        match device {
            Device::Bridge => format!("dtorrent.{instance}"),
            Device::Server(server) => format!("dtorrent.{instance}.{server}"),
            Device::Torrent(server, hash) => format!("dtorrent.{instance}.{server}.{hash}"),
        }
    }

    pub fn bridge(&self, word: &str) -> String {
        format!("{}/bridge/{}/{word}", self.prefix, self.instance)
    }

    pub fn server(&self, server: &ServerName, word: &str) -> String {
        format!("{}/{server}/{word}", self.prefix)
    }

    /// A document for Home Assistant.
    pub fn document(&self, server: &ServerName, word: &str) -> String {
        format!("{}/{server}/homeassistant/{word}", self.prefix)
    }

    pub fn slot(&self, server: &ServerName, number: u8) -> String {
        self.document(server, &format!("slot/{number}"))
    }

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
