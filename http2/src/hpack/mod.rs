//! HPACK, RFC 7541: one [`Decoder`] and one [`Encoder`] per connection.
//!
//! Made for a proxy, where the blocks of one connection repeat themselves: what is found out about a field once (its
//! characters are allowed, the number of its name, a hash of its content) stands in the decoder's table, goes with the
//! field through [`Headers`], and saves the encoder of the other side its look-up. The parts: `huffman` and `integer` for
//! the primitives, `hash` for that look-up, `table` for the static and the dynamic table, `memo` and `prefix` for blocks
//! that repeat the one before, as they come and as they go, `discard` for blocks that nobody wants.
//!
//! [`Headers`]: crate::Headers

mod decoder;
mod discard;
mod encoder;
mod hash;
mod huffman;
mod integer;
mod memo;
mod prefix;
mod table;

pub use decoder::{Decoded, Decoder};
pub use discard::Discard;
pub use encoder::Encoder;

#[cfg(test)]
pub(crate) use table::STATIC_TABLE;

/// A block that wasn't decoded to its end: the table is out of step, and so the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It breaks this rule of HPACK: COMPRESSION_ERROR (RFC 9113 §4.3).
    #[error("{0}")]
    Broken(&'static str),
    /// Its list passes [`Decoder::with_ceiling`]: ENHANCE_YOUR_CALM (RFC 9113 §10.5.1).
    #[error("a header list of too many bytes (RFC 9113 §10.5.1)")]
    TooLarge,
}

/// SETTINGS_HEADER_TABLE_SIZE before any SETTINGS (RFC 9113 §6.5.2): the size that both tables start with.
const INITIAL_TABLE_SIZE: usize = 4096;
