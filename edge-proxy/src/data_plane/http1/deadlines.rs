//! What of a connection waits for time: its first head, later heads, idleness, age, a socket that takes nothing, and the
//! moments at which it is to leave.

use std::time::Instant;

use rand::RngExt as _;

use super::{Connection, End, Stage};
use crate::{
    data_plane::{rpc, wire::FAR, worker::Phase},
    telemetry::metrics::Limit,
};

impl Connection {
    /// The process wants something else of its connections.
    pub(crate) fn follow(&self, phase: Phase, now: Instant) {
        let at = match phase {
            Phase::Running => return,
            // One that came after the drain began learns it with its first request.
            Phase::Draining { since, .. } if self.accepted >= since => return,
            Phase::Draining { until, .. } => {
                let span = until.saturating_duration_since(now);
                now + span.mul_f64(rand::rng().random_range(0.0..1.0))
            }
            Phase::Closing | Phase::Cutting | Phase::Stopped => now,
        };
        self.leave_at.set(self.leave_at.get().min(at));
        self.check_by(at);
    }

    /// Enforces the deadlines; names the next moment to look.
    pub(super) fn check(&self, now: Instant) -> Result<Instant, End> {
        let mut next = now + FAR;
        let mut due = |at: Instant| {
            next = next.min(at);
            now >= at
        };
        let timeouts = &self.policy.timeouts;
        let limit = |limit: Limit, name| {
            self.worker.shard.limits(limit).inc();
            Err(End::TimedOut(name))
        };
        if let Some(since) = self.write_blocked.get()
            && due(since + timeouts.write_stall)
        {
            return limit(Limit::WriteStall, "write_stall");
        }
        match self.stage.get() {
            Stage::First { .. } if due(self.accepted + timeouts.preface) => {
                return limit(Limit::PrefaceTimeout, "preface");
            }
            Stage::Head(since) if due(since + timeouts.header_block) => {
                return limit(Limit::HeaderBlockTimeout, "header_block");
            }
            Stage::Idle(since)
                if self.leaving.get().is_none() && due(since + self.worker.idle(timeouts)) =>
            {
                self.worker.shard.limits(Limit::IdleConnection).inc();
                self.leaving.set(Some(now));
            }
            Stage::First { .. } | Stage::Head(_) | Stage::Idle(_) | Stage::Busy => {}
        }
        let keys: Vec<_> = self
            .exchanges
            .borrow()
            .iter()
            .filter_map(|e| e.key())
            .collect();
        match self.leaving.get() {
            None if due(self.leave_at.get()) => {
                if self.worker.phase.get() == Phase::Running {
                    self.worker.shard.limits(Limit::ConnectionAge).inc();
                }
                self.leaving.set(Some(now));
            }
            Some(since) => {
                if let Some(at) = self.cut_at(since) {
                    // No deadline any more once it has passed: every later check would name it as the next.
                    if now >= at {
                        for key in &keys {
                            rpc::cut(&self.worker, *key, now);
                        }
                    } else {
                        due(at);
                    }
                }
            }
            None => {}
        }
        for key in keys {
            if let Some(at) = rpc::check(&self.worker, key, now, timeouts) {
                next = next.min(at);
            }
        }
        Ok(next)
    }

    /// When what still runs ends, if the connection has been leaving `since` then. Grace is for age, as on HTTP/2.
    pub(super) fn cut_at(&self, since: Instant) -> Option<Instant> {
        let grace = self.policy.max_connection_age_grace?;
        Some(since.max(self.old_at) + grace)
    }

    /// Looks at the deadlines at `at`, or earlier.
    pub(crate) fn check_by(&self, at: Instant) {
        if at < self.check_at.get() {
            self.check_at.set(at);
            self.wake();
        }
    }

    pub(super) fn head_began(&self, now: Instant) {
        self.stage.set(Stage::Head(now));
        self.check_by(now + self.policy.timeouts.header_block);
    }
}
