//! A server: its listener, its connections, and how it ends.
//!
//! ```text
//!  serving ──drain()──▶ leaving ──Drain::accept──▶ finishing ──Drain::finish──▶ cut ──▶ ended
//!  health: SERVING      NOT_SERVING               listener closed, GOAWAY      RPCs get
//!                       still accepting           running RPCs go on           UNAVAILABLE
//!     └──────────────────────┴── kill() ─────────────────┴──────────────────────────────▶ ended
//! ```
//!
//! Connections are accepted for a while after NOT_SERVING because those who balance over this
//! server learn of it with a delay: a connection refused meanwhile would be an error somewhere.
//! The end needs a deadline because a health `Watch` or a reflection stream never ends by itself.
//!
//! The loop is ours, on hyper's connections, where `tonic::transport::Server` has one of its own:
//! that one's tasks outlive it (nothing can cut them off), and answers that it makes itself pass
//! no layer (see `rpc`). Routing, codecs, health and reflection are tonic's.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::Service;

use crate::budget::Budget;
use crate::health::Health;
use crate::hostname::hostname;
use crate::rpc::Rpcs;

/// How long each phase of a graceful end may take.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// How long connections are still accepted after the service has said that it leaves.
    pub accept: Duration,
    /// How long running RPCs may then go on before they are cut off.
    pub finish: Duration,
}

impl Default for Drain {
    /// 5 s and 30 s: with the `preStop` pause before them they fit a pod's grace period.
    fn default() -> Self {
        Self {
            accept: Duration::from_secs(5),
            finish: Duration::from_secs(30),
        }
    }
}

/// Why a server could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {}", explain(.error))]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said; the message explains it, so it is no `source`.
        error: io::Error,
    },
    /// The host's name can't be a header's value.
    #[error("the host name {0:?} cannot be sent as a header; set HOSTNAME to a name in ASCII")]
    Hostname(String),
    /// The descriptors given to [`Server::builder`] are no `FileDescriptorSet`.
    #[error("cannot offer server reflection")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// A server to be.
#[derive(Debug)]
pub struct Builder {
    routes: Routes,
    service: &'static str,
    descriptors: &'static [u8],
    hostname: Option<String>,
    budget: Option<Budget>,
    drain: Drain,
}

impl Builder {
    /// The value of the response header `hostname`. Unless given: `HOSTNAME` from the
    /// environment, else the host's own name.
    #[must_use]
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// How many bytes of messages may be in work. Unless given: [`Budget::of_container`].
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// How long the phases of a graceful end may take.
    #[must_use]
    pub fn drain(mut self, drain: Drain) -> Self {
        self.drain = drain;
        self
    }

    /// Starts to listen: connections queue up from here on, [`Server::serve`] answers them.
    ///
    /// # Errors
    /// A [`StartError`]; nothing listens then.
    pub async fn bind(self, address: SocketAddr) -> Result<Server, StartError> {
        let name = self.hostname.unwrap_or_else(hostname);
        let hostname =
            HeaderValue::from_str(&name).map_err(|_| StartError::Hostname(name.clone()))?;
        let shutdown = Shutdown::default();
        let health = Health::new(self.service, shutdown.drain.clone());
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(self.descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name(self.service)
                .with_service_name("grpc.health.v1.Health")
        };
        let routes = self
            .routes
            .add_service(HealthServer::new(health))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();

        let failed = |error| StartError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let rpcs = Rpcs {
            routes,
            hostname,
            budget: self.budget.unwrap_or_else(Budget::of_container),
            cut: CancellationToken::new(),
        };
        Ok(Server {
            listener,
            local_addr,
            rpcs,
            drain: self.drain,
            shutdown,
        })
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    rpcs: Rpcs,
    drain: Drain,
    shutdown: Shutdown,
}

impl Server {
    /// Starts to describe a server of one `service`. `descriptors` is the encoded
    /// `FileDescriptorSet` that declares it, for reflection.
    pub fn builder<S>(service: S, descriptors: &'static [u8]) -> Builder
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        Builder {
            routes: Routes::new(service),
            service: S::NAME,
            descriptors,
            hostname: None,
            budget: None,
            drain: Drain::default(),
        }
    }

    /// The address it listens on, with the real port if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The handle by which this server is ended.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Serves until [`Shutdown::drain`] has run its course or [`Shutdown::kill`] is called.
    /// Dropping the future is the same as `kill`.
    pub async fn serve(self) {
        let kill = self.shutdown.kill.clone();
        tokio::select! {
            () = kill.cancelled() => {}
            () = self.serve_and_drain() => {}
        }
    }

    async fn serve_and_drain(self) {
        let Self {
            listener,
            rpcs,
            drain,
            shutdown,
            ..
        } = self;
        let go_away = CancellationToken::new();
        // Owns the connections' tasks: when it is dropped, they and their sockets are gone.
        let mut connections = JoinSet::new();

        let mut spawn = |connections: &mut JoinSet<()>, stream, peer| {
            connections.spawn(connection(stream, peer, rpcs.clone(), go_away.clone()));
        };
        accept(
            &listener,
            &mut connections,
            &mut spawn,
            shutdown.drain.cancelled(),
        )
        .await;
        tracing::info!(connections = connections.len(), "draining");
        accept(&listener, &mut connections, &mut spawn, sleep(drain.accept)).await;
        drop(listener);

        go_away.cancel();
        if timeout(drain.finish, ended(&mut connections))
            .await
            .is_err()
        {
            tracing::warn!(
                connections = connections.len(),
                "cutting off what still runs"
            );
            rpcs.cut.cancel();
            // Nobody waits longer for one who doesn't read.
            let _ = timeout(FAREWELL, ended(&mut connections)).await;
        }
    }
}

/// Ends a [`Server`]. Clones end the same one.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    kill: CancellationToken,
}

impl Shutdown {
    /// Ends it gracefully; health says NOT_SERVING before this returns. Once is enough.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends it as a crash would: the listener and all connections are closed at once.
    pub fn kill(&self) {
        self.kill.cancel();
    }
}

/// Accepts connections until `end`, and forgets those that have ended.
async fn accept(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    spawn: &mut impl FnMut(&mut JoinSet<()>, TcpStream, SocketAddr),
    end: impl Future<Output = ()>,
) {
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            biased;
            () = &mut end => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => spawn(connections, stream, peer),
                // Most often no free file descriptor: without a pause this loop would spin.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// One client connection, until it ends; after `go_away` it takes no new RPCs.
async fn connection(stream: TcpStream, peer: SocketAddr, rpcs: Rpcs, go_away: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        // The peer has gone already; reading will say so.
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    // hyper waits for the preface for ever, without a PING, and GOAWAY has to wait for it, too; a
    // client that hasn't sent its SETTINGS would answer no PING.
    let (mut reader, writer) = stream.into_split();
    let mut beginning = [0; BEGINNING];
    let begun = tokio::select! {
        biased;
        begun = timeout(BEGIN, reader.read_exact(&mut beginning)) => begun,
        // What was on its way then has time to come, and is told by GOAWAY what it missed.
        () = async { go_away.cancelled().await; sleep(LAST_CALL).await } => return,
    };
    if !matches!(begun, Ok(Ok(_))) {
        tracing::debug!(%peer, "a connection that didn't begin");
        return;
    }
    let stream = tokio::io::join(Cursor::new(beginning).chain(reader), writer);
    let service = service_fn(|request: Request<Incoming>| rpcs.clone().handle(peer, request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = go_away.cancelled() => {
            // GOAWAY, a PING, and when that is answered the last stream's number (RFC 9113 §6.8).
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "connection ended with an error");
    }
}

async fn ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use; end the other process or choose another with --port or PORT"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; choose another with --address".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need a privilege; choose another with --port or PORT".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Streams that a client may have open on one connection. RFC 9113 §6.5.2 recommends no less.
const MAX_STREAMS: u32 = 100;

/// How much of an upload may be under way, in bytes: 200 MB/s at a round trip of 1 ms.
const STREAM_WINDOW: u32 = 256 * 1024;

/// All streams' windows together: a handler that doesn't read holds back its own upload and no
/// other's, since the connection's window can never run out first.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Decoded size of a request's headers, in bytes: what the proxy in front lets through (32 KiB)
/// and what it adds.
const MAX_HEADER_LIST: u32 = 48 * 1024;

/// A peer that vanished without a word (its node is gone) is found after these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a client sends first: the preface, and the head of a SETTINGS frame (RFC 9113 §3.4, §4.1).
const BEGINNING: usize = 24 + 9;

/// How long that may take; clients send it at once.
const BEGIN: Duration = Duration::from_secs(10);

/// How long it may take when GOAWAY is due: a round trip.
const LAST_CALL: Duration = Duration::from_millis(500);

/// How long the last trailers may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
