//! What is asked over HTTP: read from the board, or handed to the same door as commands of brokers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::letters::{Letters, Told};
use crate::commands::{Caller, Envelope, TTL};
use crate::http::{self, Answered, EventsWish, ListWish, Notice, Order};
use crate::live_state::{LiveServer, LiveState};
use crate::model::{InfoHash, ServerName, SinkName, Torrent};
use crate::outbox::{Begin, Heard, Missed, Reader, ReaderParts};
use crate::port::{Clock, CommandAddress, Store};

/// Who asks over HTTP, in the line for whoever checks.
const USER: &str = "http";
/// Beyond its time to live, for the effect to show.
const GRACE: Duration = Duration::from_secs(30);
/// Whatever its time to live, an answer is not waited for longer.
const PATIENCE_MAX: Duration = Duration::from_secs(10 * 60);
/// More events than this, for longer than that, and who listens is cut off: he will not catch up, and knows from
/// where to go on.
const BEHIND_MAX: u64 = 1024;
const BEHIND_FOR: Duration = Duration::from_secs(5);

pub(super) struct Api {
    pub live: Arc<LiveState>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub caller: Arc<Caller>,
    pub letters: Letters,
    pub stop: CancellationToken,
}

#[async_trait]
impl http::Api for Api {
    fn servers(&self) -> Vec<Value> {
        let server = |name: &ServerName| self.live.read(name, |content| server(name, content));
        self.live.names().filter_map(server).collect()
    }

    fn sinks(&self) -> Vec<Value> {
        let sink = |(name, buffer): (&SinkName, &Arc<crate::live_state::ChangeBuffer>)| {
            let report = buffer.last_report();
            let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            json!({
                "name": name,
                "status": if report.is_connected { "online" } else { "offline" },
                "problem": report.problem(),
                "lag_entries": report.lag_entries,
                "lag_seconds": super::report::rounded(lag_seconds),
                "dirty": report.dirty,
                "delivered": report.delivered,
                "rejected": report.rejected,
            })
        };
        self.live.buffers().map(sink).collect()
    }

    fn torrents(&self, server: &ServerName, wish: &ListWish) -> Option<(Vec<Value>, u64)> {
        let now = self.clock.now();
        let ListWish { filter, fields, page, page_size, busiest_first } = wish;
        let matching: Vec<Arc<Torrent>> = self.live.read(server, |content| {
            let matching = content.snapshot.values().filter(|snapshot| filter.matches(&snapshot.torrent, now));
            matching.map(|snapshot| Arc::clone(&snapshot.torrent)).collect()
        })?;
        let total = matching.len() as u64;
        let mut matching = matching;
        if *busiest_first {
            matching.sort_by_key(|torrent| {
                let rate = torrent.download_rate.unwrap_or(0) + torrent.upload_rate.unwrap_or(0);
                (Reverse(torrent.error), Reverse(rate), torrent.finished)
            });
        }
        let skipped = usize::try_from(page.saturating_mul(*page_size)).unwrap_or(usize::MAX);
        let size = usize::try_from(*page_size).unwrap_or(usize::MAX);
        let shown = matching.iter().skip(skipped).take(size).map(|torrent| {
            let mut torrent = serde_json::to_value(&**torrent).expect("a torrent is plain JSON");
            if let (Some(fields), Some(object)) = (fields, torrent.as_object_mut()) {
                object.retain(|key, _| fields.contains(key));
            }
            torrent
        });
        Some((shown.collect(), total))
    }

    fn torrent(&self, server: &ServerName, hash: InfoHash) -> Option<Value> {
        let torrent = self.live.read(server, |content| Some(Arc::clone(&content.snapshot.get(&hash)?.torrent)))??;
        Some(serde_json::to_value(&*torrent).expect("a torrent is plain JSON"))
    }

    async fn command(&self, order: Order) -> Answered {
        let Order { server, hash, verb, body } = order;
        let (Envelope { id, ttl, .. }, _) = Envelope::read(&body);
        let patience = (ttl.unwrap_or(TTL) + GRACE).min(PATIENCE_MAX);
        let address = CommandAddress { server: Some(server), hash, verb };
        let call = self.caller.call(address, body, Some(USER.to_owned()), &self.stop);
        match tokio::time::timeout(patience, call).await {
            Ok(Some(body)) => Answered::Result(body),
            Ok(None) => Answered::Stopping,
            Err(_) => Answered::Running { id: id.map(|id| id.as_str().to_owned()) },
        }
    }

    fn events(&self, wish: EventsWish) -> BoxStream<'static, Notice> {
        let EventsWish { servers, kinds, after } = wish;
        let is_wanted = |name: &&ServerName| servers.as_ref().is_none_or(|servers| servers.contains(*name));
        let reader = Reader::new(ReaderParts {
            live: Arc::clone(&self.live),
            store: Arc::clone(&self.store),
            servers: self.live.names().filter(is_wanted).cloned().collect(),
            events: kinds,
            begin: after.map_or_else(|| Begin::After(BTreeMap::new()), Begin::AfterEvent),
            stop: self.stop.clone(),
        });
        stream::unfold(Some((reader, Pace::default())), next_notice).boxed()
    }

    async fn replay(&self, webhook: &str, ids: Vec<String>) -> Result<Vec<Value>, String> {
        let tried = self.letters.replay(webhook, ids).await.map_err(|error| format!("{error:#}"))?;
        let snapshot = |tried| serde_json::to_value(Told::from(tried)).expect("it is plain JSON");
        Ok(tried.into_iter().map(snapshot).collect())
    }
}

async fn next_notice(listening: Option<(Reader, Pace)>) -> Option<(Notice, Option<(Reader, Pace)>)> {
    let (mut reader, mut pace) = listening?;
    if pace.is_too_slow(reader.behind()) {
        return Some((Notice::End(format!("more than {BEHIND_MAX} events behind")), None));
    }
    let notice = match reader.next().await {
        Ok(Some(Heard::Entry(entry))) => Notice::Event { id: entry.id.to_string(), body: entry.body },
        Ok(Some(Heard::Updated(event))) => Notice::Updated(event.to_json().into()),
        Ok(Some(Heard::Missed(Missed { server, .. }))) => {
            gap(Some(&server), "events were let go before they could be shown")
        }
        Ok(Some(Heard::Elsewhere(reason))) => gap(None, reason),
        Ok(None) => return None,
        Err(error) => return Some((Notice::End(error.to_string()), None)),
    };
    Some((notice, Some((reader, pace))))
}

fn gap(server: Option<&ServerName>, reason: &str) -> Notice {
    Notice::Gap(json!({"server": server, "reason": reason}))
}

/// Whether somebody who listens keeps up. Many events at once are no fault of his, nor is it that he was away.
#[derive(Default)]
struct Pace {
    has_caught_up: bool,
    behind_since: Option<Instant>,
}

impl Pace {
    fn is_too_slow(&mut self, behind: u64) -> bool {
        self.has_caught_up |= behind <= BEHIND_MAX;
        if !self.has_caught_up || behind <= BEHIND_MAX {
            self.behind_since = None;
            return false;
        }
        self.behind_since.get_or_insert_with(Instant::now).elapsed() > BEHIND_FOR
    }
}

fn server(name: &ServerName, content: &LiveServer) -> Value {
    let poll = &content.poll;
    let stats: Value = serde_json::from_slice(&content.stats_body).unwrap_or_default();
    json!({
        "name": name,
        "status": if content.state.is_online { "online" } else { "offline" },
        "problem": poll.failure,
        "poll_age_seconds": poll.last_success.map(|at| super::report::rounded(at.elapsed().as_secs_f64())),
        "torrents": content.snapshot.len(),
        "last_seq": content.last_seq,
        "stats": stats,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_has_caught_up_once_and_is_far_behind_for_long_is_too_slow() {
        let mut pace = Pace::default();
        for (seconds, behind, is_too_slow) in [
            (0, 9000, false),
            (60, 9000, false),
            (60, 0, false),
            (60, 9000, false),
            (4, 9000, false),
            (4, BEHIND_MAX, false),
            (60, BEHIND_MAX + 1, false),
            (6, BEHIND_MAX + 1, true),
        ] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(pace.is_too_slow(behind), is_too_slow, "{seconds} {behind}");
        }
    }
}
