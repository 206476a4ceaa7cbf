//! Everything on one machine for a while: a broker, two rTorrents that really move data, the bridge between.
pub mod content;
pub mod mosquitto;
pub mod process;
pub mod rtorrent;

#[cfg(test)]
mod tests {
    use super::content::Content;
    use super::*;

    #[tokio::test]
    async fn data_moves_between_two_rtorrents() {
        let folder = tempfile::tempdir().unwrap();
        let options = rtorrent::Options::default();
        let seeder = rtorrent::Rtorrent::start(&folder.path().join("s"), &options).await.unwrap();
        let tcp = rtorrent::Options { listen: rtorrent::Listen::Tcp, ..options };
        let leecher = rtorrent::Rtorrent::start(&folder.path().join("l"), &tcp).await.unwrap();
        let content = Content::file("a <b> & c.bin", 300_000, 7);
        content.write_to(&seeder.downloads).unwrap();
        let hash = seeder.load(&content.torrent, true).await.unwrap();
        seeder.shows(hash, "d.complete", "1").await.unwrap();
        seeder.shows(hash, "d.name", "a <b> & c.bin").await.unwrap();
        leecher.load(&content.torrent, true).await.unwrap();
        leecher.add_peer(hash, seeder.port).await.unwrap();
        leecher.shows(hash, "d.complete", "1").await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_program_comes_back_at_the_same_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut broker = mosquitto::Mosquitto::start(&folder.path().join("m"), &Default::default()).await.unwrap();
        broker.process().kill().unwrap();
        broker.start_again().await.unwrap();
        let mut client = rtorrent::Rtorrent::start(&folder.path().join("r"), &Default::default()).await.unwrap();
        let hash = client.load(&Content::file("x", 1000, 1).torrent, false).await.unwrap();
        client.act(hash, "d.save_full_session", &[]).await.unwrap();
        client.process().kill().unwrap();
        client.start_again().await.unwrap();
        assert_eq!(client.hashes().await.unwrap(), [hash]);
    }
}
