use std::time::Duration;

use e2e::{
    backend::Backend,
    certs::Broken,
    client::{get_request, request},
    dns::{Answer, DnsServer},
    health::NOT_SERVING,
    loopback, payload,
    proxy::{Proxy, TEST},
    scripted::{Exchange, Scripted, head},
    wait::{eventually, within},
};
use h2::Reason;
use tokio::net::TcpStream;

/// Waits until a metric, summed over the labels that aren't given, is what it should be.
async fn becomes(proxy: &Proxy, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) {
    eventually(&format!("{name} {labels:?}"), || async {
        wanted(proxy.metric(name, labels).await).then_some(())
    })
    .await;
}

async fn is(proxy: &Proxy, name: &str, labels: &[(&str, &str)], value: f64) {
    becomes(proxy, name, labels, |found| found == value).await;
}

#[tokio::test]
async fn rpcs_are_counted_from_their_start_to_their_end() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..3 {
        client.unary(payload("")).await.unwrap();
    }
    let failure = client
        .unary(request(payload(""), &[("x-test-status", "5")]))
        .await;
    assert!(failure.is_err());
    let of = [("route", TEST), ("cluster", "test")];
    is(&proxy, "edge_rpcs_started_total", &of, 4.0).await;
    is(
        &proxy,
        "edge_rpcs_ended_total",
        &[&of[..], &[("grpc_status", "0")]].concat(),
        3.0,
    )
    .await;
    is(
        &proxy,
        "edge_rpcs_ended_total",
        &[&of[..], &[("grpc_status", "5")]].concat(),
        1.0,
    )
    .await;
    is(
        &proxy,
        "edge_rpc_duration_seconds_count",
        &[("cluster", "test")],
        4.0,
    )
    .await;
    is(
        &proxy,
        "edge_attempts_total",
        &[("cluster", "test"), ("result", "ok")],
        3.0,
    )
    .await;
    is(
        &proxy,
        "edge_attempts_total",
        &[("cluster", "test"), ("result", "error_status")],
        1.0,
    )
    .await;

    // A method has a label of its own once a backend has answered it.
    let method = [("method", "e2e.Test/Unary")];
    becomes(&proxy, "edge_rpcs_started_total", &method, |n| n > 0.0).await;

    let running = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .unary(request(payload(""), &[("x-test-gate", "end")]))
                .await
        }
    });
    is(&proxy, "edge_rpcs_in_flight", &[("cluster", "test")], 1.0).await;
    is(
        &proxy,
        "edge_attempts_in_flight",
        &[("cluster", "test")],
        1.0,
    )
    .await;
    backend.open("end");
    running.await.unwrap().unwrap();
    is(&proxy, "edge_rpcs_in_flight", &[("cluster", "test")], 0.0).await;
}

#[tokio::test]
async fn a_backend_that_is_no_grpc_server_is_counted_as_a_failure() {
    let broken = Scripted::start(async |exchange: Exchange| {
        let status = exchange.request.headers().get("x-status");
        let status = status.map_or(500, |status| status.to_str().unwrap().parse().unwrap());
        exchange.reply(head(status), b"<html>", None);
    })
    .await;
    let proxy = Proxy::to([&broken]).start().await;
    let client = proxy.http2().await;
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.grpc_status()), (500, None));
    let statuses = ["200", "404", "503", "500", "500"];
    for status in statuses {
        let asked = get_request("/e2e.Test/Plain", &[("x-status", status)]);
        client.call(asked, b"").await.unwrap();
    }
    for (label, count) in [
        ("none", 1.0),
        ("http_2xx", 1.0),
        ("http_4xx", 1.0),
        ("http_5xx", 3.0),
    ] {
        let labels = [("route", TEST), ("grpc_status", label)];
        is(&proxy, "edge_rpcs_ended_total", &labels, count).await;
    }
    for (result, count) in [("protocol_error", 1.0), ("ok", 2.0), ("error_status", 3.0)] {
        let labels = [("cluster", "test"), ("result", result)];
        is(&proxy, "edge_attempts_total", &labels, count).await;
    }
    // The proxy's own answers too.
    let asked = get_request("/nowhere", &[]);
    client.call(asked, b"").await.unwrap();
    let (status, _) = proxy.http1("GET /no where HTTP/1.1\nhost: a", b"").await;
    assert!(status.starts_with("http/1.1 400"), "{status}");
    let labels = [("route", "none"), ("grpc_status", "http_4xx")];
    is(&proxy, "edge_rpcs_ended_total", &labels, 2.0).await;
}

#[tokio::test]
async fn plain_http_that_breaks_off_has_no_status() {
    let broken = Scripted::start(async |exchange: Exchange| {
        exchange
            .reset_after(head(200), b"the beginning", Reason::INTERNAL_ERROR)
            .await;
    })
    .await;
    let proxy = Proxy::to([&broken]).start().await;
    let client = proxy.http2().await;
    let asked = get_request("/e2e.Test/Plain", &[]);
    assert!(client.call(asked, b"").await.is_err());
    is(
        &proxy,
        "edge_rpcs_ended_total",
        &[("grpc_status", "none")],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn a_stream_is_in_flight_until_its_trailers() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let asked = request(
        payload(""),
        &[("x-test-replies", "2"), ("x-test-late-gate", "end")],
    );
    let mut replies = client.download(asked).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    is(&proxy, "edge_rpcs_in_flight", &[("cluster", "test")], 1.0).await;
    is(&proxy, "edge_rpcs_ended_total", &[], 0.0).await;
    backend.open("end");
    while replies.message().await.unwrap().is_some() {}
    is(&proxy, "edge_rpcs_in_flight", &[("cluster", "test")], 0.0).await;
}

#[tokio::test]
async fn connections_and_handshakes_are_counted_by_side_and_result() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let first = proxy.http2().await;
    let second = proxy.http2().await;
    first.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    second.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    is(&proxy, "edge_connections", &[("side", "downstream")], 2.0).await;
    is(&proxy, "edge_connections", &[("side", "upstream")], 1.0).await;
    drop(second);
    is(&proxy, "edge_connections", &[("side", "downstream")], 1.0).await;
    is(
        &proxy,
        "edge_connections_opened_total",
        &[("side", "downstream")],
        2.0,
    )
    .await;
    is(
        &proxy,
        "edge_tls_handshakes_total",
        &[("result", "ok")],
        2.0,
    )
    .await;

    let silent = TcpStream::connect(proxy.address()).await.unwrap();
    is(&proxy, "edge_tls_handshakes_pending", &[], 1.0).await;
    is(&proxy, "edge_connections", &[("side", "downstream")], 1.0).await;
    drop(silent);
    is(&proxy, "edge_tls_handshakes_pending", &[], 0.0).await;
    is(
        &proxy,
        "edge_tls_handshakes_total",
        &[("result", "failed")],
        1.0,
    )
    .await;

    let stranger = e2e::certs::Authority::new().client(&["h2"]);
    assert!(e2e::client::tls(proxy.address(), stranger).await.is_err());
    is(
        &proxy,
        "edge_tls_handshakes_total",
        &[("result", "failed")],
        2.0,
    )
    .await;
}

#[tokio::test]
async fn attempts_retries_flags_and_resets() {
    let refuses =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let backend = Backend::start().await;
    // Not a tonic server, which has the same deadline and may be first: then nothing is left to reset.
    let silent = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::to(&[refuses.address(), backend.address()])
        .route("/dead.", "dead")
        .cluster("dead", [loopback::refused().unwrap()])
        .route("/silent.", "silent")
        .cluster("silent", [silent.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    for _ in 0..2 {
        client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    }
    is(&proxy, "edge_retries_total", &[("cluster", "test")], 1.0).await;
    is(
        &proxy,
        "edge_attempts_total",
        &[("cluster", "test"), ("result", "refused")],
        1.0,
    )
    .await;
    let resets = "edge_stream_resets_total";
    is(&proxy, resets, &[("cause", "upstream_reset")], 1.0).await;
    // Long enough to reach the backend on a busy machine: an RPC that didn't has nothing to reset.
    let asked =
        e2e::client::grpc_request("/silent.X/Y", &[("grpc-timeout", "5S"), ("x-test-id", "s")]);
    let (response, _upload) = client.open(asked, false).await.unwrap();
    silent.journal.begun("s").await;
    within("an answer", response).await.unwrap();
    is(&proxy, resets, &[("cause", "deadline")], 1.0).await;
    client.grpc("/dead.X/Y", &[]).await.unwrap();
    becomes(
        &proxy,
        "edge_attempts_total",
        &[("cluster", "dead"), ("result", "connect_failed")],
        |n| n > 0.0,
    )
    .await;
    is(&proxy, "edge_rpc_flags_total", &[("flag", "UF")], 1.0).await;
    client.grpc("/nowhere.X/Y", &[]).await.unwrap();
    is(&proxy, "edge_rpc_flags_total", &[("flag", "NR")], 1.0).await;

    let asked = e2e::client::grpc_request(
        "/e2e.Test/Chat",
        &[("x-test-id", "c"), ("x-test-gate", "never")],
    );
    let (_response, mut upload) = client.open(asked, false).await.unwrap();
    backend.journal.begun("c").await;
    upload.send_reset(Reason::CANCEL);
    is(&proxy, resets, &[("cause", "client_cancel")], 1.0).await;
}

#[tokio::test]
async fn endpoints_checks_and_look_ups() {
    let addresses = loopback::group(2).unwrap();
    let backends = [
        Backend::start_at(addresses[0]).await,
        Backend::start_at(addresses[1]).await,
    ];
    let dns = DnsServer::start().await.unwrap();
    dns.set_addresses("pods.test", &addresses);
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, "pods.test", addresses[0].port())
        .checked()
        .start()
        .await;
    let healthy = [("cluster", "test"), ("health", "healthy")];
    is(&proxy, "edge_endpoints", &healthy, 2.0).await;
    backends[0].health.set(NOT_SERVING);
    is(&proxy, "edge_endpoints", &healthy, 1.0).await;
    is(
        &proxy,
        "edge_endpoints_eligible",
        &[("cluster", "test")],
        1.0,
    )
    .await;
    becomes(
        &proxy,
        "edge_health_checks_total",
        &[("cluster", "test"), ("result", "pass")],
        |n| n > 2.0,
    )
    .await;
    becomes(
        &proxy,
        "edge_health_checks_total",
        &[("cluster", "test"), ("result", "not_serving")],
        |n| n > 0.0,
    )
    .await;
    let before = proxy
        .metric("edge_dns_lookups_total", &[("cluster", "test")])
        .await;
    dns.set("pods.test", Answer::ServerFailure);
    becomes(
        &proxy,
        "edge_dns_lookups_total",
        &[("cluster", "test")],
        |n| n > before + 1.0,
    )
    .await;
    // No answer since then: its age grows.
    becomes(
        &proxy,
        "edge_dns_last_answer_age_seconds",
        &[("cluster", "test")],
        |age| age > 0.3,
    )
    .await;
}

#[tokio::test]
async fn certificates_and_reloads() {
    let mut proxy = Proxy::builder().start().await;
    becomes(
        &proxy,
        "edge_certificate_expiry_timestamp_seconds",
        &[],
        |at| at > 4e9,
    )
    .await;
    let successful = "edge_certificate_last_load_successful";
    is(&proxy, successful, &[], 1.0).await;
    let loads = proxy.metric("edge_certificate_loads_total", &[]).await;
    proxy
        .files
        .secret
        .swap(&proxy.files.authority.broken(Broken::Mismatched))
        .unwrap();
    becomes(&proxy, "edge_certificate_loads_total", &[], |n| n > loads).await;
    is(&proxy, successful, &[], 0.0).await;
    let pair = proxy.files.authority.pair();
    proxy.files.secret.swap(&pair).unwrap();
    is(&proxy, successful, &[], 1.0).await;
    proxy
        .files
        .change(|config| config["server_name"] = "another".into());
    becomes(&proxy, "edge_configuration_reloads_total", &[], |n| {
        n == 1.0
    })
    .await;
    is(
        &proxy,
        "edge_configuration_last_reload_successful",
        &[],
        1.0,
    )
    .await;
    proxy
        .files
        .change(|config| config["routes"] = "nonsense".into());
    becomes(&proxy, "edge_configuration_reloads_total", &[], |n| {
        n == 2.0
    })
    .await;
    is(
        &proxy,
        "edge_configuration_last_reload_successful",
        &[],
        0.0,
    )
    .await;
    is(&proxy, "edge_ready", &[], 1.0).await;
    becomes(&proxy, "edge_memory_resident_bytes", &[], |n| n > 1e6).await;
    becomes(&proxy, "edge_uptime_seconds", &[], |n| {
        n > Duration::ZERO.as_secs_f64()
    })
    .await;
}

#[tokio::test]
async fn limits_that_acted() {
    let mut proxy = Proxy::builder()
        .set("listener.max_connections_per_source", 2)
        .set("listener.max_connections", 20)
        .start()
        .await;
    let limit = ("edge_connections_limit", [("side", "downstream")]);
    is(&proxy, limit.0, &limit.1, 20.0).await;
    // A reload's holds at once, not from the next connection on.
    proxy
        .files
        .change(|config| config["listener"]["max_connections"] = 30.into());
    is(&proxy, limit.0, &limit.1, 30.0).await;
    let client = proxy.http2().await;
    let large = "x".repeat(10_000);
    client.grpc("/a.B/C", &[("x-large", &large)]).await.unwrap();
    is(
        &proxy,
        "edge_limits_total",
        &[("limit", "header_bytes")],
        1.0,
    )
    .await;
    let _silent = proxy.tls(&["h2"]).await.unwrap();
    let refused = proxy.tls(&["h2"]).await;
    assert!(refused.is_err());
    is(
        &proxy,
        "edge_limits_total",
        &[("limit", "connections_per_source")],
        1.0,
    )
    .await;
    let proxy = Proxy::builder()
        .set("listener.timeouts.preface", "200ms")
        .start()
        .await;
    let _silent = proxy.tls(&["h2"]).await.unwrap();
    is(
        &proxy,
        "edge_limits_total",
        &[("limit", "preface_timeout")],
        1.0,
    )
    .await;
}

#[tokio::test]
async fn the_last_attempt_of_an_rpc_that_is_always_refused_is_refused_too() {
    let refuses =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let proxy = Proxy::to([&refuses]).start().await;
    let client = proxy.http2().await;
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.grpc_status(), Some(14));
    let result = |result| [("cluster", "test"), ("result", result)];
    is(&proxy, "edge_attempts_total", &result("refused"), 3.0).await;
    is(&proxy, "edge_attempts_total", &result("reset"), 0.0).await;
}
