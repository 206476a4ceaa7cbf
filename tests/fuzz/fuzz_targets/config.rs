//! Whatever stands in a config file: it is read or refused, and every fault can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(errors) = dtorrent::config::parse(Path::new("fuzz.toml"), bytes) {
        assert!(!errors.0.is_empty());
        assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n'));
    }
});
