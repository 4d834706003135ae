//! GOAWAY both ways, and what is left when a connection ends (RFC 9113 §6.8).

use http2::{Config, Orphan, Reason};

use crate::support::*;

fn last_and_reason(frame: &Frame) -> (u32, u32) {
    assert_eq!(frame.kind, GOAWAY);
    let at = |i: usize| u32::from_be_bytes(frame.payload[i..i + 4].try_into().unwrap());
    (at(0), at(4))
}

#[test]
fn a_graceful_end_is_a_notice_a_ping_and_the_last_stream() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.shutdown_notice();
    s.engine.ping(5);
    let sent = s.sent();
    assert_eq!(last_and_reason(&sent[0]), (0x7fff_ffff, 0));
    assert!(s.engine.going_away());
    s.requested(3, true);
    assert_eq!(s.one(&pong(5)), Got::Pong(5));
    s.engine.shutdown(Reason::NO_ERROR);
    s.engine.shutdown(Reason::NO_ERROR);
    let sent = s.sent();
    assert_eq!((sent.len(), last_and_reason(&sent[0])), (1, (3, 0)));
    let late = s.headers(5, &request(), true);
    // No limit acted: there is nothing to tell.
    assert_eq!(s.breaks(&late, 5, Reason::REFUSED_STREAM), []);
    for stream in [1, 3] {
        s.engine.send_headers(stream, &response(), true);
    }
    assert_eq!(s.sent().len(), 2);
    assert!(s.engine.is_empty());
    s.dies(&frame(PING, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR);
}

#[test]
fn the_last_stream_that_we_name_never_goes_up() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    s.engine.shutdown(Reason::NO_ERROR);
    let late = s.headers(3, &request(), true);
    s.feed(&late).unwrap();
    s.engine.close(Reason::INTERNAL_ERROR);
    let sent = s.sent();
    assert_eq!(last_and_reason(sent.last().unwrap()), (1, 2));
}

#[test]
fn a_peer_s_goaway_leaves_later_streams_unprocessed() {
    let mut s = Script::client(Config::default());
    for key in 0..3 {
        s.opened(key, false);
    }
    s.engine.open(request(), false, 3).unwrap();
    let got = s.feed(&goaway(3, 0)).unwrap();
    let left = |stream, key, headers_left| Got::Reset {
        stream,
        key,
        reason: Reason::NO_ERROR,
        by_peer: true,
        unprocessed: true,
        headers_left,
    };
    assert_eq!(
        got,
        [
            Got::GoAway(3, Reason::NO_ERROR, vec![]),
            left(5, 2, true),
            left(7, 3, false)
        ]
    );
    assert!(s.engine.going_away() && s.engine.stream_count() == 2 && !s.engine.can_open());
    assert!(s.sent().is_empty(), "the unopened one isn't opened");
    // The ones below finish.
    let head = s.headers(3, &response(), true);
    assert!(matches!(s.one(&head), Got::Headers(3, 1, _, true)));
    // What was under way for the ones above is dropped.
    let head = s.headers(5, &response(), false);
    s.quiet(&head);
}

#[test]
fn a_stream_left_behind_says_whether_the_socket_had_any_of_it() {
    let mut s = Script::client(Config::default());
    s.opened(0, true);
    // Three heads wait for the socket, which takes all of the first and one byte of the second.
    s.engine.open(request(), true, 1).unwrap();
    s.engine.flush(s.now);
    s.engine.consume(s.engine.output().len());
    s.engine.open(request(), true, 2).unwrap();
    s.engine.open(request(), true, 3).unwrap();
    s.engine.flush(s.now);
    s.engine.consume(1);
    let got = s.feed(&goaway(1, 0)).unwrap();
    let told: Vec<_> = got
        .iter()
        .filter_map(|event| match event {
            Got::Reset {
                key, headers_left, ..
            } => Some((*key, *headers_left)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, true), (2, true), (3, false)]);
}

#[test]
fn a_notice_of_the_peer_s_stops_unopened_streams_only() {
    let mut s = Script::client(Config::default());
    s.opened(0, true);
    s.engine.open(request(), false, 1).unwrap();
    let got = s.feed(&goaway(0x7fff_ffff, 0)).unwrap();
    assert!(matches!(
        got[..],
        [
            Got::GoAway(..),
            Got::Reset {
                key: 1,
                unprocessed: true,
                ..
            }
        ]
    ));
    assert_eq!(s.feed(&goaway(1, 0)).unwrap().len(), 1);
    assert_eq!(s.engine.stream_count(), 1);
}

#[test]
fn a_client_s_goaway_ends_nothing() {
    let mut s = Script::server(Config::default());
    s.requested(1, true);
    let got = s.one(&goaway(0, 0));
    assert_eq!(got, Got::GoAway(0, Reason::NO_ERROR, vec![]));
    assert_eq!(s.engine.stream_count(), 1);
}

#[test]
fn closing_tells_the_peer_and_receives_no_more() {
    let mut s = Script::client(Config::default());
    s.opened(0, true);
    s.engine.open(request(), true, 1).unwrap();
    s.engine.close(Reason::ENHANCE_YOUR_CALM);
    s.engine.close(Reason::NO_ERROR);
    s.engine.ping(1);
    s.engine.reset(1, Reason::CANCEL);
    let sent = s.sent();
    assert_eq!((sent.len(), last_and_reason(&sent[0])), (1, (0, 0xb)));
    assert_eq!(
        s.feed(&ping(1)).unwrap_err().reason,
        Reason::ENHANCE_YOUR_CALM
    );
    let orphans: Vec<_> = s.engine.take_streams().collect();
    assert_eq!(
        orphans,
        [
            Orphan {
                stream: 1,
                key: 0,
                headers_left: true
            },
            Orphan {
                stream: 3,
                key: 1,
                headers_left: false
            }
        ]
    );
    assert!(s.engine.is_empty() && s.engine.take_streams().next().is_none());
}

#[test]
fn an_early_answer_may_be_followed_by_a_reset_without_error() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.engine.send_headers(1, &response(), true);
    s.engine.reset(1, Reason::NO_ERROR);
    let sent = s.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(frames(&rst(1, 0)), sent[1..]);
    s.quiet(&data(1, &[0; 1000], true));
}

#[test]
fn streams_left_behind_are_told_once_also_if_the_connection_ends_first() {
    let mut s = Script::client(Config::default());
    s.opened(5, true);
    s.opened(6, true);
    let bytes = goaway(1, 0);
    let mut input = &bytes[..];
    let event = s.engine.receive(&mut input, s.now);
    assert!(matches!(event, Ok(Some(http2::Event::GoAway { .. }))));
    s.engine.close(Reason::NO_ERROR);
    let mut orphans: Vec<_> = s
        .engine
        .take_streams()
        .map(|o| (o.key, o.headers_left))
        .collect();
    orphans.sort_unstable();
    assert_eq!(orphans, [(5, true), (6, false)]);
    assert!(s.feed(&[]).is_err());
}
