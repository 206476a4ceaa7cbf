//! The conformance suite of [`SinkStore`](crate::port::SinkStore).

use super::*;

#[tokio::test]
async fn each_sink_has_its_own_progress_topics_and_dead_letters() {
    on_each(Options::default(), async |store, _| {
        let (home, mqtt, hook) = (server("home"), sink("mqtt"), sink("hook"));
        assert!(store.load_sink(&mqtt).await.unwrap().progress.is_empty());
        store.save_progress(&mqtt, [(home.clone(), at(4, 9))].into()).await.unwrap();
        store.save_progress(&mqtt, [(server("attic"), at(1, 1))].into()).await.unwrap();
        store.save_progress(&mqtt, [(home.clone(), at(3, 10))].into()).await.unwrap();
        let expected = [(home.clone(), at(3, 10)), (server("attic"), at(1, 1))].into();
        assert_eq!(store.load_sink(&mqtt).await.unwrap().progress, expected);
        assert!(store.load_sink(&hook).await.unwrap().progress.is_empty());

        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let topics = async |sink: &SinkName| Vec::from_iter(store.load_sink(sink).await.unwrap().retained_topics);
        store.register_topics(&mqtt, names(&["b", "a", "b"])).await.unwrap();
        store.register_topics(&mqtt, names(&["a", "c"])).await.unwrap();
        store.unregister_topics(&mqtt, names(&["b", "x"])).await.unwrap();
        assert_eq!(topics(&mqtt).await, ["a", "c"]);
        assert!(topics(&hook).await.is_empty());

        store.commit(added(&home, 1)).await.unwrap();
        let entry = &store.read_after(&home, Seq(0), 1).await.unwrap()[0];
        store.add_dead_letter(&hook, entry, "413").await.unwrap();
        store.add_dead_letter(&hook, entry, "again").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_retained_scan_is_pending_until_it_is_completed() {
    on_each(Options::default(), async |store, _| {
        let (mqtt, hook) = (sink("mqtt"), sink("hook"));
        let scan = async |sink: &SinkName| store.load_sink(sink).await.unwrap().retained_scan;
        let of_first_run = |is_first_run| Some(RetainedScan { is_first_run });
        assert_eq!(store.load_sink(&mqtt).await.unwrap(), SinkState::default());
        store.set_retained_scan(&mqtt, of_first_run(true)).await.unwrap();
        store.set_retained_scan(&hook, of_first_run(false)).await.unwrap();
        assert_eq!((scan(&mqtt).await, scan(&hook).await), (of_first_run(true), of_first_run(false)));
        store.adopt_retained(&mqtt, vec!["a".to_owned()], Vec::new()).await.unwrap();
        assert_eq!(scan(&mqtt).await, of_first_run(false), "pending until the topics found are dealt with");
        store.adopt_retained(&sink("bus"), vec!["a".to_owned()], Vec::new()).await.unwrap();
        assert_eq!(scan(&sink("bus")).await, None, "nothing makes a scan pending but `set_retained_scan`");
        for completed in [&mqtt, &sink("nobody")] {
            store.set_retained_scan(completed, None).await.unwrap();
        }
        assert_eq!((scan(&mqtt).await, scan(&hook).await), (None, of_first_run(false)));
        store.set_strict_ordering(&hook).await.unwrap();
        let state = store.load_sink(&hook).await.unwrap();
        assert_eq!((state.retained_scan, state.has_strict_ordering), (of_first_run(false), true));
        assert!(!store.load_sink(&mqtt).await.unwrap().has_strict_ordering);
    })
    .await;
}

#[tokio::test]
async fn a_journal_reset_is_needed_once_by_each_server_until_it_is_emitted() {
    on_each(Options::default(), async |store, _| {
        let (home, attic, mqtt, bus) = (server("home"), server("attic"), sink("mqtt"), sink("bus"));
        let names = || vec!["b".to_owned(), "a".to_owned()];
        let needs_reset = async |server: &ServerName| store.load(server).await.unwrap().needs_reset;
        // Before anything was committed for it.
        assert_eq!(store.adopt_retained(&mqtt, names(), vec![home.clone()]).await.unwrap(), vec![home.clone()]);
        assert_eq!(Vec::from_iter(store.load_sink(&mqtt).await.unwrap().retained_topics), ["a", "b"]);
        assert!(needs_reset(&home).await && !needs_reset(&attic).await);
        let loaded = store.load(&home).await.unwrap();
        assert!(loaded.snapshot.is_empty() && loaded.last_seq == Seq(0));
        // Another sink knows it, too.
        store.commit(added(&home, 1)).await.unwrap();
        store.commit(added(&attic, 1)).await.unwrap();
        let both = vec![home.clone(), attic.clone()];
        assert_eq!(store.adopt_retained(&bus, names(), both.clone()).await.unwrap(), vec![attic.clone()]);
        assert!(needs_reset(&home).await && needs_reset(&attic).await);
        let reset = ChangeSet { events: vec![new_event(Kind::JournalReset, None)], ..change_set(&home, 2_000) };
        assert_eq!(store.commit(reset).await.unwrap().last_seq, Seq(2));
        assert!(!needs_reset(&home).await && needs_reset(&attic).await);
        assert!(store.adopt_retained(&bus, names(), both).await.unwrap().is_empty(), "emitted once in an epoch");
        assert!(!needs_reset(&home).await);
    })
    .await;
}

#[tokio::test]
async fn projection_state_is_per_sink_and_the_last_save_counts() {
    on_each(Options::default(), async |store, _| {
        let (one, other) = (SinkName::parse("one").unwrap(), SinkName::parse("other").unwrap());
        let state = async |sink: &SinkName| store.load_sink(sink).await.unwrap().projection_state;
        assert_eq!(state(&one).await, None);
        store.save_projection_state(&one, "first".to_owned()).await.unwrap();
        store.save_projection_state(&one, "last".to_owned()).await.unwrap();
        assert_eq!(state(&one).await.as_deref(), Some("last"));
        assert_eq!(state(&other).await, None);
    })
    .await;
}
