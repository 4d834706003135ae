//! Connections that fail, leave, or are no longer needed, and what of it an endpoint and a circuit are told.

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::{
    data_plane::{
        testing::{GOAWAY, SETTINGS, frame},
        upstream::opening::LEAVING,
    },
    snapshot::{Endpoint, Health, streak::Thresholds},
};

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

/// A backend that says GOAWAY with the first request, which it never answers; how many it got.
async fn leaver() -> (SocketAddr, Rc<Cell<usize>>) {
    let heads = Rc::new(Cell::new(0));
    let seen = heads.clone();
    let address = backend(move |engine, event| {
        if let Event::Headers { .. } = event {
            seen.set(seen.get() + 1);
            engine.shutdown(Reason::NO_ERROR);
        }
    });
    (address.await, heads)
}

#[test]
fn a_connection_that_leaves_has_no_place_in_the_clusters_circuits() {
    frozen(|| async {
        let (address, heads) = leaver().await;
        let bench = Bench::new(&[address]);
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
fn a_backend_that_leaves_every_connection_keeps_no_more_than_256_of_them() {
    frozen(|| async {
        let (address, heads) = leaver().await;
        let bench = Bench::new(&[address]);
        let mut many = policy();
        many.http2.max_concurrent_streams = 1000;
        let mut client = Client::connect_with(&bench, many).await;
        let open = || bench.worker.pool.connections();
        let mut streams = Vec::new();
        for rpcs in 1..=LEAVING {
            streams.push(client.call("/api.Echo/Echo", b"", true));
            client.flush().await;
            at_once(|| heads.get() == rpcs && !open().iter().any(|one| one.is_ready())).await;
        }
        client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| waiting(&bench) == 1).await;
        settle().await;
        assert_eq!((open().len(), heads.get()), (LEAVING, LEAVING));
        assert_eq!(bench.shard.limits(Limit::UpstreamConnections).get(), 1);
        // One of them ends.
        client.engine.reset(streams[7], Reason::CANCEL);
        client.flush().await;
        at_once(|| heads.get() == LEAVING + 1).await;
        assert_eq!((open().len(), waiting(&bench)), (LEAVING, 0));
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
