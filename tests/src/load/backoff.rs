//! How long a gRPC client waits between attempts to connect: gRPC's `doc/connection-backoff.md`.

use std::time::Duration;

/// The back-off of one connection: 1 s, × 1.6 each time, at most 120 s, each ± 20 %.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// One that has not failed yet.
    pub fn new() -> Self {
        Self { next: INITIAL }
    }

    /// The time from the start of this attempt to the start of the next, should this one fail. `random` is in 0..=1.
    pub fn attempt(&mut self, random: f64) -> Duration {
        let present = self.next;
        self.next = present.mul_f64(MULTIPLIER).min(MAX);
        present.mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0))
    }

    /// The peer's SETTINGS have come: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = INITIAL;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// An attempt has at least this long, however short the back-off is.
pub const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const INITIAL: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(120);
const MULTIPLIER: f64 = 1.6;
const JITTER: f64 = 0.2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_two_minutes_and_starts_again_after_a_connection() {
        let mut backoff = Backoff::new();
        let seconds = |backoff: &mut Backoff| backoff.attempt(0.5).as_secs_f64();
        for expected in [1.0, 1.6, 2.56, 4.096] {
            assert!((seconds(&mut backoff) - expected).abs() < 1e-6);
        }
        for _ in 0..10 {
            backoff.attempt(0.5);
        }
        assert_eq!(seconds(&mut backoff), 120.0);
        backoff.reset();
        assert_eq!(seconds(&mut backoff), 1.0);
    }

    #[test]
    fn jitter_is_a_fifth_both_ways() {
        assert_eq!(Backoff::new().attempt(0.0), Duration::from_millis(800));
        assert_eq!(Backoff::new().attempt(1.0), Duration::from_millis(1200));
    }
}
