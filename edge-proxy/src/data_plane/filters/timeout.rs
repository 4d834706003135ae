//! `grpc-timeout` (gRPC over HTTP/2, "Timeout"): one to eight digits and a unit.
//!
//! A value that can't be read is no time-out, and goes on as it came, as Envoy does: the proxy's own limits are the
//! proxy's to enforce. What is passed on of others is what is left: in the finest unit that fits eight digits, rounded
//! down, so that a backend never believes in more time than there is.

use std::time::Duration;

/// A `grpc-timeout` as text, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    bytes: [u8; MAX_DIGITS + 1],
    len: usize,
}

impl Text {
    /// As it goes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Reads `[0-9]{1,8}[HMSmun]`. The largest, `99999999H`, is 11 400 years: more than a u64 of nanoseconds holds, but not
/// more than a `Duration` does; whoever adds it to an `Instant` has to use `checked_add`.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Writes what is left: the finest unit that fits eight digits, rounded down, at least `1n`, at most `99999999H`.
pub fn format(left: Duration) -> Text {
    let seconds = left.as_secs();
    // What is more than a u64 has more than eight digits too.
    let all = |per_second: u64, rest: u32| {
        let whole = seconds.saturating_mul(per_second);
        whole.saturating_add(rest.into())
    };
    let counts = [
        (all(1_000_000_000, left.subsec_nanos()).max(1), b'n'),
        (all(1_000_000, left.subsec_micros()), b'u'),
        (all(1_000, left.subsec_millis()), b'm'),
        (seconds, b'S'),
        (seconds / 60, b'M'),
        (seconds / 3600, b'H'),
    ];
    let (count, unit) = counts
        .into_iter()
        .find(|&(count, _)| count <= MAX_COUNT)
        .unwrap_or((MAX_COUNT, b'H'));
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(count).as_bytes();
    let mut bytes = [0; MAX_DIGITS + 1];
    bytes[..digits.len()].copy_from_slice(digits);
    bytes[digits.len()] = unit;
    Text {
        bytes,
        len: digits.len() + 1,
    }
}

/// As the grammar says: eight, so that a count always fits 32 bits.
const MAX_DIGITS: usize = 8;
const MAX_COUNT: u64 = 99_999_999;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_grammar_allows_and_nothing_else() {
        let hours = |h: u64| Some(Duration::from_secs(h * 3600));
        let cases: &[(&str, Option<Duration>)] = &[
            ("1H", hours(1)),
            ("99999999H", hours(99_999_999)),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("00000006n", Some(Duration::from_nanos(6))),
            ("0n", Some(Duration::ZERO)),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("100000000n", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("1 S", None),
            ("1s", None),
            ("1h", None),
            ("1S ", None),
            ("１S", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text.as_bytes()), *wanted, "{text:?}");
        }
    }

    #[test]
    fn writes_the_finest_unit_that_fits_rounded_down() {
        let cases = [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(1), "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(1), "1000000u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_millis(99_999_999), "99999999m"),
            (Duration::from_millis(100_000_999), "100000S"),
            (Duration::from_secs(99_999_999), "99999999S"),
            (Duration::from_secs(100_000_059), "1666667M"),
            (Duration::from_secs(99_999_999 * 3600), "99999999H"),
            (Duration::MAX, "99999999H"),
        ];
        for (left, wanted) in cases {
            assert_eq!(format(left).as_bytes(), wanted.as_bytes(), "{left:?}");
        }
    }

    #[test]
    fn the_largest_is_no_instant_and_no_panic() {
        let largest = parse(b"99999999H").unwrap();
        assert!(u64::try_from(largest.as_nanos()).is_err());
        let _ = std::time::Instant::now().checked_add(largest);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_no_more_than_what_is_left(nanos in 1u64..) {
            let left = Duration::from_nanos(nanos);
            let text = format(left);
            let read = parse(text.as_bytes()).unwrap();
            prop_assert!(read <= left, "{:?} > {:?}", read, left);
            // A count that was rounded has six digits at least.
            prop_assert!((left - read).as_nanos() * 100_000 <= left.as_nanos());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Some(read) = parse(&bytes) {
                prop_assert!(parse(format(read).as_bytes()).is_some());
            }
        }
    }
}
