//! One header block in a flat arena: no allocation per field, and what RFC 9113 §8 allows in it.
//!
//! Names and values stand one after the other in one byte buffer; a [`Headers`] is that buffer and a list of entries
//! in the order of the block, duplicates included. An entry also carries what is already known of its field: the
//! number of its name ([`Known`]), the fault that a check of its characters found, a hash of its content and its index
//! in HPACK's static table. Fields that the decoder takes from a table bring these along, so that in the steady state
//! nothing of them is computed per message; a literal's hash is computed when the encoder first wants it.
//!
//! Taking a field out only drops its entry. Its bytes stay behind until they are more than half of the buffer, and then
//! the rest is moved together; a block that is edited without end stays bounded, an ordinary edit moves nothing.

// One field and what is known of it, from the decoder's table to the encoder.
mod entry;
// Names that we know, recognised once.
mod name;
// A block that is kept for long.
mod packed;
// What RFC 9113 §8 allows.
mod rules;

pub use name::{Known, KnownSet};
pub use packed::{Packed, Place};
pub use rules::{Kind, is_authority, is_path};

use entry::Entry;
pub(crate) use entry::{Meta, Shape};
use name::KNOWN;
pub(crate) use name::{Indexing, NameId};
pub(crate) use rules::Check;

use crate::stock;

/// One field of a [`Headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What the name is, if it is one that rules ask for.
    pub known: Known,
    /// The name, in lower case, with the colon of a pseudo-header field.
    pub name: &'a [u8],
    /// The value, as it came.
    pub value: &'a [u8],
}

/// One header block: names and values in one buffer, fields in order.
///
/// Up to 2 GiB of names and values; a field that would pass that is not taken (blocks from the network are far below,
/// by the limits of the connection).
///
/// One pointer: a block is handed on a dozen times between the frame that it came in and the one that it leaves in.
#[derive(Debug, Default)]
pub struct Headers(Box<Block>);

/// What is behind the pointer.
#[derive(Debug, Default)]
struct Block {
    /// Names and values, with gaps where fields were taken out.
    bytes: Vec<u8>,
    /// The fields, in order.
    entries: Vec<Entry>,
    /// Bytes of `bytes` that belong to entries.
    live: usize,
    /// One bit for each [`Known`] that is there.
    seen: u32,
    /// One for each that is, or was, there more than once.
    repeated: u32,
    /// Where the first field of each [`Known`] stands whose bit is in `seen`; [`BEYOND`]: there, or behind it.
    first: [u8; KNOWN],
}

impl Clone for Headers {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.clone_from(self);
        copy
    }

    /// Into the buffers that are there.
    fn clone_from(&mut self, other: &Self) {
        let (copy, other) = (&mut *self.0, &*other.0);
        copy.bytes.clone_from(&other.bytes);
        copy.entries.clone_from(&other.entries);
        copy.live = other.live;
        copy.seen = other.seen;
        copy.repeated = other.repeated;
        copy.first = other.first;
    }
}

impl Headers {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty block with room for `fields` fields of together `bytes` bytes.
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        let (bytes, entries) = (Vec::with_capacity(bytes), Vec::with_capacity(fields));
        Self(Box::new(Block {
            bytes,
            entries,
            ..Block::default()
        }))
    }

    /// Appends. Pseudo-header fields first, as RFC 9113 §8.3 wants it (the caller keeps the order).
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_with(Meta::of(NameId::of(name)), name, value);
    }

    /// Appends a field of a known name, which isn't looked up. `Known::Other` has no name and adds nothing.
    pub fn push_known(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            let id = NameId::of_known(known);
            self.push_with(Meta::of(id), id.bytes(), value);
        }
    }

    /// Appends a field that neither our encoder nor a later hop puts in a table (RFC 7541 §7.1.3).
    pub fn push_never_indexed(&mut self, name: &[u8], value: &[u8]) {
        self.push_with(
            Meta {
                never_indexed: true,
                ..Meta::of(NameId::of(name))
            },
            name,
            value,
        );
    }

    /// Replaces the first field of this name, removes the others, or appends (a missing pseudo-header field is put
    /// behind the last pseudo-header field).
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.set_with(NameId::of(name), name, value);
    }

    /// [`set`](Self::set) for a known name, which isn't looked up. `Known::Other` has no name and changes nothing.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            let id = NameId::of_known(known);
            self.set_with(id, id.bytes(), value);
        }
    }

    /// Removes every field of this name.
    pub fn remove(&mut self, name: &[u8]) {
        let id = NameId::of(name);
        if id.known() == Known::Other || self.has(id.known()) {
            self.retain_entries(|bytes, e| !e.is(bytes, id, name));
        }
    }

    /// Removes every field that is `known`.
    pub fn remove_known(&mut self, known: Known) {
        if self.has(known) {
            self.retain_entries(|_, e| e.meta.name.known() != known);
        }
    }

    /// Removes the field that is `known`, if it is the last one and alone: then there is nothing to be moved, and what comes
    /// next stands behind the others without a gap. Says whether.
    pub fn pop_known(&mut self, known: Known) -> bool {
        let block = &mut *self.0;
        let is_last = |last: &&Entry| {
            last.meta.name.known() == known && last.range().end == block.bytes.len()
        };
        let alone = known != Known::Other && block.repeated & known.bit() == 0;
        let Some(last) = block.entries.last().filter(is_last).filter(|_| alone) else {
            return false;
        };
        block.live -= last.len();
        block.bytes.truncate(last.start as usize);
        block.entries.pop();
        block.seen &= !known.bit();
        true
    }

    /// Removes every field for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        self.retain_entries(|bytes, e| keep(e.field(bytes)));
    }

    /// The value of the first field of this name. Names are lower case.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let id = NameId::of(name);
        if id.known() != Known::Other && !self.has(id.known()) {
            return None;
        }
        let found = self
            .0
            .entries
            .iter()
            .find(|e| e.is(&self.0.bytes, id, name))?;
        Some(found.value(&self.0.bytes))
    }

    /// The values of all fields of this name, in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let id = NameId::of(name);
        let any = id.known() == Known::Other || self.has(id.known());
        let entries = if any { self.0.entries.as_slice() } else { &[] };
        entries
            .iter()
            .filter(move |e| e.is(&self.0.bytes, id, name))
            .map(|e| e.value(&self.0.bytes))
    }

    /// The value of the first field that is `known`.
    #[inline(always)]
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        let at = self.position(known)?;
        self.0.entries.get(at).map(|e| e.value(&self.0.bytes))
    }

    /// The values of all fields that are `known`, in order.
    pub fn all_known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let from = self.position(known).unwrap_or(self.0.entries.len());
        let of_name = self.0.entries[from..]
            .iter()
            .filter(move |e| e.meta.name.known() == known);
        of_name.map(|e| e.value(&self.0.bytes))
    }

    /// Whether there is a field that is one of `set`.
    #[inline]
    pub fn has_any(&self, set: KnownSet) -> bool {
        self.0.seen & set.0 != 0
    }

    /// The fields that are [`Known::Other`], in order.
    pub fn others(&self) -> impl Iterator<Item = Field<'_>> {
        let from = self.position(Known::Other).unwrap_or(self.0.entries.len());
        let others = self.0.entries[from..].iter();
        others
            .filter(|e| e.meta.name.known() == Known::Other)
            .map(|e| e.field(&self.0.bytes))
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.0.entries.iter().map(|e| e.field(&self.0.bytes))
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    /// The list's size as RFC 9113 §6.5.2 counts it: names, values and 32 bytes a field.
    pub fn list_size(&self) -> usize {
        self.0.live + FIELD_OVERHEAD * self.0.entries.len()
    }

    /// The memory that the block takes, in bytes: what its buffers have grown to.
    pub fn memory(&self) -> usize {
        let Block { bytes, entries, .. } = &*self.0;
        size_of::<Block>() + bytes.capacity() + entries.capacity() * size_of::<Entry>()
    }

    /// Removes all fields and keeps the buffers for another block.
    pub fn clear(&mut self) {
        self.0.bytes.clear();
        self.0.entries.clear();
        self.0.live = 0;
        (self.0.seen, self.0.repeated) = (0, 0);
    }

    /// `:method` of a request.
    pub fn method(&self) -> Option<&[u8]> {
        self.known(Known::Method)
    }

    /// `:authority` of a request.
    pub fn authority(&self) -> Option<&[u8]> {
        self.known(Known::Authority)
    }

    /// `:path` of a request, query included.
    pub fn path(&self) -> Option<&[u8]> {
        self.known(Known::Path)
    }

    /// `:status` of a response (three digits by the engine's validation).
    pub fn status(&self) -> Option<u16> {
        rules::status_code(self.known(Known::Status)?)
    }

    /// Whether [`status`](Self::status) is 1xx, told by its first digit.
    #[inline]
    pub(crate) fn is_informational(&self) -> bool {
        self.known(Known::Status)
            .is_some_and(|status| status.first() == Some(&b'1'))
    }

    /// `content-length`, if there is one that can be read (RFC 9110 §8.6; the engine compares it with the DATA that
    /// comes, RFC 9113 §8.1.1). A valid block has one value, however often it is repeated.
    pub fn content_length(&self) -> Option<u64> {
        rules::content_length(self.known(Known::ContentLength)?)
    }

    /// Whether RFC 9113 §8 and the strictest of the servers behind us allow this block as one of `kind`; else the rule
    /// that it breaks, one of a fixed set of texts.
    pub fn validate(&self, kind: Kind) -> Result<(), &'static str> {
        rules::validate(self, 0, kind)
    }

    /// A copy without spaces and tabs at the ends of values; `None`: there are none.
    pub(crate) fn trimmed(&self) -> Option<Self> {
        if self.iter().all(|field| trim(field.value) == field.value) {
            return None;
        }
        let mut copy = stock::arena();
        for (line, name_len, meta) in self.lines() {
            let (name, value) = line.split_at(name_len);
            let meta = Meta {
                never_indexed: meta.never_indexed,
                ..Meta::of(meta.name)
            };
            copy.push_with(meta, name, trim(value));
        }
        Some(copy)
    }

    /// [`validate`](Self::validate), where a valid block of this kind began with the same `known` fields: they aren't
    /// looked at again.
    pub(crate) fn validate_beyond(&self, known: usize, kind: Kind) -> Result<(), &'static str> {
        rules::validate(self, known, kind)
    }

    #[inline]
    fn push_with(&mut self, meta: Meta, name: &[u8], value: &[u8]) {
        let start = self.0.bytes.len();
        if start + name.len() + value.len() > i32::MAX as usize {
            return;
        }
        self.0.bytes.extend_from_slice(name);
        self.0.bytes.extend_from_slice(value);
        self.commit(start, name.len(), meta);
    }

    fn set_with(&mut self, id: NameId, name: &[u8], value: &[u8]) {
        let found = match id.known() {
            Known::Other => {
                let mut entries = self.0.entries.iter();
                entries.position(|e| e.is(&self.0.bytes, id, name))
            }
            known => self.position(known),
        };
        let alone = id.known() != Known::Other && self.0.repeated & id.known().bit() == 0;
        // The new field goes to the end, and its entry to its place from there.
        let before = self.0.entries.len();
        self.push_with(Meta::of(id), name, value);
        let Some(last) = self.0.entries.get(before).copied() else {
            return;
        };
        match found {
            Some(at) => {
                self.0.entries.truncate(before);
                self.0.live -= self.0.entries[at].len();
                self.0.entries[at] = last;
                if alone {
                    self.0.repeated &= !id.known().bit();
                    return self.compact_if_worth();
                }
                let mut position = 0;
                self.retain_entries(|bytes, e| {
                    position += 1;
                    position - 1 <= at || !e.is(bytes, id, name)
                });
            }
            None if name.first() == Some(&b':') => {
                let is_pseudo =
                    |e: &Entry| self.0.bytes.get(e.start as usize) == Some(&b':') && e.name_len > 0;
                let at = self.0.entries[..before]
                    .iter()
                    .take_while(|e| is_pseudo(e))
                    .count();
                self.0.entries[at..].rotate_right(1);
                self.note_all();
            }
            None => {}
        }
    }

    fn retain_entries(&mut self, mut keep: impl FnMut(&[u8], &Entry) -> bool) {
        let (bytes, mut live, before) = (&self.0.bytes, self.0.live, self.0.entries.len());
        self.0.entries.retain(|e| {
            let kept = keep(bytes, e);
            if !kept {
                live -= e.len();
            }
            kept
        });
        self.0.live = live;
        if self.0.entries.len() != before {
            self.note_all();
        }
        self.compact_if_worth();
    }

    #[inline]
    fn compact_if_worth(&mut self) {
        if self.0.bytes.len() > 2 * self.0.live + GARBAGE {
            self.compact();
        }
    }

    /// Moves the entries' bytes together, in the order of the entries.
    fn compact(&mut self) {
        let mut bytes = Vec::with_capacity(self.0.live);
        for e in &mut self.0.entries {
            let start = bytes.len();
            bytes.extend_from_slice(&self.0.bytes[e.range()]);
            e.start = start as u32;
        }
        self.0.bytes = bytes;
    }

    /// Whether there is a field that is `known`. `Known::Other` is a field like any other here.
    #[inline]
    fn has(&self, known: Known) -> bool {
        self.0.seen & known.bit() != 0
    }

    /// The place of the first field that is `known`.
    #[inline]
    fn position(&self, known: Known) -> Option<usize> {
        if !self.has(known) {
            return None;
        }
        match self.0.first[known as usize] {
            BEYOND => {
                let is = |e: &Entry| e.meta.name.known() == known;
                let rest = self.0.entries.get(usize::from(BEYOND)..)?;
                Some(usize::from(BEYOND) + rest.iter().position(is)?)
            }
            at => Some(usize::from(at)),
        }
    }

    /// A field that is `known` stands at `at`, behind all that were noted before.
    #[inline]
    fn note(&mut self, known: Known, at: usize) {
        if self.has(known) {
            self.0.repeated |= known.bit();
        } else {
            self.0.seen |= known.bit();
            self.0.first[known as usize] = u8::try_from(at).unwrap_or(BEYOND);
        }
    }

    /// Fields have gone, or have other places.
    fn note_all(&mut self) {
        (self.0.seen, self.0.repeated) = (0, 0);
        for at in 0..self.0.entries.len() {
            self.note(self.0.entries[at].meta.name.known(), at);
        }
    }
}

/// The same fields in the same order.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Extend<(N, V)> for Headers {
    fn extend<T: IntoIterator<Item = (N, V)>>(&mut self, fields: T) {
        for (name, value) in fields {
            self.push(name.as_ref(), value.as_ref());
        }
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(fields: T) -> Self {
        let mut headers = Self::new();
        headers.extend(fields);
        headers
    }
}

/// RFC 9113 §6.5.2 and RFC 7541 §4.1: what a field counts besides its octets.
pub(crate) const FIELD_OVERHEAD: usize = 32;
/// Unused bytes below this are never worth a move.
const GARBAGE: usize = 1024;
/// The last place that [`Block::first`] can tell.
const BEYOND: u8 = u8::MAX;

/// Without what RFC 9113 §8.2.1 forbids at both ends, and nothing else: a line end there is another fault.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests;
