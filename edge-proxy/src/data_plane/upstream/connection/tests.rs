// Who waits for the backend's credit.
mod congestion;

use std::{cell::RefCell, ops::Range};

use super::*;
use crate::data_plane::stage::{Connecting, Network};
use crate::data_plane::testing::{
    self, ACK, Bench, Client, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw,
    SETTINGS, WINDOW_UPDATE, at_once, backend, backend_behind, echo, frozen, pass, running, settle,
};
use crate::snapshot::circuit::{Circuit, CircuitLimits};
use crate::telemetry::metrics::AttemptResult;

/// The connections of the bench's only endpoint.
fn connections(bench: &Bench) -> Vec<Rc<Upstream>> {
    let pools: Vec<_> = bench
        .worker
        .pool
        .endpoints
        .borrow()
        .values()
        .cloned()
        .collect();
    pools
        .iter()
        .flat_map(|pool| pool.connections.borrow().clone())
        .collect()
}

/// Clients that are left alone for days.
fn patient() -> crate::snapshot::ListenerPolicy {
    let mut policy = testing::policy();
    let days = Duration::from_secs(10 * 24 * 3600);
    policy.keepalive_interval = days;
    policy.max_connection_age = days;
    policy.timeouts.idle = days;
    policy.timeouts.stream_idle = days;
    policy
}

#[test]
fn a_peer_that_acknowledges_nothing_for_10_s_is_given_up_by_the_kernel() {
    running(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let connected = connect(listener.local_addr().unwrap()).await.unwrap();
        let Transport::Plain(socket) = connected else {
            panic!("no socket");
        };
        let timeout = SockRef::from(&socket).tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_secs(10)));
        assert!(socket.nodelay().unwrap());
    });
}

#[test]
fn no_ping_to_a_backend_in_the_first_five_minutes_and_one_after() {
    for busy in [false, true] {
        frozen(|| async {
            let pings = Rc::new(Cell::new(0));
            let address = backend_behind(
                {
                    let pings = pings.clone();
                    move |frame| {
                        let asks = frame[3] == PING && frame[4] & ACK == 0;
                        pings.set(pings.get() + u32::from(asks));
                        true
                    }
                },
                echo(),
            )
            .await;
            let bench = Bench::with(&[address], patient(), testing::cluster_policy());
            let mut client = Client::connect_with(&bench, patient()).await;
            if busy {
                client.call("/api.Echo/Echo", b"", false);
            }
            for (after, sent) in [(0, 0), (299, 0), (20, 1), (280, 1), (40, 2)] {
                pass(Duration::from_secs(after)).await;
                at_once(|| pings.get() >= sent).await;
                // It comes behind whatever was sent before.
                let stream = client.call("/api.Echo/Echo", b"", true);
                assert_eq!(client.status(stream).await, "0");
                assert_eq!(pings.get(), sent, "busy: {busy}");
                at_once(|| connections(&bench)[0].ping.get().is_none()).await;
            }
            assert_eq!(connections(&bench).len(), 1);
        });
    }
}

#[test]
fn a_backend_that_does_not_answer_a_ping_in_20_s_loses_its_connection() {
    frozen(|| async {
        let pings = Rc::new(Cell::new(0));
        let address = backend_behind(
            {
                let pings = pings.clone();
                move |frame| {
                    pings.set(pings.get() + u32::from(frame[3] == PING));
                    frame[3] != PING
                }
            },
            echo(),
        )
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let open = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(|| {
            connections(&bench)
                .first()
                .is_some_and(|c| c.link.engine().stream_count() == 1)
        })
        .await;
        pass(Duration::from_secs(311)).await;
        at_once(|| pings.get() == 1).await;
        pass(Duration::from_secs(18)).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0", "19 s are not 20");
        pass(Duration::from_secs(2)).await;
        assert_eq!(client.status(open).await, "14");
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0", "on another connection");
    });
}

#[test]
fn a_backend_whose_socket_takes_nothing_loses_its_connection_after_write_stall() {
    for stall in [30, 7] {
        frozen(|| async {
            // Gives all the windows there are, and reads nothing.
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let address = listener.local_addr().unwrap();
            tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.unwrap();
                let mut frames = vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
                frames.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0]);
                socket.try_write(&frames).unwrap();
                std::future::pending::<()>().await;
            });
            let mut policy = patient();
            policy.timeouts.write_stall = Duration::from_secs(stall);
            let bench = Bench::with(&[address], policy.clone(), testing::cluster_policy());
            let mut client = Client::connect_with(&bench, policy).await;
            let stream = client.call("/api.Echo/Echo", &vec![0; 64 << 20], true);
            let status = tokio::task::spawn_local(async move { client.status(stream).await });
            let stalled = || connections(&bench).first()?.link.write_blocked();
            // What the kernel still moves is progress, and then it begins anew.
            loop {
                at_once(|| stalled().is_some()).await;
                let since = stalled();
                pass(Duration::from_secs(stall - 1)).await;
                settle().await;
                assert_eq!(connections(&bench).len(), 1);
                if stalled() != since {
                    continue;
                }
                pass(Duration::from_secs(2)).await;
                at_once(|| stalled() != since).await;
                if connections(&bench).is_empty() {
                    break;
                }
            }
            assert_eq!(status.await.unwrap(), "14");
            assert_eq!(bench.shard.limits(Limit::WriteStall).get(), 1);
            assert!(connections(&bench).is_empty());
        });
    }
}

#[test]
fn a_connection_that_goes_away_is_replaced_at_once_for_those_that_wait() {
    frozen(|| async {
        let streams = Rc::new(RefCell::new(Vec::new()));
        let seen = streams.clone();
        let address = backend(move |engine, event| match event {
            Event::Headers { stream, .. } => seen.borrow_mut().push(stream),
            Event::Data { .. } => engine.shutdown(Reason::NO_ERROR),
            _ => {}
        })
        .await;
        let mut cluster = testing::cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1);
        let bench = Bench::with(&[address], patient(), cluster);
        let mut client = Client::connect_with(&bench, patient()).await;
        client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(|| streams.borrow().len() == 1).await;
        client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        let waits = || bench.shard.limits(Limit::UpstreamConnections).get() == 1;
        at_once(waits).await;
        // The rest of the first one's message is what the backend says GOAWAY to.
        client.engine.send_data(1, b"more", false, testing::now());
        client.flush().await;
        at_once(|| streams.borrow().len() == 2).await;
        assert_eq!(connections(&bench).len(), 2, "the first one has its stream");
    });
}

#[test]
fn the_backends_settings_are_awaited_within_connect_timeout() {
    frozen(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let bench = Bench::with(
            &[listener.local_addr().unwrap()],
            patient(),
            testing::cluster_policy(),
        );
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        let (socket, _) = listener.accept().await.unwrap();
        at_once(|| connections(&bench).len() == 1).await;
        let first = connections(&bench).remove(0);
        pass(Duration::from_millis(4900)).await;
        settle().await;
        assert!(!first.link.is_closed());
        pass(Duration::from_millis(200)).await;
        at_once(|| first.link.is_closed()).await;
        socket.readable().await.unwrap();
        let mut seen = vec![0; 1024];
        let n = socket.try_read(&mut seen).unwrap();
        seen.truncate(n);
        seen.drain(..24);
        let kinds: Vec<_> = testing::whole_frames(&mut seen)
            .iter()
            .map(|frame| frame[3])
            .collect();
        assert_eq!(kinds, [SETTINGS, WINDOW_UPDATE], "and no HEADERS");
        // Nor do its further attempts wait longer.
        let status = tokio::task::spawn_local(async move { client.status(stream).await });
        for _ in 0..2 {
            pass(Duration::from_millis(5100)).await;
            settle().await;
        }
        assert_eq!(status.await.unwrap(), "14");
    });
}

#[test]
fn a_connection_that_is_full_gets_siblings_up_to_max_connections_then_rpcs_wait() {
    frozen(|| async {
        let streams = Rc::new(RefCell::new(Vec::new()));
        let address = backend({
            let streams = streams.clone();
            move |_, event| {
                if let Event::Headers { stream, .. } = event {
                    streams.borrow_mut().push(stream);
                }
            }
        })
        .await;
        let mut cluster = testing::cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (2, 3);
        let bench = Bench::with(&[address], patient(), cluster);
        let mut client = Client::connect_with(&bench, patient()).await;
        for (calls, running, open) in [(3, 3, 1), (1, 4, 2), (2, 6, 2)] {
            for _ in 0..calls {
                client.call("/api.Echo/Echo", b"", true);
            }
            client.flush().await;
            at_once(|| streams.borrow().len() == running).await;
            assert_eq!(connections(&bench).len(), open);
        }
        let last = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        let limited = || bench.shard.limits(Limit::UpstreamConnections).get() == 1;
        at_once(limited).await;
        pass(Duration::from_millis(4900)).await;
        settle().await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 7);
        // It waits for connect_timeout, once for each attempt.
        let status = tokio::task::spawn_local(async move { client.status(last).await });
        for _ in 0..3 {
            pass(Duration::from_millis(5100)).await;
            settle().await;
        }
        assert_eq!(status.await.unwrap(), "14");
        assert_eq!(streams.borrow().len(), 6);
    });
}

/// Refuses the first `streams`, then echoes.
fn refusing(
    streams: usize,
    seen: &Rc<Cell<usize>>,
) -> impl FnMut(&mut Connection, Event<'_>) + use<> {
    let (seen, mut echo) = (seen.clone(), echo());
    move |engine, event| match event {
        Event::Headers { stream, .. } if seen.replace(seen.get() + 1) < streams => {
            engine.reset(stream, Reason::REFUSED_STREAM);
        }
        // The body of a refused one.
        Event::Data { stream, .. } if (stream as usize) < 2 * streams => {}
        event => echo(engine, event),
    }
}

#[test]
fn a_refused_stream_goes_to_another_connection_while_the_first_serves_on() {
    running(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let bench = Bench::new(&[listener.local_addr().unwrap()]);
        let mut client = Client::connect(&bench).await;
        let refused = client.call("/api.Echo/Echo", b"one", true);
        client.flush().await;
        let (first, second) = (Rc::default(), Rc::default());
        let socket = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(testing::serve(socket, refusing(1, &first)));
        // The second connection is there, but says nothing yet: who has no quarrel with the first one uses it.
        let socket = listener.accept().await.unwrap().0;
        let other = client.call("/api.Echo/Echo", b"two", true);
        assert_eq!(client.status(other).await, "0");
        assert_eq!(first.get(), 2);
        tokio::task::spawn_local(testing::serve(socket, refusing(0, &second)));
        assert_eq!(client.status(refused).await, "0");
        assert_eq!((first.get(), second.get()), (2, 1));
    });
}

/// Of the first of each line that waits for a connection: whether it insists on another one.
fn insisting(bench: &Bench) -> Vec<bool> {
    let endpoints = bench.worker.pool.endpoints.borrow();
    let waiting = endpoints.values().map(|pool| pool.waiting.borrow());
    waiting
        .flat_map(|queue| {
            let firsts = queue.next().map(|(_, avoid)| avoid.is_some());
            firsts.collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn those_that_insist_on_another_connection_stand_in_one_line_while_there_is_one_to_avoid() {
    frozen(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let calls: Vec<_> = (0..50)
            .map(|_| client.call("/api.Echo/Echo", b"", true))
            .collect();
        client.flush().await;
        let socket = listener.accept().await.unwrap().0;
        let seen = Rc::default();
        let first = tokio::task::spawn_local(testing::serve(socket, refusing(50, &seen)));
        // The second connection is there, but says nothing yet.
        let second = listener.accept().await.unwrap().0;
        let waiting = || bench.worker.pool.counts().2;
        at_once(|| seen.get() == 50 && waiting() == 50).await;
        assert_eq!(insisting(&bench), [true]);
        first.abort();
        at_once(|| insisting(&bench) == [false]).await;
        assert_eq!(waiting(), 50);
        tokio::task::spawn_local(testing::serve(second, echo()));
        for call in calls {
            assert_eq!(client.status(call).await, "0");
        }
    });
}

#[test]
fn who_was_refused_elsewhere_insists_on_nothing() {
    frozen(|| async {
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let refuses = backend(refusing(1, &Rc::default())).await;
        let addresses = [refuses, silent.local_addr().unwrap()];
        let bench = Bench::with(&addresses, patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        // One for each endpoint.
        for _ in 0..2 {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        let refused = || {
            let series = bench.shard.cluster(&"backends".into());
            series.attempts(AttemptResult::Refused).get()
        };
        at_once(|| refused() == 1 && bench.worker.pool.counts().2 == 2).await;
        assert_eq!(insisting(&bench), [false]);
    });
}

#[test]
fn a_refused_stream_goes_to_the_same_connection_when_there_can_be_no_other() {
    for limit in [1, 8] {
        running(|| async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let mut cluster = testing::cluster_policy();
            cluster.max_connections = limit;
            let address = listener.local_addr().unwrap();
            let bench = Bench::with(&[address], testing::policy(), cluster);
            let mut client = Client::connect(&bench).await;
            let stream = client.call("/api.Echo/Echo", b"one", true);
            client.flush().await;
            let seen = Rc::default();
            let socket = listener.accept().await.unwrap().0;
            // A second connection is refused by the kernel.
            drop(listener);
            tokio::task::spawn_local(testing::serve(socket, refusing(1, &seen)));
            assert_eq!(client.status(stream).await, "0", "of {limit}");
            assert_eq!(seen.get(), 2);
        });
    }
}

/// Refuses all connections, and counts them.
#[derive(Default)]
struct Refusing(Cell<usize>);

impl Network for Refusing {
    fn connect(&self, _: SocketAddr) -> Connecting {
        self.0.set(self.0.get() + 1);
        Box::pin(std::future::ready(Err(
            io::ErrorKind::ConnectionRefused.into()
        )))
    }
}

#[test]
fn an_endpoint_that_is_full_and_takes_no_other_connection_is_asked_for_one_now_and_then() {
    frozen(|| async {
        let mut cluster = testing::cluster_policy();
        cluster.per_connection_streams = 3;
        let bench = Bench::with(&[backend(echo()).await], patient(), cluster);
        let mut client = Client::connect_with(&bench, patient()).await;
        let running: Vec<_> = (0..3)
            .map(|_| client.call("/api.Echo/Echo", b"", false))
            .collect();
        client.flush().await;
        let is_full = || {
            let first = connections(&bench).first().cloned();
            first.is_some_and(|c| c.link.engine().stream_count() == 3)
        };
        at_once(is_full).await;
        let network = Rc::<Refusing>::default();
        *bench.worker.network.borrow_mut() = Some(network.clone());
        let tried = || network.0.get();
        let counts = || {
            let (_, opening, waiting) = bench.worker.pool.counts();
            (opening, waiting)
        };
        let mut calls: Vec<_> = (0..10)
            .map(|_| client.call("/api.Echo/Echo", b"", true))
            .collect();
        client.flush().await;
        at_once(|| tried() > 0 && counts() == (0, 10)).await;
        assert_eq!(tried(), 4, "as many as ten would fill");
        // The room of one stream serves all of them, one after the other.
        client
            .engine
            .send_data(running[0], b"", true, testing::now());
        for call in calls.drain(..) {
            assert_eq!(client.status(call).await, "0");
        }
        assert_eq!(tried(), 4, "though ten streams ended while others waited");
        client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(is_full).await;
        let last = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| counts() == (0, 1)).await;
        settle().await;
        assert_eq!(tried(), 4);
        pass(Duration::from_millis(100)).await;
        at_once(|| tried() == 5).await;
        // Nobody has wanted one since.
        pass(Duration::from_secs(1)).await;
        settle().await;
        assert_eq!((tried(), counts()), (5, (0, 1)));
        client
            .engine
            .send_data(running[1], b"", true, testing::now());
        assert_eq!(client.status(last).await, "0");
    });
}

#[test]
fn a_peer_that_allows_no_streams_is_congested() {
    frozen(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (none, _) = listener.accept().await.unwrap();
            let settings = testing::frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
            none.try_write(&settings).unwrap();
            let (some, _) = listener.accept().await.unwrap();
            testing::serve(some, echo()).await;
            drop(none);
        });
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        assert_eq!(connections(&bench).len(), 2);
    });
}

#[test]
fn small_and_empty_frames_of_one_read_are_joined_and_none_is_empty() {
    frozen(|| async {
        let sizes = Rc::new(RefCell::new(Vec::new()));
        let address = backend_behind(
            {
                let sizes = sizes.clone();
                move |frame| {
                    if frame[3] == DATA {
                        sizes.borrow_mut().push((frame.len() - 9, frame[4]));
                    }
                    true
                }
            },
            echo(),
        )
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        let block = raw.block(&testing::grpc("/api.Echo/Echo"));
        raw.send(&testing::frame(HEADERS, END_HEADERS, 1, &block))
            .await;
        let open = || {
            connections(&bench)
                .first()
                .is_some_and(|c| c.link.engine().stream_count() == 1)
        };
        at_once(open).await;
        let mut crumbs = Vec::new();
        for byte in 0..40 {
            crumbs.extend(testing::frame(DATA, 0, 1, &[byte]));
            crumbs.extend(testing::frame(DATA, 0, 1, &[]));
        }
        raw.send(&crumbs).await;
        at_once(|| sizes.borrow().iter().map(|(size, _)| size).sum::<usize>() == 40).await;
        assert_eq!(*sizes.borrow(), [(40, 0)]);
        raw.send(&testing::frame(DATA, 0, 1, &[])).await;
        raw.send(&testing::frame(DATA, END_STREAM, 1, &[])).await;
        raw.next_of(HEADERS).await;
        assert_eq!(*sizes.borrow(), [(40, 0), (0, END_STREAM)]);
    });
}

#[test]
fn backends_headers_may_be_64_kib() {
    frozen(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers {
                stream, headers, ..
            } = event
            {
                let size = headers.get(b"x-size").unwrap();
                let size: usize = std::str::from_utf8(size).unwrap().parse().unwrap();
                let mut head = testing::headers(&[
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", "0"),
                ]);
                // RFC 9113 §6.5.2: 32 octets for each field.
                let rest = size - head.list_size() - 32 - 1;
                head.push(b"x", &vec![b'x'; rest]);
                assert_eq!(head.list_size(), size);
                engine.send_headers(stream, &head, true);
            }
        })
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        for (size, status) in [("65536", "0"), ("65537", "14"), ("1000", "0")] {
            let mut head = testing::grpc("/api.Echo/Echo");
            head.push(b"x-size", size.as_bytes());
            let stream = client.engine.open(head, true, 0).unwrap();
            assert_eq!(client.status(stream).await, status, "{size}");
        }
        assert_eq!(connections(&bench).len(), 1);
    });
}

#[test]
fn a_connection_that_is_quiet_for_1_s_gives_back_what_only_busy_times_need() {
    frozen(|| async {
        let bench = Bench::with(
            &[backend(echo()).await],
            patient(),
            testing::cluster_policy(),
        );
        let mut client = Client::connect_with(&bench, patient()).await;
        let mut first = None;
        for _ in 0..2 {
            let stream = client.call("/api.Echo/Echo", b"", false);
            client.flush().await;
            let seen = || connections(&bench).iter().any(|one| !one.is_quiet());
            at_once(seen).await;
            let first = first.get_or_insert_with(|| connections(&bench).remove(0));
            pass(Duration::from_secs(2)).await;
            settle().await;
            assert!(first.used.get(), "its stream is open");
            client.engine.send_data(stream, b"", true, testing::now());
            assert_eq!(client.status(stream).await, "0");
            at_once(|| first.is_quiet()).await;
            pass(Duration::from_millis(900)).await;
            settle().await;
            assert!(first.used.get());
            pass(Duration::from_millis(200)).await;
            at_once(|| !first.used.get()).await;
        }
        assert_eq!(connections(&bench).len(), 1);
    });
}

/// A backend that answers no PING, and a stream when it gets DATA of it, with a head alone; and the streams that it has
/// seen.
async fn without_pongs() -> (SocketAddr, Rc<RefCell<Vec<u32>>>) {
    let streams = Rc::new(RefCell::new(Vec::new()));
    let seen = streams.clone();
    let address = backend_behind(
        |frame| frame[3] != PING,
        move |engine, event| match event {
            Event::Headers { stream, .. } => seen.borrow_mut().push(stream),
            Event::Data { stream, .. } => {
                let head =
                    testing::headers(&[(":status", "200"), ("content-type", "application/grpc")]);
                engine.send_headers(stream, &head, false);
            }
            _ => {}
        },
    );
    (address.await, streams)
}

/// An RPC of this number, which goes on.
async fn open(raw: &mut Raw, number: usize) -> u32 {
    let stream = 2 * number as u32 + 1;
    let block = raw.block(&testing::grpc("/api.Echo/Echo"));
    raw.send(&testing::frame(HEADERS, END_HEADERS, stream, &block))
        .await;
    stream
}

/// RPCs of these numbers, one after the other, each cancelled when the backend has seen it.
async fn cancelled(bench: &Bench, raw: &mut Raw, seen: &RefCell<Vec<u32>>, numbers: Range<usize>) {
    for number in numbers {
        let stream = open(raw, number).await;
        at_once(|| seen.borrow().len() == number + 1).await;
        let reset = testing::frame(RST_STREAM, 0, stream, &Reason::CANCEL.0.to_be_bytes());
        raw.send(&reset).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
    }
}

#[test]
fn a_connection_on_which_many_cancels_wait_is_used_only_if_there_is_no_other() {
    for (most, wanted) in [(1, 1), (2, 2)] {
        frozen(|| async {
            let (address, seen) = without_pongs().await;
            let mut cluster = testing::cluster_policy();
            (cluster.max_connections, cluster.per_connection_streams) = (most, 3);
            let bench = Bench::with(&[address], patient(), cluster);
            let (mut raw, _) = Raw::open(&bench, patient()).await;
            // Ten resets may be under way.
            cancelled(&bench, &mut raw, &seen, 0..12).await;
            let waiting = || connections(&bench)[0].link.engine().cancels_waiting();
            assert_eq!((waiting(), connections(&bench).len()), (2, 1));
            cancelled(&bench, &mut raw, &seen, 12..13).await;
            assert_eq!((waiting(), connections(&bench).len()), (3, 1));
            open(&mut raw, 13).await;
            at_once(|| seen.borrow().len() == 14).await;
            assert_eq!(connections(&bench).len(), wanted);
            let first = connections(&bench).remove(0);
            let on_first = first.link.engine().stream_count();
            assert_eq!(on_first, usize::from(most == 1));
        });
    }
}

#[test]
fn a_backend_that_leaves_cancels_without_a_pong_for_20_s_loses_its_connection() {
    frozen(|| async {
        let (address, seen) = without_pongs().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        cancelled(&bench, &mut raw, &seen, 0..10).await;
        let first = connections(&bench).remove(0);
        let unanswered = || first.link.engine().ping_unanswered_since().is_some();
        assert!(!unanswered(), "ten may go without one");
        cancelled(&bench, &mut raw, &seen, 10..13).await;
        at_once(unanswered).await;
        assert_eq!(first.cancelling.borrow().len(), 3);
        pass(Duration::from_secs(19)).await;
        settle().await;
        assert!(!first.link.is_closed(), "19 s are not 20");
        open(&mut raw, 13).await;
        at_once(|| seen.borrow().len() == 14).await;
        pass(Duration::from_secs(1)).await;
        at_once(|| first.link.is_closed()).await;
        assert!(first.cancelling.borrow().is_empty());
        let answer = raw.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, END_STREAM, "by a status alone");
        open(&mut raw, 14).await;
        at_once(|| seen.borrow().len() == 15).await;
        assert_eq!(connections(&bench).len(), 1, "on another one");
    });
}

#[test]
fn cancels_that_go_make_room_for_those_that_wait() {
    frozen(|| async {
        let (address, seen) = without_pongs().await;
        let mut cluster = testing::cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1000);
        let bench = Bench::with(&[address], patient(), cluster);
        let mut policy = patient();
        policy.http2.max_concurrent_streams = 1000;
        let (mut raw, _) = Raw::open(&bench, policy).await;
        cancelled(&bench, &mut raw, &seen, 0..11).await;
        let first = connections(&bench).remove(0);
        assert_eq!(first.cancelling.borrow().len(), 1);
        // All but one of the streams that the backend allows.
        let most = first.link.engine().peer_max_streams() as usize;
        cancelled(&bench, &mut raw, &seen, 11..10 + most - 1).await;
        let live = open(&mut raw, 10 + most - 1).await;
        at_once(|| seen.borrow().len() == 10 + most).await;
        assert!(!first.link.engine().can_open());
        assert_eq!(first.cancelling.borrow().len(), most - 1);
        open(&mut raw, 10 + most).await;
        let waits = || bench.shard.limits(Limit::UpstreamConnections).get() == 1;
        at_once(waits).await;
        // The answer to the last stream confirms the resets of all earlier ones.
        raw.send(&testing::frame(DATA, 0, live, b"more")).await;
        at_once(|| seen.borrow().len() == 10 + most + 1).await;
        assert!(first.cancelling.borrow().is_empty());
        assert_eq!(first.link.engine().stream_count(), 2);
    });
}
