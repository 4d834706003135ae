//! Blocks from the wire: nothing panics, what is kept stays within its limit, and what was read is encoded to a block that
//! reads the same.
//!
//! The input is a sequence of blocks, each behind its length in one byte, to one decoder.

#![no_main]

use http2::{
    Headers,
    headers::Kind,
    hpack::{Decoder, Encoder},
};
use libfuzzer_sys::fuzz_target;

const KEEP: usize = 8192;
/// The one method and the one content type that are kept beyond it.
const BEYOND: usize = 2 * (128 + 32);

fuzz_target!(|input: &[u8]| {
    let (mut decoder, mut encoder, mut reader) =
        (Decoder::new(4096), Encoder::new(4096), Decoder::new(4096));
    let (mut headers, mut again) = (Headers::new(), Headers::new());
    let mut rest = input;
    while let Some((&len, tail)) = rest.split_first() {
        let (block, tail) = tail.split_at(usize::from(len).min(tail.len()));
        rest = tail;
        headers.clear();
        let Ok(decoded) = decoder.decode(block, KEEP, &mut headers) else {
            return;
        };
        let size: usize = headers
            .iter()
            .map(|f| f.name.len() + f.value.len() + 32)
            .sum();
        assert_eq!(headers.list_size(), size);
        assert!(size <= KEEP + BEYOND && size <= decoded.list_size);

        let mut encoded = Vec::new();
        encoder.encode(&headers, &mut encoded);
        again.clear();
        let read = reader
            .decode(&encoded, usize::MAX, &mut again)
            .expect("our own encoding");
        assert_eq!(read.list_size, size);
        assert!(headers == again);
        for kind in [Kind::Request, Kind::Response, Kind::Trailers] {
            assert_eq!(headers.validate(kind), again.validate(kind));
        }
        headers.retain(|f| f.name.len() % 2 == 0);
        headers.set(b"x-a", block);
        assert_eq!(headers.get(b"x-a"), Some(block));
    }
});
