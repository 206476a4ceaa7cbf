//! The fuzz targets of `tests/fuzz`, run with mutations of valid inputs and without coverage guidance, so that any
//! compiler will do. Not run with the other tests: `make fuzz SECONDS_EACH=600`, `make fuzz ONLY="bencode magnet"`.
//!
//! Prints the number of inputs of each target. A panic is a finding; its input is printed before it.

#[path = "fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::RngExt as _;

const INPUT_BYTES_MAX: usize = 4096;

struct Target {
    name: &'static str,
    seeds: &'static [&'static [u8]],
    run: fn(&[u8]),
}

const TARGETS: &[Target] = &[
    Target {
        name: "command_body",
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
        run: targets::command_body,
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
        run: targets::bencode,
    },
    Target {
        name: "names",
        seeds: &[
            b"d4:infod6:lengthi5e4:name1:x10:name.utf-81:y12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee",
            b"d4:infod5:filesld6:lengthi5e4:pathl0:1:a1:be10:path.utf-8l2:..1:ceee4:name1:x12:piece lengthi16384e\
              6:pieces20:aaaaaaaaaaaaaaaaaaaaee",
        ],
        run: targets::names,
    },
    Target {
        name: "magnet",
        seeds: &[
            b"magnet:?xt=urn:btih:abcdef0123456789abcdef0123456789abcdef01&dn=a%20b&tr=http%3A%2F%2Fx%2F&ws=u",
            b"magnet:?xt=urn:btih:VPG66AJCGRKWPCU3ZXXQCI2FM6E2XTPP&x.pe=1.2.3.4:5&so=0-3",
            b"magnet:?xt=urn:btmh:12200123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef&dn=%F0%9F%A6%80",
        ],
        run: targets::magnet,
    },
    Target {
        name: "event_id",
        seeds: &[b"home-7f3a9c21-000000004182", b"a-b-7f3a9c21-u000000009001"],
        run: targets::event_id,
    },
    Target {
        name: "xmlrpc",
        seeds: &[
            b"<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value><i8>5</i8></value>\
              <value><string>a&amp;b&#65;</string></value></data></array></value></param></params></methodResponse>",
            b"<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-501</int></value></member>\
              <member><name>faultString</name><value>x</value></member></struct></value></fault></methodResponse>",
            b"<methodResponse><params><param><value><base64>YWJj</base64></value></param></params></methodResponse>",
        ],
        run: targets::xmlrpc,
    },
    Target {
        name: "jsonrpc",
        seeds: &[
            br#"[{"jsonrpc": "2.0", "id": 0, "result": [["ABC", 1, -2, ""], ["\u00fc", 9223372036854775807]]}]"#,
            br#"{"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "x"}}"#,
        ],
        run: targets::json_rpc,
    },
    Target {
        name: "scgi_header",
        seeds: &[b"Status: 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 5\r\n\r\nhello"],
        run: targets::scgi_header,
    },
    Target {
        name: "mqtt_topics",
        seeds: &[
            b"dtorrent\nhome/torrent/abcdef0123456789abcdef0123456789abcdef01/command/pause",
            b"a/b\nhome/command/list",
            b"a\nbridge/main/command/resync",
            b"a\nmqtts://[::1]:8883/x",
        ],
        run: targets::mqtt_topics,
    },
    Target {
        name: "nats",
        seeds: &[
            b"dtorrent\nhome.torrent.abcdef0123456789abcdef0123456789abcdef01.command.pause",
            br#"a
{"stream": "S", "seq": 1, "duplicate": true, "type": "io.nats.jetstream.api.v1.x", "error": {"err_code": 10059}}"#,
            b"a\nPermissions Violation for Publish to \"x.y\"",
            b"a\nnats://[::1]:4222",
            b"a\n-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\nSUx\n",
        ],
        run: targets::nats,
    },
    Target {
        name: "config",
        seeds: &[
            b"instance = \"main\"\n[http]\nlisten = \"off\"\n[servers.home]\nurl = \"unix:///x\"\ninterval = \"250ms\"\n",
            b"[servers.a]\nurl = \"scgi://h:5\"\n[brokers.b]\nkind = \"mqtt\"\nurl = \"mqtts://h\"\ncommands = [\"*\", \"-rpc\"]\n",
            b"[servers.a]\nurl = \"http://h/RPC2\"\n[webhooks.n]\nurl = \"https://h/x\"\nevents = [\"added\"]\n",
        ],
        run: targets::config,
    },
    Target {
        name: "hook_signal",
        seeds: &[
            b"ABCDEF0123456789ABCDEF0123456789ABCDEF01\n\nabcdef0123456789ABCDEF0123456789ABCDEF01\n",
            b"/var/lib/dtorrent/hooks/main.home",
        ],
        run: targets::hook_signal,
    },
    Target {
        name: "home_assistant",
        seeds: &[b"alternative\nON", b"slot_1\npause", b"dtorrent_home_abcdef0123456789abcdef0123456789abcdef01\n"],
        run: targets::home_assistant,
    },
    Target {
        name: "webhook",
        seeds: &[
            b"\xad\x01\0\0\0\0\0\0\0\0120\nslow down",
            b"\xf7\x01\0\0\0\0\0\0\0\0Sun, 22 Nov 2026 18:00:00 GMT\nhttps://user:x@ntfy.sh/topic",
            b"\xc8\x00\0\0\0\0\0\0\0\0\nwhsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ],
        run: targets::webhook,
    },
];

/// Tokens with a meaning in one of the input languages.
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
    let only = std::env::var("FUZZ_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split_whitespace().collect();
    if let Some(unknown) = only.iter().find(|name| TARGETS.iter().all(|target| target.name != **name)) {
        println!(
            "no target is called {unknown}; there are: {}",
            TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(" ")
        );
        std::process::exit(2);
    }
    let seconds: u64 = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let mut rng = rand::rng();
    for Target { name, seeds, run } in TARGETS.iter().filter(|target| only.is_empty() || only.contains(&target.name)) {
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
