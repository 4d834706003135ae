//! A peer made of raw frames, and an owner that remembers every event.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::time::{Duration, Instant};

use http2::{
    Config, Connection, ConnectionError, Event, Headers, Reason, Refusal, Role,
    hpack::{Decoder, Encoder},
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIO: u8 = 0x20;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it is on the wire.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH PING GOAWAY WINDOW CONT";
        let name = names.split(' ').nth(self.kind as usize).unwrap_or("?");
        write!(
            f,
            "{name}[{:#x}, {}, {} B",
            self.flags,
            self.stream,
            self.payload.len()
        )?;
        if self.payload.len() <= 8 {
            write!(f, " {:?}]", self.payload)
        } else {
            write!(f, "]")
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, v)| [&id.to_be_bytes()[..], &v.to_be_bytes()[..]].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

pub(crate) fn rst(stream: u32, reason: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &reason.to_be_bytes())
}

pub(crate) fn ping(payload: u64) -> Vec<u8> {
    frame(PING, 0, 0, &payload.to_be_bytes())
}

pub(crate) fn pong(payload: u64) -> Vec<u8> {
    frame(PING, ACK, 0, &payload.to_be_bytes())
}

pub(crate) fn goaway(last: u32, reason: u32) -> Vec<u8> {
    frame(
        GOAWAY,
        0,
        0,
        &[last.to_be_bytes(), reason.to_be_bytes()].concat(),
    )
}

pub(crate) fn data(stream: u32, bytes: &[u8], end: bool) -> Vec<u8> {
    frame(DATA, u8::from(end), stream, bytes)
}

/// All whole frames in `bytes`; panics on a rest.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut all = Vec::new();
    if let Some(rest) = bytes.strip_prefix(PREFACE) {
        bytes = rest;
    }
    while !bytes.is_empty() {
        let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        all.push(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
            payload: bytes[9..9 + len].to_vec(),
        });
        bytes = &bytes[9 + len..];
    }
    all
}

pub(crate) fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    headers
}

pub(crate) fn request() -> Headers {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/api.Echo/Echo"),
        (":authority", "a"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

pub(crate) fn response() -> Headers {
    list(&[(":status", "200"), ("content-type", "application/grpc")])
}

pub(crate) fn trailers() -> Headers {
    list(&[("grpc-status", "0")])
}

/// An event that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Headers(u32, u32, Vec<(String, String)>, bool),
    TooLarge(u32, u32, bool),
    Refused(u32, Vec<(String, String)>, Refusal),
    Malformed(u32, u32, &'static str),
    Trailers(u32, u32, Vec<(String, String)>),
    Data(u32, u32, Vec<u8>, bool),
    Reset {
        stream: u32,
        key: u32,
        reason: Reason,
        by_peer: bool,
        unprocessed: bool,
        headers_left: bool,
    },
    Settings(bool),
    GoAway(u32, Reason, Vec<u8>),
    Pong(u64),
}

impl From<Event<'_>> for Got {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Headers {
                stream,
                key,
                headers,
                end_stream,
            } => Self::Headers(stream, key, fields(&headers), end_stream),
            Event::HeadersTooLarge {
                stream,
                key,
                end_stream,
            } => Self::TooLarge(stream, key, end_stream),
            Event::Refused {
                stream,
                headers,
                why,
            } => Self::Refused(stream, fields(&headers), why),
            Event::Malformed { stream, key, rule } => Self::Malformed(stream, key, rule),
            Event::Trailers {
                stream,
                key,
                headers,
            } => Self::Trailers(stream, key, fields(&headers)),
            Event::Data {
                stream,
                key,
                bytes,
                end_stream,
            } => Self::Data(stream, key, bytes.to_vec(), end_stream),
            Event::Reset {
                stream,
                key,
                reason,
                by_peer,
                unprocessed,
                headers_left,
            } => Self::Reset {
                stream,
                key,
                reason,
                by_peer,
                unprocessed,
                headers_left,
            },
            Event::Settings { first } => Self::Settings(first),
            Event::GoAway {
                last_stream,
                reason,
                debug_data,
            } => Self::GoAway(last_stream, reason, debug_data.into()),
            Event::Pong { payload } => Self::Pong(payload),
        }
    }
}

pub(crate) fn fields(headers: &Headers) -> Vec<(String, String)> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    headers
        .iter()
        .map(|f| (text(f.name), text(f.value)))
        .collect()
}

/// An engine under test, the encoder of its scripted peer, and a clock.
pub(crate) struct Script {
    pub(crate) engine: Connection,
    pub(crate) encoder: Encoder,
    pub(crate) decoder: Decoder,
    pub(crate) now: Instant,
}

impl Script {
    /// A server past both prefaces, its own frames taken away.
    pub(crate) fn server(config: Config) -> Self {
        Self::server_after(config, &[])
    }

    /// A server whose client announced `values`.
    pub(crate) fn server_after(config: Config, values: &[(u16, u32)]) -> Self {
        let mut script = Self::raw(Role::Server, config);
        let got =
            script.feed(&[PREFACE, &settings(values), &frame(SETTINGS, ACK, 0, &[])].concat());
        assert_eq!(got, Ok(vec![Got::Settings(true)]));
        script.sent();
        script
    }

    /// A client whose server announced `values`.
    pub(crate) fn client_after(config: Config, values: &[(u16, u32)]) -> Self {
        let mut script = Self::raw(Role::Client, config);
        let got = script.feed(&[settings(values), frame(SETTINGS, ACK, 0, &[])].concat());
        assert_eq!(got, Ok(vec![Got::Settings(true)]));
        script.sent();
        script
    }

    pub(crate) fn client(config: Config) -> Self {
        Self::client_after(config, &[])
    }

    pub(crate) fn raw(role: Role, config: Config) -> Self {
        let now = Instant::now();
        Self {
            engine: Connection::new(role, config, now),
            encoder: Encoder::new(4096),
            decoder: Decoder::new(4096),
            now,
        }
    }

    /// Feeds bytes; all events, or the error that ended it.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Got>, ConnectionError> {
        let mut input = bytes;
        let mut all = Vec::new();
        while let Some(event) = self.engine.receive(&mut input, self.now)? {
            all.push(event.into());
        }
        assert!(input.is_empty());
        Ok(all)
    }

    /// Feeds bytes that end the connection: checks the GOAWAY, and that the error stays.
    #[track_caller]
    pub(crate) fn dies(&mut self, bytes: &[u8], reason: Reason) {
        let e = self
            .feed(bytes)
            .expect_err("the connection should have ended");
        assert_eq!(e.reason, reason, "{}", e.rule);
        let last = self.sent().pop().expect("a GOAWAY");
        assert_eq!(
            (last.kind, &last.payload[4..8]),
            (GOAWAY, &reason.0.to_be_bytes()[..])
        );
        assert_eq!(self.feed(&ping(1)), Err(e), "it stays ended");
        assert!(self.sent().is_empty());
    }

    /// One event.
    #[track_caller]
    pub(crate) fn one(&mut self, bytes: &[u8]) -> Got {
        let mut all = self.feed(bytes).expect("no connection error");
        assert_eq!(all.len(), 1, "{all:?}");
        all.pop().unwrap()
    }

    /// No event.
    #[track_caller]
    pub(crate) fn quiet(&mut self, bytes: &[u8]) {
        assert_eq!(self.feed(bytes), Ok(vec![]));
    }

    /// Flushes, and takes all frames out.
    pub(crate) fn sent(&mut self) -> Vec<Frame> {
        self.engine.flush(self.now);
        let all = frames(self.engine.output());
        self.engine.consume(self.engine.output().len());
        all
    }

    /// HEADERS of the scripted peer.
    pub(crate) fn headers(&mut self, stream: u32, headers: &Headers, end: bool) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.encode(headers, &mut block);
        frame(HEADERS, END_HEADERS | u8::from(end), stream, &block)
    }

    /// A request of the scripted client, fed; the stream is live.
    #[track_caller]
    pub(crate) fn requested(&mut self, stream: u32, end: bool) {
        let bytes = self.headers(stream, &request(), end);
        assert!(matches!(self.one(&bytes), Got::Headers(s, _, _, e) if s == stream && e == end));
    }

    /// A stream that the engine opened, flushed and its frames taken away.
    #[track_caller]
    pub(crate) fn opened(&mut self, key: u32, end: bool) -> u32 {
        let stream = self.engine.open(request(), end, key).expect("room");
        let sent = self.sent();
        assert!(
            sent.iter().any(|f| f.kind == HEADERS && f.stream == stream),
            "{sent:?}"
        );
        for f in sent.iter().filter(|f| f.kind == HEADERS) {
            self.decoder
                .decode(&f.payload, 1 << 20, &mut Headers::new())
                .unwrap();
        }
        stream
    }

    /// Feeds something that must reset `stream` with `reason`.
    #[track_caller]
    pub(crate) fn breaks(&mut self, bytes: &[u8], stream: u32, reason: Reason) -> Vec<Got> {
        let got = self.feed(bytes).expect("a stream error only");
        let sent = self.sent();
        let rsts: Vec<_> = sent.iter().filter(|f| f.kind == RST_STREAM).collect();
        assert_eq!(rsts.len(), 1, "{sent:?} {got:?}");
        assert_eq!(
            (rsts[0].stream, &rsts[0].payload[..]),
            (stream, &reason.0.to_be_bytes()[..])
        );
        got
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}
