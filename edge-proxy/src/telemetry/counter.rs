//! Counters: [`Counter`] and [`Gauge`] have one writing thread, [`SharedCounter`] has many.
//!
//! A worker counts a dozen things per RPC. An atomic read-modify-write is a locked instruction of
//! some 5 ns, and much more when two cores share the line. So every writing thread has counters of
//! its own (a [`Shard`](super::metrics::Shard)), written by a relaxed load and a relaxed store,
//! which cost what a plain variable costs; whoever reads adds the shards up.
//!
//! The price is a rule: two threads that write to the same `Counter` lose counts (nothing worse).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Only grows. Written by the one thread that owns it, read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Goes up and down. Written by the one thread that owns it, read by any.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// Only grows. For events that are rare or whose thread isn't known; any thread may write.
#[derive(Debug, Default)]
pub struct SharedCounter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// As of now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// One less.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// `n` more, or less when it is negative.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// As of now.
    #[inline]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl SharedCounter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// As of now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count() {
        let (counter, gauge, shared) = (
            Counter::default(),
            Gauge::default(),
            SharedCounter::default(),
        );
        counter.inc();
        counter.add(4);
        gauge.inc();
        gauge.dec();
        gauge.dec();
        shared.inc();
        shared.add(2);
        assert_eq!((counter.get(), gauge.get(), shared.get()), (5, -1, 3));
    }
}
