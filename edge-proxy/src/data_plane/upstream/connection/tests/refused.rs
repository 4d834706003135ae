//! Streams and connections that a backend refuses: who insists on another connection, and how often one is tried.

use super::*;

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

#[test]
fn a_refused_stream_goes_to_the_same_connection_when_another_one_hangs() {
    frozen(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let call = client.call("/api.Echo/Echo", b"one", true);
        client.flush().await;
        let seen = Rc::default();
        let socket = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(testing::serve(socket, refusing(2, &seen)));
        // The second connection is there, and never says anything.
        let _silent = listener.accept().await.unwrap().0;
        at_once(|| insisting(&bench) == [true]).await;
        pass(Duration::from_millis(90)).await;
        settle().await;
        assert_eq!((seen.get(), insisting(&bench)), (1, vec![true]));
        pass(Duration::from_millis(20)).await;
        // Refused once more, it waits no more.
        assert_eq!(client.status(call).await, "0");
        assert_eq!((seen.get(), bench.worker.pool.counts()), (3, (1, 1, 0)));
    });
}

#[test]
fn who_has_waited_for_another_connection_goes_to_the_one_that_refused_it() {
    frozen(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let first = client.call("/api.Echo/Echo", b"one", true);
        client.flush().await;
        let seen = Rc::default();
        let socket = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(testing::serve(socket, refusing(2, &seen)));
        let _silent = listener.accept().await.unwrap().0;
        at_once(|| insisting(&bench) == [true]).await;
        client.engine.reset(first, Reason::CANCEL);
        client.flush().await;
        at_once(|| bench.worker.pool.counts() == (1, 1, 0)).await;
        // The connect has 5 s, this RPC has less.
        let mut rules = testing::cluster_policy();
        rules.connect_timeout = Duration::from_millis(50);
        bench.reload(|cluster| cluster.policy = Arc::new(rules));
        let call = client.call("/api.Echo/Echo", b"two", true);
        client.flush().await;
        at_once(|| seen.get() == 2 && insisting(&bench) == [true]).await;
        pass(Duration::from_millis(60)).await;
        assert_eq!(client.status(call).await, "0");
        assert_eq!((seen.get(), bench.worker.pool.counts()), (3, (1, 1, 0)));
    });
}

#[test]
fn a_refused_stream_goes_to_the_same_connection_when_the_cluster_may_have_no_other() {
    for calls in [1, 3] {
        frozen(|| async move {
            let seen = Rc::default();
            let address = backend(refusing(calls, &seen)).await;
            let bench = Bench::with(&[address], patient(), testing::cluster_policy());
            let mut limits = CircuitLimits::default();
            limits.0[Circuit::Connections as usize] = Some(1);
            bench
                .worker
                .with_snapshot(|snapshot| snapshot.clusters[0].circuits.limit(&limits));
            let mut client = Client::connect_with(&bench, patient()).await;
            let streams: Vec<_> = (0..calls)
                .map(|_| client.call("/api.Echo/Echo", b"one", true))
                .collect();
            for stream in streams {
                assert_eq!(client.status(stream).await, "0", "of {calls}");
            }
            assert_eq!(seen.get(), 2 * calls);
            assert_eq!(connections(&bench).len(), 1);
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
