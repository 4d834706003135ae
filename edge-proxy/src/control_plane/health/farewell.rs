//! Whether a backend said, before a check's connection ended, that it ends it in peace: GOAWAY with NO_ERROR (RFC 9113
//! §6.8).
//!
//! HTTP/2 libraries tell a caller how its *stream* ended. A GOAWAY that covers the stream, followed by the end of the
//! connection, reaches the caller as a broken connection, and the GOAWAY itself is never told. So the bytes are read
//! along on their way in: frames are told apart by their nine-byte heads (§4.1), and nothing but GOAWAY and RST_STREAM
//! is looked at. Whether they are right is the library's to judge; whatever comes, the [`Scanner`] only skips and counts.
//!
//! The library reads all that comes, between checks too, on the thread that all clusters' checks share, and has no budget
//! for frames that mean nothing: of a backend that floods its connection no more is read than [`MOST`].

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What was read from a check's connection. Written by the connection's task as bytes come in, before the library sees
/// them, and read by the check that they ended: the library's own hand-over orders the two.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    /// The last GOAWAY said NO_ERROR.
    graceful: AtomicBool,
    /// A stream was reset since the check began. A connection has one check at a time, so it is the check's, or a late
    /// word about one that has its answer.
    reset: AtomicBool,
    /// Bytes that came since the check began, or the connection if that is later.
    came: AtomicUsize,
}

/// A connection that is read along.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    scanner: Scanner,
    farewell: Arc<Farewell>,
}

/// Finds the frames that matter in a stream of bytes that is cut anywhere.
#[derive(Debug, Default)]
struct Scanner {
    /// A frame's head, and of a GOAWAY what stands before its debug data.
    head: [u8; HEAD + GOAWAY],
    filled: usize,
    /// Bytes of a payload that nobody wants.
    skip: usize,
}

/// A frame that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// GOAWAY with this error code.
    GoAway(u32),
    /// RST_STREAM of any stream.
    Reset,
}

impl Farewell {
    /// A new connection is there.
    pub(super) fn connected(&self) {
        self.graceful.store(false, Ordering::Relaxed);
        self.came.store(0, Ordering::Relaxed);
    }

    /// A check begins.
    pub(super) fn check_begins(&self) {
        self.reset.store(false, Ordering::Relaxed);
        self.came.store(0, Ordering::Relaxed);
    }

    /// So many bytes more came: whether the backend may send them. Whatever it has said, it doesn't leave in peace with more.
    fn may_come(&self, bytes: usize) -> bool {
        let may = self.came.fetch_add(bytes, Ordering::Relaxed) + bytes <= MOST;
        if !may {
            self.graceful.store(false, Ordering::Relaxed);
        }
        may
    }

    /// The backend said that it ends the connection, that nothing is wrong, and nothing against the check's stream.
    pub(super) fn is_graceful(&self) -> bool {
        self.graceful.load(Ordering::Relaxed) && !self.reset.load(Ordering::Relaxed)
    }

    fn note(&self, seen: Seen) {
        match seen {
            Seen::GoAway(code) => self.graceful.store(code == NO_ERROR, Ordering::Relaxed),
            Seen::Reset => self.reset.store(true, Ordering::Relaxed),
        }
    }
}

impl<S> Watched<S> {
    /// What comes in from `stream` is noted in `farewell`.
    pub(super) fn new(stream: S, farewell: Arc<Farewell>) -> Self {
        Self {
            stream,
            scanner: Scanner::default(),
            farewell,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Self {
            scanner, farewell, ..
        } = &mut *self;
        let came = &buf.filled()[before..];
        scanner.read(came, |seen| farewell.note(seen));
        if !farewell.may_come(came.len()) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the backend sent more than its checks ask for",
            )));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Scanner {
    fn read(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Seen)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.wanted() - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            // A whole head may show that more is wanted.
            if self.filled < HEAD || self.filled < self.wanted() {
                continue;
            }
            let [_, _, _, kind, ..] = self.head;
            match kind {
                GOAWAY_FRAME if self.filled > HEAD => {
                    let [.., a, b, c, d] = self.head;
                    tell(Seen::GoAway(u32::from_be_bytes([a, b, c, d])));
                }
                RST_STREAM_FRAME => tell(Seen::Reset),
                _ => {}
            }
            self.skip = self.length() - (self.filled - HEAD);
            self.filled = 0;
        }
    }

    /// How much of the present frame is to be kept.
    fn wanted(&self) -> usize {
        let goaway = self.filled >= HEAD && self.head[3] == GOAWAY_FRAME && self.length() >= GOAWAY;
        if goaway { HEAD + GOAWAY } else { HEAD }
    }

    /// The payload's, of the head that is there.
    fn length(&self) -> usize {
        let [a, b, c, ..] = self.head;
        u32::from_be_bytes([0, a, b, c]) as usize
    }
}

/// Bytes from one check to the next. An answer has a hundred; hyper takes 16 KiB of headers, and the windows let 64 KiB
/// of data come. The rest is for what a backend says of itself: at a PING each second it is enough for four hours.
const MOST: usize = 256 * 1024;

/// A frame's head (RFC 9113 §4.1).
const HEAD: usize = 9;
/// A GOAWAY's last stream and error code (RFC 9113 §6.8).
const GOAWAY: usize = 8;
const GOAWAY_FRAME: u8 = 7;
const RST_STREAM_FRAME: u8 = 3;
/// RFC 9113 §7.
const NO_ERROR: u32 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        [&length[..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn goaway(code: u8, debug: &[u8]) -> Vec<u8> {
        let fixed = [0, 0, 0, 1, 0, 0, 0, code];
        frame(GOAWAY_FRAME, &[&fixed[..], debug].concat())
    }

    /// What is found in `bytes` when they come in pieces of `size`.
    fn found(bytes: &[u8], size: usize) -> Vec<Seen> {
        let mut scanner = Scanner::default();
        let mut all = Vec::new();
        for piece in bytes.chunks(size) {
            scanner.read(piece, |seen| all.push(seen));
        }
        all
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [
            frame(4, &[]),
            frame(4, &[0, 3, 0, 0, 0, 100]),
            // A payload that looks like a GOAWAY.
            frame(0, &goaway(0, b"")),
            frame(RST_STREAM_FRAME, &[0, 0, 0, 8]),
            goaway(2, b"goodbye"),
            frame(1, &[0; 300]),
            goaway(0, b""),
        ]
        .concat();
        for size in 1..=bytes.len() {
            assert_eq!(
                found(&bytes, size),
                [Seen::Reset, Seen::GoAway(2), Seen::GoAway(0)],
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn a_goaway_too_short_to_be_one_is_skipped() {
        let bytes = [frame(GOAWAY_FRAME, &[0; 7]), goaway(0, b"")].concat();
        for size in 1..=bytes.len() {
            assert_eq!(found(&bytes, size), [Seen::GoAway(0)]);
        }
    }

    #[test]
    fn only_the_last_word_counts_and_a_reset_of_the_check_is_against_it() {
        let farewell = Farewell::default();
        assert!(!farewell.is_graceful());
        farewell.note(Seen::GoAway(0));
        assert!(farewell.is_graceful());
        farewell.note(Seen::Reset);
        assert!(!farewell.is_graceful());
        farewell.check_begins();
        assert!(farewell.is_graceful(), "the connection is still leaving");
        farewell.note(Seen::GoAway(11));
        assert!(!farewell.is_graceful());
        farewell.note(Seen::GoAway(0));
        farewell.connected();
        assert!(!farewell.is_graceful(), "that was another connection");
    }

    #[tokio::test]
    async fn who_floods_does_not_leave_in_peace() {
        for (beyond, ends) in [(0, true), (1, false)] {
            let mut bytes = goaway(0, b"");
            bytes.resize(MOST + beyond, 0);
            let farewell = Arc::<Farewell>::default();
            let mut watched = Watched::new(&bytes[..], farewell.clone());
            let read = tokio::io::copy(&mut watched, &mut tokio::io::sink()).await;
            assert_eq!((read.is_ok(), farewell.is_graceful()), (ends, ends));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_harm_it(bytes: Vec<u8>, size in 1usize..64) {
            let _ = found(&bytes, size);
        }
    }
}
