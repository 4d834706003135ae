//! The transport under hyper, which reports progress to the connection.
//!
//! hyper is there only while something of a request is: it may be dropped and made anew on the same transport, and what
//! comes in between waits here. What its buffers take shows here alone, by what it has them filled with.
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
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;

/// See the module's head. Clones are the same one.
pub(super) struct Io<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    transport: T,
    /// The memory that the transport keeps.
    kept: fn(&T) -> usize,
    /// Plaintext that was read and isn't hyper's yet.
    ahead: BytesMut,
    /// The memory of that: what is taken from its beginning leaves all of it here.
    ahead_memory: usize,
    /// The largest that hyper's buffers have been.
    input: usize,
    output: usize,
    connection: Rc<Connection>,
}

/// What a connection's buffers take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    /// Bytes that came ahead of their time.
    pub(super) ahead: usize,
    /// hyper's.
    pub(super) hyper: usize,
    /// The transport's.
    pub(super) transport: usize,
}

impl<T> Io<T> {
    pub(super) fn new(
        transport: T,
        kept: fn(&T) -> usize,
        early: Vec<u8>,
        connection: Rc<Connection>,
    ) -> Self {
        let ahead = BytesMut::from(&early[..]);
        Self(Rc::new(RefCell::new(Inner {
            transport,
            kept,
            ahead_memory: ahead.capacity(),
            ahead,
            input: 0,
            output: 0,
            connection,
        })))
    }

    /// When hyper has ended. `None`: somebody still has a clone.
    pub(super) fn into_transport(self) -> Option<T> {
        Rc::into_inner(self.0).map(|inner| inner.into_inner().transport)
    }

    /// Whether nothing waits for hyper.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().ahead.is_empty()
    }

    pub(super) fn buffers(&self) -> Buffers {
        let inner = self.0.borrow();
        Buffers {
            ahead: inner.ahead_memory,
            hyper: inner.input + inner.output.max(WRITE_BUFFER),
            transport: (inner.kept)(&inner.transport),
        }
    }

    /// hyper was dropped.
    pub(super) fn hyper_gone(&self) {
        let mut inner = self.0.borrow_mut();
        (inner.input, inner.output) = (0, 0);
    }
}

impl<T> Clone for Io<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Inner<T> {
    fn push(&mut self, bytes: &[u8]) {
        self.ahead.extend_from_slice(bytes);
        self.ahead_memory = self.ahead_memory.max(self.ahead.capacity());
    }

    fn give_back_if_empty(&mut self) {
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
            self.ahead_memory = 0;
        }
    }
}

impl<T: AsyncRead + Unpin> Io<T> {
    /// Without hyper: waits for what it is needed for. `false`: the client has closed, or is gone.
    pub(super) fn poll_some(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let inner = &mut *self.0.borrow_mut();
        if !inner.ahead.is_empty() {
            return Poll::Ready(true);
        }
        let mut room = [0; READ_AHEAD];
        let mut buffer = ReadBuf::new(&mut room);
        let read = ready!(Pin::new(&mut inner.transport).poll_read(cx, &mut buffer));
        inner.push(buffer.filled());
        Poll::Ready(read.is_ok() && !inner.ahead.is_empty())
    }
}

impl<T: AsyncRead + Unpin> Inner<T> {
    /// hyper doesn't get what is held yet: reads what comes behind it. `Ready`: the client has closed, and waits for no
    /// answer.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.put_off(&self.ahead);
        while self.ahead.len() < AHEAD {
            let mut room = [0; READ_AHEAD];
            let most = room.len().min(AHEAD - self.ahead.len());
            let mut buffer = ReadBuf::new(&mut room[..most]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.push(buffer.filled());
            self.connection.put_off(&self.ahead);
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
        let this = &mut *self.0.borrow_mut();
        let connection = &this.connection;
        let now = connection.worker.now();
        this.input = this.input.max(connection.head.get() + buffer.remaining());
        if this.ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.transport).poll_read(cx, buffer))?;
            let read = &buffer.filled()[before..];
            let n = if read.is_empty() || connection.may_read() {
                connection.on_read(read, now)
            } else {
                0
            };
            if n < read.len() {
                this.push(&read[n..]);
                buffer.set_filled(before + n);
            }
            if n == 0 && !this.ahead.is_empty() {
                return this.read_ahead(cx);
            }
        } else if connection.may_read() {
            let most = buffer.remaining().min(this.ahead.len());
            let n = connection.on_read(&this.ahead[..most], now);
            buffer.put_slice(&this.ahead.split_to(n));
            this.give_back_if_empty();
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
        let this = &mut *self.0.borrow_mut();
        // All that hyper has to write.
        this.output = this.output.max(bytes.len().next_power_of_two());
        if !this.connection.may_write() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let n = bytes.len().min(WRITE_AT_ONCE);
        let result = Pin::new(&mut this.transport).poll_write(cx, &bytes[..n]);
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        let result = Pin::new(&mut this.transport).poll_flush(cx);
        if result.is_ready() {
            this.connection.on_flush();
        }
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().transport).poll_shutdown(cx)
    }
}

/// What is held that came ahead of its time, at most: as much as hyper holds. A client that sent more and goes away is
/// noticed when the answer has left, or can't.
const AHEAD: usize = super::MAX_HEAD;

/// How much of that is read at once.
const READ_AHEAD: usize = 4096;

/// What hyper has for what it will write, as soon as it is there.
const WRITE_BUFFER: usize = 8 * 1024;

/// A full TLS record: a slow client that takes one now and then is seen to make progress.
const WRITE_AT_ONCE: usize = 16 * 1024;
