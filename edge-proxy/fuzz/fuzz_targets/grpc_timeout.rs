//! Any bytes as `grpc-timeout`: read only what the grammar allows, and never pass on more than was given.

#![no_main]

use edge_proxy::data_plane::filters::timeout::{format, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let in_grammar = (2..=9).contains(&input.len())
        && input[..input.len() - 1].iter().all(u8::is_ascii_digit)
        && b"HMSmun".contains(&input[input.len() - 1]);
    let read = parse(input);
    assert_eq!(read.is_some(), in_grammar);
    if let Some(time) = read {
        let written = format(time);
        let again = parse(written.as_bytes()).expect("what we write is in the grammar");
        assert!(again <= time || (time.is_zero() && written.as_bytes() == b"1n"));
    }
});
