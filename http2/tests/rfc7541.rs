//! The examples of RFC 7541 appendix C: every block decoded, with the table that it leaves behind, and encoded where the
//! RFC's choices are ours too (C.4 byte for byte; our encoder always prefers Huffman coding for what enters the table
//! and keeps `date` and `location` out of it).

#![expect(
    clippy::unwrap_used,
    reason = "what is impossible here should end the test"
)]

use http2::{
    Headers,
    hpack::{Decoder, Encoder},
};

type Fields = &'static [(&'static str, &'static str)];

/// One block of an example: its hexadecimal form, its list, and the table after it, newest first.
struct Block {
    hex: &'static str,
    list: Fields,
    table: Fields,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let pairs = (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16));
    pairs.collect::<Result<_, _>>().unwrap()
}

fn fields(list: Fields) -> Headers {
    list.iter().copied().collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Headers {
    let mut headers = Headers::new();
    let decoded = decoder.decode(block, usize::MAX, &mut headers).unwrap();
    assert_eq!(decoded.list_size, headers.list_size());
    headers
}

/// The table's entries, seen through one-field blocks; an index that has no entry ends it.
fn table(decoder: &mut Decoder) -> Headers {
    let mut all = Headers::new();
    let mut index = 62;
    while decoder
        .decode(&[0x80 | index], usize::MAX, &mut all)
        .is_ok()
    {
        index += 1;
    }
    all
}

fn check(decoder: &mut Decoder, blocks: &[Block]) {
    for block in blocks {
        assert_eq!(
            decode(decoder, &bytes(block.hex)),
            fields(block.list),
            "{}",
            block.hex
        );
        assert_eq!(
            table(decoder),
            fields(block.table),
            "the table after {}",
            block.hex
        );
    }
}

/// A decoder whose table has 256 bytes, as in C.5 and C.6.
fn small() -> Decoder {
    let mut decoder = Decoder::new(4096);
    assert!(decode(&mut decoder, &[0x3f, 0xe1, 0x01]).is_empty());
    decoder
}

/// Encodes the lists one after the other and expects a decoder to read them, with a table of `size`.
fn round_trip(size: usize, blocks: &[Block]) -> Vec<Vec<u8>> {
    let (mut encoder, mut decoder) = (Encoder::new(size), Decoder::new(4096));
    let encode = |block: &Block| {
        let mut out = Vec::new();
        encoder.encode(&fields(block.list), &mut out);
        assert_eq!(decode(&mut decoder, &out), fields(block.list));
        out
    };
    blocks.iter().map(encode).collect()
}

#[test]
fn c_2_1_literal_with_indexing() {
    let custom: Fields = &[("custom-key", "custom-header")];
    let hex = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(
        &mut Decoder::new(4096),
        &[Block {
            hex,
            list: custom,
            table: custom,
        }],
    );
}

#[test]
fn c_2_2_literal_without_indexing() {
    let hex = "040c 2f73 616d 706c 652f 7061 7468";
    let list: Fields = &[(":path", "/sample/path")];
    check(
        &mut Decoder::new(4096),
        &[Block {
            hex,
            list,
            table: &[],
        }],
    );
}

#[test]
fn c_2_3_literal_never_indexed() {
    let hex = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    let list: Fields = &[("password", "secret")];
    let mut decoder = Decoder::new(4096);
    check(
        &mut decoder,
        &[Block {
            hex,
            list,
            table: &[],
        }],
    );

    // An intermediary keeps the form (RFC 7541 §6.2.3), and whoever adds a field can ask for it.
    let mut added = Headers::new();
    added.push_never_indexed(b"password", b"secret");
    for headers in [decode(&mut decoder, &bytes(hex)), added] {
        let mut out = Vec::new();
        Encoder::new(4096).encode(&headers, &mut out);
        assert_eq!(out, bytes(hex));
    }
}

#[test]
fn c_2_4_indexed() {
    let list: Fields = &[(":method", "GET")];
    check(
        &mut Decoder::new(4096),
        &[Block {
            hex: "82",
            list,
            table: &[],
        }],
    );
    let mut out = Vec::new();
    Encoder::new(4096).encode(&fields(list), &mut out);
    assert_eq!(out, [0x82]);
}

#[test]
fn c_3_requests_without_huffman() {
    check(
        &mut Decoder::new(4096),
        &requests([
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ]),
    );
}

#[test]
fn c_4_requests_with_huffman() {
    let blocks = requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]);
    check(&mut Decoder::new(4096), &blocks);
    let encoded = round_trip(4096, &blocks);
    for (block, encoded) in blocks.iter().zip(encoded) {
        assert_eq!(encoded, bytes(block.hex));
    }
}

#[test]
fn c_5_responses_without_huffman() {
    let blocks = responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
         3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970
         7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61
         6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ]);
    check(&mut small(), &blocks);
    round_trip(256, &blocks);
}

#[test]
fn c_6_responses_with_huffman() {
    let blocks = responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
         1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
         e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]);
    check(&mut small(), &blocks);

    // What of our own encoding is in the RFC's form: the size update first, then the two fields that we index too. "307"
    // is no shorter in Huffman coding, so it stays plain.
    let encoded = round_trip(256, &blocks);
    assert!(encoded[0].starts_with(&bytes("3fe1 01 4882 6402 5885 aec3 771a 4b")));
    assert!(encoded[1].starts_with(&bytes("4803 3330 37bf")));
}

fn requests(hex: [&'static str; 3]) -> [Block; 3] {
    let [first, second, third] = hex;
    [
        Block {
            hex: first,
            list: &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "www.example.com"),
            ],
            table: &[(":authority", "www.example.com")],
        },
        Block {
            hex: second,
            list: &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "www.example.com"),
                ("cache-control", "no-cache"),
            ],
            table: &[
                ("cache-control", "no-cache"),
                (":authority", "www.example.com"),
            ],
        },
        Block {
            hex: third,
            list: &[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                (":authority", "www.example.com"),
                ("custom-key", "custom-value"),
            ],
            table: &[
                ("custom-key", "custom-value"),
                ("cache-control", "no-cache"),
                (":authority", "www.example.com"),
            ],
        },
    ]
}

fn responses(hex: [&'static str; 3]) -> [Block; 3] {
    let [first, second, third] = hex;
    [
        Block {
            hex: first,
            list: &[
                (":status", "302"),
                ("cache-control", "private"),
                ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("location", "https://www.example.com"),
            ],
            table: &[
                ("location", "https://www.example.com"),
                ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("cache-control", "private"),
                (":status", "302"),
            ],
        },
        Block {
            hex: second,
            list: &[
                (":status", "307"),
                ("cache-control", "private"),
                ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("location", "https://www.example.com"),
            ],
            table: &[
                (":status", "307"),
                ("location", "https://www.example.com"),
                ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("cache-control", "private"),
            ],
        },
        Block {
            hex: third,
            list: &[
                (":status", "200"),
                ("cache-control", "private"),
                ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
                ("location", "https://www.example.com"),
                ("content-encoding", "gzip"),
                (
                    "set-cookie",
                    "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                ),
            ],
            table: &[
                (
                    "set-cookie",
                    "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                ),
                ("content-encoding", "gzip"),
                ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            ],
        },
    ]
}
