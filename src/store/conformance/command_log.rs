//! The conformance suite of [`CommandLog`](crate::port::CommandLog).

use super::*;

#[tokio::test]
async fn commands_recorded_together_have_an_answer_each() {
    on_each(Options::default(), async |store, clock| {
        let refused = LoggedResult { status: OutcomeStatus::Refused, body: Bytes::from_static(b"no") };
        let all = ["one", "two", "one"].map(|id| command(id, "bus", clock.now()));
        let [one, two, again] = all.clone();
        let admissions =
            store.record_commands(vec![(one, None), (two, Some(refused)), (again.clone(), None)]).await.unwrap();
        assert_eq!(admissions, [Recorded::New, Recorded::New, Recorded::Running]);
        assert_eq!(unfinished(store).await, [again]);
        let unsent = store.unsent_results(&sink("bus"), 0, 10).await.unwrap();
        assert_eq!(unsent.iter().map(|result| &result.body[..]).collect::<Vec<_>>(), [b"no"]);
        assert!(store.unsent_results(&sink("bus"), unsent[0].number, 10).await.unwrap().is_empty());
        assert_eq!(record(store, command("two", "bus", clock.now()), None).await, Recorded::Answered);
        let more = store.unsent_results(&sink("bus"), unsent[0].number, 10).await.unwrap();
        assert_eq!(more.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_command_repeated_while_it_runs_is_answered_with_the_first_up_to_a_limit() {
    on_each(Options::default(), async |store, clock| {
        let (home, mqtt, bus) = (server("home"), sink("mqtt"), sink("bus"));
        let to = |topic: &str| Some(ReplyTo { topic: topic.to_owned(), correlation: None });
        let from = |sink: &str, reply| LoggedCommand { reply, ..command("c1", sink, clock.now()) };
        let admitted = async |command: LoggedCommand| record(store, command, None).await;
        assert_eq!(admitted(from("mqtt", to("a"))).await, Recorded::New);
        for again in [
            from("mqtt", to("a")),
            from("mqtt", to("b")),
            from("mqtt", to("b")),
            from("mqtt", None),
            from("bus", to("a")),
            from("bus", None),
        ] {
            assert_eq!(admitted(again).await, Recorded::Running);
        }
        for number in 4..WAITERS_MAX {
            assert_eq!(admitted(from("bus", to(&number.to_string()))).await, Recorded::Running);
        }
        assert_eq!(admitted(from("bus", to("one more"))).await, Recorded::WaitersFull);
        assert_eq!(admitted(from("mqtt", to("a"))).await, Recorded::Running);
        assert_eq!(admitted(from("page", None)).await, Recorded::Running);
        assert_eq!(unfinished(store).await.len(), 1);

        let done = LoggedResult { status: OutcomeStatus::Ok, body: Bytes::from_static(b"done") };
        let id = CommandId::parse("c1").unwrap();
        for _ in 0..2 {
            store.finish_command(Some(&home), &id, done.clone()).await.unwrap();
        }
        let topics = async |sink: &SinkName| {
            let unsent = store.unsent_results(sink, 0, 1_000).await.unwrap();
            assert!(unsent.iter().all(|result| result.body == done.body && result.server.as_ref() == Some(&home)));
            unsent.into_iter().map(|result| result.reply.map(|reply| reply.topic)).collect::<Vec<_>>()
        };
        assert_eq!(topics(&mqtt).await, [Some("a".to_owned()), Some("b".to_owned()), None]);
        let of_bus = topics(&bus).await;
        assert_eq!(of_bus[..2], [Some("a".to_owned()), None]);
        assert_eq!(of_bus.len() as u64, WAITERS_MAX - 2);
        assert_eq!(admitted(from("mqtt", to("c"))).await, Recorded::Answered);
    })
    .await;
}

#[tokio::test]
async fn a_command_is_executed_once_a_day_and_answered_whenever_it_comes() {
    on_each(Options::default(), async |store, clock| {
        let (home, mqtt, bus) = (server("home"), sink("mqtt"), sink("bus"));
        let first = command("c1", "mqtt", clock.now());
        let to_bridge = LoggedCommand { server: None, hash: None, verb: None, reply: None, ..first.clone() };
        assert_eq!(record(store, first.clone(), None).await, Recorded::New);
        assert_eq!(record(store, first.clone(), None).await, Recorded::Running);
        assert_eq!(record(store, to_bridge.clone(), None).await, Recorded::New);
        assert_eq!(unfinished(store).await, [first.clone(), to_bridge.clone()]);

        store.start_command(Some(&home), &first.id).await.unwrap();
        let started = LoggedCommand { is_started: true, ..first.clone() };
        assert_eq!(unfinished(store).await, [started, to_bridge]);

        assert_eq!(store.result_of(Some(&home), &first.id).await.unwrap(), None);
        let done = Bytes::from_static(b"{\"status\":\"ok\"}");
        store
            .finish_command(Some(&home), &first.id, LoggedResult { status: OutcomeStatus::Ok, body: done.clone() })
            .await
            .unwrap();
        let other = Bytes::from_static(b"another");
        store
            .finish_command(Some(&home), &first.id, LoggedResult { status: OutcomeStatus::Error, body: other.clone() })
            .await
            .unwrap();
        store
            .finish_command(None, &first.id, LoggedResult { status: OutcomeStatus::Refused, body: other.clone() })
            .await
            .unwrap();
        assert!(unfinished(store).await.is_empty());
        assert_eq!(store.result_of(Some(&home), &first.id).await.unwrap(), Some(done.clone()));
        assert_eq!(store.result_of(Some(&home), &CommandId::parse("nobody").unwrap()).await.unwrap(), None);
        let unsent = store.unsent_results(&mqtt, 0, 10).await.unwrap();
        let shown: Vec<_> = unsent.iter().map(|u| (u.server.clone(), u.body.clone(), u.reply.clone())).collect();
        assert_eq!(shown, [(Some(home.clone()), done.clone(), first.reply.clone()), (None, other, None)]);
        assert_eq!(store.unsent_results(&mqtt, 0, 1).await.unwrap(), unsent[..1]);
        store.mark_results_sent(vec![unsent[0].number]).await.unwrap();
        assert_eq!(store.unsent_results(&mqtt, 0, 10).await.unwrap(), unsent[1..]);

        clock.forward(Duration::from_secs(24 * 3600 - 1));
        let again = LoggedCommand { reply: None, ..command("c1", "bus", clock.now()) };
        assert_eq!(record(store, again.clone(), None).await, Recorded::Answered);
        let unsent = store.unsent_results(&bus, 0, 10).await.unwrap();
        assert_eq!((&unsent[0].body, &unsent[0].reply), (&done, &None));

        clock.forward(Duration::from_secs(1));
        assert_eq!(record(store, again, None).await, Recorded::New);
        let nobody = CommandId::parse("nobody").unwrap();
        assert!(store.start_command(Some(&home), &nobody).await.is_err());
        assert!(
            store.finish_command(None, &nobody, LoggedResult { status: OutcomeStatus::Ok, body: done }).await.is_err()
        );
    })
    .await;
}

#[tokio::test]
async fn unsent_results_are_counted_for_each_sink() {
    on_each(Options::default(), async |store, clock| {
        let mqtt = sink("mqtt");
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog::default());
        let answer = || LoggedResult { status: OutcomeStatus::Refused, body: Bytes::from_static(b"12345") };
        for (id, origin) in [("1", "mqtt"), ("2", "mqtt"), ("3", "bus"), ("1", "mqtt")] {
            record(store, command(id, origin, clock.now()), Some(answer())).await;
        }
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog { count: 3, bytes: 15 });
        let first = store.unsent_results(&mqtt, 0, 1).await.unwrap()[0].number;
        store.mark_results_sent(vec![first]).await.unwrap();
        assert_eq!(store.result_backlog(&mqtt).await.unwrap(), ResultBacklog { count: 2, bytes: 10 });
    })
    .await;
}

#[tokio::test]
async fn another_command_under_a_known_id_is_not_recorded_and_changes_nothing() {
    on_each(Options::default(), async |store, clock| {
        let (home, mqtt) = (server("home"), sink("mqtt"));
        let first = || command("c1", "mqtt", clock.now());
        let other = || LoggedCommand { digest: Some(CommandDigest([8; 32])), ..command("c1", "bus", clock.now()) };
        let of_before = || LoggedCommand { digest: None, ..first() };
        let refused = || LoggedResult { status: OutcomeStatus::Refused, body: Bytes::from_static(b"no") };
        assert_eq!(record(store, first(), None).await, Recorded::New);
        assert_eq!(record(store, other(), None).await, Recorded::IdTaken);
        assert_eq!(record(store, other(), Some(refused())).await, Recorded::IdTaken);
        assert_eq!(record(store, of_before(), None).await, Recorded::Running, "without a digest nothing is known");
        assert_eq!(unfinished(store).await, [first()]);

        let done = LoggedResult { status: OutcomeStatus::Ok, body: Bytes::from_static(b"done") };
        store.finish_command(Some(&home), &first().id, done).await.unwrap();
        assert_eq!(record(store, other(), None).await, Recorded::IdTaken);
        assert_eq!(record(store, first(), None).await, Recorded::Answered);
        assert_eq!(store.unsent_results(&mqtt, 0, 10).await.unwrap().len(), 2);
        assert!(store.unsent_results(&sink("bus"), 0, 10).await.unwrap().is_empty(), "the store says nothing to it");

        clock.forward(Duration::from_secs(24 * 3600));
        assert_eq!(record(store, other(), None).await, Recorded::New, "the id is free again");
    })
    .await;
}

#[tokio::test]
async fn unfinished_commands_are_read_in_pages_for_each_server() {
    on_each(Options::default(), async |store, clock| {
        let (home, attic) = (server("home"), server("attic"));
        let large = |id: &str| LoggedCommand {
            body: Bytes::from(vec![b'x'; PageBytes::default().commands / 3]),
            ..command(id, "mqtt", clock.now())
        };
        for number in 0..10 {
            record(store, large(&format!("h{number}")), None).await;
            record(store, LoggedCommand { server: Some(attic.clone()), ..large(&format!("a{number}")) }, None).await;
        }
        let servers = store.servers_with_unfinished_commands().await.unwrap();
        assert_eq!(servers, [Some(attic.clone()), Some(home.clone())].into());
        let (mut after, mut pages) = (0, Vec::new());
        loop {
            let page = store.unfinished_commands(Some(&home), after).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            assert!(after < *last && page.len() <= 4, "{} of a third of a page each", page.len());
            after = *last;
            pages.extend(page.into_iter().map(|(_, command)| command.id.to_string()));
        }
        assert_eq!(pages, (0..10).map(|number| format!("h{number}")).collect::<Vec<_>>());
        assert!(store.unfinished_commands(None, 0).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_crash_counts_for_commands_that_ran_and_a_clean_shutdown_does_not() {
    on_each(Options::default(), async |store, clock| {
        let home = server("home");
        let id = |text: &str| CommandId::parse(text).unwrap();
        for name in ["runs", "waits", "ended", "was waiting"] {
            record(store, command(name, "mqtt", clock.now()), None).await;
        }
        let crashes = async || unfinished(store).await.iter().map(|command| command.crashes).collect::<Vec<_>>();
        for (was_clean_shutdown, expected) in [(false, 1), (true, 1), (false, 2)] {
            for name in ["runs", "was waiting", "ended"] {
                store.set_running(Some(&home), &id(name), true).await.unwrap();
            }
            store.set_running(Some(&home), &id("was waiting"), false).await.unwrap();
            let done = LoggedResult { status: OutcomeStatus::Ok, body: Bytes::from_static(b"done") };
            store.finish_command(Some(&home), &id("ended"), done).await.unwrap();
            store.end_earlier_run(was_clean_shutdown).await.unwrap();
            assert_eq!(crashes().await, [expected, 0, 0]);
        }
        store.end_earlier_run(false).await.unwrap();
        assert_eq!(crashes().await, [2, 0, 0], "it does not run in this run");
        store.set_running(Some(&home), &id("nobody"), true).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_command_with_torrents_that_it_has_begun_to_change_is_unfinished_behind_its_result() {
    on_each(Options::default(), async |store, clock| {
        let home = server("home");
        let first = command("c1", "mqtt", clock.now());
        record(store, first.clone(), None).await;
        store.set_begun(Some(&home), &first.id, vec![hash(1), hash(2)]).await.unwrap();
        let begun = LoggedCommand { begun: vec![hash(1), hash(2)], ..first.clone() };
        assert_eq!(unfinished(store).await, std::slice::from_ref(&begun));
        store.set_running(Some(&home), &first.id, true).await.unwrap();
        let done = LoggedResult { status: OutcomeStatus::Error, body: Bytes::from_static(b"under way") };
        store.finish_command(Some(&home), &first.id, done.clone()).await.unwrap();
        store.end_earlier_run(false).await.unwrap();
        let answered = LoggedCommand { is_answered: true, crashes: 1, ..begun };
        assert_eq!(unfinished(store).await, std::slice::from_ref(&answered), "with its body");
        clock.forward(Duration::from_secs(25 * 3600));
        assert_eq!(record(store, command("c2", "mqtt", clock.now()), Some(done.clone())).await, Recorded::New);
        assert_eq!(record(store, first.clone(), None).await, Recorded::Answered);
        assert_eq!(unfinished(store).await, [answered]);
        store.set_begun(Some(&home), &first.id, Vec::new()).await.unwrap();
        assert!(unfinished(store).await.is_empty());
        assert_eq!(record(store, first.clone(), None).await, Recorded::New, "its id is free again");
        assert!(store.set_begun(None, &first.id, Vec::new()).await.is_err());
    })
    .await;
}
