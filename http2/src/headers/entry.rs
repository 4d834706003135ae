//! One field of a block with what is known of it, and how the decoder puts it there and the encoder takes it out.
//!
//! What was found out about a field once ([`Meta`]) goes with it: from the decoder's table into a block, through the
//! rules, and on to the encoder's table. Only these two see it; to everybody else a field is a name and a value
//! ([`Field`]).

use super::{Check, Field, Headers, NameId};

/// One field: where its bytes are, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) start: u32,
    pub(super) name_len: u32,
    pub(super) value_len: u32,
    pub(super) meta: Meta,
}

/// What is known of a field besides its bytes; it goes with the field from the decoder's table to a block and on to the
/// encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// The encoder's hash of name and value (`hpack/hash.rs`), or 0 when it wasn't needed yet.
    pub(crate) hash: u32,
    pub(crate) name: NameId,
    /// The result of the checks of RFC 9113 §8.2 and §8.3 on this field alone.
    pub(crate) check: Check,
    /// The index of exactly this field in the static table, or 0.
    pub(crate) static_index: u8,
    /// No hop may put it in a table (RFC 7541 §6.2.3).
    pub(crate) never_indexed: bool,
}

/// A field, but for its bytes: where they lie in [`Headers::bytes`], and whether it is never indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    start: u32,
    name_len: u32,
    value_len: u32,
    never_indexed: bool,
}

impl Shape {
    /// Where its bytes end.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        (self.start + self.name_len + self.value_len) as usize
    }
}

impl Meta {
    /// What is known of a field from its name alone.
    #[inline]
    pub(crate) const fn of(name: NameId) -> Self {
        Self {
            hash: 0,
            name,
            check: Check::UNKNOWN,
            static_index: 0,
            never_indexed: false,
        }
    }
}

impl Entry {
    #[inline]
    pub(super) fn len(&self) -> usize {
        (self.name_len + self.value_len) as usize
    }

    #[inline]
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.len()
    }

    #[inline]
    pub(super) fn field<'a>(&self, bytes: &'a [u8]) -> Field<'a> {
        let (name, value) = bytes[self.range()].split_at(self.name_len as usize);
        Field {
            known: self.meta.name.known(),
            name,
            value,
        }
    }

    #[inline]
    pub(super) fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        &bytes[start + self.name_len as usize..start + self.len()]
    }

    #[inline]
    pub(super) fn is(&self, bytes: &[u8], id: NameId, name: &[u8]) -> bool {
        self.meta.name == id && (!id.is_other() || self.field(bytes).name == name)
    }
}

impl Headers {
    /// Room for an ordinary block, in two allocations, before the first field is decoded.
    #[inline]
    pub(crate) fn make_room(&mut self) {
        if self.0.entries.capacity() == 0 {
            self.0.entries.reserve(ORDINARY_FIELDS);
            self.0.bytes.reserve(ORDINARY_BYTES);
        }
    }

    /// The byte buffer, for the decoder to append a name and a value to before it calls [`commit`](Self::commit).
    #[inline]
    pub(crate) fn arena(&mut self) -> &mut Vec<u8> {
        &mut self.0.bytes
    }

    /// Makes a field of the bytes that were appended to the arena since it was `start` long. The decoder's blocks are
    /// far below the 2 GiB that the offsets can hold.
    #[inline]
    pub(crate) fn commit(&mut self, start: usize, name_len: usize, meta: Meta) {
        let len = self.0.bytes.len() - start;
        self.0.live += len;
        self.note(meta.name.known(), self.0.entries.len());
        self.0.entries.push(Entry {
            start: start as u32,
            name_len: name_len as u32,
            value_len: (len - name_len) as u32,
            meta,
        });
    }

    /// Appends a field from a table: name and value in one piece.
    #[inline]
    pub(crate) fn push_line(&mut self, line: &[u8], name_len: usize, meta: Meta) {
        let start = self.0.bytes.len();
        self.0.bytes.extend_from_slice(line);
        self.commit(start, name_len, meta);
    }

    /// The first `fields` fields of `other`, whose fields lie one behind the other in their order, as the decoder puts
    /// them. This block is empty.
    pub(crate) fn clone_first(&mut self, other: &Self, fields: usize) {
        let (entries, others) = other.0.entries.split_at(fields);
        let Some(last) = entries.last() else { return };
        self.0.live = last.range().end;
        self.0
            .bytes
            .extend_from_slice(&other.0.bytes[..self.0.live]);
        self.0.entries.extend_from_slice(entries);
        (self.0.seen, self.0.repeated, self.0.first) =
            (other.0.seen, other.0.repeated, other.0.first);
        // Fewer, mostly, than those that are taken: names that only these have aren't here.
        for entry in others {
            let known = entry.meta.name.known();
            if other.position(known).is_some_and(|first| first >= fields) {
                self.0.seen &= !known.bit();
            }
        }
    }

    /// Whether both have the same fields in the same order.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let mut fields = self.lines().zip(other.lines());
        self.len() == other.len()
            && fields.all(|((a, a_name, _), (b, b_name, _))| a_name == b_name && a == b)
    }

    /// Names and values of the fields, and of some that were taken out.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Each field, but for its bytes.
    #[inline]
    pub(crate) fn shapes(&self) -> impl Iterator<Item = Shape> {
        self.0.entries.iter().map(|e| Shape {
            start: e.start,
            name_len: e.name_len,
            value_len: e.value_len,
            never_indexed: e.meta.never_indexed,
        })
    }

    /// The [`shapes`](Self::shapes) of the first fields, as far as these lie one behind the other in
    /// [`bytes`](Self::bytes), from its beginning.
    #[inline]
    pub(crate) fn joined(&self) -> impl Iterator<Item = Shape> {
        let mut at = 0;
        self.shapes().map_while(move |shape| {
            let starts = shape.start as usize == at;
            at = shape.end();
            starts.then_some(shape)
        })
    }

    /// The field at this place, looked at for its faults.
    pub(crate) fn check_at(&self, at: usize) -> Check {
        self.0.entries.get(at).map_or(Check::UNKNOWN, |e| {
            let (name, value) = self.0.bytes[e.range()].split_at(e.name_len as usize);
            Check::of(e.meta.name, name, value)
        })
    }

    /// Each field as name and value in one piece, the name's length, and what is known of it.
    #[inline]
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&[u8], usize, &Meta)> {
        self.lines_from(0)
    }

    /// [`lines`](Self::lines), without the first `fields`.
    #[inline]
    pub(crate) fn lines_from(&self, fields: usize) -> impl Iterator<Item = (&[u8], usize, &Meta)> {
        let entries = self.0.entries.get(fields..).unwrap_or_default();
        entries
            .iter()
            .map(|e| (&self.0.bytes[e.range()], e.name_len as usize, &e.meta))
    }
}

/// A gRPC request of a proxy's client: a dozen fields, some with ids. Larger blocks grow.
const ORDINARY_FIELDS: usize = 16;
const ORDINARY_BYTES: usize = 768;
