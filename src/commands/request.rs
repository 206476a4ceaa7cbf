//! What a command's body says. Pure.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::{Map, Value, json};

use crate::model::{CommandError, CommandId, ErrorCode, Filter, InfoHash, Limits, Parts, Seq, Status, Verb};

/// A larger body is refused unread.
pub const BODY_BYTES_MAX: usize = 10 * 1024 * 1024;

/// How long a command may wait to be carried out if its sender says nothing.
pub const TTL: Duration = Duration::from_secs(5 * 60);
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) const HASHES_MAX: usize = 10_000;
const PAGE_SIZE: u64 = 200;
const PAGE_SIZE_MAX: u64 = 1000;
const LABEL_BYTES_MAX: usize = 255;
/// `get` reads each of them apart.
pub(super) const GET_MAX: usize = 1000;
/// What rTorrent takes; a gigabyte a second.
const LIMIT_MAX: u64 = 1 << 30;
const FILES_MAX: usize = 50_000;
const PARAMS_MAX: usize = 16;
const PARAM_BYTES_MAX: usize = 4096;

/// What every command may say, read before anything else so that even a malformed one is answered
/// under its id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope {
    pub id: Option<CommandId>,
    pub ttl: Option<Duration>,
    pub reply_to: Option<String>,
}

/// A command that can be carried out.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: Target,
    pub what: What,
    pub if_status: Option<Vec<Status>>,
    pub dry_run: bool,
}

/// Which torrents are meant.
#[derive(Clone, Debug)]
pub enum Target {
    These(Vec<InfoHash>),
    Matching(Box<Filter>),
    /// None in particular.
    Server,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Pause,
    Resume,
    Start,
    Stop,
    Delete {
        data: bool,
    },
    Recheck,
    Announce,
    Label(String),
    Priority(u8),
    Move {
        directory: String,
        data: bool,
    },
    Throttle(String),
    FilePriority {
        files: Vec<u32>,
        priority: u8,
    },
    Limits(Limits),
    /// Without a number: the present is asserted again.
    Resync {
        from_seq: Option<Seq>,
    },
    Rpc {
        method: String,
        params: Vec<Value>,
    },
    LogLevel(String),
    Get(Parts),
    List {
        fields: Option<Vec<String>>,
        page: u64,
        page_size: u64,
    },
    Add(AddRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub struct AddRequest {
    pub content: Content,
    pub start: bool,
    pub label: Option<String>,
    pub directory: Option<String>,
    pub priority: Option<u8>,
    /// A path on this machine where its content is already.
    pub data_file: Option<String>,
}

impl What {
    /// Without a torrent there is nothing to do it to.
    pub(super) fn needs_torrents(&self) -> bool {
        !matches!(
            self,
            Self::Add(_)
                | Self::List { .. }
                | Self::Limits(_)
                | Self::Resync { .. }
                | Self::Rpc { .. }
                | Self::LogLevel(_)
        )
    }

    /// It asks, and changes nothing.
    pub fn is_question(&self) -> bool {
        matches!(self, Self::Get(_) | Self::List { .. })
    }

    /// The right that it needs beyond its verb.
    pub fn extra_right(&self) -> Option<&'static str> {
        matches!(self, Self::Delete { data: true }).then_some("delete_data")
    }
}

/// Where the torrent to add is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Magnet(String),
    Url(String),
    Torrent(Bytes),
    /// A path on this machine.
    File(String),
}

fn bad(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorCode::BadRequest, message)
}

impl Envelope {
    /// Reads what can be read; the error is for the first thing that is wrong.
    pub fn read(body: &[u8]) -> (Self, Result<(), CommandError>) {
        let object = match object(body) {
            Ok(Some(object)) => object,
            Ok(None) => return (Self::default(), Ok(())),
            Err(_) => return (Self { id: id_in_wreck(body), ..Self::default() }, Ok(())),
        };
        let mut envelope = Self::default();
        let mut check = || {
            if let Some(id) = text(&object, "id")? {
                envelope.id = Some(CommandId::parse(id).map_err(|error| bad(format!("id: {error}")))?);
            }
            envelope.reply_to = text(&object, "reply_to")?.map(str::to_owned);
            if let Some(ttl) = text(&object, "ttl")? {
                let ttl: Duration = humantime::parse_duration(ttl)
                    .map_err(|error| bad(format!("ttl: {error}; a duration like \"300s\" or \"5m\" is right")))?;
                envelope.ttl = Some(ttl.min(TTL_MAX));
            }
            Ok(())
        };
        let result = check();
        (envelope, result)
    }
}

/// The body as an object: `None` for an empty one, an error if it is something else.
fn object(body: &[u8]) -> Result<Option<Map<String, Value>>, CommandError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(bad("the body is not a JSON object; an object like {\"id\": \"1\"} or nothing is right")),
        Err(error) => Err(bad(format!("the body is no JSON: {error}"))),
    }
}

/// The id in what ends or goes wrong behind it. What is wrong is said by who reads it whole.
fn id_in_wreck(body: &[u8]) -> Option<CommandId> {
    struct Reader<'a>(&'a mut Option<String>);
    impl<'de> Visitor<'de> for Reader<'_> {
        type Value = ();
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
            while let Some(key) = object.next_key::<String>()? {
                match key.as_str() {
                    "id" => *self.0 = object.next_value()?,
                    _ => drop(object.next_value::<IgnoredAny>()?),
                }
            }
            Ok(())
        }
    }
    let mut id = None;
    serde_json::Deserializer::from_slice(body).deserialize_map(Reader(&mut id)).ok();
    CommandId::parse(&id?).ok()
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CommandError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(format!("{key} is not a text"))),
    }
}

#[derive(Deserialize, Default, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct NoArguments {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct DeleteArguments {
    /// Its content too: needs the right `delete_data`.
    #[serde(default)]
    data: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct LabelArguments {
    /// 255 bytes at most; empty for none.
    #[schemars(length(max = LABEL_BYTES_MAX), regex(pattern = NO_CONTROL))]
    label: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct PriorityArguments {
    /// 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    priority: u8,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct MoveArguments {
    /// Where the client shall look for its content: below the server's `roots`.
    directory: String,
    /// Its files are moved there first.
    #[serde(default)]
    data: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct ThrottleArguments {
    /// A group that the client's own config makes; empty for none, `NULL` for no limit at all.
    #[schemars(length(max = 64), regex(pattern = NO_CONTROL))]
    throttle: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct FilePriorityArguments {
    /// Places in the list of files, from 0.
    #[schemars(length(min = 1, max = FILES_MAX))]
    files: Vec<u32>,
    /// 0 off, 1 normal, 2 high.
    #[schemars(range(max = 2))]
    priority: u8,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline, extend("anyOf" = [{"required": ["download_limit"]}, {"required": ["upload_limit"]}]))]
struct LimitsArguments {
    /// Bytes per second for all torrents together, 0 for none.
    #[schemars(range(max = LIMIT_MAX))]
    download_limit: Option<u64>,
    /// Bytes per second for all torrents together, 0 for none.
    #[schemars(range(max = LIMIT_MAX))]
    upload_limit: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct ResyncArguments {
    /// All events from there on are sent again. Without it, what is so at present is.
    from_seq: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct RpcArguments {
    /// One that the server's config lists.
    method: String,
    /// Texts and whole numbers.
    #[serde(default)]
    #[schemars(length(max = PARAMS_MAX), schema_with = "params")]
    params: Vec<Value>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct LogLevelArguments {
    /// error, warn, info, debug, trace or off.
    level: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct GetArguments {
    /// Read its files too.
    #[serde(default)]
    files: bool,
    /// Read its trackers too.
    #[serde(default)]
    trackers: bool,
    /// Read its peers too.
    #[serde(default)]
    peers: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
struct ListArguments {
    /// Only these of each torrent.
    fields: Option<Vec<String>>,
    /// From 0.
    #[serde(default)]
    page: u64,
    /// 200, if not given.
    #[schemars(range(min = 1, max = PAGE_SIZE_MAX))]
    page_size: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline, transform = exactly_one_source)]
struct AddArguments {
    /// A magnet link.
    #[schemars(regex(pattern = r"^[mM][aA][gG][nN][eE][tT]:\?"))]
    magnet: Option<String>,
    /// Where the .torrent file is.
    #[schemars(regex(pattern = r"^[hH][tT][tT][pP][sS]?://"))]
    url: Option<String>,
    /// The .torrent file, in base64.
    #[schemars(extend("contentEncoding" = "base64"))]
    torrent: Option<String>,
    /// The path of a .torrent file on the bridge's machine, below the server's `roots`.
    file: Option<String>,
    /// True, if not given.
    start: Option<bool>,
    /// 255 bytes at most.
    #[schemars(length(max = LABEL_BYTES_MAX), regex(pattern = NO_CONTROL))]
    label: Option<String>,
    /// Where its content shall be: below the server's `roots`.
    directory: Option<String>,
    /// 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    priority: Option<u8>,
    /// The path of content that is there already: it is checked, piece by piece, before anything is loaded.
    data_file: Option<String>,
}

const NO_CONTROL: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

fn params(_generator: &mut SchemaGenerator) -> Schema {
    let text = json!({"type": "string", "maxLength": PARAM_BYTES_MAX});
    json_schema!({"type": "array", "items": {"anyOf": [text, {"type": "integer"}]}})
}

fn exactly_one_source(schema: &mut Schema) {
    let given = |key: &str| json!({"required": [key], "properties": {key: {"type": "string"}}});
    schema.insert("oneOf".to_owned(), ["magnet", "url", "torrent", "file"].map(given).to_vec().into());
}

/// What a verb takes beside what every command may say.
pub(super) fn arguments_of(verb: Verb, generator: &mut SchemaGenerator) -> Schema {
    match verb {
        Verb::Pause | Verb::Resume | Verb::Start | Verb::Stop | Verb::Recheck | Verb::Announce => {
            NoArguments::json_schema(generator)
        }
        Verb::Delete => DeleteArguments::json_schema(generator),
        Verb::Label => LabelArguments::json_schema(generator),
        Verb::Priority => PriorityArguments::json_schema(generator),
        Verb::Move => MoveArguments::json_schema(generator),
        Verb::Throttle => ThrottleArguments::json_schema(generator),
        Verb::FilePriority => FilePriorityArguments::json_schema(generator),
        Verb::Limits => LimitsArguments::json_schema(generator),
        Verb::Resync => ResyncArguments::json_schema(generator),
        Verb::Rpc => RpcArguments::json_schema(generator),
        Verb::LogLevel => LogLevelArguments::json_schema(generator),
        Verb::Get => GetArguments::json_schema(generator),
        Verb::List => ListArguments::json_schema(generator),
        Verb::Add => AddArguments::json_schema(generator),
    }
}

impl Request {
    /// Reads a body. `hash` is the torrent that the command's own topic names.
    ///
    /// # Errors
    /// What is wrong with the first wrong thing, and what would be right.
    pub fn parse(verb: Verb, hash: Option<InfoHash>, body: &[u8]) -> Result<Self, CommandError> {
        if verb == Verb::Add
            && let Some(content) = bare_content(body)?
        {
            let add =
                AddRequest { content, start: true, label: None, directory: None, priority: None, data_file: None };
            return Self { target: Target::Server, what: What::Add(add), if_status: None, dry_run: false }
                .checked_target(verb, hash);
        }
        let mut object = object(body)?.unwrap_or_default();
        for key in ["id", "ttl", "reply_to"] {
            object.remove(key);
        }
        let target = take_target(&mut object, hash)?;
        let if_status = take_statuses(&mut object)?;
        let dry_run = match object.remove("dry_run") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(dry_run)) => dry_run,
            Some(_) => return Err(bad("dry_run is true or false")),
        };
        let what = what(verb, object)?;
        if let (What::Get(_), Target::These(hashes)) = (&what, &target)
            && hashes.len() > GET_MAX
        {
            let message = format!("get takes {GET_MAX} hashes at most; list has pages");
            return Err(CommandError::new(ErrorCode::TooLarge, message));
        }
        Self { target, what, if_status, dry_run }.checked_target(verb, hash)
    }

    /// Torrents have to be named where torrents are meant, and nowhere else.
    fn checked_target(self, verb: Verb, hash: Option<InfoHash>) -> Result<Self, CommandError> {
        let name = verb.as_str();
        match (verb, &self.target, hash) {
            (Verb::FilePriority, _, None) => {
                Err(bad("file_priority is a command to one torrent: publish it on that torrent's topic"))
            }
            (_, _, Some(_)) if !self.what.needs_torrents() => {
                Err(bad(format!("{name} is a command to a server, not to a torrent")))
            }
            (Verb::List, Target::These(_), None) => Err(bad("list takes a filter, no hashes")),
            (Verb::List, _, None) => Ok(self),
            (_, Target::Server, None) if !self.what.needs_torrents() => Ok(self),
            (_, _, None) if !self.what.needs_torrents() => Err(bad(format!("{name} takes no hashes and no filter"))),
            (_, Target::Server, None) => {
                Err(bad(format!("{name} to a server needs \"hashes\" or \"filter\" to say which torrents")))
            }
            _ => Ok(self),
        }
    }
}

fn take_target(object: &mut Map<String, Value>, hash: Option<InfoHash>) -> Result<Target, CommandError> {
    let hashes = object.remove("hashes").filter(|value| !value.is_null());
    let filter = object.remove("filter").filter(|value| !value.is_null());
    match (hash, hashes, filter) {
        (Some(hash), None, None) => Ok(Target::These(vec![hash])),
        (Some(_), ..) => Err(bad("the topic names the torrent, so hashes and filter have no place here")),
        (None, Some(_), Some(_)) => Err(bad("hashes or filter, not both")),
        (None, None, None) => Ok(Target::Server),
        (None, None, Some(filter)) => Filter::from_json(filter)
            .map(|filter| Target::Matching(Box::new(filter)))
            .map_err(|error| bad(error.to_string())),
        (None, Some(hashes), None) => {
            let mut hashes: Vec<InfoHash> =
                serde_json::from_value(hashes).map_err(|error| bad(format!("hashes: {error}")))?;
            if hashes.len() > HASHES_MAX {
                return Err(CommandError::new(ErrorCode::TooLarge, format!("more than {HASHES_MAX} hashes")));
            }
            hashes.sort_unstable();
            hashes.dedup();
            Ok(Target::These(hashes))
        }
    }
}

fn take_statuses(object: &mut Map<String, Value>) -> Result<Option<Vec<Status>>, CommandError> {
    let statuses = match object.remove("if_status") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(statuses)) => statuses,
        Some(status) => vec![status],
    };
    serde_json::from_value(Value::Array(statuses)).map(Some).map_err(|error| bad(format!("if_status: {error}")))
}

fn arguments<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, CommandError> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner().to_string());
        let inner = ["u8", "u32", "u64"]
            .iter()
            .fold(inner, |text, kind| text.replace(&format!("expected {kind}"), "expected a whole number from 0 on"));
        bad(if path == "." || inner.contains(&format!("`{path}`")) { inner } else { format!("{path}: {inner}") })
    })
}

fn what(verb: Verb, object: Map<String, Value>) -> Result<What, CommandError> {
    let plain = |what| arguments::<NoArguments>(object.clone()).map(|NoArguments {}| what);
    match verb {
        Verb::Pause => plain(What::Pause),
        Verb::Resume => plain(What::Resume),
        Verb::Start => plain(What::Start),
        Verb::Stop => plain(What::Stop),
        Verb::Recheck => plain(What::Recheck),
        Verb::Announce => plain(What::Announce),
        Verb::Delete => arguments(object).map(|DeleteArguments { data }| What::Delete { data }),
        Verb::Label => arguments(object).and_then(|LabelArguments { label }| checked_label(label)).map(What::Label),
        Verb::Priority => {
            arguments(object).and_then(|PriorityArguments { priority }| checked_priority(priority)).map(What::Priority)
        }
        Verb::Move => arguments(object).map(|MoveArguments { directory, data }| What::Move { directory, data }),
        Verb::Throttle => arguments(object).and_then(throttle),
        Verb::FilePriority => arguments(object).and_then(file_priority),
        Verb::Limits => arguments(object).and_then(limits),
        Verb::Resync => {
            let ResyncArguments { from_seq } = arguments(object)?;
            Ok(What::Resync { from_seq: from_seq.map(Seq) })
        }
        Verb::Rpc => arguments(object).and_then(rpc),
        Verb::LogLevel => arguments(object).map(|LogLevelArguments { level }| What::LogLevel(level)),
        Verb::Get => {
            let GetArguments { files, trackers, peers } = arguments(object)?;
            Ok(What::Get(Parts { files, trackers, peers }))
        }
        Verb::List => {
            let ListArguments { fields, page, page_size } = arguments(object)?;
            let page_size = page_size.unwrap_or(PAGE_SIZE);
            if !(1..=PAGE_SIZE_MAX).contains(&page_size) {
                return Err(bad(format!("page_size is 1 to {PAGE_SIZE_MAX}")));
            }
            Ok(What::List { fields, page, page_size })
        }
        Verb::Add => add(arguments(object)?).map(What::Add),
    }
}

fn throttle(ThrottleArguments { throttle }: ThrottleArguments) -> Result<What, CommandError> {
    if throttle.len() > 64 || throttle.chars().any(char::is_control) {
        return Err(bad("the name of a throttle group has at most 64 bytes and no control characters"));
    }
    Ok(What::Throttle(throttle))
}

fn file_priority(arguments: FilePriorityArguments) -> Result<What, CommandError> {
    let FilePriorityArguments { mut files, priority } = arguments;
    if priority > 2 {
        return Err(bad("the priority of a file is 0 (off), 1 (normal) or 2 (high)"));
    }
    if !(1..=FILES_MAX).contains(&files.len()) {
        return Err(bad(format!("files is a list of 1 to {FILES_MAX} places in the torrent, from 0")));
    }
    files.sort_unstable();
    files.dedup();
    Ok(What::FilePriority { files, priority })
}

fn limits(LimitsArguments { download_limit, upload_limit }: LimitsArguments) -> Result<What, CommandError> {
    let limits = Limits { download: download_limit, upload: upload_limit };
    if limits == Limits::default() {
        return Err(bad("limits takes download_limit, upload_limit or both, in bytes per second"));
    }
    if [download_limit, upload_limit].into_iter().flatten().any(|limit| limit > LIMIT_MAX) {
        return Err(bad(format!("a limit is 0 (none) to {LIMIT_MAX} bytes per second")));
    }
    Ok(What::Limits(limits))
}

/// Only the shape: which methods may be called is for the server's config to say.
fn rpc(RpcArguments { method, params }: RpcArguments) -> Result<What, CommandError> {
    let is_scalar = |param: &Value| match param {
        Value::String(text) => text.len() <= PARAM_BYTES_MAX,
        Value::Number(number) => number.is_i64(),
        _ => false,
    };
    if params.len() > PARAMS_MAX || !params.iter().all(is_scalar) {
        let right = format!("at most {PARAMS_MAX} texts (of {PARAM_BYTES_MAX} bytes at most) and whole numbers");
        return Err(bad(format!("params is a list of {right}")));
    }
    Ok(What::Rpc { method, params })
}

fn checked_label(label: String) -> Result<String, CommandError> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(bad(format!("a label has at most {LABEL_BYTES_MAX} bytes and no control characters")));
    }
    Ok(label)
}

/// rTorrent takes any number modulo 4, so the range is for us to keep.
fn checked_priority(priority: u8) -> Result<u8, CommandError> {
    if priority > 3 {
        return Err(bad("priority is 0 (off), 1 (low), 2 (normal) or 3 (high)"));
    }
    Ok(priority)
}

/// A body that is itself what is to be added: a link, or the bytes of a .torrent file.
fn bare_content(body: &[u8]) -> Result<Option<Content>, CommandError> {
    // A bencoded dictionary begins with `d` and the length of its first key.
    if body.first() == Some(&b'd') && body.get(1).is_some_and(u8::is_ascii_digit) {
        return Ok(Some(Content::Torrent(Bytes::copy_from_slice(body))));
    }
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(bad("the body is neither a .torrent file nor a link nor a JSON object"));
    };
    let link = text.trim();
    if is_magnet(link) {
        return Ok(Some(Content::Magnet(link.to_owned())));
    }
    Ok(is_url(link).then(|| Content::Url(link.to_owned())))
}

fn is_magnet(link: &str) -> bool {
    link.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:?"))
}

fn is_url(link: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| link.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}

fn add(arguments: AddArguments) -> Result<AddRequest, CommandError> {
    let AddArguments { magnet, url, torrent, file, start, label, directory, priority, data_file } = arguments;
    let content = match (magnet, url, torrent, file) {
        (Some(magnet), None, None, None) if is_magnet(&magnet) => Content::Magnet(magnet),
        (Some(_), None, None, None) => return Err(bad("magnet: a link that begins with `magnet:?` is right")),
        (None, Some(url), None, None) if is_url(&url) => Content::Url(url),
        (None, Some(_), None, None) => return Err(bad("url: a link that begins with http:// or https:// is right")),
        (None, None, Some(torrent), None) => {
            let bytes = BASE64.decode(torrent.trim()).map_err(|error| bad(format!("torrent is no base64: {error}")))?;
            Content::Torrent(bytes.into())
        }
        (None, None, None, Some(file)) => Content::File(file),
        _ => return Err(bad("add takes exactly one of magnet, url, torrent (base64) and file")),
    };
    if data_file.is_some() && matches!(content, Content::Magnet(_)) {
        return Err(bad("data_file needs the torrent itself: a magnet link does not say what its content is"));
    }
    Ok(AddRequest {
        content,
        data_file,
        start: start.unwrap_or(true),
        label: label.map(checked_label).transpose()?,
        directory,
        priority: priority.map(checked_priority).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "abcdef0123456789abcdef0123456789abcdef01";

    fn parse(verb: &str, on_torrent: bool, body: &str) -> Result<What, String> {
        let hash = on_torrent.then(|| HASH.parse().unwrap());
        Request::parse(Verb::parse(verb).unwrap(), hash, body.as_bytes())
            .map(|request| request.what)
            .map_err(|error| error.message)
    }

    #[test]
    fn what_is_right_is_read() {
        assert_eq!(parse("pause", true, ""), Ok(What::Pause));
        assert_eq!(parse("pause", true, " {\"id\": \"1\", \"ttl\": \"5m\"} "), Ok(What::Pause));
        assert_eq!(parse("stop", false, r#"{"filter": {"status": "seeding", "name": "*.iso"}}"#), Ok(What::Stop));
        assert_eq!(parse("label", true, r#"{"label": "$x; \"y\""}"#), Ok(What::Label("$x; \"y\"".into())));
        assert_eq!(parse("priority", true, r#"{"priority": 3}"#), Ok(What::Priority(3)));
        assert_eq!(parse("list", false, ""), Ok(What::List { fields: None, page: 0, page_size: 200 }));
        let Ok(What::Add(add)) = parse("add", false, "magnet:?xt=urn:btih:x\n") else { panic!() };
        assert_eq!(add.content, Content::Magnet("magnet:?xt=urn:btih:x".into()));
        let Ok(What::Add(add)) = parse("add", false, "d4:infode") else { panic!() };
        assert_eq!(add.content, Content::Torrent(Bytes::from_static(b"d4:infode")));
        let Ok(What::Add(add)) = parse("add", false, r#"{"torrent": "ZGU=", "start": false}"#) else { panic!() };
        assert_eq!((add.content, add.start), (Content::Torrent(Bytes::from_static(b"de")), false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (verb, on_torrent, body, expected) in [
            ("pause", false, "", "needs \"hashes\" or \"filter\""),
            ("pause", true, "pause!", "no JSON"),
            ("pause", true, "[]", "not a JSON object"),
            ("pause", true, r#"{"wait": 1}"#, "unknown field `wait`"),
            ("pause", true, r#"{"filter": {}}"#, "the topic names the torrent"),
            ("pause", false, r#"{"hashes": ["xyz"]}"#, "hashes: "),
            ("pause", false, r#"{"filter": {"status": "asleep"}}"#, "unknown variant `asleep`"),
            ("pause", false, r#"{"filter": 5}"#, "filter: an object like"),
            ("pause", true, r#"{"if_status": "asleep"}"#, "if_status: "),
            ("label", true, "", "missing field `label`"),
            ("label", true, r#"{"label": 5}"#, "label: invalid type"),
            ("label", true, r#"{"label": "a\u0007"}"#, "no control characters"),
            ("priority", true, r#"{"priority": 4}"#, "priority is 0"),
            ("priority", true, r#"{"priority": -1}"#, "priority: invalid value: integer `-1`, expected a whole number"),
            ("delete", true, r#"{"data": 1}"#, "invalid type"),
            ("move", true, "{}", "missing field `directory`"),
            ("throttle", true, r#"{"throttle": 5}"#, "invalid type"),
            ("file_priority", true, r#"{"files": [], "priority": 1}"#, "files is a list"),
            ("file_priority", true, r#"{"files": [0], "priority": 3}"#, "priority of a file"),
            (
                "file_priority",
                false,
                r#"{"hashes": ["abcdef0123456789abcdef0123456789abcdef01"], "files": [0], "priority": 1}"#,
                "one torrent",
            ),
            ("limits", false, "", "limits takes"),
            ("limits", false, r#"{"download_limit": -1}"#, "invalid value"),
            ("limits", false, r#"{"download_limit": 99999999999}"#, "a limit is 0"),
            ("limits", true, r#"{"download_limit": 1}"#, "to a server"),
            ("limits", false, r#"{"filter": {}, "download_limit": 1}"#, "no hashes and no filter"),
            ("rpc", false, r#"{"method": "x", "params": [[]]}"#, "params is a list"),
            ("rpc", false, r#"{"method": "x", "params": [1e99]}"#, "params is a list"),
            ("resync", false, r#"{"from_seq": "1"}"#, "invalid type"),
            ("add", false, r#"{"magnet": "magnet:?x", "data_file": "/x"}"#, "data_file needs"),
            ("add", true, r#"{"magnet": "magnet:?x"}"#, "to a server"),
            ("add", false, r#"{"magnet": "http://x"}"#, "magnet: "),
            ("add", false, r#"{"url": "file:///etc/passwd"}"#, "url: "),
            ("add", false, r#"{"torrent": "***"}"#, "no base64"),
            ("add", false, r#"{"magnet": "magnet:?x", "url": "http://x"}"#, "exactly one"),
            ("add", false, "", "exactly one"),
            ("list", false, r#"{"page_size": 0}"#, "page_size"),
            ("list", true, "", "to a server"),
        ] {
            let error = parse(verb, on_torrent, body).expect_err(body);
            assert!(error.contains(expected), "{verb} {body}: {error}");
        }
    }

    #[test]
    fn a_malformed_command_still_has_its_id() {
        for wreck in [&br#"{"id": "7", "ttl": "soon", "x": }"#[..], br#"{"x": {"id": "8"}, "id": "7", "hashes": ["ab"#]
        {
            let (envelope, result) = Envelope::read(wreck);
            assert_eq!((envelope.id.unwrap().as_str(), result), ("7", Ok(())), "no JSON: the request says so");
        }
        assert_eq!(Envelope::read(br#"{"x": {"id": "8"}, "id"#).0.id, None);
        let (envelope, result) = Envelope::read(br#"{"id": "7", "ttl": "soon"}"#);
        assert_eq!(envelope.id.unwrap().as_str(), "7");
        assert!(result.unwrap_err().message.starts_with("ttl: "));
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in prop::collection::vec(any::<u8>(), 0..200), verb in 0..Verb::ALL.len()) {
            drop(Envelope::read(&body));
            drop(Request::parse(Verb::ALL[verb], None, &body));
        }

        #[test]
        fn no_json_makes_the_parser_panic(key in "[a-z_]{1,8}|hashes|filter|priority|page", value in "[0-9a-z\\[\\]{}\":,.-]{0,20}", verb in 0..Verb::ALL.len()) {
            let body = format!("{{\"{key}\": {value}}}");
            drop(Envelope::read(body.as_bytes()));
            drop(Request::parse(Verb::ALL[verb], None, body.as_bytes()));
        }
    }
}
