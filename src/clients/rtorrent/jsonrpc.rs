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
    method: &'static str,
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
