use e2e::{
    backend::Backend,
    client::get_request,
    frames::{Frame, Wire, kind},
    proxy::{Proxy, TEST},
    scripted::{Exchange, Scripted},
};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers with what it was asked.
async fn mirror(mut exchange: Exchange) {
    let body = exchange.body().await.unwrap_or_default();
    let line = format!(
        "{} {} ",
        exchange.request.method(),
        exchange.request.uri().path_and_query().unwrap()
    );
    let response = Response::builder()
        .header("content-type", "text/plain")
        .header("x-mirror", "1")
        .body(())
        .unwrap();
    let mut all = line.into_bytes();
    all.extend(body);
    exchange.reply(response, &all, None);
}

#[tokio::test]
async fn plain_http_2_is_relayed_as_it_is() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let reply = client
        .call(get_request("/e2e.Test/page?q=1", &[]), b"")
        .await
        .unwrap();
    assert_eq!(
        (reply.status.as_u16(), reply.header("x-mirror")),
        (200, "1")
    );
    assert_eq!(reply.body, b"GET /e2e.Test/page?q=1 ");
    let post = Request::post("https://grpc.example.com/e2e.Test/form")
        .body(())
        .unwrap();
    assert_eq!(
        client.call(post, b"data").await.unwrap().body,
        b"POST /e2e.Test/form data"
    );
}

#[tokio::test]
async fn plain_http_1_is_relayed_as_it_is() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let (head, body) = proxy
        .http1("GET /e2e.Test/page HTTP/1.1\nhost: grpc.example.com", b"")
        .await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("x-mirror: 1") && head.contains("server: edge-proxy"),
        "{head}"
    );
    assert!(
        String::from_utf8_lossy(&body).contains("GET /e2e.Test/page "),
        "{body:?}"
    );
    let head = "POST /e2e.Test/form HTTP/1.1\nhost: grpc.example.com\ncontent-length: 4";
    let (_, body) = proxy.http1(head, b"data").await;
    assert!(String::from_utf8_lossy(&body).contains("POST /e2e.Test/form data"));
    let seen = backend.journal.last();
    assert_eq!(seen.authority, "grpc.example.com");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn a_connection_of_http_1_serves_many_requests() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut stream = proxy.tls(&["http/1.1"]).await.unwrap();
    let mut answers = Vec::new();
    for number in 0..5 {
        let request = format!("GET /e2e.Test/{number} HTTP/1.1\r\nhost: grpc.example.com\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let wanted = format!("GET /e2e.Test/{number} ");
        while !String::from_utf8_lossy(&answers).contains(&wanted) {
            let mut buffer = [0; 1024];
            let length = e2e::wait::within("an answer", stream.read(&mut buffer))
                .await
                .unwrap();
            assert!(length > 0, "the connection has ended");
            answers.extend_from_slice(&buffer[..length]);
        }
    }
}

#[tokio::test]
async fn grpc_over_http_1_is_refused() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let head = "POST /e2e.Test/Unary HTTP/1.1\nhost: grpc.example.com\ncontent-type: application/grpc\ncontent-length: 5";
    let (head, _) = proxy.http1(head, &[0; 5]).await;
    assert!(head.starts_with("http/1.1 505"), "{head}");
    let record = &proxy.access_log(1).await[0];
    assert_eq!(record["authority"], "grpc.example.com", "{record}");
    // What is wrong with it besides is told in plain HTTP too.
    let head = "POST /e2e.Test/Unary HTTP/1.1\ncontent-type: application/grpc\ncontent-length: 0";
    let (head, body) = proxy.http1(head, b"").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    assert!(!head.contains("grpc-status"), "{head}");
    assert_eq!(body, b"invalid authority");
    let large = format!(
        "POST /e2e.Test/Unary HTTP/1.1\nhost: a\ncontent-type: application/grpc\nx-large: {}",
        "x".repeat(10_000)
    );
    let (head, body) = proxy.http1(&large, b"").await;
    assert!(head.starts_with("http/1.1 431"), "{head}");
    assert!(!head.contains("grpc-status"), "{head}");
    assert_eq!(body, b"request header fields too large");
    assert_eq!(backend.journal.count(), 0);
}

#[tokio::test]
async fn local_answers_over_http_1() {
    let proxy = Proxy::to(&[e2e::loopback::refused().unwrap()])
        .start()
        .await;
    let (head, _) = proxy
        .http1("GET /nowhere HTTP/1.1\nhost: grpc.example.com", b"")
        .await;
    assert!(
        head.starts_with("http/1.1 404") && head.contains("server: edge-proxy"),
        "{head}"
    );
    let (head, body) = proxy
        .http1(
            &format!("GET {TEST}x HTTP/1.1\nhost: grpc.example.com"),
            b"",
        )
        .await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert!(head.contains("content-type: text/plain"), "{head}");
    assert!(String::from_utf8_lossy(&body).contains("remote connection failure"));
    let large = format!(
        "GET / HTTP/1.1\nhost: grpc.example.com\nx-large: {}",
        "x".repeat(40_000)
    );
    let (head, body) = proxy.http1(&large, b"").await;
    assert!(head.starts_with("http/1.1 431"), "{head}");
    assert!(head.contains("server: edge-proxy"), "{head}");
    assert_eq!(body, b"request header fields too large");
}

#[tokio::test]
async fn without_alpn_the_first_bytes_decide() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut stream = proxy.tls(&[]).await.unwrap();
    stream
        .write_all(b"GET /nowhere HTTP/1.1\r\nhost: grpc.example.com\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = e2e::wait::within("an answer", stream.read_to_end(&mut answer)).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 404"),
        "{}",
        String::from_utf8_lossy(&answer)
    );

    let stream = proxy.tls(&[]).await.unwrap();
    let mut wire = Wire::client(stream, &[]).await.unwrap();
    wire.send(&[Frame::headers(
        1,
        &e2e::frames::grpc_request("/nowhere/x"),
        true,
    )])
    .await
    .unwrap();
    let reply = wire
        .until("an answer", |frame| frame.kind == kind::HEADERS)
        .await
        .unwrap();
    assert!(reply.ends_stream());
}

#[tokio::test]
async fn trailers_of_plain_http_pass() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let mut end = HeaderMap::new();
        end.insert("x-checksum", "42".parse().unwrap());
        exchange.reply(Response::new(()), b"body", Some(end));
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy
        .http2()
        .await
        .call(get_request("/e2e.Test/x", &[]), b"")
        .await
        .unwrap();
    assert_eq!(reply.trailers.unwrap()["x-checksum"], "42");
}

#[tokio::test]
async fn chunked_bodies_and_heads_of_http_1() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let head = "POST /e2e.Test/chunks HTTP/1.1\nhost: grpc.example.com\ntransfer-encoding: chunked";
    let (_, body) = proxy.http1(head, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    assert!(
        String::from_utf8_lossy(&body).contains("POST /e2e.Test/chunks abcde"),
        "{body:?}"
    );
    let (head, body) = proxy
        .http1("HEAD /e2e.Test/page HTTP/1.1\nhost: grpc.example.com", b"")
        .await;
    assert!(
        head.starts_with("http/1.1 200") && body.is_empty(),
        "{head}"
    );
}

#[tokio::test]
async fn a_large_body_passes_both_ways_over_http_1() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let large = vec![b'x'; 2 << 20];
    let head = format!(
        "POST /e2e.Test/large HTTP/1.1\nhost: grpc.example.com\ncontent-length: {}",
        large.len()
    );
    let (head, body) = proxy.http1(&head, &large).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let copies = body.iter().filter(|byte| **byte == b'x').count();
    assert!(copies >= large.len(), "{copies} bytes came back");
}

#[tokio::test]
async fn smuggled_requests_are_refused() {
    let backend = Scripted::start(mirror).await;
    let proxy = Proxy::to([&backend]).start().await;
    let head =
        "POST /e2e.Test/a HTTP/1.1\nhost: grpc.example.com\ncontent-length: 4\ncontent-length: 5";
    let (head, body) = proxy.http1(head, b"data!").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    assert!(head.contains("server: edge-proxy"), "{head}");
    assert_eq!(body, b"malformed request");
    assert_eq!(backend.journal.count(), 0);
}
