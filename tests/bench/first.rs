//! The initial snapshot: from the start of the process to the last `added` at a broker.
//!
//! The baseline is one raw call for the same columns, and then a bare publisher that sends the same topics and bodies as
//! the bridge, with as many in flight.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, Event, EventLoop, Incoming, MqttOptions};

use crate::drain::publish;
use crate::listing::COLUMNS;
use crate::programs::{Bridge, Config, TIMEOUT};
use crate::rtorrents::{RtorrentPair, listing_request, programs, raw_exchange};
use crate::table::{Line, Measured, median, millis, short};

/// The trackers of a torrent in one text, as the adapter requests them.
const TRACKERS: &str = "cat=\"$t.multicall=d.hash=,t.is_enabled=,t.url=,cat={|||}\"";

/// Measures the initial snapshot alone, without transfers.
pub async fn run() -> anyhow::Result<Vec<Line>> {
    const TORRENTS: usize = 5_000;
    const ROUNDS: usize = 7;
    programs()?;
    let folder = tempfile::tempdir_in(".")?;
    let lines = ["log_dest none", "max_queued_messages 1000000"].map(str::to_owned).to_vec();
    let broker =
        Mosquitto::start(&folder.path().join("broker"), &mosquitto::Options { lines, ..Default::default() }).await?;
    let pair = RtorrentPair::start(folder.path(), TORRENTS, 0).await?;
    let config = |round| {
        let servers = vec![("home".to_owned(), pair.home.url())];
        Config::new(&folder.path().join(format!("first-{round}")), servers, broker.url())
    };
    let configs: Vec<Config> = (0..ROUNDS).map(config).collect();
    Ok(vec![initial_snapshot(&pair, &broker, &configs, TORRENTS).await?])
}

pub async fn initial_snapshot(
    pair: &RtorrentPair,
    broker: &Mosquitto,
    configs: &[Config],
    torrents: usize,
) -> anyhow::Result<Line> {
    let columns: Vec<&str> = COLUMNS.iter().copied().chain([TRACKERS]).collect();
    let request = listing_request(&columns);
    let (mut of_bridge, mut of_bare, mut ratios, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (round, config) in configs.iter().enumerate() {
        // Otherwise each run would begin by clearing the states of the previous one.
        let config = Config { broker_lines: format!("prefix = \"first-{round}\""), ..config.clone() };
        let filter = format!("first-{round}/#");
        let mut listener = Listener::start(broker, &filter).await?;
        let bridge = Bridge::start(&config)?;
        let (last, messages) = listener.until_added(torrents).await?;
        let bridge_took = last - bridge.started;
        bridge.stop().await?;
        bytes = messages.iter().map(|(_, body)| body.len()).sum();

        // The baseline has a subscriber as well.
        let listening = Listener::start(broker, &filter).await?;
        let began = Instant::now();
        raw_exchange(&pair.home.rpc, &request).await?;
        let asked = began.elapsed();
        let listening = listening.drain();
        publish(messages, broker.port).await?;
        let bare_took = began.elapsed();
        drop(listening);
        eprintln!("  bridge {bridge_took:?}, bare {bare_took:?} of which asking {asked:?}");
        of_bridge.push(bridge_took.as_secs_f64());
        of_bare.push(bare_took.as_secs_f64());
        ratios.push(bridge_took.as_secs_f64() / bare_took.as_secs_f64());
    }
    Ok(Line {
        what: format!("initial snapshot of {torrents}: start to last `added`"),
        figure: millis(Duration::from_secs_f64(median(of_bridge))),
        baseline: format!(
            "one raw call, a bare publisher of {} MB: {}",
            short(bytes as f64 / 1e6),
            millis(Duration::from_secs_f64(median(of_bare)))
        ),
        measured: Measured::at_most(median(ratios), 1.3, "×"),
        reason: "the state is made and synced, trackers are a second listing, each event is on the disk before it is sent",
    })
}

/// A subscriber at a broker.
pub struct Listener {
    events: EventLoop,
    _client: AsyncClient,
}

impl Listener {
    pub async fn start(broker: &Mosquitto, filter: &str) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new(format!("listener-{}", rand::random::<u32>()), "127.0.0.1", broker.port);
        options.set_max_packet_size(Some(16 << 20));
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, mut events) = AsyncClient::new(options, 100);
        client.try_subscribe(filter, QoS::AtMostOnce)?;
        while !matches!(events.poll().await?, Event::Incoming(Incoming::SubAck(_))) {}
        Ok(Self { events, _client: client })
    }

    /// Returns topic and body of the next message that is not retained.
    pub async fn next(&mut self) -> anyhow::Result<(String, Bytes)> {
        loop {
            if let Event::Incoming(Incoming::Publish(publish)) = self.events.poll().await?
                && !publish.retain
            {
                return Ok((String::from_utf8_lossy(&publish.topic).into_owned(), publish.payload));
            }
        }
    }

    /// Returns the time of the `count`-th `added`, and all messages up to it.
    async fn until_added(&mut self, torrents: usize) -> anyhow::Result<(Instant, Vec<(String, Bytes)>)> {
        let (mut messages, mut added) = (Vec::new(), 0);
        let all = async {
            while added < torrents {
                let message = self.next().await?;
                added += usize::from(message.0.ends_with("/event/added"));
                messages.push(message);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(TIMEOUT, all).await.context("not all torrents are published")??;
        ensure!(added == torrents, "{added} torrents were published");
        Ok((Instant::now(), messages))
    }

    /// Keeps receiving until it is dropped.
    fn drain(mut self) -> tokio_util::task::AbortOnDropHandle<()> {
        #[allow(clippy::disallowed_methods, reason = "it ends with its handle")]
        let task = tokio::spawn(async move { while self.next().await.is_ok() {} });
        tokio_util::task::AbortOnDropHandle::new(task)
    }
}

/// Measures the size of rTorrent's answers to the bridge with twenty thousand torrents.
pub async fn large() -> anyhow::Result<Vec<Line>> {
    const TORRENTS: usize = 20_000;
    programs()?;
    let folder = tempfile::tempdir_in(".")?;
    let pair = RtorrentPair::start(folder.path(), TORRENTS, 0).await?;
    let answer = raw_exchange(&pair.home.rpc, &listing_request(COLUMNS)).await?;
    let config = Config::new(
        &folder.path().join("bridge"),
        vec![("home".to_owned(), pair.home.url())],
        "mqtt://127.0.0.1:1".to_owned(),
    );
    let mut bridge = Bridge::start(&config)?;
    bridge
        .until("all to be published", async |bridge| {
            Ok(bridge.metric("dtorrent_torrents", &[]).await? as usize == TORRENTS)
        })
        .await?;
    bridge.stop().await?;
    Ok(vec![Line {
        what: format!("answer of a real rTorrent with {TORRENTS}, all columns"),
        figure: format!("{} MB", short(answer.len() as f64 / 1e6)),
        baseline: "rTorrent aborts at 104.9 MB".to_owned(),
        measured: Measured::at_most(answer.len() as f64 / 1e6, 64.0, " MB"),
        reason: "",
    }])
}
