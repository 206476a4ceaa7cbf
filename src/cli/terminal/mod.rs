//! Output on a terminal and access to a server, shared by the one-shot commands.
//!
//! Data goes to stdout, uncut if that is not a terminal; messages go to stderr. Colours appear only on terminals that
//! want them. The name of a torrent is chosen by its maker, so nothing in it may control the terminal. A reader that
//! closes stdout early (`| head`) is no error.

pub mod human;
pub mod paint;
pub mod select;
pub mod server;
pub mod table;

use std::fmt::Write as _;
use std::io;

use serde::Serialize;

use super::{Exit, print_message};
use crate::model::is_active;

/// Prints text to stdout, in colours where they are wanted.
///
/// # Errors
/// [`Exit::Done`] if the reader has closed stdout, which ends the program quietly; else the exit code after a message.
pub fn print_text(text: &str) -> Result<(), Exit> {
    write_all(&mut anstream::stdout().lock(), text.as_bytes())
}

/// Prints bytes to stdout as they are.
///
/// # Errors
/// As [`print_text`].
pub fn print_bytes(bytes: &[u8]) -> Result<(), Exit> {
    write_all(&mut io::stdout().lock(), bytes)
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// As [`print_text`].
pub fn print_json(value: &impl Serialize) -> Result<(), Exit> {
    print_json_text(&serde_json::to_string(value).expect("the values of commands are plain JSON"))
}

/// Prints rendered JSON and a line break. Characters that a terminal would obey are escaped, which leaves the value the
/// same.
///
/// # Errors
/// As [`print_text`].
pub fn print_json_text(json: &str) -> Result<(), Exit> {
    let mut text = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            c if is_active(c) => write!(text, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
            c => text.push(c),
        }
    }
    text.push('\n');
    print_bytes(text.as_bytes())
}

fn write_all(out: &mut impl io::Write, bytes: &[u8]) -> Result<(), Exit> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        // Rust ignores SIGPIPE, so a reader that closes the pipe early (`| head`) is an error here.
        io::ErrorKind::BrokenPipe => Exit::Done,
        _ => {
            print_message(&format!("write to stdout: {error}"));
            Exit::Failed
        }
    })
}

/// Returns the width of stdout in columns; `None` if it is not a terminal.
pub fn width() -> Option<usize> {
    // `COLUMNS` overrides it, as in other programs; tests use this.
    let set = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    let measured = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    set.or_else(measured)
}
