//! When another connection may be tried after one that failed, while the endpoint has some that serve.
//!
//! RPCs wait for room on those then, and each stream that ends makes some: without a pause each would be a reason for a
//! connect that fails as the last one has. Who waits is served by the room meanwhile. What was wanted during the pause is
//! done at its end, once: time alone is no reason, or a single RPC that waits would count one failure after the other
//! against the endpoint. Pure: time is passed in.

use std::time::{Duration, Instant};

/// See the module's head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    /// Another connection was wanted meanwhile.
    wanted: bool,
}

impl Pause {
    /// A connect failed. One of several at a time doesn't make the pause longer.
    pub(super) fn begin(&mut self, now: Instant) {
        if !self.holds(now) {
            self.until = Some(now + PAUSE);
            self.wanted = false;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_meanwhile_is_done_at_the_end_once() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert!(!pause.holds(now) && pause.defer(now).is_none());
        pause.begin(now);
        let end = now + PAUSE;
        let before = end - Duration::from_millis(1);
        assert!(pause.holds(before) && !pause.holds(end));
        assert!(!pause.ends(end), "nobody wanted one");
        for _ in 0..2 {
            assert_eq!(pause.defer(before), Some(end));
        }
        pause.begin(before);
        assert_eq!(pause.next(), Some(end), "it is no longer");
        assert!(!pause.ends(before));
        assert!(pause.ends(end));
        assert!(!pause.ends(end), "once");
        assert_eq!(pause.next(), None);
        assert_eq!(pause.defer(end), None);
        pause.begin(end);
        assert!(pause.holds(end));
        assert_eq!(pause.next(), None);
    }
}
