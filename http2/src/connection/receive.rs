//! Cuts the input into frames.
//!
//! Only what can't be used in parts is collected: a head of nine bytes, and the payload of a frame
//! that isn't DATA. DATA is handed on as it comes, any part of a frame at a time; its rules
//! (windows, content-length) were applied to the whole frame when its head came, so a part needs
//! none.

use super::{Connection, Event, Role, UNBOUNDED, data::DataFrame};
use crate::{
    error::{ConnectionError, Reason},
    frame::{DEFAULT_MAX_FRAME, HEAD, Head, PREFACE, flag, kind},
    stock,
};

/// Where in the input's structure the next byte stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parse {
    /// In the client's preface, after so many bytes of it.
    Preface(usize),
    /// Before or in a frame's head.
    Head,
    /// In the payload of a frame that is collected.
    Payload(Head),
    /// Before the pad length of a DATA frame.
    PadLength(Head),
    /// In a DATA frame of a live stream.
    Data(DataFrame),
    /// In a payload that nobody wants.
    Skip(usize),
}

impl Connection {
    /// Goes on until there is an event, or the input is used up.
    pub(super) fn step<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        loop {
            if let Some(all) = &mut self.left_behind {
                let Some((left, reason)) = all.pop_front() else {
                    self.left_behind = None;
                    continue;
                };
                return Ok(Some(Event::Reset {
                    stream: left.stream,
                    key: left.key,
                    reason,
                    by_peer: true,
                    unprocessed: true,
                    headers_left: left.headers_left,
                }));
            }
            // An event is passed on as it is: it holds a header block, and is moved for each unwrapping.
            let outcome = match self.parse {
                Parse::Data(frame) if !input.is_empty() || frame.left + frame.padding == 0 => {
                    Ok(self.data(frame, input))
                }
                _ if input.is_empty() => return Ok(None),
                Parse::Data(frame) => Ok(self.data(frame, input)),
                Parse::Head if self.allowed == 0 => return Ok(None),
                Parse::Head => match self.read_head(input) {
                    Some(head) => {
                        if self.allowed != UNBOUNDED {
                            self.allowed -= 1;
                        }
                        self.begin(head, input)
                    }
                    None => return Ok(None),
                },
                Parse::Payload(head) => self.collect(head, input),
                Parse::PadLength(head) => {
                    let (&pad, rest) = input.split_first().unwrap_or((&0, &[]));
                    *input = rest;
                    self.begin_data(head, Some(pad))
                }
                Parse::Skip(left) => {
                    let n = left.min(input.len());
                    *input = &input[n..];
                    self.skip(left - n);
                    Ok(None)
                }
                Parse::Preface(seen) => self.preface(seen, input).map(|()| None),
            };
            if !matches!(outcome, Ok(None)) {
                return outcome;
            }
        }
    }

    /// Drops so many bytes of a payload, then goes on with the next head.
    pub(super) fn skip(&mut self, left: usize) {
        self.parse = if left == 0 {
            Parse::Head
        } else {
            Parse::Skip(left)
        };
    }

    /// RFC 9113 §3.4.
    fn preface(&mut self, seen: usize, input: &mut &[u8]) -> Result<(), ConnectionError> {
        let n = input.len().min(PREFACE.len() - seen);
        let (part, rest) = input.split_at(n);
        if part != &PREFACE[seen..seen + n] {
            return protocol("the client's preface is wrong (RFC 9113 §3.4)");
        }
        *input = rest;
        let seen = seen + n;
        self.parse = if seen == PREFACE.len() {
            Parse::Head
        } else {
            Parse::Preface(seen)
        };
        Ok(())
    }

    #[inline]
    fn read_head(&mut self, input: &mut &[u8]) -> Option<Head> {
        if self.head_len == 0
            && let Some((head, rest)) = input.split_first_chunk::<HEAD>()
        {
            *input = rest;
            return Some(Head::read(head));
        }
        let seen = usize::from(self.head_len);
        let n = (HEAD - seen).min(input.len());
        let (part, rest) = input.split_at(n);
        self.head[seen..seen + n].copy_from_slice(part);
        // At most a head's nine.
        self.head_len += n as u8;
        *input = rest;
        if seen + n < HEAD {
            return None;
        }
        self.head_len = 0;
        Some(Head::read(&self.head))
    }

    /// A frame begins: what its head alone tells is checked before its payload is waited for.
    fn begin<'a>(
        &mut self,
        head: Head,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        if head.len > DEFAULT_MAX_FRAME {
            return error(
                Reason::FRAME_SIZE_ERROR,
                "frame above SETTINGS_MAX_FRAME_SIZE (RFC 9113 §4.2)",
            );
        }
        if !self.peer_ready && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return protocol("the first frame is not SETTINGS (RFC 9113 §3.4)");
        }
        match &self.open_block {
            Some(open) if head.kind != kind::CONTINUATION || head.stream != open.stream() => {
                return protocol("a header block was not continued (RFC 9113 §6.10)");
            }
            None if head.kind == kind::CONTINUATION => {
                return protocol("CONTINUATION without a header block (RFC 9113 §6.10)");
            }
            _ => {}
        }
        match head.kind {
            kind::DATA if head.has(flag::PADDED) => {
                if head.len == 0 {
                    return error(
                        Reason::FRAME_SIZE_ERROR,
                        "DATA without its pad length (RFC 9113 §6.1)",
                    );
                }
                self.parse = Parse::PadLength(head);
                Ok(None)
            }
            kind::DATA => self.begin_data(head, None),
            kind::HEADERS..=kind::CONTINUATION => {
                if matches!(head.kind, kind::HEADERS | kind::CONTINUATION) {
                    self.check_block(head)?;
                    self.header_since.get_or_insert(self.now);
                }
                if let Some((payload, rest)) = input.split_at_checked(head.len) {
                    *input = rest;
                    return self.frame(head, payload);
                }
                self.partial = stock::chunk_for(input.len());
                self.partial.extend_from_slice(input);
                *input = &[];
                self.parse = Parse::Payload(head);
                Ok(None)
            }
            _ => {
                // Unknown types are ignored (RFC 9113 §4.1).
                self.limits.control(self.now)?;
                self.skip(head.len);
                Ok(None)
            }
        }
    }

    fn collect(
        &mut self,
        head: Head,
        input: &mut &[u8],
    ) -> Result<Option<Event<'static>>, ConnectionError> {
        let n = (head.len - self.partial.len()).min(input.len());
        let (part, rest) = input.split_at(n);
        self.partial.extend_from_slice(part);
        *input = rest;
        if self.partial.len() < head.len {
            return Ok(None);
        }
        self.parse = Parse::Head;
        let payload = std::mem::take(&mut self.partial);
        let event = self.frame(head, &payload);
        stock::give_chunk(payload);
        event
    }

    /// Whether a stream id that isn't live was never used yet ("idle", RFC 9113 §5.1).
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        let opened_by_client = stream % 2 == 1;
        !opened_by_client
            || match self.role {
                Role::Server => stream > self.last_remote,
                Role::Client => stream >= self.next_id,
            }
    }
}

pub(super) fn error<T>(reason: Reason, rule: &'static str) -> Result<T, ConnectionError> {
    Err(ConnectionError {
        reason,
        rule,
        limit: None,
    })
}

pub(super) fn protocol<T>(rule: &'static str) -> Result<T, ConnectionError> {
    error(Reason::PROTOCOL_ERROR, rule)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Config;

    #[test]
    fn without_a_bound_frames_use_up_none() {
        let now = Instant::now();
        let mut engine = Connection::new(Role::Client, Config::default(), now);
        for frames in [None, Some(usize::MAX)] {
            if let Some(frames) = frames {
                engine.allow(frames);
            }
            let mut settings = &[0, 0, 0, 4, 0, 0, 0, 0, 0][..];
            while engine.receive(&mut settings, now).unwrap().is_some() {}
            assert_eq!((settings.len(), engine.allowed), (0, UNBOUNDED));
        }
    }
}
