//! Any answers of a name server, and what becomes of a cluster's endpoints: see the module that it calls.

#![no_main]

use edge_proxy::control_plane::exercise_dns_answers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| exercise_dns_answers(input));
