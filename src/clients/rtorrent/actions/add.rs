//! Adding torrents.
//!
//! Every load answers 0, whatever became of it: only the torrent itself, read afterwards, shows that. A torrent
//! file is loaded stopped, gets what belongs to it, and is then started. A magnet link takes that along as
//! commands, because rTorrent replaces the placeholder when the link is resolved, and forgets what was set.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::Access;
use super::super::calls::Call;
use super::super::probe::{Probe, XmlLibrary};
use super::super::{map, xmlrpc};
use super::custom;
use super::single::{CurrentTorrent, SingleAction};
use super::{EFFECT_INTERVAL, Outcome, check_directory, check_priority, priority_calls};
use crate::model::{Add, AddSource, InfoHash, Metainfo, printable};
use crate::port::{Applied, ClientError};

/// Maximum time for a loaded torrent to appear: a millisecond or two, unless rTorrent is busy.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time between two looks for a loaded torrent.
const LOAD_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Request size that xmlrpc-c accepts by default.
const REQUEST_BYTES_DEFAULT: usize = 512 << 10;
/// Modern versions save each torrent that they load on a thread of its own, which can overwrite a save that is
/// requested meanwhile with the state before. Seen on 0.16.20.
pub(in super::super) const SAVE_DELAY: Duration = Duration::from_millis(300);
/// Begin of the message of a torrent one of whose load commands failed; rTorrent leaves a ghost of it.
const CREATION_FAILED: &str = "Command on torrent creation failed";

impl SingleAction<'_> {
    /// Loads a torrent with its directory, label and priority, and starts it if that is wanted.
    pub(super) async fn add(&self, add: &Add) -> Outcome {
        let access = self.client.access().await;
        let probe = access.probe().await?;
        check(add, &probe)?;
        // rTorrent ignores a second load, and the commands that go with it.
        if access.read_row(self.hash, Vec::new()).await?.is_some() {
            return match self.other_custom(&access, &add.custom).await? {
                None => Ok(Applied::Asked),
                Some(key) => {
                    let reason =
                        format!("the torrent is already there with another custom value `{key}`, and left alone");
                    Err(ClientError::Precondition { reason })
                }
            };
        }
        // rTorrent's own clock, by which its other times are, too.
        let time = access.call(&[Call::global("system.time_seconds")]).await?;
        let now = time.first().and_then(|time| time.as_ref().ok()?.int());
        match &add.source {
            AddSource::Magnet(link) => {
                let load = magnet_call(link, add, now)?;
                let sent = format!("the link by `{}`", load.method);
                access.call_torrent(self.hash, &[load]).await?;
                drop(access);
                self.wait_until_loaded(LOAD_TIMEOUT, &sent, link.contains("&tr=")).await?;
                let access = self.client.access().await;
                if let Some(key) = self.other_custom(&access, &add.custom).await? {
                    drop(access);
                    self.erase().await?;
                    return Err(custom::not_stored(key));
                }
            }
            AddSource::Torrent(file) => {
                self.load_file(access, &probe, file).await?;
                let completed = self.set_up(add, now).await;
                // Half of it would be another torrent than the one that was asked for.
                if let Err(ClientError::Fault { .. } | ClientError::Precondition { .. }) = completed {
                    self.erase().await?;
                }
                completed?;
                if !probe.is_legacy {
                    tokio::time::sleep(SAVE_DELAY).await;
                    let access = self.client.access().await;
                    access.call_torrent(self.hash, &[self.call("d.save_full_session")]).await?;
                }
            }
        }
        Ok(Applied::Asked)
    }

    async fn load_file(&self, access: Access<'_>, probe: &Probe, file: &Bytes) -> Result<(), ClientError> {
        let load = [Call::global("load.raw").bytes(file.clone())];
        // Measured as it will be sent: base64 adds a third.
        let request_bytes = xmlrpc::write(&load).len();
        if request_bytes > probe.request_bytes_max() {
            drop(access);
            return self.load_large(probe, file).await;
        }
        raise_request_limit(&access, probe, request_bytes).await?;
        access.call_torrent(self.hash, &load).await?;
        drop(access);
        let sent = format!("{} bytes by `load.raw`", file.len());
        self.wait_until_loaded(LOAD_TIMEOUT, &sent, names_tracker(file)).await
    }

    /// Waits until rTorrent lists what it was sent; `sent` says what that was, and how.
    pub(super) async fn wait_until_loaded(
        &self,
        timeout: Duration,
        sent: &str,
        names_tracker: bool,
    ) -> Result<(), ClientError> {
        let (until, mut pause) = (Instant::now() + timeout, EFFECT_INTERVAL);
        let row = loop {
            match self.read().await {
                Ok(CurrentTorrent { row, .. }) => break row,
                Err(ClientError::UnknownHash(_)) if Instant::now() < until => {}
                Err(ClientError::UnknownHash(_)) => return Err(self.not_loaded(timeout, sent, names_tracker).await?),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            // Many may wait at once.
            pause = (2 * pause).min(LOAD_PAUSE_MAX);
        };
        // Such a torrent is neither in the view of started nor of stopped ones, and vanishes at the next restart.
        if row.hashing_failed && row.message.starts_with(CREATION_FAILED) {
            self.erase().await?;
            return Err(ClientError::Fault { message: printable(row.message.as_bytes()) });
        }
        Ok(())
    }

    /// Returns the error of a torrent that rTorrent has taken and does not list: what is known, then what to look at.
    async fn not_loaded(&self, timeout: Duration, sent: &str, names_tracker: bool) -> Result<ClientError, ClientError> {
        let access = self.client.access().await;
        let statistics = access.call(&[Call::global("dht.statistics")]).await?;
        let dht = statistics.into_iter().next().and_then(Result::ok);
        let is_without_dht = dht.as_ref().and_then(|dht| dht.member("dht")?.str()) == Some("disable");
        let known = if !names_tracker && is_without_dht {
            "; the torrent names no tracker and its `dht.mode` is `disable`, with which many versions load none"
        } else {
            ""
        };
        let message = format!(
            "it was sent {sent}, answered 0 as always, and did not list {} within {} s{known}. It gives no reason; its \
             log has one, if its config says `log.add_output = \"error\", …`",
            self.hash,
            timeout.as_secs()
        );
        Ok(ClientError::Fault { message })
    }

    async fn erase(&self) -> Result<(), ClientError> {
        let access = self.client.access().await;
        access.call_torrent(self.hash, &[self.call("d.erase")]).await.map(drop)
    }

    /// Sets what belongs to a torrent that was loaded stopped, and starts it if that is wanted.
    async fn set_up(&self, add: &Add, now: Option<i64>) -> Result<(), ClientError> {
        let access = self.client.access().await;
        if !add.custom.is_empty() {
            access.call_torrent(self.hash, &self.set_custom(&add.custom)).await?;
            // Before it is started: what is checked cannot be taken back on every version.
            if let Some(key) = self.other_custom(&access, &add.custom).await? {
                return Err(custom::not_stored(key));
            }
        }
        let label = add.label.as_deref().map(map::encode_label);
        let set = [
            add.directory.as_ref().map(|directory| self.call("d.directory.set").text(directory)),
            label.map(|label| self.call("d.custom1.set").text(label)),
            now.map(|now| self.call("d.custom.set").text("addtime").text(now.to_string())),
        ];
        let mut calls: Vec<Call> = set.into_iter().flatten().collect();
        calls.extend(add.priority.into_iter().flat_map(|priority| priority_calls(self.hash, priority)));
        calls.push(self.call("d.save_full_session"));
        access.call_torrent(self.hash, &calls).await?;
        drop(access);
        if let Some(content) = &add.checked {
            self.check_place(content).await?;
        }
        let begin = match (add.start, &add.checked) {
            (true, _) => "d.start",
            // Only a start makes rTorrent use the resume data of the file; without one it has to read the content.
            (false, Some(_)) => "d.check_hash",
            (false, None) => return Ok(()),
        };
        self.client.access().await.call_torrent(self.hash, &[self.call(begin)]).await?;
        if let Some(content) = &add.checked {
            self.wait_until_found(content, add.start).await?;
        }
        Ok(())
    }
}

/// Checks what this rTorrent would not load, or not keep as it is asked.
pub(super) fn check(add: &Add, probe: &Probe) -> Result<(), ClientError> {
    if let Some(priority) = add.priority {
        check_priority(priority)?;
    }
    if let Some(directory) = &add.directory {
        check_directory(directory)?;
    }
    if matches!(add.hash, InfoHash::V2(_)) {
        return Err(ClientError::Unsupported { what: "load a torrent that is only of version 2".to_owned() });
    }
    custom::check_readable(&add.custom, probe)?;
    match &add.source {
        AddSource::Magnet(link) => magnet_call(link, add, None).map(drop),
        AddSource::Torrent(file) if probe.is_legacy => check_padding(file),
        AddSource::Torrent(_) => Ok(()),
    }
}

/// Refuses padding that is in the torrent several times, which a version that takes it for files cannot open.
fn check_padding(torrent: &[u8]) -> Result<(), ClientError> {
    let files = Metainfo::parse(torrent).map(|metainfo| metainfo.files).unwrap_or_default();
    let mut seen = BTreeSet::new();
    if files.iter().filter(|file| file.is_padding).all(|file| seen.insert(&file.path)) {
        return Ok(());
    }
    let what =
        "open a torrent that has the same padding file several times: this version does not know padding".to_owned();
    Err(ClientError::Unsupported { what })
}

/// Whether a torrent file names a tracker.
pub(super) fn names_tracker(file: &[u8]) -> bool {
    Metainfo::parse(file).is_ok_and(|metainfo| metainfo.tracker.is_some())
}

/// Raises the request limit of xmlrpc-c, which refuses larger requests; TinyXML-2 has none.
async fn raise_request_limit(access: &Access<'_>, probe: &Probe, request_bytes: usize) -> Result<(), ClientError> {
    if probe.xml_library == XmlLibrary::TinyXml2 || request_bytes <= REQUEST_BYTES_DEFAULT {
        return Ok(());
    }
    let wanted = i64::try_from(request_bytes + 4096).unwrap_or(i64::MAX);
    let limits = access.call(&[Call::global("network.xmlrpc.size_limit")]).await?;
    let limit = limits.first().and_then(|limit| limit.as_ref().ok()?.int());
    // Never lowered: somebody may have raised it for a reason.
    if limit.is_some_and(|limit| limit < wanted) {
        let results = access.call(&[Call::global("network.xmlrpc.size_limit.set").int(wanted)]).await?;
        if let Some(Err(fault)) = results.first() {
            return Err(access.client.fault(fault));
        }
    }
    Ok(())
}

/// Returns the call that loads a magnet link, with commands for the torrent that it will become.
///
/// rTorrent runs the commands again when the link is resolved. They are code, so nothing from outside is in
/// them as it came.
fn magnet_call(link: &str, add: &Add, now: Option<i64>) -> Result<Call, ClientError> {
    // Lower case only is what rTorrent knows; anything else it takes for a path, with wildcards.
    let is_link = link.starts_with("magnet:?") && !link.chars().any(|c| c.is_control() || c.is_whitespace());
    if !is_link {
        let reason = "a magnet link begins with `magnet:?` and contains no spaces".to_owned();
        return Err(ClientError::Precondition { reason });
    }
    let is_harmless = |c: char| c.is_alphanumeric() || "/._-+ ".contains(c);
    if add.directory.as_ref().is_some_and(|directory| !directory.chars().all(is_harmless)) {
        let what = "put a magnet link into a directory whose name has characters other than letters, digits, spaces \
                    and ._-+; add its .torrent file instead"
            .to_owned();
        return Err(ClientError::Unsupported { what });
    }
    // rTorrent runs these on the new torrent before it starts, and again when the link is resolved.
    let commands = [
        add.directory.as_ref().map(|directory| format!("d.directory.set=\"{directory}\"")),
        add.label.as_ref().map(|label| format!("d.custom1.set={}", map::encode_label(label))),
        now.map(|now| format!("d.custom.set=addtime,{now}")),
        add.priority.map(|priority| format!("d.priority.set={priority}")),
    ];
    let load = Call::global(if add.start { "load.start" } else { "load.normal" }).text(link);
    let commands = commands.into_iter().flatten().chain(custom::load_commands(&add.custom)?);
    Ok(commands.fold(load, Call::text))
}

#[cfg(test)]
mod tests {
    use super::super::super::calls::Param;
    use super::*;
    use crate::model::CustomValues;

    const HASH: InfoHash = InfoHash::V1([1; 20]);

    fn custom<const N: usize>(values: [(&str, &str); N]) -> CustomValues {
        CustomValues::parse(values.map(|(key, value)| (key.to_owned(), value.to_owned())).into()).unwrap()
    }

    #[test]
    fn rule_7_the_commands_of_a_magnet_link_hold_nothing_that_could_run() {
        let link = "magnet:?xt=urn:btih:0101010101010101010101010101010101010101";
        let add = Add {
            hash: HASH,
            source: AddSource::Magnet(link.to_owned()),
            start: true,
            label: Some("$execute={x}, \"q\"; 🦀".to_owned()),
            directory: Some("/downloads/a b/Ünï-1.x".to_owned()),
            priority: Some(2),
            custom: custom([("b.x", "https://x/?a=1&b={c},d;e|f ☃"), ("a", "")]),
            checked: None,
        };
        let call = magnet_call(link, &add, Some(1_700_000_000)).unwrap();
        assert_eq!(call.method, "load.start");
        let texts = call.params.iter().map(|param| match param {
            Param::Text(text) => text.as_str(),
            Param::Int(_) | Param::Bytes(_) => panic!("only text"),
        });
        let texts = texts.collect::<Vec<_>>();
        assert_eq!(
            texts,
            [
                "",
                link,
                "d.directory.set=\"/downloads/a b/Ünï-1.x\"",
                "d.custom1.set=%24execute%3D%7Bx%7D%2C%20%22q%22%3B%20%F0%9F%A6%80",
                "d.custom.set=addtime,1700000000",
                "d.priority.set=2",
                "d.custom.set=\"a\",\"\"",
                "d.custom.set=\"b.x\",\"https://x/?a=1&b={c},d;e|f ☃\"",
            ]
        );
        for bad in ["/a\"b", "/a\\b", "/$a", "/a,b", "/a;b", "/a{b}", "/a'b", "/a=b", "/a(b)"] {
            let add = Add { directory: Some(bad.to_owned()), ..add.clone() };
            let error = magnet_call(link, &add, None).unwrap_err();
            assert!(matches!(error, ClientError::Unsupported { .. }), "{bad}");
        }
        for bad in ["$execute={id}", "a$b", "a\"", "a\\"] {
            let add = Add { custom: custom([("k", bad)]), ..add.clone() };
            let error = magnet_call(link, &add, None).unwrap_err();
            assert!(matches!(error, ClientError::Unsupported { .. }), "{bad}");
        }
        for bad in ["", "http://x/", "MAGNET:?xt=", "magnet:?xt=\n", "/etc/passwd", "$cat=magnet:?"] {
            assert!(magnet_call(bad, &add, None).is_err(), "{bad}");
        }
    }
}
