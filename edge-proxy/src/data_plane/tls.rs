//! Step 2: rustls behind a narrow interface, and the socket under it.
//!
//! rustls is driven directly, in its ordinary (buffered) form: ciphertext goes in with one `read_tls` per read of the
//! socket, plaintext comes out as the slices that rustls already holds (no copy), and the engine's whole output of a
//! turn is sealed at once, so that small frames share a record and bulk fills records of 16 KiB. What is sealed and
//! not yet taken by the socket blocks further sealing, so rustls' buffer never holds more than one turn's output.
//!
//! A handshake is the only expensive computation in here (4.6 ms with an RSA-4096 key): [`Gate`] lets one of them at a
//! time compute on a worker, and gives everything else that is ready its turn between two.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io::{self, BufRead as _, IoSlice, Read as _, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use rustls::{HandshakeKind, ServerConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A socket, with TLS on it or not.
pub(crate) enum Transport {
    /// h2c, towards backends.
    Plain(TcpStream),
    /// Towards clients.
    Tls(Box<Tls>),
}

/// A server's TLS session on a socket.
pub(crate) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
    /// The peer's close_notify, or the end of its half, was seen.
    eof: bool,
}

/// What the handshake settled.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// `h2`, `http/1.1`, or nothing agreed.
    pub(crate) alpn: Alpn,
    /// The client resumed a session: no certificate was sent, no signature made.
    pub(crate) resumed: bool,
}

/// ALPN's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http2,
    Http1,
    /// The client didn't offer any: the first bytes decide.
    None,
}

/// Lets one handshake at a time compute.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    busy: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Held while a handshake computes and until everything else that was ready has run.
struct Pass<'a>(&'a Gate);

impl Tls {
    /// Accepts a TLS session on `socket`. The caller bounds the time that this may take. `heard` is called when the whole
    /// ClientHello has come.
    pub(crate) async fn accept(
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
        gate: &Gate,
        heard: impl FnOnce(),
    ) -> io::Result<(Box<Self>, Handshake)> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut tls = Box::new(Self {
            socket,
            session,
            eof: false,
        });
        tls.session.set_buffer_limit(None);
        let mut heard = Some(heard);
        while tls.session.is_handshaking() {
            if tls.session.wants_write() {
                poll_fn(|cx| tls.poll_sealed(cx)).await?;
                continue;
            }
            tls.socket.readable().await?;
            let pass = gate.enter().await;
            tls.read_handshake()?;
            // The answer to it is what a server says first.
            if tls.session.wants_write()
                && let Some(heard) = heard.take()
            {
                heard();
            }
            pass.leave().await;
        }
        // The last flight (TLS 1.3: session tickets) leaves with the first answer.
        let handshake = Handshake {
            alpn: match tls.session.alpn_protocol() {
                Some(b"h2") => Alpn::Http2,
                Some(_) => Alpn::Http1,
                None => Alpn::None,
            },
            resumed: tls.session.handshake_kind() == Some(HandshakeKind::Resumed),
        };
        Ok((tls, handshake))
    }

    /// The plaintext that came together with the end of the handshake.
    pub(crate) fn early(&mut self) -> Vec<u8> {
        let mut early = Vec::new();
        // WouldBlock says that there is no more; everything else shows at the next read.
        let _ = self.session.reader().read_to_end(&mut early);
        early
    }

    /// Without ALPN the first bytes decide: HTTP/2's preface, or HTTP/1.1. `None`: the client closed before that.
    pub(crate) async fn guess(&mut self) -> Option<(Alpn, Vec<u8>)> {
        let mut early = self.early();
        loop {
            let n = early.len().min(PREFACE.len());
            if early[..n] != PREFACE[..n] {
                return Some((Alpn::Http1, early));
            }
            if n == PREFACE.len() {
                return Some((Alpn::Http2, early));
            }
            let mut buffer = [0; 1024];
            match tokio::io::AsyncReadExt::read(self, &mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => early.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// Reads once and computes.
    fn read_handshake(&mut self) -> io::Result<()> {
        match self.session.read_tls(&mut TryRead(&self.socket)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.session.process_new_packets() {
            // The alert tells the client why; if the socket doesn't take it, the client has to do without.
            let _ = self.session.write_tls(&mut TryWrite(&self.socket));
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    /// Writes what is sealed.
    fn poll_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut writer = PollWrite {
                socket: &mut self.socket,
                cx,
            };
            match self.session.write_tls(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes ciphertext, gives every run of plaintext in it to `take`.
    fn open(&mut self, mut cipher: &[u8], take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while !cipher.is_empty() {
            if self.session.read_tls(&mut cipher)? == 0 {
                // What follows a close_notify is ignored (RFC 8446 §6.1), and rustls takes none of it.
                break;
            }
            let state = match self.session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    let _ = self.session.write_tls(&mut TryWrite(&self.socket));
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let chunk = self.session.reader().into_first_chunk()?;
                let n = chunk.len();
                take(chunk);
                self.session.reader().consume(n);
                left -= n;
            }
            self.eof |= state.peer_has_closed();
        }
        Ok(())
    }
}

impl Transport {
    /// Reads the socket once into `scratch` and gives the plaintext to `take`. `Ok(0)`: the peer has closed its half.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &RefCell<Box<[u8]>>,
        mut take: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let mut scratch = scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let socket = match self {
            Self::Plain(socket) => &mut *socket,
            Self::Tls(tls) if tls.eof => return Poll::Ready(Ok(0)),
            Self::Tls(tls) => &mut tls.socket,
        };
        std::task::ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
        let n = buffer.filled().len();
        if n > 0 {
            match self {
                Self::Plain(_) => take(buffer.filled()),
                Self::Tls(tls) => tls.open(buffer.filled(), &mut take)?,
            }
        }
        Poll::Ready(Ok(n))
    }

    /// Whether the socket may have more; if not, it wakes the task when it has.
    pub(crate) fn is_readable(&self, cx: &mut Context<'_>) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) if tls.eof => return true,
            Self::Tls(tls) => &tls.socket,
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
            Self::Tls(tls) => {
                std::task::ready!(tls.poll_sealed(cx))?;
                let n = output.len().min(SEAL_AT_ONCE);
                tls.session.writer().write_all(&output[..n])?;
                match tls.poll_sealed(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
                }
            }
        }
    }

    /// Whether sealed bytes wait for the socket.
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// close_notify, and the end of our half.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            poll_fn(|cx| tls.poll_sealed(cx)).await?;
        }
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        };
        poll_fn(|cx| Pin::new(&mut *socket).poll_shutdown(cx)).await
    }

    /// Reads and drops what still comes, until the peer closes or `limit` bytes came.
    pub(crate) async fn drain(&mut self, limit: usize) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
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

impl Gate {
    async fn enter(&self) -> Pass<'_> {
        poll_fn(|cx| {
            if self.busy.replace(true) {
                self.waiting.borrow_mut().push_back(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Pass(self))
        })
        .await
    }
}

impl Pass<'_> {
    /// Yields, so that what became ready while the handshake computed runs before the next one does.
    async fn leave(self) {
        tokio::task::yield_now().await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // All are woken: one of them may be gone (its deadline passed), and a lost wake-up would shut the gate for ever.
        for waker in self.0.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// For hyper's HTTP/1.1.
impl AsyncRead for Tls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tls = self.get_mut();
        loop {
            match tls.session.reader().read(buffer.initialize_unfilled()) {
                Ok(n) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let mut reader = PollRead {
                socket: &mut tls.socket,
                cx,
            };
            match tls.session.read_tls(&mut reader) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
            tls.session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let tls = self.get_mut();
        std::task::ready!(tls.poll_sealed(cx))?;
        let n = tls.session.writer().write(bytes)?;
        match tls.poll_sealed(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sealed(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tls = self.get_mut();
        tls.session.send_close_notify();
        std::task::ready!(tls.poll_sealed(cx))?;
        Pin::new(&mut tls.socket).poll_shutdown(cx)
    }
}

/// Reads without a task: readiness is decided by `try_read` alone.
struct TryRead<'a>(&'a TcpStream);

/// Writes without a task.
struct TryWrite<'a>(&'a TcpStream);

/// Reads for a task: a socket that has nothing wakes it later.
struct PollRead<'a, 'b, 'c> {
    socket: &'a mut TcpStream,
    cx: &'b mut Context<'c>,
}

/// Writes for a task, several records with one system call.
struct PollWrite<'a, 'b, 'c> {
    socket: &'a mut TcpStream,
    cx: &'b mut Context<'c>,
}

impl io::Read for TryRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl io::Write for TryWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Read for PollRead<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.socket).poll_read(self.cx, &mut buffer) {
            Poll::Ready(Ok(())) => Ok(buffer.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl io::Write for PollWrite<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write(self.cx, bytes))
    }
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, slices))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Four full records: enough for one vectored write, little enough to hold back for a slow reader.
const SEAL_AT_ONCE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{io::Write as _, rc::Rc};

    use super::*;
    use crate::data_plane::testing::{self, running};

    /// A session that a client has opened, and what the client wrote after `talk` used it.
    async fn session(
        talk: impl FnOnce(&mut rustls::ClientConnection) -> Vec<u8> + Send + 'static,
    ) -> Box<Tls> {
        let (server, client) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client, name).unwrap();
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            let last = talk(&mut session);
            socket.write_all(&last).unwrap();
            // Kept open: the other side decides by what it read.
            let _ = io::Read::read(&mut socket, &mut [0; 1]);
        });
        let (socket, _) = listener.accept().await.unwrap();
        Tls::accept(socket, server, &Gate::default(), || {})
            .await
            .unwrap()
            .0
    }

    #[test]
    fn between_two_handshakes_everything_else_that_is_ready_runs() {
        const CLIENTS: usize = 8;
        running(|| async {
            let (server, client) = testing::tls();
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let mut clients = Vec::new();
            let mut accepted = Vec::new();
            for _ in 0..CLIENTS {
                let name = "localhost".try_into().unwrap();
                let mut session = rustls::ClientConnection::new(client.clone(), name).unwrap();
                let mut socket =
                    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                session.write_tls(&mut socket).unwrap();
                clients.push(socket);
                let (socket, _) = listener.accept().await.unwrap();
                socket.readable().await.unwrap();
                accepted.push(socket);
            }
            // Every ClientHello is there; each answer to one is a signature.
            let (gate, computed) = (Rc::new(Gate::default()), Rc::new(Cell::new(0)));
            for socket in accepted {
                let (server, gate, computed) = (server.clone(), gate.clone(), computed.clone());
                tokio::task::spawn_local(async move {
                    let heard = || computed.set(computed.get() + 1);
                    let _ = Tls::accept(socket, server, &gate, heard).await;
                });
            }
            let mut before = 0;
            while before < CLIENTS {
                // An RPC's turn.
                let mut yielded = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut yielded, true) {
                        return Poll::Ready(());
                    }
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
                let now = computed.get();
                assert!(now - before <= 1, "{} in a row", now - before);
                before = now;
            }
        });
    }

    #[test]
    fn half_a_client_hello_is_not_heard() {
        running(|| async {
            let (server, client) = testing::tls();
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client, name).unwrap();
            let mut hello = Vec::new();
            session.write_tls(&mut hello).unwrap();
            let mut socket = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let (gate, heard) = (Rc::new(Gate::default()), Rc::new(Cell::new(false)));
            tokio::task::spawn_local({
                let (gate, heard) = (gate.clone(), heard.clone());
                async move {
                    let _ = Tls::accept(accepted, server, &gate, || heard.set(true)).await;
                }
            });
            let (first, last) = hello.split_at(hello.len() - 1);
            tokio::io::AsyncWriteExt::write_all(&mut socket, first)
                .await
                .unwrap();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!heard.get());
            tokio::io::AsyncWriteExt::write_all(&mut socket, last)
                .await
                .unwrap();
            testing::until(|| heard.get()).await;
        });
    }

    #[test]
    fn what_follows_a_close_notify_is_ignored() {
        running(|| async {
            let tls = session(|session| {
                let mut bytes = Vec::new();
                session.writer().write_all(b"last words").unwrap();
                session.send_close_notify();
                session.write_tls(&mut bytes).unwrap();
                bytes.extend_from_slice(b"and more, of no record");
                bytes
            })
            .await;
            let mut transport = Transport::Tls(tls);
            let scratch = RefCell::new(vec![0; 4096].into_boxed_slice());
            let mut got = Vec::new();
            while poll_fn(|cx| {
                transport.poll_read(cx, &scratch, |bytes| got.extend_from_slice(bytes))
            })
            .await
            .unwrap()
                > 0
            {}
            assert_eq!(got, b"last words");
        });
    }
}
