//! Where records are sealed: memory of the thread, since most of what a call seals is on the socket before it ends.
//!
//! It is filled with zeros when it grows and never again: rustls writes into a slice, and a vector that grew and shrank
//! with each call would be cleared for each.

use std::{cell::Cell, io, mem};

use rustls::unbuffered::{EncodeError, EncryptError};

/// Memory of the thread that records are sealed into.
pub(super) struct Room {
    bytes: Vec<u8>,
    filled: usize,
}

/// Why rustls didn't write into a [`Room`].
pub(super) enum Refused {
    /// It takes so much.
    Room(usize),
    /// The keys are used up (TLS 1.2; TLS 1.3 changes them), or the session can't seal any more.
    Exhausted,
}

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Room {
    /// The thread's, or a new one where that is in use.
    pub(super) fn take() -> Self {
        Self {
            bytes: ROOM.try_with(Cell::take).unwrap_or_default(),
            filled: 0,
        }
    }

    /// Calls `write` with what is free until that is enough for it.
    pub(super) fn put(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Refused>,
    ) -> io::Result<()> {
        loop {
            match write(&mut self.bytes[self.filled..]) {
                Ok(n) => {
                    self.filled += n;
                    return Ok(());
                }
                // Filled with zeros once; after that the thread has it.
                Err(Refused::Room(needed)) => self.bytes.resize(self.filled + needed, 0),
                Err(Refused::Exhausted) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes.len() <= LARGEST_ROOM {
            let bytes = mem::take(&mut self.bytes);
            // A thread that ends has no use for it.
            let _ = ROOM.try_with(|room| room.set(bytes));
        }
    }
}

impl From<EncodeError> for Refused {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::Room(size.required_size),
            EncodeError::AlreadyEncoded => Self::Exhausted,
        }
    }
}

impl From<EncryptError> for Refused {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::Room(size.required_size),
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}

/// The most room that a thread keeps: what is sealed at once, and the records' heads and tags.
const LARGEST_ROOM: usize = 96 * 1024;
