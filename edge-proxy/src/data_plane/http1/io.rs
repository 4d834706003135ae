//! The transport under hyper, which reports progress to the connection.
//!
//! hyper doesn't tell what it has read beyond a request. So it gets one head or body at a time, and the next head only when
//! the answer before has left: its deadline begins then. What was read early comes first. Meanwhile the transport is read
//! all the same, as far as there is room, since a client that goes away must be noticed. What is held so counts as held
//! back, and a connection that holds some may be shed: its request may take as long as its backend likes.
//!
//! Nor can hyper be told what to say to a head that it can't read: it writes a bare status and closes. That is all that it
//! writes then, as no answer is under way, and is kept back: the connection gives an answer like all others of the proxy's
//! own when hyper has ended.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;

/// See the module's head.
pub(super) struct Io<T> {
    transport: T,
    held: Held,
    connection: Rc<Connection>,
}

/// Plaintext that was read and isn't hyper's yet.
struct Held {
    bytes: BytesMut,
    connection: Rc<Connection>,
}

impl<T> Io<T> {
    pub(super) fn new(transport: T, early: Vec<u8>, connection: Rc<Connection>) -> Self {
        Self {
            transport,
            held: Held {
                bytes: BytesMut::from(&early[..]),
                connection: connection.clone(),
            },
            connection,
        }
    }

    /// When hyper has ended.
    pub(super) fn into_transport(self) -> T {
        self.transport
    }
}

impl Held {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // What is taken from its beginning leaves all of the memory here.
        let memory = self.connection.held.get().max(self.bytes.capacity());
        self.connection.holds(memory);
    }

    fn give_back_if_empty(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
            self.connection.holds(0);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.holds(0);
    }
}

impl<T: AsyncRead + Unpin> Io<T> {
    /// hyper doesn't get what is held yet: reads what comes behind it. `Ready`: the client has closed, and waits for no
    /// answer.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.put_off(&self.held.bytes);
        while self.held.bytes.len() < AHEAD {
            let mut room = [0; 4096];
            let most = room.len().min(AHEAD - self.held.bytes.len());
            let mut buffer = ReadBuf::new(&mut room[..most]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.held.push(buffer.filled());
            self.connection.put_off(&self.held.bytes);
        }
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let now = connection.worker.now();
        if this.held.bytes.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.transport).poll_read(cx, buffer))?;
            let read = &buffer.filled()[before..];
            let n = if read.is_empty() || connection.may_read() {
                connection.on_read(read, now)
            } else {
                0
            };
            if n < read.len() {
                this.held.push(&read[n..]);
                buffer.set_filled(before + n);
            }
            if n == 0 && !this.held.bytes.is_empty() {
                return this.read_ahead(cx);
            }
        } else if connection.may_read() {
            let most = buffer.remaining().min(this.held.bytes.len());
            let n = connection.on_read(&this.held.bytes[..most], now);
            buffer.put_slice(&this.held.bytes.split_to(n));
            this.held.give_back_if_empty();
        } else {
            return this.read_ahead(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.connection.may_write() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let n = bytes.len().min(WRITE_AT_ONCE);
        let result = Pin::new(&mut this.transport).poll_write(cx, &bytes[..n]);
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_flush(cx);
        if result.is_ready() {
            this.connection.on_flush();
        }
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

/// What is held that came ahead of its time, at most: as much as hyper holds. A client that sent more and goes away is
/// noticed when the answer has left, or can't.
const AHEAD: usize = super::MAX_HEAD;

/// A full TLS record: a slow client that takes one now and then is seen to make progress.
const WRITE_AT_ONCE: usize = 16 * 1024;
