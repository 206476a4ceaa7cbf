//! The arguments of the verbs, as senders write them.
//!
//! The types are read by serde and described by schemars, so a schema says what the parser takes. What serde cannot
//! check, `operation` checks; the tests of `commands` compare both.
//!
//! Pure.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Value, json};

use super::action::LIMIT_MAX;
use super::base64_text::decode_base64;
use super::operation::is_magnet;
use super::text::NO_CONTROL_PATTERN;
use super::{
    Action, AddRequest, CommandError, CustomValues, ErrorCode, Limits, Operation, Parts, Seq, TorrentSource,
    TrackerChanges, custom,
};

/// Torrents on a page of `list`, if the command does not say.
const PAGE_SIZE: u64 = 200;
/// Most torrents on a page of `list`; a torrent has about a kilobyte.
const PAGE_SIZE_MAX: u64 = 1000;
/// Longest label that is accepted.
const LABEL_BYTES_MAX: usize = 255;
/// Longest name of a throttle group that is accepted.
const GROUP_BYTES_MAX: usize = 64;
/// Most files of one `file_priority`.
const FILES_MAX: usize = 50_000;
/// Most parameters of one `rpc`.
const PARAMS_MAX: usize = 16;
/// Longest text among the parameters of `rpc`.
const PARAM_BYTES_MAX: usize = 4096;

fn bad(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorCode::BadRequest, message)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NoArguments {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteArguments {
    /// Delete the files, too: needs the right `delete_data`.
    #[serde(default)]
    data: bool,
}

pub(super) fn delete(DeleteArguments { data }: DeleteArguments) -> Result<Operation, CommandError> {
    Ok(if data { Operation::DeleteWithData } else { Operation::act(Action::Delete) })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LabelArguments {
    /// 255 bytes at most; empty for none.
    #[schemars(length(max = LABEL_BYTES_MAX), regex(pattern = NO_CONTROL_PATTERN))]
    label: String,
}

pub(super) fn label(LabelArguments { label }: LabelArguments) -> Result<Operation, CommandError> {
    let label = checked_label(label)?;
    Ok(Operation::act(move |hash| Action::Label(hash, label.clone())))
}

fn checked_label(label: String) -> Result<String, CommandError> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(bad(format!("a label has at most {LABEL_BYTES_MAX} bytes and no control characters")));
    }
    Ok(label)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PriorityArguments {
    /// 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    priority: u8,
}

pub(super) fn priority(PriorityArguments { priority }: PriorityArguments) -> Result<Operation, CommandError> {
    let priority = checked_priority(priority)?;
    Ok(Operation::act(move |hash| Action::Priority(hash, priority)))
}

/// rTorrent takes any number modulo 4, so the range has to be checked here.
fn checked_priority(priority: u8) -> Result<u8, CommandError> {
    if priority > 3 {
        return Err(bad("priority is 0 (off), 1 (low), 2 (normal) or 3 (high)"));
    }
    Ok(priority)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveArguments {
    /// The directory in which the client looks for the data: below the server's `roots`.
    directory: String,
    /// Move the files there first.
    #[serde(default)]
    data: bool,
}

pub(super) fn move_to(MoveArguments { directory, data }: MoveArguments) -> Result<Operation, CommandError> {
    Ok(Operation::Move { directory, data })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ThrottleArguments {
    /// A group that the client's own config defines; empty for none, `NULL` for no limit at all.
    #[schemars(length(max = GROUP_BYTES_MAX), regex(pattern = NO_CONTROL_PATTERN))]
    throttle: String,
}

pub(super) fn throttle(ThrottleArguments { throttle }: ThrottleArguments) -> Result<Operation, CommandError> {
    let group = throttle;
    if group.len() > GROUP_BYTES_MAX || group.chars().any(char::is_control) {
        let right = format!("at most {GROUP_BYTES_MAX} bytes and no control characters");
        return Err(bad(format!("the name of a throttle group has {right}")));
    }
    Ok(Operation::act(move |hash| Action::Throttle(hash, group.clone())))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FilePriorityArguments {
    /// Places in the list of files, from 0.
    #[schemars(length(min = 1, max = FILES_MAX))]
    files: Vec<u32>,
    /// 0 off, 1 normal, 2 high.
    #[schemars(range(max = 2))]
    priority: u8,
}

pub(super) fn file_priority(
    FilePriorityArguments { mut files, priority }: FilePriorityArguments,
) -> Result<Operation, CommandError> {
    if priority > 2 {
        return Err(bad("the priority of a file is 0 (off), 1 (normal) or 2 (high)"));
    }
    if !(1..=FILES_MAX).contains(&files.len()) {
        return Err(bad(format!("files is a list of 1 to {FILES_MAX} places in the torrent, from 0")));
    }
    // Each place becomes a call of the client.
    files.sort_unstable();
    files.dedup();
    Ok(Operation::act(move |hash| Action::FilePriority(hash, files.clone(), priority)))
}

pub(super) fn trackers(changes: TrackerChanges) -> Result<Operation, CommandError> {
    let changes = changes.checked().map_err(|error| bad(error.to_string()))?;
    Ok(Operation::act(move |hash| Action::Trackers(hash, changes.clone())))
}

pub(super) fn limits(limits: Limits) -> Result<Operation, CommandError> {
    if limits == Limits::default() {
        return Err(bad("limits takes download_limit, upload_limit or both, in bytes per second"));
    }
    if [limits.download, limits.upload].into_iter().flatten().any(|limit| limit > LIMIT_MAX) {
        return Err(bad(format!("a limit is 0 (none) to {LIMIT_MAX} bytes per second")));
    }
    Ok(Operation::SetLimits(limits))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResyncArguments {
    /// The first event to send again, with all that follow. Without it the present state is sent again.
    from_seq: Option<u64>,
}

pub(super) fn resync(ResyncArguments { from_seq }: ResyncArguments) -> Result<Operation, CommandError> {
    Ok(Operation::Resync { from_seq: from_seq.map(Seq) })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RpcArguments {
    /// A method that the server's config lists.
    method: String,
    /// Strings and integers.
    #[serde(default)]
    #[schemars(length(max = PARAMS_MAX), schema_with = "params")]
    params: Vec<Value>,
}

pub(super) fn rpc(RpcArguments { method, params }: RpcArguments) -> Result<Operation, CommandError> {
    let is_scalar = |param: &Value| match param {
        Value::String(text) => text.len() <= PARAM_BYTES_MAX,
        Value::Number(number) => number.is_i64(),
        _ => false,
    };
    if params.len() > PARAMS_MAX || !params.iter().all(is_scalar) {
        let right = format!("at most {PARAMS_MAX} texts (of {PARAM_BYTES_MAX} bytes at most) and whole numbers");
        return Err(bad(format!("params is a list of {right}")));
    }
    Ok(Operation::Rpc { method, params })
}

fn params(_generator: &mut SchemaGenerator) -> Schema {
    let text = json!({"type": "string", "maxLength": PARAM_BYTES_MAX});
    json_schema!({"type": "array", "items": {"anyOf": [text, {"type": "integer"}]}})
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevelArguments {
    /// error, warn, info, debug, trace or off.
    level: String,
}

pub(super) fn log_level(LogLevelArguments { level }: LogLevelArguments) -> Result<Operation, CommandError> {
    Ok(Operation::SetLogLevel(level))
}

pub(super) fn get(parts: Parts) -> Result<Operation, CommandError> {
    Ok(Operation::Get(Parts { torrent: true, ..parts }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListArguments {
    /// Show only these keys of each torrent.
    fields: Option<Vec<String>>,
    /// From 0.
    #[serde(default)]
    page: u64,
    /// 200 by default.
    #[schemars(range(min = 1, max = PAGE_SIZE_MAX))]
    page_size: Option<u64>,
}

pub(super) fn list(ListArguments { fields, page, page_size }: ListArguments) -> Result<Operation, CommandError> {
    let page_size = page_size.unwrap_or(PAGE_SIZE);
    if !(1..=PAGE_SIZE_MAX).contains(&page_size) {
        return Err(bad(format!("page_size is 1 to {PAGE_SIZE_MAX}")));
    }
    Ok(Operation::List { fields, page, page_size })
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = exactly_one_source)]
pub(super) struct AddArguments {
    /// A magnet link.
    #[schemars(regex(pattern = r"^\s*[mM][aA][gG][nN][eE][tT]:\?"))]
    magnet: Option<String>,
    /// The URL of a .torrent file, or a magnet link.
    #[schemars(regex(pattern = r"^\s*([hH][tT][tT][pP][sS]?://|[mM][aA][gG][nN][eE][tT]:\?)"))]
    url: Option<String>,
    /// A .torrent file, in base64.
    #[schemars(extend("contentEncoding" = "base64"))]
    torrent: Option<String>,
    /// The path of a .torrent file on the bridge's machine, below the server's `roots`.
    file: Option<String>,
    /// Start the torrent: true by default.
    start: Option<bool>,
    /// 255 bytes at most.
    #[schemars(length(max = LABEL_BYTES_MAX), regex(pattern = NO_CONTROL_PATTERN))]
    label: Option<String>,
    /// The directory for the data: below the server's `roots`.
    directory: Option<String>,
    /// 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    priority: Option<u8>,
    /// Texts that the client keeps with the torrent, by keys of letters, digits and `._-`.
    #[serde(default)] // a schema of its own would make it required
    #[schemars(schema_with = "custom::schema")]
    custom: Option<BTreeMap<String, String>>,
    /// The path of data that is already there: verified, piece by piece, before anything is loaded.
    data_file: Option<String>,
}

pub(super) fn add(
    AddArguments { magnet, url, torrent, file, start, label, directory, priority, custom, data_file }: AddArguments,
) -> Result<Operation, CommandError> {
    let source = match (magnet, url, torrent, file) {
        (Some(magnet), None, None, None) if is_magnet(&magnet) => TorrentSource::Magnet(magnet),
        (Some(_), None, None, None) => return Err(bad("magnet: a link that begins with `magnet:?` is right")),
        // A page that offers torrents has either kind of link, and not every sender tells them apart.
        (None, Some(url), None, None) => TorrentSource::from_link(&url)
            .ok_or_else(|| bad("url: a link that begins with http://, https:// or `magnet:?` is right"))?,
        (None, None, Some(torrent), None) => {
            let bytes = decode_base64(&torrent);
            TorrentSource::Torrent(bytes.map_err(|error| bad(format!("torrent is not valid base64: {error}")))?.into())
        }
        (None, None, None, Some(file)) => TorrentSource::File(file),
        _ => return Err(bad("add takes exactly one of magnet, url, torrent (base64) and file")),
    };
    if data_file.is_some() && matches!(source, TorrentSource::Magnet(_)) {
        return Err(bad("data_file needs the torrent itself: a magnet link does not say what its content is"));
    }
    Ok(Operation::Add(AddRequest {
        source,
        data_file,
        start: start.unwrap_or(true),
        label: label.map(checked_label).transpose()?,
        directory,
        priority: priority.map(checked_priority).transpose()?,
        custom: CustomValues::parse(custom.unwrap_or_default()).map_err(|error| bad(format!("custom: {error}")))?,
    }))
}

fn exactly_one_source(schema: &mut Schema) {
    let given = |key: &str| json!({"required": [key], "properties": {key: {"type": "string"}}});
    schema.insert("oneOf".to_owned(), ["magnet", "url", "torrent", "file"].map(given).to_vec().into());
}
