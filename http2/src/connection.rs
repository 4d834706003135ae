//! One connection, either role.
use std::time::Instant;

use crate::{error::{ConnectionError, Reason}, headers::Headers, settings::Config};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We open streams (towards a backend).
    Client,
    /// The peer opens streams (an untrusted client).
    Server,
}

/// What arrived. `key` is the owner's own number for the stream, as given to `open` or `set_key`.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request (server role; `key` is still `u32::MAX`), or a response head, 1xx included (client role).
    Headers { stream: u32, key: u32, headers: Headers, end_stream: bool },
    /// A request or response whose header list is above `max_header_list`. The stream stays open for an answer;
    /// what more arrives on it is dropped and credited.
    HeadersTooLarge { stream: u32, key: u32, end_stream: bool },
    /// A request that RFC 9113 §8 calls malformed, or that a strict server would end the connection for:
    /// the engine has already reset the stream (PROTOCOL_ERROR); told for counters and the access log.
    Malformed { stream: u32, key: u32, rule: &'static str },
    /// Trailers; always the end of the peer's half.
    Trailers { stream: u32, key: u32, headers: Headers },
    /// Payload, cut through: any part of a frame, never padding. Empty only with `end_stream`.
    Data { stream: u32, key: u32, bytes: &'a [u8], end_stream: bool },
    /// The stream is gone: the peer reset it, or the engine did because the peer broke a stream rule
    /// (`by_peer: false`), or a GOAWAY of the peer left it unprocessed (`unprocessed: true`).
    Reset { stream: u32, key: u32, reason: Reason, by_peer: bool, unprocessed: bool },
    /// The peer's SETTINGS were applied; `first` for the ones that open the connection.
    Settings { first: bool },
    /// The peer's GOAWAY. Streams above `last_stream` follow as `Reset { unprocessed: true }`.
    GoAway { last_stream: u32, reason: Reason },
    /// The answer to a PING of the owner's.
    Pong { payload: u64 },
}

/// Queued bytes of a stream went into the output: now the other leg may be credited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent { pub stream: u32, pub key: u32, pub bytes: usize }

/// Why a stream can't be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the peer's SETTINGS have not come yet")]
    NotReady,
    #[error("as many streams are open as the peer allows")]
    Full,
    #[error("the connection is going away")]
    GoingAway,
}

/// See the crate's head.
pub struct Connection { _config: Config }

impl Connection {
    pub fn new(role: Role, config: Config, now: Instant) -> Self { let _ = (role, now); Self { _config: config } }

    /// Takes bytes from the front of `input` until there is an event or `input` is empty.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Result<Option<Event<'a>>, ConnectionError> { let _ = (input, now); unimplemented!() }

    /// Names a stream that the peer opened; later events carry `key`.
    pub fn set_key(&mut self, stream: u32, key: u32) { let _ = (stream, key); unimplemented!() }

    /// Client role: opens a stream. The id is fixed now; the block is encoded at the next [`flush`](Self::flush),
    /// so a stream that is reset before then leaves no trace on the wire.
    pub fn open(&mut self, headers: Headers, end_stream: bool, key: u32) -> Result<u32, (OpenError, Headers)> { let _ = (headers, end_stream, key); unimplemented!() }

    /// Whether `open` would succeed now.
    pub fn can_open(&self) -> bool { unimplemented!() }

    /// Server role: a response head (1xx any number of times before). Kept in order with queued data.
    pub fn send_headers(&mut self, stream: u32, headers: &Headers, end_stream: bool) { let _ = (stream, headers, end_stream); unimplemented!() }

    /// Trailers, both roles: after everything queued, with END_STREAM.
    pub fn send_trailers(&mut self, stream: u32, headers: &Headers) { let _ = (stream, headers); unimplemented!() }

    /// Payload. What windows and `output_limit` allow is framed; the rest is queued in the engine and told later by
    /// [`take_sent`](Self::take_sent). Returns the bytes that were framed at once. Empty with `end_stream: false`: nothing happens.
    pub fn send_data(&mut self, stream: u32, bytes: &[u8], end_stream: bool, now: Instant) -> usize { let _ = (stream, bytes, end_stream, now); unimplemented!() }

    /// Ends a stream both ways. Unknown or ended streams are ignored.
    pub fn reset(&mut self, stream: u32, reason: Reason) { let _ = (stream, reason); unimplemented!() }

    /// `bytes` of this stream's DATA were passed on: the peer gets its windows back (WINDOW_UPDATE at half a window).
    pub fn credit(&mut self, stream: u32, bytes: usize) { let _ = (stream, bytes); unimplemented!() }

    /// Frames all that may go: opens, queued data (fair between streams), window updates, acknowledgements.
    /// Call once at the end of a turn and after the socket took bytes; then write [`output`](Self::output).
    pub fn flush(&mut self, now: Instant) { let _ = now; unimplemented!() }

    /// What `flush` moved out of the streams' queues, one entry per call.
    pub fn take_sent(&mut self) -> Option<Sent> { unimplemented!() }

    /// Bytes to write.
    pub fn output(&self) -> &[u8] { unimplemented!() }

    /// The socket took `n` bytes of `output`.
    pub fn consume(&mut self, n: usize) { let _ = n; unimplemented!() }
}
