//! Certificates as homes and seedboxes have them: which are accepted, and in which words the others are refused.

use std::path::{Path, PathBuf};

use dtorrent_peers::mosquitto::{self, Mosquitto, Tls};
use dtorrent_peers::process::{Process, find, free_port};
use tokio::net::TcpStream;

use crate::harness::can_run;
use crate::harness::certificates::openssl;
use crate::harness::nats::{self, NatsServer};

/// A server's certificate with its key.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    /// Makes one that has signed itself, with these extensions; without any it is of version 1.
    fn make(folder: &Path, name: &str, extensions: Option<&str>, days: &str) -> Self {
        let [key, request, certificate, more] =
            ["key", "csr", "pem", "ext"].map(|end| folder.join(format!("{name}.{end}")));
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let subject = format!("/CN={name}");
        let mut arguments = vec!["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let files = [text(&key), text(&request), text(&certificate), text(&more)];
        arguments.extend(["-subj", &subject, "-keyout", &files[0], "-out", &files[1]]);
        openssl(&arguments);
        let mut arguments =
            vec!["x509", "-req", "-in", &files[1], "-signkey", &files[0], "-out", &files[2], "-days", days];
        if let Some(extensions) = extensions {
            std::fs::write(&more, extensions).unwrap();
            arguments.extend(["-extfile", &files[3]]);
        }
        openssl(&arguments);
        Self { certificate, key }
    }

    fn fingerprint(&self) -> String {
        let printed =
            openssl(&["x509", "-noout", "-fingerprint", "-sha256", "-in", self.certificate.to_str().unwrap()]);
        format!("sha256:{}", printed.trim().rsplit_once('=').unwrap().1)
    }
}

/// Servers of every kind of peer, all with one certificate.
struct Peers {
    folder: PathBuf,
    mosquitto: Mosquitto,
    nats: NatsServer,
    https: u16,
    _web: Process,
}

impl Peers {
    async fn start(folder: &Path, pair: &Pair) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let Pair { certificate, key } = pair;
        let tls = Tls {
            ca: certificate.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
            client_certificates: false,
        };
        // The others speak TLS 1.3.
        let lines = vec!["tls_version tlsv1.2".to_owned()];
        let options = mosquitto::Options { tls: Some(tls), lines, ..mosquitto::Options::default() };
        let mosquitto = Mosquitto::start(&folder.join("mosquitto"), &options).await.unwrap();
        let lines = format!(
            "jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\ntls {{{{ cert_file: {certificate:?}, key_file: {key:?} }}}}"
        );
        let nats = NatsServer::start_with(&nats::programs()[0], &folder.join("nats"), &lines).await;
        let https = free_port().unwrap();
        let (port, log) = (https.to_string(), folder.join("web.log"));
        let arguments = ["s_server", "-www", "-quiet", "-accept", &port, "-cert", certificate.to_str().unwrap()];
        let arguments = [&arguments[..], &["-key", key.to_str().unwrap()]].concat();
        let mut web = Process::start(&find("openssl", "openssl").unwrap(), &arguments, &log).unwrap();
        web.wait_until_ready(async || TcpStream::connect(("127.0.0.1", https)).await.is_ok()).await.unwrap();
        Self { folder: folder.to_owned(), mosquitto, nats, https, _web: web }
    }

    /// Connects to each of them as `localhost`, with these lines, and returns what `check` says.
    async fn check(&self, lines: &str) -> Vec<String> {
        let nats = self.nats.url().replace("nats://127.0.0.1", "tls://localhost");
        let (mqtt, https) = (self.mosquitto.port, self.https);
        let text = format!(
            "[servers.home]\nurl = \"https://localhost:{https}/RPC2\"\ntimeout = \"500ms\"\n{lines}\n\
             [brokers.mosquitto]\nkind = \"mqtt\"\nurl = \"mqtts://localhost:{mqtt}\"\n{lines}\n\
             [brokers.nats]\nkind = \"nats\"\nurl = \"{nats}\"\n{lines}\n\
             [webhooks.web]\nurl = \"https://localhost:{https}/hook\"\ntimeout = \"500ms\"\n{lines}\n"
        );
        let config = self.folder.join("dtorrent.toml");
        std::fs::write(&config, text).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let output = command.args(["check", "--connect", "--config"]).arg(&config).output().await.unwrap();
        let printed = [output.stdout, output.stderr].concat();
        String::from_utf8(printed).unwrap().lines().map(str::to_owned).collect()
    }
}

fn ca_file(certificate: &Path) -> String {
    format!("ca_file = {certificate:?}")
}

#[tokio::test]
async fn a_certificate_that_the_config_has_itself_is_accepted_whatever_is_in_it() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let authority = Some("basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:localhost\n");
    let kinds = [
        ("authority", authority),
        ("nameless", Some("basicConstraints=CA:FALSE\n")),
        ("elsewhere", Some("basicConstraints=CA:TRUE\nsubjectAltName=DNS:elsewhere.test\n")),
        ("version-1", None),
    ];
    let other = Pair::make(folder, "other", authority, "2");
    for (name, extensions) in kinds {
        let pair = Pair::make(folder, name, extensions, "2");
        let peers = Peers::start(&folder.join(name), &pair).await;
        let (own, wrong) = (pair.fingerprint(), other.fingerprint());
        for lines in [
            ca_file(&pair.certificate),
            format!("tls_fingerprint = \"{own}\""),
            format!("tls_fingerprint = [\"{wrong}\", \"{}\"]", own.replace(':', "").replace("sha256", "sha256:")),
        ] {
            let said = peers.check(&lines).await;
            let is_refused = said.iter().any(|line| line.contains("TLS") || line.contains("certificate"));
            assert!(!is_refused, "{name}, {lines}: {said:#?}");
            for broker in ["broker mosquitto: ", "broker nats: "] {
                let line = said.iter().find(|line| line.starts_with(broker));
                assert!(line.is_some_and(|line| line.contains("accepts this login")), "{name}, {lines}: {said:#?}");
            }
        }
        for lines in [ca_file(&other.certificate), format!("tls_fingerprint = \"{wrong}\""), String::new()] {
            let said = peers.check(&lines).await;
            let printed = own.to_lowercase().replace(':', "").replace("sha256", "sha256:");
            let refused = said.iter().filter(|line| line.contains(&printed));
            assert_eq!(refused.count(), 4, "{name}, {lines}: {said:#?}");
        }
    }
}

#[tokio::test]
async fn a_certificate_is_refused_in_the_same_words_by_every_kind_of_peer() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let name = "subjectAltName=DNS:localhost\n";
    let expired = Pair::make(folder, "expired", Some(name), "-1");
    let unknown = Pair::make(folder, "unknown", Some(name), "2");
    let (by_itself, by_nobody) = (ca_file(&expired.certificate), String::new());
    for (pair, lines, reason) in [
        (&expired, by_itself, "the server's certificate has expired"),
        (&unknown, by_nobody, "the server's certificate is not signed by a trusted authority: set `ca_file`"),
    ] {
        let peers = Peers::start(&folder.join(reason.len().to_string()), pair).await;
        let said = peers.check(&lines).await;
        let lines: Vec<&String> = said.iter().filter(|line| line.contains(&format!("TLS: {reason}"))).collect();
        assert_eq!(lines.len(), 4, "{said:#?}");
        assert!(lines.iter().all(|line| line.contains("accept exactly this certificate with `tls_fingerprint")));
        assert!(
            !said.iter().any(|line| line.contains("InvalidCertificate") || line.contains("invalid peer")),
            "{said:#?}"
        );
    }
}
