use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use e2e::{
    backend::Backend,
    client::request,
    frames::{Frame, RawBackend, Wire, code, kind},
    health::{Answer, NOT_SERVING, SERVING},
    payload,
    pb::test_client::TestClient,
    proxy::Proxy,
    scripted::framed,
    wait::{eventually, within},
};
use serde_json::Value;
use tonic::{Code, transport::Channel};

/// The endpoint of `backend` as the operator's page has it.
async fn endpoint(proxy: &Proxy, backend: &Backend) -> Value {
    let page = proxy.admin_json("/clusters").await;
    let list = page
        .get("clusters")
        .unwrap_or(&page)
        .as_array()
        .unwrap()
        .clone();
    let address = backend.address().to_string();
    let mut endpoints = list
        .iter()
        .flat_map(|cluster| cluster["endpoints"].as_array().unwrap());
    endpoints
        .find(|endpoint| endpoint["address"] == address.as_str())
        .cloned()
        .unwrap_or_default()
}

async fn becomes(proxy: &Proxy, backend: &Backend, health: &str) {
    eventually(&format!("{} to be {health}", backend.address()), || async {
        (endpoint(proxy, backend).await["health"] == health).then_some(())
    })
    .await;
}

async fn served(client: &mut TestClient<Channel>, count: usize) {
    for _ in 0..count {
        client.unary(payload("")).await.unwrap();
    }
}

#[tokio::test]
async fn a_check_says_who_asks_and_for_what() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .checked()
        .with("health_check.service", "e2e.Test")
        .start()
        .await;
    backend.health.checked(3).await;
    let checks = backend.health.checks();
    for check in &checks {
        assert!(
            check.user_agent.starts_with("edge-proxy/HC"),
            "{}",
            check.user_agent
        );
        assert_eq!(check.service, "e2e.Test");
        assert!(check.timeout.is_some());
        assert_eq!(check.peer, checks[0].peer, "one lasting connection");
    }
    // Its own connection: the RPCs have another.
    served(&mut proxy.test_client().await, 1).await;
    assert_ne!(backend.journal.last().peer, checks[0].peer);
}

#[tokio::test]
async fn a_new_endpoint_gets_no_traffic_until_its_first_pass_and_then_at_once() {
    let backend = Backend::start().await;
    backend.health.set(Answer::Hangs);
    let proxy = Proxy::to([&backend])
        .checked()
        .with("health_check.timeout", "200ms")
        .start()
        .await;
    let mut client = proxy.test_client().await;
    let failure = client.unary(payload("")).await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Unavailable, "no healthy upstream")
    );
    assert_eq!(backend.journal.count(), 0);
    backend.health.set(SERVING);
    becomes(&proxy, &backend, "healthy").await;
    served(&mut client, 3).await;
}

#[tokio::test]
async fn not_serving_ejects_and_running_rpcs_finish() {
    let backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends).checked().start().await;
    let mut client = proxy.test_client().await;
    let mut running = Vec::new();
    for id in ["a", "b"] {
        let asked = request(payload(""), &[("x-test-id", id), ("x-test-gate", "end")]);
        let mut client = client.clone();
        running.push(tokio::spawn(async move { client.unary(asked).await }));
    }
    backends[0]
        .journal
        .wait("an RPC", |all| all.requests.first().map(|_| ()))
        .await;
    backends[1]
        .journal
        .wait("an RPC", |all| all.requests.first().map(|_| ()))
        .await;

    backends[0].health.set(NOT_SERVING);
    becomes(&proxy, &backends[0], "unhealthy").await;
    let before = backends[0].journal.count();
    served(&mut client, 10).await;
    assert_eq!(backends[0].journal.count(), before);
    for backend in &backends {
        backend.open("end");
    }
    for rpc in running {
        rpc.await.unwrap().unwrap();
    }

    backends[0].health.set(SERVING);
    becomes(&proxy, &backends[0], "healthy").await;
    served(&mut client, 10).await;
    assert_eq!(backends[0].journal.count(), before + 5);
}

#[tokio::test]
async fn any_status_that_was_received_ejects_at_once() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .checked()
        .with("health_check.unhealthy_threshold", 1000)
        .start()
        .await;
    for code in [
        Code::Internal,
        Code::Unavailable,
        Code::NotFound,
        Code::PermissionDenied,
    ] {
        backend.health.set(Answer::Fails(code));
        becomes(&proxy, &backend, "unhealthy").await;
        backend.health.set(SERVING);
        becomes(&proxy, &backend, "healthy").await;
    }
}

#[tokio::test]
async fn a_backend_without_a_health_service_is_ejected_and_the_page_says_why() {
    let backend = Backend::start().await;
    backend.health.set(Answer::Fails(Code::Unimplemented));
    let proxy = Proxy::to([&backend]).checked().start().await;
    becomes(&proxy, &backend, "unhealthy").await;
    let reason = endpoint(&proxy, &backend).await["reason"]
        .to_string()
        .to_lowercase();
    assert!(
        reason.contains("unimplemented") || reason.contains("no health service"),
        "{reason}"
    );
}

#[tokio::test]
async fn time_outs_count_and_then_close_the_connections() {
    let backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends).checked().start().await;
    let mut client = proxy.test_client().await;
    let mut running = Vec::new();
    for _ in 0..2 {
        let mut client = client.clone();
        let asked = request(
            payload(""),
            &[("x-test-gate", "never"), ("x-test-id", "stuck")],
        );
        running.push(tokio::spawn(async move { client.unary(asked).await }));
    }
    for backend in &backends {
        backend.journal.begun("stuck").await;
    }
    backends[0].health.set(Answer::Hangs);
    becomes(&proxy, &backends[0], "unhealthy").await;
    served(&mut client, 6).await;
    // The RPC on the endpoint that hangs is told; the other one goes on.
    backends[0].journal.cancelled("stuck").await;
    backends[1].open("never");
    let mut codes = Vec::new();
    for rpc in running {
        codes.push(
            within("an RPC's end", rpc)
                .await
                .unwrap()
                .map_or_else(|status| status.code(), |_| Code::Ok),
        );
    }
    codes.sort_by_key(|code| i32::from(*code));
    assert_eq!(codes, [Code::Ok, Code::Unavailable]);
}

#[tokio::test]
async fn a_dead_endpoint_is_ejected_and_comes_back() {
    let mut backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends).checked().start().await;
    let mut client = proxy.test_client().await;
    served(&mut client, 2).await;
    backends[0].kill();
    becomes(&proxy, &backends[0], "unhealthy").await;
    served(&mut client, 10).await;

    let again = Backend::start_at(backends[0].address()).await;
    becomes(&proxy, &again, "healthy").await;
    let checks = again.health.checks().len();
    assert!(
        checks >= 2,
        "healthy_threshold passes in a row, not {checks}"
    );
    served(&mut client, 10).await;
    assert_eq!(again.journal.count(), 5);
}

#[tokio::test]
async fn a_cluster_without_checks_believes_in_all_its_endpoints() {
    let backend = Backend::start().await;
    backend.health.set(NOT_SERVING);
    let proxy = Proxy::to([&backend]).start().await;
    served(&mut proxy.test_client().await, 3).await;
    assert!(backend.health.checks().is_empty());
}

#[tokio::test]
async fn the_panic_threshold_is_the_operators_choice() {
    let backends = [Backend::start().await, Backend::start().await];
    for backend in &backends {
        backend.health.set(NOT_SERVING);
    }
    let proxy = Proxy::to(&backends)
        .checked()
        .with("panic_threshold", 50)
        .start()
        .await;
    for backend in &backends {
        becomes(&proxy, backend, "unhealthy").await;
    }
    served(&mut proxy.test_client().await, 10).await;
    assert_eq!(backends[0].journal.count(), 5);
}

#[tokio::test]
async fn checks_go_on_while_nothing_else_does() {
    let backend = Backend::start().await;
    let _proxy = Proxy::to([&backend]).checked().start().await;
    backend.health.checked(5).await;
    assert_eq!(backend.journal.count(), 0);
}

#[tokio::test]
async fn a_failed_connection_of_an_rpc_triggers_a_check() {
    let mut backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends)
        .checked()
        .with("health_check.interval", "1h")
        .with("health_check.unhealthy_edge_interval", "50ms")
        .start()
        .await;
    let mut client = proxy.test_client().await;
    served(&mut client, 2).await;
    backends[0].kill();
    // Its next check is an hour away, but for the RPCs that find it dead.
    eventually("the dead endpoint to be ejected", || {
        let mut client = client.clone();
        let (proxy, backend) = (&proxy, &backends[0]);
        async move {
            // One may be on its way to it in the moment of its death.
            let _ = client.unary(payload("")).await;
            (endpoint(proxy, backend).await["health"] == "unhealthy").then_some(())
        }
    })
    .await;
    served(&mut client, 10).await;
}

/// A backend whose every connection passes its first check, and says GOAWAY in the middle of its second: instead of
/// looking at it; before it answers it; or as if it would still answer it, and then the connection ends.
#[tokio::test]
async fn a_goaway_in_the_middle_of_a_check_is_no_failure() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let backend = RawBackend::start(move |stream, number| {
        count.fetch_max(number + 1, Ordering::Relaxed);
        async move {
            let Ok(mut wire) = Wire::server(stream, &[]).await else {
                return;
            };
            let asked = |frame: &Frame| frame.kind == kind::HEADERS;
            let serving = |stream| {
                let head = [(":status", "200"), ("content-type", "application/grpc")];
                [
                    Frame::headers(stream, &head, false),
                    // HealthCheckResponse { status: SERVING }.
                    Frame::data(stream, &framed(&[8, 1]), false),
                    Frame::headers(stream, &[("grpc-status", "0")], true),
                ]
            };
            let mut ids = Vec::new();
            while ids.len() < 2 {
                let Some(check) = wire.until("a check", asked).await else {
                    return;
                };
                ids.push(check.stream);
                if ids.len() == 1 {
                    // The proxy's end is noticed by the next read.
                    let _ = wire.send(&serving(check.stream)).await;
                }
            }
            let last = if number % 3 == 0 { ids[0] } else { ids[1] };
            // As above.
            let _ = wire.send(&[Frame::goaway(last, code::NO_ERROR)]).await;
            match number % 3 {
                1 => {
                    let _ = wire.send(&serving(last)).await;
                }
                2 => return,
                _ => {}
            }
            wire.to_end("the proxy's end").await;
        }
    })
    .await;
    let proxy = Proxy::to([&backend])
        .checked()
        .with("health_check.unhealthy_threshold", 1)
        .with("health_check.timeout", "20s")
        .start()
        .await;
    eventually("some connections of each kind", || async {
        (connections.load(Ordering::Relaxed) >= 8).then_some(())
    })
    .await;
    for result in ["connection", "status", "timeout"] {
        let labels = [("cluster", "test"), ("result", result)];
        let failures = proxy.metric("edge_health_checks_total", &labels).await;
        assert_eq!(failures, 0.0, "{result}");
    }
    let labels = [("cluster", "test"), ("health", "healthy")];
    assert_eq!(proxy.metric("edge_endpoints", &labels).await, 1.0);
}
