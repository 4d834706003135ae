//! How many bytes of messages a server may have in work, all its RPCs together.
//!
//! A message has up to [`MAX_MESSAGE`] bytes and a connection a hundred streams, so without this
//! one connection could ask for more memory than a container has. A message counts from the
//! arrival of its bytes until the last byte of its answer has been written ([`crate::messages`]
//! counts); what doesn't fit is refused with RESOURCE_EXHAUSTED.
//!
//! It refuses and never waits: messages that have arrived by halves would wait for each other.
//! An RPC that is the only one left always fits, so of any crowd somebody gets through.
//!
//! Others' large messages refuse no small one: up to [`FREE`] bytes aren't counted. Their number
//! is bounded by streams × connections, and so is what every RPC takes anyhow: tonic gives it two
//! buffers of that size before it has read a byte.
//!
//! The limit is a quarter of the container's memory: a handler may have a message twice (decoded,
//! while the client holds back the end of its request), and the other half is for the allocator's
//! holes, for h2's windows, and for RPCs with small messages. mimalloc's holes are small only where
//! `MIMALLOC_PURGE_DELAY` is 0, as the manifests have it: otherwise it keeps for a second what was
//! freed, and buffers of many sizes take new memory meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;
use tonic::Status;

use crate::MAX_MESSAGE;

/// A limit of bytes in work, and their count. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Count>);

#[derive(Debug)]
struct Count {
    limit: usize,
    /// Sum of all charges; never above the limit.
    used: AtomicUsize,
}

impl Budget {
    /// One of `limit` bytes. Below [`MAX_MESSAGE`] the largest messages never pass.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Count {
            limit,
            used: AtomicUsize::new(0),
        }))
    }

    /// A quarter of the container's memory limit; where none is seen, of 128 MiB.
    pub fn of_container() -> Self {
        Self::new(share(memory_limit(|path| {
            std::fs::read_to_string(path).ok()
        })))
    }

    /// Bytes that may be in work.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Bytes that are in work now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// What those who don't fit are told.
    pub(crate) fn exhausted(&self) -> Exhausted {
        Exhausted {
            limit: self.0.limit,
        }
    }

    /// A charge of nothing yet.
    pub(crate) fn charge(&self) -> Charge {
        Charge {
            budget: self.clone(),
            counted: 0,
        }
    }
}

/// Bytes that somebody has in work; they no longer count when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    counted: usize,
}

impl Charge {
    /// Stands for `bytes` from now on, or for what it did if the limit forbids.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let Count { limit, used } = &*self.budget.0;
        let counted = bytes.saturating_sub(FREE);
        // The sum orders nothing else: Relaxed.
        if counted < self.counted {
            used.fetch_sub(self.counted - counted, Ordering::Relaxed);
        } else {
            let more = counted - self.counted;
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|used| used <= limit)
            })
            .map_err(|_| self.budget.exhausted())?;
        }
        self.counted = counted;
        Ok(())
    }

    /// What it stands for; this one stands for nothing then.
    pub(crate) fn take(&mut self) -> Self {
        let counted = std::mem::take(&mut self.counted);
        Self {
            budget: self.budget.clone(),
            counted,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget
            .0
            .used
            .fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the messages that this server has in work would exceed its limit of {limit} bytes; try again later"
)]
pub(crate) struct Exhausted {
    limit: usize,
}

impl From<Exhausted> for Status {
    fn from(error: Exhausted) -> Self {
        Self::resource_exhausted(error.to_string())
    }
}

/// The budget under a memory limit.
fn share(memory: Option<usize>) -> usize {
    (memory.unwrap_or(ASSUMED) / 4).max(MAX_MESSAGE)
}

/// The container's own limit, where a container sees it: at the root of what is mounted, of cgroup
/// version 2 or 1. `max` and numbers close to 2^63 mean none.
fn memory_limit(read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .into_iter()
    .find_map(|path| read(path)?.trim().parse().ok())
    .filter(|limit| *limit < 1 << 60)
}

/// Bytes of a message that don't count: the size of tonic's buffers.
pub(crate) const FREE: usize = 8 * 1024;

/// The memory limit that the manifests of this repository set.
const ASSUMED: usize = 128 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.charge(), budget.charge());
        assert_eq!(one.set(FREE + 60), Ok(()));
        assert_eq!(two.set(FREE + 40), Ok(()));
        assert_eq!(budget.used(), 100);
        assert_eq!(two.set(FREE + 41), Err(Exhausted { limit: 100 }));
        assert_eq!(two.set(usize::MAX), Err(Exhausted { limit: 100 }));
        assert_eq!(budget.used(), 100);
        one.set(FREE + 59).unwrap();
        assert_eq!(two.set(FREE + 41), Ok(()));
        drop(one);
        assert_eq!(budget.used(), 41);
        drop(two);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_first_bytes_of_each_are_free() {
        let budget = Budget::new(0);
        let mut charges = Vec::new();
        for _ in 0..1000 {
            let mut charge = budget.charge();
            charge.set(FREE).unwrap();
            charges.push(charge);
        }
        assert_eq!(budget.used(), 0);
        assert!(charges[0].set(FREE + 1).is_err());
    }

    #[test]
    fn what_is_taken_counts_on() {
        let budget = Budget::new(100);
        let mut left = budget.charge();
        left.set(FREE + 70).unwrap();
        let mut taken = left.take();
        drop(left);
        assert_eq!(budget.used(), 70);
        assert_eq!(
            taken.set(FREE + 100),
            Ok(()),
            "only the difference is asked for"
        );
        drop(taken);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn threads_together_stay_below_the_limit() {
        let budget = Budget::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let mut charge = budget.charge();
                        for bytes in (0..1000).step_by(90) {
                            let _ = charge.set(FREE + bytes);
                            assert!(budget.used() <= 1000);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_refusal_says_what_and_which_limit() {
        let status = Status::from(Exhausted { limit: 33_554_432 });
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "the messages that this server has in work would exceed its limit of 33554432 bytes; \
             try again later"
        );
    }

    #[test]
    fn it_is_a_quarter_of_the_memory_and_at_least_a_message() {
        assert_eq!(share(Some(512 << 20)), 128 << 20);
        assert_eq!(share(Some(8 << 20)), MAX_MESSAGE);
        assert_eq!(share(None), 32 << 20);
    }

    #[test]
    fn a_container_sees_its_limit_in_both_versions() {
        let v2 = "/sys/fs/cgroup/memory.max";
        let v1 = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        for (file, text, limit) in [
            (v2, "134217728\n", Some(128 << 20)),
            (v2, "max\n", None),
            (v1, "134217728\n", Some(128 << 20)),
            (v1, "9223372036854771712\n", None),
            ("elsewhere", "1", None),
        ] {
            let read = |path: &str| (path == file).then(|| text.to_owned());
            assert_eq!(memory_limit(read), limit, "{file} {text}");
        }
    }
}
