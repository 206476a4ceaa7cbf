//! Logins, TLS and server lists, and the messages when one of them is wrong.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{all_is_stored, bus_at, label, load_one};
use crate::harness::certificates::Certificates;
use crate::harness::nats::{self, NatsServer, Subscriber, api};
use crate::harness::{World, can_run};

const JETSTREAM: &str = "jetstream {{ store_dir: \"{dir}/store\" }}";

#[tokio::test]
async fn each_kind_of_login_works_and_a_wrong_secret_is_reported_but_not_printed() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let user = KeyPair::new_user();
        let seed_file = folder.path().join("seed.nk");
        std::fs::write(&seed_file, user.seed().unwrap()).unwrap();
        let by_nkey = format!("authorization {{{{ users = [{{{{ nkey: {} }}}}] }}}}", user.public_key());
        for (server_lines, sink_lines) in [
            ("authorization {{ token: \"hunter2\" }}".to_owned(), "token = \"hunter2\"".to_owned()),
            (
                "authorization {{ user: bridge, password: \"hunter2\" }}".to_owned(),
                "username = \"bridge\"\npassword = \"hunter2\"".to_owned(),
            ),
            (by_nkey, format!("nkey_file = {:?}", seed_file.to_str().unwrap())),
        ] {
            let place = tempfile::tempdir().unwrap();
            let lines = format!("{JETSTREAM}\n{server_lines}");
            let server = NatsServer::start_with(&program, place.path(), &lines).await;
            let mut world = World::new(bus_at(&server.url(), &sink_lines)).await;
            world.start_bridge().await;
            let last = world.database().last_seq("home");
            world.database().until("all is delivered", |database| database.cursor("bus", "home") >= last).await;

            let wrong = sink_lines.replace("hunter2", "hunter3");
            if wrong == sink_lines {
                continue;
            }
            let mut world = World::new(bus_at(&server.url(), &wrong)).await;
            world.start_bridge().await;
            world.bridge().wait_for_log("the server refuses the login").await;
            assert_eq!(world.bridge().count_in_log("hunter"), 0, "a secret is in the log");
            let config = world.folder.join("dtorrent.toml");
            let check = Command::new(env!("CARGO_BIN_EXE_dtorrent"))
                .args(["check", "--connect", "--config", config.to_str().unwrap()])
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
            assert!(printed.contains("refuses the login") && !printed.contains("hunter"), "{printed}");
            assert_eq!(check.status.code(), Some(3), "{printed}");
        }
    }
}

#[tokio::test]
async fn tls_works_with_a_private_authority_and_a_client_certificate() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(&folder.path().join("tls"));
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let lines = format!(
            "{JETSTREAM}\ntls {{{{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}}}",
            text(&certificates.server),
            text(&certificates.server_key),
            text(&certificates.ca)
        );
        let server = NatsServer::start_with(&program, folder.path(), &lines).await;
        let sink = format!(
            "ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}",
            text(&certificates.ca),
            text(&certificates.client),
            text(&certificates.client_key)
        );
        for scheme in ["tls", "nats"] {
            let mut world = World::new(bus_at(&format!("{scheme}://localhost:{}", server.port), &sink)).await;
            world.start_bridge().await;
            let last = world.database().last_seq("home");
            world.database().until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        }
        // With `tls://` the bridge sends nothing to a server without TLS, although the server would accept it.
        let plain = NatsServer::start_with(&program, &folder.path().join("plain"), JETSTREAM).await;
        let authority = format!("ca_file = {:?}", text(&certificates.ca));
        let mut world = World::new(bus_at(&format!("nats://localhost:{}", plain.port), &authority)).await;
        world.start_bridge().await;
        world.bridge().wait_for_log("connection failed, retrying").await;
        let subscriber = Subscriber::listen(&plain).await;
        let info = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert_eq!(info["error"]["code"], 404, "{info}");
        // Without the authority the server's certificate is not trusted.
        let mut world = World::new(bus_at(&format!("tls://localhost:{}", server.port), "")).await;
        world.start_bridge().await;
        world.bridge().wait_for_log("the server's certificate is not signed by a trusted authority").await;
    }
}

#[tokio::test]
async fn any_of_several_servers_is_used() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let unused = dtorrent_peers::process::free_port().unwrap();
        let mut setup = bus_at("x", "");
        setup.sink = setup.sink.replace("\"x\"", &format!("[\"nats://127.0.0.1:{unused}\", \"{}\"]", server.url()));
        let mut world = World::new(setup).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        label(&world, hash, "a").await;
        all_is_stored(&world, &subscriber).await;
    }
}

/// Returns a JWT as `nsc` creates it, from subject, issuer and claims.
fn jwt(of: &KeyPair, issuer: &KeyPair, nats: Value, expires: Option<i64>) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims = json!({
        "jti": format!("{:016x}", rand::random::<u64>()), "iat": jiff::Timestamp::now().as_second(),
        "iss": issuer.public_key(), "sub": of.public_key(), "name": "test", "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = json!(expires);
    }
    let signed = format!("{}.{}", encode(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encode(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn a_credentials_file_logs_in_and_an_expired_login_is_reported() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let system = KeyPair::new_account();
        let operator_claims = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
        let operator_jwt = jwt(&operator, &operator, operator_claims, None);
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1});
        let account_jwt = jwt(&account, &operator, json!({"type": "account", "version": 2, "limits": limits}), None);
        let no_jetstream = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1});
        let system_jwt =
            jwt(&system, &operator, json!({"type": "account", "version": 2, "limits": no_jetstream}), None);
        let lines = format!(
            "{JETSTREAM}\noperator: \"{operator_jwt}\"\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{{{ {}: \"{account_jwt}\", {}: \"{system_jwt}\" }}}}",
            system.public_key(),
            account.public_key(),
            system.public_key()
        );
        let server = NatsServer::start_with(&program, folder.path(), &lines).await;
        let creds = |expires| {
            let claims =
                json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
            format!(
                "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
                jwt(&user, &account, claims, expires),
                user.seed().unwrap()
            )
        };
        let file = folder.path().join("bridge.creds");
        std::fs::write(&file, creds(None)).unwrap();
        let sink = format!("creds_file = {:?}", file.to_str().unwrap());
        let mut world = World::new(bus_at(&server.url(), &sink)).await;
        world.start_bridge().await;
        let last = world.database().last_seq("home");
        world.database().until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        world.bridge().stop().await;
        // A login that expires in some seconds.
        std::fs::write(&file, creds(Some(jiff::Timestamp::now().as_second() + 4))).unwrap();
        world.bridge().restart();
        world.bridge().wait_for_log("User Authentication Expired").await;
        assert_eq!(world.bridge().count_in_log("eyJ"), 0, "a secret is in the log");
    }
}
