//! The static table and the dynamic table, RFC 7541 §2.3.
//!
//! The dynamic table is a ring of entries, newest at the back, over one byte buffer in which every entry's name and value
//! stand in one piece: insertion appends, eviction moves a mark, and when a third of the buffer is dead the
//! living bytes move to its front. So an index is one subtraction away from its bytes, nothing is allocated per entry,
//! and the buffer needs at most about one and a half times the table's size. An idle connection's table holds nothing.

use std::collections::VecDeque;

use crate::headers::{Check, FIELD_OVERHEAD, Meta, NameId};

/// A table entry: name and value in one piece, the name's length, and what is known of the field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) name_len: usize,
    pub(super) meta: Meta,
}

impl<'a> Line<'a> {
    #[inline]
    pub(super) fn name(&self) -> &'a [u8] {
        &self.bytes[..self.name_len]
    }

    /// RFC 7541 §4.1.
    #[inline]
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + FIELD_OVERHEAD
    }
}

/// The dynamic table of one direction of one connection.
#[derive(Debug)]
pub(super) struct DynamicTable {
    /// Living entries and, in front of them, what is left of evicted ones.
    bytes: Vec<u8>,
    /// Where `bytes` begins, in the count (that may wrap) of all bytes ever inserted.
    base: u32,
    /// Oldest at the front.
    entries: VecDeque<Entry>,
    /// The sum of the entries' sizes as RFC 7541 §4.1 counts them; at most `max_size`.
    size: usize,
    max_size: usize,
    /// The number of the next entry; wraps. An entry keeps its number while its index grows.
    next: u32,
    /// How often the table was changed; wraps.
    version: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    len: u32,
    name_len: u32,
    meta: Meta,
}

impl DynamicTable {
    pub(super) fn new(max_size: usize) -> Self {
        Self {
            bytes: Vec::new(),
            base: 0,
            entries: VecDeque::new(),
            size: 0,
            max_size,
            next: 0,
            version: 0,
        }
    }

    /// Another one after each change: while it stays, every index means what it meant.
    #[inline]
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn max_size(&self) -> usize {
        self.max_size
    }

    /// Whether an entry of `size` would push out another.
    #[inline]
    pub(super) fn is_full_for(&self, size: usize) -> bool {
        self.size + size > self.max_size
    }

    /// The entry `back` steps before the newest: index 62 is 0.
    #[inline]
    pub(super) fn get(&self, back: usize) -> Option<Line<'_>> {
        let at = self.entries.len().checked_sub(back)?.checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let start = entry.start.wrapping_sub(self.base) as usize;
        let bytes = &self.bytes[start..start + entry.len as usize];
        Some(Line {
            bytes,
            name_len: entry.name_len as usize,
            meta: entry.meta,
        })
    }

    /// How many steps before the newest the entry of this number is.
    #[inline]
    pub(super) fn back(&self, number: u32) -> usize {
        self.next.wrapping_sub(number).wrapping_sub(1) as usize
    }

    /// Inserts an entry after pushing out what has no room beside it; one above the table's size empties the table and
    /// isn't inserted (RFC 7541 §4.4). `evicted` sees every entry that goes, with its number. Returns the new number.
    pub(super) fn insert(
        &mut self,
        line: &[u8],
        name_len: usize,
        meta: Meta,
        evicted: impl FnMut(u32, Line<'_>),
    ) -> Option<u32> {
        let size = line.len() + FIELD_OVERHEAD;
        self.version = self.version.wrapping_add(1);
        self.evict_to(self.max_size.saturating_sub(size), evicted);
        if size > self.max_size {
            return None;
        }
        self.compact();
        let start = self.base.wrapping_add(self.bytes.len() as u32);
        self.bytes.extend_from_slice(line);
        self.entries.push_back(Entry {
            start,
            len: line.len() as u32,
            name_len: name_len as u32,
            meta,
        });
        self.size += size;
        let number = self.next;
        self.next = number.wrapping_add(1);
        Some(number)
    }

    /// Changes the maximum size (RFC 7541 §4.3).
    pub(super) fn resize(&mut self, max_size: usize, evicted: impl FnMut(u32, Line<'_>)) {
        self.max_size = max_size;
        self.version = self.version.wrapping_add(1);
        self.evict_to(max_size, evicted);
    }

    /// Takes out all entries, as one above the table's size does.
    pub(super) fn clear(&mut self) {
        self.version = self.version.wrapping_add(1);
        self.evict_to(0, |_, _| {});
    }

    /// What the entries take, as RFC 7541 §4.1 counts it.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Gives back the room that the entries don't need. They are copied for it: an allocator may leave where it is what
    /// shrinks by less than half, and the table is most of what a quiet connection has.
    pub(super) fn shrink(&mut self) {
        let dead = self.dead();
        self.bytes = self.bytes[dead..].to_vec();
        self.base = self.base.wrapping_add(dead as u32);
        self.entries = self.entries.iter().copied().collect();
    }

    fn evict_to(&mut self, size: usize, mut evicted: impl FnMut(u32, Line<'_>)) {
        while self.size > size {
            let count = self.entries.len();
            let Some(line) = count.checked_sub(1).and_then(|back| self.get(back)) else {
                break;
            };
            let size = line.size();
            evicted(self.next.wrapping_sub(count as u32), line);
            self.size -= size;
            self.entries.pop_front();
        }
    }

    /// Moves the living bytes to the front once a third of all is dead: on average two bytes move for each inserted.
    fn compact(&mut self) {
        let dead = self.dead();
        if dead > self.bytes.len() / 3 {
            self.bytes.copy_within(dead.., 0);
            self.bytes.truncate(self.bytes.len() - dead);
            self.base = self.base.wrapping_add(dead as u32);
        }
    }

    /// Bytes of evicted entries in front of the living ones.
    fn dead(&self) -> usize {
        match self.entries.front() {
            Some(oldest) => oldest.start.wrapping_sub(self.base) as usize,
            None => self.bytes.len(),
        }
    }
}

/// RFC 7541 appendix A.
pub(crate) struct StaticTable([(&'static str, usize); 61]);

impl StaticTable {
    /// Name and value in one piece, and the name's length. `index` is taken as checked: 1–61.
    #[inline]
    pub(super) fn line(&self, index: u8) -> (&'static [u8], usize) {
        let (line, name_len) = self.0[usize::from(index) - 1];
        (line.as_bytes(), name_len)
    }

    #[cfg(test)]
    pub(crate) fn get(&self, index: u8) -> (&'static [u8], &'static [u8]) {
        let (line, name_len) = self.line(index);
        line.split_at(name_len)
    }
}

/// The last index of the static table.
pub(super) const STATIC_LEN: usize = 61;

/// The static table as the decoder wants it: by index, with what is known of each field. There is no index 0.
pub(super) static STATIC_LINES: [Option<Line<'static>>; STATIC_LEN + 1] =
    static_lines(&STATIC_TABLE);

const fn static_lines(table: &StaticTable) -> [Option<Line<'static>>; STATIC_LEN + 1] {
    let mut lines = [None; STATIC_LEN + 1];
    let mut index = 1;
    while index <= STATIC_LEN {
        let (line, name_len) = table.0[index - 1];
        let name = NameId::of_static(index as u8);
        lines[index] = Some(Line {
            bytes: line.as_bytes(),
            name_len,
            meta: Meta {
                // The entries with values are right; one with an empty value may be a fault (RFC 9113 §8.3.1).
                check: if line.len() > name_len {
                    Check::FINE
                } else {
                    Check::UNKNOWN
                },
                static_index: index as u8,
                ..Meta::of(name)
            },
        });
        index += 1;
    }
    lines
}

macro_rules! line {
    ($name:literal, $value:literal) => {
        (concat!($name, $value), $name.len())
    };
}

pub(crate) static STATIC_TABLE: StaticTable = StaticTable([
    line!(":authority", ""),
    line!(":method", "GET"),
    line!(":method", "POST"),
    line!(":path", "/"),
    line!(":path", "/index.html"),
    line!(":scheme", "http"),
    line!(":scheme", "https"),
    line!(":status", "200"),
    line!(":status", "204"),
    line!(":status", "206"),
    line!(":status", "304"),
    line!(":status", "400"),
    line!(":status", "404"),
    line!(":status", "500"),
    line!("accept-charset", ""),
    line!("accept-encoding", "gzip, deflate"),
    line!("accept-language", ""),
    line!("accept-ranges", ""),
    line!("accept", ""),
    line!("access-control-allow-origin", ""),
    line!("age", ""),
    line!("allow", ""),
    line!("authorization", ""),
    line!("cache-control", ""),
    line!("content-disposition", ""),
    line!("content-encoding", ""),
    line!("content-language", ""),
    line!("content-length", ""),
    line!("content-location", ""),
    line!("content-range", ""),
    line!("content-type", ""),
    line!("cookie", ""),
    line!("date", ""),
    line!("etag", ""),
    line!("expect", ""),
    line!("expires", ""),
    line!("from", ""),
    line!("host", ""),
    line!("if-match", ""),
    line!("if-modified-since", ""),
    line!("if-none-match", ""),
    line!("if-range", ""),
    line!("if-unmodified-since", ""),
    line!("last-modified", ""),
    line!("link", ""),
    line!("location", ""),
    line!("max-forwards", ""),
    line!("proxy-authenticate", ""),
    line!("proxy-authorization", ""),
    line!("range", ""),
    line!("referer", ""),
    line!("refresh", ""),
    line!("retry-after", ""),
    line!("server", ""),
    line!("set-cookie", ""),
    line!("strict-transport-security", ""),
    line!("transfer-encoding", ""),
    line!("user-agent", ""),
    line!("vary", ""),
    line!("via", ""),
    line!("www-authenticate", ""),
]);

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(table: &mut DynamicTable, line: &[u8]) -> Vec<u32> {
        let mut gone = Vec::new();
        table.insert(line, 1, Meta::of(NameId::OTHER), |number, _| {
            gone.push(number)
        });
        gone
    }

    #[test]
    fn indexes_run_from_the_newest_and_eviction_takes_the_oldest() {
        let mut table = DynamicTable::new(3 * 34);
        for line in [b"a1", b"b2", b"c3"] {
            assert_eq!(insert(&mut table, line), []);
        }
        assert_eq!(insert(&mut table, b"d4"), [0]);
        let lines: Vec<_> = (0..4)
            .map(|back| table.get(back).map(|l| l.bytes.to_vec()))
            .collect();
        assert_eq!(
            lines,
            [
                Some(b"d4".to_vec()),
                Some(b"c3".to_vec()),
                Some(b"b2".to_vec()),
                None
            ]
        );
        assert_eq!(table.get(0).map(|l| l.name()), Some(&b"d"[..]));
        assert_eq!(table.back(3), 0);
        assert_eq!(insert(&mut table, &[b'x'; 71]), [1, 2, 3]);
        assert!(table.get(0).is_none());
        assert_eq!((table.size, table.max_size()), (0, 102));
    }

    #[test]
    fn nothing_of_evicted_entries_stays_when_memory_is_given_back() {
        let mut table = DynamicTable::new(1000);
        for i in 0..98u8 {
            insert(&mut table, &[i; 60]);
        }
        let lines = |table: &DynamicTable| {
            let line = |back| table.get(back).map(|line| line.bytes.to_vec());
            (0..).map_while(line).collect::<Vec<_>>()
        };
        let before = lines(&table);
        assert!(before.len() == 10 && table.bytes.len() > 600);
        table.shrink();
        assert_eq!((lines(&table), table.bytes.len()), (before, 600));
        insert(&mut table, &[98; 60]);
        assert_eq!(lines(&table)[0], [98; 60]);
        assert_eq!(lines(&table)[1], [97; 60]);
    }

    #[test]
    fn the_sizes_hold_over_many_insertions() {
        let mut table = DynamicTable::new(1000);
        let mut lines = VecDeque::new();
        for i in 0..5000usize {
            let line = vec![i as u8; i * 7 % 300];
            if !line.is_empty() {
                insert(&mut table, &line);
                lines.push_front(line);
            }
            let mut size = 0;
            let mut back = 0;
            while let Some(line) = table.get(back) {
                assert_eq!(line.bytes, lines[back]);
                size += line.size();
                back += 1;
            }
            lines.truncate(back);
            assert_eq!(size, table.size);
            assert!(size <= 1000 && table.bytes.len() <= 2000 + 300);
        }
        table.resize(0, |_, _| {});
        assert_eq!((table.size, table.entries.len()), (0, 0));
    }
}
