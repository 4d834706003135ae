//! Who waits for a backend's credit, and what follows.

use http2::BlockedBy;

use super::*;

/// So many uploads of so many bytes, which go on in the background.
fn upload(mut client: Client, streams: usize, bytes: usize) -> tokio::task::JoinHandle<Client> {
    for _ in 0..streams {
        client.call("/api.Echo/Echo", &vec![0; bytes], false);
    }
    tokio::task::spawn_local(async move {
        client.next().await;
        client
    })
}

/// A backend that gives credit for nothing, and the streams that it has seen.
async fn unread() -> (SocketAddr, Rc<RefCell<Vec<u32>>>) {
    let streams = Rc::new(RefCell::new(Vec::new()));
    let seen = streams.clone();
    let address = backend(move |_, event| {
        if let Event::Headers { stream, .. } = event {
            seen.borrow_mut().push(stream);
        }
    });
    (address.await, streams)
}

/// Whether the first connection's engine is so; no, if there is none.
fn first_is(bench: &Bench, so: impl FnOnce(&Connection) -> bool) -> bool {
    let all = connections(bench);
    all.first().is_some_and(|first| so(&first.link.engine()))
}

/// Whether a stream of the first connection waits for its own window.
fn is_stalled(bench: &Bench) -> bool {
    first_is(bench, |engine| {
        let oldest = engine.oldest_blocked(testing::now() + Duration::from_secs(1));
        oldest.is_some_and(|blocked| blocked.by == BlockedBy::StreamWindow)
    })
}

/// Waits until sixteen uploads of so many bytes have used up the first connection's window, and all else waits there: what
/// comes later waits since later. Clients are sure of credit for half of what has left, so at most half as much may wait.
async fn used_up_by(bench: &Bench, bytes: usize) {
    assert!(bytes <= 65_536 + 65_536 / 2);
    at_once(|| {
        first_is(bench, |engine| {
            engine.windows().send == 0 && engine.pending_bytes() == 16 * (bytes - 65_536)
        })
    })
    .await;
    // The connection itself sees that in its turn.
    settle().await;
}

#[test]
fn a_stream_without_credit_for_1_s_marks_its_connection_congested() {
    frozen(|| async {
        let (address, streams) = unread().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let client = Client::connect_with(&bench, patient()).await;
        let upload = upload(client, 1, 1 << 20);
        at_once(|| is_stalled(&bench)).await;
        let congestion = || connections(&bench)[0].congestion.get();
        let mut other = Client::connect_with(&bench, patient()).await;
        let call = |other: &mut Client| other.call("/api.Echo/Echo", b"", true);
        pass(Duration::from_millis(900)).await;
        call(&mut other);
        other.flush().await;
        at_once(|| streams.borrow().len() == 2).await;
        assert_eq!(connections(&bench).len(), 1);
        pass(Duration::from_millis(1200)).await;
        at_once(|| congestion() == Congestion::Stream).await;
        call(&mut other);
        other.flush().await;
        at_once(|| streams.borrow().len() == 3).await;
        assert_eq!(connections(&bench).len(), 2);
        assert_eq!(streams.borrow()[2], 1, "the first of its connection");
        upload.abort();
    });
}

#[test]
fn a_connection_whose_window_is_used_up_for_1_s_is_congested() {
    frozen(|| async {
        let (address, streams) = unread().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let client = Client::connect_with(&bench, patient()).await;
        // A stream has 64 KiB, the connection 1 MiB.
        let upload = upload(client, 16, 90_000);
        used_up_by(&bench, 90_000).await;
        let mut other = Client::connect_with(&bench, patient()).await;
        let call = |other: &mut Client| other.call("/api.Echo/Echo", b"", true);
        pass(Duration::from_millis(900)).await;
        call(&mut other);
        other.flush().await;
        at_once(|| streams.borrow().len() == 17).await;
        assert_eq!(connections(&bench).len(), 1);
        pass(Duration::from_millis(1200)).await;
        at_once(|| connections(&bench)[0].congestion.get() == Congestion::Connection).await;
        call(&mut other);
        other.flush().await;
        at_once(|| streams.borrow().len() == 18).await;
        assert_eq!(connections(&bench).len(), 2);
        assert_eq!(streams.borrow()[17], 1, "the first of its connection");
        upload.abort();
    });
}

/// Sixteen uploads of so many bytes use up the window of the only connection: a stream has 64 KiB, the connection 1 MiB.
/// So long `after`, so many `others` send a message. `then` is told which streams the backend has had to their end.
async fn without_a_window(
    bytes: usize,
    (after, others): (Duration, usize),
    then: impl AsyncFnOnce(&Bench, &dyn Fn() -> Vec<u32>),
) {
    let read = Rc::new(RefCell::new(Vec::new()));
    let seen = read.clone();
    let address = backend(move |_, event| {
        if let Event::Data {
            stream,
            end_stream: true,
            ..
        } = event
        {
            seen.borrow_mut().push(stream);
        }
    });
    let only = ClusterPolicy {
        max_connections: 1,
        ..testing::cluster_policy()
    };
    let bench = Bench::with(&[address.await], patient(), only);
    let client = Client::connect_with(&bench, patient()).await;
    let upload = upload(client, 16, bytes);
    used_up_by(&bench, bytes).await;
    pass(after).await;
    settle().await;
    let mut other = Client::connect_with(&bench, patient()).await;
    for _ in 0..others {
        other.call("/api.Echo/Echo", b"another", true);
    }
    other.flush().await;
    at_once(|| {
        let connection = connections(&bench).remove(0);
        let engine = connection.link.engine();
        let caught = engine
            .blocked_streams()
            .filter(|b| b.by == BlockedBy::ConnectionWindow);
        caught.count() + bench.worker.pool.counts().2 == others
    })
    .await;
    then(&bench, &|| read.borrow().clone()).await;
    upload.abort();
}

#[test]
fn of_a_window_that_is_used_up_for_60_s_the_largest_part_is_taken_back_for_others() {
    let ms = Duration::from_millis;
    // Others are caught in it, since nothing had to wait before; and wait for a connection.
    for (bytes, after, until) in [
        (65_536, ms(500), ms(60_500)),
        (65_537, ms(57_000), ms(60_000)),
    ] {
        frozen(|| {
            without_a_window(bytes, (after, 3), async |bench, read| {
                let ended = || bench.shard.limits(Limit::UpstreamWindow).get();
                pass(until - ms(100) - after).await;
                settle().await;
                assert_eq!((ended(), read()), (0, vec![]));
                // It is looked each second.
                pass(ms(1100)).await;
                at_once(|| read().len() == 3).await;
                pass(ms(200_000)).await;
                settle().await;
                assert_eq!(ended(), 1, "what it held was enough");
                assert_eq!(connections(bench).len(), 1);
                let lines = bench.logged();
                assert!(lines[0].contains("flags=OM"), "{lines:?}");
            })
        });
    }
}

#[test]
fn a_window_that_nobody_else_wants_stays_with_who_holds_it() {
    for bytes in [65_536, 65_537] {
        frozen(|| {
            without_a_window(bytes, (Duration::ZERO, 0), async |bench, _| {
                for _ in 0..60 {
                    pass(Duration::from_secs(2)).await;
                    settle().await;
                }
                assert_eq!(bench.shard.limits(Limit::UpstreamWindow).get(), 0);
            })
        });
    }
}

/// Why there is only one connection.
enum Only {
    /// `max_connections` of the endpoint.
    Allowed,
    /// `circuit_breakers.max_connections` of the cluster.
    Permitted,
    /// The backend takes no other.
    Taken,
}

#[test]
fn uploads_that_nobody_reads_keep_nobody_from_the_last_connection() {
    for only in [Only::Allowed, Only::Permitted, Only::Taken] {
        frozen(|| async move {
            let streams = Rc::new(RefCell::new(Vec::new()));
            let seen = streams.clone();
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let address = listener.local_addr().unwrap();
            tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.unwrap();
                drop(listener);
                let note = move |_: &mut Connection, event: Event<'_>| {
                    if let Event::Headers { stream, .. } = event {
                        seen.borrow_mut().push(stream);
                    }
                };
                testing::serve(socket, note).await;
            });
            let mut cluster = testing::cluster_policy();
            if let Only::Allowed = only {
                cluster.max_connections = 1;
            }
            let bench = Bench::with(&[address], patient(), cluster);
            if let Only::Permitted = only {
                let mut limits = CircuitLimits::default();
                limits.0[Circuit::Connections as usize] = Some(1);
                bench
                    .worker
                    .with_snapshot(|snapshot| snapshot.clusters[0].circuits.limit(&limits));
            }
            let client = Client::connect_with(&bench, patient()).await;
            let upload = upload(client, 1, 100_000);
            at_once(|| is_stalled(&bench)).await;
            pass(Duration::from_secs(10)).await;
            settle().await;
            let mut other = Client::connect_with(&bench, patient()).await;
            other.call("/api.Echo/Echo", b"another", true);
            other.flush().await;
            at_once(|| streams.borrow().len() == 2).await;
            assert_eq!(*streams.borrow(), [1, 3], "of one connection");
            assert_eq!(connections(&bench)[0].congestion.get(), Congestion::Stream);
            upload.abort();
        });
    }
}

/// A backend that reads nothing and takes one connection: SETTINGS of others don't come. And the streams that it has seen.
async fn taken() -> (SocketAddr, Rc<RefCell<Vec<u32>>>) {
    let streams = Rc::new(RefCell::new(Vec::new()));
    let seen = streams.clone();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let (socket, _) = listener.accept().await.unwrap();
        testing::serve(socket, move |_, event| {
            if let Event::Headers { stream, .. } = event {
                seen.borrow_mut().push(stream);
            }
        })
        .await;
        // Others connect all the same.
        drop(listener);
    });
    (address, streams)
}

/// An upload that has made the first connection congested, which is the only one.
async fn congested(bench: &Bench) -> tokio::task::JoinHandle<Client> {
    let client = Client::connect_with(bench, patient()).await;
    let upload = upload(client, 1, 65_537);
    at_once(|| is_stalled(bench)).await;
    // The kernel may still bring some of it.
    while connections(bench)[0].congestion.get() != Congestion::Stream {
        pass(Duration::from_secs(1)).await;
        settle().await;
    }
    upload
}

/// An RPC that never ends.
async fn call(client: &mut Client) -> u32 {
    let stream = client.call("/api.Echo/Echo", b"another", true);
    client.flush().await;
    stream
}

#[test]
fn where_another_connection_hangs_rpcs_go_to_one_that_is_congested() {
    let ms = Duration::from_millis;
    frozen(|| async {
        let (address, streams) = taken().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let upload = congested(&bench).await;
        let mut client = Client::connect_with(&bench, patient()).await;
        let mut served = 1;
        let waiting = |opening, count| bench.worker.pool.counts() == (1, opening, count);
        // How long no other is tried, after one that took 5 s.
        for pause in [5000, 10_000] {
            call(&mut client).await;
            at_once(|| waiting(1, 1)).await;
            pass(ms(90)).await;
            settle().await;
            assert!(waiting(1, 1));
            pass(ms(20)).await;
            at_once(|| streams.borrow().len() == served + 1).await;
            call(&mut client).await;
            at_once(|| streams.borrow().len() == served + 2).await;
            assert!(waiting(1, 0));
            pass(ms(4900)).await;
            at_once(|| waiting(0, 0)).await;
            for part in [pause / 4, pause / 2] {
                pass(ms(part)).await;
                call(&mut client).await;
                served += 1;
                at_once(|| streams.borrow().len() == served + 2).await;
                assert!(waiting(0, 0));
            }
            served += 2;
            pass(ms(pause / 4)).await;
        }
        upload.abort();
    });
}

#[test]
fn an_rpc_that_has_waited_for_a_better_connection_goes_to_one_that_is_congested() {
    frozen(|| async {
        let (address, streams) = taken().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let upload = congested(&bench).await;
        let mut client = Client::connect_with(&bench, patient()).await;
        let waiting = || bench.worker.pool.counts();
        let first = call(&mut client).await;
        at_once(|| waiting() == (1, 1, 1)).await;
        client.engine.reset(first, Reason::CANCEL);
        client.flush().await;
        at_once(|| waiting() == (1, 1, 0)).await;
        // The connect has 5 s, this RPC has less.
        let mut rules = testing::cluster_policy();
        rules.connect_timeout = Duration::from_millis(50);
        bench.reload(|cluster| cluster.policy = Arc::new(rules));
        call(&mut client).await;
        at_once(|| waiting() == (1, 1, 1)).await;
        pass(Duration::from_millis(60)).await;
        at_once(|| streams.borrow().len() == 2).await;
        assert_eq!(waiting(), (1, 1, 0));
        upload.abort();
    });
}

#[test]
fn a_window_that_is_used_up_for_a_moment_keeps_nobody_out() {
    frozen(|| async {
        let (address, streams) = unread().await;
        let only = ClusterPolicy {
            max_connections: 1,
            ..testing::cluster_policy()
        };
        let bench = Bench::with(&[address], patient(), only);
        let congestion = || connections(&bench)[0].congestion.get();
        // It waits for its own window, for long.
        let client = Client::connect_with(&bench, patient()).await;
        let first = upload(client, 1, 65_537);
        at_once(|| is_stalled(&bench)).await;
        pass(Duration::from_secs(10)).await;
        at_once(|| congestion() == Congestion::Stream).await;
        pass(Duration::from_millis(600)).await;
        settle().await;
        let client = Client::connect_with(&bench, patient()).await;
        let others = upload(client, 15, 65_536);
        at_once(|| first_is(&bench, |engine| engine.windows().send == 0)).await;
        pass(Duration::from_millis(500)).await;
        settle().await;
        assert_eq!(congestion(), Congestion::Stream);
        let mut last = Client::connect_with(&bench, patient()).await;
        last.call("/api.Echo/Echo", b"", true);
        last.flush().await;
        at_once(|| streams.borrow().len() == 17).await;
        pass(Duration::from_millis(1000)).await;
        at_once(|| congestion() == Congestion::Connection).await;
        for upload in [first, others] {
            upload.abort();
        }
    });
}

#[test]
fn a_connection_whose_window_is_used_up_keeps_no_streams_from_being_divided() {
    frozen(|| async {
        let (address, streams) = unread().await;
        let cluster = ClusterPolicy {
            max_connections: 2,
            per_connection_streams: 18,
            ..testing::cluster_policy()
        };
        let bench = Bench::with(&[address], patient(), cluster);
        let client = Client::connect_with(&bench, patient()).await;
        let upload = upload(client, 16, 90_000);
        used_up_by(&bench, 90_000).await;
        for _ in 0..2 {
            pass(Duration::from_millis(1100)).await;
            settle().await;
        }
        let congestion = || connections(&bench)[0].congestion.get();
        at_once(|| congestion() == Congestion::Connection).await;
        // It has two places, which are nobody's. All of the other connection are one client's.
        let mut holder = Client::connect_from(&bench, [127, 0, 1, 1]).await;
        for _ in 0..18 {
            call(&mut holder).await;
        }
        at_once(|| streams.borrow().len() == 16 + 18).await;
        let mut other = Client::connect_from(&bench, [127, 0, 1, 2]).await;
        call(&mut other).await;
        at_once(|| bench.worker.pool.counts().2 == 1).await;
        pass(Duration::from_millis(1100)).await;
        at_once(|| streams.borrow().len() == 16 + 18 + 1).await;
        assert_eq!(bench.shard.limits(Limit::StreamShare).get(), 1);
        assert_eq!(congestion(), Congestion::Connection);
        upload.abort();
    });
}
