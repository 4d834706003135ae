//! Floods end the connection, and honest heavy traffic doesn't.

use std::time::Duration;

use http2::{Config, Reason};

use crate::support::*;

/// Feeds `bytes` until the connection ends; how often it took it.
fn until_calm(s: &mut Script, bytes: &[u8]) -> usize {
    for n in 0..20_000 {
        if let Err(e) = s.feed(bytes) {
            assert_eq!(e.reason, Reason::ENHANCE_YOUR_CALM, "{}", e.rule);
            return n;
        }
        s.sent();
    }
    panic!("never");
}

#[test]
fn floods_of_frames_that_carry_nothing() {
    for (bytes, most) in [
        (ping(1), 1100),
        (pong(1), 1100),
        (settings(&[]), 110),
        (frame(SETTINGS, ACK, 0, &[]), 1100),
        (window(0, 1), 4100),
        (window(1, 1), 4100),
        (frame(PRIORITY, 0, 1, &[0; 5]), 1100),
        (frame(0xbe, 0, 0, &[]), 1100),
        (goaway(0, 0), 1100),
        (data(1, b"", false), 1100),
        (data(1, b"x", false), 1400),
        (
            frame(DATA, PADDED, 1, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            1100,
        ),
    ] {
        let mut s = Script::server(Config::default());
        s.requested(1, false);
        let n = until_calm(&mut s, &bytes);
        assert!((50..most).contains(&n), "{n} × {:?}", frames(&bytes));
    }
}

#[test]
fn acknowledgements_that_nobody_reads_are_bounded() {
    let mut s = Script::server(Config::default());
    let mut n = 0;
    let e = loop {
        // Useful traffic would pay for the PINGs as such.
        s.pass(Duration::from_millis(20));
        match s.feed(&ping(1)) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
    };
    assert_eq!((e.reason, n), (Reason::ENHANCE_YOUR_CALM, 1024));
}

#[test]
fn rapid_reset() {
    let mut s = Script::server(Config::default());
    for i in 0..499 {
        s.requested(2 * i + 1, false);
        s.one(&rst(2 * i + 1, 8));
    }
    s.requested(999, false);
    s.dies(&rst(999, 8), Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn made_you_reset() {
    let mut s = Script::server(Config::default());
    for i in 0..1024 {
        s.requested(2 * i + 1, false);
        s.breaks(&window(2 * i + 1, 0), 2 * i + 1, Reason::PROTOCOL_ERROR);
    }
    s.requested(2049, false);
    s.dies(&window(2049, 0), Reason::ENHANCE_YOUR_CALM);
}

/// A server can break no more streams than we open, and one client may have it break its own, beside others'.
#[test]
fn streams_that_a_server_breaks_end_no_connection() {
    let mut s = Script::client(Config::default());
    let beside = s.opened(0, false);
    for _ in 0..5000 {
        let stream = s.opened(1, true);
        let head = s.headers(stream, &list(&[(":status", "2000")]), true);
        s.breaks(&head, stream, Reason::PROTOCOL_ERROR);
    }
    let head = s.headers(beside, &response(), true);
    s.one(&head);
}

/// Each answers a frame of ours that came too late: as many as that are no flood, nor are they late frames of its own.
#[test]
fn complaints_about_data_that_crossed_a_reset_are_honest() {
    let mut s = Script::client(Config::default());
    for _ in 0..200 {
        let stream = s.opened(0, false);
        for _ in 0..40 {
            s.engine.send_data(stream, &[7; 1000], false, s.now);
            s.sent();
        }
        s.engine.reset(stream, Reason::CANCEL);
        s.sent();
        s.quiet(&rst(stream, Reason::STREAM_CLOSED.0).repeat(40));
        s.quiet(&[window(0, 40_000), frame(SETTINGS, ACK, 0, &[])].concat());
    }
}

#[test]
fn refused_streams_are_counted_too() {
    let mut s = Script::server(Config {
        max_concurrent_streams: 0,
        ..Config::default()
    });
    for i in 0..1024 {
        let head = s.headers(2 * i + 1, &request(), true);
        s.breaks(&head, 2 * i + 1, Reason::REFUSED_STREAM);
    }
    let head = s.headers(2049, &request(), true);
    s.dies(&head, Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn headers_without_end_on_a_reset_stream() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.engine.reset(1, Reason::CANCEL);
    let head = s.headers(1, &trailers(), true);
    let n = until_calm(&mut s, &head);
    assert!((900..1100).contains(&n));
}

/// A hundred streams of many messages of 20 bytes each way, the peer updating both windows and
/// sending a PING for every frame that it gets: a hundred times what the budgets hold.
#[test]
fn heavy_streaming_is_honest() {
    let mut s = Script::server(Config::default());
    let message = [&[0, 0, 0, 0, 20][..], &[7; 20]].concat();
    for i in 0..100 {
        s.requested(2 * i + 1, false);
        s.engine.send_headers(2 * i + 1, &response(), false);
    }
    for _ in 0..3000 {
        for i in 0..100 {
            let stream = 2 * i + 1;
            s.one(&data(stream, &message, false));
            s.engine.credit(stream, 25);
            s.engine.send_data(stream, &message, false, s.now);
        }
        let mut back = Vec::new();
        for f in s.sent() {
            if f.kind == DATA {
                back.extend(window(f.stream, 25));
                back.extend(window(0, 25));
                back.extend(ping(1));
            }
        }
        s.quiet(&back);
    }
    assert_eq!(s.engine.pending_bytes(), 0);
}

#[test]
fn uploads_ended_early_are_honest() {
    let mut s = Script::server(Config::default());
    for i in 0..10_000 {
        let stream = 2 * i + 1;
        s.requested(stream, false);
        s.one(&data(stream, &[7; 1000], false));
        s.engine.send_headers(stream, &response(), true);
        s.engine.reset(stream, Reason::NO_ERROR);
        s.sent();
        let end = s.headers(stream, &trailers(), true);
        let late = [
            data(stream, &[7; 25], false).repeat(20),
            window(stream, 5),
            end,
        ]
        .concat();
        s.quiet(&late);
    }
}

#[test]
fn unary_calls_with_a_ping_and_updates_each_are_honest() {
    let mut s = Script::server(Config::default());
    for i in 0..20_000 {
        let stream = 2 * i + 1;
        s.requested(stream, false);
        s.one(&data(stream, b"\0\0\0\0\0", true));
        s.quiet(&[window(stream, 1000), ping(1)].concat());
        s.engine.send_headers(stream, &response(), false);
        s.engine.send_data(stream, b"\0\0\0\0\0", false, s.now);
        s.engine.send_trailers(stream, &trailers());
        s.sent();
        s.quiet(&[window(0, 5), rst(stream, 8)].concat());
    }
    assert!(s.engine.is_empty());
}

#[test]
fn cancels_of_running_streams_are_honest() {
    let mut s = Script::server(Config::default());
    for i in 0..10_000 {
        let stream = 2 * i + 1;
        s.requested(stream, false);
        s.engine.send_headers(stream, &response(), false);
        s.sent();
        s.one(&rst(stream, 8));
    }
}

/// grpc-go probes the bandwidth with a PING for each frame, and updates the connection's window, however small the message is.
#[test]
fn a_ping_for_each_tiny_message_is_honest_in_both_roles() {
    let mut server = Script::server(Config::default());
    server.requested(1, false);
    server.engine.send_headers(1, &response(), false);
    let mut client = Script::client(Config::default());
    client.opened(1, false);
    for s in [&mut server, &mut client] {
        for _ in 0..5000 {
            s.engine.send_data(1, &[7; 7], false, s.now);
            assert!(s.sent().iter().any(|f| f.kind == DATA));
            s.quiet(&[window(0, 7), window(1, 7), ping(2)].concat());
        }
    }
}

/// Both ends have the same deadline.
#[test]
fn resets_that_cross_our_own_are_honest() {
    for at_once in [1, 100, 1000] {
        let mut s = Script::client(Config::default());
        for _ in 0..4000 / at_once {
            let streams: Vec<u32> = (0..at_once).map(|key| s.opened(key, true)).collect();
            for stream in &streams {
                s.engine.reset(*stream, Reason::CANCEL);
            }
            // All are reset only when SETTINGS sent after some of them are acknowledged.
            while s.engine.cancels_waiting() > 0 {
                let sent = s.sent();
                let barrier = |f: &&Frame| f.kind == SETTINGS && f.flags == 0;
                assert_eq!(sent.iter().filter(barrier).count(), 1);
                s.quiet(&frame(SETTINGS, ACK, 0, &[]));
            }
            s.sent();
            for stream in streams {
                s.quiet(&rst(stream, 8));
            }
        }
    }
}
