//! How the program behind an [`ExecClient`](super::ExecClient) is started.

use std::time::Duration;

use crate::model::ServerName;

/// Names of the variables that every program gets: what programs need to run, and no secret of the bridge, whose own
/// settings may be variables as well.
pub(super) const PASSED: [&str; 10] =
    ["HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];

/// Settings of one program.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the server that the program speaks for.
    pub server: ServerName,
    /// The program and its arguments; never given to a shell.
    pub command: Vec<String>,
    /// Names of variables of the bridge's environment that it gets, besides `PATH`, `HOME` and the like.
    pub environment: Vec<String>,
    /// Limit for each answer, including the start of the program.
    pub timeout: Duration,
}
