//! Tests that cannot run on this machine: skipped with a message, or failed where every test has to run.

use std::io::Write as _;

use dtorrent_peers::process::find;

/// Reports on standard error that the calling test does not run, and why. The test has to return afterwards.
///
/// # Panics
/// `DTORRENT_LIVE=required` is set: a test that did not run must not count as passed.
#[track_caller]
pub fn skip(reason: &str) {
    let is_required = std::env::var("DTORRENT_LIVE").is_ok_and(|value| value == "required");
    assert!(!is_required, "DTORRENT_LIVE=required, but this test cannot run: {reason}");
    // Not `eprintln!`: the test runner captures that, and shows it only of tests that fail.
    std::io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes()).unwrap();
}

/// Returns whether these programs, given with their Debian packages, are installed. Skips the test if one is not.
#[track_caller]
pub fn are_installed(programs: &[(&'static str, &'static str)]) -> bool {
    let missing = programs.iter().find_map(|(program, package)| find(program, package).err());
    if let Some(missing) = &missing {
        skip(&missing.to_string());
    }
    missing.is_none()
}
