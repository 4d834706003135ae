//! The request's way: filters, route, an endpoint, its stream; then the body as it comes.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http2::{Headers, Known, stock};

use super::{Attempt, Key, Logged, Rpc, State, Step};
use crate::{
    data_plane::{
        answer::{self, Form},
        balance,
        filters::{self, Filtered, Respond, timeout},
        upstream::{Acquired, Caller, Upstream, retry::Outcome},
        wire::Side as _,
        worker::{Timer, Worker},
    },
    error::{Failure, ResetCause},
    snapshot::{Cluster, Endpoint, Route, RouteAction, circuit::Circuit, pressure::Level},
    telemetry::metrics::Limit,
};

impl Rpc {
    /// Filters, route, first attempt.
    pub(super) fn begin(&mut self, worker: &Rc<Worker>, key: Key, now: Instant) -> Step {
        let snapshot = worker.snapshot();
        let context = self.client.context();
        let (facts, filtered) =
            worker
                .filters
                .borrow_mut()
                .run(self.head.block(), &context, &snapshot.listener);
        self.form = Form::of(&facts, context.version);
        match filtered {
            Filtered::Continue => {}
            Filtered::Respond(Respond::HealthCheck) => {
                let form = self.form;
                return self.answer(worker, now, |context| {
                    answer::health_check(snapshot.serving, form, context)
                });
            }
            Filtered::Respond(Respond::Failure(failure)) => {
                return self.fail(worker, failure, now);
            }
        }
        if worker.pressure.get().level >= Level::Refusing {
            worker.shard.limits(Limit::Overload).inc();
            return self.fail(worker, Failure::Overloaded, now);
        }
        let path = self.head.value(Logged::Path).unwrap_or_default();
        let Some(route) = snapshot.routes.find(path) else {
            return self.fail(worker, Failure::NoRoute, now);
        };
        match &route.action {
            RouteAction::DirectResponse { status, body } => {
                self.record.routed(worker, route, None, path);
                self.set_deadline(worker, key, route, facts.grpc_timeout, now);
                self.state = State::Answering(*status, body.clone());
                self.answer_if_ended(worker, now)
            }
            RouteAction::Cluster { cluster, .. } => {
                let Some(cluster) = snapshot.cluster(*cluster) else {
                    return self.fail(worker, Failure::Internal, now);
                };
                self.record.routed(worker, route, Some(&cluster), path);
                self.replay.set_limit(cluster.policy.max_replay_bytes);
                self.cluster = Some(cluster);
                self.set_deadline(worker, key, route, facts.grpc_timeout, now);
                self.attempt(worker, key, None, now)
            }
        }
    }

    /// The route's own answer, when the request has ended.
    pub(super) fn answer_if_ended(&mut self, worker: &Rc<Worker>, now: Instant) -> Step {
        let (State::Answering(status, body), Some(_)) = (&self.state, self.request_ended) else {
            return Step::On;
        };
        let (status, body, form) = (*status, body.clone(), self.form);
        self.answer(worker, now, |context| {
            answer::direct_response(status, &body, form, context)
        })
    }

    /// The earlier of the route's time and the client's, the client's capped by the route.
    pub(super) fn set_deadline(
        &mut self,
        worker: &Worker,
        key: Key,
        route: &Route,
        asked: Option<Duration>,
        now: Instant,
    ) {
        let (timeout, max_grpc_timeout) = match route.action {
            RouteAction::Cluster {
                timeout,
                max_grpc_timeout,
                ..
            } => (timeout, max_grpc_timeout),
            // Its answer waits for the request's end, for which the client may allow only so long.
            RouteAction::DirectResponse { .. } => (None, None),
        };
        self.has_grpc_timeout = asked.is_some();
        // The cap is for what clients ask for: an RPC without `grpc-timeout` (a stream, often) has none.
        let asked = asked.map(|asked| max_grpc_timeout.map_or(asked, |most| asked.min(most)));
        let shortest = match (asked, timeout) {
            (Some(asked), Some(timeout)) => Some(asked.min(timeout)),
            (asked, timeout) => asked.or(timeout),
        };
        // 99999999H is more than an `Instant` holds: no deadline then.
        if let Some(at) = shortest.and_then(|shortest| now.checked_add(shortest)) {
            self.deadline = Some(at);
            worker.timers.add(at, Timer::Rpc(key));
        }
    }

    /// Picks an endpoint; opens a stream there, or waits for a connection. `refused_by`: the connection of the last
    /// attempt, which is not to be the next one's where the endpoint is the same.
    pub(super) fn attempt(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        refused_by: Option<Rc<Upstream>>,
        now: Instant,
    ) -> Step {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return self.fail(worker, Failure::DeadlineExceeded, now);
        }
        let Some(cluster) = self.cluster.clone() else {
            return self.fail(worker, Failure::Internal, now);
        };
        let Some(endpoint) = balance::pick(&cluster, &self.tried) else {
            return self.fail(worker, balance::absence(&cluster), now);
        };
        let endpoint = &endpoint.shared;
        self.tried.push(endpoint.id);
        self.record.attempted(endpoint, now);
        let caller = Caller {
            rpc: key,
            client: self.client.holder(),
            avoid: refused_by,
        };
        let acquired = worker.pool.acquire(worker, endpoint, &cluster, caller, now);
        match acquired {
            Ok(Acquired::Connection(upstream)) => self.open(worker, key, upstream, now),
            Ok(Acquired::Place(place)) => {
                self.state = State::Waiting(endpoint.clone(), place);
                let client = self.client.holder().source();
                if worker.memory.is_exceeded() && worker.pool.has_enough(endpoint, client) {
                    // Those that wait are looked at in a moment, in which thousands may come.
                    worker.shard.limits(Limit::Memory).inc();
                    return self.fail(worker, Failure::Overloaded, now);
                }
                Step::On
            }
            Err(circuit) => {
                let failure = Failure::CircuitLimit(circuit);
                if circuit == Circuit::Connections && self.has_untried(&cluster) {
                    // Another endpoint may have a connection already.
                    self.again_or_fail(worker, key, Outcome::ConnectFailed, failure, now)
                } else {
                    self.fail(worker, failure, now)
                }
            }
        }
    }

    /// Another endpoint may serve it.
    pub(super) fn has_untried(&self, cluster: &Cluster) -> bool {
        let untried = |other: &Arc<Endpoint>| !self.tried.contains(&other.shared.id);
        cluster.eligible.iter().any(untried)
    }

    /// Sends what there is of the request on a stream of `upstream`.
    pub(super) fn open(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        upstream: Rc<Upstream>,
        now: Instant,
    ) -> Step {
        let mut permits = std::mem::take(&mut self.permits);
        if let Some(cluster) = &self.cluster
            && let Err(circuit) = permits.enter(&cluster.circuits, Circuit::Requests)
        {
            return self.fail(worker, Failure::CircuitLimit(circuit), now);
        }
        let mut head = self.head.send();
        if self.has_grpc_timeout {
            // The filters may have taken it out. No deadline: more than an `Instant` holds is left.
            let left = self.deadline.map_or(Duration::MAX, |deadline| {
                deadline.saturating_duration_since(now)
            });
            head.set_known(Known::GrpcTimeout, timeout::format(left).as_bytes());
        }
        let ended = self.request_ended.is_some() && self.trailers.is_none();
        let stream = match upstream.open_stream(head, ended && self.replay.is_empty(), key) {
            Ok(stream) => stream,
            Err((_, head)) => {
                stock::recycle(head);
                drop(permits);
                let failure = Failure::ResetBeforeHeaders(ResetCause::Termination);
                return self.again_or_fail(worker, key, Outcome::NeverSent, failure, now);
            }
        };
        self.replay.rewind();
        if !self.replay.is_empty() {
            let framed = upstream
                .link()
                .send_data(stream, self.replay.bytes(), ended, now);
            self.request_forwarded(framed, now);
            self.replay.bound();
            if worker.memory.is_exceeded() {
                self.replay.release();
            }
        }
        if let Some(trailers) = &self.trailers {
            upstream.link().send_trailers(stream, trailers);
        }
        let holder = self.client.holder().clone();
        self.state = State::Open(Attempt::new(upstream, stream, holder, permits));
        Step::On
    }

    pub(super) fn request_data(
        &mut self,
        worker: &Rc<Worker>,
        bytes: &[u8],
        end_stream: bool,
        now: Instant,
    ) -> Step {
        self.active = now;
        self.record.bytes_in += bytes.len() as u64;
        if end_stream {
            self.request_ended = Some(now);
        }
        match &self.state {
            State::Waiting(..) => self.replay.hold(bytes),
            State::Open(attempt) => {
                if self.replay.is_whole() && worker.memory.is_exceeded() {
                    self.replay.release();
                }
                self.replay.keep(bytes);
                let framed = attempt
                    .link()
                    .send_data(attempt.stream, bytes, end_stream, now);
                self.request_forwarded(framed, now);
            }
            State::Relaying(attempt) => {
                let framed = attempt
                    .link()
                    .send_data(attempt.stream, bytes, end_stream, now);
                self.request_forwarded(framed, now);
            }
            // The response is there, the rest of the request is of no interest; its sender isn't to be held up.
            State::Flushing(_) => self.client.credit(bytes.len()),
            State::Answering(..) => {
                self.client.credit(bytes.len());
                return self.answer_if_ended(worker, now);
            }
        }
        Step::On
    }

    pub(super) fn request_trailers(
        &mut self,
        worker: &Rc<Worker>,
        mut headers: Headers,
        now: Instant,
    ) -> Step {
        self.active = now;
        self.request_ended = Some(now);
        filters::request::trailers(&mut headers);
        if let State::Open(attempt) | State::Relaying(attempt) = &self.state {
            attempt.link().send_trailers(attempt.stream, &headers);
        }
        if let State::Relaying(_) | State::Flushing(_) = self.state {
            // No other attempt will want them.
            stock::recycle(headers);
        } else {
            self.trailers = Some(headers);
        }
        self.answer_if_ended(worker, now)
    }

    /// The request's end can't go on, so neither can the request.
    pub(super) fn refuse_trailers(
        &mut self,
        worker: &Rc<Worker>,
        failure: Failure,
        now: Instant,
    ) -> Step {
        self.request_ended = Some(now);
        match self.state {
            // The response is there, and nobody wants the rest of the request.
            State::Flushing(_) => Step::On,
            _ => self.fail(worker, failure, now),
        }
    }

    /// `bytes` more of the request were framed in this attempt: the client gets credit, once.
    pub(super) fn request_forwarded(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.active = now;
        }
        let credit = self.replay.forwarded(bytes);
        if credit > 0 {
            self.client.credit(credit);
        }
    }
}
