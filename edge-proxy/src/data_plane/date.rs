//! The `date` header's text (RFC 9110 §5.6.7), made once a second and not once a response.

use std::time::{Duration, SystemTime};

/// Remembers the text of one second. One per worker.
#[derive(Clone, Debug)]
pub struct DateCache {
    /// Seconds since the epoch that `text` tells.
    second: u64,
    text: String,
}

impl DateCache {
    /// With the text of `now`.
    pub fn new(now: SystemTime) -> Self {
        let second = seconds(now);
        Self {
            second,
            text: text(second),
        }
    }

    /// The date at `now`, as `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn at(&mut self, now: SystemTime) -> &[u8] {
        let second = seconds(now);
        if second != self.second {
            *self = Self {
                second,
                text: text(second),
            };
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
        assert_eq!(cache.at(then), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(
            cache.at(then + Duration::from_millis(1)),
            b"Sun, 06 Nov 1994 08:49:38 GMT"
        );
        assert_eq!(cache.at(then), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_clock_out_of_range_is_no_panic() {
        let mut cache = DateCache::new(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(
            cache.at(SystemTime::UNIX_EPOCH),
            b"Thu, 01 Jan 1970 00:00:00 GMT"
        );
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1);
        assert_eq!(cache.at(far), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
