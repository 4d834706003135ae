//! Resets towards a backend are paced.

use std::time::Duration;

use http2::{Config, Reason, Role, UNCONFIRMED};

use crate::support::*;

/// As many as may be under way.
const FULL: u32 = UNCONFIRMED as u32;

fn resets(sent: &[Frame]) -> Vec<u32> {
    sent.iter()
        .filter(|f| f.kind == RST_STREAM)
        .map(|f| f.stream)
        .collect()
}

/// The empty SETTINGS among them. A PING would be a strike for a grpc server.
fn barriers(sent: &[Frame]) -> usize {
    assert!(!sent.iter().any(|f| f.kind == PING), "{sent:?}");
    let barriers = sent.iter().filter(|f| f.kind == SETTINGS && f.flags == 0);
    barriers
        .inspect(|f| assert_eq!((f.stream, &f.payload[..]), (0, &[][..])))
        .count()
}

fn acknowledgement() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

/// Opens and cancels `n` streams; what went out.
fn cancel(s: &mut Script, n: u32) -> Vec<Frame> {
    for key in 0..n {
        let stream = s.opened(key, false);
        s.engine.reset(stream, Reason::CANCEL);
        assert!(s.engine.is_empty(), "for the owner it is gone");
    }
    s.sent()
}

#[test]
fn one_too_many_waits_for_the_acknowledgement_of_a_barrier() {
    let mut s = Script::client(Config::default());
    let sent = cancel(&mut s, FULL);
    assert_eq!(resets(&sent).len(), 1, "each in its own flush");
    assert_eq!(barriers(&sent), 0);
    let stream = s.opened(0, false);
    s.engine.reset(stream, Reason::CANCEL);
    s.engine.reset(stream, Reason::CANCEL);
    let sent = s.sent();
    assert_eq!(resets(&sent), []);
    assert_eq!(barriers(&sent), 1);
    // What comes for it meanwhile is swallowed, and credited.
    assert!(s.sent().is_empty());
    s.quiet(&acknowledgement());
    assert_eq!(resets(&s.sent()), [stream]);
    s.quiet(&data(stream, b"late", false));
}

/// grpc-go, with streams that say nothing: a PING within five minutes of the last one is a strike, unless it has sent HEADERS
/// or DATA in between, and at the third it says GOAWAY to all who share the connection.
#[test]
fn a_wave_of_cancels_is_no_strike_for_a_grpc_server() {
    let mut s = Script::client(Config::default());
    let streams: Vec<u32> = (0..50 * FULL).map(|key| s.opened(key, false)).collect();
    for stream in &streams {
        s.engine.reset(*stream, Reason::CANCEL);
    }
    let mut gone = Vec::new();
    for round in 1.. {
        let sent = s.sent();
        gone.extend(resets(&sent));
        assert_eq!(gone.len(), UNCONFIRMED * round);
        let wanted = usize::from(gone.len() < streams.len());
        assert_eq!(
            barriers(&sent),
            wanted,
            "one at a time, and none for nothing"
        );
        if wanted == 0 {
            break;
        }
        assert!(s.sent().is_empty());
        s.quiet(&acknowledgement());
    }
    assert_eq!(gone, streams);
}

#[test]
fn a_barrier_waits_for_the_acknowledgement_of_our_first_settings() {
    let mut s = Script::raw(Role::Client, Config::default());
    s.one(&settings(&[]));
    s.sent();
    let began = s.now;
    cancel(&mut s, FULL);
    let since = |s: &Script| {
        let engine = &s.engine;
        (
            engine.settings_unacked_since(),
            engine.barrier_unacked_since(),
        )
    };
    assert_eq!(since(&s), (Some(began), None), "so many may go without one");
    s.pass(Duration::from_secs(1));
    let wanted = s.now;
    let stream = s.opened(0, false);
    s.engine.reset(stream, Reason::CANCEL);
    for _ in 0..2 {
        assert_eq!(s.sent(), []);
        assert_eq!(since(&s), (Some(began), Some(wanted)));
        s.pass(Duration::from_millis(1));
    }
    // It proves nothing: these SETTINGS were sent before the streams.
    s.quiet(&acknowledgement());
    let sent = s.sent();
    assert_eq!((resets(&sent), barriers(&sent)), (vec![], 1));
    assert_eq!(since(&s), (None, Some(s.now)));
    s.quiet(&acknowledgement());
    assert_eq!(since(&s), (None, None));
    assert_eq!(resets(&s.sent()), [stream]);
    // What nobody asked for draws on the budget.
    s.dies(&acknowledgement().repeat(1200), Reason::ENHANCE_YOUR_CALM);
}

/// What a slow reader hasn't been asked yet it can't have answered.
#[test]
fn a_barrier_is_awaited_from_when_it_has_left() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let [stream, upload] = [0, 1].map(|key| s.opened(key, false));
    s.engine.reset(stream, Reason::CANCEL);
    s.engine.send_data(upload, &[7; 1000], true, s.now);
    s.engine.flush(s.now);
    let written = s.engine.output().len();
    assert!(written > 1000);
    for left in [written - 1, 1] {
        s.pass(Duration::from_secs(30));
        s.engine.flush(s.now);
        assert_eq!(s.engine.barrier_unacked_since(), None);
        s.engine.consume(left);
    }
    assert_eq!(s.engine.barrier_unacked_since(), Some(s.now));
    s.engine.ping(1);
    let since = s.now;
    s.pass(Duration::from_secs(1));
    s.sent();
    assert_eq!(s.engine.barrier_unacked_since(), Some(since));
}

#[test]
fn a_barrier_that_is_not_wanted_any_more_is_not_awaited() {
    let mut s = Script::raw(Role::Client, Config::default());
    s.one(&settings(&[]));
    cancel(&mut s, FULL);
    let stream = s.opened(0, false);
    s.engine.reset(stream, Reason::CANCEL);
    s.sent();
    assert_eq!(s.engine.barrier_unacked_since(), Some(s.now));
    // It crossed the reset.
    let head = s.headers(stream, &response(), false);
    s.quiet(&head);
    assert_eq!(resets(&s.sent()), [stream]);
    assert_eq!(s.engine.barrier_unacked_since(), None);
    s.quiet(&acknowledgement());
    assert_eq!(s.sent(), []);
}

/// Go's net/http2 reads on while it writes, and then has one acknowledgement for all SETTINGS that have come
/// (`needToSendSettingsAck` in its `server.go`): of two, nobody would know which it is of.
#[test]
fn a_wave_of_cancels_has_one_settings_frame_under_way_at_a_time() {
    let mut s = Script::raw(Role::Client, Config::default());
    s.one(&settings(&[]));
    let streams: Vec<u32> = (0..500).map(|key| s.opened(key, false)).collect();
    for stream in &streams {
        s.engine.reset(*stream, Reason::CANCEL);
    }
    // Our first ones, which left with the first stream.
    let mut unacknowledged = 1;
    let mut gone = Vec::new();
    loop {
        for _ in 0..3 {
            let sent = s.sent();
            gone.extend(resets(&sent));
            unacknowledged += barriers(&sent);
        }
        if gone.len() == streams.len() {
            break;
        }
        assert_eq!(unacknowledged, 1, "after {} resets", gone.len());
        s.quiet(&acknowledgement());
        unacknowledged = 0;
    }
    assert_eq!(gone, streams);
}

#[test]
fn a_waiting_stream_swallows_its_response() {
    let mut s = Script::client(Config {
        stream_window: 70_000,
        connection_window: 70_000,
        ..Config::default()
    });
    cancel(&mut s, FULL);
    let a = s.opened(7, false);
    let b = s.opened(7, true);
    s.engine.reset(a, Reason::CANCEL);
    s.engine.reset(b, Reason::CANCEL);
    s.sent();
    assert_eq!(s.engine.take_streams().count(), 0);
    let mut s = Script::client(Config {
        stream_window: 70_000,
        connection_window: 70_000,
        ..Config::default()
    });
    cancel(&mut s, FULL);
    let a = s.opened(7, true);
    s.engine.reset(a, Reason::CANCEL);
    s.sent();
    // An informational head doesn't prove that the stream was accepted by the application, a
    // final one does: then the reset need not wait.
    let early = s.headers(a, &list(&[(":status", "103")]), false);
    s.quiet(&early);
    assert_eq!(resets(&s.sent()), []);
    let head = s.headers(a, &response(), false);
    s.quiet(&head);
    assert_eq!(resets(&s.sent()), [a]);
    s.quiet(&data(a, &[0; 16_000], false).repeat(4));
    assert_eq!(
        s.sent().iter().filter(|f| f.kind == WINDOW_UPDATE).count(),
        1
    );
}

#[test]
fn a_response_on_a_later_stream_confirms_without_a_barrier() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let live = s.opened(1, true);
    let head = s.headers(live, &response(), true);
    s.one(&head);
    let sent = cancel(&mut s, FULL);
    assert_eq!((resets(&sent).len(), barriers(&sent)), (1, 0));
}

#[test]
fn streams_that_were_answered_are_reset_at_once() {
    let mut s = Script::client(Config::default());
    for key in 0..50 {
        let stream = s.opened(key, false);
        let head = s.headers(stream, &response(), false);
        s.one(&head);
        s.engine.reset(stream, Reason::CANCEL);
        assert_eq!(resets(&s.sent()), [stream]);
    }
}

#[test]
fn a_reset_by_the_peer_ends_a_waiting_one_silently() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let stream = s.opened(1, false);
    s.engine.reset(stream, Reason::CANCEL);
    assert_eq!(barriers(&s.sent()), 1);
    s.quiet(&rst(stream, 8));
    s.quiet(&acknowledgement());
    assert_eq!(resets(&s.sent()), []);
}

#[test]
fn waiting_streams_count_against_the_peer_s_limit() {
    let mut s = Script::client_after(Config::default(), &[(3, 1)]);
    cancel(&mut s, FULL);
    let stream = s.opened(1, false);
    s.engine.reset(stream, Reason::CANCEL);
    assert!(s.engine.is_empty() && !s.engine.can_open());
}

#[test]
fn a_server_never_waits() {
    let mut s = Script::server(Config::default());
    for i in 0..50 {
        s.requested(2 * i + 1, false);
        s.engine.reset(2 * i + 1, Reason::CANCEL);
        assert_eq!(resets(&s.sent()).len(), 1);
    }
}

#[test]
fn a_late_response_confirms_too() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let stream = s.opened(1, false);
    s.engine.reset(stream, Reason::CANCEL);
    assert_eq!(barriers(&s.sent()), 1);
    // It crossed the reset of the last stream that went.
    let head = s.headers(2 * FULL - 1, &response(), true);
    s.quiet(&head);
    assert_eq!(resets(&s.sent()), [stream]);
}

#[test]
fn each_that_waited_is_told_once_when_it_goes() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let mut streams = Vec::new();
    let mut asked = 0;
    for key in 0..2 * FULL + 5 {
        let stream = s.opened(key, false);
        s.engine.reset(stream, Reason::CANCEL);
        asked += barriers(&s.sent());
        streams.push(stream);
    }
    assert_eq!(asked, 1);
    let told = |s: &mut Script| {
        let mut told: Vec<_> = std::iter::from_fn(|| s.engine.take_cancelled()).collect();
        told.sort_unstable();
        told
    };
    let (first, rest) = streams.split_at(UNCONFIRMED);
    let (second, last) = rest.split_at(UNCONFIRMED);
    assert_eq!(told(&mut s), []);
    assert_eq!(s.engine.cancels_waiting(), streams.len());
    s.quiet(&rst(last[4], 8));
    assert_eq!(told(&mut s), last[4..]);
    s.quiet(&acknowledgement());
    assert_eq!(told(&mut s), first);
    assert_eq!(s.engine.cancels_waiting(), UNCONFIRMED + 4);
    assert_eq!(barriers(&s.sent()), 1);
    s.quiet(&acknowledgement());
    assert_eq!(told(&mut s), second);
    let head = s.headers(last[3], &response(), true);
    s.quiet(&head);
    assert_eq!(told(&mut s), last[..4]);
    assert_eq!((told(&mut s), s.engine.cancels_waiting()), (vec![], 0));
}

#[test]
fn one_that_waits_is_not_the_one_of_which_most_is_unread() {
    let mut s = Script::client(Config::default());
    cancel(&mut s, FULL);
    let [most, less] = [20_000, 10_000].map(|bytes| {
        let stream = s.opened(0, false);
        s.engine.send_data(stream, &vec![1; bytes], false, s.now);
        stream
    });
    s.sent();
    let unread = |s: &Script| s.engine.most_unread().map(|most| most.stream);
    assert_eq!(unread(&s), Some(most));
    s.engine.reset(most, Reason::CANCEL);
    s.sent();
    assert!(s.engine.cancel_waits(most));
    assert_eq!(unread(&s), Some(less));
}
