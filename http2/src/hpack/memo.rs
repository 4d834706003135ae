//! The last ordinary block of a connection, as it came and as it was decoded.
//!
//! A client's requests are much alike: method, path, authority, content type, user agent, mostly the same indexes byte
//! for byte, and what differs (a deadline, an id) stands at the end. While the table doesn't change, equal bytes mean
//! equal fields: so what a block has in common with the one before is copied in two pieces, and only the rest is decoded
//! field by field. A field is copied in a tenth of the instructions that its decoding takes.
//!
//! It pays where blocks repeat. Where they don't (each one changes the table, or differs in its first bytes), it costs
//! the comparison of a few bytes, and a copy for every fourth block at the most.

use crate::headers::{Headers, Kind};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memo {
    /// The block.
    block: Vec<u8>,
    /// Where each of its fields ends.
    ends: Vec<u16>,
    /// All of its fields.
    fields: Headers,
    /// The version of the table that it was decoded by.
    version: u32,
    /// As what all of its fields are known to be valid.
    valid: Option<Kind>,
    /// Blocks in a row that had less than half of it in common.
    misses: u8,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recalled {
    /// Bytes of the block that needn't be decoded.
    pub(super) bytes: usize,
    /// As what the remembered block is valid, and how many fields of it these are.
    pub(super) valid: Option<(Kind, usize)>,
}

impl Memo {
    /// Puts into `into`, which is empty, the fields that `block` has in common with the remembered one.
    pub(super) fn recall(
        &mut self,
        block: &[u8],
        version: u32,
        keep: usize,
        into: &mut Headers,
    ) -> Recalled {
        if version != self.version || self.ends.is_empty() || self.fields.list_size() > keep {
            self.misses = self.misses.saturating_add(1);
            return Recalled::default();
        }
        let common = common(block, &self.block);
        let whole = common == self.block.len();
        let fields = if whole {
            self.ends.len()
        } else {
            self.ends
                .iter()
                .take_while(|end| usize::from(**end) <= common)
                .count()
        };
        self.misses = if fields * 2 < self.ends.len() {
            self.misses.saturating_add(1)
        } else {
            0
        };
        let Some(&end) = fields.checked_sub(1).and_then(|last| self.ends.get(last)) else {
            return Recalled::default();
        };
        if whole {
            into.clone_from(&self.fields);
        } else {
            into.clone_first(&self.fields, fields);
        }
        let bytes = usize::from(end);
        Recalled {
            bytes,
            valid: self.valid.map(|kind| (kind, fields)),
        }
    }

    /// Whether the block that comes is to be remembered, should it be an ordinary one.
    pub(super) fn wants(&self, block: &[u8]) -> bool {
        self.misses >= MISSES && block.len() <= LONGEST
    }

    /// Begins to remember `block`.
    pub(super) fn begin(&mut self, block: &[u8]) {
        self.block.clear();
        self.block.extend_from_slice(block);
        self.ends.clear();
        self.valid = None;
        self.misses = 0;
    }

    /// A field ends so many bytes before the block's end.
    pub(super) fn field(&mut self, rest: usize) {
        // `wants` has seen that a block isn't longer.
        self.ends.push((self.block.len() - rest) as u16);
    }

    /// The block came to `fields`; `Some`: all of them were kept, by this version of the table before and after.
    pub(super) fn complete(&mut self, fields: &Headers, version: Option<u32>) {
        match version {
            Some(version) if fields.len() >= FEWEST => {
                self.fields.clone_from(fields);
                self.version = version;
                return;
            }
            // Trailers, which come in turn with heads: the next one may be a head.
            Some(_) => self.misses = MISSES,
            None => {}
        }
        self.ends.clear();
    }

    /// The block that was remembered last, or recalled whole, is valid as one of `kind`.
    pub(super) fn valid(&mut self, kind: Kind, fields: &Headers) {
        if self.valid != Some(kind) && self.ends.len() == fields.len() && self.fields.same(fields) {
            self.valid = Some(kind);
        }
    }
}

/// How many bytes `a` and `b` begin with in common: most of them in steps of what a few vector registers hold.
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    let wide = common_chunks::<32>(a, b);
    let words = wide + common_chunks::<8>(&a[wide..], &b[wide..]);
    let rest = a[words..].iter().zip(&b[words..]);
    words + rest.take_while(|(a, b)| a == b).count()
}

/// How many bytes those chunks of `N` have that `a` and `b` begin with in common.
#[inline]
fn common_chunks<const N: usize>(a: &[u8], b: &[u8]) -> usize {
    let (a, b) = (a.as_chunks::<N>().0, b.as_chunks::<N>().0);
    let most = a.len().min(b.len());
    N * (0..most).find(|&at| a[at] != b[at]).unwrap_or(most)
}

/// A block is remembered after so many in a row that had little in common with the one that is.
const MISSES: u8 = 3;
/// Blocks above this aren't remembered: it is memory of every connection.
const LONGEST: usize = 512;
/// Trailers aren't worth it, and would push out the head.
const FEWEST: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hpack::{Decoder, Encoder};

    fn fields(headers: &Headers) -> Vec<(Vec<u8>, Vec<u8>)> {
        let owned = |field: crate::Field<'_>| (field.name.to_vec(), field.value.to_vec());
        headers.iter().map(owned).collect()
    }

    #[test]
    fn what_two_slices_begin_with() {
        let long = [7; 100];
        for at in 0..100 {
            let mut other = long;
            other[at] = 8;
            assert_eq!(common(&long, &other), at);
            assert_eq!(common(&long[..at], &long), at);
            assert_eq!(common(&long, &long[..at]), at);
        }
        assert_eq!(common(&long, &long), 100);
    }

    #[test]
    fn a_block_is_remembered_after_some_that_were_not() {
        let block = [0x82, 0x86, 0x84, 0x88];
        let mut decoder = Decoder::new(4096);
        let mut valid = Vec::new();
        for _ in 0..6 {
            let mut headers = Headers::new();
            let decoded = decoder.decode(&block, 8192, &mut headers).expect("a block");
            assert_eq!(decoded.list_size, headers.list_size());
            assert_eq!(headers.len(), 4);
            valid.push(decoded.valid);
            // It isn't, but that is for the caller to know.
            decoder.valid(Kind::Request, &headers);
        }
        assert_eq!(
            valid[..4],
            [None; 4],
            "three misses, and the one that is remembered"
        );
        assert_eq!(valid[4..], [Some((Kind::Request, 4)); 2]);
    }

    #[test]
    fn heads_are_remembered_also_where_trailers_come_in_turn() {
        let mut decoder = Decoder::new(4096);
        for _ in 0..4 {
            for block in [&[0x88, 0x82, 0x86, 0x84][..], &[0x88]] {
                let mut headers = Headers::new();
                decoder.decode(block, 8192, &mut headers).expect("a block");
                decoder.valid(Kind::Response, &headers);
            }
        }
        let mut headers = Headers::new();
        let decoded = decoder.decode(&[0x88, 0x82, 0x86, 0x84], 8192, &mut headers);
        assert_eq!(decoded.expect("a block").valid, Some((Kind::Response, 4)));
    }

    #[test]
    fn what_follows_a_valid_beginning_is_looked_at_as_ever() {
        let head = |more: &[(&str, &str)]| {
            let mut head = Headers::from_iter([
                (":method", "POST"),
                (":scheme", "https"),
                (":path", "/"),
                ("content-length", "1"),
            ]);
            head.extend(more.iter().copied());
            head
        };
        let (mut encoder, mut decoder) = (Encoder::new(0), Decoder::new(4096));
        let mut recalled = |headers: &Headers| {
            let (mut block, mut got) = (Vec::new(), Headers::new());
            encoder.encode(headers, &mut block);
            let decoded = decoder.decode(&block, 8192, &mut got).expect("a block");
            let (valid, known) = (got.validate(Kind::Request), decoded.valid);
            if let Some((kind, known)) = known {
                assert_eq!(got.validate_beyond(known, kind), valid);
            }
            if valid.is_ok() {
                decoder.valid(Kind::Request, &got);
            }
            (known, valid.is_ok())
        };
        let whole = head(&[("te", "trailers"), ("x-id", "1")]);
        for _ in 0..6 {
            recalled(&whole);
        }
        let known = |fields| Some((Kind::Request, fields));
        assert_eq!(recalled(&whole), (known(6), true));
        for (more, fields, valid) in [
            (&[][..], 4, true),
            (&[("x-id", "2")], 4, true),
            (&[("te", "trailers"), ("x-id", "2")], 5, true),
            (&[("te", "trailers"), ("x-ID", "2")], 5, false),
            (&[("te", "gzip")], 4, false),
            (&[(":authority", "a")], 4, false),
            (&[("content-length", "2")], 4, false),
        ] {
            assert_eq!(recalled(&head(more)), (known(fields), valid), "{more:?}");
        }
        // As far as the pseudo-header fields go, and not all of them: all are looked at again.
        let mut short = head(&[]);
        for gone in [":path", "content-length"] {
            short.remove(gone.as_bytes());
        }
        assert_eq!(recalled(&short), (known(2), false));
    }

    #[test]
    fn a_change_of_the_table_makes_it_forget() {
        let mut decoder = Decoder::new(4096);
        let mut names = |block: &[u8]| {
            let mut headers = Headers::new();
            decoder.decode(block, 8192, &mut headers).expect("a block");
            fields(&headers)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        names(b"\x40\x01a\x01x");
        for _ in 0..6 {
            assert_eq!(names(&[0x82, 0x86, 0x84, 0xbe])[3], b"a");
        }
        names(b"\x40\x01b\x01x");
        for _ in 0..6 {
            assert_eq!(names(&[0x82, 0x86, 0x84, 0xbe])[3], b"b");
        }
        // The table is emptied: the index means nothing any more.
        let mut headers = Headers::new();
        assert!(
            decoder
                .decode(&[0x20, 0x82, 0x86, 0x84, 0xbe], 8192, &mut headers)
                .is_err()
        );
    }

    #[test]
    fn a_smaller_bound_than_the_remembered_one_holds() {
        let mut decoder = Decoder::new(4096);
        let block = [0x82, 0x86, 0x84, 0x88];
        for keep in [8192, 8192, 8192, 8192, 8192, 90, 0, 8192] {
            let mut headers = Headers::new();
            let decoded = decoder.decode(&block, keep, &mut headers).expect("a block");
            assert!(headers.list_size() <= keep);
            assert!(decoded.list_size > 90);
        }
    }

    proptest! {
        /// A connection's decoder says of each of many alike blocks what one says that never saw another.
        #[test]
        fn it_changes_nothing(blocks in prop::collection::vec(prop::collection::vec((0..6usize, 0..3usize), 0..8), 1..60)) {
            let names = [":method", "te", "x-a", "grpc-timeout", "x-request-id", "authorization"];
            let values = ["GET", "trailers", "a value that is somewhat longer than eight bytes"];
            let mut encoder = Encoder::new(256);
            let mut decoder = Decoder::new(4096);
            for block in blocks {
                let sent: Headers = block.iter().map(|&(name, value)| (names[name], values[value])).collect();
                let (mut bytes, mut got) = (Vec::new(), Headers::new());
                encoder.encode(&sent, &mut bytes);
                let decoded = decoder.decode(&bytes, 8192, &mut got).expect("a block");
                prop_assert_eq!(decoded.list_size, sent.list_size());
                prop_assert_eq!(got.list_size(), sent.list_size());
                prop_assert_eq!(fields(&got), fields(&sent));
                for known in [crate::Known::Method, crate::Known::Te, crate::Known::GrpcTimeout, crate::Known::XRequestId] {
                    prop_assert_eq!(got.known(known), sent.known(known));
                }
                let valid = got.validate(Kind::Trailers);
                if let Some((kind, known)) = decoded.valid {
                    prop_assert_eq!((kind, got.validate_beyond(known, kind)), (Kind::Trailers, valid));
                }
                if valid.is_ok() {
                    decoder.valid(Kind::Trailers, &got);
                }
            }
        }
    }
}
