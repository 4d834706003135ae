//! One thread: its runtime, its state, its clock.
//!
//! A worker has its own connections to clients and backends, its own RPCs, its own timers; with the others it shares
//! atomics only: counters, memory, circuits, hints, the balance's turns. All of its state is reached through one `Rc<Worker>`, in cells that are borrowed for the
//! length of one call. A connection's turn (see [`wire`](super::wire)) is the unit of work; the runtime polls the
//! socket events between turns.

// Deadlines, and the task that keeps them.
mod timers;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    hint::black_box,
    ops::Deref,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    thread,
    time::{Duration, Instant, SystemTime},
};

use http2::stock;
use rand::rngs::SmallRng;
use tokio::{
    sync::{mpsc, watch},
    task::LocalSet,
};

pub(crate) use self::timers::{AT_ONCE, Timer, Timers, fire_timers};
use super::{
    access_log::Writer,
    date::DateCache,
    downstream::{self, ClientConnection},
    filters::Filters,
    holder::Holders,
    listener::Accepted,
    local::Local,
    memory::{Account, Memory, room_to_keep},
    rpc::{self, Table},
    tls::Gate,
    upstream::{Pool, retry::Budget},
    wire::Wakes,
};
use crate::{
    snapshot::{
        Cluster, Heartbeats, Hints, Reader, Snapshot, Timeouts,
        pressure::{Level, Pressure},
    },
    telemetry::metrics::{ClusterSeries, NONE, Series, Shard},
};

/// Everything that a worker's connections and RPCs reach.
pub(crate) struct Worker {
    /// What is served, since the last publication.
    served: RefCell<Rc<Served>>,
    /// Every RPC that runs here; connections know them by their key.
    pub(crate) rpcs: RefCell<Table>,
    /// Connections to backends.
    pub(crate) pool: Pool,
    /// Whom its connections come from.
    pub(crate) holders: Holders,
    /// Deadlines of RPCs and of queues.
    pub(crate) timers: Timers,
    /// Connections that a turn left something to flush for.
    pub(crate) wakes: Rc<Wakes>,
    /// One read of a socket: 64 KiB, since 16 KiB cost 11 % at 1 MiB messages.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    /// What is held back here.
    pub(crate) memory: Account,
    /// Counters that only this thread writes.
    pub(crate) shard: Arc<Shard>,
    /// Where this worker's RPCs are logged.
    pub(crate) log: Writer,
    /// The way back to the control plane.
    pub(crate) hints: Arc<Hints>,
    /// The rules for header fields, with their random numbers.
    pub(crate) filters: RefCell<Filters>,
    /// What this worker knows of the clusters met so far.
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterState>, foldhash::fast::FixedState>>,
    /// What the last RPC was counted in: the next one is too, more often than not.
    last_counted: RefCell<Option<Counted>>,
    /// One TLS handshake computes at a time.
    pub(crate) gate: Gate,
    /// The `date` header.
    pub(crate) date: RefCell<DateCache>,
    /// Connections to clients, so that a drain reaches all of them.
    pub(crate) clients: RefCell<HashMap<u64, ClientConnection, foldhash::fast::FixedState>>,
    /// What the process wants.
    pub(crate) phase: Cell<Phase>,
    /// For moments that are not to be everybody's: when connections leave.
    pub(crate) random: RefCell<SmallRng>,
    /// Where backends are looked for instead of the kernel.
    #[cfg(any(test, fuzzing))]
    pub(crate) network: RefCell<Option<Rc<dyn super::stage::Network>>>,
    /// How short of memory it is.
    pub(crate) pressure: Cell<Pressure>,
    /// See [`search`](Self::search).
    next_search: Cell<Option<Instant>>,
    now: Cell<Instant>,
    next_client: Cell<u64>,
    /// What the wall clock said at a moment of the last second, so that log lines don't ask the kernel.
    clock: Cell<(SystemTime, Instant)>,
}

/// A cluster, as one worker serves it; kept across snapshots.
#[derive(Debug)]
pub(crate) struct ClusterState {
    pub(crate) name: Arc<str>,
    /// Its counters.
    pub(crate) series: Arc<ClusterSeries>,
    /// Tokens for attempts that are not free.
    pub(crate) budget: RefCell<Budget>,
}

/// What an RPC is counted in.
#[derive(Clone)]
pub(crate) struct Counted {
    /// By its route, cluster and method.
    pub(crate) series: Local<Series>,
    /// `None`: its route asks no cluster.
    pub(crate) cluster: Option<Rc<ClusterState>>,
}

/// A snapshot as this worker serves it. Its clusters are counted one by one, so that an RPC keeps the one that it asks:
/// a stream may run for days, and would hold all routes and clusters of a configuration that is long gone.
pub(crate) struct Served {
    snapshot: Arc<Snapshot>,
    /// [`Snapshot::clusters`].
    counted: Vec<Local<Cluster>>,
}

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) reader: Reader,
    pub(crate) shard: Arc<Shard>,
    pub(crate) log: Writer,
    pub(crate) hints: Arc<Hints>,
    pub(crate) heartbeats: Arc<Heartbeats>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) pressure: watch::Receiver<Pressure>,
    pub(crate) memory: Arc<Memory>,
}

/// A worker as the acceptor and the shutdown see it.
#[derive(Debug)]
pub(crate) struct Handle {
    /// New connections go in here.
    pub(crate) accepted: mpsc::UnboundedSender<Accepted>,
    /// How much it carries.
    pub(crate) load: Arc<Load>,
    /// Ends when the worker has.
    pub(crate) thread: thread::JoinHandle<()>,
}

/// What a worker carries now: the acceptor counts up at the hand-over, a connection's ticket down when it ends.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Connections from clients.
    pub(crate) connections: AtomicUsize,
}

/// What the process wants of its workers, in the order of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Serve.
    Running,
    /// Every connection gets its GOAWAY at a random moment before `until`.
    Draining { since: Instant, until: Instant },
    /// The listener is closed: connections without an RPC end.
    Closing,
    /// `drain.deadline` has passed: what runs gets 14 and ends.
    Cutting,
    /// End the thread.
    Stopped,
}

/// Starts a worker's thread.
pub(crate) fn spawn(parts: Parts) -> std::io::Result<Handle> {
    let (sender, accepted) = mpsc::unbounded_channel();
    let load = Arc::new(Load::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = thread::Builder::new()
        .name(format!("worker-{}", parts.index))
        .spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, run(parts, accepted));
        })?;
    Ok(Handle {
        accepted: sender,
        load,
        thread,
    })
}

async fn run(mut parts: Parts, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
    let worker = Worker::new(
        parts.reader.load(),
        parts.shard,
        parts.log,
        parts.hints,
        Account::new(parts.memory, parts.index),
    );
    let timers = tokio::task::spawn_local(fire_timers(worker.clone()));
    let mut beat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            biased;
            // A worker that only accepts would never see that its process wants to end.
            changed = parts.phase.changed() => {
                let phase = if changed.is_ok() { *parts.phase.borrow_and_update() } else { Phase::Stopped };
                if phase == Phase::Stopped {
                    break;
                }
                worker.enter(phase);
            }
            more = parts.reader.changed() => {
                if !more {
                    break;
                }
                let snapshot = parts.reader.load();
                worker.follow(snapshot);
            }
            () = worker.exceeded() => rpc::relieve(&worker),
            // Without a limit there is no sender, and this never happens.
            Ok(()) = parts.pressure.changed() => {
                let pressure = *parts.pressure.borrow_and_update();
                worker.press(pressure);
            }
            _ = beat.tick() => {
                parts.heartbeats.beat(parts.index);
                worker.beat();
            }
            Some(accepted) = accepted.recv() => {
                tokio::task::spawn_local(downstream::serve(worker.clone(), accepted));
            }
        }
    }
    // Before the connections' tasks are dropped with the runtime: then nothing of it is there to end an RPC with.
    worker.enter(Phase::Stopped);
    timers.abort();
}

impl Worker {
    /// A worker that has met nobody yet.
    pub(crate) fn new(
        snapshot: Arc<Snapshot>,
        shard: Arc<Shard>,
        log: Writer,
        hints: Arc<Hints>,
        memory: Account,
    ) -> Rc<Self> {
        let now = tokio::time::Instant::now().into_std();
        Rc::new(Self {
            served: RefCell::new(Rc::new(snapshot.into())),
            rpcs: RefCell::default(),
            pool: Pool::default(),
            holders: Holders::default(),
            timers: Timers::default(),
            wakes: Rc::default(),
            scratch: RefCell::new(vec![0; READ_AT_ONCE].into_boxed_slice()),
            memory,
            shard,
            log,
            hints,
            filters: RefCell::new(Filters::new()),
            clusters: RefCell::default(),
            last_counted: RefCell::default(),
            gate: Gate::default(),
            date: RefCell::new(DateCache::new(SystemTime::now())),
            clients: RefCell::default(),
            phase: Cell::new(Phase::Running),
            random: RefCell::new(rand::make_rng()),
            #[cfg(any(test, fuzzing))]
            network: RefCell::default(),
            pressure: Cell::default(),
            next_search: Cell::default(),
            now: Cell::new(now),
            next_client: Cell::new(0),
            clock: Cell::new((SystemTime::now(), now)),
        })
    }

    /// Takes the wall clock's time and all randomness from these, so that a run can be repeated.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn seed(&self, seed: u64, wall: SystemTime) {
        use rand::SeedableRng as _;
        *self.random.borrow_mut() = SmallRng::seed_from_u64(seed);
        *self.filters.borrow_mut() = Filters::with(SmallRng::seed_from_u64(!seed));
        *self.date.borrow_mut() = DateCache::new(wall);
        self.clock.set((wall, self.now()));
    }

    /// The moment of this turn; asked of the kernel here and nowhere else.
    pub(crate) fn tick(&self) -> Instant {
        // Tokio's, so that a test may pause the clock; the same as the standard library's otherwise.
        let now = tokio::time::Instant::now().into_std();
        self.now.set(now);
        now
    }

    /// The moment of the turn that runs.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// `moment` on the wall clock, as that stands now.
    pub(crate) fn wall(&self, moment: Instant) -> SystemTime {
        let (wall, at) = self.clock.get();
        let time = match moment.checked_duration_since(at) {
            Some(since) => wall.checked_add(since),
            None => wall.checked_sub(at.saturating_duration_since(moment)),
        };
        time.unwrap_or(wall)
    }

    /// What is served now.
    pub(crate) fn snapshot(&self) -> Rc<Served> {
        self.served.borrow().clone()
    }

    /// Calls `read` with what is served now, without counting a reference.
    pub(crate) fn with_snapshot<R>(&self, read: impl FnOnce(&Snapshot) -> R) -> R {
        read(&self.served.borrow())
    }

    /// What this worker knows of a cluster.
    pub(crate) fn cluster(&self, name: &Arc<str>) -> Rc<ClusterState> {
        if let Some(found) = self.clusters.borrow().get(name) {
            return found.clone();
        }
        let state = Rc::new(ClusterState {
            name: name.clone(),
            series: self.shard.cluster(name),
            budget: RefCell::new(Budget::new(self.now(), self.memory.workers())),
        });
        self.clusters
            .borrow_mut()
            .insert(name.clone(), state.clone());
        state
    }

    /// What an RPC is counted in whose route leads to this cluster, if to any.
    pub(crate) fn counted(
        &self,
        route: &Arc<str>,
        cluster: Option<&Arc<str>>,
        path: &[u8],
    ) -> Counted {
        let name = cluster.map_or(NONE, |cluster| cluster);
        let mut last = self.last_counted.borrow_mut();
        let is_same = |last: &&Counted| {
            last.cluster.is_some() == cluster.is_some() && last.series.is(route, name, path)
        };
        if let Some(last) = last.as_ref().filter(is_same) {
            return last.clone();
        }
        let none = || NONE.into();
        let name = cluster.cloned().unwrap_or_else(none);
        let counted = Counted {
            series: self.shard.series(route, &name, path).into(),
            cluster: cluster.map(|cluster| self.cluster(cluster)),
        };
        last.insert(counted).clone()
    }

    /// A number for a new client's connection.
    pub(crate) fn next_client(&self) -> u64 {
        self.next_client.replace(self.next_client.get() + 1)
    }

    /// Serves by a new snapshot from now on.
    pub(crate) fn follow(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        // It may have been quiet for long.
        self.tick();
        let before = self.served.replace(Rc::new(snapshot.clone().into()));
        if !names(&before).eq(names(&snapshot)) {
            // Who has been removed is kept by its RPCs, and forgotten with the last one.
            let known: HashSet<_> = names(&snapshot).collect();
            self.clusters
                .borrow_mut()
                .retain(|name, _| known.contains(name));
            self.last_counted.take();
        }
        Pool::apply(self, &snapshot);
    }

    /// How long a connection may be idle now.
    pub(crate) fn idle(&self, timeouts: &Timeouts) -> Duration {
        self.pressure.get().level.idle(timeouts.idle)
    }

    /// The process is short of memory, still is, or isn't any more.
    pub(crate) fn press(self: &Rc<Self>, pressure: Pressure) {
        let before = self.pressure.replace(pressure).level;
        if pressure.level != before {
            let now = self.tick();
            let clients: Vec<_> = self.clients.borrow().values().cloned().collect();
            for client in clients {
                client.check_by(now);
            }
        }
        let excess = usize::try_from(pressure.excess()).unwrap_or(usize::MAX);
        let is_short = pressure.level >= Level::Shedding;
        self.memory.press(is_short.then_some(excess));
        let next = self.next_search.get();
        if is_short && next.is_none_or(|next| next <= self.tick()) {
            rpc::shed_stalled(self, pressure);
        }
    }

    /// Waits until more is held than may be, and it may be looked for again. While it is so, that is now and then: what
    /// can't be freed yet may have stood still for long enough then. Another worker's bytes wake nobody here: they are seen
    /// when this is called again, with each beat at the latest.
    pub(crate) async fn exceeded(&self) {
        let next = self.next_search.get();
        if let Some(next) = next.filter(|next| *next > self.tick()) {
            tokio::time::sleep_until(next.into()).await;
        }
        if self.memory.is_exceeded() {
            // Whichever comes first. At once, where there was no search yet.
            let again = next.map_or(self.now(), |last| last + SEARCH_AGAIN);
            let _ = tokio::time::timeout_at(again.into(), self.memory.exceeded()).await;
        } else {
            self.memory.exceeded().await;
        }
    }

    /// Does what looks at all RPCs for something to free, and says whether it found enough. The next one has to wait (see
    /// [`after_search`]): every byte that comes would be a reason, and clients decide how many RPCs there are.
    pub(crate) fn search(&self, search: impl FnOnce() -> bool) {
        let begun = self.tick();
        let enough = search();
        let next = after_search(begun, self.tick(), enough);
        self.next_search.set(Some(next));
    }

    /// What is done once a second.
    fn beat(&self) {
        // The wall clock may be set, and the monotonic one stands still while a machine sleeps or is moved.
        self.clock.set((SystemTime::now(), self.tick()));
        self.give_memory_back();
    }

    /// Lets memory go that only a burst has needed.
    pub(crate) fn give_memory_back(&self) {
        stock::halve();
        self.rpcs.borrow_mut().shrink();
        self.timers.shrink();
        let mut clients = self.clients.borrow_mut();
        if let Some(room) = room_to_keep(clients.capacity(), clients.len()) {
            clients.shrink_to(room);
        }
        drop(clients);
        // mimalloc goes through what a thread has free, and returns it to the system, only in passing, while it gives out
        // and takes back: a worker that has become quiet does neither. Before it refuses, it looks everywhere.
        let mut nothing = Vec::<u8>::new();
        let refused = nothing.try_reserve_exact(black_box(MORE_THAN_THERE_IS));
        black_box((&nothing, refused).1.is_err());
    }

    pub(crate) fn enter(self: &Rc<Self>, phase: Phase) {
        self.phase.set(phase);
        let clients: Vec<_> = self.clients.borrow().values().cloned().collect();
        for client in clients {
            client.follow(self, phase, self.tick());
        }
        match phase {
            Phase::Cutting => rpc::cut_all(self),
            Phase::Stopped => rpc::stop_all(self),
            Phase::Running | Phase::Draining { .. } | Phase::Closing => {}
        }
    }
}

impl Served {
    /// The cluster that a route leads to; `None` never happens for a snapshot that validation built.
    pub(crate) fn cluster(&self, index: usize) -> Option<Local<Cluster>> {
        self.counted.get(index).cloned()
    }

    /// The cluster of this name.
    pub(crate) fn named(&self, name: &str) -> Option<Local<Cluster>> {
        let mut clusters = self.counted.iter();
        clusters.find(|cluster| *cluster.name == *name).cloned()
    }
}

fn names(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<str>> {
    snapshot.clusters.iter().map(|cluster| &cluster.name)
}

impl From<Arc<Snapshot>> for Served {
    fn from(snapshot: Arc<Snapshot>) -> Self {
        let counted = snapshot.clusters.iter().cloned().map(Local::from);
        Self {
            counted: counted.collect(),
            snapshot,
        }
    }
}

impl Deref for Served {
    type Target = Snapshot;
    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

/// When the next search may begin. One that has found enough has freed some more than that, so that it takes megabytes to
/// be a reason for another: half of the time is for them, or what comes in between would be more than what each frees. To
/// search again for what isn't there, a tenth of it is enough.
fn after_search(begun: Instant, ended: Instant, enough: bool) -> Instant {
    let pauses = if enough { 1 } else { 9 };
    ended + pauses * ended.saturating_duration_since(begun)
}

/// Between searches for something to free, if nothing new is held.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);

/// See [`Worker::scratch`].
const READ_AT_ONCE: usize = 64 * 1024;

/// Bytes that no process's address space has room for, and not so many that mimalloc refuses without a look (2^48).
const MORE_THAN_THERE_IS: usize = (1 << 48) - (1 << 20);

/// `/livez` fails when this hasn't happened for 10 s.
const HEARTBEAT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
