//! A magnet link from a stranger: any text is a link or an error.
#![no_main]

use dtorrent::model::Magnet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|link: &str| {
    if let Ok(magnet) = Magnet::parse(link) {
        magnet.client_hash();
    }
});
