//! The Huffman code of RFC 7541 appendix B.
//!
//! The code is canonical, so its lengths are all that is written down; codes and look-up tables are computed at compile
//! time. Decoding takes 12 bits at a time from a table that yields up to two symbols; four look-ups fit the 57 bits that
//! one unaligned load provides, and their symbols are collected in a register, so bounds and errors are checked once per
//! up to eight symbols. Codes above 12 bits, which text hardly has, take a second way, symbol by symbol.

use super::DecodeError;

/// Appends the decoded string to `out`.
pub(super) fn decode(src: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let start = out.len();
    // The shortest code has 5 bits. Eight bytes more, because whole registers are written.
    out.resize(start + src.len() * 8 / 5 + 8, 0);
    let result = decode_into(src, &mut out[start..]);
    out.truncate(start + result.unwrap_or(0));
    result.map(drop)
}

/// How long `src` is when it is encoded.
#[inline]
pub(super) fn encoded_len(src: &[u8]) -> usize {
    let bits: usize = src.iter().map(|&b| usize::from(LENGTHS[b as usize])).sum();
    bits.div_ceil(8)
}

/// Appends the encoded string to `out`.
pub(super) fn encode(src: &[u8], out: &mut Vec<u8>) {
    // At most 31 bits wait in `bits`, and a code has up to 30.
    let (mut bits, mut waiting) = (0u64, 0u32);
    for &byte in src {
        let len = u32::from(LENGTHS[byte as usize]);
        bits = bits << len | u64::from(CODES[byte as usize]);
        waiting += len;
        if waiting >= 32 {
            waiting -= 32;
            out.extend_from_slice(&((bits >> waiting) as u32).to_be_bytes());
        }
    }
    // Padding: the first bits of EOS, all ones (RFC 7541 §5.2).
    let padding = (8 - waiting % 8) % 8;
    bits = bits << padding | ((1 << padding) - 1);
    waiting += padding;
    while waiting > 0 {
        waiting -= 8;
        out.push((bits >> waiting) as u8);
    }
}

/// Decodes to the front of `out`, which is large enough for the longest result, and returns the length.
fn decode_into(src: &[u8], out: &mut [u8]) -> Result<usize, DecodeError> {
    let total = src.len() * 8;
    let (mut at, mut len) = (0usize, 0usize);
    // As long as a whole word can be loaded.
    while at / 8 + 8 <= src.len() {
        // With fewer than 30 of the 57 bits left, a long code waits for the next word.
        step::<27>(word(src, at), &mut at, out, &mut len)?;
    }
    // The rest, made longer by ones: no code of up to 12 bits can begin among them.
    let from = at / 8;
    let mut tail = [0xff; 16];
    tail[..src.len() - from].copy_from_slice(&src[from..]);
    while at < total {
        let left = total - at;
        let word = word(&tail, at - from * 8);
        if left < 8 && word >> (64 - left) == (1 << left) - 1 {
            break;
        }
        // What looks like a long code may be the padding: that is looked at first.
        step::<0>(word, &mut at, out, &mut len)?;
    }
    if at > total { Err(PADDING) } else { Ok(len) }
}

/// At least 57 bits from bit `at` on, at the word's top.
#[inline]
fn word(src: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&src[at / 8..at / 8 + 8]);
    u64::from_be_bytes(bytes) << (at % 8)
}

/// Decodes what four look-ups yield, and the long code that comes next, if one does and they took at most `SPARE` bits.
#[inline]
fn step<const SPARE: u32>(
    mut word: u64,
    at: &mut usize,
    out: &mut [u8],
    len: &mut usize,
) -> Result<(), DecodeError> {
    let (mut symbols, mut places, mut used, mut last) = (0u64, 0u32, 0u32, 0u32);
    for _ in 0..4 {
        // A long code's entry takes no bits, so that it is met again to the end of the loop.
        let entry = PAIRS[(word >> (64 - WINDOW)) as usize];
        symbols |= u64::from(entry >> 16) << (places & 63);
        places += entry >> 8 & 0xff;
        // The mask is what the processor's shift does anyway.
        last = entry & 63;
        word <<= last;
        used += last;
    }
    let room = out.get_mut(*len..*len + 8).ok_or(PADDING)?;
    room.copy_from_slice(&symbols.to_le_bytes());
    *len += (places / 8) as usize;
    *at += used as usize;
    if last == 0 && used <= SPARE {
        let (symbol, bits) = long_code(word)?;
        *out.get_mut(*len).ok_or(PADDING)? = symbol;
        *len += 1;
        *at += bits;
    }
    Ok(())
}

/// The symbol of a code above [`WINDOW`] bits at the top of `word`, and the code's length.
#[inline(never)]
fn long_code(word: u64) -> Result<(u8, usize), DecodeError> {
    let code = (word >> 34) as u32;
    // In a canonical code all codes of one length are numbers in a row.
    for bits in WINDOW + 1..=30 {
        let number = code >> (30 - bits);
        let offset = number.wrapping_sub(FIRST_CODE[bits as usize]);
        if offset < u32::from(CODES_OF_LENGTH[bits as usize]) {
            let at = usize::from(FIRST_SYMBOL[bits as usize]) + offset as usize;
            return match SYMBOLS[at] {
                EOS => Err(DecodeError::Broken(
                    "EOS, or more than 7 bits of padding, in a Huffman-coded string (RFC 7541 §5.2)",
                )),
                symbol => Ok((symbol as u8, bits as usize)),
            };
        }
    }
    // The code is complete: every 30 bits begin with one.
    Err(PADDING)
}

const fn codes_of_length() -> [u16; 31] {
    let mut counts = [0; 31];
    let mut symbol = 0;
    while symbol < 257 {
        counts[LENGTHS[symbol] as usize] += 1;
        symbol += 1;
    }
    counts
}

/// The number of the first code of each length, and where its symbol stands in [`SYMBOLS`].
const fn first() -> ([u32; 31], [u16; 31]) {
    let (mut codes, mut positions) = ([0u32; 31], [0u16; 31]);
    let mut bits = 1;
    while bits <= 30 {
        codes[bits] = (codes[bits - 1] + CODES_OF_LENGTH[bits - 1] as u32) << 1;
        positions[bits] = positions[bits - 1] + CODES_OF_LENGTH[bits - 1];
        bits += 1;
    }
    (codes, positions)
}

/// Codes by symbol, and symbols by code.
const fn codes() -> ([u32; 257], [u16; 257]) {
    let (mut codes, mut symbols) = ([0u32; 257], [0u16; 257]);
    let mut next = [0u16; 31];
    let mut symbol = 0;
    while symbol < 257 {
        let bits = LENGTHS[symbol] as usize;
        codes[symbol] = FIRST_CODE[bits] + next[bits] as u32;
        symbols[(FIRST_SYMBOL[bits] + next[bits]) as usize] = symbol as u16;
        next[bits] += 1;
        symbol += 1;
    }
    (codes, symbols)
}

/// For each 12 bits: the bits that its symbols take in the low byte, the bits that they have decoded (8 or 16) in the
/// second, the symbols in the upper two. The first is what the next look-up waits for, so it needs no shift.
const fn pairs() -> [u32; 1 << WINDOW] {
    // One symbol per window first, as `length << 8 | symbol`, then each window looks up what follows its first symbol.
    let mut single = [0u16; 1 << WINDOW];
    let mut symbol = 0;
    while symbol < 256 {
        let bits = LENGTHS[symbol] as u32;
        if bits <= WINDOW {
            let from = CODES[symbol] << (WINDOW - bits);
            let mut i = 0;
            while i < 1 << (WINDOW - bits) {
                single[(from + i) as usize] = (bits as u16) << 8 | symbol as u16;
                i += 1;
            }
        }
        symbol += 1;
    }
    let mut pairs = [0u32; 1 << WINDOW];
    let mut window = 0;
    while window < 1 << WINDOW {
        let (bits, symbol) = ((single[window] >> 8) as u32, (single[window] & 0xff) as u32);
        if bits != 0 {
            let next = single[(window << bits) & ((1 << WINDOW) - 1)];
            let (more, second) = ((next >> 8) as u32, (next & 0xff) as u32);
            pairs[window] = if more != 0 && bits + more <= WINDOW {
                second << 24 | symbol << 16 | 16 << 8 | (bits + more)
            } else {
                symbol << 16 | 8 << 8 | bits
            };
        }
        window += 1;
    }
    pairs
}

/// Bits per look-up. Measured on random base64: 2.2 ns a symbol with 12 bits (2.6 with a cold cache), 2.6 (2.8) with 11,
/// 2.8 (2.9) with 9; the table takes 16 KiB; one for 13 bits would be most of a first-level cache.
const WINDOW: u32 = 12;
const EOS: u16 = 256;
const PADDING: DecodeError = DecodeError::Broken(
    "padding of a Huffman-coded string that is not EOS's first bits (RFC 7541 §5.2)",
);
const CODES_OF_LENGTH: [u16; 31] = codes_of_length();
const FIRST_CODE: [u32; 31] = first().0;
const FIRST_SYMBOL: [u16; 31] = first().1;
static SYMBOLS: [u16; 257] = codes().1;
const CODES: [u32; 257] = codes().0;
static PAIRS: [u32; 1 << WINDOW] = pairs();

/// The codes' lengths in bits, by symbol; the last is EOS (RFC 7541 appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(text, &mut out);
        out
    }

    fn decoded(src: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut out = b"before".to_vec();
        let result = decode(src, &mut out);
        assert!(out.starts_with(b"before"));
        assert!(
            result.is_ok() || out.len() == 6,
            "a failed decoding leaves nothing behind"
        );
        result.map(|()| out.split_off(6))
    }

    /// Bit by bit, as RFC 7541 §5.2 says it, to compare with.
    fn bit_by_bit(src: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut code, mut bits) = (Vec::new(), 0u32, 0u8);
        for at in 0..src.len() * 8 {
            code = code << 1 | u32::from(src[at / 8] >> (7 - at % 8) & 1);
            bits += 1;
            let symbol = (0..257).find(|&s| LENGTHS[s] == bits && CODES[s] == code);
            match symbol {
                Some(256) => return None,
                Some(symbol) => {
                    out.push(symbol as u8);
                    (code, bits) = (0, 0);
                }
                None => {}
            }
        }
        (bits < 8 && code == (1 << bits) - 1).then_some(out)
    }

    #[test]
    fn codes_of_appendix_b() {
        for (symbol, code, bits) in [
            (b'0', 0x0, 5),
            (b'a', 0x3, 5),
            (b' ', 0x14, 6),
            (b':', 0x5c, 7),
            (b'\\', 0x7fff0, 19),
            (0, 0x1ff8, 13),
            (10, 0x3fff_fffc, 30),
            (22, 0x3fff_fffe, 30),
            (255, 0x3ff_ffee, 26),
            (249, 0xfff_fffe, 28),
        ] {
            assert_eq!(
                (CODES[symbol as usize], LENGTHS[symbol as usize]),
                (code, bits),
                "{symbol}"
            );
        }
        assert_eq!((CODES[256], LENGTHS[256]), (0x3fff_ffff, 30));
    }

    #[test]
    fn every_pair_of_bytes_round_trips() {
        for pair in 0..=u16::MAX {
            let text = pair.to_be_bytes();
            let code = encoded(&text);
            assert_eq!(code.len(), encoded_len(&text));
            assert_eq!(decoded(&code).as_deref(), Ok(&text[..]));
        }
    }

    #[test]
    fn padding_is_up_to_seven_ones() {
        assert_eq!(decoded(b"").as_deref(), Ok(&b""[..]));
        // '0' has the code 00000.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Ok(&b"0"[..]));
        for wrong in [
            &[0b0000_0110][..],
            &[0b0000_0001, 0b1111_1110],
            &[0b0000_0111, 0xff],
            &[0xff],
            &[0xff; 3],
        ] {
            assert!(decoded(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn eos_is_an_error() {
        assert!(decoded(&[0xff; 4]).is_err());
        assert!(decoded(&[0b0000_0111, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decoded(&[&encoded(b"some text before it ")[..], &[0xff; 40]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_round_trips(text: Vec<u8>) {
            let code = encoded(&text);
            prop_assert_eq!(code.len(), encoded_len(&text));
            prop_assert_eq!(decoded(&code), Ok(text));
        }

        #[test]
        fn decoding_agrees_with_bit_by_bit(src in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decoded(&src).ok(), bit_by_bit(&src));
        }

        #[test]
        fn a_code_that_was_cut_or_changed_agrees_too(text in "[ -~]{0,60}", at: usize, bit in 0..8u8, cut: bool) {
            let mut code = encoded(text.as_bytes());
            if !code.is_empty() {
                let at = at % code.len();
                if cut { code.truncate(at) } else { code[at] ^= 1 << bit }
            }
            prop_assert_eq!(decoded(&code).ok(), bit_by_bit(&code));
        }
    }
}
