//! An nginx in front of an rTorrent, with `/RPC2`, a password and TLS, or in front of another server.

use std::path::Path;

use dtorrent_peers::process::{Process, find, free_port};
use dtorrent_peers::rtorrent::Address;
use tokio::net::TcpStream;

use super::certificates::{Certificates, openssl};

/// The login that `/RPC2` needs.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "secret";

pub struct Nginx {
    pub port: u16,
    _process: Process,
}

impl Nginx {
    /// Passes `/RPC2` on to the SCGI of an rTorrent, over TLS if there are certificates.
    pub async fn start(folder: &Path, rtorrent: &Address, certificates: Option<&Certificates>) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let passwords = folder.join("passwords");
        let hash = openssl(&["passwd", "-apr1", PASSWORD]);
        std::fs::write(&passwords, format!("{USER}:{}\n", hash.trim())).unwrap();
        let target = match rtorrent {
            Address::Unix(socket) => format!("unix:{}", socket.display()),
            Address::Tcp(address) => address.to_string(),
        };
        let location = format!(
            "location /RPC2 {{\n\
               auth_basic rtorrent; auth_basic_user_file {};\n\
               include /etc/nginx/scgi_params; scgi_pass {target};\n\
             }}",
            passwords.display()
        );
        Self::start_with(folder, &location, certificates).await
    }

    /// Terminates TLS in front of a plain HTTP server.
    pub async fn in_front_of(folder: &Path, port: u16, certificates: &Certificates) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let location = format!("location / {{ proxy_pass http://127.0.0.1:{port}; }}");
        Self::start_with(folder, &location, Some(certificates)).await
    }

    /// Passes WebSocket connections with `token=…` in their query on to a broker, and refuses others.
    pub async fn with_token(folder: &Path, port: u16, token: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let location = format!(
            "location /mqtt {{\n\
               if ($args !~ \"(^|&)token={token}(&|$)\") {{ return 403; }}\n\
               proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n\
               proxy_pass http://127.0.0.1:{port};\n\
             }}"
        );
        Self::start_with(folder, &location, None).await
    }

    async fn start_with(folder: &Path, location: &str, certificates: Option<&Certificates>) -> Self {
        let port = free_port().unwrap();
        let (ssl, tls) = match certificates {
            Some(Certificates { server, server_key, .. }) => {
                (" ssl", format!("ssl_certificate {}; ssl_certificate_key {};", server.display(), server_key.display()))
            }
            None => ("", String::new()),
        };
        let folder_text = folder.display();
        let text = format!(
            "daemon off; master_process off; pid {folder_text}/pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
               access_log off; client_body_temp_path {folder_text}/body; proxy_temp_path {folder_text}/proxy;\n\
               fastcgi_temp_path {folder_text}/fastcgi; uwsgi_temp_path {folder_text}/uwsgi; scgi_temp_path {folder_text}/scgi;\n\
               server {{ listen 127.0.0.1:{port}{ssl}; {tls}\n\
                 {location}\n\
             }} }}\n",
        );
        let config = folder.join("nginx.conf");
        std::fs::write(&config, text).unwrap();
        let arguments = ["-p", &folder.to_string_lossy(), "-c", &config.to_string_lossy(), "-e", "stderr"];
        let nginx = find("nginx", "nginx").unwrap();
        let mut process = Process::start(&nginx, &arguments, &folder.join("nginx.log")).unwrap();
        process.wait_until_ready(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await.unwrap();
        Self { port, _process: process }
    }
}
