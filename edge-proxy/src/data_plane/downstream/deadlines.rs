//! What a client's HTTP/2 connection may take its time with, and how it is told to go.
//!
//! All of it is looked at in one place, since a connection sleeps until the nearest of its deadlines: the greeting's, a
//! header block's, a write's, keep-alive's, its streams' and those of its own end. A deadline that begins with an event
//! is only noted there (`check_by`); whether it has passed, and when the next one will, is decided here, afresh.
//!
//! A connection that has to go (age, drain, idleness) is told twice, as RFC 9113 §6.8 asks: a GOAWAY that names no
//! last stream, and when the client's answer to the PING behind it shows that it has seen it (or after 2 s) one that
//! does. A request that was on its way in between is served, so nothing is lost.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http2::Reason;
use rand::RngExt as _;

use super::Downstream;
use crate::{
    data_plane::{
        rpc::{self, Key},
        wire::{Check, End, FAR, QUIET},
        worker::{Phase, Worker},
    },
    telemetry::metrics::Limit,
};

/// ```text
/// At ──age, drain, idle──▶ Told ──PING answered, or 2 s──▶ Fixed ──last RPC ends──▶ (closed)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Not before that moment: age, or the one that a drain chose.
    At(Instant),
    /// GOAWAY without a last stream is out, and a PING behind it.
    Told(Instant),
    /// The last stream is named.
    Fixed(Instant),
}

/// Keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ping {
    /// The last one was answered then, or the connection began.
    Answered(Instant),
    /// It went out then, or the client was last heard then, and its answer is awaited.
    Sent(Instant),
}

impl Downstream {
    /// The process wants something else of its connections.
    pub(crate) fn follow(&self, worker: &Worker, phase: Phase, now: Instant) {
        match phase {
            Phase::Running => {}
            Phase::Draining { until, .. } => {
                if !self.is_late(phase) {
                    let span = until.saturating_duration_since(now);
                    let at = now + span.mul_f64(worker.random.borrow_mut().random_range(0.0..1.0));
                    self.leave_by(at);
                }
            }
            Phase::Closing | Phase::Cutting | Phase::Stopped => self.leave_by(now),
        }
    }

    /// Whether it came after the drain began: it learns that with its first RPC, since its client would only come back.
    pub(super) fn is_late(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Draining { since, .. } if self.accepted >= since)
    }

    fn leave_by(&self, at: Instant) {
        if let Leaving::At(before) = self.leaving.get() {
            self.leaving.set(Leaving::At(before.min(at)));
        }
        self.link.check_by(at);
    }

    /// Tells the client to open no more streams here, once.
    pub(super) fn leave(&self, now: Instant) {
        if let Leaving::At(_) = self.leaving.get() {
            let mut engine = self.link.engine();
            engine.shutdown_notice();
            engine.ping(LEAVING_PING);
            drop(engine);
            self.leaving.set(Leaving::Told(now));
            self.link.check_by(now + LAST_STREAM_AFTER);
            self.link.wake();
        }
    }

    /// A PING of ours was answered.
    pub(super) fn pong(&self, payload: u64, now: Instant) {
        if payload == LEAVING_PING {
            if let Leaving::Told(_) = self.leaving.get() {
                self.fix_last_stream(now);
            }
        } else if let Ping::Sent(_) = self.ping.get() {
            self.ping.set(Ping::Answered(now));
            self.link.check_by(self.ping_at(now));
        }
    }

    /// What has passed has its effect; and when to look again.
    pub(super) fn check_deadlines(&self, worker: &Rc<Worker>, now: Instant) -> Check {
        self.hear(now);
        let mut next = now + FAR;
        let mut due = |at: Instant| {
            next = next.min(at);
            now >= at
        };
        let timeouts = &self.policy.timeouts;
        let limit = |limit: Limit, name| {
            worker.shard.limits(limit).inc();
            Check::Close(End::TimedOut(name))
        };
        match self.ready.get() {
            None if due(self.accepted + timeouts.preface) => {
                return limit(Limit::PrefaceTimeout, "preface");
            }
            // As long again for the last part of the greeting.
            Some(since)
                if self.link.engine().settings_unacked_since().is_some()
                    && due(self.accepted + TENTH * since + timeouts.preface) =>
            {
                worker.shard.limits(Limit::SettingsTimeout).inc();
                self.link.engine().close(Reason::SETTINGS_TIMEOUT);
                return Check::Close(End::Protocol(http2::ConnectionError {
                    reason: Reason::SETTINGS_TIMEOUT,
                    rule: "SETTINGS never acknowledged (RFC 9113 §6.5.3)",
                    limit: None,
                }));
            }
            None | Some(_) => {}
        }
        if let Some(since) = self.link.engine().header_block_since()
            && due(since + timeouts.header_block)
        {
            return limit(Limit::HeaderBlockTimeout, "header_block");
        }
        if let Some(since) = self.link.write_blocked()
            && due(since + timeouts.write_stall)
        {
            return limit(Limit::WriteStall, "write_stall");
        }
        match self.ping.get() {
            Ping::Sent(at) if due(at + self.policy.keepalive_timeout) => {
                return limit(Limit::KeepaliveTimeout, "keepalive");
            }
            Ping::Answered(since) if due(self.ping_at(since)) => {
                self.link.engine().ping(KEEPALIVE_PING);
                self.link.wake();
                self.ping.set(Ping::Sent(now));
                due(now + self.policy.keepalive_timeout);
            }
            Ping::Sent(_) | Ping::Answered(_) => {}
        }
        match self.leaving.get() {
            Leaving::At(at) => {
                if due(at) {
                    if worker.phase.get() == Phase::Running {
                        worker.shard.limits(Limit::ConnectionAge).inc();
                    }
                    self.leave(now);
                    due(now + LAST_STREAM_AFTER);
                } else if self.rpcs.get() == 0 && due(self.since.get() + worker.idle(timeouts)) {
                    worker.shard.limits(Limit::IdleConnection).inc();
                    self.leave(now);
                    due(now + LAST_STREAM_AFTER);
                }
            }
            Leaving::Told(since) => {
                if due(since + LAST_STREAM_AFTER) {
                    self.fix_last_stream(now);
                }
            }
            Leaving::Fixed(since) => {
                if let Some(at) = self.cut_at(since) {
                    // No deadline any more once it has passed: every later check would name it as the next.
                    if now >= at {
                        self.cut(worker, now);
                    } else {
                        due(at);
                    }
                }
            }
        }
        // Streams may be open for days, and say something now and then.
        if !self.shrunk.get() && due(self.quiet_at()) {
            self.link.engine().shrink();
            self.shrunk.set(true);
        }
        let keys: Vec<_> = self.link.engine().keys().collect();
        for key in keys {
            if let Some(at) = rpc::check(worker, Key::from_engine(key), now, timeouts) {
                next = next.min(at);
            }
        }
        Check::Until(next)
    }

    /// What a turn left waiting gets its deadlines; one that was told to go and waits for nothing is done.
    pub(super) fn deadlines_after_turn(&self, worker: &Rc<Worker>, now: Instant) -> Option<End> {
        let heard = self.hear(now);
        if let Some(since) = self.link.engine().header_block_since() {
            self.link
                .check_by(since + self.policy.timeouts.header_block);
        }
        if self.link.engine().pending_bytes() > 0 {
            self.link
                .check_by(now + self.policy.timeouts.stream_window_stall);
        }
        if self.rpcs.get() == 0 {
            if matches!(self.leaving.get(), Leaving::Fixed(_)) && self.link.engine().is_empty() {
                return Some(End::Finished);
            }
            if let Leaving::At(_) = self.leaving.get() {
                self.link
                    .check_by(self.since.get().max(now) + worker.idle(&self.policy.timeouts));
            }
        }
        if !self.shrunk.get() {
            // A worker that is late each time would never find that nothing has moved.
            if heard || !self.link.puts_off() {
                let age = now.saturating_duration_since(self.accepted);
                self.moved.set(tenths(age));
            }
            self.link.check_by(self.quiet_at());
        }
        None
    }

    /// One that goes on saying something and never answers a PING is there: its streams, what waits for it and its age have
    /// limits of their own. Whether it has said something.
    fn hear(&self, now: Instant) -> bool {
        let heard = self.link.take_heard();
        if heard && let Ping::Sent(_) = self.ping.get() {
            self.ping.set(Ping::Sent(now));
        }
        heard
    }

    /// When the next PING is due, if the last was answered `since` then. More often while streams are open: a client
    /// that vanished holds backends' resources then.
    pub(super) fn ping_at(&self, since: Instant) -> Instant {
        let interval = self.policy.keepalive_interval;
        let at = since + interval * KEEPALIVE_IDLE_FACTOR;
        if self.rpcs.get() > 0 {
            at.min(since.max(self.since.get()) + interval)
        } else {
            at
        }
    }

    /// When nothing will have moved for so long that memory is given back.
    fn quiet_at(&self) -> Instant {
        self.accepted + TENTH * self.moved.get() + QUIET
    }

    fn fix_last_stream(&self, now: Instant) {
        self.link.engine().shutdown(Reason::NO_ERROR);
        self.leaving.set(Leaving::Fixed(now));
        if let Some(at) = self.cut_at(now) {
            self.link.check_by(at);
        }
        self.link.wake();
    }

    /// When what still runs ends, if the last stream was named `since` then. Grace is for age, whatever it was that had the
    /// connection leave before: what a drain leaves to finish has until `drain.deadline`.
    fn cut_at(&self, since: Instant) -> Option<Instant> {
        let grace = self.policy.max_connection_age_grace?;
        let old_at = self.accepted + TENTH * self.age;
        Some(since.max(old_at) + grace)
    }

    /// What still runs ends now.
    fn cut(&self, worker: &Rc<Worker>, now: Instant) {
        let keys: Vec<_> = self.link.engine().keys().collect();
        for key in keys {
            rpc::cut(worker, Key::from_engine(key), now);
        }
    }
}

/// Whole tenths of a second: rounded down, and a dozen years at most.
pub(super) fn tenths(time: Duration) -> u32 {
    let tenths = time
        .as_secs()
        .saturating_mul(10)
        .saturating_add(u64::from(time.subsec_millis()) / 100);
    u32::try_from(tenths).unwrap_or(u32::MAX)
}

const TENTH: Duration = Duration::from_millis(100);

/// How long a client has to answer the PING behind a GOAWAY before its last stream is named all the same.
const LAST_STREAM_AFTER: Duration = Duration::from_secs(2);

/// Payloads of our PINGs.
const LEAVING_PING: u64 = 0x6c65_6176_696e_6721;
const KEEPALIVE_PING: u64 = 0x616c_6976_653f_3f3f;

/// 60 s with streams, 5 min without.
const KEEPALIVE_IDLE_FACTOR: u32 = 5;
