//! Flow control both ways (RFC 9113 §5.2, §6.9).

use http2::{BlockedBy, Config, Reason, Role, Sent};

use crate::support::*;

fn updates(sent: &[Frame]) -> Vec<(u32, u32)> {
    sent.iter()
        .filter(|f| f.kind == WINDOW_UPDATE)
        .map(|f| {
            (
                f.stream,
                u32::from_be_bytes(f.payload[..].try_into().unwrap()),
            )
        })
        .collect()
}

fn data_of(sent: &[Frame]) -> Vec<(u32, usize, bool)> {
    sent.iter()
        .filter(|f| f.kind == DATA)
        .map(|f| (f.stream, f.payload.len(), f.flags & END_STREAM != 0))
        .collect()
}

fn small() -> Config {
    Config {
        stream_window: 1000,
        connection_window: 70_000,
        ..Config::default()
    }
}

#[test]
fn credit_comes_back_at_half_a_window() {
    let mut s = Script::server(Config {
        stream_window: 70_000,
        ..small()
    });
    s.requested(1, false);
    for _ in 0..5 {
        s.feed(&data(1, &[0; 14_000], false)).unwrap();
    }
    s.engine.credit(1, 34_999);
    assert_eq!(updates(&s.sent()), []);
    s.engine.credit(1, 1);
    assert_eq!(updates(&s.sent()), [(0, 35_000), (1, 35_000)]);
    s.engine.credit(1, 1 << 40);
    assert_eq!(
        updates(&s.sent()),
        [(0, 35_000), (1, 35_000)],
        "no more than was delivered"
    );
}

#[test]
fn nothing_is_announced_for_a_stream_that_the_peer_has_ended() {
    let mut s = Script::server(small());
    s.requested(1, false);
    s.feed(&data(1, &[0; 1000], true)).unwrap();
    s.engine.credit(1, 1000);
    assert_eq!(updates(&s.sent()), []);
}

#[test]
fn data_beyond_the_stream_s_window_is_an_error_of_the_stream() {
    let mut s = Script::server(small());
    s.requested(1, false);
    s.one(&data(1, &[0; 1000], false));
    s.breaks(&data(1, &[0; 1], false), 1, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn data_beyond_the_connection_s_window_ends_it() {
    let mut s = Script::server(Config {
        stream_window: 1 << 20,
        ..small()
    });
    s.requested(1, false);
    for _ in 0..4 {
        s.one(&data(1, &[0; 16_384], false));
    }
    s.one(&data(1, &[0; 4_464], false));
    s.dies(&data(1, &[0; 1], false), Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn until_our_settings_are_acknowledged_the_initial_window_holds() {
    let mut s = Script::raw(Role::Server, small());
    s.feed(&[PREFACE, &settings(&[])].concat()).unwrap();
    s.requested(1, false);
    for _ in 0..4 {
        s.feed(&data(1, &[0; 16_000], false)).unwrap();
    }
    assert_eq!(s.sent().iter().filter(|f| f.kind == RST_STREAM).count(), 0);
    s.quiet(&frame(SETTINGS, ACK, 0, &[]));
    s.breaks(&data(1, &[0; 1], false), 1, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn padding_is_credited_at_once() {
    let mut s = Script::server(small());
    s.requested(1, false);
    let padded = frame(DATA, PADDED, 1, &[&[250][..], &[7], &[0; 250]].concat());
    assert_eq!(s.one(&padded), Got::Data(1, u32::MAX, vec![7], false));
    s.one(&padded);
    assert_eq!(updates(&s.sent()), [(1, 502)]);
}

#[test]
fn a_window_tells_what_nobody_gave_credit_for() {
    let mut s = Script::server(small());
    s.requested(1, false);
    let whole = s.engine.windows();
    assert_eq!((whole.outstanding(), whole.unannounced), (0, 0));
    s.feed(&data(1, &[0; 600], false)).unwrap();
    assert_eq!(s.engine.windows().outstanding(), 600);
    s.engine.credit(1, 200);
    let some = s.engine.windows();
    assert_eq!((some.outstanding(), some.unannounced), (400, 200));
    s.engine.reset(1, Reason::CANCEL);
    assert_eq!(s.engine.windows().outstanding(), 0);
}

#[test]
fn what_a_stream_held_is_credited_to_the_connection_when_it_goes() {
    let mut s = Script::server(Config {
        stream_window: 70_000,
        ..small()
    });
    s.requested(1, false);
    s.feed(&data(1, &[0; 15_000], false).repeat(3)).unwrap();
    assert_eq!(updates(&s.sent()), []);
    s.engine.reset(1, Reason::CANCEL);
    assert_eq!(updates(&s.sent()), [(0, 45_000)]);
    // And what comes late for it.
    s.quiet(&data(1, &[0; 15_000], false));
    s.quiet(&data(1, &[0; 10_000], false));
    s.quiet(&data(1, &[0; 10_000], false));
    assert_eq!(updates(&s.sent()), [(0, 35_000)]);
}

#[test]
fn a_frame_that_is_cut_by_a_reset_is_credited_whole() {
    let mut s = Script::server(Config {
        stream_window: 70_000,
        ..small()
    });
    s.requested(1, false);
    let bytes = data(1, &[0; 16_000], false);
    for _ in 0..2 {
        s.one(&bytes);
    }
    s.one(&bytes[..9 + 5000]);
    s.engine.reset(1, Reason::CANCEL);
    assert_eq!(updates(&s.sent()), [(0, 37_000)]);
    s.quiet(&bytes[9 + 5000..]);
    s.requested(3, false);
    for _ in 0..3 {
        s.feed(&data(3, &[0; 16_000], false)).unwrap();
    }
    s.engine.credit(3, 48_000);
    assert_eq!(updates(&s.sent())[0], (0, 48_000 + 11_000));
}

#[test]
fn who_waits_for_the_output_waits_for_no_window() {
    let second = std::time::Duration::from_secs(1);
    let config = Config {
        output_limit: 1000,
        ..Config::default()
    };
    let mut s = Script::server_after(config, &[(4, 100_000)]);
    s.quiet(&window(0, 100_000 - 65_535));
    for stream in [1, 3] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
        s.engine.send_data(stream, &[0; 80_000], false, s.now);
    }
    assert_eq!(s.engine.window_shut(5), None);
    for stream in [1, 3] {
        assert!(s.engine.blocked(stream).is_some());
        assert_eq!(s.engine.window_shut(stream), None);
    }
    // The connection's window is used up later: since then.
    while s.engine.windows().send > 0 {
        s.pass(second);
        s.sent();
    }
    let shut = s.now;
    s.pass(second);
    for stream in [1, 3] {
        assert_eq!(s.engine.window_shut(stream), Some(shut));
    }
    // A byte of credit is for one of them.
    s.quiet(&window(0, 1));
    assert_eq!(s.engine.window_shut(1), None);
    s.sent();
    let since = [1, 3].map(|stream| s.engine.window_shut(stream).unwrap());
    assert_eq!(
        (since[0].max(since[1]), since[0].min(since[1])),
        (s.now, shut)
    );
    // As much as a frame is for all, also if it came by bits.
    for _ in 0..16 {
        s.pass(second);
        s.quiet(&window(0, 1024));
        s.sent();
    }
    for stream in [1, 3] {
        assert_eq!(s.engine.window_shut(stream), Some(s.now), "anew");
    }
    // Its own: since bytes wait for that.
    s.quiet(&window(0, 1 << 20));
    s.engine.send_data(3, &[0; 50_000], false, s.now);
    while s.engine.queued(3) > 80_000 + 50_000 - 100_000 {
        assert_eq!(s.engine.window_shut(3), None);
        s.pass(second);
        s.sent();
    }
    let shut = s.now;
    s.pass(second);
    assert_eq!(s.engine.window_shut(3), Some(shut));
}

#[test]
fn sending_stops_at_the_stream_s_window_and_goes_on_with_credit() {
    let mut s = Script::server_after(Config::default(), &[(4, 10)]);
    s.requested(1, true);
    s.engine.set_key(1, 8);
    s.engine.send_headers(1, &response(), false);
    assert_eq!(s.engine.send_data(1, &[1; 2000], false, s.now), 10);
    assert_eq!(data_of(&s.sent()), [(1, 10, false)]);
    assert_eq!((s.engine.queued(1), s.engine.pending_bytes()), (1990, 1990));
    assert_eq!(s.engine.take_sent(), None);
    let since = s.now;
    s.pass(std::time::Duration::from_secs(1));
    assert_eq!(s.engine.blocked(1), Some(since));
    let oldest = s.engine.oldest_blocked(s.now).unwrap();
    assert_eq!((oldest.stream, oldest.key, oldest.since), (1, 8, since));
    assert_eq!(oldest.by, BlockedBy::StreamWindow);

    s.quiet(&window(1, 90));
    assert_eq!(data_of(&s.sent()), [(1, 90, false)]);
    assert_eq!(
        s.engine.take_sent(),
        Some(Sent {
            stream: 1,
            key: 8,
            bytes: 90,
            end_stream: false
        })
    );
    assert_eq!(s.engine.blocked(1), Some(s.now), "progress counts");
    s.engine.send_data(1, b"end", true, s.now);
    s.quiet(&window(1, 5000));
    assert_eq!(data_of(&s.sent()), [(1, 1903, true)]);
    assert!(s.engine.is_empty() && s.engine.pending_bytes() == 0);
    assert_eq!(s.engine.oldest_blocked(s.now), None);
}

#[test]
fn sending_stops_at_the_connection_s_window() {
    let mut s = Script::server_after(Config::default(), &[(4, 1 << 20)]);
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    let sent = s.engine.send_data(1, &[1; 70_000], true, s.now);
    assert_eq!(sent, 65_535);
    s.sent();
    assert_eq!(
        s.engine.blocked_streams().next().unwrap().by,
        BlockedBy::ConnectionWindow
    );
    s.quiet(&window(0, 4465));
    assert_eq!(data_of(&s.sent()), [(1, 4465, true)]);
}

#[test]
fn most_is_unread_of_the_stream_that_got_least_credit_back() {
    let mut s = Script::server(Config::default());
    assert_eq!(s.engine.most_unread(), None);
    for (stream, bytes) in [(1, 10_000), (3, 20_000), (5, 15_000)] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
        s.engine.send_data(stream, &vec![1; bytes], false, s.now);
    }
    s.sent();
    let most = |s: &Script| s.engine.most_unread().map(|most| (most.stream, most.bytes));
    assert_eq!(most(&s), Some((3, 20_000)));
    s.quiet(&window(3, 6000));
    assert_eq!(most(&s), Some((5, 15_000)));
    // More than it began with.
    for stream in [1, 3, 5] {
        s.quiet(&window(stream, 30_000));
    }
    assert_eq!(most(&s), None);
    let credits = s.engine.windows().credits;
    s.quiet(&window(0, 1));
    assert_eq!(s.engine.windows().credits, credits + 1);
}

#[test]
fn settings_move_the_windows_of_live_streams_below_zero_too() {
    let mut s = Script::server_after(Config::default(), &[(4, 5000)]);
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    assert_eq!(s.engine.send_data(1, &[1; 6000], false, s.now), 5000);
    s.sent();
    s.feed(&settings(&[(4, 1000)])).unwrap();
    s.quiet(&window(1, 4000));
    assert_eq!(data_of(&s.sent()), [], "still at zero");
    s.quiet(&window(1, 1));
    assert_eq!(data_of(&s.sent()), [(1, 1, false)]);
    s.feed(&settings(&[(4, 1100)])).unwrap();
    assert_eq!(data_of(&s.sent()), [(1, 100, false)]);
}

#[test]
fn windows_above_the_maximum_are_errors() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.breaks(&window(1, 0x7fff_ffff), 1, Reason::FLOW_CONTROL_ERROR);
    s.dies(&window(0, 0x7fff_ffff), Reason::FLOW_CONTROL_ERROR);

    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.quiet(&window(1, 0x7fff_ffff - 65_535));
    s.dies(&settings(&[(4, 65_536)]), Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn updates_of_zero_are_errors() {
    let mut s = Script::server(Config::default());
    s.requested(1, false);
    s.breaks(&window(1, 0), 1, Reason::PROTOCOL_ERROR);
    s.dies(&window(0, 0), Reason::PROTOCOL_ERROR);
}

#[test]
fn frames_keep_to_the_peer_s_present_maximum() {
    let mut s = Script::server_after(Config::default(), &[(4, 1 << 20), (5, 20_000)]);
    s.quiet(&window(0, 1 << 20));
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_data(1, &[1; 50_000], false, s.now);
    assert_eq!(
        data_of(&s.sent()),
        [(1, 20_000, false), (1, 20_000, false), (1, 10_000, false)]
    );
    s.feed(&settings(&[(5, 16_384)])).unwrap();
    s.engine.send_data(1, &[1; 20_000], true, s.now);
    assert_eq!(data_of(&s.sent()), [(1, 16_384, false), (1, 3616, true)]);
}

#[test]
fn streams_share_a_window_that_comes_back() {
    let mut s = Script::server_after(Config::default(), &[(4, 1 << 20)]);
    for stream in [1, 3, 5] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
    }
    s.engine.send_data(1, &[1; 65_535], false, s.now);
    for stream in [1, 3, 5] {
        assert_eq!(s.engine.send_data(stream, &[2; 100_000], false, s.now), 0);
    }
    s.sent();
    s.quiet(&window(0, 3 * 16_384));
    // What arrives now must not overtake what waits.
    assert_eq!(s.engine.send_data(5, &[3; 5000], false, s.now), 0);
    let shares = data_of(&s.sent());
    assert_eq!(
        shares,
        [(1, 16_384, false), (3, 16_384, false), (5, 16_384, false)]
    );
    s.quiet(&window(0, 16_384));
    assert_eq!(data_of(&s.sent()), [(1, 16_384, false)]);
    s.quiet(&window(0, 16_384));
    assert_eq!(data_of(&s.sent()), [(3, 16_384, false)]);
}

#[test]
fn streams_share_the_output() {
    let config = Config {
        output_limit: 20_000,
        ..Config::default()
    };
    let mut s = Script::server_after(config, &[(4, 1 << 20)]);
    s.quiet(&window(0, 1 << 20));
    for stream in [1, 3] {
        s.requested(stream, true);
        s.engine.send_headers(stream, &response(), false);
    }
    assert_eq!(
        s.engine.send_data(1, &[1; 100_000], false, s.now),
        2 * 16_384
    );
    assert_eq!(s.engine.send_data(3, &[1; 100_000], false, s.now), 0);
    assert_eq!(
        s.engine.blocked_streams().next().unwrap().by,
        BlockedBy::Output
    );
    assert_eq!(s.sent().len(), 4);
    assert_eq!(data_of(&s.sent()), [(1, 16_384, false), (3, 16_384, false)]);
    assert_eq!(data_of(&s.sent()), [(1, 16_384, false), (3, 16_384, false)]);
}

#[test]
fn large_frames_don_t_make_turns_longer() {
    let mut s = Script::server_after(Config::default(), &[(4, 1 << 20), (5, 1 << 20)]);
    s.quiet(&window(0, 1 << 20));
    s.requested(1, true);
    s.engine.send_headers(1, &response(), false);
    s.engine.send_data(1, &[1; 100_000], true, s.now);
    assert_eq!(data_of(&s.sent()), [(1, 65_536, false), (1, 34_464, true)]);
}

/// The client has used the larger window that it had before it read our SETTINGS (RFC 9113 §6.9.3).
#[test]
fn an_end_without_a_byte_comes_through_a_window_below_zero() {
    let mut s = Script::raw(
        Role::Server,
        Config {
            stream_window: 16_384,
            ..Config::default()
        },
    );
    assert_eq!(
        s.feed(&[PREFACE, &settings(&[])].concat()),
        Ok(vec![Got::Settings(true)])
    );
    s.requested(1, false);
    for _ in 0..3 {
        assert!(matches!(
            s.one(&data(1, &[0; 16_384], false)),
            Got::Data(..)
        ));
    }
    s.quiet(&frame(SETTINGS, ACK, 0, &[]));
    assert_eq!(
        s.one(&data(1, b"", true)),
        Got::Data(1, u32::MAX, vec![], true)
    );
}
