//! The seam between the two planes: what the control plane knows, as the data plane reads it.
//!
//! Downwards goes a [`Snapshot`]: immutable, complete, consistent in itself. The control plane builds a whole new one
//! for every change (an endpoint's health, a DNS answer, a certificate, a configuration) and publishes it; every
//! worker is woken, takes its `Arc`, and uses it until the next. A request therefore never sees half a change, and no
//! lock that another worker takes is on its path. What must outlive a publication (the round-robin turn, an endpoint's identity and counters)
//! hangs in `Arc`s that are carried from one snapshot to the next.
//!
//! Upwards go hints ([`Hints`]): "a connect to this endpoint failed", "it sent GOAWAY". They are joined: a flag per
//! endpoint and one wake-up, so that a storm of failures costs the control plane one look, never a queue. Failures in a
//! row are counted in [`streak`], and what of a cluster is in use in [`circuit`]: by all workers, without a lock.

// How much of a cluster may be in use at once.
pub mod circuit;
// How near the process is to its memory's limit.
pub mod pressure;
// How many attempts on an endpoint failed in a row.
pub mod streak;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use self::{
    circuit::Circuits,
    streak::{Ending, Streaks},
};
use crate::data_plane::route::RouteTable;

/// Everything a worker needs to serve requests, as of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts publications, from 1. For logs and `/config_dump`.
    pub generation: u64,
    /// Rules of the listener that can change without a restart.
    pub listener: Arc<ListenerPolicy>,
    /// Tried in order; the first match wins.
    pub routes: Arc<RouteTable>,
    /// In the configuration's order; [`RouteAction::Cluster`] indexes into it.
    pub clusters: Vec<Arc<Cluster>>,
    /// The certificate to serve; `None` until the first good pair was read.
    pub tls: Option<Arc<TlsIdentity>>,
    /// False after `/healthcheck/fail`: `/healthz` answers 503.
    pub serving: bool,
}

/// What the listener enforces. Names and defaults are the configuration's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerPolicy {
    /// The `server` response header.
    pub server_name: Arc<str>,
    /// `/healthz` and the header that asks for it; answered without a backend.
    pub health_check: Option<EdgeHealthCheck>,
    /// Connections open at once.
    pub max_connections: usize,
    /// Connections open at once from one source: an IPv4 address, or the /64 of an IPv6 address.
    pub max_connections_per_source: usize,
    /// Connections between accept and the end of their TLS handshake.
    pub max_pending_handshakes: usize,
    /// After this (± 10 %) a connection gets its GOAWAY.
    pub max_connection_age: Duration,
    /// How long running streams may go on after that; `None`: as long as they want.
    pub max_connection_age_grace: Option<Duration>,
    /// PING to clients: every `interval` while streams are open, five times as rarely otherwise.
    pub keepalive_interval: Duration,
    /// How long the answer to that PING may take.
    pub keepalive_timeout: Duration,
    /// The listener's time limits.
    pub timeouts: Timeouts,
    /// The HTTP/2 engine's limits towards clients.
    pub http2: Http2Policy,
}

/// `listener.health_check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeHealthCheck {
    /// Compared byte for byte.
    pub path: Arc<str>,
    /// Name (lower case) and value that must be there; `None`: the path alone decides.
    pub header: Option<(Arc<str>, Arc<str>)>,
}

/// `listener.timeouts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Accept to the end of the TLS handshake.
    pub tls_handshake: Duration,
    /// Accept to HTTP/2 preface and SETTINGS, or to whole HTTP/1.1 headers.
    pub preface: Duration,
    /// An open HTTP/2 header block.
    pub header_block: Duration,
    /// No byte either way on a stream.
    pub stream_idle: Duration,
    /// A socket write without progress.
    pub write_stall: Duration,
    /// A stream whose send window stays closed, and a backend's connection window that does while others wait for it.
    pub stream_window_stall: Duration,
    /// A connection without streams.
    pub idle: Duration,
}

/// `http2` of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Policy {
    /// Streams that a client may have open.
    pub max_concurrent_streams: u32,
    /// Bytes per stream before credit.
    pub initial_stream_window_size: u32,
    /// Bytes per connection before credit.
    pub initial_connection_window_size: u32,
    /// Header list size above which a request is answered 431.
    pub max_header_bytes: u32,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Compared with the path byte for byte, never decoded or normalised.
    pub prefix: Arc<str>,
    /// What to do with a request that matches.
    pub action: RouteAction,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// To a cluster.
    Cluster {
        /// Index into [`Snapshot::clusters`].
        cluster: usize,
        /// Covers the whole RPC; `None`: no limit of the route's.
        timeout: Option<Duration>,
        /// Caps what clients ask for by `grpc-timeout`.
        max_grpc_timeout: Option<Duration>,
    },
    /// Answered here.
    DirectResponse {
        /// The HTTP status.
        status: u16,
        /// `text/plain`.
        body: Arc<str>,
    },
}

/// One cluster and its endpoints, as of one moment.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The configuration's name.
    pub name: Arc<str>,
    /// What doesn't change with discovery and health.
    pub policy: Arc<ClusterPolicy>,
    /// All that are known, in a stable order (by address).
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Those that the balancer may choose from now, computed by the control plane: the healthy ones that discovery
    /// names (or, until one of them is healthy, those that left its answer and still pass), or all of them when
    /// `panic_threshold` says so.
    pub eligible: Vec<Arc<Endpoint>>,
    /// The round-robin turn: shared by all workers and carried across publications, so the balance is exact.
    pub turn: Arc<Turns>,
    /// The circuit limits and what is in use: shared and carried likewise.
    pub circuits: Arc<Circuits>,
}

/// Whose turn it is in a cluster. By default the first endpoint's, see [`Turns::anywhere`].
#[derive(Debug, Default)]
pub struct Turns {
    /// Counts RPCs.
    pub first: AtomicUsize,
    /// Counts their further attempts.
    pub further: AtomicUsize,
}

/// `clusters[]`, without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// For one connection attempt, and for the backend's SETTINGS after it.
    pub connect_timeout: Duration,
    /// HTTP/2 connections per endpoint and worker.
    pub max_connections: usize,
    /// Streams per such connection (the peer's own limit applies too).
    pub per_connection_streams: u32,
    /// Receive window per stream.
    pub initial_stream_window_size: u32,
    /// Receive window per connection.
    pub initial_connection_window_size: u32,
    /// Bytes of a request's body kept for another attempt.
    pub max_replay_bytes: usize,
}

/// One pod address of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// What stays when health changes.
    pub shared: Arc<EndpointShared>,
    /// As the health checker sees it.
    pub health: Health,
    /// An endpoint ejected by time-outs: its connections are to be closed, their RPCs can't be trusted to end.
    pub close_connections: bool,
}

/// An endpoint's identity and counters: one per address for as long as the cluster knows it.
#[derive(Debug)]
pub struct EndpointShared {
    /// Unique in the process, never used again: workers key their connections by it.
    pub id: u64,
    /// Where to connect to.
    pub address: SocketAddr,
    /// `address` as text, made once.
    pub label: Arc<str>,
    /// Set by workers, cleared by the control plane: see [`Hints`].
    pub suspect: AtomicBool,
    /// Streams opened for RPCs, all workers together.
    pub attempts: AtomicU64,
    /// Those of them that ended with a failure, the backend's or ours.
    pub failures: AtomicU64,
    /// RPC attempts running.
    pub active: AtomicU64,
    /// Open HTTP/2 connections, all workers together.
    pub connections: AtomicU64,
    /// Attempts that failed in a row: see [`Hints`].
    pub streaks: Streaks,
}

/// Why an endpoint is, or isn't, chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its checks pass, or its cluster has none.
    Healthy,
    /// No check has ended yet.
    Unknown,
    /// Ejected, with the reason in words for operators.
    Unhealthy(Arc<str>),
}

/// The pair that new connections are served with.
pub struct TlsIdentity {
    /// Built once per pair: TLS 1.2 and 1.3, ALPN `h2`, `http/1.1`, session resumption.
    pub config: Arc<rustls::ServerConfig>,
    /// Serial number of the leaf, hexadecimal.
    pub serial: String,
    /// When the leaf expires, seconds since the epoch.
    pub not_after: i64,
}

/// Publishes snapshots: the control plane's end.
#[derive(Debug)]
pub struct Publisher(watch::Sender<Arc<Snapshot>>);

/// Reads snapshots: one per worker, cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Arc<Snapshot>>);

/// The way back: what workers noticed and the control plane should look at now.
#[derive(Debug, Default)]
pub struct Hints {
    wake: Notify,
}

/// Liveness of the workers: each writes the milliseconds since `start` once a second.
#[derive(Debug)]
pub struct Heartbeats {
    start: std::time::Instant,
    beats: Vec<AtomicU64>,
}

impl Publisher {
    /// Starts with `first`, and gives the first reader.
    pub fn new(first: Snapshot) -> (Self, Reader) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (Self(sender), Reader(receiver))
    }

    /// Replaces the snapshot and wakes every worker. `generation` is counted here.
    pub fn publish(&self, mut next: Snapshot) {
        self.0.send_modify(|current| {
            next.generation = current.generation + 1;
            *current = Arc::new(next);
        });
    }

    /// What is published now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.0.borrow().clone()
    }
}

impl Reader {
    /// The newest snapshot; from here on [`changed`](Self::changed) waits for a newer one.
    pub fn load(&mut self) -> Arc<Snapshot> {
        self.0.borrow_and_update().clone()
    }

    /// Waits for a snapshot newer than the last one loaded. `false`: the control plane has ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl Turns {
    /// Beginning at an endpoint that chance chooses. Endpoints are in the order of their addresses everywhere: proxies that
    /// start together would all give their first RPCs to the same pod.
    pub fn anywhere() -> Self {
        // Of 32 bits, so that they don't run over: the order would break there.
        let anywhere = || AtomicUsize::new(rand::random::<u32>() as usize);
        Self {
            first: anywhere(),
            further: anywhere(),
        }
    }
}

impl EndpointShared {
    /// A new address of a cluster.
    pub fn new(address: SocketAddr) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            label: address.to_string().into(),
            suspect: AtomicBool::new(false),
            attempts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            active: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            streaks: Streaks::default(),
        })
    }
}

impl Hints {
    /// A worker failed to connect to `endpoint`, or got a GOAWAY from it: check its health and look its name up now
    /// (the control plane limits how often).
    pub fn suspect(&self, endpoint: &EndpointShared) {
        if !endpoint.suspect.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// `times` attempts on `endpoint` ended so, one after the other. Costs one relaxed load if all is well.
    #[inline]
    pub fn attempted(&self, endpoint: &EndpointShared, ending: Ending, times: u32) {
        if endpoint.streaks.count(ending, times) {
            self.wake.notify_one();
        }
    }

    /// The control plane's end: waits until some endpoint's `suspect` was set or a streak reached its threshold.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }
}

impl Heartbeats {
    /// For `workers` workers, all alive now.
    pub fn new(workers: usize) -> Arc<Self> {
        Self::since(std::time::Instant::now(), workers)
    }

    /// For `workers` workers that were alive at `start`.
    pub fn since(start: std::time::Instant, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            start,
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Called by worker `worker` once a second.
    pub fn beat(&self, worker: usize) {
        if let Some(beat) = self.beats.get(worker) {
            beat.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// How long each worker hasn't run.
    pub fn ages(&self) -> impl Iterator<Item = Duration> {
        let now = self.start.elapsed().as_millis() as u64;
        let age = move |beat: &AtomicU64| now.saturating_sub(beat.load(Ordering::Relaxed));
        self.beats
            .iter()
            .map(move |beat| Duration::from_millis(age(beat)))
    }

    /// How long the worker that is furthest behind hasn't run.
    pub fn oldest(&self) -> Duration {
        let now = self.start.elapsed().as_millis() as u64;
        let oldest = self
            .beats
            .iter()
            .map(|beat| beat.load(Ordering::Relaxed))
            .min();
        Duration::from_millis(now.saturating_sub(oldest.unwrap_or(now)))
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
