//! The reader of XML-RPC answers, compared with a reader on top of a general XML parser.
//!
//! The program's reader is specialised for rTorrent's output. The reference reader here is independent of it and has to
//! return the same values.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault, Unreadable, Value};
use dtorrent::clients::rtorrent::xmlrpc;
use memchr::memmem;
use proptest::prelude::*;
use quick_xml::events::Event;

// --- reference reader ----------------------------------------------------------------------------

fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_whitespace())
}

fn as_fault(value: &Value) -> Option<Fault> {
    let Value::Struct(members) = value else { return None };
    let member = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    match (member("faultCode")?, member("faultString")?) {
        (Value::Int(code), Value::Text(text)) => Some(Fault { code: *code, text: text.clone() }),
        _ => None,
    }
}

/// Resolves the text between `&` and `;`.
fn resolve(name: &str) -> Option<char> {
    let digits = match name {
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "amp" => return Some('&'),
        "quot" => return Some('"'),
        "apos" => return Some('\''),
        _ => name.strip_prefix('#')?,
    };
    let (digits, radix) = digits.strip_prefix('x').map_or((digits, 10), |hex| (hex, 16));
    let is_number = !digits.is_empty() && digits.len() <= 8 && digits.chars().all(|c| c.is_digit(radix));
    let code = u32::from_str_radix(digits, radix).ok().filter(|_| is_number)?;
    Some(char::from_u32(code).filter(|c| *c != '\0').unwrap_or(char::REPLACEMENT_CHARACTER))
}

/// Maximum nesting of a value.
const DEPTH_MAX: u8 = 16;

/// Reads an answer as [`xmlrpc::read`] does.
fn read(bytes: &[u8]) -> Result<Vec<Result<Value, Fault>>, Unreadable> {
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Tree::new(&text);
    reader.expect(Piece::Start("methodResponse"), "<methodResponse>")?;
    match reader.piece()? {
        Piece::Start("params") => {}
        Piece::Start("fault") => {
            reader.expect(Piece::Start("value"), "<value>")?;
            let fault = as_fault(&reader.value(0)?).ok_or_else(|| reader.malformed("a fault"))?;
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
        other => as_fault(&other).map(Err),
    });
    results.collect::<Option<_>>().ok_or_else(|| reader.malformed("a result or a fault for each call"))
}

/// Events of quick-xml, with adjacent text joined and references resolved.
struct Tree<'a> {
    reader: quick_xml::Reader<&'a [u8]>,
    /// Read ahead.
    waiting: Option<Piece>,
}

/// The tags of XML-RPC.
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
    /// Text; two adjacent texts are joined.
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

    /// Returns the next piece, text included.
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

    /// Returns the next tag; only white space may precede it.
    fn piece(&mut self) -> Result<Piece, Unreadable> {
        match self.any()? {
            Piece::Text(text) if is_blank(&text) => self.any(),
            Piece::Text(_) => Err(self.malformed("a tag")),
            piece => Ok(piece),
        }
    }

    fn expect(&mut self, piece: Piece, expected: &'static str) -> Result<(), Unreadable> {
        if self.piece()? == piece { Ok(()) } else { Err(self.malformed(expected)) }
    }

    /// Reads a value after its `<value>`, up to and including `</value>`.
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
        if !is_blank(&text) || depth >= DEPTH_MAX {
            return Err(self.malformed("</value>"));
        }
        let value = match piece {
            Piece::Start("array") => Value::Array(self.array(depth)?),
            Piece::Start("struct") => Value::Struct(self.members(depth)?),
            Piece::Empty("struct") => Value::Struct(Vec::new()),
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
        let value = match kind.strip_prefix("ex:").unwrap_or(kind) {
            "i8" | "i4" | "int" | "boolean" => text.trim().parse().ok().map(Value::Int),
            "string" | "double" | "dateTime.iso8601" => Some(Value::Text(text)),
            "base64" => {
                let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                let bytes = BASE64.decode(digits).ok();
                bytes.map(|bytes| Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            "nil" => is_blank(&text).then_some(Value::Null),
            _ => None,
        };
        value.ok_or_else(|| self.malformed("a value"))
    }

    /// Reads an array after its `<array>`, up to and including `</array>`.
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

    /// Reads a struct after its `<struct>`, up to and including `</struct>`.
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
            let value = match self.piece()? {
                Piece::Start("value") => self.value(depth + 1)?,
                Piece::Empty("value") => Value::Text(String::new()),
                _ => return Err(self.malformed("<value>")),
            };
            members.push((name, value));
            self.expect(Piece::End("member"), "</member>")?;
        }
    }
}

// --- answers -------------------------------------------------------------------------------------

/// Returns the answer of a `system.multicall` with a number, a listing of these rows, and a fault.
fn answer(style: Style, rows: &str) -> Vec<u8> {
    let (prolog, space, code) = match style {
        Style::XmlrpcC => ("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n", "\r\n", "i4"),
        Style::TinyXml2 => ("<?xml version=\"1.0\"?>", "", "i8"),
    };
    let spaced = |text: &str| text.replace('~', space);
    let head = "<methodResponse>~<params>~<param><value><array><data>~\
                <value><array><data>~<value><i8>4711</i8></value>~</data></array></value>~\
                <value><array><data>~<value><array><data>~";
    let tail = format!(
        "</data></array></value>~</data></array></value>~\
         <value><struct>~<member><name>faultCode</name>~<value><{code}>-506</{code}></value></member>~\
         <member><name>faultString</name>~<value><string>Method 'x' not defined</string></value></member>~\
         </struct></value>~</data></array></value></param>~</params>~</methodResponse>"
    );
    format!("{prolog}{}{rows}{}", spaced(head), spaced(&tail)).into_bytes()
}

#[derive(Clone, Copy, Debug)]
enum Style {
    XmlrpcC,
    TinyXml2,
}

/// Collects the rows of a scanned answer as values.
#[derive(Default)]
struct Rows {
    rows: Vec<Value>,
    broken: usize,
}

impl Answers for Rows {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        let value = |cell: &Cell<'_>| match cell {
            Cell::Int(number) => Value::Int(*number),
            Cell::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            Cell::Null => Value::Null,
        };
        self.rows.push(Value::Array(cells.iter().map(value).collect()));
    }
    fn broken_row(&mut self, _: usize) {
        self.broken += 1;
    }
    fn fault(&mut self, _: usize, _: Fault) {}
}

fn escaped(raw: &[u8], is_careless: bool) -> Vec<u8> {
    raw.iter().fold(Vec::new(), |mut text, byte| {
        match byte {
            b'<' => text.extend_from_slice(b"&lt;"),
            b'>' => text.extend_from_slice(b"&gt;"),
            b'&' if !is_careless => text.extend_from_slice(b"&amp;"),
            byte => text.push(*byte),
        }
        text
    })
}

fn any_cell() -> impl Strategy<Value = Vec<u8>> {
    let likely = prop_oneof![
        any::<u8>(),
        Just(b'&'),
        Just(b';'),
        Just(b'#'),
        Just(b'x'),
        Just(b'\r'),
        Just(b' '),
        Just(b'1'),
        Just(0xff),
        Just(0xc3)
    ];
    let text = (proptest::collection::vec(likely, 0..12), any::<bool>(), any::<bool>()).prop_map(
        |(raw, is_careless, is_typed)| {
            let text = escaped(&raw, is_careless);
            let tags: [&[u8]; 2] = if is_typed { [b"<string>", b"</string>"] } else { [b"", b""] };
            [b"<value>", tags[0], &text, tags[1], b"</value>"].concat()
        },
    );
    let number = any::<i64>().prop_map(|number| format!("<value><i8>{number}</i8></value>").into_bytes());
    prop_oneof![text, number]
}

/// Answers of small calls, with structs and nested arrays.
fn any_value(depth: u32) -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![any_cell(), Just(b"<value/>".to_vec()), Just(b"<value><struct/></value>".to_vec())];
    leaf.prop_recursive(depth, 24, 4, |inner| {
        let array = proptest::collection::vec(inner.clone(), 0..4)
            .prop_map(|values| [b"<value><array><data>", &*values.concat(), b"</data></array></value>"].concat());
        let member = |value: Vec<u8>| [b"<member><name>a&amp;b</name>", &*value, b"</member>"].concat();
        let members = proptest::collection::vec(inner, 1..4).prop_map(move |values| {
            let members: Vec<u8> = values.into_iter().flat_map(member).collect();
            [b"<value><struct>", &*members, b"</struct></value>"].concat()
        });
        prop_oneof![array, members]
    })
}

fn answer_of(value: &[u8]) -> Vec<u8> {
    let head = b"<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><array><data>";
    let tail = b"</data></array></value></data></array></value></param></params></methodResponse>";
    [head, value, tail].concat()
}

proptest! {
    #[test]
    fn both_readers_return_the_same_rows(
        rows in proptest::collection::vec(proptest::collection::vec(any_cell(), 0..5), 0..5),
        is_tiny in any::<bool>(),
    ) {
        const MARK: &str = "ROWS";
        let style = if is_tiny { Style::TinyXml2 } else { Style::XmlrpcC };
        let frame = answer(style, MARK);
        let at = memmem::find(&frame, MARK.as_bytes()).unwrap();
        let space: &[u8] = if is_tiny { b"" } else { b"\r\n" };
        let rows: Vec<u8> = rows
            .iter()
            .flat_map(|cells| [b"<value><array><data>", space, &cells.join(space), b"</data></array></value>"].concat())
            .collect();
        let bytes = [&frame[..at], &rows, &frame[at + MARK.len()..]].concat();

        let expected = read(&bytes).unwrap();
        prop_assert_eq!(&xmlrpc::read(&bytes).unwrap(), &expected);
        let mut scanned = Rows::default();
        xmlrpc::scan(&bytes, &mut scanned).unwrap();
        prop_assert_eq!(scanned.broken, 0);
        prop_assert_eq!(&Ok(Value::Array(scanned.rows)), &expected[1]);
    }

    #[test]
    fn both_readers_return_the_same_values(value in any_value(4)) {
        let bytes = answer_of(&value);
        prop_assert_eq!(xmlrpc::read(&bytes).unwrap(), read(&bytes).unwrap());
    }
}
