//! Synthetic listings in rTorrent's format: any number of torrents, with all columns.

use std::fmt::Write as _;

/// The columns that the bridge reads, in its order; the hash comes first.
pub const COLUMNS: &[&str] = &[
    "d.hash=",
    "d.name=",
    "d.state=",
    "d.is_active=",
    "d.is_open=",
    "d.is_hash_checking=",
    "d.hashing=",
    "d.hashing_failed=",
    "d.complete=",
    "d.is_partially_done=",
    "d.completed_bytes=",
    "d.size_bytes=",
    "d.left_bytes=",
    "d.up.total=",
    "d.down.total=",
    "d.up.rate=",
    "d.down.rate=",
    "d.peers_connected=",
    "d.peers_complete=",
    "d.message=",
    "d.custom1=",
    "d.custom=addtime",
    "d.priority=",
    "d.directory=",
    "d.is_private=",
    "d.is_meta=",
    "d.tied_to_file=",
    "d.loaded_file=",
    "d.timestamp.started=",
    "d.timestamp.finished=",
    "d.local_id=",
    "d.size_files=",
    "d.tracker_size=",
    "d.ratio=",
];

/// A value as a column has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(u64),
}

/// Returns the hash of the torrent with this number, as rTorrent writes it; reversible.
pub fn hash(number: usize) -> String {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{spread:016X}0000000000000000{number:08X}")
}

/// Returns the number in a hash made by [`hash`].
pub fn number(hash: &str) -> Option<usize> {
    usize::from_str_radix(hash.get(32..40)?, 16).ok()
}

/// Returns a column (without its arguments) of a complete, seeding torrent of a usual size.
pub fn value(column: &str, number: usize) -> Option<Value> {
    let text = |text: String| Some(Value::Text(text));
    let size = 700_000_000 + (number as u64) * 4_096;
    match column.split_once('=').map_or(column, |(method, _)| method) {
        "d.hash" => text(hash(number)),
        "d.name" => text(format!("Some.Show.S{:02}E{:02}.1080p.WEB.{number}.mkv", number % 20, number % 24)),
        "d.message" => text(String::new()),
        "d.custom1" => text(["linux", "tv", "music", ""][number % 4].to_owned()),
        "d.custom" => text("1700000000".to_owned()),
        "d.directory" => text(format!("/srv/downloads/{}", ["linux", "tv", "music", "other"][number % 4])),
        "d.tied_to_file" => text(String::new()),
        "d.loaded_file" => text(format!("/srv/session/{}.torrent", hash(number))),
        "d.local_id" => text(hash(number)),
        "d.state" | "d.is_active" | "d.is_open" | "d.complete" | "d.size_files" | "d.tracker_size" => {
            Some(Value::Int(1))
        }
        "d.completed_bytes" | "d.size_bytes" | "d.down.total" => Some(Value::Int(size)),
        "d.up.total" => Some(Value::Int(size * 3 + 17)),
        "d.priority" => Some(Value::Int(2)),
        "d.ratio" => Some(Value::Int(3_000)),
        "d.timestamp.started" | "d.timestamp.finished" => Some(Value::Int(1_700_000_000 + number as u64)),
        "cat" => text(format!("1https://tracker{}.example.org:443/announce?k=0123456789abcdef|||", number % 5)),
        _ => None,
    }
}

/// Returns a value of a row; an unknown column is 0.
fn cell(column: &str, number: usize) -> Value {
    value(column, number).unwrap_or(Value::Int(0))
}

/// Rows as xmlrpc-c writes them, a line for each tag that holds others.
pub fn write_xml_rows(out: &mut String, columns: &[&str], numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        out.push_str("<value><array><data>\r\n");
        for column in columns {
            match cell(column, number) {
                Value::Int(int) => write!(out, "<value><i8>{int}</i8></value>\r\n"),
                Value::Text(text) => write!(out, "<value><string>{text}</string></value>\r\n"),
            }
            .expect("a string takes everything");
        }
        out.push_str("</data></array></value>\r\n");
    }
}

/// Returns the answer to one `d.multicall2` in a `system.multicall`.
pub fn xml(columns: &[&str], count: usize) -> Vec<u8> {
    let mut out = String::with_capacity(count * columns.len() * 45 + 512);
    out.push_str(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n",
    );
    out.push_str("<value><array><data>\r\n<value><array><data>\r\n");
    write_xml_rows(&mut out, columns, 0..count);
    out.push_str("</data></array></value>\r\n</data></array></value>\r\n");
    out.push_str("</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n");
    out.into_bytes()
}

/// Returns the same with names that strict parsers refuse: every tenth has raw control characters, invalid UTF-8, and
/// references.
pub fn dirty_xml(columns: &[&str], count: usize) -> Vec<u8> {
    let clean = xml(columns, count);
    let finder = memchr::memmem::Finder::new(b"Some.Show");
    let mut dirty = Vec::with_capacity(clean.len() + count * 4);
    let mut last = 0;
    for (place, at) in finder.find_iter(&clean).enumerate() {
        dirty.extend_from_slice(&clean[last..at]);
        last = at;
        if place % 10 == 0 {
            dirty.extend_from_slice(b"\x01\xff\xe9&amp;");
        }
    }
    dirty.extend_from_slice(&clean[last..]);
    dirty
}

/// Returns the same listing in JSON, as current rTorrent versions write it.
pub fn json(columns: &[&str], count: usize) -> Vec<u8> {
    let rows: Vec<Vec<serde_json::Value>> = (0..count)
        .map(|number| {
            let cell = |column: &&str| match cell(column, number) {
                Value::Int(int) => serde_json::Value::from(int),
                Value::Text(text) => serde_json::Value::from(text),
            };
            columns.iter().map(cell).collect()
        })
        .collect();
    serde_json::to_vec(&serde_json::json!([{"id": 0, "jsonrpc": "2.0", "result": rows}])).expect("plain JSON")
}
