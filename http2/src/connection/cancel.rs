//! Client role: how fast streams may be cancelled that the peer may not have accepted yet.
//!
//! Servers built on `h2` end the whole connection at the 21st RST_STREAM that they read before
//! they accepted its stream, and one connection carries many clients' RPCs. So at most
//! [`UNCONFIRMED`] HEADERS+RST pairs are under way; what confirms a pair is either the response
//! head of a later stream (servers accept in order) or the answer to a PING sent after the
//! reset. Further resets wait, their streams stay and swallow what comes. The PING is sent only
//! when a reset waits: `grpc` servers count PINGs without traffic as strikes.

use std::{collections::VecDeque, time::Instant};

use crate::stream::Handle;

/// The resets of one connection that aren't known to be harmless yet.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    /// The highest stream that the peer has answered.
    answered: u32,
    /// None before the first pair: a server's connections never have one.
    pairs: Option<Box<Pairs>>,
}

#[derive(Debug, Default)]
struct Pairs {
    /// Pairs under way: stream, and the number of the pair.
    unconfirmed: Vec<(u32, u64)>,
    /// Streams whose reset waits.
    waiting: VecDeque<Handle>,
    /// Streams whose reset waits no more, for `take_cancelled`.
    gone: Vec<u32>,
    /// Pairs ever sent.
    sent: u64,
    ping: Option<Ping>,
    /// PINGs ever sent.
    pings: u32,
}

/// The PING under way.
#[derive(Debug)]
struct Ping {
    payload: u64,
    /// The pairs sent before it.
    upto: u64,
    since: Instant,
}

impl Cancels {
    /// Whether a reset of `stream`, which has no response head yet, may reach the peer before it
    /// accepted the stream.
    pub(crate) fn is_pair(&self, stream: u32) -> bool {
        stream > self.answered
    }

    /// Whether another pair may go now.
    pub(crate) fn may_send(&self) -> bool {
        self.pairs.as_ref().is_none_or(|pairs| pairs.may_send())
    }

    /// A pair goes.
    pub(crate) fn sent(&mut self, stream: u32) {
        let pairs = self.pairs.get_or_insert_default();
        pairs.sent += 1;
        pairs.unconfirmed.push((stream, pairs.sent));
    }

    /// A reset has to wait.
    pub(crate) fn wait(&mut self, at: Handle) {
        self.pairs.get_or_insert_default().waiting.push_back(at);
    }

    /// A stream whose reset waited is gone.
    pub(crate) fn gone(&mut self, stream: u32) {
        if let Some(pairs) = &mut self.pairs {
            pairs.gone.push(stream);
        }
    }

    /// One of those, each once.
    pub(crate) fn take_gone(&mut self) -> Option<u32> {
        self.pairs.as_mut()?.gone.pop()
    }

    /// The next waiting reset, if it may go now.
    pub(crate) fn next(&mut self) -> Option<Handle> {
        let pairs = self.pairs.as_mut().filter(|pairs| pairs.may_send())?;
        pairs.waiting.pop_front()
    }

    /// The peer answered `stream`: it has accepted all streams up to it.
    #[inline]
    pub(crate) fn answered(&mut self, stream: u32) {
        self.answered = self.answered.max(stream);
        if let Some(pairs) = &mut self.pairs {
            pairs.unconfirmed.retain(|&(id, _)| id > stream);
        }
    }

    /// Gives memory back that only busy times need.
    pub(crate) fn shrink(&mut self) {
        if let Some(pairs) = &mut self.pairs {
            pairs.waiting.shrink_to_fit();
            pairs.gone.shrink_to_fit();
        }
    }

    /// The payload of a PING to send now, if resets wait and none is under way.
    pub(crate) fn ping(&mut self, now: Instant) -> Option<u64> {
        let pairs = self.pairs.as_mut()?;
        if pairs.waiting.is_empty() || pairs.ping.is_some() || pairs.may_send() {
            return None;
        }
        pairs.pings = pairs.pings.wrapping_add(1);
        let payload = ENGINE_PING | u64::from(pairs.pings);
        pairs.ping = Some(Ping {
            payload,
            upto: pairs.sent,
            since: now,
        });
        Some(payload)
    }

    /// Since when the answer to a PING is awaited.
    #[inline]
    pub(crate) fn unanswered_since(&self) -> Option<Instant> {
        Some(self.pairs.as_ref()?.ping.as_ref()?.since)
    }

    /// An answer to a PING: whether it was the engine's own.
    pub(crate) fn pong(&mut self, payload: u64) -> bool {
        let Some(pairs) = &mut self.pairs else {
            return false;
        };
        match pairs.ping.take_if(|ping| ping.payload == payload) {
            Some(Ping { upto, .. }) => {
                pairs.unconfirmed.retain(|&(_, n)| n > upto);
                true
            }
            None => false,
        }
    }
}

impl Pairs {
    fn may_send(&self) -> bool {
        self.unconfirmed.len() < UNCONFIRMED
    }
}

/// Pairs under way: half of what `h2` bears, since what one read of the peer's brings may be the
/// end of one batch and the beginning of the next.
pub(crate) const UNCONFIRMED: usize = 10;

/// The engine's own PINGs have this in their upper half; the owner's must not.
pub(crate) const ENGINE_PING: u64 = 0x68_32_63_61 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn unconfirmed(c: &Cancels) -> usize {
        c.pairs.as_ref().map_or(0, |pairs| pairs.unconfirmed.len())
    }

    fn full() -> Cancels {
        let mut c = Cancels::default();
        for i in 0..UNCONFIRMED as u32 {
            assert!(c.may_send());
            c.sent(2 * i + 1);
        }
        c
    }

    #[test]
    fn the_eleventh_waits_for_a_ping_sent_after_the_tenth() {
        let now = Instant::now();
        let mut c = full();
        assert_eq!(c.ping(now), None, "nothing waits");
        let at = Handle { slot: 0, id: 21 };
        c.wait(at);
        assert_eq!(c.next(), None);
        let ping = c.ping(now).unwrap();
        assert_eq!(c.ping(now), None, "one at a time");
        assert!(!c.pong(1) && c.next().is_none());
        assert_eq!(c.unanswered_since(), Some(now));
        assert!(c.pong(ping));
        assert_eq!(c.unanswered_since(), None);
        assert_eq!(c.next(), Some(at));
        assert_ne!(ping, {
            let mut c2 = c;
            for i in 0..UNCONFIRMED as u32 {
                c2.sent(100 + i);
            }
            c2.wait(at);
            c2.ping(now).unwrap()
        });
    }

    #[test]
    fn a_response_to_a_later_stream_confirms_earlier_pairs() {
        let mut c = full();
        c.answered(9);
        assert_eq!(unconfirmed(&c), UNCONFIRMED - 5);
        assert!(!c.is_pair(7) && c.is_pair(11));
        c.answered(1001);
        assert_eq!(unconfirmed(&c), 0);
    }

    #[test]
    fn a_ping_confirms_only_what_went_before_it() {
        let mut c = full();
        c.wait(Handle { slot: 0, id: 21 });
        let ping = c.ping(Instant::now()).unwrap();
        c.answered(3);
        c.sent(23);
        assert!(c.pong(ping));
        assert_eq!(unconfirmed(&c), 1);
    }
}
