//! Whom a worker's clients are taken for, where they share something: a [`Source`] each, as for `max_connections_per_source`.
//!
//! Each RPC has a stream to a backend for a while. To count these by source would be two look-ups of each RPC; so all
//! connections of a source have one [`Holder`], which counts by endpoint: only where it has streams, and at a few more. Were
//! each endpoint's count kept as long as a connection is open, some thousand sources could make of it what they like.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
};

use super::source::Source;

/// Those that have connections to this worker.
#[derive(Default)]
pub(crate) struct Holders {
    known: Rc<Known>,
}

/// A tree, so that it gives its memory back.
type Known = RefCell<BTreeMap<Source, Weak<Holder>>>;

/// A client, as others share with it.
pub(crate) struct Holder {
    source: Source,
    streams: RefCell<Streams>,
    known: Rc<Known>,
}

/// How many streams a client's RPCs have, by the endpoint's number.
#[derive(Default)]
struct Streams {
    /// Each at the place that its number's last bits say. One of no streams stays until another needs the place: with the
    /// next RPC it would mostly come again.
    few: [(u64, u32); FEW],
    /// Those whose places others have, as long as there are some. A tree, so that it gives its memory back.
    more: BTreeMap<u64, u32>,
}

impl Holders {
    /// The one of this source, which is there as long as anybody has it.
    pub(crate) fn of(&self, source: Source) -> Rc<Holder> {
        let mut known = self.known.borrow_mut();
        let found = known.get(&source).and_then(Weak::upgrade);
        found.unwrap_or_else(|| {
            let holder = Rc::new(Holder {
                source,
                streams: RefCell::default(),
                known: self.known.clone(),
            });
            known.insert(source, Rc::downgrade(&holder));
            holder
        })
    }
}

impl Holder {
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// How many streams it has at the endpoint of this number.
    pub(crate) fn streams(&self, endpoint: u64) -> u32 {
        let streams = self.streams.borrow();
        match streams.few[place(endpoint)] {
            (number, held) if number == endpoint => held,
            _ => streams.more.get(&endpoint).copied().unwrap_or(0),
        }
    }

    /// It has one more there: how many it has now.
    #[inline]
    pub(crate) fn takes(&self, endpoint: u64) -> u32 {
        let mut streams = self.streams.borrow_mut();
        let (number, held) = &mut streams.few[place(endpoint)];
        if *number != endpoint {
            return streams.take_elsewhere(endpoint);
        }
        *held += 1;
        *held
    }

    /// It has one less there: how many it has now.
    #[inline]
    pub(crate) fn leaves(&self, endpoint: u64) -> u32 {
        let mut streams = self.streams.borrow_mut();
        let (number, held) = &mut streams.few[place(endpoint)];
        if *number != endpoint {
            return streams.leave_elsewhere(endpoint);
        }
        *held = held.saturating_sub(1);
        *held
    }
}

impl Streams {
    /// One more of an endpoint that has no place: it takes it, if there is nothing to count there.
    #[cold]
    fn take_elsewhere(&mut self, endpoint: u64) -> u32 {
        let (number, held) = &mut self.few[place(endpoint)];
        if *held == 0 {
            *number = endpoint;
            *held = self.more.remove(&endpoint).unwrap_or(0) + 1;
            return *held;
        }
        let held = self.more.entry(endpoint).or_default();
        *held += 1;
        *held
    }

    /// One less of such an endpoint.
    #[cold]
    fn leave_elsewhere(&mut self, endpoint: u64) -> u32 {
        let Some(held) = self.more.get_mut(&endpoint) else {
            return 0;
        };
        *held -= 1;
        let left = *held;
        if left == 0 {
            self.more.remove(&endpoint);
        }
        left
    }
}

/// Where an endpoint's count is, unless another's is there.
#[inline]
fn place(endpoint: u64) -> usize {
    endpoint as usize % FEW
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.known.borrow_mut().remove(&self.source);
    }
}

/// A client has places for the counts of so many endpoints: most clusters have no more.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_come_from_one_source_are_one_until_the_last_has_left() {
        let holders = Holders::default();
        let of = |last| holders.of([192, 0, 2, last].into());
        let (one, same, other) = (of(1), of(1), of(2));
        assert_eq!((one.takes(3), same.takes(3), same.takes(0)), (1, 2, 1));
        assert_eq!((one.streams(3), one.streams(1), one.streams(9)), (2, 0, 0));
        assert_eq!((other.streams(3), other.leaves(3)), (0, 0));
        drop(one);
        assert_eq!((same.leaves(3), of(1).streams(3)), (1, 1));
        drop((same, other));
        assert!(holders.known.borrow().is_empty(), "nobody is remembered");
        assert_eq!(of(1).streams(3), 0);
    }

    #[test]
    fn what_is_counted_takes_memory_as_long_as_there_are_streams() {
        let one = Holders::default().of([192, 0, 2, 1].into());
        let more = || one.streams.borrow().more.len();
        // One after the other: nothing of the endpoints before is left.
        for endpoint in 0..1000 {
            assert_eq!((one.takes(endpoint), one.leaves(endpoint)), (1, 0));
        }
        assert_eq!(more(), 0);
        // At once, some of them twice, and they end in another order.
        let twice = (0..1000).filter(|endpoint| endpoint % 3 == 0);
        for endpoint in (0..1000).rev().chain(twice.clone()) {
            one.takes(endpoint);
        }
        assert_eq!(more(), 1000 - FEW);
        let held = |endpoint: u64| 1 + u32::from(endpoint.is_multiple_of(3));
        assert!((0..1000).all(|endpoint| one.streams(endpoint) == held(endpoint)));
        for endpoint in 0..1000 {
            assert_eq!(one.leaves(endpoint), held(endpoint) - 1);
        }
        for endpoint in twice {
            assert_eq!((one.streams(endpoint), one.leaves(endpoint)), (1, 0));
        }
        assert!((0..1000).all(|endpoint| one.streams(endpoint) == 0));
        assert_eq!(more(), 0);
    }

    #[test]
    fn an_endpoint_that_gets_a_place_brings_what_is_counted_of_it() {
        let one = Holders::default().of([192, 0, 2, 1].into());
        let (first, other) = (3, 3 + FEW as u64);
        assert_eq!(
            (one.takes(first), one.takes(other), one.leaves(first)),
            (1, 1, 0)
        );
        assert_eq!((one.takes(other), one.takes(first)), (2, 1));
        assert_eq!(
            (one.leaves(other), one.leaves(first), one.leaves(other)),
            (1, 0, 0)
        );
        assert_eq!(
            (one.streams(first), one.streams(other), one.leaves(first)),
            (0, 0, 0)
        );
    }
}
