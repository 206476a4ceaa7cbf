//! Random operations, after which the file and the memory must answer the same.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Commit { server: u8, events: Vec<(u8, bool)>, changes: BTreeMap<u8, Option<u64>>, state: Option<bool> },
    SaveProgress { sink: u8, server: u8, cursor: u64, rev: u64 },
    Declare { sinks: Vec<u8> },
    AddDeadLetter { sink: u8, server: u8, seq: u64 },
    Register { sink: u8, names: Vec<u8> },
    Unregister { sink: u8, names: Vec<u8> },
    Record { server: Option<u8>, id: u8, origin: u8 },
    Start { server: Option<u8>, id: u8 },
    SetBegun { server: Option<u8>, id: u8, torrents: u8 },
    Finish { server: Option<u8>, id: u8, result: u8 },
    Sent { number: i64 },
    SetScan { sink: u8, is_first_run: Option<bool> },
    Adopt { sink: u8, names: Vec<u8>, servers: Vec<u8> },
    SetStrictOrdering { sink: u8 },
    SaveProjection { sink: u8, state: u8 },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let of = || prop::option::of(0..2u8);
    let names = || prop::collection::vec(0..4u8, 0..4);
    let changes = prop::collection::btree_map(0..5u8, prop::option::of(0..2_000u64), 0..5);
    let events = prop::collection::vec((0..5u8, any::<bool>()), 0..4);
    let commit = (0..2u8, events, changes, prop::option::of(any::<bool>()));
    let step = prop_oneof![
        8 => commit.prop_map(|(server, events, changes, state)| Step::Commit { server, events, changes, state }),
        2 => (0..2u8, 0..2u8, 0..9u64, 0..9u64)
            .prop_map(|(sink, server, cursor, rev)| Step::SaveProgress { sink, server, cursor, rev }),
        1 => prop::collection::vec(0..2u8, 0..3).prop_map(|sinks| Step::Declare { sinks }),
        1 => (0..2u8, 0..2u8, 0..9u64).prop_map(|(sink, server, seq)| Step::AddDeadLetter { sink, server, seq }),
        1 => (0..2u8, names()).prop_map(|(sink, names)| Step::Register { sink, names }),
        1 => (0..2u8, names()).prop_map(|(sink, names)| Step::Unregister { sink, names }),
        3 => (of(), 0..3u8, 0..2u8).prop_map(|(server, id, origin)| Step::Record { server, id, origin }),
        1 => (of(), 0..3u8).prop_map(|(server, id)| Step::Start { server, id }),
        1 => (of(), 0..3u8, 0..3u8).prop_map(|(server, id, torrents)| Step::SetBegun { server, id, torrents }),
        2 => (of(), 0..3u8, any::<u8>()).prop_map(|(server, id, result)| Step::Finish { server, id, result }),
        1 => (0..5i64).prop_map(|number| Step::Sent { number }),
        2 => (0..2u8, prop::option::of(any::<bool>()))
            .prop_map(|(sink, is_first_run)| Step::SetScan { sink, is_first_run }),
        1 => (0..2u8, names(), prop::collection::vec(0..2u8, 0..3))
            .prop_map(|(sink, names, servers)| Step::Adopt { sink, names, servers }),
        1 => (0..2u8).prop_map(|sink| Step::SetStrictOrdering { sink }),
        1 => (0..2u8, any::<u8>()).prop_map(|(sink, state)| Step::SaveProjection { sink, state }),
        2 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn nth_server(number: u8) -> ServerName {
    server(["home", "attic"][usize::from(number)])
}

fn nth_sink(number: u8) -> SinkName {
    sink(["mqtt", "hook"][usize::from(number)])
}

fn id(number: u8) -> CommandId {
    CommandId::parse(&format!("id {number}")).unwrap()
}

/// Executes a step and returns everything that came back.
async fn act(store: &dyn Store, step: &Step) -> String {
    match step.clone() {
        Step::Commit { server, events, changes, state } => {
            let server = nth_server(server);
            let snapshot = |number, downloaded| (torrent(&server, number, downloaded), DiffState::default());
            let events = events.iter().map(|(number, is_torrent)| match is_torrent {
                true => new_event(Kind::Started, Some(torrent(&server, *number, 1))),
                false if *number == 0 => new_event(Kind::JournalReset, None),
                false => new_event(Kind::ServerOnline, None),
            });
            let state = state.map(|is_online| ServerState {
                is_known: true,
                is_online,
                run: None,
                generation: 0,
                settling_since: None,
            });
            let events = events.collect();
            let changes =
                changes.iter().map(|(number, downloaded)| (hash(*number), downloaded.map(|d| snapshot(*number, d))));
            let change_set = ChangeSet { events, changes: changes.collect(), state, ..change_set(&server, 5) };
            format!("{:?}", store.commit(change_set).await)
        }
        Step::SaveProgress { sink, server, cursor, rev } => {
            format!("{:?}", store.save_progress(&nth_sink(sink), [(nth_server(server), at(cursor, rev))].into()).await)
        }
        Step::AddDeadLetter { sink, server, seq } => {
            let entries = store.read_after(&nth_server(server), Seq(seq), 1).await.unwrap();
            for entry in &entries {
                store.add_dead_letter(&nth_sink(sink), entry, "no").await.unwrap();
            }
            format!("{entries:?}")
        }
        Step::Register { sink, names } => {
            format!("{:?}", store.register_topics(&nth_sink(sink), names.iter().map(u8::to_string).collect()).await)
        }
        Step::Unregister { sink, names } => {
            format!("{:?}", store.unregister_topics(&nth_sink(sink), names.iter().map(u8::to_string).collect()).await)
        }
        Step::Record { server, id: number, origin } => {
            let base = command("x", "x", Timestamp::from_millis(START));
            let (server, origin) = (server.map(nth_server), nth_sink(origin));
            let logged = LoggedCommand { id: id(number), server, origin, ..base };
            format!("{:?}", record(store, logged, None).await)
        }
        Step::Start { server, id: number } => {
            let server = server.map(nth_server);
            format!("{:?}", store.start_command(server.as_ref(), &id(number)).await)
        }
        Step::SetBegun { server, id: number, torrents } => {
            let (server, begun) = (server.map(nth_server), (0..torrents).map(hash).collect());
            format!("{:?}", store.set_begun(server.as_ref(), &id(number), begun).await)
        }
        Step::Finish { server, id: number, result } => {
            let server = server.map(nth_server);
            let result = vec![result].into();
            format!(
                "{:?}",
                store
                    .finish_command(
                        server.as_ref(),
                        &id(number),
                        LoggedResult { status: OutcomeStatus::Ok, body: result }
                    )
                    .await
            )
        }
        Step::Sent { number } => format!("{:?}", store.mark_results_sent(vec![number]).await),
        Step::SetScan { sink, is_first_run } => {
            let scan = is_first_run.map(|is_first_run| RetainedScan { is_first_run });
            format!("{:?}", store.set_retained_scan(&nth_sink(sink), scan).await)
        }
        Step::Adopt { sink, names, servers } => {
            let names = names.iter().map(u8::to_string).collect();
            let servers: BTreeSet<ServerName> = servers.iter().map(|server| nth_server(*server)).collect();
            format!("{:?}", store.adopt_retained(&nth_sink(sink), names, servers.into_iter().collect()).await)
        }
        Step::SetStrictOrdering { sink } => format!("{:?}", store.set_strict_ordering(&nth_sink(sink)).await),
        Step::SaveProjection { sink, state } => {
            format!("{:?}", store.save_projection_state(&nth_sink(sink), state.to_string()).await)
        }
        Step::Declare { .. } | Step::Reopen => unreachable!("no method of the traits"),
    }
}

/// Returns everything that can be read.
async fn read_all(store: &dyn Store) -> String {
    let mut seen = Vec::new();
    for number in 0..2 {
        let (server, sink) = (nth_server(number), nth_sink(number));
        seen.push(format!("{:?}", store.load(&server).await));
        seen.push(format!("{:?}", store.read_after(&server, Seq(0), 1_000).await));
        seen.push(format!("{:?}", store.read_after(&server, Seq(2), 3).await));
        seen.push(format!("{:?}", store.load_sink(&sink).await));
        seen.push(format!("{:?}", store.unsent_results(&sink, 0, 100).await));
        seen.push(format!("{:?}", store.result_backlog(&sink).await));
    }
    seen.push(format!("{:?}", store.read_all_after(None, 1_000).await));
    seen.push(format!("{:?}", unfinished(store).await));
    seen.push(format!("{:?}", store.usage().await));
    seen.join("\n")
}

async fn agree(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let memory = MemoryStore::new(Options::default(), HandClock::new());
    let (mut file, _) = SqliteStore::open(folder.path(), Options::default(), HandClock::new()).unwrap();
    let epoch = file.load(&nth_server(0)).await.unwrap().epoch;
    memory.reopen(epoch);
    for step in &steps {
        match step {
            Step::Reopen => {
                file.close().await.unwrap();
                drop(file);
                (file, _) = SqliteStore::open(folder.path(), Options::default(), HandClock::new()).unwrap();
                memory.reopen(epoch);
            }
            Step::Declare { sinks } => {
                let servers = vec![nth_server(0)];
                let sinks = sinks.iter().map(|sink| (nth_sink(*sink), servers.clone())).collect();
                memory.declare_sinks(&sinks);
                file.declare_sinks(&sinks).await.unwrap();
            }
            step => assert_eq!(act(&file, step).await, act(&memory, step).await, "{step:?}"),
        }
        assert_eq!(read_all(&file).await, read_all(&memory).await, "after {step:?}");
        for sink in [0, 1].map(nth_sink) {
            assert_eq!(file.dead_letters(&sink).await.unwrap(), memory.dead_letters(&sink));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_file_and_the_memory_answer_the_same(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(agree(steps));
    }
}
