use std::time::{Duration, Instant};

use e2e::{
    backend::Backend,
    client::request,
    frames::{Frame, code, kind},
    payload,
    proxy::Proxy,
    scripted::framed,
    wait::{eventually, within},
};
use edge_proxy::app::Outcome;
use tonic::Code;

use crate::{
    limits,
    overload::{Memory, at_level},
};

#[tokio::test]
async fn running_rpcs_finish_and_then_it_ends() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.test_client().await;
    let running = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .unary(request(
                    payload("kept"),
                    &[("x-test-id", "r"), ("x-test-gate", "end")],
                ))
                .await
        }
    });
    backend.journal.begun("r").await;
    proxy.drain();
    // The listener closes, and the RPC still runs.
    eventually("the listener to close", || async {
        tokio::net::TcpStream::connect(proxy.address())
            .await
            .is_err()
            .then_some(())
    })
    .await;
    if running.is_finished() {
        panic!("{:?}", running.await)
    }
    eventually("it to be unready", || async {
        (proxy.probe("/readyz").await?.status() == 503).then_some(())
    })
    .await;
    // Nor does an operator's word open it again.
    assert_eq!(proxy.admin_post("/healthcheck/ok").await.status(), 200);
    let told = proxy.probe("/readyz").await.unwrap();
    assert_eq!(
        (told.status().as_u16(), told.body().as_str()),
        (503, "the listener is closed: told to drain\n")
    );
    assert_eq!(state(&proxy).await, "closing");
    assert_eq!(proxy.metric("edge_ready", &[]).await, 0.0);
    backend.open("end");
    let reply = within("the RPC", running).await.unwrap().unwrap();
    assert_eq!(reply.into_inner().data, "kept");
    drop(client);
    assert_eq!(proxy.ended().await, Outcome::Drained);
}

#[tokio::test]
async fn every_connection_gets_its_goaway_idle_ones_too() {
    let proxy = Proxy::builder().start().await;
    let mut idle = proxy.wire(&[]).await;
    let mut used = proxy.wire(&[]).await;
    used.send(&[Frame::headers(
        1,
        &e2e::frames::grpc_request("/a.B/C"),
        true,
    )])
    .await
    .unwrap();
    used.until("an answer", Frame::ends_stream).await.unwrap();
    proxy.drain();
    for wire in [&mut idle, &mut used] {
        let goaway = wire
            .until("a GOAWAY", |frame| frame.kind == kind::GOAWAY)
            .await
            .unwrap();
        assert_eq!(goaway.number(4), Some(code::NO_ERROR));
        wire.to_end("the connection's end").await;
    }
    proxy.ended().await;
}

#[tokio::test]
async fn streams_opened_before_the_client_saw_the_goaway_are_served() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Unary");
    wire.send(&[
        Frame::headers(1, &headers, false),
        Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    wire.until("an answer", Frame::ends_stream).await.unwrap();
    headers.push(("x-test-id", "after"));
    proxy.drain();
    // Read up to the first GOAWAY, and answer nothing that came after it: as if it were still on its way.
    loop {
        let frame = within("a GOAWAY", wire.next()).await.unwrap();
        if frame.kind == kind::GOAWAY {
            break;
        }
    }
    wire.send(&[
        Frame::headers(3, &headers, false),
        Frame::data(3, &framed(b""), true),
    ])
    .await
    .unwrap();
    // A message: what the proxy says itself has none.
    let message = |frame: &Frame| frame.kind == kind::DATA && frame.stream == 3;
    let served = wire.until("a message", message).await;
    assert!(served.is_some(), "the stream was served");
    let end = |frame: &Frame| frame.ends_stream() && frame.stream == 3;
    assert!(wire.until("the answer's end", end).await.is_some());
    assert_eq!(backend.journal.executions("after"), 1);
}

#[tokio::test]
async fn it_is_ready_while_it_listens_and_serves_whom_the_load_balancer_still_sends() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("drain.time", "1h").start().await;
    let keeper = proxy.test_client().await;
    let running = tokio::spawn({
        let mut keeper = keeper.clone();
        async move {
            keeper
                .unary(request(
                    payload(""),
                    &[("x-test-id", "r"), ("x-test-gate", "end")],
                ))
                .await
        }
    });
    backend.journal.begun("r").await;
    proxy.drain();
    becomes(&proxy, "draining").await;
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 200);
    let mut late = proxy.test_client().await;
    late.unary(payload("late")).await.unwrap();
    // Nobody comes for longer than the second after which it may close when nothing is open; but something is. The clock
    // is the backend's, behind a connection that was there before.
    let asked = request(payload(""), &[("x-test-interval", "2500")]);
    let mut replies = keeper.clone().download(asked).await.unwrap().into_inner();
    while within("a reply", replies.message())
        .await
        .unwrap()
        .is_some()
    {}
    // It would keep its connection open.
    drop(replies);
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 200);
    let mut later = proxy.test_client().await;
    later.unary(payload("later")).await.unwrap();
    backend.open("end");
    within("the RPC", running).await.unwrap().unwrap();
    drop((keeper, late, later));
    proxy.ended().await;
}

/// Connections that come while it drains and is so short of memory that it closes each at once: `true` if the listener took
/// all of them; `None` if two were so far apart that it may have been closed in between.
async fn accepts_while_some_arrive(proxy: &Proxy) -> Option<bool> {
    let refused = [("result", "refused")];
    let start = Instant::now();
    let mut before = start;
    proxy.drain();
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    let mut count = 0.0;
    while start.elapsed() < Duration::from_secs(4) {
        pace.tick().await;
        let begun = Instant::now();
        let connected = tokio::net::TcpStream::connect(proxy.address()).await;
        let is_accepted = connected.is_ok();
        drop(connected);
        if is_accepted {
            // Counted when it has arrived, which wasn't before it was begun.
            count += 1.0;
            eventually("the connection to be counted", || async {
                let seen = proxy.metric("edge_tls_handshakes_total", &refused).await;
                (seen >= count).then_some(())
            })
            .await;
        }
        if before.elapsed() >= Duration::from_secs(1) {
            return None;
        }
        if !is_accepted {
            return Some(false);
        }
        before = begun;
    }
    Some(true)
}

/// What `/server_info` says.
async fn state(proxy: &Proxy) -> String {
    let info = proxy.admin_json("/server_info").await;
    info["state"].as_str().unwrap().to_owned()
}

/// It says `wanted`, sooner or later, and the metric that a drain has begun.
async fn becomes(proxy: &Proxy, wanted: &str) {
    eventually(wanted, || async {
        (state(proxy).await == wanted).then_some(())
    })
    .await;
    assert_eq!(proxy.metric("edge_draining", &[]).await, 1.0, "{wanted}");
}

#[tokio::test]
async fn how_far_it_is_can_be_seen() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    assert_eq!(state(&proxy).await, "serving");
    assert_eq!(proxy.metric("edge_draining", &[]).await, 0.0);
    let mut client = proxy.test_client().await;
    let running = tokio::spawn(async move {
        let asked = request(payload(""), &[("x-test-id", "r"), ("x-test-gate", "end")]);
        client.unary(asked).await
    });
    backend.journal.begun("r").await;
    assert_eq!(proxy.admin_post("/drain_listeners").await.status(), 200);
    becomes(&proxy, "closing").await;
    backend.open("end");
    within("the RPC", running).await.unwrap().unwrap();
    becomes(&proxy, "drained").await;
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 503);
}

#[tokio::test]
async fn it_listens_while_some_still_arrive() {
    let memory = Memory::new();
    memory.used(99);
    let accepts = eventually("connections that come often enough", || async {
        let proxy = Proxy::builder()
            .memory_in(memory.0.path())
            .set("drain.time", "1h")
            .start()
            .await;
        at_level(&proxy, 4.0).await;
        accepts_while_some_arrive(&proxy).await
    })
    .await;
    assert!(accepts, "nobody was let in a second after the last one");
}

#[tokio::test]
async fn a_connection_accepted_meanwhile_gets_its_goaway_with_its_first_rpc() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("drain.time", "1h").start().await;
    let keeper = proxy.test_client().await;
    let running = tokio::spawn({
        let mut keeper = keeper.clone();
        let asked = request(payload(""), &[("x-test-id", "r"), ("x-test-gate", "end")]);
        async move { keeper.unary(asked).await }
    });
    backend.journal.begun("r").await;
    proxy.drain();
    let headers = e2e::frames::grpc_request("/e2e.Test/Unary");
    // The first ones may still come before the drain begins: they have an hour.
    eventually("a connection to be told with its first RPC", || async {
        let mut wire = proxy.wire(&[]).await;
        wire.send(&[
            Frame::headers(1, &headers, false),
            Frame::data(1, &framed(b""), true),
        ])
        .await
        .ok()?;
        let frames = tokio::time::timeout(Duration::from_secs(2), wire.to_end("its end"));
        let frames = frames.await.ok()?;
        // A message: what the proxy says itself has none.
        let served = |frame: &Frame| frame.stream == 1 && frame.kind == kind::DATA;
        assert!(frames.iter().any(served), "the RPC was served");
        frames
            .iter()
            .any(|frame| frame.kind == kind::GOAWAY && frame.number(4) == Some(code::NO_ERROR))
            .then_some(())
    })
    .await;
    backend.open("end");
    within("the RPC", running).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_has_not_finished_at_the_deadline_is_told() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("drain.deadline", "500ms")
        .start()
        .await;
    let mut client = proxy.test_client().await;
    let asked = request(
        payload(""),
        &[
            ("x-test-replies", "2"),
            ("x-test-late-gate", "never"),
            ("x-test-id", "s"),
        ],
    );
    let mut replies = client.download(asked).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    proxy.drain();
    let failure = within("the deadline", replies.message()).await.unwrap_err();
    assert_eq!(failure.code(), Code::Unavailable);
    backend.journal.cancelled("s").await;
    assert_eq!(proxy.ended().await, Outcome::Drained);
}

#[tokio::test]
async fn without_clients_it_ends_soon() {
    let proxy = Proxy::builder().set("drain.time", "1h").start().await;
    let start = Instant::now();
    proxy.drain();
    // Nobody waits for the end of `drain.time`.
    assert_eq!(proxy.ended().await, Outcome::Drained);
    // A load balancer that learns late has a second to send somebody.
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

/// Whether the client made it up itself, for want of a connection; the proxy's words may be alike.
fn is_no_connection(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return status.code() == Code::Unavailable;
        }
        cause = error.source();
    }
    false
}

#[tokio::test]
async fn under_load_not_one_rpc_fails() {
    let backend = Backend::start().await;
    let (first, second) = (
        Proxy::to([&backend]).start().await,
        Proxy::to([&backend]).start().await,
    );
    // A client as real ones are: it connects anew, to the proxy that is left, when it is told to go.
    let mut client = first.test_client().await;
    let mut other = second.test_client().await;
    let mut served = 0;
    first.drain();
    let ended = tokio::spawn(first.ended());
    while !ended.is_finished() {
        match client.unary(payload("")).await {
            Ok(_) => served += 1,
            Err(status) => {
                // It could not connect again: nothing of the RPC has left.
                assert!(is_no_connection(&status), "{status:?}");
                other.unary(payload("")).await.unwrap();
            }
        }
    }
    assert!(served > 0);
}

#[tokio::test]
async fn killed_it_ends_at_once() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.test_client().await;
    let running = tokio::spawn({
        let mut client = client.clone();
        async move {
            client
                .unary(request(
                    payload(""),
                    &[("x-test-id", "k"), ("x-test-gate", "never")],
                ))
                .await
        }
    });
    backend.journal.begun("k").await;
    proxy.drain();
    proxy.kill();
    assert_eq!(proxy.ended().await, Outcome::Killed);
    assert!(within("the RPC", running).await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_answers_the_ping_is_told_its_last_stream_then() {
    let backend = Backend::start().await;
    let mut took = Duration::MAX;
    // On a machine that is busy elsewhere one of them may take long.
    for id in ["a", "b", "c", "d", "e"] {
        let proxy = Proxy::to([&backend]).start().await;
        let mut wire = proxy.wire(&[]).await;
        let mut headers = e2e::frames::grpc_request("/e2e.Test/Unary");
        headers.extend([("x-test-gate", "end"), ("x-test-id", id)]);
        wire.send(&[
            Frame::headers(1, &headers, false),
            Frame::data(1, &framed(b""), true),
        ])
        .await
        .unwrap();
        let goaway = |frame: &Frame| frame.kind == kind::GOAWAY;
        // The request is there before the drain begins: its stream is the last one.
        backend.journal.begun(id).await;
        proxy.drain();
        let notice = wire.until("a GOAWAY", goaway).await.unwrap();
        assert_eq!(notice.number(0), Some(0x7fff_ffff));
        let told = Instant::now();
        let last = wire.until("the last GOAWAY", goaway).await.unwrap();
        assert_eq!(last.number(0), Some(1));
        took = took.min(told.elapsed());
        if took < Duration::from_secs(2) {
            break;
        }
    }
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_client_that_does_not_answer_the_ping_is_told_its_last_stream_after_2_s() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Unary");
    headers.extend([("x-test-gate", "end"), ("x-test-id", "running")]);
    wire.send(&[
        Frame::headers(1, &headers, false),
        Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    backend.journal.begun("running").await;
    let start = Instant::now();
    proxy.drain();
    let mut last_streams = Vec::new();
    while last_streams.len() < 2 {
        // `next` answers nothing.
        let frame = within("a GOAWAY", wire.next()).await.unwrap();
        if frame.kind == kind::GOAWAY {
            last_streams.push(frame.number(0));
        }
    }
    assert_eq!(last_streams, [Some(0x7fff_ffff), Some(1)]);
    assert!(start.elapsed() >= Duration::from_secs(2));
    backend.open("end");
    let end = wire
        .until("the stream's end", Frame::ends_stream)
        .await
        .unwrap();
    assert_eq!(end.stream, 1);
    proxy.ended().await;
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_by_write_stall_during_a_drain_too() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("drain.deadline", "1h")
        .set("listener.timeouts.write_stall", "2s")
        .start()
        .await;
    let _unread = limits::takes_nothing(&proxy, &backend).await;
    proxy.drain();
    assert_eq!(proxy.ended().await, Outcome::Drained);
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_by_the_drains_deadline() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("drain.deadline", "1s")
        .set("listener.timeouts.write_stall", "1h")
        .start()
        .await;
    let _unread = limits::takes_nothing(&proxy, &backend).await;
    proxy.drain();
    assert_eq!(proxy.ended().await, Outcome::Drained);
}
