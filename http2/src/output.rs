//! The bytes to write: one buffer for all frames of a connection, with a read offset.
//!
//! Positions count every byte ever put out, so "has this stream's HEADERS left?" is one
//! comparison however often the buffer was emptied.
//!
//! The buffer comes from the [`stock`]: taken for the first frame, given back when the socket has taken all.

use crate::stock;

/// The output buffer of a connection.
#[derive(Debug, Default)]
pub(crate) struct Output {
    buf: Vec<u8>,
    /// Bytes of `buf` that the socket has taken.
    read: usize,
    /// Bytes that the socket has ever taken.
    left: u64,
}

impl Output {
    /// Where frames are appended.
    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Vec<u8> {
        if self.buf.capacity() == 0 {
            self.buf = stock::buffer();
        }
        &mut self.buf
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[self.read..]
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.buf.len() - self.read
    }

    /// Memory that it takes: no more than growing leaves over. What the stock has lent beyond that goes back soon.
    #[inline]
    pub(crate) fn memory(&self) -> usize {
        self.buf.capacity().min(2 * self.len())
    }

    /// The position of the next byte to be appended.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        self.left + self.len() as u64
    }

    /// The position up to which the socket has taken bytes.
    #[inline]
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Gives back what the bytes that wait don't need.
    pub(crate) fn shrink(&mut self) {
        self.buf.drain(..self.read);
        self.read = 0;
        self.buf.shrink_to_fit();
    }

    /// The socket took `n` bytes (never more than there are).
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len());
        self.read += n;
        self.left += n as u64;
        if self.read == self.buf.len() {
            stock::give_buffer(std::mem::take(&mut self.buf));
            self.read = 0;
        } else if self.read >= COMPACT && self.read >= self.buf.len() / 2 {
            // At least as many bytes have gone as move now, so every byte moves once at most
            // on average.
            self.buf.drain(..self.read);
            self.read = 0;
        }
    }
}

/// Bytes at the buffer's front that are worth moving the rest for.
const COMPACT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_on_when_the_buffer_is_emptied_or_compacted() {
        let mut out = Output::default();
        out.frames().extend_from_slice(&[1; 100_000]);
        out.consume(60_000);
        assert_eq!(
            (out.len(), out.left(), out.position()),
            (40_000, 60_000, 100_000)
        );
        out.consume(10_000);
        assert_eq!(out.frames().len(), 30_000, "compacted");
        out.frames().push(2);
        assert_eq!(out.bytes().len(), 30_001);
        assert_eq!(out.bytes().last(), Some(&2));
        out.consume(usize::MAX);
        assert_eq!(
            (out.len(), out.left(), out.position()),
            (0, 100_001, 100_001)
        );
    }

    #[test]
    fn what_waits_keeps_its_positions_and_no_more_room_than_it_needs() {
        let mut out = Output::default();
        out.shrink();
        out.frames().reserve(100_000);
        out.frames().extend_from_slice(&[1; 1000]);
        out.frames().push(2);
        out.consume(1000);
        out.shrink();
        assert_eq!(
            (out.bytes(), out.left(), out.position()),
            (&[2][..], 1000, 1001)
        );
        assert!(out.frames().capacity() < 1000);
        out.frames().push(3);
        assert_eq!(out.bytes(), [2, 3]);
    }

    #[test]
    fn the_buffer_is_given_back_when_it_is_empty() {
        let (mut one, mut other) = (Output::default(), Output::default());
        one.frames().extend_from_slice(&[1; 1000]);
        one.consume(999);
        assert_eq!(other.frames().capacity(), 0, "it isn't empty");
        one.consume(1);
        other.frames().push(2);
        assert!(
            other.frames().capacity() >= 1000,
            "it is the one that was given back"
        );
        assert_eq!((one.bytes(), other.bytes()), (&[][..], &[2][..]));
    }
}
