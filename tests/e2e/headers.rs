use bytes::Bytes;
use e2e::{
    backend::Backend,
    client::{get_request, request},
    frames::{Frame, RawBackend, Wire, kind},
    payload,
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed, head, trailers},
    wait::within,
};
use http::Response;
use tonic::metadata::MetadataValue;

#[tokio::test]
async fn metadata_passes_untouched_both_ways() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let mut asked = request(payload(""), &[("x-test-give", "given"), ("x-many", "one")]);
    asked
        .metadata_mut()
        .append("x-many", "two".parse().unwrap());
    asked
        .metadata_mut()
        .append("x-many", "one".parse().unwrap());
    let binary = MetadataValue::from_bytes(&[0, 255, 1, 254]);
    asked
        .metadata_mut()
        .insert_bin("x-test-give-bin", binary.clone());
    let reply = client.unary(asked).await.unwrap();
    assert_eq!(reply.metadata().get("x-test-give").unwrap(), "given");
    assert_eq!(
        reply.metadata().get_bin("x-test-give-bin").unwrap(),
        &binary
    );
    let seen = backend.journal.last();
    let many: Vec<_> = seen.headers.get_all("x-many").iter().collect();
    assert_eq!(many, ["one", "two", "one"]);
    assert_eq!(seen.authority, "grpc.example.com");
    assert_eq!(seen.header("te"), Some("trailers"));
}

#[tokio::test]
async fn the_backend_is_told_who_asks() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    client
        .grpc("/e2e.Test/Unary", &[("x-forwarded-for", "203.0.113.9")])
        .await
        .unwrap();
    let seen = backend.journal.last();
    let forwarded: Vec<_> = seen.headers.get_all("x-forwarded-for").iter().collect();
    let joined = forwarded
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect::<Vec<_>>()
        .join(",");
    let last = joined.split(',').next_back().unwrap().trim();
    assert!(
        last.starts_with("127."),
        "the peer's address is the last word: {joined}"
    );
    assert!(joined.contains("203.0.113.9"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    let id = seen.header("x-request-id").unwrap();
    assert_eq!(
        (id.len(), id.matches('-').count()),
        (36, 4),
        "{id} is a UUID"
    );

    client
        .grpc(
            "/e2e.Test/Unary",
            &[("x-request-id", "my-own-1"), ("x-forwarded-proto", "http")],
        )
        .await
        .unwrap();
    let seen = backend.journal.last();
    assert_eq!(seen.header("x-request-id"), Some("my-own-1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));

    for bad in ["has space", &"x".repeat(65), "semi;colon"] {
        client
            .grpc("/e2e.Test/Unary", &[("x-request-id", bad)])
            .await
            .unwrap();
        let seen = backend.journal.last();
        let id = seen.header("x-request-id").unwrap();
        assert_ne!(id, bad);
        assert_eq!(id.len(), 36);
    }
}

#[tokio::test]
async fn what_only_insiders_may_say_is_dropped() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let names = [
        "x-envoy-original-path",
        "x-envoy-anything",
        "x-forwarded-client-cert",
        "x-real-ip",
        "forwarded",
        "x_envoy_anything",
        "x_real_ip",
        "x_forwarded_client_cert",
        "x_forwarded_for",
    ];
    let headers: Vec<_> = names.iter().map(|name| (*name, "evil")).collect();
    let reply = client.grpc("/e2e.Test/Unary", &headers).await.unwrap();
    assert_eq!(reply.grpc_status(), Some(0));
    let seen = backend.journal.last();
    for name in names {
        assert!(seen.headers.get(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .header("x-kept", "1");
        exchange.reply(response.body(()).unwrap(), &framed(b""), Some(trailers(0)));
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let request = "POST /e2e.Test/Plain HTTP/1.1\nhost: grpc.example.com\nkeep-alive: timeout=5\n\
                   proxy-connection: keep-alive\nconnection: x-hop\nx-hop: 1\nx-end: 1\ncontent-length: 2";
    let (head, _) = proxy.http1(request, b"ok").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let seen = backend.journal.last();
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "host",
        "x-hop",
    ] {
        assert!(seen.headers.get(name).is_none(), "{name}");
    }
    assert_eq!(seen.header("x-end"), Some("1"));
    assert_eq!(seen.authority, "grpc.example.com");
}

#[tokio::test]
async fn what_speaks_of_a_backends_connection_never_reaches_a_client() {
    let names = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
    ];
    let backend = RawBackend::start(move |stream, _| async move {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        let mut left = names.into_iter();
        while let Some(asked) = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await
        {
            let mut head = vec![
                (":status", "200"),
                ("content-type", "application/grpc"),
                ("grpc-status", "0"),
            ];
            head.extend(left.next().map(|name| (name, "close")));
            // The proxy's end is noticed by the next read.
            let _ = wire
                .send(&[Frame::headers(asked.stream, &head, true)])
                .await;
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    for name in names {
        let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
        assert!(reply.headers.get(name).is_none(), "{name}");
        assert_eq!(reply.grpc_status(), Some(0), "{name}");
    }
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.grpc_status(), Some(0), "on the same connection");
}

#[tokio::test]
async fn the_response_says_who_served_and_how_long_it_took() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("server_name", "edge-proxy-9")
        .start()
        .await;
    let client = proxy.http2().await;
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.header("server"), "edge-proxy-9");
    assert!(
        reply.header("date").ends_with(" GMT"),
        "{:?}",
        reply.header("date")
    );
    assert_eq!(reply.header("content-type"), "application/grpc");
    let time = reply.header("x-envoy-upstream-service-time");
    assert!(time.parse::<u64>().is_ok(), "{time:?}");
    assert_eq!(reply.headers.get_all("server").iter().count(), 1);
    assert_eq!(reply.headers.get_all("date").iter().count(), 1);
}

#[tokio::test]
async fn the_upstream_time_is_left_out_while_the_request_goes_on() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = e2e::client::grpc_request("/e2e.Test/Chat", &[]);
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    let response = within("headers", response).await.unwrap();
    assert!(
        response
            .headers()
            .get("x-envoy-upstream-service-time")
            .is_none()
    );
    upload.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test]
async fn the_backends_date_is_kept_and_its_server_replaced() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let mut response = head(200);
        response
            .headers_mut()
            .insert("server", "backend".parse().unwrap());
        response
            .headers_mut()
            .insert("date", "Thu, 01 Jan 1970 00:00:00 GMT".parse().unwrap());
        exchange.reply(response, &framed(b""), Some(trailers(0)));
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(reply.header("date"), "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_eq!(reply.header("server"), "edge-proxy");
}

#[tokio::test]
async fn a_trailers_only_response_stays_one() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy
        .grpc("/e2e.Test/Unary", &[("x-test-status", "5")])
        .await;
    assert_eq!(reply.grpc_status(), Some(5));
    assert!(reply.headers_only);
    assert!(
        reply.grpc_message().unwrap().contains("100 %")
            || reply.grpc_message().unwrap().contains("100%20%25")
    );
}

#[tokio::test]
async fn trailers_pass_with_all_their_metadata() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let mut end = trailers(0);
        end.append("x-end", "one".parse().unwrap());
        end.append("x-end", "two".parse().unwrap());
        end.insert("grpc-status-details-bin", "AAEC".parse().unwrap());
        exchange.reply(head(200), &framed(b"reply"), Some(end));
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    let end = reply.trailers.unwrap();
    assert_eq!(
        end.get_all("x-end").iter().collect::<Vec<_>>(),
        ["one", "two"]
    );
    assert_eq!(end["grpc-status-details-bin"], "AAEC");
    assert_eq!(reply.body, framed(b"reply"));
}

#[tokio::test]
async fn informational_responses_are_for_plain_http_only() {
    let backend = Scripted::start(async |mut exchange: Exchange| {
        exchange.informational(103);
        exchange.ok(b"");
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let (mut response, _) = client
        .open(get_request("/e2e.Test/Plain", &[]), true)
        .await
        .unwrap();
    let early = within(
        "103",
        std::future::poll_fn(|cx| response.poll_informational(cx)),
    )
    .await;
    assert_eq!(early.unwrap().unwrap().status(), 103);
    assert_eq!(response.await.unwrap().status(), 200);

    let asked = e2e::client::grpc_request("/e2e.Test/Unary", &[]);
    let (mut response, _) = client.open(asked, true).await.unwrap();
    let early = within(
        "an end",
        std::future::poll_fn(|cx| response.poll_informational(cx)),
    )
    .await;
    assert!(!matches!(early, Some(Ok(_))), "dropped for gRPC");
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_backends_large_headers_pass() {
    let value = "v".repeat(3000);
    let sent = value.clone();
    let backend = Scripted::start(move |exchange: Exchange| {
        let mut response = head(200);
        for number in 0..8 {
            let name = http::HeaderName::try_from(format!("x-large-{number}")).unwrap();
            response.headers_mut().insert(name, sent.parse().unwrap());
        }
        async move { exchange.reply(response, &framed(b""), Some(trailers(0))) }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut settings = h2::client::Builder::new();
    settings.max_header_list_size(1 << 20);
    let client = proxy.http2_with(&settings).await;
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.header("x-large-7"), value);
    assert_eq!(reply.grpc_status(), Some(0));
}

#[tokio::test]
async fn many_metadata_entries_pass_with_dynamic_tables() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for round in 0..200 {
        let values: Vec<(String, String)> = (0..10)
            .map(|number| {
                (
                    format!("x-meta-{number}"),
                    format!("value {number} of {}", round % 7),
                )
            })
            .collect();
        let headers: Vec<(&str, &str)> = values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let reply = client.grpc("/e2e.Test/Unary", &headers).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        let seen = backend.journal.last();
        for (name, value) in headers {
            assert_eq!(seen.header(name), Some(value));
        }
    }
}

/// The fields of a header block, as RFC 7541 section 6 has them: the first byte's pattern, and the index of the name (0:
/// the name is written out).
fn fields(block: &[u8]) -> Vec<(u8, u32)> {
    fn integer(bytes: &mut &[u8], bits: u32) -> u32 {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        let most = (1 << bits) - 1;
        let mut value = u32::from(*first) & most;
        let mut shift = 0;
        while value >= most {
            let (next, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value += u32::from(next & 127) << shift;
            shift += 7;
            if next & 128 == 0 {
                break;
            }
        }
        value
    }
    let mut rest = block;
    let mut all = Vec::new();
    while let Some(first) = rest.first() {
        let (pattern, bits) = match first {
            128.. => (INDEXED, 7),
            64.. => (INDEXING, 6),
            32.. => (0x20, 5),
            16.. => (NEVER_INDEXED, 4),
            _ => (WITHOUT_INDEXING, 4),
        };
        let index = integer(&mut rest, bits);
        let texts = match pattern {
            INDEXED | 0x20 => 0,
            _ if index == 0 => 2,
            _ => 1,
        };
        for _ in 0..texts {
            let length = integer(&mut rest, 7);
            rest = &rest[length as usize..];
        }
        all.push((pattern, index));
    }
    all
}

const INDEXED: u8 = 0x80;
const INDEXING: u8 = 0x40;
const NEVER_INDEXED: u8 = 0x10;
const WITHOUT_INDEXING: u8 = 0;
/// Their places in the static table (RFC 7541 appendix A).
const AUTHORIZATION: u32 = 23;
const COOKIE: u32 = 32;

#[tokio::test]
async fn secrets_and_what_is_never_the_same_enter_no_header_table_on_the_way_to_a_backend() {
    let (seen, mut blocks) = tokio::sync::mpsc::unbounded_channel();
    let backend = RawBackend::start(move |stream, _| {
        let seen = seen.clone();
        async move {
            let Ok(mut wire) = Wire::server(stream, &[]).await else {
                return;
            };
            let asked = |frame: &Frame| frame.kind == kind::HEADERS;
            while let Some(request) = wire.until("a request", asked).await {
                // Who doesn't listen any more has seen enough.
                let _ = seen.send(request.payload);
                let head = [
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", "0"),
                ];
                // The proxy's end is noticed by the next read.
                let _ = wire
                    .send(&[Frame::headers(request.stream, &head, true)])
                    .await;
            }
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    for turn in 0..3 {
        let (timeout, id) = (format!("{}S", 90 + turn), format!("id-{turn}"));
        let headers = [
            ("authorization", "Bearer s3cret"),
            ("cookie", "a=s3cret"),
            ("grpc-timeout", &timeout),
            ("x-request-id", &id),
        ];
        let reply = client.grpc("/e2e.Test/Unary", &headers).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        let block = within("a request", blocks.recv()).await.unwrap();
        let fields = fields(&block);
        for name in [AUTHORIZATION, COOKIE] {
            // However often they come.
            assert!(
                fields.contains(&(NEVER_INDEXED, name)),
                "{turn}: {fields:?}"
            );
        }
        let others = fields.iter().filter(|(pattern, _)| *pattern == INDEXED);
        assert!(turn == 0 || others.count() > 5, "the rest is in the table");
        // What differs from RPC to RPC (`grpc-timeout`, `x-request-id`) would only push the rest out of it.
        let added = fields.iter().filter(|(pattern, _)| *pattern == INDEXING);
        assert!(turn == 0 || added.count() == 0, "{turn}: {fields:?}");
    }
}
