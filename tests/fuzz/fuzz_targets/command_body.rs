//! Bodies of commands, of every verb, on a torrent's topic and on a server's.

#![no_main]

use dtorrent::commands::{Envelope, Request};
use dtorrent::model::{InfoHash, Verb};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    drop(Envelope::read(body));
    for verb in Verb::ALL {
        drop(Request::parse(*verb, None, body));
        drop(Request::parse(*verb, Some(InfoHash::V1([0; 20])), body));
    }
});
