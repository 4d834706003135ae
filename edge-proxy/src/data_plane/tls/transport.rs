//! What the engines' connections read from and write to: a socket, with TLS on it or not.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Tls, invalid};
#[cfg(any(test, fuzzing))]
use crate::data_plane::pipe;

/// A socket, with TLS on it or not.
pub(crate) enum Transport {
    /// h2c, towards backends.
    Plain(TcpStream),
    /// Towards clients.
    Tls(Box<Tls>),
    /// Either, without a socket.
    #[cfg(any(test, fuzzing))]
    Memory(pipe::PipeEnd),
}

impl Transport {
    /// Reads the socket once into `scratch` and gives the plaintext to `take`. `Ok(0)`: the peer has closed its half. As
    /// many bytes as `scratch` has: it is full, and the socket may have more.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &RefCell<Box<[u8]>>,
        mut take: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let mut scratch = scratch.borrow_mut();
        let rest = match self {
            Self::Tls(tls) if tls.eof => return Poll::Ready(Ok(0)),
            Self::Tls(tls) => tls.unread.len(),
            _ => 0,
        };
        let Some(room) = scratch.get_mut(rest..).filter(|room| !room.is_empty()) else {
            return Poll::Ready(Err(invalid("a TLS message without an end")));
        };
        let mut buffer = ReadBuf::new(room);
        ready!(match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, &mut buffer),
            Self::Tls(tls) => Pin::new(&mut tls.socket).poll_read(cx, &mut buffer),
            #[cfg(any(test, fuzzing))]
            Self::Memory(end) => Pin::new(end).poll_read(cx, &mut buffer),
        })?;
        let n = buffer.filled().len();
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        let all = &mut scratch[..rest + n];
        match self {
            Self::Tls(tls) => {
                all[..rest].copy_from_slice(&tls.unread);
                tls.open(all, &mut take)?;
            }
            _ => take(all),
        }
        Poll::Ready(Ok(rest + n))
    }

    /// Whether the socket may have more; if not, it wakes the task when it has.
    pub(crate) fn is_readable(&self, cx: &mut Context<'_>) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) if tls.eof => return true,
            Self::Tls(tls) => &tls.socket,
            #[cfg(any(test, fuzzing))]
            Self::Memory(end) => return end.poll_readable(cx).is_ready(),
        };
        // An error is found by who reads.
        socket.poll_read_ready(cx).is_ready()
    }

    /// Takes from `output` and writes. The count is of `output`'s bytes that are no longer the caller's concern: on the
    /// socket, or sealed with all earlier ones on the socket.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        output: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, output),
            Self::Tls(tls) => tls.poll_seal(cx, output),
            #[cfg(any(test, fuzzing))]
            Self::Memory(end) => Pin::new(end).poll_write(cx, output),
        }
    }

    /// Whether sealed bytes wait for the socket.
    pub(crate) fn wants_write(&self) -> bool {
        self.unsent() > 0
    }

    /// Sealed bytes that wait for the socket: while there are any, it may take some of them and [`poll_write`](Self::poll_write)
    /// be pending all the same.
    pub(crate) fn unsent(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.sealed.len() - tls.sent,
            #[cfg(any(test, fuzzing))]
            Self::Memory(_) => 0,
        }
    }

    /// Memory that records take whose end hasn't come.
    pub(crate) fn incomplete(&self) -> usize {
        match self {
            Self::Tls(tls) => tls.unread.capacity(),
            _ => 0,
        }
    }

    /// Memory that sealed bytes take which wait for the socket.
    pub(crate) fn sealed(&self) -> usize {
        match self {
            Self::Tls(tls) => tls.sealed.capacity(),
            _ => 0,
        }
    }

    /// When the socket is dropped, the kernel forgets what it still has to send. Otherwise it would keep that, megabytes at
    /// times, for minutes, and count it as the container's.
    pub(crate) fn discard(&self) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
            #[cfg(any(test, fuzzing))]
            Self::Memory(_) => return,
        };
        // Refused: so be it.
        let _ = socket.set_zero_linger();
    }

    /// close_notify, and the end of our half.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| match self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(tls) => tls.poll_close(cx),
            #[cfg(any(test, fuzzing))]
            Self::Memory(end) => Pin::new(end).poll_shutdown(cx),
        })
        .await
    }

    /// Reads and drops what still comes, until the peer closes or `limit` bytes came.
    pub(crate) async fn drain(&mut self, limit: usize) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
            #[cfg(any(test, fuzzing))]
            Self::Memory(end) => return end.drain(limit).await,
        };
        let mut dropped = 0;
        let mut buffer = vec![0; 4096];
        while dropped < limit {
            if socket.readable().await.is_err() {
                return;
            }
            match socket.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => dropped += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}
