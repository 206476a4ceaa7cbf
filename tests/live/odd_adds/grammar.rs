//! Random requests to add a torrent or a magnet link, most of them odd in one way or another.
//!
//! Bencoding is written by hand here: what cannot be built by the rules is what is to be sent.

use std::path::Path;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use crate::harness::base64;

/// What an add asks for besides the torrent itself.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub start: bool,
    pub label: Option<&'static str>,
    pub priority: Option<u8>,
    pub directory: Option<String>,
    pub custom: Vec<(&'static str, &'static str)>,
}

/// A request to add something.
pub struct OddAdd {
    pub body: Value,
    pub wish: Wish,
    /// The oddities, for whoever reads a failure.
    pub oddities: Vec<&'static str>,
}

/// Texts that somebody may have to quote, escape, decode or shorten.
const TEXTS: &[&[u8]] = &[
    b"plain",
    "Ünï ☃".as_bytes(),
    "crab 🦀 \u{10ffff}".as_bytes(),
    b"caf\xe9 latin",
    b"surrogate \xed\xa0\x80",
    b"control \x01\x1b[31m",
    b"line\r\nbreak",
    b"100%",
    b"50%41%zz",
    b"a <b> & \"c\" 'd' ]]> &amp;",
    b"$execute.nothrow={touch,executed}",
    b" blanks around ",
    b"back\\slash",
    b"a,b;c{d}(e)=f|g",
];

/// Names that a client must not take as they are.
const BAD_NAMES: &[&[u8]] = &[b"", b".", b"..", b"a/b", b"../../outside", b"/etc/x", b"nul\0", &[b'n'; 300]];

const LABELS: &[&str] = &["linux", "100%", "a, b", "Ünï 🦀", "$execute={id}", " x ", "50%41", "\"q\" \\"];

/// Custom values; a magnet link keeps not all of them, and no emoji is shown.
const CUSTOM: &[(&str, &str)] = &[
    ("source", "sonarr"),
    ("x-my.key_1", "a, b;c{d}(e)=f|g"),
    ("code", "$execute.nothrow={touch,executed}"),
    ("quoted", "\"q\" \\"),
    ("emoji", "crab 🦀"),
    ("empty", ""),
    ("blank", " x "),
    ("control", "a\nb"),
    ("addtime", "5"),
    ("odd key", "x"),
];

struct Shaper<'a> {
    rng: &'a mut StdRng,
    oddities: Vec<&'static str>,
}

/// Returns the request of this place; the name in it makes its hash unique.
pub fn odd_add(rng: &mut StdRng, place: usize, downloads: &Path) -> OddAdd {
    let mut shaper = Shaper { rng, oddities: Vec::new() };
    let is_magnet = shaper.one_in(3);
    let source = if is_magnet {
        ("magnet", shaper.magnet(place))
    } else {
        let torrent = shaper.torrent(place);
        ("torrent", base64(&torrent))
    };
    let wish = shaper.wish(downloads);
    let mut body = json!({"id": format!("odd-{place}"), source.0: source.1, "start": wish.start});
    let options = [
        ("label", wish.label.map(Value::from)),
        ("priority", wish.priority.map(Value::from)),
        ("directory", wish.directory.clone().map(Value::from)),
    ];
    for (key, value) in options {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    for (key, value) in &wish.custom {
        body["custom"][*key] = json!(value);
    }
    OddAdd { body, wish, oddities: shaper.oddities }
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [format!("{}:", bytes.len()).as_bytes(), bytes].concat()
}

fn number(value: i64) -> Vec<u8> {
    format!("i{value}e").into_bytes()
}

fn list(values: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    [b"l".to_vec(), values.into_iter().flatten().collect(), b"e".to_vec()].concat()
}

type Pairs = Vec<(&'static [u8], Vec<u8>)>;

fn dictionary(pairs: Pairs) -> Vec<u8> {
    let pairs = pairs.into_iter().flat_map(|(key, value)| [text(key), value].concat()).collect();
    [b"d".to_vec(), pairs, b"e".to_vec()].concat()
}

impl Shaper<'_> {
    fn one_in(&mut self, times: u32) -> bool {
        self.rng.random_range(0..times) == 0
    }

    /// Whether an oddity is used, which is noted.
    fn is_odd(&mut self, oddity: &'static str) -> bool {
        let is_odd = self.one_in(20);
        if is_odd {
            self.oddities.push(oddity);
        }
        is_odd
    }

    fn pick<'b, T: ?Sized>(&mut self, among: &[&'b T]) -> &'b T {
        among[self.rng.random_range(0..among.len())]
    }

    fn wish(&mut self, downloads: &Path) -> Wish {
        let below = |name: &str| Some(downloads.join(name).to_string_lossy().into_owned());
        let directory = match self.rng.random_range(0..12) {
            0 => Some(downloads.to_string_lossy().into_owned()),
            1 => below("sub"),
            2 => below("a b, \"c\""),
            3 => Some(self.pick(&["/etc", "relative", "/tmp/../etc"]).to_owned()),
            _ => None,
        };
        let label = (!self.one_in(3)).then(|| self.pick(LABELS));
        let priority = (!self.one_in(3)).then(|| self.rng.random_range(0..4));
        let some = if self.one_in(4) { self.rng.random_range(1..4) } else { 0 };
        let custom = (0..some).map(|_| CUSTOM[self.rng.random_range(0..CUSTOM.len())]).collect();
        Wish { start: self.one_in(2), label, priority, directory, custom }
    }

    // --- torrents ----------------------------------------------------------------------------------

    fn torrent(&mut self, place: usize) -> Vec<u8> {
        let info = self.info(place);
        let mut root: Pairs = Vec::new();
        let announce = text(b"http://127.0.0.1:9/announce");
        match self.rng.random_range(0..10) {
            0 => self.oddities.push("no tracker"),
            1 => {
                self.oddities.push("odd announce");
                let odd = [text(b""), text(b"nonsense"), text(b"wss://127.0.0.1/"), number(5), list([])];
                root.push((b"announce", odd[self.rng.random_range(0..odd.len())].clone()));
            }
            _ => root.push((b"announce", announce.clone())),
        }
        if self.one_in(4) {
            self.oddities.push("announce-list");
            let tier = list([announce.clone()]);
            let odd = [
                list([tier.clone()]),
                list([tier.clone(), text(b"http://127.0.0.1:9/b")]),
                list([list([text(b"udp://127.0.0.1:9"), announce.clone()]), list([])]),
                list([]),
                list([list([list([announce.clone()])])]),
                list([list([number(7)])]),
                announce.clone(),
                number(0),
                list([list([text(b"")]), list([text(b" http://127.0.0.1:9/x ")])]),
            ];
            root.push((b"announce-list", odd[self.rng.random_range(0..odd.len())].clone()));
        }
        for (oddity, key, value) in [
            ("comment", &b"comment"[..], text(self.pick(TEXTS))),
            ("creation date", b"creation date", number(-5)),
            ("encoding", b"encoding", text(b"GBK")),
            ("nodes", b"nodes", list([list([text(b"127.0.0.1"), number(9)])])),
            ("url-list", b"url-list", text(b"http://127.0.0.1:9/")),
            ("resume data", b"libtorrent_resume", dictionary(vec![(b"bitfield", number(1))])),
            ("foreign session", b"rtorrent", dictionary(vec![(b"state", number(1)), (b"custom1", text(b"foreign"))])),
            ("odd session", b"rtorrent", number(1)),
        ] {
            if self.is_odd(oddity) {
                root.push((key, value));
            }
        }
        root.push((b"info", info));
        root.sort_by_key(|(key, _)| *key);
        self.disorder("root", &mut root);
        let mut torrent = dictionary(root);
        if self.is_odd("bytes behind the end") {
            torrent.extend_from_slice(b"\r\n<!-- x -->");
        }
        if self.is_odd("cut off") {
            torrent.truncate(self.rng.random_range(0..torrent.len()));
        }
        torrent
    }

    fn info(&mut self, place: usize) -> Vec<u8> {
        let unique = format!("odd {place}").into_bytes();
        let name = match self.rng.random_range(0..12) {
            0 => self.noted("bad name", BAD_NAMES).to_vec(),
            1..4 => [unique, self.noted("odd name", TEXTS).to_vec()].concat(),
            _ => unique,
        };
        let piece_length = if self.is_odd("piece length") {
            self.rng_of(&[0, 1, -1, 16_383, 1 << 20, 1 << 31, 1 << 40])
        } else {
            16_384
        };
        let mut pairs: Pairs = vec![(b"piece length", self.integer(piece_length))];
        let length = if self.one_in(2) {
            let files = self.files();
            let length = files.iter().map(|(length, _)| length).sum();
            let files = files.into_iter().map(|(_, file)| file);
            pairs.push((b"files", list(files)));
            if self.is_odd("length and files") {
                pairs.push((b"length", number(length)));
            }
            length
        } else {
            let length = if self.is_odd("no content") { 0 } else { self.rng.random_range(1..60_000) };
            pairs.push((b"length", self.integer(length)));
            length
        };
        let pieces = (length.unsigned_abs()).div_ceil(piece_length.max(1).unsigned_abs());
        let mut count = usize::try_from(pieces.min(100)).unwrap();
        if self.is_odd("surplus piece") {
            count += 1;
        }
        if self.is_odd("piece missing") {
            count = count.saturating_sub(1);
        }
        let mut pieces = Sha1::digest(&name).repeat(count);
        if self.is_odd("broken piece") {
            pieces.extend_from_slice(b"xxxxxxx");
        }
        pairs.push((b"pieces", text(&pieces)));
        for (oddity, key) in [("name.utf-8", &b"name.utf-8"[..]), ("name.utf8", b"name.utf8")] {
            if self.is_odd(oddity) {
                let other = [&name[..], self.pick(TEXTS), self.pick(BAD_NAMES)];
                pairs.push((key, text(other[self.rng.random_range(0..3)])));
            }
        }
        pairs.push((b"name", text(&name)));
        if self.one_in(4) {
            let private = [number(1), number(0), number(2), text(b"1")];
            pairs.push((b"private", private[self.rng.random_range(0..4)].clone()));
        }
        if self.is_odd("version 2 claimed") {
            pairs.push((b"meta version", number(2)));
        }
        if self.is_odd("unknown keys") {
            pairs.push((b"source", text(self.pick(TEXTS))));
            pairs.push((b"x", dictionary(vec![(b"", list([])), (b"y", number(-1))])));
        }
        pairs.sort_by_key(|(key, _)| *key);
        self.disorder("info", &mut pairs);
        if self.is_odd("`info` no dictionary") {
            return list([]);
        }
        let info = dictionary(pairs);
        if self.is_odd("text length with a zero") {
            // The first `4:name` there is.
            let at = info.windows(6).position(|window| window == b"4:name");
            return at.map_or(info.clone(), |at| [&info[..at], b"0", &info[at..]].concat());
        }
        info
    }

    /// Files with their length, each encoded.
    fn files(&mut self) -> Vec<(i64, Vec<u8>)> {
        let count = self.rng.random_range(0..5);
        let mut files = Vec::new();
        let (mut before, mut first): (Vec<Vec<u8>>, Vec<Vec<u8>>) = Default::default();
        for file in 0..count {
            let unique = format!("file {file}").into_bytes();
            let path: Vec<Vec<u8>> = match self.rng.random_range(0..20) {
                0 => vec![self.noted("bad path", BAD_NAMES).to_vec(), unique],
                1 => vec![Vec::new(), unique],
                2 => vec![unique, Vec::new()],
                3 => vec![[unique, self.noted("odd path", TEXTS).to_vec()].concat()],
                4 => vec![unique; 20],
                5 => {
                    self.oddities.push("a path twice");
                    before.clone()
                }
                6 => {
                    self.oddities.push("a path in another");
                    [before.clone(), vec![unique]].concat()
                }
                7 => Vec::new(),
                8 => {
                    self.oddities.push("the first path again");
                    first.clone()
                }
                9 => {
                    self.oddities.push("a path in the first");
                    [first.clone(), vec![unique]].concat()
                }
                10 => {
                    self.oddities.push("a folder of another file");
                    first.split_last().map(|(_, folder)| folder.to_vec()).unwrap_or_default()
                }
                11 => {
                    self.oddities.push("a path of 5000 bytes");
                    vec![vec![b'l'; 250]; 20]
                }
                _ => vec![b"folder".to_vec(), unique],
            };
            let length = if self.one_in(6) { 0 } else { self.rng.random_range(1..30_000) };
            let mut pairs: Pairs = vec![(b"length", self.integer(length))];
            pairs.push((b"path", list(path.iter().map(|part| text(part)))));
            if self.is_odd("padding") {
                pairs.insert(0, (b"attr", text(b"p")));
            }
            if self.is_odd("symbolic link") {
                pairs.insert(0, (b"attr", text(b"l")));
            }
            if self.is_odd("path.utf-8") {
                let other = [self.pick(TEXTS), self.pick(BAD_NAMES)];
                pairs.push((b"path.utf-8", list([text(other[self.rng.random_range(0..2)])])));
            }
            self.disorder("file", &mut pairs);
            if file == 0 {
                first.clone_from(&path);
            }
            before = path;
            files.push((length, dictionary(pairs)));
        }
        files
    }

    fn integer(&mut self, value: i64) -> Vec<u8> {
        if self.is_odd("number with a zero or a sign") {
            let forms = [format!("i0{value}e"), format!("i+{value}e"), format!("i-{value}e"), format!("i {value}e")];
            return forms[self.rng.random_range(0..forms.len())].clone().into_bytes();
        }
        number(value)
    }

    fn disorder(&mut self, what: &'static str, pairs: &mut Pairs) {
        if pairs.len() > 1 && self.is_odd("keys out of order") {
            self.oddities.push(what);
            let at = self.rng.random_range(1..pairs.len());
            pairs.swap(at - 1, at);
        }
        if !pairs.is_empty() && self.is_odd("a key twice") {
            self.oddities.push(what);
            let at = self.rng.random_range(0..pairs.len());
            let twice = pairs[at].clone();
            pairs.insert(at, twice);
        }
    }

    fn noted(&mut self, oddity: &'static str, among: &[&'static [u8]]) -> &'static [u8] {
        self.oddities.push(oddity);
        self.pick(among)
    }

    fn rng_of(&mut self, among: &[i64]) -> i64 {
        among[self.rng.random_range(0..among.len())]
    }

    // --- magnet links ------------------------------------------------------------------------------

    fn magnet(&mut self, place: usize) -> String {
        self.oddities.push("magnet link");
        let hash: [u8; 20] = Sha1::digest(format!("odd magnet {place}")).into();
        let mut parts = vec![self.topic(hash)];
        if self.is_odd("another hash") {
            parts.push(format!("xt=urn:btih:{}", "ab".repeat(20)));
        }
        if self.is_odd("the hash twice") {
            parts.push(format!("xt=urn:btih:{}", data_encoding::HEXUPPER.encode(&hash)));
        }
        if self.is_odd("hybrid") {
            parts.push(format!("xt=urn:btmh:1220{}", "cd".repeat(32)));
        }
        if self.one_in(2) {
            let names = [
                "plain",
                "100%",
                "50%zz",
                "a b",
                "a+b",
                "Ünï 🦀",
                "%C3%9C",
                "%01%1b",
                "$execute={id}",
                "",
                "a%26b",
                "&amp;",
            ];
            let name = self.pick(&names);
            self.oddities.push("dn");
            parts.push(format!("dn={name}"));
        }
        for _ in 0..self.rng.random_range(0..4) {
            let trackers = [
                "tr=http%3A%2F%2F127.0.0.1%3A9%2Fannounce",
                "tr=http://127.0.0.1:9/announce?passkey=x",
                "tr.1=http%3A%2F%2F127.0.0.1%3A9%2Fb",
                "tr=udp%3A%2F%2F127.0.0.1%3A9",
                "tr=nonsense",
                "tr=",
                "tr=http%3A%2F%2F127.0.0.1%3A9%2F%ff",
                "tr=wss%3A%2F%2F127.0.0.1%2F",
                "amp;tr=http%3A%2F%2F127.0.0.1%3A9%2Fc",
            ];
            parts.push(self.pick(&trackers).to_owned());
        }
        for part in ["ws=http%3A%2F%2F127.0.0.1%3A9%2F", "x.pe=127.0.0.1:9", "so=0-1", "", "=", "x", "kt=a b", "xl=5"] {
            if self.one_in(12) {
                parts.push(part.to_owned());
            }
        }
        if self.one_in(3) {
            let last = parts.len() - 1;
            parts.swap(0, last);
        }
        let scheme = match self.rng.random_range(0..12) {
            0 => "MAGNET:?",
            1 => "Magnet:?",
            2 => "magnet://?",
            3 => " magnet:?",
            _ => "magnet:?",
        };
        let end = if self.one_in(10) { self.pick(&["\n", " ", "#fragment", "&", "%"]) } else { "" };
        format!("{scheme}{}{end}", parts.join("&"))
    }

    fn topic(&mut self, hash: [u8; 20]) -> String {
        let hex = data_encoding::HEXLOWER.encode(&hash);
        let base32 = data_encoding::BASE32.encode(&hash);
        match self.rng.random_range(0..16) {
            0 => format!("xt=urn:btih:{}", hex.to_uppercase()),
            1 => format!("xt=urn:btih:{base32}"),
            2 => format!("xt=urn:btih:{}", base32.to_lowercase()),
            3 => format!("xt.1=urn:btih:{hex}"),
            4 => format!("xt=urn%3Abtih%3A{hex}"),
            5 => format!("xt=urn:BTIH:{hex}"),
            6 => format!("XT=urn:btih:{hex}"),
            7 => format!("xt=urn:btih:{}", &hex[..39]),
            8 => format!("xt=urn:btih:{hex}0"),
            9 => format!("xt=urn:btmh:1220{}", "ef".repeat(32)),
            10 => "xt=urn:sha1:x".to_owned(),
            _ => format!("xt=urn:btih:{hex}"),
        }
    }
}
