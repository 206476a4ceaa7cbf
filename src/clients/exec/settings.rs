//! How the program behind an [`ExecClient`](super::ExecClient) is started.

use std::time::Duration;

use crate::model::ServerName;

/// Settings of one program.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the server that the program speaks for.
    pub server: ServerName,
    /// The program and its arguments; never given to a shell.
    pub command: Vec<String>,
    /// Limit for each answer, including the start of the program.
    pub timeout: Duration,
}
