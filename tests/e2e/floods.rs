use e2e::{
    backend::Backend,
    frames::{Frame, Wire, code, grpc_request, kind},
    payload,
    proxy::Proxy,
    scripted::framed,
    wait::{eventually, within},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Sends `frames` again and again until the connection is ended for it, and for nothing else.
async fn ends<S: AsyncRead + AsyncWrite + Unpin>(
    proxy: &Proxy,
    wire: &mut Wire<S>,
    mut frames: impl FnMut(u32) -> Vec<Frame>,
) {
    for round in 0..20_000 {
        if wire.send(&frames(round)).await.is_err() {
            break;
        }
    }
    // The socket may have been closed with our bytes unread, and then even a GOAWAY can be lost: the proxy's own count is
    // what is certain.
    within("the connection's end", async {
        while let Some(frame) = wire.next().await {
            if frame.kind == kind::GOAWAY {
                assert_eq!(frame.number(4), Some(code::ENHANCE_YOUR_CALM));
            }
        }
    })
    .await;
    let flood = [("cause", "flood")];
    eventually("the flood is counted", || async {
        let count = proxy.metric("edge_stream_resets_total", &flood).await;
        (count == 1.0).then_some(())
    })
    .await;
}

async fn acted(proxy: &Proxy, limit: &str) {
    let labels = [("limit", limit)];
    eventually("the limit is counted", || async {
        let count = proxy.metric("edge_limits_total", &labels).await;
        (count == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rapid_resets() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut innocent = proxy.test_client().await;
    let mut wire = proxy.wire(&[]).await;
    ends(&proxy, &mut wire, |round| {
        let stream = 2 * round + 1;
        vec![
            Frame::headers(stream, &grpc_request("/e2e.Test/Chat"), false),
            Frame::reset(stream, code::CANCEL),
        ]
    })
    .await;
    within("another client's answer", innocent.unary(payload("")))
        .await
        .unwrap();
    assert_eq!(backend.journal.read().connections_ended, 0);
    acted(&proxy, "reset_flood").await;
}

#[tokio::test]
async fn pings() {
    let proxy = Proxy::builder().start().await;
    let mut wire = proxy.wire(&[]).await;
    ends(&proxy, &mut wire, |_| {
        vec![Frame::new(kind::PING, 0, 0, *b"12345678"); 10]
    })
    .await;
}

#[tokio::test]
async fn settings() {
    let proxy = Proxy::builder().start().await;
    let mut wire = proxy.wire(&[]).await;
    ends(&proxy, &mut wire, |_| vec![Frame::settings(&[]); 10]).await;
}

#[tokio::test]
async fn empty_data() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    wire.send(&[Frame::headers(1, &grpc_request("/e2e.Test/Upload"), false)])
        .await
        .unwrap();
    ends(&proxy, &mut wire, |_| vec![Frame::data(1, b"", false); 10]).await;
}

#[tokio::test]
async fn honest_load_is_no_flood() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    let headers = grpc_request("/e2e.Test/Unary");
    for round in 0..2000 {
        let stream = 2 * round + 1;
        wire.send(&[
            Frame::headers(stream, &headers, false),
            Frame::data(stream, &framed(b""), true),
            Frame::new(kind::PING, 0, 0, *b"12345678"),
            Frame::credit(0, 100),
        ])
        .await
        .unwrap();
        let end = wire
            .until("an answer", |frame| {
                frame.ends_stream() || frame.kind == kind::GOAWAY
            })
            .await;
        assert_eq!(end.unwrap().stream, stream);
    }
}
