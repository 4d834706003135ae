//! gRPC's interoperability server, on tonic.
//!
//! tonic's own transport is left out: it ends an RPC at its deadline with CANCELLED, where the cases ask for
//! DEADLINE_EXCEEDED, and may be first. hyper, which is under it, serves tonic's routes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Request as HttpRequest, Response as HttpResponse};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming, body::Body, codec::CompressionEncoding,
    service::Routes,
};
use tower::Service;

use super::pb::{
    BoolValue, EchoStatus, Empty, Payload, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingInputCallResponse, StreamingOutputCallRequest,
    StreamingOutputCallResponse,
    test_service_server::{TestService, TestServiceServer},
};
use crate::{backend::own_thread, loopback, proxy::Address};

/// A running one. It ends, abruptly, with this value.
pub struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts one on an address of its own.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start() -> Self {
        let runtime = own_thread("interop");
        let listener = runtime
            .spawn(TcpListener::bind((loopback::address(), 0)))
            .await
            .expect("binding doesn't panic")
            .expect("the kernel has a free port");
        let address = listener.local_addr().expect("it is bound");
        let cases = TestServiceServer::new(Cases)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let routes = Routes::new(cases).prepare();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Only costs time when it fails.
                let _ = stream.set_nodelay(true);
                let service = TowerToHyperService::new(Around(routes.clone()));
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Address for Server {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the cases ask of a server.
struct Cases;

type Replies = ReceiverStream<Result<StreamingOutputCallResponse, Status>>;

#[tonic::async_trait]
impl TestService for Cases {
    type StreamingOutputCallStream = Replies;
    type FullDuplexCallStream = Replies;

    async fn empty_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(
        &self,
        request: Request<SimpleRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        let compressed = request
            .extensions()
            .get::<Compressed>()
            .is_some_and(|compressed| compressed.0.load(Ordering::Relaxed));
        let asked = request.into_inner();
        if let Some(BoolValue { value }) = asked.expect_compressed
            && value != compressed
        {
            let text = format!("compressed: {compressed}, not {value}");
            return Err(Status::invalid_argument(text));
        }
        asked_for(asked.response_status)?;
        let payload = Some(zeros(asked.response_size));
        let mut response = Response::new(SimpleResponse { payload });
        if !asked.response_compressed.is_some_and(|asked| asked.value) {
            response.disable_compression();
        }
        Ok(response)
    }

    async fn streaming_output_call(
        &self,
        request: Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Replies>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        // Its result: the client has gone, which is its right.
        tokio::spawn(async move { reply(&sender, request.into_inner()).await });
        Ok(Response::new(receiver.into()))
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        let mut messages = request.into_inner();
        let mut aggregated_payload_size = 0;
        while let Some(message) = messages.message().await? {
            aggregated_payload_size += message
                .payload
                .map_or(0, |payload| payload.body.len() as i32);
        }
        Ok(Response::new(StreamingInputCallResponse {
            aggregated_payload_size,
        }))
    }

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(asked)) = messages.message().await {
                if !reply(&sender, asked).await {
                    return;
                }
            }
        });
        Ok(Response::new(receiver.into()))
    }

    async fn unimplemented_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("as its name says"))
    }
}

/// Everything that one message asks for; `false`: nothing more is to come.
async fn reply(
    sender: &mpsc::Sender<Result<StreamingOutputCallResponse, Status>>,
    asked: StreamingOutputCallRequest,
) -> bool {
    if let Err(status) = asked_for(asked.response_status) {
        // As below.
        let _ = sender.send(Err(status)).await;
        return false;
    }
    for parameters in asked.response_parameters {
        if let Ok(micros @ 1..) = u64::try_from(parameters.interval_us) {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        let payload = Some(zeros(parameters.size));
        let reply = StreamingOutputCallResponse { payload };
        // An error: the client has gone.
        if sender.send(Ok(reply)).await.is_err() {
            return false;
        }
    }
    true
}

fn asked_for(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(EchoStatus { code: 0, .. }) | None => Ok(()),
        Some(EchoStatus { code, message }) => Err(Status::new(Code::from_i32(code), message)),
    }
}

fn zeros(size: i32) -> Payload {
    super::payload(usize::try_from(size).unwrap_or_default())
}

/// Whether the message of a unary RPC came compressed: tonic tells nobody.
#[derive(Clone)]
struct Compressed(Arc<AtomicBool>);

/// What tonic leaves to others. The metadata that the case `custom_metadata` sends comes back: tonic has no trailers of a
/// response that is good. And streams aren't compressed: tonic would compress each that may be.
#[derive(Clone)]
struct Around<S>(S);

impl<S> Service<HttpRequest<Incoming>> for Around<S>
where
    S: Service<HttpRequest<Body>, Response = HttpResponse<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: HttpRequest<Incoming>) -> Self::Future {
        let initial = request.headers().get(&INITIAL).cloned();
        let trailing = request.headers().get(&TRAILING).cloned();
        if !request.uri().path().ends_with("/UnaryCall") {
            request.headers_mut().remove(ACCEPT_ENCODING);
        }
        let compressed = Compressed(Arc::default());
        request.extensions_mut().insert(compressed.clone());
        let request = request.map(|body| super::noting(body, compressed.0));
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if let Some(value) = initial {
                response.headers_mut().insert(INITIAL, value);
            }
            let Some(value) = trailing else {
                return Ok(response);
            };
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |mut frame: http_body::Frame<Bytes>| {
                    if let Some(trailers) = frame.trailers_mut() {
                        trailers.insert(TRAILING, value.clone());
                    }
                    frame
                }))
            }))
        })
    }
}

const INITIAL: HeaderName = HeaderName::from_static(super::INITIAL);
const TRAILING: HeaderName = HeaderName::from_static(super::TRAILING);
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
