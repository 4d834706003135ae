//! Each row of the table of local answers, for gRPC and for plain HTTP.

use std::{net::SocketAddr, time::Duration};

use e2e::{
    backend::Backend,
    client::{Reply, get_request, grpc_request},
    dns::DnsServer,
    frames::{Frame, RawBackend, Wire, kind},
    health, loopback,
    proxy::{Proxy, TEST},
    scripted::{Exchange, Scripted, framed, head},
    wait::within,
};
use h2::Reason;
use http::{Method, Request, Response, StatusCode};
use serde_json::json;

/// An answer of the proxy's own to a gRPC request: one HEADERS frame, and what is in it.
fn is_grpc(reply: &Reply, status: i32, message: Option<&str>) {
    assert_eq!(reply.status, StatusCode::OK);
    assert!(reply.headers_only, "one HEADERS frame with END_STREAM");
    assert_eq!(reply.header("content-type"), "application/grpc");
    assert_eq!(reply.header("server"), "edge-proxy");
    assert!(!reply.header("date").is_empty());
    assert_eq!(
        (reply.grpc_status(), reply.grpc_message()),
        (Some(status), message)
    );
}

/// An answer of the proxy's own to a plain request.
fn is_plain(reply: &Reply, status: u16, text: &str) {
    assert_eq!(reply.status.as_u16(), status);
    assert_eq!(String::from_utf8_lossy(&reply.body), text);
    let kind = if text.is_empty() { "" } else { "text/plain" };
    assert_eq!(reply.header("content-type"), kind);
    assert_eq!(reply.header("server"), "edge-proxy");
    assert!(reply.header("date").ends_with(" GMT"));
    assert_eq!(reply.grpc_status(), None);
}

/// One row of the table: to gRPC, to plain HTTP/2 and to HTTP/1.1.
async fn row(proxy: &Proxy, http: u16, grpc: i32, text: Option<&str>) {
    let client = proxy.http2().await;
    is_grpc(
        &client.grpc("/e2e.Test/Unary", &[]).await.unwrap(),
        grpc,
        text,
    );
    plain_row(proxy, http, text, &[]).await;
}

/// The plain halves of a row, asked for with `headers`.
async fn plain_row(proxy: &Proxy, http: u16, text: Option<&str>, headers: &[(&str, &str)]) {
    let text = text.unwrap_or_default();
    let client = proxy.http2().await;
    let reply = client
        .call(get_request("/e2e.Test/Plain", headers), b"")
        .await
        .unwrap();
    is_plain(&reply, http, text);
    let mut asked = "GET /e2e.Test/Plain HTTP/1.1".to_owned();
    if headers.iter().all(|(name, _)| *name != "host") {
        asked += "\nhost: grpc.example.com";
    }
    for (name, value) in headers {
        asked += &format!("\n{name}: {value}");
    }
    let (head, body) = proxy.http1(&asked, b"").await;
    is_http_1(&head, &body, http, text);
}

/// The same as [`is_plain`], in HTTP/1.1.
fn is_http_1(head: &str, body: &[u8], status: u16, text: &str) {
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
    assert_eq!(String::from_utf8_lossy(body), text);
    let typed = head.contains("\r\ncontent-type: text/plain");
    assert_eq!(typed, !text.is_empty(), "{head}");
    let length = format!("\r\ncontent-length: {}", text.len());
    for field in [length.as_str(), "\r\nserver: edge-proxy", "\r\ndate: "] {
        assert_eq!(head.matches(field).count(), 1, "{field:?} in {head}");
    }
    assert!(!head.contains("grpc-status"), "{head}");
}

#[tokio::test]
async fn no_route() {
    let proxy = Proxy::builder().start().await;
    row(&proxy, 404, 12, None).await;
}

#[tokio::test]
async fn no_endpoint() {
    let dns = DnsServer::start().await.unwrap();
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, "nobody.test", 80)
        .start()
        .await;
    row(&proxy, 503, 14, Some("no healthy upstream")).await;
}

#[tokio::test]
async fn no_healthy_endpoint() {
    let backend = Backend::start().await;
    backend.health.set(health::NOT_SERVING);
    let proxy = Proxy::to([&backend]).checked().start().await;
    row(&proxy, 503, 14, Some("no healthy upstream")).await;
    assert_eq!(backend.journal.count(), 0);
}

/// How the text begins when no header of a backend's has come.
const BEFORE: &str = "upstream connect error or disconnect/reset before headers. reset reason:";

#[tokio::test]
async fn connection_refused() {
    let proxy = Proxy::to(&[loopback::refused().unwrap(), loopback::refused().unwrap()])
        .start()
        .await;
    let text = format!("{BEFORE} remote connection failure");
    row(&proxy, 503, 14, Some(&text)).await;
}

#[tokio::test]
async fn connection_timeout_of_a_backend_that_says_nothing() {
    let silent = RawBackend::start(async |stream, _| {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = Proxy::to([&silent])
        .with("connect_timeout", "100ms")
        .start()
        .await;
    let text = format!("{BEFORE} connection timeout");
    row(&proxy, 503, 14, Some(&text)).await;
}

#[tokio::test]
async fn connection_timeout_of_a_host_that_drops_packets() {
    // A full backlog: the kernel drops further SYNs.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::new(loopback::address(), 0).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    for _ in 0..3 {
        let filler = tokio::net::TcpStream::connect(address);
        fillers.push(tokio::time::timeout(Duration::from_millis(200), filler).await);
    }
    let proxy = Proxy::to(&[address])
        .with("connect_timeout", "100ms")
        .start()
        .await;
    let text = format!("{BEFORE} connection timeout");
    row(&proxy, 503, 14, Some(&text)).await;
}

#[tokio::test]
async fn reset_before_headers() {
    let backend =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::INTERNAL_ERROR)).await;
    let proxy = Proxy::to([&backend]).start().await;
    row(&proxy, 503, 14, Some(&format!("{BEFORE} remote reset"))).await;
}

#[tokio::test]
async fn closed_before_headers() {
    let backend = Scripted::start(async |exchange: Exchange| exchange.drop_connection()).await;
    let proxy = Proxy::to([&backend]).start().await;
    row(
        &proxy,
        503,
        14,
        Some(&format!("{BEFORE} connection termination")),
    )
    .await;
}

#[tokio::test]
async fn a_broken_protocol_before_headers() {
    let backend = RawBackend::start(async |stream, _| {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        while let Some(asked) = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await
        {
            // DATA before HEADERS.
            let _ = wire
                .send(&[Frame::data(asked.stream, b"what?", false)])
                .await;
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    row(&proxy, 503, 14, Some(&format!("{BEFORE} protocol error"))).await;
}

#[tokio::test]
async fn deadline_passed() {
    let backend = Backend::start().await;
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "timeout": "50ms" }))
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    let gate = [("x-test-gate", "never")];
    let reply = client.grpc("/e2e.Test/Unary", &gate).await.unwrap();
    is_grpc(&reply, 4, Some("upstream request timeout"));

    let hangs = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "timeout": "50ms" }))
        .cluster("test", [hangs.address()])
        .start()
        .await;
    plain_row(&proxy, 504, Some("upstream request timeout"), &[]).await;
}

#[tokio::test]
async fn a_host_that_differs_from_the_authority() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let other = [("host", "other.example.com")];
    let reply = client.grpc("/e2e.Test/Unary", &other).await.unwrap();
    is_grpc(&reply, 13, Some("invalid authority"));
    let reply = client
        .call(get_request("/e2e.Test/Plain", &other), b"")
        .await
        .unwrap();
    is_plain(&reply, 400, "invalid authority");
    let asked = "GET http://grpc.example.com/e2e.Test/Plain HTTP/1.1\nhost: other.example.com";
    let (head, body) = proxy.http1(asked, b"").await;
    is_http_1(&head, &body, 400, "invalid authority");
    assert_eq!(backend.journal.count(), 0);
    let reply = client
        .grpc("/e2e.Test/Unary", &[("host", "grpc.example.com")])
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(0));
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves() {
    let backend = Backend::start().await;
    let hangs = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::builder()
        .route("/e2e.Test/Plain", "hangs")
        .cluster("hangs", [hangs.address()])
        .route(TEST, "test")
        .cluster("test", [backend.address()])
        .set("listener.timeouts.stream_idle", "200ms")
        .start()
        .await;
    let client = proxy.http2().await;
    let reply = client
        .grpc("/e2e.Test/Unary", &[("x-test-gate", "never")])
        .await
        .unwrap();
    is_grpc(&reply, 4, Some("stream timeout"));
    plain_row(&proxy, 504, Some("stream timeout"), &[]).await;
}

#[tokio::test]
async fn headers_above_the_limit() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let large = "x".repeat(10_000);
    let reply = client
        .grpc("/e2e.Test/Unary", &[("x-large", &large)])
        .await
        .unwrap();
    is_grpc(&reply, 8, Some("request header fields too large"));
    // tonic and grpc-js send metadata first, and then what says that this is gRPC.
    let metadata_first = Request::post("https://grpc.example.com/e2e.Test/Unary")
        .header("x-large", &large)
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let reply = client.call(metadata_first, b"").await.unwrap();
    is_grpc(&reply, 8, Some("request header fields too large"));
    let text = Some("request header fields too large");
    plain_row(&proxy, 431, text, &[("x-large", &large)]).await;
    // The connection lives.
    assert_eq!(
        client
            .grpc("/e2e.Test/Unary", &[])
            .await
            .unwrap()
            .grpc_status(),
        Some(0)
    );
    assert_eq!(backend.journal.count(), 1);
}

#[tokio::test]
async fn what_is_not_grpc_passes_unchanged_and_counts_as_a_failure() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let html = Response::builder()
            .status(502)
            .header("content-type", "text/html")
            .body(())
            .unwrap();
        exchange.reply(html, b"<h1>Bad gateway</h1>", None);
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(
        (reply.status.as_u16(), reply.header("content-type")),
        (502, "text/html")
    );
    assert_eq!(reply.body, b"<h1>Bad gateway</h1>");
    assert_eq!(reply.grpc_status(), None);
    assert_eq!(failures(&proxy).await, 1);
}

/// What the first endpoint is charged with.
async fn failures(proxy: &Proxy) -> u64 {
    let clusters = proxy.admin_json("/clusters").await;
    let count = clusters["clusters"][0]["endpoints"][0]["failures"].as_u64();
    count.unwrap_or_else(|| panic!("{clusters}"))
}

#[tokio::test]
async fn an_end_without_a_grpc_status_passes_unchanged() {
    let backend =
        Scripted::start(async |exchange: Exchange| exchange.reply(head(200), &framed(b"x"), None))
            .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!((reply.body, reply.trailers.is_none()), (framed(b"x"), true));
    assert_eq!(failures(&proxy).await, 1);

    // In a head that isn't the end, it is none: clients don't look for it there.
    let backend = Scripted::start(async |exchange: Exchange| {
        let mut response = head(200);
        response
            .headers_mut()
            .insert("grpc-status", "0".parse().unwrap());
        exchange.reply(response, &framed(b"x"), None);
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.header("grpc-status"), "0");
    assert_eq!(failures(&proxy).await, 1);
    let record = &proxy.access_log(1).await[0];
    assert_eq!(record["grpc_status"], json!(null), "{record}");
}

#[tokio::test]
async fn a_reset_without_error_after_a_whole_response_is_success() {
    let backend = RawBackend::start(async |stream, _| {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        while let Some(asked) = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await
        {
            let frames = [
                Frame::headers(
                    asked.stream,
                    &[(":status", "200"), ("content-type", "application/grpc")],
                    false,
                ),
                Frame::data(asked.stream, &framed(b"whole"), false),
                Frame::headers(asked.stream, &[("grpc-status", "0")], true),
                Frame::reset(asked.stream, 0),
            ];
            let _ = wire.send(&frames).await;
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let (response, _upload) = client
        .open(grpc_request("/e2e.Test/Chat", &[]), false)
        .await
        .unwrap();
    let reply = Reply::read(within("headers", response).await.unwrap())
        .await
        .unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.body),
        (Some(0), framed(b"whole"))
    );
    assert_eq!(failures(&proxy).await, 0);
}

#[tokio::test]
async fn http_statuses_become_grpc_statuses() {
    let mut builder = Proxy::builder();
    let table = [
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (502, 14),
        (503, 14),
        (504, 14),
        (500, 2),
        (418, 2),
    ];
    for (http, _) in table {
        let direct =
            json!({ "prefix": format!("/status.{http}/"), "direct_response": { "status": http } });
        builder = builder.route_of(direct);
    }
    let proxy = builder.start().await;
    let client = proxy.http2().await;
    for (http, grpc) in table {
        let reply = client
            .grpc(&format!("/status.{http}/Method"), &[])
            .await
            .unwrap();
        is_grpc(&reply, grpc, None);
        let reply = client
            .call(get_request(&format!("/status.{http}/page"), &[]), b"")
            .await
            .unwrap();
        is_plain(&reply, http, "");
        let asked = format!("GET /status.{http}/page HTTP/1.1\nhost: grpc.example.com");
        let (head, body) = proxy.http1(&asked, b"").await;
        is_http_1(&head, &body, http, "");
    }
}

#[tokio::test]
async fn who_is_a_grpc_request() {
    let proxy = Proxy::builder().start().await;
    let client = proxy.http2().await;
    for (kind, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/grpcx", false),
        ("text/plain", false),
    ] {
        let request = Request::post("https://grpc.example.com/a.B/C").header("content-type", kind);
        let reply = client.call(request.body(()).unwrap(), b"").await.unwrap();
        assert_eq!(reply.grpc_status().is_some(), grpc, "{kind}");
        assert_eq!(
            reply.status.as_u16(),
            if grpc { 200 } else { 404 },
            "{kind}"
        );
    }
}

#[tokio::test]
async fn connect_is_refused() {
    let proxy = Proxy::builder().start().await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("grpc.example.com:443")
        .body(())
        .unwrap();
    let client = proxy.http2().await;
    let reply = client.call(request.clone(), b"").await.unwrap();
    is_plain(&reply, 405, "CONNECT is not supported");
    // A 200, whatever `grpc-status` said, would be a tunnel.
    let mut grpc = request;
    let kind = http::HeaderValue::from_static("application/grpc");
    grpc.headers_mut().insert("content-type", kind);
    let reply = client.call(grpc, b"").await.unwrap();
    is_plain(&reply, 405, "CONNECT is not supported");
    let (head, _) = proxy
        .http1(
            "CONNECT grpc.example.com:443 HTTP/1.1\nhost: grpc.example.com:443",
            b"",
        )
        .await;
    assert!(head.starts_with("http/1.1 405"), "{head}");
}
