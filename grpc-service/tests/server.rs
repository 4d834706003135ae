//! A server over real sockets: the `hostname` header, health, reflection, deadlines, panics,
//! windows, the log, and every way to end.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use grpc_service::{Drain, HOSTNAME, LIVENESS, Server, Shutdown, StartError};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

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

/// A server of [`Probe`] that runs in this test, and is killed with it.
struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
    /// Lets the RPCs end that are held.
    release: CancellationToken,
}

impl Running {
    async fn start(drain: Drain) -> Self {
        let release = CancellationToken::new();
        let address = "127.0.0.1:0".parse().unwrap();
        let server = builder(&release).drain(drain).bind(address).await.unwrap();
        let (address, shutdown) = (server.local_addr(), server.shutdown());
        Self {
            address,
            shutdown,
            serving: tokio::spawn(server.serve()),
            release,
        }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        within(endpoint.connect()).await.unwrap()
    }

    async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (send, connection) = within(h2::client::handshake(stream)).await.unwrap();
        Client {
            send,
            connection: tokio::spawn(connection),
        }
    }
}

fn builder(release: &CancellationToken) -> grpc_service::Builder {
    let probe = Probe {
        release: release.clone(),
    };
    // Reflection needs no more than one file; that of health is always there.
    Server::builder(probe, tonic_health::pb::FILE_DESCRIPTOR_SET).hostname("replica-1")
}

/// A client that sees frames, where tonic's would see calls.
struct Client {
    send: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

type Started = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

impl Client {
    /// Opens an RPC and leaves its request open.
    async fn start(&mut self, path: &str, timeout: Option<&str>) -> Started {
        self.open(path, timeout).await.unwrap()
    }

    async fn try_start(&mut self, path: &str) -> Result<Started, h2::Error> {
        self.open(path, None).await
    }

    async fn open(&mut self, path: &str, timeout: Option<&str>) -> Result<Started, h2::Error> {
        let mut send = within(self.send.clone().ready()).await?;
        let mut request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        send.send_request(request.body(()).unwrap(), false)
    }

    /// One RPC with an empty message.
    async fn call(&mut self, path: &str, timeout: Option<&str>) -> Answer {
        let (response, mut upload) = self.start(path, timeout).await;
        // It may have been answered already, and then nobody wants the rest.
        let _ = upload.send_data(Bytes::from_static(&[0; 5]), true);
        Answer::read(within(response).await.unwrap()).await
    }
}

/// All of a response but its messages.
struct Answer {
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
}

impl Answer {
    async fn read(response: Response<h2::RecvStream>) -> Self {
        let (head, mut body) = response.into_parts();
        while let Some(data) = within(body.data()).await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = within(body.trailers()).await.unwrap();
        Self {
            headers: head.headers,
            trailers,
        }
    }

    fn hostname(&self) -> &str {
        self.headers[HOSTNAME].to_str().unwrap()
    }

    fn status(&self) -> Code {
        let trailers = self.trailers.as_ref();
        let status = Status::from_header_map(&self.headers)
            .or_else(|| trailers.and_then(Status::from_header_map));
        status.expect("a status in headers or trailers").code()
    }
}

/// A service with all the ways to misbehave.
#[derive(Clone, Default)]
struct Probe {
    release: CancellationToken,
}

impl NamedService for Probe {
    const NAME: &'static str = "test.Probe";
}

impl tower::Service<Request<Body>> for Probe {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let release = self.release.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/test.Probe/Panic" => panic!("told to"),
                "/test.Probe/PanicLater" => streaming(async { panic!("told to") }),
                // The upload is alive and is never read.
                "/test.Probe/Stall" => {
                    release.cancelled().await;
                    drop(request);
                    Status::ok("").into_http()
                }
                // Headers at once, the end when released.
                "/test.Probe/Hold" => streaming(async move { release.cancelled().await }),
                "/test.Probe/Read" => {
                    request.into_body().collect().await.unwrap();
                    streaming(async {})
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// A response whose trailers come when `until` has ended.
fn streaming(until: impl Future<Output = ()> + Send + 'static) -> Response<Body> {
    let mut until = Some(until);
    let trailers = tokio_stream::once(()).then(move |()| {
        let until = until.take();
        async move {
            if let Some(until) = until {
                until.await;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            Ok::<_, Status>(Frame::<Bytes>::trailers(trailers))
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(trailers)));
    response
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    response
}

/// The lines of a test's log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn rpcs(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .filter(|line| line.contains(r#""message":"rpc""#))
            .map(str::to_owned)
            .collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A field's value in a flat line of JSON.
fn field(line: &str, name: &str) -> String {
    let key = format!(r#""{name}":"#);
    let start = line
        .find(&key)
        .unwrap_or_else(|| panic!("no {name} in {line}"))
        + key.len();
    let value = &line[start..];
    value[..value.find([',', '}']).unwrap()]
        .trim_matches('"')
        .to_owned()
}

fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// No test waits for ever for what doesn't come.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it came in time")
}

const HOUR: Duration = Duration::from_secs(3600);
