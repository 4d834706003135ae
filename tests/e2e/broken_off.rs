//! Responses that break off after their headers: whole messages are delivered, and the failure is told in trailers, or by a
//! reset where there is no room for them.

use std::sync::Arc;

use bytes::Bytes;
use e2e::{
    backend::Backend,
    client::{Http2, Reply, get_request, grpc_request},
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed, head},
    wait::{eventually, within},
};
use h2::{Reason, RecvStream};
use http::Response;

#[tokio::test]
async fn a_failure_after_the_headers_is_told_in_trailers() {
    let between = async |exchange: Exchange| {
        exchange
            .reset_after(head(200), &framed(b"whole"), Reason::INTERNAL_ERROR)
            .await;
    };
    let backend = Scripted::start(between).await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Download", &[]).await;
    assert_eq!(reply.body, framed(b"whole"));
    assert_eq!(reply.trailers.as_ref().unwrap()["grpc-status"], "14");
    assert!(!reply.headers_only);
}

/// A download on a connection of its own, each of whose streams has this window, at its headers.
async fn download(proxy: &Proxy, window: u32) -> (Http2, Response<RecvStream>) {
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(window);
    let client = proxy.http2_with(&settings).await;
    let asked = grpc_request("/e2e.Test/Download", &[]);
    let (response, _) = client.open(asked, true).await.unwrap();
    let response = within("headers", response).await.unwrap();
    (client, response)
}

/// Reads so many bytes, and gives no window back.
async fn take(response: &mut Response<RecvStream>, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        let chunk = within("a window's worth", response.body_mut().data()).await;
        read += chunk.unwrap().unwrap().len();
    }
}

/// A client that has let 105 bytes of a response in: one message of 100. The backend sends that, and half of the next.
async fn between_two_messages() -> (Proxy, Http2, Response<RecvStream>, Scripted) {
    let mut half = framed(&[b'2'; 100]);
    half.truncate(50);
    let backend = Scripted::start(move |exchange: Exchange| {
        let body = [framed(&[b'1'; 100]), half.clone()].concat();
        async move {
            exchange
                .reset_after(head(200), &body, Reason::INTERNAL_ERROR)
                .await
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let (client, response) = download(&proxy, 105).await;
    (proxy, client, response, backend)
}

#[tokio::test]
async fn after_a_failure_only_whole_messages_are_delivered() {
    let (proxy, _client, response, _backend) = between_two_messages().await;
    // Not before the proxy knows: until then it passes on what comes.
    eventually("the backend's failure", || async {
        let failed = [("cluster", "test"), ("result", "reset")];
        (proxy.metric("edge_attempts_total", &failed).await > 0.0).then_some(())
    })
    .await;
    let reply = Reply::read(response).await.unwrap();
    assert_eq!(reply.body, framed(&[b'1'; 100]), "no half of the second");
    assert_eq!(reply.grpc_status(), Some(14));
}

#[tokio::test]
async fn a_failure_between_two_messages_is_told_whatever_the_window() {
    let (_proxy, _client, mut response, _backend) = between_two_messages().await;
    // 105 bytes arrive, and are never given back.
    take(&mut response, 105).await;
    // Trailers need no window, and half a message that hasn't begun to leave doesn't stand before them.
    let end = within("an end", response.body_mut().data()).await;
    assert!(end.is_none(), "{end:?}");
    let trailers = response.body_mut().trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
}

/// A client that has let a message of a response in and a little of the next, of which the backend had sent half when it
/// failed: what has been framed of it can't be taken back.
async fn within_a_message() -> (Proxy, Http2, Response<RecvStream>, Scripted) {
    let fail = Arc::new(tokio::sync::Notify::new());
    let told = fail.clone();
    let backend = Scripted::start(move |exchange: Exchange| {
        let mut body = [framed(&[b'1'; 100]), framed(&[b'2'; 100])].concat();
        body.truncate(155);
        let told = told.clone();
        async move {
            let mut stream = exchange.hold(head(200), &body).unwrap();
            told.notified().await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let (client, mut response) = download(&proxy, 120).await;
    take(&mut response, 120).await;
    fail.notify_one();
    eventually("the backend's failure", || async {
        let failed = [("cause", "upstream_reset")];
        (proxy.metric("edge_stream_resets_total", &failed).await > 0.0).then_some(())
    })
    .await;
    (proxy, client, response, backend)
}

#[tokio::test]
async fn a_failure_that_can_not_be_told_is_a_reset() {
    let (_proxy, client, mut response, _backend) = within_a_message().await;
    // The window stays shut: for 5 s, and then the end can't be a good one.
    let end = within("a reset", response.body_mut().data()).await;
    let reset = end.expect("a reset").unwrap_err();
    assert!(reset.is_reset(), "{reset}");
    assert_eq!(reset.reason(), Some(Reason::CANCEL));
    assert!(!client.ended(), "the stream's own end");
}

#[tokio::test]
async fn the_rest_of_a_message_that_has_begun_goes_out_before_the_trailers() {
    let (_proxy, _client, mut response, _backend) = within_a_message().await;
    let flow = response.body_mut().flow_control();
    flow.release_capacity(120).unwrap();
    let rest = Reply::read(response).await.unwrap();
    assert_eq!(rest.body, [b'2'; 35]);
    assert_eq!(rest.trailers.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn a_plain_answer_that_can_not_be_completed_is_a_reset() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let html = Response::new(());
        exchange
            .reset_after(html, b"half a page", Reason::INTERNAL_ERROR)
            .await;
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = get_request("/e2e.Test/Plain", &[]);
    let (response, _) = client.open(asked, true).await.unwrap();
    let reset = match within("a head", response).await {
        Ok(response) => Reply::read(response).await.unwrap_err(),
        Err(reset) => reset,
    };
    assert_eq!(reset.reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn a_backend_that_dies_after_its_headers_is_told_in_trailers() {
    let mut backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request(
        "/e2e.Test/Download",
        &[("x-test-replies", "2"), ("x-test-late-gate", "never")],
    );
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload.send_data(Bytes::from(framed(b"")), true).unwrap();
    let mut response = within("headers", response).await.unwrap();
    within("a first message", response.body_mut().data())
        .await
        .unwrap()
        .unwrap();
    backend.kill();
    let reply = Reply::read(response).await.unwrap();
    assert_eq!(reply.trailers.unwrap()["grpc-status"], "14");
}

#[tokio::test]
async fn a_deadline_after_the_headers_is_told_in_trailers() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let _stream = exchange.hold(head(200), &framed(b"begun"));
        std::future::pending::<()>().await;
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request("/e2e.Test/Download", &[("grpc-timeout", "1S")]);
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload.send_data(Bytes::from(framed(b"")), true).unwrap();
    let reply = Reply::read(within("headers", response).await.unwrap())
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(4));
    assert_eq!(reply.trailers.is_none(), reply.body.is_empty());
}

#[tokio::test]
async fn after_a_failure_a_window_that_stays_shut_for_5_s_is_a_reset() {
    let backend = Scripted::start(async |exchange: Exchange| {
        let body = [framed(&[b'1'; 100]), framed(&[b'2'; 100])].concat();
        exchange
            .reset_after(head(200), &body, Reason::INTERNAL_ERROR)
            .await
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    // Room for one of the two messages, and never for the other, which is whole and so isn't dropped.
    let (client, mut response) = download(&proxy, 105).await;
    let mut read = 0;
    let end = loop {
        match within("a reset", response.body_mut().data()).await {
            Some(Ok(chunk)) => read += chunk.len(),
            Some(Err(error)) => break error,
            None => panic!("{read} bytes, then a good end"),
        }
    };
    assert_eq!((read, end.is_reset()), (105, true), "{end}");
    assert!(!client.ended(), "the stream's own end");
}
