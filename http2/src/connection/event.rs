//! What a connection tells its owner.

use std::time::Instant;

use crate::{error::Reason, headers::Headers};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We open streams (towards a backend).
    Client,
    /// The peer opens streams (an untrusted client).
    Server,
}

/// What arrived.
///
/// `stream` is the stream's id; `key` the owner's own number for it, as given to
/// [`open`](super::Connection::open) or [`set_key`](super::Connection::set_key), `u32::MAX` before.
/// `end_stream`: the peer has ended its half with this.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the fields that all variants share are described above"
)]
pub enum Event<'a> {
    /// A request (server role), or a response head, 1xx included (client role).
    Headers {
        stream: u32,
        key: u32,
        headers: Headers,
        end_stream: bool,
    },
    /// A request or response whose header list is above `max_header_list` (a request: or `max_header_fields`). The stream
    /// stays open for an answer; what more arrives on it is dropped and credited.
    HeadersTooLarge {
        stream: u32,
        key: u32,
        end_stream: bool,
    },
    /// Server role: a request that the engine has answered with a reset, for counters and the
    /// access log.
    Refused {
        stream: u32,
        headers: Headers,
        why: Refusal,
    },
    /// What came on a stream is malformed, breaking `rule`: the engine has already reset it; told
    /// for counters and the access log. (A whole request that is, is [`Refused`](Self::Refused).)
    Malformed {
        stream: u32,
        key: u32,
        rule: &'static str,
    },
    /// Trailers; always the end of the peer's half.
    Trailers {
        stream: u32,
        key: u32,
        headers: Headers,
    },
    /// Payload, cut through: any part of a frame, never padding. Empty only with `end_stream`.
    Data {
        stream: u32,
        key: u32,
        bytes: &'a [u8],
        end_stream: bool,
    },
    /// The stream is gone: the peer reset it or its GOAWAY or SETTINGS left it behind (`by_peer`), or the engine did because
    /// the peer broke a stream rule. `unprocessed`: the peer has proven that it did nothing with it, by a
    /// GOAWAY, by SETTINGS that came before our HEADERS left, or by REFUSED_STREAM before any response head. `headers_left`: any byte of our
    /// HEADERS had left through [`consume`](super::Connection::consume) by then; if not, the peer
    /// had nothing to do with it.
    Reset {
        stream: u32,
        key: u32,
        reason: Reason,
        by_peer: bool,
        unprocessed: bool,
        headers_left: bool,
    },
    /// The peer's SETTINGS were applied; `first` for the ones that open the connection. Streams that `flush` hasn't put on
    /// the wire yet and that are above a lower limit of theirs follow as `Reset { unprocessed: true }` (client role).
    Settings { first: bool },
    /// The peer's GOAWAY. Streams above `last_stream` follow as `Reset { unprocessed: true }`
    /// (client role), as do those that `flush` hasn't put on the wire yet. `debug_data`: the first 256 bytes of what the
    /// peer says of it, any bytes, for a log (RFC 9113 §6.8).
    GoAway {
        last_stream: u32,
        reason: Reason,
        debug_data: Box<[u8]>,
    },
    /// The answer to a PING of the owner's, by its `payload`.
    Pong { payload: u64 },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Above `max_concurrent_streams`: REFUSED_STREAM.
    TooManyStreams,
    /// The list is above `max_header_list_hard`, and the event hasn't all of it: ENHANCE_YOUR_CALM.
    HeadersTooLarge,
    /// RFC 9113 §8 calls it malformed, or a strict server would end the connection for it, since
    /// it breaks this rule: PROTOCOL_ERROR.
    Malformed(&'static str),
}

/// Queued bytes of a stream went into the output: now the other leg may be credited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The stream's id.
    pub stream: u32,
    /// The owner's number.
    pub key: u32,
    /// How many bytes; 0 if only the end was still to come.
    pub bytes: usize,
    /// Our half of the stream has ended with this.
    pub end_stream: bool,
}

/// Why a stream can't be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Wait for [`Event::Settings`].
    #[error("the peer's SETTINGS have not come yet")]
    NotReady,
    /// Wait for a stream to end, or use another connection.
    #[error("as many streams are open as the peer allows")]
    Full,
    /// Use another connection.
    #[error("the connection is going away")]
    GoingAway,
}

/// What a stream's queued bytes wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockedBy {
    /// The stream's window: the far end's application doesn't read.
    StreamWindow,
    /// The connection's window: other streams hold it.
    ConnectionWindow,
    /// The output: the socket doesn't take bytes, or other streams' turns come first.
    Output,
}

/// A stream whose queued bytes wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The stream's id.
    pub stream: u32,
    /// The owner's number.
    pub key: u32,
    /// When bytes of it were last framed, or the first of these were queued.
    pub since: Instant,
    /// What it waits for.
    pub by: BlockedBy,
}

/// A stream that holds a part of the connection's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The stream's id.
    pub stream: u32,
    /// The owner's number.
    pub key: u32,
    /// By so much its window is below what the peer begins streams with.
    pub bytes: usize,
}

/// A stream that was live when its connection ended, or when a GOAWAY left it behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The stream's id.
    pub stream: u32,
    /// The owner's number.
    pub key: u32,
    /// Whether any byte of our HEADERS left through
    /// [`consume`](super::Connection::consume).
    pub headers_left: bool,
}

/// What a connection's own windows hold. With nothing of a frame or a stream under way, `open` and `unannounced` make
/// `size`, and `open` is what the peer's `send` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The receive window that we announced at the start.
    pub size: u32,
    /// What the peer may still send, by what we have announced.
    pub open: i64,
    /// Credit that the owner gave and that isn't announced yet.
    pub unannounced: u32,
    /// What the peer lets us send now.
    pub send: usize,
    /// How often the peer has added to that; it wraps.
    pub credits: u32,
}

impl Windows {
    /// Bytes that the peer has sent, or begun to, and that nobody has given credit for.
    pub fn outstanding(&self) -> i64 {
        i64::from(self.size) - self.open - i64::from(self.unannounced)
    }
}
