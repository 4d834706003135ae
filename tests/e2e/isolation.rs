use std::time::Duration;

use bytes::Bytes;
use e2e::{
    backend::Backend,
    client::{grpc_request, request},
    frames::{Frame, code},
    payload,
    proxy::Proxy,
    scripted::framed,
    wait::{eventually, within},
};

#[tokio::test]
async fn stalled_downloads_do_not_stop_others() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    // Each takes all it can have of the shared connection to the backend, and reads nothing.
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let client = proxy.http2().await;
        for _ in 0..20 {
            let asked = grpc_request(
                "/e2e.Test/Download",
                &[("x-test-replies", "100"), ("x-test-reply-bytes", "100000")],
            );
            let (response, mut upload) = client.open(asked, false).await.unwrap();
            upload.send_data(Bytes::from(framed(b"")), true).unwrap();
            stalled.push((within("headers", response).await.unwrap(), client.clone()));
        }
    }
    let mut client = proxy.test_client().await;
    for _ in 0..50 {
        let asked = request(payload(""), &[("x-test-reply-bytes", "200000")]);
        let reply = within("an answer to a client that reads", client.unary(asked))
            .await
            .unwrap();
        assert_eq!(reply.into_inner().data.len(), 200_000);
    }
    drop(stalled);
}

#[tokio::test]
async fn uploads_that_nobody_reads_do_not_stop_others() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    let mut stuck = Vec::new();
    for _ in 0..30 {
        let asked = grpc_request("/e2e.Test/Upload", &[("x-test-gate", "never")]);
        let (response, mut upload) = client.open(asked, false).await.unwrap();
        upload
            .send_data(Bytes::from(framed(&vec![b'x'; 500_000])), false)
            .unwrap();
        stuck.push((response, upload));
    }
    backend
        .journal
        .wait("the uploads", |all| {
            (all.requests.len() == 30).then_some(())
        })
        .await;
    let mut other = proxy.test_client().await;
    for _ in 0..10 {
        let reply = within(
            "an answer to another client",
            other.unary(payload(vec![b'y'; 200_000])),
        )
        .await
        .unwrap();
        assert_eq!(reply.into_inner().data.len(), 200_000);
    }
}

/// On a server that gives all uploads of a connection one window.
#[tokio::test]
async fn when_uploads_have_used_up_a_connections_window_others_soon_get_another_connection() {
    let backend = Backend::start_with_one_window().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let asked = grpc_request("/e2e.Test/Upload", &[("x-test-gate", "never")]);
        let (response, mut upload) = client.open(asked, false).await.unwrap();
        upload
            .send_data(Bytes::from(framed(&vec![b'x'; 1 << 20])), false)
            .unwrap();
        stuck.push((response, upload));
    }
    let mut other = proxy.test_client().await;
    let journal = &backend.journal;
    eventually("an answer on another connection", || {
        let mut other = other.clone();
        async move {
            // On the first one it would wait for ever.
            let mut asked = request(payload("short"), &[]);
            asked.set_timeout(Duration::from_millis(300));
            other.unary(asked).await.ok()?;
            (journal.read().connections > 1).then_some(())
        }
    })
    .await;
    for _ in 0..50 {
        within("another client's answer", other.unary(payload("")))
            .await
            .unwrap();
    }
    assert_eq!(backend.journal.read().connections_ended, 0);
}

/// On such a server, when no other connection may be opened.
#[tokio::test]
async fn an_upload_that_has_used_up_the_last_connections_window_makes_way_for_others() {
    let backend = Backend::start_with_one_window().await;
    let proxy = Proxy::to([&backend])
        .set("workers", 1)
        .set("listener.timeouts.stream_window_stall", "2s")
        .with("max_connections", 1)
        .start()
        .await;
    let client = proxy.http2().await;
    let asked = grpc_request("/e2e.Test/Upload", &[("x-test-gate", "never")]);
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload
        .send_data(Bytes::from(framed(&vec![b'x'; 1 << 20])), false)
        .unwrap();
    let mut other = proxy.test_client().await;
    let others = async {
        loop {
            let reply = other.unary(payload("short")).await;
            assert_eq!(reply.unwrap().into_inner().data, b"short"[..]);
        }
    };
    let ended = within("the upload's end", async {
        tokio::select! {
            ended = response => ended,
            never = others => never,
        }
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.headers()["grpc-status"], "8");
    assert_eq!(backend.journal.read().connections, 1);
    let freed = proxy.metric("edge_limits_total", &[("limit", "upstream_window")]);
    assert_eq!(freed.await, 1.0);
}

#[tokio::test]
async fn many_cancels_cost_nobody_the_shared_connection() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut innocent = proxy.test_client().await;
    let asked = request(
        payload(""),
        &[("x-test-id", "innocent"), ("x-test-gate", "end")],
    );
    let running = tokio::spawn({
        let mut innocent = innocent.clone();
        async move { innocent.unary(asked).await }
    });
    backend.journal.begun("innocent").await;

    // Requests and their resets in one flush: what makes a server of the crate h2 end its connection.
    for _ in 0..10 {
        let mut wire = proxy.wire(&[]).await;
        let mut frames = Vec::new();
        for number in 0..30 {
            let stream = 2 * number + 1;
            frames.push(Frame::headers(
                stream,
                &e2e::frames::grpc_request("/e2e.Test/Chat"),
                false,
            ));
            frames.push(Frame::reset(stream, code::CANCEL));
        }
        // The proxy may find that this is enough.
        let _ = wire.send(&frames).await;
        within("another client's answer", innocent.unary(payload("")))
            .await
            .unwrap();
    }
    backend.open("end");
    within("the innocent RPC", running).await.unwrap().unwrap();
    assert_eq!(backend.journal.read().connections_ended, 0);
}

#[tokio::test]
async fn clients_that_vanish_cost_nobody_the_shared_connection() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut innocent = proxy.test_client().await;
    for _ in 0..10 {
        let mut wire = proxy.wire(&[]).await;
        let frames: Vec<_> = (0..50)
            .map(|number| {
                Frame::headers(
                    2 * number + 1,
                    &e2e::frames::grpc_request("/e2e.Test/Chat"),
                    false,
                )
            })
            .collect();
        wire.send(&frames).await.unwrap();
        drop(wire);
        within("another client's answer", innocent.unary(payload("")))
            .await
            .unwrap();
    }
    assert_eq!(backend.journal.read().connections_ended, 0);
}

#[tokio::test]
async fn small_messages_do_not_end_a_backends_connection() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Upload");
    headers.push(("x-test-id", "crumbs"));
    wire.send(&[Frame::headers(1, &headers, false)])
        .await
        .unwrap();
    // 2000 messages, byte by byte, with empty frames between them.
    for _ in 0..2000 {
        let mut frames: Vec<_> = framed(b"")
            .iter()
            .map(|byte| Frame::data(1, &[*byte], false))
            .collect();
        frames.push(Frame::data(1, b"", false));
        if wire.send(&frames).await.is_err() {
            break;
        }
    }
    let mut innocent = proxy.test_client().await;
    within("another client's answer", innocent.unary(payload("")))
        .await
        .unwrap();
    assert_eq!(backend.journal.read().connections_ended, 0);
}

#[tokio::test]
async fn what_a_strict_server_would_end_a_connection_for_stays_at_the_edge() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut innocent = proxy.test_client().await;
    innocent.unary(payload("")).await.unwrap();
    let base = e2e::frames::grpc_request("/e2e.Test/Unary");
    let mut bad: Vec<Vec<(&str, &str)>> = Vec::new();
    for extra in [
        ("Upper-Case", "x"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("x-line", "a\r\nb: c"),
        ("x-nul", "a\0b"),
        ("x space", "a"),
        (":path", "/again"),
        (":unknown", "x"),
        (":status", "200"),
        ("x-leading", " a"),
    ] {
        let mut headers = base.clone();
        headers.push(extra);
        bad.push(headers);
    }
    bad.push(
        base.iter()
            .copied()
            .filter(|(name, _)| *name != ":path")
            .collect(),
    );
    bad.push(
        base.iter()
            .copied()
            .map(|(name, value)| {
                if name == "te" {
                    (name, "gzip")
                } else {
                    (name, value)
                }
            })
            .collect(),
    );
    let instead = |name: &str, other: (&'static str, &'static str)| {
        let fields = base.iter().copied();
        let fields = fields.map(|field| if field.0 == name { other } else { field });
        fields.collect::<Vec<_>>()
    };
    const LONG: &str = "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh";
    bad.push(instead(":scheme", (":scheme", LONG)));
    bad.push(instead(":authority", (":authority", "[ffff:::::::::]")));
    let zeros = ("content-length", "00000000000000000000000000000");
    bad.push(base.iter().copied().chain([zeros]).collect());
    // Where there is no `:authority`, `host` takes its place.
    for host in ["a b", "a%41", "a/b", "", "<a>", "a@b"] {
        let mut headers = base.clone();
        headers.retain(|(name, _)| *name != ":authority");
        headers.push(("host", host));
        bad.push(headers);
    }
    let asked = 1 + bad.len();
    for headers in bad {
        let mut wire = proxy.wire(&[]).await;
        // Some of these end the client's own connection, which may be before its next frame is written.
        let _ = wire.send(&[Frame::headers(1, &headers, true)]).await;
        wire.until("an end of the stream", |frame| {
            frame.stream == 1 || frame.kind == e2e::frames::kind::GOAWAY
        })
        .await;
        within("another client's answer", innocent.unary(payload("")))
            .await
            .unwrap();
    }
    // The backend wasn't asked for one of them: only for what the innocent wanted, once at first and once after each.
    assert_eq!(backend.journal.count(), asked);
    for result in ["reset", "protocol_error"] {
        let labels = [("cluster", "test"), ("result", result)];
        let attempts = proxy.metric("edge_attempts_total", &labels).await;
        assert_eq!(attempts, 0.0, "{result}");
    }
    assert_eq!(backend.journal.read().connections_ended, 0);
}
