//! What the one-shot commands have in common: how they look on a terminal, and how they reach a server.
//!
//! Data goes to stdout, as wide as it likes if that is no terminal; what is said to people goes to stderr. Colours
//! are for terminals that want them. A reader that has had enough (`| head`) is no error.

pub mod human;
pub mod paint;
pub mod select;
pub mod server;
pub mod table;

use std::io::{self, Write as _};

use super::{Exit, tell};

/// Writes data. Who reads may have had enough, which ends the program quietly.
pub fn say(text: &str) -> Result<(), Exit> {
    let mut out = anstream::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
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
