//! Logs and metrics. The log goes to stderr, as text for people or as JSON for machines.
//!
//! Names of torrents and messages of trackers are chosen by others, and a log is read in a terminal. Hence control
//! characters of a value never reach it, and a value never starts a line of its own. (tracing-subscriber escapes
//! messages, but not fields.) Secrets of the config are masked in each line, as a net below the mask of texts from outside.

pub mod metrics;

use std::error::Error;
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use anyhow::anyhow;
use tracing::Level;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

use crate::config::{Log, LogFormat};
use crate::model::{AUDIT, error_chain, known_names, masked_line, printable};

/// Whether the audit trail is part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// At every level: commands come from others.
    Always,
    /// As other lines of its level: the only commands are those of who reads the log.
    ByLevel,
}

/// Installs the log. To be called once.
///
/// # Errors
/// The process has a log already.
pub fn start(log: Log, audit: Audit) -> anyhow::Result<()> {
    let (filter, handle) = reload::Layer::new(filter(log.level, audit));
    let layer = match log.format {
        LogFormat::Pretty => pretty(is_coloured(), io::stderr).boxed(),
        LogFormat::Json => json(io::stderr).boxed(),
    };
    // The filter can be replaced later, for the command `log_level`.
    let started = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    started.map_err(|error| anyhow!("start the log: {error}"))?;
    LEVEL.set(handle).map_err(|_| anyhow!("the log has been started before"))
}

/// The handle that changes the level of the running log.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes the level of the log until the next start. The audit trail stays.
///
/// # Errors
/// `level` is none of the levels, or no log was installed; the text is for the user.
pub fn set_level(level: &str, dry_run: bool) -> Result<(), String> {
    let found = Log::LEVELS.iter().find(|(name, _)| *name == level);
    let known = || known_names(level, Log::LEVELS.iter().map(|(name, _)| *name));
    let (_, level) = found.ok_or_else(|| format!("level: unknown level; {}", known()))?;
    let handle = LEVEL.get().ok_or("no log is installed")?;
    if dry_run {
        return Ok(());
    }
    handle.reload(filter(*level, Audit::Always)).map_err(|error| error.to_string())
}

/// Returns a filter for messages of this program from `level` on, of libraries from `warn` on, and for the audit trail at
/// any level: whoever may set the level does not end it.
fn filter(level: Option<Level>, audit: Audit) -> Targets {
    let level = level.map_or(LevelFilter::OFF, LevelFilter::from_level);
    let audit_level = if audit == Audit::Always { level.max(LevelFilter::INFO) } else { level };
    Targets::new()
        .with_target("dtorrent", level)
        .with_target(AUDIT, audit_level)
        // The sinks log the errors of these libraries; a broker could make rumqttc log a line for each byte it sends.
        .with_target("rumqttc", LevelFilter::OFF)
        .with_target("async_nats", LevelFilter::OFF)
        .with_default(level.min(LevelFilter::WARN))
}

fn is_coloured() -> bool {
    // https://no-color.org: any value that is not empty.
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn pretty<W>(is_coloured: bool, writer: W) -> impl tracing_subscriber::Layer<Registry> + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    layer().fmt_fields(PrintableFields).with_ansi(is_coloured).with_writer(writer)
}

fn json<W>(writer: W) -> impl tracing_subscriber::Layer<Registry> + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    layer().json().flatten_event(true).with_writer(Printable(writer))
}

/// Formats fields as `key=value`, with control characters replaced.
struct PrintableFields;

impl<'w> FormatFields<'w> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = PrintableVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct PrintableVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl PrintableVisitor<'_> {
    fn write(&mut self, field: &Field, text: &str) {
        let separator = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let text = printable(masked_line(text).as_bytes());
        self.result = self.result.and_then(|()| match field.name() {
            "message" => write!(self.writer, "{separator}{text}"),
            name => write!(self.writer, "{separator}{name}={text}"),
        });
    }
}

impl Visit for PrintableVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.write(field, value) } else { self.record_debug(field, &value) }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write(field, &error_chain(value));
    }
}

/// Replaces secrets, and the control characters that JSON does not escape: DEL and those above 0x7f.
struct Printable<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Printable<W> {
    type Writer = Printable<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        Printable(self.0.make_writer())
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = masked_line(&text);
        let is_bad = |c: char| c.is_control() && c != '\n';
        if text.contains(is_bad) {
            self.0.write_all(text.replace(is_bad, "\u{fffd}").as_bytes())?;
        } else {
            self.0.write_all(text.as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type AnyLayer = Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync>;

    const EVIL: &str = "a\x1b[31m\u{9b}31m\x7f\r\n2026-11-22 ERROR all is lost";

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(make: impl FnOnce(Lines) -> AnyLayer) -> String {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry()
            .with(make(lines.clone()).with_filter(filter(Some(Level::INFO), Audit::Always)));
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("poll", server = EVIL, label = %EVIL).entered();
            let error = io::Error::other(EVIL);
            tracing::info!(text = EVIL, shown = %EVIL, debug = ?EVIL, error = &error as &dyn Error, "{EVIL}");
            tracing::debug!("too quiet");
            tracing::info!(target: "rumqttc::client", "too chatty");
        });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn no_value_reaches_the_terminal_with_control_characters_or_begins_a_line() {
        let writers: [fn(Lines) -> AnyLayer; 2] =
            [|lines| pretty(false, move || lines.clone()).boxed(), |lines| json(move || lines.clone()).boxed()];
        for writer in writers {
            let text = written(writer);
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.chars().any(char::is_control), "{text:?}");
            assert!(text.contains("all is lost") && !text.contains("too "), "{text}");
        }
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = written(|lines| json(move || lines.clone()).boxed());
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert!(line["message"].as_str().unwrap().starts_with("a\x1b"), "escaped on the wire, whole for a machine");
    }
}
