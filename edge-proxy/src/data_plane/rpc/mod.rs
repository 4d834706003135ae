//! Step 4: THE STORY. One RPC's life, from its head to its log line; the only place that knows the order of the steps.
//!
//! ```text
//!             filters, route          pick, connection            response head
//!   (start) ──────────────▶ Waiting ───────────────────▶ Open ───────────────────▶ Relaying
//!              │               │  ▲                        │                          │
//!              │ answered here │  └── another attempt ─────┤                          │ trailers, END_STREAM
//!              ▼               ▼                           ▼                          ▼
//!           Flushing ◀──────── failure: answered here ─────┴── failure: trailers ──▶ Flushing ──▶ (log, end)
//! ```
//!
//! An RPC is an entry of its worker's slab, and both of its connections know it by its key. Everything that happens to
//! it (an event of one of the connections, a deadline, an endpoint that could be connected to or not) is one of the
//! functions below: it finds the entry, takes one synchronous step, and ends the RPC if that was the last. A step that
//! panics ends its RPC with `internal error` and nothing else.
//!
//! Flow control is end to end: the sender of a leg gets credit for what the other leg has framed, and for nothing
//! else, so what is held back is bounded by the windows that we gave.

mod body;
mod client;
mod record;
mod table;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use http2::{Headers, Known, Reason};

use self::{body::Replay, record::Record};
pub(crate) use self::{
    client::Client,
    table::{Key, Table},
};
use super::{
    answer::{self, Answer, AnswerContext, Form},
    balance,
    filters::{self, Facts, Flow as Filtered, Respond, response, timeout},
    message::Messages,
    upstream::{
        Upstream,
        retry::{self, Outcome, Retry},
    },
    worker::{Phase, Timer, Worker},
};
use crate::{
    error::{Failure, Flag, ResetCause},
    snapshot::{Cluster, EndpointShared, Route, RouteAction, Timeouts},
};

/// One RPC (or plain HTTP request), both of its legs.
pub(crate) struct Rpc {
    client: Client,
    /// What its answers look like: gRPC's form, or plain.
    form: Form,
    /// The request's head as every attempt sends it, but for `grpc-timeout`.
    head: Headers,
    /// The request's body as far as another attempt may need it.
    replay: Replay,
    /// The request's trailers, which gRPC doesn't have and plain HTTP may.
    trailers: Option<Headers>,
    /// When the client's half ended.
    request_ended: Option<Instant>,
    state: State,
    /// Where the route leads; `None` while (or because) no cluster is asked.
    cluster: Option<Arc<Cluster>>,
    /// Endpoints that were tried, in order.
    tried: Vec<u64>,
    /// gRPC messages of the response, so that it can be cut between two of them.
    messages: Messages,
    /// When the client (or the route) wants it ended.
    deadline: Option<Instant>,
    /// The last byte, either way.
    active: Instant,
    record: Record,
}

/// Where an RPC is; the drawing is at the module's head.
enum State {
    /// For the request's end; then the route's own answer goes out. A client that hasn't ended its request may still
    /// break it, and is told so only while the stream is open.
    Answering(u16, Arc<str>),
    /// For a connection to this endpoint.
    Waiting(Arc<EndpointShared>),
    /// The request goes to this stream; no head of a response yet.
    Open(Attempt),
    /// The response's head went to the client.
    Relaying(Attempt),
    /// The response is complete, or ours: what is left of it waits for the client. The moment is when that began, if
    /// the response was cut short.
    Flushing(Option<Instant>),
}

/// One try of an RPC on one endpoint.
struct Attempt {
    upstream: Rc<Upstream>,
    stream: u32,
    endpoint: Arc<EndpointShared>,
}

/// Whether an RPC goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    On,
    Done,
}

// --- What happens to an RPC, in the order in which it usually does -----------------------------------------------

/// A client's request begins.
pub(crate) fn start(
    worker: &Rc<Worker>,
    client: Client,
    headers: Headers,
    end_stream: bool,
    now: Instant,
) {
    let Some(key) = worker
        .rpcs
        .borrow_mut()
        .insert(Rpc::new(client, headers, end_stream, now))
    else {
        return;
    };
    step(worker, key, |rpc| {
        rpc.client.set_key(key);
        rpc.begin(worker, key, now)
    });
}

/// A client's request is refused before it became an RPC, with what is known of its head.
pub(crate) fn refuse(
    worker: &Rc<Worker>,
    client: Client,
    headers: Headers,
    failure: Failure,
    now: Instant,
) {
    let mut rpc = Rpc::new(client, headers, false, now);
    rpc.form = Form::of(&Facts::read(&rpc.head, None));
    let Some(key) = worker.rpcs.borrow_mut().insert(rpc) else {
        return;
    };
    step(worker, key, |rpc| {
        rpc.client.set_key(key);
        rpc.fail(worker, key, failure, now)
    });
}

/// The endpoint that the RPC waits for has a connection with room.
pub(crate) fn connected(worker: &Rc<Worker>, key: Key, upstream: Rc<Upstream>) {
    let now = worker.now();
    step(worker, key, |rpc| match &rpc.state {
        State::Waiting(endpoint) => {
            let endpoint = endpoint.clone();
            rpc.open(worker, key, upstream, endpoint, now)
        }
        _ => Step::On,
    });
}

/// The endpoint that the RPC waits for can't be connected to, or not in time.
pub(crate) fn connect_failed(worker: &Rc<Worker>, key: Key, failure: Failure) {
    let now = worker.now();
    let outcome = match failure {
        Failure::ConnectTimeout => Outcome::ConnectTimeout,
        _ => Outcome::ConnectFailed,
    };
    step(worker, key, |rpc| match rpc.state {
        State::Waiting(_) => rpc.again_or_fail(worker, key, outcome, failure, now),
        _ => Step::On,
    });
}

/// DATA of the request.
pub(crate) fn request_data(
    worker: &Rc<Worker>,
    key: Key,
    bytes: &[u8],
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| {
        rpc.request_data(worker, bytes, end_stream, now)
    });
}

/// Trailers of the request.
pub(crate) fn request_trailers(worker: &Rc<Worker>, key: Key, headers: Headers, now: Instant) {
    step(worker, key, |rpc| {
        rpc.request_trailers(worker, headers, now)
    });
}

/// Queued DATA of the request was framed.
pub(crate) fn request_sent(worker: &Rc<Worker>, key: Key, bytes: usize) {
    step(worker, key, |rpc| {
        rpc.request_forwarded(bytes);
        Step::On
    });
}

/// A head of the response: 1xx, or the one.
pub(crate) fn response_headers(
    worker: &Rc<Worker>,
    key: Key,
    headers: Headers,
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| {
        rpc.response_headers(worker, headers, end_stream, now)
    });
}

/// DATA of the response.
pub(crate) fn response_data(
    worker: &Rc<Worker>,
    key: Key,
    bytes: &[u8],
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| rpc.response_data(bytes, end_stream, now));
}

/// Trailers of the response.
pub(crate) fn response_trailers(worker: &Rc<Worker>, key: Key, headers: Headers, now: Instant) {
    step(worker, key, |rpc| rpc.response_trailers(headers, now));
}

/// Queued DATA of the response was framed; with `end_stream`, all of it.
pub(crate) fn response_sent(worker: &Rc<Worker>, key: Key, bytes: usize, end_stream: bool) {
    step(worker, key, |rpc| rpc.response_sent(bytes, end_stream));
}

/// The backend's stream ended before its time.
pub(crate) fn upstream_reset(
    worker: &Rc<Worker>,
    key: Key,
    reason: Reason,
    by_peer: bool,
    unprocessed: bool,
) {
    let now = worker.now();
    let cause = if by_peer || unprocessed {
        ResetCause::RemoteReset
    } else {
        ResetCause::ProtocolError
    };
    let outcome = match reason {
        Reason::REFUSED_STREAM if unprocessed => Outcome::RefusedStream,
        _ if unprocessed => Outcome::AboveGoaway,
        _ => Outcome::Other,
    };
    step(worker, key, |rpc| {
        rpc.attempt_ended(worker, key, outcome, cause, now)
    });
}

/// The backend's connection ended under the stream; `headers_left`: it may have seen the request.
pub(crate) fn upstream_gone(worker: &Rc<Worker>, key: Key, headers_left: bool, cause: ResetCause) {
    let now = worker.now();
    let outcome = if headers_left {
        Outcome::Other
    } else {
        Outcome::NeverSent
    };
    step(worker, key, |rpc| {
        rpc.attempt_ended(worker, key, outcome, cause, now)
    });
}

/// The client reset its stream, or broke a rule in it.
pub(crate) fn client_reset(worker: &Rc<Worker>, key: Key, reason: Reason, _now: Instant) {
    let flag = if reason == Reason::PROTOCOL_ERROR {
        Flag::DownstreamProtocolError
    } else {
        Flag::DownstreamReset
    };
    step(worker, key, |rpc| rpc.client_left(worker, key, flag));
}

/// The client's connection ended.
pub(crate) fn client_gone(worker: &Rc<Worker>, key: Key) {
    step(worker, key, |rpc| {
        rpc.client_left(worker, key, Flag::DownstreamTermination)
    });
}

/// The RPC's deadline fired.
pub(crate) fn deadline(worker: &Rc<Worker>, key: Key, now: Instant) {
    step(worker, key, |rpc| match rpc.state {
        State::Flushing(_) => Step::On,
        _ => rpc.fail(worker, key, Failure::DeadlineExceeded, now),
    });
}

/// Enforces the limits that are looked at now and then; names the next moment to look.
pub(crate) fn check(
    worker: &Rc<Worker>,
    key: Key,
    now: Instant,
    timeouts: &Timeouts,
) -> Option<Instant> {
    let mut next = None;
    step(worker, key, |rpc| {
        rpc.check(worker, key, now, timeouts, &mut next)
    });
    next
}

/// The RPC has to end now: the process, or its connection's grace, has come to its end.
pub(crate) fn cut(worker: &Rc<Worker>, key: Key, now: Instant) {
    step(worker, key, |rpc| match rpc.state {
        State::Flushing(_) => Step::On,
        _ => rpc.fail(worker, key, Failure::Draining, now),
    });
}

/// [`cut`], for every RPC of the worker.
pub(crate) fn cut_all(worker: &Rc<Worker>) {
    let keys = worker.rpcs.borrow().keys();
    let now = worker.now();
    for key in keys {
        cut(worker, key, now);
    }
}

/// One step of one RPC. A panic in it ends this RPC and nothing else.
fn step(worker: &Rc<Worker>, key: Key, work: impl FnOnce(&mut Rpc) -> Step) {
    let done = {
        let mut rpcs = worker.rpcs.borrow_mut();
        let Some(rpc) = rpcs.get_mut(key) else { return };
        match catch_unwind(AssertUnwindSafe(|| work(rpc))) {
            Ok(step) => step == Step::Done,
            Err(_) => {
                tracing::error!(request_id = %rpc.request_id(), "a panic ended an RPC");
                let answer = || rpc.fail(worker, key, Failure::Internal, worker.now());
                catch_unwind(AssertUnwindSafe(answer)).map_or(true, |step| step == Step::Done)
            }
        }
    };
    if done {
        let rpc = worker.rpcs.borrow_mut().remove(key);
        if let Some(rpc) = rpc {
            rpc.end(worker, key);
        }
    }
}

// --- The steps ----------------------------------------------------------------------------------------------------

impl Rpc {
    fn new(client: Client, head: Headers, end_stream: bool, now: Instant) -> Self {
        Self {
            client,
            form: Form::Plain,
            head,
            replay: Replay::default(),
            trailers: None,
            request_ended: end_stream.then_some(now),
            state: State::Flushing(None),
            cluster: None,
            tried: Vec::new(),
            messages: Messages::new(),
            deadline: None,
            active: now,
            record: Record::new(now),
        }
    }

    /// Filters, route, first attempt.
    fn begin(&mut self, worker: &Rc<Worker>, key: Key, now: Instant) -> Step {
        let snapshot = worker.snapshot();
        let (facts, filtered) = {
            let context = self.client.context();
            worker
                .filters
                .borrow_mut()
                .run(&mut self.head, &context, &snapshot.listener)
        };
        self.form = Form::of(&facts);
        match filtered {
            Filtered::Continue => {}
            Filtered::Respond(Respond::HealthCheck) => {
                let form = self.form;
                return self.answer(worker, now, |context| {
                    answer::health_check(snapshot.serving, form, context)
                });
            }
            Filtered::Respond(Respond::Failure(failure)) => {
                return self.fail(worker, key, failure, now);
            }
        }
        let path = self.head.known(Known::Path).unwrap_or_default();
        let Some(route) = snapshot.routes.find(path) else {
            return self.fail(worker, key, Failure::NoRoute, now);
        };
        match &route.action {
            RouteAction::DirectResponse { status, body } => {
                self.record.routed(worker, route, None, path);
                self.state = State::Answering(*status, body.clone());
                self.answer_if_ended(worker, now)
            }
            RouteAction::Cluster { cluster, .. } => {
                let Some(cluster) = snapshot.cluster(*cluster) else {
                    return self.fail(worker, key, Failure::Internal, now);
                };
                self.record.routed(worker, route, Some(cluster), path);
                self.cluster = Some(cluster.clone());
                self.replay.set_limit(cluster.policy.max_replay_bytes);
                self.set_deadline(worker, key, route, facts.grpc_timeout, now);
                self.attempt(worker, key, now)
            }
        }
    }

    /// The route's own answer, when the request has ended.
    fn answer_if_ended(&mut self, worker: &Rc<Worker>, now: Instant) -> Step {
        let (State::Answering(status, body), Some(_)) = (&self.state, self.request_ended) else {
            return Step::On;
        };
        let (status, body, form) = (*status, body.clone(), self.form);
        self.answer(worker, now, |context| {
            answer::direct_response(status, &body, form, context)
        })
    }

    /// The earlier of the route's time and the client's, the client's capped by the route.
    fn set_deadline(
        &mut self,
        worker: &Worker,
        key: Key,
        route: &Route,
        asked: Option<Duration>,
        now: Instant,
    ) {
        let RouteAction::Cluster {
            timeout,
            max_grpc_timeout,
            ..
        } = route.action
        else {
            return;
        };
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

    /// Picks an endpoint; opens a stream there, or waits for a connection.
    fn attempt(&mut self, worker: &Rc<Worker>, key: Key, now: Instant) -> Step {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return self.fail(worker, key, Failure::DeadlineExceeded, now);
        }
        let Some(cluster) = self.cluster.clone() else {
            return self.fail(worker, key, Failure::Internal, now);
        };
        let Some(endpoint) = balance::pick(&cluster, &self.tried) else {
            return self.fail(worker, key, balance::absence(&cluster), now);
        };
        let endpoint = endpoint.shared.clone();
        self.tried.push(endpoint.id);
        match worker
            .pool
            .acquire(worker, &endpoint, &cluster.policy, key, now)
        {
            Some(upstream) => self.open(worker, key, upstream, endpoint, now),
            None => {
                self.state = State::Waiting(endpoint);
                Step::On
            }
        }
    }

    /// Sends what there is of the request on a stream of `upstream`.
    fn open(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        upstream: Rc<Upstream>,
        endpoint: Arc<EndpointShared>,
        now: Instant,
    ) -> Step {
        let mut head = worker.arenas.borrow_mut().pop().unwrap_or_default();
        head.clone_from(&self.head);
        if let Some(deadline) = self.deadline.filter(|_| self.is_grpc()) {
            timeout::rewrite(&mut head, deadline.saturating_duration_since(now));
        }
        let ended = self.request_ended.is_some() && self.trailers.is_none();
        let stream = match upstream.open_stream(head, ended && self.replay.is_empty(), key) {
            Ok(stream) => stream,
            Err((_, head)) => {
                worker.arenas.borrow_mut().push(head);
                self.state = State::Waiting(endpoint);
                let failure = Failure::ResetBeforeHeaders(ResetCause::Termination);
                return self.again_or_fail(worker, key, Outcome::NeverSent, failure, now);
            }
        };
        self.replay.rewind();
        if !self.replay.is_empty() {
            let framed = upstream.send_data(stream, self.replay.bytes(), ended, now);
            self.request_forwarded(framed);
            self.replay.bound();
        }
        if let Some(trailers) = &self.trailers {
            upstream.send_trailers(stream, trailers);
        }
        endpoint.attempts.fetch_add(1, Ordering::Relaxed);
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        self.record.attempted(&endpoint, now);
        self.state = State::Open(Attempt {
            upstream,
            stream,
            endpoint,
        });
        Step::On
    }

    fn request_data(
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
            State::Waiting(_) => self.replay.hold(bytes),
            State::Open(attempt) => {
                self.replay.keep(bytes);
                let framed = attempt
                    .upstream
                    .send_data(attempt.stream, bytes, end_stream, now);
                self.request_forwarded(framed);
            }
            State::Relaying(attempt) => {
                let framed = attempt
                    .upstream
                    .send_data(attempt.stream, bytes, end_stream, now);
                self.request_forwarded(framed);
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

    fn request_trailers(
        &mut self,
        worker: &Rc<Worker>,
        mut headers: Headers,
        now: Instant,
    ) -> Step {
        self.active = now;
        self.request_ended = Some(now);
        filters::request::trailers(&mut headers);
        if let State::Open(attempt) | State::Relaying(attempt) = &self.state {
            attempt.upstream.send_trailers(attempt.stream, &headers);
        }
        self.trailers = Some(headers);
        self.answer_if_ended(worker, now)
    }

    /// `bytes` more of the request were framed in this attempt: the client gets credit, once.
    fn request_forwarded(&mut self, bytes: usize) {
        let credit = self.replay.forwarded(bytes);
        if credit > 0 {
            self.client.credit(credit);
        }
    }

    fn response_headers(
        &mut self,
        worker: &Rc<Worker>,
        mut headers: Headers,
        end_stream: bool,
        now: Instant,
    ) -> Step {
        self.active = now;
        let State::Open(_) = self.state else {
            return Step::On;
        };
        let status = headers.status().unwrap_or(0);
        if status < 200 {
            // gRPC knows no interim answers, and clients take them for the answer.
            if !self.is_grpc() {
                response::interim(&mut headers);
                self.client.send_headers(&headers, false);
            }
            return Step::On;
        }
        self.replay.release();
        let upstream_time = self
            .request_ended
            .map(|ended| now.saturating_duration_since(ended));
        worker.with_snapshot(|snapshot| {
            let mut date = worker.date.borrow_mut();
            let context = response::ResponseContext {
                server_name: &snapshot.listener.server_name,
                date: date.at(worker.wall(now)),
                upstream_time,
            };
            response::head(&mut headers, &context);
        });
        self.record.responded(status, &headers, now);
        self.client.send_headers(&headers, end_stream);
        if let State::Open(attempt) = std::mem::replace(&mut self.state, State::Flushing(None)) {
            attempt.upstream.recycle(headers);
            self.state = State::Relaying(attempt);
        }
        if end_stream {
            self.response_ended(true)
        } else {
            Step::On
        }
    }

    fn response_data(&mut self, bytes: &[u8], end_stream: bool, now: Instant) -> Step {
        self.active = now;
        let State::Relaying(attempt) = &self.state else {
            return Step::On;
        };
        if self.is_grpc() {
            self.messages.feed(bytes);
        }
        self.record.bytes_out += bytes.len() as u64;
        let framed = self.client.send_data(bytes, end_stream, now);
        if framed > 0 {
            attempt.upstream.credit(attempt.stream, framed);
        }
        if end_stream {
            self.response_ended(true)
        } else {
            Step::On
        }
    }

    fn response_trailers(&mut self, mut headers: Headers, now: Instant) -> Step {
        self.active = now;
        let State::Relaying(attempt) = &self.state else {
            return Step::On;
        };
        response::trailers(&mut headers);
        self.record.trailers(&headers);
        self.client.send_trailers(&headers);
        attempt.upstream.recycle(headers);
        self.response_ended(true)
    }

    fn response_sent(&mut self, bytes: usize, end_stream: bool) -> Step {
        if let State::Relaying(attempt) = &self.state
            && bytes > 0
        {
            attempt.upstream.credit(attempt.stream, bytes);
        }
        match self.state {
            State::Flushing(_) if end_stream => Step::Done,
            _ => Step::On,
        }
    }

    /// The backend has said all (`complete`), or nothing more that we want: its leg ends, and the RPC when the client
    /// has what was said.
    fn response_ended(&mut self, complete: bool) -> Step {
        let cut = (!complete).then_some(self.active);
        if let State::Open(attempt) | State::Relaying(attempt) =
            std::mem::replace(&mut self.state, State::Flushing(cut))
        {
            // An upload that is still under way is stopped; a stream that has ended on both sides ignores this.
            attempt.upstream.reset(attempt.stream, Reason::CANCEL);
            attempt.leave(complete && !self.record.failed(self.is_grpc()));
        }
        if self.client.has_all() {
            Step::Done
        } else {
            Step::On
        }
    }

    /// An attempt came to an end that isn't a response's.
    fn attempt_ended(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        outcome: Outcome,
        cause: ResetCause,
        now: Instant,
    ) -> Step {
        match self.state {
            State::Open(_) => self.again_or_fail(
                worker,
                key,
                outcome,
                Failure::ResetBeforeHeaders(cause),
                now,
            ),
            State::Relaying(_) => self.fail(worker, key, Failure::ResetAfterHeaders(cause), now),
            State::Answering(..) | State::Waiting(_) | State::Flushing(_) => Step::On,
        }
    }

    /// Another attempt, where it is certain that no backend has seen this one and the request is still whole.
    fn again_or_fail(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        outcome: Outcome,
        failure: Failure,
        now: Instant,
    ) -> Step {
        let Some(cluster) = &self.cluster else {
            return self.fail(worker, key, failure, now);
        };
        let retry = {
            let state = worker.cluster(&cluster.name);
            let budget = &mut state.budget.borrow_mut();
            retry::decide(
                outcome,
                self.tried.len() as u32,
                self.replay.is_whole(),
                budget,
                now,
            )
        };
        if retry == Retry::No || worker.phase.get() == Phase::Cutting {
            return self.fail(worker, key, failure, now);
        }
        let name = cluster.name.clone();
        if let State::Open(attempt) = std::mem::replace(&mut self.state, State::Flushing(None)) {
            attempt.leave(false);
        }
        // Discovery and health may have learnt something since the first attempt.
        let newest = worker
            .with_snapshot(|snapshot| snapshot.clusters.iter().find(|c| c.name == name).cloned());
        if newest.is_some() {
            self.cluster = newest;
        }
        self.record.retried(worker);
        self.attempt(worker, key, now)
    }

    /// The proxy answers, or ends what it can't complete.
    fn fail(&mut self, worker: &Rc<Worker>, key: Key, failure: Failure, now: Instant) -> Step {
        self.record.failed_with(failure);
        let relayed = matches!(self.state, State::Relaying(_));
        self.leave_upstream(worker, key, false);
        if !relayed {
            let form = self.form;
            return self.answer(worker, now, |context| {
                answer::failure(failure, form, context)
            });
        }
        if !self.is_grpc() {
            // Nothing can be said any more: the client must see that the body isn't whole.
            self.client.reset(Reason::INTERNAL_ERROR);
            return Step::Done;
        }
        // Half a message is dropped if none of it has been framed yet.
        let partial = self.messages.begun();
        if partial > 0 && self.client.unqueue(partial) {
            self.record.bytes_out -= partial as u64;
        }
        let trailers = answer::trailers(failure);
        self.record.trailers(&trailers);
        self.client.send_trailers(&trailers);
        self.state = State::Flushing(Some(now));
        self.client.check_by(now + CUT_FLUSH);
        if self.client.has_all() {
            Step::Done
        } else {
            Step::On
        }
    }

    /// An answer of the proxy's own.
    fn answer(
        &mut self,
        worker: &Rc<Worker>,
        now: Instant,
        make: impl FnOnce(&AnswerContext<'_>) -> Answer,
    ) -> Step {
        let answer = worker.with_snapshot(|snapshot| {
            let mut date = worker.date.borrow_mut();
            make(&AnswerContext {
                server_name: &snapshot.listener.server_name,
                date: date.at(worker.wall(now)),
            })
        });
        self.state = State::Flushing(None);
        let body = answer.body.as_bytes();
        self.record
            .responded(answer.headers.status().unwrap_or(0), &answer.headers, now);
        self.record.bytes_out += body.len() as u64;
        self.client.send_headers(&answer.headers, body.is_empty());
        if !body.is_empty() {
            self.client.send_data(body, true, now);
        }
        if self.client.has_all() {
            Step::Done
        } else {
            Step::On
        }
    }

    /// The client is gone: nothing is owed to it, and the backend learns at once.
    fn client_left(&mut self, worker: &Rc<Worker>, key: Key, flag: Flag) -> Step {
        let was_flushing = matches!(self.state, State::Flushing(_));
        self.record.client_left(flag, was_flushing);
        self.leave_upstream(worker, key, true);
        Step::Done
    }

    fn leave_upstream(&mut self, worker: &Worker, key: Key, unjudged: bool) {
        match std::mem::replace(&mut self.state, State::Flushing(None)) {
            State::Waiting(endpoint) => worker.pool.forget(endpoint.id, key),
            State::Open(attempt) | State::Relaying(attempt) => {
                attempt.upstream.reset(attempt.stream, Reason::CANCEL);
                attempt.leave(unjudged);
            }
            State::Answering(..) | State::Flushing(_) => {}
        }
    }

    fn check(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        now: Instant,
        timeouts: &Timeouts,
        next: &mut Option<Instant>,
    ) -> Step {
        let mut due = |at: Instant| {
            *next = Some(next.map_or(at, |next| next.min(at)));
            now >= at
        };
        if let Some(since) = self.client.blocked() {
            let cut = matches!(self.state, State::Flushing(Some(_)));
            let limit = if cut {
                CUT_FLUSH
            } else {
                timeouts.stream_window_stall
            };
            if due(since + limit) {
                self.record.window_stalled(worker);
                self.client.reset(Reason::CANCEL);
                self.leave_upstream(worker, key, true);
                return Step::Done;
            }
        }
        if due(self.active + timeouts.stream_idle) {
            if let State::Flushing(_) = self.state {
                self.client.reset(Reason::CANCEL);
                return Step::Done;
            }
            return self.fail(worker, key, Failure::StreamIdle, now);
        }
        Step::On
    }

    /// The last step: both legs are settled, the line is written.
    fn end(mut self, worker: &Rc<Worker>, key: Key) {
        if let Some(deadline) = self.deadline {
            worker.timers.remove(deadline, Timer::Rpc(key));
        }
        if self.request_ended.is_none() {
            // RFC 9113 §8.1: the answer is complete, the rest of the request isn't wanted.
            self.client.reset(Reason::NO_ERROR);
        }
        self.leave_upstream(worker, key, true);
        let now = worker.now();
        self.client.ended(now);
        self.record
            .write(worker, &self.client, &self.head, self.is_grpc(), now);
        self.client.recycle(std::mem::take(&mut self.head));
    }

    fn is_grpc(&self) -> bool {
        self.form == Form::Grpc
    }

    fn request_id(&self) -> String {
        String::from_utf8_lossy(self.head.known(Known::XRequestId).unwrap_or_default()).into_owned()
    }
}

impl Attempt {
    /// The endpoint's counters.
    fn leave(self, well: bool) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
        if !well {
            self.endpoint.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A response that was cut short waits this long for the client's window before its stream is reset.
const CUT_FLUSH: Duration = Duration::from_secs(5);
