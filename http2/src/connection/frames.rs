//! What each frame means, PRIORITY to WINDOW_UPDATE (RFC 9113 §6); `data.rs` and `blocks.rs` have
//! the ones that carry messages.

use super::{
    Connection, Event, Orphan, Role,
    receive::{error, protocol},
};
use crate::{
    error::{ConnectionError, Limit, Reason},
    frame::{self, Head, MAX_ID, flag, kind, u32_at},
    limits::calm,
    stream::{Closed, Handle, State},
};

/// What a frame leads to.
pub(super) type Outcome = Result<Option<Event<'static>>, ConnectionError>;

impl Connection {
    /// A whole frame that isn't DATA.
    pub(super) fn frame(&mut self, head: Head, payload: &[u8]) -> Outcome {
        match head.kind {
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.rst_stream(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.pinged(head, payload),
            kind::GOAWAY => self.goaway(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            // A client may never push, and we have told servers not to (RFC 9113 §8.4).
            kind::PUSH_PROMISE => protocol("PUSH_PROMISE (RFC 9113 §8.4)"),
            // `begin` sends no other type here.
            _ => Ok(None),
        }
    }

    /// RFC 9113 §5.1: a frame after the peer itself ended the stream.
    pub(super) fn closed_error(&mut self, stream: u32) -> Outcome {
        self.limits.provoked()?;
        frame::write_reset(self.out.frames(), stream, Reason::STREAM_CLOSED.0);
        self.streams.remember(stream, Closed::ByUs);
        Ok(None)
    }

    /// The peer broke a rule of one stream: RST_STREAM, and the owner is told.
    pub(super) fn stream_error(&mut self, at: Handle, reason: Reason) -> Outcome {
        let headers_left = self.headers_left(at.id);
        Ok(self.break_stream(at, reason)?.map(|key| Event::Reset {
            stream: at.id,
            key,
            reason,
            by_peer: false,
            unprocessed: false,
            headers_left,
        }))
    }

    /// The peer sent a malformed message (RFC 9113 §8.1.1).
    pub(super) fn malformed(&mut self, at: Handle, rule: &'static str) -> Outcome {
        let key = self.break_stream(at, Reason::PROTOCOL_ERROR)?;
        Ok(key.map(|key| Event::Malformed {
            stream: at.id,
            key,
            rule,
        }))
    }

    /// Resets a stream for the peer's fault; its key, if the owner still cares.
    fn break_stream(&mut self, at: Handle, reason: Reason) -> Result<Option<u32>, ConnectionError> {
        // A server can break no more streams than we open, and whoever has us open them may be who makes it.
        if self.role == Role::Server {
            self.limits.provoked()?;
        }
        Ok(self.write_reset(at, reason))
    }

    /// Checked, then ignored (RFC 9113 §5.3.2, §6.3).
    fn priority(&mut self, head: Head, payload: &[u8]) -> Outcome {
        self.limits.control(self.now)?;
        if head.stream == 0 {
            return protocol("PRIORITY on stream 0 (RFC 9113 §6.3)");
        }
        let (reason, rule) = if payload.len() != 5 {
            (
                Reason::FRAME_SIZE_ERROR,
                "PRIORITY of a length other than 5 (RFC 9113 §6.3)",
            )
        } else if u32_at(payload, 0) & MAX_ID == head.stream {
            (
                Reason::PROTOCOL_ERROR,
                "a stream that depends on itself (RFC 7540 §5.3.1)",
            )
        } else {
            return Ok(None);
        };
        match self.streams.find(head.stream) {
            Some(at)
                if self
                    .streams
                    .get(at)
                    .is_some_and(|s| s.state != State::Opening) =>
            {
                self.stream_error(at, reason)
            }
            // RST_STREAM isn't allowed on idle streams, and is of no use on closed ones.
            _ => error(reason, rule),
        }
    }

    /// RFC 9113 §6.4.
    fn rst_stream(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if head.stream == 0 {
            return protocol("RST_STREAM on stream 0 (RFC 9113 §6.4)");
        }
        if payload.len() != 4 {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "RST_STREAM of a length other than 4 (RFC 9113 §6.4)",
            );
        }
        let reason = Reason(u32_at(payload, 0));
        let complains = self.role == Role::Client && is_complaint(reason);
        self.complaints = self.complaints.saturating_add(u16::from(complains));
        let Some(at) = self.streams.find(head.stream) else {
            if self.is_idle(head.stream) {
                return protocol("RST_STREAM on an idle stream (RFC 9113 §6.4)");
            }
            // It crossed our end of the stream. A server whose clock ends RPCs as ours does sends one for each cancel;
            // one that complains, for each frame that it got too late: those have paid for it.
            match self.streams.cause(head.stream) {
                Closed::ByUs if !complains => self.limits.late()?,
                _ => self.limits.control(self.now)?,
            }
            return Ok(None);
        };
        let Some(s) = self.streams.get(at).filter(|s| s.state != State::Opening) else {
            return protocol("RST_STREAM on an idle stream (RFC 9113 §6.4)");
        };
        // REFUSED_STREAM proves that nothing was processed (RFC 9113 §8.7), unless a response
        // says the contrary.
        let unprocessed =
            reason == Reason::REFUSED_STREAM && self.role == Role::Client && !s.head_received;
        let headers_left = s.headers_at < self.out.left();
        self.limits
            .reset(self.role == Role::Server && !s.head_sent, self.now)?;
        let told = self.remove(at, Some(Closed::ByPeer));
        Ok(told.map(|key| Event::Reset {
            stream: at.id,
            key,
            reason,
            by_peer: true,
            unprocessed,
            headers_left,
        }))
    }

    /// RFC 9113 §6.5.
    fn settings(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if head.stream != 0 {
            return protocol("SETTINGS on a stream (RFC 9113 §6.5)");
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return error(
                    Reason::FRAME_SIZE_ERROR,
                    "SETTINGS acknowledgement with a payload (RFC 9113 §6.5)",
                );
            }
            // Of our first SETTINGS, then of one barrier at a time: never are two under way.
            if self.settings_since.take().is_some() {
                return Ok(None);
            }
            if self.cancels.acked() {
                self.release_cancels();
                return Ok(None);
            }
            self.limits.control(self.now)?;
            return Ok(None);
        }
        if !payload.len().is_multiple_of(6) {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "SETTINGS of a length that is no multiple of 6 (RFC 9113 §6.5)",
            );
        }
        self.limits.settings(self.now)?;
        let before = self.peer;
        if let Some(smallest) = self.peer.apply(payload, self.role)? {
            // RFC 7541 §4.2: of several changes the smallest size is told too.
            self.encoder.set_peer_max(smallest as usize);
            self.encoder.set_peer_max(self.peer.header_table as usize);
        }
        let by = i64::from(self.peer.initial_window) - i64::from(before.initial_window);
        if by != 0 {
            self.shift_windows(by)?;
        }
        if self.role == Role::Client {
            self.give_up_opening();
        }
        let first = !std::mem::replace(&mut self.peer_ready, true);
        self.answer()?;
        frame::write_settings_ack(self.out.frames());
        Ok(Some(Event::Settings { first }))
    }

    /// A new SETTINGS_INITIAL_WINDOW_SIZE moves the windows of all streams (RFC 9113 §6.9.2).
    fn shift_windows(&mut self, by: i64) -> Result<(), ConnectionError> {
        for s in self.streams.iter_mut() {
            if s.send.shift(by).is_err() {
                return error(
                    Reason::FLOW_CONTROL_ERROR,
                    "SETTINGS_INITIAL_WINDOW_SIZE overflows a stream's window (RFC 9113 §6.9.2)",
                );
            }
        }
        if by > 0 && self.queued > 0 {
            // Collected first: making ready needs the streams.
            let open: Vec<u32> = self
                .streams
                .iter()
                .filter(|s| !s.queue.is_empty() && s.state != State::Opening)
                .filter(|s| !s.in_ready && s.send.available() > 0)
                .map(|s| s.id)
                .collect();
            for at in open
                .into_iter()
                .filter_map(|id| self.streams.find(id))
                .collect::<Vec<_>>()
            {
                self.make_ready(at);
            }
        }
        Ok(())
    }

    /// RFC 9113 §6.7.
    fn pinged(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if head.stream != 0 {
            return protocol("PING on a stream (RFC 9113 §6.7)");
        }
        let Ok(payload) = payload.try_into().map(u64::from_be_bytes) else {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "PING of a length other than 8 (RFC 9113 §6.7)",
            );
        };
        self.limits.control(self.now)?;
        if head.has(flag::ACK) {
            return Ok(Some(Event::Pong { payload }));
        }
        self.answer()?;
        frame::write_ping(self.out.frames(), payload, true);
        Ok(None)
    }

    /// RFC 9113 §6.8.
    fn goaway(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if head.stream != 0 {
            return protocol("GOAWAY on a stream (RFC 9113 §6.8)");
        }
        if payload.len() < 8 {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "GOAWAY of a length below 8 (RFC 9113 §6.8)",
            );
        }
        self.limits.control(self.now)?;
        let last_stream = u32_at(payload, 0) & MAX_ID;
        let reason = Reason(u32_at(payload, 4));
        if self.peer_goaway.is_some_and(|before| last_stream > before) {
            return protocol("GOAWAY whose last stream went up (RFC 9113 §6.8)");
        }
        self.peer_goaway = Some(last_stream);
        if self.role == Role::Client {
            self.leave_behind(last_stream, reason);
        }
        let debug_data = &payload[8..];
        Ok(Some(Event::GoAway {
            last_stream,
            reason,
            debug_data: debug_data[..debug_data.len().min(DEBUG_DATA)].into(),
        }))
    }

    /// Takes out the streams that the peer won't process: above its last one, and those that
    /// have no HEADERS on the wire, since no new ones may be opened.
    fn leave_behind(&mut self, last_stream: u32, reason: Reason) {
        let left = self.out.left();
        let mut gone: Vec<(u32, bool, bool)> = self
            .streams
            .iter()
            .map(|s| (s.id, s.state == State::Opening, s.headers_at < left))
            .filter(|&(id, opening, _)| opening || id > last_stream)
            .collect();
        gone.sort_unstable();
        self.opening.clear();
        for (id, opening, headers_left) in gone {
            // Frames that the peer sent before it decided are dropped.
            let cause = (!opening).then_some(Closed::ByUs);
            if let Some(at) = self.streams.find(id) {
                self.orphan(at, cause, headers_left, reason);
            }
        }
    }

    /// The peer may have lowered its limit since streams were opened that aren't on the wire: those that it doesn't take now
    /// are taken out, since their owner may know of another connection, or for how long they may wait.
    fn give_up_opening(&mut self) {
        let most = self.peer.max_concurrent_streams as usize;
        let over = self.streams.len().saturating_sub(most);
        for at in self.opening.drop_last(over) {
            self.orphan(at, None, false, Reason::REFUSED_STREAM);
        }
    }

    /// Takes a stream out that the peer won't process: told behind the frame's own event.
    fn orphan(&mut self, at: Handle, cause: Option<Closed>, headers_left: bool, reason: Reason) {
        if let Some(key) = self.remove(at, cause) {
            let stream = Orphan {
                stream: at.id,
                key,
                headers_left,
            };
            let left_behind = self.left_behind.get_or_insert_default();
            left_behind.push_back((stream, reason));
        }
    }

    /// RFC 9113 §6.9.
    fn window_update(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if payload.len() != 4 {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "WINDOW_UPDATE of a length other than 4 (RFC 9113 §6.9)",
            );
        }
        self.limits.update(self.now)?;
        let by = u32_at(payload, 0) & MAX_ID;
        if head.stream == 0 {
            if by == 0 {
                return protocol("WINDOW_UPDATE of 0 (RFC 9113 §6.9)");
            }
            if self.send.shift(i64::from(by)).is_err() {
                return error(
                    Reason::FLOW_CONTROL_ERROR,
                    "the connection's window above 2^31-1 (RFC 9113 §6.9.1)",
                );
            }
            self.credits = self.credits.wrapping_add(1);
            return Ok(None);
        }
        let found = self.streams.find(head.stream);
        let Some((at, s)) = found.and_then(|at| Some((at, self.streams.get_mut(at)?))) else {
            if self.is_idle(head.stream) {
                return protocol("WINDOW_UPDATE on an idle stream (RFC 9113 §5.1)");
            }
            return Ok(None);
        };
        if s.state == State::Opening {
            return protocol("WINDOW_UPDATE on an idle stream (RFC 9113 §5.1)");
        }
        if by == 0 {
            return self.stream_error(at, Reason::PROTOCOL_ERROR);
        }
        if s.send.shift(i64::from(by)).is_err() {
            return self.stream_error(at, Reason::FLOW_CONTROL_ERROR);
        }
        if !s.queue.is_empty() && s.send.available() > 0 {
            self.make_ready(at);
        }
        Ok(None)
    }

    /// Counts an answer (an acknowledgement) against those that the peer hasn't read yet.
    fn answer(&mut self) -> Result<(), ConnectionError> {
        if self.out.left() >= self.answers_until {
            self.answers = 0;
            self.answers_until = self.out.position() + 1;
        }
        self.answers += 1;
        if self.answers > UNREAD_ANSWERS {
            return Err(calm(
                Limit::Flood,
                "too many unread acknowledgements (RFC 9113 §10.5)",
            ));
        }
        Ok(())
    }
}

/// Whether a server resets a stream so for what it calls a fault of ours.
fn is_complaint(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PROTOCOL_ERROR | Reason::FLOW_CONTROL_ERROR | Reason::STREAM_CLOSED
    )
}

/// RFC 9113 §8.1.1.
pub(super) const CONTENT_LENGTH: &str = "content-length and DATA differ (RFC 9113 §8.1.1)";

/// What is told of a GOAWAY's debug data.
const DEBUG_DATA: usize = 256;

/// Acknowledgements put out while the peer reads nothing (CVE-2019-9512, CVE-2019-9515).
const UNREAD_ANSWERS: u32 = 1024;
