//! The discovery messages of all devices: the wanted payload of each, what was sent of it, and when the next one is due.
//!
//! Pure: the time is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::entities::{Components, Payload};
use super::names::{Device, Names};
use crate::port::Delivery;

/// Minimum time between two discovery messages of one device.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between discovery messages of two devices.
const DEVICE_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which a changed discovery message is repeated.
const CONFIRM_AFTER: Duration = Duration::from_secs(30);

/// The devices that Home Assistant is to have.
#[derive(Debug, Default)]
pub struct Discovery {
    devices: BTreeMap<Device, Announced>,
    /// No message before this.
    pub next_at: Duration,
}

/// The discovery message of one device.
#[derive(Debug)]
struct Announced {
    payload: Payload,
    /// The message sent last on this link.
    sent: Option<Bytes>,
    sent_at: Option<Duration>,
    /// When to send, or to repeat.
    due: Option<Duration>,
}

impl Announced {
    /// Makes the message due at `at`, or later if the last one was sent only now.
    fn send_from(&mut self, at: Duration) {
        // While Home Assistant still adds the entities of one message, it drops most of the next one without a log line.
        self.due = Some(self.sent_at.map_or(at, |sent| at.max(sent + DISCOVERY_INTERVAL)));
    }
}

impl Discovery {
    /// Whether a device was announced.
    pub fn contains(&self, device: &Device) -> bool {
        self.devices.contains_key(device)
    }

    /// Sets the payload of a device, which is due if it is another than before.
    pub fn announce(&mut self, device: Device, payload: Payload, at: Duration) {
        match self.devices.get_mut(&device) {
            Some(announced) if announced.payload == payload => {}
            Some(announced) => {
                announced.payload = payload;
                announced.send_from(at);
            }
            None => {
                self.devices.insert(device, Announced { payload, sent: None, sent_at: None, due: Some(at) });
            }
        }
    }

    /// Forgets a device; its topic is left as it is.
    pub fn remove(&mut self, device: &Device) {
        self.devices.remove(device);
    }

    /// Makes every message due again, from then on.
    pub fn resend_all(&mut self, from: Duration) {
        for announced in self.devices.values_mut() {
            announced.sent = None;
            announced.send_from(from);
        }
    }

    /// Returns the next message that is due. `known`: every component that Home Assistant may know, by device id; updated.
    pub fn next(&mut self, names: &Names, known: &mut BTreeMap<String, Components>, at: Duration) -> Option<Delivery> {
        if at < self.next_at {
            return None;
        }
        let (device, announced) =
            self.devices.iter_mut().find(|(_, announced)| announced.due.is_some_and(|due| due <= at))?;
        let wanted = announced.payload.platforms();
        let known = known.entry(device.id()).or_default();
        // Leaving a component out does not remove it: it has to be named once more, with its platform alone.
        let mut removed = known.clone();
        removed.retain(|key, _| !wanted.contains_key(key));
        let mut body = announced.payload.body(&removed);
        if announced.sent.as_ref() == Some(&body) && !removed.is_empty() {
            // Sent half a minute ago: what was removed is gone there.
            known.retain(|key, _| wanted.contains_key(key));
            body = announced.payload.body(&Components::new());
        }
        known.extend(wanted);
        // Repeated once, in case the first one was dropped; Home Assistant ignores a message that changes nothing.
        let is_new = announced.sent.as_ref() != Some(&body);
        announced.due = is_new.then_some(at + CONFIRM_AFTER);
        announced.sent = Some(body.clone());
        announced.sent_at = Some(at);
        self.next_at = at + DEVICE_INTERVAL;
        Some(Delivery::Projected { topic: names.discovery(device), body, retain: true })
    }

    /// Returns when the next message is due; `None` if nothing is.
    pub fn due(&self) -> Option<Duration> {
        self.devices.values().filter_map(|device| device.due).min().map(|due| due.max(self.next_at))
    }
}
