//! What an owner may ask of a connection: for deadlines, accounts and decisions that are its own.

use std::time::Instant;

use super::{Blocked, BlockedBy, Connection, OVERFULL, Role, Unread, Windows};
use crate::{
    frame::MAX_ID,
    stream::{State, Stream},
};

impl Connection {
    /// Whether no stream is live. Streams whose reset waits don't count.
    pub fn is_empty(&self) -> bool {
        self.stream_count() == 0
    }

    /// The number of live streams.
    pub fn stream_count(&self) -> usize {
        self.streams.len() - self.doomed as usize
    }

    /// The owner's numbers of all live streams, in no order.
    pub fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        self.streams
            .iter()
            .filter(|s| s.doomed.is_none())
            .map(|s| s.key)
    }

    /// Client role: whether this stream was reset and is still open for the peer, since its frame waits.
    pub fn cancel_waits(&self, stream: u32) -> bool {
        self.streams
            .by_id(stream)
            .is_some_and(|s| s.doomed.is_some())
    }

    /// Client role: the number of streams for which [`cancel_waits`](Self::cancel_waits) is true.
    pub fn cancels_waiting(&self) -> usize {
        self.doomed as usize
    }

    /// The peer's SETTINGS_MAX_CONCURRENT_STREAMS; `u32::MAX` if it named none.
    pub fn peer_max_streams(&self) -> u32 {
        self.peer.max_concurrent_streams
    }

    /// Whether a GOAWAY went either way: no new streams.
    pub fn going_away(&self) -> bool {
        self.dead.is_some() || self.peer_goaway.is_some() || self.our_goaway.is_some()
    }

    /// Client role: whether every stream number was given, so that another connection has to take its place (RFC 9113
    /// §5.1.1).
    pub fn used_up(&self) -> bool {
        self.role == Role::Client && self.next_id > MAX_ID
    }

    /// Client role: leaves out stream numbers up to `next`, an odd one, as RFC 9113 §5.1.1 allows. For tests of what comes
    /// after a thousand million RPCs.
    pub fn skip_to(&mut self, next: u32) {
        self.next_id = self.next_id.max(next | 1);
    }

    /// Whether the peer has ended its half of this stream. True for streams that are gone.
    pub fn peer_closed(&self, stream: u32) -> bool {
        self.streams.by_id(stream).is_none_or(Stream::remote_ended)
    }

    /// Whether our half of this stream has ended: END_STREAM is in the output. True for streams
    /// that are gone.
    pub fn send_closed(&self, stream: u32) -> bool {
        self.streams
            .by_id(stream)
            .is_none_or(|s| s.state == State::HalfClosedLocal)
    }

    /// Whether any byte of our HEADERS of this stream left through [`consume`](Self::consume).
    /// True for streams that are gone.
    pub fn headers_left(&self, stream: u32) -> bool {
        self.streams
            .by_id(stream)
            .is_none_or(|s| s.headers_at < self.out.left())
    }

    /// Bytes of this stream that are held back.
    pub fn queued(&self, stream: u32) -> usize {
        self.streams.by_id(stream).map_or(0, |s| s.queue.len())
    }

    /// Bytes held back in the streams' queues.
    pub fn pending_bytes(&self) -> usize {
        self.queued
    }

    /// Client role: whether a stream that `open` queued would be on the wire, had the last [`flush`](Self::flush) had room
    /// in the output. After [`consume`](Self::consume) an owner flushes again for it, as for
    /// [`pending_bytes`](Self::pending_bytes): nobody else may have a reason to.
    #[inline]
    pub fn opens_waiting(&self) -> bool {
        !self.opening.is_empty()
    }

    /// Memory that the output takes, frames and header blocks whose end hasn't come, and blocks that wait: heads for their
    /// turn, trailers for a window.
    pub fn buffered(&self) -> usize {
        let open = self.open_block.as_ref().map_or(0, |block| block.kept());
        self.out.memory() + self.partial.len() + open + self.opening.blocks
    }

    /// Since when this stream's queued bytes wait for a window or the output.
    pub fn blocked(&self, stream: u32) -> Option<Instant> {
        self.streams.by_id(stream)?.waits_since
    }

    /// Since when this stream's queued bytes wait for a window that is shut, its own or the connection's: `None` while they
    /// only wait for the output, which is the socket's matter, or for the turns of other streams.
    pub fn window_shut(&self, stream: u32) -> Option<Instant> {
        let s = self.streams.by_id(stream)?;
        let since = s.waits_since?;
        if s.send.available() == 0 {
            Some(since)
        } else if self.send.available() == 0 {
            // It may have waited for its turn while the window was open.
            Some(since.max(self.send_shut))
        } else {
            None
        }
    }

    /// All streams whose queued bytes wait, in no order.
    pub fn blocked_streams(&self) -> impl Iterator<Item = Blocked> + '_ {
        self.streams.iter().filter_map(|s| {
            let by = if s.send.available() == 0 {
                BlockedBy::StreamWindow
            } else if self.send.available() == 0 {
                BlockedBy::ConnectionWindow
            } else {
                BlockedBy::Output
            };
            Some(Blocked {
                stream: s.id,
                key: s.key,
                since: s.waits_since?,
                by,
            })
        })
    }

    /// The stream whose queued bytes have waited longest, if any has waited at all by `now`.
    pub fn oldest_blocked(&self, now: Instant) -> Option<Blocked> {
        if self.queued == 0 {
            return None;
        }
        self.blocked_streams()
            .filter(|b| b.since < now)
            .min_by_key(|b| b.since)
    }

    /// The live stream of which the peer's application has left most unread, by the credit that it has given; `None`: it
    /// has read all, as far as can be known.
    pub fn most_unread(&self) -> Option<Unread> {
        let begins_with = self.peer.initial_window as usize;
        let live = self.streams.iter().filter(|s| s.doomed.is_none());
        let unread = live.map(|s| Unread {
            stream: s.id,
            key: s.key,
            bytes: begins_with.saturating_sub(s.send.available()),
        });
        let some = unread.filter(|unread| unread.bytes > 0);
        some.max_by_key(|unread| unread.bytes)
    }

    /// Since when our first SETTINGS wait for their acknowledgement.
    pub fn settings_unacked_since(&self) -> Option<Instant> {
        self.settings_since
    }

    /// Client role: since when streams for which [`cancel_waits`](Self::cancel_waits) is true wait for an acknowledgement:
    /// that of later SETTINGS, a barrier behind resets that has left through [`consume`](Self::consume), or that of our first
    /// ones, before which no barrier is sent. An owner ends a connection whose peer is deaf.
    #[inline]
    pub fn barrier_unacked_since(&self) -> Option<Instant> {
        self.cancels.unacked_since()
    }

    /// Client role: how often the server has reset a stream for what it calls a fault of ours (PROTOCOL_ERROR,
    /// FLOW_CONTROL_ERROR, STREAM_CLOSED), be it one that is gone. Servers on the crate `h2` end a connection at the 1025th.
    #[inline]
    pub fn complaints(&self) -> u32 {
        self.complaints.into()
    }

    /// Since when a header block is incomplete.
    pub fn header_block_since(&self) -> Option<Instant> {
        self.header_since
    }

    /// The connection's own windows (not a stream's), for who checks that nothing of them gets lost.
    pub fn windows(&self) -> Windows {
        let (open, unannounced) = self.recv.parts();
        Windows {
            size: self.config.receive_window(),
            open,
            unannounced,
            send: self.send.available(),
            credits: self.credits,
        }
    }

    /// Whether the output is so full of heads, trailers and answers that the owner should read no
    /// more input until the socket has taken some: data alone never gets there.
    ///
    /// Never in the client role. What a server makes us put out is bounded all the same: two thousand acknowledgements
    /// (`answer`), a RST_STREAM for each stream that we opened, a WINDOW_UPDATE for half a window of what it sent, and
    /// what the budget of provoked errors allows. And a server may read nothing until it could write, as those on the
    /// crate `h2` do with an acknowledgement to write: two that wait for each other would wait for ever.
    pub fn overfull(&self) -> bool {
        self.role == Role::Server && self.out.len() >= self.config.output_limit + OVERFULL
    }
}
