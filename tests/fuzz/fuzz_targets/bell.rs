//! Any path that somebody asks the bell for: no panic, and nobody is heard who does not say the secret.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz bell`

#![no_main]

use dtorrent::model::{BellAddress, BellSecret, Ring};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let secret = BellSecret::new([0xa5; 16]);
    let hex = "a5".repeat(16);
    if Ring::parse(text, &secret).is_some() {
        assert!(text.starts_with(&format!("/{hex}/")));
    }
    if let Some(ring) = Ring::parse(&format!("/{hex}{text}"), &secret) {
        assert!(text.contains(ring.server.as_str()));
    }
    if let Ok(address) = BellAddress::parse(text) {
        assert!(!address.to_string().contains(['"', '$', ',', ';', '=', '/', ' ', '\\']));
    }
});
