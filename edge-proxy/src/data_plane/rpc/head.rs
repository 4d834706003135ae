//! The request's head: as a block until it goes to a stream, packed from then on.
//!
//! Filters and encoder work on a block within one turn, and one after the other all RPCs of a turn may have the same
//! memory for it. An RPC lives much longer than a turn: with a thousand of them in flight, no processor's cache holds
//! what they keep, and each line of memory that is touched again is waited for. So the block itself goes to the engine of the
//! first stream, and what stays is a packed copy: for another attempt, which is rare, and for the six values that the
//! log line wants, which are read where they lie.

use http2::{Headers, Known, Packed, Place, stock};

/// See the module.
#[derive(Debug)]
pub(super) struct Head {
    /// Until the first attempt has a stream.
    block: Option<Headers>,
    /// From then on.
    packed: Packed,
    places: [Option<Place>; LOGGED.len()],
}

impl Head {
    pub(super) fn new(block: Headers) -> Self {
        Self {
            block: Some(block),
            packed: Packed::default(),
            places: [None; LOGGED.len()],
        }
    }

    /// For the filters, which run before the first attempt.
    pub(super) fn block(&mut self) -> &mut Headers {
        self.block.get_or_insert_with(|| self.packed.unpack())
    }

    /// A block for an attempt's stream: at first the one that came.
    pub(super) fn send(&mut self) -> Headers {
        let Some(block) = self.block.take() else {
            return self.packed.unpack();
        };
        if self.packed.is_empty() {
            self.packed = Packed::new(&block);
            self.places = LOGGED.map(|known| self.packed.place(&block, known));
        }
        block
    }

    /// The value of the first field of this name.
    #[inline]
    pub(super) fn value(&self, of: Logged) -> Option<&[u8]> {
        match &self.block {
            Some(block) => block.known(LOGGED[of as usize]),
            None => Some(self.packed.value(self.places[of as usize]?)),
        }
    }

    /// The memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.block.as_ref().map_or(0, Headers::memory) + self.packed.memory()
    }

    /// Gives the memory back to the thread.
    pub(super) fn recycle(self) {
        if let Some(block) = self.block {
            stock::recycle(block);
        }
        self.packed.recycle();
    }
}

/// What the log line says of a request: which of [`LOGGED`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Logged {
    Method,
    Path,
    Authority,
    Host,
    UserAgent,
    RequestId,
}

/// In the order of [`Logged`].
const LOGGED: [Known; 6] = [
    Known::Method,
    Known::Path,
    Known::Authority,
    Known::Host,
    Known::UserAgent,
    Known::XRequestId,
];
