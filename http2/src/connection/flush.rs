//! How what the calls left becomes frames: whose turn it is, how much goes, in what shape.
//!
//! Data has to wait for a window, for the output limit, for streams whose turn comes first, or
//! because it is small: small pieces wait for the end of the turn and become one DATA frame, since
//! servers count small frames as an attack (h2 ends a connection over a hundred empty ones) and
//! each costs nine bytes and a wake-up. Streams take turns of one frame, so that one that has much
//! to send holds nobody up.

use std::time::Instant;

use super::{Connection, Sent};
use crate::{
    frame::{self, HEAD, flag, kind},
    headers::Headers,
    settings::Peer,
    stock,
    stream::{Handle, State},
};

impl Connection {
    /// Frames all that may go: opens, queued data (fair between streams), window updates. Call
    /// once at the end of a turn and after the socket took bytes; then write
    /// [`output`](Self::output).
    pub fn flush(&mut self, now: Instant) {
        self.now = now;
        if self.dead.is_some() {
            return;
        }
        self.flush_updates();
        self.flush_opens();
        self.flush_queues();
        let end = self.out.position() + HEAD as u64;
        if self.cancels.raise(self.settings_since.is_none(), end, now) {
            frame::write_settings(self.out.frames(), &[]);
        }
    }

    /// What left the streams' queues for the output, one entry per call, in no order.
    pub fn take_sent(&mut self) -> Option<Sent> {
        self.sent.pop()
    }

    fn flush_updates(&mut self) {
        let (connection, stream) = (self.config.receive_window(), self.config.stream_window);
        if self.recv.due_shared(connection, stream) {
            frame::write_window_update(self.out.frames(), 0, self.recv.announce());
        }
        for i in 0..self.updates.len() {
            let at = self.updates[i];
            let Some(s) = self.streams.get_mut(at) else {
                continue;
            };
            s.in_updates = false;
            if !s.remote_ended() && s.doomed.is_none() {
                frame::write_window_update(self.out.frames(), at.id, s.recv.announce());
            }
        }
        self.updates.clear();
    }

    fn flush_opens(&mut self) {
        while !self.opening.is_empty() {
            if self.out.len() >= self.config.output_limit {
                return;
            }
            let Some((at, head)) = self.opening.pop() else {
                return;
            };
            let position = self.out.position();
            let Some(s) = self.streams.get_mut(at) else {
                continue;
            };
            let empty = s.queue.is_empty();
            let end = s.finished && empty && s.trailers.is_none();
            s.state = State::Open;
            s.head_sent = true;
            s.headers_at = position;
            self.write_block(at.id, &head, end);
            stock::recycle(head);
            if end {
                self.local_end(at);
            } else if self.backlog && !empty {
                self.make_ready(at);
            } else {
                // One turn at once, so that a small request's frames lie side by side. Trailers without data need no turn:
                // they wait for no window, and nobody would flush for them.
                self.pump(at, &[], 1, false);
                self.wait_for_turn(at);
            }
        }
    }

    fn flush_queues(&mut self) {
        while let Some(&at) = self.ready.front() {
            if self.out.len() >= self.config.output_limit || self.send.available() == 0 {
                break;
            }
            self.ready.pop_front();
            let Some(s) = self.streams.get_mut(at) else {
                continue;
            };
            s.in_ready = false;
            self.pump(at, &[], 1, false);
            self.wait_for_turn(at);
        }
        self.backlog = !self.ready.is_empty();
    }

    /// Queues the stream for another turn, if it has bytes that its own window allows.
    fn wait_for_turn(&mut self, at: Handle) {
        if self
            .streams
            .get(at)
            .is_some_and(|s| !s.queue.is_empty() && s.send.available() > 0)
        {
            self.make_ready(at);
        }
    }

    /// Frames the stream's queue, then `bytes`, in at most `frames` frames, as far as windows and
    /// output allow; then the trailers that wait, if all has gone. `join`: a rest below
    /// [`SMALL`] stays for the end of the turn, or for a full frame. Returns how many of `bytes` went.
    pub(super) fn pump(&mut self, at: Handle, bytes: &[u8], frames: usize, join: bool) -> usize {
        let Some(s) = self.streams.get_mut(at) else {
            return 0;
        };
        let max_frame = most_in_frame(&self.peer);
        let mut rest = bytes;
        let mut from_queue = 0;
        let mut ended = false;
        for _ in 0..frames {
            let have = s.queue.len() + rest.len();
            let joins = join && is_joined(&self.peer, s.queue.len(), rest.len());
            if have == 0 || joins || self.out.len() >= self.config.output_limit {
                break;
            }
            let window = s.send.available().min(self.send.available());
            let n = have.min(max_frame).min(window);
            if n == 0 {
                break;
            }
            ended = n == have && s.finished && s.trailers.is_none();
            let flags = if ended { flag::END_STREAM } else { 0 };
            let out = self.out.frames();
            frame::write_head(out, n, kind::DATA, flags, at.id);
            let queued = n.min(s.queue.len());
            s.queue.pop(queued, out);
            from_queue += queued;
            let (now, later) = rest.split_at(n - queued);
            out.extend_from_slice(now);
            rest = later;
            s.send.take(n);
            self.send.take(n);
            // A frame is no longer than `SHARE`.
            self.send_brought = self.send_brought.saturating_add(n as u32);
            // A byte of credit now and then would keep all that wait from ever having waited long.
            let waiting = self.queued - from_queue + rest.len();
            if self.send.available() == 0 && self.send_brought as usize >= waiting.min(WORTH) {
                self.send_shut = self.now;
                self.send_brought = 0;
            }
            self.limits.data_sent(n, n == have);
        }
        let went = bytes.len() - rest.len();
        self.queued -= from_queue;
        if s.queue.is_empty() {
            s.waits_since = None;
        } else if from_queue > 0 {
            s.waits_since = Some(self.now);
        }
        let (key, empty) = (s.key, s.queue.is_empty());
        if ended {
            self.local_end(at);
        } else if empty && rest.is_empty() {
            ended = self.send_waiting_trailers(at);
        }
        // What went at once is the caller's to know.
        if from_queue > 0 || (ended && bytes.is_empty()) {
            match self.sent.last_mut() {
                Some(last) if last.stream == at.id => {
                    last.bytes += from_queue;
                    last.end_stream |= ended;
                }
                _ => self.sent.push(Sent {
                    stream: at.id,
                    key,
                    bytes: from_queue,
                    end_stream: ended,
                }),
            }
        }
        went
    }

    /// Whether there were any.
    fn send_waiting_trailers(&mut self, at: Handle) -> bool {
        let Some(trailers) = self.streams.get_mut(at).and_then(|s| s.trailers.take()) else {
            return false;
        };
        self.opening.blocks -= trailers.memory();
        self.write_block(at.id, &trailers, true);
        stock::recycle(trailers);
        self.local_end(at);
        true
    }

    /// HEADERS, and CONTINUATION if the block is larger than a frame (RFC 9113 §4.3).
    pub(super) fn write_block(&mut self, stream: u32, headers: &Headers, end_stream: bool) {
        let max = self.peer.max_frame;
        let out = self.out.frames();
        let at = out.len();
        let end = if end_stream { flag::END_STREAM } else { 0 };
        frame::write_head(out, 0, kind::HEADERS, end | flag::END_HEADERS, stream);
        self.encoder.encode(headers, out);
        let len = out.len() - at - HEAD;
        if len <= max {
            frame::patch_len(out, at, len);
            return;
        }
        // Rare: the block is cut, and what is beyond the first frame written again.
        let rest = out.split_off(at + HEAD + max);
        frame::patch_len(out, at, max);
        out[at + FLAGS_AT] = end;
        let mut parts = rest.chunks(max).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_none() {
                flag::END_HEADERS
            } else {
                0
            };
            frame::write_head(out, part.len(), kind::CONTINUATION, flags, stream);
            out.extend_from_slice(part);
        }
    }
}

/// Whether `more` bytes behind `queued` ones stay for the end of the turn, or for a full frame.
#[inline]
pub(super) fn is_joined(peer: &Peer, queued: usize, more: usize) -> bool {
    more < SMALL && queued + more < most_in_frame(peer)
}

#[inline]
fn most_in_frame(peer: &Peer) -> usize {
    peer.max_frame.min(SHARE)
}

/// Pieces of data below this wait for the end of the turn to be joined.
const SMALL: usize = 1024;

/// The most that one stream gets in a frame, and so in its turn, whatever frames the peer takes.
const SHARE: usize = 64 * 1024;

/// Bytes of the connection's window that are worth having, if as many wait: a frame, as long as the peer doesn't ask for
/// larger ones (RFC 9113 §6.5.2).
const WORTH: usize = 16 * 1024;

/// Where a frame's head has its flags (RFC 9113 §4.1).
const FLAGS_AT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Role, connection::SPARE};

    #[test]
    fn streams_that_are_gone_do_not_pile_up_behind_a_shut_window() {
        let now = Instant::now();
        let mut c = Connection::new(Role::Server, Config::default(), now);
        let feed = |c: &mut Connection, kind, flags, stream, payload: &[u8]| {
            let mut bytes = Vec::new();
            if kind == kind::SETTINGS {
                bytes.extend_from_slice(frame::PREFACE);
            }
            frame::write_head(&mut bytes, payload.len(), kind, flags, stream);
            bytes.extend_from_slice(payload);
            let mut input = &bytes[..];
            while c.receive(&mut input, now).expect("no error").is_some() {}
        };
        feed(&mut c, kind::SETTINGS, 0, 0, &[]);
        let head = Headers::from_iter([(":status", "200")]);
        let answered = |c: &mut Connection, stream, bytes: &[u8]| {
            // POST, http, / (RFC 7541 appendix A).
            let flags = flag::END_HEADERS | flag::END_STREAM;
            feed(c, kind::HEADERS, flags, stream, &[0x83, 0x86, 0x84]);
            c.send_headers(stream, &head, false);
            c.send_data(stream, bytes, false, now);
            c.flush(now);
            c.consume(c.output().len());
        };
        answered(&mut c, 1, &[0; 65_536]);
        answered(&mut c, 3, b"it waits");
        assert_eq!(c.windows().send, 0);
        for number in 2..10_000 {
            let stream = 2 * number + 1;
            answered(&mut c, stream, b"gone");
            let mut input = Vec::new();
            frame::write_reset(&mut input, stream, 8);
            assert!(c.receive(&mut &input[..], now).expect("no error").is_some());
            assert!(c.ready.len() <= 2 * 3 + SPARE);
        }
        // Those that are left have their turns.
        while c.take_sent().is_some() {}
        let mut input = Vec::new();
        frame::write_window_update(&mut input, 0, 100);
        assert_eq!(
            c.receive(&mut &input[..], now).map(|event| event.is_none()),
            Ok(true)
        );
        c.flush(now);
        let sent = c.take_sent().expect("data that waited");
        assert_eq!((sent.stream, sent.bytes), (3, 8));
        assert!(c.take_sent().is_none() && c.ready.is_empty());
    }
}
