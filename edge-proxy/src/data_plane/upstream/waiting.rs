//! RPCs that wait for a connection: each gets one in its turn, or is sent elsewhere.

use std::{rc::Rc, time::Instant};

use super::{
    Acquired, Caller, EndpointPool, Upstream, connection::Congestion, queue::Waiting,
    retry::Outcome,
};
use crate::{
    data_plane::{
        holder::Holder,
        rpc::{self, Key},
        worker::{AT_ONCE, Timer, Worker},
    },
    error::Failure,
    snapshot::circuit::{Circuit, Permits},
    telemetry::metrics::Limit,
};

impl EndpointPool {
    /// Puts it in the queue and opens a connection for it. Where none is on its way, one that is congested serves it
    /// now, if there is room on it.
    ///
    /// # Errors
    /// A circuit limit of the cluster.
    pub(super) fn wait(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        caller: Caller<'_>,
        now: Instant,
    ) -> Result<Acquired, Circuit> {
        let Caller { rpc, client, avoid } = caller;
        let mut permits = Permits::default();
        permits.enter(&self.circuits, Circuit::PendingRequests)?;
        let until = now + self.policy.borrow().connect_timeout;
        let waiting = Waiting {
            rpc,
            client: client.source(),
            since: now,
            until,
            _permits: permits,
        };
        let streams = client.streams(self.number);
        let place = self.waiting.borrow_mut().push(waiting, streams, avoid);
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
            if first && let Some((_, connection)) = self.next_served(Congestion::Stream, now) {
                return Ok(Acquired::Connection(connection));
            }
            // Every connection that there may be is there, and full.
            worker.shard.limits(Limit::UpstreamConnections).inc();
        }
        let slow_from = self.slow_from().filter(|from| now < *from);
        let others = [slow_from, self.divides_at()];
        let at = others.into_iter().flatten().fold(until, Instant::min);
        self.wake_by(worker, at);
        Ok(Acquired::Place(place))
    }

    /// Serves those that wait, as far as connections have room that are no more congested than this: not too many at a
    /// time, since clients decide how many they are, and one that is refused a stream by a circuit limit takes no room.
    /// How many were served; the timer is set for the others.
    pub(super) fn serve(&self, worker: &Rc<Worker>, most: Congestion) -> usize {
        let mut served = 0;
        // Not borrowed while it is served: it may come to wait here again.
        while let Some((rpc, connection)) = self.next_served(most, worker.now()) {
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
    fn next_served(&self, most: Congestion, now: Instant) -> Option<(Key, Rc<Upstream>)> {
        let mut queue = self.waiting.borrow_mut();
        let served = queue.next().filter_map(|(turn, avoid)| {
            if !self.may_have_one(|| turn.0, now) {
                return None;
            }
            let connection = self.best_connection(avoid, || most)?;
            Some((turn, connection))
        });
        let (turn, connection) = served.min_by_key(|(turn, _)| *turn)?;
        Some((queue.serve(turn)?.rpc, connection))
    }

    /// Those that wait learn that it is in vain.
    pub(super) fn send_elsewhere(&self, worker: &Rc<Worker>, failure: Failure) {
        self.in_vain
            .set(Some((failure, self.waiting.borrow().last())));
        self.serves_on.set(false);
        self.turn_away(worker, worker.now());
    }

    /// Tells those that wait in vain, or for too long, to try elsewhere, unless one that is congested or has refused them will
    /// do: not too many at a time, since clients decide how many they are, and others' RPCs are to run between. How many
    /// were told; the timer is set for the others.
    pub(super) fn turn_away(&self, worker: &Rc<Worker>, now: Instant) -> usize {
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
            let others = [
                in_vain,
                slow_from,
                self.pause.get().next(),
                self.divides_at(),
            ];
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
        let bearable = free(waiting.first_avoids())
            .or_else(|| free(None))
            .filter(|_| self.may_have_one(|| waiting.first_streams(), now));
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
    pub(super) fn wake_by(&self, worker: &Worker, at: Instant) {
        if self.wakes_at.get().is_none_or(|set| at < set) {
            self.wakes_at.set(Some(at));
            worker.timers.add(at, Timer::Waiting(self.shared.id));
        }
    }

    /// So many streams here are this client's now.
    #[inline]
    pub(super) fn holds(&self, client: &Holder, streams: u32) {
        if self.is_waited_for() {
            let mut waiting = self.waiting.borrow_mut();
            waiting.holds(client.source(), streams);
        }
    }

    /// RPCs wait for a connection.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Whether RPCs wait for what the connections that are there don't have, and no other is on its way.
    pub(super) fn lacks_room(&self) -> bool {
        self.is_waited_for() && self.opening.get() == 0
    }
}

/// What an RPC gets that has waited for too long, or would in vain.
type TurnedAway = Result<Rc<Upstream>, (Outcome, Failure)>;
