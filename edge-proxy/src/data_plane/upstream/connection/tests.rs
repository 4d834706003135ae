use std::cell::RefCell;

use super::*;
use crate::data_plane::testing::{
    self, Bench, Client, backend, backend_behind, echo, frozen, pass, running, until_frozen,
};

/// PING is the only frame that is looked at (RFC 9113 §6.7).
const PING: u8 = 6;
const ACK: u8 = 1;

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
        let socket = connect(listener.local_addr().unwrap()).await.unwrap();
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
                    move |kind, flags| {
                        pings.set(pings.get() + u32::from(kind == PING && flags & ACK == 0));
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
                until_frozen(|| pings.get() >= sent).await;
                // It comes behind whatever was sent before.
                let stream = client.call("/api.Echo/Echo", b"", true);
                assert_eq!(client.status(stream).await, "0");
                assert_eq!(pings.get(), sent, "busy: {busy}");
                until_frozen(|| connections(&bench)[0].ping.get().is_none()).await;
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
                move |kind, _| {
                    pings.set(pings.get() + u32::from(kind == PING));
                    kind != PING
                }
            },
            echo(),
        )
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let open = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        until_frozen(|| {
            connections(&bench)
                .first()
                .is_some_and(|c| c.link.engine().stream_count() == 1)
        })
        .await;
        pass(Duration::from_secs(311)).await;
        until_frozen(|| pings.get() == 1).await;
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
            until_frozen(|| {
                connections(&bench)
                    .first()
                    .is_some_and(|c| c.link.write_blocked().is_some())
            })
            .await;
            // What the kernel still moves is progress.
            let stalled = || {
                let link = &connections(&bench)[0].link;
                (link.write_blocked(), link.engine().output().len())
            };
            let mut before = stalled();
            let mut quiet = 0;
            while quiet < 1000 {
                tokio::task::yield_now().await;
                let now = stalled();
                quiet = if now == before { quiet + 1 } else { 0 };
                before = now;
            }
            pass(Duration::from_secs(stall - 1)).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(connections(&bench).len(), 1);
            pass(Duration::from_secs(2)).await;
            assert_eq!(status.await.unwrap(), "14");
            assert_eq!(bench.shard.limits(Limit::WriteStall).get(), 1);
            assert!(connections(&bench).is_empty());
        });
    }
}

#[test]
fn a_stream_without_credit_for_1_s_marks_its_connection_congested() {
    frozen(|| async {
        let streams = Rc::new(RefCell::new(Vec::new()));
        // Credits nothing: the second upload finds the connection's window used up.
        let address = backend({
            let streams = streams.clone();
            move |_, event| {
                if let Event::Headers { stream, .. } = event {
                    streams.borrow_mut().push(stream);
                }
            }
        })
        .await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        client.call("/api.Echo/Echo", &vec![0; 1 << 20], true);
        let upload = tokio::task::spawn_local(async move {
            client.next().await;
            client
        });
        let stalled = || {
            let all = connections(&bench);
            all.first().is_some_and(|c| {
                c.link
                    .engine()
                    .oldest_blocked(testing::now() + Duration::from_secs(1))
                    .is_some()
            })
        };
        until_frozen(stalled).await;
        let mut other = Client::connect_with(&bench, patient()).await;
        let call = |other: &mut Client| other.call("/api.Echo/Echo", b"", true);
        pass(Duration::from_millis(900)).await;
        call(&mut other);
        other.flush().await;
        until_frozen(|| streams.borrow().len() == 2).await;
        assert_eq!(connections(&bench).len(), 1);
        pass(Duration::from_millis(1200)).await;
        until_frozen(|| connections(&bench)[0].congested.get()).await;
        call(&mut other);
        other.flush().await;
        until_frozen(|| streams.borrow().len() == 3).await;
        assert_eq!(connections(&bench).len(), 2);
        assert_eq!(streams.borrow()[2], 1, "the first of its connection");
        upload.abort();
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
        until_frozen(|| connections(&bench).len() == 1).await;
        let first = connections(&bench).remove(0);
        pass(Duration::from_millis(4900)).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!first.link.is_closed());
        pass(Duration::from_millis(200)).await;
        until_frozen(|| first.link.is_closed()).await;
        socket.readable().await.unwrap();
        let mut seen = vec![0; 1024];
        let n = socket.try_read(&mut seen).unwrap();
        seen.truncate(n);
        seen.drain(..24);
        let kinds: Vec<_> = testing::whole_frames(&mut seen)
            .iter()
            .map(|frame| frame[3])
            .collect();
        assert_eq!(kinds, [4, 8], "SETTINGS and WINDOW_UPDATE, no HEADERS");
        // Nor do its further attempts wait longer.
        let status = tokio::task::spawn_local(async move { client.status(stream).await });
        for _ in 0..2 {
            pass(Duration::from_millis(5100)).await;
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(status.await.unwrap(), "14");
    });
}
