//! XML-RPC as rTorrent speaks it, which is not always XML.
//!
//! Names come with raw control characters and bytes that are no UTF-8; one such torrent makes a
//! strict parser refuse the listing of all. So there are two readers here, equal in what they make of an
//! answer (a property test holds them to that):
//! - [`scan`] goes once over the bytes of a listing and hands out its rows, without a tree and
//!   without a string per number. A row that cannot be read is that row's loss alone;
//! - [`read`] is for everything else, on top of quick-xml.
//!
//! Both take an answer only if it is there to its last tag: a cut answer is an error, never a
//! shorter one.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::{memchr, memmem};
use quick_xml::events::Event;

use super::calls::{Answers, Call, Cell, Fault, Param, Unreadable, Value};

// --- writing -------------------------------------------------------------------------------------

/// Several calls as one `system.multicall`.
///
/// Every value has its type (an untyped empty one crashes some versions), and `methodName` comes
/// before `params` (others read them by position).
pub(super) fn write(calls: &[Call]) -> Vec<u8> {
    let mut out = String::with_capacity(512 + calls.len() * 200);
    out.push_str(
        "<?xml version=\"1.0\"?><methodCall><methodName>system.multicall</methodName><params><param><value><array><data>",
    );
    for Call { method, params } in calls {
        out.push_str("<value><struct><member><name>methodName</name><value><string>");
        out.push_str(method);
        out.push_str("</string></value></member><member><name>params</name><value><array><data>");
        // The methods of the back end itself take no target.
        let is_introspection = *method == "system.listMethods";
        for param in params.iter().skip(usize::from(is_introspection)) {
            out.push_str("<value>");
            write_param(&mut out, param);
            out.push_str("</value>");
        }
        out.push_str("</data></array></value></member></struct></value>");
    }
    out.push_str("</data></array></value></param></params></methodCall>");
    out.into_bytes()
}

fn write_param(out: &mut String, param: &Param) {
    match param {
        Param::Int(number) => out.push_str(&format!("<i8>{number}</i8>")),
        Param::Text(text) if is_plain(text) => {
            out.push_str("<string>");
            for c in text.chars() {
                match c {
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '&' => out.push_str("&amp;"),
                    c => out.push(c),
                }
            }
            out.push_str("</string>");
        }
        Param::Text(text) => write_base64(out, text.as_bytes()),
        Param::Bytes(bytes) => write_base64(out, bytes),
    }
}

fn write_base64(out: &mut String, bytes: &[u8]) {
    out.push_str("<base64>");
    BASE64.encode_string(bytes, out);
    out.push_str("</base64>");
}

/// Text that every back end takes as a `<string>`: xmlrpc-c refuses control characters and all
/// that is not in the basic plane. As `<base64>` anything goes, everywhere.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() && c <= '\u{fffd}')
}

// --- text ----------------------------------------------------------------------------------------

/// Resolves the five named references and the numeric ones; anything else stays as it is.
fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr(b'&', raw) else { return Cow::Borrowed(raw) };
    let mut text = Vec::with_capacity(raw.len());
    text.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some(after) = rest.strip_prefix(b"&") {
        let name_bytes = memchr(b';', &after[..after.len().min(12)]);
        match name_bytes.and_then(|bytes| Some((bytes, resolve(std::str::from_utf8(&after[..bytes]).ok()?)?))) {
            Some((bytes, c)) => {
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &after[bytes + 1..];
            }
            None => {
                text.push(b'&');
                rest = after;
            }
        }
        let plain_bytes = memchr(b'&', rest).unwrap_or(rest.len());
        text.extend_from_slice(&rest[..plain_bytes]);
        rest = &rest[plain_bytes..];
    }
    Cow::Owned(text)
}

/// What stands between `&` and `;`. Numbers of no character become U+FFFD.
fn resolve(name: &str) -> Option<char> {
    let number = match name {
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "amp" => return Some('&'),
        "quot" => return Some('"'),
        "apos" => return Some('\''),
        _ => name.strip_prefix('#')?,
    };
    let (digits, radix) = number.strip_prefix('x').map_or((number, 10), |hex| (hex, 16));
    let is_number = !digits.is_empty() && digits.len() <= 8 && digits.chars().all(|c| c.is_digit(radix));
    let code = is_number.then(|| u32::from_str_radix(digits, radix).ok()).flatten()?;
    Some(char::from_u32(code).filter(|c| *c != '\0').unwrap_or(char::REPLACEMENT_CHARACTER))
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

/// A value by the name of its tag. `ex:` is the name space of a dialect that can be chosen.
fn scalar<'a>(kind: &[u8], text: Cow<'a, [u8]>) -> Option<Cell<'a>> {
    match kind.strip_prefix(b"ex:").unwrap_or(kind) {
        b"i8" | b"i4" | b"int" | b"boolean" => {
            Some(Cell::Int(std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()?))
        }
        b"string" | b"double" | b"dateTime.iso8601" => Some(Cell::Text(text)),
        b"base64" => {
            let digits: Vec<u8> = text.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect();
            Some(Cell::Text(Cow::Owned(BASE64.decode(digits).ok()?)))
        }
        b"nil" => is_blank(&text).then_some(Cell::Null),
        _ => None,
    }
}

// --- the scanner ---------------------------------------------------------------------------------

/// Reads the answer to several calls that may hold a long listing.
///
/// # Errors
/// What was handed out before the error is not to be believed either.
pub fn scan(bytes: &[u8], answers: &mut impl Answers) -> Result<(), Unreadable> {
    let mut scanner = Scanner { bytes, at: 0 };
    scanner.expect(Tag::Start(b"methodResponse"), "<methodResponse>")?;
    match scanner.tag()? {
        Tag::Start(b"params") => {}
        // Small and rare, so it is the other reader's.
        Tag::Start(b"fault") => return read(bytes).map(drop),
        _ => return Err(scanner.malformed("<params>")),
    }
    scanner.expect(Tag::Start(b"param"), "<param>")?;
    scanner.expect(Tag::Start(b"value"), "<value>")?;
    scanner.expect(Tag::Start(b"array"), "<array>")?;
    if scanner.begin_data()? {
        let mut call = 0;
        while let Some(item) = scanner.next_item()? {
            scanner.answer(item, call, answers)?;
            call += 1;
        }
    }
    for (tag, expected) in [
        (Tag::End(b"array"), "</array>"),
        (Tag::End(b"value"), "</value>"),
        (Tag::End(b"param"), "</param>"),
        (Tag::End(b"params"), "</params>"),
        (Tag::End(b"methodResponse"), "</methodResponse>"),
    ] {
        scanner.expect(tag, expected)?;
    }
    if is_blank(&bytes[scanner.at..]) { Ok(()) } else { Err(scanner.malformed("the end")) }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag<'a> {
    Start(&'a [u8]),
    /// `<name/>`
    Empty(&'a [u8]),
    End(&'a [u8]),
}

/// What follows a `<value>`, read as far as it can be without knowing more.
enum Item<'a> {
    /// Up to and with `</value>`.
    Scalar(Cell<'a>),
    /// After `<array>`.
    Array,
    /// After `<struct>`.
    Struct,
}

impl<'a> Scanner<'a> {
    fn malformed(&self, expected: &'static str) -> Unreadable {
        Unreadable::Malformed { at: self.at, expected }
    }

    /// The next tag, with nothing but white space before it.
    fn tag(&mut self) -> Result<Tag<'a>, Unreadable> {
        loop {
            let rest = &self.bytes[self.at..];
            let blanks = rest.iter().take_while(|c| c.is_ascii_whitespace()).count();
            let rest = &rest[blanks..];
            let skipped = if rest.starts_with(b"<?") {
                memmem::find(rest, b"?>").map(|end| end + 2)
            } else if rest.starts_with(b"<!--") {
                memmem::find(&rest[4..], b"-->").map(|end| end + 7)
            } else {
                self.at += blanks;
                return self.tag_here();
            };
            self.at += blanks + skipped.ok_or_else(|| self.malformed("the end of a comment"))?;
        }
    }

    fn tag_here(&mut self) -> Result<Tag<'a>, Unreadable> {
        let rest = &self.bytes[self.at..];
        let inside = rest.strip_prefix(b"<").ok_or_else(|| self.malformed("a tag"))?;
        // No tag of the dialect is longer than `</dateTime.iso8601>`.
        let window = &inside[..inside.len().min(64)];
        let end = memchr(b'>', window).ok_or_else(|| self.malformed("the end of a tag"))?;
        let inside = &inside[..end];
        let tag = if let Some(name) = inside.strip_prefix(b"/") {
            Tag::End(name.trim_ascii_end())
        } else if let Some(name) = inside.strip_suffix(b"/") {
            Tag::Empty(name.trim_ascii_end())
        } else {
            Tag::Start(inside.trim_ascii_end())
        };
        self.at += end + 2;
        Ok(tag)
    }

    fn expect(&mut self, tag: Tag<'_>, expected: &'static str) -> Result<(), Unreadable> {
        let before = self.at;
        if self.tag()? == tag {
            return Ok(());
        }
        self.at = before;
        Err(self.malformed(expected))
    }

    /// Text up to the next tag, as it stands.
    fn text(&mut self) -> Result<&'a [u8], Unreadable> {
        let rest = &self.bytes[self.at..];
        let length = memchr(b'<', rest).ok_or_else(|| self.malformed("a tag"))?;
        self.at += length;
        Ok(&rest[..length])
    }

    /// After `<array>`: whether there may be values in it; if not, `</array>` is next.
    fn begin_data(&mut self) -> Result<bool, Unreadable> {
        match self.tag()? {
            Tag::Start(b"data") => Ok(true),
            Tag::Empty(b"data") => Ok(false),
            _ => Err(self.malformed("<data>")),
        }
    }

    /// The next value; `None` if there is no more, then `</array>` is next.
    fn next_item(&mut self) -> Result<Option<Item<'a>>, Unreadable> {
        match self.tag()? {
            Tag::Start(b"value") => self.item().map(Some),
            Tag::Empty(b"value") => Ok(Some(Item::Scalar(Cell::Text(Cow::Borrowed(b""))))),
            Tag::End(b"data") => Ok(None),
            _ => Err(self.malformed("<value> or </data>")),
        }
    }

    /// After `<value>`.
    fn item(&mut self) -> Result<Item<'a>, Unreadable> {
        let text = self.text()?;
        let kind = match self.tag_here()? {
            Tag::End(b"value") => return Ok(Item::Scalar(Cell::Text(unescape(text)))),
            _ if !is_blank(text) => return Err(self.malformed("</value>")),
            Tag::Start(b"array") => return Ok(Item::Array),
            Tag::Start(b"struct") => return Ok(Item::Struct),
            Tag::Start(kind) => kind,
            Tag::Empty(kind) => {
                let cell = scalar(kind, Cow::Borrowed(b"")).ok_or_else(|| self.malformed("a value"))?;
                self.expect(Tag::End(b"value"), "</value>")?;
                return Ok(Item::Scalar(cell));
            }
            Tag::End(_) => return Err(self.malformed("a value")),
        };
        let text = unescape(self.text()?);
        let cell = scalar(kind, text).ok_or_else(|| self.malformed("a value"))?;
        if self.tag_here()? != Tag::End(kind) {
            return Err(self.malformed("the end tag of a value"));
        }
        self.expect(Tag::End(b"value"), "</value>")?;
        Ok(Item::Scalar(cell))
    }

    fn end_array(&mut self) -> Result<(), Unreadable> {
        self.expect(Tag::End(b"array"), "</array>")?;
        self.expect(Tag::End(b"value"), "</value>")
    }

    /// After the `<value>` of one call: `[result]`, or the struct of a fault.
    fn answer(&mut self, item: Item<'a>, call: usize, answers: &mut impl Answers) -> Result<(), Unreadable> {
        match item {
            Item::Struct => {
                let fault = self.fault()?;
                answers.fault(call, fault);
                return Ok(());
            }
            Item::Scalar(_) => return Err(self.malformed("<array> or <struct>")),
            Item::Array => {}
        }
        let result = if self.begin_data()? { self.next_item()? } else { None };
        match result {
            Some(Item::Scalar(cell)) => answers.scalar(call, cell),
            Some(Item::Array) => {
                self.rows(call, answers)?;
                self.end_array()?;
            }
            Some(Item::Struct) | None => return Err(self.malformed("a result")),
        }
        self.expect(Tag::End(b"data"), "</data>")?;
        self.end_array()
    }

    /// After the `<array>` of rows, up to its `</data>`.
    fn rows(&mut self, call: usize, answers: &mut impl Answers) -> Result<(), Unreadable> {
        if !self.begin_data()? {
            return Ok(());
        }
        let mut cells = Vec::with_capacity(48);
        loop {
            cells.clear();
            let start = self.at;
            match self.row(&mut cells) {
                Ok(true) => answers.row(call, &cells),
                Ok(false) => return Ok(()),
                Err(_) => {
                    answers.broken_row(call);
                    self.skip_row(start)?;
                }
            }
        }
    }

    fn skip_row(&mut self, start: usize) -> Result<(), Unreadable> {
        // Text has no `<`, so the next end of an array is the end of this row.
        self.at = start;
        let end = memmem::find(&self.bytes[start..], b"</array>").ok_or_else(|| self.malformed("</array>"))?;
        self.at = start + end;
        self.end_array()
    }

    /// Whether there was one more row.
    fn row(&mut self, cells: &mut Vec<Cell<'a>>) -> Result<bool, Unreadable> {
        match self.next_item()? {
            Some(Item::Array) => {}
            Some(Item::Scalar(_) | Item::Struct) => return Err(self.malformed("<array>")),
            None => return Ok(false),
        }
        if self.begin_data()? {
            while let Some(item) = self.next_item()? {
                let Item::Scalar(cell) = item else { return Err(self.malformed("a single value")) };
                cells.push(cell);
            }
        }
        self.end_array()?;
        Ok(true)
    }

    /// After `<struct>`, up to and with `</value>`.
    fn fault(&mut self) -> Result<Fault, Unreadable> {
        let (mut code, mut text) = (0, String::new());
        loop {
            match self.tag()? {
                Tag::Start(b"member") => {}
                Tag::End(b"struct") => break,
                _ => return Err(self.malformed("<member> or </struct>")),
            }
            self.expect(Tag::Start(b"name"), "<name>")?;
            let name = self.text()?;
            self.expect(Tag::End(b"name"), "</name>")?;
            self.expect(Tag::Start(b"value"), "<value>")?;
            let Item::Scalar(cell) = self.item()? else { return Err(self.malformed("a single value")) };
            match name {
                b"faultCode" => code = cell.int().ok_or_else(|| self.malformed("a number"))?,
                b"faultString" => text = cell.text().unwrap_or_default(),
                _ => {}
            }
            self.expect(Tag::End(b"member"), "</member>")?;
        }
        self.expect(Tag::End(b"value"), "</value>")?;
        Ok(Fault { code, text })
    }
}

// --- the reader of everything else ---------------------------------------------------------------

/// Arrays in arrays, so deep. A listing has four.
const DEPTH_MAX: u8 = 16;

/// Reads the answer to several calls: for each its result, or its fault.
pub fn read(bytes: &[u8]) -> Result<Vec<Result<Value, Fault>>, Unreadable> {
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Tree::new(&text);
    reader.expect(Piece::Start("methodResponse"), "<methodResponse>")?;
    match reader.piece()? {
        Piece::Start("params") => {}
        Piece::Start("fault") => {
            reader.expect(Piece::Start("value"), "<value>")?;
            let fault = reader.value(0)?.as_fault().ok_or_else(|| reader.malformed("a fault"))?;
            reader.expect(Piece::End("fault"), "</fault>")?;
            reader.expect(Piece::End("methodResponse"), "</methodResponse>")?;
            return Err(Unreadable::Refused(fault));
        }
        _ => return Err(reader.malformed("<params>")),
    }
    reader.expect(Piece::Start("param"), "<param>")?;
    reader.expect(Piece::Start("value"), "<value>")?;
    let Value::Array(results) = reader.value(0)? else { return Err(reader.malformed("<array>")) };
    for (piece, expected) in [
        (Piece::End("param"), "</param>"),
        (Piece::End("params"), "</params>"),
        (Piece::End("methodResponse"), "</methodResponse>"),
        (Piece::Over, "the end"),
    ] {
        reader.expect(piece, expected)?;
    }
    let results = results.into_iter().map(|result| match result {
        Value::Array(mut values) if values.len() == 1 => values.pop().map(Ok),
        other => other.as_fault().map(Err),
    });
    results.collect::<Option<_>>().ok_or_else(|| reader.malformed("a result or a fault for each call"))
}

/// quick-xml's events, with text put together and references resolved.
struct Tree<'a> {
    reader: quick_xml::Reader<&'a [u8]>,
    /// Read already, but not used.
    waiting: Option<Piece>,
}

/// The tags of the dialect; there are no others.
const TAGS: &[&str] = &[
    "methodResponse",
    "params",
    "param",
    "fault",
    "value",
    "array",
    "data",
    "struct",
    "member",
    "name",
    "i8",
    "i4",
    "int",
    "ex:i8",
    "boolean",
    "string",
    "double",
    "dateTime.iso8601",
    "base64",
    "nil",
    "ex:nil",
];

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Start(&'static str),
    Empty(&'static str),
    End(&'static str),
    /// With nothing of the kind before or after it.
    Text(String),
    Over,
}

impl<'a> Tree<'a> {
    fn new(text: &'a str) -> Self {
        let mut reader = quick_xml::Reader::from_str(text);
        reader.config_mut().allow_dangling_amp = true;
        Self { reader, waiting: None }
    }

    fn malformed(&self, expected: &'static str) -> Unreadable {
        let at = usize::try_from(self.reader.buffer_position()).unwrap_or(usize::MAX);
        Unreadable::Malformed { at, expected }
    }

    fn tag(&self, name: &str) -> Result<&'static str, Unreadable> {
        TAGS.iter().copied().find(|tag| *tag == name).ok_or_else(|| self.malformed("a tag of the dialect"))
    }

    /// The next piece, text included.
    fn any(&mut self) -> Result<Piece, Unreadable> {
        if let Some(piece) = self.waiting.take() {
            return Ok(piece);
        }
        let mut text = String::new();
        let piece = loop {
            match self.reader.read_event().map_err(|_| self.malformed("XML"))? {
                Event::Text(part) => text.push_str(&part),
                Event::GeneralRef(name) => match resolve(&name) {
                    Some(c) => text.push(c),
                    None => text.extend(["&", &name, ";"]),
                },
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::CData(_) | Event::DocType(_) => return Err(self.malformed("no CDATA and no DOCTYPE")),
                Event::Start(tag) => break Piece::Start(self.tag(tag.name().as_ref())?),
                Event::Empty(tag) => break Piece::Empty(self.tag(tag.name().as_ref())?),
                Event::End(tag) => break Piece::End(self.tag(tag.name().as_ref())?),
                Event::Eof => break Piece::Over,
            }
        };
        if text.is_empty() {
            return Ok(piece);
        }
        self.waiting = Some(piece);
        Ok(Piece::Text(text))
    }

    /// The next tag, with nothing but white space before it.
    fn piece(&mut self) -> Result<Piece, Unreadable> {
        match self.any()? {
            Piece::Text(text) if is_blank(text.as_bytes()) => self.any(),
            Piece::Text(_) => Err(self.malformed("a tag")),
            piece => Ok(piece),
        }
    }

    fn expect(&mut self, piece: Piece, expected: &'static str) -> Result<(), Unreadable> {
        if self.piece()? == piece { Ok(()) } else { Err(self.malformed(expected)) }
    }

    /// After `<value>`, up to and with `</value>`.
    fn value(&mut self, depth: u8) -> Result<Value, Unreadable> {
        let text = match self.any()? {
            Piece::Text(text) => text,
            piece => {
                self.waiting = Some(piece);
                String::new()
            }
        };
        let piece = self.any()?;
        if piece == Piece::End("value") {
            return Ok(Value::Text(text));
        }
        if !is_blank(text.as_bytes()) || depth >= DEPTH_MAX {
            return Err(self.malformed("</value>"));
        }
        let value = match piece {
            Piece::Start("array") => Value::Array(self.array(depth)?),
            Piece::Start("struct") => Value::Struct(self.members(depth)?),
            Piece::Empty(kind) => self.scalar(kind, String::new())?,
            Piece::Start(kind) => {
                let text = self.text()?;
                self.expect(Piece::End(kind), "the end tag of a value")?;
                self.scalar(kind, text)?
            }
            Piece::End(_) | Piece::Text(_) | Piece::Over => return Err(self.malformed("a value")),
        };
        self.expect(Piece::End("value"), "</value>")?;
        Ok(value)
    }

    fn text(&mut self) -> Result<String, Unreadable> {
        match self.any()? {
            Piece::Text(text) => Ok(text),
            piece => {
                self.waiting = Some(piece);
                Ok(String::new())
            }
        }
    }

    fn scalar(&self, kind: &str, text: String) -> Result<Value, Unreadable> {
        match scalar(kind.as_bytes(), Cow::Borrowed(text.as_bytes())) {
            Some(Cell::Int(number)) => Ok(Value::Int(number)),
            Some(Cell::Text(text)) => Ok(Value::Text(String::from_utf8_lossy(&text).into_owned())),
            Some(Cell::Null) => Ok(Value::Null),
            None => Err(self.malformed("a value")),
        }
    }

    /// After `<array>`, up to and with `</array>`.
    fn array(&mut self, depth: u8) -> Result<Vec<Value>, Unreadable> {
        let mut values = Vec::new();
        match self.piece()? {
            Piece::Start("data") => loop {
                match self.piece()? {
                    Piece::Start("value") => values.push(self.value(depth + 1)?),
                    Piece::Empty("value") => values.push(Value::Text(String::new())),
                    Piece::End("data") => break,
                    _ => return Err(self.malformed("<value> or </data>")),
                }
            },
            Piece::Empty("data") => {}
            _ => return Err(self.malformed("<data>")),
        }
        self.expect(Piece::End("array"), "</array>")?;
        Ok(values)
    }

    /// After `<struct>`, up to and with `</struct>`.
    fn members(&mut self, depth: u8) -> Result<Vec<(String, Value)>, Unreadable> {
        let mut members = Vec::new();
        loop {
            match self.piece()? {
                Piece::Start("member") => {}
                Piece::End("struct") => return Ok(members),
                _ => return Err(self.malformed("<member> or </struct>")),
            }
            self.expect(Piece::Start("name"), "<name>")?;
            let name = self.text()?;
            self.expect(Piece::End("name"), "</name>")?;
            self.expect(Piece::Start("value"), "<value>")?;
            members.push((name, self.value(depth + 1)?));
            self.expect(Piece::End("member"), "</member>")?;
        }
    }
}
