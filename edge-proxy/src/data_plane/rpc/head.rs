//! The request's head: as a block until it goes to a stream, packed from then on.
//!
//! Filters and encoder work on a block within one turn, and one after the other all RPCs of a turn may have the same
//! memory for it. An RPC lives much longer than a turn: with a thousand of them in flight, no processor's cache holds
//! what they keep, and each line of memory that is touched again is waited for. So the block itself goes to the engine of the
//! first stream, and what stays is a packed copy: for another attempt, which is rare, and for the six values that the
//! log line wants, which are read where they lie. Where no attempt follows and the end is the client's to delay, nothing
//! stays but these.

use http2::{Headers, Known, Packed, Place, stock};

use crate::data_plane::access_log;

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
            for (place, known) in self.places.iter_mut().zip(LOGGED) {
                *place = self.packed.place(&block, known);
            }
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

    /// Whether [`trim`](Self::trim) would give anything back.
    pub(super) fn is_large(&self) -> bool {
        self.memory() > TRIMMED
    }

    /// No attempt follows: keeps what the log line says, and no more.
    pub(super) fn trim(&mut self) {
        if !self.is_large() {
            return;
        }
        let mut logged = stock::arena();
        for (of, known) in Logged::ALL.into_iter().zip(LOGGED) {
            if let Some(value) = self.value(of) {
                // One byte more tells the log that there was more.
                logged.push_known(known, &value[..value.len().min(access_log::FIELD + 1)]);
            }
        }
        let packed = Packed::exact(&logged);
        let places = LOGGED.map(|known| packed.place(&logged, known));
        stock::recycle(logged);
        let trimmed = Self {
            block: None,
            packed,
            places,
        };
        std::mem::replace(self, trimmed).recycle();
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

impl Logged {
    const ALL: [Self; LOGGED.len()] = [
        Self::Method,
        Self::Path,
        Self::Authority,
        Self::Host,
        Self::UserAgent,
        Self::RequestId,
    ];
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

/// What a head takes at most when it is trimmed: six values, their names and marks.
const TRIMMED: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_head_says_in_the_log_what_the_whole_one_said() {
        for sent in [false, true] {
            let mut block = Headers::new();
            for (n, known) in LOGGED.into_iter().enumerate() {
                block.push(b"x-other", &[b'x'; 1000]);
                block.push_known(known, &vec![b'a' + n as u8; 100 * n]);
            }
            let whole = block.clone();
            let mut head = Head::new(block);
            if sent {
                head.send();
            }
            assert!(head.is_large());
            head.trim();
            assert!(!head.is_large(), "{}", head.memory());
            for (of, known) in Logged::ALL.into_iter().zip(LOGGED) {
                let (value, whole) = (head.value(of).unwrap(), whole.known(known).unwrap());
                assert!(whole.starts_with(value), "{of:?}");
                assert_eq!(value.len(), whole.len().min(access_log::FIELD + 1));
            }
            head.recycle();
        }
    }

    #[test]
    fn a_trimmed_head_of_the_longest_values_takes_what_is_said() {
        let long = vec![b'v'; 4000];
        let block = LOGGED.map(|known| (known.name(), &long[..]));
        let mut head = Head::new(block.into_iter().collect());
        head.trim();
        assert!(!head.is_large(), "{}", head.memory());
    }
}
