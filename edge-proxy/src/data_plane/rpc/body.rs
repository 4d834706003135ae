//! The request's body as far as another attempt may need it, and the client's credit for it.

use http2::stock;

/// What was received of the body, until it is certain that no other attempt comes.
///
/// While an RPC waits for a connection everything that comes is held here: no credit is given for it, so it is at most
/// a stream window. Once a stream is open the bytes go on, and a copy stays until the first frame of a response or
/// until it grows too large. Credit is counted by position: what a second attempt sends again was paid for already.
#[derive(Debug)]
pub(super) struct Replay {
    kept: Vec<u8>,
    /// `kept` is everything that was received.
    whole: bool,
    /// At most this much is kept once the request is under way.
    limit: usize,
    /// Bytes framed in this attempt.
    sent: u64,
    /// Bytes that the client has credit for.
    credited: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            whole: true,
            limit: DEFAULT_LIMIT,
            sent: 0,
            credited: 0,
        }
    }
}

impl Replay {
    /// The cluster's `max_replay_bytes`.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Nothing has gone anywhere: everything has to be kept.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        if self.kept.capacity() == 0 && !bytes.is_empty() {
            self.kept = stock::chunk_for(bytes.len());
        }
        if self.kept.capacity() - self.kept.len() < bytes.len() {
            // All of it counts as held: no more is taken in advance than what a turn may bring.
            let most = self.limit.saturating_sub(self.kept.len());
            let more = self.kept.len().min(GROWTH).min(most).max(bytes.len());
            self.kept.reserve_exact(more);
        }
        self.kept.extend_from_slice(bytes);
    }

    /// `bytes` go on now.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if self.whole {
            if self.kept.len() + bytes.len() <= self.limit {
                self.hold(bytes);
            } else {
                self.release();
            }
        }
    }

    /// What was held has gone on: it is kept only within the limit.
    pub(super) fn bound(&mut self) {
        if self.kept.len() > self.limit {
            self.release();
        }
    }

    /// No other attempt will come.
    pub(super) fn release(&mut self) {
        self.whole = false;
        stock::give_chunk(std::mem::take(&mut self.kept));
    }

    /// Another attempt begins at the first byte.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// `bytes` more were framed; returns what the client gets credit for.
    pub(super) fn forwarded(&mut self, bytes: usize) -> usize {
        self.sent += bytes as u64;
        let credit = self.sent.saturating_sub(self.credited);
        self.credited += credit;
        credit as usize
    }

    /// Everything that was received is still here.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The memory that it takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.kept.capacity()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.kept
    }
}

/// A copy doubles until it grows by this.
const GROWTH: usize = 64 * 1024;

/// As the configuration's default.
const DEFAULT_LIMIT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_second_attempt_sends_again_is_credited_once() {
        let mut replay = Replay::default();
        replay.keep(b"0123456789");
        assert_eq!(replay.forwarded(4), 4);
        replay.rewind();
        assert_eq!(replay.forwarded(3), 0);
        assert_eq!(replay.forwarded(7), 6);
        assert_eq!(replay.forwarded(5), 5);
    }

    #[test]
    fn a_body_above_the_limit_is_given_back_whole() {
        let mut replay = Replay::default();
        replay.set_limit(8);
        replay.keep(b"01234567");
        assert!(replay.is_whole());
        replay.keep(b"8");
        assert!(!replay.is_whole());
        assert!(replay.is_empty());
        replay.keep(b"9");
        assert!(replay.is_empty());
    }

    #[test]
    fn what_waits_for_a_connection_is_held_whatever_the_limit() {
        let mut replay = Replay::default();
        replay.set_limit(2);
        replay.hold(b"0123456789");
        assert!(replay.is_whole());
        assert_eq!(replay.bytes().len(), 10);
        replay.bound();
        assert!(!replay.is_whole());
    }
}
