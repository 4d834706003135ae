//! Step 2: rustls behind a narrow interface, and the socket under it.
//!
//! rustls is driven in its unbuffered form: it opens records where they were read, and seals into memory that is lent to
//! it, so that none of its own stays with a connection. Ciphertext is read into the worker's scratch; all that a
//! connection keeps of it is the part of a record whose end hasn't come. The engine's whole output of a turn is sealed
//! at once, so that small frames share a record and bulk fills records of 16 KiB, into memory of the thread
//! ([`Room`]), and goes from there to the socket; a connection keeps what its socket didn't take, and seals nothing more
//! before that has gone. Between two messages it keeps nothing at all: a quiet connection costs the session's keys.
//!
//! Handshakes compute one at a time: [`Gate`].

mod gate;
mod room;
mod transport;

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    HandshakeKind,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use self::room::Room;
pub(crate) use self::{gate::Gate, transport::Transport};

/// A server's TLS session on a socket.
pub(crate) struct Tls {
    socket: TcpStream,
    session: UnbufferedServerConnection,
    /// Ciphertext whose record isn't complete.
    unread: Vec<u8>,
    /// Sealed bytes that the socket hasn't taken, from `sent` on.
    sealed: Vec<u8>,
    sent: usize,
    /// Plaintext for the [`AsyncRead`] side, from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    /// The peer's close_notify was seen.
    eof: bool,
    /// The peer broke the protocol.
    failed: bool,
}

/// What is to be sealed once everything that came is opened.
enum Then<'a> {
    Nothing,
    Seal(&'a [u8]),
    Close,
}

/// What the handshake settled.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// `h2`, `http/1.1`, or nothing agreed.
    pub(crate) alpn: Alpn,
    /// The client resumed a session: no certificate was sent, no signature made.
    pub(crate) resumed: bool,
}

/// How a handshake goes on, for who decides which one is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// What the client has said is answered: it is its turn.
    Answered,
    /// After that, more has come, and waits to be read.
    Came,
    /// It was read, and is nothing to answer.
    Read,
}

/// ALPN's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http2,
    Http1,
    /// The client didn't offer any: the first bytes decide.
    None,
}

impl Tls {
    /// Accepts a TLS session on `socket`. The caller bounds the time that this may take, and is told whose turn it is from
    /// when a whole ClientHello has come.
    pub(crate) async fn accept(
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
        gate: &Gate,
        mut turn: impl FnMut(Turn),
    ) -> io::Result<(Box<Self>, Handshake)> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut tls = Box::new(Self {
            socket,
            session,
            unread: Vec::new(),
            sealed: Vec::new(),
            sent: 0,
            plain: Vec::new(),
            taken: 0,
            eof: false,
            failed: false,
        });
        let mut answered = false;
        while tls.session.is_handshaking() {
            if tls.wants_write() {
                poll_fn(|cx| tls.poll_sealed(cx)).await?;
                continue;
            }
            tls.socket.readable().await?;
            if answered {
                turn(Turn::Came);
            }
            let pass = gate.enter().await;
            tls.read_handshake().await?;
            // The answer to a whole ClientHello is what a server says first.
            if tls.wants_write() {
                answered = true;
                turn(Turn::Answered);
            } else if answered {
                turn(Turn::Read);
            }
            pass.leave().await;
        }
        // The last flight (TLS 1.3: session tickets) leaves ahead of the first answer.
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
        mem::take(&mut self.plain)
    }

    /// Without ALPN the first bytes decide: HTTP/2's preface, or HTTP/1.1. `None`: the client closed before that.
    pub(crate) async fn guess(&mut self) -> Option<(Alpn, Vec<u8>)> {
        let mut early = Vec::new();
        loop {
            early.append(&mut self.early());
            let n = early.len().min(PREFACE.len());
            if early[..n] != PREFACE[..n] {
                return Some((Alpn::Http1, early));
            }
            if n == PREFACE.len() {
                return Some((Alpn::Http2, early));
            }
            // The answer to a renegotiation: a client that waits for it sends nothing more.
            poll_fn(|cx| self.poll_sealed(cx)).await.ok()?;
            match poll_fn(|cx| self.poll_fill(cx)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) if self.eof && self.plain.is_empty() => return None,
                Ok(_) => {}
            }
        }
    }

    /// What it keeps beside the session's keys: records without an end, plaintext that nobody has taken yet, and what waits
    /// for the socket.
    pub(crate) fn memory(&self) -> usize {
        self.unread.capacity() + self.plain.capacity() + self.sealed.capacity()
    }

    /// Reads once and computes.
    async fn read_handshake(&mut self) -> io::Result<()> {
        match poll_fn(|cx| Poll::Ready(self.poll_fill(cx))).await {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            // Nobody is known yet: what waits for a message's end is little, or many could hold much.
            Poll::Ready(Ok(_))
                if self.session.is_handshaking() && self.unread.len() > LARGEST_HANDSHAKE =>
            {
                Err(invalid("a handshake message that is too long"))
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
        }
    }

    /// Reads once; 0: the peer has closed its half.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let from = self.make_room();
        let mut buffer = ReadBuf::new(&mut self.unread[from..]);
        let polled = Pin::new(&mut self.socket).poll_read(cx, &mut buffer);
        let n = buffer.filled().len();
        self.unread.truncate(from + n);
        if polled.is_pending() {
            // It may wait for long.
            self.unread.shrink_to_fit();
        }
        ready!(polled)?;
        if n > 0 {
            self.open_unread()?;
        }
        Poll::Ready(Ok(n))
    }

    /// Room for a read behind `unread`; returns where it begins.
    fn make_room(&mut self) -> usize {
        let from = self.unread.len();
        self.unread.reserve_exact(READ_WITHOUT_SCRATCH);
        self.unread.resize(from + READ_WITHOUT_SCRATCH, 0);
        from
    }

    /// Opens what is in `unread`; the plaintext goes behind `plain`.
    fn open_unread(&mut self) -> io::Result<()> {
        let mut cipher = mem::take(&mut self.unread);
        let mut plain = mem::take(&mut self.plain);
        let opened = self.open(&mut cipher, &mut |bytes| plain.extend_from_slice(bytes));
        self.plain = plain;
        opened
    }

    /// Takes ciphertext (what was left of the last, and what came now), gives every run of plaintext in it to `take`.
    fn open(&mut self, cipher: &mut [u8], take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut room = Room::take();
        let opened = self.advance(cipher, &mut room, take, Then::Nothing);
        self.sealed.extend_from_slice(room.filled());
        let Ok(used) = opened else {
            // The alert tells the client why; if the socket doesn't take it, the client has to do without.
            let _ = self.socket.try_write(&self.sealed[self.sent..]);
            return opened.map(|_| ());
        };
        let rest = &cipher[used..];
        if rest.is_empty() || self.eof {
            // What follows a close_notify is ignored (RFC 8446 §6.1).
            self.unread = Vec::new();
        } else {
            self.unread.clear();
            self.unread.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Seals into `room`, behind what the session has to say itself.
    fn seal(&mut self, then: Then<'_>, room: &mut Room) -> io::Result<()> {
        // rustls must see what it hasn't used; there is no whole record in it.
        let mut unread = mem::take(&mut self.unread);
        let sealed = self.advance(&mut unread, room, &mut |_| {}, then);
        self.unread = unread;
        sealed.map(|_| ())
    }

    /// Lets the session go on as far as `cipher` does, and then do what is wanted. Returns how much of `cipher` is used.
    fn advance(
        &mut self,
        cipher: &mut [u8],
        room: &mut Room,
        take: &mut impl FnMut(&[u8]),
        then: Then<'_>,
    ) -> io::Result<usize> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut cipher[used..]);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        take(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    room.put(|out| Ok(data.encode(out)?))?;
                }
                // It leaves before whatever is sealed later.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.eof = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match then {
                        Then::Nothing => {}
                        Then::Seal(bytes) => room.put(|out| Ok(traffic.encrypt(bytes, out)?))?,
                        Then::Close => room.put(|out| Ok(traffic.queue_close_notify(out)?))?,
                    }
                    return Ok(used + discard);
                }
                Ok(ConnectionState::BlockedHandshake) => return Ok(used + discard),
                // Both sides have said their last word.
                Ok(ConnectionState::Closed) => {
                    return match then {
                        Then::Nothing | Then::Close => Ok(used + discard),
                        Then::Seal(_) => Err(io::ErrorKind::BrokenPipe.into()),
                    };
                }
                // 0-RTT, which isn't offered, or something that a later rustls knows.
                Ok(state) => return Err(invalid(format!("unexpected TLS state: {state:?}"))),
                Err(error) => {
                    self.alert(room);
                    return Err(invalid(error));
                }
            }
            used += discard;
        }
    }

    /// Fetches what a session that has failed has to say about it, and no more: it would fail again.
    fn alert(&mut self, room: &mut Room) {
        self.failed = true;
        while self.session.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut data)) =
                self.session.process_tls_records(&mut []).state
            && room.put(|out| Ok(data.encode(out)?)).is_ok()
        {}
    }

    /// Writes what is sealed.
    fn poll_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.wants_write() {
            let bytes = &self.sealed[self.sent..];
            match ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        if self.sent > 0 {
            (self.sealed, self.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    fn wants_write(&self) -> bool {
        self.sent < self.sealed.len()
    }

    /// Seals some of `plain` and writes it. `Pending`: what was sealed before isn't on the socket. The count is of bytes
    /// that are sealed, and on the socket or about to be.
    fn poll_seal(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sealed(cx))?;
        // Four frames of 16 KiB are a little more than 64 KiB: what is left over gets no record and no write of its own.
        let n = match plain.len() {
            all if all <= SEAL_AT_ONCE + SEAL_AT_ONCE / 4 => all,
            _ => SEAL_AT_ONCE,
        };
        let mut room = Room::take();
        self.seal(Then::Seal(&plain[..n]), &mut room)?;
        let sealed = room.filled();
        if sealed.is_empty() {
            return Poll::Ready(Ok(n));
        }
        let written = match Pin::new(&mut self.socket).poll_write(cx, sealed) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < sealed.len() {
            self.sealed.extend_from_slice(&sealed[written..]);
            // To be woken when there is room.
            if let Poll::Ready(Err(error)) = self.poll_sealed(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(n))
    }

    /// close_notify, and the end of our half.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut room = Room::take();
        // Once: rustls doesn't say it a second time.
        self.seal(Then::Close, &mut room)?;
        self.sealed.extend_from_slice(room.filled());
        ready!(self.poll_sealed(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// For hyper's HTTP/1.1.
impl AsyncRead for Tls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tls = self.get_mut();
        while tls.taken == tls.plain.len() {
            if tls.eof || ready!(tls.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let plain = &tls.plain[tls.taken..];
        let n = plain.len().min(buffer.remaining());
        buffer.put_slice(&plain[..n]);
        tls.taken += n;
        if tls.taken == tls.plain.len() {
            (tls.plain, tls.taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seal(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sealed(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx)
    }
}

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Four full records: enough for one write, little enough to hold back for a slow reader.
const SEAL_AT_ONCE: usize = 64 * 1024;

/// How much is read at once where no scratch is at hand: handshakes, HTTP/1.1.
const READ_WITHOUT_SCRATCH: usize = 16 * 1024;

/// Bytes of a handshake's message that isn't whole. A ClientHello has 2 to 4 KiB, keys that withstand quantum computers
/// and tickets included; TLS allows 64 KiB.
const LARGEST_HANDSHAKE: usize = 16 * 1024;

#[cfg(test)]
mod tests;
