//! Two owners of an engine: a server that echoes, and a client that checks the echo.
//!
//! Both keep the rules of a proxy: the peer is credited only for bytes that went on, and data is
//! handed over only while little is queued.

use std::{collections::HashMap, time::Instant};

use http2::{Connection, Event, Headers, Reason, Refusal};
use rand::{RngExt, rngs::StdRng};

use crate::support::{list, response};

/// An owner, driven by events and turns.
pub(crate) trait Owner {
    fn event(&mut self, engine: &mut Connection, event: Event<'_>, now: Instant);
    /// Called before every flush.
    fn turn(&mut self, engine: &mut Connection, now: Instant);
    /// Nothing more will come from it.
    fn done(&self, engine: &Connection) -> bool;
}

/// Echoes bodies; ends with trailers that tell the length. Paths that begin with `/reset` are
/// reset after their first data, ones with `/early` answered and reset without error.
#[derive(Default)]
pub(crate) struct Echo {
    lengths: HashMap<u32, usize>,
    pub(crate) seen: usize,
}

impl Echo {
    fn finish(&mut self, engine: &mut Connection, stream: u32) {
        if let Some(length) = self.lengths.remove(&stream) {
            engine.send_trailers(
                stream,
                &list(&[("grpc-status", "0"), ("x-length", &length.to_string())]),
            );
        }
    }
}

impl Owner for Echo {
    fn event(&mut self, engine: &mut Connection, event: Event<'_>, now: Instant) {
        match event {
            Event::Headers {
                stream,
                headers,
                end_stream,
                ..
            } => {
                self.seen += 1;
                let path = headers.get(b":path").expect("a path").to_vec();
                http2::stock::recycle(headers);
                if path.starts_with(b"/early") {
                    engine.send_headers(stream, &response(), false);
                    engine.send_trailers(stream, &list(&[("grpc-status", "0")]));
                    if !end_stream {
                        engine.reset(stream, Reason::NO_ERROR);
                    }
                    return;
                }
                if path.starts_with(b"/reset") {
                    engine.reset(stream, Reason::INTERNAL_ERROR);
                    return;
                }
                if path.ends_with(b"1") {
                    engine.send_headers(stream, &list(&[(":status", "103")]), false);
                }
                engine.send_headers(stream, &response(), false);
                self.lengths.insert(stream, 0);
                if end_stream {
                    self.finish(engine, stream);
                }
            }
            Event::Data {
                stream,
                bytes,
                end_stream,
                ..
            } => {
                let Some(length) = self.lengths.get_mut(&stream) else {
                    return;
                };
                *length += bytes.len();
                let framed = engine.send_data(stream, bytes, false, now);
                engine.credit(stream, framed);
                if end_stream {
                    self.finish(engine, stream);
                }
            }
            Event::Trailers {
                stream, headers, ..
            } => {
                http2::stock::recycle(headers);
                self.finish(engine, stream);
            }
            Event::Reset { stream, .. } => {
                self.lengths.remove(&stream);
            }
            Event::Malformed { rule, .. }
            | Event::Refused {
                why: Refusal::Malformed(rule),
                ..
            } => panic!("malformed: {rule}"),
            _ => {}
        }
    }

    fn turn(&mut self, engine: &mut Connection, now: Instant) {
        // What goes from the queues gives room for what the peer has held back.
        engine.flush(now);
        while let Some(sent) = engine.take_sent() {
            engine.credit(sent.stream, sent.bytes);
        }
    }

    fn done(&self, engine: &Connection) -> bool {
        engine.is_empty()
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Echo,
    /// Echoed; the request ends with trailers.
    Trailers,
    /// Reset by the client once so many bytes came back (or right after opening: 0).
    Cancel(usize),
    /// Reset by the server.
    Reset,
    /// Answered before the body is read.
    Early,
}

pub(crate) fn plan(rng: &mut StdRng) -> Plan {
    match rng.random_range(0..12) {
        0 => Plan::Cancel(0),
        1 => Plan::Cancel(rng.random_range(1..2000)),
        2 => Plan::Reset,
        3 => Plan::Early,
        4 | 5 => Plan::Trailers,
        _ => Plan::Echo,
    }
}

pub(crate) fn body(rng: &mut StdRng) -> Vec<u8> {
    let len = match rng.random_range(0..10) {
        0 => 0,
        1 => rng.random_range(0..300_000),
        2 | 3 => rng.random_range(0..40_000),
        _ => rng.random_range(0..100),
    };
    let start: u8 = rng.random();
    (0..len)
        .map(|i: usize| start.wrapping_add((i % 251) as u8))
        .collect()
}

pub(crate) fn path(plan: Plan, number: usize) -> String {
    match plan {
        Plan::Reset => "/reset".into(),
        Plan::Early => "/early".into(),
        _ => format!("/echo/{number}"),
    }
}

struct Call {
    plan: Plan,
    body: Vec<u8>,
    stream: Option<u32>,
    given: usize,
    back: Vec<u8>,
    /// Received and not yet credited.
    held: usize,
    over: bool,
    ended: bool,
}

/// Makes calls, several at a time, and checks what comes back.
pub(crate) struct Caller {
    rng: StdRng,
    calls: Vec<Call>,
    next: usize,
    pub(crate) whole: usize,
}

impl Caller {
    pub(crate) fn new(mut rng: StdRng, calls: usize) -> Self {
        let calls = (0..calls)
            .map(|_| Call {
                plan: plan(&mut rng),
                body: body(&mut rng),
                stream: None,
                given: 0,
                back: Vec::new(),
                held: 0,
                over: false,
                ended: false,
            })
            .collect();
        Self {
            rng,
            calls,
            next: 0,
            whole: 0,
        }
    }

    fn open(&mut self, engine: &mut Connection) {
        while self.next < self.calls.len() && engine.can_open() {
            let call = &mut self.calls[self.next];
            let mut head = Headers::new();
            head.push(b":method", b"POST");
            head.push(b":scheme", b"http");
            head.push(b":path", path(call.plan, self.next).as_bytes());
            head.push(b":authority", b"a");
            head.push(b"x-number", self.next.to_string().as_bytes());
            let end = call.body.is_empty() && call.plan == Plan::Echo;
            call.ended = end;
            call.stream = engine.open(head, end, self.next as u32).ok();
            self.next += 1;
        }
    }

    fn send(&mut self, engine: &mut Connection, now: Instant) {
        for call in &mut self.calls[..self.next] {
            let Some(stream) = call.stream.filter(|_| !call.over) else {
                continue;
            };
            if call.plan == Plan::Cancel(0) && self.rng.random_bool(0.5) {
                engine.reset(stream, Reason::CANCEL);
                call.over = true;
                continue;
            }
            while !call.ended && engine.queued(stream) < 50_000 && self.rng.random_bool(0.7) {
                let left = call.body.len() - call.given;
                let most = if self.rng.random_bool(0.5) {
                    100
                } else {
                    40_000
                };
                let n = left.min(self.rng.random_range(0..=most));
                let last = n == left && call.plan != Plan::Trailers;
                let piece = &call.body[call.given..call.given + n];
                engine.send_data(stream, piece, last, now);
                call.given += n;
                if n == left && call.plan == Plan::Trailers {
                    engine.send_trailers(stream, &list(&[("x-trailer", "1")]));
                }
                call.ended = n == left;
            }
            if call.held > 0 && self.rng.random_bool(0.5) {
                engine.credit(stream, call.held);
                call.held = 0;
            }
        }
        while engine.take_sent().is_some() {}
    }
}

impl Owner for Caller {
    fn event(&mut self, engine: &mut Connection, event: Event<'_>, _: Instant) {
        match event {
            Event::Headers {
                key,
                headers,
                end_stream,
                ..
            } => {
                let call = &self.calls[key as usize];
                assert!(!call.over && !end_stream);
                assert!(matches!(headers.status(), Some(103 | 200)));
            }
            Event::Data {
                stream, key, bytes, ..
            } => {
                let call = &mut self.calls[key as usize];
                assert!(!call.over);
                call.back.extend_from_slice(bytes);
                call.held += bytes.len();
                if matches!(call.plan, Plan::Cancel(n) if call.back.len() >= n) {
                    engine.reset(stream, Reason::CANCEL);
                    call.over = true;
                }
            }
            Event::Trailers { key, headers, .. } => {
                let call = &mut self.calls[key as usize];
                assert!(!call.over);
                call.over = true;
                if call.plan != Plan::Early {
                    let length = headers.get(b"x-length").expect("the length").to_vec();
                    assert_eq!(length, call.body.len().to_string().as_bytes());
                    assert!(call.back == call.body, "the echo differs");
                    self.whole += 1;
                } else if let Some(stream) = call.stream {
                    engine.reset(stream, Reason::CANCEL);
                }
            }
            Event::Reset {
                key,
                reason,
                by_peer,
                unprocessed,
                ..
            } => {
                let call = &mut self.calls[key as usize];
                assert!(by_peer && !call.over, "{reason:?} by the peer: {by_peer}");
                // `h2` counts a stream that it reset itself until its RST_STREAM is written, and
                // may refuse another meanwhile, though both of us know of the end.
                assert!(
                    unprocessed && reason == Reason::REFUSED_STREAM
                        || matches!(call.plan, Plan::Reset | Plan::Early),
                    "{:?}",
                    call.plan
                );
                call.over = true;
            }
            Event::Settings { .. } | Event::Pong { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn turn(&mut self, engine: &mut Connection, now: Instant) {
        self.open(engine);
        self.send(engine, now);
        engine.flush(now);
    }

    fn done(&self, engine: &Connection) -> bool {
        self.next == self.calls.len() && self.calls.iter().all(|c| c.over) && engine.is_empty()
    }
}
