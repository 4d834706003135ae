//! The `date` header's text (RFC 9110 §5.6.7), made once a second and not once a response.

use std::{
    ops::Range,
    time::{Duration, Instant, SystemTime},
};

/// Remembers the text of one second. One per worker.
#[derive(Clone, Debug)]
pub struct DateCache {
    /// Seconds since the epoch that `text` tells.
    second: u64,
    text: String,
    /// When that is the second, by the monotonic clock, as far as is known.
    during: Option<Range<Instant>>,
}

impl DateCache {
    /// With the text of `now`.
    pub fn new(now: SystemTime) -> Self {
        let second = seconds(now);
        Self {
            second,
            text: text(second),
            during: None,
        }
    }

    /// The date at `now`, as `Sun, 06 Nov 1994 08:49:37 GMT`. `wall`: that moment on the wall clock.
    pub fn at(&mut self, now: Instant, wall: impl FnOnce(Instant) -> SystemTime) -> &[u8] {
        if !self
            .during
            .as_ref()
            .is_some_and(|during| during.contains(&now))
        {
            let wall = wall(now);
            if seconds(wall) != self.second {
                *self = Self::new(wall);
            }
            let since = wall.duration_since(SystemTime::UNIX_EPOCH);
            let passed = u64::from(since.unwrap_or_default().subsec_nanos());
            self.during = Some(now..now + Duration::from_nanos(1_000_000_000 - passed));
        }
        self.text.as_bytes()
    }
}

/// A clock that is set wrong must not end a worker: what the format can't tell becomes the nearest that it can.
fn seconds(now: SystemTime) -> u64 {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_secs().min(LAST_SECOND)
}

fn text(second: u64) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(second))
}

/// 9999-12-31T23:59:59Z: the format has four digits for a year.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_second_that_is_passed_in() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_999);
        let mut cache = DateCache::new(then);
        let start = Instant::now() + Duration::from_secs(1);
        let mut second = |now: Instant| {
            let date = cache.at(now, |now| then + now.duration_since(start));
            String::from_utf8_lossy(&date[17..25]).into_owned()
        };
        for (millis, wanted) in [
            (0, "08:49:37"),
            (1, "08:49:38"),
            (500, "08:49:38"),
            (1000, "08:49:38"),
            (1001, "08:49:39"),
            (0, "08:49:37"),
        ] {
            let now = start + Duration::from_millis(millis);
            assert_eq!(second(now), wanted, "after {millis} ms");
        }
        assert_eq!(cache.at(start, |_| then), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn looks_at_the_wall_clock_once_a_second() {
        let mut cache = DateCache::new(SystemTime::UNIX_EPOCH);
        let (start, mut looks) = (Instant::now(), 0);
        for millis in 0..2500 {
            cache.at(start + Duration::from_millis(millis), |_| {
                looks += 1;
                SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
            });
        }
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_clock_out_of_range_is_no_panic() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1);
        let now = Instant::now();
        for (wall, wanted) in [
            (before, &b"Thu, 01 Jan 1970 00:00:00 GMT"[..]),
            (far, b"Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(DateCache::new(wall).at(now, |_| wall), wanted);
        }
    }
}
