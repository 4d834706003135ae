//! What ends an RPC in time and what doesn't, and the times that are told of it.

use super::*;
use crate::{
    data_plane::route::RouteTable,
    snapshot::{Route, RouteAction},
    telemetry::histogram::Distribution,
};

/// What is served changes.
fn change(bench: &Bench, change: impl FnOnce(&mut crate::snapshot::Snapshot)) {
    let mut snapshot = crate::snapshot::Snapshot::clone(&bench.worker.snapshot());
    change(&mut snapshot);
    bench.worker.follow(Arc::new(snapshot));
}

/// The only route leads to the backends, with these times.
fn route(bench: &Bench, timeout: Option<Duration>, max_grpc_timeout: Option<Duration>) {
    let route = Route {
        prefix: "/api.".into(),
        action: RouteAction::Cluster {
            cluster: 0,
            timeout,
            max_grpc_timeout,
        },
    };
    change(bench, |snapshot| {
        snapshot.routes = Arc::new(RouteTable::new(vec![route]));
    });
}

#[test]
fn bytes_of_the_backend_keep_a_stream_from_being_idle_also_while_the_client_takes_none() {
    const WINDOW: usize = 65_535;
    stopped(|| async {
        // As much as the client's window holds; and whatever comes on another stream, some bytes more.
        let first = Cell::new(None);
        let address = backend(move |engine, event| match event {
            Event::Headers { stream, .. } if first.get().is_none() => {
                first.set(Some(stream));
                engine.send_headers(stream, &testing::headers(&[(":status", "200")]), false);
                engine.send_data(stream, &[0; WINDOW], false, testing::now());
            }
            Event::Data { stream, .. } if first.get() != Some(stream) => {
                engine.send_data(first.get().unwrap(), &[0; 5], false, testing::now());
            }
            _ => {}
        })
        .await;
        let mut rules = policy();
        rules.timeouts.stream_idle = Duration::from_secs(10);
        let bench = Bench::with(&[address], rules.clone(), cluster_policy());
        // Or one of so many RPCs has ended.
        let relayed = |bytes, count| {
            let worker = bench.worker.clone();
            at_once(move || {
                let mut most = 0;
                let rpcs = worker.rpcs.borrow();
                rpcs.for_each(|_, rpc| most = most.max(rpc.record.bytes_out));
                most == bytes as u64 || rpcs.len() < count
            })
        };
        let mut client = Browser::connect_with(&bench, rules).await;
        let watched = client.call("/api.Echo/Watched", b"", true);
        client.flush().await;
        relayed(WINDOW, 0).await;
        let prompts = client.call("/api.Echo/Prompts", b"", false);
        client.flush().await;
        at_once(|| bench.worker.rpcs.borrow().len() == 2).await;
        for count in 1..=5 {
            advance(Duration::from_secs(9)).await;
            client
                .engine
                .send_data(prompts, &[0; 5], false, testing::now());
            client.flush().await;
            relayed(WINDOW + 5 * count, 2).await;
            assert_eq!(bench.worker.rpcs.borrow().len(), 2);
        }
        advance(Duration::from_secs(10)).await;
        // Before the client takes any.
        settle().await;
        let (_, body, trailers) = client.answer(watched).await;
        assert_eq!(body.len(), WINDOW + 25);
        assert_eq!(
            trailers.known(Known::GrpcMessage),
            Some(&b"stream timeout"[..])
        );
    });
}

#[test]
fn of_the_routes_time_and_the_clients_the_earlier_one_counts_and_is_passed_on() {
    for (asked, limit, told) in [
        ("1H", 300, "300000u"),
        ("300m", 300, "300000u"),
        ("200m", 200, "200000u"),
    ] {
        stopped(|| async move {
            let noted = Rc::<Noted>::default();
            let bench = Bench::new(&[backend(noting(&noted)).await]);
            route(&bench, Some(Duration::from_millis(300)), None);
            let mut client = Browser::connect(&bench).await;
            let fields = [&GRPC[..], &[("grpc-timeout", asked)]].concat();
            let stream = client.request(&fields, b"", true);
            client.flush().await;
            at_once(|| noted.requests() == 1).await;
            let seen = noted.requests.borrow()[0].clone();
            assert_eq!(seen.known(Known::GrpcTimeout), Some(told.as_bytes()));
            advance(Duration::from_millis(limit - 1)).await;
            settle().await;
            assert_eq!(bench.worker.rpcs.borrow().len(), 1, "{asked}");
            advance(Duration::from_millis(1)).await;
            assert_eq!(client.status(stream).await, "4", "{asked}");
        });
    }
}

#[test]
fn an_rpc_without_grpc_timeout_has_no_cap() {
    frozen(|| async {
        let noted = Rc::<Noted>::default();
        let mut rules = policy();
        rules.timeouts.stream_idle = Duration::from_secs(24 * 3600);
        let bench = Bench::with(
            &[backend(noting(&noted)).await],
            rules.clone(),
            cluster_policy(),
        );
        route(&bench, None, Some(Duration::from_secs(10)));
        let mut client = Browser::connect_with(&bench, rules).await;
        client.call("/api.Echo/silent", b"", true);
        client.flush().await;
        at_once(|| noted.requests() == 1).await;
        let seen = noted.requests.borrow()[0].clone();
        assert_eq!(seen.known(Known::GrpcTimeout), None);
        bench.pass_and_pong(Duration::from_secs(50)).await;
        settle().await;
        assert_eq!((bench.worker.rpcs.borrow().len(), noted.resets()), (1, 0));
        // One with it has.
        let fields = [&GRPC[..], &[("grpc-timeout", "1H")]].concat();
        let capped = client.request(&fields, b"", true);
        client.flush().await;
        at_once(|| noted.requests() == 2).await;
        bench.pass_and_pong(Duration::from_secs(10)).await;
        assert_eq!(client.status(capped).await, "4");
        assert_eq!(bench.worker.rpcs.borrow().len(), 1);
    });
}

#[test]
fn the_line_and_the_histogram_have_the_time_from_the_first_byte_to_the_last() {
    stopped(|| async {
        // The second message is the request's end: the head answers it, and the trailers the reset of another stream.
        let open = Cell::new(None);
        let asked = Rc::new(Cell::new(0));
        let address = backend({
            let asked = asked.clone();
            move |engine, event| match event {
                Event::Headers { .. } => asked.set(asked.get() + 1),
                Event::Data { stream, .. } => {
                    open.set(Some(stream));
                    engine.send_headers(stream, &testing::headers(&[(":status", "200")]), false);
                }
                Event::Reset { .. } => {
                    let ok = testing::headers(&[("grpc-status", "0")]);
                    engine.send_trailers(open.get().unwrap(), &ok);
                }
                _ => {}
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = Browser::connect(&bench).await;
        let told = client.call("/api.Echo/Told", b"", false);
        client.flush().await;
        at_once(|| asked.get() == 1).await;
        advance(Duration::from_micros(1_234_567)).await;
        client
            .engine
            .send_data(told, b"\0\0\0\0\0", true, testing::now());
        while !matches!(client.next().await, Got::Headers(at, ..) if at == told) {}
        let other = client.call("/api.Echo/Other", b"", false);
        client.flush().await;
        at_once(|| asked.get() == 2).await;
        advance(Duration::from_micros(2_000_001)).await;
        client.engine.reset(other, Reason::CANCEL);
        assert_eq!(client.status(told).await, "0");
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        let mut durations = Distribution::default();
        durations.add(&bench.shard.cluster(&"backends".into()).duration);
        assert_eq!(durations.count(), 2);
        assert_eq!(
            durations.sum(),
            Duration::from_micros(3_234_568 + 2_000_001)
        );
        let lines = bench.logged();
        let line = |path: &str| lines.iter().find(|line| line.contains(path)).unwrap();
        let told = line("/api.Echo/Told");
        assert!(
            told.contains(" duration_ms=3234.568 upstream_ms=1234.567 "),
            "{told}"
        );
        let other = line("/api.Echo/Other");
        assert!(
            other.contains(" duration_ms=2000.001 upstream_ms=- "),
            "{other}"
        );
    });
}
