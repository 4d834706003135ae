use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{
    backend::Backend,
    client::request,
    dns::DnsServer,
    frames::{Frame, RawBackend, Wire, code, flag, kind},
    journal::Journal,
    loopback, payload,
    proxy::{Proxy, TEST},
    scripted::{Exchange, Scripted, framed, head},
    wait::{eventually, within},
};
use h2::Reason;
use tokio::task::JoinHandle;
use tonic::Code;

/// Sends `count` RPCs with ids over each of `clients` connections, one after the other on each. None may fail.
async fn load(proxy: &Proxy, clients: usize, count: usize) -> Vec<String> {
    let mut tasks = Vec::new();
    for number in 0..clients {
        let mut client = proxy.test_client().await;
        tasks.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            for rpc in 0..count {
                let id = format!("{number}-{rpc}");
                let asked = request(payload("load"), &[("x-test-id", &id)]);
                let reply = within("an answer", client.unary(asked)).await;
                reply.unwrap_or_else(|status| panic!("RPC {id}: {status}"));
                ids.push(id);
            }
            ids
        }));
    }
    let mut ids = Vec::new();
    for task in tasks {
        ids.extend(task.await.unwrap());
    }
    ids
}

/// Each RPC was executed once, by one of these.
fn once(ids: &[String], journals: &[&Journal]) {
    let mut executions = std::collections::HashMap::new();
    for journal in journals {
        for seen in journal.read().requests {
            if let Some(id) = seen.header("x-test-id") {
                *executions.entry(id.to_owned()).or_insert(0) += 1;
            }
        }
    }
    for id in ids {
        assert_eq!(executions.get(id), Some(&1), "RPC {id}");
    }
}

#[tokio::test]
async fn goaways_all_the_time_cost_nothing() {
    let leaves = async |mut exchange: Exchange| {
        let body = exchange.body().await.unwrap_or_default();
        if exchange.number % 100 == 99 {
            exchange.goaway();
        }
        // Without gRPC's five bytes, which `ok` adds.
        exchange.ok(body.get(5..).unwrap_or_default());
    };
    let backends = [
        Scripted::start(leaves).await,
        Scripted::start(leaves).await,
        Scripted::start(leaves).await,
    ];
    let proxy = Proxy::to(&backends).start().await;
    let ids = load(&proxy, 8, 250).await;
    once(&ids, &backends.each_ref().map(|backend| &backend.journal));
    for backend in &backends {
        let seen = backend.journal.read();
        assert!(seen.connections >= 6, "{} connections", seen.connections);
    }
}

#[tokio::test]
async fn one_of_three_that_refuses_all_costs_nothing() {
    let refuses =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let backends = [Backend::start().await, Backend::start().await];
    let addresses = [
        refuses.address(),
        backends[0].address(),
        backends[1].address(),
    ];
    let proxy = Proxy::to(&addresses).start().await;
    // Far more than the budget for further attempts would pay for.
    let ids = load(&proxy, 4, 500).await;
    once(&ids, &backends.each_ref().map(|backend| &backend.journal));
    let asked = refuses.journal.count();
    assert!(asked < 100, "asked {asked} times");
}

/// A backend that allows 100 streams, and one at a time after its 50th; it refuses what is too many, and counts.
async fn narrows(executed: Arc<AtomicUsize>, too_many: Arc<AtomicUsize>) -> RawBackend {
    RawBackend::start(move |stream, _| {
        let (executed, too_many) = (executed.clone(), too_many.clone());
        async move {
            let Ok(mut wire) = Wire::server(stream, &[(MAX_STREAMS, 100)]).await else {
                return;
            };
            let (mut asked, mut narrow, mut open) = (0, false, Vec::new());
            while let Some(frame) = wire.next().await {
                let mut answer = Vec::new();
                match frame.kind {
                    kind::SETTINGS if frame.flags & flag::ACK == 0 => {
                        answer.push(Frame::new(kind::SETTINGS, flag::ACK, 0, []));
                    }
                    // Of the first settings, then of the narrow ones.
                    kind::SETTINGS => narrow = asked >= 50,
                    kind::HEADERS => {
                        asked += 1;
                        if asked == 50 {
                            answer.push(Frame::settings(&[(MAX_STREAMS, 1)]));
                        }
                        if narrow && !open.is_empty() {
                            too_many.fetch_add(1, Ordering::Relaxed);
                            answer.push(Frame::reset(frame.stream, code::REFUSED_STREAM));
                        } else {
                            open.push(frame.stream);
                        }
                    }
                    _ => {}
                }
                if frame.ends_stream() && open.contains(&frame.stream) {
                    open.retain(|stream| *stream != frame.stream);
                    executed.fetch_add(1, Ordering::Relaxed);
                    let head = [(":status", "200"), ("content-type", "application/grpc")];
                    answer.push(Frame::headers(frame.stream, &head, false));
                    answer.push(Frame::data(frame.stream, &framed(b""), false));
                    answer.push(Frame::headers(frame.stream, &[("grpc-status", "0")], true));
                    answer.push(Frame::credit(0, 64));
                }
                if !answer.is_empty() && wire.send(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn fewer_streams_at_a_time_from_one_moment_to_the_next_cost_nothing() {
    let (executed, too_many) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let backends = [
        narrows(executed.clone(), too_many.clone()).await,
        narrows(executed.clone(), too_many.clone()).await,
    ];
    let proxy = Proxy::to(&backends).start().await;
    let ids = load(&proxy, 16, 60).await;
    assert_eq!(executed.load(Ordering::Relaxed), ids.len());
    assert_eq!(
        too_many.load(Ordering::Relaxed),
        0,
        "streams after the limit was acknowledged"
    );
}

#[tokio::test]
async fn a_connection_that_is_reset_after_the_headers_were_read_is_never_repeated() {
    let asked = Arc::new(AtomicUsize::new(0));
    let resets = {
        let asked = asked.clone();
        move |stream: tokio::net::TcpStream, _| {
            let asked = asked.clone();
            async move {
                // RST instead of FIN.
                socket2::SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                let Ok(mut wire) = Wire::server(stream, &[]).await else {
                    return;
                };
                let request = |frame: &Frame| frame.kind == kind::HEADERS;
                if wire.until("a request", request).await.is_some() {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let backends = [
        RawBackend::start(resets.clone()).await,
        RawBackend::start(resets).await,
    ];
    let proxy = Proxy::to(&backends).start().await;
    let mut client = proxy.test_client().await;
    for count in 1..=4 {
        let status = client.unary(payload("")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(asked.load(Ordering::Relaxed), count);
    }
}

/// How far a backend comes before it hangs.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Its process stands still.
    Everything,
    /// The request is read.
    Request,
    /// The response's head is sent.
    Head,
    /// Half of the response's message is sent.
    Message,
}

/// A backend that serves until `hang` is true, then hangs at `stage`.
async fn hangs(stage: Stage, hang: Arc<AtomicBool>) -> Scripted {
    Scripted::start(move |mut exchange: Exchange| {
        let hang = hang.clone();
        async move {
            let check = exchange
                .request
                .uri()
                .path()
                .starts_with("/grpc.health.v1.");
            let body = exchange.body().await.unwrap_or_default();
            if !hang.load(Ordering::Relaxed) {
                // HealthCheckResponse { status: SERVING }, or the message itself.
                let message = if check { &[8, 1] } else { &body[5..] };
                return exchange.ok(message);
            }
            // Kept: its drop would reset the stream.
            let _stream = match stage {
                Stage::Everything | Stage::Request => return exchange.hang().await,
                Stage::Head => exchange.hold(head(200), b""),
                Stage::Message => exchange.hold(head(200), &framed(b"whole")[..7]),
            };
            std::future::pending().await
        }
    })
    .await
}

#[tokio::test]
async fn a_backend_that_hangs_at_any_stage_is_ejected_and_others_do_not_notice() {
    tokio::join!(
        hanging(Stage::Everything),
        hanging(Stage::Request),
        hanging(Stage::Head),
        hanging(Stage::Message),
    );
}

async fn hanging(stage: Stage) {
    let hang = Arc::new(AtomicBool::new(false));
    let ill = hangs(stage, hang.clone()).await;
    let good = Backend::start().await;
    let proxy = Proxy::to(&[ill.address(), good.address()])
        .checked()
        .start()
        .await;
    let client = proxy.test_client().await;
    load(&proxy, 2, 20).await;

    hang.store(true, Ordering::Relaxed);
    let frozen = matches!(stage, Stage::Everything).then(|| ill.freeze());
    let began = Instant::now();
    let mut running: Vec<JoinHandle<_>> = Vec::new();
    // Half of them meet the one that hangs, the others end at once.
    for _ in 0..20 {
        let mut client = client.clone();
        running.push(tokio::spawn(async move { client.unary(payload("")).await }));
    }
    eventually("the other endpoint's RPCs", || async {
        let ended = running.iter().filter(|rpc| rpc.is_finished()).count();
        (ended >= 10).then_some(())
    })
    .await;
    let others = began.elapsed();
    eventually("the ejection", || async {
        let of = [("cluster", "test")];
        (proxy.metric("edge_endpoints_eligible", &of).await == 1.0).then_some(())
    })
    .await;
    let ejected = began.elapsed();
    // Its connections are closed with it: nobody waits for ever.
    let mut failed = 0;
    for rpc in running {
        let result = within("an RPC's end", rpc).await.unwrap();
        failed += usize::from(result.is_err());
    }
    assert!((1..=10).contains(&failed), "{stage:?}: {failed}");
    load(&proxy, 2, 20).await;
    // Two checks of 1 s, 100 ms apart; with room for a slow machine.
    assert!(ejected < Duration::from_secs(10), "{stage:?}: {ejected:?}");
    assert!(others < ejected, "{stage:?}: {others:?}, {ejected:?}");
    drop(frozen);
}

#[tokio::test]
async fn a_name_that_flaps_costs_nothing_and_leaves_nothing_behind() {
    let addresses = loopback::group(12).unwrap();
    let mut backends = Vec::new();
    for address in &addresses {
        backends.push(Backend::start_at(*address).await);
    }
    let dns = DnsServer::start().await.unwrap();
    dns.set_addresses("pods.test", &addresses[..1]);
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, "pods.test", addresses[0].port())
        .with("dns_refresh_rate", "10ms")
        .start()
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for number in 0..4 {
        let (mut client, stop) = (proxy.test_client().await, stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let id = format!("{number}-{}", ids.len());
                let asked = request(payload(""), &[("x-test-id", &id)]);
                let reply = within("an answer", client.unary(asked)).await;
                reply.unwrap_or_else(|status| panic!("RPC {id}: {status}"));
                ids.push(id);
            }
            ids
        }));
    }
    for round in 0..100_usize {
        // 1 to 12 addresses, from another one on each time.
        let (count, from) = (1 + round * 7 % 12, round * 5 % 12);
        let answer: Vec<_> = addresses.iter().cycle().skip(from).take(count).collect();
        dns.set_addresses("pods.test", answer);
        dns.asked("pods.test", 1).await;
    }
    dns.set_addresses("pods.test", &addresses[..2]);
    eventually("the last answer", || async {
        let of = [("cluster", "test")];
        (proxy.metric("edge_endpoints", &of).await == 2.0).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut ids = Vec::new();
    for task in tasks {
        ids.extend(within("the load's end", task).await.unwrap());
    }
    let journals: Vec<_> = backends.iter().map(|backend| &backend.journal).collect();
    once(&ids, &journals);
    for backend in &backends[2..] {
        let gone =
            |all: &e2e::journal::Entries| (all.connections == all.connections_ended).then_some(());
        backend.journal.wait("its connections' ends", gone).await;
    }
}

/// SETTINGS_MAX_CONCURRENT_STREAMS.
const MAX_STREAMS: u16 = 3;
