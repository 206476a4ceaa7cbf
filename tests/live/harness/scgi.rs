//! A proxy in front of rTorrent that rewrites requests, so that rTorrent answers without executing what was requested, and
//! hides methods.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Replacements in the body of each request, applied in order.
type Replacements = Vec<(&'static str, &'static str)>;

pub struct ScgiProxy {
    pub address: SocketAddr,
    replacements: Arc<Mutex<Replacements>>,
    /// Methods that rTorrent neither lists nor knows.
    hidden: Arc<Mutex<&'static [&'static str]>>,
    task: tokio::task::JoinHandle<()>,
}

impl ScgiProxy {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replacements = Arc::<Mutex<Replacements>>::default();
        let hidden = Arc::<Mutex<&[&str]>>::default();
        let of_task = (Arc::clone(&replacements), Arc::clone(&hidden));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (replacements, hidden) = of_task.clone();
                tokio::spawn(async move {
                    // Either side may close at any time.
                    exchange(near, target, &replacements, &hidden).await.ok();
                });
            }
        });
        Self { address, replacements, hidden, task }
    }

    /// Makes rTorrent one that does not have these methods, each of at least four letters.
    pub fn hide(&self, methods: &'static [&'static str]) {
        *self.hidden.lock().unwrap() = methods;
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

async fn exchange(
    mut near: TcpStream,
    target: SocketAddr,
    replacements: &Mutex<Replacements>,
    hidden: &Mutex<&'static [&'static str]>,
) -> std::io::Result<()> {
    let body = read_body(&mut near).await?;
    let body = replacements.lock().unwrap().iter().fold(body, |body, (from, to)| body.replace(from, to));
    let hidden = *hidden.lock().unwrap();
    let body = hidden.iter().fold(body, |body, method| body.replace(method, &unknown(method)));
    let headers = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
    let mut far = TcpStream::connect(target).await?;
    far.write_all(format!("{}:{headers},{body}", headers.len()).as_bytes()).await?;
    if hidden.is_empty() {
        tokio::io::copy(&mut far, &mut near).await?;
        return near.shutdown().await;
    }
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await?;
    for method in hidden {
        let (known, unknown) = (format!("<string>{method}</string>"), format!("<string>{}</string>", unknown(method)));
        let found: Vec<usize> = memchr::memmem::find_iter(&answer, &known).collect();
        for start in found {
            answer[start..start + unknown.len()].copy_from_slice(unknown.as_bytes());
        }
    }
    near.write_all(&answer).await?;
    near.shutdown().await
}

/// Returns a name of the same length that no method has.
fn unknown(method: &str) -> String {
    format!("no_{}", "x".repeat(method.len() - 3))
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
