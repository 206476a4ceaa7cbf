//! An event in words for people: a title, a line below it, and how much it matters. Pure.

use crate::model::{Cause, Kind, ServerName, Timestamp, Torrent};

/// Services cut or refuse what is longer; names of torrents can be.
const TITLE_CHARS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 1000;

/// An event as it is read back from its bytes.
#[derive(Debug, serde::Deserialize)]
pub struct Told {
    pub event_type: Kind,
    pub time: Timestamp,
    pub server: ServerName,
    pub cause: Cause,
    #[serde(default)]
    pub torrent: Option<Torrent>,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Success,
    Warning,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    pub title: String,
    pub text: String,
    pub level: Level,
}

impl Words {
    pub fn of(told: &Told) -> Self {
        let title = match &told.torrent {
            Some(torrent) => format!("{}: {}", what_happened(told.event_type), torrent.name),
            None => format!("{} {}", told.server, what_happened(told.event_type)),
        };
        let text = match &told.torrent {
            Some(torrent) => about(torrent),
            None => format!("at {}", told.time),
        };
        Self { title: cut(&title, TITLE_CHARS_MAX), text: cut(&text, TEXT_CHARS_MAX), level: level(told.event_type) }
    }
}

/// Of a torrent it comes before its name, of a server after it.
fn what_happened(kind: Kind) -> &'static str {
    match kind {
        Kind::JournalReset => "begins anew: what was told before is lost",
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

fn about(torrent: &Torrent) -> String {
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

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (700 << 20, "700.0 MiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn what_is_too_long_ends_in_an_ellipsis() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
