use e2e::{
    backend::Backend,
    client::{get_request, request},
    loopback, payload,
    proxy::{Proxy, read_records},
    wait::eventually,
};

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
    assert!(
        record["bytes_in"].as_u64().unwrap() >= 12,
        "five of gRPC, seven of the message"
    );
    assert!(record["bytes_out"].as_u64().unwrap() >= 12);
    assert!(record["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn flags_say_why_the_proxy_answered_itself() {
    let proxy = Proxy::to(&[loopback::refused().unwrap()]).start().await;
    let client = proxy.http2().await;
    client.grpc("/nowhere.X/Y", &[]).await.unwrap();
    client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    let records = proxy.access_log(2).await;
    let flags: Vec<String> = records
        .iter()
        .map(|record| record["flags"].to_string())
        .collect();
    assert!(flags[0].contains("NR"), "{flags:?}");
    assert!(flags[1].contains("UF"), "{flags:?}");
    let detail = records[1]["detail"].to_string();
    assert!(detail.contains("remote connection failure"), "{detail}");
    assert_eq!(
        (&records[0]["grpc_status"], &records[1]["grpc_status"]),
        (&12.into(), &14.into())
    );
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
    assert!(record["flags"].to_string().contains("DR"), "{record}");
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
    let path = directory.path().join("log");
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
        .set("access_log", serde_json::json!({ "format": "off" }))
        .start()
        .await;
    proxy.http2().await.grpc("/a.B/C", &[]).await.unwrap();
    assert!(read_records(&proxy.files.access_log()).is_empty());
}

#[tokio::test]
async fn a_request_that_a_limit_refused_has_its_line_too() {
    let proxy = Proxy::builder().start().await;
    let client = proxy.http2().await;
    let large = "x".repeat(9000);
    let reply = client.grpc("/a.B/C", &[("x-large", &large)]).await.unwrap();
    assert_eq!(reply.grpc_status(), Some(8));
    let lines = proxy.access_log(1).await;
    assert_eq!(lines[0]["grpc_status"], 8);
    assert_eq!(lines[0]["path"], "/a.B/C");
}
