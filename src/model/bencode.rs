//! Bencoding, read in place: a value is the span of bytes that it was read from.
//!
//! Input is untrusted: nothing here recurses, lengths are checked before they are used, and a
//! [`Value`] has been read to its end once, so iterating over it cannot fail. Spans are exact, which
//! an info-hash needs. Dictionary keys may come in any order, and numbers may have leading zeros, unless
//! [`Value::check_canonical`] is asked; a duplicate key is an error where it is looked up, because programs
//! disagree on which one counts.

/// Limit on nesting. A file tree of version 2 takes two levels per folder.
const DEPTH_MAX: usize = 100;

/// Why bytes are not bencoding, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not bencoded at byte {at}: {what}")]
#[non_exhaustive]
pub struct NotBencoded {
    /// Offset of the byte, from the start of the input.
    pub at: usize,
    /// The fault, for people.
    pub what: &'static str,
}

/// A complete value, known to be well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// Reads the value at the start of `input`; bytes behind it are ignored.
    pub fn parse(input: &'a [u8]) -> Result<Self, NotBencoded> {
        Ok(Self(&input[..end_of_value(input, Form::Any)?]))
    }

    /// Checks that these bytes are the only encoding of the value (BEP 3): keys in order and each once, numbers without
    /// leading zeros.
    ///
    /// # Errors
    /// The first fault, with its offset in the value.
    pub fn check_canonical(self) -> Result<(), NotBencoded> {
        end_of_value(self.0, Form::Canonical).map(drop)
    }

    /// Returns the bytes that it was read from.
    pub fn span(self) -> &'a [u8] {
        self.0
    }

    /// Returns the bytes of a byte string; `None` for another type.
    pub fn text(self) -> Option<&'a [u8]> {
        let length = usize::try_from(digits(self.0)?.0).ok()?;
        Some(&self.0[self.0.len() - length..])
    }

    /// Returns the value of an integer; `None` for another type.
    pub fn number(self) -> Option<i64> {
        let inner = self.0.strip_prefix(b"i")?.strip_suffix(b"e")?;
        std::str::from_utf8(inner).ok()?.parse().ok()
    }

    /// Returns the values of a list; `None` for another type.
    pub fn list(self) -> Option<impl Iterator<Item = Value<'a>>> {
        self.0.starts_with(b"l").then(|| Values(&self.0[1..self.0.len() - 1]))
    }

    /// Returns the pairs of a dictionary in the order of the input; `None` for another type.
    pub fn dictionary(self) -> Option<impl Iterator<Item = (&'a [u8], Value<'a>)>> {
        if !self.0.starts_with(b"d") {
            return None;
        }
        let mut values = Values(&self.0[1..self.0.len() - 1]);
        Some(std::iter::from_fn(move || Some((values.next()?.text()?, values.next()?))))
    }
}

/// Consecutive values, up to the end of the bytes.
struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let (value, rest) = self.0.split_at(end_of_value(self.0, Form::Any).ok()?);
        self.0 = rest;
        Some(Value(value))
    }
}

/// A container that is open while a value is read, with the role of the next value.
#[derive(Clone, Copy, PartialEq)]
enum Open<'a> {
    List,
    /// With the key before it.
    Key(Option<&'a [u8]>),
    ValueOfKey(&'a [u8]),
}

/// How strictly a value is read.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Any,
    /// The only encoding of the value.
    Canonical,
}

/// Finds where the value at the start of `input` ends.
fn end_of_value(input: &[u8], form: Form) -> Result<usize, NotBencoded> {
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut at = 0;
    loop {
        let from = at;
        let wrong = |what| NotBencoded { at: from, what };
        let byte = *input.get(at).ok_or(wrong("unexpected end of input"))?;
        match byte {
            b'e' => {
                match open.pop() {
                    // A dictionary may end where a key would begin.
                    Some(Open::List | Open::Key(_)) => at += 1,
                    Some(Open::ValueOfKey(_)) => return Err(wrong("a key without a value")),
                    None => return Err(wrong("`e` without an open list or dictionary")),
                };
            }
            b'0'..=b'9' => {
                let (length, digits) = digits(&input[at..]).ok_or(wrong("a length that is not a number"))?;
                if input.get(at + digits) != Some(&b':') {
                    return Err(wrong("a length without a colon"));
                }
                // Compared before it is added: the length may be any number.
                let rest = input.len() - at - digits - 1;
                let length = usize::try_from(length).ok().filter(|length| *length <= rest);
                at += digits + 1 + length.ok_or(wrong("a byte string longer than the input"))?;
            }
            _ if matches!(open.last(), Some(Open::Key(_))) => return Err(wrong("a key that is not a byte string")),
            b'i' => {
                // An i64 has at most 20 characters, between `i` and `e`.
                let length = input[at..].iter().take(22).position(|byte| *byte == b'e');
                let end = at + length.ok_or(wrong("an integer without an end"))? + 1;
                Value(&input[at..end]).number().ok_or(wrong("an integer that is not a number"))?;
                at = end;
            }
            // The stack of open containers is the only memory that hostile input can make grow.
            b'l' | b'd' if open.len() == DEPTH_MAX => return Err(wrong("nested too deeply")),
            b'l' | b'd' => {
                open.push(if byte == b'l' { Open::List } else { Open::Key(None) });
                at += 1;
                continue;
            }
            _ => return Err(wrong("not the start of a value")),
        }
        let read = Value(&input[from..at]);
        if form == Form::Canonical
            && let Some(what) = canonical_fault(read, open.last())
        {
            return Err(wrong(what));
        }
        let Some(place) = open.last_mut() else { return Ok(at) };
        *place = match *place {
            Open::List => Open::List,
            Open::Key(_) => Open::ValueOfKey(read.text().unwrap_or_default()),
            Open::ValueOfKey(key) => Open::Key(Some(key)),
        };
    }
}

/// Returns why a byte string or an integer is not canonical at its place; a container was judged by its parts.
fn canonical_fault(read: Value<'_>, place: Option<&Open<'_>>) -> Option<&'static str> {
    if let Some(number) = read.number() {
        let is_canonical = read.0 == format!("i{number}e").as_bytes();
        return (!is_canonical).then_some("an integer with a leading zero or a sign that it does not need");
    }
    let text = read.text()?;
    if read.0.len() > 2 && read.0.starts_with(b"0") {
        return Some("a string length with a leading zero");
    }
    matches!(place, Some(Open::Key(Some(before))) if *before >= text)
        .then_some("keys that are not in order, or one twice")
}

/// Reads a decimal number; returns its value and its number of digits.
fn digits(input: &[u8]) -> Option<(u64, usize)> {
    // A u64 has at most 20 digits.
    let count = input.iter().take(20).take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&input[..count]).ok()?.parse().ok()?;
    Some((number, count))
}

/// A value to be written.
pub enum Encode<'a> {
    Number(u64),
    Text(&'a [u8]),
    List(Vec<Self>),
    /// Pairs in the order of their keys, as the format has them.
    Dictionary(Vec<(&'a [u8], Self)>),
    /// A value that is encoded already.
    Encoded(&'a [u8]),
}

impl<'a> Encode<'a> {
    /// Makes a dictionary of pairs that are in the order of their keys.
    pub fn dictionary(pairs: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Dictionary(pairs.into_iter().map(|(key, value)| (key.as_bytes(), value)).collect())
    }

    /// Returns the bytes of the value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => out.extend_from_slice(format!("i{number}e").as_bytes()),
            Self::Text(text) => {
                out.extend_from_slice(format!("{}:", text.len()).as_bytes());
                out.extend_from_slice(text);
            }
            Self::List(values) => {
                out.push(b'l');
                values.iter().for_each(|value| value.write(out));
                out.push(b'e');
            }
            Self::Dictionary(pairs) => {
                out.push(b'd');
                for (key, value) in pairs {
                    Self::Text(key).write(out);
                    value.write(out);
                }
                out.push(b'e');
            }
            Self::Encoded(bytes) => out.extend_from_slice(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_its_exact_span() {
        for (input, span) in [
            ("i42e", "i42e"),
            ("i-7exyz", "i-7e"),
            ("4:spam", "4:spam"),
            ("0:", "0:"),
            ("le", "le"),
            ("de", "de"),
            ("l4:spami1eld1:ai2eeee5", "l4:spami1eld1:ai2eeee"),
            ("d1:bi1e1:ai2ee", "d1:bi1e1:ai2ee"),
        ] {
            assert_eq!(Value::parse(input.as_bytes()).unwrap().span(), span.as_bytes(), "{input}");
        }
    }

    #[test]
    fn only_one_encoding_of_a_value_is_canonical() {
        for good in ["i0e", "i-7e", "0:", "d1:ai1e1:bi2ee", "d0:le1:ade2:aade1:bdee", "ld1:bi1eed1:ai1eee"] {
            assert_eq!(Value::parse(good.as_bytes()).unwrap().check_canonical(), Ok(()), "{good}");
        }
        for (bad, at) in [
            ("i01e", 0),
            ("i-0e", 0),
            ("i+1e", 0),
            ("01:a", 0),
            ("l1:ai00ee", 4),
            ("d1:bi1e1:ai2ee", 7),
            ("d1:ai1e1:ai1ee", 7),
            ("d1:ad1:cle1:bleee", 10),
            ("d2:aale01:bi1ee", 7),
        ] {
            assert_eq!(Value::parse(bad.as_bytes()).unwrap().check_canonical().unwrap_err().at, at, "{bad}");
        }
    }

    #[test]
    fn what_is_not_bencoded_is_an_error_that_says_where() {
        for (input, at) in [
            ("", 0),
            ("e", 0),
            ("x", 0),
            ("i", 0),
            ("ie", 0),
            ("i1.5e", 0),
            ("i99999999999999999999e", 0),
            ("5:spam", 0),
            ("18446744073709551615:x", 0),
            ("99999999999999999999999:x", 0),
            ("4spam", 0),
            ("l", 1),
            ("li1e", 4),
            ("di1e1:ae", 1),
            ("d1:ae", 4),
            ("d1:a", 4),
            ("dle", 1),
        ] {
            assert_eq!(Value::parse(input.as_bytes()).unwrap_err().at, at, "{input}");
        }
    }

    #[test]
    fn two_hundred_thousand_nested_lists_are_an_error() {
        for (open, close) in [("l", "e"), ("d1:a", "e")] {
            let nested = |depth: usize| format!("{}i1e{}", open.repeat(depth), close.repeat(depth));
            assert!(Value::parse(nested(200_000).as_bytes()).is_err());
            assert!(Value::parse(nested(DEPTH_MAX).as_bytes()).is_ok());
            assert!(Value::parse(nested(DEPTH_MAX + 1).as_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            walk(&input);
        }

        #[test]
        fn bytes_that_look_like_bencoding_never_panic(input in "[0-9:ilde-]{0,60}") {
            walk(input.as_bytes());
        }
    }

    fn walk(input: &[u8]) {
        let Ok(value) = Value::parse(input) else { return };
        value.text();
        value.number();
        value.list().map(Iterator::count);
        value.dictionary().map(Iterator::count);
    }
}
