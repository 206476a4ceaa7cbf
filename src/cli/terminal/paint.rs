//! Colours by meaning. `anstream` removes them where they are not wanted.

use anstyle::{AnsiColor, Style};

use crate::model::{Kind, Status};

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

/// Complete, or well again.
pub const GOOD: Style = coloured(AnsiColor::Green);
/// At work.
pub const BUSY: Style = coloured(AnsiColor::Cyan);
/// Waiting.
pub const HELD: Style = coloured(AnsiColor::Yellow);
/// In error.
pub const BAD: Style = coloured(AnsiColor::Red).bold();
/// Secondary.
pub const FAINT: Style = Style::new().dimmed();
/// A heading.
pub const HEAD: Style = Style::new().bold();
/// Unstyled.
pub const PLAIN: Style = Style::new();

/// Returns the style of a torrent's status.
pub fn status(status: Status) -> Style {
    match status {
        Status::Seeding => GOOD,
        Status::Downloading | Status::Metadata => BUSY,
        Status::Checking | Status::Paused | Status::Queued => HELD,
        Status::Stopped => FAINT,
    }
}

/// Returns the style of a kind of event.
pub fn kind(kind: Kind) -> Style {
    match kind {
        Kind::Finished | Kind::ServerOnline | Kind::ErrorCleared | Kind::SnapshotDone => GOOD,
        Kind::Error | Kind::ServerOffline | Kind::JournalReset => BAD,
        Kind::Added | Kind::Started | Kind::Resumed | Kind::Metadata | Kind::Unstalled => BUSY,
        Kind::Updated => FAINT,
        _ => HELD,
    }
}

/// Returns a text in a style, with the reset after it.
pub fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}
