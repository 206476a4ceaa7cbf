//! A proxy in front of rTorrent that rewrites requests: rTorrent answers without executing what was requested.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Replacements in the body of each request, applied in order.
type Replacements = Vec<(&'static str, &'static str)>;

pub struct ScgiProxy {
    pub address: SocketAddr,
    replacements: Arc<Mutex<Replacements>>,
    task: tokio::task::JoinHandle<()>,
}

impl ScgiProxy {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replacements = Arc::<Mutex<Replacements>>::default();
        let of_task = Arc::clone(&replacements);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let of_connection = Arc::clone(&of_task);
                tokio::spawn(async move {
                    // Either side may close at any time.
                    exchange(near, target, &of_connection).await.ok();
                });
            }
        });
        Self { address, replacements, task }
    }

    /// Sets what is replaced in requests from now on.
    pub fn replace(&self, replacements: &[(&'static str, &'static str)]) {
        *self.replacements.lock().unwrap() = replacements.to_vec();
    }
}

impl Drop for ScgiProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn exchange(mut near: TcpStream, target: SocketAddr, replacements: &Mutex<Replacements>) -> std::io::Result<()> {
    let body = read_body(&mut near).await?;
    let body = replacements.lock().unwrap().iter().fold(body, |body, (from, to)| body.replace(from, to));
    let headers = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
    let mut far = TcpStream::connect(target).await?;
    far.write_all(format!("{}:{headers},{body}", headers.len()).as_bytes()).await?;
    tokio::io::copy(&mut far, &mut near).await?;
    near.shutdown().await
}

/// Reads one request: a netstring of headers, of which `CONTENT_LENGTH` comes first, and the body.
async fn read_body(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut length = String::new();
    loop {
        match stream.read_u8().await? {
            b':' => break,
            digit => length.push(char::from(digit)),
        }
    }
    let mut headers = vec![0; length.parse::<usize>().unwrap() + 1]; // with the comma
    stream.read_exact(&mut headers).await?;
    let length = headers.split(|byte| *byte == 0).nth(1).unwrap();
    let mut body = vec![0; std::str::from_utf8(length).unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await?;
    Ok(String::from_utf8(body).unwrap())
}
