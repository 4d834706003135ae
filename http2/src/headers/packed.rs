//! A block in one run of bytes, for who keeps it for long and seldom wants it again.
//!
//! A [`Headers`] is made to be worked on: a table of fields beside their bytes, with what is known of each, in three
//! allocations of more than a KiB together. Whoever waits for an answer with a thousand of them in hand keeps them
//! packed instead, in less than half of that, and reads single values where they lie.

use std::{num::NonZeroU32, ops::Range};

use super::{Headers, Known, Meta, NameId};
use crate::stock;

/// See the module. Its memory is the thread's ([`stock`]).
#[derive(Debug, Default)]
pub struct Packed(Vec<u8>);

/// Where a field lies in a [`Packed`]: behind so many bytes, and one, so that `None` takes no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(NonZeroU32);

impl Packed {
    /// Copies `headers`. `place` is told of every field of a known name, in order.
    pub fn new(headers: &Headers, mut place: impl FnMut(Known, Place)) -> Self {
        let mut bytes = stock::chunk();
        for (line, name_len, meta) in headers.lines() {
            // A block has at most 4 GiB, and so has each of its fields.
            let value_len = (line.len() - name_len) as u32;
            let mut head = [0; HEAD];
            head[NAME_LEN].copy_from_slice(&(name_len as u32).to_le_bytes());
            head[VALUE_LEN].copy_from_slice(&value_len.to_le_bytes());
            head[NEVER_INDEXED] = meta.never_indexed.into();
            if meta.name.known() != Known::Other
                && let Ok(at) = u32::try_from(bytes.len() + 1)
                && let Some(at) = NonZeroU32::new(at)
            {
                place(meta.name.known(), Place(at));
            }
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(line);
        }
        Self(bytes)
    }

    /// The block again, in memory of the thread's.
    pub fn unpack(&self) -> Headers {
        let mut headers = stock::arena();
        let mut rest = &*self.0;
        while let Some((line, name_len, never_indexed)) = split(&mut rest) {
            let meta = Meta {
                never_indexed,
                ..Meta::of(NameId::of(&line[..name_len]))
            };
            headers.push_line(line, name_len, meta);
        }
        headers
    }

    /// The value of the field at `place`; empty if that isn't one of this block's.
    pub fn value(&self, place: Place) -> &[u8] {
        let from = place.0.get() as usize - 1;
        let mut rest = self.0.get(from..).unwrap_or_default();
        split(&mut rest).map_or(&[], |(line, name_len, _)| &line[name_len..])
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives the memory back to the thread.
    pub fn recycle(self) {
        stock::give_chunk(self.0);
    }
}

/// The field at the front: its line, its name's length, and whether it is never indexed.
fn split<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], usize, bool)> {
    let (head, lines) = rest.split_first_chunk::<HEAD>()?;
    let length = |at: Range<usize>| {
        let bytes = head[at].try_into().map_or(0, u32::from_le_bytes);
        bytes as usize
    };
    let (name_len, value_len) = (length(NAME_LEN), length(VALUE_LEN));
    let (line, others) = lines.split_at_checked(name_len + value_len)?;
    *rest = others;
    Some((line, name_len, head[NEVER_INDEXED] != 0))
}

/// What stands before each field's line: lengths in four bytes each, and a flag.
const HEAD: usize = 2 * size_of::<u32>() + 1;
const NAME_LEN: Range<usize> = 0..4;
const VALUE_LEN: Range<usize> = 4..8;
const NEVER_INDEXED: usize = 8;

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
        let packed = Packed::new(&headers, |_, _| {});
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
    fn values_are_read_where_they_lie() {
        let headers: Headers = [
            (":method", "POST"),
            ("x-other", "o"),
            ("te", "trailers"),
            ("te", ""),
        ]
        .into_iter()
        .collect();
        let mut places = Vec::new();
        let packed = Packed::new(&headers, |known, place| places.push((known, place)));
        let values: Vec<_> = places
            .iter()
            .map(|(known, place)| (*known, packed.value(*place)))
            .collect();
        assert_eq!(
            values,
            [
                (Known::Method, &b"POST"[..]),
                (Known::Te, b"trailers"),
                (Known::Te, b"")
            ]
        );
        assert_eq!(Packed::default().value(places[0].1), b"");
        assert!(Packed::default().is_empty() && Packed::default().unpack().is_empty());
    }
}
