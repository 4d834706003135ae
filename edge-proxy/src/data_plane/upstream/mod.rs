//! Step 8: HTTP/2 connections to the backends, per endpoint and worker.
//!
//! Nothing here is shared between workers: each has its own connections, as in Envoy, so an RPC never leaves its
//! thread. An endpoint has one connection until that is full (`per_connection_streams`, or the peer's own limit) or
//! congested (a stream of it has had no credit for a second: one handler that doesn't read must not freeze the uploads
//! of others), then another, up to `max_connections`; where no other may or can be opened, or not soon, one that is congested
//! will do, while only streams of it are and not all, or one that has refused the RPC, and then RPCs wait, at most
//! `connect_timeout`.
//!
//! An RPC that has to wait has a place in the endpoint's queue, and clients take turns. Whoever makes room (a connection
//! that became ready, a stream that ended) calls `Pool::offer` from its own turn; nobody polls.

mod connection;
// When another one may be tried.
mod pause;
// Who waits for one.
mod queue;
// May an attempt follow, and at whose cost.
pub mod retry;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use connection::Congestion;
pub(crate) use connection::Upstream;
use pause::Pause;
pub(crate) use queue::Place;
use queue::{Queue, Waiting};
use retry::Outcome;

use super::{
    rpc::{self, Key},
    worker::{AT_ONCE, Timer, Worker},
};
use crate::{
    error::Failure,
    snapshot::{
        Cluster, ClusterPolicy, EndpointShared, Snapshot,
        circuit::{Circuit, Circuits, Permits},
        streak::Ending,
    },
    telemetry::metrics::{ClusterSeries, Limit},
};

/// All upstream connections of a worker.
#[derive(Default)]
pub(crate) struct Pool {
    endpoints: RefCell<HashMap<u64, Rc<EndpointPool>, foldhash::fast::FixedState>>,
}

/// The connections of one endpoint, and the RPCs that wait for one.
pub(crate) struct EndpointPool {
    pub(crate) shared: Arc<EndpointShared>,
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
    /// When the queue's timer fires next; one that fires earlier than that is left over.
    wakes_at: Cell<Option<Instant>>,
    /// No snapshot names this endpoint any more: what runs may finish, nothing new is opened.
    retired: Cell<bool>,
}

/// An RPC that needs a connection.
pub(crate) struct Caller {
    pub(crate) rpc: Key,
    /// Its client's address.
    pub(crate) client: IpAddr,
    /// The connection that has refused it: it gets another one as long as there may soon be one.
    pub(crate) avoid: Option<Rc<Upstream>>,
}

/// What it gets.
pub(crate) enum Acquired {
    /// One with room for a stream, now.
    Connection(Rc<Upstream>),
    /// It waits for [`rpc::connected`] or [`rpc::connect_failed`].
    Place(Place),
}

impl Pool {
    /// So many RPCs of this client wait for `endpoint` that no other is to, while too much is held back. Some may, or a client
    /// that holds nothing would be turned away for what others hold.
    pub(crate) fn has_enough(&self, endpoint: &EndpointShared, client: IpAddr) -> bool {
        let endpoints = self.endpoints.borrow();
        let pool = endpoints.get(&endpoint.id);
        pool.is_some_and(|pool| pool.waiting.borrow().of(client) > ENOUGH)
    }

    /// A connection to `endpoint`, or a place in the queue for one.
    ///
    /// # Errors
    /// A circuit limit of the cluster: it doesn't wait.
    pub(crate) fn acquire(
        &self,
        worker: &Rc<Worker>,
        endpoint: &Arc<EndpointShared>,
        cluster: &Cluster,
        mut caller: Caller,
        now: Instant,
    ) -> Result<Acquired, Circuit> {
        let pool = {
            let mut endpoints = self.endpoints.borrow_mut();
            let pool = endpoints
                .entry(endpoint.id)
                .or_insert_with(|| Rc::new(EndpointPool::new(worker, endpoint.clone(), cluster)));
            pool.clone()
        };
        // One that takes no more streams, or leads elsewhere, has not to be avoided.
        caller.avoid = caller.avoid.filter(|avoid| {
            avoid.is_ready() && avoid.endpoint().id == endpoint.id && pool.has_other(avoid, now)
        });
        // It isn't its turn while others wait; but who waits for another connection than these has no use for them.
        let others_wait = pool
            .waiting
            .borrow()
            .next()
            .any(|(_, avoid)| avoid.is_none());
        if !others_wait
            && let Some(connection) =
                pool.best_connection(caller.avoid.as_ref(), || pool.bearable(now))
        {
            return Ok(Acquired::Connection(connection));
        }
        pool.wait(worker, caller, now)
    }

    /// A connection to `endpoint` that nobody has to open: what is on it is its owner's affair.
    pub(super) fn attach(
        &self,
        worker: &Worker,
        endpoint: &Arc<EndpointShared>,
        cluster: &Cluster,
    ) -> Rc<Upstream> {
        let pool = Rc::new(EndpointPool::new(worker, endpoint.clone(), cluster));
        pool.opening.set(1);
        let policy = &cluster.policy;
        let ready_by = worker.now() + policy.connect_timeout;
        let connection = Rc::new(Upstream::new(worker, pool.clone(), policy, ready_by));
        pool.add(connection.clone());
        self.endpoints.borrow_mut().insert(endpoint.id, pool);
        connection
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

    /// The RPC doesn't wait any more.
    pub(crate) fn forget(&self, endpoint: u64, place: Place) {
        if let Some(pool) = self.endpoints.borrow().get(&endpoint) {
            pool.waiting.borrow_mut().take(place);
        }
    }

    /// Gives what room there is to those whose turn it is. How many got it.
    pub(crate) fn offer(worker: &Rc<Worker>, pool: &Rc<EndpointPool>) -> usize {
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
        let mut rpcs = pool.turn_away(worker, now);
        if tries_again || serves_on || pool.opens_slowly(now) {
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
}

impl EndpointPool {
    fn new(worker: &Worker, shared: Arc<EndpointShared>, cluster: &Cluster) -> Self {
        Self {
            shared,
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
            wakes_at: Cell::default(),
            retired: Cell::new(false),
        }
    }

    /// The first connection with room that is no more congested than this: filling them in order keeps few of them busy,
    /// and 1, 2 and 4 per endpoint cost 4.9, 5.5 and 6.7 µs an RPC.
    fn free_connection(
        &self,
        avoid: Option<&Rc<Upstream>>,
        most: Congestion,
    ) -> Option<Rc<Upstream>> {
        let limit = self.policy.borrow().per_connection_streams;
        let avoided = |connection| avoid.is_some_and(|avoid| Rc::ptr_eq(avoid, connection));
        let connections = self.connections.borrow();
        let free = connections
            .iter()
            .find(|connection| connection.has_room(limit, most) && !avoided(connection));
        free.cloned()
    }

    /// [`free_connection`](Self::free_connection), of which one that isn't congested is better: `most` is asked only where
    /// there is none, which is rare.
    fn best_connection(
        &self,
        avoid: Option<&Rc<Upstream>>,
        most: impl FnOnce() -> Congestion,
    ) -> Option<Rc<Upstream>> {
        let free = |most| self.free_connection(avoid, most);
        free(Congestion::None).or_else(|| free(most()))
    }

    /// How congested a connection may be that is to be used: as many uploads that nobody reads as there may be
    /// connections must not leave an endpoint without any, nor one of them while the next connect hangs.
    fn bearable(&self, now: Instant) -> Congestion {
        if self.may_open_another(now) && !self.opens_slowly(now) {
            Congestion::None
        } else {
            Congestion::Stream
        }
    }

    /// Whether there are fewer than the limit allows, and the last one to be opened hasn't just failed.
    fn may_open_another(&self, now: Instant) -> bool {
        let connections = self.connections.borrow();
        let ready = connections.iter().filter(|one| one.is_ready()).count();
        let pauses = ready > 0 && self.pause.get().holds(now);
        !pauses && ready + self.opening.get() < self.policy.borrow().max_connections
    }

    /// A connection is on its way, and has been for so long that nobody is to wait for it who can be served now.
    fn opens_slowly(&self, now: Instant) -> bool {
        self.slow_from().is_some_and(|from| now >= from)
    }

    fn slow_from(&self) -> Option<Instant> {
        self.opening_since.get().map(|since| since + PATIENCE)
    }

    fn with_pause<R>(&self, change: impl FnOnce(&mut Pause) -> R) -> R {
        let mut pause = self.pause.get();
        let result = change(&mut pause);
        self.pause.set(pause);
        result
    }

    /// Whether RPCs wait for what the connections that are there don't have, and no other is on its way.
    fn lacks_room(&self) -> bool {
        self.is_waited_for() && self.opening.get() == 0
    }

    /// Serves those that wait, as far as connections have room that are no more congested than this: not too many at a
    /// time, since clients decide how many they are, and one that is refused a stream by a circuit limit takes no room.
    /// How many were served; the timer is set for the others.
    fn serve(&self, worker: &Rc<Worker>, most: Congestion) -> usize {
        let mut served = 0;
        // Not borrowed while it is served: it may come to wait here again.
        while let Some((rpc, connection)) = self.next_served(most) {
            rpc::connected(worker, rpc, connection);
            served += 1;
            if served == AT_ONCE {
                self.serves_on.set(true);
                self.wake_by(worker, worker.now());
                break;
            }
        }
        served
    }

    /// The RPC whose turn it is of those that can be served, and by which connection; it waits no more.
    fn next_served(&self, most: Congestion) -> Option<(Key, Rc<Upstream>)> {
        let mut queue = self.waiting.borrow_mut();
        let served = queue.next().filter_map(|(turn, avoid)| {
            let connection = self.best_connection(avoid, || most)?;
            Some((turn, connection))
        });
        let (turn, connection) = served.min_by_key(|(turn, _)| *turn)?;
        Some((queue.serve(turn)?.rpc, connection))
    }

    /// Whether there is another connection than this one, or may soon be.
    fn has_other(&self, connection: &Rc<Upstream>, now: Instant) -> bool {
        let other = |other: &Rc<Upstream>| other.is_ready() && !Rc::ptr_eq(other, connection);
        let may_come = self.opening.get() > 0 || self.may_open_another(now);
        may_come && !self.opens_slowly(now) || self.connections.borrow().iter().any(other)
    }

    /// Puts it in the queue and opens a connection for it. Where none is on its way, one that is congested serves it
    /// now, if there is room on it.
    ///
    /// # Errors
    /// A circuit limit of the cluster.
    fn wait(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        caller: Caller,
        now: Instant,
    ) -> Result<Acquired, Circuit> {
        let Caller { rpc, client, avoid } = caller;
        let mut permits = Permits::default();
        permits.enter(&self.circuits, Circuit::PendingRequests)?;
        let until = now + self.policy.borrow().connect_timeout;
        let waiting = Waiting {
            rpc,
            client,
            until,
            _permits: permits,
        };
        let place = self.waiting.borrow_mut().push(waiting, avoid);
        if self.serves_on.get() {
            // Those before it are served in a moment, and then it is seen whether there is room for it.
            return Ok(Acquired::Place(place));
        }
        let first = self.waiting.borrow().len() == 1;
        if let Err(circuit) = self.open_more(worker) {
            self.waiting.borrow_mut().take(place);
            return Err(circuit);
        }
        if self.opening.get() == 0 {
            // Nobody else is there to be the next.
            if first && let Some((_, connection)) = self.next_served(Congestion::Stream) {
                return Ok(Acquired::Connection(connection));
            }
            // Every connection that there may be is there, and full.
            worker.shard.limits(Limit::UpstreamConnections).inc();
        }
        let slow_from = self.slow_from().filter(|from| now < *from);
        self.wake_by(worker, slow_from.map_or(until, |from| from.min(until)));
        Ok(Acquired::Place(place))
    }

    /// Opens as many connections as those that wait would fill, within `max_connections`; after a failure, where there is
    /// one, not at once.
    ///
    /// # Errors
    /// The cluster may have no more of them, and there is none here to wait for.
    fn open_more(self: &Rc<Self>, worker: &Rc<Worker>) -> Result<(), Circuit> {
        let now = worker.now();
        let streams = self.policy.borrow().per_connection_streams as usize;
        let waiting = self.waiting.borrow().len();
        let is_wanted = || self.opening.get() * streams < waiting;
        while is_wanted() && self.may_open_another(now) {
            let mut permits = Permits::default();
            if let Err(circuit) = permits.enter(&self.circuits, Circuit::Connections) {
                if !self.is_alive() {
                    return Err(circuit);
                }
                if self.opening.get() == 0 {
                    self.accept_the_only_one();
                }
                return Ok(());
            }
            if self.opening.replace(self.opening.get() + 1) == 0 {
                self.opening_since.set(Some(now));
                self.wake_by(worker, now + PATIENCE);
            }
            let policy = self.policy.borrow().clone();
            let task = connection::open(worker.clone(), self.clone(), policy, permits);
            tokio::task::spawn_local(task);
        }
        if is_wanted()
            && let Some(at) = self.with_pause(|pause| pause.defer(now))
        {
            self.wake_by(worker, at);
        }
        Ok(())
    }

    /// No other connection may be opened, or none is soon: the one that refused is better than none.
    fn accept_the_only_one(&self) {
        let connections = self.connections.borrow();
        let is_only = |refused: &Rc<Upstream>| {
            let mut ready = connections.iter().filter(|one| one.is_ready());
            ready.all(|one| Rc::ptr_eq(one, refused))
        };
        self.waiting.borrow_mut().stop_avoiding(is_only);
    }

    /// There is a connection to wait for.
    fn is_alive(&self) -> bool {
        self.opening.get() > 0 || self.connections.borrow().iter().any(|c| c.is_ready())
    }

    /// No RPC waits, and there is one before it that is ready.
    fn can_spare(&self, connection: &Rc<Upstream>) -> bool {
        let connections = self.connections.borrow();
        let first = connections.iter().find(|one| one.is_ready());
        !self.is_waited_for() && first.is_some_and(|first| !Rc::ptr_eq(first, connection))
    }

    /// RPCs wait for a connection.
    fn is_waited_for(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// A connection got its SETTINGS.
    fn became_ready(&self) {
        self.with_pause(Pause::lift);
        self.opened();
    }

    /// A connection got its SETTINGS, or never will.
    fn opened(&self) {
        self.opening.set(self.opening.get().saturating_sub(1));
        if self.opening.get() == 0 {
            self.opening_since.set(None);
        }
    }

    /// A connection attempt failed, or one that was there ended before it served anybody, while RPCs wait. These go
    /// elsewhere, unless another connection may still serve them.
    fn open_failed(self: &Rc<Self>, worker: &Rc<Worker>, failure: Failure) {
        let timed_out = failure == Failure::ConnectTimeout;
        let timed_out = timed_out.then(|| self.policy.borrow().connect_timeout);
        self.with_pause(|pause| pause.begin(worker.now(), timed_out));
        worker.hints.suspect(&self.shared);
        let alive = self.is_alive();
        // For each RPC that has to go elsewhere, as Envoy counts.
        let failed = if alive {
            1
        } else {
            self.waiting.borrow().len().max(1)
        };
        let hints = &worker.hints;
        hints.attempted(&self.shared, Ending::LocalOrigin, failed as u32);
        if !alive {
            self.send_elsewhere(worker, failure);
        } else if self.opening.get() == 0 {
            // There won't be another one: the one that refused is better than none.
            self.waiting.borrow_mut().stop_avoiding(|_| true);
            self.serve(worker, Congestion::Stream);
        }
        self.remove_if_unused(worker);
    }

    /// Those that wait learn that it is in vain.
    fn send_elsewhere(&self, worker: &Rc<Worker>, failure: Failure) {
        self.in_vain
            .set(Some((failure, self.waiting.borrow().last())));
        self.serves_on.set(false);
        self.turn_away(worker, worker.now());
    }

    /// Tells those that wait in vain, or for too long, to try elsewhere, unless one that is congested or has refused them will
    /// do: not too many at a time, since clients decide how many they are, and others' RPCs are to run between. How many
    /// were told; the timer is set for the others.
    fn turn_away(&self, worker: &Rc<Worker>, now: Instant) -> usize {
        let mut told = 0;
        while told < AT_ONCE
            // Not borrowed while it is told: it may come to wait here again.
            && let Some((rpc, turned_away)) = self.next_turned_away(now)
        {
            match turned_away {
                Ok(connection) => rpc::connected(worker, rpc, connection),
                Err((outcome, failure)) => rpc::connect_failed(worker, rpc, outcome, failure),
            }
            told += 1;
        }
        if let Some(until) = self.waiting.borrow().first_until() {
            let in_vain = self.in_vain.get().map(|_| now);
            let slow_from = self.slow_from().filter(|from| now < *from);
            let others = [in_vain, slow_from, self.pause.get().next()];
            let at = others.into_iter().flatten().fold(until, Instant::min);
            self.wake_by(worker, at);
        }
        told
    }

    /// The next of those, and why it goes, or to which connection.
    fn next_turned_away(&self, now: Instant) -> Option<(Key, TurnedAway)> {
        let mut waiting = self.waiting.borrow_mut();
        if let Some((failure, last)) = self.in_vain.get() {
            if let Some(first) = waiting.take_first_up_to(last) {
                let outcome = match failure {
                    Failure::ConnectTimeout => Outcome::ConnectTimeout,
                    _ => Outcome::ConnectFailed,
                };
                return Some((first.rpc, Err((outcome, failure))));
            }
            self.in_vain.set(None);
        }
        if waiting.first_until()? > now {
            return None;
        }
        // It has waited for one that is better, and the one that refused it is better than none.
        let free = |avoid| self.best_connection(avoid, || Congestion::Stream);
        let bearable = free(waiting.first_avoids()).or_else(|| free(None));
        let expired = waiting.take_first()?;
        if let Some(connection) = bearable {
            return Some((expired.rpc, Ok(connection)));
        }
        let is_ready = |connection: &Rc<Upstream>| connection.is_ready();
        let outcome = if self.connections.borrow().iter().any(is_ready) {
            Outcome::QueueTimeout
        } else {
            Outcome::ConnectTimeout
        };
        Some((expired.rpc, Err((outcome, Failure::ConnectTimeout))))
    }

    /// Has the queue looked at by then. One timer for all, whatever comes and goes.
    fn wake_by(&self, worker: &Worker, at: Instant) {
        if self.wakes_at.get().is_none_or(|set| at < set) {
            self.wakes_at.set(Some(at));
            worker.timers.add(at, Timer::Waiting(self.shared.id));
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

/// What an RPC gets that has waited for too long, or would in vain.
type TurnedAway = Result<Rc<Upstream>, (Outcome, Failure)>;

/// How long RPCs wait for a connection that is on its way when one would serve them that is congested, or has refused them:
/// connects in one data centre take a few milliseconds, and one that hangs takes `connect_timeout`.
const PATIENCE: Duration = Duration::from_millis(100);

/// See [`Pool::has_enough`]: a third of a MiB with the largest heads and trailers. One run each of `attack siege`, of which
/// 256 MiB are the limit: 171 MiB with this, 254 with 256.
const ENOUGH: usize = 16;

#[cfg(test)]
mod tests;
