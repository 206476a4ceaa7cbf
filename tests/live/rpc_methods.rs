//! The methods that `rpc` may call, on a real rTorrent.

use dtorrent::clients::rtorrent::settings::AllowedMethod;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::Argument;
use serde_json::{Value, json};

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn no_method_that_rpc_may_call_runs_a_command_or_ends_rtorrent() {
    if !can_run() {
        return;
    }
    let world = World::new(Setup::default()).await;
    let content = Content::file("target.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let listed = world.home.rpc.call("system.listMethods", &[]).await.unwrap();
    let allowed: Vec<&str> =
        listed.iter().filter_map(|name| AllowedMethod::parse(name).ok()).map(|method| method.as_str()).collect();
    assert!(allowed.len() > 200, "{} of {}", allowed.len(), listed.len());

    let hash = content.hash.to_rpc();
    let marker = world.folder.join("marker");
    let commands = [
        format!("execute.throw=touch,{}", marker.display()),
        format!("$execute.capture={{touch,{}}}", marker.display()),
        format!("((execute.throw,touch,{}))", marker.display()),
    ];
    for method in &allowed {
        let target = match method.split('.').next().unwrap() {
            "f" => format!("{hash}:f0"),
            "t" => format!("{hash}:t0"),
            "p" => format!("{hash}:p{}", "0".repeat(40)),
            "d" => hash.clone(),
            _ => String::new(),
        };
        for command in &commands {
            // Most answer with a fault, as the text is no value of theirs.
            drop(world.home.rpc.call(method, &[&target, command].map(|text| Argument::Text(text))).await);
            drop(world.home.rpc.call(method, &[&target, "1", command].map(Argument::Text)).await);
            assert!(!marker.try_exists().unwrap(), "{method} ran a command");
        }
        assert!(world.home.rpc.call("system.pid", &[Argument::Text("")]).await.is_ok(), "{method} ended rTorrent");
    }
}

#[tokio::test]
async fn a_method_that_could_run_a_program_is_refused_by_the_config_and_by_the_command() {
    if !can_run() {
        return;
    }
    let setup = |rpc: &str| Setup {
        sink: "commands = [\"*\", \"rpc\"]".to_owned(),
        server: format!("rpc = [\"{rpc}\"]"),
        ..Setup::default()
    };
    let mut world = World::running(setup("system.pid")).await;
    let ask = |method: &str| json!({"method": method, "params": ["x", "execute.throw=true"]});
    for method in ["p.call_target", "system.pid2", "execute.throw", "d.erase"] {
        let result = world.recorder.command("home/command/rpc", ask(method)).await;
        assert_eq!(error_code(&result), "forbidden", "{result}");
    }
    let pid = world.recorder.command("home/command/rpc", json!({"method": "system.pid"})).await;
    assert_eq!(pid["value"], Value::from(world.home.process().pid()), "{pid}");

    let url = world.home.url();
    let world = World::new(setup("p.call_target")).await;
    world.write_config(&[("home", &url)]);
    let (code, _, said) = world.ask(&["check"], &[]).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("servers.home.rpc") && said.contains("runs commands"), "{said}");
}
