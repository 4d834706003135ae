//! `grpc-timeout` (gRPC over HTTP/2, "Timeout"): one to eight digits and a unit.
//!
//! A value that can't be read is no time-out, and goes on as it came: as Envoy does. What is passed on is what is left:
//! in the finest unit that fits eight digits, rounded down, so that a backend never believes in more time than there
//! is.

use std::time::Duration;

use http2::{Headers, Known};

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
    let nanos = left.as_nanos().max(1);
    let (count, unit) = UNITS
        .iter()
        .map(|&(size, unit)| (nanos / size, unit))
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

/// Replaces a request's `grpc-timeout` by what is left at this attempt. A request without one keeps to have none: the
/// proxy's own limits are the proxy's to enforce.
pub fn rewrite(headers: &mut Headers, left: Duration) {
    if headers.known(Known::GrpcTimeout).is_some() {
        headers.set(b"grpc-timeout", format(left).as_bytes());
    }
}

/// As the grammar says: eight, so that a count always fits 32 bits.
const MAX_DIGITS: usize = 8;
const MAX_COUNT: u128 = 99_999_999;
/// Nanoseconds of each unit, finest first.
const UNITS: [(u128, u8); 6] = [
    (1, b'n'),
    (1_000, b'u'),
    (1_000_000, b'm'),
    (1_000_000_000, b'S'),
    (60_000_000_000, b'M'),
    (3_600_000_000_000, b'H'),
];
