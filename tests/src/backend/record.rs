//! What a backend's journal learns apart from the service: every request's head, and every connection's beginning and end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request as HttpRequest, Response as HttpResponse};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::{Layer, Service};

use crate::journal::{Journal, Seen};

/// Writes every request's head into the journal (health checks have a list of their own), and names the backend in
/// every response.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) journal: Journal,
    pub(super) name: String,
}

impl<S> Layer<S> for Record {
    type Service = Recorded<S>;

    fn layer(&self, inner: S) -> Recorded<S> {
        Recorded {
            inner,
            record: self.clone(),
        }
    }
}

#[derive(Clone)]
pub(super) struct Recorded<S> {
    inner: S,
    record: Record,
}

impl<S, B, R> Service<HttpRequest<B>> for Recorded<S>
where
    S: Service<HttpRequest<B>, Response = HttpResponse<R>>,
    S::Future: Send + 'static,
{
    type Response = HttpResponse<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
        if !request.uri().path().starts_with("/grpc.health.") {
            let mut seen = Seen::of(&request);
            seen.peer = request
                .extensions()
                .get::<TcpConnectInfo>()
                .and_then(TcpConnectInfo::remote_addr);
            self.record.journal.begin(seen);
        }
        let name = HeaderValue::from_str(&self.record.name);
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            if let Ok(name) = name {
                response.headers_mut().insert("x-test-backend", name);
            }
            Ok(response)
        })
    }
}

/// A connection that the journal counts from accept to end.
pub(super) struct Counted {
    stream: TcpStream,
    journal: Journal,
}

impl Counted {
    pub(super) fn new(stream: TcpStream, journal: Journal) -> Self {
        // Only costs time when it fails.
        let _ = stream.set_nodelay(true);
        journal.add(|all| all.connections += 1);
        Self { stream, journal }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.journal.add(|all| all.connections_ended += 1);
    }
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
