//! What `tests/fuzz` tries with a fuzzer that sees which branches are taken, tried blindly: mutations of good
//! inputs, on any compiler, for as long as it is let. Not run with the other tests: `make fuzz SECONDS_EACH=600`.
//!
//! It prints how many inputs each target had. A panic is a finding; its input is printed before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use dtorrent::commands::{Envelope, Request};
use dtorrent::model::{EventId, InfoHash, Magnet, Metainfo, Verb};
use rand::RngExt as _;

const INPUT_BYTES_MAX: usize = 4096;

struct Target {
    name: &'static str,
    seeds: &'static [&'static [u8]],
    run: fn(&[u8]),
}

const TARGETS: &[Target] = &[
    Target {
        name: "bodies",
        seeds: &[
            br#"{"id": "1", "hashes": ["abcdef0123456789abcdef0123456789abcdef01"], "ttl": "5m", "dry_run": true}"#,
            br#"{"filter": {"status": ["seeding"], "name": "*.{iso,img}", "ratio": {"min": 1.5}, "size": {"max": "7MiB"}}}"#,
            br#"{"torrent": "ZDQ6aW5mb2Rl", "label": "x", "priority": 3, "directory": "/d", "data_file": "/d/x"}"#,
            br#"{"magnet": "magnet:?xt=urn:btih:abcdef0123456789abcdef0123456789abcdef01&dn=x", "start": false}"#,
            br#"{"files": [0, 1, 4294967295], "priority": 2, "if_status": ["paused"], "reply_to": "a/b"}"#,
            br#"{"method": "system.pid", "params": ["", -1, 9223372036854775807], "from_seq": 18446744073709551615}"#,
            b"magnet:?xt=urn:btih:abcdef0123456789abcdef0123456789abcdef01",
            b"d4:infod6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee",
        ],
        run: |body| {
            drop(Envelope::read(body));
            for verb in Verb::ALL {
                drop(Request::parse(*verb, None, body));
                drop(Request::parse(*verb, Some(InfoHash::V1([0; 20])), body));
            }
        },
    },
    Target {
        name: "bencode",
        seeds: &[
            b"d4:infod6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee",
            b"d8:announce9:http://x/4:infod5:filesld6:lengthi5e4:pathl1:a1:beed6:lengthi0e4:pathl1:ceee4:name1:x\
              12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaa7:privatei1eee",
            b"d4:infod9:file treed1:xd0:d6:lengthi5e11:pieces root32:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaeee12:meta versioni2e\
              4:name1:x12:piece lengthi16384eee",
        ],
        run: |bytes| {
            if let Ok(metainfo) = Metainfo::parse(bytes) {
                metainfo.client_hash();
                assert!(metainfo.length > 0 && !metainfo.files.is_empty());
                for name in metainfo.files.iter().flat_map(|file| &file.path) {
                    assert!(!name.is_empty() && name != b".." && !name.contains(&b'/') && !name.contains(&0));
                }
            }
        },
    },
    Target {
        name: "magnets",
        seeds: &[
            b"magnet:?xt=urn:btih:abcdef0123456789abcdef0123456789abcdef01&dn=a%20b&tr=http%3A%2F%2Fx%2F&ws=u",
            b"magnet:?xt=urn:btih:VPG66AJCGRKWPCU3ZXXQCI2FM6E2XTPP&x.pe=1.2.3.4:5&so=0-3",
            b"magnet:?xt=urn:btmh:12200123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef&dn=%F0%9F%A6%80",
        ],
        run: |link| {
            if let Ok(magnet) = Magnet::parse(&String::from_utf8_lossy(link)) {
                magnet.client_hash();
            }
        },
    },
    Target {
        name: "event ids",
        seeds: &[b"home-7f3a9c21-000000004182", b"a-b-7f3a9c21-u000000009001"],
        run: |text| {
            let text = String::from_utf8_lossy(text);
            if let Ok(id) = text.parse::<EventId>() {
                assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
            }
        },
    },
];

/// Words that mean something in one of the languages.
const WORDS: &[&[u8]] = &[
    b"i-1e",
    b"99999999999999999999",
    b"[[[[",
    b"{\"a\":",
    b"\xff",
    b"\0",
    b"%",
    b"%00",
    b"null",
    b"1e999",
    b"d0:",
    b"le",
    b"\\u0000",
    b":",
    b"..",
    b"/",
];

fn mutated(seeds: &[&[u8]], rng: &mut impl rand::Rng) -> Vec<u8> {
    let mut input = seeds[rng.random_range(0..seeds.len())].to_vec();
    for _ in 0..rng.random_range(1..8) {
        let at = rng.random_range(0..=input.len());
        let end = (at + rng.random_range(0..16)).min(input.len());
        match rng.random_range(0..7) {
            0 => input.insert(at, rng.random()),
            1 => drop(input.drain(at..end)),
            2 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            3 => drop(input.splice(at..at, WORDS[rng.random_range(0..WORDS.len())].iter().copied())),
            4 => drop(input.splice(at..end, input[at..end].repeat(3))),
            5 => {
                let other = seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..other.len());
                drop(input.splice(at.., other[from..].iter().copied()));
            }
            _ => input.truncate(at.max(1)),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn main() {
    let seconds: u64 = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let mut rng = rand::rng();
    for Target { name, seeds, run } in TARGETS {
        let (began, mut runs) = (Instant::now(), 0_u64);
        while began.elapsed() < Duration::from_secs(seconds) {
            for _ in 0..100 {
                let input = mutated(seeds, &mut rng);
                if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
                    println!("{name}: a finding after {runs} runs: {:?}", input.escape_ascii().to_string());
                    std::process::exit(1);
                }
                runs += 1;
            }
        }
        println!("{name}: {runs} runs in {seconds} s, no finding");
    }
}
