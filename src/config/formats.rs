//! The named formats of webhooks.

/// The named formats. The topic of ntfy is part of the address.
#[derive(Clone, Copy)]
pub enum NamedFormat {
    Standard,
    Dtorrent,
    Ntfy,
    Discord,
    Slack,
    Apprise,
}

impl NamedFormat {
    /// Returns whether people read it. Events of the initial snapshot are excluded from such a format by default.
    pub fn is_chat(self) -> bool {
        matches!(self, Self::Ntfy | Self::Discord | Self::Slack | Self::Apprise)
    }
}

/// Formats by their names in a config.
pub const FORMATS: [(&str, NamedFormat); 6] = [
    ("standard", NamedFormat::Standard),
    ("dtorrent", NamedFormat::Dtorrent),
    ("ntfy", NamedFormat::Ntfy),
    ("discord", NamedFormat::Discord),
    ("slack", NamedFormat::Slack),
    ("apprise", NamedFormat::Apprise),
];
