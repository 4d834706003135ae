//! The data path without a kernel, a thread of its own and chance: for the simulation and the fuzz targets.
//!
//! It is a worker as it serves: every connection is its task and takes its turns, deadlines fire, RPCs are balanced,
//! attempted again, cut. What differs: connections are [`pipe`](super::pipe)s, backends are found in a [`Network`], the
//! wall clock and all random numbers begin at what is given, and tasks run on the caller's `LocalSet`, under the caller's
//! clock. TLS, the acceptor and HTTP/1.1 aren't here.
//!
//! [`leftovers`](Stage::leftovers) says what a data path must not have when nothing is under way: each window must be
//! whole, each count be back at zero. Whoever ends a run asks for it.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use http2::{Connection, Event, Headers};
use tokio::task::JoinHandle;

use super::{
    access_log::{AccessLog, AccessLogConfig, AccessLogFormat},
    downstream::{self, ClientConnection},
    memory::{Account, Memory},
    pipe::PipeEnd,
    rpc,
    tls::Transport,
    upstream::Upstream,
    wire::{Link, Side as _},
    worker::{self, Worker},
};
use crate::{
    snapshot::{Hints, Snapshot},
    telemetry::metrics::{Counter, Metrics, Shard, Side},
};

/// Where the data path's connections to backends lead.
pub trait Network {
    /// A connection to a backend, or why there is none.
    fn connect(&self, address: SocketAddr) -> Connecting;
}

/// A connection that is being opened.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<PipeEnd>>>>;

/// A worker on the caller's `LocalSet`. See the module's head.
pub struct Stage {
    pub(crate) worker: Rc<Worker>,
    shard: Arc<Shard>,
    /// The worker's own tasks, which never end.
    tasks: Vec<JoinHandle<()>>,
}

impl Stage {
    /// Serves `snapshot`; `granted` bytes of memory, if there is a limit.
    ///
    /// # Errors
    /// None, while no access log is written.
    pub fn new(
        snapshot: Arc<Snapshot>,
        network: Rc<dyn Network>,
        granted: Option<u64>,
        seed: u64,
    ) -> io::Result<Self> {
        let log = AccessLog::start(&AccessLogConfig {
            format: AccessLogFormat::Off,
            path: None,
        })?;
        let shard = Metrics::new().shard();
        let memory = Account::new(Memory::new(granted, 1), 0);
        let hints = Arc::<Hints>::default();
        let worker = Worker::new(snapshot, shard.clone(), log.writer(), hints, memory);
        worker.seed(seed, SystemTime::UNIX_EPOCH + EPOCH);
        *worker.network.borrow_mut() = Some(network);
        let relieve = {
            let worker = worker.clone();
            async move {
                loop {
                    worker.exceeded().await;
                    rpc::relieve(&worker);
                }
            }
        };
        let tasks = vec![
            tokio::task::spawn_local(relieve),
            tokio::task::spawn_local(worker::fire_timers(worker.clone())),
        ];
        Ok(Self {
            worker,
            shard,
            tasks,
        })
    }

    /// Serves a client on `end`, which has chosen HTTP/2.
    pub fn accept(&self, end: PipeEnd, peer: SocketAddr) {
        let worker = self.worker.clone();
        tokio::task::spawn_local(async move {
            let now = worker.tick();
            let policy = worker.snapshot().listener.clone();
            let shard = worker.shard.clone();
            let counters = shard.connections(Side::Downstream);
            counters.opened.inc();
            let transport = Transport::Memory(end);
            downstream::http2(worker, transport, Vec::new(), peer, policy, now, ()).await;
            counters.closed.inc();
        });
    }

    /// Serves by this snapshot from now on.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.worker.tick();
        self.worker.follow(snapshot);
    }

    /// Bytes held back: queued, in outputs, and kept for further attempts.
    pub fn held(&self) -> usize {
        self.worker.memory.held()
    }

    /// RPCs that run.
    pub fn rpcs(&self) -> usize {
        self.worker.rpcs.borrow().len()
    }

    /// Connections that are open, from clients and to backends.
    pub fn connections(&self) -> (u64, u64) {
        let open = |side| {
            let counters = self.shard.connections(side);
            counters.opened.get() - counters.closed.get()
        };
        (open(Side::Downstream), open(Side::Upstream))
    }

    /// What is there although nothing is under way, a line each; nothing, if all is well.
    pub fn leftovers(&self) -> Vec<String> {
        let worker = &self.worker;
        let mut found = Vec::new();
        let mut expect = |what: &str, count: u64| {
            if count > 0 {
                found.push(format!("{what}: {count}"));
            }
        };
        let (_, opening, waiting) = worker.pool.counts();
        expect("RPCs", self.rpcs() as u64);
        expect("connections being opened", opening as u64);
        expect("RPCs that wait for a connection", waiting as u64);
        expect("bytes on the worker's account", self.held() as u64);
        let (mut started, mut ended) = (0, 0);
        for series in self.shard.all_series() {
            started += series.started.get();
            ended += series.all_ended().iter().map(Counter::get).sum::<u64>();
        }
        expect("RPCs counted in and not out", started.abs_diff(ended));
        for (name, cluster) in self.shard.all_clusters() {
            expect(
                &format!("attempts of {name}"),
                cluster.active.get().unsigned_abs(),
            );
        }
        for cluster in &worker.snapshot().clusters {
            for endpoint in &cluster.endpoints {
                let active = endpoint.shared.active.load(Ordering::Relaxed);
                expect(&format!("attempts on {}", endpoint.shared.label), active);
            }
            for circuit in cluster.circuits.uses() {
                if circuit.circuit != crate::snapshot::circuit::Circuit::Connections {
                    expect(
                        &format!("permits of {}", circuit.circuit.key()),
                        circuit.used.into(),
                    );
                }
            }
        }
        for client in worker.clients.borrow().values() {
            if let ClientConnection::Http2(connection) = client {
                found.extend(of_link(
                    &format!("client {}", connection.peer()),
                    connection.link(),
                ));
            }
        }
        for connection in worker.pool.connections() {
            let connection: Rc<Upstream> = connection;
            found.extend(of_link("connection to a backend", connection.link()));
        }
        found
    }

    /// Ends the worker. Whoever else still holds it is a task that hasn't ended: so many there are.
    pub async fn finish(self) -> usize {
        for task in self.tasks {
            task.abort();
            // Aborted, which is what was wanted.
            let _ = task.await;
        }
        Rc::strong_count(&self.worker) - 1
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("rpcs", &self.rpcs())
            .finish_non_exhaustive()
    }
}

/// A backend's part: answers every RPC, when its request has ended, with its body and status 0.
pub fn echo() -> impl FnMut(&mut Connection, Event<'_>) {
    let mut bodies = HashMap::<u32, Vec<u8>>::new();
    move |engine, event| {
        let (stream, ended) = match event {
            Event::Headers {
                stream, end_stream, ..
            } => {
                bodies.insert(stream, Vec::new());
                (stream, end_stream)
            }
            Event::Data {
                stream,
                bytes,
                end_stream,
                ..
            } => {
                bodies.entry(stream).or_default().extend_from_slice(bytes);
                engine.credit(stream, bytes.len());
                (stream, end_stream)
            }
            Event::Trailers { stream, .. } => (stream, true),
            _ => return,
        };
        if ended {
            let body = bodies.remove(&stream).unwrap_or_default();
            let head = [(":status", "200"), ("content-type", "application/grpc")];
            engine.send_headers(stream, &Headers::from_iter(head), false);
            let now = tokio::time::Instant::now().into_std();
            engine.send_data(stream, &body, false, now);
            let trailers = [("grpc-status", "0"), ("x-envoy-of-backend", "1")];
            engine.send_trailers(stream, &Headers::from_iter(trailers));
        }
    }
}

/// [`Network::connect`] where the worker has one, else what the kernel says.
pub(super) async fn instead(
    worker: &Worker,
    address: SocketAddr,
    kernel: impl Future<Output = io::Result<Transport>>,
) -> io::Result<Transport> {
    let network = worker.network.borrow().clone();
    match network {
        Some(network) => network.connect(address).await.map(Transport::Memory),
        None => kernel.await,
    }
}

fn of_link(name: &str, link: &Link) -> Vec<String> {
    let engine = link.engine();
    let windows = engine.windows();
    let counts = [
        ("streams", engine.stream_count() as i64),
        ("bytes queued", engine.pending_bytes() as i64),
        ("bytes to write", engine.output().len() as i64),
        ("bytes of the window outstanding", windows.outstanding()),
    ];
    let found = counts.into_iter().filter(|(_, count)| *count != 0);
    found
        .map(|(what, count)| format!("{name}: {what}: {count}"))
        .collect()
}

/// When every run begins, on the wall clock: 2026-11-25.
const EPOCH: Duration = Duration::from_secs(1_795_564_800);
