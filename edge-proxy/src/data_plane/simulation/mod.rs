//! Clients, the data path and backends that fail, by a seed.
//!
//! The data path is the worker's own, on a [`Stage`]: its tasks, its turns, its deadlines. Around it are honest clients and
//! honest backends with engines of their own, and a network that is slow, cuts and stalls. A seed decides everything: how
//! many there are of each, their limits, every RPC, every delay, and what goes wrong when. The clock is paused and
//! jumps from one event to the next, one thread runs all tasks, so a seed is the same run each time, to the byte: that is tested
//! too.
//!
//! At the end of a run, when what went wrong is right again:
//!
//! - nothing is lost: each RPC has ended, once, in a way that its history explains ([`world`]);
//! - nothing is repeated: no RPC was executed by two backends, or twice by one;
//! - all bytes that arrived are those that were sent;
//! - windows and counts are whole, in the data path and in all peers: no stream, no byte, no permit is left;
//! - no task and no connection is left once the clients have gone.
//!
//! `EDGE_SIM_SEED=7 cargo test -p edge-proxy --lib simulation::one -- --nocapture` runs one seed and prints what happens
//! in it; `EDGE_SIM_SEEDS=10000` (with `EDGE_SIM_FIRST`, if not from 0) is for `simulation::many`, with `--release`.

// A backend, a client, and what both are made of.
mod backend;
mod client;
mod peer;

// Between them.
mod network;

// What is to happen, what happened, and whether that is allowed.
mod plan;
mod world;

// And against it.
mod faults;

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, rngs::SmallRng};
use tokio::task::LocalSet;

use self::{
    backend::Backend,
    client::Client,
    network::Network,
    plan::{engine, plan},
    world::{What, World},
};
use super::{
    route::RouteTable,
    stage::Stage,
    testing::{self, now},
    worker::Phase,
};
use crate::snapshot::{
    Cluster, ClusterPolicy, Endpoint, EndpointShared, Health, ListenerPolicy, Route, RouteAction,
    Snapshot, streak::Streaks,
};

/// What came of a seed.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Of everything that happened, in order.
    trace: u64,
    events: usize,
    rpcs: usize,
    problems: Vec<String>,
}

/// A run, in a thread of its own: what a thread keeps (spare buffers) is a part of the state.
fn run(seed: u64, print: bool) -> Outcome {
    let run = move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, simulate(seed, print))
    };
    std::thread::spawn(run).join().unwrap_or_else(|_| Outcome {
        trace: 0,
        events: 0,
        rpcs: 0,
        problems: vec!["a panic".to_owned()],
    })
}

/// What a run is made of.
struct Simulation {
    world: Rc<World>,
    network: Rc<Network>,
    stage: Rc<Stage>,
    listener: Arc<ListenerPolicy>,
    policy: Arc<ClusterPolicy>,
    /// One for each backend.
    endpoints: Vec<Known>,
    /// Ids are this run's own: nothing that another run did may change an order.
    next_id: u64,
    generation: u64,
    turn: Arc<crate::snapshot::Turns>,
    circuits: Arc<crate::snapshot::circuit::Circuits>,
}

/// An endpoint, as the control plane knows it.
struct Known {
    shared: Arc<EndpointShared>,
    present: bool,
    healthy: bool,
    close: bool,
}

async fn simulate(seed: u64, print: bool) -> Outcome {
    let replayable = if seed.is_multiple_of(3) {
        4_000
    } else {
        64 * 1024
    };
    let world = Rc::new(World::new(seed, replayable, print));
    let mut random = world.random();
    let mut simulation = Simulation::new(seed, &world, &mut random);
    let clients: Vec<_> = (0..random.random_range(1..5))
        .map(|index| Client::new(index, engine(&mut random)))
        .collect();
    let span = Duration::from_secs(random.random_range(2..25));
    let rpcs = random.random_range(5..60);
    for _ in 0..rpcs {
        world.add(plan(&mut random, clients.len(), span));
    }
    let calls: Vec<_> = (0..rpcs)
        .map(|id| {
            let client = clients[world.plan(id).client].clone();
            let call = client::call(world.clone(), simulation.network.clone(), client, id);
            tokio::task::spawn_local(call)
        })
        .collect();

    simulation.go_wrong(&mut random, clients.len(), span).await;
    simulation.heal();
    let drained = random.random_bool(0.2);
    if drained {
        world.note(format_args!("drain"));
        let since = now();
        let until = since + Duration::from_secs(10);
        simulation
            .stage
            .worker
            .enter(Phase::Draining { since, until });
    }
    for call in calls {
        // Whoever doesn't end is found by `judge`.
        let _ = tokio::time::timeout(LONGEST, call).await;
    }
    // Whoever was cancelled learns it, however slow he reads.
    let told = async {
        while world.handlers.get() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let _ = tokio::time::timeout(LONGEST, told).await;
    tokio::time::sleep(QUIET).await;
    world.judge();
    let peers = clients
        .iter()
        .filter_map(|client| client.current.borrow().clone());
    let backends = simulation.network.backends.iter();
    let backends = backends.flat_map(|backend| backend.peers.borrow().clone());
    for peer in peers.chain(backends).filter(|peer| !peer.is_over()) {
        for left in peer.leftovers() {
            world.problem(format!("left: {left}"));
        }
    }
    for left in simulation.stage.leftovers() {
        world.problem(format!("left in the data path: {left}"));
    }
    if world.handlers.get() > 0 {
        world.problem(format!(
            "left: {} handlers of backends",
            world.handlers.get()
        ));
    }
    simulation.end(&clients, drained).await;
    let (trace, events) = world.trace();
    Outcome {
        trace,
        events,
        rpcs,
        problems: world.problems(),
    }
}

impl Simulation {
    fn new(seed: u64, world: &Rc<World>, random: &mut SmallRng) -> Self {
        let backends: Vec<_> = (0..random.random_range(1..5))
            .map(|index| Rc::new(Backend::new(index, engine(random))))
            .collect();
        let network = Network::new(world.clone(), backends.clone());
        let mut listener = testing::policy();
        listener.max_connection_age =
            Duration::from_secs([1800, 1800, 10, 3][random.random_range(0..4)]);
        listener.http2.max_concurrent_streams = [100, 100, 3][random.random_range(0..3)];
        listener.http2.initial_stream_window_size = [64, 64, 4][random.random_range(0..3)] * 1024;
        let policy = ClusterPolicy {
            connect_timeout: CONNECT,
            per_connection_streams: [100, 100, 5][random.random_range(0..3)],
            initial_stream_window_size: [256, 256, 16][random.random_range(0..3)] * 1024,
            max_replay_bytes: world.replayable,
            ..testing::cluster_policy()
        };
        let mut next_id = 0;
        let endpoints = backends.iter().map(|backend| {
            next_id += 1;
            Known {
                shared: shared(backend, next_id),
                present: true,
                healthy: true,
                close: false,
            }
        });
        let endpoints = endpoints.collect();
        let (listener, policy) = (Arc::new(listener), Arc::new(policy));
        let first = Arc::new(Snapshot {
            generation: 0,
            listener: listener.clone(),
            routes: Arc::new(RouteTable::new(Vec::new())),
            clusters: Vec::new(),
            tls: None,
            serving: true,
        });
        let stage = Stage::new(first, network.clone(), None, seed).unwrap();
        let stage = Rc::new(stage);
        network.serve(Some(stage.clone()));
        let mut simulation = Self {
            world: world.clone(),
            network,
            stage,
            listener,
            policy,
            endpoints,
            next_id,
            generation: 0,
            turn: Arc::default(),
            circuits: Arc::default(),
        };
        simulation.publish();
        simulation
    }

    fn publish(&mut self) {
        self.generation += 1;
        let endpoint = |known: &Known| {
            Arc::new(Endpoint {
                shared: known.shared.clone(),
                health: if known.healthy {
                    Health::Healthy
                } else {
                    Health::Unhealthy("simulated".into())
                },
                close_connections: known.close,
            })
        };
        let present = self.endpoints.iter().filter(|known| known.present);
        let endpoints: Vec<_> = present.map(endpoint).collect();
        let healthy = endpoints
            .iter()
            .filter(|endpoint| endpoint.health == Health::Healthy);
        let eligible: Vec<_> = healthy.cloned().collect();
        self.world.over(What::NoEndpoint);
        if eligible.is_empty() {
            // Until there is one again.
            self.world.fault(What::NoEndpoint, LONGEST);
        }
        let cluster = Arc::new(Cluster {
            name: "backends".into(),
            policy: self.policy.clone(),
            endpoints,
            eligible,
            turn: self.turn.clone(),
            circuits: self.circuits.clone(),
        });
        let route = Route {
            prefix: "/api.".into(),
            action: RouteAction::Cluster {
                cluster: 0,
                timeout: None,
                max_grpc_timeout: None,
            },
        };
        self.stage.publish(Arc::new(Snapshot {
            generation: self.generation,
            listener: self.listener.clone(),
            routes: Arc::new(RouteTable::new(vec![route])),
            clusters: vec![cluster],
            tls: None,
            serving: true,
        }));
    }

    /// Everybody leaves; nothing may be left.
    async fn end(mut self, clients: &[Rc<Client>], drained: bool) {
        let world = self.world.clone();
        world.shut.set(true);
        self.network.serve(None);
        if drained {
            // Told to go, and idle: they leave by themselves.
            tokio::time::sleep(Duration::from_secs(15)).await;
            let (open, _) = self.stage.connections();
            if open > 0 {
                world.problem(format!("left: {open} connections of clients after a drain"));
            }
        }
        for client in clients {
            if let Some(peer) = &*client.current.borrow() {
                peer.close_when_empty();
            }
        }
        for known in &mut self.endpoints {
            known.present = false;
        }
        self.publish();
        tokio::time::sleep(QUIET).await;
        let (from_clients, to_backends) = self.stage.connections();
        let (pools, opening, waiting) = self.stage.worker.pool.counts();
        let left = [
            ("connections of clients", from_clients as usize),
            ("connections to backends", to_backends as usize),
            ("endpoints", pools),
            ("connections being opened", opening),
            ("RPCs that wait", waiting),
            ("clients", self.stage.worker.clients.borrow().len()),
        ];
        for (what, count) in left {
            if count > 0 {
                world.problem(format!("left at the end: {what}: {count}"));
            }
        }
        let Some(stage) = Rc::into_inner(self.stage) else {
            return world.problem("left at the end: someone who has the stage".to_owned());
        };
        let tasks = stage.finish().await;
        if tasks > 0 {
            world.problem(format!("left at the end: tasks: {tasks}"));
        }
    }
}

fn shared(backend: &Backend, id: u64) -> Arc<EndpointShared> {
    let address = backend.address();
    Arc::new(EndpointShared {
        id,
        address,
        label: address.to_string().into(),
        suspect: false.into(),
        attempts: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        active: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        streaks: Streaks::default(),
    })
}

/// No run of any RPC is longer.
const LONGEST: Duration = Duration::from_secs(1_000);
/// For connections to settle: window updates, answers to PINGs.
const QUIET: Duration = Duration::from_secs(30);
/// `connect_timeout`: what was begun while a backend couldn't be reached fails so much later.
const CONNECT: Duration = Duration::from_secs(3);
/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

/// Runs these seeds on all cores, prints those that fail, and gives their number.
fn sweep(seeds: std::ops::Range<u64>) -> usize {
    let started = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let (failed, rpcs, events) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = run(seed, false);
                    rpcs.fetch_add(outcome.rpcs, Ordering::Relaxed);
                    events.fetch_add(outcome.events, Ordering::Relaxed);
                    if !outcome.problems.is_empty() && failed.fetch_add(1, Ordering::Relaxed) < 20 {
                        println!("EDGE_SIM_SEED={seed}: {:#?}", outcome.problems);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!(
        "{} seeds, {} RPCs, {} events, {failed} failed, {:.1} s",
        seeds.end - seeds.start,
        rpcs.into_inner(),
        events.into_inner(),
        started.elapsed().as_secs_f64()
    );
    failed
}

#[test]
fn many_seeds_lose_nothing_and_repeat_nothing() {
    let first = given("EDGE_SIM_FIRST").unwrap_or(0);
    let seeds = given("EDGE_SIM_SEEDS").unwrap_or(SEEDS);
    assert_eq!(
        sweep(first..first + seeds),
        0,
        "the lines above name the seeds that failed"
    );
}

#[test]
fn one_seed_can_be_repeated() {
    let seed = given("EDGE_SIM_SEED");
    let outcome = run(seed.unwrap_or(0), seed.is_some());
    assert_eq!(outcome.problems, Vec::<String>::new());
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..20 {
        let (one, other) = (run(seed, false), run(seed, false));
        assert!(one.events > 0);
        assert_eq!(one, other, "seed {seed}");
    }
    assert_ne!(run(1, false).trace, run(2, false).trace);
}

/// Without another number.
const SEEDS: u64 = 250;
