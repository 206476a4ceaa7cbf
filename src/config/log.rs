//! The settings of the log.

use tracing::Level;

/// Level and format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is logged; `None` logs nothing.
    pub level: Option<Level>,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, coloured on a terminal.
    Pretty,
    /// One JSON object.
    Json,
}

impl Log {
    /// Levels by their names, in the config and in the command `log_level`.
    pub const LEVELS: [(&'static str, Option<Level>); 6] = [
        ("error", Some(Level::ERROR)),
        ("warn", Some(Level::WARN)),
        ("info", Some(Level::INFO)),
        ("debug", Some(Level::DEBUG)),
        ("trace", Some(Level::TRACE)),
        ("off", None),
    ];
}

impl LogFormat {
    /// Formats by their names in the config.
    pub const NAMES: [(&'static str, Self); 2] = [("pretty", Self::Pretty), ("json", Self::Json)];
}
