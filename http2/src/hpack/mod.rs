//! HPACK, RFC 7541.
use crate::headers::Headers;

/// A block that can't be decoded: COMPRESSION_ERROR for the connection (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub &'static str);

/// Our half of the peer's encoder: one per connection.
pub struct Decoder { _max: usize }

/// How a decoded list came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded { /// RFC 9113 §6.5.2 size of the whole list, whether or not all of it was kept.
    pub list_size: usize }

impl Decoder {
    /// `max_table`: the SETTINGS_HEADER_TABLE_SIZE that we announced.
    pub fn new(max_table: usize) -> Self { Self { _max: max_table } }
    /// Decodes one whole block and appends to `into`. The table is always brought up to date to the block's end; fields
    /// beyond `keep` bytes of list size are counted and not stored.
    pub fn decode(&mut self, block: &[u8], keep: usize, into: &mut Headers) -> Result<Decoded, DecodeError> { let _ = (block, keep, into); unimplemented!() }
}

/// Encodes the blocks that we send: one per connection.
pub struct Encoder { _cap: usize }

impl Encoder {
    /// `cap`: the most that we use, whatever the peer allows.
    pub fn new(cap: usize) -> Self { Self { _cap: cap } }
    /// The peer's SETTINGS_HEADER_TABLE_SIZE; the size update goes out before the next block (RFC 7541 §4.2).
    pub fn set_peer_max(&mut self, max: usize) { let _ = max; unimplemented!() }
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) { let _ = (headers, out); unimplemented!() }
}
