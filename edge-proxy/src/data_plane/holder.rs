//! Whom a worker's clients are taken for, where they share something: a [`Source`] each, as for `max_connections_per_source`.
//!
//! Each RPC has a stream to a backend for a while. To count these by source would be two look-ups of each RPC; so all
//! connections of a source have one [`Holder`], and endpoints have small numbers, by which it counts.

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
    /// How many streams its RPCs have, by the endpoint's number.
    streams: RefCell<Vec<u32>>,
    known: Rc<Known>,
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
    pub(crate) fn streams(&self, endpoint: usize) -> u32 {
        self.streams.borrow().get(endpoint).copied().unwrap_or(0)
    }

    /// It has one more there: how many it has now.
    #[inline]
    pub(crate) fn takes(&self, endpoint: usize) -> u32 {
        let mut streams = self.streams.borrow_mut();
        if endpoint >= streams.len() {
            streams.resize(endpoint + 1, 0);
        }
        streams[endpoint] += 1;
        streams[endpoint]
    }

    /// It has one less there: how many it has now.
    #[inline]
    pub(crate) fn leaves(&self, endpoint: usize) -> u32 {
        let mut streams = self.streams.borrow_mut();
        let Some(held) = streams.get_mut(endpoint) else {
            return 0;
        };
        *held = held.saturating_sub(1);
        *held
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.known.borrow_mut().remove(&self.source);
    }
}

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
}
