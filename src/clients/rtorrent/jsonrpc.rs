//! JSON-RPC, which rTorrent speaks from 0.15.2 on: a fifth of the bytes of XML for the same listing.
//!
//! JSON is used for listings alone, whose requests hold nothing but constants. One name that is not UTF-8
//! makes rTorrent refuse the whole answer; then XML is used until it restarts.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::calls::{Answers, Call, Cell, Fault, Param, ROW_CELLS_MAX, Unreadable};

/// Minimum size of a request: 0.15.3 to 0.16.9 truncate the header of the reply to the size of the request.
const REQUEST_BYTES_MIN: usize = 200;

#[derive(Serialize)]
struct Request<'a> {
    jsonrpc: &'static str,
    id: usize,
    method: &'a str,
    params: Vec<Argument<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Argument<'a> {
    Text(&'a str),
    Int(i64),
}

/// Returns the request body for several calls, as one batch; `None` if one has bytes to send, for which JSON
/// has no type.
pub(super) fn write(calls: &[Call]) -> Option<Vec<u8>> {
    let requests: Option<Vec<_>> = calls
        .iter()
        .enumerate()
        .map(|(id, Call { method, params })| {
            let params: Option<_> = params
                .iter()
                .map(|param| match param {
                    Param::Text(text) => Some(Argument::Text(text)),
                    Param::Int(number) => Some(Argument::Int(*number)),
                    Param::Bytes(_) => None,
                })
                .collect();
            Some(Request { jsonrpc: "2.0", id, method, params: params? })
        })
        .collect();
    let mut body = serde_json::to_vec(&requests?).expect("texts and numbers are plain JSON");
    if body.len() < REQUEST_BYTES_MIN {
        // Blanks after a JSON text are legal, and count as part of the request.
        body.resize(REQUEST_BYTES_MIN, b' ');
    }
    Some(body)
}

fn malformed(error: &serde_json::Error, expected: &'static str) -> Unreadable {
    // rTorrent writes an answer on one line.
    Unreadable::Malformed { at: error.column(), expected }
}

/// Reads the answer to several calls, as [`super::xmlrpc::scan`] does: once over the bytes, row by row.
///
/// # Errors
/// As [`super::xmlrpc::scan`].
pub fn scan(bytes: &[u8], answers: &mut impl Answers) -> Result<(), Unreadable> {
    // One object instead of a batch is the refusal of the whole request.
    if bytes.trim_ascii_start().starts_with(b"{") {
        #[derive(Deserialize)]
        struct Refusal {
            error: Option<Fault>,
        }
        let refusal: Refusal =
            serde_json::from_slice(bytes).map_err(|error| malformed(&error, "a batch of answers"))?;
        let fault = refusal.error.ok_or(Unreadable::Malformed { at: 0, expected: "a batch of answers" })?;
        return Err(Unreadable::Refused(fault));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = json.deserialize_seq(Batch(answers)).and_then(|()| json.end());
    read.map_err(|error| malformed(&error, "a batch of answers"))
}

// --- serde visitors, one for each level of an answer ----------------------------------------------

struct Batch<'s, A>(&'s mut A);

impl<'de, A: Answers> Visitor<'de> for Batch<'_, A> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of answers")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut responses: S) -> Result<(), S::Error> {
        let mut place = 0;
        while responses.next_element_seed(Response { place, answers: &mut *self.0 })?.is_some() {
            place += 1;
        }
        Ok(())
    }
}

/// The answer to one call: that of its `id`, or of its place if it has none.
struct Response<'s, A> {
    place: usize,
    answers: &'s mut A,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Id,
    Result,
    Error,
    #[serde(other)]
    Other,
}

impl<'de, A: Answers> DeserializeSeed<'de> for Response<'_, A> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, A: Answers> Visitor<'de> for Response<'_, A> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an answer")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<(), M::Error> {
        let Self { place, answers } = self;
        let (mut id, mut error, mut outcome, mut waiting) = (None, None, Seen::Cell(Cell::Null), None);
        while let Some(member) = members.next_key()? {
            match (member, id) {
                (Member::Id, _) => id = members.next_value::<Option<usize>>()?,
                (Member::Error, _) => error = members.next_value::<Option<Fault>>()?,
                (Member::Result, Some(call)) => {
                    outcome = members.next_value_seed(Level(Rows { call, answers: &mut *answers }))?;
                }
                // rTorrent writes the id first. JSON does not promise an order, so a result without one waits.
                (Member::Result, None) => waiting = members.next_value::<Option<&'de RawValue>>()?,
                (Member::Other, _) => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        let call = id.unwrap_or(place);
        if let Some(error) = error {
            answers.fault(call, error);
            return Ok(());
        }
        if let Some(waiting) = waiting {
            let mut json = serde_json::Deserializer::from_str(waiting.get());
            let result = Level(Rows { call, answers: &mut *answers }).deserialize(&mut json);
            outcome = result.map_err(serde::de::Error::custom)?;
        }
        match outcome {
            Seen::Cell(cell) => answers.scalar(call, cell),
            Seen::List(_) => {}
            Seen::Other => return Err(serde::de::Error::custom("a result is text, a whole number, or rows")),
        }
        Ok(())
    }
}

/// A value of a result: of the result itself, or on one of the two levels of rows below it.
enum Seen<'de> {
    Cell(Cell<'de>),
    /// A list, which was passed on; `false` if it holds other than it should.
    List(bool),
    /// An object or a fraction, which neither a result nor a column has.
    Other,
}

/// The treatment of a list on one level of a result.
trait ReadList<'de> {
    fn read<S: SeqAccess<'de>>(self, list: S) -> Result<bool, S::Error>;
}

/// Reads a value on a level of a result.
struct Level<L>(L);

impl<'de, L: ReadList<'de>> DeserializeSeed<'de> for Level<L> {
    type Value = Seen<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, L: ReadList<'de>> Visitor<'de> for Level<L> {
    type Value = Seen<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("anything")
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Int(number)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Int(i64::try_from(number).unwrap_or(i64::MAX))))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Seen::Other)
    }

    fn visit_bool<E>(self, is: bool) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Int(i64::from(is))))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Text(Cow::Borrowed(text.as_bytes()))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Text(Cow::Owned(text.as_bytes().to_vec()))))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Seen::Cell(Cell::Null))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, list: S) -> Result<Self::Value, S::Error> {
        self.0.read(list).map(Seen::List)
    }

    fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<Self::Value, M::Error> {
        IgnoredAny.visit_map(members).map(|_| Seen::Other)
    }
}

/// Passes on the rows of the result of a call.
struct Rows<'s, A> {
    call: usize,
    answers: &'s mut A,
}

impl<'de, A: Answers> ReadList<'de> for Rows<'_, A> {
    fn read<S: SeqAccess<'de>>(self, mut rows: S) -> Result<bool, S::Error> {
        // One vector for all rows: a listing of 100,000 allocates no more than one of ten.
        let mut cells = Vec::with_capacity(48);
        while let Some(row) = rows.next_element_seed(Level(Row(&mut cells)))? {
            match row {
                Seen::List(true) => self.answers.row(self.call, &cells),
                _ => self.answers.broken_row(self.call),
            }
            cells.clear();
        }
        Ok(true)
    }
}

/// Collects the cells of a row.
struct Row<'s, 'de>(&'s mut Vec<Cell<'de>>);

impl<'de> ReadList<'de> for Row<'_, 'de> {
    fn read<S: SeqAccess<'de>>(self, mut row: S) -> Result<bool, S::Error> {
        while let Some(value) = row.next_element_seed(Level(Skip))? {
            match value {
                Seen::Cell(cell) if self.0.len() < ROW_CELLS_MAX => self.0.push(cell),
                _ => return IgnoredAny.visit_seq(row).map(|_| false),
            }
        }
        Ok(true)
    }
}

/// Skips a list, which no column has.
struct Skip;

impl<'de> ReadList<'de> for Skip {
    fn read<S: SeqAccess<'de>>(self, list: S) -> Result<bool, S::Error> {
        IgnoredAny.visit_seq(list).map(|_| false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::calls::RecordedAnswers;
    use super::*;

    #[test]
    fn a_row_of_countless_values_is_refused_before_it_takes_memory() {
        let text = format!(r#"[{{"id":0,"result":[[{}1],[1]]}}]"#, "1,".repeat(1_000_000));
        let recorded = recorded(&text).unwrap();
        assert_eq!((recorded.rows.len(), recorded.broken), (1, 1));
    }

    fn recorded(text: &str) -> Result<RecordedAnswers, Unreadable> {
        let mut recorded = RecordedAnswers::default();
        scan(text.as_bytes(), &mut recorded).map(|()| recorded)
    }

    fn text(text: &'static str) -> Cell<'static> {
        Cell::Text(Cow::Borrowed(text.as_bytes()))
    }

    const ANSWER: &str = r#"[{"id":0,"jsonrpc":"2.0","result":16910},
        {"id":1,"jsonrpc":"2.0","result":[["AB","a \"q\" 🦀\u0001",-7],["CD","",9223372036854775807]]},
        {"error":{"code":-32601,"message":"method not found: d.nope"},"id":2,"jsonrpc":"2.0"}]"#;

    #[test]
    fn a_batch_is_read_like_its_xml() {
        let recorded = recorded(ANSWER).unwrap();
        assert_eq!(recorded.scalars, [(0, Cell::Int(16910))]);
        let rows = [
            (1, vec![text("AB"), text("a \"q\" 🦀\u{1}"), Cell::Int(-7)]),
            (1, vec![text("CD"), text(""), Cell::Int(i64::MAX)]),
        ];
        assert_eq!(recorded.rows, rows);
        assert_eq!(recorded.faults, [(2, Fault { code: -32601, text: "method not found: d.nope".to_owned() })]);
    }

    #[test]
    fn an_answer_that_is_refused_as_a_whole_is_not_a_listing() {
        let refused = recorded(r#"{"error":{"code":-32700,"message":"invalid UTF-8 byte"},"id":null,"jsonrpc":"2.0"}"#);
        assert!(matches!(refused, Err(Unreadable::Refused(Fault { code: -32700, .. }))), "{refused:?}");
    }

    #[test]
    fn a_row_that_cannot_be_read_is_lost_alone() {
        let recorded = recorded(r#"[{"id":1,"result":[["AB",1],["CD",[1]],7,["EF",1.5],["GH",2]]}]"#).unwrap();
        assert_eq!((recorded.rows.len(), recorded.broken), (2, 3));
    }

    #[test]
    fn an_answer_whose_id_comes_last_is_read_too() {
        let late = recorded(r#"[{"result":[["AB",1],[{}]],"id":7,"jsonrpc":"2.0"},{"result":5}]"#).unwrap();
        assert_eq!((late.rows, late.broken), (vec![(7, vec![text("AB"), Cell::Int(1)])], 1));
        assert_eq!(late.scalars, [(1, Cell::Int(5))]);
        assert!(recorded(r#"[{"id":1,"result":{"a":1}}]"#).is_err(), "neither a value nor rows");
    }

    #[test]
    fn an_answer_cut_at_any_byte_is_an_error() {
        for cut in (0..ANSWER.len()).filter(|cut| ANSWER.is_char_boundary(*cut)) {
            assert!(recorded(&ANSWER[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_short_request_is_padded() {
        let body = write(&[Call::global("system.pid")]).unwrap();
        assert!(body.len() >= REQUEST_BYTES_MIN);
        let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(request[0]["method"], "system.pid");
        assert_eq!(request[0]["params"], serde_json::json!([""]));
        assert_eq!(write(&[Call::global("load.raw").bytes(bytes::Bytes::new())]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = scan(&bytes, &mut RecordedAnswers::default()).is_ok();
            let _either = scan(&[b"[{\"id\":1,\"result\":[", bytes.as_slice(), b"]}]"].concat(), &mut RecordedAnswers::default()).is_ok();
        }
    }
}
