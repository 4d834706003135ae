//! Encodes header blocks.
//!
//! A field goes out in the shortest form that costs little CPU:
//! 1. one byte, if it came from the peer's static table or is there;
//! 2. one or two bytes, if the dynamic table has it, found by its content hash, which fields from a decoder's table
//!    bring along;
//! 3. else a literal. It enters the table if its name promises repetition ([`Indexing`]), it is not too large a part of
//!    the table and, once the table is full, if it was seen before: values that come only once would otherwise push
//!    out those that come with each message, and first-in-first-out eviction has no memory of use.
//!
//! Literals that enter the table are Huffman-coded when that is shorter: paid once, since the next one is an index. The
//! others (time-outs, ids, tokens) go out raw: they are there in every message, mostly short or of high entropy, and
//! Huffman coding would cost both ends more time than the copy of the bytes that it saves.

use super::{
    INITIAL_TABLE_SIZE,
    hash::FieldHash,
    huffman, integer,
    prefix::{self, Prefix},
    table::{DynamicTable, STATIC_LEN, STATIC_TABLE},
};
use crate::{
    headers::{FIELD_OVERHEAD, Headers, Indexing, Known, Meta, NameId},
    index::Index,
};

/// Encodes the blocks that we send: one per connection.
#[derive(Debug)]
pub struct Encoder {
    table: DynamicTable,
    hash: FieldHash,
    /// Entries of `table` by the hash of name and value.
    fields: Index,
    /// Entries of `table` whose name isn't in the static table, by the hash of the name: the newest of each name.
    names: Index,
    /// Hashes of fields that lately had no place in the full table, each in the slot that its low bits choose.
    refused: Option<Box<[u32; REFUSED]>>,
    /// The most that we use, whatever the peer allows.
    cap: u32,
    /// The smallest size since the last block, if the size has to be told (RFC 7541 §4.2).
    smallest: Option<u32>,
    /// What the next block is likely to begin with; `None` on a connection that is new or quiet.
    prefix: Option<Box<Prefix>>,
}

impl Encoder {
    /// `cap`: the most that we use, whatever the peer allows.
    pub fn new(cap: usize) -> Self {
        // As SETTINGS have it.
        let cap = u32::try_from(cap).unwrap_or(u32::MAX);
        let size = cap.min(INITIAL_TABLE_SIZE as u32);
        Self {
            table: DynamicTable::new(size as usize),
            hash: FieldHash::get(),
            fields: Index::default(),
            names: Index::default(),
            refused: None,
            cap,
            smallest: (size < INITIAL_TABLE_SIZE as u32).then_some(size),
            prefix: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE; the size update goes out before the next block (RFC 7541 §4.2).
    pub fn set_peer_max(&mut self, max: usize) {
        let size = u32::try_from(max).unwrap_or(u32::MAX).min(self.cap);
        if size as usize == self.table.max_size() {
            return;
        }
        let (hash, fields, names) = (self.hash, &mut self.fields, &mut self.names);
        self.table.resize(size as usize, |number, line| {
            forget(hash, fields, names, number, line.name(), &line.meta)
        });
        self.smallest = Some(self.smallest.map_or(size, |smallest| smallest.min(size)));
    }

    /// Appends the block of `headers` to `out`.
    pub fn encode(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        if let Some(smallest) = self.smallest.take() {
            let (size, smallest) = (self.table.max_size(), smallest as usize);
            if smallest < size {
                integer::encode(smallest, 5, SIZE_UPDATE, out);
            }
            integer::encode(size, 5, SIZE_UPDATE, out);
        }
        if headers.len() < prefix::FEWEST {
            for (line, name_len, meta) in headers.lines() {
                self.one(line, name_len, meta, out);
            }
            return;
        }
        let mut prefix = self.prefix.take().unwrap_or_default();
        let (version, start) = (self.table.version(), out.len());
        if prefix.wants() {
            prefix.begin();
            let mut joined = headers.joined();
            let mut lasts = true;
            for (line, name_len, meta) in headers.lines() {
                lasts &= self.one(line, name_len, meta, out);
                match joined.next() {
                    Some(field) if lasts => prefix.field(field, out.len() - start),
                    _ => lasts = false,
                }
            }
            let same = self.table.version() == version;
            prefix.complete(headers, &out[start..], same.then_some(version));
        } else {
            let known = prefix.recall(headers, version, out);
            for (line, name_len, meta) in headers.lines_from(known) {
                self.one(line, name_len, meta, out);
            }
        }
        self.prefix = Some(prefix);
    }

    /// Gives memory back that only a busy connection needs. The table is emptied, and the peer's with it (RFC 7541 §4.2): with
    /// its indexes even a few fields take half a KiB at this end, and what their literals cost the next message is nothing
    /// to a connection that was quiet.
    pub fn shrink(&mut self) {
        self.prefix = None;
        self.refused = None;
        if self.table.size() > 0 {
            self.clear();
        }
        self.table.shrink();
        self.fields.shrink();
        self.names.shrink();
    }

    /// Empties the table; the next block tells the peer.
    fn clear(&mut self) {
        let size = self.table.max_size();
        self.table.resize(0, |_, _| {});
        self.table.resize(size, |_, _| {});
        (self.fields, self.names) = (Index::default(), Index::default());
        self.smallest = Some(0);
    }

    /// Appends one field; whether it would go out the same the next time, while the table stays as it is.
    #[inline]
    fn one(&mut self, line: &[u8], name_len: usize, meta: &Meta, out: &mut Vec<u8>) -> bool {
        if meta.static_index != 0 {
            out.push(INDEXED | meta.static_index);
            return true;
        }
        let indexing = if meta.never_indexed {
            Indexing::Never
        } else {
            meta.name.indexing()
        };
        match indexing {
            Indexing::Table => return self.field(line, name_len, meta, out),
            Indexing::Literal => self.literal(WITHOUT_INDEXING, line, name_len, meta.name, out),
            Indexing::Never => self.literal(NEVER_INDEXED, line, name_len, meta.name, out),
        }
        true
    }

    /// A field that may be in the table, or enter it; see [`one`](Self::one).
    #[inline]
    fn field(&mut self, line: &[u8], name_len: usize, meta: &Meta, out: &mut Vec<u8>) -> bool {
        let (name, value) = line.split_at(name_len);
        let hash = if meta.hash != 0 {
            // A peer's encoder had it in its table, and would have used the static one.
            meta.hash
        } else if let Some(index) = static_index(meta.name, value) {
            out.push(INDEXED | index);
            return true;
        } else {
            self.hash.of(line)
        };
        let is = |number| {
            let entry = self.table.get(self.table.back(number));
            entry.is_some_and(|entry| entry.name_len == name_len && entry.bytes == line)
        };
        if let Some(number) = self.fields.find(hash, is) {
            integer::encode(self.table.back(number) + STATIC_LEN + 1, 7, INDEXED, out);
            return true;
        } else if self.may_enter(line, name, value, hash) {
            self.enter(line, name_len, Meta { hash, ..*meta }, out);
        } else {
            self.literal(WITHOUT_INDEXING, line, name_len, meta.name, out);
        }
        false
    }

    /// Whether a field that isn't in the table should be from now on.
    fn may_enter(&mut self, line: &[u8], name: &[u8], value: &[u8], hash: u32) -> bool {
        let size = line.len() + FIELD_OVERHEAD;
        // A large entry pushes out many small ones; binary metadata (`-bin`) is a message's own; a path with a query
        // is one of very many.
        if size > self.table.max_size() / LARGEST_PART
            || name.ends_with(b"-bin")
            || name == b":path" && (value.len() > LONGEST_PATH || value.contains(&b'?'))
        {
            return false;
        }
        if !self.table.is_full_for(size) {
            return true;
        }
        let refused = self.refused.get_or_insert_with(|| Box::new([0; REFUSED]));
        let slot = &mut refused[hash as usize % REFUSED];
        let seen = *slot == hash;
        *slot = hash;
        seen
    }

    /// A literal with incremental indexing (RFC 7541 §6.2.1).
    fn enter(&mut self, line: &[u8], name_len: usize, meta: Meta, out: &mut Vec<u8>) {
        let (name, value) = line.split_at(name_len);
        let name_hash = if meta.name.static_index().is_none() {
            self.hash.of(name)
        } else {
            0
        };
        match self.name_index(meta.name, name, name_hash) {
            Some(index) => integer::encode(index, 6, WITH_INDEXING, out),
            None => {
                out.push(WITH_INDEXING);
                short_string(name, out);
            }
        }
        short_string(value, out);
        let (hash, fields, names) = (self.hash, &mut self.fields, &mut self.names);
        let evicted = |number, line: super::table::Line<'_>| {
            forget(hash, fields, names, number, line.name(), &line.meta);
        };
        let Some(number) = self.table.insert(line, name_len, meta, evicted) else {
            return;
        };
        self.fields.insert(meta.hash, number);
        if name_hash != 0 {
            let is = |number| {
                self.table
                    .get(self.table.back(number))
                    .is_some_and(|e| e.name() == name)
            };
            if let Some(older) = self.names.find(name_hash, is) {
                self.names.remove(name_hash, older);
            }
            self.names.insert(name_hash, number);
        }
    }

    /// A literal that doesn't change the table (RFC 7541 §6.2.2, §6.2.3).
    #[inline]
    fn literal(&self, flags: u8, line: &[u8], name_len: usize, id: NameId, out: &mut Vec<u8>) {
        let (name, value) = line.split_at(name_len);
        // A name whose fields never enter the table isn't there either.
        let may_be = id.static_index().is_none() && id.indexing() == Indexing::Table;
        let hash = if may_be { self.hash.of(name) } else { 0 };
        match self.name_index(id, name, hash) {
            Some(index) => integer::encode(index, 4, flags, out),
            None => {
                out.push(flags);
                raw_string(name, out);
            }
        }
        raw_string(value, out);
    }

    /// An index that stands for a name. `hash`: 0 if it can't be in the dynamic table.
    #[inline]
    fn name_index(&self, id: NameId, name: &[u8], hash: u32) -> Option<usize> {
        if let Some(index) = id.static_index() {
            return Some(usize::from(index));
        }
        if hash == 0 {
            return None;
        }
        let is = |number| {
            self.table
                .get(self.table.back(number))
                .is_some_and(|e| e.name() == name)
        };
        let number = self.names.find(hash, is)?;
        Some(self.table.back(number) + STATIC_LEN + 1)
    }
}

/// Takes an evicted entry out of the indexes.
fn forget(
    hash: FieldHash,
    fields: &mut Index,
    names: &mut Index,
    number: u32,
    name: &[u8],
    meta: &Meta,
) {
    fields.remove(meta.hash, number);
    if meta.name.static_index().is_none() {
        names.remove(hash.of(name), number);
    }
}

/// The index of a field that the static table has with its value.
#[inline]
fn static_index(id: NameId, value: &[u8]) -> Option<u8> {
    let range = match id.known() {
        Known::Method => 2..=3,
        Known::Path => 4..=5,
        Known::Scheme => 6..=7,
        Known::Status => 8..=14,
        _ => {
            let index = id.static_index()?;
            index..=index
        }
    };
    range.into_iter().find(|&index| {
        let (line, name_len) = STATIC_TABLE.line(index);
        &line[name_len..] == value
    })
}

#[inline]
fn raw_string(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

fn short_string(text: &[u8], out: &mut Vec<u8>) {
    let len = huffman::encoded_len(text);
    if len < text.len() {
        integer::encode(len, 7, HUFFMAN, out);
        huffman::encode(text, out);
    } else {
        raw_string(text, out);
    }
}

/// RFC 7541 §6.1, §6.2.1, §6.2.2, §6.2.3, §6.3, §5.2: the flags in a form's first byte.
const INDEXED: u8 = 0x80;
const WITH_INDEXING: u8 = 0x40;
const WITHOUT_INDEXING: u8 = 0;
const NEVER_INDEXED: u8 = 0x10;
const SIZE_UPDATE: u8 = 0x20;
const HUFFMAN: u8 = 0x80;
/// An entry takes at most this part of the table.
const LARGEST_PART: usize = 4;
/// Longer paths are not a method of a service.
const LONGEST_PATH: usize = 256;
/// Fields remembered that came when the table was full; a power of two. 256 bytes, and only then.
const REFUSED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::Decoder;

    fn encode(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.encode(&fields.iter().copied().collect(), &mut out);
        out
    }

    /// Whether a field becomes an index when it is sent a second time.
    fn repeats_as_index(name: &str, value: &str) -> bool {
        let mut encoder = Encoder::new(4096);
        encode(&mut encoder, &[(name, value)]);
        encode(&mut encoder, &[(name, value)]) == [0xbe]
    }

    #[test]
    fn static_entries_are_one_byte() {
        for index in 1..=61u8 {
            let (line, name_len) = STATIC_TABLE.line(index);
            let (name, value) = line.split_at(name_len);
            let id = NameId::of(name);
            assert_eq!(static_index(id, value), Some(index));
            if id.indexing() == Indexing::Table {
                let mut out = Vec::new();
                Encoder::new(4096).encode(&Headers::from_iter([(name, value)]), &mut out);
                assert_eq!(out, [0x80 | index]);
            }
        }
    }

    #[test]
    fn what_repeats_is_indexed() {
        for (name, value) in [
            (":path", "/api.Echo/Echo"),
            (":authority", "grpc.example.com"),
            ("te", "trailers"),
            ("user-agent", "grpc-go/1.75.0"),
            ("grpc-status", "0"),
            ("x-tenant", "a"),
        ] {
            assert!(repeats_as_index(name, value), "{name}");
        }
    }

    #[test]
    fn a_quiet_connections_table_is_emptied_and_the_peers_with_it() {
        let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
        let service = [
            (":path", "/api.Echo/Echo"),
            ("user-agent", "a test"),
            ("x-tenant", "a"),
        ];
        let mut blocks = |encoder: &mut Encoder, fields: &[(&str, &str)]| {
            let (block, sent) = (encode(encoder, fields), fields.iter().copied().collect());
            let mut got = Headers::new();
            let decoded = decoder.decode(&block, usize::MAX, &mut got);
            assert!(decoded.is_ok());
            assert_eq!(got, sent);
            block
        };
        // One that nothing was said on has nothing to tell.
        encoder.shrink();
        let all = blocks(&mut encoder, &service);
        let indexes = blocks(&mut encoder, &service);
        assert_eq!(indexes.len(), 3);
        for _ in 0..2 {
            encoder.shrink();
            assert_eq!(encoder.table.size(), 0);
            // To 0 and to 4096 (RFC 7541 §4.2), once.
            let again = blocks(&mut encoder, &service);
            assert_eq!(again[..4], [0x20, 0x3f, 0xe1, 0x1f]);
            assert_eq!(again[4..], all);
            assert_eq!(blocks(&mut encoder, &service), indexes);
        }
        for number in 0..100 {
            blocks(&mut encoder, &[("x-burst", &format!("number {number}"))]);
        }
        encoder.shrink();
        assert!(encoder.refused.is_none());
    }

    #[test]
    fn what_is_a_messages_own_is_not_indexed() {
        let long = "v".repeat(1024);
        let long_path = format!("/{long}");
        for (name, value) in [
            ("grpc-timeout", "100m"),
            (
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
            ("x-request-id", "1"),
            ("content-length", "5"),
            ("grpc-message", "x"),
            ("x-envoy-upstream-service-time", "1"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("x-forwarded-for", "10.0.0.1"),
            ("grpc-trace-bin", "AAAA"),
            (":path", "/a?b"),
            (":path", &long_path[..300]),
            ("x-large", &long),
        ] {
            assert!(!repeats_as_index(name, value), "{name}");
            let mut encoder = Encoder::new(4096);
            let first = encode(&mut encoder, &[(name, value)]);
            assert_eq!(first[0] & 0xf0, WITHOUT_INDEXING, "{name}");
            assert!(encoder.table.get(0).is_none());
        }
    }

    #[test]
    fn secrets_are_never_indexed() {
        for name in [
            "authorization",
            "cookie",
            "set-cookie",
            "proxy-authorization",
        ] {
            assert_eq!(
                encode(&mut Encoder::new(4096), &[(name, "s")])[0] & 0xf0,
                NEVER_INDEXED
            );
        }
    }

    #[test]
    fn only_what_was_seen_before_enters_a_full_table() {
        let mut encoder = Encoder::new(4096);
        encode(&mut encoder, &[("te", "trailers")]);
        for i in 0..1000 {
            encode(&mut encoder, &[("x-once", &i.to_string())]);
        }
        // 4096 bytes were filled, and then nothing pushed out what was there.
        assert_eq!(
            encode(&mut encoder, &[("te", "trailers")])[0] & 0x80,
            INDEXED
        );
        let new = [("x-new", "value")];
        assert_eq!(encode(&mut encoder, &new)[0], WITHOUT_INDEXING);
        assert_eq!(encode(&mut encoder, &new)[0] & 0xc0, WITH_INDEXING);
        assert_eq!(encode(&mut encoder, &new), [0xbe]);
    }

    #[test]
    fn what_blocks_begin_with_in_common_is_copied() {
        let head = |path: &str, secret: bool, id: &str| {
            let mut headers = Headers::from_iter([(":method", "POST"), (":path", path)]);
            if secret {
                headers.push_never_indexed(b"x-token", b"t");
            } else {
                headers.push(b"x-token", b"t");
            }
            headers.push(b"x-request-id", id.as_bytes());
            headers
        };
        let (mut encoder, mut plain) = (Encoder::new(4096), Encoder::new(4096));
        for id in ["1", "2", "3", "4", "5", "6", "7"] {
            let (mut out, mut wanted) = (Vec::new(), Vec::new());
            encoder.encode(&head("/a", true, id), &mut out);
            plain.prefix = None;
            plain.encode(&head("/a", true, id), &mut wanted);
            assert_eq!(out, wanted);
        }
        let recalled = |encoder: &Encoder, headers: &Headers| {
            let mut prefix = encoder.prefix.clone().expect("what was remembered");
            prefix.recall(headers, encoder.table.version(), &mut Vec::new())
        };
        assert_eq!(recalled(&encoder, &head("/a", true, "4")), 4);
        assert_eq!(recalled(&encoder, &head("/a", true, "8")), 3);
        assert_eq!(recalled(&encoder, &head("/a", false, "7")), 2);
        assert_eq!(recalled(&encoder, &head("/b", true, "7")), 1);
        let mut edited = head("/b", true, "7");
        edited.set(b":path", b"/a");
        assert_eq!(recalled(&encoder, &edited), 1, "its bytes stand elsewhere");
        encode(&mut encoder, &[("x-new", "value")]);
        assert_eq!(
            recalled(&encoder, &head("/a", true, "7")),
            0,
            "another table"
        );
    }

    #[test]
    fn a_field_that_may_yet_enter_the_table_is_asked_again() {
        let mut encoder = Encoder::new(4096);
        let fill = "v".repeat(900);
        for name in ["x-1", "x-2", "x-3", "x-4"] {
            encode(&mut encoder, &[(name, &fill)]);
        }
        let head = [
            (":method", "POST"),
            (":scheme", "https"),
            ("x-new", "n"),
            ("te", "trailers"),
        ];
        let sizes: Vec<_> = (0..8).map(|_| encode(&mut encoder, &head).len()).collect();
        assert!(sizes[0] > 10 && sizes[7] == 4, "{sizes:?}");
    }

    #[test]
    fn the_table_is_capped_and_its_changes_told_smallest_first() {
        let one = [(":method", "GET")];
        let mut encoder = Encoder::new(4096);
        encoder.set_peer_max(1 << 20);
        assert_eq!(
            encode(&mut encoder, &one),
            [0x82],
            "the cap is the initial size: nothing to tell"
        );
        encoder.set_peer_max(100);
        assert_eq!(encode(&mut encoder, &one), [0x3f, 69, 0x82]);
        assert_eq!(encode(&mut encoder, &one), [0x82]);
        encode(&mut encoder, &[("x-a", "b")]);
        encoder.set_peer_max(0);
        encoder.set_peer_max(200);
        encoder.set_peer_max(100);
        assert_eq!(encode(&mut encoder, &one), [0x20, 0x3f, 69, 0x82]);
        assert!(encoder.table.get(0).is_none());
        encoder.set_peer_max(0);
        let field = [("x-a", "b")];
        assert_eq!(encode(&mut encoder, &field)[..2], [0x20, WITHOUT_INDEXING]);
        assert_eq!(encode(&mut Encoder::new(0), &one), [0x20, 0x82]);
    }

    #[test]
    fn a_hash_that_collides_is_no_hit() {
        let mut encoder = Encoder::new(4096);
        let mut decoder = Decoder::new(4096);
        for (name, value) in [("ab", "c"), ("a", "bc"), ("abc", ""), ("ab", "c")] {
            let mut headers = Headers::new();
            let block = encode(&mut encoder, &[(name, value)]);
            decoder
                .decode(&block, 100, &mut headers)
                .expect("our own encoding");
            assert_eq!(headers.get(name.as_bytes()), Some(value.as_bytes()));
        }
    }
}
