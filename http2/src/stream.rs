//! The stream's states (RFC 9113 §5.1) and the slab that holds them.
//!
//! A stream is in the slab from its HEADERS (or `open`) to the end of both halves or a reset.
//! Of the ones that ended lately the cause is remembered in a small ring, since what a late frame
//! means depends on who ended the stream (RFC 9113 §5.1, "closed").

use std::{collections::VecDeque, time::Instant};

use slab::Slab;

use crate::{
    error::Reason,
    flow::{RecvWindow, SendWindow},
    headers::Headers,
    index::Index,
    queue::Queue,
};

/// A live stream's state. "Idle" and "closed" aren't states of a slab entry: a stream before its
/// HEADERS and after its end has none.
///
/// ```text
///                     open()  [client]
///        idle ─────────────────────────────► Opening ──── reset() ───► (no trace)
///         │                                     │
///         │ recv HEADERS  [server]              │ flush: HEADERS
///         ▼                                     ▼
///       ┌──────────────────────────────────────────┐
///       │                   Open                   │
///       └──────────────────────────────────────────┘
///         │ recv END_STREAM                     │ send END_STREAM
///         ▼                                     ▼
///   HalfClosedRemote                      HalfClosedLocal
///         │ send END_STREAM                     │ recv END_STREAM
///         └──────────────► closed ◄─────────────┘
///                            ▲
///      RST_STREAM either way, from any state; while enough cancels are unconfirmed,
///      a reset of ours waits in the same state as `doomed`  [client]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Client role: HEADERS aren't encoded yet.
    Opening,
    /// Both halves are open.
    Open,
    /// We sent END_STREAM.
    HalfClosedLocal,
    /// The peer sent END_STREAM.
    HalfClosedRemote,
}

/// How a stream ended that isn't in the slab any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// We sent RST_STREAM: what the peer had under way is dropped, on a budget.
    ByUs,
    /// The peer sent RST_STREAM.
    ByPeer,
    /// Both halves sent END_STREAM.
    Ended,
    /// So long ago that the cause is forgotten: as if by us.
    Forgotten,
    /// Skipped: a higher id was used first (RFC 9113 §5.1.1).
    NeverOpened,
}

/// A live stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    /// The owner's number.
    pub(crate) key: u32,
    pub(crate) state: State,
    pub(crate) recv: RecvWindow,
    /// Bytes delivered and not yet credited by the owner.
    pub(crate) uncredited: u32,
    pub(crate) send: SendWindow,
    /// Body bytes that content-length still promises; `None`: no content-length.
    pub(crate) content_left: Option<u64>,
    /// The content-length as announced, to tell an absent body from a short one.
    pub(crate) content_length: u64,
    /// Server role: fields of the request's head.
    pub(crate) fields: u32,
    /// The peer's final head has come (a request, or a response that isn't 1xx).
    pub(crate) head_received: bool,
    /// Our final head is encoded.
    pub(crate) head_sent: bool,
    /// Too large headers were told: further data and trailers are dropped and credited.
    pub(crate) deaf: bool,
    /// The owner's half is over: nothing more is taken from it.
    pub(crate) finished: bool,
    /// In the list of streams whose queue may have bytes to frame.
    pub(crate) in_ready: bool,
    /// In the list of streams with a WINDOW_UPDATE to send.
    pub(crate) in_updates: bool,
    /// A reset that waits for earlier ones to be confirmed.
    pub(crate) doomed: Option<Reason>,
    pub(crate) queue: Queue,
    /// What was kept of a head that is too large.
    pub(crate) large_head: Option<Headers>,
    /// Trailers that wait behind the queue.
    pub(crate) trailers: Option<Headers>,
    /// Position in all bytes ever put out where our HEADERS begin.
    pub(crate) headers_at: u64,
    /// Since when queued bytes wait without progress.
    pub(crate) waits_since: Option<Instant>,
}

impl Stream {
    pub(crate) fn new(id: u32, key: u32, state: State, recv: RecvWindow, send: SendWindow) -> Self {
        Self {
            id,
            key,
            state,
            recv,
            uncredited: 0,
            send,
            content_left: None,
            content_length: 0,
            fields: 0,
            head_received: false,
            head_sent: false,
            deaf: false,
            finished: false,
            in_ready: false,
            in_updates: false,
            doomed: None,
            queue: Queue::default(),
            large_head: None,
            trailers: None,
            headers_at: u64::MAX,
            waits_since: None,
        }
    }

    /// Memory of the blocks that it keeps.
    pub(crate) fn blocks(&self) -> usize {
        let blocks = [&self.trailers, &self.large_head].into_iter().flatten();
        blocks.map(Headers::memory).sum()
    }

    /// Whether the peer has ended its half.
    #[inline]
    pub(crate) fn remote_ended(&self) -> bool {
        self.state == State::HalfClosedRemote
    }

    /// Whether events of this stream are told.
    #[inline]
    pub(crate) fn audible(&self) -> bool {
        self.doomed.is_none() && !self.deaf
    }
}

/// All streams of a connection: the slab, the map from ids, the memory of ended ones.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    slab: Slab<Stream>,
    /// Where each is, by its id: consecutive ids are hashes that never collide. A peer whose ids do has the others'
    /// places looked at, as many as it may have streams.
    slots: Index,
    ended: VecDeque<(u32, Closed)>,
    /// The highest id that fell out of `ended`.
    forgotten: u32,
}

/// A place in the slab, with the id that it must still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) slot: u32,
    pub(crate) id: u32,
}

impl Streams {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    #[inline]
    pub(crate) fn find(&self, id: u32) -> Option<Handle> {
        let slot = self.slots.find(id, |_| true)?;
        Some(Handle { slot, id })
    }

    #[inline]
    pub(crate) fn get(&self, at: Handle) -> Option<&Stream> {
        self.slab.get(at.slot as usize).filter(|s| s.id == at.id)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, at: Handle) -> Option<&mut Stream> {
        self.slab
            .get_mut(at.slot as usize)
            .filter(|s| s.id == at.id)
    }

    #[inline]
    pub(crate) fn by_id(&self, id: u32) -> Option<&Stream> {
        self.get(self.find(id)?)
    }

    #[inline]
    pub(crate) fn by_id_mut(&mut self, id: u32) -> Option<&mut Stream> {
        self.get_mut(self.find(id)?)
    }

    pub(crate) fn insert(&mut self, stream: Stream) -> Handle {
        let id = stream.id;
        // A connection has at most a few hundred streams: a slot fits a u32.
        let slot = self.slab.insert(stream) as u32;
        self.slots.insert(id, slot);
        Handle { slot, id }
    }

    /// Takes a stream out; `cause` is remembered unless it left no trace on the wire.
    pub(crate) fn remove(&mut self, at: Handle, cause: Option<Closed>) -> Option<Stream> {
        self.get(at)?;
        self.slots.remove(at.id, at.slot);
        if let Some(cause) = cause {
            self.remember(at.id, cause);
        }
        self.slab.try_remove(at.slot as usize)
    }

    /// Notes how a stream ended (also for one that never got a slab entry).
    pub(crate) fn remember(&mut self, id: u32, cause: Closed) {
        if self.ended.len() == REMEMBERED
            && let Some((id, _)) = self.ended.pop_front()
        {
            self.forgotten = self.forgotten.max(id);
        }
        self.ended.push_back((id, cause));
    }

    /// How a stream ended whose id was passed already and which isn't live.
    pub(crate) fn cause(&self, id: u32) -> Closed {
        match self.ended.iter().rev().find(|(ended, _)| *ended == id) {
            Some(&(_, cause)) => cause,
            None if id <= self.forgotten => Closed::Forgotten,
            None => Closed::NeverOpened,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slab.iter().map(|(_, s)| s)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slab.iter_mut().map(|(_, s)| s)
    }

    /// Takes all streams out.
    pub(crate) fn take_all(&mut self) -> Slab<Stream> {
        self.slots = Index::default();
        std::mem::take(&mut self.slab)
    }

    /// Gives memory back that only busy times need: streams move to the front of the slab, for one at its end would keep all
    /// of it, and `handles`, all that there are of them, follow. Nothing is on its way any more for those that have ended.
    pub(crate) fn shrink<'a>(&mut self, handles: impl Iterator<Item = &'a mut Handle>) {
        let slots = &mut self.slots;
        let mut moved = false;
        self.slab.compact(|stream, from, to| {
            slots.remove(stream.id, from as u32);
            slots.insert(stream.id, to as u32);
            moved = true;
            true
        });
        if moved {
            for at in handles {
                // One whose stream is gone finds none, wherever it points to.
                *at = self.find(at.id).unwrap_or(*at);
            }
        }
        self.slots.shrink();
        let last = self.ended.iter().map(|(id, _)| *id).max();
        self.forgotten = self.forgotten.max(last.unwrap_or(0));
        self.ended = VecDeque::new();
    }
}

/// Ended streams whose cause is remembered. Late frames come within a round trip; older ones
/// are dropped as if the reset had been ours.
const REMEMBERED: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::DEFAULT_WINDOW;

    fn stream(id: u32) -> Stream {
        Stream::new(
            id,
            0,
            State::Open,
            RecvWindow::new(DEFAULT_WINDOW),
            SendWindow::new(DEFAULT_WINDOW),
        )
    }

    #[test]
    fn a_handle_does_not_reach_the_slot_s_next_stream() {
        let mut streams = Streams::default();
        let a = streams.insert(stream(1));
        assert!(streams.remove(a, Some(Closed::Ended)).is_some());
        let b = streams.insert(stream(3));
        assert_eq!(a.slot, b.slot);
        assert!(streams.get(a).is_none() && streams.get(b).is_some());
        assert!(streams.find(1).is_none() && streams.remove(a, None).is_none());
    }

    #[test]
    fn the_last_streams_of_many_move_to_the_front_and_their_handles_with_them() {
        let mut streams = Streams::default();
        let mut handles: Vec<_> = (0..100)
            .map(|i| streams.insert(stream(2 * i + 1)))
            .collect();
        for at in &handles[..97] {
            streams.remove(*at, Some(Closed::Ended));
        }
        streams.shrink(handles.iter_mut());
        assert!(streams.slab.capacity() < 10, "{}", streams.slab.capacity());
        assert_eq!(streams.ended.capacity(), 0);
        assert!(handles[..97].iter().all(|at| streams.get(*at).is_none()));
        for at in &handles[97..] {
            assert_eq!(streams.get(*at).map(|s| s.id), Some(at.id));
            assert_eq!(streams.find(at.id), Some(*at));
        }
        let new = streams.insert(stream(201));
        assert_eq!(streams.find(201), Some(new));
        assert!(streams.remove(handles[98], None).is_some());
        assert_eq!(streams.len(), 3);
        assert_eq!(streams.cause(1), Closed::Forgotten);
    }

    #[test]
    fn causes_are_remembered_then_forgotten_and_gaps_are_told_apart() {
        let mut streams = Streams::default();
        for id in [1, 5] {
            let at = streams.insert(stream(id));
            streams.remove(at, Some(Closed::ByPeer));
        }
        assert_eq!(streams.cause(1), Closed::ByPeer);
        assert_eq!(streams.cause(3), Closed::NeverOpened);
        for i in 0..REMEMBERED as u32 {
            streams.remember(7 + 2 * i, Closed::Ended);
        }
        assert_eq!(streams.cause(1), Closed::Forgotten);
        assert_eq!(streams.cause(5), Closed::Forgotten);
        assert_eq!(streams.cause(7), Closed::Ended);
    }
}
