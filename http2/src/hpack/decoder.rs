//! Decodes header blocks, RFC 7541 §3 and §6, straight into the arena of a [`Headers`].

use super::{
    DecodeError, INITIAL_TABLE_SIZE, content_hash, huffman, integer,
    table::{DynamicTable, STATIC_LEN, STATIC_TABLE},
};
use crate::headers::{Check, FIELD_OVERHEAD, Headers, Meta, NameId};

/// Our half of the peer's encoder: one per connection.
#[derive(Debug)]
pub struct Decoder {
    table: DynamicTable,
    /// The largest size that the peer may choose now.
    limit: usize,
    /// The SETTINGS_HEADER_TABLE_SIZE that we announced.
    announced: usize,
    /// The table is above `limit`, so the next block has to begin with an update (RFC 7541 §4.2).
    update_due: bool,
    /// Where a field is put together that isn't kept.
    scratch: Vec<u8>,
}

/// How a decoded list came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// RFC 9113 §6.5.2 size of the whole list, whether or not all of it was kept.
    pub list_size: usize,
}

impl Decoder {
    /// `max_table`: the SETTINGS_HEADER_TABLE_SIZE that we announced.
    ///
    /// The peer may use the protocol's initial 4096 bytes until it has seen a smaller announcement; see
    /// [`settings_acknowledged`](Self::settings_acknowledged).
    pub fn new(max_table: usize) -> Self {
        Self {
            table: DynamicTable::new(INITIAL_TABLE_SIZE),
            limit: max_table.max(INITIAL_TABLE_SIZE),
            announced: max_table,
            update_due: false,
            scratch: Vec::new(),
        }
    }

    /// The peer acknowledged our SETTINGS: from its next block on it keeps to a table below 4096 bytes too. Only needed
    /// where less than 4096 is announced.
    pub fn settings_acknowledged(&mut self) {
        self.limit = self.announced;
        self.update_due = self.table.max_size() > self.limit;
    }

    /// Decodes one whole block and appends to `into`. The table is always brought up to date to the block's end; fields
    /// beyond `keep` bytes of list size are counted and not stored.
    ///
    /// What is kept is the list's beginning, and it is everything exactly if [`Decoded::list_size`] is at most `keep`.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        keep: usize,
        into: &mut Headers,
    ) -> Result<Decoded, DecodeError> {
        self.size_updates(&mut block)?;
        let mut list_size = 0usize;
        while let Some((&first, rest)) = block.split_first() {
            block = rest;
            if first & 0x80 != 0 {
                // An index alone: nothing to read, nothing to check; beyond `keep` nothing but a count.
                let index = integer::decode(first, 7, &mut block)?;
                let (line, name_len, meta) = self.indexed(index)?;
                list_size = list_size.saturating_add(line.len() + FIELD_OVERHEAD);
                if list_size <= keep {
                    into.push_line(line, name_len, meta);
                }
            } else {
                let (prefix, table, never_indexed) = match first >> 4 {
                    0b0100.. => (6, true, false),
                    0b0001 => (4, false, true),
                    0b0000 => (4, false, false),
                    _ => return Err(LATE_UPDATE),
                };
                let index = integer::decode(first, prefix, &mut block)?;
                let kept = list_size < keep;
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.clear();
                let out = if kept { into.arena() } else { &mut scratch };
                let start = out.len();
                let (name_len, name) = self.name(index, &mut block, out)?;
                string(&mut block, out)?;
                let line = &out[start..];
                let (name_bytes, value) = line.split_at(name_len);
                let mut meta = Meta {
                    check: Check::of(name, name_bytes, value),
                    never_indexed,
                    ..Meta::of(name)
                };
                list_size = list_size.saturating_add(line.len() + FIELD_OVERHEAD);
                if table {
                    meta.hash = content_hash(line);
                    self.table.insert(line, name_len, meta, |_, _| {});
                }
                if kept && list_size <= keep {
                    into.commit(start, name_len, meta);
                } else if kept {
                    into.arena().truncate(start);
                }
                self.scratch = scratch;
            }
        }
        if self.scratch.capacity() > SCRATCH {
            self.scratch = Vec::new();
        }
        Ok(Decoded { list_size })
    }

    /// RFC 7541 §4.2, §6.3: at the beginning of a block only.
    #[inline]
    fn size_updates(&mut self, block: &mut &[u8]) -> Result<(), DecodeError> {
        while let Some((&first @ 0x20..=0x3f, rest)) = block.split_first() {
            *block = rest;
            let size = integer::decode(first, 5, block)?;
            if size > self.limit {
                return Err(DecodeError(
                    "a table size above what we announced (RFC 7541 §6.3)",
                ));
            }
            self.table.resize(size, |_, _| {});
            self.update_due = false;
        }
        if self.update_due {
            return Err(DecodeError(
                "no table size update after our settings lowered it (RFC 7541 §4.2)",
            ));
        }
        Ok(())
    }

    #[inline]
    fn indexed(&self, index: usize) -> Result<(&[u8], usize, Meta), DecodeError> {
        match index {
            0 => Err(DecodeError("index 0 (RFC 7541 §6.1)")),
            1..=STATIC_LEN => {
                let (line, name_len) = STATIC_TABLE.line(index as u8);
                let name = NameId::of_static(index as u8);
                // The entries with values are right; one with an empty value may be a fault (RFC 9113 §8.3.1).
                let check = if line.len() > name_len {
                    Check::FINE
                } else {
                    Check::UNKNOWN
                };
                Ok((
                    line,
                    name_len,
                    Meta {
                        check,
                        static_index: index as u8,
                        ..Meta::of(name)
                    },
                ))
            }
            index => {
                let line = self.table.get(index - STATIC_LEN - 1).ok_or(NO_ENTRY)?;
                Ok((line.bytes, line.name_len, line.meta))
            }
        }
    }

    /// Appends a literal's name to `out`: by its index, or spelt out.
    #[inline]
    fn name(
        &self,
        index: usize,
        block: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, NameId), DecodeError> {
        let start = out.len();
        let id = match index {
            0 => {
                string(block, out)?;
                NameId::of(&out[start..])
            }
            1..=STATIC_LEN => {
                let id = NameId::of_static(index as u8);
                out.extend_from_slice(id.bytes());
                id
            }
            index => {
                let line = self.table.get(index - STATIC_LEN - 1).ok_or(NO_ENTRY)?;
                out.extend_from_slice(line.name());
                line.meta.name
            }
        };
        Ok((out.len() - start, id))
    }
}

/// RFC 7541 §5.2.
#[inline]
fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let Some((&first, rest)) = block.split_first() else {
        return Err(integer::TRUNCATED);
    };
    *block = rest;
    let len = integer::decode(first, 7, block)?;
    let Some((text, rest)) = block.split_at_checked(len) else {
        return Err(integer::TRUNCATED);
    };
    *block = rest;
    if first & 0x80 == 0 {
        out.extend_from_slice(text);
        Ok(())
    } else {
        huffman::decode(text, out)
    }
}

const NO_ENTRY: DecodeError = DecodeError("an index without an entry (RFC 7541 §2.3.3)");
const LATE_UPDATE: DecodeError =
    DecodeError("a table size update after the beginning of a block (RFC 7541 §4.2)");
/// A scratch above this isn't kept for the connection's life.
const SCRATCH: usize = 4096;
