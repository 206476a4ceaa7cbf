//! Whatever is added: `ok` and the client has exactly that, or an error and the client has nothing new.
//!
//! - `ADDS=2000` sends more than usual,
//! - `ADDS_SEED=7` sends others. The variables do not begin with `DTORRENT_`, which the bridge reads as its config.

mod grammar;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::rtorrent::{Argument, Rtorrent};
use percent_encoding::percent_decode_str;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;

use self::grammar::{OddAdd, Wish, odd_add};
use crate::harness::recorder::{Command, Message, Recorder, error_code};
use crate::harness::{Setup, World, can_run};

/// Adds of a run, unless `ADDS` says otherwise.
const ADDS: usize = 200;
/// Adds that are sent at once.
const BATCH: usize = 20;
/// Adds after which the recorder begins anew, so that it does not hold, and in the end validate, everything.
const ADDS_RECORDED: usize = 200;
/// Maximum time for the results of one batch: a magnet link that does not appear takes five seconds by itself.
const BATCH_TIMEOUT: Duration = Duration::from_secs(120);

fn number_from(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test]
async fn an_add_is_ok_and_shown_as_asked_or_an_error_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let seed = number_from("ADDS_SEED").unwrap_or(1);
    let adds = number_from("ADDS").unwrap_or(ADDS);
    println!("seed {seed}: repeat with ADDS_SEED={seed} ADDS={adds}");
    let mut world = World::running(Setup::default()).await;
    let mut rng = StdRng::seed_from_u64(seed as u64);
    let (mut failures, mut added) = (Vec::new(), 0);
    for first in (0..adds).step_by(BATCH) {
        if first % ADDS_RECORDED == 0 && first > 0 {
            world.recorder = Recorder::listen(world.broker.port).await;
        }
        let batch: Vec<OddAdd> =
            (first..adds.min(first + BATCH)).map(|place| odd_add(&mut rng, place, &world.home.downloads)).collect();
        let results = send(&world.recorder, &batch).await;
        added += check(&world.home, &batch, &results, &mut failures).await;
        erase_all(&world.home).await;
    }
    assert!(failures.is_empty(), "{} of {adds} adds with seed {seed}:\n{}", failures.len(), failures.join("\n"));
    // A grammar of which nothing is accepted, or everything, tests little.
    assert!((adds / 10..adds).contains(&added), "{added} of {adds} were added");
}

/// Sends all adds and returns their results by id.
async fn send(recorder: &Recorder, batch: &[OddAdd]) -> BTreeMap<String, Value> {
    let mark = recorder.mark();
    for add in batch {
        recorder.send(Command::new("dtorrent/home/command/add", add.body.to_string())).await;
    }
    let all_results = |all: &[Message]| {
        let results = all[mark..].iter().filter(|message| message.topic == "dtorrent/home/result").map(Message::json);
        let by_id: BTreeMap<String, Value> =
            results.map(|result| (result["id"].as_str().unwrap().to_owned(), result)).collect();
        (by_id.len() == batch.len()).then_some(by_id)
    };
    recorder.wait_within(BATCH_TIMEOUT, "the results of all adds", all_results).await
}

/// Compares the results with what rTorrent has; returns how many were added.
async fn check(
    home: &Rtorrent,
    batch: &[OddAdd],
    results: &BTreeMap<String, Value>,
    failures: &mut Vec<String>,
) -> usize {
    let shown: BTreeSet<InfoHash> = home.hashes().await.unwrap().into_iter().collect();
    let mut expected = BTreeSet::new();
    for add in batch {
        let result = &results[add.body["id"].as_str().unwrap()];
        if result["status"] != "ok" {
            continue;
        }
        let hash: InfoHash = result["results"][0]["hash"].as_str().unwrap().parse().unwrap();
        let difference = match shown.contains(&hash) {
            true => difference(home, hash, &add.wish).await,
            false => Some("rTorrent does not have it".to_owned()),
        };
        if let Some(difference) = difference {
            failures.push(format!("ok, but {difference}: {}\n   {result}", description(add)));
        }
        expected.insert(hash);
    }
    let surplus: Vec<&InfoHash> = shown.difference(&expected).collect();
    if !surplus.is_empty() {
        // Not those that were refused before rTorrent was asked.
        let is_asked =
            |result: &Value| !matches!(error_code(result).as_str(), None | Some("bad_request" | "forbidden"));
        let asked = batch.iter().map(|add| (add, &results[add.body["id"].as_str().unwrap()]));
        let asked = asked.filter(|(_, result)| is_asked(result));
        let asked = asked.map(|(add, result)| format!("\n   {}\n      {}", description(add), result["results"][0]));
        let asked: String = asked.collect();
        failures
            .push(format!("{surplus:?} are in rTorrent, which no result says; the failed adds of the batch:{asked}"));
    }
    expected.len()
}

/// Returns how a torrent differs from what was asked for.
async fn difference(home: &Rtorrent, hash: InfoHash, wish: &Wish) -> Option<String> {
    let read = async |getter: &str| home.get(hash, getter).await.unwrap_or_else(|error| error.to_string());
    let (label, state, priority) = (read("d.custom1").await, read("d.state").await, read("d.priority").await);
    let directory = read("d.directory").await;
    let label = percent_decode_str(&label).decode_utf8_lossy();
    let is_there =
        |wanted: &str| directory == *wanted || directory.starts_with(&format!("{}/", wanted.trim_end_matches('/')));
    if label != wish.label.unwrap_or_default() {
        return Some(format!("the label is {label:?}"));
    }
    if state != if wish.start { "1" } else { "0" } {
        return Some(format!("the state is {state}, the message {:?}", read("d.message").await));
    }
    if wish.priority.is_some_and(|wanted| priority != wanted.to_string()) {
        return Some(format!("the priority is {priority}"));
    }
    for (key, value) in &wish.custom {
        let stored = home.rpc.call("d.custom", &[hash.to_rpc().as_str(), key].map(Argument::Text)).await.unwrap();
        if stored != [*value] {
            return Some(format!("the custom value {key} is {stored:?}"));
        }
    }
    (!wish.directory.as_deref().is_none_or(is_there)).then(|| format!("the directory is {directory}"))
}

fn description(add: &OddAdd) -> String {
    let body: String = add.body.to_string().chars().take(600).collect();
    format!("{:?} {body}", add.oddities)
}

async fn erase_all(home: &Rtorrent) {
    for hash in home.hashes().await.unwrap() {
        // Erasing while the content is read can hang this version for ever; what stays "hashing" is stuck instead.
        home.wait_until("the check to be over", async || {
            Ok(home.get(hash, "d.is_hash_checking").await? == "0" && home.get(hash, "d.hashing").await? == "0")
        })
        .await
        .ok();
        for command in ["d.stop", "d.close", "d.erase"] {
            home.act(hash, command, &[]).await.unwrap();
        }
    }
    home.wait_until("an empty list", async || Ok(home.hashes().await?.is_empty())).await.unwrap();
}
