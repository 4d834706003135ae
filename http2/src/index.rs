//! From a hash to the number of an entry: the encoder's way to a field in its dynamic table, and a stream id's to its
//! place in the slab.
//!
//! Open addressing with linear probing; an entry's removal moves later ones back, so nothing but entries takes room.
//! It grows with the table that it indexes and is at most half full; at rest it allocates nothing. A hash is used as it
//! is, its low bits first.

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// A power of two of slots, or none at all.
    slots: Vec<Slot>,
    len: usize,
}

/// `hash` 0 is an empty slot; no hash is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    hash: u32,
    number: u32,
}

impl Index {
    /// The entry with this hash that is the one wanted.
    #[inline]
    pub(crate) fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.hash == 0 {
                return None;
            }
            if slot.hash == hash && is(slot.number) {
                return Some(slot.number);
            }
            at = (at + 1) & mask;
        }
    }

    pub(crate) fn insert(&mut self, hash: u32, number: u32) {
        if (self.len + 1) * 2 > self.slots.len() {
            self.resize((self.slots.len() * 2).max(SMALLEST));
        }
        self.put(Slot { hash, number });
        self.len += 1;
    }

    /// Removes an entry, if it is there.
    pub(crate) fn remove(&mut self, hash: u32, number: u32) {
        let Some(mask) = self.slots.len().checked_sub(1) else {
            return;
        };
        let mut hole = hash as usize & mask;
        while self.slots[hole] != (Slot { hash, number }) {
            if self.slots[hole].hash == 0 {
                return;
            }
            hole = (hole + 1) & mask;
        }
        self.len -= 1;
        // Who stands behind the hole and would be looked for from the hole or before it moves into it.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.hash == 0 {
                break;
            }
            let home = slot.hash as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = Slot::default();
    }

    /// Gives back the room that the entries don't need.
    pub(crate) fn shrink(&mut self) {
        let slots = match self.len {
            0 => 0,
            len => (2 * len).next_power_of_two().max(SMALLEST),
        };
        if slots < self.slots.len() {
            self.resize(slots);
        }
    }

    /// To a power of two of slots, or to none if there is no entry.
    fn resize(&mut self, slots: usize) {
        let slots = vec![Slot::default(); slots];
        for slot in std::mem::replace(&mut self.slots, slots) {
            if slot.hash != 0 {
                self.put(slot);
            }
        }
    }

    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.hash as usize & mask;
        while self.slots[at].hash != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }
}

const SMALLEST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_list_holds() {
        let mut index = Index::default();
        let mut list = Vec::new();
        assert_eq!(index.find(7, |_| true), None);
        for number in 0..20_000u32 {
            // Few hashes, close together, so that runs are long and wrap.
            let hash = number.wrapping_mul(2_654_435_761) % 97 + 1;
            index.insert(hash, number);
            list.push((hash, number));
            if list.len() > 100 {
                let (hash, number) = list.remove(number as usize % 60);
                index.remove(hash, number);
                assert_eq!(index.find(hash, |n| n == number), None);
                index.remove(hash, number);
            }
            if number % 50 == 0 {
                for &(hash, number) in &list {
                    assert_eq!(index.find(hash, |n| n == number), Some(number));
                }
            }
        }
        assert_eq!(index.slots.len(), 256);
        assert_eq!(index.len, 100);
        for (hash, number) in list.drain(3..) {
            index.remove(hash, number);
        }
        index.shrink();
        assert_eq!(index.slots.len(), SMALLEST);
        for (hash, number) in list {
            assert_eq!(index.find(hash, |n| n == number), Some(number));
            index.remove(hash, number);
        }
        index.shrink();
        assert_eq!(index.slots.capacity(), 0);
    }
}
