//! The transport under hyper: what was read early comes first, and progress is reported to the connection.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;

/// See the module's head.
pub(super) struct Io<T> {
    transport: T,
    /// Plaintext that was read before hyper; the first `given` bytes of it were taken.
    early: Vec<u8>,
    given: usize,
    connection: Rc<Connection>,
}

impl<T> Io<T> {
    pub(super) fn new(transport: T, early: Vec<u8>, connection: Rc<Connection>) -> Self {
        Self {
            transport,
            early,
            given: 0,
            connection,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.given < this.early.len() {
            let n = buffer.remaining().min(this.early.len() - this.given);
            buffer.put_slice(&this.early[this.given..this.given + n]);
            this.given += n;
            if this.given == this.early.len() {
                this.early = Vec::new();
                this.given = 0;
            }
        } else {
            ready!(Pin::new(&mut this.transport).poll_read(cx, buffer))?;
        }
        if buffer.filled().len() > before {
            this.connection.on_read(this.connection.worker.now());
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
        let n = bytes.len().min(WRITE_AT_ONCE);
        let result = Pin::new(&mut this.transport).poll_write(cx, &bytes[..n]);
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.transport).poll_flush(cx);
        this.connection.on_write(result.is_pending());
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

/// A full TLS record: a slow client that takes one now and then is seen to make progress.
const WRITE_AT_ONCE: usize = 16 * 1024;
