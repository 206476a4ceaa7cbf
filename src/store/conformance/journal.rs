//! The conformance suite of [`Journal`](crate::port::Journal).

use super::*;

#[tokio::test]
async fn entries_are_numbered_without_gaps_and_carry_their_own_ids() {
    on_each(Options::default(), async |store, _| {
        let (home, attic) = (server("home"), server("attic"));
        let mut first = added(&home, 1);
        first.events.insert(0, new_event(Kind::ServerOnline, None));
        assert_eq!(store.commit(first).await.unwrap().last_seq, Seq(2));
        assert_eq!(store.commit(added(&attic, 1)).await.unwrap().last_seq, Seq(1));
        assert_eq!(store.commit(added(&home, 2)).await.unwrap().last_seq, Seq(3));
        assert_eq!(seqs(store, &home).await, [1, 2, 3]);
        assert_eq!(seqs(store, &attic).await, [1]);
        assert!(seqs(store, &server("nobody")).await.is_empty());

        let epoch = store.load(&home).await.unwrap().epoch;
        let page = store.read_after(&home, Seq(1), 1).await.unwrap();
        let [entry] = &page[..] else { panic!("{page:?}") };
        assert_eq!((entry.kind, entry.hash, entry.rev), (Kind::Added, Some(hash(1)), Rev(1)));
        let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
        assert_eq!(body["schema"], "dtorrent.event/1");
        assert_eq!(body["id"], format!("home-{epoch}-000000000002"));
        assert_eq!((&body["seq"], &body["time"]), (&2.into(), &"2026-11-22T06:25:02.114Z".into()));
        assert_eq!(body["torrent"]["name"], "torrent 1 ☃");
        let first = &store.read_after(&home, Seq(0), 1).await.unwrap()[0];
        assert_eq!((first.hash, first.rev), (None, Rev(0)));
        assert!(!String::from_utf8_lossy(&first.body).contains("torrent\":"), "{:?}", first.body);
        let usage = store.usage().await.unwrap();
        assert_eq!(usage.entries, 4);
        assert!(usage.bytes > 400, "{usage:?}");
    })
    .await;
}

#[tokio::test]
async fn a_page_of_large_entries_ends_early_and_has_one_at_least() {
    const PAGE_BYTES: usize = 60_000;
    let pages = PageBytes { entries: PAGE_BYTES, ..PageBytes::default() };
    on_each(Options { pages, ..Options::default() }, async |store, _| {
        let home = server("home");
        let large = |number: u8, bytes: usize| {
            let mut change_set = added(&home, number);
            let torrent = Torrent { name: "x".repeat(bytes), ..Torrent::clone(&torrent(&home, number, 0)) };
            change_set.events[0].torrent = Some(Arc::new(torrent));
            change_set
        };
        for number in 1..=8 {
            store.commit(large(number, PAGE_BYTES / 3)).await.unwrap();
        }
        store.commit(large(9, 2 * PAGE_BYTES)).await.unwrap();
        store.commit(added(&home, 10)).await.unwrap();
        let pages = [(0, 3), (3, 3), (6, 3), (8, 1), (9, 1), (10, 0)];
        for (after, entries) in pages {
            assert_eq!(store.read_after(&home, Seq(after), 256).await.unwrap().len(), entries, "after {after}");
            let position = store.position(&home, Seq(after)).await.unwrap();
            assert_eq!(store.read_all_after(position, 256).await.unwrap().len(), entries, "after {after}");
        }
        assert_eq!(seqs(store, &home).await, (1..=10).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn entries_of_all_servers_are_read_in_the_order_of_their_commits() {
    on_each(Options::default(), async |store, _| {
        let (home, attic) = (server("home"), server("attic"));
        for (of, number) in [(&home, 1), (&attic, 1), (&attic, 2), (&home, 2)] {
            store.commit(added(of, number)).await.unwrap();
        }
        let shown = |page: Vec<(JournalPosition, JournalEntry)>| -> Vec<(String, u64)> {
            page.iter().map(|(_, entry)| (entry.server.to_string(), entry.seq.0)).collect()
        };
        let all = [("home", 1), ("attic", 1), ("attic", 2), ("home", 2)].map(|(of, seq)| (of.to_owned(), seq));
        assert_eq!(shown(store.read_all_after(None, 9).await.unwrap()), all);
        for (index, (of, seq)) in all.iter().enumerate() {
            let position = store.position(&server(of), Seq(*seq)).await.unwrap();
            assert!(position.is_some());
            assert_eq!(shown(store.read_all_after(position, 9).await.unwrap()), all[index + 1..]);
        }
        assert_eq!(shown(store.read_all_after(None, 2).await.unwrap()), all[..2]);
        let entry = &store.read_all_after(None, 1).await.unwrap()[0].1;
        assert_eq!(*entry, store.read_after(&home, Seq(0), 1).await.unwrap()[0]);
        for (of, seq) in [(&home, 3), (&home, 0), (&server("garage"), 1)] {
            assert_eq!(store.position(of, Seq(seq)).await.unwrap(), None);
        }
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_row_carries_its_revision_and_its_newest_entry() {
    on_each(Options::default(), async |store, _| {
        let home = server("home");
        store.commit(added(&home, 1)).await.unwrap();
        store.commit(added(&home, 2)).await.unwrap();
        let snapshot = store.commit(updated(&home, 1, 500)).await.unwrap().snapshot;
        let one = snapshot[&hash(1)].clone().unwrap();
        assert_eq!((one.rev, one.last_seq, one.changed_at.as_millis() - START), (Rev(3), Seq(1), 2_000));
        assert_eq!(one.torrent.downloaded, 500);

        // An event without a change: the row stays, but the entry has to arrive before it.
        let events = vec![new_event(Kind::Stalled, Some(torrent(&home, 1, 500)))];
        let committed = store.commit(ChangeSet { events, ..change_set(&home, 3_000) }).await.unwrap();
        let one = committed.snapshot[&hash(1)].clone().unwrap();
        assert_eq!((one.rev, one.last_seq, one.changed_at.as_millis() - START), (Rev(3), Seq(3), 2_000));

        let state = ServerState {
            is_known: true,
            is_online: true,
            run: Some("4711".to_owned()),
            generation: 3,
            settling_since: Some(Timestamp::from_millis(7)),
        };
        let events = vec![new_event(Kind::Removed, Some(torrent(&home, 2, 0)))];
        let removal = ChangeSet {
            events,
            changes: [(hash(2), None)].into(),
            state: Some(state.clone()),
            ..change_set(&home, 4_000)
        };
        let committed = store.commit(removal).await.unwrap();
        assert_eq!(committed.snapshot, [(hash(2), None)].into());
        assert_eq!(store.read_after(&home, Seq(3), 9).await.unwrap()[0].rev, Rev(4));

        let loaded = store.load(&home).await.unwrap();
        assert_eq!((loaded.snapshot, loaded.state), ([(hash(1), one)].into(), state));
        assert_eq!(loaded.last_seq, Seq(4));
        store.commit(added(&home, 2)).await.unwrap();
        let again = &store.load(&home).await.unwrap().snapshot[&hash(2)];
        assert_eq!((again.rev, again.last_seq), (Rev(5), Seq(5)));
    })
    .await;
}

#[tokio::test]
async fn a_server_is_empty_until_something_is_committed() {
    on_each(Options::default(), async |store, _| {
        let home = server("home");
        let loaded = store.load(&home).await.unwrap();
        assert!(loaded.snapshot.is_empty() && loaded.state == ServerState::default());
        assert_eq!((loaded.last_seq, loaded.needs_reset), (Seq(0), false));
        let state = ServerState { is_known: true, ..ServerState::default() };
        store.commit(ChangeSet { state: Some(state.clone()), ..change_set(&home, 1) }).await.unwrap();
        assert_eq!(store.load(&home).await.unwrap().state, state);
        assert_eq!(store.load(&server("attic")).await.unwrap().state, ServerState::default());
    })
    .await;
}

#[tokio::test]
async fn a_reader_behind_the_newest_entry_misses_nothing_when_that_is_trimmed() {
    let options = Options { journal_age_max: Duration::from_secs(60), ..Options::default() };
    on_each(options, async |store, clock| {
        let (home, attic) = (server("home"), server("attic"));
        store.save_progress(&sink("slow"), [(attic.clone(), at(0, 0))].into()).await.unwrap();
        store.commit(added(&attic, 1)).await.unwrap();
        store.commit(added(&home, 1)).await.unwrap();
        let read_to = store.position(&home, Seq(1)).await.unwrap();
        // Trims the newest entry of all, while the sink holds back the older one of another server.
        clock.forward(Duration::from_secs(120));
        store.commit(updated(&home, 1, 1)).await.unwrap();
        assert_eq!((seqs(store, &home).await, seqs(store, &attic).await), (Vec::new(), vec![1]));
        store.commit(ChangeSet { time: clock.now(), ..added(&home, 2) }).await.unwrap();
        let read = store.read_all_after(read_to, 9).await.unwrap();
        let read: Vec<_> = read.iter().map(|(_, entry)| (&entry.server, entry.seq)).collect();
        assert_eq!(read, [(&home, Seq(2))]);
    })
    .await;
}

#[tokio::test]
async fn a_journal_that_a_sink_needs_is_full_until_the_sink_has_it() {
    let options = Options { journal_bytes_max: 8_000, ..Options::default() };
    on_each(options, async |store, _| {
        let (home, slow) = (server("home"), sink("slow"));
        store.save_progress(&slow, [(home.clone(), at(2, 0))].into()).await.unwrap();
        let mut last = 0;
        let refused = loop {
            match store.commit(added(&home, 1)).await {
                Ok(committed) => last = committed.last_seq.0,
                Err(error) => break error,
            }
            assert!(last < 100, "nothing stops it");
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        let kept = seqs(store, &home).await;
        assert!(kept[0] <= 3 && kept.last() == Some(&last), "{kept:?}");
        let before = store.load(&home).await.unwrap();
        assert!(store.commit(added(&home, 9)).await.is_err());
        assert_eq!(store.load(&home).await.unwrap().snapshot, before.snapshot);
        store.commit(updated(&home, 9, 1)).await.unwrap();
        store.commit(added(&server("attic"), 1)).await.unwrap_err();

        store.save_progress(&slow, [(home.clone(), at(last, 0))].into()).await.unwrap();
        for next in last + 1..last + 20 {
            assert_eq!(store.commit(added(&home, 1)).await.unwrap().last_seq, Seq(next));
            let progress = [(home.clone(), at(next, 0))].into();
            store.save_progress(&slow, progress).await.unwrap();
        }
        let usage = store.usage().await.unwrap();
        assert!(usage.bytes <= 4_000, "{usage:?}");
        let kept = seqs(store, &home).await;
        assert_eq!(usage.entries, kept.len() as u64);
        assert_eq!(kept, (kept[0]..last + 20).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn a_change_set_larger_than_the_budget_is_taken_by_an_empty_journal_only() {
    let options = Options { journal_bytes_max: 100, ..Options::default() };
    on_each(options, async |store, _| {
        let home = server("home");
        store.save_progress(&sink("slow"), [(home.clone(), at(0, 0))].into()).await.unwrap();
        store.commit(added(&home, 1)).await.unwrap();
        assert!(matches!(store.commit(added(&home, 2)).await, Err(StoreError::Full { .. })));
        assert_eq!(seqs(store, &home).await, [1]);
    })
    .await;
}

/// A sink is blocked at an entry that finds no place in its full dead-letter queue; another takes everything.
async fn one_is_blocked(
    store: &dyn Store,
    dead_letters: impl AsyncFn() -> Vec<DeadLetter>,
    drop_dead_letter: impl AsyncFn(String),
) {
    let (home, attic, stuck, well) = (server("home"), server("attic"), sink("stuck"), sink("well"));
    store.save_progress(&stuck, [(home.clone(), at(1, 7))].into()).await.unwrap();
    store.save_progress(&well, [(home.clone(), at(0, 0))].into()).await.unwrap();
    for _ in 0..2 {
        store.commit(added(&home, 1)).await.unwrap();
    }
    let entries = store.read_after(&home, Seq(0), 9).await.unwrap();
    store.add_dead_letter(&stuck, &entries[0], "no").await.unwrap();
    let refused = store.add_dead_letter(&stuck, &entries[1], "no").await;
    assert!(
        matches!(&refused, Err(StoreError::Full { reason }) if reason.contains("dtorrent dead-letters")),
        "{refused:?}"
    );
    // Far more than the journal holds: no sink is held up, and each entry that goes is accounted for.
    let mut last = 2;
    for _ in 0..40 {
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
        last = store.commit(added(&home, 1)).await.unwrap().last_seq.0;
        store.commit(updated(&home, 1, last)).await.unwrap();
    }
    store.commit(added(&attic, 1)).await.unwrap();
    let kept = seqs(store, &home).await;
    assert!(kept[0] > 10 && kept == (kept[0]..=last).collect::<Vec<_>>(), "{kept:?}");
    let gap = |queue: Vec<DeadLetter>| queue.last().and_then(DeadLetter::gap);
    assert_eq!(dead_letters().await.len(), 2, "the gap is one dead letter");
    assert_eq!(gap(dead_letters().await), Some((Seq(2), Seq(kept[0] - 1))));
    assert_eq!(store.load_sink(&stuck).await.unwrap().progress[&home], at(kept[0] - 1, 7));
    // A cursor saved late does not count entries twice.
    store.save_progress(&stuck, [(home.clone(), at(1, 7))].into()).await.unwrap();
    store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
    for _ in 0..5 {
        last = store.commit(added(&home, 1)).await.unwrap().last_seq.0;
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
    }
    let kept = seqs(store, &home).await;
    assert_eq!((dead_letters().await.len(), gap(dead_letters().await)), (2, Some((Seq(2), Seq(kept[0] - 1)))));
    // With room it is not blocked any more, and then the journal waits for it as for any other.
    for dead_letter in dead_letters().await {
        drop_dead_letter(dead_letter.id).await;
    }
    store.add_dead_letter(&stuck, &entries[1], "no").await.unwrap();
    while let Ok(committed) = store.commit(added(&home, 1)).await {
        last = committed.last_seq.0;
        store.save_progress(&well, [(home.clone(), at(last, 0))].into()).await.unwrap();
        assert!(last < 200, "nothing stops it");
    }
    assert_eq!(dead_letters().await.len(), 1);
}

#[tokio::test]
async fn a_blocked_sink_holds_up_nobody_else_and_a_gap_names_what_it_lost() {
    let options = Options { journal_bytes_max: 8_000, dead_letters_max: 1, ..Options::default() };
    let stuck = sink("stuck");
    let memory = MemoryStore::new(options.clone(), HandClock::new());
    let drop_dead_letter = async |id: String| assert!(memory.drop_dead_letter(&stuck, &id));
    one_is_blocked(&memory, async || memory.dead_letters(&stuck), drop_dead_letter).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = SqliteStore::open(folder.path(), options, HandClock::new()).unwrap();
    let drop_dead_letter = async |id: String| {
        assert_eq!(SqliteStore::drop_dead_letters(folder.path(), &[("stuck".to_owned(), id)]).unwrap(), 1);
    };
    one_is_blocked(&file, async || file.dead_letters(&stuck).await.unwrap(), drop_dead_letter).await;
    assert_eq!(
        file.dead_letter_usage().await.unwrap(),
        [("stuck".to_owned(), DeadLetterUsage { dead_letters: 1, given_up: 0 })].into()
    );
}

#[tokio::test]
async fn nothing_is_given_up_where_nobody_else_reads_the_server() {
    let options = Options { journal_bytes_max: 8_000, dead_letters_max: 0, ..Options::default() };
    on_each(options, async |store, _| {
        let (home, stuck) = (server("home"), sink("stuck"));
        store.save_progress(&stuck, [(home.clone(), at(0, 0))].into()).await.unwrap();
        store.commit(added(&home, 1)).await.unwrap();
        let entry = &store.read_after(&home, Seq(0), 1).await.unwrap()[0];
        store.add_dead_letter(&stuck, entry, "no").await.unwrap_err();
        let mut last = 1;
        while let Ok(committed) = store.commit(added(&home, 1)).await {
            last = committed.last_seq.0;
            assert!(last < 100, "nothing stops it");
        }
        assert_eq!(seqs(store, &home).await, (1..=last).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn entries_that_every_sink_has_are_trimmed_when_they_are_old() {
    let options = Options { journal_age_max: Duration::from_secs(60), ..Options::default() };
    on_each(options, async |store, clock| {
        let home = server("home");
        store.save_progress(&sink("a"), [(home.clone(), at(2, 0))].into()).await.unwrap();
        store.save_progress(&sink("b"), [(home.clone(), at(3, 0))].into()).await.unwrap();
        for number in 1..=4 {
            store.commit(ChangeSet { time: clock.now(), ..added(&home, number) }).await.unwrap();
        }
        assert_eq!(seqs(store, &home).await, [1, 2, 3, 4]);
        clock.forward(Duration::from_secs(61));
        store.commit(ChangeSet { time: clock.now(), ..added(&home, 5) }).await.unwrap();
        assert_eq!(seqs(store, &home).await, [3, 4, 5]);
    })
    .await;
}
