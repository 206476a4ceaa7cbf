//! The chat message for an event: a title, a line of details, and a level. Pure.

use crate::model::{Event, Kind, Torrent};

/// Maximum length of a title. Services cut or refuse longer ones, and a torrent's name may be long.
const TITLE_CHARS_MAX: usize = 200;
/// Maximum length of the details, for the same reason.
const TEXT_CHARS_MAX: usize = 1000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Success,
    Warning,
    Error,
}

impl Level {
    /// Returns the level as templates get it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// An event in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// What happened, at most 200 characters.
    pub title: String,
    /// Details, at most 1000 characters.
    pub text: String,
    /// The level, which services show as a colour, a tag or an icon.
    pub level: Level,
}

impl ChatMessage {
    /// Describes an event.
    pub fn new(event: &Event) -> Self {
        let phrase = phrase(event.event_type);
        let (title, text) = match &event.torrent {
            Some(torrent) => (format!("{phrase}: {}", torrent.name), details(torrent)),
            None => (format!("{} {phrase}", event.server), format!("at {}", event.time)),
        };
        Self {
            title: truncated(&title, TITLE_CHARS_MAX),
            text: truncated(&text, TEXT_CHARS_MAX),
            level: level(event.event_type),
        }
    }
}

/// Returns what happened, to stand before a torrent's name or after a server's.
fn phrase(kind: Kind) -> &'static str {
    match kind {
        Kind::JournalReset => "starts a new epoch: its earlier state was lost",
        Kind::ServerOnline => "is online",
        Kind::ServerRestarted => "was restarted",
        Kind::SnapshotDone => "is known: every torrent was read",
        Kind::ServerOffline => "is offline",
        Kind::Removed => "Removed",
        Kind::Added => "Added",
        Kind::Metadata => "Metadata found",
        Kind::Renamed => "Renamed",
        Kind::Moved => "Moved",
        Kind::LabelChanged => "Label changed",
        Kind::PriorityChanged => "Priority changed",
        Kind::Checking => "Checking",
        Kind::Checked => "Checked",
        Kind::Started => "Started",
        Kind::Resumed => "Resumed",
        Kind::Unfinished => "No longer complete",
        Kind::Finished => "Finished",
        Kind::Stalled => "Stalled",
        Kind::Unstalled => "Moving again",
        Kind::Paused => "Paused",
        Kind::Stopped => "Stopped",
        Kind::Error => "Error",
        Kind::ErrorCleared => "No longer in error",
        Kind::Updated => "Updated",
    }
}

fn level(kind: Kind) -> Level {
    match kind {
        Kind::Error | Kind::ServerOffline => Level::Error,
        Kind::JournalReset | Kind::Unfinished | Kind::Stalled => Level::Warning,
        Kind::Finished | Kind::ErrorCleared | Kind::ServerOnline => Level::Success,
        Kind::ServerRestarted
        | Kind::SnapshotDone
        | Kind::Removed
        | Kind::Added
        | Kind::Metadata
        | Kind::Renamed
        | Kind::Moved
        | Kind::LabelChanged
        | Kind::PriorityChanged
        | Kind::Checking
        | Kind::Checked
        | Kind::Started
        | Kind::Resumed
        | Kind::Unstalled
        | Kind::Paused
        | Kind::Stopped
        | Kind::Updated => Level::Info,
    }
}

fn details(torrent: &Torrent) -> String {
    let parts = [
        torrent.message.as_deref().map(str::to_owned).filter(|message| torrent.error && !message.is_empty()),
        (torrent.length > 0).then(|| size(torrent.length)),
        (torrent.progress < 100.0).then(|| format!("{} %", torrent.progress)),
        torrent.ratio.map(|ratio| format!("ratio {ratio:.2}")),
        torrent.label.as_deref().map(str::to_owned).filter(|label| !label.is_empty()),
        Some(torrent.server.to_string()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut amount = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}

fn truncated(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_binary_unit() {
        for (bytes, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (700 << 20, "700.0 MiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn a_text_that_is_too_long_ends_in_an_ellipsis() {
        assert_eq!(truncated("äöü", 3), "äöü");
        assert_eq!(truncated("äöüß", 3), "äö…");
    }
}
