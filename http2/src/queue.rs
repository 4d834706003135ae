//! Bytes held back for one stream, in order.
//!
//! A chunk holds up to [`CHUNK`] bytes, so growing never moves more than that, and what has gone
//! is given back chunk by chunk. The first chunk is inline: a queue that only joins the small
//! messages of one turn needs no list. Emptied chunks go to the connection's [`Pool`].

use std::collections::VecDeque;

/// The bytes of one stream that wait for a window, the output, or the end of the turn.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    front: Vec<u8>,
    /// Bytes of `front` that have gone.
    read: usize,
    rest: VecDeque<Vec<u8>>,
    len: usize,
}

impl Queue {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends all of `bytes`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], pool: &mut Pool) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let last = self.rest.back_mut().unwrap_or(&mut self.front);
            if last.capacity() == 0 {
                *last = pool.take();
            }
            let n = CHUNK.saturating_sub(last.len()).min(bytes.len());
            if n == 0 {
                self.rest.push_back(pool.take());
                continue;
            }
            last.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    /// Moves the first `n` bytes (at most [`len`](Self::len)) to `out`.
    pub(crate) fn pop(&mut self, mut n: usize, out: &mut Vec<u8>, pool: &mut Pool) {
        self.len -= n;
        while n > 0 {
            let part = &self.front[self.read..];
            let take = part.len().min(n);
            out.extend_from_slice(&part[..take]);
            n -= take;
            self.read += take;
            if self.read == self.front.len() {
                let next = self.rest.pop_front().unwrap_or_default();
                pool.give(std::mem::replace(&mut self.front, next));
                self.read = 0;
            }
        }
    }

    /// Drops the last `n` bytes (at most [`len`](Self::len)).
    pub(crate) fn unpush(&mut self, mut n: usize, pool: &mut Pool) {
        self.len -= n;
        while n > 0 {
            let Some(last) = self.rest.back_mut() else {
                self.front.truncate(self.front.len() - n);
                return;
            };
            let cut = last.len().min(n);
            last.truncate(last.len() - cut);
            n -= cut;
            if last.is_empty()
                && let Some(empty) = self.rest.pop_back()
            {
                pool.give(empty);
            }
        }
    }

    /// Drops everything; the number of bytes that it held.
    pub(crate) fn clear(&mut self, pool: &mut Pool) -> usize {
        pool.give(std::mem::take(&mut self.front));
        for chunk in self.rest.drain(..) {
            pool.give(chunk);
        }
        self.read = 0;
        std::mem::take(&mut self.len)
    }
}

/// Emptied buffers, kept for the next use: a steady load allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    chunks: Vec<Vec<u8>>,
    /// The capacity of all of them.
    bytes: usize,
}

impl Pool {
    pub(crate) fn take(&mut self) -> Vec<u8> {
        match self.chunks.pop() {
            Some(chunk) => {
                self.bytes -= chunk.capacity();
                chunk
            }
            None => Vec::with_capacity(SMALL_CHUNK),
        }
    }

    pub(crate) fn give(&mut self, mut chunk: Vec<u8>) {
        let capacity = chunk.capacity();
        if capacity > 0 && self.bytes + capacity <= POOLED {
            chunk.clear();
            self.bytes += capacity;
            self.chunks.push(chunk);
        }
    }

    /// Gives all memory back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The most that one chunk holds: a frame of the default maximum size.
pub(crate) const CHUNK: usize = 16_384;

/// A chunk's first capacity: some small gRPC messages.
const SMALL_CHUNK: usize = 512;

/// Bytes of buffers that a connection keeps: enough for the small messages of one turn on a
/// hundred streams, or for a few large chunks.
const POOLED: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        let all: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let mut out = Vec::new();
        let (mut pushed, mut step) = (0, 1);
        while out.len() < all.len() {
            let n = step.min(all.len() - pushed);
            queue.push(&all[pushed..pushed + n], &mut pool);
            pushed += n;
            let n = (step / 2 + 1).min(queue.len());
            queue.pop(n, &mut out, &mut pool);
            step = step * 3 % 40_009;
        }
        assert_eq!(out, all);
        assert!(queue.is_empty());
    }

    #[test]
    fn clearing_tells_what_was_lost_and_keeps_buffers() {
        let mut pool = Pool::default();
        let mut queue = Queue::default();
        queue.push(&[1; 40_000], &mut pool);
        let mut out = Vec::new();
        queue.pop(100, &mut out, &mut pool);
        assert_eq!(queue.clear(&mut pool), 39_900);
        assert!(queue.is_empty());
        assert_eq!(pool.chunks.len(), 3);
    }
}
