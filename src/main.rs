//! The program: parses the command line and runs it. Everything else is in the library.

use std::process::ExitCode;

/// The allocator. A listing is allocated on one thread and freed on another, for which glibc keeps a heap per thread and
/// never returns it: 84 MB stay with 10,000 torrents, 50 with mimalloc (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything asks for a TLS provider: with two in the dependency tree rustls would not choose one.
    let _already = rustls::crypto::ring::default_provider().install_default().is_err();
    dtorrent::cli::run()
}
