// Resets that wait for the backend's acknowledgement.
mod cancels;
// Who waits for the backend's credit.
mod congestion;
// What waits to leave.
mod opens;
// What the backend doesn't take.
mod refused;
// What ends a connection for all, and mustn't.
mod shared;

use std::cell::RefCell;
use std::collections::HashSet;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::data_plane::pipe::{self, PipeEnd};
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

/// A client that is left alone for days, and a bench with one endpoint.
async fn patiently(endpoint: SocketAddr) -> (Bench, Client) {
    let bench = Bench::with(&[endpoint], patient(), testing::cluster_policy());
    let client = Client::connect_with(&bench, patient()).await;
    (bench, client)
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
        let kernel = SockRef::from(&socket);
        assert!(kernel.keepalive().unwrap(), "while nothing is sent");
        let (after, then) = (kernel.tcp_keepalive_time(), kernel.tcp_keepalive_interval());
        let seconds = (after.unwrap().as_secs(), then.unwrap().as_secs());
        assert_eq!(seconds, (300, 10));
        assert!(socket.nodelay().unwrap());
    });
}

/// Its only connection leads to this end, whose socket takes whatever there is.
struct Wide(RefCell<Option<PipeEnd>>);

impl Network for Wide {
    fn connect(&self, _: SocketAddr) -> Connecting {
        let end = self.0.take().expect("one connection");
        Box::pin(std::future::ready(Ok(end)))
    }
}

/// Of a client's preface (RFC 9113 §3.4).
const PREFACE: usize = 24;

#[test]
fn a_connection_whose_stream_numbers_are_used_up_is_replaced() {
    running(|| async {
        let mut policy = testing::cluster_policy();
        policy.max_connections = 1;
        let bench = Bench::with(&[backend(echo()).await], patient(), policy);
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        let first = connections(&bench)[0].clone();
        // Two are left.
        first.link.engine().skip_to((1 << 31) - 3);
        for _ in 0..4 {
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0");
        }
        at_once(|| first.link.is_closed()).await;
        let left = connections(&bench);
        assert!(left.len() == 1 && !Rc::ptr_eq(&left[0], &first));
    });
}

#[test]
fn a_connection_on_which_the_backend_calls_much_malformed_is_replaced_and_what_runs_there_ends_well()
 {
    running(|| async {
        let mut echo = echo();
        let picky = move |engine: &mut Connection, event: Event<'_>| match &event {
            Event::Headers {
                stream, headers, ..
            } if headers.path() == Some(b"/api.Echo/Odd") => {
                engine.reset(*stream, Reason::PROTOCOL_ERROR);
            }
            _ => echo(engine, event),
        };
        let (bench, mut client) = patiently(backend(picky).await).await;
        let runs = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(|| !connections(&bench).is_empty()).await;
        let first = connections(&bench)[0].clone();
        at_once(|| first.is_ready()).await;
        for _ in 0..COMPLAINTS {
            assert!(first.is_ready());
            let odd = client.call("/api.Echo/Odd", b"", true);
            assert_eq!(client.status(odd).await, "14");
        }
        at_once(|| !first.is_ready()).await;
        let other = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(other).await, "0");
        assert!(!first.link.is_closed());
        client.engine.send_data(runs, b"", true, testing::now());
        assert_eq!(client.status(runs).await, "0");
        at_once(|| first.link.is_closed()).await;
    });
}

/// What grpc-go's servers hold against a client (`handlePing` of `internal/transport/http2_server.go`), as far as they have
/// sent neither HEADERS nor DATA since the last PING, which pardons all: the third strike ends the connection.
#[derive(Default)]
struct Strikes {
    streams: HashSet<Vec<u8>>,
    last: Option<Instant>,
    pings: u32,
    strikes: u32,
}

impl Strikes {
    /// A frame has come.
    fn count(&mut self, frame: &[u8]) {
        let stream = frame[5..9].to_vec();
        match frame[3] {
            HEADERS => {
                self.streams.insert(stream);
            }
            RST_STREAM => {
                self.streams.remove(&stream);
            }
            PING if frame[4] & ACK == 0 => {
                let minutes = if self.streams.is_empty() { 120 } else { 5 };
                let least = Duration::from_secs(60 * minutes);
                let now = testing::now();
                let early = self.last.is_some_and(|last| now < last + least);
                self.strikes += u32::from(early);
                self.last = Some(now);
                self.pings += 1;
            }
            _ => {}
        }
    }
}

#[test]
fn a_backend_gets_a_ping_after_310_s_while_a_stream_runs_and_none_otherwise() {
    for busy in [false, true] {
        frozen(|| async {
            let seen = Rc::new(RefCell::new(Strikes::default()));
            let address = backend_behind(
                {
                    let seen = seen.clone();
                    move |frame| {
                        seen.borrow_mut().count(frame);
                        true
                    }
                },
                echo(),
            )
            .await;
            let (bench, mut client) = patiently(address).await;
            if busy {
                client.call("/api.Echo/Echo", b"", false);
            }
            let times = [
                (0, 0),
                (299, 0),
                (20, 1),
                (280, 1),
                (40, 2),
                (320, 3),
                (320, 4),
            ];
            for (after, sent) in times {
                let sent = if busy { sent } else { 0 };
                pass(Duration::from_secs(after)).await;
                settle().await;
                at_once(|| seen.borrow().pings >= sent).await;
                // It comes behind whatever was sent before.
                let stream = client.call("/api.Echo/Echo", b"", true);
                assert_eq!(client.status(stream).await, "0");
                assert_eq!(seen.borrow().pings, sent, "busy: {busy}");
                at_once(|| connections(&bench)[0].ping.get().is_none()).await;
            }
            assert_eq!(connections(&bench).len(), 1);
            assert_eq!(seen.borrow().strikes, 0);
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
        let (bench, mut client) = patiently(address).await;
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
        // What it says meanwhile is a sign of life too: its answer may be behind what it reads.
        for _ in 0..3 {
            pass(Duration::from_secs(19)).await;
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0", "19 s are not 20");
        }
        pass(Duration::from_secs(19)).await;
        settle().await;
        assert_eq!(connections(&bench).len(), 1, "19 s are not 20");
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
        let (bench, mut client) = patiently(listener.local_addr().unwrap()).await;
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
        let (bench, mut client) = patiently(address).await;
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
        let (bench, mut client) = patiently(address).await;
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
        let (bench, mut client) = patiently(backend(echo()).await).await;
        let mut first = None;
        for _ in 0..2 {
            let stream = client.call("/api.Echo/Echo", b"", false);
            client.flush().await;
            let seen = || connections(&bench).iter().any(|one| !one.is_quiet());
            at_once(seen).await;
            let first = first.get_or_insert_with(|| connections(&bench).remove(0));
            assert!(first.used.get());
            pass(Duration::from_millis(1100)).await;
            at_once(|| !first.used.get()).await;
            assert!(!first.is_quiet(), "its stream is open, and says nothing");
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

#[test]
fn a_worker_that_is_always_late_gives_memory_back_too() {
    frozen(|| async {
        let (bench, mut client) = patiently(backend(echo()).await).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        at_once(|| connections(&bench)[0].is_quiet()).await;
        settle().await;
        // Later than `LATE` each time.
        for _ in 0..3 {
            pass(3 * QUIET).await;
            settle().await;
        }
        assert!(!connections(&bench)[0].used.get());
    });
}
