//! The ids of commands: a repetition is answered again, another command under the same id is refused.

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use serde_json::{Value, json};

use crate::harness::http::request;
use crate::harness::recorder::{Command, Message, error_code};
use crate::harness::{Setup, World, can_run};

const TOKEN: &str = "the token of these tests";

/// Sends a command whose id has `count` results already, and returns the next one.
async fn repeat(world: &World, topic: &str, body: &Value, count: usize) -> Value {
    let id = body["id"].as_str().unwrap().to_owned();
    world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body.to_string())).await;
    let is_result = |m: &&Message| m.topic == "dtorrent/home/result" && m.json()["id"] == id;
    let find = |all: &[Message]| all.iter().filter(is_result).nth(count).map(Message::json);
    world.recorder.wait_for(&format!("result {count} of {id}"), find).await
}

fn assert_is_taken(result: &Value) {
    assert_eq!((&result["status"], error_code(result)), (&json!("error"), &json!("bad_request")), "{result}");
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("is taken"), "{message}");
}

#[tokio::test]
async fn another_command_under_a_known_id_is_refused_and_the_first_is_still_answered() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"");
    let contents = [1, 2].map(|number| Content::file(&format!("{number}.iso"), 50_000, number));
    let mut world = World::seeding(Setup { http, ..Setup::default() }, &contents).await;
    let [one, two] = [0, 1].map(|number| contents[number].hash.to_string());
    let label = format!("home/torrent/{one}/command/label");
    let first = world.recorder.command(&label, json!({"id": "job", "label": "first"})).await;
    assert_eq!(first["status"], "ok", "{first}");

    let others = [
        (label.clone(), json!({"id": "job", "label": "second"})),
        (label.clone(), json!({"id": "job", "label": "first", "dry_run": true})),
        // The same body: another torrent, another verb, a verb that does not exist, no torrent.
        (format!("home/torrent/{two}/command/label"), json!({"id": "job", "label": "first"})),
        (format!("home/torrent/{one}/command/pause"), json!({"id": "job", "label": "first"})),
        (format!("home/torrent/{one}/command/explode"), json!({"id": "job", "label": "first"})),
        ("home/command/label".to_owned(), json!({"id": "job", "label": "first"})),
    ];
    let mut count = 1;
    for (topic, body) in &others {
        assert_is_taken(&repeat(&world, topic, body, count).await);
        count += 1;
    }
    assert_eq!(world.home.get(contents[0].hash, "d.custom1").await.unwrap(), "first");

    // The same command, written otherwise: other order, blanks, time to live.
    let again = json!({"ttl": "60s", "label": "first", "id": "job"});
    assert_eq!(repeat(&world, &label, &again, count).await, first);
    count += 1;

    world.bridge().stop().await;
    world.bridge().restart();
    assert_is_taken(&repeat(&world, &others[0].0, &others[0].1, count).await);
    assert_eq!(repeat(&world, &label, &again, count + 1).await, first);
    count += 2;

    // Over HTTP it is the same log.
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("Authorization", authorization.as_str())];
    let path = "/api/v1/servers/home/commands/label";
    let with = |hash: &str, label: &str| json!({"id": "job", "hashes": [hash], "label": label}).to_string();
    let answer = request(port, "POST", path, &headers, with(&one, "third").as_bytes()).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_is_taken(&answer.json());
    assert_eq!(world.recorder.results("job").len(), count, "the refusal is for its sender alone");
    assert_eq!(world.home.get(contents[0].hash, "d.custom1").await.unwrap(), "first");
}

#[tokio::test]
async fn who_waits_for_a_running_command_does_not_get_the_refusal_of_another_under_its_id() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"");
    let content = Content::file("1.iso", 50_000, 1);
    let mut world = World::seeding(Setup { http, ..Setup::default() }, [&content]).await;
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("Authorization", authorization.as_str())];
    let path = "/api/v1/servers/home/commands/label";
    let body = |label: &str| json!({"id": "slow", "hashes": [content.hash.to_string()], "label": label}).to_string();
    let (right, wrong) = (body("right"), body("wrong"));
    let (home, bridge) = (&mut world.home, world.bridge.as_mut().unwrap());
    // rTorrent stands still, so the command is under way until it goes on.
    home.process().pause().unwrap();
    let refused = async {
        bridge.wait_for_log("command repeated, it is being executed").await;
        let refused = request(port, "POST", path, &headers, wrong.as_bytes()).await;
        home.process().unpause().unwrap();
        refused
    };
    let post = || request(port, "POST", path, &headers, right.as_bytes());
    let (first, again, refused) = tokio::join!(post(), post(), refused);
    assert_is_taken(&refused.json());
    assert_eq!((first.status, &first.json()["status"]), (200, &json!("ok")), "{}", first.body);
    assert_eq!(again.body, first.body);
    assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), "right");
}
