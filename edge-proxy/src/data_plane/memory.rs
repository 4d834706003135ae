//! How much may be held back: bytes that wait for a peer that doesn't take them, or for the rest of what it began,
//! copies of requests, and RPCs that wait for a connection, for the request's end or for their client's window.
//!
//! A quarter of the memory that the container was granted, all workers together. Each worker keeps its own account and
//! publishes it in one atomic that only it writes; whoever adds to its account looks at the sum of all. Above the limit no
//! copies for further attempts are kept, and then streams that are stalled are reset, and connections closed, each worker's
//! share of what is too much: of the client that holds most first. While the process is short of memory, what is held may not
//! grow at all. A connection's part of it is memory, not bytes: what its
//! buffers have grown to.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// The process's bytes held back.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What the container was granted.
    granted: Option<usize>,
    /// How much may be held now.
    allowed: AtomicUsize,
    /// By worker.
    held: Box<[AtomicUsize]>,
}

/// A worker's part of them.
#[derive(Debug)]
pub(crate) struct Account {
    memory: Arc<Memory>,
    worker: usize,
    held: Cell<usize>,
    /// Something was added above what may be held.
    exceeded: Notify,
}

impl Memory {
    /// For `workers` workers; `granted`: bytes, `None` if there is no limit.
    pub(crate) fn new(granted: Option<u64>, workers: usize) -> Arc<Self> {
        let granted = granted.map(|granted| usize::try_from(granted).unwrap_or(usize::MAX));
        Arc::new(Self {
            granted,
            allowed: AtomicUsize::new(granted.map_or(usize::MAX, |granted| granted / SHARE)),
            held: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        })
    }

    /// How many connections of clients there is room for.
    pub(crate) fn connections(&self) -> usize {
        self.granted
            .map_or(usize::MAX, |granted| granted / PER_CONNECTION)
    }

    fn excess(&self) -> usize {
        let allowed = self.allowed.load(Ordering::Relaxed);
        self.total().saturating_sub(allowed)
    }

    /// See [`Account::press`].
    fn press(&self, excess: Option<usize>) {
        let Some(granted) = self.granted else {
            return;
        };
        let most = granted / SHARE;
        let allowed = match excess {
            None => most,
            Some(excess) => {
                let left = self.total().saturating_sub(excess);
                left.clamp(granted / LEAST_SHARE, most)
            }
        };
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    fn total(&self) -> usize {
        self.held
            .iter()
            .map(|held| held.load(Ordering::Relaxed))
            .sum()
    }
}

impl Account {
    /// The account of worker `worker`.
    pub(crate) fn new(memory: Arc<Memory>, worker: usize) -> Self {
        Self {
            memory,
            worker,
            held: Cell::new(0),
            exceeded: Notify::new(),
        }
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.memory.held.len()
    }

    /// Something that held `before` bytes holds `after` now.
    pub(crate) fn change(&self, before: usize, after: usize) {
        if before == after {
            return;
        }
        self.held
            .set((self.held.get() + after).saturating_sub(before));
        if let Some(published) = self.memory.held.get(self.worker) {
            published.store(self.held.get(), Ordering::Relaxed);
        }
        if after > before && self.is_exceeded() {
            self.exceeded.notify_one();
        }
    }

    /// While the process is short of memory, no more may be held than what is left of that now when its `excess` is gone:
    /// what backends send in a moment, and nobody takes, is more than lies between two levels. `None`: it isn't short.
    pub(crate) fn press(&self, excess: Option<usize>) {
        self.memory.press(excess);
    }

    /// Whether more is held than may be.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.memory.excess() > 0
    }

    /// This worker's share of what is too much, and some more: who frees looks at all streams, and so not for each byte.
    pub(crate) fn to_free(&self) -> usize {
        match self.memory.excess() {
            0 => 0,
            excess => self.share_of(excess + self.memory.total() / MORE),
        }
    }

    /// This worker's share of `excess` bytes, by what it holds.
    pub(crate) fn share_of(&self, excess: usize) -> usize {
        let total = self.memory.total();
        if total == 0 {
            return 0;
        }
        let share = excess as u128 * self.held.get() as u128;
        // At most `excess`: the account is part of the total.
        usize::try_from(share.div_ceil(total as u128)).unwrap_or(excess)
    }

    /// What this worker holds.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// Waits until something was added above the limit.
    pub(crate) async fn exceeded(&self) {
        self.exceeded.notified().await;
    }
}

/// A quarter may be held back.
const SHARE: usize = 4;

/// And this part always may: what honest clients take within a moment.
const LEAST_SHARE: usize = 64;

/// A sixteenth of what is held goes with what is too much.
const MORE: usize = 16;

/// How much room something keeps that a worker has one of, once a burst has left far more than what is used now; `None`: what
/// it has is in proportion, or isn't worth giving back. Half of what is kept is free, so that it isn't taken again at once.
pub(crate) fn room_to_keep(room: usize, used: usize) -> Option<usize> {
    (room > MANY && room / 4 > used).then_some(2 * used)
}

/// Room for so many of what takes a few bytes isn't worth giving back: some 16 KiB.
const MANY: usize = 1024;

/// What there is room for a connection of a client: a quiet one takes a quarter of it, a busy one what it holds back too.
pub(crate) const PER_CONNECTION: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_what_was_granted_may_be_held_by_all_together() {
        let memory = Memory::new(Some(4000), 2);
        let accounts = [0, 1].map(|worker| Account::new(memory.clone(), worker));
        accounts[0].change(0, 600);
        accounts[1].change(0, 400);
        assert!(!accounts[0].is_exceeded());
        accounts[1].change(100, 300);
        assert!(accounts[0].is_exceeded() && accounts[1].is_exceeded());
        // 200 too much, and a sixteenth of 1200.
        assert_eq!((accounts[0].to_free(), accounts[1].to_free()), (138, 138));
        accounts[0].change(600, 0);
        assert!(!accounts[1].is_exceeded());
        assert_eq!(accounts[0].to_free(), 0);
    }

    #[test]
    fn what_is_held_does_not_grow_while_the_process_is_short_of_memory() {
        let account = Account::new(Memory::new(Some(6400), 1), 0);
        account.change(0, 1000);
        account.press(Some(300));
        assert_eq!(account.memory.excess(), 300);
        account.press(Some(5000));
        assert_eq!(account.memory.excess(), 900, "a little is always allowed");
        account.press(Some(0));
        assert!(!account.is_exceeded());
        account.change(1000, 1001);
        assert!(account.is_exceeded());
        account.press(None);
        assert!(!account.is_exceeded());
    }

    #[test]
    fn what_a_burst_has_left_is_kept_as_far_as_it_is_used() {
        assert_eq!(room_to_keep(1024, 0), None, "it isn't much");
        assert_eq!(room_to_keep(4000, 1000), None, "a quarter is used");
        assert_eq!(room_to_keep(4004, 1000), Some(2000));
        assert_eq!(room_to_keep(2000, 1000), None, "and that is what is kept");
        assert_eq!(room_to_keep(100_000, 0), Some(0));
    }

    #[test]
    fn without_a_limit_nothing_is_too_much() {
        let memory = Memory::new(None, 1);
        let account = Account::new(memory.clone(), 0);
        account.change(0, usize::MAX / 2);
        assert!(!account.is_exceeded());
        assert_eq!(memory.connections(), usize::MAX);
        assert_eq!(Memory::new(Some(1 << 20), 1).connections(), 32);
    }
}
