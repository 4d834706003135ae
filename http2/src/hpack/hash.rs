//! The hash by which the encoder finds a field in its table.
//!
//! A field's hash goes from one connection's decoder to another's encoder, so all of a process have the same seed. It is
//! drawn when the first connection comes: were it fixed, anybody could compute fields of one hash beforehand, each of
//! which walks past all the others in a backend's table. The table of `foldhash`'s constants is drawn too, since there
//! are fields that collide whatever the seed beside it is: eight octets that cancel one of the constants make a product
//! of nought.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::OnceLock,
};

use foldhash::{SharedSeed, fast::FoldHasher};

/// See the module. The encoder, which hashes with every message, holds it and needn't ask whether it has been drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldHash(&'static Seed);

#[derive(Debug)]
struct Seed {
    start: u64,
    shared: SharedSeed,
}

impl FieldHash {
    /// The process's.
    pub(super) fn get() -> Self {
        static SEED: OnceLock<Seed> = OnceLock::new();
        Self(SEED.get_or_init(|| {
            // A test sees the same each time: which fields enter a full table depends on it.
            if cfg!(test) {
                Seed::new(1, 2)
            } else {
                let random = RandomState::new();
                Seed::new(random.hash_one(0), random.hash_one(1))
            }
        }))
    }

    /// The hash of a name, or of name and value in one piece; never 0, which stands for "not computed".
    #[inline]
    pub(super) fn of(self, line: &[u8]) -> u32 {
        let mut hasher = FoldHasher::with_seed(self.0.start, &self.0.shared);
        hasher.write(line);
        let hash = hasher.finish();
        ((hash >> 32) as u32 ^ hash as u32).max(1)
    }
}

impl Seed {
    fn new(start: u64, shared: u64) -> Self {
        Self {
            start,
            shared: SharedSeed::from_u64(shared),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// By the fixed constants of `foldhash` all fields that end in the octets of one of them have one hash.
    #[test]
    fn fields_that_collide_are_not_known_beforehand() {
        let lines: Vec<_> = (0..1000u64)
            .map(|n| [n.to_ne_bytes(), CANCELS.to_ne_bytes()].concat())
            .collect();
        let fixed = Seed {
            start: 7,
            shared: SharedSeed::global_fixed().clone(),
        };
        let hashes = |seed: Seed| {
            let hash = FieldHash(Box::leak(Box::new(seed)));
            lines
                .iter()
                .map(|line| hash.of(line))
                .collect::<HashSet<_>>()
        };
        assert_eq!(hashes(fixed).len(), 1);
        let (one, other) = (hashes(Seed::new(1, 2)), hashes(Seed::new(3, 4)));
        assert!(one.len() > 990 && other.len() > 990);
        assert!(one.intersection(&other).count() < 10);
        assert_eq!(FieldHash::get().of(b"a"), FieldHash::get().of(b"a"));
    }

    /// `foldhash::ARBITRARY7`, which isn't public: where a later version has another, the first check says so.
    const CANCELS: u64 = 0x3f84d5b5b5470917;
}
