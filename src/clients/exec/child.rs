//! The running program: lines in, lines out.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, Command};
use tracing::{info, warn};

use crate::model::{ServerName, printable};

use super::answer::{self, Reply};

/// The longest line that is read: an answer about some 50,000 torrents.
const LINE_BYTES_MAX: usize = 16 << 20;
/// The longest line of its standard error that goes to the log as one.
const REMARK_BYTES_MAX: usize = 4 << 10;

/// How long a program that hung up may take to end before it is killed.
const LAST_WORD_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);

/// Why an exchange came to nothing.
#[derive(Debug)]
pub enum Failure {
    NotStarted(std::io::Error),
    Ended(String),
    /// No answer within the deadline.
    Silent,
    /// What it answered is not what it was asked.
    Nonsense(String),
    /// It said no, in its own words.
    Refused {
        code: i64,
        message: String,
    },
    /// It does not have the method.
    Unsupported,
}

impl Failure {
    /// Nothing it says after this could be trusted to belong to what it is asked.
    pub fn ends_the_child(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Unsupported)
    }
}

/// A program that runs. Dropped, it is killed with all that it has started.
pub struct Child {
    process: tokio::process::Child,
    group: rustix::process::Pid,
    input: ChildStdin,
    output: Lines<tokio::process::ChildStdout>,
    remarks: Lines<tokio::process::ChildStderr>,
    server: ServerName,
    last_id: u64,
}

impl Child {
    pub fn start(command: &[String], server: &ServerName) -> std::io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let gone = || std::io::Error::other("it has ended already");
        let group = process.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let child = Self {
            group: group.ok_or_else(gone)?,
            input: process.stdin.take().ok_or_else(gone)?,
            output: Lines::new(process.stdout.take().ok_or_else(gone)?, LINE_BYTES_MAX),
            remarks: Lines::new(process.stderr.take().ok_or_else(gone)?, REMARK_BYTES_MAX),
            server: server.clone(),
            last_id: 0,
            process,
        };
        info!(%server, program, process = child.id(), "the client program was started");
        Ok(child)
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Asks, and reads until the answer to just that has come. Not cancel-safe: a child whose call was dropped
    /// is to be dropped too.
    pub async fn call(&mut self, method: &str, params: Option<Value>) -> Result<Value, Failure> {
        self.last_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method});
        if let Some(params) = params {
            request["params"] = params;
        }
        let line = format!("{request}\n");
        // A program that talks before it listens must not stop us from writing, nor we it.
        let Self { input, output, remarks, server, last_id, process, .. } = self;
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
                    Ok(Some(line)) => match answer::reply(&line, *last_id).map_err(Failure::Nonsense)? {
                        Reply::Result(value) if is_written => return Ok(value),
                        Reply::Result(_) => return Err(Failure::Nonsense("it answered before it was asked".to_owned())),
                        Reply::Refusal { code, message } => return Err(Failure::Refused { code, message }),
                        Reply::NotForUs => {}
                    },
                    Ok(None) => return Err(ended(process, "it closed its output").await),
                    Err(TooLong) => {
                        return Err(Failure::Nonsense(format!("a line of more than {LINE_BYTES_MAX} bytes")));
                    }
                },
                remark = remarks.next(), if !remarks.is_over => if let Ok(Some(remark)) = remark {
                    let remark = printable(&remark);
                    warn!(%server, remark, "the client program says");
                },
            }
        }
    }
}

/// A program that hangs up is about to end, and how it ended tells more.
async fn ended(process: &mut tokio::process::Child, otherwise: &str) -> Failure {
    match tokio::time::timeout(LAST_WORD_WITHIN, process.wait()).await {
        Ok(Ok(status)) => Failure::Ended(format!("it ended: {status}")),
        _ => Failure::Ended(otherwise.to_owned()),
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Gone already is as good.
        rustix::process::kill_process_group(self.group, rustix::process::Signal::KILL).ok();
    }
}

struct TooLong;

/// Lines of bounded length, read so that a dropped read loses nothing.
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

    /// The next line without its end; `None` at the end of all. Cancel-safe.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        loop {
            let part = match self.reader.fill_buf().await {
                Ok(part) if !part.is_empty() => part,
                _ => {
                    self.is_over = true;
                    return Ok(None);
                }
            };
            let end = memchr::memchr(b'\n', part);
            let length = end.unwrap_or(part.len());
            if self.line.len() + length > self.bytes_max {
                self.line.clear();
                self.reader.consume(length);
                return Err(TooLong);
            }
            self.line.extend_from_slice(&part[..length]);
            self.reader.consume(length + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}
