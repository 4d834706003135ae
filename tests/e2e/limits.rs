use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::{
    backend::Backend,
    client::{self, grpc_request},
    frames::{Frame, RawBackend, Wire, block, code, flag, kind},
    payload,
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed, head, trailers},
    wait::{eventually, within},
};
use http::{HeaderName, HeaderValue};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::client::TlsStream;

/// Looks whether `end` comes sooner than after `default`, which is what the key under test has where it isn't written;
/// on a machine that is busy elsewhere, in one of five times.
async fn sooner_than(default: Duration, mut end: impl AsyncFnMut()) {
    for _ in 0..5 {
        let start = Instant::now();
        end().await;
        if start.elapsed() < default {
            return;
        }
    }
    panic!("five times not within {default:?}");
}

const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// What a SETTINGS frame says of `name`.
fn setting(settings: &Frame, name: u16) -> Option<u32> {
    let mut all = settings.payload.chunks_exact(6);
    let setting = all.find(|setting| setting[..2] == name.to_be_bytes())?;
    Some(u32::from_be_bytes(setting[2..].try_into().unwrap()))
}

#[tokio::test]
async fn clients_are_told_the_limits() {
    let proxy = Proxy::builder()
        .set("listener.http2.max_concurrent_streams", 7)
        .start()
        .await;
    let mut wire = proxy.wire(&[]).await;
    let settings = wire
        .until("SETTINGS", |frame| {
            frame.kind == kind::SETTINGS && frame.flags & flag::ACK == 0
        })
        .await
        .unwrap();
    let value = |name| setting(&settings, name);
    assert_eq!(value(MAX_CONCURRENT_STREAMS), Some(7));
    // 64 KiB is 65535 unless the peer says so, or a little more.
    assert!(value(INITIAL_WINDOW_SIZE).is_none_or(|size| (65_535..=65_536).contains(&size)));
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_the_others_go_on() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.http2.max_concurrent_streams", 2)
        .start()
        .await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Chat");
    headers.push(("x-test-gate", "end"));
    let frames: Vec<_> = [1, 3, 5]
        .map(|stream| Frame::headers(stream, &headers, true))
        .into();
    wire.send(&frames).await.unwrap();
    let refused = wire
        .until("a refusal", |frame| frame.kind == kind::RST_STREAM)
        .await
        .unwrap();
    assert_eq!(
        (refused.stream, refused.number(0)),
        (5, Some(code::REFUSED_STREAM))
    );
    let limit = [("limit", "streams")];
    eventually("the limit on the page of metrics", || async {
        (proxy.metric("edge_limits_total", &limit).await == 1.0).then_some(())
    })
    .await;
    let line = &proxy.access_log(1).await[0];
    assert_eq!(line["flags"], "OM");
    assert_eq!(line["path"], "/e2e.Test/Chat");
    backend.open("end");
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let end = wire
            .until("the others' ends", Frame::ends_stream)
            .await
            .unwrap();
        ended.push(end.stream);
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 3]);
}

#[tokio::test]
async fn an_endless_header_block_ends_the_connection() {
    let proxy = Proxy::builder().start().await;
    let mut wire = proxy.wire(&[]).await;
    let start = block(&e2e::frames::grpc_request("/a.B/C"));
    wire.send(&[Frame::new(kind::HEADERS, 0, 1, start)])
        .await
        .unwrap();
    for _ in 0..10_000 {
        if wire
            .send(&[Frame::new(kind::CONTINUATION, 0, 1, block(&[("a", "b")]))])
            .await
            .is_err()
        {
            eventually("the limit to be counted", || async {
                let limit = [("limit", "header_block")];
                let counted = proxy.metric("edge_limits_total", &limit).await;
                (counted == 1.0).then_some(())
            })
            .await;
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("10 000 CONTINUATION frames were taken");
}

#[tokio::test]
async fn an_open_header_block_has_a_deadline() {
    let proxy = Proxy::builder()
        .set("listener.timeouts.header_block", "100ms")
        .start()
        .await;
    sooner_than(Duration::from_secs(10), async || {
        let mut wire = proxy.wire(&[]).await;
        // All that is to be answered comes first: in an open block an answer would be against the rules.
        let settings = |frame: &Frame| frame.kind == kind::SETTINGS && frame.flags & flag::ACK == 0;
        wire.until("SETTINGS", settings).await.unwrap();
        let start = block(&e2e::frames::grpc_request("/a.B/C"));
        wire.send(&[Frame::new(kind::HEADERS, 0, 1, start)])
            .await
            .unwrap();
        wire.to_end("the connection's end").await;
    })
    .await;
    let limit = [("limit", "header_block_timeout")];
    assert!(proxy.metric("edge_limits_total", &limit).await >= 1.0);
}

#[tokio::test]
async fn a_handshake_has_a_deadline() {
    let proxy = Proxy::builder()
        .set("listener.timeouts.tls_handshake", "100ms")
        .start()
        .await;
    sooner_than(Duration::from_secs(5), async || {
        let mut silent = TcpStream::connect(proxy.address()).await.unwrap();
        let mut rest = Vec::new();
        // An end of either kind.
        let _ = within(
            "the end of a silent connection",
            silent.read_to_end(&mut rest),
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn the_preface_has_a_deadline_and_after_it_a_client_may_be_silent() {
    let proxy = Proxy::builder()
        .set("listener.timeouts.preface", "300ms")
        .start()
        .await;
    // On a slow machine a preface may come too late.
    let warm = eventually("a client that was in time", async || {
        let connect = client::Http2::connect(proxy.address(), proxy.tls_config(&["h2"]));
        let warm = connect.await.ok()?;
        warm.grpc("/a.B/C", &[]).await.ok()?;
        Some(warm)
    })
    .await;
    sooner_than(Duration::from_secs(10), async || {
        let mut silent = proxy.tls(&["h2"]).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(
            "the end of a silent connection",
            silent.read_to_end(&mut rest),
        )
        .await;
    })
    .await;
    assert_eq!(
        warm.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
        Some(12)
    );
}

#[tokio::test]
async fn an_idle_connection_gets_its_goaway() {
    let proxy = Proxy::builder()
        .set("listener.timeouts.idle", "100ms")
        .start()
        .await;
    let mut wire = proxy.wire(&[]).await;
    let goaway = wire
        .until("a GOAWAY", |frame| frame.kind == kind::GOAWAY)
        .await
        .unwrap();
    assert_eq!(goaway.number(4), Some(code::NO_ERROR));
    wire.to_end("the connection's end").await;
}

#[tokio::test]
async fn an_old_connection_gets_its_goaway_and_running_streams_finish() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.max_connection_age", "300ms")
        .start()
        .await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Upload");
    headers.push(("x-test-gate", "end"));
    wire.send(&[Frame::headers(1, &headers, false)])
        .await
        .unwrap();
    let last = |frame: &Frame| frame.kind == kind::GOAWAY && frame.number(0) == Some(1);
    let goaway = wire.until("the last GOAWAY", last).await.unwrap();
    assert_eq!(goaway.number(4), Some(code::NO_ERROR));
    backend.open("end");
    wire.send(&[Frame::data(1, &framed(b""), true)])
        .await
        .unwrap();
    // A message: what the proxy says itself has none.
    let message = |frame: &Frame| frame.kind == kind::DATA && frame.stream == 1;
    let served = wire.until("the backend's answer", message).await;
    assert!(served.is_some(), "the stream was served");
    let end = wire
        .until("the stream's end", Frame::ends_stream)
        .await
        .unwrap();
    assert_eq!(end.stream, 1);
    wire.to_end("the connection's end").await;
}

#[tokio::test]
async fn the_grace_of_an_old_connection_can_have_an_end() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.max_connection_age", "100ms")
        .set("listener.max_connection_age_grace", "200ms")
        .start()
        .await;
    // On a slow machine a connection may be too old before its RPC is at the backend.
    eventually("an RPC that runs at the grace's end", async || {
        let asked = client::request(
            payload(""),
            &[("x-test-gate", "never"), ("x-test-id", "long")],
        );
        let mut client = proxy.test_client().await;
        let failure = within("the grace's end", client.unary(asked)).await;
        let code = failure.unwrap_err().code();
        assert_eq!(code, tonic::Code::Unavailable);
        (backend.journal.count() > 0).then_some(())
    })
    .await;
    backend.journal.cancelled("long").await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_let_go() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.keepalive.interval", "100ms")
        .set("listener.keepalive.timeout", "200ms")
        .start()
        .await;
    let limit = [("limit", "keepalive_timeout")];
    let let_go = || proxy.metric("edge_limits_total", &limit);
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Upload");
    headers.extend([("x-test-gate", "never"), ("x-test-id", "gone")]);
    // On a slow machine it may be let go before its RPC is at the backend.
    eventually("a client that is let go while its RPC runs", async || {
        let before = let_go().await;
        let start = Instant::now();
        let mut wire = proxy.wire(&[]).await;
        wire.send(&[Frame::headers(1, &headers, false)])
            .await
            .unwrap();
        // It reads nothing, and so answers nothing.
        eventually("its end", || async {
            (let_go().await > before).then_some(())
        })
        .await;
        // 20 s is what it has where nothing is written.
        let is_soon = start.elapsed() < Duration::from_secs(20);
        (backend.journal.count() > 0 && is_soon).then_some(())
    })
    .await;
    backend.journal.cancelled("gone").await;
}

#[tokio::test]
async fn a_client_that_answers_pings_stays() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.keepalive.interval", "50ms")
        .set("listener.keepalive.timeout", "10s")
        .start()
        .await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Upload");
    headers.push(("x-test-gate", "end"));
    wire.send(&[Frame::headers(1, &headers, true)])
        .await
        .unwrap();
    for _ in 0..3 {
        wire.until("a PING", |frame| {
            frame.kind == kind::PING && frame.flags & flag::ACK == 0
        })
        .await
        .unwrap();
    }
    backend.open("end");
    // A message: what the proxy says itself has none.
    let message = |frame: &Frame| frame.kind == kind::DATA && frame.stream == 1;
    let served = wire.until("the backend's answer", message).await;
    assert!(served.is_some(), "the stream was served");
}

#[tokio::test]
async fn a_window_that_stays_shut_ends_its_stream_and_no_other() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.timeouts.stream_window_stall", "200ms")
        .start()
        .await;
    // The connection's window stays open: only the stream is stuck.
    let mut settings = h2::client::Builder::new();
    settings.initial_connection_window_size(1 << 20);
    let client = proxy.http2_with(&settings).await;
    let asked = grpc_request(
        "/e2e.Test/Download",
        &[
            ("x-test-replies", "100"),
            ("x-test-reply-bytes", "100000"),
            ("x-test-id", "shut"),
        ],
    );
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload.send_data(Bytes::from(framed(b"")), true).unwrap();
    let _unread = within("headers", response).await.unwrap();
    backend.journal.cancelled("shut").await;
    assert_eq!(
        client
            .grpc("/e2e.Test/Unary", &[])
            .await
            .unwrap()
            .grpc_status(),
        Some(0)
    );
}

/// A client that opens every window, asks for 200 MB and reads none of it: HTTP/2 lets everything through, and only TCP
/// holds it back.
pub(crate) async fn takes_nothing(proxy: &Proxy, backend: &Backend) -> Wire<TlsStream<TcpStream>> {
    let mut wire = proxy.wire(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Download");
    headers.extend([
        ("x-test-id", "unread"),
        ("x-test-replies", "200"),
        ("x-test-reply-bytes", "1000000"),
    ]);
    wire.send(&[
        Frame::credit(0, 0x7fff_ffff - 65_535),
        Frame::headers(1, &headers, false),
        Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    backend.journal.begun("unread").await;
    wire
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("listener.timeouts.write_stall", "200ms")
        .start()
        .await;
    let mut wire = takes_nothing(&proxy, &backend).await;
    backend.journal.cancelled("unread").await;
    let limit = [("limit", "write_stall")];
    eventually("the limit on the page of metrics", || async {
        (proxy.metric("edge_limits_total", &limit).await > 0.0).then_some(())
    })
    .await;
    let rest = wire.to_end("the connection's end").await;
    assert!(!rest.iter().any(Frame::ends_stream));
}

#[tokio::test]
async fn backends_are_told_larger_windows() {
    let (seen, mut frames) = tokio::sync::mpsc::unbounded_channel();
    let backend = RawBackend::start(move |stream, _| {
        let seen = seen.clone();
        async move {
            let Ok(mut wire) = Wire::server(stream, &[]).await else {
                return;
            };
            while let Some(frame) = wire.until("a frame", |_| true).await {
                // Who doesn't listen any more has seen enough.
                let _ = seen.send(frame);
            }
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request("/e2e.Test/Unary", &[]);
    let (_response, _upload) = client.open(asked, true).await.unwrap();
    let (mut stream_window, mut connection_window) = (65_535, 65_535);
    loop {
        let frame = within("the request", frames.recv()).await.unwrap();
        match frame.kind {
            kind::SETTINGS if frame.flags & flag::ACK == 0 => {
                stream_window = setting(&frame, INITIAL_WINDOW_SIZE).unwrap();
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => {
                connection_window += frame.number(0).unwrap();
            }
            kind::PING => panic!("a PING within the first five minutes"),
            kind::HEADERS => break,
            _ => {}
        }
    }
    assert_eq!(stream_window, 256 * 1024);
    assert_eq!(connection_window, 100 * stream_window);
}

#[tokio::test]
async fn a_backends_headers_above_64_kib_are_a_failure_of_that_rpc_alone() {
    let backend = Scripted::start(async |exchange: Exchange| {
        if exchange.number == 0 {
            let mut response = head(200);
            for number in 0..70 {
                let name = format!("x-large-{number}").parse::<HeaderName>().unwrap();
                let value = HeaderValue::from_str(&"x".repeat(1000)).unwrap();
                response.headers_mut().insert(name, value);
            }
            exchange.reply(response, b"", Some(trailers(0)));
        } else {
            exchange.ok(b"");
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let statuses = [Some(14), Some(0)];
    for status in statuses {
        let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
        assert_eq!(reply.grpc_status(), status);
    }
}
