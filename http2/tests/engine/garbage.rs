//! The fuzz targets' owner on random input: what a stable toolchain can check of them.

use http2::Role;
use rand::{RngExt, SeedableRng, rngs::StdRng};

#[path = "../../fuzz/fuzz_targets/owner/mod.rs"]
mod owner;

#[test]
fn nothing_that_a_peer_or_the_owner_does_panics() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..3000 {
        let len = rng.random_range(0..600);
        // Small bytes are more often a step, a stream or a length that leads somewhere.
        let most = [4, 16, 64, 255][rng.random_range(0..4)];
        let input: Vec<u8> = (0..len).map(|_| rng.random_range(0..=most)).collect();
        owner::run(Role::Server, &input);
        owner::run(Role::Client, &input);
    }
}
