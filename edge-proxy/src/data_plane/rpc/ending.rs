//! Everything that ends an RPC, or an attempt of it, in another way than a response: and the end itself.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http2::{Headers, Reason, stock};

use super::{Attempt, Client, Key, Rpc, State, Step};
use crate::{
    data_plane::{
        answer::{self, Answer, AnswerContext},
        upstream::retry::{self, Outcome, Retry},
        wire::Side as _,
        worker::{Phase, Worker},
    },
    error::{Failure, Fault, Flag, ResetCause},
    snapshot::{
        Timeouts,
        circuit::{Circuit, Permits},
        pressure::Level,
    },
    telemetry::{labels, metrics::Limit},
};

impl Rpc {
    /// An attempt came to an end that isn't a response's.
    pub(super) fn attempt_ended(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        outcome: Outcome,
        cause: ResetCause,
        now: Instant,
    ) -> Step {
        if let State::Open(_) | State::Relaying(_) = self.state {
            // The backend was told the deadline and ends the RPC by its own clock: grpc-go's servers reset the stream.
            if self
                .deadline
                .is_some_and(|deadline| now + DEADLINE_SLACK >= deadline)
            {
                return self.fail(worker, Failure::DeadlineExceeded, now);
            }
            let counted = match cause {
                ResetCause::RemoteReset => labels::ResetCause::UpstreamReset,
                ResetCause::ProtocolError => labels::ResetCause::Malformed,
                ResetCause::Termination => labels::ResetCause::ConnectionClosed,
            };
            worker.shard.resets(counted).inc();
        }
        match self.state {
            State::Open(_) => self.again_or_fail(
                worker,
                key,
                outcome,
                Failure::ResetBeforeHeaders(cause),
                now,
            ),
            State::Relaying(_) => self.fail(worker, Failure::ResetAfterHeaders(cause), now),
            State::Answering(..) | State::Waiting(..) | State::Flushing(_) => Step::On,
        }
    }

    /// Another attempt, where it is certain that no backend has seen this one and the request is still whole.
    pub(super) fn again_or_fail(
        &mut self,
        worker: &Rc<Worker>,
        key: Key,
        outcome: Outcome,
        failure: Failure,
        now: Instant,
    ) -> Step {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return self.fail(worker, Failure::DeadlineExceeded, now);
        }
        let (Some(cluster), Some(state)) = (self.cluster.take(), self.record.cluster()) else {
            return self.fail(worker, failure, now);
        };
        // Discovery and health may have learnt something since the first attempt.
        let newest = worker.snapshot().named(&cluster.name);
        let cluster = self.cluster.insert(newest.unwrap_or(cluster)).clone();
        // It has had its place in the line: at the end of the same one it has no better prospects.
        let waits_again = outcome == Outcome::QueueTimeout && !self.has_untried(&cluster);
        let retry = if waits_again || worker.phase.get() == Phase::Cutting {
            Retry::No
        } else {
            let retry = retry::decide(
                outcome,
                self.tried.len() as u32,
                self.replay.is_whole(),
                &mut state.budget.borrow_mut(),
                now,
            );
            if let Retry::Refused(by) = retry {
                state.series.retries_refused(by).inc();
            }
            retry
        };
        if let Retry::Refused(_) | Retry::No = retry {
            self.record.given_up(outcome);
            return self.fail(worker, failure, now);
        }
        let mut refused_by = None;
        if let State::Open(attempt) = std::mem::replace(&mut self.state, State::Flushing(None)) {
            refused_by = Some(attempt.upstream.clone());
            attempt.failed();
        }
        self.record.attempt_failed(worker, outcome, failure);
        // What the attempt held is given back first: an RPC never stands in its own way.
        self.permits = Permits::default();
        if let Err(circuit) = self.permits.enter(&cluster.circuits, Circuit::Retries) {
            return self.fail(worker, Failure::CircuitLimit(circuit), now);
        }
        self.attempt(worker, key, refused_by, now)
    }

    /// The proxy answers, or ends what it can't complete.
    pub(super) fn fail(&mut self, worker: &Rc<Worker>, failure: Failure, now: Instant) -> Step {
        self.record.failed_with(failure);
        // What is said now has time to leave, also where the failure is that nothing moved.
        self.active = now;
        let relayed = matches!(self.state, State::Relaying(_));
        if relayed || matches!(self.state, State::Open(_)) {
            // These leave a backend's stream by a reset; the other failures begin with its end.
            let cause = match failure {
                Failure::DeadlineExceeded => Some(labels::ResetCause::Deadline),
                Failure::StreamIdle => Some(labels::ResetCause::IdleTimeout),
                Failure::Overloaded | Failure::AboveShare => Some(labels::ResetCause::Overload),
                Failure::Draining => Some(labels::ResetCause::Drain),
                Failure::Internal => Some(labels::ResetCause::Internal),
                Failure::MalformedRequest | Failure::HeadersTooLarge => {
                    Some(labels::ResetCause::Malformed)
                }
                _ => None,
            };
            if let Some(cause) = cause {
                worker.shard.resets(cause).inc();
            }
        }
        if let Some(attempt) = self.leave_upstream(worker)
            && failure.fault() != Fault::Client
        {
            attempt.failed();
        }
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
        self.all_said()
    }

    /// It has to end. What is left of its response has no more time than the rest of one that was cut short.
    pub(super) fn cut(&mut self, worker: &Rc<Worker>, now: Instant) -> Step {
        if !matches!(self.state, State::Flushing(_))
            && self.fail(worker, Failure::Draining, now) == Step::Done
        {
            return Step::Done;
        }
        if let State::Flushing(None) = self.state {
            self.state = State::Flushing(Some(now));
            self.client.check_by(now + CUT_FLUSH);
        }
        Step::On
    }

    /// The process ends: nothing reaches anybody any more. It isn't the client who left.
    pub(super) fn stop(&mut self) -> Step {
        self.record.cut_off(Failure::Draining);
        Step::Done
    }

    /// An answer of the proxy's own.
    pub(super) fn answer(
        &mut self,
        worker: &Rc<Worker>,
        now: Instant,
        make: impl FnOnce(&AnswerContext<'_>) -> Answer,
    ) -> Step {
        let answer = worker.with_snapshot(|snapshot| {
            let mut date = worker.date.borrow_mut();
            make(&AnswerContext {
                server_name: &snapshot.listener.server_name,
                date: date.at(now, |now| worker.wall(now)),
            })
        });
        self.state = State::Flushing(None);
        let body = answer.body.as_bytes();
        let status = answer.headers.status().unwrap_or(0);
        self.record
            .responded(status, &answer.headers, body.is_empty(), now);
        self.record.bytes_out += body.len() as u64;
        self.client.send_headers(&answer.headers, body.is_empty());
        if !body.is_empty() {
            self.client.send_data(body, true, now);
        }
        let step = self.all_said();
        if step == Step::On
            && worker.pressure.get().level >= Level::Refusing
            && matches!(self.client, Client::Http2 { .. })
            && self.client.window_shut().is_some()
        {
            // It costs a client next to nothing to have any number of answers wait for it.
            return self.end_overloaded(worker, now);
        }
        step
    }

    /// The response is complete: what is left of it is the client's to take, who may leave it for as long as it likes.
    pub(super) fn all_said(&mut self) -> Step {
        if self.client.has_all() {
            return Step::Done;
        }
        self.forget();
        Step::On
    }

    /// The client is gone: nothing is owed to it, and the backend learns at once.
    pub(super) fn client_left(&mut self, worker: &Rc<Worker>, flag: Flag) -> Step {
        self.record.client_left(flag);
        self.leave_upstream(worker);
        Step::Done
    }

    /// Nothing is wanted of a backend any more. The attempt that this ends, for who finds that it has failed.
    fn leave_upstream(&mut self, worker: &Worker) -> Option<Attempt> {
        match std::mem::replace(&mut self.state, State::Flushing(None)) {
            State::Waiting(endpoint, place) => {
                worker.pool.forget(endpoint.id, place);
                None
            }
            State::Open(attempt) | State::Relaying(attempt) => {
                attempt
                    .upstream
                    .cancel(attempt.stream, || self.client.busy());
                Some(attempt)
            }
            State::Answering(..) | State::Flushing(_) => None,
        }
    }

    pub(super) fn check(
        &mut self,
        worker: &Rc<Worker>,
        now: Instant,
        timeouts: &Timeouts,
        next: &mut Option<Instant>,
    ) -> Step {
        let mut due = |at: Instant| {
            *next = Some(next.map_or(at, |next| next.min(at)));
            now >= at
        };
        let cut = match self.state {
            State::Flushing(cut) => cut,
            _ => None,
        };
        let stalled = match cut {
            // It may have waited long before.
            Some(cut) => {
                let blocked = self.client.blocked();
                blocked.map(|since| since.max(cut) + CUT_FLUSH)
            }
            // What waits for the socket, or for others' turns on it, has `write_stall`.
            None => {
                let shut = self.client.window_shut();
                shut.map(|since| since + timeouts.stream_window_stall)
            }
        };
        if stalled.is_some_and(&mut due) {
            if cut.is_none() {
                worker.shard.limits(Limit::WindowStall).inc();
                worker.shard.resets(labels::ResetCause::WindowStall).inc();
            } else if self.record.is_unblemished() {
                // What it was cut short for is counted, unless all that was left of it was on its way out.
                worker.shard.resets(labels::ResetCause::Drain).inc();
            }
            self.record.unread();
            self.client.reset(Reason::CANCEL);
            self.leave_upstream(worker);
            return Step::Done;
        }
        if due(self.active + timeouts.stream_idle) {
            if let State::Flushing(_) = self.state {
                worker.shard.resets(labels::ResetCause::IdleTimeout).inc();
                self.record.cut_off(Failure::StreamIdle);
                self.client.reset(Reason::CANCEL);
                return Step::Done;
            }
            return self.fail(worker, Failure::StreamIdle, now);
        }
        Step::On
    }

    /// Since when bytes of it wait: of the two ways, the one that has waited longer.
    pub(super) fn stalled(&self) -> Option<Instant> {
        let down = self.client.blocked();
        let up = match &self.state {
            State::Open(attempt) | State::Relaying(attempt) => {
                attempt.link().blocked(attempt.stream)
            }
            // It holds itself back, and what it has sent.
            State::Waiting(..) | State::Answering(..) => Some(self.active),
            State::Flushing(_) => None,
        };
        [down, up].into_iter().flatten().min()
    }

    /// Bytes that count as held back because of it, beside what its connections hold. Clients decide how many wait for
    /// a connection, for the rest of a request or for a window, and nothing else bounds them.
    #[inline]
    pub(super) fn kept(&self) -> usize {
        let head = match self.state {
            State::Answering(..) | State::Waiting(..) | State::Flushing(_) => {
                WAITS + self.head.memory()
            }
            // Of one that runs only what `forget` gives back: what nothing can free would only have others pay for it.
            State::Open(_) | State::Relaying(_) if self.head.is_large() => self.head.memory(),
            State::Open(_) | State::Relaying(_) => 0,
        };
        let trailers = self.trailers.as_ref().map_or(0, Headers::memory);
        head + trailers + self.replay.memory()
    }

    /// Bytes that are held back for it alone: what is counted of it, and what a backend doesn't take of its request. What
    /// its client doesn't take is its connection's.
    pub(super) fn holds(&self) -> usize {
        let queued = match &self.state {
            State::Open(attempt) | State::Relaying(attempt) => {
                attempt.link().engine().queued(attempt.stream)
            }
            State::Answering(..) | State::Waiting(..) | State::Flushing(_) => 0,
        };
        self.counted + queued
    }

    /// Whether [`forget`](Self::forget) would give anything back.
    pub(super) fn can_forget(&self) -> bool {
        !self.replay.is_empty() || self.trailers.is_some() || self.head.is_large()
    }

    /// No other attempt will come: what only that would need is given back.
    pub(super) fn forget(&mut self) {
        self.replay.release();
        self.head.trim();
        if let Some(trailers) = self.trailers.take() {
            stock::recycle(trailers);
        }
    }

    /// What it holds is needed elsewhere, says `limit`.
    pub(super) fn shed(&mut self, worker: &Rc<Worker>, limit: Limit, now: Instant) -> Step {
        worker.shard.limits(limit).inc();
        let upstream = match &self.state {
            State::Open(attempt) | State::Relaying(attempt) => Some(attempt.upstream.clone()),
            State::Answering(..) | State::Waiting(..) | State::Flushing(_) => None,
        };
        let step = self.end_overloaded(worker, now);
        // At once: the next look at the account may come before the connections' turns.
        self.client.account(worker);
        if let Some(upstream) = upstream {
            upstream.link().account(&worker.memory);
        }
        step
    }

    fn end_overloaded(&mut self, worker: &Rc<Worker>, now: Instant) -> Step {
        if let State::Relaying(_) | State::Flushing(_) = self.state {
            worker.shard.resets(labels::ResetCause::Overload).inc();
            self.record.cut_off(Failure::Overloaded);
            // gRPC reads RESOURCE_EXHAUSTED from this code.
            self.client.reset(Reason::ENHANCE_YOUR_CALM);
            self.leave_upstream(worker);
            return Step::Done;
        }
        self.fail(worker, Failure::Overloaded, now)
    }

    /// The last step: both legs are settled, the line is written.
    pub(super) fn end(mut self: Box<Self>, worker: &Rc<Worker>) {
        if self.deadline.is_some() {
            worker.timers.leave_behind();
        }
        if self.request_ended.is_none() {
            // RFC 9113 §8.1: the answer is complete, the rest of the request isn't wanted.
            self.client.reset(Reason::NO_ERROR);
        }
        self.leave_upstream(worker);
        let now = worker.now();
        self.client.ended(now);
        self.record
            .write(worker, &self.client, &self.head, self.is_grpc(), now);
        self.replay.release();
        self.head.recycle();
    }
}

/// By how much a backend's clock may be before ours: what `grpc-timeout` rounds off (a millisecond at most, below a
/// day), and a turn, within which our clock stands still.
const DEADLINE_SLACK: Duration = Duration::from_millis(5);

/// A response that was cut short waits this long for the client's window before its stream is reset.
const CUT_FLUSH: Duration = Duration::from_secs(5);

/// Bytes of an RPC that waits, beside its head and trailers: its own, its stream's and its place in a queue.
const WAITS: usize = 2048;
