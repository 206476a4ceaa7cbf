//! A certificate authority for one test, made with `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use dtorrent_peers::process::find;

pub struct Certificates {
    pub ca: PathBuf,
    /// Creates a certificate for 127.0.0.1 and localhost.
    pub server: PathBuf,
    pub server_key: PathBuf,
    pub client: PathBuf,
    pub client_key: PathBuf,
}

impl Certificates {
    pub fn make(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let file = |name: &str| folder.join(name);
        let path = |name: &str| file(name).to_string_lossy().into_owned();
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
        let mut arguments = vec!["req", "-x509", "-days", "2", "-subj", "/CN=a test's authority"];
        arguments.extend(new_key);
        arguments.extend(["-keyout", &ca_key, "-out", &ca]);
        openssl(&arguments);
        for (name, extensions) in [
            ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n"),
            ("client", "subjectAltName=DNS:bridge\nextendedKeyUsage=clientAuth\n"),
        ] {
            let [key, request, certificate, more] =
                ["key", "csr", "pem", "ext"].map(|end| path(&format!("{name}.{end}")));
            std::fs::write(&more, extensions).unwrap();
            let subject = format!("/CN={name}");
            let mut arguments = vec!["req", "-subj", &subject, "-keyout", &key, "-out", &request];
            arguments.extend(new_key);
            openssl(&arguments);
            let signed_by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", "2", "-extfile", &more];
            let mut arguments = vec!["x509", "-req", "-in", &request, "-out", &certificate];
            arguments.extend(signed_by);
            openssl(&arguments);
        }
        Self {
            ca: file("ca.pem"),
            server: file("server.pem"),
            server_key: file("server.key"),
            client: file("client.pem"),
            client_key: file("client.key"),
        }
    }
}

/// Runs openssl and returns its output.
pub fn openssl(arguments: &[&str]) -> String {
    let output = Command::new(find("openssl", "openssl").unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
