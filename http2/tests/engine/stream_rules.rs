//! Rules whose breach ends one stream, and what is allowed (RFC 9113 §5.1, §8).

use http2::{Config, Limit, Reason, Refusal};

use crate::support::*;

#[test]
fn a_request_with_body_and_trailers() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.engine.set_key(1, 9);
    assert_eq!(
        s.one(&data(1, b"abc", false)),
        Got::Data(1, 9, b"abc".to_vec(), false)
    );
    assert!(!s.engine.peer_closed(1));
    let t = s.headers(1, &trailers(), true);
    assert_eq!(s.one(&t), Got::Trailers(1, 9, fields(&trailers())));
    assert!(s.engine.peer_closed(1) && s.engine.stream_count() == 1);
    s.engine.send_headers(1, &response(), true);
    assert!(s.engine.is_empty());
}

#[test]
fn a_response_after_informational_ones() {
    let mut s = Script::client(Config::default());
    s.opened(4, true);
    for status in ["100", "103"] {
        let head = list(&[(":status", status)]);
        let bytes = s.headers(1, &head, false);
        assert_eq!(s.one(&bytes), Got::Headers(1, 4, fields(&head), false));
    }
    let head = s.headers(1, &response(), false);
    assert!(matches!(s.one(&head), Got::Headers(1, 4, _, false)));
    assert_eq!(s.one(&data(1, b"", true)), Got::Data(1, 4, vec![], true));
    assert!(s.engine.is_empty());
}

#[test]
fn an_informational_response_cannot_end_the_stream() {
    let mut s = Script::client(Config::default());
    s.opened(4, true);
    let bytes = s.headers(1, &list(&[(":status", "103")]), true);
    let got = s.breaks(&bytes, 1, Reason::PROTOCOL_ERROR);
    assert!(matches!(got[..], [Got::Malformed(1, 4, _)]));
}

#[test]
fn data_before_the_response_head_is_an_error_of_the_stream() {
    let mut s = Script::client(Config::default());
    s.opened(4, true);
    let got = s.breaks(&data(1, b"abc", false), 1, Reason::PROTOCOL_ERROR);
    assert!(matches!(
        got[..],
        [Got::Reset {
            key: 4,
            by_peer: false,
            ..
        }]
    ));
}

#[test]
fn trailers_end_the_stream() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    let t = s.headers(1, &trailers(), false);
    let got = s.breaks(&t, 1, Reason::PROTOCOL_ERROR);
    assert!(matches!(got[..], [Got::Malformed(1, _, _)]));
}

#[test]
fn malformed_messages_are_errors_of_their_stream() {
    for bad in [
        list(&[(":method", "GET"), (":scheme", "http")]),
        list(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            ("Upper", "1"),
        ]),
        list(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            ("connection", "close"),
        ]),
        list(&[
            (":method", "GET"),
            (":scheme", "http"),
            ("a", "b"),
            (":path", "/"),
        ]),
        list(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            ("te", "gzip"),
        ]),
    ] {
        let mut s = Script::server(Config::default());
        let bytes = s.headers(1, &bad, true);
        let got = s.breaks(&bytes, 1, Reason::PROTOCOL_ERROR);
        assert!(
            matches!(&got[..], [Got::Refused(1, head, Refusal::Malformed(_))] if *head == fields(&bad)),
            "{got:?}"
        );
        assert!(s.engine.is_empty());
        s.requested(3, true);
    }
    let mut s = Script::client(Config::default());
    s.opened(4, true);
    let bytes = s.headers(1, &list(&[("a", "b")]), false);
    let got = s.breaks(&bytes, 1, Reason::PROTOCOL_ERROR);
    assert!(matches!(got[..], [Got::Malformed(1, 4, _)]), "{got:?}");
}

#[test]
fn pseudo_fields_in_trailers_are_malformed() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    let t = s.headers(1, &list(&[(":path", "/")]), true);
    s.breaks(&t, 1, Reason::PROTOCOL_ERROR);
}

fn sized(length: &str) -> http2::Headers {
    let mut head = request();
    head.push(b"content-length", length.as_bytes());
    head
}

#[test]
fn content_length_and_data_agree() {
    type Rest = fn(&mut Script) -> Vec<u8>;
    let too_much: Rest = |_| data(1, b"12345", false);
    let too_little: Rest = |_| data(1, b"123", true);
    let short_with_trailers: Rest = |s| {
        let t = s.headers(1, &trailers(), true);
        [data(1, b"123", false), t].concat()
    };
    for rest in [too_much, too_little, short_with_trailers] {
        let mut s = Script::server(Config::default());
        let head = s.headers(1, &sized("4"), false);
        s.one(&head);
        let rest = rest(&mut s);
        let got = s.breaks(&rest, 1, Reason::PROTOCOL_ERROR);
        assert!(
            matches!(got.last(), Some(Got::Malformed(1, _, _))),
            "{got:?}"
        );
    }
    let mut s = Script::server(Config::default());
    let head = s.headers(1, &sized("4"), true);
    s.breaks(&head, 1, Reason::PROTOCOL_ERROR);

    let mut s = Script::server(Config::default());
    let head = s.headers(1, &sized("4"), false);
    s.one(&head);
    let all = s.feed(&[frame(DATA, PADDED, 1, b"\x02ab\0\0"), data(1, b"cd", true)].concat());
    assert_eq!(all.unwrap().len(), 2, "padding isn't content");
}

#[test]
fn a_response_without_content_may_announce_a_length() {
    let head = list(&[(":status", "304"), ("content-length", "1000")]);
    let mut s = Script::client(Config::default());
    s.opened(4, true);
    let bytes = s.headers(1, &head, true);
    assert!(matches!(s.one(&bytes), Got::Headers(1, 4, _, true)));
    s.opened(5, true);
    let bytes = [s.headers(3, &head, false), data(3, b"", true)].concat();
    assert_eq!(s.feed(&bytes).unwrap().len(), 2);
    s.opened(6, true);
    let bytes = [s.headers(5, &head, false), data(5, b"x", true)].concat();
    s.breaks(&bytes, 5, Reason::PROTOCOL_ERROR);
}

#[test]
fn a_stream_that_depends_on_itself_is_reset() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.breaks(
        &frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]),
        1,
        Reason::PROTOCOL_ERROR,
    );
    let head = s.headers(3, &request(), true);
    let bad = frame(
        HEADERS,
        END_HEADERS | PRIO,
        3,
        &[&[0x80, 0, 0, 3, 7], &head[9..]].concat(),
    );
    s.breaks(&bad, 3, Reason::PROTOCOL_ERROR);
    let head = s.headers(5, &request(), true);
    let fine = frame(
        HEADERS,
        END_HEADERS | PRIO,
        5,
        &[&[0, 0, 0, 3, 7], &head[9..]].concat(),
    );
    assert!(
        matches!(s.one(&fine), Got::Headers(5, ..)),
        "the block was decoded all the same"
    );
}

#[test]
fn priority_is_checked_and_ignored() {
    let mut s = Script::server(Config::default());
    s.quiet(&frame(PRIORITY, 0, 9, &[0, 0, 0, 3, 7]));
    s.requested(1, false);
    s.quiet(&frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]));
    s.breaks(&frame(PRIORITY, 0, 1, &[0; 4]), 1, Reason::FRAME_SIZE_ERROR);
    s.quiet(&frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]));
    assert!(s.sent().is_empty());
}

#[test]
fn frames_after_the_peer_s_end_of_stream() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    let got = s.breaks(&data(1, b"x", false), 1, Reason::STREAM_CLOSED);
    assert!(matches!(got[..], [Got::Reset { by_peer: false, .. }]));
    s.requested(3, true);
    let again = s.headers(3, &request(), true);
    s.breaks(&again, 3, Reason::STREAM_CLOSED);
}

#[test]
fn frames_after_the_peer_s_reset() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    assert!(matches!(
        s.one(&rst(1, 8)),
        Got::Reset {
            stream: 1,
            by_peer: true,
            ..
        }
    ));
    s.breaks(&data(1, b"x", false), 1, Reason::STREAM_CLOSED);
    s.requested(3, false);
    s.one(&rst(3, 8));
    let again = s.headers(3, &request(), true);
    s.breaks(&again, 3, Reason::STREAM_CLOSED);
    s.quiet(
        &[
            window(1, 5),
            rst(3, 8),
            window(3, 0),
            frame(PRIORITY, 0, 1, &[0; 5]),
        ]
        .concat(),
    );
}

#[test]
fn frames_after_both_ends() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), true);
    s.sent();
    s.quiet(&[window(1, 5), rst(1, 8), frame(PRIORITY, 0, 1, &[0; 5])].concat());
    s.breaks(&data(1, b"x", false), 1, Reason::STREAM_CLOSED);

    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), true);
    s.sent();
    let again = s.headers(1, &request(), true);
    s.dies(&again, Reason::STREAM_CLOSED);
}

#[test]
fn frames_that_come_late_for_a_stream_that_we_reset_are_dropped() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.engine.reset(1, Reason::CANCEL);
    assert_eq!(frames(&rst(1, 8)), s.sent());
    let t = s.headers(1, &trailers(), true);
    s.quiet(&[data(1, &[7; 1000], false), window(1, 7), t, rst(1, 8)].concat());
    assert!(s.sent().is_empty());
    // The table kept in step.
    s.requested(3, true);
}

#[test]
fn streams_long_gone_are_treated_as_reset_by_us() {
    let mut s = Script::server(Config::default());
    for i in 0..300 {
        s.requested(2 * i + 1, false);
        s.one(&rst(2 * i + 1, 8));
        s.pass(std::time::Duration::from_secs(1));
    }
    s.quiet(&data(1, b"x", false));
    assert!(s.sent().is_empty());
}

#[test]
fn streams_above_the_limit_are_refused_and_their_blocks_decoded() {
    let mut s = Script::server(Config {
        max_concurrent_streams: 2,
        ..Config::default()
    });
    s.requested(1, true);
    s.requested(3, true);
    let third = s.headers(5, &sized("7"), true);
    let told = Got::Refused(5, fields(&sized("7")), Refusal::TooManyStreams);
    assert_eq!(s.breaks(&third, 5, Reason::REFUSED_STREAM), [told]);
    s.engine.send_headers(1, &response(), true);
    let mut again = sized("7");
    again.set(b"content-length", b"0");
    let fourth = s.headers(7, &again, true);
    assert!(matches!(s.one(&fourth), Got::Headers(7, _, f, _) if f == fields(&again)));
}

#[test]
fn header_lists_too_large_are_told_and_the_stream_stays_for_an_answer() {
    let mut s = Script::server(Config::default());
    let mut head = request();
    // Before `content-type`, as tonic and grpc-js have it.
    head.remove(b"content-type");
    head.push(b"x-large", &[b'a'; 9000]);
    head.push(b"content-type", b"application/grpc");
    let bytes = s.headers(1, &head, false);
    assert_eq!(s.one(&bytes), Got::TooLarge(1, u32::MAX, false));
    let kept = s.engine.take_large_head(1).unwrap();
    assert_eq!(kept.get(b"content-type"), Some(&b"application/grpc"[..]));
    let t = s.headers(1, &trailers(), true);
    for _ in 0..10 {
        s.quiet(&data(1, &[0; 10_000], false));
        s.sent();
    }
    s.quiet(&t);
    assert!(s.engine.peer_closed(1));
    s.engine.send_headers(1, &list(&[(":status", "431")]), true);
    assert_eq!(s.sent().len(), 1);
    assert!(s.engine.is_empty());
}

#[test]
fn requests_of_too_many_fields_are_as_those_too_large() {
    let mut s = Script::server(Config {
        max_header_fields: 7,
        ..Config::default()
    });
    let mut head = request();
    s.requested(1, false);
    let few = s.headers(1, &trailers(), true);
    assert!(matches!(s.one(&few), Got::Trailers(1, ..)));
    s.requested(3, false);
    let many = s.headers(3, &list(&[("a", "1"), ("a", "2")]), true);
    s.breaks(&many, 3, Reason::ENHANCE_YOUR_CALM);
    head.push(b"a", b"");
    let bytes = s.headers(5, &head, false);
    assert!(matches!(s.one(&bytes), Got::Headers(5, ..)));
    let trailers = s.headers(5, &trailers(), true);
    s.breaks(&trailers, 5, Reason::ENHANCE_YOUR_CALM);
    head.push(b"a", b"");
    let bytes = s.headers(7, &head, true);
    assert_eq!(s.one(&bytes), Got::TooLarge(7, u32::MAX, true));
    let kept = s.engine.take_large_head(7).unwrap();
    assert_eq!(kept.get(b"content-type"), Some(&b"application/grpc"[..]));
}

#[test]
fn header_lists_far_too_large_end_the_stream() {
    let mut s = Script::server(Config::default());
    let mut head = request();
    for _ in 0..1000 {
        head.push(b"x", b"y");
    }
    let bytes = s.headers(1, &head, true);
    let got = s.breaks(&bytes, 1, Reason::ENHANCE_YOUR_CALM);
    assert!(
        matches!(&got[..], [Got::Refused(1, head, Refusal::HeadersTooLarge)] if head[..4] == fields(&request())[..4]),
        "{got:?}"
    );
    s.requested(3, true);
}

/// A literal of a name of 4064 octets, which fills the table, and as many that take their name from it and fill it anew:
/// each is 4096 octets of the list, and two of the block.
fn unfolding(fields: usize) -> Vec<u8> {
    let mut block = vec![0x40, 0x7f, 0xe1, 0x1e];
    block.extend([b'n'; 4064]);
    block.push(0);
    block.extend([0x7e, 0x00].repeat(fields - 1));
    block
}

#[test]
fn header_lists_beyond_all_measure_end_the_connection() {
    let head = |stream, fields| frame(HEADERS, END_HEADERS, stream, &unfolding(fields));
    let dies = |mut s: Script, bytes: &[u8]| {
        s.dies(bytes, Reason::ENHANCE_YOUR_CALM);
        assert_eq!(s.feed(&[]).unwrap_err().limit, Some(Limit::HeaderBlock));
    };
    // 128 KiB is four times what ends a stream.
    let mut s = Script::server(Config::default());
    s.breaks(&head(1, 32), 1, Reason::ENHANCE_YOUR_CALM);
    s.requested(3, true);
    dies(s, &head(5, 33));

    // What a server sends may be a client's doing: 2 MiB.
    let mut s = Script::client(Config::default());
    let stream = s.opened(0, false);
    s.breaks(&head(stream, 512), stream, Reason::ENHANCE_YOUR_CALM);
    let stream = s.opened(0, false);
    dies(s, &head(stream, 513));

    // Of a stream that was reset nothing is kept, and it counts all the same.
    for (late, most) in [(Script::server as fn(_) -> _, 32), (Script::client, 512)] {
        let mut s = late(Config::default());
        if s.engine.can_open() {
            s.opened(0, false);
        } else {
            s.requested(1, false);
        }
        s.engine.reset(1, Reason::CANCEL);
        s.sent();
        s.quiet(&head(1, most));
        dies(s, &head(1, most + 1));
    }
}

/// A block in frames of at most `size` bytes.
fn in_frames(stream: u32, end: bool, block: &[u8], size: usize) -> Vec<Vec<u8>> {
    let parts = block.chunks(size);
    let last = parts.len() - 1;
    let frame_of = |(at, part): (usize, &[u8])| {
        let end_headers = if at == last { END_HEADERS } else { 0 };
        match at {
            0 => frame(HEADERS, end_headers | u8::from(end), stream, part),
            _ => frame(CONTINUATION, end_headers, stream, part),
        }
    };
    parts.enumerate().map(frame_of).collect()
}

/// What a backend says that puts into a status what it was asked. Two fields enter the table.
fn asked_for(bytes: usize, as_trailers: bool) -> Vec<u8> {
    let mut block = if as_trailers { vec![] } else { vec![0x88] };
    block.extend(*b"\x40\x08x-before\x0cin the table");
    // Of its length 7 bits at a time.
    let rest = bytes - 127;
    block.extend(*b"\0\x0cgrpc-message\x7f");
    block.extend([
        rest as u8 | 0x80,
        (rest >> 7) as u8 | 0x80,
        (rest >> 14) as u8,
    ]);
    block.resize(block.len() + bytes, b'm');
    block.extend(*b"\x40\x08x-behind\x09in it too");
    block
}

#[test]
fn blocks_of_a_server_that_are_too_large_end_their_stream_alone() {
    for (bytes, as_trailers) in [(100_000, false), (300_000, false), (300_000, true)] {
        let mut s = Script::client(Config {
            max_header_frames: 80,
            ..Config::default()
        });
        let beside = s.opened(1, true);
        let stream = s.opened(0, false);
        if as_trailers {
            s.one(&frame(HEADERS, END_HEADERS, stream, &[0x88]));
        }
        let block = asked_for(bytes, as_trailers);
        let mut frames = in_frames(stream, true, &block, 16_384);
        let last = frames.pop().unwrap();
        for frame in frames {
            s.quiet(&frame);
            let kept = s.engine.buffered();
            assert!(kept < 100_000, "{kept} bytes are kept");
        }
        let got = s.breaks(&last, stream, Reason::ENHANCE_YOUR_CALM);
        assert!(
            matches!(
                got[..],
                [Got::Reset {
                    stream: 3,
                    key: 0,
                    by_peer: false,
                    ..
                }]
            ),
            "{got:?}"
        );
        assert_eq!(s.engine.header_block_since(), None);
        // The table is in step.
        let head = list(&[
            (":status", "200"),
            ("x-behind", "in it too"),
            ("x-before", "in the table"),
        ]);
        let got = s.one(&frame(
            HEADERS,
            END_HEADERS | 1,
            beside,
            &[0x88, 0xbe, 0xbf],
        ));
        assert_eq!(got, Got::Headers(beside, 1, fields(&head), true));
    }
}

#[test]
fn a_block_of_a_server_ends_the_connection_when_it_is_16_times_too_large() {
    // A value of 2 MiB.
    let block = |bytes: usize| {
        let mut block = b"\0\x01x\x7f\xff\xff\x7f".to_vec();
        block.resize(bytes, b'v');
        block
    };
    let config = Config {
        max_header_frames: 80,
        ..Config::default()
    };
    let all = 16 * config.max_header_block as usize;
    let feed = |config, bytes: usize, size| {
        let mut s = Script::client(config);
        let stream = s.opened(0, false);
        let frames = in_frames(stream, true, &block(bytes), size);
        let last = frames.len() - 1;
        frames[..last].iter().for_each(|frame| s.quiet(frame));
        (s, frames[last].clone())
    };
    let (mut s, last) = feed(config, all + 1, 16_000);
    s.dies(&last, Reason::ENHANCE_YOUR_CALM);
    assert_eq!(s.feed(&[]).unwrap_err().limit, Some(Limit::HeaderBlock));
    // A frame too many.
    let (mut s, last) = feed(config, 81_000, 1000);
    s.dies(&last, Reason::ENHANCE_YOUR_CALM);
    // It ends within its value.
    let (mut s, last) = feed(config, 80_000, 1000);
    s.dies(&last, Reason::COMPRESSION_ERROR);
    // A client's ends it at once.
    let mut s = Script::server(config);
    let frames = in_frames(1, true, &block(40_000), 16_384).concat();
    s.dies(&frames, Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn what_a_server_complains_of_is_counted_be_it_of_a_stream_that_is_gone() {
    let mut s = Script::client(Config::default());
    let complaints = [
        Reason::PROTOCOL_ERROR,
        Reason::FLOW_CONTROL_ERROR,
        Reason::STREAM_CLOSED,
    ];
    for reason in complaints {
        let stream = s.opened(0, false);
        s.one(&rst(stream, reason.0));
        s.quiet(&rst(stream, reason.0));
    }
    assert_eq!(s.engine.complaints(), 6);
    // One that we reset, long ago at last.
    let stream = s.opened(0, false);
    s.engine.reset(stream, Reason::CANCEL);
    s.sent();
    s.quiet(&rst(stream, Reason::STREAM_CLOSED.0));
    assert_eq!(s.engine.complaints(), 7);
    for reason in (0..14)
        .map(Reason)
        .filter(|reason| !complaints.contains(reason))
    {
        let stream = s.opened(0, false);
        s.one(&rst(stream, reason.0));
        s.quiet(&rst(stream, reason.0));
    }
    assert_eq!(s.engine.complaints(), 7);
    // What a client calls a fault of ours is its own matter.
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.one(&rst(1, Reason::PROTOCOL_ERROR.0));
    assert_eq!(s.engine.complaints(), 0);
}

#[test]
fn trailers_too_large_end_the_stream() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    let t = s.headers(1, &list(&[("x", &"a".repeat(9000))]), true);
    s.breaks(&t, 1, Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn a_peer_s_reset_is_told_with_its_reason() {
    let mut s = Script::client(Config::default());
    s.opened(4, false);
    let refused = Got::Reset {
        stream: 1,
        key: 4,
        reason: Reason::REFUSED_STREAM,
        by_peer: true,
        unprocessed: true,
        headers_left: true,
    };
    assert_eq!(s.one(&rst(1, 7)), refused);
    s.opened(5, false);
    let head = s.headers(3, &response(), false);
    s.one(&head);
    let after_head = s.one(&rst(3, 7));
    assert!(matches!(
        after_head,
        Got::Reset {
            unprocessed: false,
            ..
        }
    ));
    assert!(s.engine.is_empty());
}

/// Literals that no table is asked for nor changed by: equal fields are equal bytes.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let field = |(name, value): &(&str, &str)| [vec![0], text(name), text(value)].concat();
    fields.iter().flat_map(field).collect()
}

/// A connection may have learnt a block by heart: it says of each beginning of it what one says that never saw it.
#[test]
fn a_request_that_ends_before_the_remembered_one_is_looked_at_as_a_whole() {
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "a"),
    ];
    for turn in 0..4 {
        let mut whole = pseudo.to_vec();
        whole.rotate_left(turn);
        whole.extend([("content-type", "application/grpc"), ("te", "trailers")]);
        for cut in 0..=whole.len() {
            let said = |learnt: u32| {
                let mut s = Script::server(Config::default());
                let head =
                    |stream, fields: &[_]| frame(HEADERS, END_HEADERS, stream, &literals(fields));
                for i in 0..learnt {
                    let stream = 2 * i + 1;
                    assert!(matches!(s.one(&head(stream, &whole)), Got::Headers(..)));
                }
                let got = s.one(&head(99, &whole[..cut]));
                let reset = s.sent().iter().any(|f| f.kind == RST_STREAM);
                (got, reset)
            };
            let fresh = said(0);
            let needed = |name| whole[..cut].iter().any(|field| field.0 == name);
            let fine = [":method", ":scheme", ":path"].into_iter().all(needed);
            assert_eq!(fresh.1, !fine, "{:?}", &whole[..cut]);
            assert_eq!(said(10), fresh, "{:?}", &whole[..cut]);
        }
    }
}

#[test]
fn what_a_server_pads_with_spaces_is_read_without_them() {
    let head = [
        (":status", "200"),
        ("content-type", " application/grpc"),
        ("x-empty", " \t "),
    ];
    let end = [("grpc-status", "5"), ("grpc-message", "user not found: ")];
    let owned = |fields: &[(&str, &str)]| -> Vec<_> {
        let trimmed = |(name, value): &(&str, &str)| (name.to_string(), value.trim().to_owned());
        fields.iter().map(trimmed).collect()
    };
    let mut s = Script::client(Config::default());
    // Often enough to be learnt by heart.
    for _ in 0..8 {
        let stream = s.opened(4, true);
        let bytes = s.headers(stream, &list(&head), false);
        assert_eq!(s.one(&bytes), Got::Headers(stream, 4, owned(&head), false));
        let bytes = s.headers(stream, &list(&end), true);
        assert_eq!(s.one(&bytes), Got::Trailers(stream, 4, owned(&end)));
    }
    // What is wrong besides stays wrong, and so does a client that does it.
    let stream = s.opened(4, true);
    let bytes = s.headers(stream, &list(&[(":status", "2000 ")]), false);
    s.breaks(&bytes, stream, Reason::PROTOCOL_ERROR);
    let mut s = Script::server(Config::default());
    let mut padded = request();
    padded.push(b"x-padded", b"x ");
    let bytes = s.headers(1, &padded, true);
    s.breaks(&bytes, 1, Reason::PROTOCOL_ERROR);
}
