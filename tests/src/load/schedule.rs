//! When each RPC of an open loop is to be sent: at a fixed rate, whatever has become of those before it.
//!
//! A closed loop (the next RPC waits for the last) stops asking exactly while the target is slow, and so hides its
//! worst latencies ("coordinated omission"). Times are computed from the start each time, never added up, so that
//! rounding doesn't drift.

use std::{io, time::Duration};

use tokio::time::Instant;

use super::timer::Timer;

/// The times of all RPCs of one load.
#[derive(Debug)]
pub struct Schedule {
    start: Instant,
    rate: u32,
    sent: u64,
    total: u64,
    timer: Timer,
}

/// One RPC that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its number, from 0.
    pub number: u64,
    /// When it is meant to be sent; the present is later if this process, or its machine, is behind.
    pub at: Instant,
}

impl Schedule {
    /// `rate` RPCs in each second of `duration`, from `start` on. A rate of 0 has none.
    ///
    /// # Errors
    /// When no timer can be had.
    pub fn new(start: Instant, rate: u32, duration: Duration) -> io::Result<Self> {
        let total = duration.as_nanos() * u128::from(rate) / NANOS;
        Ok(Self {
            start,
            rate,
            sent: 0,
            total: u64::try_from(total).unwrap_or(u64::MAX),
            timer: Timer::new()?,
        })
    }

    /// Waits for the next RPC's time; `None` after the last. Those that are late come at once, none is left out.
    /// Cancel-safe: what wasn't given isn't lost.
    ///
    /// # Errors
    /// When the timer fails.
    pub async fn next(&mut self) -> io::Result<Option<Due>> {
        if self.sent == self.total {
            return Ok(None);
        }
        let due = Due {
            number: self.sent,
            at: self.start + offset(self.sent, self.rate),
        };
        self.timer.until(due.at).await?;
        self.sent += 1;
        Ok(Some(due))
    }
}

fn offset(number: u64, rate: u32) -> Duration {
    let rate = u64::from(rate);
    // The rate isn't 0: then no number is ever due. The rest is below the rate, so it fits into 62 bits.
    Duration::new(
        number / rate,
        ((number % rate) * 1_000_000_000 / rate) as u32,
    )
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn late_rpcs_come_at_once_with_the_times_they_were_meant_for() {
        // All of it is in the past: nothing is waited for.
        let start = Instant::now() - Duration::from_secs(1);
        let mut schedule = Schedule::new(start, 4, Duration::from_secs(1)).unwrap();
        for number in 0..4 {
            let at = start + Duration::from_millis(250 * number);
            assert_eq!(schedule.next().await.unwrap(), Some(Due { number, at }));
        }
        assert_eq!(schedule.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn nothing_is_given_before_its_time() {
        let start = Instant::now() + Duration::from_secs(3600);
        let mut schedule = Schedule::new(start, 4, Duration::from_secs(1)).unwrap();
        let next = schedule.next();
        assert!(tokio::time::timeout(Duration::ZERO, next).await.is_err());
        // And what wasn't given isn't lost.
        assert_eq!(schedule.sent, 0);
    }

    #[tokio::test]
    async fn a_rate_of_zero_has_no_rpcs() {
        let mut schedule = Schedule::new(Instant::now(), 0, Duration::from_secs(9)).unwrap();
        assert_eq!(schedule.next().await.unwrap(), None);
    }

    #[test]
    fn a_third_of_a_second_does_not_drift() {
        assert_eq!(offset(3_000_000, 3), Duration::from_secs(1_000_000));
    }
}
