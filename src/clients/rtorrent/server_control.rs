//! Control over rTorrent as a whole: its rate limits, and the methods that the config allows.

use serde_json::Value as Json;

use super::Access;
use super::calls::{Call, Param, Value};
use super::settings::AllowedMethod;
use crate::model::Limits;
use crate::port::ClientError;

/// Lowest limit other than none, in bytes per second: rTorrent counts in KiB, and takes less for no limit.
const LIMIT_MIN: u64 = 1024;
/// Highest limit, in bytes per second.
const LIMIT_MAX: u64 = 1 << 30;

/// Checks that rTorrent can keep the limits.
pub(super) fn check_limits(limits: Limits) -> Result<(), ClientError> {
    if [limits.download, limits.upload].into_iter().flatten().any(|limit| limit > LIMIT_MAX) {
        let reason = format!("a limit is 0 (none) to {LIMIT_MAX} bytes per second");
        return Err(ClientError::Precondition { reason });
    }
    Ok(())
}

/// Sets the limits and reads them back.
pub(super) async fn set_limits(access: &Access<'_>, limits: Limits) -> Result<(), ClientError> {
    check_limits(limits)?;
    let wanted = [
        ("throttle.global_down.max_rate.set", "throttle.global_down.max_rate", limits.download),
        ("throttle.global_up.max_rate.set", "throttle.global_up.max_rate", limits.upload),
    ];
    for (set, read, limit) in wanted {
        let Some(limit) = limit else { continue };
        let limit = if limit == 0 { 0 } else { limit.max(LIMIT_MIN) };
        let number = i64::try_from(limit).unwrap_or(i64::MAX);
        // Read back, because the answer proves nothing: 0.10 and later store a limit of -1 that they refuse.
        let answers = access.call(&[Call::global(set).int(number), Call::global(read)]).await?;
        if let Some(fault) = answers.iter().find_map(|answer| answer.as_ref().err()) {
            return Err(access.client.fault(fault));
        }
        let now = answers.last().and_then(|answer| answer.as_ref().ok()?.int());
        // rTorrent rounds to KiB. Nothing may be rounded to 0, which would lift the limit.
        if now.is_none_or(|now| now.abs_diff(number) >= LIMIT_MIN || (now == 0) != (number == 0)) {
            let message = format!("{read} is {now:?} after it was set to {number}");
            return Err(ClientError::Fault { message });
        }
    }
    Ok(())
}

/// Returns the call of a method that the config allows.
pub(super) fn checked_call(allowed: &[AllowedMethod], method: &str, params: &[Json]) -> Result<Call, ClientError> {
    let allowed = allowed.iter().find(|allowed| allowed.as_str() == method);
    let Some(allowed) = allowed else {
        let reason = "the config of this server does not allow this method".to_owned();
        return Err(ClientError::Unauthorized { reason });
    };
    let mut typed: Vec<Param> = params.iter().filter_map(param).collect();
    // A method that is not about a torrent has an empty target. A file or tracker is never a bare hash.
    let target = match typed.first() {
        Some(Param::Text(text)) => text.clone(),
        _ => String::new(),
    };
    // 0.9.8 dies of a bare hash there; the part is checked here because the parameters come from outside.
    let needs_part = ["f.", "t.", "p."].iter().any(|prefix| method.starts_with(prefix));
    let names_part = target.len() > 41 && target.is_char_boundary(40) && target[40..].starts_with(':');
    if typed.is_empty() {
        typed.push(Param::Text(String::new()));
    }
    if needs_part && !names_part {
        let reason =
            "its first parameter is HASH:f0, HASH:t0 or HASH:p…; rTorrent dies of a bare hash there".to_owned();
        return Err(ClientError::Precondition { reason });
    }
    Ok(Call::allowed(allowed, typed))
}

/// Calls a method that the config allows.
pub(super) async fn call(access: &Access<'_>, method: &str, params: &[Json]) -> Result<Json, ClientError> {
    let call = checked_call(&access.client.settings.rpc, method, params)?;
    let mut answers = access.call(&[call]).await?;
    match answers.pop() {
        Some(Ok(value)) => Ok(json(value, 0)),
        Some(Err(fault)) => Err(access.client.fault(&fault)),
        None => Ok(Json::Null),
    }
}

fn param(param: &Json) -> Option<Param> {
    match param {
        Json::String(text) => Some(Param::Text(text.clone())),
        Json::Number(number) => number.as_i64().map(Param::Int),
        _ => None,
    }
}

fn json(value: Value, depth: u8) -> Json {
    match value {
        Value::Int(number) => number.into(),
        Value::Text(text) => text.into(),
        // A bound, so that no answer can exhaust the stack.
        Value::Array(values) if depth < 8 => values.into_iter().map(|value| json(value, depth + 1)).collect(),
        Value::Struct(members) if depth < 8 => {
            members.into_iter().map(|(name, value)| (name, json(value, depth + 1))).collect()
        }
        Value::Array(_) | Value::Struct(_) | Value::Null => Json::Null,
    }
}
