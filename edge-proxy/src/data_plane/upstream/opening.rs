//! Another connection: whether and when one is opened, within `max_connections` and the cluster's circuits, and what follows
//! when it is there, hangs or fails.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    EndpointPool,
    connection::{self, Congestion},
    pause::Pause,
};
use crate::{
    data_plane::worker::Worker,
    error::Failure,
    snapshot::{
        circuit::{Circuit, Permits},
        streak::Ending,
    },
};

impl EndpointPool {
    /// Opens as many connections as those that wait would fill, within `max_connections`; after a failure, where there is
    /// one, not at once.
    ///
    /// # Errors
    /// The cluster may have no more of them, and there is none here to wait for.
    pub(super) fn open_more(self: &Rc<Self>, worker: &Rc<Worker>) -> Result<(), Circuit> {
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

    /// Whether there are fewer than the limit allows, not too many that only leave, and the last one to be opened hasn't just
    /// failed.
    pub(super) fn may_open_another(&self, now: Instant) -> bool {
        let connections = self.connections.borrow();
        let ready = connections.iter().filter(|one| one.is_ready()).count();
        let leaving = connections.iter().filter(|one| one.leaves()).count();
        let pauses = ready > 0 && self.pause.get().holds(now);
        !pauses
            && leaving < LEAVING
            && ready + self.opening.get() < self.policy.borrow().max_connections
    }

    /// A connection is on its way, and has been for so long that nobody is to wait for it who can be served now.
    pub(super) fn opens_slowly(&self, now: Instant) -> bool {
        self.slow_from().is_some_and(|from| now >= from)
    }

    pub(super) fn slow_from(&self) -> Option<Instant> {
        self.opening_since.get().map(|since| since + PATIENCE)
    }

    /// A connection got its SETTINGS.
    pub(super) fn became_ready(&self) {
        self.with_pause(Pause::lift);
        self.opened();
    }

    /// A connection got its SETTINGS, or never will.
    pub(super) fn opened(&self) {
        self.opening.set(self.opening.get().saturating_sub(1));
        if self.opening.get() == 0 {
            self.opening_since.set(None);
        }
    }

    /// A connection attempt failed, or one that was there ended before it served anybody, while RPCs wait. These go
    /// elsewhere, unless another connection may still serve them.
    pub(super) fn open_failed(self: &Rc<Self>, worker: &Rc<Worker>, failure: Failure) {
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

    pub(super) fn with_pause<R>(&self, change: impl FnOnce(&mut Pause) -> R) -> R {
        let mut pause = self.pause.get();
        let result = change(&mut pause);
        self.pause.set(pause);
        result
    }
}

/// Connections that take no more RPCs and have some that run, before no other takes their place until one of them has ended:
/// a backend may say GOAWAY on each, and answer nobody. All clusters share the process's files. A server that means well has
/// few: of a grpc-go with a MaxConnectionAge of 30 s, the RPCs on these run for two hours.
pub(super) const LEAVING: usize = 256;

/// How long RPCs wait for a connection that is on its way when one would serve them that is congested, or has refused them:
/// connects in one data centre take a few milliseconds, and one that hangs takes `connect_timeout`.
const PATIENCE: Duration = Duration::from_millis(100);
