mod deadlines;

mod limits;

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    net::{Shutdown, SocketAddr},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http2::Known;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    data_plane::{
        listener, pipe,
        route::RouteTable,
        testing::{self, Bench, Client, Got, at_once, backend, echo, running, stopped, until},
        upstream::retry,
    },
    snapshot::{Cluster, Endpoint, Snapshot},
    telemetry::metrics::{AttemptResult, Label as _, RetryRefusal},
};

/// Most connections are quiet most of the time, and these two are what each of them has beside its TLS session. The bounds
/// are sizes in which the allocator gives out: above them the next one is a quarter more. It is asked for an alignment,
/// and where the size is no power of two it looks for as much more as that may take.
#[test]
fn a_quiet_connection_takes_little_memory() {
    let counts = 2 * size_of::<usize>();
    let state = counts + size_of::<Downstream>() + align_of::<Downstream>() - 1;
    assert!(state <= 1280, "{state}");
    stopped(|| async {
        let bench = Bench::new(&[]);
        let (transport, _peer) = pipe::direct(1);
        let task = http2(
            bench.worker.clone(),
            Transport::Memory(transport),
            Vec::new(),
            ([192, 0, 2, 1], 1).into(),
            bench.worker.snapshot().listener.clone(),
            bench.worker.now(),
            [0u8; size_of::<Open>()],
        );
        let task = TASK + size_of_val(&task);
        assert!(task <= 512, "{task}");
    });
}

/// What the runtime has of a task beside its future.
const TASK: usize = 104;

/// As the access log and `x-forwarded-for` have it.
#[test]
fn a_client_of_ipv4_is_one_on_an_ipv6_socket_too() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        for (peer, text) in [
            ("[::ffff:192.0.2.7]:5", "192.0.2.7"),
            ("[2001:db8::7]:5", "2001:db8::7"),
            ("192.0.2.7:5", "192.0.2.7"),
        ] {
            let policy = bench.worker.snapshot().listener.clone();
            let now = bench.worker.now();
            let client = Downstream::new(&bench.worker, peer.parse().unwrap(), policy, now);
            assert_eq!(&*client.peer_text, text);
        }
    });
}

/// Takes all out of use, or brings them back.
fn eject(cluster: &mut Cluster, close_connections: bool) {
    for endpoint in &mut cluster.endpoints {
        *endpoint = Arc::new(Endpoint {
            shared: endpoint.shared.clone(),
            health: endpoint.health.clone(),
            close_connections,
        });
    }
    cluster.eligible.clear();
    if !close_connections {
        cluster.eligible.clone_from(&cluster.endpoints);
    }
}

#[test]
fn an_rpc_passes_both_ways_and_trailers_untouched() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"\0\0\0\0\x02hi", true);
        let (head, body, trailers) = client.answer(stream).await;
        assert_eq!(head.known(Known::Server), Some(&b"edge-proxy"[..]));
        assert_eq!(body, b"\0\0\0\0\x02hi");
        assert_eq!(trailers.get(b"grpc-status"), Some(&b"0"[..]));
        assert_eq!(trailers.get(b"x-envoy-of-backend"), Some(&b"1"[..]));
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
    });
}

#[test]
fn an_endpoint_abandoned_before_its_settings_can_be_used_again() {
    running(|| async {
        // Accepts, and says nothing until told.
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let bench = Bench::new(&[listener.local_addr().unwrap()]);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        // Its three attempts all end so.
        let shared = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        let open = || shared.connections.load(Ordering::Relaxed);
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(listener.accept().await.unwrap().0);
            until(|| open() == 1).await;
            bench.reload(|cluster| eject(cluster, true));
            bench.reload(|cluster| eject(cluster, false));
        }
        assert_eq!(client.status(stream).await, "14");
        tokio::task::spawn_local(async move {
            let mut sockets = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                sockets.push(tokio::task::spawn_local(testing::serve(socket, echo())));
            }
        });
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
    });
}

#[test]
fn rpcs_that_wait_for_an_endpoint_that_is_gone_go_elsewhere() {
    running(|| async {
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let good = backend(echo()).await;
        let bench = Bench::new(&[silent.local_addr().unwrap()]);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"body", true);
        client.flush().await;
        let _open = silent.accept().await.unwrap();
        bench.reload(|cluster| {
            let endpoint = Arc::new(Endpoint {
                shared: crate::snapshot::EndpointShared::new(good),
                health: crate::snapshot::Health::Healthy,
                close_connections: false,
            });
            cluster.endpoints = vec![endpoint.clone()];
            cluster.eligible = vec![endpoint];
        });
        assert_eq!(client.status(stream).await, "0");
    });
}

#[test]
fn a_client_that_vanishes_is_told_to_the_backend_at_once() {
    // The connection's linger is a timer, so it isn't waited for.
    stopped(|| async {
        let (requests, resets) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let address = backend({
            let (requests, resets) = (requests.clone(), resets.clone());
            move |_, event| match event {
                Event::Headers { .. } => requests.set(requests.get() + 1),
                Event::Reset { .. } => resets.set(resets.get() + 1),
                _ => {}
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| requests.get() == 1).await;
        drop(client);
        at_once(|| resets.get() == 1).await;
    });
}

#[test]
fn a_drain_spares_a_connection_until_its_moment_and_ends_a_late_one_with_its_first_rpc() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut early = Client::connect(&bench).await;
        let now = bench.worker.tick();
        let hours = Duration::from_secs(3600);
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now + hours,
        });
        let stream = early.call("/api.Echo/Echo", b"", true);
        assert_eq!(early.status(stream).await, "0");
        let mut late = Client::connect(&bench).await;
        let stream = late.call("/api.Echo/Echo", b"", true);
        assert_eq!(late.status(stream).await, "0");
        while !matches!(late.next().await, Got::Closed) {}
        assert_eq!(late.goaways, [u32::MAX >> 1, stream]);
        assert!(
            !early.engine.going_away(),
            "chosen at random within the hour"
        );
        assert_eq!(bench.shard.limits(Limit::ConnectionAge).get(), 0);
    });
}

#[test]
fn a_panic_in_a_step_ends_its_rpc_with_13_and_nothing_else() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        // At its head, at its body, at the response's head, at its data, at its trailers.
        for before in 0..5 {
            let running = client.call("/api.Echo/Echo", b"", false);
            client.flush().await;
            until(|| bench.worker.rpcs.borrow().len() == 1).await;
            testing::arm("step", before);
            let stream = client.call("/api.Echo/Echo", b"\0\0\0\0\x02hi", true);
            assert_eq!(client.status(stream).await, "13", "after {before} steps");
            client.engine.send_data(running, b"", true, testing::now());
            assert_eq!(client.status(running).await, "0");
        }
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        assert_eq!(endpoint.connections.load(Ordering::Relaxed), 1);
        until(|| endpoint.active.load(Ordering::Relaxed) == 0).await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
    });
}

#[test]
fn a_panic_in_an_upstreams_engine_ends_its_rpcs_with_14_and_nothing_else() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let mut other = Client::connect(&bench).await;
        let running = other.call("/api.Echo/Echo", b"", false);
        other.flush().await;
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        until(|| endpoint.active.load(Ordering::Relaxed) == 1).await;
        // The next that the backend says is an answer to what follows.
        until(|| {
            let backends = bench.worker.pool.connections();
            backends.iter().all(|one| {
                let engine = one.link().engine();
                engine.settings_unacked_since().is_none()
            })
        })
        .await;
        testing::arm("Upstream", 0);
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "14");
        assert_eq!(other.status(running).await, "14");
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        until(|| endpoint.active.load(Ordering::Relaxed) == 0).await;
        assert_eq!(endpoint.connections.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_panic_in_a_clients_engine_ends_that_connection_and_nothing_else() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let mut other = Client::connect(&bench).await;
        let running = other.call("/api.Echo/Echo", b"", false);
        other.flush().await;
        until(|| bench.worker.rpcs.borrow().len() == 1).await;
        client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        until(|| bench.worker.rpcs.borrow().len() == 2).await;
        testing::arm("Downstream", 0);
        client.call("/api.Echo/Echo", b"", true);
        while !matches!(client.next().await, Got::Closed) {}
        until(|| bench.worker.rpcs.borrow().len() == 1).await;
        other.engine.send_data(running, b"", true, testing::now());
        assert_eq!(other.status(running).await, "0");
    });
}

/// Says of every stream that nothing was done for it.
fn refuse(engine: &mut Connection, event: Event<'_>) {
    if let Event::Headers { stream, .. } = event {
        engine.reset(stream, Reason::REFUSED_STREAM);
    }
}

#[test]
fn an_rpc_keeps_its_cluster_and_nothing_else_of_the_snapshot_that_it_began_under() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        let first = bench.worker.snapshot();
        let endpoint = first.clusters[0].endpoints[0].shared.clone();
        until(|| endpoint.active.load(Ordering::Relaxed) == 1).await;
        let routes = Arc::downgrade(&first.routes);
        let cluster = Arc::downgrade(&first.clusters[0]);
        let mut next = Snapshot::clone(&first);
        drop(first);
        next.routes = Arc::new(RouteTable::new(Vec::new()));
        next.clusters.clear();
        bench.worker.follow(Arc::new(next));
        assert_eq!(routes.strong_count(), 0);
        assert_eq!(cluster.strong_count(), 1);
        client.engine.send_data(stream, b"", true, testing::now());
        assert_eq!(client.status(stream).await, "0");
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
        assert_eq!(cluster.strong_count(), 0);
    });
}

#[test]
fn an_endpoint_that_comes_back_while_its_rpcs_run_keeps_its_new_connection() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let long = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        let first = bench.worker.snapshot();
        let endpoint = first.clusters[0].endpoints[0].shared.clone();
        until(|| endpoint.active.load(Ordering::Relaxed) == 1).await;
        let mut without = Snapshot::clone(&first);
        without.clusters.clear();
        bench.worker.follow(Arc::new(without));
        bench.worker.follow(Arc::new(Snapshot::clone(&first)));
        for _ in 0..3 {
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0");
        }
        let opened = &bench.shard.connections(metrics::Side::Upstream).opened;
        assert_eq!(opened.get(), 2);
        client.engine.send_data(long, b"", true, testing::now());
        assert_eq!(client.status(long).await, "0");
    });
}

#[test]
fn a_refused_rpc_is_attempted_again_while_its_body_is_kept() {
    running(|| async {
        let backends = [backend(refuse).await, backend(echo()).await];
        let mut policy = testing::cluster_policy();
        policy.max_replay_bytes = 8;
        let bench = Bench::with(&backends, testing::policy(), policy);
        let mut client = Client::connect(&bench).await;
        let mut statuses = Vec::new();
        for body in [&b"\0\0\0\0\x03abc"[..], b"\0\0\0\0\x04abcd"] {
            for _ in 0..2 {
                let stream = client.call("/api.Echo/Echo", body, true);
                statuses.push(client.status(stream).await);
            }
        }
        // One of two comes to the refusing endpoint first.
        assert_eq!(statuses[..2], ["0", "0"]);
        statuses[2..].sort();
        assert_eq!(statuses[2..], ["0", "14"]);
        let series = bench.shard.cluster(&"backends".into());
        assert_eq!(series.retries.get(), 1);
        // The one that was repeated, and the one whose body wasn't kept.
        assert_eq!(series.attempts(AttemptResult::Refused).get(), 2);
        assert_eq!(series.attempts(AttemptResult::Reset).get(), 0);
        assert_eq!(series.attempts(AttemptResult::Ok).get(), 3);
        assert_eq!(series.retries_refused(RetryRefusal::Body).get(), 1);
        assert_eq!(series.retries_refused(RetryRefusal::Budget).get(), 0);
    });
}

#[test]
fn what_the_budget_refuses_is_counted() {
    running(|| async {
        let bench = Bench::new(&[backend(refuse).await]);
        let mut client = Client::connect(&bench).await;
        let state = bench.worker.cluster(&"backends".into());
        let later = bench.worker.tick() + Duration::from_secs(3600);
        *state.budget.borrow_mut() = retry::Budget::empty(later);
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "14");
        let series = &state.series;
        assert_eq!(series.retries.get(), 0);
        assert_eq!(series.retries_refused(RetryRefusal::Budget).get(), 1);
        // The last attempt that is allowed is no refusal.
        *state.budget.borrow_mut() = retry::Budget::new(bench.worker.tick(), 1);
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "14");
        assert_eq!(series.retries.get(), 2);
        for reason in RetryRefusal::ALL {
            let refused = u64::from(*reason == RetryRefusal::Budget);
            assert_eq!(series.retries_refused(*reason).get(), refused);
        }
    });
}

#[test]
fn rpcs_earn_the_tokens_that_refused_attempts_cost() {
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect(&bench).await;
        let now = bench.worker.tick();
        let state = bench.worker.cluster(&"backends".into());
        let again = || {
            let budget = &mut state.budget.borrow_mut();
            retry::decide(retry::Outcome::RefusedStream, 1, true, budget, now) == retry::Retry::Paid
        };
        while again() {}
        for _ in 0..5 {
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0");
        }
        assert!(again());
        assert!(!again());
    });
}

/// A backend that takes streams and windows of any size on its first connection and then reads nothing; the others are
/// good. Gives the first connection's socket, to write to.
async fn deaf_at_first() -> (SocketAddr, Rc<RefCell<Option<std::net::TcpStream>>>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    socket2::SockRef::from(&listener)
        .set_recv_buffer_size(16 * 1024)
        .unwrap();
    let address = listener.local_addr().unwrap();
    let first = Rc::new(RefCell::new(None));
    let slot = first.clone();
    tokio::task::spawn_local(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = socket.into_std().unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE, and WINDOW_UPDATE for the connection.
        let mut frames = vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
        frames.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0]);
        socket.write_all(&frames).unwrap();
        *slot.borrow_mut() = Some(socket);
        while let Ok((socket, _)) = listener.accept().await {
            tokio::task::spawn_local(testing::serve(socket, echo()));
        }
    });
    (address, first)
}

/// What an RPC came to whose backend went away, by this GOAWAY or by the end of the connection, while its request stood
/// behind an upload that the socket doesn't take: its status, how often it was repeated, and how many attempts the
/// backend refused.
async fn behind_an_upload(goaway: Option<&[u8]>) -> (String, u64, u64) {
    let (address, deaf) = deaf_at_first().await;
    let bench = Bench::new(&[address]);
    let mut client = Client::connect(&bench).await;
    client.call("/api.Echo/Upload", &vec![0; 32 << 20], false);
    // More waits than the output holds, so it is full; and it stays so for a while, so the socket is full, too.
    let mut settled = (0, 0);
    while settled.1 < 10 {
        tokio::select! {
            got = client.next() => panic!("{got:?}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        let held = bench.worker.memory.held();
        settled = match settled {
            (before, times) if before == held && held > 288 * 1024 => (held, times + 1),
            _ => (held, 0),
        };
    }
    let stream = client.call("/api.Echo/Echo", b"", true);
    client.flush().await;
    let state = bench.worker.cluster(&"backends".into());
    until(|| state.series.active.get() == 2).await;
    // What one RPC earns is no token, and none comes with time.
    let later = bench.worker.tick() + Duration::from_secs(3600);
    *state.budget.borrow_mut() = retry::Budget::empty(later);
    let mut socket = deaf.borrow_mut().take().unwrap();
    match goaway {
        Some(goaway) => socket.write_all(goaway).unwrap(),
        None => socket.shutdown(Shutdown::Both).unwrap(),
    }
    let status = client.status(stream).await;
    let series = bench.shard.cluster(&"backends".into());
    let refused = series.attempts(AttemptResult::Refused).get();
    (status, series.retries.get(), refused)
}

#[test]
fn a_request_that_never_left_is_attempted_again_for_nothing() {
    // NO_ERROR, and the upload is the last stream.
    let goaway = [&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 4]].concat();
    for goaway in [Some(&goaway[..]), None] {
        running(|| async {
            // The kernel may take more of the upload after all, and the request with it: then it may not be repeated.
            let mut all = Vec::new();
            for _ in 0..10 {
                let came_to = behind_an_upload(goaway).await;
                if came_to == ("0".to_owned(), 1, 0) {
                    return;
                }
                all.push(came_to);
            }
            panic!("{all:?}");
        });
    }
}

/// A client of `source`, on its way through a handshake of which so many may be pending.
async fn handed_over(
    bench: &Bench,
    counts: &Arc<listener::Counts>,
    source: [u8; 4],
    handshakes: usize,
) -> TcpStream {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let load = Arc::<crate::data_plane::worker::Load>::default();
    let ticket = Ticket::take(counts, &load, source.into(), [9, 9, handshakes])
        .unwrap()
        .0;
    let accepted = Accepted {
        socket: socket.into_std().unwrap(),
        peer,
        ticket,
    };
    tokio::task::spawn_local(serve(bench.worker.clone(), accepted));
    client
}

#[test]
fn a_handshake_without_a_hello_is_given_up_for_a_newer_connection() {
    running(|| async {
        let bench = Bench::new(&[]);
        let counts = Arc::<listener::Counts>::default();
        let mut silent = handed_over(&bench, &counts, [192, 0, 2, 1], 1).await;
        let mut newer = handed_over(&bench, &counts, [192, 0, 2, 1], 1).await;
        let mut byte = [0];
        assert_eq!(silent.read(&mut byte).await.unwrap(), 0);
        assert_eq!(bench.shard.handshakes(HandshakeResult::Refused).get(), 1);
        assert!(
            timeout(Duration::from_millis(50), newer.read(&mut byte))
                .await
                .is_err()
        );
        until(|| counts.open() == 1).await;
    });
}

#[test]
fn a_handshake_that_stops_after_its_hello_is_given_up_for_a_client_that_has_fewer() {
    running(|| async {
        let bench = Bench::new(&[]);
        let counts = Arc::<listener::Counts>::default();
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(testing::tls().1, name).unwrap();
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        let mut heard = Vec::new();
        for source in [1, 1, 2] {
            let mut client = handed_over(&bench, &counts, [192, 0, 2, source], 2).await;
            client.write_all(&hello).await.unwrap();
            assert_ne!(client.read(&mut [0; 16 << 10]).await.unwrap(), 0);
            heard.push(client);
        }
        heard[0].read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(bench.shard.handshakes(HandshakeResult::Refused).get(), 1);
        until(|| counts.open() == 2).await;
    });
}

#[test]
fn above_a_quarter_of_the_memory_the_longest_stalled_stream_is_reset() {
    running(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                let head =
                    testing::headers(&[(":status", "200"), ("content-type", "application/grpc")]);
                engine.send_headers(stream, &head, false);
                engine.send_data(stream, &[0; 200 * 1024], false, testing::now());
            }
        })
        .await;
        let (policy, cluster) = (testing::policy(), testing::cluster_policy());
        let bench = Bench::within(Some(4 * 340 * 1024), &[address], policy, cluster);
        let mut client = Client::connect(&bench).await;
        // Nothing of them is credited: all but a window stays with the proxy.
        let first = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        until(|| bench.worker.memory.held() > 100 * 1024).await;
        assert_eq!(bench.shard.limits(Limit::Memory).get(), 0);
        for _ in 0..2 {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        until(|| bench.shard.limits(Limit::Memory).get() == 1).await;
        until(|| !bench.worker.memory.is_exceeded()).await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 2);
        loop {
            if let Got::Reset(stream, reason) = client.next().await {
                assert_eq!((stream, reason), (first, Reason::ENHANCE_YOUR_CALM));
                break;
            }
        }
        drop(client);
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
        until(|| bench.worker.memory.held() == 0).await;
        assert!(bench.logged().iter().any(|line| line.contains("OM")));
    });
}

#[test]
fn above_it_no_copies_are_kept() {
    running(|| async {
        let backends = [backend(refuse).await];
        let (policy, cluster) = (testing::policy(), testing::cluster_policy());
        let bench = Bench::within(Some(4), &backends, policy, cluster);
        bench.worker.memory.change(0, 1);
        let mut client = Client::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"\0\0\0\0\x03abc", true);
        assert_eq!(client.status(stream).await, "14");
        let series = bench.shard.cluster(&"backends".into());
        assert_eq!(series.retries.get(), 0);
    });
}
