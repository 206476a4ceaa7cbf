//! The chat message for an event: a title, a line of details, and a level. Pure.

use crate::model::{Event, Kind, Torrent, truncated};

/// Maximum length of a title. Services cut or refuse longer ones, and a torrent's name may be long.
const TITLE_CHARS_MAX: usize = 200;
/// Maximum length of the details, for the same reason.
const TEXT_CHARS_MAX: usize = 1000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A change that most people do not wait for.
    Info,
    /// Something that was waited for: finished, healed, online again.
    Success,
    /// Something that a person may have to check.
    Warning,
    /// A torrent or a server does not work.
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
    /// The event and the torrent's or server's name, at most 200 characters.
    pub title: String,
    /// Details, at most 1000 characters.
    pub text: String,
    /// The level, which services show as a colour, a tag or an icon.
    pub level: Level,
}

impl ChatMessage {
    /// Describes an event.
    pub fn new(event: &Event) -> Self {
        let (phrase, level) = describe(event.event_type);
        let (title, text) = match &event.torrent {
            Some(torrent) => (format!("{phrase}: {}", torrent.name), details(torrent)),
            None => (format!("{} {phrase}", event.server), format!("at {}", event.time)),
        };
        Self { title: truncated(&title, TITLE_CHARS_MAX), text: truncated(&text, TEXT_CHARS_MAX), level }
    }
}

/// Returns the event in words, for before a torrent's name or after a server's, and its level.
fn describe(kind: Kind) -> (&'static str, Level) {
    match kind {
        Kind::JournalReset => ("starts a new epoch: its earlier state was lost", Level::Warning),
        Kind::ServerOnline => ("is online", Level::Success),
        Kind::ServerRestarted => ("was restarted", Level::Info),
        Kind::SnapshotDone => ("is known: every torrent was read", Level::Info),
        Kind::ServerOffline => ("is offline", Level::Error),
        Kind::Removed => ("Removed", Level::Info),
        Kind::Added => ("Added", Level::Info),
        Kind::Metadata => ("Metadata found", Level::Info),
        Kind::Renamed => ("Renamed", Level::Info),
        Kind::Moved => ("Moved", Level::Info),
        Kind::LabelChanged => ("Label changed", Level::Info),
        Kind::PriorityChanged => ("Priority changed", Level::Info),
        Kind::Checking => ("Checking", Level::Info),
        Kind::Checked => ("Checked", Level::Info),
        Kind::Started => ("Started", Level::Info),
        Kind::Resumed => ("Resumed", Level::Info),
        Kind::Unfinished => ("No longer complete", Level::Warning),
        Kind::Finished => ("Finished", Level::Success),
        Kind::Stalled => ("Stalled", Level::Warning),
        Kind::Unstalled => ("Moving again", Level::Info),
        Kind::Paused => ("Paused", Level::Info),
        Kind::Stopped => ("Stopped", Level::Info),
        Kind::Error => ("Error", Level::Error),
        Kind::ErrorCleared => ("No longer in error", Level::Success),
        Kind::Updated => ("Updated", Level::Info),
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
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = bytes.checked_ilog2().unwrap_or(0) / 10;
    match unit {
        0 => format!("{bytes} B"),
        unit => format!("{:.1} {}", bytes as f64 / f64::from(unit * 10).exp2(), UNITS[unit as usize]),
    }
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
}
