//! The probe of an rTorrent: its version, its generation, and its methods.
//!
//! Versions are unreliable (forks call themselves 0.9.8), so whether a method exists is looked up in the
//! server's own list, and the generation follows from the API version.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::calls::{Call, Value};
use super::guard::{self, Guard};
use super::map::{COLUMNS, Field};
use super::transport::WireFormat;
use super::{Access, ExtraColumns, jsonrpc, xmlrpc};
use crate::port::ClientError;

/// API version of 0.15.4, from which calls run on rTorrent's main thread. Before, stopping a torrent that is
/// hash-checked can hang it for ever, and many announces in a row abort it.
const API_VERSION_MODERN: i64 = 14;

/// The abilities of one run of rTorrent.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// The version that the server states.
    pub version: String,
    /// Process id.
    pub pid: Option<i64>,
    /// Older than [`API_VERSION_MODERN`].
    pub is_legacy: bool,
    /// The library that reads requests and writes answers.
    pub xml_library: XmlLibrary,
    /// Answers JSON-RPC.
    pub has_json: bool,
    /// Can list by a predicate (`d.multicall.filtered`).
    pub has_filtered: bool,
    /// Number of torrents at that time.
    pub count: u64,
    /// As configured, which need not be an absolute path.
    pub default_directory: String,
    /// The columns that this server has; `None` if it has no list of methods.
    columns: Option<BTreeSet<&'static str>>,
}

/// The XML library that rTorrent is built with. The two differ in what they refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XmlLibrary {
    XmlrpcC,
    TinyXml2,
}

impl XmlLibrary {
    fn of(answer: &[u8]) -> Self {
        if answer.starts_with(b"<?xml version=\"1.0\"?><methodResponse>") { Self::TinyXml2 } else { Self::XmlrpcC }
    }
}

impl Probe {
    /// Returns the largest request that any setting allows: 2 MiB before version 0.10, 16 MiB since.
    pub(super) fn request_bytes_max(&self) -> usize {
        let is_oldest = self.version.starts_with("0.9.");
        (if is_oldest { 2 << 20 } else { 16 << 20 }) - (64 << 10)
    }

    fn has(&self, method: &'static str) -> bool {
        self.columns.as_ref().is_none_or(|columns| columns.contains(method))
    }

    /// Returns whether rTorrent can leave out long texts itself.
    pub(super) fn has_guards(&self) -> bool {
        self.columns.is_some() && guard::METHODS.iter().all(|method| self.has(method))
    }

    /// Returns the columns to read. One that the server lacks would fail the whole listing.
    ///
    /// Loads older than `short_until`, by rTorrent's clock, are known to have a short name and directory.
    pub(super) fn fields(&self, extra: &ExtraColumns, short_until: Option<i64>) -> Vec<Field> {
        let has_guards = self.has_guards();
        let guard = |method| guard(method, short_until).map(|guard| if has_guards { guard } else { Guard::left_out() });
        let own = COLUMNS.iter().copied().map(|column| match guard(column.method) {
            Some(guard) => Field::Guarded(column, guard),
            None => Field::Own(column),
        });
        let extra = extra.values().cloned().enumerate().map(|(place, column)| {
            let guard = guard(column.method());
            Field::Extra(place, column, guard)
        });
        // Without a list only columns that every version has can be read, and `extra` need not be one.
        let is_known = |field: &Field| match field {
            Field::Own(column) | Field::Guarded(column, _) => self.has(column.method),
            Field::Extra(_, column, _) => self.columns.is_some() && self.has(column.method()),
        };
        own.chain(extra).filter(is_known).collect()
    }
}

/// Returns the guard of a column whose text others choose.
fn guard(method: &str, short_until: Option<i64>) -> Option<Guard> {
    match method {
        "d.name" => Some(Guard::of_name(short_until)),
        // The name is the end of the directory of a torrent with several files.
        "d.base_filename" | "d.base_path" | "d.directory" | "d.directory_base" => {
            Some(Guard::of_path(&format!("{method}="), short_until))
        }
        // A magnet link has no file, and whoever loads a torrent may have written anything there.
        "d.message" | "d.tied_to_file" => Some(Guard::unless_empty(&format!("{method}="))),
        _ => None,
    }
}

/// Probes the server.
pub(super) async fn probe(access: &Access<'_>) -> Result<Probe, ClientError> {
    let calls = [
        Call::global("system.client_version"),
        Call::global("system.api_version"),
        Call::global("system.pid"),
        Call::global("view.size").text("main"),
        Call::global("directory.default"),
        Call::global("system.listMethods"),
    ];
    let limit = access.client.settings.timeout;
    // Raw, not by `call`: its first bytes give away the XML library.
    let answer = access.exchange(WireFormat::Xml, &xmlrpc::write(&calls), limit).await?;
    let results = xmlrpc::read(&answer).map_err(|reason| access.client.unreadable(reason))?;
    let [version, api_version, pid, count, directory, methods] = results.as_slice() else {
        return Err(ClientError::Protocol { reason: "system.multicall did not answer each call".to_owned() });
    };
    // A proxy that does not allow the method says so in a message that the user can act on.
    let version = version.as_ref().map_err(|fault| access.client.fault(fault))?;
    let api_version = api_version.as_ref().ok().and_then(Value::int);
    let names: Option<BTreeSet<&str>> =
        methods.as_ref().ok().map(|methods| methods.array().iter().filter_map(Value::str).collect());
    let columns = names.as_ref().map(|names| {
        // Only the names that are asked for: the list has up to 939.
        let ours = COLUMNS.iter().map(|column| column.method);
        let extra = access.client.settings.extra.values().map(|column| column.method());
        ours.chain(guard::METHODS.iter().copied()).chain(extra).filter(|method| names.contains(method)).collect()
    });
    Ok(Probe {
        version: version.to_text().unwrap_or_default(),
        pid: pid.as_ref().ok().and_then(Value::int),
        // An unknown generation is treated as the one that needs protection.
        is_legacy: api_version.is_none_or(|version| version < API_VERSION_MODERN),
        xml_library: XmlLibrary::of(&answer),
        has_json: speaks_json(access).await?,
        has_filtered: names.is_some_and(|names| names.contains("d.multicall.filtered")),
        count: count.as_ref().ok().and_then(Value::int).and_then(|count| u64::try_from(count).ok()).unwrap_or(0),
        default_directory: directory.as_ref().ok().and_then(Value::to_text).unwrap_or_default(),
        columns,
    })
}

/// Returns whether the server answers JSON-RPC. Old versions take the request for malformed XML, and say so in
/// XML.
async fn speaks_json(access: &Access<'_>) -> Result<bool, ClientError> {
    let Some(body) = jsonrpc::write(&[Call::global("view.size").text("main")]) else { return Ok(false) };
    match access.exchange(WireFormat::Json, &body, access.client.settings.timeout).await {
        Ok(answer) => Ok(serde_json::from_slice::<Json>(&answer).is_ok_and(|batch| batch[0]["result"].is_i64())),
        // A proxy or a server that closes the connection on a request that it does not know.
        Err(ClientError::Protocol { .. } | ClientError::Broken { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
impl Probe {
    /// A legacy server without a list of methods.
    pub(super) fn of_tests(has_filtered: bool) -> Self {
        Self {
            version: String::new(),
            pid: None,
            is_legacy: true,
            xml_library: XmlLibrary::XmlrpcC,
            has_json: false,
            has_filtered,
            count: 0,
            default_directory: String::new(),
            columns: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_xml_library_shows_in_the_first_bytes() {
        for (answer, expected) in [
            (&b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>"[..], XmlLibrary::XmlrpcC),
            (b"<?xml version=\"1.0\"?><methodResponse><params>", XmlLibrary::TinyXml2),
        ] {
            assert_eq!(XmlLibrary::of(answer), expected);
        }
    }

    #[test]
    fn a_column_that_the_server_lacks_is_not_asked_for() {
        let mut probe = Probe { columns: Some(BTreeSet::from(["d.name", "d.ratio"])), ..Probe::of_tests(false) };
        let column = super::super::settings::ExtraColumn::parse;
        let extra = [("a", "d.down.sequential="), ("b", "d.ratio=")];
        let extra = extra.map(|(name, text)| (name.into(), column(text).unwrap())).into();
        let commands = |probe: &Probe| probe.fields(&extra, None).iter().map(Field::command).collect::<Vec<_>>();
        assert_eq!(commands(&probe), [r#"cat="//""#, "d.ratio="], "the name is read by itself");
        probe.columns = None;
        assert_eq!(commands(&probe).len(), COLUMNS.len(), "without a list only what every version has");
    }
}
