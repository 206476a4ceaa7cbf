//! Any bytes as an XML-RPC answer: no reader panics.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz xmlrpc`

#![no_main]

use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault};
use dtorrent::clients::rtorrent::xmlrpc;
use libfuzzer_sys::fuzz_target;

struct Ignore;

impl Answers for Ignore {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, _: &[Cell<'_>]) {}
    fn broken_row(&mut self, _: usize) {}
    fn fault(&mut self, _: usize, _: Fault) {}
}

fuzz_target!(|bytes: &[u8]| {
    let _either = xmlrpc::scan(bytes, &mut Ignore).is_ok();
    let _either = xmlrpc::read(bytes).is_ok();
});
