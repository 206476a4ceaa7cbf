//! Calls to rTorrent, and the values of its answers.
//!
//! [`METHODS`] is everything that this program can ask an rTorrent to do, besides hooks on events of downloads
//! ([`Call::set_hook`], [`Call::prove_hook`]) and the methods that the config allows ([`Call::allowed`]). There is
//! no `execute`, no import, no `f.*` of a single file among them: these run programs, crash old versions, or both.
//! Text from outside travels as typed arguments, which rTorrent stores unchanged, never as part of a command.

use std::borrow::Cow;

use serde::Deserialize;

use super::settings::AllowedMethod;
use crate::model::{Hook, HookKey, InfoHash, TextLimit};

/// The methods that can be called, besides the readers of columns.
const METHODS: &[&str] = &[
    "branch",
    "cat",
    "d.check_hash",
    "d.close",
    "d.custom",
    "d.custom.set",
    "d.custom1.set",
    "d.directory.set",
    "d.directory_base.set",
    "d.erase",
    "d.message.set",
    "d.free_diskspace",
    "d.multicall.filtered",
    "d.multicall2",
    "d.pause",
    "d.priority.set",
    "d.resume",
    "d.save_full_session",
    "d.start",
    "d.stop",
    "d.throttle_name.set",
    "d.tracker.insert",
    "d.tracker_announce",
    "d.update_priorities",
    "directory.default",
    "f.multicall",
    "d.tied_to_file.set",
    "load.normal",
    "load.raw",
    "load.start",
    "network.xmlrpc.size_limit",
    "network.xmlrpc.size_limit.set",
    "p.multicall",
    "session.path",
    "system.api_version",
    "system.client_version",
    "system.cwd",
    "system.library_version",
    "system.listMethods",
    "system.pid",
    "system.time_seconds",
    "t.multicall",
    "dht.statistics",
    "throttle.global_down.max_rate",
    "throttle.global_down.max_rate.set",
    "throttle.global_down.rate",
    "throttle.global_down.total",
    "throttle.global_up.max_rate",
    "throttle.global_up.max_rate.set",
    "throttle.global_up.rate",
    "throttle.global_up.total",
    "throttle.up.max",
    "view.size",
];

/// The methods of one file, which is named by its torrent and its place and never otherwise.
const FILE_METHODS: &[&str] = &["f.priority.set"];

/// The methods of one tracker, which is named by its torrent and its place.
const TRACKER_METHODS: &[&str] = &["t.is_enabled.set"];

/// One call; several travel in one request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// The name of the method.
    pub method: Cow<'static, str>,
    /// The target first, which may be empty.
    pub params: Vec<Param>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Param {
    Text(String),
    Int(i64),
    Bytes(bytes::Bytes),
}

impl Call {
    /// A call about rTorrent as a whole: its target, always the first argument, is empty.
    pub(super) fn global(method: &'static str) -> Self {
        assert!(METHODS.contains(&method), "{method} is not in the list of methods");
        Self { method: method.into(), params: vec![Param::Text(String::new())] }
    }

    /// A call about one torrent.
    pub(super) fn on(hash: InfoHash, method: &'static str) -> Self {
        assert!(METHODS.contains(&method), "{method} is not in the list of methods");
        Self::of_torrent(hash, method)
    }

    /// The reader of a column, for one torrent.
    pub(super) fn column(hash: InfoHash, method: &'static str, key: Option<&str>) -> Self {
        assert!(method.starts_with("d.") && !method.ends_with(".set"), "{method} is no reader of a torrent");
        let call = Self::of_torrent(hash, method);
        if let Some(key) = key { call.text(key) } else { call }
    }

    /// A call about one file of a torrent.
    pub(super) fn on_file(hash: InfoHash, file: u32, method: &'static str) -> Self {
        assert!(FILE_METHODS.contains(&method), "{method} is not in the list of file methods");
        // 0.9.8 dies of a bare hash as the target of an `f.*` method (std::bad_alloc).
        let target = format!("{}:f{file}", hash.to_string().to_ascii_uppercase());
        Self { method: method.into(), params: vec![Param::Text(target)] }
    }

    /// A call about one tracker of a torrent.
    pub(super) fn on_tracker(hash: InfoHash, tracker: usize, method: &'static str) -> Self {
        assert!(TRACKER_METHODS.contains(&method), "{method} is not in the list of tracker methods");
        let target = format!("{}:t{tracker}", hash.to_string().to_ascii_uppercase());
        Self { method: method.into(), params: vec![Param::Text(target)] }
    }

    /// A call of a method that the config allows, with unchecked parameters.
    pub(super) fn allowed(method: &AllowedMethod, params: Vec<Param>) -> Self {
        Self { method: method.as_str().into(), params }
    }

    /// A call that reads all hooks of an event of downloads, by their keys.
    pub(super) fn read_hooks(event: &'static str) -> Self {
        Self::on_event("method.get", event)
    }

    /// A call that installs a hook on an event of downloads, in place of one with the same key, or removes that.
    pub(super) fn set_hook(event: &'static str, key: &HookKey, hook: Option<&Hook>) -> Self {
        let call = Self::on_event("method.set_key", event).text(key.as_str());
        match hook {
            Some(hook) => call.text(hook_command(hook)),
            None => call,
        }
    }

    /// A call that appends an empty line to the file of a hook.
    pub(super) fn prove_hook(hook: &Hook) -> Self {
        let call = Self { method: APPEND.into(), params: vec![Param::Text(String::new())] };
        call.text(hook.file.as_str()).text("")
    }

    fn on_event(method: &'static str, event: &'static str) -> Self {
        let call = Self { method: method.into(), params: vec![Param::Text(String::new())] };
        call.text(format!("event.download.{event}"))
    }

    fn of_torrent(hash: InfoHash, method: &'static str) -> Self {
        // Upper case, as every version answers itself.
        Self { method: method.into(), params: vec![Param::Text(hash.to_string().to_ascii_uppercase())] }
    }

    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.params.push(Param::Text(text.into()));
        self
    }

    pub(super) fn int(mut self, number: i64) -> Self {
        self.params.push(Param::Int(number));
        self
    }

    pub(super) fn bytes(mut self, bytes: bytes::Bytes) -> Self {
        self.params.push(Param::Bytes(bytes));
        self
    }
}

/// Returns the command of a hook: rTorrent appends the hash of the torrent to a file.
///
/// The command starts no program and waits for nothing, and reads nothing back. Every part of it is constant or checked
/// character by character, but for the hash, which rTorrent inserts itself. Without `catch`, a folder that is gone would keep
/// the later hooks of the event from running, those of rTorrent's own views among them.
pub(super) fn hook_command(hook: &Hook) -> String {
    format!("catch=\"{APPEND}={},$d.hash=\"", hook.file)
}

/// The method by which hooks write; versions from 0.16.18 do not have it.
pub(super) const APPEND: &str = "file.append";

/// Cells that are kept of one row: many more than there are columns. A row with more cannot be read.
pub(super) const ROW_CELLS_MAX: usize = 256;

/// One value of a row. Text is unchecked: mostly UTF-8, not always.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// A whole number, also of a boolean.
    Int(i64),
    /// Text, or the decoded bytes of a base64 value.
    Text(Cow<'a, [u8]>),
    /// No value.
    Null,
}

impl Cell<'_> {
    /// Returns the number, also where it is written as text.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            // `system.api_version` is a number in a text, on every version.
            Self::Text(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
            Self::Null => None,
        }
    }

    /// Returns the text, with bytes that are not UTF-8 replaced.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Self::Int(_) | Self::Null => None,
        }
    }

    /// Returns the text as far as it is kept, without a copy of the rest.
    pub(super) fn text_within(&self, limit: TextLimit) -> Option<String> {
        match self {
            Self::Text(text) => Some(limit.cut_bytes(text)),
            Self::Int(_) | Self::Null => None,
        }
    }
}

/// The refusal of one call; deserialized from the error object of JSON-RPC.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Fault {
    /// The number, which differs between versions.
    pub code: i64,
    /// The message, unchecked.
    #[serde(default, rename = "message")]
    pub text: String,
}

impl Fault {
    /// Returns whether the torrent does not exist.
    pub(super) fn is_unknown_hash(&self) -> bool {
        // By the text: the code is -501 on 0.9.8, -503 or -500 on modern versions by their XML library, -32602 in
        // JSON, each shared with other faults.
        let text = self.text.to_ascii_lowercase();
        text.contains("info-hash") && (text.contains("not find") || text.contains("not found"))
    }
}

/// A value of any kind, for answers that are small.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number, also of a boolean.
    Int(i64),
    /// Text, with bytes that are not UTF-8 replaced.
    Text(String),
    /// Values in their order.
    Array(Vec<Value>),
    /// Members in their order.
    Struct(Vec<(String, Value)>),
    /// No value.
    Null,
}

impl Value {
    /// Returns the number, also where it is written as text.
    pub(super) fn int(&self) -> Option<i64> {
        self.as_cell()?.int()
    }

    pub(super) fn str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a text or a number as text.
    pub(super) fn to_text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    pub(super) fn array(&self) -> &[Value] {
        match self {
            Self::Array(values) => values,
            _ => &[],
        }
    }

    pub(super) fn as_cell(&self) -> Option<Cell<'_>> {
        match self {
            Self::Int(number) => Some(Cell::Int(*number)),
            Self::Text(text) => Some(Cell::Text(Cow::Borrowed(text.as_bytes()))),
            Self::Null => Some(Cell::Null),
            Self::Array(_) | Self::Struct(_) => None,
        }
    }

    /// Returns a member of a struct.
    pub(super) fn member(&self, wanted: &str) -> Option<&Value> {
        let Self::Struct(members) = self else { return None };
        members.iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
    }

    /// Returns the fault, if the value is a struct with the two members of one.
    pub(super) fn as_fault(&self) -> Option<Fault> {
        Some(Fault { code: self.member("faultCode")?.int()?, text: self.member("faultString")?.to_text()? })
    }
}

/// A visitor of the answer to several calls, which ignores what it has no method for. `call` is the place of the
/// call, from 0.
pub trait Answers {
    /// Takes the single value that the call answered with.
    fn scalar(&mut self, _call: usize, _cell: Cell<'_>) {}
    /// Takes one row of the listing that the call answered with.
    fn row(&mut self, _call: usize, _cells: &[Cell<'_>]) {}
    /// Takes note of a row that cannot be read. The others are passed on.
    fn broken_row(&mut self, _call: usize) {}
    /// Takes the refusal of the call.
    fn fault(&mut self, _call: usize, _fault: Fault) {}
}

/// The reason why an answer cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Unreadable {
    /// The whole request was refused.
    Refused(Fault),
    /// The answer differs from the expected syntax.
    Malformed {
        /// Offset in bytes.
        at: usize,
        /// The syntax that was expected there.
        expected: &'static str,
    },
}

/// Records everything that is passed to it.
#[cfg(test)]
#[derive(Debug, Default, PartialEq)]
pub(super) struct RecordedAnswers {
    pub scalars: Vec<(usize, Cell<'static>)>,
    pub rows: Vec<(usize, Vec<Cell<'static>>)>,
    pub broken: usize,
    pub faults: Vec<(usize, Fault)>,
}

#[cfg(test)]
fn owned(cell: &Cell<'_>) -> Cell<'static> {
    match cell {
        Cell::Int(number) => Cell::Int(*number),
        Cell::Text(text) => Cell::Text(Cow::Owned(text.to_vec())),
        Cell::Null => Cell::Null,
    }
}

#[cfg(test)]
impl Answers for RecordedAnswers {
    fn scalar(&mut self, call: usize, cell: Cell<'_>) {
        self.scalars.push((call, owned(&cell)));
    }
    fn row(&mut self, call: usize, cells: &[Cell<'_>]) {
        self.rows.push((call, cells.iter().map(owned).collect()));
    }
    fn broken_row(&mut self, _: usize) {
        self.broken += 1;
    }
    fn fault(&mut self, call: usize, fault: Fault) {
        self.faults.push((call, fault));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HookFile, ServerName};

    const HASH: InfoHash = InfoHash::V1([0xab; 20]);

    #[test]
    fn rule_5_no_file_is_ever_named_by_a_bare_hash() {
        assert!(METHODS.iter().filter(|method| method.starts_with("f.")).eq(&["f.multicall"]));
        assert!(FILE_METHODS.iter().all(|method| !METHODS.contains(method)));
        let call = Call::on_file(HASH, 7, "f.priority.set");
        assert_eq!(call.params, [Param::Text(format!("{}:f7", "AB".repeat(20)))]);
        assert!(std::panic::catch_unwind(|| Call::on(HASH, "f.path")).is_err());
        assert!(std::panic::catch_unwind(|| Call::on(HASH, "f.priority.set")).is_err());
        assert!(std::panic::catch_unwind(|| Call::column(HASH, "f.path", None)).is_err());
    }

    #[test]
    fn rule_8_no_method_in_the_list_runs_a_program() {
        let harmless = |method: &&str| {
            !["execute", "method.", "schedule", "import", "try_import", "log."]
                .iter()
                .any(|bad| method.starts_with(bad))
        };
        assert!(METHODS.iter().all(harmless));
        assert!(std::panic::catch_unwind(|| Call::global("execute.throw")).is_err());
        assert!(std::panic::catch_unwind(|| Call::global("method.set_key")).is_err());
    }

    #[test]
    fn a_hook_appends_the_hash_to_its_file_and_nothing_else() {
        let key = HookKey::new("main", &ServerName::parse("home").unwrap()).unwrap();
        let hook = Hook { key, file: HookFile::parse("/data/hooks/main.home").unwrap() };
        let Call { method, params } = Call::set_hook("paused", &hook.key, Some(&hook));
        let command = "catch=\"file.append=/data/hooks/main.home,$d.hash=\"";
        assert_eq!(method, "method.set_key");
        let texts = |texts: &[&str]| texts.iter().map(|text| Param::Text((*text).to_owned())).collect::<Vec<_>>();
        assert_eq!(params, texts(&["", "event.download.paused", "!!dtorrent.main.home", command]));
        assert_eq!(Call::set_hook("paused", &hook.key, None).params, params[..3]);
        assert_eq!(Call::prove_hook(&hook).params, texts(&["", "/data/hooks/main.home", ""]));
    }

    #[test]
    fn a_missing_torrent_is_recognised_in_every_version() {
        for (code, text, expected) in [
            (-501, "Could not find info-hash.", true),
            (-503, "invalid parameters: info-hash not found", true),
            (-503, "Could not find view.", false),
            (-501, "Unsupported target type found.", false),
        ] {
            assert_eq!(Fault { code, text: text.to_owned() }.is_unknown_hash(), expected, "{text}");
        }
    }
}
