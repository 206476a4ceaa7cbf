//! Reads the command line, does what it says, ends with its code. All else is the library's.

use std::process::ExitCode;

use clap::Parser as _;

/// A listing is read on one thread and forgotten on another, which glibc's allocator answers with a heap for
/// each that it never gives back: with 10,000 torrents 84 MB stay, with this one 50 (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS provider for the whole process, before anything can ask for one.
    let _already = rustls::crypto::ring::default_provider().install_default().is_err();
    dtorrent::cli::Cli::parse().run().into()
}
