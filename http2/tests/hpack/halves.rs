//! Our encoder against our decoder, and the decoder against bytes of any kind.

use http2::{
    Headers,
    headers::Kind,
    hpack::{Decoder, Encoder},
};
use proptest::{collection::vec, prelude::*};

use super::{Pairs, encode, field, pairs};

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(turns in turns(), cap in prop::sample::select(vec![0, 200, 1000, 4096, 9000])) {
        let (mut encoder, mut decoder) = (Encoder::new(cap), Decoder::new(9000));
        let mut relayed = (Encoder::new(cap), Decoder::new(9000));
        for turn in turns {
            match turn {
                Turn::Resize(size) => {
                    encoder.set_peer_max(size);
                    relayed.0.set_peer_max(size);
                }
                Turn::Block(fields) => {
                    let headers: Headers = fields.iter().map(|(n, v)| (n, v)).collect();
                    let mut read = Headers::new();
                    let block = encode(&mut encoder, &headers);
                    let decoded = decoder.decode(&block, usize::MAX, &mut read).unwrap();
                    prop_assert_eq!(pairs(&read), fields.clone());
                    prop_assert_eq!(decoded.list_size, headers.list_size());
                    for kind in [Kind::Request, Kind::Response, Kind::Trailers] {
                        prop_assert_eq!(read.validate(kind), headers.validate(kind));
                    }

                    // As a proxy does it: what one connection brought goes out on another.
                    let mut again = Headers::new();
                    let block = encode(&mut relayed.0, &read);
                    relayed.1.decode(&block, usize::MAX, &mut again).unwrap();
                    prop_assert_eq!(pairs(&again), fields);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(blocks in vec(vec(any::<u8>(), 0..200), 1..8), keep in 0..500usize) {
        let mut decoder = Decoder::new(4096);
        let mut headers = Headers::new();
        for block in blocks {
            headers.clear();
            let result = decoder.decode(&block, keep, &mut headers);
            // The one method and the one content type that may stand beyond.
            prop_assert!(headers.list_size() <= keep + 2 * (128 + 32));
            let sum: usize = headers.iter().map(|f| f.name.len() + f.value.len() + 32).sum();
            prop_assert_eq!(headers.list_size(), sum);
            let _ = headers.validate(Kind::Request);
            match result {
                Ok(decoded) => prop_assert!(decoded.list_size >= sum),
                Err(_) => break,
            }
        }
    }
}

/// What happens to a connection's encoder.
#[derive(Clone, Debug)]
enum Turn {
    Block(Pairs),
    /// The peer announces another table size.
    Resize(usize),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        9 => vec(field(), 0..12).prop_map(Turn::Block),
        1 => prop::sample::select(vec![0, 40, 100, 300, 1000, 4096, 9000]).prop_map(Turn::Resize),
    ];
    vec(turn, 0..40)
}
