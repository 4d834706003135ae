//! How connections and requests end that don't end by themselves: one side goes away, a deadline passes, the process drains.

// One side goes away.
mod gone;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;

/// Answers nothing and notes what happens to its streams.
fn silent(
    resets: Rc<Cell<usize>>,
    requests: Rc<Cell<usize>>,
) -> impl FnMut(&mut Connection, Event<'_>) {
    move |_, event| match event {
        Event::Headers { .. } => requests.set(requests.get() + 1),
        Event::Reset { .. } => resets.set(resets.get() + 1),
        _ => {}
    }
}

/// A worker whose backend is [`silent`], and what happens there.
async fn unanswered() -> (Bench, Rc<Cell<usize>>, Rc<Cell<usize>>) {
    let (resets, requests) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let address = backend(silent(resets.clone(), requests.clone())).await;
    (Bench::new(&[address]), resets, requests)
}

#[test]
fn deadlines_of_a_connection() {
    paused(|| async {
        let bench = Bench::new(&[]);
        // Nothing, and half a head: ten seconds from accept on.
        for begun in ["", "GET /direct/ HTTP/1.1\r\nho"] {
            let start = tokio::time::Instant::now();
            let mut client = connect(&bench);
            send(&mut client, begun).await;
            assert_eq!(read_all(&mut client).await, "");
            assert_eq!(start.elapsed().as_secs(), 10);
        }
        assert_eq!(bench.shard.limits(Limit::PrefaceTimeout).get(), 2);
        // Half a second head: ten seconds from its first byte on.
        let mut client = connect(&bench);
        direct(&mut client).await;
        elapse(Duration::from_secs(100)).await;
        let start = tokio::time::Instant::now();
        send(&mut client, "GET").await;
        assert_eq!(read_all(&mut client).await, "");
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(bench.shard.limits(Limit::HeaderBlockTimeout).get(), 1);
        // So has one that came together with a whole request, or two.
        let get = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
        let post = "POST /direct/ HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\na\n\n";
        for before in [get.to_owned(), post.to_owned(), format!("{get}\r\n{get}")] {
            let mut client = connect(&bench);
            let start = tokio::time::Instant::now();
            send(&mut client, &format!("{before}GET /direct/ HTTP/1.1\r\nho")).await;
            let answers = read_all(&mut client).await;
            assert_eq!(
                answers.matches(" 200 ").count(),
                before.matches("host").count()
            );
            assert_eq!(start.elapsed().as_secs(), 10, "{before}");
        }
        assert_eq!(bench.shard.limits(Limit::HeaderBlockTimeout).get(), 4);
        // An empty line isn't the beginning of one.
        let mut client = connect(&bench);
        ask(&mut client, &format!("{post}\r\n"), "direct").await;
        elapse(Duration::from_secs(100)).await;
        send(&mut client, "\r\n").await;
        elapse(Duration::from_secs(100)).await;
        direct(&mut client).await;
        // Idle for fifteen minutes.
        let mut client = connect(&bench);
        direct(&mut client).await;
        let start = tokio::time::Instant::now();
        assert_eq!(read_all(&mut client).await, "");
        assert_eq!(start.elapsed().as_secs(), 900);
        assert!(bench.shard.limits(Limit::IdleConnection).get() >= 1);
        until(|| bench.worker.clients.borrow().is_empty()).await;
    });
}

#[test]
fn half_a_head_behind_the_last_chunk_has_its_deadline() {
    frozen(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let post = "POST /plain/ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let bodies = [
            "3\r\nabc\r\n0\r\n\r\n",
            "3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nx-trailer: 1\r\n\r\n",
        ];
        let timeouts = || bench.shard.limits(Limit::HeaderBlockTimeout).get();
        for (before, body) in bodies.iter().enumerate() {
            let mut client = connect(&bench);
            let request = format!("{post}{body}GET /direct/ HTTP/1.1\r\nho");
            ask(&mut client, &request, "\r\n0\r\n\r\n").await;
            settle().await;
            pass(Duration::from_secs(9)).await;
            settle().await;
            assert_eq!(timeouts(), before as u64);
            pass(Duration::from_secs(1)).await;
            assert_eq!(read_all(&mut client).await, "");
            assert_eq!(timeouts(), before as u64 + 1);
        }
        // Without one the connection is idle, and stays.
        let mut client = connect(&bench);
        for body in bodies {
            ask(&mut client, &format!("{post}{body}"), "\r\n0\r\n\r\n").await;
            settle().await;
            pass(Duration::from_secs(100)).await;
            settle().await;
        }
        direct(&mut client).await;
    });
}

#[test]
fn the_deadline_of_a_head_begins_when_the_answer_before_it_has_left() {
    // What a transport has taken may still wait in it, as records that are sealed do.
    for buffered in [false, true] {
        paused(move || async move {
            let bench = Bench::new(&[]);
            // Takes what the client sends, and no whole answer.
            let (mut client, server) = tokio::io::duplex(64);
            if buffered {
                let server = tokio::io::BufWriter::new(server);
                accept(&bench, testing::policy(), server);
            } else {
                accept(&bench, testing::policy(), server);
            }
            let get = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
            send(&mut client, &format!("{get}GET /direct/ HTTP")).await;
            elapse(Duration::from_secs(20)).await;
            read_to(&mut client, "direct").await;
            let start = tokio::time::Instant::now();
            elapse(Duration::from_secs(9)).await;
            // Nor is it forgotten when the connection is to end meanwhile.
            let now = bench.worker.tick();
            bench.worker.enter(Phase::Draining {
                since: now,
                until: now,
            });
            assert_eq!(read_all(&mut client).await, "");
            assert_eq!(start.elapsed().as_secs(), 10, "{buffered}");
            let limits = &bench.shard.limits(Limit::HeaderBlockTimeout);
            assert_eq!(limits.get(), 1);
        });
    }
}

#[test]
fn the_last_answer_comes_whole_to_a_slow_reader() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now,
        });
        // A whole answer is several times as long.
        let mut client = connect_with(&bench, testing::policy(), 64);
        send(&mut client, "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        elapse(Duration::from_secs(1)).await;
        let answer = read_all(&mut client).await;
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("direct"), "{answer}");
    });
}

#[test]
fn a_request_that_waits_behind_an_answer_is_served_by_a_connection_that_is_to_end() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect_with(&bench, testing::policy(), 100);
        let get = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
        send(&mut client, &format!("{get}{get}")).await;
        elapse(Duration::from_secs(1)).await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now,
        });
        elapse(Duration::from_secs(1)).await;
        let answers = read_all(&mut client).await;
        assert_eq!(
            answers.matches("HTTP/1.1 200 OK\r\n").count(),
            2,
            "{answers}"
        );
        assert_eq!(
            answers.matches("connection: close\r\n").count(),
            1,
            "{answers}"
        );
    });
}

#[test]
fn an_old_connection_says_close_with_its_next_answer() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut policy = testing::policy();
        policy.timeouts.idle = Duration::from_secs(100_000);
        let mut client = connect_with(&bench, policy, 4096);
        direct(&mut client).await;
        let start = tokio::time::Instant::now();
        assert_eq!(read_all(&mut client).await, "", "idle: it ends");
        let age = start.elapsed().as_secs();
        assert!((1620..=1980).contains(&age), "{age}");
        assert_eq!(bench.shard.limits(Limit::ConnectionAge).get(), 1);
    });
}

#[test]
fn a_drain_ends_idle_connections_and_lets_running_requests_finish() {
    running(|| async {
        let address = backend(|engine, event| match event {
            Event::Headers { stream, .. } => {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
            }
            Event::Data {
                stream,
                end_stream: true,
                ..
            } => {
                engine.send_data(stream, b"late", true, Instant::now());
            }
            _ => {}
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut idle = connect(&bench);
        direct(&mut idle).await;
        let mut busy = connect(&bench);
        ask(
            &mut busy,
            "POST /plain/ HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n",
            "\r\n\r\n",
        )
        .await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now + Duration::from_millis(50),
        });
        assert_eq!(read_all(&mut idle).await, "");
        let mut new = connect(&bench);
        let answer = direct(&mut new).await;
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(read_all(&mut new).await, "");
        bench.worker.enter(Phase::Closing);
        send(&mut busy, "end").await;
        assert!(read_all(&mut busy).await.contains("late"));
        until(|| bench.worker.clients.borrow().is_empty()).await;
    });
}

#[test]
fn the_grace_of_age_does_not_bound_what_a_drain_leaves_to_finish() {
    frozen(|| async {
        let (bench, resets, requests) = unanswered().await;
        let mut policy = testing::policy();
        policy.max_connection_age_grace = Some(Duration::from_secs(10));
        let mut client = connect_with(&bench, policy, 4096);
        at_once(|| !bench.worker.clients.borrow().is_empty()).await;
        pass(Duration::from_secs(1)).await;
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        at_once(|| requests.get() == 1).await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now,
        });
        settle().await;
        bench.worker.enter(Phase::Closing);
        for _ in 0..5 {
            pass(Duration::from_secs(11)).await;
            settle().await;
            assert_eq!((bench.worker.rpcs.borrow().len(), resets.get()), (1, 0));
        }
        bench.worker.enter(Phase::Cutting);
        let answer = read_all(&mut client).await;
        assert!(answer.ends_with("the proxy is shutting down"), "{answer}");
    });
}

#[test]
fn a_drain_tells_each_connection_at_a_moment_of_its_own() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let clients: Vec<_> = (0..50).map(|_| connect(&bench)).collect();
        at_once(|| bench.worker.clients.borrow().len() == clients.len()).await;
        pass(Duration::from_secs(1)).await;
        let now = bench.worker.tick();
        bench.worker.enter(Phase::Draining {
            since: now,
            until: now + Duration::from_secs(1000),
        });
        let connections = bench.worker.clients.borrow();
        let moments = connections.values().map(|client| match client {
            ClientConnection::Http1(it) => it.leave_at.get().duration_since(now).as_secs(),
            ClientConnection::Http2(_) => unreachable!(),
        });
        let moments: Vec<_> = moments.collect();
        assert!(moments.iter().all(|at| *at < 1000), "{moments:?}");
        // Fifty that are all in one half: once in 2^49 runs.
        assert!(
            moments.iter().any(|at| *at < 500) && moments.iter().any(|at| *at >= 500),
            "{moments:?}"
        );
    });
}

#[test]
fn what_still_runs_at_the_end_of_a_drain_is_cut() {
    running(|| async {
        let (bench, _, requests) = unanswered().await;
        let mut client = connect(&bench);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| requests.get() == 1).await;
        bench.worker.enter(Phase::Cutting);
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("the proxy is shutting down"), "{answer}");
    });
}

#[test]
fn a_silent_stream_is_answered_after_stream_idle_and_a_stalled_reader_cut() {
    running(|| async {
        let (bench, resets, _) = unanswered().await;
        let mut policy = testing::policy();
        policy.timeouts.stream_idle = Duration::from_millis(100);
        let mut client = connect_with(&bench, policy, 4096);
        let answer = ask(
            &mut client,
            "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n",
            "stream timeout",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        until(|| resets.get() == 1).await;

        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                engine.send_data(stream, &vec![b'x'; 1 << 20], true, Instant::now());
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut policy = testing::policy();
        policy.timeouts.stream_window_stall = Duration::from_millis(100);
        let mut client = connect_with(&bench, policy, 4096);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| bench.shard.limits(Limit::WindowStall).get() == 1).await;
        let mut policy = testing::policy();
        policy.timeouts.write_stall = Duration::from_millis(100);
        let mut client = connect_with(&bench, policy, 4096);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| bench.shard.limits(Limit::WriteStall).get() == 1).await;
    });
}

#[test]
fn what_a_client_does_not_take_has_5_s_after_the_grace() {
    frozen(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                engine.send_data(stream, &vec![b'x'; 200 * 1024], true, testing::now());
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut policy = testing::policy();
        policy.max_connection_age = Duration::from_secs(10);
        policy.max_connection_age_grace = Some(Duration::from_secs(1));
        let mut client = connect_with(&bench, policy, 4096);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let connection = || match bench.worker.clients.borrow().values().next() {
            Some(ClientConnection::Http1(connection)) => connection.clone(),
            _ => panic!("no connection"),
        };
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        let waits = |exchange: &Rc<Exchange>| exchange.blocked().is_some();
        let ended = || endpoint.active.load(Ordering::Relaxed) == 0;
        at_once(|| !bench.worker.clients.borrow().is_empty()).await;
        at_once(|| connection().exchanges.borrow().iter().any(waits) && ended()).await;
        pass(Duration::from_secs(11)).await;
        at_once(|| connection().leaving.get().is_some()).await;
        pass(Duration::from_secs(1)).await;
        settle().await;
        for tenths in [0, 1, 48] {
            pass(Duration::from_millis(100) * tenths).await;
            settle().await;
            let now = bench.worker.tick();
            let next = connection().check(now).unwrap();
            assert!(next > now, "it would be looked at without end");
            assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        }
        pass(Duration::from_millis(100)).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        assert_eq!(bench.shard.limits(Limit::WindowStall).get(), 0);
        assert_eq!(bench.shard.resets(ResetCause::Drain).get(), 1);
    });
}

#[test]
fn a_request_whose_head_is_complete_only_after_the_grace_is_cut() {
    frozen(|| async {
        let (bench, _, _) = unanswered().await;
        let mut policy = testing::policy();
        policy.max_connection_age = Duration::from_secs(10);
        policy.max_connection_age_grace = Some(Duration::from_secs(1));
        let mut client = connect_with(&bench, policy, 4096);
        direct(&mut client).await;
        pass(Duration::from_secs(8)).await;
        send(&mut client, "GET /plain/ HTTP/1.1\r\n").await;
        settle().await;
        pass(Duration::from_secs(3)).await;
        settle().await;
        pass(Duration::from_secs(1)).await;
        settle().await;
        send(&mut client, "host: a\r\n\r\n").await;
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("the proxy is shutting down"), "{answer}");
    });
}
