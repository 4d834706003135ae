//! An owner whose calls the fuzzer chooses.
//!
//! The input is a sequence of steps: a byte that says what, then its arguments. Frames are built around the fuzzer's
//! payloads, since it would rarely guess a length and a preface; raw bytes are among the steps too.

mod steps;

use std::time::{Duration, Instant};

use http2::{Config, Connection, Event, Headers, Reason, Role};

use self::steps::Steps;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a peer could say that opens a connection, so that the fuzzer starts behind it.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];

fn headers(what: u8) -> Headers {
    let mut headers = Headers::new();
    match what % 4 {
        0 => {
            headers.push(b":method", b"POST");
            headers.push(b":path", b"/");
        }
        1 => headers.push(b":status", b"200"),
        2 => headers.push(b":status", b"103"),
        _ => headers.push(b"grpc-status", b"0"),
    }
    headers
}

/// Feeds bytes; false once the connection has ended.
fn feed(engine: &mut Connection, bytes: &[u8], now: Instant) -> bool {
    let mut input = bytes;
    loop {
        match engine.receive(&mut input, now) {
            Ok(Some(Event::Headers { headers, .. } | Event::Trailers { headers, .. })) => {
                http2::stock::recycle(headers);
            }
            Ok(Some(Event::Data {
                bytes, end_stream, ..
            })) => {
                assert!(end_stream || !bytes.is_empty());
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                assert!(input.is_empty());
                return true;
            }
            Err(e) => {
                assert_eq!(engine.receive(&mut &b"x"[..], now).unwrap_err(), e);
                return false;
            }
        }
    }
}

pub(crate) fn run(role: Role, input: &[u8]) {
    let mut now = Instant::now();
    let mut steps = Steps(input);
    let config = Config {
        max_concurrent_streams: 4,
        stream_window: 1000,
        output_limit: 2000,
        ..Config::default()
    };
    let mut engine = Connection::new(role, config, now);
    if steps.byte() % 8 > 0 {
        if role == Role::Server {
            feed(&mut engine, PREFACE, now);
        }
        feed(&mut engine, SETTINGS, now);
    }
    while !steps.0.is_empty() {
        match steps.byte() % 24 {
            0 => {
                feed(&mut engine, steps.bytes(), now);
            }
            1..=8 => {
                let (kind, flags, stream) = (steps.byte() % 11, steps.byte(), steps.stream());
                let payload = steps.bytes();
                let len = (payload.len() as u32).to_be_bytes();
                let mut frame = vec![len[1], len[2], len[3], kind, flags, 0, 0, 0, stream as u8];
                frame.extend_from_slice(payload);
                let cut = usize::from(steps.byte()) % (frame.len() + 1);
                feed(&mut engine, &frame[..cut], now);
                // The owner may act in the middle of a frame.
                engine.reset(u32::from(steps.byte()), Reason::CANCEL);
                feed(&mut engine, &frame[cut..], now);
            }
            9 | 10 => {
                let _ = engine.open(headers(0), steps.byte() % 2 == 0, 7);
            }
            11 | 12 => {
                let stream = steps.stream();
                engine.send_headers(stream, &headers(steps.byte()), steps.byte() % 4 == 0);
            }
            13 | 14 => {
                let (stream, n) = (steps.stream(), usize::from(steps.byte()));
                let bytes = vec![n as u8; n * n / 4];
                let framed = engine.send_data(stream, &bytes, steps.byte() % 4 == 0, now);
                assert!(framed <= bytes.len());
            }
            15 => engine.send_trailers(steps.stream(), &headers(3)),
            16 => engine.reset(steps.stream(), Reason::CANCEL),
            17 => engine.credit(steps.stream(), usize::from(steps.byte()) * 16),
            18 => {
                engine.flush(now);
                while engine.take_sent().is_some() {}
            }
            19 => engine.consume(usize::from(steps.byte()) * 100),
            20 => now += Duration::from_millis(u64::from(steps.byte())),
            21 => engine.set_key(steps.stream(), 9),
            22 => match steps.byte() {
                0 => engine.shutdown_notice(),
                1 => engine.shutdown(Reason::NO_ERROR),
                2 => engine.close(Reason::INTERNAL_ERROR),
                3 => engine.take_streams().for_each(drop),
                4 => engine.shrink(),
                n => engine.ping(u64::from(n)),
            },
            _ => {
                let stream = steps.stream();
                match steps.byte() % 3 {
                    0 => drop(engine.take_large_head(stream)),
                    _ => drop(engine.unqueue(stream, usize::from(steps.byte()))),
                }
            }
        }
        check(&engine, now);
    }
}

/// What always holds.
fn check(engine: &Connection, now: Instant) {
    let queued: usize = (0..64).map(|stream| engine.queued(stream)).sum();
    assert!(queued <= engine.pending_bytes());
    assert!(engine.blocked_streams().count() <= engine.stream_count());
    if engine.is_empty() {
        assert_eq!(engine.pending_bytes(), 0);
    }
    assert!(engine.oldest_blocked(now).is_none_or(|b| b.since < now));
}
