use std::io::{Read as _, Write as _};

use http2::{Event, Reason, hpack::Encoder};
use tokio::time::advance;

use super::*;
use crate::{
    data_plane::{
        listener::{Counts, Ticket},
        route::RouteTable,
        testing::{
            self, Bench, Client, END_HEADERS, HEADERS, SETTINGS, at_once, backend, cluster_policy,
            frame, policy, running, settle, stopped, until,
        },
    },
    snapshot::Publisher,
};

#[test]
fn deadlines_that_are_the_same_fire_in_parts() {
    stopped(|| async {
        // It accepts, and says nothing.
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
        let silent = silent.unwrap();
        let bench = Bench::new(&[silent.local_addr().unwrap()]);
        let timers = || bench.worker.timers.len();
        let mut head = testing::grpc("/api.Echo/Echo");
        head.push(b"grpc-timeout", b"1S");
        let mut clients = Vec::new();
        for calls in [100, 100, 50] {
            let mut client = Client::connect(&bench).await;
            for _ in 0..calls {
                client.engine.open(head.clone(), true, 0).unwrap();
            }
            client.flush().await;
            clients.push(client);
        }
        // And the queue's own.
        at_once(|| timers() == 251).await;
        advance(Duration::from_secs(1)).await;
        at_once(|| timers() < 251).await;
        assert_eq!(timers(), 151, "others have their turns now");
        at_once(|| timers() == 1).await;
    });
}

#[test]
fn searches_in_vain_take_a_tenth_of_the_time_and_others_half() {
    let begun = Instant::now();
    let ended = begun + Duration::from_millis(4);
    for (enough, all) in [(false, 40), (true, 8)] {
        let next = after_search(begun, ended, enough);
        assert_eq!(next, begun + Duration::from_millis(all));
    }
}

#[test]
fn it_is_searched_again_when_it_may_be_and_then_now_and_then() {
    stopped(|| async {
        let bench = Bench::within(Some(4 * 1024), &[], policy(), cluster_policy());
        let worker = &bench.worker;
        let next = worker.tick() + Duration::from_secs(1);
        worker.next_search.set(Some(next));
        // Nothing of it can be freed.
        for held in 1..=10 {
            worker.memory.change(0, held * 1024);
            settle().await;
        }
        assert_eq!(worker.next_search.get(), Some(next));
        for pause in [Duration::from_millis(1001), SEARCH_AGAIN, SEARCH_AGAIN] {
            let last = worker.next_search.get();
            advance(pause).await;
            at_once(|| worker.next_search.get() > last).await;
        }
    });
}

#[test]
fn what_other_workers_hold_is_a_reason_to_search_too() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let memory = Memory::new(Some(4 * 1024), 2);
        let other = Account::new(memory.clone(), 1);
        let worker = Worker::new(
            bench.worker.snapshot().snapshot.clone(),
            bench.shard.clone(),
            bench.log.borrow().writer(),
            Arc::default(),
            Account::new(memory, 0),
        );
        worker.memory.change(0, 512);
        let ended = Rc::new(Cell::new(false));
        let search = || {
            let (worker, ended) = (worker.clone(), ended.clone());
            tokio::task::spawn_local(async move {
                worker.exceeded().await;
                ended.set(true);
            })
        };
        let search_before = search();
        settle().await;
        assert!(!ended.get(), "there is enough");
        search_before.abort();
        other.change(0, 1024);
        search();
        at_once(|| ended.get()).await;
    });
}

#[test]
fn a_new_snapshot_is_followed_at_the_moment_it_comes() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let worker = &bench.worker;
        advance(Duration::from_secs(5)).await;
        assert!(worker.now() < testing::now());
        worker.follow(worker.snapshot().snapshot.clone());
        assert_eq!(worker.now(), testing::now());
    });
}

#[test]
fn a_removed_cluster_is_counted_for_as_long_as_an_rpc_of_it_runs() {
    for refuses in [false, true] {
        running(|| async {
            let mut echo = testing::echo();
            let address = backend(move |engine, event| match event {
                Event::Data {
                    stream,
                    end_stream: true,
                    ..
                } if refuses => {
                    engine.reset(stream, Reason::REFUSED_STREAM);
                }
                event => echo(engine, event),
            })
            .await;
            let bench = Bench::new(&[address]);
            let mut client = Client::connect(&bench).await;
            let stream = client.call("/api.Echo/Echo", b"body", false);
            client.flush().await;
            let series = || bench.shard.cluster(&"backends".into());
            until(|| series().active.get() == 1).await;
            let mut removed = Snapshot::clone(&bench.worker.snapshot());
            removed.clusters.clear();
            removed.routes = Arc::new(RouteTable::new(Vec::new()));
            bench.worker.follow(Arc::new(removed));
            let counted = || {
                bench.metrics.forget_clusters(|_| false);
                let totals = bench.metrics.totals();
                let mut started = totals.series.iter();
                let started = started.find(|((_, name, _), _)| **name == *"backends");
                let attempts = totals.clusters.get("backends");
                (started.map(|(_, of)| of.started), attempts.is_some())
            };
            assert_eq!(counted(), (Some(1), true));
            client.engine.send_data(stream, b"", true, testing::now());
            let status = client.status(stream).await;
            assert_eq!(status, if refuses { "14" } else { "0" });
            until(|| counted() == (None, false)).await;
            let forgotten = bench.metrics.totals().forgotten;
            assert_eq!((forgotten.rpcs.started, forgotten.rpcs.in_flight()), (1, 0));
        });
    }
}

#[test]
fn the_wall_clock_is_looked_at_again_and_again() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let worker = &bench.worker;
        worker.seed(1, SystemTime::UNIX_EPOCH);
        let began = worker.now();
        assert_eq!(worker.wall(began), SystemTime::UNIX_EPOCH);
        advance(Duration::from_secs(2)).await;
        let before = SystemTime::now();
        worker.beat();
        let [then, now] = [began, worker.now()].map(|moment| worker.wall(moment));
        assert!(now >= before && now <= SystemTime::now());
        assert_eq!(then + Duration::from_secs(2), now);
        let later = worker.wall(worker.now() + Duration::from_secs(1));
        assert_eq!(now + Duration::from_secs(1), later);
    });
}

#[test]
fn what_many_clients_have_taken_is_given_back_when_they_are_gone() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let worker = &bench.worker;
        let (peer, policy) = (([192, 0, 2, 1], 1).into(), Arc::new(policy()));
        let connection = downstream::Downstream::new(worker, peer, policy, worker.now());
        let connection = ClientConnection::Http2(Rc::new(connection));
        let add = |_| {
            let id = worker.next_client();
            worker.clients.borrow_mut().insert(id, connection.clone());
            id
        };
        let ids: Vec<u64> = (0..10_000).map(add).collect();
        for id in &ids[3..] {
            worker.clients.borrow_mut().remove(id);
        }
        let room = || worker.clients.borrow().capacity();
        assert!(room() > 2000, "{}", room());
        worker.give_memory_back();
        assert!(room() < 100, "{}", room());
        assert!(
            ids[..3]
                .iter()
                .all(|id| worker.clients.borrow().contains_key(id))
        );
    });
}

#[test]
fn what_still_runs_when_the_process_ends_leaves_its_line() {
    // A second signal, and `drain.deadline`.
    for orders in [&[Phase::Stopped][..], &[Phase::Cutting, Phase::Stopped]] {
        running(|| async move {
            let begun = Rc::new(Cell::new(0));
            let address = backend({
                let begun = begun.clone();
                move |engine, event| {
                    if let Event::Headers { stream, .. } = event {
                        engine.send_headers(
                            stream,
                            &testing::headers(&[(":status", "200")]),
                            false,
                        );
                        begun.set(begun.get() + 1);
                    }
                }
            })
            .await;
            let bench = Bench::new(&[address]);
            let (snapshot, client) = bench.trusted();
            let (_publisher, reader) = Publisher::new(snapshot);
            let (phase, phases) = watch::channel(Phase::Running);
            let (_pressure, pressure) = watch::channel(Pressure::default());
            let parts = Parts {
                index: 0,
                reader,
                shard: bench.shard.clone(),
                log: bench.log.borrow().writer(),
                hints: Arc::default(),
                heartbeats: Heartbeats::new(1),
                phase: phases,
                pressure,
                memory: Memory::new(None, 1),
            };
            let handle = spawn(parts).unwrap();
            let mut block = Vec::new();
            Encoder::new(4096).encode(&testing::grpc("/api.Echo/Echo"), &mut block);
            let http2 = [
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                &frame(SETTINGS, 0, 0, &[])[..],
                &frame(HEADERS, END_HEADERS, 1, &block),
            ];
            let http1 = b"POST /plain/ HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n";
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let to = listener.local_addr().unwrap();
            for request in [http2.concat(), http1.to_vec()] {
                let name = "localhost".try_into().unwrap();
                let session = rustls::ClientConnection::new(client.clone(), name).unwrap();
                thread::spawn(move || {
                    let socket = std::net::TcpStream::connect(to).unwrap();
                    let mut stream = rustls::StreamOwned::new(session, socket);
                    stream.write_all(&request).unwrap();
                    let _ = stream.read_to_end(&mut Vec::new());
                });
                let (socket, peer) = listener.accept().await.unwrap();
                let ticket = Ticket::take(
                    &Arc::<Counts>::default(),
                    &handle.load,
                    peer.ip().into(),
                    [9; 3],
                );
                let accepted = Accepted {
                    socket: socket.into_std().unwrap(),
                    peer,
                    ticket: ticket.unwrap().0,
                };
                assert!(handle.accepted.send(accepted).is_ok());
            }
            until(|| begun.get() == 2).await;
            for order in orders {
                phase.send_replace(*order);
            }
            until(|| handle.thread.is_finished()).await;
            handle.thread.join().unwrap();
            let lines = bench.logged();
            assert_eq!(lines.len(), 2, "{lines:?}");
            for line in lines {
                let says = " flags=LR detail=\"the proxy is shutting down\" ";
                assert!(line.contains(says), "{line}");
            }
        });
    }
}
