//! What a client may have, and how much it may say at once.

use super::*;
use crate::data_plane::testing::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, at_once, frame, frozen,
};

/// What ended the connection.
async fn goaway(raw: &mut Raw) -> u32 {
    let goaway = raw.next_of(GOAWAY).await;
    u32::from_be_bytes(goaway[13..17].try_into().unwrap())
}

/// A header list of exactly `size` (RFC 9113 §6.5.2), in fields of which each is at most 4 KiB.
fn sized(size: usize) -> Headers {
    let mut headers = testing::grpc("/direct/");
    for number in 0.. {
        let name = format!("x-{number:04}");
        let room = size - headers.list_size();
        if room == 0 {
            return headers;
        }
        let value = (room - 32 - name.len()).min(3000);
        // No rest that is too small for a field.
        let value = if (1..100).contains(&(room - 38 - value)) {
            value - 100
        } else {
            value
        };
        headers.push(name.as_bytes(), &vec![b'!'; value]);
    }
    headers
}

/// `block` in so many frames.
fn in_frames(stream: u32, block: &[u8], frames: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = block.len().div_ceil(frames);
    let parts: Vec<_> = block.chunks(size).collect();
    assert_eq!(parts.len(), frames);
    for (number, part) in parts.into_iter().enumerate() {
        let kind = if number == 0 { HEADERS } else { CONTINUATION };
        let end_stream = if number == 0 { END_STREAM } else { 0 };
        let end_headers = if number + 1 == frames { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, end_stream | end_headers, stream, part));
    }
    bytes
}

#[test]
fn clients_are_told_the_defaults() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (_raw, said) = Raw::open(&bench, testing::policy()).await;
        assert_eq!((said[0][3], said[1][3]), (SETTINGS, WINDOW_UPDATE));
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let settings: Vec<_> = said[0][9..]
            .chunks(6)
            .map(|s| (s[1], number(&s[2..])))
            .collect();
        // The header table, streams, a stream's window, headers (RFC 9113 §6.5.2).
        assert_eq!(settings, [(1, 4096), (3, 100), (4, 65_536), (6, 8192)]);
        assert_eq!(number(&said[1][5..9]), 0);
        assert_eq!(
            65_535 + number(&said[1][9..]),
            1 << 20,
            "the connection's window"
        );
    });
}

#[test]
fn a_header_list_above_8_kib_is_answered_and_one_above_32_kib_ends_its_stream() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        let mut stream = 1;
        for (size, limited) in [(8192, 0), (8193, 1), (32_768, 2)] {
            let block = raw.block(&sized(size));
            raw.send(&in_frames(stream, &block, 3)).await;
            assert_eq!(raw.next_of(HEADERS).await[8], stream as u8);
            assert_eq!(
                bench.shard.limits(Limit::HeaderBytes).get(),
                limited,
                "{size}"
            );
            stream += 2;
        }
        // One field that enters the table and is named ten times more, so that the block itself is small enough.
        let mut block = raw.block(&testing::grpc("/direct/"));
        block.extend([0x40, 1, b'x', 0x7f, 0xb9, 0x16]);
        block.resize(block.len() + 3000, b'!');
        block.extend([0xbe; 10]);
        raw.encoder = http2::hpack::Encoder::new(4096);
        raw.send(&in_frames(stream, &block, 3)).await;
        let reset = raw.next_of(RST_STREAM).await;
        assert_eq!((reset[8], reset[12]), (stream as u8, 0xb));
        assert_eq!(bench.shard.limits(Limit::HeaderBytes).get(), 3);
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&in_frames(stream + 2, &block, 1)).await;
        assert_eq!(
            raw.next_of(HEADERS).await[8],
            stream as u8 + 2,
            "the connection goes on"
        );
    });
}

#[test]
fn a_backend_sees_no_more_than_100_fields_of_a_request() {
    frozen(|| async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (said, mut answer) = (seen.clone(), echo());
        let address = backend(move |engine, event| {
            if let Event::Headers { headers, .. } | Event::Trailers { headers, .. } = &event {
                said.borrow_mut().push(headers.len());
            }
            answer(engine, event);
        });
        let bench = Bench::new(&[address.await]);
        let mut client = Client::connect(&bench).await;
        let mut head = testing::grpc("/api.Echo/Echo");
        while head.len() < 97 {
            head.push(b"x-user", b"1");
        }
        let stream = client.engine.open(head.clone(), true, 0).unwrap();
        assert_eq!(client.status(stream).await, "0");
        assert_eq!(*seen.borrow(), [100]);

        head.push(b"x-user", b"1");
        let stream = client.engine.open(head.clone(), true, 0).unwrap();
        assert_eq!(client.status(stream).await, "8");
        let plain = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/plain/"),
        ];
        let mut plain = testing::headers(&plain);
        plain.push(b":authority", b"a");
        (0..94).for_each(|_| plain.push(b"cookie", b"a=b"));
        let stream = client.engine.open(plain, true, 0).unwrap();
        let (refused, body, _) = client.answer(stream).await;
        assert_eq!(refused.status(), Some(431));
        assert_eq!(body, b"request header fields too large");
        assert_eq!(bench.shard.limits(Limit::HeaderBytes).get(), 2);

        // A server counts them with those of the head.
        head.retain(|field| field.name != b"x-user");
        let ten = head.len();
        for (trailers, got) in [(97 - ten, 97 - ten), (98 - ten, 0)] {
            let stream = client.engine.open(head.clone(), false, 0).unwrap();
            let mut end = Headers::new();
            (0..trailers).for_each(|_| end.push(b"x-sum", b"1"));
            client.engine.send_trailers(stream, &end);
            match got {
                0 => loop {
                    if let Got::Reset(at, reason) = client.next().await {
                        assert_eq!((at, reason), (stream, Reason::ENHANCE_YOUR_CALM));
                        break;
                    }
                },
                _ => assert_eq!(client.status(stream).await, "0"),
            }
        }
        assert_eq!(bench.shard.limits(Limit::HeaderBytes).get(), 3);
        let last = bench.logged().pop().unwrap();
        assert!(last.contains(" grpc_status=- flags=DPE "), "{last}");
        assert_eq!(seen.borrow()[1..3], [ten + 3, 97 - ten]);
        assert!(seen.borrow().len() <= 4, "{seen:?}");
    });
}

#[test]
fn a_7th_frame_of_a_header_block_ends_the_connection() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&in_frames(1, &block, 6)).await;
        assert_eq!(raw.next_of(HEADERS).await[8], 1);
        let block = raw.block(&sized(1000));
        raw.send(&in_frames(3, &block, 7)).await;
        assert_eq!(goaway(&mut raw).await, Reason::ENHANCE_YOUR_CALM.0);
        at_once(|| bench.shard.limits(Limit::HeaderBlock).get() == 1).await;
        assert_eq!(bench.shard.resets(ResetCause::Flood).get(), 1);
    });
}

#[test]
fn cancels_that_a_backend_does_not_know_of_count_as_streams() {
    frozen(|| async {
        // It reads, and answers nothing: not even the SETTINGS that resets wait for.
        let heads = Rc::new(Cell::new(0));
        let count = heads.clone();
        let deaf = testing::backend_behind(
            move |frame| {
                count.set(count.get() + u32::from(frame[3] == HEADERS));
                !testing::is_barrier(frame)
            },
            |_, _| {},
        );
        let bench = Bench::new(&[deaf.await]);
        let mut policy = testing::policy();
        policy.http2.max_concurrent_streams = 12;
        let (mut raw, _) = Raw::open(&bench, policy).await;
        let mut refused = Vec::new();
        for number in 0..30u32 {
            let stream = 2 * number + 1;
            let block = raw.block(&testing::grpc("/api.Echo/Echo"));
            raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
            at_once(|| {
                let clients = bench.worker.clients.borrow();
                let Some(ClientConnection::Http2(client)) = clients.values().next() else {
                    return false;
                };
                client.rpcs.get() == 1
                    || bench.shard.limits(Limit::Streams).get() as usize > refused.len()
            })
            .await;
            if bench.shard.limits(Limit::Streams).get() as usize > refused.len() {
                let reset = raw.next_of(RST_STREAM).await;
                assert_eq!(
                    reset[5..],
                    [&stream.to_be_bytes()[..], &[0, 0, 0, 7]].concat()
                );
                refused.push(number);
                continue;
            }
            // Its HEADERS leave before it is reset.
            at_once(|| heads.get() + refused.len() as u32 == number + 1).await;
            raw.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
            at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        }
        // So many resets may be under way, and twelve streams wait for theirs.
        let taken = http2::UNCONFIRMED as u32 + 12;
        assert_eq!(refused, (taken..30).collect::<Vec<_>>());
    });
}

#[test]
fn an_encoded_header_block_above_32_kib_ends_the_connection() {
    for (size, ends) in [(32_768, false), (32_769, true)] {
        frozen(|| async {
            let bench = Bench::new(&[]);
            let (mut raw, _) = Raw::open(&bench, testing::policy()).await;
            let mut block = raw.block(&testing::grpc("/direct/"));
            // A literal of raw octets, its name one octet, its value's length in three.
            let value = size - block.len() - 3 - 4;
            block.extend([0, 1, b'x', 0x7f]);
            let mut rest = value - 127;
            while rest >= 128 {
                block.push(rest as u8 | 128);
                rest >>= 7;
            }
            block.push(rest as u8);
            block.resize(size, b'!');
            raw.send(&in_frames(1, &block, 3)).await;
            if ends {
                assert_eq!(goaway(&mut raw).await, Reason::ENHANCE_YOUR_CALM.0);
                at_once(|| bench.shard.limits(Limit::HeaderBlock).get() == 1).await;
            } else {
                // Its list is above 32 KiB too, which only ends the stream.
                assert_eq!(raw.next_of(RST_STREAM).await[8], 1);
                assert_eq!(bench.shard.limits(Limit::HeaderBlock).get(), 0);
            }
        });
    }
}
