//! Memory that the connections of one thread take turns with.
//!
//! A connection needs an arena for each header block on its way, a buffer for what it is about to write, and chunks for
//! what it holds back and for frames that come in parts: mostly for the length of a turn. If each connection kept its own, thousands of them would hold
//! memory that they use one after the other, and each would find its own gone from the processor's caches. So a thread
//! has one stock, last in, first out: what one connection has just given back is what the next one gets. What is kept
//! is bounded, however many connections there are.
//!
//! A variable of the thread and no part of a connection: it holds no bytes of anybody's, only room for some, so that it
//! makes no difference which connections share it, and a connection may move to another thread.
//!
//! What a burst has left goes again: [`halve`], called once a second, leaves a busy thread what it uses (a few hundred
//! allocations are nothing to it), and one that is quiet has given back all of it within some seconds. Else those few
//! vectors, which lie scattered over the memory of the burst, would keep the allocator from returning any of it.

use std::cell::{Cell, RefCell};

use crate::{headers::Headers, queue::CHUNK};

/// A thread's spare memory.
#[derive(Debug)]
struct Stock {
    arenas: RefCell<Vec<Headers>>,
    chunks: Shelf,
    buffers: Shelf,
}

/// Byte vectors of one use.
#[derive(Debug)]
struct Shelf {
    vectors: RefCell<Vec<Vec<u8>>>,
    /// The capacity of all of them.
    bytes: Cell<usize>,
}

thread_local! {
    static STOCK: Stock = const { Stock::new() };
}

/// An empty block, with the memory of an earlier one if there is any.
#[inline]
pub fn arena() -> Headers {
    taken(Stock::arena)
}

/// A copy of a block that may be kept for long: not in memory that a much larger one has left.
pub fn copy(headers: &Headers) -> Headers {
    let mut copy = arena();
    if copy.memory() > ROOMY.max(4 * headers.list_size()) {
        recycle(copy);
        return headers.clone();
    }
    copy.clone_from(headers);
    copy
}

/// Keeps a block's memory.
#[inline]
pub fn recycle(headers: Headers) {
    given(|stock| stock.recycle(headers));
}

/// An empty vector for a small part of a message.
#[inline]
pub fn chunk() -> Vec<u8> {
    taken(|stock| {
        let spare = stock.chunks.take();
        spare.unwrap_or_else(|| Vec::with_capacity(SMALL_CHUNK))
    })
}

/// An empty vector with room for `needed` bytes that are kept for long: one that isn't much larger, since its owner may have
/// thousands of them.
#[inline]
pub fn chunk_for(needed: usize) -> Vec<u8> {
    let mut chunk = chunk();
    if chunk.capacity() > SMALL_CHUNK.max(2 * needed) {
        give_chunk(chunk);
        return Vec::with_capacity(needed);
    }
    chunk.reserve(needed);
    chunk
}

/// Keeps a chunk's memory. A larger vector is none: whoever took it for a small message would hold all of it.
#[inline]
pub fn give_chunk(chunk: Vec<u8>) {
    if chunk.capacity() <= CHUNK {
        given(|stock| stock.chunks.give(chunk, CHUNKS));
    }
}

/// Gives back half of what is kept, the half that was used longest ago.
pub fn halve() {
    given(Stock::halve);
}

/// An empty vector for a connection's output.
#[inline]
pub(crate) fn buffer() -> Vec<u8> {
    taken(|stock| stock.buffers.take().unwrap_or_default())
}

/// Keeps an output's memory.
#[inline]
pub(crate) fn give_buffer(buffer: Vec<u8>) {
    given(|stock| stock.buffers.give(buffer, BUFFERS));
}

#[inline]
fn taken<T: Default>(take: impl FnOnce(&Stock) -> T) -> T {
    // A thread that ends may have lost its stock already.
    STOCK.try_with(take).unwrap_or_default()
}

#[inline]
fn given(give: impl FnOnce(&Stock)) {
    let _ = STOCK.try_with(give);
}

impl Stock {
    const fn new() -> Self {
        Self {
            arenas: RefCell::new(Vec::new()),
            chunks: Shelf::new(),
            buffers: Shelf::new(),
        }
    }

    #[inline]
    fn arena(&self) -> Headers {
        self.arenas.borrow_mut().pop().unwrap_or_default()
    }

    #[inline]
    fn recycle(&self, mut headers: Headers) {
        let mut arenas = self.arenas.borrow_mut();
        if arenas.len() < ARENAS && headers.list_size() <= ARENA_SIZE {
            headers.clear();
            arenas.push(headers);
        }
    }

    fn halve(&self) {
        halve_list(&mut self.arenas.borrow_mut());
        self.chunks.halve();
        self.buffers.halve();
    }
}

impl Shelf {
    const fn new() -> Self {
        Self {
            vectors: RefCell::new(Vec::new()),
            bytes: Cell::new(0),
        }
    }

    #[inline]
    fn take(&self) -> Option<Vec<u8>> {
        let vector = self.vectors.borrow_mut().pop()?;
        self.bytes.set(self.bytes.get() - vector.capacity());
        Some(vector)
    }

    #[inline]
    fn give(&self, mut vector: Vec<u8>, most: usize) {
        let bytes = self.bytes.get() + vector.capacity();
        if vector.capacity() > 0 && bytes <= most {
            vector.clear();
            self.bytes.set(bytes);
            self.vectors.borrow_mut().push(vector);
        }
    }

    fn halve(&self) {
        let mut vectors = self.vectors.borrow_mut();
        halve_list(&mut vectors);
        self.bytes.set(vectors.iter().map(Vec::capacity).sum());
    }
}

/// Drops the older half of a list, the larger one, and the room for it.
fn halve_list<T>(list: &mut Vec<T>) {
    list.drain(..list.len().div_ceil(2));
    list.shrink_to(2 * list.len());
}

/// Header blocks on their way at a time, of a busy thread: about a KiB each.
const ARENAS: usize = 1024;

/// A list above this leaves an arena too large to keep.
const ARENA_SIZE: usize = 8 * 1024;

/// An arena's memory above which it is too large for the copy of a small block.
const ROOMY: usize = 4096;

/// A chunk's first capacity: some small gRPC messages.
const SMALL_CHUNK: usize = 512;

/// Bytes of chunks that are kept: the small messages of a thousand streams, or a few dozen full frames.
const CHUNKS: usize = 1024 * 1024;

/// Bytes of output buffers that are kept. One connection writes at a time; some are left with what their peers don't take.
const BUFFERS: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_given_is_the_next_one_taken() {
        // Each test has a thread of its own.
        give_chunk(Vec::with_capacity(100));
        let mut used = Vec::with_capacity(200);
        used.push(1);
        give_chunk(used);
        let taken = chunk();
        assert_eq!((taken.len(), taken.capacity()), (0, 200));
        assert_eq!(chunk().capacity(), 100);
        assert_eq!(chunk().capacity(), SMALL_CHUNK);
    }

    #[test]
    fn a_small_block_is_not_copied_into_what_a_large_one_has_left() {
        let small = Headers::from_iter([("grpc-status", "0")]);
        recycle(Headers::with_capacity(8, 8000));
        let kept = copy(&small);
        assert_eq!(kept, small);
        assert!(kept.memory() < ROOMY, "{}", kept.memory());
        assert!(arena().memory() > 8000, "it is still there");
    }

    #[test]
    fn what_has_outgrown_a_chunk_is_not_kept() {
        give_chunk(Vec::with_capacity(CHUNK));
        give_chunk(Vec::with_capacity(CHUNK + 1));
        assert_eq!(chunk().capacity(), CHUNK);
        assert_eq!(chunk().capacity(), SMALL_CHUNK);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let stock = Stock::new();
        for _ in 0..3 * ARENAS {
            stock.recycle(Headers::with_capacity(1, 1));
            stock.chunks.give(Vec::with_capacity(16 * 1024), CHUNKS);
        }
        assert_eq!(stock.arenas.borrow().len(), ARENAS);
        assert_eq!(stock.chunks.bytes.get(), CHUNKS);
        while stock.chunks.take().is_some() {}
        assert_eq!(stock.chunks.bytes.get(), 0);
        stock.chunks.give(Vec::with_capacity(CHUNKS + 1), CHUNKS);
        stock.chunks.give(Vec::new(), CHUNKS);
        assert!(stock.chunks.take().is_none());
    }

    #[test]
    fn what_a_burst_has_left_goes_the_oldest_first_until_nothing_is_kept() {
        let stock = Stock::new();
        for capacity in 1..=ARENAS {
            stock.recycle(Headers::with_capacity(1, 1));
            stock.chunks.give(Vec::with_capacity(capacity), CHUNKS);
            stock.buffers.give(Vec::with_capacity(capacity), BUFFERS);
        }
        stock.halve();
        assert_eq!(stock.arenas.borrow().len(), ARENAS / 2);
        let kept = (ARENAS / 2 + 1..=ARENAS).sum();
        assert_eq!(stock.chunks.bytes.get(), kept);
        assert_eq!(stock.chunks.take().map(|v| v.capacity()), Some(ARENAS));
        for _ in 0..10 {
            stock.halve();
        }
        assert_eq!(stock.arenas.borrow().capacity(), 0);
        for shelf in [&stock.chunks, &stock.buffers] {
            assert_eq!(shelf.bytes.get(), 0);
            assert_eq!(shelf.vectors.borrow().capacity(), 0);
        }
    }

    #[test]
    fn a_large_block_is_not_kept() {
        let stock = Stock::new();
        let mut large = Headers::new();
        large.push(b"a", &[b'v'; ARENA_SIZE]);
        stock.recycle(large);
        assert!(stock.arenas.borrow().is_empty());
    }
}
