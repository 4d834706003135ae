//! Blocks of which nothing is wanted but that the table stays in step (RFC 7541 §2.2), decoded as they come.
//!
//! A block that is too large ends its stream, and the streams beside it need the table. To collect it whole would cost as
//! much memory as its sender likes; so each part is decoded when it is there, and of a field that isn't whole no more is
//! kept than the table could have room for. What is longer than that has no effect but to empty the table (RFC 7541 §4.4):
//! its octets are counted off, unseen.

use super::{
    DecodeError, Decoder,
    decoder::{LATE_UPDATE, Literal, text, text_length},
    integer::{self, TRUNCATED},
};
use crate::headers::{FIELD_OVERHEAD, Meta};

/// How far a block has been decoded whose fields are dropped.
#[derive(Debug, Default)]
pub struct Discard {
    /// The beginning of a field that isn't whole.
    partial: Vec<u8>,
    /// Octets to come of a text that is too long for the table.
    skip: usize,
    /// That text is a name: its value follows.
    then_value: bool,
    /// A field has been decoded: the table's size stays.
    begun: bool,
    /// RFC 9113 §6.5.2 size of the fields that were put together: what they cost.
    list_size: usize,
    /// Where a field is put together.
    scratch: Vec<u8>,
}

impl Discard {
    /// Bytes that it keeps.
    pub fn len(&self) -> usize {
        self.partial.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }
}

impl Decoder {
    /// Decodes a part of a block, the first one when `state` is new, and drops its fields.
    ///
    /// # Errors
    /// As of [`decode`](Self::decode); a text that is too long for the table isn't looked at.
    pub fn discard(&mut self, part: &[u8], state: &mut Discard) -> Result<(), DecodeError> {
        let mut bytes = std::mem::take(&mut state.partial);
        bytes.extend_from_slice(part);
        let mut rest = &bytes[..];
        loop {
            let skipped = state.skip.min(rest.len());
            rest = &rest[skipped..];
            state.skip -= skipped;
            let mut after = rest;
            match self.discard_field(&mut after, state) {
                Ok(()) => rest = after,
                // The next part has more of it.
                Err(TRUNCATED) => break,
                Err(error) => return Err(error),
            }
        }
        let kept = bytes.len() - rest.len();
        bytes.drain(..kept);
        state.partial = bytes;
        Ok(())
    }

    /// There is no further part.
    ///
    /// # Errors
    /// It ends within a field.
    pub fn discarded(&self, state: &Discard) -> Result<(), DecodeError> {
        if state.is_empty() && state.skip == 0 && !state.then_value {
            Ok(())
        } else {
            Err(TRUNCATED)
        }
    }

    /// Takes one field from the front of `block`, or the beginning of one that is too long for the table.
    fn discard_field(&mut self, block: &mut &[u8], state: &mut Discard) -> Result<(), DecodeError> {
        if state.then_value && state.skip == 0 {
            state.skip = text_length(block)?.0;
            state.then_value = false;
            return Ok(());
        }
        let (&first, rest) = block.split_first().ok_or(TRUNCATED)?;
        *block = rest;
        if first & 0x80 != 0 {
            let index = integer::decode(first, 7, block)?;
            state.begun = true;
            state.list_size = state.list_size.saturating_add(self.indexed(index)?.size());
            return self.check_ceiling(state.list_size);
        }
        let Some(literal) = Literal::of(first) else {
            if state.begun {
                return Err(LATE_UPDATE);
            }
            return self.size_update(first, block);
        };
        let index = integer::decode(first, literal.prefix, block)?;
        if index > 0 {
            self.indexed(index)?;
        }
        let mut field = *block;
        for is_name in [true, false] {
            if is_name && index > 0 {
                continue;
            }
            let (length, _) = text_length(block)?;
            if length > self.longest_text() {
                (state.skip, state.then_value, state.begun) = (length, is_name, true);
                if literal.table {
                    self.table.clear();
                }
                return Ok(());
            }
            *block = block.get(length..).ok_or(TRUNCATED)?;
        }
        state.begun = true;
        state.scratch.clear();
        let (name_len, name) = self.name(index, &mut field, &mut state.scratch)?;
        text(&mut field, &mut state.scratch)?;
        if literal.table {
            self.enter(&state.scratch, name_len, &mut Meta::of(name));
        }
        state.list_size = state
            .list_size
            .saturating_add(state.scratch.len() + FIELD_OVERHEAD);
        self.check_ceiling(state.list_size)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::{super::huffman, *};
    use crate::headers::Headers;

    fn put_text(len: usize, random: &mut StdRng, out: &mut Vec<u8>) {
        let plain: Vec<u8> = (0..len).map(|_| random.random_range(b' '..=b'~')).collect();
        if random.random() {
            integer::encode(len, 7, 0, out);
            out.extend(plain);
        } else {
            integer::encode(huffman::encoded_len(&plain), 7, 0x80, out);
            huffman::encode(&plain, out);
        }
    }

    /// Fields of every form, some of which have no room in the table. `entries`: at least so many are there.
    fn put_field(entries: usize, random: &mut StdRng, out: &mut Vec<u8>) {
        let index = match random.random_range(0..3) {
            0 if entries > 0 => 62 + random.random_range(0..entries),
            1 => 0,
            _ => random.random_range(1..62),
        };
        let sizes = [0..9, 20..60, 300..500, 3900..4100, 4000..24_000];
        let mut size = || {
            let range = sizes[random.random_range(0..sizes.len())].clone();
            random.random_range(range)
        };
        let (name, value) = (size(), size());
        if index > 0 && random.random_range(0..3) == 0 {
            return integer::encode(index, 7, 0x80, out);
        }
        match random.random_range(0..3) {
            0 => integer::encode(index, 4, 0, out),
            1 => integer::encode(index, 4, 0x10, out),
            _ => integer::encode(index, 6, 0x40, out),
        }
        if index == 0 {
            put_text(name, random, out);
        }
        put_text(value, random, out);
    }

    #[test]
    fn the_table_is_as_if_the_block_had_been_decoded() {
        for seed in 0..200 {
            let random = &mut StdRng::seed_from_u64(seed);
            let (mut whole, mut parts) = (Decoder::new(4096), Decoder::new(4096));
            for _ in 0..4 {
                let mut block = Vec::new();
                if random.random() {
                    integer::encode(random.random_range(0..4097), 5, 0x20, &mut block);
                }
                // Field by field, so that it is known which entries there are.
                let mut decoded = 0;
                for _ in 0..random.random_range(1..12) {
                    let entries = (0..).take_while(|&at| whole.table.get(at).is_some());
                    // An update of the size may take some, and is decoded with the first field.
                    let entries = if decoded == 0 { 0 } else { entries.count() };
                    put_field(entries, random, &mut block);
                    let field = whole.decode(&block[decoded..], 0, &mut Headers::new());
                    field.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    decoded = block.len();
                }
                let mut state = Discard::default();
                let mut rest = &block[..];
                while !rest.is_empty() {
                    let most = if random.random() { 40 } else { 16_384 };
                    let part;
                    (part, rest) = rest.split_at(random.random_range(0..=most.min(rest.len())));
                    parts.discard(part, &mut state).expect("a part");
                    assert!(
                        state.len() < 2 * parts.longest_text() + 20,
                        "{}",
                        state.len()
                    );
                }
                assert_eq!(parts.discarded(&state), Ok(()));
            }
            for at in 0..200 {
                let [one, other] = [&whole, &parts].map(|decoder| {
                    let line = decoder.table.get(at);
                    line.map(|line| (line.bytes.to_vec(), line.name_len, line.meta.hash))
                });
                assert_eq!(one, other, "entry {at}, seed {seed}");
            }
        }
    }

    #[test]
    fn what_breaks_the_rules_is_an_error() {
        for (block, error) in [
            (&[0xbe][..], "without an entry"),
            (&[0x80], "index 0"),
            (&[0x7e, 0x00], "without an entry"),
            (&[0x82, 0x20], "after the beginning"),
            (&[0x3f, 0xff, 0x7f], "above what we announced"),
            (&[0x40, 0x01, b'a', 0x82, 0xff, 0xff], "Huffman"),
        ] {
            let mut decoder = Decoder::new(4096);
            let got = decoder.discard(block, &mut Discard::default());
            let got = got.expect_err("an error").to_string();
            assert!(got.contains(error), "{got}");
        }
    }

    #[test]
    fn a_block_that_ends_within_a_field_is_an_error() {
        // A name and a value that are too long for the table.
        let mut block = vec![0x40];
        for _ in 0..2 {
            integer::encode(20_000, 7, 0, &mut block);
            block.extend([b'x'; 20_000]);
        }
        for len in 1..=block.len() {
            let (mut decoder, mut state) = (Decoder::new(4096), Discard::default());
            assert_eq!(decoder.discard(&block[..len], &mut state), Ok(()));
            assert!(state.len() < 10);
            let whole = len == block.len();
            assert_eq!(decoder.discarded(&state).is_ok(), whole, "{len} bytes");
        }
    }

    #[test]
    fn a_list_above_the_ceiling_is_not_decoded_to_its_end() {
        for field in [&[0x7e, 0x00][..], &[0xbe]] {
            let mut decoder = Decoder::new(4096).with_ceiling(131_072);
            let mut state = Discard::default();
            let mut entry = vec![0x40];
            integer::encode(4064, 7, 0, &mut entry);
            entry.extend([b'n'; 4064]);
            entry.push(0);
            decoder.discard(&entry, &mut state).expect("a field");
            let rest = decoder.discard(&field.repeat(31), &mut state);
            assert_eq!((rest, state.list_size), (Ok(()), 131_072));
            let one_more = decoder.discard(field, &mut state);
            assert_eq!(one_more, Err(DecodeError::TooLarge));
        }
    }
}
