//! Deadlines of RPCs and of the queues in which they wait, and the task that keeps them.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Instant,
};

use tokio::sync::Notify;

use super::Worker;
use crate::data_plane::{
    memory::room_to_keep,
    rpc::{self, Key},
    upstream::Pool,
};

/// Deadlines (of RPCs, and of queues with someone in them), earliest first.
///
/// Hardly any is reached: nearly every RPC ends before. Taking its entry out would mean to search for it; so it stays,
/// and once such entries are the larger half all of them go together. That costs an RPC a comparison or two where a
/// search tree costs several hundred instructions.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: RefCell<BinaryHeap<Reverse<(Instant, Timer)>>>,
    /// Entries of RPCs that have ended.
    left_behind: Cell<usize>,
    /// There is an earlier deadline, or enough to clear away.
    changed: Notify,
}

/// What a deadline belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// An RPC's key.
    Rpc(Key),
    /// An endpoint's id: someone waits for a connection to it.
    Waiting(u64),
}

/// Calls the owner of each deadline that has come.
pub(crate) async fn fire_timers(worker: Rc<Worker>) {
    loop {
        clear(&worker);
        let next = worker.timers.next();
        let sleep = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // In order, and not by lot: the same events lead to the same steps.
            biased;
            () = worker.timers.changed.notified() => {}
            () = sleep => {
                let (mut now, mut fired) = (worker.tick(), 0);
                while let Some(timer) = worker.timers.take_due(now) {
                    let fire = || match timer {
                        Timer::Rpc(key) => {
                            rpc::deadline(&worker, key, now);
                            1
                        }
                        Timer::Waiting(endpoint) => Pool::expire(&worker, endpoint, now),
                    };
                    // The others' deadlines are to be kept whatever becomes of this one.
                    fired += catch_unwind(AssertUnwindSafe(fire)).unwrap_or_else(|_| {
                        tracing::error!(?timer, "a panic at a deadline");
                        1
                    });
                    // Clients decide how many have the same deadline, and connections are to have their turns between.
                    if fired >= AT_ONCE {
                        tokio::task::yield_now().await;
                        (now, fired) = (worker.tick(), 0);
                    }
                }
            }
        }
    }
}

/// Drops the deadlines of RPCs that have ended, if there are many.
fn clear(worker: &Worker) {
    if worker.timers.has_many_left_behind() {
        let rpcs = worker.rpcs.borrow();
        worker.timers.retain(|timer| match timer {
            Timer::Rpc(key) => rpcs.has(key),
            Timer::Waiting(_) => true,
        });
    }
}

impl Timers {
    /// Adds a deadline.
    pub(crate) fn add(&self, at: Instant, timer: Timer) {
        let mut entries = self.entries.borrow_mut();
        let earliest = entries.peek().is_none_or(|Reverse((first, _))| at < *first);
        entries.push(Reverse((at, timer)));
        if earliest {
            self.changed.notify_one();
        }
    }

    /// An RPC with an entry has ended.
    pub(crate) fn leave_behind(&self) {
        let before = self.has_many_left_behind();
        self.left_behind.set(self.left_behind.get() + 1);
        if !before && self.has_many_left_behind() {
            self.changed.notify_one();
        }
    }

    fn has_many_left_behind(&self) -> bool {
        let left_behind = self.left_behind.get();
        left_behind >= MANY_LEFT_BEHIND && left_behind > self.entries.borrow().len() / 2
    }

    fn retain(&self, mut keep: impl FnMut(Timer) -> bool) {
        let mut entries = self.entries.borrow_mut();
        entries.retain(|Reverse((_, timer))| keep(*timer));
        let kept = entries.len();
        entries.shrink_to(2 * kept);
        self.left_behind.set(0);
    }

    /// Gives back what a burst has left.
    pub(super) fn shrink(&self) {
        let mut entries = self.entries.borrow_mut();
        if let Some(room) = room_to_keep(entries.capacity(), entries.len()) {
            entries.shrink_to(room);
        }
    }

    /// How many there are, those left behind among them.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    fn next(&self) -> Option<Instant> {
        self.entries.borrow().peek().map(|Reverse((at, _))| *at)
    }

    fn take_due(&self, now: Instant) -> Option<Timer> {
        let mut entries = self.entries.borrow_mut();
        if entries.peek()?.0.0 > now {
            return None;
        }
        entries.pop().map(|Reverse((_, timer))| timer)
    }
}

/// What concerns so many RPCs is done in one go: connections have their turns before the next so many.
pub(crate) const AT_ONCE: usize = 100;

/// Fewer entries of RPCs that have ended are no trouble.
const MANY_LEFT_BEHIND: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_many_deadlines_have_taken_is_given_back_when_they_have_come() {
        let timers = Timers::default();
        let (now, soon) = (Instant::now(), Duration::from_secs(1));
        for number in 0..10_000 {
            let at = if number < 3 { now + 2 * soon } else { now };
            timers.add(at, Timer::Waiting(number));
        }
        while timers.take_due(now).is_some() {}
        let room = || timers.entries.borrow().capacity();
        assert!(room() >= 10_000);
        timers.shrink();
        assert!(room() < 100, "{}", room());
        assert_eq!(timers.take_due(now + soon), None);
        assert_eq!(timers.take_due(now + 2 * soon), Some(Timer::Waiting(0)));
        assert_eq!(timers.len(), 2);
    }
}
