//! Arbitrary bytes from a client, with arbitrary calls of the owner in between: nothing panics, and the accounts stay whole.

#![no_main]

mod owner;

use http2::Role;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| owner::run(Role::Server, input));
