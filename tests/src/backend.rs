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

mod record;
mod service;

use std::{collections::HashSet, io, net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{oneshot, watch},
};
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;

pub use self::service::FAILED;
use self::{
    record::{Counted, Record},
    service::TestService,
};
use crate::{health::HealthSwitch, journal::Journal, loopback, pb::test_server::TestServer};

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

    /// Starts one whose HTTP/2 is as tonic has it unless told otherwise: one window of 1 MiB for all uploads of a
    /// connection, so that a handler that doesn't read stops the others.
    pub async fn start_with_one_window() -> Self {
        Self::start_with(SocketAddr::new(loopback::address(), 0), Windows(None)).await
    }

    /// Starts one at `address`.
    ///
    /// # Panics
    /// When the port can't be had.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, ROOMY).await
    }

    async fn start_with(address: SocketAddr, windows: Windows) -> Self {
        let runtime = own_thread("backend");
        let listener = runtime
            .spawn(TcpListener::bind(address))
            .await
            .expect("binding doesn't panic")
            .unwrap_or_else(|error| panic!("backend can't listen on {address}: {error}"));
        Self::serve(runtime, listener, windows)
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
        Ok(Self::serve(runtime, listener, ROOMY))
    }

    fn serve(runtime: Runtime, listener: TcpListener, Windows(windows): Windows) -> Self {
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
            .initial_stream_window_size(windows.map(|(stream, _)| stream))
            .initial_connection_window_size(windows.map(|(_, connection)| connection))
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

const LARGEST_MESSAGE: usize = 64 << 20;

/// A stream's and the connection's, if not tonic's own.
#[derive(Clone, Copy)]
struct Windows(Option<(u32, u32)>);

const STREAM_WINDOW: u32 = 64 << 10;
/// Enough for all streams at once, so that one handler that doesn't read can't stop the others.
const ROOMY: Windows = Windows(Some((STREAM_WINDOW, 200 * STREAM_WINDOW)));

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;
    use tonic::{Code, transport::Endpoint};

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
