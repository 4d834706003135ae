//! When a connection leaves by its age, or by a drain, and how long what runs may go on then.

use super::*;

#[test]
fn a_connections_age_is_30_min_and_its_streams_may_finish() {
    frozen(|| async {
        let mut policy = patient();
        policy.max_connection_age = testing::policy().max_connection_age;
        policy.timeouts.stream_idle = DAYS;
        let bench = Bench::with(
            &[backend(echo()).await],
            policy.clone(),
            testing::cluster_policy(),
        );
        let mut others = Vec::new();
        for _ in 0..50 {
            others.push(Client::connect_with(&bench, policy.clone()).await);
        }
        let ages = leave(&bench, |connection| connection.accepted);
        assert!(
            ages.iter().all(|age| (1620..=1980).contains(age)),
            "{ages:?}"
        );
        // Fifty that are all on one side of the middle: once in 2^49 runs.
        assert!(
            ages.iter().any(|age| *age < 1800) && ages.iter().any(|age| *age >= 1800),
            "{ages:?}"
        );
        drop(others);
        at_once(|| open(&bench) == 0).await;

        let (mut raw, _) = Raw::open(&bench, policy).await;
        begin(&bench, &mut raw).await;
        bench.pass_and_pong(seconds(1600)).await;
        assert!(matches!(only(&bench).leaving.get(), Leaving::At(_)));
        bench.pass_and_pong(seconds(400)).await;
        assert_eq!(
            raw.next_of(GOAWAY).await[9..17],
            [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]
        );
        let ping = raw.next_of(PING).await;
        raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
        assert_eq!(raw.next_of(GOAWAY).await[9..17], [0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(bench.shard.limits(Limit::ConnectionAge).get(), 1);
        // Grace has no end unless one is set.
        for _ in 0..100 {
            bench.pass_and_pong(seconds(200)).await;
        }
        raw.send(&frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")).await;
        assert_eq!(raw.next_of(DATA).await[8], 1);
        assert_eq!(raw.next_of(HEADERS).await[4] & END_STREAM, END_STREAM);
        at_once(|| open(&bench) == 0).await;
    });
}

/// A client that has connected, and its backend.
async fn connected(policy: ListenerPolicy) -> (Bench, Raw) {
    let bench = Bench::with(
        &[backend(echo()).await],
        policy.clone(),
        testing::cluster_policy(),
    );
    let (raw, _) = Raw::open(&bench, policy).await;
    (bench, raw)
}

/// Begins an RPC that goes on until its client ends it; its connection to the backend is open then, before the deadline of that
/// passes.
async fn begin(bench: &Bench, raw: &mut Raw) {
    let block = raw.block(&testing::grpc("/api.Echo/Echo"));
    raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
    let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
        .shared
        .clone();
    at_once(|| endpoint.active.load(Ordering::Relaxed) == 1).await;
}

#[test]
fn the_grace_of_age_does_not_bound_what_a_drain_leaves_to_finish() {
    frozen(|| async {
        let mut policy = patient();
        policy.max_connection_age_grace = Some(seconds(10));
        let (bench, mut raw) = connected(policy).await;
        begin(&bench, &mut raw).await;
        pass(seconds(1)).await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now + seconds(1),
        });
        pass(seconds(1)).await;
        let ping = raw.next_of(PING).await;
        raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
        at_once(|| matches!(only(&bench).leaving.get(), Leaving::Fixed(_))).await;
        bench.worker.enter(Phase::Closing);
        for _ in 0..5 {
            bench.pass_and_pong(seconds(11)).await;
            assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        }
        raw.send(&frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")).await;
        assert_eq!(raw.next_of(DATA).await[8], 1);
        assert_eq!(raw.next_of(HEADERS).await[4] & END_STREAM, END_STREAM);
        at_once(|| open(&bench) == 0).await;
    });
}

#[test]
fn what_began_just_after_an_idle_goaway_has_until_age_and_its_grace() {
    frozen(|| async {
        let mut policy = patient();
        policy.timeouts.idle = seconds(100);
        policy.timeouts.stream_idle = DAYS;
        policy.max_connection_age = seconds(1000);
        policy.max_connection_age_grace = Some(seconds(10));
        let (bench, mut raw) = connected(policy).await;
        pass(seconds(101)).await;
        let ping = raw.next_of(PING).await;
        begin(&bench, &mut raw).await;
        raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
        at_once(|| matches!(only(&bench).leaving.get(), Leaving::Fixed(_))).await;
        // Age is 900 s at least, and 1100 at most.
        for _ in 0..7 {
            bench.pass_and_pong(seconds(100)).await;
            assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        }
        for _ in 0..4 {
            bench.pass_and_pong(seconds(100)).await;
        }
        let answer = raw.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, END_STREAM, "by a status alone");
        at_once(|| open(&bench) == 0).await;
    });
}

/// In how many seconds after that moment each connection leaves.
fn leave(bench: &Bench, after: impl Fn(&Downstream) -> Instant) -> Vec<u64> {
    let clients = bench.worker.clients.borrow();
    let leaves = clients.values().map(|client| match client {
        ClientConnection::Http2(it) => match it.leaving.get() {
            Leaving::At(at) => at.duration_since(after(it)).as_secs(),
            leaving => unreachable!("{leaving:?}"),
        },
        ClientConnection::Http1(_) => unreachable!(),
    });
    leaves.collect()
}

#[test]
fn a_drain_tells_each_connection_at_a_moment_of_its_own() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let mut clients = Vec::new();
        for _ in 0..50 {
            clients.push(Client::connect_with(&bench, patient()).await);
        }
        pass(seconds(1)).await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now + seconds(1000),
        });
        let moments = leave(&bench, |_| now);
        assert_eq!(moments.len(), 50);
        assert!(moments.iter().all(|at| *at < 1000), "{moments:?}");
        // Fifty that are all in one half: once in 2^49 runs.
        assert!(
            moments.iter().any(|at| *at < 500) && moments.iter().any(|at| *at >= 500),
            "{moments:?}"
        );
    });
}

#[test]
fn what_waits_for_a_shut_window_has_5_s_after_the_grace() {
    // The backend's response, or what the proxy says in its place.
    for answers in [true, false] {
        frozen(|| async move {
            let address = backend(move |engine, event| {
                if let (Event::Headers { stream, .. }, true) = (event, answers) {
                    engine.send_headers(stream, &testing::headers(&[(":status", "200")]), false);
                    engine.send_data(stream, b"all", true, testing::now());
                }
            })
            .await;
            let mut policy = patient();
            policy.max_connection_age = seconds(10);
            policy.max_connection_age_grace = Some(seconds(1));
            let bench = Bench::with(&[address], policy.clone(), testing::cluster_policy());
            let (mut raw, _) = Raw::open(&bench, policy).await;
            raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
            let block = raw.block(&testing::headers(&[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/plain/"),
                (":authority", "a.test"),
            ]));
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
                .await;
            let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
                .shared
                .clone();
            let asked = || endpoint.active.load(Ordering::Relaxed) == 1;
            let waits = || only(&bench).link.blocked(1).is_some();
            at_once(|| waits() == answers && asked() != answers).await;

            pass(seconds(11)).await;
            let ping = raw.next_of(PING).await;
            raw.send(&frame(PING, ACK, 0, &ping[9..])).await;
            at_once(|| matches!(only(&bench).leaving.get(), Leaving::Fixed(_))).await;
            pass(seconds(1)).await;
            at_once(waits).await;
            for tenths in [0, 1, 48] {
                pass(Duration::from_millis(100) * tenths).await;
                settle().await;
                let now = bench.worker.tick();
                match only(&bench).check_deadlines(&bench.worker, now) {
                    Check::Until(at) => assert!(at > now, "it would be looked at without end"),
                    Check::Close(end) => panic!("{end:?}"),
                }
                assert_eq!(bench.worker.rpcs.borrow().len(), 1);
            }
            pass(Duration::from_millis(100)).await;
            let reset = raw.next_of(RST_STREAM).await;
            assert_eq!(reset[5..], [0, 0, 0, 1, 0, 0, 0, 8]);
            at_once(|| open(&bench) == 0).await;
        });
    }
}
