//! The ports that the bridge listens on.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::store::SqliteStore;

/// Binds the port that `key` of the config names.
///
/// # Errors
/// The text names the key, and what may hold the port: a second bridge of the same config shows by its lock.
pub(super) async fn bind(key: &str, address: SocketAddr, data_dir: &Path) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let reason = bound.as_ref().err().map(|error| reason(error.kind(), data_dir)).unwrap_or_default();
    bound.with_context(|| format!("{key}: cannot listen on {address}: {reason}"))
}

fn reason(kind: ErrorKind, data_dir: &Path) -> String {
    match kind {
        ErrorKind::AddrInUse if SqliteStore::is_in_use(data_dir) => {
            let data_dir = data_dir.display();
            format!("another dtorrent is running with the same data_dir ({data_dir}); stop it first")
        }
        ErrorKind::AddrInUse => {
            "another program uses this port, perhaps a dtorrent with another data_dir; stop it, or set another port"
                .to_owned()
        }
        ErrorKind::AddrNotAvailable => "this machine does not have the address; set one of its own".to_owned(),
        ErrorKind::PermissionDenied => "this user may not use the port; set one above 1023".to_owned(),
        _ => "the system refuses".to_owned(),
    }
}
