//! What the tests of this plane need: a worker without a thread of its own, clients and backends that do what a test
//! says, and a clock that it moves.

// How tests run: which clock they have, and how they wait.
mod clock;
// Backends that a script answers for.
mod backend;
// A client with an engine.
mod client;
// A client that says frames.
mod raw;
// Panics at a place of the code's.
mod trap;

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http2::Headers;

pub(crate) use self::{
    backend::{backend, backend_behind, is_barrier, serve, whole_frames},
    client::{Client, Got},
    clock::{at_once, elapse, frozen, now, pass, paused, running, settle, stopped, until},
    raw::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, frame,
    },
    trap::{arm, trip},
};
pub(crate) use super::stage::echo;
use super::{
    access_log::{AccessLog, AccessLogConfig, AccessLogFormat},
    memory::{Account, Memory},
    route::RouteTable,
    rpc,
    worker::{self, Worker},
};
use crate::{
    snapshot::{
        Cluster, ClusterPolicy, EdgeHealthCheck, Endpoint, EndpointShared, Health, Hints,
        Http2Policy, ListenerPolicy, Route, RouteAction, Snapshot, Timeouts, TlsIdentity,
    },
    telemetry::metrics::{Metrics, Shard},
};

/// A worker whose tasks run on the test's [`LocalSet`](tokio::task::LocalSet), and what it writes.
pub(crate) struct Bench {
    pub(crate) worker: Rc<Worker>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shard: Arc<Shard>,
    pub(crate) log: RefCell<AccessLog>,
    directory: tempfile::TempDir,
}

impl Bench {
    /// `/direct/` is answered with 200 and "direct", `/api.` and `/plain/` go to `backends`.
    pub(crate) fn new(backends: &[SocketAddr]) -> Self {
        Self::with(backends, policy(), cluster_policy())
    }

    pub(crate) fn with(
        backends: &[SocketAddr],
        listener: ListenerPolicy,
        cluster: ClusterPolicy,
    ) -> Self {
        Self::within(None, backends, listener, cluster)
    }

    /// With so many bytes of memory granted.
    pub(crate) fn within(
        granted: Option<u64>,
        backends: &[SocketAddr],
        listener: ListenerPolicy,
        cluster: ClusterPolicy,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = AccessLog::start(&AccessLogConfig {
            format: AccessLogFormat::Text,
            path: Some(directory.path().join("log")),
        })
        .unwrap();
        let metrics = Metrics::new();
        let shard = metrics.shard();
        let snapshot = Arc::new(snapshot(backends, listener, cluster));
        let memory = Account::new(Memory::new(granted, 1), 0);
        let hints = Arc::<Hints>::default();
        let worker = Worker::new(snapshot, shard.clone(), log.writer(), hints, memory);
        tokio::task::spawn_local({
            let worker = worker.clone();
            async move {
                loop {
                    worker.exceeded().await;
                    rpc::relieve(&worker);
                }
            }
        });
        tokio::task::spawn_local(worker::fire_timers(worker.clone()));
        Self {
            worker,
            metrics,
            shard,
            log: RefCell::new(log),
            directory,
        }
    }

    /// Moves a [`frozen`] clock; a PING that was due to a backend is answered then.
    pub(crate) async fn pass_and_pong(&self, time: Duration) {
        pass(time).await;
        settle().await;
        let backends = || self.worker.pool.connections();
        at_once(|| !backends().iter().any(|one| one.awaits_pong())).await;
    }

    /// What it serves, with a certificate that a client with this configuration trusts.
    pub(crate) fn trusted(&self) -> (Snapshot, Arc<rustls::ClientConfig>) {
        let (config, client) = tls();
        let mut snapshot = Snapshot::clone(&self.worker.snapshot());
        snapshot.tls = Some(Arc::new(TlsIdentity {
            config,
            serial: String::new(),
            not_after: 0,
        }));
        (snapshot, client)
    }

    /// The first cluster changes.
    pub(crate) fn reload(&self, change: impl FnOnce(&mut Cluster)) {
        let mut snapshot = Snapshot::clone(&self.worker.snapshot());
        change(Arc::make_mut(&mut snapshot.clusters[0]));
        self.worker.follow(Arc::new(snapshot));
    }

    /// The access log so far; nothing is logged after this.
    pub(crate) fn logged(&self) -> Vec<String> {
        assert!(self.log.borrow_mut().finish(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

pub(crate) fn headers(fields: &[(&str, &str)]) -> Headers {
    fields.iter().copied().collect()
}

/// The head of a gRPC request.
pub(crate) fn grpc(path: &str) -> Headers {
    headers(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A server's and a client's TLS configuration that trust each other, for `localhost`.
pub(crate) fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let certificate = pair.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

/// The configuration's defaults.
pub(crate) fn policy() -> ListenerPolicy {
    let seconds = Duration::from_secs;
    ListenerPolicy {
        server_name: "edge-proxy".into(),
        health_check: Some(EdgeHealthCheck {
            path: "/healthz".into(),
            header: Some(("x-envoy-livenessprobe".into(), "healthz".into())),
        }),
        max_connections: 100,
        max_connections_per_source: 100,
        max_pending_handshakes: 100,
        max_connection_age: seconds(1800),
        max_connection_age_grace: None,
        keepalive_interval: seconds(60),
        keepalive_timeout: seconds(20),
        timeouts: Timeouts {
            tls_handshake: seconds(5),
            preface: seconds(10),
            header_block: seconds(10),
            stream_idle: seconds(300),
            write_stall: seconds(30),
            stream_window_stall: seconds(60),
            idle: seconds(900),
        },
        http2: Http2Policy {
            max_concurrent_streams: 100,
            initial_stream_window_size: 64 * 1024,
            initial_connection_window_size: 1 << 20,
            max_header_bytes: 8 * 1024,
        },
    }
}

pub(crate) fn cluster_policy() -> ClusterPolicy {
    ClusterPolicy {
        connect_timeout: Duration::from_secs(5),
        max_connections: 8,
        per_connection_streams: 100,
        initial_stream_window_size: 256 * 1024,
        initial_connection_window_size: 100 * 256 * 1024,
        max_replay_bytes: 64 * 1024,
    }
}

/// What a [`Bench`] serves.
pub(crate) fn snapshot(
    backends: &[SocketAddr],
    listener: ListenerPolicy,
    policy: ClusterPolicy,
) -> Snapshot {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|address| {
            Arc::new(Endpoint {
                shared: EndpointShared::new(*address),
                health: Health::Healthy,
                close_connections: false,
            })
        })
        .collect();
    let cluster = Arc::new(Cluster {
        name: "backends".into(),
        policy: Arc::new(policy),
        eligible: endpoints.clone(),
        endpoints,
        turn: Arc::default(),
        circuits: Arc::default(),
    });
    let to_cluster = |prefix: &str| Route {
        prefix: prefix.into(),
        action: RouteAction::Cluster {
            cluster: 0,
            timeout: None,
            max_grpc_timeout: None,
        },
    };
    let direct = Route {
        prefix: "/direct/".into(),
        action: RouteAction::DirectResponse {
            status: 200,
            body: "direct".into(),
        },
    };
    Snapshot {
        generation: 1,
        listener: Arc::new(listener),
        routes: Arc::new(RouteTable::new(vec![
            direct,
            to_cluster("/api."),
            to_cluster("/plain/"),
        ])),
        clusters: vec![cluster],
        tls: Some(Arc::new(TlsIdentity {
            config: tls().0,
            serial: String::new(),
            not_after: 0,
        })),
        serving: true,
    }
}
