//! A server over real sockets: the `hostname` header, health, reflection, deadlines, panics,
//! windows, the log, and every way to end.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

mod support;

use std::{io::ErrorKind, time::Duration};

use bytes::Bytes;
use grpc_service::{Drain, LIVENESS, Server, StartError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use self::support::{
    Answer, Log, Probe, Running, ask, builder, field, within, within_on_paused_clock,
};

#[tokio::test]
async fn every_response_names_the_replica() {
    let server = Running::start(Drain::default()).await;
    let mut client = server.client().await;
    for (path, status) in [
        ("/test.Probe/Read", Code::Ok),
        ("/test.Probe/Hold", Code::DeadlineExceeded),
        ("/test.Probe/Stall", Code::DeadlineExceeded),
        ("/test.Probe/Panic", Code::Internal),
        ("/test.Probe/PanicLater", Code::Internal),
        ("/test.Probe/Nothing", Code::Unimplemented),
        ("/test.Nobody/Read", Code::Unimplemented),
        ("/", Code::Unimplemented),
        ("/grpc.health.v1.Health/Check", Code::Ok),
        ("/grpc.health.v1.Health/Nothing", Code::Unimplemented),
    ] {
        // Only what never answers needs one; the others may take their time.
        let timeout = (status == Code::DeadlineExceeded).then_some("100m");
        let answer = client.call(path, timeout).await;
        assert_eq!(answer.hostname(), "replica-1", "{path}");
        assert_eq!(answer.status(), status, "{path}");
    }
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        assert_eq!(
            client.call(&path, None).await.hostname(),
            "replica-1",
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_deadline_ends_the_rpc_and_not_its_connection() {
    let server = Running::start(Drain::default()).await;
    let mut client = server.client().await;
    // Before the response's headers, and after them.
    for path in ["/test.Probe/Stall", "/test.Probe/Hold"] {
        let answer = client.call(path, Some("20m")).await;
        assert_eq!(answer.status(), Code::DeadlineExceeded, "{path}");
    }
    // What is malformed is ignored.
    assert_eq!(
        client.call("/test.Probe/Read", Some("soon")).await.status(),
        Code::Ok
    );
}

#[tokio::test]
async fn a_panic_ends_its_own_rpc_only() {
    let server = Running::start(Drain::default()).await;
    let mut client = server.client().await;
    let (held, _upload) = client.start("/test.Probe/Hold", None).await;
    let held = within(held).await.unwrap();
    for path in ["/test.Probe/Panic", "/test.Probe/PanicLater"] {
        assert_eq!(
            client.call(path, None).await.status(),
            Code::Internal,
            "{path}"
        );
    }
    server.release.cancel();
    assert_eq!(Answer::read(held).await.status(), Code::Ok);
}

#[tokio::test]
async fn uploads_that_nobody_reads_stop_no_other() {
    let server = Running::start(Drain::default()).await;
    let mut client = server.client().await;
    let mut stalled = Vec::new();
    for _ in 0..99 {
        let (response, mut upload) = client.start("/test.Probe/Stall", None).await;
        upload.send_data(vec![0; 300 * 1024].into(), false).unwrap();
        stalled.push((response, upload));
    }
    let (response, mut upload) = client.start("/test.Probe/Read", None).await;
    upload.send_data(vec![0; 1024 * 1024].into(), true).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(Answer::read(response).await.status(), Code::Ok);
}

/// Nothing, half a preface, a whole one, and one with half a SETTINGS frame's head.
#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_begin_is_closed_and_holds_up_no_end() {
    let drain = Drain {
        finish: HOUR,
        ..Drain::default()
    };
    let server = Running::start(drain).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04";
    let lengths = [0, 1, 12, 24, 28];
    let begin = async |length: usize| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&preface[..length]).await.unwrap();
        stream
    };
    for length in lengths {
        let connected = Instant::now();
        let mut stream = begin(length).await;
        let closed = within_on_paused_clock(stream.read(&mut [0])).await;
        assert_eq!(closed.unwrap(), 0, "{length}");
        assert!(connected.elapsed() < Duration::from_secs(11), "{length}");
    }

    let mut streams = Vec::new();
    for length in lengths {
        streams.push(begin(length).await);
    }
    let told = Instant::now();
    server.shutdown.drain();
    server.serving.await.unwrap();
    assert!(
        told.elapsed() < Duration::from_secs(6),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn health_tells_of_the_drain_while_connections_are_still_accepted() {
    let drain = Drain {
        accept: HOUR,
        finish: HOUR,
    };
    let server = Running::start(drain).await;
    let mut health = server.health().await;
    let mut watch = health.watch(ask("test.Probe")).await.unwrap().into_inner();
    let first = within(watch.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);

    server.shutdown.drain();
    let second = within(watch.message()).await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::NotServing);
    // A new connection, and on it old habits.
    let mut health = server.health().await;
    for (name, status) in [
        ("", ServingStatus::NotServing),
        ("test.Probe", ServingStatus::NotServing),
        (LIVENESS, ServingStatus::Serving),
    ] {
        let answer = health.check(ask(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), status, "{name:?}");
    }
    assert_eq!(
        health.check(ask("api.Nobody")).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut client = server.client().await;
    assert_eq!(
        client.call("/test.Probe/Read", None).await.status(),
        Code::Ok
    );
}

#[tokio::test]
async fn reflection_lists_the_service_and_health_in_both_versions() {
    use tonic_reflection::pb::{v1, v1alpha};
    let server = Running::start(Drain::default()).await;

    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let requests = tokio_stream::once(request);
    let mut answers = client
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(names.contains(&"test.Probe".to_owned()), "{names:?}");
    assert!(
        names.contains(&"grpc.health.v1.Health".to_owned()),
        "{names:?}"
    );

    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "grpc.health.v1.Health".to_owned(),
            ),
        ),
    };
    let requests = tokio_stream::once(request);
    let mut answers = client
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap();
    assert!(
        matches!(
            answer.message_response,
            Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_drain_lets_running_rpcs_finish_and_then_ends() {
    let drain = Drain {
        accept: Duration::ZERO,
        finish: HOUR,
    };
    let mut server = Running::start(drain).await;
    let mut client = server.client().await;
    let (held, _upload) = client.start("/test.Probe/Hold", None).await;
    let held = within(held).await.unwrap();

    server.shutdown.drain();
    // GOAWAY: no new RPC can be opened, and yet the connection stays.
    within(async {
        while let Ok((response, mut upload)) = client.try_start("/test.Probe/Read").await {
            upload.send_data(Bytes::new(), true).unwrap();
            let _ = response.await;
        }
    })
    .await;
    assert!(!client.connection.is_finished());
    server.release.cancel();
    assert_eq!(Answer::read(held).await.status(), Code::Ok);
    // It closes its connections without an error, and then itself.
    within(&mut client.connection).await.unwrap().unwrap();
    within(&mut server.serving).await.unwrap();
    let refused = TcpStream::connect(server.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// The two that behaviour is promised with: a service's own `main` sets no others.
#[test]
fn it_accepts_for_5_s_more_and_cuts_off_after_30() {
    let drain = Drain::default();
    assert_eq!(drain.accept, Duration::from_secs(5));
    assert_eq!(drain.finish, Duration::from_secs(30));
}

#[tokio::test]
async fn what_never_ends_is_cut_off_with_a_status() {
    let drain = Drain {
        accept: Duration::ZERO,
        finish: Duration::from_millis(50),
    };
    let mut server = Running::start(drain).await;
    let mut health = server.health().await;
    let mut watch = health.watch(ask("")).await.unwrap().into_inner();
    let mut client = server.client().await;
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let (reflection, _questions) = client.start(path, None).await;
    let reflection = within(reflection).await.unwrap();
    let (stalled, _upload) = client.start("/test.Probe/Stall", None).await;
    // The stalled RPC is at its handler when a later one on its connection has been answered.
    assert_eq!(
        client.call("/test.Probe/Read", None).await.status(),
        Code::Ok
    );

    server.shutdown.drain();
    let mut told = Vec::new();
    let end = loop {
        match within(watch.message()).await {
            Ok(Some(answer)) => told.push(answer.status()),
            Ok(None) => panic!("a watch never ends well"),
            Err(status) => break status,
        }
    };
    assert_eq!(told, [ServingStatus::Serving, ServingStatus::NotServing]);
    assert_eq!(end.code(), Code::Unavailable);
    let stalled = within(stalled).await.unwrap();
    assert_eq!(Answer::read(stalled).await.status(), Code::Unavailable);
    assert_eq!(Answer::read(reflection).await.status(), Code::Unavailable);
    within(&mut server.serving).await.unwrap();
}

#[tokio::test]
async fn a_kill_is_abrupt() {
    let mut server = Running::start(Drain {
        accept: HOUR,
        finish: HOUR,
    })
    .await;
    let mut client = server.client().await;
    let (held, _upload) = client.start("/test.Probe/Hold", None).await;
    let mut held = within(held).await.unwrap().into_body();

    server.shutdown.kill();
    within(&mut server.serving).await.unwrap();
    assert!(
        !matches!(within(held.data()).await, Some(Ok(_))),
        "nothing comes any more"
    );
    let refused = TcpStream::connect(server.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn one_line_of_log_per_rpc() {
    // As long as there is only one subscriber, `tracing` asks that of the thread which comes to a line first whether
    // anybody wants it, and that may be another test's thread, with none. So there is another one.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .finish();
    // This test's runtime has one thread, so the server's tasks see it, too.
    let _guard = tracing::subscriber::set_default(subscriber);

    let server = Running::start(Drain::default()).await;
    let mut client = server.client().await;
    client.call("/test.Probe/Read", None).await;
    client.call("/test.Probe/Nothing", None).await;
    client.call("/test.Probe/Hold", Some("1m")).await;
    client.call("/grpc.health.v1.Health/Check", None).await;
    // A client that loses its patience, once the response is on its way.
    let (held, _upload) = client.start("/test.Probe/Hold", None).await;
    drop(within(held).await.unwrap());
    drop(_upload);
    within(async {
        while log.rpcs().len() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let lines = log.rpcs();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            assert!(field(line, "duration_ms").parse::<f64>().unwrap() >= 0.0);
            assert!(field(line, "peer").starts_with("127.0.0.1:"));
            (
                field(line, "method"),
                field(line, "grpc_status"),
                field(line, "target"),
            )
        })
        .collect();
    let expected = [
        ("/test.Probe/Read", "0", "rpc"),
        ("/test.Probe/Nothing", "12", "rpc"),
        ("/test.Probe/Hold", "4", "rpc"),
        ("/grpc.health.v1.Health/Check", "0", "rpc::health"),
        ("/test.Probe/Hold", "1", "rpc"),
    ];
    assert_eq!(
        told,
        expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let server = Running::start(Drain::default()).await;
    let error = builder(&server.release)
        .bind(server.address)
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on {}: the port is in use; end the other process or choose another \
             with --port or PORT",
            server.address
        )
    );

    let free = "127.0.0.1:0".parse().unwrap();
    let error = builder(&server.release)
        .hostname("Küche")
        .bind(free)
        .await
        .err();
    assert!(
        error.is_none(),
        "octets above 0x7f are legal in a header's value"
    );
    let error = builder(&server.release)
        .hostname("a\nb")
        .bind(free)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"the host name "a\nb" cannot be sent as a header; set HOSTNAME to a name in ASCII"#
    );

    let error = Server::builder(Probe::default(), b"no descriptors")
        .bind(free)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot offer server reflection");
}

const HOUR: Duration = Duration::from_secs(3600);
