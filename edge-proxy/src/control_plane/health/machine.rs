//! From the outcomes of checks to an endpoint's health. Pure.
//!
//! ```text
//!            first pass ever                        NOT_SERVING, a status: at once
//!  Unknown ──────────────────► Healthy ───────────────────────────────────────────────► Unhealthy
//!     │                         ▲  │     refused, reset, time-out: unhealthy_threshold      ▲ │
//!     │                         │  └───────────────────────────────────────────────────────┘ │
//!     │                         └──── healthy_threshold passes in a row (one, if the first) ─┘
//!     └───────────────────────────── any failure ──────────────────────────────────────────►
//! ```
//!
//! A backend that *says* that it doesn't serve is believed at once; one that can't be heard may have a hiccup of the
//! network between, so it takes several failures in a row, a short interval apart. RPCs of an endpoint that spoke
//! are left to finish; those of one that fell silent can't be trusted to end, so its connections are closed.
//!
//! One time-out among the failures that eject is silence, whatever the others are: of a host that is gone the checks
//! time out first, and are then refused or unreachable, by a router or by who got its address. Refusals alone come of a
//! backend that has closed its listener and finishes what it has. One that is ejected already may do so for long, and
//! then it takes as many time-outs in a row as would eject it, so that a lost packet now and then ends nothing.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    control_plane::{config::HealthCheckSpec, status::CheckResult},
    error::grpc,
    snapshot::Health,
};

/// One endpoint's health.
#[derive(Debug)]
pub(crate) struct Machine {
    health: Health,
    close_connections: bool,
    ever_passed: bool,
    /// Passes since the last failure, while unhealthy.
    passes: u32,
    /// Failures that aren't answers since the last answer.
    failures: u32,
    /// Of these, there was a time-out.
    timed_out: bool,
    /// Of these, time-outs since the last other outcome.
    timeouts: u32,
    /// A check has ended with a verdict.
    decided: bool,
}

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Status 0 and SERVING.
    Serving,
    /// Status 0 and another serving status, by its name.
    NotServing(String),
    /// A received grpc-status other than 0.
    Status {
        /// Its number.
        code: u32,
        /// Its name and the backend's text.
        text: String,
    },
    /// Nothing in time, or the backend says that our deadline passed.
    TimedOut(Duration),
    /// Refused, reset, closed, not HTTP/2.
    Connection(String),
    /// GOAWAY (NO_ERROR), and on a new connection again.
    GoAway,
    /// The checker itself failed.
    Internal,
}

impl Machine {
    /// Of an endpoint that no check has seen.
    pub(crate) fn new() -> Self {
        Self {
            health: Health::Unknown,
            close_connections: false,
            ever_passed: false,
            passes: 0,
            failures: 0,
            timed_out: false,
            timeouts: 0,
            decided: false,
        }
    }

    /// Of an endpoint whose cluster has no checks.
    pub(crate) fn always_healthy() -> Self {
        Self {
            health: Health::Healthy,
            decided: true,
            ..Self::new()
        }
    }

    /// As of the last outcome.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// The balancer may choose it.
    pub(crate) fn is_healthy(&self) -> bool {
        self.health == Health::Healthy
    }

    /// Its connections are to be closed: it fell silent.
    pub(crate) fn close_connections(&self) -> bool {
        self.close_connections
    }

    /// Its first check has ended.
    pub(crate) fn decided(&self) -> bool {
        self.decided
    }

    /// Takes a check's outcome. Gives how long to wait from its start to the next one's, before jitter.
    pub(crate) fn record(&mut self, outcome: &Outcome, spec: &HealthCheckSpec) -> Duration {
        match outcome {
            Outcome::Serving => self.pass(spec),
            Outcome::NotServing(_) | Outcome::Status { .. } => {
                self.answered();
                self.eject(outcome, false);
                spec.interval
            }
            Outcome::TimedOut(_) | Outcome::Connection(_) => self.fail(outcome, spec),
            // Neither says anything about the endpoint; ask again soon.
            Outcome::GoAway => spec.unhealthy_edge_interval,
            Outcome::Internal => spec.unhealthy_edge_interval.min(AFTER_A_PANIC),
        }
    }

    fn pass(&mut self, spec: &HealthCheckSpec) -> Duration {
        self.decided = true;
        self.answered();
        self.close_connections = false;
        self.passes = self.passes.saturating_add(1);
        if !self.ever_passed || self.is_healthy() || self.passes >= spec.healthy_threshold {
            self.ever_passed = true;
            self.health = Health::Healthy;
        }
        spec.interval
    }

    /// It spoke: failures are counted anew.
    fn answered(&mut self) {
        self.failures = 0;
        self.timed_out = false;
        self.timeouts = 0;
    }

    fn fail(&mut self, outcome: &Outcome, spec: &HealthCheckSpec) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if matches!(outcome, Outcome::TimedOut(_)) {
            self.timed_out = true;
            self.timeouts = self.timeouts.saturating_add(1);
        } else {
            self.timeouts = 0;
        }
        let ejects = self.failures >= spec.unhealthy_threshold;
        if self.is_healthy() && !ejects {
            return spec.unhealthy_edge_interval;
        }
        let silent = if self.is_healthy() {
            self.timed_out
        } else {
            self.timeouts >= spec.unhealthy_threshold
        };
        self.eject(outcome, silent);
        if ejects {
            spec.interval
        } else {
            spec.unhealthy_edge_interval
        }
    }

    fn eject(&mut self, outcome: &Outcome, close_connections: bool) {
        self.decided = true;
        self.passes = 0;
        self.close_connections |= close_connections;
        self.health = Health::Unhealthy(Arc::from(outcome.to_string()));
    }
}

impl Outcome {
    /// In one word.
    pub(crate) fn result(&self) -> CheckResult {
        match self {
            Self::Serving => CheckResult::Pass,
            Self::NotServing(_) => CheckResult::NotServing,
            Self::Status {
                code: grpc::UNIMPLEMENTED,
                ..
            } => CheckResult::Unimplemented,
            Self::Status { .. } => CheckResult::Status,
            Self::TimedOut(_) => CheckResult::Timeout,
            Self::Connection(_) => CheckResult::Connection,
            Self::GoAway => CheckResult::GoAway,
            Self::Internal => CheckResult::Internal,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("SERVING"),
            Self::NotServing(status) => write!(f, "the backend says {status}"),
            Self::Status {
                code: grpc::UNIMPLEMENTED,
                ..
            } => f.write_str(
                "the backend has no health service (status 12, UNIMPLEMENTED): serve \
                 grpc.health.v1.Health there, or remove health_check from the cluster",
            ),
            Self::Status {
                code: grpc::NOT_FOUND,
                text,
            } => write!(
                f,
                "the backend doesn't know the service that health_check names (status 5, {text})"
            ),
            Self::Status { code, text } => write!(f, "the check got status {code}, {text}"),
            Self::TimedOut(timeout) => write!(f, "no answer to the check within {timeout:?}"),
            Self::Connection(text) => write!(f, "the check's connection failed: {text}"),
            Self::GoAway => f.write_str("the backend ended the check's connection (GOAWAY)"),
            Self::Internal => f.write_str("the checker failed (internal error)"),
        }
    }
}

/// What has panicked is back within a second, its jitter of a tenth included.
const AFTER_A_PANIC: Duration = Duration::from_millis(900);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec() -> HealthCheckSpec {
        HealthCheckSpec {
            service: "api.Echo".into(),
            timeout: SECOND,
            interval: 10 * SECOND,
            unhealthy_edge_interval: SECOND,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }

    fn after(outcomes: &[Outcome]) -> Machine {
        let mut machine = Machine::new();
        for outcome in outcomes {
            machine.record(outcome, &spec());
        }
        machine
    }

    fn refused() -> Outcome {
        Outcome::Connection("connection refused".into())
    }

    fn timed_out() -> Outcome {
        Outcome::TimedOut(SECOND)
    }

    fn not_serving() -> Outcome {
        Outcome::NotServing("NOT_SERVING".into())
    }

    fn status(code: u32) -> Outcome {
        Outcome::Status {
            code,
            text: "text".into(),
        }
    }

    use Outcome::{GoAway, Internal, Serving};

    #[test]
    fn a_new_endpoint_is_unknown_and_healthy_after_its_first_pass() {
        assert_eq!(*Machine::new().health(), Health::Unknown);
        assert!(!Machine::new().decided());
        let machine = after(&[Serving]);
        assert!(machine.is_healthy() && machine.decided());
    }

    #[test]
    fn a_new_endpoint_that_failed_first_is_healthy_after_its_first_pass() {
        for failure in [refused(), timed_out(), not_serving(), status(14)] {
            let machine = after(std::slice::from_ref(&failure));
            assert!(!machine.is_healthy() && machine.decided(), "{failure:?}");
            assert!(after(&[failure.clone(), failure, Serving]).is_healthy());
        }
    }

    #[test]
    fn not_serving_and_any_status_eject_at_once_and_leave_connections_open() {
        for outcome in [
            not_serving(),
            status(2),
            status(5),
            status(12),
            status(13),
            status(14),
        ] {
            let machine = after(&[Serving, outcome.clone()]);
            assert!(!machine.is_healthy(), "{outcome:?}");
            assert!(!machine.close_connections(), "{outcome:?}");
        }
    }

    #[test]
    fn failures_to_hear_eject_after_the_threshold_in_a_row() {
        for failure in [refused(), timed_out()] {
            let (f, s) = (failure, Serving);
            assert!(after(&[s.clone(), f.clone(), f.clone()]).is_healthy());
            assert!(!after(&[s.clone(), f.clone(), f.clone(), f.clone()]).is_healthy());
            let interrupted = [s.clone(), f.clone(), f.clone(), s, f.clone(), f];
            assert!(
                after(&interrupted).is_healthy(),
                "a pass starts the count anew"
            );
        }
        let mixed = [Serving, refused(), timed_out(), refused()];
        assert!(!after(&mixed).is_healthy());
    }

    #[test]
    fn ejected_by_time_outs_closes_connections() {
        assert!(after(&[Serving, timed_out(), timed_out(), timed_out()]).close_connections());
        assert!(!after(&[Serving, refused(), refused(), refused()]).close_connections());
    }

    #[test]
    fn one_time_out_among_the_failures_that_eject_closes_connections() {
        for at in 1..=3 {
            let mut outcomes = vec![Serving, refused(), refused(), refused()];
            outcomes[at] = timed_out();
            assert!(after(&outcomes).close_connections(), "{outcomes:?}");
            outcomes.push(refused());
            assert!(after(&outcomes).close_connections(), "{outcomes:?}");
        }
        let between = [Serving, timed_out(), GoAway, refused(), Internal, refused()];
        assert!(after(&between).close_connections());
        for answer in [Serving, not_serving(), status(14)] {
            let before = [
                Serving,
                timed_out(),
                answer.clone(),
                refused(),
                refused(),
                refused(),
            ];
            assert!(
                !after(&before).close_connections(),
                "{answer:?}: a time-out before an answer isn't among them"
            );
        }
    }

    #[test]
    fn one_that_fell_silent_after_its_word_is_closed_after_the_threshold() {
        let word = [Serving, not_serving(), timed_out(), timed_out()];
        assert!(!after(&word).close_connections());
        let silent = [
            Serving,
            not_serving(),
            timed_out(),
            timed_out(),
            timed_out(),
        ];
        assert!(after(&silent).close_connections());
        let (word, out) = (not_serving(), timed_out());
        let now_and_then = [word, out.clone(), refused(), out.clone(), refused(), out];
        assert!(!after(&[&[Serving], &now_and_then[..]].concat()).close_connections());
    }

    #[test]
    fn a_pass_stops_closing() {
        let outcomes = [Serving, timed_out(), timed_out(), timed_out(), Serving];
        let machine = after(&outcomes);
        assert!(!machine.is_healthy() && !machine.close_connections());
    }

    #[test]
    fn recovery_needs_the_healthy_threshold_in_a_row() {
        let down = [Serving, not_serving()];
        let then = |more: &[Outcome]| after(&[&down, more].concat()).is_healthy();
        assert!(!then(&[Serving]));
        assert!(then(&[Serving, Serving]));
        assert!(!then(&[Serving, refused(), Serving]));
        assert!(then(&[Serving, refused(), Serving, Serving]));
    }

    #[test]
    fn goaway_and_errors_of_ours_say_nothing() {
        for nothing in [GoAway, Internal] {
            let machine = after(&[Serving, nothing.clone(), nothing.clone(), nothing.clone()]);
            assert!(machine.is_healthy());
            let machine = after(std::slice::from_ref(&nothing));
            assert!(!machine.decided());
            let outcomes = [
                Serving,
                refused(),
                nothing.clone(),
                refused(),
                nothing.clone(),
                refused(),
            ];
            assert!(
                !after(&outcomes).is_healthy(),
                "nor do they start the count anew"
            );
            let outcomes = [Serving, not_serving(), Serving, nothing, Serving];
            assert!(after(&outcomes).is_healthy());
        }
    }

    #[test]
    fn intervals_are_short_between_the_first_failure_and_the_ejection() {
        let mut machine = Machine::new();
        let spec = spec();
        let mut record = |outcome: Outcome| machine.record(&outcome, &spec);
        assert_eq!(record(Serving), spec.interval);
        assert_eq!(record(refused()), SECOND);
        assert_eq!(record(refused()), SECOND);
        assert_eq!(record(refused()), spec.interval, "ejected");
        assert_eq!(record(refused()), spec.interval);
        assert_eq!(record(Serving), spec.interval);
        assert_eq!(record(Serving), spec.interval);
        assert_eq!(record(not_serving()), spec.interval);
        assert_eq!(record(GoAway), SECOND);
        assert_eq!(record(Internal), SECOND * 9 / 10);
    }

    #[test]
    fn a_threshold_of_one_ejects_at_the_first_failure() {
        let spec = HealthCheckSpec {
            unhealthy_threshold: 1,
            healthy_threshold: 1,
            ..spec()
        };
        let mut machine = Machine::new();
        machine.record(&Serving, &spec);
        assert_eq!(machine.record(&timed_out(), &spec), spec.interval);
        assert!(!machine.is_healthy() && machine.close_connections());
        machine.record(&Serving, &spec);
        assert!(machine.is_healthy());
    }

    #[test]
    fn the_reason_says_that_there_is_no_health_service() {
        let machine = after(&[Serving, status(12)]);
        let Health::Unhealthy(reason) = machine.health() else {
            panic!("healthy")
        };
        assert!(reason.contains("UNIMPLEMENTED") && reason.contains("no health service"));
    }

    #[test]
    fn an_endpoint_without_checks_is_healthy() {
        let machine = Machine::always_healthy();
        assert!(machine.is_healthy() && machine.decided());
    }
}
