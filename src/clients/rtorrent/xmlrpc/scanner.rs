//! The reader of XML-RPC answers.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::{memchr, memmem};

use super::super::calls::{Answers, Cell, Fault, ROW_CELLS_MAX, Unreadable, Value};

/// Nesting at which a value is refused. A listing has four levels.
const DEPTH_MAX: u8 = 16;

/// Values of one answer that is kept as a tree. Each takes many times the eight bytes that it may have in the answer; a torrent
/// with 100,000 files has 500,000.
const VALUES_MAX: u32 = 1_000_000;

/// Reads the answer to several calls, of which some may be long listings, and passes its parts to `answers`.
///
/// # Errors
/// The answer is malformed or incomplete, or the request was refused as a whole. What was passed on before
/// the error is invalid too.
pub fn scan(bytes: &[u8], answers: &mut impl Answers) -> Result<(), Unreadable> {
    let mut call = 0;
    Scanner::new(bytes).response(|scanner, item| {
        scanner.answer(item, call, answers)?;
        call += 1;
        Ok(())
    })
}

/// Reads the answer to several calls: for each its result, or its fault.
///
/// # Errors
/// As [`scan`].
pub fn read(bytes: &[u8]) -> Result<Vec<Result<Value, Fault>>, Unreadable> {
    let mut results = Vec::new();
    Scanner::new(bytes).response(|scanner, item| {
        let result = match scanner.value(item, 0)? {
            Value::Array(mut values) if values.len() == 1 => values.pop().map(Ok),
            other => other.as_fault().map(Err),
        };
        results.push(result.ok_or_else(|| scanner.malformed("a result or a fault for each call"))?);
        Ok(())
    })?;
    Ok(results)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Values that may still become part of a tree.
    values_left: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag<'a> {
    Start(&'a [u8]),
    /// `<name/>`
    Empty(&'a [u8]),
    End(&'a [u8]),
}

/// The content of a `<value>`, read as far as its kind.
enum Item<'a> {
    /// Up to and with `</value>`.
    Scalar(Cell<'a>),
    /// After `<array>`.
    Array,
    /// After `<struct>`.
    Struct,
    /// Up to and with `</value>`; `<struct/>` is how TinyXML-2 writes one without members.
    EmptyStruct,
}

impl<'a> Scanner<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values_left: VALUES_MAX }
    }

    fn malformed(&self, expected: &'static str) -> Unreadable {
        Unreadable::Malformed { at: self.at, expected }
    }

    /// Reads a whole response and passes the value of each call to `each`.
    fn response(
        &mut self,
        mut each: impl FnMut(&mut Self, Item<'a>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        self.expect(Tag::Start(b"methodResponse"), "<methodResponse>")?;
        let is_fault = match self.tag()? {
            Tag::Start(b"params") => false,
            Tag::Start(b"fault") => true,
            _ => return Err(self.malformed("<params> or <fault>")),
        };
        if is_fault {
            return Err(self.refusal()?);
        }
        self.expect(Tag::Start(b"param"), "<param>")?;
        self.expect(Tag::Start(b"value"), "<value>")?;
        self.expect(Tag::Start(b"array"), "<array>")?;
        if self.begin_data()? {
            while let Some(item) = self.next_item()? {
                each(self, item)?;
            }
        }
        self.end_array()?;
        self.expect(Tag::End(b"param"), "</param>")?;
        self.expect(Tag::End(b"params"), "</params>")?;
        self.end_response()
    }

    /// After `<fault>`: the refusal of the whole request.
    fn refusal(&mut self) -> Result<Unreadable, Unreadable> {
        self.expect(Tag::Start(b"value"), "<value>")?;
        self.expect(Tag::Start(b"struct"), "<struct>")?;
        let fault = self.fault()?;
        self.expect(Tag::End(b"fault"), "</fault>")?;
        self.end_response()?;
        Ok(Unreadable::Refused(fault))
    }

    fn end_response(&mut self) -> Result<(), Unreadable> {
        self.expect(Tag::End(b"methodResponse"), "</methodResponse>")?;
        if is_blank(&self.bytes[self.at..]) { Ok(()) } else { Err(self.malformed("the end")) }
    }

    /// The next tag, with nothing but white space before it.
    fn tag(&mut self) -> Result<Tag<'a>, Unreadable> {
        loop {
            let rest = &self.bytes[self.at..];
            let blanks = rest.iter().take_while(|c| c.is_ascii_whitespace()).count();
            let rest = &rest[blanks..];
            // The prolog. Its encoding is ignored: bytes that are not UTF-8 come with any.
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

    /// Text up to the next tag, unchanged.
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
        if let Some(cell) = self.plain_item() {
            return Ok(Some(Item::Scalar(cell)));
        }
        match self.tag()? {
            Tag::Start(b"value") => self.item().map(Some),
            Tag::Empty(b"value") => Ok(Some(Item::Scalar(Cell::Text(Cow::Borrowed(b""))))),
            Tag::End(b"data") => Ok(None),
            _ => Err(self.malformed("<value> or </data>")),
        }
    }

    /// The next value if it is written as every rTorrent writes numbers and texts; anything else is left to be
    /// read tag by tag.
    fn plain_item(&mut self) -> Option<Cell<'a>> {
        // Nearly all of a listing is written so, and compared as a whole it takes a third of the time.
        let rest = &self.bytes[self.at..];
        let rest = rest.strip_prefix(b"\r\n").unwrap_or(rest).strip_prefix(b"<value>")?;
        let (cell, rest) = if let Some(number) = rest.strip_prefix(b"<i8>") {
            let (number, rest) = plain_number(number)?;
            (Cell::Int(number), rest.strip_prefix(b"</i8></value>")?)
        } else {
            let text = rest.strip_prefix(b"<string>")?;
            let (text, rest) = text.split_at(memchr(b'<', text)?);
            (Cell::Text(unescape(text)), rest.strip_prefix(b"</string></value>")?)
        };
        self.at = self.bytes.len() - rest.len();
        Some(cell)
    }

    /// After `<value>`.
    fn item(&mut self) -> Result<Item<'a>, Unreadable> {
        let text = self.text()?;
        let kind = match self.tag_here()? {
            // Untyped is a text, as XML-RPC has it.
            Tag::End(b"value") => return Ok(Item::Scalar(Cell::Text(unescape(text)))),
            _ if !is_blank(text) => return Err(self.malformed("</value>")),
            Tag::Start(b"array") => return Ok(Item::Array),
            Tag::Start(b"struct") => return Ok(Item::Struct),
            Tag::Start(kind) => kind,
            Tag::Empty(b"struct") => {
                self.expect(Tag::End(b"value"), "</value>")?;
                return Ok(Item::EmptyStruct);
            }
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
            Item::Scalar(_) | Item::EmptyStruct => return Err(self.malformed("<array> or <struct>")),
            Item::Array => {}
        }
        let result = if self.begin_data()? { self.next_item()? } else { None };
        match result {
            Some(Item::Scalar(cell)) => answers.scalar(call, cell),
            Some(Item::Array) => {
                self.rows(call, answers)?;
                self.end_array()?;
            }
            Some(Item::Struct | Item::EmptyStruct) | None => return Err(self.malformed("a result")),
        }
        self.expect(Tag::End(b"data"), "</data>")?;
        self.end_array()
    }

    /// After the `<array>` of rows, up to its `</data>`.
    fn rows(&mut self, call: usize, answers: &mut impl Answers) -> Result<(), Unreadable> {
        if !self.begin_data()? {
            return Ok(());
        }
        // One vector for all rows: a listing of 100,000 allocates no more than one of ten.
        let mut cells = Vec::with_capacity(48);
        loop {
            cells.clear();
            let start = self.at;
            match self.row(&mut cells) {
                Ok(true) => answers.row(call, &cells),
                Ok(false) => return Ok(()),
                Err(_) => {
                    // The listing is incomplete then, and absence means nothing in it (I2).
                    answers.broken_row(call);
                    self.skip_row(start)?;
                }
            }
        }
    }

    fn skip_row(&mut self, start: usize) -> Result<(), Unreadable> {
        // Text cannot contain `<`, so the next `</array>` is the end of this row.
        self.at = start;
        let end = memmem::find(&self.bytes[start..], b"</array>").ok_or_else(|| self.malformed("</array>"))?;
        self.at = start + end;
        self.end_array()
    }

    /// Whether there was one more row.
    fn row(&mut self, cells: &mut Vec<Cell<'a>>) -> Result<bool, Unreadable> {
        match self.next_item()? {
            Some(Item::Array) => {}
            Some(Item::Scalar(_) | Item::Struct | Item::EmptyStruct) => return Err(self.malformed("<array>")),
            None => return Ok(false),
        }
        if self.begin_data()? {
            while let Some(item) = self.next_item()? {
                let Item::Scalar(cell) = item else { return Err(self.malformed("a single value")) };
                if cells.len() == ROW_CELLS_MAX {
                    return Err(self.malformed("fewer values in a row"));
                }
                cells.push(cell);
            }
        }
        self.end_array()?;
        Ok(true)
    }

    /// After `<struct>`, up to and with `</value>`.
    fn fault(&mut self) -> Result<Fault, Unreadable> {
        self.value(Item::Struct, 0)?.as_fault().ok_or_else(|| self.malformed("a fault"))
    }

    /// The value that `item` begins, up to and with `</value>`.
    fn value(&mut self, item: Item<'a>, depth: u8) -> Result<Value, Unreadable> {
        // Recursion: without a bound a hostile answer exhausts the stack.
        if depth > DEPTH_MAX {
            return Err(self.malformed("no deeper nesting"));
        }
        self.values_left = self.values_left.checked_sub(1).ok_or_else(|| self.malformed("fewer values"))?;
        match item {
            Item::Scalar(Cell::Int(number)) => Ok(Value::Int(number)),
            Item::Scalar(Cell::Text(text)) => Ok(Value::Text(String::from_utf8_lossy(&text).into_owned())),
            Item::Scalar(Cell::Null) => Ok(Value::Null),
            Item::EmptyStruct => Ok(Value::Struct(Vec::new())),
            Item::Struct => self.members(depth).map(Value::Struct),
            Item::Array => {
                let mut values = Vec::new();
                if self.begin_data()? {
                    while let Some(item) = self.next_item()? {
                        values.push(self.value(item, depth + 1)?);
                    }
                }
                self.end_array()?;
                Ok(Value::Array(values))
            }
        }
    }

    /// After `<struct>`, up to and with `</value>`.
    fn members(&mut self, depth: u8) -> Result<Vec<(String, Value)>, Unreadable> {
        let mut members = Vec::new();
        loop {
            match self.tag()? {
                Tag::Start(b"member") => {}
                Tag::End(b"struct") => break,
                _ => return Err(self.malformed("<member> or </struct>")),
            }
            self.expect(Tag::Start(b"name"), "<name>")?;
            let name = String::from_utf8_lossy(&unescape(self.text()?)).into_owned();
            self.expect(Tag::End(b"name"), "</name>")?;
            // A value may be missing its own tags (`<value/>`), which `next_item` knows.
            let item = self.next_item()?.ok_or_else(|| self.malformed("<value>"))?;
            members.push((name, self.value(item, depth + 1)?));
            self.expect(Tag::End(b"member"), "</member>")?;
        }
        self.expect(Tag::End(b"value"), "</value>")?;
        Ok(members)
    }
}

/// Resolves the five named references and numeric ones; anything else is left unchanged.
fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr(b'&', raw) else { return Cow::Borrowed(raw) };
    let mut text = Vec::with_capacity(raw.len());
    text.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some(after) = rest.strip_prefix(b"&") {
        // No reference is longer; without the bound each `&` would search the rest of the answer.
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

/// Resolves the text between `&` and `;`. Numbers that are no character become U+FFFD.
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

/// Converts a value by the name of its tag. `ex:` is the name space of the dialect with 64-bit numbers.
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

/// Splits a number from the start of `bytes`; `None` if there is none, or it may not fit.
fn plain_number(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (is_negative, digits) = bytes.strip_prefix(b"-").map_or((false, bytes), |digits| (true, digits));
    let mut number: i64 = 0;
    let mut count = 0;
    while let Some(digit) = digits.get(count).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
        count += 1;
    }
    // Any 18 digits fit into an i64.
    (1..=18).contains(&count).then(|| (if is_negative { -number } else { number }, &digits[count..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::calls::RecordedAnswers;
    use super::*;

    /// Puts rows into the answer of a `system.multicall` of a number, a listing, a fault.
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

    /// A tree takes many times the bytes of an answer that has nothing but `<value/>`.
    #[test]
    fn an_answer_of_empty_values_is_refused_before_it_takes_memory() {
        let many = "<value/>".repeat(VALUES_MAX as usize + 1);
        let tree = answer(Style::TinyXml2, &row(&many));
        let expected = |result| matches!(result, Err(Unreadable::Malformed { expected: "fewer values", .. }));
        assert!(expected(read(&tree).map(drop)));
        let nested = answer(Style::TinyXml2, &row(&row("<value/>").repeat(VALUES_MAX as usize / 2 + 1)));
        assert!(expected(read(&nested).map(drop)));
        let mut answers = RecordedAnswers::default();
        scan(&tree, &mut answers).unwrap();
        assert_eq!((answers.rows.len(), answers.broken), (0, 1), "one row of a listing");
    }

    #[derive(Clone, Copy, Debug)]
    enum Style {
        XmlrpcC,
        TinyXml2,
    }

    fn row(cells: &str) -> String {
        format!("<value><array><data>{cells}</data></array></value>")
    }

    fn recorded(bytes: &[u8]) -> Result<RecordedAnswers, Unreadable> {
        let mut recorded = RecordedAnswers::default();
        scan(bytes, &mut recorded).map(|()| recorded)
    }

    fn texts(bytes: &[u8]) -> Vec<Option<String>> {
        recorded(bytes).unwrap().rows.iter().flat_map(|(_, cells)| cells.iter().map(Cell::text)).collect()
    }

    #[test]
    fn a_plain_number_is_taken_only_if_it_surely_fits() {
        for (text, expected) in [
            ("0<", Some(0)),
            ("-17<", Some(-17)),
            ("007<", Some(7)),
            ("999999999999999999<", Some(999_999_999_999_999_999)),
            ("9223372036854775807<", None),
            ("-<", None),
            ("<", None),
            ("+1<", None),
            ("", None),
        ] {
            assert_eq!(plain_number(text.as_bytes()).map(|(number, _)| number), expected, "{text}");
        }
        let answer =
            answer(Style::TinyXml2, &row("<value><i8>9223372036854775807</i8></value><value><i8> 5 </i8></value>"));
        assert_eq!(recorded(&answer).unwrap().rows[0].1, [Cell::Int(i64::MAX), Cell::Int(5)], "read step by step");
    }

    #[test]
    fn text_is_taken_as_it_comes() {
        for (written, expected) in [
            ("<value><string>plain</string></value>", "plain"),
            ("<value>untyped</value>", "untyped"),
            ("<value></value>", ""),
            ("<value/>", ""),
            ("<value><string/></value>", ""),
            ("<value><string></string></value>", ""),
            ("<value><string>  blanks </string></value>", "  blanks "),
            ("<value><string>&lt;b&gt; &amp;amp; &quot;q&quot; &apos;</string></value>", "<b> &amp; \"q\" '"),
            ("<value><string>&#65;&#x42;&#0;&#xd800;&#x1f;</string></value>", "AB\u{fffd}\u{fffd}\u{1f}"),
            ("<value><string>a & b &nope; &; &#; &#xzz; R&D</string></value>", "a & b &nope; &; &#; &#xzz; R&D"),
            ("<value><string>\u{1}\u{1b}[31m\r\n</string></value>", "\u{1}\u{1b}[31m\r\n"),
            ("<value><string>Ünï 🦀</string></value>", "Ünï 🦀"),
            ("<value><base64>Y2Fm\r\n6Q==</base64></value>", "caf\u{fffd}"),
            ("<value>\r\n<string>x</string>\r\n</value>", "x"),
        ] {
            for style in [Style::XmlrpcC, Style::TinyXml2] {
                let bytes = answer(style, &row(written));
                assert_eq!(texts(&bytes), [Some(expected.to_owned())], "{written}");
                let values = read(&bytes).unwrap();
                let expected = Value::Array(vec![Value::Array(vec![Value::Text(expected.to_owned())])]);
                assert_eq!(values[1], Ok(expected), "{written}");
            }
        }
    }

    #[test]
    fn numbers_have_sixty_four_bits_and_several_names() {
        for written in ["i8", "i4", "int", "ex:i8", "boolean"] {
            let bytes =
                answer(Style::TinyXml2, &row(&format!("<value><{written}> -9223372036854775808 </{written}></value>")));
            assert_eq!(recorded(&bytes).unwrap().rows, [(1, vec![Cell::Int(i64::MIN)])], "{written}");
        }
    }

    #[test]
    fn a_fault_of_one_call_leaves_the_others() {
        let recorded = recorded(&answer(Style::XmlrpcC, "")).unwrap();
        assert_eq!(recorded.scalars, [(0, Cell::Int(4711))]);
        assert_eq!(recorded.faults, [(2, Fault { code: -506, text: "Method 'x' not defined".to_owned() })]);
        assert!(recorded.rows.is_empty());
    }

    #[test]
    fn a_struct_without_members_may_be_one_tag() {
        for written in ["<struct/>", "<struct></struct>"] {
            let text =
                "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><array><data><value>"
                    .to_owned()
                    + written
                    + "</value></data></array></value></data></array></value></param></params></methodResponse>";
            assert_eq!(read(text.as_bytes()), Ok(vec![Ok(Value::Struct(Vec::new()))]), "{written}");
        }
    }

    #[test]
    fn a_refused_request_is_a_fault_and_no_listing() {
        let text = "<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><i8>-503</i8></value></member><member><name>faultString</name><value><string>Call XML not a proper XML-RPC call.</string></value></member></struct></value></fault></methodResponse>";
        let fault = Fault { code: -503, text: "Call XML not a proper XML-RPC call.".to_owned() };
        assert_eq!(recorded(text.as_bytes()), Err(Unreadable::Refused(fault.clone())));
        assert_eq!(read(text.as_bytes()), Err(Unreadable::Refused(fault)));
    }

    #[test]
    fn a_row_that_cannot_be_read_is_lost_alone() {
        let good = row("<value><i8>1</i8></value><value><string>a</string></value>");
        for bad in [
            row("<value><i8>many</i8></value>"),
            row("<value><i8>1</i4></value>"),
            row("<value><odd>1</odd></value>"),
            row("<value><i8>1</i8>"),
            row("junk"),
            row("<value><struct></struct></value>"),
            "<value><array></array></value>".to_owned(),
        ] {
            let recorded = recorded(&answer(Style::TinyXml2, &format!("{good}{bad}{good}"))).unwrap();
            assert_eq!((recorded.rows.len(), recorded.broken), (2, 1), "{bad}");
        }
    }

    #[test]
    fn an_answer_cut_at_any_byte_is_an_error() {
        for style in [Style::XmlrpcC, Style::TinyXml2] {
            let bytes =
                answer(style, &row("<value><string>a &amp; b</string></value><value><i8>7</i8></value>").repeat(3));
            assert!(recorded(&bytes).is_ok() && read(&bytes).is_ok());
            for cut in 0..bytes.len() {
                assert!(recorded(&bytes[..cut]).is_err(), "scan, cut at {cut}");
                assert!(read(&bytes[..cut]).is_err(), "read, cut at {cut}");
            }
        }
    }

    #[test]
    fn arrays_are_not_followed_for_ever() {
        let deep = "<value><array><data>".repeat(100_000);
        assert!(read(format!("<methodResponse><params><param>{deep}").as_bytes()).is_err());
        assert!(recorded(format!("<methodResponse><params><param>{deep}").as_bytes()).is_err());
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

            let scanned = recorded(&bytes).unwrap();
            prop_assert_eq!(scanned.broken, 0);
            let scanned: Vec<Value> = scanned
                .rows
                .iter()
                .map(|(_, cells)| {
                    let value = |cell: &Cell<'_>| cell.text().map_or_else(|| Value::Int(cell.int().unwrap()), Value::Text);
                    Value::Array(cells.iter().map(value).collect())
                })
                .collect();
            prop_assert_eq!(&Ok(Value::Array(scanned)), &read(&bytes).unwrap()[1]);
        }

        #[test]
        fn no_bytes_at_all_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = recorded(&bytes).is_ok();
            let _either = read(&bytes).is_ok();
        }

        #[test]
        fn no_damage_to_an_answer_makes_a_reader_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = answer(Style::XmlrpcC, &row("<value><string>a &amp; b</string></value><value><i8>7</i8></value>"));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _either = recorded(&bytes).is_ok();
            let _either = read(&bytes).is_ok();
            bytes.drain(at..at.max(cut.index(bytes.len())));
            let _either = recorded(&bytes).is_ok();
            let _either = read(&bytes).is_ok();
        }
    }
}
