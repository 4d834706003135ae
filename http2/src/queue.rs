//! Bytes held back for one stream, in order.
//!
//! A chunk holds up to [`CHUNK`] bytes, so growing never moves more than that, and what has gone
//! is given back chunk by chunk. The first chunk is inline: a queue that only joins the small
//! messages of one turn needs no list. Emptied chunks go to the [`stock`].

use std::collections::VecDeque;

use crate::stock;

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
    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let last = self.rest.back_mut().unwrap_or(&mut self.front);
            if last.capacity() == 0 {
                *last = stock::chunk();
            }
            let n = CHUNK.saturating_sub(last.len()).min(bytes.len());
            if n == 0 {
                self.rest.push_back(stock::chunk());
                continue;
            }
            grow(last, n);
            last.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    /// Moves the first `n` bytes (at most [`len`](Self::len)) to `out`.
    pub(crate) fn pop(&mut self, mut n: usize, out: &mut Vec<u8>) {
        self.len -= n;
        while n > 0 {
            let part = &self.front[self.read..];
            let take = part.len().min(n);
            out.extend_from_slice(&part[..take]);
            n -= take;
            self.read += take;
            if self.read == self.front.len() {
                let next = self.rest.pop_front().unwrap_or_default();
                stock::give_chunk(std::mem::replace(&mut self.front, next));
                self.read = 0;
            }
        }
    }

    /// Drops the last `n` bytes (at most [`len`](Self::len)).
    pub(crate) fn unpush(&mut self, mut n: usize) {
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
                stock::give_chunk(empty);
            }
        }
    }

    /// Drops everything; the number of bytes that it held.
    pub(crate) fn clear(&mut self) -> usize {
        // As every stream's is that ends well.
        if self.len == 0 && self.front.capacity() == 0 {
            return 0;
        }
        stock::give_chunk(std::mem::take(&mut self.front));
        for chunk in self.rest.drain(..) {
            stock::give_chunk(chunk);
        }
        self.read = 0;
        std::mem::take(&mut self.len)
    }
}

/// Makes room for `more` bytes, within [`CHUNK`]. Pieces end where packets do: left to itself, a vector grows to all sizes up
/// to twice a chunk's, and of what one size has left in the allocator another takes nothing.
#[inline]
fn grow(chunk: &mut Vec<u8>, more: usize) {
    let needed = chunk.len() + more;
    if needed > chunk.capacity() {
        chunk.reserve_exact(needed.next_power_of_two() - chunk.len());
    }
}

/// The most that one chunk holds: a frame of the default maximum size.
pub(crate) const CHUNK: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut queue = Queue::default();
        let all: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let mut out = Vec::new();
        let (mut pushed, mut step) = (0, 1);
        while out.len() < all.len() {
            let n = step.min(all.len() - pushed);
            queue.push(&all[pushed..pushed + n]);
            pushed += n;
            let n = (step / 2 + 1).min(queue.len());
            queue.pop(n, &mut out);
            step = step * 3 % 40_009;
        }
        assert_eq!(out, all);
        assert!(queue.is_empty());
    }

    #[test]
    fn chunks_have_few_sizes_and_none_is_larger_than_a_frame() {
        for piece in [1, 7, 700, 5_000, 9_000, 16_000, 16_383, 70_000] {
            let mut queue = Queue::default();
            for _ in 0..20 {
                queue.push(&vec![1; piece]);
                for chunk in queue.rest.iter().chain([&queue.front]) {
                    let capacity = chunk.capacity();
                    assert!(capacity.is_power_of_two(), "{capacity} for {piece}");
                    assert!((512..=CHUNK).contains(&capacity), "{capacity} for {piece}");
                    let waste = capacity.saturating_sub(512);
                    assert!(waste < 2 * chunk.len(), "{capacity} for {}", chunk.len());
                }
            }
        }
    }

    #[test]
    fn clearing_tells_what_was_lost_and_keeps_buffers() {
        let mut queue = Queue::default();
        queue.push(&[1; 40_000]);
        let mut out = Vec::new();
        queue.pop(100, &mut out);
        assert_eq!(queue.clear(), 39_900);
        assert!(queue.is_empty());
        // The last of three.
        assert!((0..3).all(|_| stock::chunk().capacity() >= 512));
    }
}
