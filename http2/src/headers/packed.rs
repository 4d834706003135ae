//! A block in one run of bytes, for who keeps it for long and seldom wants it again.
//!
//! A [`Headers`] is made to be worked on: a table of fields beside their bytes, with what is known of each, in three
//! allocations of more than a KiB together. Whoever waits for an answer with a thousand of them in hand keeps them
//! packed instead, in less than half of that, and reads single values where they lie.

use std::{num::NonZeroU32, ops::Range};

use super::{Entry, Headers, Known, Meta, NameId};
use crate::stock;

/// See the module. Its memory is the thread's ([`stock`]).
///
/// First twelve bytes for each field: where its line, name and value in one piece, begins, and how long both are. Then
/// the lines, as they lie in the block: all of them are copied in one piece, unless something was taken out.
#[derive(Debug, Default)]
pub struct Packed {
    bytes: Vec<u8>,
    fields: usize,
}

/// Where a value lies in a [`Packed`]: found once, since each look at a mark costs several times what the value does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Behind a mark and a name, so never 0: `None` takes no room.
    end: NonZeroU32,
    len: u32,
}

impl Packed {
    /// Copies `headers`.
    pub fn new(headers: &Headers) -> Self {
        Self::copied(stock::chunk_for(Self::len_of(headers)), headers)
    }

    /// Copies `headers` into memory of just their size.
    pub fn exact(headers: &Headers) -> Self {
        Self::copied(Vec::with_capacity(Self::len_of(headers)), headers)
    }

    fn len_of(headers: &Headers) -> usize {
        headers.0.entries.len() * MARK + headers.0.live
    }

    /// Copies `headers` into `bytes`, which have room.
    fn copied(mut bytes: Vec<u8>, headers: &Headers) -> Self {
        let block = &*headers.0;
        bytes.resize(block.entries.len() * MARK, 0);
        let places = bytes.as_chunks_mut().0.as_chunks_mut().0.iter_mut();
        if block.bytes.len() == block.live {
            for (mark, entry) in places.zip(&block.entries) {
                *mark = pack(entry.start, entry);
            }
            bytes.extend_from_slice(&block.bytes);
        } else {
            // What was taken out isn't kept.
            let mut start = 0;
            for (mark, entry) in places.zip(&block.entries) {
                *mark = pack(start, entry);
                start += entry.name_len + entry.value_len;
            }
            for entry in &block.entries {
                bytes.extend_from_slice(&block.bytes[entry.range()]);
            }
        }
        Self {
            bytes,
            fields: block.entries.len(),
        }
    }

    /// The block again, in memory of the thread's.
    pub fn unpack(&self) -> Headers {
        let mut headers = stock::arena();
        for at in 0..self.fields {
            let Some((line, name_len, never_indexed)) = self.line(at) else {
                break;
            };
            let meta = Meta {
                never_indexed,
                ..Meta::of(NameId::of(&line[..name_len]))
            };
            headers.push_line(line, name_len, meta);
        }
        headers
    }

    /// Where the value of the first field that is `known` lies; `headers`: what this was packed from.
    pub fn place(&self, headers: &Headers, known: Known) -> Option<Place> {
        let mark = *self.marks().0.get(headers.position(known)?)?;
        let (line, name_len, _) = unpack(mark);
        let end = self.fields * MARK + line.end;
        Some(Place {
            end: NonZeroU32::new(u32::try_from(end).ok()?)?,
            len: (line.len() - name_len) as u32,
        })
    }

    /// The value at `place`; empty if that is another's, and too long for this.
    #[inline]
    pub fn value(&self, place: Place) -> &[u8] {
        let end = place.end.get() as usize;
        let start = end.saturating_sub(place.len as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.fields == 0
    }

    /// The memory that it takes, in bytes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives the memory back to the thread.
    pub fn recycle(self) {
        stock::give_chunk(self.bytes);
    }

    /// A field: its line, its name's length, and whether it is never indexed.
    fn line(&self, at: usize) -> Option<(&[u8], usize, bool)> {
        let (marks, lines) = self.marks();
        let (line, name_len, never_indexed) = unpack(*marks.get(at)?);
        Some((&lines[line], name_len, never_indexed))
    }

    /// The marks, and the lines behind them.
    fn marks(&self) -> (&[Mark], &[u8]) {
        let (marks, lines) = self.bytes.split_at(self.fields * MARK);
        (marks.as_chunks().0.as_chunks().0, lines)
    }
}

/// Where a field's line begins, and the lengths of its name (the highest bit: it is never indexed) and value.
type Mark = [[u8; 4]; 3];

/// The size of a mark.
const MARK: usize = size_of::<Mark>();

/// All three are below 2 GiB, as a block is.
#[inline]
fn pack(start: u32, entry: &Entry) -> Mark {
    let flag = u32::from(entry.meta.never_indexed) << 31;
    [
        start.to_le_bytes(),
        (entry.name_len | flag).to_le_bytes(),
        entry.value_len.to_le_bytes(),
    ]
}

#[inline]
fn unpack([start, name, value_len]: Mark) -> (Range<usize>, usize, bool) {
    let (start, name) = (u32::from_le_bytes(start), u32::from_le_bytes(name));
    let (start, name_len) = (start as usize, (name & !(1 << 31)) as usize);
    let end = start + name_len + u32::from_le_bytes(value_len) as usize;
    (start..end, name_len, name >> 31 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_out_as_it_went_in() {
        let mut headers = Headers::new();
        headers.push(b":path", b"/api.Echo/Echo");
        headers.push(b"x-empty", b"");
        headers.push(b"gone", b"gone");
        headers.push_never_indexed(b"authorization", b"Bearer x");
        headers.push(b"x-long", &[b'v'; 5000]);
        headers.set(b":path", b"/other");
        headers.remove(b"gone");
        let packed = Packed::new(&headers);
        let again = packed.unpack();
        assert_eq!(again, headers);
        let secret: Vec<_> = again
            .lines()
            .map(|(_, _, meta)| meta.never_indexed)
            .collect();
        assert_eq!(secret, [false, false, true, false]);
        packed.recycle();
    }

    #[test]
    fn a_small_block_does_not_sit_in_what_a_body_has_left() {
        let small = Headers::from_iter([(":path", "/"), ("x-a", "1")]);
        let large = Headers::from_iter([("x-a", "v".repeat(10_000))]);
        for _ in 0..3 {
            stock::give_chunk(Vec::with_capacity(16_384));
            let packed = Packed::new(&small);
            assert_eq!(packed.memory(), 2 * MARK + small.0.live);
            // It is for who can use it.
            let packed = Packed::new(&large);
            assert_eq!(packed.memory(), 16_384);
        }
        // A chunk of the usual size is no waste.
        stock::give_chunk(Vec::with_capacity(512));
        assert_eq!(Packed::new(&small).memory(), 512);
    }

    #[test]
    fn lines_may_lie_in_another_order_than_the_fields() {
        let mut headers = Headers::from_iter([(":path", "/"), ("x-a", "1")]);
        headers.set(b":authority", b"a");
        assert_eq!(headers.0.bytes.len(), headers.0.live);
        let packed = Packed::new(&headers);
        assert_eq!(packed.unpack(), headers);
        let authority = packed.place(&headers, Known::Authority).unwrap();
        assert_eq!(packed.value(authority), b"a");
    }

    #[test]
    fn values_are_read_where_they_lie() {
        let mut headers: Headers = [
            (":method", "POST"),
            ("x-other", "o"),
            ("te", "trailers"),
            ("te", ""),
        ]
        .into_iter()
        .collect();
        headers.push_never_indexed(b"user-agent", b"grpc");
        headers.set(b":method", b"GET");
        let packed = Packed::new(&headers);
        let value = |known| {
            let place = packed.place(&headers, known)?;
            Some(packed.value(place))
        };
        assert_eq!(value(Known::Method), Some(&b"GET"[..]));
        assert_eq!(value(Known::Te), Some(&b"trailers"[..]));
        assert_eq!(value(Known::UserAgent), Some(&b"grpc"[..]));
        assert_eq!(value(Known::Path), None);
        let empty = Packed::new(&Headers::new());
        for empty in [empty, Packed::default()] {
            assert_eq!(empty.place(&headers, Known::Method), None);
            let place = packed.place(&headers, Known::Method);
            assert_eq!(place.map(|place| empty.value(place)), Some(&b""[..]));
            assert!(empty.is_empty() && empty.unpack().is_empty());
        }
    }
}
