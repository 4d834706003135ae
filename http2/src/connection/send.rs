//! The calls that send.
//!
//! Heads and trailers are encoded at once, since HPACK ties a block to its place in the output;
//! only `open` waits for `flush`, so that a cancelled stream can vanish without a trace. Data goes
//! straight into the output when nothing stands before it: see `flush.rs`.

use std::time::Instant;

use super::{Connection, OpenError, Role, flush::is_joined};
use crate::{
    error::Reason,
    frame::{self, MAX_ID, flag, kind},
    headers::Headers,
    stock,
    stream::{Closed, Handle, State, Stream},
};

impl Connection {
    /// Client role: opens a stream. The id is fixed now; the block is encoded at the next
    /// [`flush`](Self::flush), so a stream that is reset before then leaves no trace on the wire.
    ///
    /// # Errors
    /// Why not now, with the headers back.
    pub fn open(
        &mut self,
        headers: Headers,
        end_stream: bool,
        key: u32,
    ) -> Result<u32, (OpenError, Headers)> {
        if let Err(e) = self.may_open() {
            return Err((e, headers));
        }
        let id = self.next_id;
        self.next_id += 2;
        let mut s = self.new_stream(id, key, State::Opening);
        s.finished = end_stream;
        let at = self.streams.insert(s);
        self.opening.push(at, headers);
        Ok(id)
    }

    /// Whether [`open`](Self::open) would succeed now.
    pub fn can_open(&self) -> bool {
        self.may_open().is_ok()
    }

    /// Server role: a response head, after any number of 1xx heads. Ignored after the final head
    /// and for streams that are gone; a 1xx head can't end the stream.
    pub fn send_headers(&mut self, stream: u32, headers: &Headers, end_stream: bool) {
        let Some(at) = self.sendable(stream) else {
            return;
        };
        let informational = headers.is_informational();
        let end = end_stream && !informational;
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        if self.role == Role::Client || s.head_sent {
            return;
        }
        s.head_sent = !informational;
        s.finished = end;
        s.headers_at = s.headers_at.min(self.out.position());
        self.write_block(stream, headers, end);
        if end {
            self.local_end(at);
        }
    }

    /// Trailers, both roles: after everything queued, with END_STREAM.
    pub fn send_trailers(&mut self, stream: u32, headers: &Headers) {
        let Some(at) = self.sendable(stream) else {
            return;
        };
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        if s.state != State::Opening && !s.head_sent {
            return;
        }
        if s.state != State::Opening && !s.queue.is_empty() && !self.backlog {
            // Only joined so far: goes now, and the trailers with it.
            self.pump(at, &[], usize::MAX, false);
        }
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        s.finished = true;
        if s.state == State::Opening || !s.queue.is_empty() {
            let waiting = stock::copy(headers);
            self.opening.blocks += waiting.memory();
            s.trailers = Some(waiting);
            return;
        }
        self.write_block(stream, headers, true);
        self.local_end(at);
    }

    /// Payload. What windows and `output_limit` allow is framed; the rest is queued in the engine
    /// and told later by [`take_sent`](Self::take_sent), as are pieces below a KiB that wait to be
    /// joined with what the same turn brings. Returns the bytes that were framed at once. Empty
    /// with `end_stream: false`: nothing happens.
    ///
    /// Returns 0 and keeps nothing if the stream is gone or finished, or (server role) has no head yet.
    pub fn send_data(
        &mut self,
        stream: u32,
        bytes: &[u8],
        end_stream: bool,
        now: Instant,
    ) -> usize {
        self.now = now;
        let Some(at) = self.sendable(stream) else {
            return 0;
        };
        let Some(s) = self.streams.get_mut(at) else {
            return 0;
        };
        let opening = s.state == State::Opening;
        if (!opening && !s.head_sent) || (bytes.is_empty() && !end_stream) {
            return 0;
        }
        s.finished = end_stream;
        if bytes.is_empty() && s.queue.is_empty() {
            if !opening {
                // The end alone: an empty DATA frame needs no window (RFC 9113 §6.9.1).
                frame::write_head(self.out.frames(), 0, kind::DATA, flag::END_STREAM, stream);
                self.local_end(at);
            }
            return 0;
        }
        // What is only joined isn't a matter for `pump`: small messages come one by one.
        let joined = !end_stream && is_joined(&self.peer, s.queue.len(), bytes.len());
        let framed = if opening || self.backlog || joined {
            0
        } else {
            self.pump(at, bytes, usize::MAX, !end_stream)
        };
        let rest = &bytes[framed..];
        if let Some(s) = self.streams.get_mut(at)
            && (!s.queue.is_empty() || !rest.is_empty())
        {
            s.queue.push(rest);
            self.queued += rest.len();
            s.waits_since.get_or_insert(now);
            if !opening && s.send.available() > 0 {
                self.make_ready(at);
            }
        }
        framed
    }

    /// Takes back the last `bytes` of what [`send_data`](Self::send_data) was given for this stream,
    /// if all of them are still queued and no end stands behind them; says whether.
    pub fn unqueue(&mut self, stream: u32, bytes: usize) -> bool {
        let Some(s) = self.streams.by_id_mut(stream) else {
            return false;
        };
        if s.finished || s.queue.len() < bytes {
            return false;
        }
        s.queue.unpush(bytes);
        if s.queue.is_empty() {
            s.waits_since = None;
        }
        self.queued -= bytes;
        true
    }

    /// Ends a stream both ways. Unknown or ended streams are ignored. Client role: towards a
    /// stream that the peer may not have accepted yet the frame may wait for earlier ones; for
    /// the owner the stream is gone at once all the same.
    pub fn reset(&mut self, stream: u32, reason: Reason) {
        if self.dead.is_some() {
            return;
        }
        let Some(at) = self.streams.find(stream) else {
            return;
        };
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        if s.doomed.is_some() {
            return;
        }
        if s.state == State::Opening {
            if let Some(head) = self.opening.take(at) {
                stock::recycle(head);
            }
            self.remove(at, None);
            return;
        }
        let pair = self.role == Role::Client && !s.head_received && self.cancels.is_pair(stream);
        if pair && !self.cancels.may_send() {
            s.doomed = Some(reason);
            s.finished = true;
            s.waits_since = None;
            let swallowed = std::mem::take(&mut s.uncredited);
            self.queued -= s.queue.clear();
            self.opening.blocks -= s.blocks();
            s.trailers = None;
            s.large_head = None;
            self.recv.give(swallowed as usize);
            self.doomed += 1;
            self.cancels.wait(at);
            return;
        }
        if pair {
            self.cancels.sent(stream);
        }
        if reason == Reason::REFUSED_STREAM {
            self.limits.stream_refused();
        }
        self.write_reset(at, reason);
    }

    /// Client role: a stream for which [`cancel_waits`](Self::cancel_waits) was true and isn't any more, one per call, in
    /// no order. Each is told once.
    pub fn take_cancelled(&mut self) -> Option<u32> {
        self.cancels.take_gone()
    }

    /// A stream as its HEADERS find it.
    pub(super) fn new_stream(&self, id: u32, key: u32, state: State) -> Stream {
        Stream::new(
            id,
            key,
            state,
            crate::flow::RecvWindow::new(self.config.stream_window.min(MAX_ID)),
            crate::flow::SendWindow::new(self.peer.initial_window),
        )
    }

    /// Writes RST_STREAM for a stream and takes it out; see [`remove`](Self::remove).
    pub(super) fn write_reset(&mut self, at: Handle, reason: Reason) -> Option<u32> {
        frame::write_reset(self.out.frames(), at.id, reason.0);
        self.limits.stream_cancelled();
        self.remove(at, Some(Closed::ByUs))
    }

    /// Sends resets that waited and may go now.
    pub(super) fn release_cancels(&mut self) {
        while let Some(at) = self.cancels.next() {
            let Some(s) = self.streams.get(at) else {
                continue;
            };
            let Some(reason) = s.doomed else { continue };
            if !s.head_received && self.cancels.is_pair(at.id) {
                self.cancels.sent(at.id);
            }
            self.write_reset(at, reason);
        }
    }

    fn may_open(&self) -> Result<(), OpenError> {
        if self.role == Role::Server || self.going_away() || self.used_up() {
            Err(OpenError::GoingAway)
        } else if !self.peer_ready {
            Err(OpenError::NotReady)
        } else if self.streams.len() >= self.peer.max_concurrent_streams as usize {
            Err(OpenError::Full)
        } else {
            Ok(())
        }
    }

    /// A stream that still takes something from the owner.
    fn sendable(&self, stream: u32) -> Option<Handle> {
        if self.dead.is_some() {
            return None;
        }
        let at = self.streams.find(stream)?;
        self.streams.get(at).filter(|s| !s.finished)?;
        Some(at)
    }
}
