//! What the calls put on the wire, and in which order.

use std::time::Duration;

use http2::{Config, Headers, OpenError, Reason, Sent};

use crate::support::*;

fn kinds(sent: &[Frame]) -> Vec<(u8, u32)> {
    sent.iter().map(|f| (f.kind, f.stream)).collect()
}

#[test]
fn a_unary_call_is_headers_and_one_data_frame() {
    let mut s = Script::client(Config::default());
    let stream = s.engine.open(request(), false, 3).unwrap();
    assert!(s.engine.output().is_empty(), "open only queues");
    s.engine.send_data(stream, b"hello", true, s.now);
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(HEADERS, 1), (DATA, 1)]);
    assert_eq!((sent[0].flags, sent[1].flags), (END_HEADERS, END_STREAM));
    assert_eq!(
        s.engine.take_sent(),
        Some(Sent {
            stream: 1,
            key: 3,
            bytes: 5,
            end_stream: true
        })
    );
    let mut head = Headers::new();
    s.decoder
        .decode(&sent[0].payload, 1 << 20, &mut head)
        .unwrap();
    assert_eq!(fields(&head), fields(&request()));
}

#[test]
fn a_call_without_a_body_is_one_frame() {
    let mut s = Script::client(Config::default());
    s.engine.open(request(), true, 0).unwrap();
    let late = s.engine.open(request(), false, 0).unwrap();
    s.engine.send_data(late, b"", true, s.now);
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(HEADERS, 1), (HEADERS, 3)]);
    assert!(sent.iter().all(|f| f.flags == END_HEADERS | END_STREAM));
}

#[test]
fn a_unary_response_joins_what_one_turn_brought() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    for part in [&b"he"[..], b"ll", b"", b"o"] {
        s.engine.send_data(1, part, false, s.now);
    }
    s.engine.send_trailers(1, &trailers());
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(HEADERS, 1), (DATA, 1), (HEADERS, 1)]);
    assert_eq!(sent[1].payload, b"hello");
    assert_eq!(sent[2].flags, END_HEADERS | END_STREAM);
    assert!(s.engine.is_empty());
    assert_eq!(s.engine.take_sent().unwrap().bytes, 5);
}

#[test]
fn small_messages_of_one_turn_become_one_frame_per_stream() {
    let mut s = Script::server(Config::default());
    for stream in [1, 3] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
    }
    s.sent();
    for _ in 0..50 {
        for stream in [1, 3] {
            assert_eq!(s.engine.send_data(stream, &[7; 25], false, s.now), 0);
        }
    }
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(DATA, 1), (DATA, 3)]);
    assert!(sent.iter().all(|f| f.payload.len() == 1250));
}

#[test]
fn bulk_goes_at_once_behind_what_was_joined() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_data(1, &[1; 5], false, s.now);
    assert_eq!(s.engine.send_data(1, &[2; 4000], false, s.now), 4000);
    let sent = s.sent();
    assert_eq!(sent[1].payload, [&[1; 5][..], &[2; 4000]].concat());
}

#[test]
fn an_empty_frame_is_never_sent_without_an_end() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.sent();
    s.engine.send_data(1, b"", false, s.now);
    assert!(s.sent().is_empty());
    s.engine.send_data(1, b"", true, s.now);
    assert_eq!(frames(&data(1, b"", true)), s.sent());
}

#[test]
fn trailers_wait_behind_queued_data() {
    let mut s = Script::server_after(Config::default(), &[(4, 5)]);
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_data(1, b"hello world", false, s.now);
    s.engine.send_trailers(1, &trailers());
    s.engine.send_data(1, b"after the end", false, s.now);
    assert_eq!(kinds(&s.sent()), [(HEADERS, 1), (DATA, 1)]);
    s.quiet(&window(1, 100));
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(DATA, 1), (HEADERS, 1)]);
    assert_eq!(
        (sent[0].flags, sent[1].flags),
        (0, END_HEADERS | END_STREAM)
    );
    assert!(s.engine.is_empty());
}

#[test]
fn trailers_without_data_need_no_window() {
    let mut s = Script::client_after(Config::default(), &[(4, 0)]);
    let stream = s.engine.open(request(), false, 0).unwrap();
    s.engine.send_trailers(stream, &trailers());
    assert_eq!(kinds(&s.sent()), [(HEADERS, 1), (HEADERS, 1)]);
}

#[test]
fn heads_keep_their_order() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.send_data(1, b"too early", false, s.now);
    s.engine.send_trailers(1, &trailers());
    s.engine.send_headers(1, &list(&[(":status", "103")]), true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_headers(1, &response(), false);
    let sent = s.sent();
    assert_eq!(kinds(&sent), [(HEADERS, 1), (HEADERS, 1)]);
    assert!(sent.iter().all(|f| f.flags == END_HEADERS));
}

#[test]
fn large_blocks_are_continued() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    let mut head = response();
    for i in 0..5 {
        head.push(format!("x-{i}").as_bytes(), &[b'~'; 8000]);
    }
    s.engine.send_headers(1, &head, true);
    let sent = s.sent();
    assert_eq!(
        kinds(&sent),
        [(HEADERS, 1), (CONTINUATION, 1), (CONTINUATION, 1)]
    );
    assert_eq!(
        sent.iter().map(|f| f.flags).collect::<Vec<_>>(),
        [END_STREAM, 0, END_HEADERS]
    );
    let block: Vec<u8> = sent.iter().flat_map(|f| f.payload.clone()).collect();
    let mut back = Headers::new();
    s.decoder.decode(&block, 1 << 20, &mut back).unwrap();
    assert_eq!(fields(&back), fields(&head));
}

#[test]
fn a_stream_reset_before_the_flush_leaves_no_trace() {
    let mut s = Script::client(Config::default());
    let gone = s.engine.open(request(), false, 0).unwrap();
    let stays = s.engine.open(request(), true, 1).unwrap();
    s.engine.send_data(gone, &[7; 5000], false, s.now);
    s.engine.reset(gone, Reason::CANCEL);
    s.engine.credit(gone, 5);
    assert_eq!(kinds(&s.sent()), [(HEADERS, stays)]);
    assert_eq!((s.engine.stream_count(), s.engine.pending_bytes()), (1, 0));
}

#[test]
fn headers_have_left_when_their_first_byte_has() {
    let mut s = Script::client(Config::default());
    s.engine.ping(1);
    let stream = s.engine.open(request(), true, 0).unwrap();
    s.engine.flush(s.now);
    s.engine.consume(17);
    assert!(!s.engine.headers_left(stream));
    s.engine.consume(1);
    assert!(s.engine.headers_left(stream));
}

#[test]
fn open_says_why_not() {
    let mut s = Script::raw(http2::Role::Client, Config::default());
    assert_eq!(
        s.engine.open(request(), true, 0).unwrap_err().0,
        OpenError::NotReady
    );
    s.feed(&settings(&[(3, 1)])).unwrap();
    let stream = s.engine.open(request(), true, 0).unwrap();
    assert_eq!(
        s.engine.open(request(), true, 0).unwrap_err().0,
        OpenError::Full
    );
    s.engine.reset(stream, Reason::CANCEL);
    assert!(s.engine.can_open());
    s.feed(&goaway(0, 0)).unwrap();
    assert_eq!(
        s.engine.open(request(), true, 0).unwrap_err().0,
        OpenError::GoingAway
    );
    let mut s = Script::server(Config::default());
    assert!(s.engine.open(request(), true, 0).is_err());
}

#[test]
fn a_limit_that_falls_gives_up_streams_that_are_not_on_the_wire() {
    let mut s = Script::client_after(Config::default(), &[(3, 5)]);
    let before = s.engine.buffered();
    let first = s.opened(0, true);
    let streams = [1, 2, 3, 4].map(|key| s.engine.open(request(), false, key).unwrap());
    s.engine.send_data(streams[2], b"x", true, s.now);
    let left = |key: u32| Got::Reset {
        stream: streams[key as usize - 1],
        key,
        reason: Reason::REFUSED_STREAM,
        by_peer: true,
        unprocessed: true,
        headers_left: false,
    };
    let got = s.feed(&settings(&[(3, 3)])).unwrap();
    assert_eq!(got, [Got::Settings(false), left(3), left(4)]);
    assert_eq!(s.engine.pending_bytes(), 0);
    assert!(!s.engine.can_open());
    let on_wire = [(SETTINGS, 0), (HEADERS, streams[0]), (HEADERS, streams[1])];
    assert_eq!(kinds(&s.sent()), on_wire);
    assert_eq!(s.engine.buffered(), before);
    // What is on the wire stays, however low it is.
    let got = s.feed(&settings(&[(3, 0)])).unwrap();
    assert_eq!(got, [Got::Settings(false)]);
    let head = s.headers(first, &response(), true);
    s.one(&head);
    assert_eq!(s.engine.stream_count(), 2);
}

#[test]
fn opens_wait_while_the_output_is_full() {
    let config = Config {
        output_limit: 10,
        ..Config::default()
    };
    let mut s = Script::client(config);
    s.engine.ping(1);
    s.engine.open(request(), true, 0).unwrap();
    s.engine.flush(s.now);
    assert_eq!(kinds(&frames(s.engine.output())), [(PING, 0)]);
    assert!(s.engine.opens_waiting());
    s.sent();
    assert_eq!(kinds(&s.sent()), [(HEADERS, 1)]);
    assert!(!s.engine.opens_waiting());
}

#[test]
fn trailers_without_data_wait_for_nobodys_window() {
    let mut s = Script::client_after(Config::default(), &[(4, 100_000)]);
    let first = s.opened(0, false);
    s.engine.send_data(first, &[0; 65_536], true, s.now);
    s.sent();
    assert_eq!(s.engine.windows().send, 0);
    assert_eq!(s.engine.pending_bytes(), 1);
    let second = s.engine.open(request(), false, 0).unwrap();
    s.engine.send_trailers(second, &response());
    assert_eq!(kinds(&s.sent()), [(HEADERS, second), (HEADERS, second)]);
}

#[test]
fn calls_out_of_order_are_ignored() {
    let mut s = Script::server(Config::default());
    for stream in [0, 1, 2, 7, u32::MAX] {
        s.engine.send_headers(stream, &response(), true);
        s.engine.send_data(stream, b"x", true, s.now);
        s.engine.send_trailers(stream, &trailers());
        s.engine.reset(stream, Reason::CANCEL);
        s.engine.credit(stream, 5);
        s.engine.set_key(stream, 1);
        assert!(s.engine.blocked(stream).is_none());
        assert!(s.engine.headers_left(stream) && s.engine.peer_closed(stream));
    }
    s.engine.consume(100);
    assert!(s.sent().is_empty());
    s.requested(1, true);
    s.engine.send_headers(1, &response(), true);
    s.sent();
    s.engine.send_trailers(1, &trailers());
    s.engine.reset(1, Reason::CANCEL);
    assert!(s.sent().is_empty(), "it has ended");
}

#[test]
fn the_peer_s_header_table_is_kept_to() {
    let mut s = Script::client_after(Config::default(), &[(1, 0)]);
    s.decoder = http2::hpack::Decoder::new(0);
    s.opened(0, true);
    s.opened(0, true);
}

#[test]
fn a_connection_that_gave_its_memory_back_goes_on() {
    let mut s = Script::server(Config::default());
    s.engine.ping(1);
    s.sent();
    s.engine.shrink();
    s.requested(1, true);
}

#[test]
fn memory_is_given_back_while_streams_are_in_all_states() {
    let mut s = Script::server_after(Config::default(), &[(4, 4)]);
    // The first leaves a place that nobody has; the second waits for its window, the third is to be credited.
    for stream in [1, 3, 5] {
        s.requested(stream, false);
    }
    s.one(&rst(1, 8));
    s.engine.send_headers(3, &response(), false);
    s.engine.send_data(3, b"twelve bytes", false, s.now);
    s.one(&data(5, &[0; 16_384], false));
    s.engine.credit(5, 16_384);
    // Half a frame is here, and half of what was to be written has gone.
    let ping = ping(7);
    let (begun, rest) = ping.split_at(12);
    s.quiet(begun);
    s.engine.flush(s.now);
    let written = s.engine.output().to_vec();
    s.engine.consume(20);
    s.engine.shrink();
    assert_eq!(s.engine.output(), &written[20..]);
    s.engine.consume(written.len());
    s.quiet(rest);
    assert_eq!(kinds(&s.sent()), [(PING, 0)]);
    s.quiet(&window(3, 100));
    assert_eq!(kinds(&s.sent()), [(DATA, 3)]);
    s.one(&data(3, b"more", true));
    s.engine.send_trailers(3, &trailers());
    assert_eq!(kinds(&s.sent()), [(HEADERS, 3)]);
    // One in the place of the first, and one behind the last.
    for stream in [7, 9] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), true);
        assert_eq!(kinds(&s.sent()), [(HEADERS, stream)]);
    }
    assert_eq!(s.engine.stream_count(), 1);
}

#[test]
fn what_is_still_queued_can_be_taken_back() {
    let mut s = Script::server_after(Config::default(), &[(4, 4)]);
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_data(1, &[1; 40_000], false, s.now);
    s.sent();
    assert!(!s.engine.unqueue(1, 40_000), "four bytes have gone");
    assert!(s.engine.unqueue(1, 39_990));
    assert_eq!((s.engine.queued(1), s.engine.pending_bytes()), (6, 6));
    s.engine.send_trailers(1, &trailers());
    assert!(!s.engine.unqueue(1, 1), "trailers stand behind it");
    s.quiet(&window(1, 100));
    assert_eq!(kinds(&s.sent()), [(DATA, 1), (HEADERS, 1)]);
    assert_eq!(
        s.engine.take_sent().map(|s| (s.bytes, s.end_stream)),
        Some((6, true))
    );
    assert!(s.engine.send_closed(1) && !s.engine.unqueue(1, 0));
}

#[test]
fn output_that_nobody_takes_is_told() {
    let mut s = Script::server(Config {
        output_limit: 1000,
        ..Config::default()
    });
    let mut n = 0;
    while !s.engine.overfull() {
        let stream = 2 * n + 1;
        s.requested(stream, true);
        s.engine.send_headers(
            stream,
            &list(&[(":status", "200"), ("x", &"~".repeat(500))]),
            true,
        );
        n += 1;
        assert!(n < 1_000_000);
    }
    assert!(s.engine.output().len() > 64 * 1024);
    s.sent();
    assert!(!s.engine.overfull());
    // Data alone stays below.
    s.requested(2 * n + 1, true);
    s.engine.send_headers(2 * n + 1, &response(), false);
    s.engine.send_data(2 * n + 1, &[0; 65_000], true, s.now);
    s.engine.flush(s.now);
    assert!(!s.engine.overfull() && s.engine.pending_bytes() > 0);
}

/// One on the crate `h2` with an acknowledgement to write reads nothing before it has written it.
#[test]
fn a_server_is_read_from_whatever_it_does_not_take() {
    let mut s = Script::client(Config {
        output_limit: 1000,
        ..Config::default()
    });
    let streams: Vec<_> = (0..100).map(|key| s.opened(key, false)).collect();
    for stream in streams {
        let large = format!("{stream}{}", "~".repeat(1000));
        s.engine.send_trailers(stream, &list(&[("x", &large)]));
    }
    assert!(s.engine.output().len() > 1000 + 64 * 1024);
    assert!(!s.engine.overfull());
}

/// What it makes us put out is bounded all the same.
#[test]
fn a_server_that_takes_nothing_makes_us_write_little() {
    for provoke in [&settings(&[])[..], &ping(1), &window(1, 0)] {
        let mut s = Script::client(Config::default());
        s.opened(0, false);
        let mut rounds = 0;
        // Time pays for all of them.
        while s.feed(provoke).is_ok() && rounds < 100_000 {
            s.engine.flush(s.now);
            s.pass(Duration::from_millis(200));
            rounds += 1;
        }
        let written = s.engine.output().len();
        assert!(written < 40 * 1024, "{written} bytes");
    }
}

#[test]
fn trailers_behind_a_shut_window_count_as_buffered() {
    let large = list(&[("x", &"v".repeat(10_000))]);
    let mut s = Script::server_after(Config::default(), &[(4, 4)]);
    for stream in [1, 3, 5] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
        s.engine.send_data(stream, &[1; 10], false, s.now);
    }
    s.sent();
    let before = s.engine.buffered();
    for (stream, number) in [(1, 1), (3, 2), (5, 3)] {
        s.engine.send_trailers(stream, &large);
        assert!(s.engine.buffered() - before >= number * 10_000);
    }
    s.one(&rst(1, 8));
    s.engine.reset(3, Reason::CANCEL);
    s.sent();
    assert!((10_000..20_000).contains(&(s.engine.buffered() - before)));
    s.quiet(&window(5, 100));
    assert_eq!(kinds(&s.sent()), [(DATA, 5), (HEADERS, 5)]);
    assert_eq!(s.engine.buffered(), before);
}

#[test]
fn heads_that_wait_for_their_turn_count_as_buffered() {
    let mut s = Script::client(Config::default());
    s.sent();
    let before = s.engine.buffered();
    let mut head = request();
    head.push(b"x", &[b'v'; 10_000]);
    let [first, cancelled] = [0, 1].map(|key| s.engine.open(head.clone(), true, key).unwrap());
    assert!(s.engine.buffered() - before >= 20_000);
    s.engine.reset(cancelled, Reason::CANCEL);
    assert!((10_000..20_000).contains(&(s.engine.buffered() - before)));
    assert_eq!(kinds(&s.sent()), [(HEADERS, first)]);
    assert_eq!(s.engine.buffered(), before);
    // What a GOAWAY leaves behind is gone, and what ends with the connection.
    s.engine.open(head.clone(), true, 2).unwrap();
    s.feed(&goaway(first, 0)).unwrap();
    s.sent();
    assert_eq!(s.engine.buffered(), before);
}

#[test]
fn a_head_that_is_too_large_counts_as_buffered_until_it_is_taken() {
    let mut s = Script::server(Config::default());
    let before = s.engine.buffered();
    let mut head = request();
    head.push(b"x", &[b'v'; 10_000]);
    for stream in [1, 3] {
        let block = s.headers(stream, &head, true);
        s.one(&block);
    }
    let both = s.engine.buffered() - before;
    let kept = s.engine.take_large_head(1).map(|head| head.memory());
    assert_eq!(kept, Some(both / 2));
    s.engine.reset(3, Reason::CANCEL);
    s.sent();
    assert_eq!(s.engine.buffered(), before);
}
