//! How much memory a server's RPCs may take, all of them together.
//!
//! A message has up to [`MAX_MESSAGE`] bytes and a connection a hundred streams, so without this
//! one connection could ask for more memory than a container has. A message counts from the
//! arrival of its bytes until the last byte of its answer has been written ([`crate::messages`]
//! counts, and sees to it that they move); what doesn't fit is refused with RESOURCE_EXHAUSTED.
//!
//! It refuses and never waits: messages that have arrived by halves would wait for each other.
//! An RPC that is the only one left always fits, so of any crowd somebody gets through.
//!
//! Nor are RPCs that have sent next to nothing free: each has its task, its stream, its head and
//! tonic's buffers, and some proxies with all the streams that they may open are enough to fill a
//! container. So an RPC counts [`RPC`] bytes and its head, from its first moment on, before
//! anything is made for it; what that covers is the first [`FREE`] bytes of its message, too.
//!
//! Two limits, for two kinds of bytes:
//!
//! - large messages take no more than the limit, a quarter of the container's memory, whoever
//!   else is here;
//! - RPCs take what messages leave of five eighths. A message counts twice there, since a
//!   handler may have it twice (decoded, while the client holds back the end of its request). So
//!   others' large messages never refuse a small one: an eighth is left for these in any case.
//!
//! The rest is for the process, its connections, heads on their way to being refused, and the
//! allocator's holes. Those of mimalloc are small only where `MIMALLOC_PURGE_DELAY` is 0, as the
//! manifests have it: otherwise it keeps for a while what was freed, and buffers of many sizes
//! take new memory meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Request;
use thiserror::Error;
use tonic::Status;

use crate::MAX_MESSAGE;

/// A limit of bytes in work, and their count. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Count>);

#[derive(Debug)]
struct Count {
    limit: usize,
    /// Sums of all charges; always within the limits.
    used: Mutex<Used>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    messages: usize,
    rpcs: usize,
}

impl Budget {
    /// One of `limit` bytes of messages, and of two and a half times that for all that RPCs take. Below
    /// [`MAX_MESSAGE`] the largest messages never pass.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Count {
            limit,
            used: Mutex::default(),
        }))
    }

    /// A quarter of the container's memory limit; where none is seen, of 128 MiB.
    pub fn of_container() -> Self {
        Self::new(share(memory_limit(|path| {
            std::fs::read_to_string(path).ok()
        })))
    }

    /// Bytes of messages that may be in work.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Bytes of messages that are in work now.
    pub fn used(&self) -> usize {
        self.count().messages
    }

    /// Bytes that RPCs take now, beside their messages.
    pub fn used_by_rpcs(&self) -> usize {
        self.count().rpcs
    }

    /// A charge of no message yet.
    pub(crate) fn message(&self) -> Charge {
        self.charge(Kind::Message)
    }

    /// The charge of an RPC with this head, for as long as there is anything of it.
    pub(crate) fn rpc<B>(&self, head: &Request<B>) -> Result<Charge, Exhausted> {
        let mut charge = self.charge(Kind::Rpc);
        charge.set(RPC + memory(head))?;
        Ok(charge)
    }

    fn charge(&self, kind: Kind) -> Charge {
        Charge {
            budget: self.clone(),
            kind,
            counted: 0,
        }
    }

    fn count(&self) -> MutexGuard<'_, Used> {
        // Both numbers are written at once: no panic leaves them half set.
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much may be in work.
    fn allow(&self, used: Used) -> Result<(), Exhausted> {
        let limit = self.0.limit;
        if used.messages > limit {
            return Err(Exhausted::Messages { limit });
        }
        let all = used.rpcs.saturating_add(used.messages.saturating_mul(2));
        let limit = limit.saturating_mul(5) / 2;
        if all > limit {
            return Err(Exhausted::Rpcs { limit });
        }
        Ok(())
    }
}

/// Bytes that somebody has in work; they no longer count when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    kind: Kind,
    counted: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Message,
    Rpc,
}

impl Charge {
    /// Stands for `bytes` from now on, or for what it did if a limit forbids.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let counted = match self.kind {
            Kind::Message => bytes.saturating_sub(FREE),
            Kind::Rpc => bytes,
        };
        if counted == self.counted {
            return Ok(());
        }
        let mut used = self.budget.count();
        let mut new = *used;
        let sum = match self.kind {
            Kind::Message => &mut new.messages,
            Kind::Rpc => &mut new.rpcs,
        };
        *sum = (*sum - self.counted).saturating_add(counted);
        if counted > self.counted {
            self.budget.allow(new)?;
        }
        *used = new;
        self.counted = counted;
        Ok(())
    }

    /// What it stands for; this one stands for nothing then.
    pub(crate) fn take(&mut self) -> Self {
        self.split(usize::MAX)
    }

    /// `bytes` of what it stands for, or all of it; this one stands for the rest then.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let mut part = self.budget.charge(self.kind);
        part.counted = bytes.min(self.counted);
        self.counted -= part.counted;
        part
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Less always fits.
        let _ = self.set(0);
    }
}

/// Why a message or an RPC was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Exhausted {
    #[error(
        "the messages that this server has in work would exceed its limit of {limit} bytes; try again later"
    )]
    Messages { limit: usize },
    #[error(
        "the RPCs that this server has in work would exceed its limit of {limit} bytes; try again later"
    )]
    Rpcs { limit: usize },
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

/// What a head takes, as it is decoded.
fn memory<B>(head: &Request<B>) -> usize {
    let uri = head.uri();
    let path = uri.path_and_query().map_or(0, |it| it.as_str().len());
    let authority = uri.authority().map_or(0, |it| it.as_str().len());
    let fields = head.headers().iter();
    fields.fold(path + authority, |sum, (name, value)| {
        sum + FIELD + name.as_str().len() + value.len()
    })
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

/// What an RPC takes that has sent no more than [`FREE`] bytes, beside its head: 29 KiB of resident
/// memory where each of 1600 has a message that doesn't end.
const RPC: usize = 32 * 1024;

/// What a field of a head takes beside its text: an entry in a table that is up to half empty, and
/// rounded allocations; 120 to 220 bytes were measured.
const FIELD: usize = 192;

/// The memory limit that the manifests of this repository set.
const ASSUMED: usize = 128 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.message(), budget.message());
        assert_eq!(one.set(FREE + 60), Ok(()));
        assert_eq!(two.set(FREE + 40), Ok(()));
        assert_eq!(budget.used(), 100);
        assert_eq!(two.set(FREE + 41), Err(Exhausted::Messages { limit: 100 }));
        assert_eq!(two.set(usize::MAX), Err(Exhausted::Messages { limit: 100 }));
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
            let mut charge = budget.message();
            charge.set(FREE).unwrap();
            charges.push(charge);
        }
        assert_eq!(budget.used(), 0);
        assert!(charges[0].set(FREE + 1).is_err());
    }

    #[test]
    fn what_is_taken_counts_on() {
        let budget = Budget::new(100);
        let mut left = budget.message();
        left.set(FREE + 70).unwrap();
        let mut taken = left.take();
        drop(left);
        assert_eq!(budget.used(), 70);
        drop(taken.split(10));
        assert_eq!(budget.used(), 60);
        assert_eq!(
            taken.set(FREE + 100),
            Ok(()),
            "only the difference is asked for"
        );
        drop(taken);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn rpcs_count_with_their_heads_from_the_start() {
        let budget = Budget::new(RPC + 1000);
        let small = Request::post("http://a/b").body(()).unwrap();
        let large = Request::post("http://a/b?12345678")
            .header("name", "value")
            .header("name", "other")
            .body(())
            .unwrap();
        let one = budget.rpc(&small).unwrap();
        assert_eq!(budget.used_by_rpcs(), RPC + 3);
        let two = budget.rpc(&large).unwrap();
        assert_eq!(budget.used_by_rpcs(), 2 * RPC + 3 + 30 + 2 * FIELD);
        let refused = Exhausted::Rpcs {
            limit: 5 * (RPC + 1000) / 2,
        };
        assert_eq!(budget.rpc(&small).unwrap_err(), refused);
        drop(two);
        drop(budget.rpc(&small).unwrap());
        assert_eq!(budget.used_by_rpcs(), RPC + 3);
        drop(one);
        assert_eq!((budget.used_by_rpcs(), budget.used()), (0, 0));
    }

    #[test]
    fn messages_leave_room_for_rpcs_and_rpcs_for_no_more_than_there_is() {
        let budget = Budget::new(10 * RPC);
        let head = Request::get("/").body(()).unwrap();
        let mut message = budget.message();
        message.set(FREE + 10 * RPC).unwrap();
        // Of 25 such parts twenty are the message's: a fifth is left in any case.
        let left: Vec<_> = std::iter::from_fn(|| budget.rpc(&head).ok()).collect();
        assert_eq!(left.len(), 4);
        message.set(FREE + 5 * RPC).unwrap();
        let more: Vec<_> = std::iter::from_fn(|| budget.rpc(&head).ok()).collect();
        assert_eq!(more.len(), 10);
        let refused = Exhausted::Rpcs { limit: 25 * RPC };
        assert_eq!(message.set(FREE + 6 * RPC), Err(refused));
        drop(left);
        message.set(FREE + 7 * RPC).unwrap();
    }

    #[test]
    fn threads_together_stay_below_the_limit() {
        let budget = Budget::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let mut charge = budget.message();
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
        let status = Status::from(Exhausted::Messages { limit: 33_554_432 });
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "the messages that this server has in work would exceed its limit of 33554432 bytes; \
             try again later"
        );
        let status = Status::from(Exhausted::Rpcs { limit: 83_886_080 });
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "the RPCs that this server has in work would exceed its limit of 83886080 bytes; \
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
