//! A worker's RPCs by key.

use slab::Slab;

use super::Rpc;

/// Names an RPC of this worker: its place in the table, and a generation, so that what is still said of an RPC that
/// has ended never reaches the next one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u32);

/// See the module's head.
#[derive(Default)]
pub(crate) struct Table {
    rpcs: Slab<(Key, Rpc)>,
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
    /// Adds an RPC; `None` if a million run on this worker.
    pub(super) fn insert(&mut self, rpc: Rpc) -> Option<Key> {
        let entry = self.rpcs.vacant_entry();
        let place = u32::try_from(entry.key())
            .ok()
            .filter(|place| *place < PLACES)?;
        self.generation = self.generation.wrapping_add(1);
        let key = Key(self.generation << PLACE_BITS | place);
        entry.insert((key, rpc));
        Some(key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Rpc> {
        self.rpcs
            .get_mut(key.place())
            .filter(|(at, _)| *at == key)
            .map(|(_, rpc)| rpc)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Rpc> {
        self.get_mut(key)?;
        Some(self.rpcs.remove(key.place()).1)
    }

    /// Every RPC that runs.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.rpcs.iter().map(|(_, (key, _))| *key).collect()
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.rpcs.len()
    }
}

/// A million places, four thousand generations: a key comes again after 4096 RPCs in one place, and nothing is said of
/// an RPC longer than a turn after its end.
const PLACE_BITS: u32 = 20;
const PLACES: u32 = (1 << PLACE_BITS) - 1;
