//! Clients: tonic, HTTP/2 by hand, HTTP/1.1 by hand, the admin interface. All TLS is real, and trusts one authority.

use std::{io, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{certs::SERVER_NAME, wait::within};

/// A TLS connection to `address`, in the name of [`SERVER_NAME`].
///
/// # Errors
/// What the socket or the handshake says.
pub async fn tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name");
    TlsConnector::from(config).connect(name, stream).await
}

/// A tonic channel of one connection, which is made now and again whenever it is lost.
///
/// # Errors
/// When the first connection fails.
pub async fn channel(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let config = config.clone();
        async move { tls(address, config).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(connector).await
}

fn endpoint() -> Endpoint {
    // The scheme http keeps tonic from looking for TLS of its own; clients that it is told of see https.
    Endpoint::from_static("http://grpc.example.com")
        .origin(Uri::from_static("https://grpc.example.com"))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
}

/// HTTP/2 by hand: what tonic hides can be seen and done.
#[derive(Clone)]
pub struct Http2 {
    send: SendRequest<Bytes>,
    driver: Arc<Driver>,
}

struct Driver {
    task: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// `:status`.
    pub status: StatusCode,
    /// The response's headers.
    pub headers: HeaderMap,
    /// END_STREAM was on the headers: nothing followed.
    pub headers_only: bool,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl Http2 {
    /// A connection to the proxy at `address`.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> anyhow::Result<Self> {
        Self::connect_with(address, config, &h2::client::Builder::new()).await
    }

    /// [`connect`](Self::connect), with the client's own settings.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn connect_with(
        address: SocketAddr,
        config: Arc<ClientConfig>,
        settings: &h2::client::Builder,
    ) -> anyhow::Result<Self> {
        let stream = tls(address, config).await.context("TLS")?;
        Self::over(stream, settings).await
    }

    /// A connection to a backend at `address`: no TLS, no proxy.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn connect_plain(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, &h2::client::Builder::new()).await
    }

    /// A connection over any byte stream.
    ///
    /// # Errors
    /// When the peer doesn't speak HTTP/2.
    pub async fn over<S>(stream: S, settings: &h2::client::Builder) -> anyhow::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = settings.handshake(stream).await.context("HTTP/2")?;
        let driver = Arc::new(Driver {
            task: tokio::spawn(connection),
        });
        Ok(Self { send, driver })
    }

    /// Opens a stream; the body follows by hand if `end` is false.
    ///
    /// # Errors
    /// When the connection takes no more streams.
    pub async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(request, end)
    }

    /// A whole request and its whole answer.
    ///
    /// # Errors
    /// When the stream or the connection is ended instead.
    pub async fn call(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let (response, mut stream) = self.open(request, body.is_empty()).await?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        Reply::read(within("response headers", response).await?).await
    }

    /// A gRPC call with one message, to `path`.
    ///
    /// # Errors
    /// When the stream or the connection is ended instead.
    pub async fn grpc(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, h2::Error> {
        self.call(grpc_request(path, headers), &crate::scripted::framed(b""))
            .await
    }

    /// Has the connection ended?
    pub fn ended(&self) -> bool {
        self.driver.task.is_finished()
    }
}

impl Reply {
    /// Reads the rest of `response`, giving credit as it comes.
    ///
    /// # Errors
    /// When the stream or the connection is ended before its end.
    pub async fn read(response: Response<RecvStream>) -> Result<Self, h2::Error> {
        let (head, mut stream) = response.into_parts();
        let headers_only = stream.is_end_stream();
        let mut body = Vec::new();
        while let Some(chunk) = within("response body", stream.data()).await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            body.extend_from_slice(&chunk);
        }
        let trailers = within("trailers", stream.trailers()).await?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            headers_only,
            body,
            trailers,
        })
    }

    /// The header `name` as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// `grpc-status`, wherever it is.
    pub fn grpc_status(&self) -> Option<i32> {
        self.grpc("grpc-status")?.parse().ok()
    }

    /// `grpc-message`, wherever it is.
    pub fn grpc_message(&self) -> Option<&str> {
        self.grpc("grpc-message")
    }

    fn grpc(&self, name: &str) -> Option<&str> {
        let found = self
            .trailers
            .as_ref()
            .and_then(|trailers| trailers.get(name));
        found.or_else(|| self.headers.get(name))?.to_str().ok()
    }
}

/// A tonic request with metadata.
///
/// # Panics
/// When a value can't exist.
pub fn request<T>(message: T, metadata: &[(&'static str, &str)]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in metadata {
        request
            .metadata_mut()
            .insert(*name, value.parse().expect("a value that can exist"));
    }
    request
}

/// The head of a gRPC request.
///
/// # Panics
/// When a header can't exist.
pub fn grpc_request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("https://{SERVER_NAME}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a path and headers that can exist")
}

/// The head of a plain GET.
///
/// # Panics
/// When a header can't exist.
pub fn get_request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(format!("https://{SERVER_NAME}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a path and headers that can exist")
}

/// One HTTP/1.1 request over TLS, written by hand as `head` (without its last empty line) and `body`; gives the
/// answer's status line and headers as text, and its body as it is framed.
///
/// # Errors
/// What the socket says; or an answer without an end of its headers.
pub async fn http1(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    head: &str,
    body: &[u8],
) -> anyhow::Result<(String, Vec<u8>)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tls(address, config).await.context("TLS")?;
    let mut bytes = head.replace('\n', "\r\n").into_bytes();
    bytes.extend(b"\r\nconnection: close\r\n\r\n");
    bytes.extend(body);
    stream.write_all(&bytes).await?;
    let mut answer = Vec::new();
    // A peer that doesn't say goodbye in TLS is still one that has said all.
    let read = within("an HTTP/1.1 answer", stream.read_to_end(&mut answer)).await;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let Some(end) = end else {
        read?;
        anyhow::bail!("no whole head in {:?}", String::from_utf8_lossy(&answer));
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    Ok((head, answer.split_off(end + 4)))
}

/// One plain HTTP/1.1 request, as to the admin interface or a probe.
///
/// # Errors
/// When there is no whole answer.
pub async fn plain(
    address: SocketAddr,
    request: Request<Bytes>,
) -> anyhow::Result<Response<String>> {
    let stream = TcpStream::connect(address).await?;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = send.send_request(request.map(Full::new)).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    driver.abort();
    Ok(Response::from_parts(
        head,
        String::from_utf8(body.to_vec())?,
    ))
}

/// [`plain`], a GET.
///
/// # Errors
/// When there is no whole answer.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Response<String>> {
    let request = Request::get(path).header("host", address.to_string());
    plain(address, request.body(Bytes::new())?).await
}

/// [`plain`], a POST without a body.
///
/// # Errors
/// When there is no whole answer.
pub async fn post(address: SocketAddr, path: &str) -> anyhow::Result<Response<String>> {
    let request = Request::post(path).header("host", address.to_string());
    plain(address, request.body(Bytes::new())?).await
}

/// The value of a metric's sample in a page of them: `name{label="value",…}` with all of the given labels, summed.
pub fn metric(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut sum = None;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ')?;
        let (found, its_labels) = sample.split_once('{').unwrap_or((sample, ""));
        let has =
            |(label, value): &(&str, &str)| its_labels.contains(&format!("{label}=\"{value}\""));
        if found == name && labels.iter().all(has) {
            sum = Some(sum.unwrap_or(0.0) + value.parse::<f64>().ok()?);
        }
    }
    sum
}

/// Whether a page of metrics has the family that samples called `name` are of, with or without one.
pub fn has_family(page: &str, name: &str) -> bool {
    let parts = ["_bucket", "_sum", "_count"];
    let family = parts.iter().find_map(|part| name.strip_suffix(part));
    let is_typed = |name: &str| page.contains(&format!("# TYPE {name} "));
    is_typed(name) || family.is_some_and(is_typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_known_without_a_sample() {
        let page = "# HELP a_total b\n# TYPE a_total counter\n# TYPE c histogram\nc_sum 1\nd 1\n";
        assert!(has_family(page, "a_total") && has_family(page, "c_count"));
        assert!(
            !has_family(page, "a") && !has_family(page, "d") && !has_family(page, "a_total_sum_x")
        );
    }

    #[test]
    fn metrics_are_summed_over_the_labels_that_are_left_open() {
        let page = "# HELP a b\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"4\"} 5\nb 7\n";
        assert_eq!(metric(page, "a_total", &[("x", "1")]), Some(8.0));
        assert_eq!(metric(page, "a_total", &[("y", "4")]), Some(5.0));
        assert_eq!(metric(page, "b", &[]), Some(7.0));
        assert_eq!(metric(page, "c", &[]), None);
    }
}
