//! JSON-RPC, which rTorrent speaks from 0.15.2 on: a fifth of the bytes of XML for the same listing.
//!
//! It is used for listings alone, whose requests hold nothing but constants. One name that is no
//! UTF-8 makes rTorrent refuse the whole answer; then XML is the way until it restarts.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::calls::{Answers, Call, Cell, Fault, Param, Unreadable};

/// Some versions cut the reply header to the size of the request, so none is shorter than this.
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

/// Several calls as one batch; `None` if one has bytes to send, for which JSON has no type.
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
        body.resize(REQUEST_BYTES_MIN, b' ');
    }
    Some(body)
}

#[derive(Deserialize)]
struct Response<'a> {
    id: Option<usize>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

impl ErrorObject {
    fn into_fault(self) -> Fault {
        Fault { code: self.code, text: self.message }
    }
}

fn malformed(error: &serde_json::Error, expected: &'static str) -> Unreadable {
    // rTorrent writes an answer on one line.
    Unreadable::Malformed { at: error.column(), expected }
}

/// Reads the answer to several calls, as [`super::xmlrpc::scan`] does.
pub fn scan(bytes: &[u8], answers: &mut impl Answers) -> Result<(), Unreadable> {
    if bytes.trim_ascii_start().starts_with(b"{") {
        let refusal: Response<'_> =
            serde_json::from_slice(bytes).map_err(|error| malformed(&error, "a batch of answers"))?;
        let fault = refusal.error.ok_or(Unreadable::Malformed { at: 0, expected: "a batch of answers" })?;
        return Err(Unreadable::Refused(fault.into_fault()));
    }
    let responses: Vec<Response<'_>> =
        serde_json::from_slice(bytes).map_err(|error| malformed(&error, "a batch of answers"))?;
    for (place, Response { id, result, error }) in responses.into_iter().enumerate() {
        let call = id.unwrap_or(place);
        if let Some(error) = error {
            answers.fault(call, error.into_fault());
            continue;
        }
        let result = result.map_or("null", RawValue::get);
        if result.starts_with('[') {
            let rows: Vec<&RawValue> = serde_json::from_str(result).map_err(|error| malformed(&error, "rows"))?;
            for row in rows {
                match serde_json::from_str::<Vec<Cell<'_>>>(row.get()) {
                    Ok(cells) => answers.row(call, &cells),
                    Err(_) => answers.broken_row(call),
                }
            }
        } else {
            let cell = serde_json::from_str(result).map_err(|error| malformed(&error, "a value"))?;
            answers.scalar(call, cell);
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Cell<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CellVisitor;

        impl<'de> Visitor<'de> for CellVisitor {
            type Value = Cell<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text or a whole number")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Cell::Int(number))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Cell::Int(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_bool<E>(self, is: bool) -> Result<Self::Value, E> {
                Ok(Cell::Int(i64::from(is)))
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cell::Text(Cow::Borrowed(text.as_bytes())))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cell::Text(Cow::Owned(text.as_bytes().to_vec())))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Cell::Null)
            }
        }

        deserializer.deserialize_any(CellVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::calls::Heard;
    use super::*;

    fn heard(text: &str) -> Result<Heard, Unreadable> {
        let mut heard = Heard::default();
        scan(text.as_bytes(), &mut heard).map(|()| heard)
    }

    fn text(text: &'static str) -> Cell<'static> {
        Cell::Text(Cow::Borrowed(text.as_bytes()))
    }

    const ANSWER: &str = r#"[{"id":0,"jsonrpc":"2.0","result":16910},
        {"id":1,"jsonrpc":"2.0","result":[["AB","a \"q\" 🦀\u0001",-7],["CD","",9223372036854775807]]},
        {"error":{"code":-32601,"message":"method not found: d.nope"},"id":2,"jsonrpc":"2.0"}]"#;

    #[test]
    fn a_batch_is_read_like_its_xml() {
        let heard = heard(ANSWER).unwrap();
        assert_eq!(heard.scalars, [(0, Cell::Int(16910))]);
        let rows = [
            (1, vec![text("AB"), text("a \"q\" 🦀\u{1}"), Cell::Int(-7)]),
            (1, vec![text("CD"), text(""), Cell::Int(i64::MAX)]),
        ];
        assert_eq!(heard.rows, rows);
        assert_eq!(heard.faults, [(2, Fault { code: -32601, text: "method not found: d.nope".to_owned() })]);
    }

    #[test]
    fn an_answer_that_is_refused_as_a_whole_is_no_listing() {
        let refused = heard(r#"{"error":{"code":-32700,"message":"invalid UTF-8 byte"},"id":null,"jsonrpc":"2.0"}"#);
        assert!(matches!(refused, Err(Unreadable::Refused(Fault { code: -32700, .. }))), "{refused:?}");
    }

    #[test]
    fn a_row_that_cannot_be_read_is_lost_alone() {
        let heard = heard(r#"[{"id":1,"result":[["AB",1],["CD",[1]],7,["EF",1.5],["GH",2]]}]"#).unwrap();
        assert_eq!((heard.rows.len(), heard.broken), (2, 3));
    }

    #[test]
    fn an_answer_cut_at_any_byte_is_an_error() {
        for cut in (0..ANSWER.len()).filter(|cut| ANSWER.is_char_boundary(*cut)) {
            assert!(heard(&ANSWER[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_short_request_is_filled_up() {
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
            let _either = scan(&bytes, &mut Heard::default()).is_ok();
            let _either = scan(&[b"[{\"id\":1,\"result\":[", bytes.as_slice(), b"]}]"].concat(), &mut Heard::default()).is_ok();
        }
    }
}
