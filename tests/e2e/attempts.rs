use std::time::Instant;

use e2e::{
    backend::Backend,
    client::{grpc_request, request},
    frames::{Frame, RawBackend, Wire, code, flag, kind},
    loopback, payload,
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed, head},
    wait::{eventually, within},
};
use h2::Reason;
use tonic::Code;

const TERMINATED: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
const RESET: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: remote reset";

#[tokio::test]
async fn a_refused_connection_is_tried_on_another_endpoint_for_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::to(&[loopback::refused().unwrap(), backend.address()])
        .start()
        .await;
    let mut client = proxy.test_client().await;
    // Half of them meet the dead endpoint first: more than the budget for attempts that cost something would pay for.
    for _ in 0..600 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(backend.journal.count(), 600);
}

#[tokio::test]
async fn a_refused_stream_is_tried_on_another_endpoint() {
    let refuses =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let backend = Backend::start().await;
    let proxy = Proxy::to(&[refuses.address(), backend.address()])
        .start()
        .await;
    let mut client = proxy.test_client().await;
    for number in 0..6 {
        let id = number.to_string();
        client
            .unary(request(payload("again"), &[("x-test-id", &id)]))
            .await
            .unwrap();
        assert_eq!(backend.journal.executions(&id), 1);
    }
    assert_eq!(refuses.journal.count(), 3);
}

#[tokio::test]
async fn a_refused_stream_is_tried_on_a_new_connection_when_there_is_no_other_endpoint() {
    let backend = Scripted::start(async |mut exchange: Exchange| {
        if exchange.connection == 0 {
            exchange.reset(Reason::REFUSED_STREAM);
        } else {
            let body = exchange.body().await;
            exchange.ok(&body.unwrap_or_default());
        }
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(reply.grpc_status(), Some(0));
    // The whole request came again: five bytes of an empty message.
    assert_eq!(reply.body, framed(&framed(b"")));
    assert_eq!(backend.journal.count(), 2);
    assert_eq!(backend.journal.read().connections, 2);
}

#[tokio::test]
async fn at_most_twice_more() {
    let backend =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(
        (reply.grpc_status(), reply.grpc_message()),
        (Some(14), Some(RESET))
    );
    assert_eq!(backend.journal.count(), 3);
}

#[tokio::test]
async fn refused_streams_draw_on_a_budget() {
    let backend =
        Scripted::start(async |exchange: Exchange| exchange.reset(Reason::REFUSED_STREAM)).await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let start = Instant::now();
    for _ in 0..300 {
        let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(14));
    }
    let allowed = 300.0 * 1.2 + 3.0 * start.elapsed().as_secs_f64() + 100.0;
    let attempts = backend.journal.count();
    // All that was there at the start, and what the RPCs themselves earn, but for a rest below one.
    assert!(attempts >= 300 + 100 + 59, "{attempts} attempts");
    assert!(
        (attempts as f64) < allowed,
        "{attempts} attempts of 300 RPCs"
    );
}

#[tokio::test]
async fn a_stream_above_the_last_one_of_a_goaway_is_tried_again() {
    let leaving = RawBackend::start(async |stream, _| {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        let asked = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await;
        if asked.is_some() {
            let _ = wire.send(&[Frame::goaway(0, code::NO_ERROR)]).await;
        }
        wire.to_end("the proxy to let go").await;
    })
    .await;
    let backend = Backend::start().await;
    let proxy = Proxy::to(&[leaving.address(), backend.address()])
        .start()
        .await;
    let mut client = proxy.test_client().await;
    for _ in 0..6 {
        within("an answer", client.unary(payload("")))
            .await
            .unwrap();
    }
    assert_eq!(backend.journal.count(), 6);
}

#[tokio::test]
async fn streams_up_to_the_last_one_of_a_goaway_finish() {
    let backend = RawBackend::start(async |stream, number| {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        let Some(asked) = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await
        else {
            return;
        };
        let response = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("x-connection", &number.to_string()),
        ];
        let frames = [
            Frame::goaway(asked.stream, code::NO_ERROR),
            Frame::headers(asked.stream, &response, false),
            Frame::headers(asked.stream, &[("grpc-status", "0")], true),
        ];
        let _ = wire.send(&frames).await;
        wire.to_end("the proxy to let go").await;
    })
    .await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    for number in ["0", "1", "2"] {
        let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
        assert_eq!(
            reply.header("x-connection"),
            number,
            "no new stream after a GOAWAY"
        );
    }
}

#[tokio::test]
async fn what_a_backend_may_have_processed_is_never_repeated() {
    for reason in [
        Reason::INTERNAL_ERROR,
        Reason::CANCEL,
        Reason::ENHANCE_YOUR_CALM,
        Reason::PROTOCOL_ERROR,
    ] {
        let backend =
            Scripted::start(move |exchange: Exchange| async move { exchange.reset(reason) }).await;
        let other =
            Scripted::start(move |exchange: Exchange| async move { exchange.reset(reason) }).await;
        let proxy = Proxy::to(&[backend.address(), other.address()])
            .start()
            .await;
        let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
        assert_eq!(
            (reply.grpc_status(), reply.grpc_message()),
            (Some(14), Some(RESET)),
            "{reason:?}"
        );
        assert_eq!(
            backend.journal.count() + other.journal.count(),
            1,
            "{reason:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_ends_after_the_request_left_is_never_repeated() {
    let script = async |exchange: Exchange| exchange.drop_connection();
    let (backend, other) = (Scripted::start(script).await, Scripted::start(script).await);
    let proxy = Proxy::to(&[backend.address(), other.address()])
        .start()
        .await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(
        (reply.grpc_status(), reply.grpc_message()),
        (Some(14), Some(TERMINATED))
    );
    assert_eq!(backend.journal.count() + other.journal.count(), 1);
}

#[tokio::test]
async fn a_body_is_kept_up_to_64_kib() {
    for (length, attempts, status) in [(64 * 1024, 2, 0), (64 * 1024 + 1, 1, 14)] {
        let backend = Scripted::start(async |mut exchange: Exchange| {
            let body = exchange.body().await.unwrap_or_default();
            if exchange.number == 0 {
                exchange.reset(Reason::REFUSED_STREAM);
            } else {
                exchange.ok(&body.len().to_be_bytes());
            }
        })
        .await;
        let proxy = Proxy::to([&backend]).start().await;
        let client = proxy.http2().await;
        let body = framed(&vec![b'x'; length - 5]);
        let reply = client
            .call(grpc_request("/e2e.Test/Upload", &[]), &body)
            .await
            .unwrap();
        assert_eq!(reply.grpc_status(), Some(status), "{length}");
        assert_eq!(backend.journal.count(), attempts, "{length}");
        if status == 0 {
            assert_eq!(reply.body, framed(&length.to_be_bytes()));
        }
    }
}

#[tokio::test]
async fn a_request_too_long_to_keep_is_not_repeated() {
    let backend = Scripted::start(async |mut exchange: Exchange| {
        let mut read = 0;
        while read < 100_000 {
            let Some(Ok(chunk)) = exchange.request.body_mut().data().await else {
                break;
            };
            read += chunk.len();
            let _ = exchange
                .request
                .body_mut()
                .flow_control()
                .release_capacity(chunk.len());
        }
        exchange.reset(Reason::REFUSED_STREAM);
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let body = framed(&vec![b'x'; 200_000]);
    let reply = client
        .call(grpc_request("/e2e.Test/Upload", &[]), &body)
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(14));
    assert_eq!(backend.journal.count(), 1);
}

#[tokio::test]
async fn nothing_is_repeated_once_the_response_has_begun() {
    let backend = Scripted::start(async |exchange: Exchange| {
        exchange
            .reset_after(head(200), b"", Reason::REFUSED_STREAM)
            .await;
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(reply.grpc_status(), Some(14));
    assert_eq!(backend.journal.count(), 1);
}

#[tokio::test]
async fn the_death_of_a_backend_costs_only_what_it_was_running() {
    let mut backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends).start().await;
    let mut client = proxy.test_client().await;
    let mut running = Vec::new();
    for number in 0..10 {
        let id = format!("running-{number}");
        let asked = request(payload(""), &[("x-test-id", &id), ("x-test-gate", "end")]);
        let mut client = client.clone();
        running.push(tokio::spawn(async move { client.unary(asked).await }));
    }
    for backend in &backends {
        backend
            .journal
            .wait("five RPCs", |all| (all.requests.len() == 5).then_some(()))
            .await;
    }
    backends[0].kill();
    // The proxy has noticed when the five are told.
    eventually("five RPCs to end", || async {
        (running.iter().filter(|rpc| rpc.is_finished()).count() == 5).then_some(())
    })
    .await;
    for _ in 0..200 {
        client.unary(payload("")).await.unwrap();
    }
    backends[1].open("end");
    let mut failed = 0;
    for rpc in running {
        if let Err(status) = within("an RPC's end", rpc).await.unwrap() {
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unavailable, TERMINATED)
            );
            failed += 1;
        }
    }
    assert_eq!(failed, 5);
}

#[tokio::test]
async fn a_graceful_end_of_a_backend_costs_nothing() {
    let mut backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends).start().await;
    let client = proxy.test_client().await;
    let load: Vec<_> = (0..4)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    client.unary(payload("load")).await?;
                }
                Ok::<_, tonic::Status>(())
            })
        })
        .collect();
    backends[0]
        .journal
        .wait("some load", |all| (all.requests.len() > 50).then_some(()))
        .await;
    backends[0].stop();
    for task in load {
        within("the load's end", task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_backends_settings_are_awaited_before_the_first_stream() {
    // Ten streams at once, of which the backend wants two: none may be sent that it would have to refuse.
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(2);
    let backend = Scripted::start_with(settings, async |mut exchange: Exchange| {
        exchange.body().await;
        exchange.ok(b"");
    })
    .await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc("/e2e.Test/Unary", &[]).await })
        })
        .collect();
    for call in calls {
        let reply = within("an answer", call).await.unwrap().unwrap();
        assert_eq!(reply.grpc_status(), Some(0));
    }
    assert_eq!(backend.journal.count(), 10, "none was refused");
}

#[tokio::test]
async fn a_ping_is_answered() {
    let backend = RawBackend::start(async |stream, _| {
        let Ok(mut wire) = Wire::server(stream, &[]).await else {
            return;
        };
        let Some(asked) = wire
            .until("a request", |frame| frame.kind == kind::HEADERS)
            .await
        else {
            return;
        };
        let _ = wire
            .send(&[Frame::new(kind::PING, 0, 0, *b"edgeedge")])
            .await;
        let answer = |frame: &Frame| frame.kind == kind::PING && frame.flags & flag::ACK != 0;
        let Some(ping) = wire.until("the PING's answer", answer).await else {
            return;
        };
        if ping.payload == b"edgeedge" {
            let response = [
                (":status", "200"),
                ("content-type", "application/grpc"),
                ("grpc-status", "0"),
            ];
            let _ = wire
                .send(&[Frame::headers(asked.stream, &response, true)])
                .await;
        }
        wire.to_end("the proxy to let go").await;
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(reply.grpc_status(), Some(0));
}
