//! The frames of RFC 9113 §4.1 and §6, as bytes: heads read, and the small frames written.
//!
//! Nothing here knows a rule beyond a frame's layout; `connection/` holds the rules.

/// The client's preface (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's head (RFC 9113 §4.1).
pub(crate) const HEAD: usize = 9;

/// SETTINGS_MAX_FRAME_SIZE before any SETTINGS, and what we announce by saying nothing
/// (RFC 9113 §6.5.2).
pub(crate) const DEFAULT_MAX_FRAME: usize = 16_384;

/// Frame types (RFC 9113 §6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0x0;
    pub(crate) const HEADERS: u8 = 0x1;
    pub(crate) const PRIORITY: u8 = 0x2;
    pub(crate) const RST_STREAM: u8 = 0x3;
    pub(crate) const SETTINGS: u8 = 0x4;
    pub(crate) const PUSH_PROMISE: u8 = 0x5;
    pub(crate) const PING: u8 = 0x6;
    pub(crate) const GOAWAY: u8 = 0x7;
    pub(crate) const WINDOW_UPDATE: u8 = 0x8;
    pub(crate) const CONTINUATION: u8 = 0x9;
}

/// Frame flags (RFC 9113 §6).
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// Reads a head. The reserved bit of the stream id is ignored, as RFC 9113 §4.1 wants it.
    #[inline]
    pub(crate) fn read(b: &[u8; HEAD]) -> Self {
        Self {
            len: u32::from_be_bytes([0, b[0], b[1], b[2]]) as usize,
            kind: b[3],
            flags: b[4],
            stream: u32::from_be_bytes([b[5], b[6], b[7], b[8]]) & MAX_ID,
        }
    }

    /// Whether the flag bit is set.
    #[inline]
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The highest stream id, and the largest window (RFC 9113 §5.1.1, §6.9.1).
pub(crate) const MAX_ID: u32 = 0x7fff_ffff;

/// Appends a frame's head.
#[inline]
pub(crate) fn write_head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    let [_, l2, l1, l0] = (len as u32).to_be_bytes();
    let [s3, s2, s1, s0] = stream.to_be_bytes();
    out.extend_from_slice(&[l2, l1, l0, kind, flags, s3, s2, s1, s0]);
}

/// Sets the length of the frame whose head starts at `at`.
#[inline]
pub(crate) fn patch_len(out: &mut [u8], at: usize, len: usize) {
    let [_, l2, l1, l0] = (len as u32).to_be_bytes();
    out[at] = l2;
    out[at + 1] = l1;
    out[at + 2] = l0;
}

/// RST_STREAM, RFC 9113 §6.4.
pub(crate) fn write_reset(out: &mut Vec<u8>, stream: u32, reason: u32) {
    write_head(out, 4, kind::RST_STREAM, 0, stream);
    out.extend_from_slice(&reason.to_be_bytes());
}

/// WINDOW_UPDATE, RFC 9113 §6.9; `increment` is 1 to 2³¹−1.
pub(crate) fn write_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    write_head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// PING, RFC 9113 §6.7.
pub(crate) fn write_ping(out: &mut Vec<u8>, payload: u64, ack: bool) {
    write_head(out, 8, kind::PING, if ack { flag::ACK } else { 0 }, 0);
    out.extend_from_slice(&payload.to_be_bytes());
}

/// GOAWAY without debug data, RFC 9113 §6.8.
pub(crate) fn write_goaway(out: &mut Vec<u8>, last_stream: u32, reason: u32) {
    write_head(out, 8, kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&reason.to_be_bytes());
}

/// SETTINGS, RFC 9113 §6.5.
pub(crate) fn write_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    write_head(out, settings.len() * 6, kind::SETTINGS, 0, 0);
    for &(id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// The acknowledgement of SETTINGS, RFC 9113 §6.5.3.
pub(crate) fn write_settings_ack(out: &mut Vec<u8>) {
    write_head(out, 0, kind::SETTINGS, flag::ACK, 0);
}

/// The big-endian u32 at `at`; the caller has checked the length.
#[inline]
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_as_written() {
        let mut out = Vec::new();
        write_head(&mut out, 0x01_02_03, kind::HEADERS, 0x25, 0x7fff_fffe);
        let head = Head::read(out[..].try_into().unwrap());
        assert_eq!(
            head,
            Head {
                len: 0x01_02_03,
                kind: kind::HEADERS,
                flags: 0x25,
                stream: 0x7fff_fffe
            }
        );
        assert!(head.has(flag::PRIORITY) && !head.has(flag::PADDED));
        patch_len(&mut out, 0, 7);
        assert_eq!(Head::read(out[..].try_into().unwrap()).len, 7);
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        let head = Head::read(&[0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(head.stream, MAX_ID);
    }

    #[test]
    fn small_frames_have_their_layout() {
        let mut out = Vec::new();
        write_reset(&mut out, 3, 8);
        assert_eq!(out, [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8]);
        out.clear();
        write_goaway(&mut out, 5, 1);
        assert_eq!(out, [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1]);
        out.clear();
        write_settings(&mut out, &[(3, 100)]);
        assert_eq!(out, [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        out.clear();
        write_settings_ack(&mut out);
        assert_eq!(out, [0, 0, 0, 4, 1, 0, 0, 0, 0]);
        out.clear();
        write_ping(&mut out, 0x0102, true);
        assert_eq!(out, [0, 0, 8, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        out.clear();
        write_window_update(&mut out, 0, 9);
        assert_eq!(out, [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    }
}
