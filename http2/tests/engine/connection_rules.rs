//! Rules whose breach ends the connection (RFC 9113 §3.4, §4, §5.4.1, §6).

use http2::{Config, Reason, Role};

use crate::support::*;

#[test]
fn a_server_begins_with_settings_and_its_window() {
    let mut s = Script::raw(Role::Server, Config::default());
    let sent = s.sent();
    assert_eq!(sent[0].kind, SETTINGS);
    let values: Vec<_> = sent[0]
        .payload
        .chunks(6)
        .map(|c| (c[1], u32::from_be_bytes([c[2], c[3], c[4], c[5]])))
        .collect();
    assert_eq!(values, [(1, 4096), (3, 100), (4, 65_536), (6, 8192)]);
    assert_eq!(sent[1].payload, (1024 * 1024 - 65_535u32).to_be_bytes());
    assert_eq!(sent.len(), 2);
}

#[test]
fn a_client_begins_with_the_preface_and_takes_no_push() {
    let s = Script::raw(Role::Client, Config::default());
    assert!(s.engine.output().starts_with(PREFACE));
    let sent = frames(s.engine.output());
    assert!(
        sent[0].payload.chunks(6).any(|c| c == [0, 2, 0, 0, 0, 0]),
        "ENABLE_PUSH = 0"
    );
}

#[test]
fn a_wrong_preface_is_an_error_at_its_first_wrong_byte() {
    let mut s = Script::raw(Role::Server, Config::default());
    s.quiet(&PREFACE[..10]);
    s.dies(b"x", Reason::PROTOCOL_ERROR);
}

#[test]
fn the_first_frame_is_settings_and_no_acknowledgement() {
    for first in [ping(1), frame(SETTINGS, ACK, 0, &[]), window(0, 1)] {
        let mut s = Script::raw(Role::Server, Config::default());
        s.quiet(PREFACE);
        s.dies(&first, Reason::PROTOCOL_ERROR);
        Script::raw(Role::Client, Config::default()).dies(&first, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn settings_are_acknowledged_and_told() {
    let mut s = Script::raw(Role::Client, Config::default());
    assert!(!s.engine.can_open() && s.engine.settings_unacked_since() == Some(s.now));
    assert_eq!(s.one(&settings(&[(3, 7)])), Got::Settings(true));
    assert_eq!(s.engine.peer_max_streams(), 7);
    assert!(s.sent().contains(&Frame {
        kind: SETTINGS,
        flags: ACK,
        stream: 0,
        payload: vec![]
    }));
    s.quiet(&frame(SETTINGS, ACK, 0, &[]));
    assert!(s.engine.can_open() && s.engine.settings_unacked_since().is_none());
    assert_eq!(s.one(&settings(&[])), Got::Settings(false));
}

/// RFC 7541 §4.2: the decoder at the other end has emptied its table in between.
#[test]
fn of_two_table_sizes_in_one_frame_the_smaller_is_told_too() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), true);
    s.sent();
    s.feed(&settings(&[(1, 0), (1, 4096)])).unwrap();
    s.requested(3, true);
    s.engine.send_headers(3, &response(), true);
    let sent = s.sent();
    let block = sent.iter().find(|frame| frame.kind == HEADERS).unwrap();
    assert_eq!(block.payload[..4], [0x20, 0x3f, 0xe1, 0x1f], "0, then 4096");
}

#[test]
fn a_ping_is_answered_and_an_answer_told() {
    let mut s = Script::server(Config::default());
    s.quiet(&ping(0x0102));
    assert_eq!(frames(&pong(0x0102)), s.sent());
    s.engine.ping(77);
    assert_eq!(frames(&ping(77)), s.sent());
    assert_eq!(s.one(&pong(77)), Got::Pong(77));
}

#[test]
fn unknown_frames_and_settings_and_flags_are_ignored() {
    let mut s = Script::server(Config::default());
    s.quiet(&frame(0xbe, 0xff, 1, &[7; 300]));
    s.quiet(&frame(0xbe, 0, 0, &[]));
    s.quiet(&frame(PING, 0xfe, 0, &[0; 8]));
    assert_eq!(s.one(&settings(&[(0x99, 1)])), Got::Settings(false));
}

#[test]
fn frames_of_wrong_size_end_the_connection() {
    for bad in [
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(SETTINGS, ACK, 0, &[0; 6]),
        frame(PING, 0, 0, &[0; 7]),
        frame(PING, ACK, 0, &[0; 9]),
        frame(GOAWAY, 0, 0, &[0; 7]),
        frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
        frame(RST_STREAM, 0, 1, &[0; 5]),
        frame(HEADERS, END_HEADERS | PADDED, 3, &[]),
        frame(HEADERS, END_HEADERS | PRIO, 3, &[0; 4]),
        frame(DATA, PADDED, 1, &[]),
        frame(DATA, 0, 1, &[0; 16_385]),
        frame(0xbe, 0, 0, &[0; 16_385]),
    ] {
        let mut s = Script::server(Config::default());
        s.requested(1, false);
        s.dies(&bad, Reason::FRAME_SIZE_ERROR);
    }
}

#[test]
fn frames_on_the_wrong_kind_of_stream_end_the_connection() {
    for bad in [
        data(0, b"x", false),
        frame(HEADERS, END_HEADERS, 0, &[0x88]),
        frame(PRIORITY, 0, 0, &[0; 5]),
        rst(0, 8),
        frame(SETTINGS, 0, 1, &[]),
        frame(PING, 0, 1, &[0; 8]),
        frame(GOAWAY, 0, 1, &[0; 8]),
        frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]),
        frame(CONTINUATION, END_HEADERS, 1, &[0x88]),
    ] {
        let mut s = Script::server(Config::default());
        s.requested(1, false);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
        let mut s = Script::client(Config::default());
        s.opened(0, false);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn frames_on_idle_streams_end_the_connection() {
    for bad in [
        data(5, b"x", false),
        rst(5, 8),
        window(5, 1),
        window(2, 1),
        data(4, b"", true),
    ] {
        let mut s = Script::server(Config::default());
        s.requested(1, false);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
        let mut s = Script::client(Config::default());
        s.opened(0, false);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn a_stream_that_is_queued_but_not_on_the_wire_is_idle() {
    for bad in [
        data(1, b"x", false),
        rst(1, 8),
        window(1, 1),
        frame(HEADERS, 5, 1, &[0x88]),
    ] {
        let mut s = Script::client(Config::default());
        s.engine.open(request(), true, 0).unwrap();
        s.dies(&bad, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn stream_numbers_ascend_and_are_odd() {
    let mut s = Script::server(Config::default());
    let even = s.headers(2, &request(), true);
    s.dies(&even, Reason::PROTOCOL_ERROR);

    let mut s = Script::server(Config::default());
    s.requested(5, true);
    let lower = s.headers(3, &request(), true);
    s.dies(&lower, Reason::PROTOCOL_ERROR);
}

#[test]
fn a_server_opens_no_streams_towards_us() {
    let mut s = Script::client(Config::default());
    s.opened(0, true);
    for stream in [2, 3] {
        let mut s = Script::client(Config::default());
        s.opened(0, true);
        let bad = s.headers(stream, &response(), true);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn a_header_block_is_continued_before_anything_else() {
    for next in [
        ping(1),
        data(1, b"", false),
        frame(0xbe, 0, 0, &[]),
        frame(CONTINUATION, 4, 3, &[]),
    ] {
        let mut s = Script::server(Config::default());
        let head = s.headers(1, &request(), true);
        let block = &head[9..];
        s.quiet(&frame(HEADERS, END_STREAM, 1, &block[..4]));
        assert_eq!(s.engine.header_block_since(), Some(s.now));
        s.dies(&next, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn a_block_in_pieces_is_a_block() {
    let mut s = Script::server(Config::default());
    let head = s.headers(1, &request(), true);
    let block = &head[9..];
    s.quiet(&frame(HEADERS, END_STREAM, 1, &block[..4]));
    s.quiet(&frame(CONTINUATION, 0, 1, &[]));
    s.quiet(&frame(CONTINUATION, 0, 1, &block[4..9]));
    let last = frame(CONTINUATION, END_HEADERS, 1, &block[9..]);
    assert_eq!(
        s.one(&last),
        Got::Headers(1, u32::MAX, fields(&request()), true)
    );
    assert_eq!(s.engine.header_block_since(), None);
}

#[test]
fn an_incomplete_headers_frame_is_an_open_block_too() {
    let mut s = Script::server(Config::default());
    let head = s.headers(1, &request(), true);
    s.quiet(&head[..8]);
    assert_eq!(
        s.engine.header_block_since(),
        None,
        "the type isn't known to be HEADERS yet"
    );
    s.quiet(&head[8..12]);
    let since = s.now;
    s.pass(std::time::Duration::from_secs(1));
    s.quiet(&head[12..13]);
    assert_eq!(s.engine.header_block_since(), Some(since));
    assert!(matches!(s.one(&head[13..]), Got::Headers(..)));
    assert_eq!(s.engine.header_block_since(), None);
}

#[test]
fn a_seventh_frame_of_a_block_or_32_kib_of_it_end_the_connection() {
    let mut s = Script::server(Config::default());
    s.quiet(&frame(HEADERS, 0, 1, &[0x82]));
    for _ in 0..5 {
        s.quiet(&frame(CONTINUATION, 0, 1, &[0x82]));
    }
    s.dies(
        &frame(CONTINUATION, END_HEADERS, 1, &[]),
        Reason::ENHANCE_YOUR_CALM,
    );

    let mut s = Script::server(Config::default());
    s.quiet(&frame(HEADERS, 0, 1, &[0x82; 16_384]));
    s.quiet(&frame(CONTINUATION, 0, 1, &[0x82; 16_384]));
    s.dies(
        &frame(CONTINUATION, 0, 1, &[0x82])[..9],
        Reason::ENHANCE_YOUR_CALM,
    );
}

#[test]
fn a_block_that_cannot_be_decoded_ends_the_connection() {
    let mut s = Script::server(Config::default());
    s.dies(
        &frame(HEADERS, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Reason::COMPRESSION_ERROR,
    );
}

#[test]
fn settings_out_of_range_end_the_connection() {
    for (id, value, reason) in [
        (2, 2, Reason::PROTOCOL_ERROR),
        (4, 1 << 31, Reason::FLOW_CONTROL_ERROR),
        (5, 16_383, Reason::PROTOCOL_ERROR),
        (5, 1 << 24, Reason::PROTOCOL_ERROR),
    ] {
        Script::server(Config::default()).dies(&settings(&[(id, value)]), reason);
    }
    Script::client(Config::default()).dies(&settings(&[(2, 1)]), Reason::PROTOCOL_ERROR);
}

#[test]
fn padding_as_long_as_the_payload_ends_the_connection() {
    for bad in [
        frame(DATA, PADDED, 1, &[3, 0, 0]),
        frame(HEADERS, END_HEADERS | PADDED, 3, &[2, 0x88]),
        frame(HEADERS, END_HEADERS | PADDED | PRIO, 3, &[1, 0, 0, 0, 0, 0]),
    ] {
        let mut s = Script::server(Config::default());
        s.requested(1, false);
        s.dies(&bad, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn a_goaway_s_last_stream_never_goes_up() {
    let mut s = Script::client(Config::default());
    for _ in 0..2 {
        let got = s.one(&goaway(5, 0));
        assert_eq!(got, Got::GoAway(5, Reason::NO_ERROR, vec![]));
    }
    s.dies(&goaway(7, 0), Reason::PROTOCOL_ERROR);
}

#[test]
fn what_a_goaway_says_is_told_up_to_256_bytes() {
    for role in [Script::server, Script::client] {
        for (said, told) in [(20, 20), (256, 256), (257, 256), (16_000, 256)] {
            let mut s = role(Config::default());
            let text: Vec<u8> = (0..said).map(|n| n as u8).collect();
            let head = [3u32.to_be_bytes(), 11u32.to_be_bytes()].concat();
            let got = s.one(&frame(GOAWAY, 0, 0, &[head, text.clone()].concat()));
            let wanted = Got::GoAway(3, Reason::ENHANCE_YOUR_CALM, text[..told].to_vec());
            assert_eq!(got, wanted);
        }
    }
}

#[test]
fn a_code_has_its_name_and_one_without_has_its_number() {
    let names = (0..15).map(|code| Reason(code).to_string());
    let names: Vec<_> = names.collect();
    assert_eq!(
        names.join(" "),
        "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED \
         FRAME_SIZE_ERROR REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM \
         INADEQUATE_SECURITY HTTP_1_1_REQUIRED 0xe"
    );
}

#[test]
fn a_header_table_below_the_initial_size_is_not_announced() {
    let s = Script::raw(
        Role::Server,
        Config {
            header_table: 0,
            ..Config::default()
        },
    );
    assert_eq!(
        frames(s.engine.output())[0].payload[..6],
        [0, 1, 0, 0, 16, 0]
    );
}

#[test]
fn an_owner_may_bound_the_frames_of_a_turn() {
    let mut s = Script::server(Config::default());
    let head = s.headers(1, &request(), false);
    let bytes = [
        &head[..],
        &data(1, b"in two", false),
        &ping(1),
        &data(1, b"", true),
        &ping(2),
    ]
    .concat();
    let cut = head.len() + 9 + 3;
    // In parts, so that the bound falls into a frame too: what has begun is finished, whatever the bound.
    let mut turn = |bytes: &[u8]| {
        s.engine.allow(2);
        let mut input = bytes;
        let mut events = 0;
        while s.engine.receive(&mut input, s.now).unwrap().is_some() {
            events += 1;
        }
        (events, input.len())
    };
    assert_eq!(turn(&bytes[..cut]), (2, 0));
    let rest = &bytes[cut..];
    // "wo", a PING, the empty end with its event.
    assert_eq!(turn(rest), (2, 17));
    assert_eq!(turn(&rest[rest.len() - 17..]), (0, 0));
    assert_eq!(s.sent().iter().filter(|f| f.kind == PING).count(), 2);
    assert!(s.engine.peer_closed(1));
}
