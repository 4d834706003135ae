//! When another connection may be tried after one that failed, while the endpoint has some that serve.
//!
//! RPCs wait for room on those then, and each stream that ends makes some: without a pause each would be a reason for a
//! connect that fails as the last one has. Who waits is served by the room meanwhile. What was wanted during the pause is
//! done at its end, once: time alone is no reason, or a single RPC that waits would count one failure after the other
//! against the endpoint. One that hangs keeps RPCs waiting that a congested connection could serve, so the pause is as long
//! as that took, and twice as long each time. Pure: time is passed in.

use std::time::{Duration, Instant};

/// See the module's head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    /// How long the last one was, since a connection has last been opened.
    long: Duration,
    /// Another connection was wanted meanwhile.
    wanted: bool,
}

impl Pause {
    /// A connect failed; `timed_out`: nothing came of it in that time. One of several at a time doesn't make the pause
    /// longer.
    pub(super) fn begin(&mut self, now: Instant, timed_out: Option<Duration>) {
        if self.holds(now) {
            return;
        }
        self.long = match timed_out {
            Some(timeout) => (self.long * 2).min(LONGEST).max(timeout).max(PAUSE),
            None => PAUSE,
        };
        self.until = Some(now + self.long);
        self.wanted = false;
    }

    /// A connection was opened.
    pub(super) fn lift(&mut self) {
        *self = Self::default();
    }

    /// No other is to be tried yet.
    pub(super) fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Another one is wanted: when that may be tried, if not now.
    pub(super) fn defer(&mut self, now: Instant) -> Option<Instant> {
        self.wanted = self.holds(now);
        self.next()
    }

    /// When one will be tried, if one was wanted.
    pub(super) fn next(&self) -> Option<Instant> {
        self.until.filter(|_| self.wanted)
    }

    /// Whether one was wanted that may be tried now; once.
    pub(super) fn ends(&mut self, now: Instant) -> bool {
        let ends = self.wanted && !self.holds(now);
        self.wanted &= !ends;
        ends
    }
}

/// As long as most endpoints need to be back, and far below any `connect_timeout`.
const PAUSE: Duration = Duration::from_millis(100);

/// After any number of time-outs: as long as an endpoint that takes no RPCs is first left alone.
const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_meanwhile_is_done_at_the_end_once() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert!(!pause.holds(now) && pause.defer(now).is_none());
        pause.begin(now, None);
        let end = now + PAUSE;
        let before = end - Duration::from_millis(1);
        assert!(pause.holds(before) && !pause.holds(end));
        assert!(!pause.ends(end), "nobody wanted one");
        for _ in 0..2 {
            assert_eq!(pause.defer(before), Some(end));
        }
        pause.begin(before, Some(10 * PAUSE));
        assert_eq!(pause.next(), Some(end), "it is no longer");
        assert!(!pause.ends(before));
        assert!(pause.ends(end));
        assert!(!pause.ends(end), "once");
        assert_eq!(pause.next(), None);
        assert_eq!(pause.defer(end), None);
        pause.begin(end, None);
        assert!(pause.holds(end));
        assert_eq!(pause.next(), None);
    }

    /// How long it is after one more failure.
    fn next(pause: &mut Pause, now: &mut Instant, timed_out: Option<Duration>) -> Duration {
        pause.begin(*now, timed_out);
        let until = pause.defer(*now).expect("it has just begun");
        let long = until - *now;
        *now = until;
        long
    }

    #[test]
    fn after_time_outs_it_is_longer_each_time_until_a_connection_is_opened() {
        let second = Duration::from_secs(1);
        let (mut now, mut pause) = (Instant::now(), Pause::default());
        for long in [5, 10, 20, 30, 30] {
            assert_eq!(next(&mut pause, &mut now, Some(5 * second)), long * second);
        }
        assert_eq!(next(&mut pause, &mut now, Some(60 * second)), 60 * second);
        assert_eq!(next(&mut pause, &mut now, None), PAUSE);
        assert_eq!(next(&mut pause, &mut now, Some(5 * second)), 5 * second);
        pause.lift();
        assert!(!pause.holds(now - second));
        assert_eq!(next(&mut pause, &mut now, Some(PAUSE / 2)), PAUSE);
    }
}
