//! When something that repeats is due: a look-up, a check. Pure; time and chance are passed in.
//!
//! At most one run at a time: while one runs, nothing is due. A hint from the data plane asks for an early run
//! ([`Pace::hurry`]), at most one a second, counted from the start of the last run, so that a storm of failed
//! connects costs one look.

use std::time::Duration;

use tokio::time::Instant;

/// One repeating job.
#[derive(Debug)]
pub(super) struct Pace {
    due: Instant,
    running: bool,
    /// When the last run started; `None`: none has.
    started: Option<Instant>,
    /// Somebody hurried while a run was on: what it finds may be older than the hint.
    again: bool,
}

impl Pace {
    /// Due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            due: now,
            running: false,
            started: None,
            again: false,
        }
    }

    /// When the next run is due; `None` while one is on.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.running).then_some(self.due)
    }

    /// Starts a run if one is due.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        let starts = !self.running && self.due <= now;
        if starts {
            self.running = true;
            self.started = Some(now);
        }
        starts
    }

    /// The run has ended; the next is due at `due`, or earlier if somebody hurried meanwhile.
    pub(super) fn end(&mut self, due: Instant) {
        self.running = false;
        self.due = due;
        if std::mem::take(&mut self.again) {
            self.due = due.min(self.earliest(due));
        }
    }

    /// As soon as allowed: a second after the last start.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.running {
            self.again = true;
        } else {
            self.due = self.due.min(self.earliest(now));
        }
    }

    /// The next run starts so long after the last one, unless it is due earlier. One that is on is new enough.
    pub(super) fn at_least_every(&mut self, period: Duration) {
        if let (false, Some(started)) = (self.running, self.started) {
            self.due = self.due.min(started + period);
        }
    }

    /// When the last run started.
    pub(super) fn started(&self) -> Option<Instant> {
        self.started
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.started.map_or(now, |started| started + HURRIED)
    }
}

/// `period` ± 10 %, so that jobs don't come in step. `chance` is from 0 to 1.
pub(super) fn jittered(period: Duration, chance: f64) -> Duration {
    period.mul_f64(0.9 + 0.2 * chance.clamp(0.0, 1.0))
}

/// Between the starts of a run and a hurried one.
pub(super) const HURRIED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_run_is_due_at_once_and_nothing_while_it_is_on() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.due(), Some(now));
        assert!(pace.start(now));
        assert!(!pace.start(now));
        assert_eq!(pace.due(), None);
        pace.end(now + 5 * SECOND);
        assert!(!pace.start(now + 4 * SECOND));
        assert!(pace.start(now + 5 * SECOND));
    }

    #[test]
    fn hurrying_is_limited_to_one_run_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.start(now);
        pace.end(now + 10 * SECOND);
        pace.hurry(now + SECOND / 10);
        assert_eq!(pace.due(), Some(now + SECOND));
        pace.hurry(now + 3 * SECOND);
        assert_eq!(pace.due(), Some(now + SECOND), "a later hint never delays");
    }

    #[test]
    fn a_hint_during_a_run_asks_for_another() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.start(now);
        pace.hurry(now);
        pace.end(now + 10 * SECOND);
        assert_eq!(pace.due(), Some(now + SECOND));
        assert!(pace.start(now + SECOND));
        pace.end(now + 20 * SECOND);
        assert_eq!(pace.due(), Some(now + 20 * SECOND), "the hint is used up");
    }

    #[test]
    fn hurrying_never_delays_a_run_that_is_due() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.hurry(now + SECOND);
        assert_eq!(pace.due(), Some(now));
    }

    #[test]
    fn jitter_is_ten_percent_either_way() {
        assert_eq!(jittered(10 * SECOND, 0.0), 9 * SECOND);
        assert_eq!(jittered(10 * SECOND, 0.5), 10 * SECOND);
        assert_eq!(jittered(10 * SECOND, 1.0), 11 * SECOND);
    }
}
