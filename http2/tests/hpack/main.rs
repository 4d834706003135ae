//! HPACK by random input: our two halves against each other, the decoder against a model that follows the RFC word by
//! word, and both against the crate `h2` over an in-memory connection.

#![expect(
    clippy::unwrap_used,
    reason = "what is impossible here should end the test"
)]

mod halves;

mod model;

mod edits;

mod crate_h2;

use http2::{Headers, hpack::Encoder};
use proptest::{collection::vec, prelude::*};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn pairs(headers: &Headers) -> Pairs {
    headers
        .iter()
        .map(|f| (f.name.to_vec(), f.value.to_vec()))
        .collect()
}

fn encode(encoder: &mut Encoder, headers: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(headers, &mut block);
    block
}

/// Names and values that repeat, so that tables are hit and overflow, and some that don't.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let names = prop::sample::select(vec![
        ":method",
        ":path",
        ":status",
        "te",
        "cookie",
        "authorization",
        "grpc-timeout",
        "content-type",
        "x-a",
        "x-b",
        "x-c",
        "x-d-bin",
        "user-agent",
        "x-request-id",
        "grpc-status",
        "date",
    ]);
    let values = prop::sample::select(vec![
        "",
        "GET",
        "POST",
        "/",
        "/api.Echo/Echo",
        "200",
        "trailers",
        "application/grpc",
        "0",
        "a",
        "b",
        "c",
    ]);
    prop_oneof![
        8 => (names.clone(), values).prop_map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())),
        2 => (names, vec(any::<u8>(), 0..600)).prop_map(|(n, v)| (n.as_bytes().to_vec(), v)),
        1 => (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)),
    ]
}
