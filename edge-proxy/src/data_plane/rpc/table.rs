//! A worker's RPCs by key.
//!
//! Each in memory of its own: an RPC is nearly a KiB, and a table that holds a hundred thousand of them side by side has
//! to be copied whole to grow, and keeps what the worst moment took.

use slab::Slab;

use super::Rpc;
use crate::data_plane::memory::room_to_keep;

/// Names an RPC of this worker: its place in the table, and a generation, so that what is still said of an RPC that
/// has ended never reaches the next one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u32);

/// See the module's head.
#[derive(Default)]
pub(crate) struct Table {
    rpcs: Slab<(Key, Box<Rpc>)>,
    generation: u32,
}

impl Key {
    /// As an engine keeps it.
    pub(crate) fn from_engine(key: u32) -> Self {
        Self(key)
    }

    /// For an engine to keep.
    pub(crate) fn for_engine(self) -> u32 {
        self.0
    }

    fn place(self) -> usize {
        (self.0 & PLACES) as usize
    }
}

impl Table {
    /// Adds an RPC, and tells its client's connection the key.
    ///
    /// # Errors
    /// A million run on this worker: `rpc` comes back.
    pub(super) fn insert(&mut self, rpc: Box<Rpc>) -> Result<Key, Box<Rpc>> {
        let entry = self.rpcs.vacant_entry();
        let place = match u32::try_from(entry.key()) {
            Ok(place) if place < PLACES => place,
            _ => return Err(rpc),
        };
        self.generation = self.generation.wrapping_add(1);
        let key = Key(self.generation << PLACE_BITS | place);
        rpc.client.set_key(key);
        entry.insert((key, rpc));
        Ok(key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Rpc> {
        self.rpcs
            .get_mut(key.place())
            .filter(|(at, _)| *at == key)
            .map(|(_, rpc)| &mut **rpc)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Box<Rpc>> {
        self.get_mut(key)?;
        Some(self.rpcs.remove(key.place()).1)
    }

    /// Whether this RPC runs: told without a look at it, which may be far away.
    pub(crate) fn has(&self, key: Key) -> bool {
        let found = self.rpcs.get(key.place());
        found.is_some_and(|(at, _)| *at == key)
    }

    /// Every RPC that runs.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.keys_where(|_| true)
    }

    /// Calls `look` with every RPC that runs.
    pub(super) fn for_each(&self, mut look: impl FnMut(Key, &Rpc)) {
        for (_, (key, rpc)) in &self.rpcs {
            look(*key, rpc);
        }
    }

    /// The running RPCs for which `matches` holds.
    pub(super) fn keys_where(&self, mut matches: impl FnMut(&Rpc) -> bool) -> Vec<Key> {
        let rpcs = self.rpcs.iter().map(|(_, entry)| entry);
        rpcs.filter(|(_, rpc)| matches(rpc))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Gives back what a burst has left: the places behind the last RPC, which keeps its own. Of the others those in front
    /// are the next to be taken. Generations go on, so that a key from before finds nothing in a place that is there again.
    pub(crate) fn shrink(&mut self) {
        if room_to_keep(self.rpcs.capacity(), self.rpcs.len()).is_some() {
            self.rpcs.shrink_to_fit();
        }
    }

    /// How many run: what tests wait for.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        self.rpcs.len()
    }
}

/// A million places, four thousand generations: a key comes again when its place is taken by the RPC that is a multiple of
/// 4096 RPCs later, and nothing is said of an RPC longer than a turn after its end (but that its deadline has come, which is
/// compared with the RPC's own). The last place isn't given: `u32::MAX` stays free, which is the engine's "no key yet".
const PLACE_BITS: u32 = 20;
const PLACES: u32 = (1 << PLACE_BITS) - 1;

#[cfg(test)]
mod tests {
    use std::{rc::Rc, sync::Arc};

    use http2::Headers;

    use super::*;
    use crate::data_plane::{
        downstream::Downstream,
        rpc::Client,
        testing::{Bench, policy, running},
    };

    #[test]
    fn what_a_burst_has_left_is_given_back_and_its_keys_find_nothing() {
        running(|| async {
            let bench = Bench::new(&[]);
            let worker = &bench.worker;
            let (peer, now) = (([127, 0, 0, 1], 1).into(), worker.now());
            let connection = Downstream::new(worker, peer, Arc::new(policy()), now);
            let connection = Rc::new(connection);
            let add = |_| {
                let (connection, stream) = (connection.clone(), 1);
                let client = Client::Http2 { connection, stream };
                let rpc = Rpc::new(client, Headers::new(), true, now);
                worker.rpcs.borrow_mut().insert(rpc).ok().unwrap()
            };
            let room = || worker.rpcs.borrow().rpcs.capacity();
            let remove = |key: &Key| worker.rpcs.borrow_mut().remove(*key).is_some();

            let keys: Vec<_> = (0..10_000).map(add).collect();
            let (first, last) = (keys[0], keys[9_999]);
            assert!(keys[1..9_999].iter().all(remove));
            worker.give_memory_back();
            assert!(room() >= 10_000, "the last one keeps its place");
            assert!(worker.rpcs.borrow().has(first) && remove(&last));
            worker.give_memory_back();
            assert!(room() < 100, "{}", room());
            assert!(worker.rpcs.borrow().has(first));

            let new: Vec<_> = (0..2000).map(add).collect();
            assert!(new.iter().all(|key| worker.rpcs.borrow().has(*key)));
            assert!(!keys[1..].iter().any(remove));
            assert_eq!(worker.rpcs.borrow().len(), 2001);
            let before = room();
            worker.give_memory_back();
            assert_eq!(room(), before, "half of it is used");
        });
    }
}
