//! From streaks of failures to an endpoint's ejection: Envoy's outlier detection. Pure.
//!
//! ```text
//!             a streak reached its threshold, and there is room
//!   In use ─────────────────────────────────────────────────────► Ejected
//!     ▲   for base_ejection_time × how often of late                 │
//!     ├──────────────────── its time is over ────────────────────────┤
//!     └─── it took no RPCs, and healthy_threshold checks passed since ─┘
//! ```
//!
//! Workers count the streaks ([`Streaks`](crate::snapshot::streak::Streaks)). Whether one ejects is decided here, since
//! it depends on the others: at most `max_ejection_percent` of a cluster are ejected at a time (but one may be, however
//! small the cluster), and never the last one that is in use. Endpoints that fail together have a common cause, which
//! taking them out doesn't mend.
//!
//! A check that passes is an RPC that the endpoint took, so it undoes an ejection for taking none; it proves nothing
//! about RPCs that were answered with failures, so those ejections last their time. (Envoy ends both.) It takes
//! `healthy_threshold` passes because the checker's connection is an old one: what fails may be new connections only.

use std::time::Duration;

use tokio::time::Instant;

use crate::{control_plane::config::OutlierSpec, snapshot::streak::Detector};

/// One endpoint's ejections.
#[derive(Debug, Default)]
pub(crate) struct Passive {
    current: Option<Ejection>,
    /// The factor of the last ejection's time.
    factor: u32,
    /// When the last ejection ended: for each `interval` since, `factor` is one less.
    returned: Option<Instant>,
    /// Ejections so far.
    total: u64,
}

/// An ejection that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ejection {
    /// What was too long.
    pub(crate) detector: Detector,
    since: Instant,
    /// When it ends by itself.
    pub(crate) until: Instant,
    /// Checks that passed since, in a row.
    passes: u32,
}

/// Why an endpoint isn't ejected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// Its time is over.
    Served,
    /// Its checks pass.
    Checked,
    /// Another configuration is in force.
    Forgiven,
}

impl Passive {
    /// The ejection that lasts.
    pub(crate) fn ejection(&self) -> Option<&Ejection> {
        self.current.as_ref()
    }

    /// Takes no new RPCs.
    pub(crate) fn is_ejected(&self) -> bool {
        self.current.is_some()
    }

    /// How often it has been ejected.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Ejects it, which it isn't yet. Gives for how long.
    pub(crate) fn eject(
        &mut self,
        detector: Detector,
        spec: &OutlierSpec,
        now: Instant,
    ) -> Duration {
        let well_for = self
            .returned
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let forgotten = well_for.as_millis() / spec.interval.as_millis().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        let factor = self.factor.saturating_sub(forgotten).saturating_add(1);
        let length = spec.base_ejection_time.saturating_mul(factor);
        // One that has come to the longest time doesn't count on: it would take as long to forget.
        if length < spec.max_ejection_time + spec.base_ejection_time {
            self.factor = factor;
        }
        let length = length.min(spec.max_ejection_time);
        self.total += 1;
        self.current = Some(Ejection {
            detector,
            since: now,
            until: now + length,
            passes: 0,
        });
        length
    }

    /// Ends the ejection if its time is over.
    pub(crate) fn advance(&mut self, now: Instant) -> Option<Return> {
        self.current.filter(|ejection| ejection.until <= now)?;
        Some(self.end(Return::Served, now))
    }

    /// A check that began at `started` ended; `threshold` passes in a row may end the ejection.
    pub(crate) fn checked(
        &mut self,
        passed: bool,
        started: Instant,
        threshold: u32,
        now: Instant,
    ) -> Option<Return> {
        let ejection = self.current.as_mut()?;
        if started < ejection.since {
            return None;
        }
        ejection.passes = if passed { ejection.passes + 1 } else { 0 };
        if ejection.detector != Detector::LocalOrigin || ejection.passes < threshold {
            return None;
        }
        Some(self.end(Return::Checked, now))
    }

    /// Ends the ejection, and forgets that there were any.
    pub(crate) fn forgive(&mut self, now: Instant) -> Option<Return> {
        self.factor = 0;
        self.current?;
        Some(self.end(Return::Forgiven, now))
    }

    fn end(&mut self, why: Return, now: Instant) -> Return {
        self.current = None;
        self.returned = Some(now);
        why
    }
}

/// Whether one more of `total` endpoints may be ejected, of which `ejected` are and `others` more are in use.
pub(crate) fn may_eject(ejected: usize, others: usize, total: usize, percent: u8) -> bool {
    let most = (total * usize::from(percent) / 100).max(1);
    others > 0 && ejected < most
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec() -> OutlierSpec {
        OutlierSpec {
            interval: 10 * SECOND,
            base_ejection_time: 30 * SECOND,
            max_ejection_time: 100 * SECOND,
            ..OutlierSpec::default()
        }
    }

    fn seconds(number: u32) -> Duration {
        number * SECOND
    }

    #[test]
    fn an_ejection_ends_when_its_time_is_over() {
        let now = Instant::now();
        let mut passive = Passive::default();
        assert_eq!(
            passive.eject(Detector::ServerError, &spec(), now),
            seconds(30)
        );
        assert_eq!(passive.advance(now + seconds(29)), None);
        assert!(passive.is_ejected());
        assert_eq!(passive.advance(now + seconds(30)), Some(Return::Served));
        assert!(!passive.is_ejected());
        assert_eq!(passive.advance(now + seconds(31)), None);
        assert_eq!(passive.total(), 1);
    }

    /// Ejects it, and lets the time pass.
    fn serve(passive: &mut Passive, now: &mut Instant) -> Duration {
        let length = passive.eject(Detector::LocalOrigin, &spec(), *now);
        *now += length;
        assert_eq!(passive.advance(*now), Some(Return::Served));
        length
    }

    #[test]
    fn each_lasts_longer_than_the_one_before_up_to_the_longest() {
        let (mut passive, mut now) = (Passive::default(), Instant::now());
        for expected in [30, 60, 90, 100, 100, 100] {
            assert_eq!(serve(&mut passive, &mut now), seconds(expected));
        }
    }

    #[test]
    fn each_interval_without_an_ejection_forgets_one() {
        let (mut passive, mut now) = (Passive::default(), Instant::now());
        for _ in 0..3 {
            serve(&mut passive, &mut now);
        }
        now += seconds(9);
        assert_eq!(
            serve(&mut passive, &mut now),
            seconds(100),
            "less than an interval"
        );
        now += seconds(25);
        assert_eq!(
            serve(&mut passive, &mut now),
            seconds(90),
            "two are forgotten"
        );
        now += seconds(3600);
        assert_eq!(serve(&mut passive, &mut now), seconds(30));
    }

    #[test]
    fn the_longest_time_is_forgotten_like_any_other() {
        let (mut passive, mut now) = (Passive::default(), Instant::now());
        for _ in 0..100 {
            serve(&mut passive, &mut now);
        }
        now += seconds(40);
        assert_eq!(serve(&mut passive, &mut now), seconds(30));
    }

    #[test]
    fn passes_in_a_row_end_an_ejection_for_taking_no_rpcs() {
        let now = Instant::now();
        let later = now + SECOND;
        let mut passive = Passive::default();
        passive.eject(Detector::LocalOrigin, &spec(), now);
        assert_eq!(passive.checked(true, later, 2, later), None);
        assert_eq!(passive.checked(false, later, 2, later), None);
        assert_eq!(passive.checked(true, later, 2, later), None);
        assert_eq!(
            passive.checked(true, later, 2, later),
            Some(Return::Checked)
        );
        assert_eq!(passive.checked(true, later, 2, later), None);
    }

    #[test]
    fn a_check_that_began_before_proves_nothing() {
        let now = Instant::now();
        let mut passive = Passive::default();
        passive.eject(Detector::LocalOrigin, &spec(), now + SECOND);
        assert_eq!(passive.checked(true, now, 1, now + seconds(2)), None);
        let later = now + SECOND;
        assert_eq!(
            passive.checked(true, later, 1, later),
            Some(Return::Checked)
        );
    }

    #[test]
    fn passes_do_not_end_an_ejection_for_failed_answers() {
        let now = Instant::now();
        for detector in [Detector::GatewayFailure, Detector::ServerError] {
            let mut passive = Passive::default();
            passive.eject(detector, &spec(), now);
            for _ in 0..10 {
                assert_eq!(passive.checked(true, now, 1, now), None, "{detector:?}");
            }
        }
    }

    #[test]
    fn forgiven_it_begins_anew() {
        let (mut passive, mut now) = (Passive::default(), Instant::now());
        assert_eq!(passive.forgive(now), None);
        serve(&mut passive, &mut now);
        passive.eject(Detector::ServerError, &spec(), now);
        assert_eq!(passive.forgive(now), Some(Return::Forgiven));
        assert_eq!(serve(&mut passive, &mut now), seconds(30));
    }

    #[test]
    fn one_may_always_be_ejected_but_the_last_one_never() {
        let ejectable = |total: usize, percent: u8| {
            (0..total)
                .take_while(|ejected| may_eject(*ejected, total - ejected - 1, total, percent))
                .count()
        };
        for (total, percent, expected) in [
            (0, 10, 0),
            (1, 10, 0),
            (1, 100, 0),
            (2, 10, 1),
            (2, 100, 1),
            (3, 0, 1),
            (10, 10, 1),
            (19, 10, 1),
            (20, 10, 2),
            (50, 50, 25),
            (50, 100, 49),
        ] {
            assert_eq!(ejectable(total, percent), expected, "{total}, {percent} %");
        }
    }
}
