//! What the one-shot commands have in common: how they look on a terminal, and how they reach a server.
//!
//! Data goes to stdout, as wide as it likes if that is no terminal; what is said to people goes to stderr. Colours
//! are for terminals that want them. Names of torrents are strangers' words: nothing in them does anything to a
//! terminal. A reader that has had enough (`| head`) is no error.

pub mod human;
pub mod paint;
pub mod select;
pub mod server;
pub mod table;

use std::fmt::Write as _;
use std::io;

use super::{Exit, tell};
use crate::model::is_active;

/// Writes data for people, in colours where they are wanted. Who reads may have had enough, which ends the program
/// quietly.
pub fn say(text: &str) -> Result<(), Exit> {
    written(&mut anstream::stdout().lock(), text.as_bytes())
}

/// Writes data as it is, as quietly.
pub fn put(bytes: &[u8]) -> Result<(), Exit> {
    written(&mut io::stdout().lock(), bytes)
}

/// Writes JSON, and a line break. What a terminal would obey is written as JSON can write it: the value is the same.
pub fn put_json(json: &str) -> Result<(), Exit> {
    let mut text = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            c if is_active(c) => write!(text, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
            c => text.push(c),
        }
    }
    text.push('\n');
    put(text.as_bytes())
}

fn written(out: &mut impl io::Write, bytes: &[u8]) -> Result<(), Exit> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Exit::Done,
        _ => {
            tell(&format!("write to stdout: {error}"));
            Exit::Failed
        }
    })
}

/// How many columns stdout has; `None` if it is no terminal.
pub fn width() -> Option<usize> {
    // `COLUMNS` is for tests and for those who know better.
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    let found = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    asked.or_else(found)
}
