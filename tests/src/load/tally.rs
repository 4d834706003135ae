//! What has become of the RPCs: counts, latencies, and the first failures. Its size doesn't grow with the load, but
//! for one short line per second, of which there are at most a day's.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tonic::Code;

/// All that is counted.
#[derive(Debug)]
pub struct Tally {
    /// RPCs that were started, streams not included.
    pub sent: u64,
    /// RPCs that ended with OK and the right reply.
    pub ok: u64,
    /// RPCs that the limit of RPCs in flight kept from being started.
    pub not_sent: u64,
    /// Streams that were started.
    pub streams_sent: u64,
    /// Streams that ended with OK and all messages.
    pub streams_ok: u64,
    /// RPCs and streams that were sent once more, since the peer had not looked at them.
    pub transparent_retries: u64,
    /// Connections that were made.
    pub connections: u64,
    /// RPCs that ended well, by the peer's `hostname`.
    hostnames: BTreeMap<String, u64>,
    failed: BTreeMap<&'static str, u64>,
    failures: Vec<Failure>,
    latencies: Histogram<u64>,
    /// Of those that ended well alone.
    well: Histogram<u64>,
    second: Histogram<u64>,
    seconds: Vec<Second>,
    before: (u64, u64, u64),
}

/// One RPC that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its `x-test-id`.
    pub id: String,
    /// When it was meant to be sent.
    pub begun: SystemTime,
    /// When its end was seen.
    pub ended: SystemTime,
    /// Its status.
    pub code: Code,
    /// Why.
    pub message: String,
    /// Which peer answered, if one did.
    pub hostname: Option<String>,
}

/// One second of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// RPCs that were started in it.
    pub sent: u64,
    /// RPCs that ended well in it.
    pub ok: u64,
    /// RPCs and streams that failed in it, and RPCs that were not sent.
    pub failed: u64,
    /// Half of those that ended in it took no longer, in microseconds.
    pub p50: u64,
    /// 99 of 100 that ended in it took no longer, in microseconds.
    pub p99: u64,
    /// The slowest of them, in microseconds.
    pub max: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            sent: 0,
            ok: 0,
            not_sent: 0,
            streams_sent: 0,
            streams_ok: 0,
            transparent_retries: 0,
            connections: 0,
            hostnames: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: Vec::new(),
            latencies: histogram(),
            well: histogram(),
            second: histogram(),
            seconds: Vec::new(),
            before: (0, 0, 0),
        }
    }

    /// An RPC ended well, `latency` after its intended time.
    pub fn ended_well(&mut self, latency: Duration, hostname: Option<&str>) {
        self.ok += 1;
        let hostname = hostname.unwrap_or("");
        if let Some(count) = self.hostnames.get_mut(hostname) {
            *count += 1;
        } else if self.hostnames.len() < MAX_HOSTNAMES {
            self.hostnames.insert(hostname.to_owned(), 1);
        }
        self.well.saturating_record(micros(latency));
        self.record(latency);
    }

    /// An RPC failed, `latency` after its intended time; a stream's latency is not looked at.
    pub fn ended_badly(&mut self, latency: Option<Duration>, mut failure: Failure) {
        *self.failed.entry(name(failure.code)).or_default() += 1;
        if let Some(latency) = latency {
            self.record(latency);
        }
        if self.failures.len() < MAX_FAILURES {
            let end = failure.message.floor_char_boundary(MAX_MESSAGE);
            failure.message.truncate(end);
            self.failures.push(failure);
        }
    }

    /// RPCs and streams that failed.
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Nothing failed, and everything was sent.
    pub fn good(&self) -> bool {
        self.failed() == 0 && self.not_sent == 0
    }

    /// A second is over: what happened in it.
    pub fn end_second(&mut self) -> Second {
        let now = (self.sent, self.ok, self.failed() + self.not_sent);
        let second = Second {
            sent: now.0 - self.before.0,
            ok: now.1 - self.before.1,
            failed: now.2 - self.before.2,
            p50: self.second.value_at_quantile(0.5),
            p99: self.second.value_at_quantile(0.99),
            max: self.second.max(),
        };
        self.before = now;
        self.second.reset();
        if self.seconds.len() < MAX_SECONDS {
            self.seconds.push(second);
        }
        second
    }

    /// 99 of 100 RPCs took no longer, in microseconds.
    pub fn p99_micros(&self) -> u64 {
        self.latencies.value_at_quantile(0.99)
    }

    /// As [`p99_micros`](Self::p99_micros), of those that ended well alone: of RPCs that a fault is to leave alone.
    pub fn p99_micros_of_ok(&self) -> u64 {
        self.well.value_at_quantile(0.99)
    }

    /// The failures, the first some thousands of them.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Everything, for programs. Latencies are in microseconds.
    pub fn json(&self) -> Value {
        let quantile = |quantile| self.latencies.value_at_quantile(quantile);
        json!({
            "sent": self.sent,
            "ok": self.ok,
            "not_sent": self.not_sent,
            "failed": self.failed,
            "streams": { "sent": self.streams_sent, "ok": self.streams_ok },
            "transparent_retries": self.transparent_retries,
            "connections": self.connections,
            "hostnames": self.hostnames,
            "latency_us": {
                "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "p99.9": quantile(0.999),
                "max": self.latencies.max(),
            },
            "seconds": self.seconds.iter().map(Second::json).collect::<Vec<_>>(),
            "first_failures": self.failures.iter().map(Failure::json).collect::<Vec<_>>(),
        })
    }

    fn record(&mut self, latency: Duration) {
        let micros = micros(latency);
        self.latencies.saturating_record(micros);
        self.second.saturating_record(micros);
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Second {
    fn json(&self) -> Value {
        let Self {
            sent,
            ok,
            failed,
            p50,
            p99,
            max,
        } = self;
        json!({ "sent": sent, "ok": ok, "failed": failed, "p50": p50, "p99": p99, "max": max })
    }
}

impl Failure {
    fn json(&self) -> Value {
        let unix = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        };
        json!({
            "id": self.id,
            "begun": unix(self.begun),
            "ended": unix(self.ended),
            "status": name(self.code),
            "message": self.message,
            "hostname": self.hostname,
        })
    }
}

/// The status's name as gRPC's `doc/statuscodes.md` writes it.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What is longer than a histogram's end counts as its end.
fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}

fn histogram() -> Histogram<u64> {
    // The bounds are constants, and valid ones: low ≥ 1, high ≥ 2 × low, digits ≤ 5.
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid")
}

/// An hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;
/// A few megabytes; all are counted.
const MAX_FAILURES: usize = 10_000;
/// More pods than a test's cluster has.
const MAX_HOSTNAMES: usize = 1000;
/// Bytes. A message is the peer's, who may be chatty.
const MAX_MESSAGE: usize = 256;
/// A day.
const MAX_SECONDS: usize = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: Code) -> Failure {
        Failure {
            id: "a-1".to_owned(),
            begun: SystemTime::UNIX_EPOCH,
            ended: SystemTime::UNIX_EPOCH,
            code,
            message: "ä".repeat(1000),
            hostname: Some("echo-1".to_owned()),
        }
    }

    #[test]
    fn failures_are_counted_by_status_and_only_the_first_are_kept() {
        let mut tally = Tally::new();
        for _ in 0..MAX_FAILURES {
            tally.ended_badly(None, failure(Code::Unavailable));
        }
        tally.ended_badly(None, failure(Code::DataLoss));
        let json = tally.json();
        assert_eq!(json["failed"]["UNAVAILABLE"], MAX_FAILURES);
        assert_eq!(json["failed"]["DATA_LOSS"], 1);
        let kept = json["first_failures"].as_array().unwrap();
        assert_eq!(kept.len(), MAX_FAILURES);
        assert_eq!(kept[0]["message"].as_str().unwrap().len(), MAX_MESSAGE);
        assert!(!tally.good());
    }

    #[test]
    fn quantiles_are_of_all_and_of_each_second() {
        let mut tally = Tally::new();
        for millis in 1..=100 {
            tally.sent += 1;
            tally.ended_well(Duration::from_millis(millis), Some("echo-1"));
        }
        let near = |value: u64, millis: u64| value.abs_diff(millis * 1000) <= millis;
        let first = tally.end_second();
        assert!(near(first.p50, 50) && near(first.p99, 99) && near(first.max, 100));
        assert_eq!((first.sent, first.ok, first.failed), (100, 100, 0));
        let second = tally.end_second();
        assert_eq!((second.sent, second.ok, second.max), (0, 0, 0));
        assert!(near(
            tally.json()["latency_us"]["p90"].as_u64().unwrap(),
            90
        ));
        assert_eq!(tally.json()["hostnames"], json!({ "echo-1": 100 }));
        assert!(tally.good());
    }

    #[test]
    fn longer_than_an_hour_counts_as_an_hour() {
        let mut tally = Tally::new();
        tally.ended_well(Duration::MAX, None);
        let max = tally.json()["latency_us"]["max"].as_u64().unwrap();
        assert!(max.abs_diff(LONGEST) < LONGEST / 1000);
    }

    #[test]
    fn what_was_not_sent_is_no_success() {
        let mut tally = Tally::new();
        tally.not_sent = 1;
        assert!(!tally.good());
        assert_eq!(tally.end_second().failed, 1);
    }
}
