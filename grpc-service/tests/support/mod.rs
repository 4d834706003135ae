//! A server of a service that misbehaves in all ways, and a client that sees its frames.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use grpc_service::{Builder, Drain, HOSTNAME, MAX_MESSAGE, Server, Shutdown};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    body::Body,
    server::{Grpc, NamedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;

/// A server of [`Probe`] that runs in this test, and is killed with it.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) serving: JoinHandle<()>,
    /// Lets the RPCs end that are held.
    pub(crate) release: CancellationToken,
}

impl Running {
    pub(crate) async fn start(drain: Drain) -> Self {
        Self::of(|builder| builder.drain(drain)).await
    }

    pub(crate) async fn of(set: impl FnOnce(Builder) -> Builder) -> Self {
        let release = CancellationToken::new();
        let address = "127.0.0.1:0".parse().unwrap();
        let server = set(builder(&release)).bind(address).await.unwrap();
        let (address, shutdown) = (server.local_addr(), server.shutdown());
        Self {
            address,
            shutdown,
            serving: tokio::spawn(server.serve()),
            release,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        within(endpoint.connect()).await.unwrap()
    }

    pub(crate) async fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel().await)
    }

    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (send, connection) = within(h2::client::handshake(stream)).await.unwrap();
        Client {
            send,
            connection: tokio::spawn(connection),
        }
    }
}

pub(crate) fn builder(release: &CancellationToken) -> Builder {
    let probe = Probe {
        release: release.clone(),
    };
    // Reflection needs no more than one file; that of health is always there.
    Server::builder(probe, tonic_health::pb::FILE_DESCRIPTOR_SET).hostname("replica-1")
}

/// A client that sees frames, where tonic's would see calls.
pub(crate) struct Client {
    pub(crate) send: h2::client::SendRequest<Bytes>,
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

pub(crate) type Started = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

impl Client {
    /// Opens an RPC and leaves its request open.
    pub(crate) async fn start(&mut self, path: &str, timeout: Option<&str>) -> Started {
        self.open(path, timeout).await.unwrap()
    }

    pub(crate) async fn try_start(&mut self, path: &str) -> Result<Started, h2::Error> {
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
    pub(crate) async fn call(&mut self, path: &str, timeout: Option<&str>) -> Answer {
        let (response, mut upload) = self.start(path, timeout).await;
        // It may have been answered already, and then nobody wants the rest.
        let _ = upload.send_data(Bytes::from_static(&[0; 5]), true);
        Answer::read(within(response).await.unwrap()).await
    }
}

/// All of a response but its messages.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) async fn read(response: Response<h2::RecvStream>) -> Self {
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

    pub(crate) fn hostname(&self) -> &str {
        self.headers[HOSTNAME].to_str().unwrap()
    }

    pub(crate) fn status(&self) -> Code {
        let trailers = self.trailers.as_ref();
        let status = Status::from_header_map(&self.headers)
            .or_else(|| trailers.and_then(Status::from_header_map));
        status.expect("a status in headers or trailers").code()
    }
}

/// A service with all the ways to misbehave.
#[derive(Clone, Default)]
pub(crate) struct Probe {
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
                // As generated code does it.
                "/test.Probe/Echo" => {
                    let codec = ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
                    let handler = tower::service_fn(|request: tonic::Request<_>| async {
                        Ok::<_, Status>(tonic::Response::new(request.into_inner()))
                    });
                    Grpc::new(codec)
                        .max_decoding_message_size(MAX_MESSAGE)
                        .unary(handler, request)
                        .await
                }
                "/test.Probe/Large" => Response::new(Body::new(Full::from(vec![0; MAX_MESSAGE]))),
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// A response whose trailers come when `until` has ended.
pub(crate) fn streaming(until: impl Future<Output = ()> + Send + 'static) -> Response<Body> {
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
pub(crate) struct Log(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn rpcs(&self) -> Vec<String> {
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
pub(crate) fn field(line: &str, name: &str) -> String {
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

pub(crate) fn ask(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// No test waits for ever for what doesn't come.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it came in time")
}

/// [`within`] by the machine's clock: a paused one jumps to the next timer while the kernel delivers what a test waits for.
pub(crate) async fn within_on_paused_clock<F: Future>(future: F) -> F::Output {
    let late = CancellationToken::new();
    let watch = late.clone();
    // Not of the runtime's own, whose clock would stand still meanwhile.
    std::thread::spawn(move || {
        std::thread::sleep(PATIENCE);
        watch.cancel();
    });
    tokio::select! {
        output = future => output,
        () = late.cancelled() => panic!("it didn't come in time"),
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
