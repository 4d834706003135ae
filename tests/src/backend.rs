//! Backends that behave: the tests' own service on a real tonic server, with a journal of what arrived; and `api.Echo`
//! beside it, for [`load`](crate::load) that shares their connections with a test.
//!
//! What an RPC does beyond returning what it is given is asked for in its metadata:
//!
//! | name | effect |
//! | --- | --- |
//! | `x-test-id` | names the RPC in the journal |
//! | `x-test-gate: G` | nothing is read or answered before the test opens gate `G` |
//! | `x-test-late-gate: G` | (download) after the first reply, waits for gate `G` |
//! | `x-test-status: N` | fails with status `N` at once: a trailers-only response |
//! | `x-test-late-status: N` | (download, chat) fails with status `N` after the replies: in trailers |
//! | `x-test-reply-bytes: N` | each reply has `N` bytes |
//! | `x-test-replies: N` | (download) how many replies; 1 when missing |
//! | `x-test-interval: N` | (download, chat) waits `N` milliseconds before each reply |
//! | `x-test-give`, `x-test-give-bin` | come back in the response's headers |
//!
//! Every response has the header `x-test-backend`, the backend's address: who served it.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request as HttpRequest, Response as HttpResponse};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{
        Server,
        server::{Connected, TcpConnectInfo},
    },
};
use tonic_health::pb::health_server::HealthServer;
use tower::{Layer, Service};

use crate::{
    health::HealthSwitch,
    journal::{ID, Journal, Seen},
    loopback,
    pb::{
        Message,
        test_server::{Test, TestServer},
    },
};

/// A running backend. It ends, abruptly, with this value.
pub struct Backend {
    address: SocketAddr,
    /// What arrived.
    pub journal: Journal,
    /// How it answers health checks.
    pub health: HealthSwitch,
    gates: Arc<watch::Sender<HashSet<String>>>,
    stop: Option<oneshot::Sender<()>>,
    /// A thread of its own: killing a backend drops all of its tasks and sockets at once, like a process.
    runtime: Option<Runtime>,
}

impl Backend {
    /// Starts one on an address of its own.
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::new(loopback::address(), 0)).await
    }

    /// Starts one at `address`.
    ///
    /// # Panics
    /// When the port can't be had.
    pub async fn start_at(address: SocketAddr) -> Self {
        let runtime = own_thread("backend");
        let listener = runtime
            .spawn(TcpListener::bind(address))
            .await
            .expect("binding doesn't panic")
            .unwrap_or_else(|error| panic!("backend can't listen on {address}: {error}"));
        Self::serve(runtime, listener)
    }

    /// Starts one on a socket that listens: of another network namespace, for one.
    ///
    /// # Errors
    /// When it can't be made to wait without blocking.
    pub fn on(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = own_thread("backend");
        let listener = {
            // The listener takes the runtime that it is made on.
            let _on = runtime.enter();
            TcpListener::from_std(listener)?
        };
        Ok(Self::serve(runtime, listener))
    }

    fn serve(runtime: Runtime, listener: TcpListener) -> Self {
        let (journal, health) = (Journal::default(), HealthSwitch::default());
        let gates = Arc::new(watch::Sender::default());
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<()>();

        let service = TestService {
            journal: journal.clone(),
            gates: gates.clone(),
        };
        let test = TestServer::new(service)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .layer(Record {
                journal: journal.clone(),
                name: address.to_string(),
            })
            .add_service(HealthServer::new(health.clone()))
            .add_service(echo_grpc::service())
            .add_service(test);
        let counted = journal.clone();
        let incoming = TcpListenerStream::new(listener)
            .map(move |stream| stream.map(|stream| Counted::new(stream, counted.clone())));
        runtime.spawn(server.serve_with_incoming_shutdown(incoming, async {
            // Ends when the sender is used, and never when it is dropped: that is the abrupt end.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        Self {
            address,
            journal,
            health,
            gates,
            stop: Some(stop),
            runtime: Some(runtime),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens gate `name`, for RPCs that wait there and for all that come.
    pub fn open(&self, name: &str) {
        self.gates.send_modify(|open| {
            open.insert(name.to_owned());
        });
    }

    /// Ends it gracefully: no new connections, GOAWAY on the others, RPCs that run may finish.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The server may have failed; then there is nothing left to stop.
            let _ = stop.send(());
        }
    }

    /// Ends it as SIGKILL would: listener and connections vanish. Its address can be used again.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A runtime with one thread of its own.
pub(crate) fn own_thread(name: &str) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("a thread can be had")
}

#[derive(Clone)]
struct TestService {
    journal: Journal,
    gates: Arc<watch::Sender<HashSet<String>>>,
}

impl TestService {
    /// Reads what the RPC is to do; from here on its end is noticed.
    fn begin(&self, metadata: &MetadataMap) -> Call {
        let text = |name: &str| Some(metadata.get(name)?.to_str().ok()?.to_owned());
        let number = |name: &str| text(name)?.parse::<usize>().ok();
        let status =
            |name: &str| number(name).map(|code| Status::new(Code::from_i32(code as i32), FAILED));
        let mut give = MetadataMap::new();
        if let Some(value) = metadata.get("x-test-give") {
            give.insert("x-test-give", value.clone());
        }
        if let Some(value) = metadata.get_bin("x-test-give-bin") {
            give.insert_bin("x-test-give-bin", value.clone());
        }
        Call {
            gate: text("x-test-gate"),
            late_gate: text("x-test-late-gate"),
            status: status("x-test-status"),
            late_status: status("x-test-late-status"),
            reply_bytes: number("x-test-reply-bytes"),
            replies: number("x-test-replies").unwrap_or(1),
            interval: number("x-test-interval").map(|millis| Duration::from_millis(millis as u64)),
            give,
            gates: self.gates.subscribe(),
            end: End {
                id: text(ID).unwrap_or_default(),
                journal: self.journal.clone(),
                reached: false,
            },
        }
    }
}

/// One RPC's instructions, and its end.
struct Call {
    gate: Option<String>,
    late_gate: Option<String>,
    status: Option<Status>,
    late_status: Option<Status>,
    reply_bytes: Option<usize>,
    replies: usize,
    interval: Option<Duration>,
    give: MetadataMap,
    gates: watch::Receiver<HashSet<String>>,
    end: End,
}

impl Call {
    async fn first_gate(&mut self) -> Result<(), Status> {
        pass(&mut self.gates, self.gate.as_deref()).await;
        match self.status.take() {
            Some(status) => {
                self.end.reached = true;
                Err(status)
            }
            None => Ok(()),
        }
    }

    fn reply(&self, message: Message) -> Message {
        match self.reply_bytes {
            Some(length) => Message {
                data: Bytes::from(vec![b'r'; length]),
            },
            None => message,
        }
    }

    fn response<T>(&self, body: T) -> Response<T> {
        let mut response = Response::new(body);
        *response.metadata_mut() = self.give.clone();
        response
    }
}

/// Dropped before it is `reached`: the RPC was cancelled.
struct End {
    id: String,
    journal: Journal,
    reached: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.reached {
            let entry = (std::mem::take(&mut self.id), Instant::now());
            self.journal.add(|all| all.cancelled.push(entry));
        }
    }
}

/// The replies of a stream, and its end.
pub struct Replies {
    receiver: mpsc::Receiver<Result<Message, Status>>,
    end: End,
}

impl Stream for Replies {
    type Item = Result<Message, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.receiver.poll_recv(cx);
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            self.end.reached = true;
        }
        next
    }
}

#[tonic::async_trait]
impl Test for TestService {
    type DownloadStream = Replies;
    type ChatStream = Replies;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let reply = call.reply(request.into_inner());
        call.end.reached = true;
        Ok(call.response(reply))
    }

    async fn upload(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Message>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let mut messages = request.into_inner();
        let mut all = Vec::new();
        while let Some(message) = messages.message().await? {
            self.journal.add(|entries| entries.messages += 1);
            all.extend_from_slice(&message.data);
        }
        let reply = call.reply(Message { data: all.into() });
        call.end.reached = true;
        Ok(call.response(reply))
    }

    async fn download(&self, request: Request<Message>) -> Result<Response<Replies>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let reply = call.reply(request.into_inner());
        let (sender, receiver) = mpsc::channel(1);
        let (late_gate, late_status, replies) =
            (call.late_gate.take(), call.late_status.take(), call.replies);
        let (mut gates, interval) = (call.gates.clone(), call.interval);
        tokio::spawn(async move {
            for count in 0..replies {
                if let Some(interval) = interval {
                    tokio::time::sleep(interval).await;
                }
                if sender.send(Ok(reply.clone())).await.is_err() {
                    return;
                }
                if count == 0 {
                    pass(&mut gates, late_gate.as_deref()).await;
                }
            }
            if let Some(status) = late_status {
                // Nobody waits for it any more: the RPC was cancelled.
                let _ = sender.send(Err(status)).await;
            }
        });
        let response = call.response(());
        Ok(response.map(|()| Replies {
            receiver,
            end: call.end,
        }))
    }

    async fn chat(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Replies>, Status> {
        let mut call = self.begin(request.metadata());
        call.first_gate().await?;
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let (journal, late_status) = (self.journal.clone(), call.late_status.take());
        let (reply_bytes, interval) = (call.reply_bytes, call.interval);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                journal.add(|entries| entries.messages += 1);
                if let Some(interval) = interval {
                    tokio::time::sleep(interval).await;
                }
                let reply = match reply_bytes {
                    Some(length) => Message {
                        data: Bytes::from(vec![b'r'; length]),
                    },
                    None => message,
                };
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
            if let Some(status) = late_status {
                // As above.
                let _ = sender.send(Err(status)).await;
            }
        });
        let response = call.response(());
        Ok(response.map(|()| Replies {
            receiver,
            end: call.end,
        }))
    }
}

async fn pass(gates: &mut watch::Receiver<HashSet<String>>, gate: Option<&str>) {
    if let Some(gate) = gate {
        // The sender is gone when the backend is.
        let _ = gates.wait_for(|open| open.contains(gate)).await;
    }
}

/// Writes every request's head into the journal (health checks have a list of their own), and names the backend in
/// every response.
#[derive(Clone)]
struct Record {
    journal: Journal,
    name: String,
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
struct Recorded<S> {
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
struct Counted {
    stream: TcpStream,
    journal: Journal,
}

impl Counted {
    fn new(stream: TcpStream, journal: Journal) -> Self {
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

/// The message of every failure that is asked for: with a character that has to be percent-encoded.
pub const FAILED: &str = "failed, as the test says: 100 %";

const LARGEST_MESSAGE: usize = 64 << 20;
const STREAM_WINDOW: u32 = 64 << 10;
/// Enough for all streams at once, so that one handler that doesn't read can't stop the others.
const CONNECTION_WINDOW: u32 = 200 * STREAM_WINDOW;

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;
    use crate::{
        client::request, health::NOT_SERVING, payload, pb::test_client::TestClient, wait::within,
    };

    async fn client(backend: &Backend) -> TestClient<tonic::transport::Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", backend.address())).unwrap();
        TestClient::new(endpoint.connect().await.unwrap())
    }

    #[tokio::test]
    async fn does_what_metadata_asks_for() {
        let backend = Backend::start().await;
        let mut client = client(&backend).await;
        let asked = request(
            payload("hi"),
            &[("x-test-id", "a"), ("x-test-give", "back")],
        );
        let reply = client.unary(asked).await.unwrap();
        assert_eq!(reply.metadata().get("x-test-give").unwrap(), "back");
        let name = reply.metadata().get("x-test-backend").unwrap();
        assert_eq!(name.to_str().unwrap(), backend.address().to_string());
        assert_eq!(reply.into_inner().data, "hi");
        assert_eq!(backend.journal.executions("a"), 1);

        let failure = client
            .unary(request(payload(""), &[("x-test-status", "7")]))
            .await;
        assert_eq!(failure.unwrap_err().code(), Code::PermissionDenied);
        let asked = request(
            payload(""),
            &[("x-test-replies", "3"), ("x-test-late-status", "8")],
        );
        let mut replies = client.download(asked).await.unwrap().into_inner();
        for _ in 0..3 {
            replies.message().await.unwrap().unwrap();
        }
        assert_eq!(
            replies.message().await.unwrap_err().code(),
            Code::ResourceExhausted
        );
    }

    #[tokio::test]
    async fn gates_open_and_cancels_are_noticed() {
        let backend = Backend::start().await;
        let client = client(&backend).await;
        let call = |id: &'static str| {
            let mut client = client.clone();
            let asked = request(payload(""), &[("x-test-id", id), ("x-test-gate", id)]);
            tokio::spawn(async move { client.unary(asked).await })
        };
        let (kept, dropped) = (call("kept"), call("dropped"));
        backend.journal.begun("kept").await;
        backend.journal.begun("dropped").await;
        dropped.abort();
        backend.journal.cancelled("dropped").await;
        backend.open("kept");
        within("the other call", kept).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn dies_at_once_and_comes_back_at_its_address() {
        let mut backend = Backend::start().await;
        let mut first = client(&backend).await;
        first.unary(payload("")).await.unwrap();
        backend.kill();
        crate::wait::eventually("the port to be free", || async {
            TcpStream::connect(backend.address())
                .await
                .is_err()
                .then_some(())
        })
        .await;
        let again = Backend::start_at(backend.address()).await;
        client(&again).await.unary(payload("")).await.unwrap();
    }

    #[tokio::test]
    async fn health_is_what_the_switch_says() {
        use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
        let backend = Backend::start().await;
        let endpoint = Endpoint::from_shared(format!("http://{}", backend.address())).unwrap();
        let mut health = HealthClient::new(endpoint.connect().await.unwrap());
        let mut ask = async || {
            let asked = HealthCheckRequest {
                service: "x".into(),
            };
            health
                .check(asked)
                .await
                .map(|reply| reply.into_inner().status)
        };
        assert_eq!(ask().await.unwrap(), 1);
        backend.health.set(NOT_SERVING);
        assert_eq!(ask().await.unwrap(), 2);
        backend
            .health
            .set(crate::health::Answer::Fails(Code::Unimplemented));
        assert_eq!(ask().await.unwrap_err().code(), Code::Unimplemented);
        assert_eq!(backend.health.checks().len(), 3);
        assert_eq!(
            backend.journal.count(),
            0,
            "checks have a list of their own"
        );
    }
}
