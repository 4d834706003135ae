//! What an RPC owes at once, and what it owes after exactly so much time: with sockets, and a clock that only the test
//! moves.

mod copies;

mod methods;

mod shed;

mod shut;

mod times;

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use http2::{Connection, Event, Known};
use tokio::{net::TcpListener, time::advance};

use super::*;
use crate::{
    data_plane::testing::{
        self, Bench, Client as Browser, Got, at_once, backend, cluster_policy, echo, frozen,
        policy, running, serve, settle, stopped, until,
    },
    snapshot::{
        pressure::{Level, Pressure},
        streak::Thresholds,
    },
    telemetry::{captured::Log, labels::Label as _},
};

const GRPC: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/api.Echo/Echo"),
    (":authority", "a.test"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
const PLAIN: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/plain/x"),
    (":authority", "a.test"),
];

/// What a backend noted of its streams.
#[derive(Default)]
struct Noted {
    requests: RefCell<Vec<Headers>>,
    resets: RefCell<Vec<Reason>>,
}

impl Noted {
    fn requests(&self) -> usize {
        self.requests.borrow().len()
    }

    fn resets(&self) -> usize {
        self.resets.borrow().len()
    }
}

/// Notes what happens to its streams; to a path that ends in `begun` it sends a head and five bytes, and never more.
fn noting(noted: &Rc<Noted>) -> impl FnMut(&mut Connection, Event<'_>) + use<> {
    let noted = noted.clone();
    move |engine, event| match event {
        Event::Headers {
            stream, headers, ..
        } => {
            if headers.path().unwrap().ends_with(b"begun") {
                let head = testing::headers(&[(":status", "200")]);
                engine.send_headers(stream, &head, false);
                engine.send_data(stream, b"\0\0\0\0\0", false, testing::now());
            }
            noted.requests.borrow_mut().push(headers);
        }
        Event::Reset { reason, .. } => noted.resets.borrow_mut().push(reason),
        _ => {}
    }
}

/// A backend whose connections are served only when the test says so: until then RPCs wait for its SETTINGS.
async fn silent() -> (TcpListener, Bench) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let bench = Bench::new(&[listener.local_addr().unwrap()]);
    (listener, bench)
}

async fn until_begun(client: &mut Browser, stream: u32) {
    while !matches!(client.next().await, Got::Data(at, ..) if at == stream) {}
}

#[test]
fn a_cancel_is_passed_on_at_once_in_every_state() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut client = Browser::connect(&bench).await;
        for (number, path) in [(1, "/api.Echo/silent"), (2, "/api.Echo/begun")] {
            for (upload_ended, count) in [(true, 2 * number - 1), (false, 2 * number)] {
                let stream = client.call(path, b"\0\0\0\0\0", upload_ended);
                client.flush().await;
                at_once(|| noted.requests() == count).await;
                if path.ends_with("begun") {
                    until_begun(&mut client, stream).await;
                }
                client.engine.reset(stream, Reason::CANCEL);
                client.flush().await;
                at_once(|| noted.resets() == count).await;
                assert_eq!(noted.resets.borrow()[count - 1], Reason::CANCEL, "{path}");
            }
        }
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        assert_eq!(endpoint.connections.load(Ordering::Relaxed), 1);
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
    });
    // While it waits for a connection there is nobody to tell, and nothing to keep.
    stopped(|| async {
        let (listener, bench) = silent().await;
        let mut client = Browser::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        client.engine.reset(stream, Reason::CANCEL);
        client.flush().await;
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        let noted = Rc::<Noted>::default();
        tokio::task::spawn_local(serve(listener.accept().await.unwrap().0, noting(&noted)));
        let stream = client.call("/api.Echo/begun", b"", true);
        until_begun(&mut client, stream).await;
        assert_eq!((noted.requests(), noted.resets()), (1, 0));
    });
}

#[test]
fn the_backend_is_told_what_is_left_of_the_deadline() {
    stopped(|| async {
        let (listener, bench) = silent().await;
        let mut client = Browser::connect(&bench).await;
        let twice = [("grpc-timeout", "20S"), ("grpc-timeout", "30S")];
        let fields = [&GRPC[..], &twice].concat();
        client.request(&fields, b"", true);
        client.flush().await;
        let socket = listener.accept().await.unwrap().0;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        advance(Duration::from_secs(3)).await;
        let noted = Rc::<Noted>::default();
        tokio::task::spawn_local(serve(socket, noting(&noted)));
        at_once(|| noted.requests() == 1).await;
        let told = noted.requests.borrow()[0].clone();
        let told: Vec<_> = told.all_known(Known::GrpcTimeout).collect();
        assert_eq!(told, [b"17000000u"]);
    });
}

#[test]
fn a_deadline_of_zero_is_answered_at_once_and_asks_nobody() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut client = Browser::connect(&bench).await;
        let fields = [&GRPC[..], &[("grpc-timeout", "0H")]].concat();
        let stream = client.request(&fields, b"", true);
        assert_eq!(client.status(stream).await, "4");
        assert_eq!(noted.requests(), 0);
    });
}

#[test]
fn a_deadline_that_passes_after_the_head_is_told_in_trailers() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut client = Browser::connect(&bench).await;
        let mut fields = [&GRPC[..], &[("grpc-timeout", "2S")]].concat();
        fields[2].1 = "/api.Echo/begun";
        let stream = client.request(&fields, b"", true);
        until_begun(&mut client, stream).await;
        advance(Duration::from_secs(1)).await;
        assert_eq!(noted.resets(), 0);
        advance(Duration::from_secs(1)).await;
        let (_, _, trailers) = client.answer(stream).await;
        assert_eq!(trailers.known(Known::GrpcStatus), Some(&b"4"[..]));
        assert_eq!(
            trailers.known(Known::GrpcMessage),
            Some(&b"upstream request timeout"[..])
        );
        at_once(|| noted.resets() == 1).await;
        assert_eq!(noted.resets.borrow()[0], Reason::CANCEL);
    });
}

#[test]
fn bytes_of_the_client_keep_a_stream_from_being_idle() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut rules = policy();
        rules.timeouts.stream_idle = Duration::from_secs(10);
        let mut client = Browser::connect_with(&bench, rules.clone()).await;
        let mut snapshot = crate::snapshot::Snapshot::clone(&bench.worker.snapshot());
        snapshot.listener = Arc::new(rules);
        bench.worker.follow(Arc::new(snapshot));
        let stream = client.call("/api.Echo/begun", b"\0\0\0\0\0", false);
        until_begun(&mut client, stream).await;
        let active = || {
            let mut at = None;
            let rpcs = bench.worker.rpcs.borrow();
            rpcs.for_each(|_, rpc| at = Some(rpc.active));
            at
        };
        for _ in 0..5 {
            advance(Duration::from_secs(9)).await;
            client
                .engine
                .send_data(stream, b"\0\0\0\0\0", false, testing::now());
            client.flush().await;
            at_once(|| active().is_none_or(|at| at == testing::now())).await;
            assert!(active().is_some(), "it has ended");
        }
        advance(Duration::from_secs(10)).await;
        let (_, _, trailers) = client.answer(stream).await;
        assert_eq!(trailers.known(Known::GrpcStatus), Some(&b"4"[..]));
        assert_eq!(
            trailers.known(Known::GrpcMessage),
            Some(&b"stream timeout"[..])
        );
    });
}

#[test]
fn bytes_that_a_backend_takes_keep_an_upload_from_being_idle() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut client = Browser::connect(&bench).await;
        client.call("/api.Echo/silent", b"\0\0\0\0\0", false);
        client.flush().await;
        at_once(|| noted.requests() == 1).await;
        advance(Duration::from_secs(5)).await;
        let now = bench.worker.tick();
        let key = bench.worker.rpcs.borrow().keys()[0];
        request_sent(&bench.worker, key, 1);
        let mut rpcs = bench.worker.rpcs.borrow_mut();
        assert_eq!(rpcs.get_mut(key).unwrap().active, now);
    });
}

/// What ends an RPC whose response is larger than the window of a client that reads nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The deadline, and 5 s later nobody has read its trailers either.
    Deadline,
    /// `stream_idle`, and where the response went on, 5 s later nobody has read its trailers either.
    Idle,
    /// `stream_window_stall`.
    Stall,
    /// The client.
    Cancel,
}

#[test]
fn a_status_that_never_left_is_not_the_clients() {
    use labels::AttemptResult::{Cancelled, Ok, TimedOut};
    // The response goes on, or has ended but for what waits.
    for (path, ends, attempt, line) in [
        (
            "going-on",
            Ends::Deadline,
            TimedOut,
            "grpc_status=- flags=UT,LR detail=\"upstream request timeout\"",
        ),
        (
            "going-on",
            Ends::Stall,
            Cancelled,
            "grpc_status=- flags=LR detail=-",
        ),
        (
            "going-on",
            Ends::Cancel,
            Cancelled,
            "grpc_status=1 flags=DR detail=-",
        ),
        (
            "going-on",
            Ends::Idle,
            TimedOut,
            "grpc_status=- flags=LR,SI detail=\"stream timeout\"",
        ),
        (
            "ended",
            Ends::Idle,
            Ok,
            "grpc_status=- flags=SI detail=\"stream timeout\"",
        ),
        ("ended", Ends::Stall, Ok, "grpc_status=- flags=LR detail=-"),
        ("ended", Ends::Cancel, Ok, "grpc_status=1 flags=DR detail=-"),
    ] {
        stopped(|| async move {
            let bench = Bench::new(&[backend(large).await]);
            let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
                .shared
                .clone();
            endpoint.streaks.watch(&Thresholds {
                gateway_failure: 1,
                server_error: 1,
                ..Thresholds::default()
            });
            let mut rules = policy();
            rules.timeouts.stream_window_stall = Duration::from_secs(20);
            if ends == Ends::Idle {
                rules.timeouts.stream_idle = Duration::from_secs(10);
            }
            let mut client = Browser::connect_with(&bench, rules).await;
            let path = format!("/api.Echo/{path}");
            let mut fields = GRPC.to_vec();
            fields[2].1 = &path;
            if ends == Ends::Deadline {
                fields.push(("grpc-timeout", "10S"));
            }
            let stream = client.request(&fields, b"", true);
            client.flush().await;
            let has_come = |flushing| large_has_come(&bench, flushing);
            at_once(|| has_come(path.ends_with("ended"))).await;
            // And what the window allows has gone on.
            settle().await;
            match ends {
                Ends::Deadline | Ends::Idle => {
                    advance(Duration::from_secs(10)).await;
                    if path.ends_with("going-on") {
                        at_once(|| has_come(true)).await;
                        advance(Duration::from_secs(5)).await;
                    }
                }
                Ends::Stall => advance(Duration::from_secs(20)).await,
                Ends::Cancel => {
                    client.engine.reset(stream, Reason::CANCEL);
                    client.flush().await;
                }
            }
            at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
            if ends != Ends::Cancel {
                let reason = loop {
                    match client.next().await {
                        Got::Reset(at, reason) if at == stream => break reason,
                        Got::Headers(..) | Got::Data(..) => {}
                        got => panic!("{got:?}"),
                    }
                };
                assert_eq!(reason, Reason::CANCEL);
            }
            let resets = |cause| bench.shard.resets(cause).get();
            // Its 5 s are over for what was cut short: no `stream_window_stall` has passed.
            let stalls = u64::from(ends == Ends::Stall);
            assert_eq!(resets(labels::ResetCause::WindowStall), stalls);
            assert_eq!(bench.shard.limits(Limit::WindowStall).get(), stalls);
            assert_eq!(
                resets(labels::ResetCause::Deadline),
                u64::from(ends == Ends::Deadline)
            );
            assert_eq!(
                resets(labels::ResetCause::IdleTimeout),
                u64::from(ends == Ends::Idle)
            );
            let series = bench.shard.cluster(&"backends".into());
            assert_eq!(series.attempts(attempt).get(), 1, "{path} {ends:?}");
            let blamed: Vec<_> = endpoint.streaks.take().collect();
            assert!(blamed.is_empty(), "{path} {ends:?}: {blamed:?}");
            let lines = bench.logged();
            assert!(lines[0].contains(line), "{path} {ends:?}: {lines:?}");
        });
    }
}

#[test]
fn an_idle_response_that_a_client_takes_within_5_s_ends_with_its_status() {
    stopped(|| async {
        let bench = Bench::new(&[backend(large).await]);
        let mut rules = policy();
        rules.timeouts.stream_idle = Duration::from_secs(10);
        let mut client = Browser::connect_with(&bench, rules).await;
        let stream = client.call("/api.Echo/going-on", b"", true);
        client.flush().await;
        let has_come = |flushing| large_has_come(&bench, flushing);
        at_once(|| has_come(false)).await;
        settle().await;
        advance(Duration::from_secs(10)).await;
        at_once(|| has_come(true)).await;
        advance(Duration::from_millis(4900)).await;
        settle().await;
        let (_, body, trailers) = client.answer(stream).await;
        assert_eq!(body.len(), LARGE);
        assert_eq!(trailers.known(Known::GrpcStatus), Some(&b"4"[..]));
        assert_eq!(
            trailers.known(Known::GrpcMessage),
            Some(&b"stream timeout"[..])
        );
        let lines = bench.logged();
        let line = "grpc_status=4 flags=SI detail=\"stream timeout\"";
        assert!(lines[0].contains(line), "{lines:?}");
    });
}

/// All of [`large`]'s body has come, and whether that is the end.
fn large_has_come(bench: &Bench, flushing: bool) -> bool {
    let mut so = false;
    bench.worker.rpcs.borrow().for_each(|_, rpc| {
        so = rpc.record.bytes_out == LARGE as u64
            && matches!(rpc.state, State::Flushing(_)) == flushing;
    });
    so
}

/// Answers with one message, so that there is no boundary to cut it at; to a path that ends in `ended` with trailers too.
fn large(engine: &mut Connection, event: Event<'_>) {
    if let Event::Headers {
        stream, headers, ..
    } = event
    {
        let mut message = vec![0; LARGE];
        message[1..5].copy_from_slice(&(LARGE as u32 - 5).to_be_bytes());
        engine.send_headers(stream, &testing::headers(&[(":status", "200")]), false);
        engine.send_data(stream, &message, false, testing::now());
        if headers.path().unwrap().ends_with(b"ended") {
            engine.send_trailers(stream, &testing::headers(&[("grpc-status", "0")]));
        }
    }
}

/// More than a client's window, less than a backend's.
const LARGE: usize = 100 * 1024;

#[test]
fn no_eligible_endpoint_is_answered_at_once() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        bench.reload(|cluster| cluster.eligible.clear());
        let mut client = Browser::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        assert_eq!(client.status(stream).await, "14");
        assert_eq!(noted.requests(), 0);
    });
}

#[test]
fn the_upstream_time_is_that_from_the_requests_end_to_the_head() {
    for (before_its_end, wanted) in [(0, "1234"), (1000, "234")] {
        stopped(|| async {
            let (listener, bench) = silent().await;
            let mut client = Browser::connect(&bench).await;
            let stream = client.request(&GRPC, b"\0\0\0\0\0", false);
            client.flush().await;
            let socket = listener.accept().await.unwrap().0;
            at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
            advance(Duration::from_millis(before_its_end)).await;
            client.engine.send_data(stream, b"", true, testing::now());
            client.flush().await;
            let is_open = || {
                let mut open = false;
                let rpcs = bench.worker.rpcs.borrow();
                rpcs.for_each(|_, rpc| open = rpc.request_ended.is_none());
                open
            };
            at_once(|| !is_open()).await;
            // Whole milliseconds.
            advance(Duration::from_micros(1_234_900 - 1000 * before_its_end)).await;
            tokio::task::spawn_local(serve(socket, echo()));
            let (head, _, _) = client.answer(stream).await;
            let time = head.get(b"x-envoy-upstream-service-time").unwrap();
            assert_eq!(String::from_utf8_lossy(time), wanted);
        });
    }
}

#[test]
fn an_attempt_is_counted_once_and_runs_from_when_it_has_a_stream() {
    stopped(|| async {
        let (_listener, bench) = silent().await;
        let mut client = Browser::connect(&bench).await;
        // Both pass before anything is looked at: the connect first.
        let asked = cluster_policy().connect_timeout + Duration::from_millis(1);
        let asked = format!("{}m", asked.as_millis());
        let fields = [&GRPC[..], &[("grpc-timeout", &asked)]].concat();
        let stream = client.request(&fields, b"", true);
        client.flush().await;
        at_once(|| bench.worker.pool.counts().2 == 1).await;
        let series = bench.shard.cluster(&"backends".into());
        assert_eq!(series.active.get(), 0, "it waits");
        advance(cluster_policy().connect_timeout * 2).await;
        assert_eq!(client.status(stream).await, "4");
        let ends = labels::AttemptResult::ALL.iter();
        let counted: Vec<_> = ends
            .filter(|end| series.attempts(**end).get() > 0)
            .collect();
        assert_eq!(counted, [&labels::AttemptResult::TimedOut]);
        assert_eq!(series.attempts(labels::AttemptResult::TimedOut).get(), 1);
        assert_eq!(series.retries.get(), 0);
    });
}

#[test]
fn short_of_memory_a_stalled_request_is_answered_overloaded() {
    running(|| async {
        for (fields, status, text) in [(&GRPC[..], "200", Some("8")), (&PLAIN[..], "503", None)] {
            let noted = Rc::<Noted>::default();
            // It gives no credit, so the upload waits in the proxy.
            let address = backend(noting(&noted)).await;
            let bench = Bench::within(Some(4 * 16 * 1024), &[address], policy(), cluster_policy());
            let mut client = Browser::connect(&bench).await;
            let stream = client.request(fields, &[0; 256 * 1024], true);
            let (head, body, _) = client.answer(stream).await;
            assert_eq!(head.known(Known::Status), Some(status.as_bytes()));
            assert_eq!(head.known(Known::GrpcStatus), text.map(str::as_bytes));
            match text {
                Some(_) => assert_eq!(head.known(Known::GrpcMessage), Some(&b"overloaded"[..])),
                None => assert_eq!(body, b"overloaded"),
            }
            until(|| noted.resets() == 1).await;
            let series = bench.shard.cluster(&"backends".into());
            assert_eq!(series.attempts(labels::AttemptResult::Cancelled).get(), 1);
            assert_eq!(bench.shard.resets(labels::ResetCause::Overload).get(), 1);
            let lines = bench.logged();
            assert!(lines[0].contains("flags=OM"), "{lines:?}");
        }
    });
}

#[test]
fn short_of_memory_a_new_request_is_answered_overloaded() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut client = Browser::connect(&bench).await;
        bench.worker.press(Pressure {
            level: Level::Refusing,
            used: 96,
            limit: 100,
        });
        let stream = client.request(&GRPC, b"", true);
        let (head, body, _) = client.answer(stream).await;
        assert_eq!(head.known(Known::Status), Some(&b"200"[..]));
        assert_eq!(head.known(Known::GrpcStatus), Some(&b"8"[..]));
        assert_eq!(head.known(Known::GrpcMessage), Some(&b"overloaded"[..]));
        assert_eq!(body, b"");
        let stream = client.request(&PLAIN, b"", true);
        let (head, body, _) = client.answer(stream).await;
        assert_eq!(head.known(Known::Status), Some(&b"503"[..]));
        assert_eq!(head.get(b"content-type"), Some(&b"text/plain"[..]));
        assert_eq!(head.known(Known::GrpcStatus), None);
        assert_eq!(body, b"overloaded");
        assert_eq!(noted.requests(), 0);
        assert_eq!(bench.shard.limits(Limit::Overload).get(), 2);
        let lines = bench.logged();
        assert!(
            lines.iter().all(|line| line.contains("flags=OM")),
            "{lines:?}"
        );
    });
}

#[test]
fn a_panic_is_answered_without_its_detail_which_is_logged_with_the_request_id() {
    let log = Log::default();
    let _guard = log.capture();
    running(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        let mut client = Browser::connect(&bench).await;
        for (fields, status, grpc) in [
            (&GRPC[..], "200", Some(&b"13"[..])),
            (&PLAIN[..], "500", None),
        ] {
            let fields = [fields, &[("x-request-id", "id-of-mine")]].concat();
            testing::arm("step", 0);
            let stream = client.request(&fields, b"", true);
            let (head, body, _) = client.answer(stream).await;
            assert_eq!(head.known(Known::Status), Some(status.as_bytes()));
            assert_eq!(head.known(Known::GrpcStatus), grpc);
            match grpc {
                Some(_) => assert_eq!(head.known(Known::GrpcMessage), Some(&b"internal error"[..])),
                None => assert_eq!(body, b"internal error"),
            }
        }
        let lines = log.lines("a panic ended");
        assert_eq!(lines.len(), 2, "{lines:?}");
        for line in lines {
            assert!(line.contains("id-of-mine"), "{line}");
            assert!(line.contains("a test's panic at step"), "{line}");
        }
        assert!(bench.logged()[0].contains("flags=LR"));
    });
}
