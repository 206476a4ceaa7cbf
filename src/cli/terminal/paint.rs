//! Colours, by what they mean. What takes them off again where nobody wants them is `anstream`.

use anstyle::{AnsiColor, Style};

use crate::model::{Kind, Status};

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

pub const GOOD: Style = coloured(AnsiColor::Green);
pub const BUSY: Style = coloured(AnsiColor::Cyan);
pub const HELD: Style = coloured(AnsiColor::Yellow);
pub const BAD: Style = coloured(AnsiColor::Red).bold();
pub const FAINT: Style = Style::new().dimmed();
pub const HEAD: Style = Style::new().bold();
pub const PLAIN: Style = Style::new();

pub fn status(status: Status, has_error: bool) -> Style {
    match status {
        _ if has_error => BAD,
        Status::Seeding => GOOD,
        Status::Downloading | Status::Metadata => BUSY,
        Status::Checking | Status::Paused | Status::Queued => HELD,
        Status::Stopped => FAINT,
    }
}

pub fn kind(kind: Kind) -> Style {
    match kind {
        Kind::Finished | Kind::ServerOnline | Kind::ErrorCleared | Kind::SnapshotDone => GOOD,
        Kind::Error | Kind::ServerOffline | Kind::JournalReset => BAD,
        Kind::Added | Kind::Started | Kind::Resumed | Kind::Metadata | Kind::Unstalled => BUSY,
        Kind::Updated => FAINT,
        _ => HELD,
    }
}

/// A text in a style, with the way back behind it.
pub fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}
