//! Any bytes as the header of an SCGI answer: no panic, and a body never begins beyond what was read.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz scgi_header`

#![no_main]

use dtorrent::clients::rtorrent::transport::reply_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((body_at, _length))) = reply_header(bytes) {
        assert!(body_at <= bytes.len());
    }
});
