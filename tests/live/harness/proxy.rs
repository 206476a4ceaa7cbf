//! A bad network: a TCP proxy that cuts connections, or answers in the middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Proxy {
    pub address: SocketAddr,
    cut: watch::Sender<()>,
    /// Of each answer only so many bytes get through.
    answer_bytes: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(());
        let answer_bytes = Arc::new(AtomicU64::new(u64::MAX));
        let limit = Arc::clone(&answer_bytes);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cuts, limit) = (cuts.clone(), Arc::clone(&limit));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        () = pass(near, far, &limit) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, answer_bytes, task }
    }

    /// Cuts all connections there are, without a goodbye.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Lets only so many bytes of each connection's answers through from now on, then closes it.
    pub fn truncate_answers(&self, bytes: u64) {
        self.answer_bytes.store(bytes, Ordering::Relaxed);
    }
}

async fn pass(near: TcpStream, far: TcpStream, limit: &AtomicU64) {
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let forward = async {
        drop(tokio::io::copy(&mut from_near, &mut to_far).await);
        drop(to_far.shutdown().await);
        std::future::pending::<()>().await;
    };
    let back = async {
        let mut passed = 0;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from_far.read(&mut buffer).await.unwrap_or(0);
            let room = limit.load(Ordering::Relaxed).saturating_sub(passed);
            let allowed = length.min(usize::try_from(room).unwrap_or(usize::MAX));
            passed += allowed as u64;
            let is_over = length == 0 || allowed < length;
            if to_near.write_all(&buffer[..allowed]).await.is_err() || is_over {
                return;
            }
        }
    };
    tokio::select! {
        () = forward => {}
        () = back => {}
    }
}
