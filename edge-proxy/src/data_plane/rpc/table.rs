//! A worker's RPCs by key.
//!
//! Each in memory of its own: an RPC is nearly a KiB, and a table that holds a hundred thousand of them side by side has
//! to be copied whole to grow, and keeps what the worst moment took.

use slab::Slab;

use super::Rpc;

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

    /// The RPCs that run and are so.
    pub(super) fn keys_where(&self, mut is_so: impl FnMut(&Rpc) -> bool) -> Vec<Key> {
        let rpcs = self.rpcs.iter().map(|(_, entry)| entry);
        rpcs.filter(|(_, rpc)| is_so(rpc))
            .map(|(key, _)| *key)
            .collect()
    }

    /// How many run: what tests wait for.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        self.rpcs.len()
    }
}

/// A million places, four thousand generations: a key comes again after 4096 RPCs in one place, and nothing is said of
/// an RPC longer than a turn after its end (but that its deadline has come, which is compared with the RPC's own).
const PLACE_BITS: u32 = 20;
const PLACES: u32 = (1 << PLACE_BITS) - 1;
