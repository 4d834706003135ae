use e2e::{
    backend::Backend,
    client::{get_request, request},
    frames::{self, Frame, kind},
    health, loopback, payload,
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed},
    wait::eventually,
};
use h2::Reason;
use serde_json::json;

#[tokio::test]
async fn one_line_per_rpc_says_what_happened() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    client
        .unary(request(payload("12345"), &[("x-request-id", "my-id")]))
        .await
        .unwrap();
    let record = &proxy.access_log(1).await[0];
    assert_eq!(record["request_id"], "my-id");
    assert_eq!(record["method"], "POST");
    assert_eq!(record["path"], "/e2e.Test/Unary");
    assert_eq!(record["status"], 200);
    assert_eq!(record["grpc_status"], 0);
    assert_eq!(record["attempts"], 1);
    assert_eq!(record["cluster"], "test");
    assert_eq!(record["endpoint"], backend.address().to_string());
    assert!(record["client"].as_str().unwrap().starts_with("127."));
    assert!(record["user_agent"].as_str().unwrap().contains("tonic"));
    assert!(record["duration_ms"].as_f64().unwrap() >= 0.0);
    assert!(record["upstream_ms"].as_f64().is_some());
    // Five bytes of gRPC, seven of the message; the same come back.
    assert_eq!(
        (&record["bytes_in"], &record["bytes_out"]),
        (&json!(12), &json!(12))
    );
    assert!(record["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn flags_and_words_say_what_went_wrong() {
    let backend = Scripted::start(
        async |exchange: Exchange| match exchange.request.uri().path() {
            "/e2e.Test/Reset" => exchange.reset(Reason::INTERNAL_ERROR),
            "/e2e.Test/Drop" => exchange.drop_connection(),
            "/e2e.Test/Hang" | "/slow.Test/Hang" => exchange.hang().await,
            _ => exchange.ok(b""),
        },
    )
    .await;
    let ill = Backend::start().await;
    ill.health.set(health::NOT_SERVING);
    let refused = loopback::refused().unwrap();
    let proxy = Proxy::to([&backend])
        .route_of(json!({ "prefix": "/slow.Test/", "cluster": "test", "timeout": "50ms" }))
        .route("/refused.Test/", "refused")
        .cluster("refused", [refused])
        .route("/ill.Test/", "ill")
        .cluster("ill", [ill.address()])
        .checked()
        .set("listener.timeouts.stream_idle", "2s")
        .start()
        .await;
    let client = proxy.http2().await;
    let large = "x".repeat(9000);
    let at_backend = backend.address().to_string();
    let at_refused = refused.to_string();
    let no = json!(null);
    // Path, header, flags, grpc-status, what the detail ends in, attempts, endpoint.
    let rows = [
        ("/e2e.Test/Good", None, "-", 0, "", 1, json!(at_backend)),
        ("/nowhere.X/Y", None, "NR", 12, "", 0, no.clone()),
        (
            "/ill.Test/X",
            None,
            "UH",
            14,
            "no healthy upstream",
            0,
            no.clone(),
        ),
        (
            "/refused.Test/X",
            None,
            "UF,URX",
            14,
            "remote connection failure",
            3,
            json!(at_refused),
        ),
        (
            "/e2e.Test/Reset",
            None,
            "UR",
            14,
            "remote reset",
            1,
            json!(at_backend),
        ),
        (
            "/e2e.Test/Drop",
            None,
            "UC",
            14,
            "connection termination",
            1,
            json!(at_backend),
        ),
        (
            "/slow.Test/Hang",
            None,
            "UT",
            4,
            "upstream request timeout",
            1,
            json!(at_backend),
        ),
        (
            "/e2e.Test/Hang",
            None,
            "SI",
            4,
            "stream timeout",
            1,
            json!(at_backend),
        ),
        (
            "/e2e.Test/X",
            Some(("host", "other")),
            "IH",
            13,
            "invalid authority",
            0,
            no.clone(),
        ),
        (
            "/e2e.Test/X",
            Some(("x-l", large.as_str())),
            "DPE",
            8,
            "fields too large",
            0,
            no,
        ),
    ];
    for (number, (path, header, flags, status, detail, attempts, endpoint)) in
        rows.into_iter().enumerate()
    {
        let headers: Vec<_> = header.into_iter().collect();
        let reply = client.grpc(path, &headers).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(status), "{path}");
        let record = &proxy.access_log(number + 1).await[number];
        assert_eq!(record["flags"], flags, "{record}");
        assert_eq!(record["grpc_status"], status, "{record}");
        let words = record["detail"].as_str().unwrap_or_default();
        assert!(words.ends_with(detail), "{record}");
        assert_eq!(words.is_empty(), detail.is_empty(), "{record}");
        assert_eq!(record["attempts"], attempts, "{record}");
        assert_eq!(record["endpoint"], endpoint, "{record}");
    }
}

#[tokio::test]
async fn a_cancelled_rpc_has_its_line_too() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.test_client().await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .unary(request(
                    payload(""),
                    &[("x-test-id", "c"), ("x-test-gate", "never")],
                ))
                .await
        }
    });
    backend.journal.begun("c").await;
    call.abort();
    let record = &proxy.access_log(1).await[0];
    assert_eq!(record["flags"], "DR", "{record}");
    assert_eq!(record["status"], json!(null), "it got none: {record}");
    assert_eq!(record["grpc_status"], 1, "what it told itself: {record}");

    // And when the whole connection goes, without a word about the stream.
    let mut wire = proxy.wire(&[]).await;
    let mut headers = frames::grpc_request("/e2e.Test/Unary");
    headers.extend([("x-test-id", "gone"), ("x-test-gate", "never")]);
    wire.send(&[
        Frame::headers(1, &headers, false),
        Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    backend.journal.begun("gone").await;
    drop(wire);
    let record = &proxy.access_log(2).await[1];
    assert_eq!(record["flags"], "DC", "{record}");
}

#[tokio::test]
async fn a_stream_has_its_line_when_it_ends() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let asked = request(
        payload(""),
        &[("x-test-replies", "2"), ("x-test-late-gate", "end")],
    );
    let mut replies = client.download(asked).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    client.unary(payload("")).await.unwrap();
    let records = proxy.access_log(1).await;
    assert_eq!(records[0]["path"], "/e2e.Test/Unary");
    backend.open("end");
    while replies.message().await.unwrap().is_some() {}
    assert_eq!(proxy.access_log(2).await[1]["path"], "/e2e.Test/Download");
}

#[tokio::test]
async fn secrets_are_never_written_and_long_values_are_cut() {
    let proxy = Proxy::builder().start().await;
    let client = proxy.http2().await;
    let long = format!("/{}", "p".repeat(2000));
    let headers = [
        ("authorization", "Bearer hush-1"),
        ("cookie", "session=hush-2"),
        ("x-token-bin", "aHVzaC0z"),
        ("user-agent", "quote\" and \\ and\ttab"),
    ];
    client
        .call(get_request(&long, &headers), b"")
        .await
        .unwrap();
    let records = proxy.access_log(1).await;
    let text = records[0].to_string();
    assert!(
        !text.contains("hush") && !text.contains("aHVzaC0z"),
        "{text}"
    );
    assert!(
        records[0]["path"].as_str().unwrap().len() <= 260,
        "cut at 256 bytes"
    );
    assert!(
        records[0]["user_agent"]
            .as_str()
            .unwrap()
            .starts_with("quote\" and \\")
    );
}

#[tokio::test]
async fn text_and_no_log_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (path, none) = (directory.path().join("log"), directory.path().join("none"));
    let proxy = Proxy::builder()
        .set(
            "access_log",
            serde_json::json!({ "format": "text", "path": path }),
        )
        .start()
        .await;
    proxy.http2().await.grpc("/a.B/C", &[]).await.unwrap();
    eventually("a line of words", || async {
        std::fs::read_to_string(&path)
            .ok()?
            .contains("path=/a.B/C")
            .then_some(())
    })
    .await;

    let proxy = Proxy::builder()
        .set(
            "access_log",
            serde_json::json!({ "format": "off", "path": none }),
        )
        .start()
        .await;
    proxy.http2().await.grpc("/a.B/C", &[]).await.unwrap();
    eventually("the RPC to be counted", || async {
        (proxy.metric("edge_rpcs_ended_total", &[]).await == 1.0).then_some(())
    })
    .await;
    // What waits to be written is, before the end.
    proxy.drain();
    proxy.ended().await;
    let written = std::fs::read_to_string(&none).unwrap_or_default();
    assert_eq!(written, "");
}

#[tokio::test]
async fn a_request_that_was_refused_has_its_line_too() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.http2.max_concurrent_streams", 1)
        .start()
        .await;
    let ordinary = frames::grpc_request("/e2e.Test/Unary");
    let with = |more: &[(&'static str, &'static str)]| [&ordinary[..], more].concat();
    let large = "x".repeat(9000);
    let mut above_8_kib = ordinary.clone();
    above_8_kib.push(("x-large", &large));
    // 34 bytes each, as RFC 9113 section 6.5.2 counts them.
    let above_32_kib = with(&[("x", "y"); 1000]);
    // Its request doesn't end, so the backend can't be done with it.
    let mut gated = with(&[("x-test-id", "open"), ("x-test-gate", "never")]);
    gated[2].1 = "/e2e.Test/Upload";
    assert_eq!(gated[2].0, ":path");

    let malformed = with(&[("connection", "close")]);

    // Answered; reset, since nobody needs so many headers, or HTTP/2 forbids them; one stream too many.
    let (answered, reset) = ((kind::HEADERS, json!(200)), (kind::RST_STREAM, json!(null)));
    let cases = [
        (vec![&above_8_kib], answered, "DPE"),
        (vec![&above_32_kib], reset.clone(), "DPE"),
        (vec![&malformed], reset.clone(), "DPE"),
        (vec![&gated, &ordinary], reset, "OM"),
    ];
    for (number, (requests, (told, status), flag)) in cases.into_iter().enumerate() {
        let mut wire = proxy.wire(&[]).await;
        let count = requests.len();
        for (stream, headers) in requests.into_iter().enumerate() {
            let (last, stream) = (stream + 1 == count, 2 * stream as u32 + 1);
            wire.send(&[Frame::headers(stream, headers, last)])
                .await
                .unwrap();
            if !last {
                backend.journal.begun("open").await;
            }
        }
        wire.until("a refusal", |frame| frame.kind == told)
            .await
            .unwrap();
        let record = &proxy.access_log(number + 1).await[number];
        assert_eq!(record["flags"], flag, "{record}");
        assert_eq!(record["status"], status, "{record}");
        assert_eq!(record["path"], "/e2e.Test/Unary", "{record}");
        assert_eq!(record["method"], "POST", "{record}");
        assert_eq!(record["attempts"], 0, "{record}");
    }
    let limit = |limit| proxy.metric("edge_limits_total", limit);
    assert_eq!(limit(&[("limit", "header_bytes")]).await, 2.0);
    assert_eq!(limit(&[("limit", "streams")]).await, 1.0);
}
