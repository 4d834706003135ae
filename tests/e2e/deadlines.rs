use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::{
    backend::Backend,
    client::{Http2, Reply, grpc_request, request},
    payload,
    proxy::{Proxy, TEST},
    scripted::{Exchange, Scripted, framed},
    wait::{eventually, within},
};
use serde_json::json;
use tonic::Code;

/// What `grpc-timeout` means.
fn parse(value: &str) -> Duration {
    let (digits, unit) = value.split_at(value.len() - 1);
    assert!((1..=8).contains(&digits.len()), "{value}");
    let number: u64 = digits.parse().unwrap();
    match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => panic!("{value}"),
    }
}

#[tokio::test]
async fn a_deadline_is_enforced_and_the_backend_told() {
    // Not a tonic server, which has the same deadline and may be first.
    let backend = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::to([&backend]).start().await;
    let headers = [("x-test-id", "late"), ("grpc-timeout", "2S")];
    let start = Instant::now();
    let reply = proxy.grpc("/e2e.Test/Unary", &headers).await;
    assert_eq!(reply.grpc_status(), Some(4));
    assert!(start.elapsed() >= Duration::from_secs(2));
    backend.journal.cancelled("late").await;
}

#[tokio::test]
async fn a_backend_that_ends_it_at_the_deadline_by_a_reset_changes_nothing() {
    // grpc-go's servers do, and their clock may be looked at before the proxy's.
    let backend = Scripted::start(async |exchange: Exchange| {
        let told = exchange.request.headers()["grpc-timeout"].to_str().unwrap();
        tokio::time::sleep(parse(told)).await;
        exchange.reset(h2::Reason::CANCEL);
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let mut all = tokio::task::JoinSet::new();
    for millis in 1..=100 {
        let client = client.clone();
        all.spawn(async move {
            let timeout = format!("{millis}m");
            let headers = [("grpc-timeout", timeout.as_str())];
            let reply = client.grpc("/e2e.Test/Unary", &headers).await.unwrap();
            reply.grpc_status()
        });
    }
    assert_eq!(all.join_all().await, [Some(4); 100]);
}

#[tokio::test]
async fn what_is_passed_on_is_what_remains() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for asked in ["20S", "5M", "1H", "30000m", "99999999u", "99999999n"] {
        let reply = client
            .grpc("/e2e.Test/Unary", &[("grpc-timeout", asked)])
            .await
            .unwrap();
        if reply.grpc_status() != Some(0) {
            // 0.1 s, or some more, on a machine that was busy, by the proxy's clock or by the backend's.
            assert!(parse(asked) < Duration::from_secs(60), "{asked}: {reply:?}");
            continue;
        }
        let passed = backend
            .journal
            .last()
            .header("grpc-timeout")
            .unwrap()
            .to_owned();
        assert!(parse(&passed) <= parse(asked), "{passed} of {asked}");
        assert!(
            parse(&passed) + Duration::from_secs(15) > parse(asked),
            "{passed} of {asked}"
        );
    }
}

#[tokio::test]
async fn the_longest_deadline_is_no_deadline_that_has_passed() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy
        .grpc("/e2e.Test/Unary", &[("grpc-timeout", "99999999H")])
        .await;
    assert_eq!(reply.grpc_status(), Some(0));
}

#[tokio::test]
async fn zero_expires_at_once() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    for zero in ["0m", "0H", "00000000S"] {
        let reply = proxy
            .grpc("/e2e.Test/Unary", &[("grpc-timeout", zero)])
            .await;
        assert_eq!(reply.grpc_status(), Some(4), "{zero}");
    }
}

#[tokio::test]
async fn a_malformed_deadline_is_ignored() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for malformed in ["", "1", "m", "-1S", "1s", "123456789S", "1.5S", "soon"] {
        let reply = client
            .grpc("/e2e.Test/Unary", &[("grpc-timeout", malformed)])
            .await
            .unwrap();
        assert_eq!(reply.grpc_status(), Some(0), "{malformed:?}");
    }
    // Nor does the route's time take its place on the way to the backend, or that of none.
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "timeout": "10s" }))
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    let soon = [("grpc-timeout", "soon")];
    client.grpc("/e2e.Test/Unary", &soon).await.unwrap();
    let seen = backend.journal.last();
    assert_eq!(seen.header("grpc-timeout"), Some("soon"));
    client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(backend.journal.last().header("grpc-timeout"), None);
}

#[tokio::test]
async fn a_deadline_counts_also_where_no_backend_is_asked() {
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": "/direct.Test/", "direct_response": { "status": 503 } }))
        .start()
        .await;
    let client = proxy.http2().await;
    // The answer waits for the request's end, which doesn't come.
    let asked = grpc_request("/direct.Test/Upload", &[("grpc-timeout", "50m")]);
    let (response, _upload) = client.open(asked, false).await.unwrap();
    let reply = Reply::read(within("an answer", response).await.unwrap());
    let reply = reply.await.unwrap();
    assert_eq!(reply.grpc_status(), Some(4));
    assert_eq!(reply.grpc_message(), Some("upstream request timeout"));
}

#[tokio::test]
async fn the_route_caps_what_clients_ask_for() {
    let backend = Backend::start().await;
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "max_grpc_timeout": "10s" }))
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    client
        .grpc("/e2e.Test/Unary", &[("grpc-timeout", "1H")])
        .await
        .unwrap();
    let passed = backend
        .journal
        .last()
        .header("grpc-timeout")
        .unwrap()
        .to_owned();
    assert!(parse(&passed) <= Duration::from_secs(10), "{passed}");
}

#[tokio::test]
async fn a_routes_timeout_counts_where_a_client_asks_for_more() {
    // Not a tonic server, which has the same deadline and may be first.
    let backend = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "timeout": "300ms" }))
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    // On a slow machine it may be over before the backend is asked.
    eventually("an RPC at the backend", || async {
        let hour = [("grpc-timeout", "1H")];
        let reply = client.grpc("/e2e.Test/Unary", &hour).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(4));
        (backend.journal.count() > 0).then_some(())
    })
    .await;
    let seen = backend.journal.last();
    let passed = seen.header("grpc-timeout").unwrap();
    assert!(parse(passed) <= Duration::from_millis(300), "{passed}");
}

#[tokio::test]
async fn a_routes_timeout_covers_the_whole_rpc() {
    let backend = Backend::start().await;
    let proxy = Proxy::builder()
        .route_of(json!({ "prefix": TEST, "cluster": "test", "timeout": "300ms" }))
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.test_client().await;
    // On a slow machine it may be over before the first message.
    let mut number = 0;
    let (id, start, mut replies) = eventually("a response that has begun", || {
        number += 1;
        let (id, mut client) = (format!("stream-{number}"), client.clone());
        let asked = request(
            payload(""),
            &[
                ("x-test-replies", "2"),
                ("x-test-late-gate", "never"),
                ("x-test-id", &id),
            ],
        );
        async move {
            let start = Instant::now();
            let begun = async {
                let mut replies = client.download(asked).await?.into_inner();
                replies.message().await?;
                Ok::<_, tonic::Status>(replies)
            };
            match begun.await {
                Ok(replies) => Some((id, start, replies)),
                Err(late) => {
                    assert_eq!(late.code(), Code::DeadlineExceeded);
                    None
                }
            }
        }
    })
    .await;
    let failure = within("the timeout", replies.message()).await.unwrap_err();
    assert_eq!(failure.code(), Code::DeadlineExceeded);
    assert!(start.elapsed() >= Duration::from_millis(300));
    backend.journal.cancelled(&id).await;
}

#[tokio::test]
async fn a_deadline_counts_while_the_client_is_still_sending() {
    // Not a tonic server, which has the same deadline and may be first.
    let backend = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request(
        "/e2e.Test/Upload",
        &[("grpc-timeout", "2S"), ("x-test-id", "up")],
    );
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload.send_data(Bytes::from(framed(b"")), false).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    backend.journal.cancelled("up").await;
}

/// How long a cancel takes to a backend, one RPC on `client`.
async fn cancel(client: &Http2, backend: &Backend, id: &str) -> Duration {
    let asked = grpc_request(
        "/e2e.Test/Unary",
        &[("x-test-id", id), ("x-test-gate", "never")],
    );
    let (_response, mut upload) = client.open(asked, false).await.unwrap();
    upload.send_data(Bytes::from(framed(b"")), true).unwrap();
    backend.journal.begun(id).await;
    let start = Instant::now();
    upload.send_reset(h2::Reason::CANCEL);
    let noticed = backend.journal.cancelled(id).await;
    noticed.duration_since(start)
}

/// That no timer stands between is proven on a stopped clock, in the proxy's own tests (`rpc/tests.rs`). Here is the
/// figure, and since the machine may be busy with anything, next to that of cancels which take the same way without
/// the proxy: in turn, so that both meet the same load.
#[tokio::test]
async fn a_cancel_reaches_the_backend_within_100_ms_of_one_without_the_proxy() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let (client, direct) = (
        proxy.http2().await,
        Http2::connect_plain(backend.address()).await.unwrap(),
    );
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..25 {
        without.push(cancel(&direct, &backend, &format!("direct-{number}")).await);
        with.push(cancel(&client, &backend, &format!("proxied-{number}")).await);
    }
    with.sort_unstable();
    without.sort_unstable();
    // One more hop each way: where a hop is slow, two are.
    let (with, without) = (with[12], without[12]);
    let limit = Duration::from_millis(100) + 3 * without;
    assert!(with < limit, "{with:?}, and {without:?} without the proxy");
    // Ours, the proxy's, and no other: no cancel cost the shared one.
    assert_eq!(backend.journal.read().connections, 2);
}

#[tokio::test]
async fn a_client_that_vanishes_cancels_what_it_was_running() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let mut calls = Vec::new();
    for id in ["one", "two"] {
        let mut client = client.clone();
        let asked = request(payload(""), &[("x-test-id", id), ("x-test-gate", "never")]);
        calls.push(tokio::spawn(async move { client.unary(asked).await }));
        backend.journal.begun(id).await;
    }
    for call in calls {
        call.abort();
    }
    backend.journal.cancelled("one").await;
    backend.journal.cancelled("two").await;
    client.unary(payload("")).await.unwrap();

    // Without a word: its socket ends.
    let wire_id = "vanished";
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Unary");
    headers.extend([("x-test-id", wire_id), ("x-test-gate", "never")]);
    wire.send(&[
        e2e::frames::Frame::headers(1, &headers, false),
        e2e::frames::Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    backend.journal.begun(wire_id).await;
    drop(wire);
    backend.journal.cancelled(wire_id).await;
}

#[tokio::test]
async fn a_cancel_is_noticed_while_the_backend_reads_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request(
        "/e2e.Test/Upload",
        &[("x-test-id", "stuck"), ("x-test-gate", "never")],
    );
    let (_response, mut upload) = client.open(asked, false).await.unwrap();
    // More than all windows on the way.
    upload
        .send_data(Bytes::from(framed(&vec![b'x'; 4 << 20])), false)
        .unwrap();
    backend.journal.begun("stuck").await;
    upload.send_reset(h2::Reason::CANCEL);
    backend.journal.cancelled("stuck").await;
}
