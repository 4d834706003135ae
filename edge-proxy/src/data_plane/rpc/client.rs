//! The client's leg of an RPC: what differs between HTTP/2 and HTTP/1.1 ends here.

use std::{rc::Rc, time::Instant};

use http2::{Headers, Reason};

use super::Key;
use crate::data_plane::{
    answer::Form,
    downstream::{Busy, Downstream},
    filters::{Facts, RequestContext, Version},
    holder::Holder,
    http1::Exchange,
    wire::Side as _,
    worker::Worker,
};

/// Who asked, and where the answer goes.
pub(crate) enum Client {
    /// A stream of an HTTP/2 connection.
    Http2 {
        connection: Rc<Downstream>,
        stream: u32,
    },
    /// A request of an HTTP/1.1 connection.
    Http1(Rc<Exchange>),
}

impl Client {
    /// What the filters need to know of it.
    pub(super) fn context(&self) -> RequestContext<'_> {
        let version = match self {
            Self::Http2 { .. } => Version::Http2,
            Self::Http1(_) => Version::Http1,
        };
        RequestContext {
            peer: self.peer_text(),
            secure: true,
            version,
        }
    }

    /// In which form it reads an answer to the request of this head.
    pub(super) fn form(&self, head: &Headers) -> Form {
        Form::of(&Facts::read(head, None), self.context().version)
    }

    /// Whom others share with.
    pub(super) fn holder(&self) -> &Rc<Holder> {
        match self {
            Self::Http2 { connection, .. } => connection.holder(),
            Self::Http1(exchange) => exchange.holder(),
        }
    }

    /// Its address as text, an IPv4 address as one also where the socket is IPv6.
    pub(super) fn peer_text(&self) -> &str {
        match self {
            Self::Http2 { connection, .. } => &connection.peer_text,
            Self::Http1(exchange) => exchange.peer_text(),
        }
    }

    /// As the access log names it.
    pub(super) fn protocol(&self) -> &'static str {
        match self {
            Self::Http2 { .. } => "HTTP/2",
            Self::Http1(exchange) => exchange.protocol(),
        }
    }

    /// Later events carry the RPC's key.
    pub(super) fn set_key(&self, key: Key) {
        match self {
            Self::Http2 { connection, stream } => connection.set_key(*stream, key.for_engine()),
            Self::Http1(exchange) => exchange.set_key(key),
        }
    }

    pub(super) fn send_headers(&self, headers: &Headers, end_stream: bool) {
        match self {
            Self::Http2 { connection, stream } => {
                connection.send_headers(*stream, headers, end_stream)
            }
            Self::Http1(exchange) => exchange.send_headers(headers, end_stream),
        }
    }

    /// The bytes that were taken at once; the rest is told by [`response_sent`](super::response_sent).
    pub(super) fn send_data(&self, bytes: &[u8], end_stream: bool, now: Instant) -> usize {
        match self {
            Self::Http2 { connection, stream } => {
                connection.link().send_data(*stream, bytes, end_stream, now)
            }
            Self::Http1(exchange) => exchange.send_data(bytes, end_stream),
        }
    }

    pub(super) fn send_trailers(&self, trailers: &Headers) {
        match self {
            Self::Http2 { connection, stream } => {
                connection.link().send_trailers(*stream, trailers)
            }
            Self::Http1(exchange) => exchange.send_trailers(trailers),
        }
    }

    /// A place among its streams that stays taken after the RPC's end.
    pub(super) fn busy(&self) -> Option<Busy> {
        match self {
            Self::Http2 { connection, .. } => Some(connection.busy()),
            Self::Http1(_) => None,
        }
    }

    /// `bytes` of the request went on: the client may send more.
    pub(super) fn credit(&self, bytes: usize) {
        match self {
            Self::Http2 { connection, stream } => connection.link().credit(*stream, bytes),
            Self::Http1(exchange) => exchange.credit(bytes),
        }
    }

    /// Ends the exchange without an answer, or without more of one.
    pub(super) fn reset(&self, reason: Reason) {
        match self {
            Self::Http2 { connection, stream } => connection.reset(*stream, reason),
            Self::Http1(exchange) => exchange.abort(),
        }
    }

    /// Takes back the last `bytes` of the response if none of them has been framed.
    pub(super) fn unqueue(&self, bytes: usize) -> bool {
        match self {
            Self::Http2 { connection, stream } => connection.unqueue(*stream, bytes),
            Self::Http1(_) => false,
        }
    }

    /// Whether the end of the response has been framed.
    pub(super) fn has_all(&self) -> bool {
        match self {
            Self::Http2 { connection, stream } => connection.send_closed(*stream),
            Self::Http1(exchange) => exchange.has_all(),
        }
    }

    /// Since when the client takes nothing of what waits for it.
    pub(super) fn blocked(&self) -> Option<Instant> {
        match self {
            Self::Http2 { connection, stream } => connection.link().blocked(*stream),
            Self::Http1(exchange) => exchange.blocked(),
        }
    }

    /// Since when it gives no window for what waits. HTTP/1.1 has none: not to take it is as much.
    pub(super) fn window_shut(&self) -> Option<Instant> {
        match self {
            Self::Http2 { connection, stream } => connection.link().window_shut(*stream),
            Self::Http1(exchange) => exchange.blocked(),
        }
    }

    /// What a reset stream held counts no more.
    pub(super) fn account(&self, worker: &Worker) {
        if let Self::Http2 { connection, .. } = self {
            connection.link().account(&worker.memory);
        }
    }

    /// Has [`check`](super::check) called by then.
    pub(super) fn check_by(&self, at: Instant) {
        match self {
            Self::Http2 { connection, .. } => connection.check_by(at),
            Self::Http1(exchange) => exchange.check_by(at),
        }
    }

    /// The RPC has ended.
    pub(super) fn ended(&self, now: Instant) {
        match self {
            Self::Http2 { connection, .. } => connection.rpc_ended(now),
            Self::Http1(exchange) => exchange.ended(),
        }
    }
}
