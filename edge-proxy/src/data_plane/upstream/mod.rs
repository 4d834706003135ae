//! Step 8: HTTP/2 connections to the backends, per endpoint and worker.
//!
//! Nothing here is shared between workers: each has its own connections, as in Envoy, so an RPC never leaves its
//! thread. An endpoint has one connection until that is full (`per_connection_streams`, or the peer's own limit) or
//! congested (a stream of it has had no credit for a second: one handler that doesn't read must not freeze the uploads
//! of others), then another, up to `max_connections`; where no other may or can be opened, or not soon, one that is congested
//! will do, while only streams of it are and not all, or one that has refused the RPC, and then RPCs wait, at most
//! `connect_timeout`.
//!
//! An RPC that has to wait has a place in the endpoint's queue, where the client with the fewest streams is the next. Whoever
//! makes room (a connection that became ready, a stream that ended) calls `Pool::offer` from its own turn; nobody polls.

// Which of them serves an RPC, if one may.
mod choice;

// Who waits for one, until it is served or sent elsewhere; and whose turn it is.
mod waiting;

mod queue;

// Which streams end for those that wait.
mod share;

// Another one is opened, unless that has just failed.
mod opening;

mod pause;

mod connection;

// May an attempt follow, and at whose cost.
pub mod retry;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use connection::Congestion;
pub(crate) use connection::Upstream;
use pause::Pause;
pub(crate) use queue::Place;
use queue::Queue;
use share::Reserve;

use super::{holder::Holder, rpc::Key, source::Source, worker::Worker};
use crate::{
    error::Failure,
    snapshot::{
        Cluster, ClusterPolicy, EndpointShared, Snapshot,
        circuit::{Circuit, Circuits},
    },
    telemetry::metrics::ClusterSeries,
};

/// All upstream connections of a worker.
#[derive(Default)]
pub(crate) struct Pool {
    endpoints: RefCell<HashMap<u64, Rc<EndpointPool>, foldhash::fast::FixedState>>,
    /// How many there have been.
    added: Cell<u32>,
}

/// The connections of one endpoint, and the RPCs that wait for one.
pub(crate) struct EndpointPool {
    pub(crate) shared: Arc<EndpointShared>,
    /// By which clients' streams are counted here. No other has it or will: an RPC may count for a moment after its
    /// endpoint has gone, and nobody would tell another's queue when it doesn't any more. Its last bits are small, and those
    /// of no other that is there.
    number: u64,
    /// Its cluster's.
    series: Arc<ClusterSeries>,
    policy: RefCell<Arc<ClusterPolicy>>,
    circuits: Arc<Circuits>,
    connections: RefCell<Vec<Rc<Upstream>>>,
    /// Connections between the decision to open them and the peer's SETTINGS.
    opening: Cell<usize>,
    /// Since when there is at least one of those.
    opening_since: Cell<Option<Instant>>,
    waiting: RefCell<Queue>,
    /// After a connect that failed.
    pause: Cell<Pause>,
    /// These, up to that place, wait in vain.
    in_vain: Cell<Option<(Failure, Place)>>,
    /// There may be room for more than were served in one go.
    serves_on: Cell<bool>,
    /// Streams that are kept for those who have few.
    reserve: Cell<Option<Reserve>>,
    /// When it was last looked who has how many.
    divided_at: Cell<Option<Instant>>,
    /// When the queue's timer fires next; one that fires earlier than that is left over.
    wakes_at: Cell<Option<Instant>>,
    /// No snapshot names this endpoint any more: what runs may finish, nothing new is opened.
    retired: Cell<bool>,
}

/// An RPC that needs a connection.
pub(crate) struct Caller<'a> {
    pub(crate) rpc: Key,
    pub(crate) client: &'a Holder,
    /// The connection that has refused it: it gets another one as long as there may soon be one.
    pub(crate) avoid: Option<Rc<Upstream>>,
}

/// What it gets.
pub(crate) enum Acquired {
    /// One with room for a stream, now.
    Connection(Rc<Upstream>),
    /// It waits for [`connected`](super::rpc::connected) or [`connect_failed`](super::rpc::connect_failed).
    Place(Place),
}

impl Pool {
    /// A connection to `endpoint`, or a place in the queue for one.
    ///
    /// # Errors
    /// A circuit limit of the cluster: it doesn't wait.
    pub(crate) fn acquire(
        &self,
        worker: &Rc<Worker>,
        endpoint: &Arc<EndpointShared>,
        cluster: &Cluster,
        mut caller: Caller<'_>,
        now: Instant,
    ) -> Result<Acquired, Circuit> {
        let known = self.endpoints.borrow().get(&endpoint.id).cloned();
        let pool = known.unwrap_or_else(|| self.add(worker, endpoint, cluster));
        // One that takes no more streams, or leads elsewhere, has not to be avoided.
        caller.avoid = caller.avoid.filter(|avoid| {
            avoid.is_ready() && avoid.endpoint().id == endpoint.id && pool.has_other(avoid, now)
        });
        if !pool.is_waited_for() {
            pool.keeps_no_more(now);
        }
        // It isn't its turn while others wait; but who waits for another connection than these has no use for them, nor who
        // may have none of what is kept.
        let others_wait =
            pool.waiting.borrow().next().any(|((streams, ..), avoid)| {
                avoid.is_none() && pool.may_have_one(|| streams, now)
            });
        if !others_wait
            && pool.may_have_one(|| caller.client.streams(pool.number), now)
            && let Some(connection) =
                pool.best_connection(caller.avoid.as_ref(), || pool.bearable(now))
        {
            return Ok(Acquired::Connection(connection));
        }
        pool.wait(worker, caller, now)
    }

    /// So many RPCs of this client wait for `endpoint` that no other is to, while too much is held back. Some may, or a client
    /// that holds nothing would be turned away for what others hold.
    pub(crate) fn has_enough(&self, endpoint: &EndpointShared, client: Source) -> bool {
        let endpoints = self.endpoints.borrow();
        let pool = endpoints.get(&endpoint.id);
        pool.is_some_and(|pool| pool.waiting.borrow().of(client) > ENOUGH)
    }

    /// The RPC doesn't wait any more.
    pub(crate) fn forget(&self, endpoint: u64, place: Place) {
        if let Some(pool) = self.endpoints.borrow().get(&endpoint) {
            pool.waiting.borrow_mut().take(place);
        }
    }

    /// Gives what room there is to those whose turn it is. How many got it.
    pub(crate) fn offer(worker: &Rc<Worker>, pool: &Rc<EndpointPool>) -> usize {
        if !pool.is_waited_for() {
            return 0;
        }
        let now = worker.now();
        if pool.opens_slowly(now) {
            pool.accept_the_only_one();
        }
        let served = pool.serve(worker, pool.bearable(now));
        if pool.serves_on.get() || pool.waiting.borrow().is_empty() {
            return served;
        }
        match pool.open_more(worker) {
            Err(circuit) => pool.send_elsewhere(worker, Failure::CircuitLimit(circuit)),
            Ok(()) if pool.opening.get() == 0 => {
                return served + pool.serve(worker, Congestion::Stream);
            }
            Ok(()) => {}
        }
        served
    }

    /// The timer of an endpoint's queue fired: those that waited `connect_timeout` try elsewhere, another connection is
    /// tried, if one was wanted during a pause, and more are served than were in one go, or by what is there, if a
    /// connect takes long. Returns for how many RPCs it did something.
    pub(crate) fn expire(worker: &Rc<Worker>, endpoint: u64, now: Instant) -> usize {
        let pool = worker.pool.endpoints.borrow().get(&endpoint).cloned();
        let Some(pool) = pool.filter(|pool| pool.wakes_at.get().is_some_and(|at| at <= now)) else {
            return 0;
        };
        pool.wakes_at.set(None);
        let tries_again = pool.with_pause(|pause| pause.ends(now));
        let serves_on = pool.serves_on.take();
        let kept_enough = pool.keeps_no_more(now);
        let mut rpcs = pool.divide(worker, now) + pool.turn_away(worker, now);
        if tries_again || serves_on || kept_enough || pool.opens_slowly(now) {
            rpcs += Self::offer(worker, &pool);
        }
        pool.remove_if_unused(worker);
        rpcs
    }

    /// Follows a new snapshot, which the worker has already: endpoints that are gone lose their connections when these
    /// are empty, and the RPCs that wait for one go elsewhere; endpoints that were ejected by time-outs lose them now. One
    /// that is used all the same (`panic_threshold`) keeps them: every publication would cut its RPCs.
    pub(crate) fn apply(worker: &Rc<Worker>, snapshot: &Snapshot) {
        let mut known = HashMap::new();
        for cluster in &snapshot.clusters {
            for endpoint in &cluster.endpoints {
                known.insert(endpoint.shared.id, (cluster, endpoint.close_connections));
            }
            for endpoint in &cluster.eligible {
                known.insert(endpoint.shared.id, (cluster, false));
            }
        }
        let pools: Vec<_> = worker.pool.endpoints.borrow().values().cloned().collect();
        for pool in pools {
            match known.get(&pool.shared.id) {
                None => {
                    pool.retired.set(true);
                    for connection in pool.connections.borrow().iter() {
                        connection.retire();
                    }
                    pool.send_elsewhere(worker, Failure::ConnectFailed);
                    pool.remove_if_unused(worker);
                }
                Some(&(cluster, closes)) => {
                    // It may have been away while an RPC of it ran.
                    pool.retired.set(false);
                    *pool.policy.borrow_mut() = cluster.policy.clone();
                    if closes {
                        for connection in pool.connections.borrow().iter() {
                            connection.abandon();
                        }
                    }
                    // There may be more room now, and nothing else would say so.
                    Self::offer(worker, &pool);
                }
            }
        }
    }

    /// A connection to `endpoint` that nobody has to open: what is on it is its owner's affair.
    pub(super) fn attach(
        &self,
        worker: &Worker,
        endpoint: &Arc<EndpointShared>,
        cluster: &Cluster,
    ) -> Rc<Upstream> {
        let pool = self.add(worker, endpoint, cluster);
        pool.opening.set(1);
        let policy = &cluster.policy;
        let ready_by = worker.now() + policy.connect_timeout;
        let connection = Rc::new(Upstream::new(worker, pool.clone(), policy, ready_by));
        pool.add(connection.clone());
        connection
    }

    /// What will be known of an endpoint.
    fn add(
        &self,
        worker: &Worker,
        endpoint: &Arc<EndpointShared>,
        cluster: &Cluster,
    ) -> Rc<EndpointPool> {
        let mut endpoints = self.endpoints.borrow_mut();
        let mut taken: Vec<_> = endpoints.values().map(|pool| pool.number as u32).collect();
        taken.sort_unstable();
        let is_taken = |(small, taken): &(u32, u32)| small == taken;
        let small = (0..).zip(taken).take_while(is_taken).count();
        let added = self.added.get();
        self.added.set(added.wrapping_add(1));
        let number = u64::from(added) << 32 | small as u64;
        let pool = Rc::new(EndpointPool::new(worker, endpoint.clone(), number, cluster));
        endpoints.insert(endpoint.id, pool.clone());
        pool
    }

    /// The connections that are open, of all endpoints.
    #[cfg(any(test, fuzzing))]
    pub(super) fn connections(&self) -> Vec<Rc<Upstream>> {
        let endpoints = self.endpoints.borrow();
        let connections = endpoints.values().map(|pool| pool.connections.borrow());
        connections.flat_map(|of| of.clone()).collect()
    }

    /// How many endpoints are known, connections being opened, and RPCs waiting.
    #[cfg(any(test, fuzzing))]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let endpoints = self.endpoints.borrow();
        let opening = endpoints.values().map(|pool| pool.opening.get()).sum();
        let waiting = endpoints.values().map(|pool| pool.waiting.borrow().len());
        (endpoints.len(), opening, waiting.sum())
    }
}

impl EndpointPool {
    fn new(worker: &Worker, shared: Arc<EndpointShared>, number: u64, cluster: &Cluster) -> Self {
        Self {
            shared,
            number,
            series: worker.shard.cluster(&cluster.name),
            policy: RefCell::new(cluster.policy.clone()),
            circuits: cluster.circuits.clone(),
            connections: RefCell::default(),
            opening: Cell::new(0),
            opening_since: Cell::default(),
            waiting: RefCell::default(),
            pause: Cell::default(),
            in_vain: Cell::default(),
            serves_on: Cell::default(),
            reserve: Cell::default(),
            divided_at: Cell::default(),
            wakes_at: Cell::default(),
            retired: Cell::new(false),
        }
    }

    fn add(&self, connection: Rc<Upstream>) {
        self.connections.borrow_mut().push(connection);
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, worker: &Worker, connection: &Rc<Upstream>) {
        let is_it = |other: &Rc<Upstream>| Rc::ptr_eq(other, connection);
        self.connections.borrow_mut().retain(|other| !is_it(other));
        self.waiting.borrow_mut().stop_avoiding(is_it);
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.remove_if_unused(worker);
    }

    fn is_unused(&self) -> bool {
        self.retired.get()
            && self.opening.get() == 0
            && self.connections.borrow().is_empty()
            && self.waiting.borrow().is_empty()
    }

    fn remove_if_unused(&self, worker: &Worker) {
        if self.is_unused() {
            worker.pool.endpoints.borrow_mut().remove(&self.shared.id);
        }
    }
}

/// See [`Pool::has_enough`]: a third of a MiB with the largest heads and trailers. One run each of `attack siege`, of which
/// 256 MiB are the limit: 171 MiB with this, 254 with 256.
const ENOUGH: usize = 16;

#[cfg(test)]
mod tests;
