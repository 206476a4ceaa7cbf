//! The running program, which is sent requests and read line by line.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, Command};
use tracing::{info, warn};

use crate::model::{ServerName, printable, reported_text};

use super::answer::{self, Reply};
use super::settings::{PASSED, Settings};

/// Maximum length of a line: an answer about some 50,000 torrents.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Maximum length of a line of standard error.
const STDERR_LINE_BYTES_MAX: usize = 4 << 10;

/// Maximum time for a program that closed its output to end before it is killed.
const EXIT_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);

/// The failure of an exchange.
#[derive(Debug)]
pub enum Failure {
    /// The program cannot be started.
    NotStarted(std::io::Error),
    /// The program ended, with its exit status if it is known.
    Ended(String),
    /// The same, while it had a request of the client, which it may have carried out.
    Died(String),
    /// No answer within the deadline.
    Silent,
    /// The answer is invalid, with the reason.
    Invalid(String),
    /// The program refused, with its own message.
    Refused { code: i64, message: String },
    /// The program does not have the method.
    Unsupported,
}

impl Failure {
    /// Tells the end of a program that had the request from that of one that was only being started.
    pub fn of_request(self) -> Self {
        match self {
            Self::Ended(how) => Self::Died(how),
            failure => failure,
        }
    }

    /// Returns whether the program has to be killed: a later answer could not be trusted to belong to its request.
    pub fn ends_the_child(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Unsupported)
    }
}

/// A running program. When dropped, it is killed with every process that it has started.
pub struct Child {
    process: tokio::process::Child,
    group: rustix::process::Pid,
    input: ChildStdin,
    output: Lines<tokio::process::ChildStdout>,
    errors: Lines<tokio::process::ChildStderr>,
    server: ServerName,
    last_id: u64,
}

impl Child {
    /// Starts a program in a process group of its own, without a shell, and with the named variables only.
    ///
    /// # Errors
    /// The system's, for example that there is no such program.
    pub fn start(settings: &Settings) -> std::io::Result<Self> {
        let Settings { server, command, environment, .. } = settings;
        let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let passed = PASSED.into_iter().chain(environment.iter().map(String::as_str));
        let mut process = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(passed.filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own is killed with everything that the program has started. Ctrl-C at the terminal does
            // not get there.
            .process_group(0)
            // For the failures below, before the group is known.
            .kill_on_drop(true)
            .spawn()?;
        let gone = || std::io::Error::other("it has ended already");
        let group = process.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let child = Self {
            group: group.ok_or_else(gone)?,
            input: process.stdin.take().ok_or_else(gone)?,
            output: Lines::new(process.stdout.take().ok_or_else(gone)?, LINE_BYTES_MAX),
            errors: Lines::new(process.stderr.take().ok_or_else(gone)?, STDERR_LINE_BYTES_MAX),
            server: server.clone(),
            last_id: 0,
            process,
        };
        info!(%server, program, process = child.id(), "client program started");
        Ok(child)
    }

    /// Returns the process id.
    pub fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Sends a request, and reads until its answer. Not cancel-safe: a child whose call was dropped has to be
    /// dropped too.
    ///
    /// # Errors
    /// Among others, an answer that takes more than `tree_bytes_max` as a tree.
    pub async fn call(&mut self, method: &str, params: Option<Value>, tree_bytes_max: usize) -> Result<Value, Failure> {
        self.last_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method});
        if let Some(params) = params {
            request["params"] = params;
        }
        let line = format!("{request}\n");
        // Reading and writing at the same time: a program that fills its output before it reads must not block
        // this side, nor this side the program.
        let Self { input, output, errors, server, last_id, process, .. } = self;
        let mut writing = std::pin::pin!(async {
            input.write_all(line.as_bytes()).await?;
            input.flush().await
        });
        let mut is_written = false;
        loop {
            tokio::select! {
                written = &mut writing, if !is_written => match written {
                    Ok(()) => is_written = true,
                    Err(error) => return Err(ended(process, &error.to_string()).await),
                },
                line = output.next() => match line {
                    Ok(Some(line)) => match answer::reply(&line, *last_id, tree_bytes_max).map_err(Failure::Invalid)? {
                        Reply::Result(value) if is_written => return Ok(value),
                        // What is written before the whole request was read is an answer to something else.
                        Reply::Result(_) => return Err(Failure::Invalid("it answered before any request".to_owned())),
                        Reply::Refusal { code, message } => return Err(Failure::Refused { code, message }),
                        Reply::Other => {}
                    },
                    Ok(None) => return Err(ended(process, "it closed its output").await),
                    Err(TooLong) => {
                        return Err(Failure::Invalid(format!("a line of more than {LINE_BYTES_MAX} bytes")));
                    }
                },
                // A program blocks when nobody empties its standard error, and would then never answer.
                line_of_stderr = errors.next(), if !errors.is_over => if let Ok(Some(line_of_stderr)) = line_of_stderr {
                    let line_of_stderr = printable(&line_of_stderr);
                    let line_of_stderr = &*reported_text(&line_of_stderr);
                    warn!(%server, line_of_stderr, "client program");
                },
            }
        }
    }
}

/// Waits for a program that closed its output, because its exit status explains more.
async fn ended(process: &mut tokio::process::Child, otherwise: &str) -> Failure {
    match tokio::time::timeout(EXIT_TIMEOUT, process.wait()).await {
        Ok(Ok(status)) => Failure::Ended(format!("it ended: {status}")),
        _ => Failure::Ended(otherwise.to_owned()),
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The group may have ended already.
        rustix::process::kill_process_group(self.group, rustix::process::Signal::KILL).ok();
    }
}

struct TooLong;

/// Lines of bounded length.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R, bytes_max: usize) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new(), bytes_max, is_over: false }
    }

    /// Returns the next line without its end; `None` at the end of the stream. Cancel-safe: a dropped call keeps
    /// what it has read.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let room = (self.bytes_max + 1).saturating_sub(self.line.len()) as u64;
        let read = (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await;
        if read.is_ok() && self.line.last() == Some(&b'\n') {
            self.line.pop();
            return Ok(Some(std::mem::take(&mut self.line)));
        }
        if self.line.len() > self.bytes_max {
            self.line.clear();
            return Err(TooLong);
        }
        // A broken pipe is an end as well: the caller asks for the exit status next.
        self.is_over = true;
        Ok(None)
    }
}
