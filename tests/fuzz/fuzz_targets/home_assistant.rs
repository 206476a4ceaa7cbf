//! Whatever a switch of Home Assistant says is one command, and its device topics are read back as they are.
#![no_main]

use dtorrent::sinks::mqtt::homeassistant::commands::command;
use dtorrent::sinks::mqtt::homeassistant::names::Device;
use dtorrent::sinks::mqtt::{HomeAssistant, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, body) = input;
    let settings = HomeAssistant {
        discovery_prefix: "homeassistant".to_owned(),
        slots: 1,
        torrents: None,
        torrents_max: 1,
        alternative: Some(Limits { download: 1, upload: 1 }),
        normal: Limits::default(),
        verbs: Default::default(),
    };
    let (address, _) = command(&settings, "home", text, body);
    assert_eq!(address.server.as_deref(), Some("home"));
    if let Some(device) = Device::parse(text) {
        assert_eq!(Device::parse(&device.id()), Some(device));
    }
});
