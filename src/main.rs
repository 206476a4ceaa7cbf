//! Reads the command line, does what it says, ends with its code. All else is the library's.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // One TLS provider for the whole process, before anything can ask for one.
    let _already = rustls::crypto::ring::default_provider().install_default().is_err();
    dtorrent::cli::Cli::parse().run().into()
}
