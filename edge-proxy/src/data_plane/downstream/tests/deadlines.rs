//! What a client's connection and its streams may take their time with, under a clock that only the test moves.

// By age, or by a drain.
mod age;
// Those that take little or nothing.
mod slow;

use std::{cell::RefCell, future::poll_fn, pin::Pin, task::Poll};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::*;
use crate::{
    data_plane::testing::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
        SETTINGS, at_once, frame, frozen, pass, settle,
    },
    snapshot::{
        TlsIdentity,
        pressure::{Level, Pressure},
    },
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const DAYS: Duration = seconds(10 * 24 * 3600);

/// The defaults, but for what would end a connection whose client only waits.
fn patient() -> ListenerPolicy {
    let mut policy = testing::policy();
    policy.keepalive_interval = DAYS;
    policy.max_connection_age = DAYS;
    policy.timeouts.idle = DAYS;
    policy
}

/// The only connection.
fn only(bench: &Bench) -> Rc<Downstream> {
    let clients = bench.worker.clients.borrow();
    match clients.values().next() {
        Some(ClientConnection::Http2(connection)) => connection.clone(),
        _ => panic!("no connection"),
    }
}

fn open(bench: &Bench) -> usize {
    bench.worker.clients.borrow().len()
}

/// The connection is open just before `limit`, and closed just after.
async fn ends_after(bench: &Bench, limit: Duration) {
    pass(limit - Duration::from_millis(100)).await;
    settle().await;
    assert_eq!(open(bench), 1, "before {limit:?}");
    pass(Duration::from_millis(200)).await;
    at_once(|| open(bench) == 0).await;
}

/// A client that has connected and says nothing, as the acceptor hands it over.
async fn silent(counts: &Arc<listener::Counts>) -> (TcpStream, Accepted) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let silent = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let load = Arc::<crate::data_plane::worker::Load>::default();
    let ticket = Ticket::take(counts, &load, peer.ip().into(), [9, 9, 9])
        .unwrap()
        .0;
    let socket = socket.into_std().unwrap();
    let accepted = Accepted {
        socket,
        peer,
        ticket,
    };
    (silent, accepted)
}

/// A backend that answers with so many bytes at once, and doesn't end.
async fn sends(bytes: usize) -> SocketAddr {
    backend(move |engine, event| {
        if let Event::Headers { stream, .. } = event {
            let head = [(":status", "200"), ("content-type", "application/grpc")];
            engine.send_headers(stream, &testing::headers(&head), false);
            engine.send_data(stream, &vec![0; bytes], false, testing::now());
        }
    })
    .await
}

#[test]
fn a_client_that_closes_before_it_says_anything_is_none_that_takes_too_long() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (snapshot, client) = bench.trusted();
        bench.worker.follow(Arc::new(snapshot));
        let counts = Arc::<listener::Counts>::default();
        let timeouts = || bench.shard.limits(Limit::PrefaceTimeout).get();
        let opened = || {
            bench
                .shard
                .connections(metrics::Side::Downstream)
                .opened
                .get()
        };
        for (number, closes) in [(1, true), (2, false)] {
            let (socket, accepted) = silent(&counts).await;
            let mut socket = socket.into_std().unwrap();
            socket.set_nonblocking(false).unwrap();
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client.clone(), name).unwrap();
            std::thread::spawn(move || {
                while session.is_handshaking() {
                    session.complete_io(&mut socket).unwrap();
                }
                if closes {
                    session.send_close_notify();
                    session.write_tls(&mut socket).unwrap();
                    socket.shutdown(Shutdown::Write).unwrap();
                }
                // A socket that is dropped with unread bytes is reset.
                let _ = io::Read::read_to_end(&mut socket, &mut Vec::new());
            });
            tokio::task::spawn_local(serve(bench.worker.clone(), accepted));
            at_once(|| opened() == number).await;
            if !closes {
                settle().await;
                pass(Duration::from_secs(11)).await;
            }
            at_once(|| counts.open() == 0).await;
            assert_eq!(timeouts(), number - 1);
        }
    });
}

#[test]
fn a_quiet_connection_holds_little() {
    frozen(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let (_silent, accepted) = silent(&Arc::default()).await;
        let task = serve(bench.worker.clone(), accepted);
        assert!(size_of_val(&task) < 1024, "{}", size_of_val(&task));
        drop(task);

        let mut client = Client::connect_with(&bench, patient()).await;
        for _ in 0..2 {
            let stream = client.call("/api.Echo/Echo", b"", true);
            assert_eq!(client.status(stream).await, "0");
            pass(Duration::from_millis(900)).await;
            settle().await;
            assert!(!only(&bench).shrunk.get());
            pass(Duration::from_millis(200)).await;
            at_once(|| only(&bench).shrunk.get()).await;
        }
    });
}

#[test]
fn a_quiet_connection_of_a_worker_that_is_always_late_holds_little_too() {
    frozen(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "0");
        settle().await;
        for _ in 0..3 {
            pass(Duration::from_secs(3)).await;
            settle().await;
        }
        assert!(only(&bench).shrunk.get());
    });
}

#[test]
fn a_connection_whose_only_stream_is_quiet_holds_little_too() {
    frozen(|| async {
        let seen = Rc::new(Cell::new(0));
        let address = backend({
            let (seen, mut echo) = (seen.clone(), echo());
            move |engine, event| {
                if let Event::Data { .. } = event {
                    seen.set(seen.get() + 1);
                }
                echo(engine, event);
            }
        });
        let bench = Bench::new(&[address.await]);
        let mut client = Client::connect_with(&bench, patient()).await;
        let quiet = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        let shrunk = || only(&bench).shrunk.get();
        pass(Duration::from_millis(1100)).await;
        at_once(shrunk).await;
        // Another one beside it, and what it says until it ends.
        let other = client.call("/api.Echo/Echo", b"one", false);
        client.flush().await;
        at_once(|| seen.get() == 1).await;
        for messages in 2..4 {
            pass(Duration::from_millis(600)).await;
            client
                .engine
                .send_data(other, b"more", false, testing::now());
            client.flush().await;
            at_once(|| seen.get() == messages).await;
            assert!(!shrunk());
        }
        pass(Duration::from_millis(1100)).await;
        at_once(shrunk).await;
        client.engine.send_data(other, b"", true, testing::now());
        assert_eq!(client.status(other).await, "0");
        assert!(!shrunk(), "its trailers were sent");
        pass(Duration::from_millis(1100)).await;
        at_once(shrunk).await;
        client.engine.send_data(quiet, b"", true, testing::now());
        assert_eq!(client.status(quiet).await, "0");
    });
}

#[test]
fn what_a_refused_request_has_taken_is_given_back_too() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let mut client = Client::connect_with(&bench, patient()).await;
        let shrunk = || only(&bench).shrunk.get();
        for _ in 0..2 {
            pass(Duration::from_millis(1100)).await;
            at_once(shrunk).await;
            let stream = client.request(&[(":method", "GET"), (":scheme", "https")], b"", true);
            match client.next().await {
                Got::Reset(at, Reason::PROTOCOL_ERROR) => assert_eq!(at, stream),
                got => panic!("{got:?}"),
            }
            assert!(!shrunk());
        }
    });
}

#[test]
fn a_tls_handshake_has_5_s() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let counts = Arc::<listener::Counts>::default();
        let (mut silent, accepted) = silent(&counts).await;
        tokio::task::spawn_local(serve(bench.worker.clone(), accepted));
        settle().await;
        pass(Duration::from_millis(4900)).await;
        settle().await;
        assert_eq!(counts.open(), 1);
        pass(Duration::from_millis(200)).await;
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(bench.shard.limits(Limit::HandshakeTimeout).get(), 1);
        assert_eq!(bench.shard.handshakes(HandshakeResult::TimedOut).get(), 1);
    });
}

#[test]
fn preface_and_settings_have_10_s() {
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..];
    for said in [&b""[..], &preface[..10], preface] {
        frozen(|| async {
            let bench = Bench::new(&[]);
            let mut raw = Raw::connect(&bench, testing::policy()).await;
            raw.send(said).await;
            at_once(|| open(&bench) == 1).await;
            settle().await;
            ends_after(&bench, seconds(10)).await;
            assert_eq!(bench.shard.limits(Limit::PrefaceTimeout).get(), 1);
        });
    }
}

#[test]
fn a_client_that_has_chosen_no_protocol_has_10_s_for_its_first_bytes() {
    for said in [&b""[..], &b"PRI * HTTP"[..]] {
        frozen(|| async {
            let bench = Bench::new(&[]);
            let (server, trusts) = testing::tls();
            let mut snapshot = Snapshot::clone(&bench.worker.snapshot());
            snapshot.tls = Some(Arc::new(TlsIdentity {
                config: server,
                serial: String::new(),
                not_after: 0,
            }));
            bench.worker.follow(Arc::new(snapshot));
            let counts = Arc::<listener::Counts>::default();
            let (socket, accepted) = silent(&counts).await;
            let mut socket = socket.into_std().unwrap();
            socket.set_nonblocking(false).unwrap();
            let client = std::thread::spawn(move || {
                let name = "localhost".try_into().unwrap();
                let mut session = rustls::ClientConnection::new(trusts, name).unwrap();
                while session.is_handshaking() {
                    session.complete_io(&mut socket).unwrap();
                }
                session.writer().write_all(said).unwrap();
                session.complete_io(&mut socket).unwrap();
                // It says no more, and reads to the end.
                io::Read::read_to_end(&mut socket, &mut Vec::new())
            });
            tokio::task::spawn_local(serve(bench.worker.clone(), accepted));
            at_once(|| bench.shard.handshakes(HandshakeResult::Ok).get() == 1).await;
            settle().await;
            pass(Duration::from_millis(9900)).await;
            settle().await;
            assert_eq!(counts.open(), 1);
            assert_eq!(bench.shard.limits(Limit::PrefaceTimeout).get(), 0);
            pass(Duration::from_millis(200)).await;
            at_once(|| counts.open() == 0).await;
            assert_eq!(bench.shard.limits(Limit::PrefaceTimeout).get(), 1);
            client.join().unwrap().unwrap();
        });
    }
}

#[test]
fn settings_are_to_be_acknowledged_within_10_s_of_the_clients_own() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let mut raw = Raw::connect(&bench, testing::policy()).await;
        at_once(|| open(&bench) == 1).await;
        pass(seconds(5)).await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        raw.send(&[&preface[..], &settings].concat()).await;
        at_once(|| only(&bench).ready.get().is_some()).await;
        ends_after(&bench, seconds(10)).await;
        assert_eq!(bench.shard.limits(Limit::SettingsTimeout).get(), 1);
        let goaway = raw.next_of(GOAWAY).await;
        assert_eq!(goaway[13..17], [0, 0, 0, 4], "SETTINGS_TIMEOUT");
        assert_eq!(raw.next().await, None);
    });
}

#[test]
fn an_open_header_block_has_10_s() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        // After the preface a client may be silent.
        pass(seconds(50)).await;
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&frame(HEADERS, END_STREAM, 1, &block[..5])).await;
        at_once(|| only(&bench).link.engine().header_block_since().is_some()).await;
        // Going on with it gains no time.
        pass(seconds(5)).await;
        raw.send(&frame(CONTINUATION, 0, 1, &block[5..9])).await;
        settle().await;
        ends_after(&bench, seconds(5)).await;
        assert_eq!(bench.shard.limits(Limit::HeaderBlockTimeout).get(), 1);
    });
}

#[test]
fn what_a_client_sent_in_time_counts_when_it_is_read_late() {
    // A little, and as after a stop of the whole machine.
    for stop in [Duration::from_millis(10_500), seconds(600)] {
        frozen(|| async {
            let bench = Bench::with(&[], patient(), testing::cluster_policy());
            let (mut raw, _) = Raw::open(&bench, patient()).await;
            let block = raw.block(&testing::grpc("/direct/"));
            raw.send(&frame(HEADERS, END_STREAM, 1, &block[..5])).await;
            at_once(|| only(&bench).link.engine().header_block_since().is_some()).await;
            settle().await;
            raw.send(&frame(CONTINUATION, END_HEADERS, 1, &block[5..]))
                .await;
            pass(stop).await;
            raw.next_of(HEADERS).await;
            assert_eq!(bench.shard.limits(Limit::HeaderBlockTimeout).get(), 0);
        });
    }
}

#[test]
fn an_idle_client_gets_a_ping_after_5_min_and_its_goaway_after_15() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        for _ in 0..2 {
            pass(seconds(299)).await;
            settle().await;
            assert!(
                matches!(only(&bench).ping.get(), Ping::Answered(_)),
                "before 5 min"
            );
            pass(seconds(1)).await;
            let ping = raw.next_of(PING).await;
            raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
            at_once(|| matches!(only(&bench).ping.get(), Ping::Answered(_))).await;
        }
        pass(seconds(298)).await;
        settle().await;
        assert!(matches!(only(&bench).leaving.get(), Leaving::At(_)));
        pass(seconds(3)).await;
        let goaway = raw.next_of(GOAWAY).await;
        assert_eq!(goaway[9..17], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(bench.shard.limits(Limit::IdleConnection).get(), 1);
        // No answer to the PING behind it: the last stream is named after 2 s, and as none is open, it ends.
        pass(Duration::from_millis(2100)).await;
        let goaway = raw.next_of(GOAWAY).await;
        assert_eq!(goaway[9..17], [0; 8]);
        at_once(|| open(&bench) == 0).await;
    });
}

#[test]
fn short_of_memory_a_client_may_be_idle_for_a_tenth_of_15_min() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let mut policy = testing::policy();
        policy.keepalive_interval = DAYS;
        let (mut raw, _) = Raw::open(&bench, policy).await;
        let short = Pressure {
            level: Level::Shedding,
            used: 86,
            limit: 100,
        };
        let stays = || matches!(only(&bench).leaving.get(), Leaving::At(_));
        pass(seconds(88)).await;
        bench.worker.press(short);
        settle().await;
        assert!(stays(), "before 90 s");
        // Enough again: it is 15 min again, too.
        bench.worker.press(Pressure::default());
        pass(seconds(100)).await;
        settle().await;
        assert!(stays());
        bench.worker.press(short);
        raw.next_of(GOAWAY).await;
        assert_eq!(bench.shard.limits(Limit::IdleConnection).get(), 1);
    });
}

#[test]
fn a_client_with_streams_gets_a_ping_after_60_s_and_has_20_s_to_answer() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        // It was idle for a while: that doesn't count.
        pass(seconds(200)).await;
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        for _ in 0..2 {
            pass(seconds(59)).await;
            settle().await;
            assert!(
                matches!(only(&bench).ping.get(), Ping::Answered(_)),
                "before 60 s"
            );
            pass(seconds(1)).await;
            let ping = raw.next_of(PING).await;
            raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
            at_once(|| matches!(only(&bench).ping.get(), Ping::Answered(_))).await;
        }
        pass(seconds(60)).await;
        raw.next_of(PING).await;
        ends_after(&bench, seconds(20)).await;
        assert_eq!(bench.shard.limits(Limit::KeepaliveTimeout).get(), 1);
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
    });
}

#[test]
fn a_client_that_is_heard_is_alive_though_its_pong_is_late() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        pass(seconds(60)).await;
        raw.next_of(PING).await;
        // The PING stands behind what it reads, and gives credit for.
        for n in 1..=5 {
            pass(seconds(19)).await;
            settle().await;
            assert_eq!(open(&bench), 1, "{n}");
            let credit = frame(testing::WINDOW_UPDATE, 0, 0, &[0, 0, 4, 0]);
            raw.send(&credit).await;
            at_once(|| only(&bench).link.engine().windows().credits == n).await;
        }
        ends_after(&bench, seconds(20)).await;
        assert_eq!(bench.shard.limits(Limit::KeepaliveTimeout).get(), 1);
    });
}

#[test]
fn a_stream_on_which_nothing_moves_ends_after_5_min() {
    frozen(|| async {
        let bytes = Rc::new(Cell::new(0));
        let address = backend({
            let bytes = bytes.clone();
            move |_, event| {
                if let Event::Data { bytes: data, .. } = event {
                    bytes.set(bytes.get() + data.len());
                }
            }
        })
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"\0", false);
        client.flush().await;
        at_once(|| bytes.get() == 1).await;
        pass(seconds(200)).await;
        client
            .engine
            .send_data(stream, b"\0", false, testing::now());
        client.flush().await;
        at_once(|| bytes.get() == 2).await;
        pass(seconds(299)).await;
        settle().await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        pass(seconds(2)).await;
        assert_eq!(client.status(stream).await, "4");
        assert_eq!(open(&bench), 1);
    });
}

#[test]
fn a_stream_whose_client_takes_some_bytes_a_second_is_not_idle() {
    frozen(|| async {
        let address = sends(200 * 1024).await;
        let mut policy = patient();
        policy.timeouts.stream_idle = seconds(10);
        let bench = Bench::with(&[address], policy.clone(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, policy).await;
        let more =
            |stream, bytes: u32| frame(testing::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
        raw.send(&more(0, 1 << 20)).await;
        let block = raw.block(&testing::grpc("/api.Echo/Echo"));
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
            .await;
        // All of the window, and all the rest is here.
        let mut got = 0;
        while got < 65_535 {
            got += raw.next_of(DATA).await.len() - 9;
        }
        at_once(|| only(&bench).link.engine().pending_bytes() == 200 * 1024 - 65_535).await;
        for _ in 0..21 {
            pass(seconds(1)).await;
            settle().await;
            raw.send(&more(1, 1024)).await;
            assert_eq!(raw.next_of(DATA).await.len(), 9 + 1024);
        }
        // It takes nothing any more: idle, and 5 s later it hasn't read so.
        pass(Duration::from_millis(9900)).await;
        settle().await;
        let idle = || bench.shard.resets(ResetCause::IdleTimeout).get();
        assert_eq!(idle(), 0);
        pass(Duration::from_millis(200)).await;
        at_once(|| idle() == 1).await;
        pass(Duration::from_millis(5100)).await;
        let reset = raw.next_of(RST_STREAM).await;
        assert_eq!(reset[5..], [0, 0, 0, 1, 0, 0, 0, 8]);
    });
}

#[test]
fn an_rpc_without_a_deadline_has_none() {
    frozen(|| async {
        let waits = Rc::new(RefCell::new(None));
        let address = backend({
            let waits = waits.clone();
            move |engine, event| match event {
                Event::Headers { stream, .. } => *waits.borrow_mut() = Some(stream),
                Event::Data {
                    end_stream: true, ..
                } => {
                    let head = [
                        (":status", "200"),
                        ("content-type", "application/grpc"),
                        ("grpc-status", "0"),
                    ];
                    engine.send_headers(waits.take().unwrap(), &testing::headers(&head), true);
                }
                _ => {}
            }
        })
        .await;
        let mut policy = patient();
        policy.timeouts.stream_idle = DAYS;
        let bench = Bench::with(&[address], policy.clone(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, policy).await;
        let stream = client.call("/api.Echo/Echo", b"\0", false);
        client.flush().await;
        at_once(|| waits.borrow().is_some()).await;
        for _ in 0..200 {
            bench.pass_and_pong(seconds(100)).await;
        }
        client.engine.send_data(stream, b"", true, testing::now());
        assert_eq!(client.status(stream).await, "0");
    });
}
