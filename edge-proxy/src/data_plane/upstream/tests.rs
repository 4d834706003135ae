//! Those that wait for a connection, as many as clients like.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http2::{Event, Reason};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::advance};

use super::*;
use crate::{
    data_plane::{
        rpc,
        testing::{
            self, Bench, Client, GOAWAY, Got, SETTINGS, at_once, backend, cluster_policy, echo,
            frame, frozen, pass, policy, running, settle, stopped, until,
        },
        worker::AT_ONCE,
    },
    snapshot::{Endpoint, Health, circuit::CircuitLimits, streak::Thresholds},
    telemetry::metrics::Limit,
};

/// A backend that accepts and says nothing, as long as this value is kept.
async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A cluster of these, whose endpoints have room for one RPC each, and what is known of them.
fn narrow(backends: &[SocketAddr]) -> Bench {
    let mut rules = cluster_policy();
    (rules.max_connections, rules.per_connection_streams) = (1, 1);
    Bench::with(backends, policy(), rules)
}

/// A backend that never answers, and how many requests it has.
async fn busy() -> (SocketAddr, Rc<Cell<usize>>) {
    let heads = Rc::new(Cell::new(0));
    let seen = heads.clone();
    let address = backend(move |_, event| {
        let is_head = matches!(event, Event::Headers { .. });
        seen.set(seen.get() + usize::from(is_head));
    });
    (address.await, heads)
}

/// A client whose RPC is the first that a [`busy`] backend has.
async fn served(bench: &Bench, heads: &Cell<usize>) -> Client {
    let mut client = Client::connect(bench).await;
    client.call("/api.Echo/Echo", b"", true);
    client.flush().await;
    at_once(|| heads.get() == 1).await;
    client
}

/// How many wait.
fn waiting(bench: &Bench) -> usize {
    bench.worker.pool.counts().2
}

/// Clients with so many RPCs in all that wait.
async fn crowd(bench: &Bench, count: usize) -> Vec<(Client, usize)> {
    let mut clients = Vec::new();
    for left in (1..=count).rev().step_by(100) {
        let mut client = Client::connect(bench).await;
        let calls = left.min(100);
        for _ in 0..calls {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        clients.push((client, calls));
    }
    at_once(|| waiting(bench) == count).await;
    clients
}

/// The time passes in which three attempts of each are in vain.
async fn give_up() {
    for _ in 0..3 {
        advance(cluster_policy().connect_timeout).await;
        settle().await;
    }
}

/// That all of them are answered with UNAVAILABLE.
async fn all_unavailable(clients: Vec<(Client, usize)>) {
    for (mut client, calls) in clients {
        for _ in 0..calls {
            let got = client.next().await;
            let Got::Headers(_, head, true) = &got else {
                panic!("{got:?}");
            };
            assert_eq!(head.get(b"grpc-status"), Some(&b"14"[..]));
        }
    }
}

#[test]
fn a_queue_has_one_timer_however_often_it_is_left() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        // An engine keeps more than ten cancels back.
        for _ in 0..8 {
            let stream = client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| waiting(&bench) == 1).await;
            client.engine.reset(stream, Reason::CANCEL);
            client.flush().await;
            at_once(|| waiting(&bench) == 0).await;
        }
        assert_eq!(bench.worker.timers.len(), 1);
    });
}

#[test]
fn those_that_waited_for_too_long_are_told_in_parts() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let clients = crowd(&bench, 250).await;
        give_up().await;
        at_once(|| waiting(&bench) == 0).await;
        all_unavailable(clients).await;
    });
}

#[test]
fn those_that_wait_in_vain_are_told_in_parts_and_nobody_is_left() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let clients = crowd(&bench, 250).await;
        let mut without = Snapshot::clone(&bench.worker.snapshot());
        without.clusters.clear();
        bench.worker.follow(Arc::new(without));
        let in_vain = |pool: &Rc<EndpointPool>| pool.in_vain.get().is_some();
        let has_more = || bench.worker.pool.endpoints.borrow().values().any(in_vain);
        assert!(has_more(), "250 are more than are told in one go");
        at_once(|| !has_more()).await;
        give_up().await;
        at_once(|| waiting(&bench) == 0).await;
        all_unavailable(clients).await;
    });
}

/// Of so many requests that wait and have sent so much some are given up, since a quarter of 256 KiB may be held.
fn given_up_when_too_much_is_held_back(calls: usize, bytes: usize) {
    running(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::within(Some(256 * 1024), &[address], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let first = client.call("/api.Echo/Echo", &vec![0; bytes], false);
        for _ in 1..calls {
            client.call("/api.Echo/Echo", &vec![0; bytes], false);
        }
        assert_eq!(client.status(first).await, "8");
        until(|| !bench.worker.memory.is_exceeded()).await;
        assert!(waiting(&bench) > 0, "others wait on");
        drop(client);
        until(|| waiting(&bench) == 0 && bench.worker.memory.held() == 0).await;
    });
}

#[test]
fn what_requests_that_wait_have_sent_is_given_up_when_too_much_is_held_back() {
    given_up_when_too_much_is_held_back(4, 30 * 1024);
}

#[test]
fn requests_that_wait_count_as_held_back_whatever_they_have_sent() {
    given_up_when_too_much_is_held_back(61, 0);
}

/// Requests whose heads and trailers are as long as they may be.
async fn large(client: &mut Client, calls: usize) -> Vec<u32> {
    let value = vec![b'x'; 7900];
    let mut streams = Vec::new();
    for _ in 0..calls {
        let mut head = testing::grpc("/api.Echo/Echo");
        head.push(b"x", &value[head.list_size()..]);
        let stream = client.engine.open(head, false, 0).unwrap();
        let trailers: http2::Headers = [(b"x", &value)].into_iter().collect();
        client.engine.send_trailers(stream, &trailers);
        streams.push(stream);
    }
    client.flush().await;
    streams
}

#[test]
fn heads_and_trailers_of_rpcs_that_wait_count_as_held_back() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        let held = || bench.worker.memory.held();
        let calls = 10;
        large(&mut client, calls).await;
        at_once(|| waiting(&bench) == calls && held() >= calls * 16 * 1024).await;
        drop(client);
        at_once(|| waiting(&bench) == 0 && held() == 0).await;
    });
}

/// An answer of a route's own waits for the request's end, for as long as the client likes.
#[test]
fn rpcs_that_keep_their_own_answer_waiting_count_as_held_back() {
    running(|| async {
        let bench = Bench::within(Some(256 * 1024), &[], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let held = || bench.worker.memory.held();
        let mut streams = Vec::new();
        for calls in 1..=61 {
            streams.push(client.call("/direct/", b"", false));
            if calls == 10 {
                client.flush().await;
                until(|| held() >= 10 * 2048).await;
            }
        }
        // A quarter of it may be held.
        assert_eq!(client.status(streams[0]).await, "8");
        until(|| !bench.worker.memory.is_exceeded()).await;
        assert!(held() > 0, "others wait on");
        drop(client);
        until(|| bench.worker.rpcs.borrow().len() == 0 && held() == 0).await;
    });
}

#[test]
fn while_too_much_is_held_back_few_rpcs_of_each_client_wait() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::within(Some(1 << 20), &[address], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let memory = &bench.worker.memory;
        // Somebody else's.
        let others = 1 << 20;
        memory.change(0, others);
        for _ in 0..ENOUGH {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        at_once(|| waiting(&bench) == ENOUGH).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        assert_eq!(client.status(stream).await, "8");
        assert_eq!(bench.shard.limits(Limit::Memory).get(), 1);
        assert_eq!(waiting(&bench), ENOUGH);
        let mut other = Client::connect_from(&bench, [127, 0, 0, 2]).await;
        other.call("/api.Echo/Echo", b"", true);
        other.flush().await;
        at_once(|| waiting(&bench) == ENOUGH + 1).await;
        memory.change(others, 0);
        drop((client, other));
        at_once(|| waiting(&bench) == 0 && memory.held() == 0).await;
    });
}

#[test]
fn an_rpc_waits_for_no_more_than_one_of_each_other_client() {
    frozen(|| async {
        let heads = Rc::new(RefCell::new(Vec::new()));
        let (seen, mut echo) = (heads.clone(), echo());
        let address = backend(move |engine, event| {
            if let Event::Headers { headers, .. } = &event {
                let path = headers.get(b":path").unwrap_or_default();
                seen.borrow_mut().push(path.last().copied());
            }
            echo(engine, event);
        });
        let mut cluster = cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1);
        let bench = Bench::with(&[address.await], policy(), cluster);
        let mut first = Client::connect(&bench).await;
        let stream = first.call("/api.Echo/0", b"", false);
        first.flush().await;
        at_once(|| heads.borrow().len() == 1).await;
        let mut clients = Vec::new();
        for (number, calls, all) in [(1, 50, 50), (2, 1, 51)] {
            let mut client = Client::connect_from(&bench, [127, 0, 1, number]).await;
            for _ in 0..calls {
                client.call(&format!("/api.Echo/{number}"), b"", true);
            }
            client.flush().await;
            at_once(|| waiting(&bench) == all).await;
            clients.push(client);
        }
        first.engine.reset(stream, Reason::CANCEL);
        first.flush().await;
        at_once(|| heads.borrow().len() == 52).await;
        assert_eq!(heads.borrow()[..4], [b'0', b'1', b'2', b'1'].map(Some));
    });
}

/// A client that holds streams with RPCs that don't end, and one whose RPCs end at once.
struct Unequal {
    bench: Bench,
    holder: Client,
    held: Vec<u32>,
    other: Client,
}

impl Unequal {
    /// The endpoint has room for so many streams.
    async fn new(streams: u32) -> Self {
        let mut cluster = cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, streams);
        let bench = Bench::with(&[backend(echo()).await], policy(), cluster);
        let mut holder = Client::connect_from(&bench, [127, 0, 1, 1]).await;
        let mut held = Vec::new();
        for _ in 0..streams {
            held.push(holder.call("/api.Echo/Echo", b"", false));
        }
        holder.flush().await;
        at_once(|| waiting(&bench) == 0 && active(&bench) == streams as usize).await;
        let other = Client::connect_from(&bench, [127, 0, 1, 2]).await;
        Self {
            bench,
            holder,
            held,
            other,
        }
    }

    /// Another RPC of the client that holds all, which waits.
    async fn holder_waits(&mut self) {
        let before = waiting(&self.bench);
        self.holder.call("/api.Echo/Echo", b"", false);
        self.holder.flush().await;
        at_once(|| waiting(&self.bench) == before + 1).await;
    }
}

/// How many streams the endpoint has.
fn active(bench: &Bench) -> usize {
    let snapshot = bench.worker.snapshot();
    let endpoint = &snapshot.clusters[0].endpoints[0].shared;
    endpoint.active.load(Ordering::Relaxed) as usize
}

#[test]
fn of_those_that_wait_who_has_fewest_streams_gets_the_next_one() {
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..3 {
            both.holder_waits().await;
        }
        let Unequal {
            bench,
            holder,
            held,
            other,
        } = &mut both;
        let call = |_| other.call("/api.Echo/Echo", b"", true);
        let streams: Vec<_> = (0..5).map(call).collect();
        other.flush().await;
        at_once(|| waiting(bench) == 8).await;
        holder.engine.reset(held[0], Reason::CANCEL);
        holder.flush().await;
        for stream in streams {
            assert_eq!(other.status(stream).await, "0");
        }
        // Nobody else wants it.
        at_once(|| waiting(bench) == 2 && active(bench) == 4).await;
    });
}

#[test]
fn for_those_that_have_waited_for_1_s_who_has_most_gives_the_stream_that_stands_still() {
    let ms = Duration::from_millis;
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..2 {
            both.holder_waits().await;
        }
        pass(ms(10)).await;
        let Unequal {
            bench,
            holder,
            held,
            other,
        } = &mut both;
        let move_now = || {
            let connections = bench.worker.pool.connections();
            let keys = connections.iter().flat_map(|one| one.makes_room());
            let moved = keys.filter_map(|key| rpc::moved(&bench.worker, key));
            moved.filter(|(_, at)| *at == testing::now()).count()
        };
        for at in [0, 1, 3] {
            let message = b"\0\0\0\0\0";
            holder
                .engine
                .send_data(held[at], message, false, testing::now());
        }
        holder.flush().await;
        at_once(|| move_now() == 3).await;
        let first = other.call("/api.Echo/Echo", b"", true);
        other.flush().await;
        at_once(|| waiting(bench) == 3).await;
        let ended = || bench.shard.limits(Limit::StreamShare).get();
        pass(ms(900)).await;
        settle().await;
        assert_eq!(ended(), 0);
        pass(ms(200)).await;
        assert_eq!(other.status(first).await, "0");
        let (_, _, trailers) = holder.answer(held[2]).await;
        assert_eq!(trailers.get(b"grpc-status"), Some(&b"8"[..]));
        let text = trailers.get(b"grpc-message").map(String::from_utf8_lossy);
        assert!(text.unwrap().starts_with("ended for others"));
        // It is kept, and those of who has most wait.
        for _ in 0..3 {
            settle().await;
            assert_eq!((waiting(bench), active(bench)), (2, 3));
            let next = other.call("/api.Echo/Echo", b"", true);
            assert_eq!(other.status(next).await, "0");
        }
        pass(ms(9900)).await;
        settle().await;
        holder.call("/api.Echo/Echo", b"", false);
        holder.flush().await;
        at_once(|| waiting(bench) == 1).await;
        assert_eq!(active(bench), 3);
        pass(ms(1100)).await;
        at_once(|| waiting(bench) == 0 && active(bench) == 4).await;
        assert_eq!(ended(), 1);
        assert!(bench.logged().iter().any(|line| line.contains("flags=OM")));
    });
}

#[test]
fn a_client_that_waits_for_nobody_but_itself_keeps_its_streams() {
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..20 {
            both.holder_waits().await;
        }
        for _ in 0..40 {
            pass(Duration::from_millis(110)).await;
            settle().await;
        }
        assert_eq!((waiting(&both.bench), active(&both.bench)), (20, 4));
        assert_eq!(both.bench.shard.limits(Limit::StreamShare).get(), 0);
    });
}

#[test]
fn what_a_client_holds_is_counted_by_endpoint_and_given_back() {
    frozen(|| async {
        let both = Unequal::new(3).await;
        let worker = &both.bench.worker;
        let streams = |last| worker.holders.of([127, 0, 1, last].into()).streams(0);
        assert_eq!((streams(1), streams(2)), (3, 0));
        let other = worker.holders.of([127, 0, 1, 1].into()).streams(1);
        assert_eq!(other, 0, "at an endpoint that isn't there yet");
        drop(both.holder);
        at_once(|| streams(1) == 0).await;
    });
}

#[test]
fn an_endpoint_that_comes_when_another_has_gone_is_not_taken_for_that_one() {
    frozen(|| async {
        let both = Unequal::new(3).await;
        let worker = &both.bench.worker;
        let gone = worker.pool.endpoints.take();
        let snapshot = worker.snapshot();
        let cluster = &snapshot.clusters[0];
        let endpoint = &cluster.endpoints[0].shared;
        let came = worker.pool.add(worker, endpoint, cluster);
        let holder = worker.holders.of([127, 0, 1, 1].into());
        let streams = |pool: &EndpointPool| holder.streams(pool.number);
        // Its RPCs still count there, and tell nobody here when they end.
        assert_eq!((streams(&gone[&endpoint.id]), streams(&came)), (3, 0));
    });
}

#[test]
fn room_that_a_new_configuration_makes_is_given_at_once() {
    for (connections, streams) in [(1, 3), (3, 1)] {
        frozen(|| async move {
            let (address, heads) = busy().await;
            let bench = narrow(&[address]);
            let mut client = served(&bench, &heads).await;
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| waiting(&bench) == 1).await;
            let mut rules = cluster_policy();
            (rules.max_connections, rules.per_connection_streams) = (connections, streams);
            bench.reload(|cluster| cluster.policy = Arc::new(rules));
            at_once(|| heads.get() == 2).await;
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| heads.get() == 3).await;
        });
    }
}

#[test]
fn where_all_connections_stay_full_an_rpc_waits_once() {
    frozen(|| async {
        let (address, heads) = busy().await;
        let bench = narrow(&[address]);
        let mut client = served(&bench, &heads).await;
        let second = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| waiting(&bench) == 1).await;
        advance(cluster_policy().connect_timeout).await;
        assert_eq!(client.status(second).await, "14");
        assert_eq!(waiting(&bench), 0);
        let line = bench.logged().pop().unwrap();
        assert!(
            line.contains(" flags=UF ") && line.contains(" attempts=1 "),
            "{line}"
        );
    });
}

#[test]
fn who_has_waited_where_all_connections_stay_full_gets_another_endpoint() {
    frozen(|| async {
        let (first, heads) = busy().await;
        let second = backend(echo()).await;
        let bench = narrow(&[first, second]);
        let mut client = Client::connect(&bench).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(client.call("/api.Echo/Echo", b"", true));
            client.flush().await;
            at_once(|| heads.get() == 1).await;
        }
        at_once(|| waiting(&bench) == 1).await;
        advance(cluster_policy().connect_timeout).await;
        for stream in &streams[1..] {
            assert_eq!(client.status(*stream).await, "0");
        }
    });
}

#[test]
fn those_that_a_circuit_limit_refuses_are_told_in_parts() {
    frozen(|| async {
        let (address, heads) = busy().await;
        let bench = narrow(&[address]);
        let limits = CircuitLimits([None, None, Some(1), None]);
        bench.worker.snapshot().clusters[0].circuits.limit(&limits);
        let _first = served(&bench, &heads).await;
        let clients = crowd(&bench, 250).await;
        bench.reload(|cluster| cluster.policy = Arc::new(cluster_policy()));
        assert_eq!(waiting(&bench), 250 - AT_ONCE);
        for _ in 0..2 {
            pass(Duration::from_millis(1)).await;
            settle().await;
        }
        assert_eq!(waiting(&bench), 0);
        all_unavailable(clients).await;
        assert_eq!(heads.get(), 1);
    });
}

/// SETTINGS, and a GOAWAY (last stream 0, NO_ERROR).
fn settings_and_goaway() -> Vec<u8> {
    let mut frames = frame(SETTINGS, 0, 0, &[]);
    frames.extend(frame(GOAWAY, 0, 0, &[0; 8]));
    frames
}

/// Whether failures have been held against the endpoint, since the last call.
fn blamed(endpoint: &EndpointShared) -> bool {
    let one = Thresholds {
        local_origin: 1,
        ..Thresholds::default()
    };
    endpoint.streaks.watch(&one);
    endpoint.streaks.take().next().is_some()
}

#[test]
fn a_connection_that_leaves_before_it_serves_is_one_that_failed() {
    frozen(|| async {
        let (leaving, address) = silent().await;
        let bench = Bench::new(&[address, backend(echo()).await]);
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        assert!(!blamed(&endpoint));
        let accepted = Rc::new(Cell::new(0));
        tokio::task::spawn_local({
            let accepted = accepted.clone();
            async move {
                let mut sockets = Vec::new();
                while let Ok((mut socket, _)) = leaving.accept().await {
                    accepted.set(accepted.get() + 1);
                    socket.write_all(&settings_and_goaway()).await.unwrap();
                    sockets.push(socket);
                }
            }
        });
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0", "by the other endpoint");
        assert_eq!(accepted.get(), 1);
        assert!(blamed(&endpoint));
    });
}

#[test]
fn after_one_that_leaves_before_it_serves_the_next_is_tried_after_a_pause() {
    frozen(|| async {
        let (listener, address) = silent().await;
        let mut rules = cluster_policy();
        rules.per_connection_streams = 1;
        let bench = Bench::with(&[address], policy(), rules);
        let mut client = Client::connect(&bench).await;
        let first = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        let socket = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(testing::serve(socket, echo()));
        at_once(|| bench.worker.pool.counts() == (1, 0, 0)).await;
        let second = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        let mut leaving = listener.accept().await.unwrap().0;
        leaving.write_all(&settings_and_goaway()).await.unwrap();
        let left = || bench.worker.pool.connections().len() == 1;
        at_once(|| left() && bench.worker.pool.counts() == (1, 0, 1)).await;
        // Other than by the pause, it waits on.
        client.engine.send_data(first, b"", true, testing::now());
        assert_eq!(client.status(second).await, "0");
    });
}

#[test]
fn a_connection_that_nobody_needed_is_no_failure_when_it_leaves() {
    frozen(|| async {
        let (listener, address) = silent().await;
        let bench = Bench::new(&[address]);
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        assert!(!blamed(&endpoint));
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        let mut socket = listener.accept().await.unwrap().0;
        at_once(|| waiting(&bench) == 1).await;
        client.engine.reset(stream, Reason::CANCEL);
        client.flush().await;
        at_once(|| waiting(&bench) == 0).await;
        socket.write_all(&settings_and_goaway()).await.unwrap();
        at_once(|| bench.worker.pool.counts() == (1, 0, 0)).await;
        at_once(|| bench.worker.pool.connections().is_empty()).await;
        assert!(!blamed(&endpoint));
    });
}

/// Allows a cluster one connection.
fn allow_one(bench: &Bench) {
    let limits = CircuitLimits([Some(1), None, None, None]);
    bench.worker.snapshot().clusters[0].circuits.limit(&limits);
}

#[test]
fn a_connection_that_leaves_has_no_place_in_the_clusters_circuits() {
    frozen(|| async {
        let heads = Rc::new(Cell::new(0));
        let seen = heads.clone();
        // Says GOAWAY with the first request, which it never answers.
        let address = backend(move |engine, event| {
            if let Event::Headers { .. } = event {
                seen.set(seen.get() + 1);
                engine.shutdown(Reason::NO_ERROR);
            }
        });
        let bench = Bench::new(&[address.await]);
        allow_one(&bench);
        let mut client = Client::connect(&bench).await;
        for rpcs in 1..4 {
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            let leave = || {
                !bench
                    .worker
                    .pool
                    .connections()
                    .iter()
                    .any(|one| one.is_ready())
            };
            at_once(|| heads.get() == rpcs && leave()).await;
            assert_eq!(bench.worker.pool.connections().len(), rpcs);
        }
        let used = bench.worker.snapshot().clusters[0].circuits.uses().next();
        assert_eq!(used.map(|one| (one.used, one.refused)), Some((0, 0)));
    });
}

#[test]
fn connections_that_only_a_burst_has_needed_leave_after_15_minutes_without_a_stream() {
    let seconds = Duration::from_secs;
    frozen(|| async {
        let mut rules = cluster_policy();
        rules.per_connection_streams = 1;
        let mut patient = policy();
        let days = seconds(10 * 24 * 3600);
        (patient.keepalive_interval, patient.max_connection_age) = (days, days);
        (patient.timeouts.idle, patient.timeouts.stream_idle) = (days, days);
        let bench = Bench::with(&[backend(echo()).await], patient.clone(), rules);
        let limits = CircuitLimits([Some(100), None, None, None]);
        bench.worker.snapshot().clusters[0].circuits.limit(&limits);
        let mut client = Client::connect_with(&bench, patient).await;
        let open = || bench.worker.pool.connections();
        let mut burst = Vec::new();
        for count in 1..=4 {
            burst.push(client.call("/api.Echo/Echo", b"", false));
            client.flush().await;
            at_once(|| bench.worker.pool.counts() == (1, 0, 0) && open().len() == count).await;
        }
        let all = open();
        let end = async |client: &mut Client, stream| {
            client.engine.send_data(stream, b"", true, testing::now());
            assert_eq!(client.status(stream).await, "0");
        };
        // Not late by more than the proxy takes for its own.
        let quiet = async || {
            pass(seconds(1)).await;
            settle().await;
        };
        for stream in [burst[0], burst[2], burst[3]] {
            end(&mut client, stream).await;
        }
        quiet().await;
        // The first one has a stream now and then.
        for _ in 0..2 {
            bench.pass_and_pong(seconds(311)).await;
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0");
        }
        bench.pass_and_pong(seconds(900 - 622 - 2)).await;
        assert_eq!(open().len(), 4);
        let is_left = |left: &[usize]| {
            let open = open();
            let is = |(one, of): (&Rc<Upstream>, &usize)| Rc::ptr_eq(one, &all[*of]);
            open.len() == left.len() && open.iter().zip(left).all(is)
        };
        pass(seconds(2)).await;
        at_once(|| is_left(&[0, 1])).await;
        // That of the other one has run until now.
        end(&mut client, burst[1]).await;
        quiet().await;
        for _ in 0..2 {
            bench.pass_and_pong(seconds(311)).await;
        }
        bench.pass_and_pong(seconds(900 - 622 - 2)).await;
        assert!(is_left(&[0, 1]));
        pass(seconds(2)).await;
        at_once(|| is_left(&[0])).await;
        // Nor has the first one had any since.
        for _ in 0..4 {
            bench.pass_and_pong(seconds(311)).await;
        }
        assert!(is_left(&[0]));
        let used = bench.worker.snapshot().clusters[0].circuits.uses().next();
        assert_eq!(used.map(|one| one.used), Some(1));
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        assert!(is_left(&[0]));
    });
}

#[test]
fn a_connect_that_failed_keeps_no_other_from_the_clusters_circuits() {
    running(|| async {
        let (refused, address) = silent().await;
        drop(refused);
        let bench = Bench::new(&[address]);
        allow_one(&bench);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        let (head, ..) = client.answer(stream).await;
        let text = head.get(b"grpc-message").map(String::from_utf8_lossy);
        assert!(text.unwrap().ends_with("remote connection failure"));
    });
}

#[test]
fn an_endpoint_that_fell_silent_loses_its_connections_unless_it_is_used_all_the_same() {
    frozen(|| async {
        let (address, heads) = busy().await;
        let bench = Bench::new(&[address]);
        let publish = |close_connections, eligible| {
            bench.reload(|cluster| {
                cluster.endpoints = vec![Arc::new(Endpoint {
                    shared: cluster.endpoints[0].shared.clone(),
                    health: Health::Healthy,
                    close_connections,
                })];
                cluster.eligible = cluster.endpoints[..usize::from(eligible)].to_vec();
            });
        };
        let mut client = Client::connect(&bench).await;
        // As below the `panic_threshold`.
        publish(true, true);
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| heads.get() == 1).await;
        publish(true, true);
        settle().await;
        assert_eq!(bench.worker.pool.connections().len(), 1, "it is used");
        publish(true, false);
        assert_eq!(client.status(stream).await, "14");
        at_once(|| bench.worker.pool.connections().is_empty()).await;
    });
}
