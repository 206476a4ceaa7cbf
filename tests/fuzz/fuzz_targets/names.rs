#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dtorrent_fuzz::names(bytes));
