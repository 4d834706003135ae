//! Decodes header blocks, RFC 7541 §3 and §6, straight into the arena of a [`Headers`].

use super::{
    DecodeError, INITIAL_TABLE_SIZE,
    hash::FieldHash,
    huffman, integer,
    memo::{Memo, Recalled},
    table::{DynamicTable, Line, STATIC_LEN, STATIC_LINES},
};
use crate::headers::{Check, FIELD_OVERHEAD, Headers, Kind, Known, Meta, NameId};

/// Our half of the peer's encoder: one per connection.
#[derive(Debug)]
pub struct Decoder {
    pub(super) table: DynamicTable,
    /// The largest size that the peer may choose now.
    limit: u32,
    /// See [`with_ceiling`](Self::with_ceiling).
    ceiling: u32,
    /// What the next block is likely to begin with; `None` on a connection that is new or quiet.
    memo: Option<Box<Memo>>,
}

/// How a decoded list came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// RFC 9113 §6.5.2 size of the whole list, whether or not all of it was kept.
    pub list_size: usize,
    /// As what a block is known to be valid that began with so many of its fields: [`Decoder::valid`] was told so.
    pub valid: Option<(Kind, usize)>,
}

impl Decoder {
    /// `max_table`: the SETTINGS_HEADER_TABLE_SIZE that we announced. At least the protocol's initial 4096 bytes, which a
    /// peer may use before it has seen our SETTINGS: so no block of its first ones is above what it was told.
    pub fn new(max_table: usize) -> Self {
        // As SETTINGS have it.
        let announced = u32::try_from(max_table).unwrap_or(u32::MAX);
        Self {
            table: DynamicTable::new(INITIAL_TABLE_SIZE),
            limit: announced.max(INITIAL_TABLE_SIZE as u32),
            ceiling: u32::MAX,
            memo: None,
        }
    }

    /// A list above `bytes` (RFC 9113 §6.5.2 size) and above what is kept of it isn't decoded any further.
    ///
    /// The table bounds what is held, but not what a block costs (RFC 7541 §7.3): two octets are a literal whose name is
    /// an entry of 4 KiB, to be copied into a new entry. A list that is merely too large is decoded, since the streams
    /// beside it need the table (RFC 9113 §10.5.1); from here on the peer is one that wants our time.
    pub fn with_ceiling(mut self, bytes: u32) -> Self {
        self.ceiling = bytes;
        self
    }

    /// Decodes one whole block and appends to `into`. The table is always brought up to date to the block's end; fields
    /// beyond `keep` bytes of list size are counted and not stored.
    ///
    /// An error, be it for the block or for the list's size, is the end of the connection (the table is out of step);
    /// `into` may then hold what came before it.
    ///
    /// What is kept is the list's beginning, and it is everything exactly if [`Decoded::list_size`] is at most `keep`. If
    /// it isn't, and `keep` isn't 0, the first `:method` and the first `content-type` are kept wherever they stand: they
    /// say in which form whoever sent too much reads an answer, and many clients of gRPC put their users' fields first.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        keep: usize,
        into: &mut Headers,
    ) -> Result<Decoded, DecodeError> {
        self.size_updates(&mut block)?;
        into.make_room();
        let version = self.table.version();
        let mut memo = self.memo.take().unwrap_or_default();
        let fresh = into.is_empty();
        let remembers = fresh && memo.wants(block);
        let mut recalled = Recalled::default();
        if remembers {
            memo.begin(block);
        } else if fresh {
            recalled = memo.recall(block, version, keep, into);
            block = &block[recalled.bytes..];
        }
        let mut list_size = if fresh { into.list_size() } else { 0 };
        // Where a field is put together that isn't kept.
        let mut scratch = Vec::new();
        while let Some((&first, rest)) = block.split_first() {
            block = rest;
            if first & 0x80 != 0 {
                // An index alone: nothing to read, nothing to check; beyond `keep` nothing but a count.
                let index = integer::decode(first, 7, &mut block)?;
                let line = self.indexed(index)?;
                list_size = list_size.saturating_add(line.size());
                if list_size > keep {
                    self.check_ceiling(list_size)?;
                }
                if list_size <= keep || outlasts(line.meta, line.bytes, keep, into) {
                    into.push_line(line.bytes, line.name_len, line.meta);
                }
            } else {
                let Literal {
                    prefix,
                    table,
                    never_indexed,
                } = Literal::of(first).ok_or(LATE_UPDATE)?;
                let index = integer::decode(first, prefix, &mut block)?;
                let kept = list_size < keep;
                scratch.clear();
                let out = if kept { into.arena() } else { &mut scratch };
                let start = out.len();
                let (name_len, name) = self.name(index, &mut block, out)?;
                text(&mut block, out)?;
                let line = &out[start..];
                list_size = list_size.saturating_add(line.len() + FIELD_OVERHEAD);
                let mut meta = Meta {
                    never_indexed,
                    ..Meta::of(name)
                };
                if list_size <= keep {
                    let (name_bytes, value) = line.split_at(name_len);
                    meta.check = Check::of(name, name_bytes, value);
                } else {
                    self.check_ceiling(list_size)?;
                }
                // Of one that isn't kept it stays open: nobody may ever ask.
                if table {
                    self.enter(line, name_len, &mut meta);
                }
                if list_size <= keep {
                    into.commit(start, name_len, meta);
                } else {
                    if kept {
                        scratch.extend_from_slice(&into.arena()[start..]);
                        into.arena().truncate(start);
                    }
                    if outlasts(meta, &scratch, keep, into) {
                        into.push_line(&scratch, name_len, meta);
                    }
                }
            }
            if remembers {
                memo.field(block.len());
            }
        }
        if remembers {
            let ordinary = list_size <= keep && self.table.version() == version;
            memo.complete(into, ordinary.then_some(version));
        }
        self.memo = Some(memo);
        Ok(Decoded {
            list_size,
            valid: recalled.valid,
        })
    }

    /// The block that was decoded last came to `fields`, and they are valid as a block of `kind`: said again of one that
    /// is the same.
    #[inline]
    pub fn valid(&mut self, kind: Kind, fields: &Headers) {
        if let Some(memo) = &mut self.memo {
            memo.valid(kind, fields);
        }
    }

    /// Gives memory back that only a busy connection needs.
    pub fn shrink(&mut self) {
        self.memo = None;
        self.table.shrink();
    }

    /// RFC 7541 §4.2, §6.3: at the beginning of a block only.
    #[inline]
    fn size_updates(&mut self, block: &mut &[u8]) -> Result<(), DecodeError> {
        while let Some((&first @ 0x20..=0x3f, rest)) = block.split_first() {
            *block = rest;
            self.size_update(first, block)?;
        }
        Ok(())
    }

    /// One of them, whose first octet is taken.
    pub(super) fn size_update(&mut self, first: u8, block: &mut &[u8]) -> Result<(), DecodeError> {
        let size = integer::decode(first, 5, block)?;
        if size > self.limit as usize {
            return Err(DecodeError::Broken(
                "a table size above what we announced (RFC 7541 §6.3)",
            ));
        }
        self.table.resize(size, |_, _| {});
        Ok(())
    }

    /// See [`with_ceiling`](Self::with_ceiling).
    #[inline]
    pub(super) fn check_ceiling(&self, list_size: usize) -> Result<(), DecodeError> {
        if list_size > self.ceiling as usize {
            Err(DecodeError::TooLarge)
        } else {
            Ok(())
        }
    }

    /// Octets of a text, as it is on the wire, above which no entry has room for it: none becomes longer than four times
    /// what it decodes to, since no code of RFC 7541 appendix B has more than 30 bits.
    pub(super) fn longest_text(&self) -> usize {
        self.limit as usize * 4
    }

    /// A field that goes into the table, with its hash.
    #[inline]
    pub(super) fn enter(&mut self, line: &[u8], name_len: usize, meta: &mut Meta) {
        meta.hash = FieldHash::get().of(line);
        self.table.insert(line, name_len, *meta, |_, _| {});
    }

    #[inline]
    pub(super) fn indexed(&self, index: usize) -> Result<Line<'_>, DecodeError> {
        match index.checked_sub(STATIC_LEN + 1) {
            Some(back) => self.table.get(back).ok_or(NO_ENTRY),
            None => STATIC_LINES[index].ok_or(DecodeError::Broken("index 0 (RFC 7541 §6.1)")),
        }
    }

    /// Appends a literal's name to `out`: by its index, or spelt out.
    #[inline]
    pub(super) fn name(
        &self,
        index: usize,
        block: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, NameId), DecodeError> {
        let start = out.len();
        let id = match index {
            0 => {
                text(block, out)?;
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

/// Whether a field beyond `keep` is stored all the same: see [`Decoder::decode`].
fn outlasts(meta: Meta, line: &[u8], keep: usize, into: &Headers) -> bool {
    let known = meta.name.known();
    keep > 0
        && matches!(known, Known::Method | Known::ContentType)
        && line.len() <= LONGEST_BEYOND
        && into.known(known).is_none()
}

/// What the first octet of a literal says of it (RFC 7541 §6.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Literal {
    /// Bits of that octet that are the index of its name.
    pub(super) prefix: u32,
    /// It goes into the table.
    pub(super) table: bool,
    never_indexed: bool,
}

impl Literal {
    /// `None`: it is an update of the table's size. (`first` is no index.)
    #[inline]
    pub(super) fn of(first: u8) -> Option<Self> {
        let (prefix, table, never_indexed) = match first >> 4 {
            0b0100.. => (6, true, false),
            0b0001 => (4, false, true),
            0b0000 => (4, false, false),
            _ => return None,
        };
        Some(Self {
            prefix,
            table,
            never_indexed,
        })
    }
}

/// The length of a text, and whether it is in Huffman's code (RFC 7541 §5.2).
#[inline]
pub(super) fn text_length(block: &mut &[u8]) -> Result<(usize, bool), DecodeError> {
    let Some((&first, rest)) = block.split_first() else {
        return Err(integer::TRUNCATED);
    };
    *block = rest;
    Ok((integer::decode(first, 7, block)?, first & 0x80 != 0))
}

/// RFC 7541 §5.2.
#[inline]
pub(super) fn text(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let (len, huffman) = text_length(block)?;
    let Some((text, rest)) = block.split_at_checked(len) else {
        return Err(integer::TRUNCATED);
    };
    *block = rest;
    if !huffman {
        out.extend_from_slice(text);
        Ok(())
    } else {
        huffman::decode(text, out)
    }
}

const NO_ENTRY: DecodeError = DecodeError::Broken("an index without an entry (RFC 7541 §2.3.3)");
pub(super) const LATE_UPDATE: DecodeError =
    DecodeError::Broken("a table size update after the beginning of a block (RFC 7541 §4.2)");
/// Name and value of a field that is stored beyond `keep`; nothing longer is a method or a media type.
const LONGEST_BEYOND: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Headers, DecodeError> {
        let mut headers = Headers::new();
        let decoded = decoder.decode(block, usize::MAX, &mut headers)?;
        assert_eq!(decoded.list_size, headers.list_size());
        Ok(headers)
    }

    fn refused(block: &[u8]) -> String {
        decode(&mut Decoder::new(4096), block)
            .expect_err("an error")
            .to_string()
    }

    #[test]
    fn indexes_without_an_entry_are_refused() {
        assert_eq!(refused(&[0x80]), "index 0 (RFC 7541 §6.1)");
        for block in [
            &[0x80 | 62][..],
            &[0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x7f, 0x00, 1, b'x'],
            &[0x0f, 0x30, 1, b'x'],
        ] {
            assert_eq!(refused(block), NO_ENTRY.to_string());
        }
    }

    #[test]
    fn cut_blocks_are_refused() {
        let block = b"\x40\x03abc\x03def\x0f\x10\x02xy";
        for end in 1..block.len() {
            let result = decode(&mut Decoder::new(4096), &block[..end]);
            assert_eq!(result.is_ok(), end == 9, "cut at {end}");
        }
    }

    #[test]
    fn size_updates_come_first_and_stay_below_what_we_announced() {
        let mut decoder = Decoder::new(4096);
        assert!(decode(&mut decoder, &[0x20, 0x3f, 0xe1, 0x1f, 0x82]).is_ok());
        assert!(refused(&[0x3f, 0xe2, 0x1f]).starts_with("a table size above"));
        assert_eq!(refused(&[0x82, 0x20]), LATE_UPDATE.to_string());
        assert!(decode(&mut Decoder::new(10_000), &[0x3f, 0xe2, 0x1f]).is_ok());
    }

    #[test]
    fn what_is_beyond_keep_is_counted_and_still_enters_the_table() {
        let mut decoder = Decoder::new(4096);
        let mut headers = Headers::new();
        headers.push(b"x", b"y");
        // :method: GET is 42; then a literal that is indexed, one that isn't, and the first again.
        let block = b"\x82\x40\x01a\x01b\x00\x01c\x01d\xbe";
        let decoded = decoder.decode(block, 75, &mut headers).expect("a block");
        assert_eq!(decoded.list_size, 42 + 3 * 34);
        assert_eq!(
            headers.iter().map(|f| f.name).collect::<Vec<_>>(),
            [&b"x"[..], b":method"]
        );
        assert_eq!(headers.list_size(), 34 + 42);
        assert_eq!(
            decode(&mut decoder, &[0xbe]).expect("an entry").get(b"a"),
            Some(&b"b"[..])
        );
    }

    #[test]
    fn what_says_the_form_of_an_answer_is_kept_wherever_it_stands() {
        let kept = |block: &[u8], keep| {
            let mut headers = Headers::new();
            let decoded = Decoder::new(4096).decode(block, keep, &mut headers);
            assert!(decoded.expect("a block").list_size > keep);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            headers
                .iter()
                .map(|f| text(f.name) + "=" + &text(f.value))
                .collect::<Vec<_>>()
        };
        // A path of 100 bytes; :method by its index, content-type as a literal, both once more.
        let mut block = vec![0x04, 100];
        block.extend([b'/'; 100]);
        block.extend(b"\x82\x0f\x10\x03a/b\x83\x0f\x10\x03c/d\x86");
        assert_eq!(kept(&block, 100), [":method=GET", "content-type=a/b"]);
        assert_eq!(kept(&block, 0), [""; 0]);
        // As many references as a block holds add nothing.
        let mut block = b"\x5f\x03a/b".to_vec();
        block.extend([0xbe; 30_000]);
        assert_eq!(kept(&block, 10), ["content-type=a/b"]);
        // Nor does one that is no media type.
        let mut block = b"\x0f\x10\x7f\x09".to_vec();
        block.extend([b'x'; 136]);
        assert_eq!(kept(&block, 100), [""; 0]);
    }

    /// One large entry and thousands of references to it: the list is a hundred megabytes, what is held is not.
    #[test]
    fn references_to_a_large_entry_cost_only_counting() {
        let mut block = vec![0x40, 1, b'a'];
        integer::encode(4000, 7, 0, &mut block);
        block.extend([b'v'; 4000]);
        let mut decoder = Decoder::new(4096);
        let mut one = Headers::new();
        let size = decoder
            .decode(&block, usize::MAX, &mut one)
            .map(|d| d.list_size);
        let size = size.expect("a block");
        block.extend([0xbe; 28_000]);
        let mut headers = Headers::new();
        let decoded = decoder.decode(&block, 8192, &mut headers).expect("a block");
        assert_eq!(decoded.list_size, size * 28_001);
        assert!(headers.list_size() <= 8192 && headers.arena().capacity() < 16_384);
    }

    /// The same with literals that take their name from it, two octets each, and enter the table: that costs, so it ends.
    #[test]
    fn a_list_above_the_ceiling_is_not_decoded_to_its_end() {
        let mut bomb = vec![0x40];
        integer::encode(4064, 7, 0, &mut bomb);
        bomb.extend([b'n'; 4064]);
        bomb.push(0);
        bomb.extend([0x7e, 0x00].repeat(14_000));
        for (keep, ceiling) in [(8192, 131_072), (0, 131_072), (8192, 0)] {
            let mut decoder = Decoder::new(4096).with_ceiling(ceiling);
            let mut headers = Headers::new();
            let decoded = decoder.decode(&bomb, keep, &mut headers);
            assert_eq!(decoded, Err(DecodeError::TooLarge));
            // Each entry is a change of the table.
            let entered = decoder.table.version() as usize;
            assert_eq!(entered, keep.max(ceiling as usize) / 4096);
        }
        // What the ceiling allows is decoded, by either form of a field.
        for field in [&[0x7e, 0x00][..], &[0xbe]] {
            let block = [&bomb[..bomb.len() - 28_000], &field.repeat(31)].concat();
            let mut decoder = Decoder::new(4096).with_ceiling(131_072);
            let decoded = decoder.decode(&block, 8192, &mut Headers::new());
            assert_eq!(decoded.map(|d| d.list_size), Ok(131_072));
            let again = decoder.decode(&field.repeat(33), 8192, &mut Headers::new());
            assert_eq!(again, Err(DecodeError::TooLarge));
        }
    }

    #[test]
    fn what_was_not_kept_is_checked_when_it_is_asked_for() {
        let mut decoder = Decoder::new(4096);
        decoder
            .decode(b"\x40\x02A:\x01b", 0, &mut Headers::new())
            .expect("a block");
        let headers = decode(&mut decoder, &[0xbe]).expect("an entry");
        assert!(headers.validate(Kind::Trailers).is_err());
    }

    #[test]
    fn never_indexed_is_kept() {
        let headers = decode(&mut Decoder::new(4096), b"\x10\x01a\x01b").expect("a block");
        assert!(headers.lines().all(|(_, _, meta)| meta.never_indexed));
    }
}
