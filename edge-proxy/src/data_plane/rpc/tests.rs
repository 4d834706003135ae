//! What an RPC owes at once, and what it owes after exactly so much time: with sockets, and a clock that only the test
//! moves.

use std::{cell::RefCell, time::Duration};

use http2::{Connection, Event};
use tokio::{net::TcpListener, time::advance};

use super::*;
use crate::{
    data_plane::testing::{
        self, Bench, Client as Browser, Got, at_once, backend, cluster_policy, echo, policy,
        running, serve, stopped, until,
    },
    snapshot::Cluster,
    telemetry::captured::Log,
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
fn bytes_of_either_side_keep_a_stream_from_being_idle() {
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
fn no_eligible_endpoint_is_answered_at_once() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let mut snapshot = crate::snapshot::Snapshot::clone(&bench.worker.snapshot());
        let mut cluster = Cluster::clone(&snapshot.clusters[0]);
        cluster.eligible.clear();
        snapshot.clusters = vec![Arc::new(cluster)];
        bench.worker.follow(Arc::new(snapshot));
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
            let lines = bench.logged();
            assert!(lines[0].contains("flags=OM"), "{lines:?}");
        }
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
