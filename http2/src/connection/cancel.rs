//! Client role: how fast streams may be cancelled that the peer may not have accepted yet.
//!
//! Servers built on `h2` end the whole connection at the 21st RST_STREAM that they read before
//! they accepted its stream, and one connection carries many clients' RPCs. So at most
//! [`UNCONFIRMED`] HEADERS+RST pairs are under way; what confirms a pair is either the response
//! head of a later stream (servers accept in order) or the acknowledgement of a barrier, an empty
//! SETTINGS sent after the reset: servers read in order, and acknowledge at once (RFC 9113 §6.5.3).
//! That isn't yet to accept, which is why they are few.
//! Further resets wait, their streams stay and swallow what comes. A PING would do as well, but
//! each is a strike for `grpc` servers that have sent nothing since the last one, and at the third
//! they end the connection (`too_many_pings`); nobody counts SETTINGS that come one at a time.
//!
//! One SETTINGS frame of ours is unacknowledged at a time, the connection's first one included: an
//! acknowledgement doesn't say what it is of, and Go's net/http2 has one for all that it has read
//! while it was writing (`needToSendSettingsAck` in its `server.go`). That of the first one proves
//! nothing by itself, since no stream was open before it. Who never acknowledges is the owner's to
//! give up (`unacked_since`).

use std::{collections::VecDeque, time::Instant};

use crate::stream::Handle;

/// The resets of one connection that aren't known to be harmless yet.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    /// The highest stream that the peer has answered.
    answered: u32,
    /// None where there is no pair that matters: a server's connections never have one.
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
    barrier: Option<Barrier>,
    /// Since when one is wanted that can't be sent: our first SETTINGS aren't acknowledged.
    wanted: Option<Instant>,
}

/// The SETTINGS under way behind resets.
#[derive(Debug)]
struct Barrier {
    /// The pairs sent before it.
    upto: u64,
    /// Where it ends in the output.
    end: u64,
    /// When the socket had taken it: a peer that reads slowly has not been asked before.
    left: Option<Instant>,
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

    /// Streams whose reset waits.
    pub(crate) fn handles(&mut self) -> impl Iterator<Item = &mut Handle> {
        self.pairs.iter_mut().flat_map(|pairs| &mut pairs.waiting)
    }

    /// Gives memory back that only busy times need.
    pub(crate) fn shrink(&mut self) {
        self.pairs.take_if(|pairs| pairs.is_settled());
        if let Some(pairs) = &mut self.pairs {
            pairs.unconfirmed.shrink_to_fit();
            pairs.waiting.shrink_to_fit();
            pairs.gone.shrink_to_fit();
        }
    }

    /// Whether a barrier is to be sent now, which ends at `end` of the output: resets wait, and no
    /// SETTINGS are under way, no other barrier and (`settled`) not our first ones.
    pub(crate) fn raise(&mut self, settled: bool, end: u64, now: Instant) -> bool {
        let Some(pairs) = &mut self.pairs else {
            return false;
        };
        if pairs.waiting.is_empty() || pairs.barrier.is_some() || pairs.may_send() {
            pairs.wanted = None;
            return false;
        }
        if !settled {
            pairs.wanted.get_or_insert(now);
            return false;
        }
        pairs.wanted = None;
        pairs.barrier = Some(Barrier {
            upto: pairs.sent,
            end,
            left: None,
        });
        true
    }

    /// The socket has taken all of the output up to `position`.
    #[inline]
    pub(crate) fn left(&mut self, position: u64, now: Instant) {
        let pairs = self.pairs.as_mut();
        if let Some(barrier) = pairs.and_then(|pairs| pairs.barrier.as_mut())
            && position >= barrier.end
        {
            barrier.left.get_or_insert(now);
        }
    }

    /// Since when the acknowledgement of a barrier is awaited that has left, or one that allows it to
    /// be sent.
    #[inline]
    pub(crate) fn unacked_since(&self) -> Option<Instant> {
        let pairs = self.pairs.as_ref()?;
        match &pairs.barrier {
            Some(barrier) => barrier.left,
            None => pairs.wanted,
        }
    }

    /// SETTINGS after our first were acknowledged: whether a barrier was under way.
    pub(crate) fn acked(&mut self) -> bool {
        let Some(pairs) = &mut self.pairs else {
            return false;
        };
        let Some(Barrier { upto, .. }) = pairs.barrier.take() else {
            return false;
        };
        pairs.unconfirmed.retain(|&(_, n)| n > upto);
        true
    }
}

impl Pairs {
    /// Nothing of it is awaited: it is as if there had never been a pair.
    fn is_settled(&self) -> bool {
        let nothing = self.unconfirmed.is_empty() && self.waiting.is_empty();
        nothing && self.gone.is_empty() && self.barrier.is_none()
    }

    fn may_send(&self) -> bool {
        self.unconfirmed.len() < UNCONFIRMED
    }
}

/// Pairs under way. `h2` bears 20 that aren't accepted, and an acknowledgement says that they are
/// read: hyper's connection reads all that has come and acknowledges it, takes one stream, then reads
/// again. Interrupted in between for as long as we need for the next ones, it has them before it took
/// the first ones; three times as many must do, though those that it takes first are others' streams.
pub const UNCONFIRMED: usize = 6;

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn one_too_many_waits_for_a_barrier_sent_after_the_others() {
        let now = Instant::now();
        let mut c = full();
        assert!(!c.raise(true, 100, now), "nothing waits");
        let at = Handle { slot: 0, id: 21 };
        c.wait(at);
        assert_eq!(c.next(), None);
        assert!(!c.acked(), "of none");
        assert!(c.raise(true, 100, now));
        assert!(!c.raise(true, 200, now), "one at a time");
        assert_eq!(c.next(), None);
        c.left(99, now);
        assert_eq!(c.unacked_since(), None, "it hasn't left");
        let later = now + Duration::from_secs(1);
        c.left(100, later);
        c.left(200, later + Duration::from_secs(1));
        assert_eq!(c.unacked_since(), Some(later));
        assert!(c.acked());
        assert_eq!(c.unacked_since(), None);
        assert_eq!(c.next(), Some(at));
        assert!(!c.acked(), "once");
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
    fn a_barrier_confirms_only_what_went_before_it() {
        let mut c = full();
        c.wait(Handle { slot: 0, id: 21 });
        assert!(c.raise(true, 100, Instant::now()));
        c.answered(3);
        c.sent(23);
        assert!(c.acked());
        assert_eq!(unconfirmed(&c), 1);
    }
}
