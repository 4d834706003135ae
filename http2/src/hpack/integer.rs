//! Integers with a prefix, RFC 7541 §5.1.

use super::DecodeError;

/// Reads an integer whose first byte is `first`, already taken from `input`, with `prefix` bits of it.
#[inline]
pub(super) fn decode(first: u8, prefix: u32, input: &mut &[u8]) -> Result<usize, DecodeError> {
    let mask = (1u8 << prefix) - 1;
    let value = first & mask;
    if value < mask {
        Ok(usize::from(value))
    } else {
        decode_rest(usize::from(mask), input)
    }
}

fn decode_rest(prefix: usize, input: &mut &[u8]) -> Result<usize, DecodeError> {
    let mut value = prefix as u64;
    // Four continuation bytes reach 2^28, far above every length and index that a limited block can mean; longer
    // forms are an error, also such that only pad with zeros (RFC 7541 §5.1 allows the limit).
    for shift in [0, 7, 14, 21] {
        let Some((&byte, rest)) = input.split_first() else {
            return Err(TRUNCATED);
        };
        *input = rest;
        value += u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value as usize);
        }
    }
    Err(DecodeError::Broken("an integer above 2^28 (RFC 7541 §5.1)"))
}

/// Writes `value` with `prefix` bits in the first byte, whose other bits are `flags`.
#[inline]
pub(super) fn encode(mut value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) const TRUNCATED: DecodeError =
    DecodeError::Broken("a header block ends within a field (RFC 7541 §6)");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], prefix: u32) -> Result<usize, DecodeError> {
        let mut rest = &bytes[1..];
        decode(bytes[0], prefix, &mut rest)
    }

    /// RFC 7541 appendix C.1 (C.1.3 with a prefix of 7 bits: nothing in HPACK has one of 8).
    #[test]
    fn the_examples_of_appendix_c_1() {
        for (value, prefix, bytes) in [
            (10, 5, &[0x0a][..]),
            (1337, 5, &[0x1f, 0x9a, 0x0a]),
            (42, 7, &[0x2a]),
        ] {
            let mut out = Vec::new();
            encode(value, prefix, 0, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(read(bytes, prefix), Ok(value));
        }
    }

    #[test]
    fn every_prefix_round_trips() {
        for prefix in 4..=7 {
            for value in (0..70_000).step_by(7).chain([(1 << 28) - 1]) {
                let mut out = Vec::new();
                encode(value, prefix, 0, &mut out);
                assert_eq!(read(&out, prefix), Ok(value));
            }
        }
    }

    #[test]
    fn too_long_and_cut_integers_are_refused() {
        assert!(read(&[0x7f, 0x80, 0x80, 0x80, 0x80, 0x00], 7).is_err());
        assert!(
            read(
                &[
                    0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f
                ],
                7
            )
            .is_err()
        );
        assert_eq!(read(&[0x7f, 0x80], 7), Err(TRUNCATED));
        assert_eq!(read(&[0x7f], 7), Err(TRUNCATED));
    }
}
