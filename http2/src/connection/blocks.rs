//! Header blocks: collected, decoded, and what they mean for their stream (RFC 9113 §4.3, §6.2,
//! §6.10, §8).
//!
//! Every block is decoded, whatever becomes of its stream, since the table has to stay in step
//! with the peer's; a list that is beyond all measure ends the connection instead (RFC 7541 §7.3). A
//! block in one frame is decoded where it lies in the input; one of several is collected, up to
//! `max_header_block`. A client that sends more has its connection ended. What a server sends may be
//! one client's doing where many share the connection, so its blocks are decoded on beyond that, as
//! they come, and end their stream.

use super::{
    Connection, Event, Refusal, Role,
    frames::{CONTENT_LENGTH, Outcome},
    receive::{error, protocol},
};
use crate::{
    error::{ConnectionError, Limit, Reason},
    frame::{self, Head, MAX_ID, flag, kind, u32_at},
    headers::{Headers, Kind},
    hpack::{DecodeError, Decoded, Discard},
    limits::calm,
    stock,
    stream::{Closed, Handle, State},
};

/// What HEADERS said of a block.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    /// The priority fields name the stream itself.
    self_dependent: bool,
}

/// A block that CONTINUATION goes on with.
#[derive(Debug)]
pub(super) struct OpenBlock {
    block: Block,
    frames: u32,
    /// Of its frames' payloads.
    bytes: usize,
    fragments: Vec<u8>,
    /// Client role: it is above `max_header_block`, and its fields are dropped.
    discard: Option<Discard>,
}

impl OpenBlock {
    pub(super) fn stream(&self) -> u32 {
        self.block.stream
    }

    /// Bytes of it that are kept.
    pub(super) fn kept(&self) -> usize {
        self.fragments.len() + self.discard.as_ref().map_or(0, Discard::len)
    }
}

/// Whose a block is.
enum Target {
    New,
    Live(Handle),
    /// A stream that we reset: decoded and dropped.
    Late,
    /// A stream that the peer reset.
    Closed,
}

impl Connection {
    /// The bounds on a block, before the frame's payload is waited for.
    pub(super) fn check_block(&self, head: Head) -> Result<(), ConnectionError> {
        let (frames, bytes) = match (head.kind, &self.open_block) {
            (kind::CONTINUATION, Some(open)) => (open.frames + 1, open.bytes),
            _ => (1, 0),
        };
        if frames > self.config.max_header_frames {
            return Err(calm(
                Limit::HeaderBlock,
                "a header block of too many frames (RFC 9113 §10.5.1)",
            ));
        }
        // Padding and priority fields count as well: no honest block comes near.
        if bytes + head.len > self.config.header_block_ceiling(self.role) as usize {
            return Err(calm(
                Limit::HeaderBlock,
                "a header block of too many bytes (RFC 9113 §10.5.1)",
            ));
        }
        Ok(())
    }

    /// RFC 9113 §6.2.
    pub(super) fn headers(&mut self, head: Head, payload: &[u8]) -> Outcome {
        if head.stream == 0 {
            return protocol("HEADERS on stream 0 (RFC 9113 §6.2)");
        }
        let mut fragment = payload;
        let mut padding = 0;
        let short = "HEADERS too short for its fields (RFC 9113 §4.2)";
        if head.has(flag::PADDED) {
            let Some((&pad, rest)) = fragment.split_first() else {
                return error(Reason::FRAME_SIZE_ERROR, short);
            };
            padding = usize::from(pad);
            fragment = rest;
        }
        let mut self_dependent = false;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = fragment.split_at_checked(5) else {
                return error(Reason::FRAME_SIZE_ERROR, short);
            };
            self_dependent = u32_at(priority, 0) & MAX_ID == head.stream;
            fragment = rest;
        }
        let Some(len) = fragment.len().checked_sub(padding) else {
            return protocol("padding as long as the payload (RFC 9113 §6.2)");
        };
        fragment = &fragment[..len];
        let block = Block {
            stream: head.stream,
            end_stream: head.has(flag::END_STREAM),
            self_dependent,
        };
        if head.has(flag::END_HEADERS) {
            return self.whole_block(block, fragment);
        }
        self.open_block = Some(Box::new(OpenBlock {
            block,
            frames: 1,
            bytes: payload.len(),
            fragments: fragment.to_vec(),
            discard: None,
        }));
        Ok(None)
    }

    /// RFC 9113 §6.10; `begin` has checked that it goes on with the open block.
    pub(super) fn continuation(&mut self, head: Head, payload: &[u8]) -> Outcome {
        let Some(mut open) = self.open_block.take() else {
            return Ok(None);
        };
        open.frames += 1;
        open.bytes += payload.len();
        if let Some(discard) = &mut open.discard {
            self.decoder
                .discard(payload, discard)
                .map_err(undecodable)?;
        } else {
            open.fragments.extend_from_slice(payload);
            if open.bytes > self.config.max_header_block as usize {
                let fragments = std::mem::take(&mut open.fragments);
                let discard = open.discard.get_or_insert_default();
                let first = self.decoder.discard(&fragments, discard);
                first.map_err(undecodable)?;
            }
        }
        if !head.has(flag::END_HEADERS) {
            self.open_block = Some(open);
            return Ok(None);
        }
        match open.discard {
            None => self.whole_block(open.block, &open.fragments),
            Some(discard) => {
                self.decoder.discarded(&discard).map_err(undecodable)?;
                self.header_since = None;
                let target = self.target(open.block.stream)?;
                self.decoded(target, open.block, stock::arena(), TOO_LARGE)
            }
        }
    }

    /// A block is complete.
    fn whole_block(&mut self, block: Block, fragment: &[u8]) -> Outcome {
        self.header_since = None;
        let target = self.target(block.stream)?;
        let mut headers = stock::arena();
        let keep = match target {
            Target::Late | Target::Closed => 0,
            Target::New | Target::Live(_) => self.config.max_header_list as usize,
        };
        let decoded = self.decoder.decode(fragment, keep, &mut headers);
        self.decoded(target, block, headers, decoded.map_err(undecodable)?)
    }

    /// A block is decoded.
    fn decoded(
        &mut self,
        target: Target,
        block: Block,
        headers: Headers,
        decoded: Decoded,
    ) -> Outcome {
        match target {
            Target::New => self.request(block, headers, decoded),
            Target::Live(at) => self.live_block(at, block, headers, decoded),
            Target::Late => {
                stock::recycle(headers);
                self.limits.late()?;
                if self.role == Role::Client {
                    // It had been accepted all the same, and so had all before it.
                    self.cancels.answered(block.stream);
                    self.release_cancels();
                }
                Ok(None)
            }
            Target::Closed => {
                stock::recycle(headers);
                self.closed_error(block.stream)
            }
        }
    }

    /// RFC 9113 §8: what blocks have in common is looked at once for all of them.
    fn validate(
        &mut self,
        headers: &Headers,
        kind: Kind,
        decoded: Decoded,
    ) -> Result<(), &'static str> {
        let known = match decoded.valid {
            Some((as_kind, fields)) if as_kind == kind => fields,
            _ => 0,
        };
        // Also if all of it is known: a block that ends before the remembered one does may lack what a whole one has.
        headers.validate_beyond(known, kind)?;
        if known == 0 || known < headers.len() {
            self.decoder.valid(kind, headers);
        }
        Ok(())
    }

    /// [`validate`](Self::validate), for what a server sends: spaces at an end of a value are taken off, as whoever reads it
    /// would. gRPC's percent-encoding leaves them in `grpc-message`, and servers of all languages send them: RFC 9113
    /// §8.2.1 calls that malformed, but the RPC has its status, and nobody could tell which it was.
    fn validate_served(
        &mut self,
        headers: &mut Headers,
        kind: Kind,
        decoded: Decoded,
    ) -> Result<(), &'static str> {
        let valid = self.validate(headers, kind, decoded);
        if valid.is_ok() || self.role == Role::Server {
            return valid;
        }
        let Some(trimmed) = headers.trimmed() else {
            return valid;
        };
        stock::recycle(std::mem::replace(headers, trimmed));
        headers.validate(kind)
    }

    /// Whose the block of `stream` is (RFC 9113 §5.1, §5.1.1).
    fn target(&self, stream: u32) -> Result<Target, ConnectionError> {
        if let Some(at) = self.streams.find(stream) {
            return match self.streams.get(at) {
                Some(s) if s.state != State::Opening => Ok(Target::Live(at)),
                _ => protocol("HEADERS on an idle stream (RFC 9113 §5.1)"),
            };
        }
        if self.is_idle(stream) {
            return match self.role {
                Role::Server if stream % 2 == 1 => Ok(Target::New),
                Role::Server => protocol("a client's stream of even number (RFC 9113 §5.1.1)"),
                Role::Client => protocol("HEADERS on a stream never opened (RFC 9113 §5.1)"),
            };
        }
        match self.streams.cause(stream) {
            Closed::ByUs | Closed::Forgotten => Ok(Target::Late),
            Closed::ByPeer => Ok(Target::Closed),
            Closed::Ended => error(
                Reason::STREAM_CLOSED,
                "HEADERS after END_STREAM (RFC 9113 §5.1)",
            ),
            Closed::NeverOpened => protocol("a stream number below the last (RFC 9113 §5.1.1)"),
        }
    }

    /// Server role: a request.
    fn request(&mut self, block: Block, headers: Headers, decoded: Decoded) -> Outcome {
        let stream = block.stream;
        self.last_remote = stream;
        self.limits.stream_opened(self.now);
        // Nothing was processed of what is refused: the client may try again (RFC 9113 §8.7).
        if self.our_goaway.is_some_and(|last| stream > last) {
            stock::recycle(headers);
            self.refuse(stream, Reason::REFUSED_STREAM)?;
            return Ok(None);
        }
        if self.streams.len() >= self.config.max_concurrent_streams as usize {
            self.refuse(stream, Reason::REFUSED_STREAM)?;
            return Ok(Some(Event::Refused {
                stream,
                headers,
                why: Refusal::TooManyStreams,
            }));
        }
        let body = headers.content_length();
        // Exact where it counts: a list that isn't above the size is kept whole.
        let fields = headers.len();
        let large = decoded.list_size > self.config.max_header_list as usize
            || fields > self.config.max_header_fields as usize;
        if decoded.list_size > self.config.max_header_list_hard as usize {
            self.refuse(stream, Reason::ENHANCE_YOUR_CALM)?;
            return Ok(Some(Event::Refused {
                stream,
                headers,
                why: Refusal::HeadersTooLarge,
            }));
        }
        let fault = if block.self_dependent {
            Some(SELF_DEPENDENT)
        } else if large {
            None
        } else if let Err(rule) = self.validate(&headers, Kind::Request, decoded) {
            Some(rule)
        } else if block.end_stream && body.is_some_and(|n| n > 0) {
            Some(CONTENT_LENGTH)
        } else {
            None
        };
        if let Some(rule) = fault {
            self.refuse(stream, Reason::PROTOCOL_ERROR)?;
            return Ok(Some(Event::Refused {
                stream,
                headers,
                why: Refusal::Malformed(rule),
            }));
        }
        let state = if block.end_stream {
            State::HalfClosedRemote
        } else {
            State::Open
        };
        let mut s = self.new_stream(stream, u32::MAX, state);
        s.head_received = true;
        let key = s.key;
        let end_stream = block.end_stream;
        if large {
            s.deaf = true;
            self.opening.blocks += headers.memory();
            s.large_head = Some(headers);
            self.streams.insert(s);
            return Ok(Some(Event::HeadersTooLarge {
                stream,
                key,
                end_stream,
            }));
        }
        s.content_left = body;
        s.content_length = body.unwrap_or(0);
        s.fields = fields as u32;
        self.streams.insert(s);
        Ok(Some(Event::Headers {
            stream,
            key,
            headers,
            end_stream,
        }))
    }

    /// Resets a stream that never got an entry.
    fn refuse(&mut self, stream: u32, reason: Reason) -> Result<(), ConnectionError> {
        self.limits.provoked()?;
        self.limits.stream_cancelled();
        frame::write_reset(self.out.frames(), stream, reason.0);
        self.streams.remember(stream, Closed::ByUs);
        Ok(())
    }

    /// A response head, or trailers of either side.
    fn live_block(
        &mut self,
        at: Handle,
        block: Block,
        headers: Headers,
        decoded: Decoded,
    ) -> Outcome {
        let Some(s) = self.streams.get(at) else {
            return Ok(None);
        };
        if s.remote_ended() {
            stock::recycle(headers);
            return self.stream_error(at, Reason::STREAM_CLOSED);
        }
        if block.self_dependent {
            stock::recycle(headers);
            return self.malformed(at, SELF_DEPENDENT);
        }
        if decoded.list_size > self.config.max_header_list_hard as usize {
            stock::recycle(headers);
            return self.stream_error(at, Reason::ENHANCE_YOUR_CALM);
        }
        if s.head_received {
            self.trailers(at, block, headers, decoded)
        } else {
            self.response(at, block, headers, decoded)
        }
    }

    /// Client role: a response head, 1xx or final.
    fn response(
        &mut self,
        at: Handle,
        block: Block,
        mut headers: Headers,
        decoded: Decoded,
    ) -> Outcome {
        let end_stream = block.end_stream;
        let large = decoded.list_size > self.config.max_header_list as usize;
        if !large && let Err(rule) = self.validate_served(&mut headers, Kind::Response, decoded) {
            stock::recycle(headers);
            return self.malformed(at, rule);
        }
        let informational = !large && headers.is_informational();
        if informational {
            self.limits.control(self.now)?;
            if end_stream {
                stock::recycle(headers);
                return self.malformed(at, "a 1xx head with END_STREAM (RFC 9113 §8.1)");
            }
        } else {
            self.limits.stream_opened(self.now);
            self.cancels.answered(at.id);
        }
        let Some(s) = self.streams.get_mut(at) else {
            return Ok(None);
        };
        let (stream, key, told) = (s.id, s.key, s.doomed.is_none());
        s.head_received |= !informational;
        if large {
            s.deaf = true;
        } else if !informational {
            s.content_left = headers.content_length();
            s.content_length = s.content_left.unwrap_or(0);
            if end_stream {
                // HEAD and 304 have a length and no content (RFC 9113 §8.1.1).
                s.content_left = None;
            }
        }
        let event = if !told {
            stock::recycle(headers);
            None
        } else if large {
            self.opening.blocks += headers.memory();
            s.large_head = Some(headers);
            Some(Event::HeadersTooLarge {
                stream,
                key,
                end_stream,
            })
        } else {
            Some(Event::Headers {
                stream,
                key,
                headers,
                end_stream,
            })
        };
        if !informational {
            if end_stream {
                self.remote_end(at);
            }
            // This answer may have confirmed pairs, or be the one of a stream whose reset waits.
            self.answered(at);
        }
        Ok(event)
    }

    /// Trailers (RFC 9113 §8.1).
    fn trailers(
        &mut self,
        at: Handle,
        block: Block,
        mut headers: Headers,
        decoded: Decoded,
    ) -> Outcome {
        let Some(s) = self.streams.get(at) else {
            return Ok(None);
        };
        if !block.end_stream {
            stock::recycle(headers);
            return self.malformed(at, "HEADERS in a body without END_STREAM (RFC 9113 §8.1)");
        }
        let (stream, key) = (s.id, s.key);
        let fields = s.fields as usize + headers.len();
        if !s.audible() {
            stock::recycle(headers);
            self.remote_end(at);
            return Ok(None);
        }
        let many = self.role == Role::Server && fields > self.config.max_header_fields as usize;
        if decoded.list_size > self.config.max_header_list as usize || many {
            stock::recycle(headers);
            return self.stream_error(at, Reason::ENHANCE_YOUR_CALM);
        }
        let none_at_all = self.role == Role::Client && s.content_left == Some(s.content_length);
        let short = s.content_left.is_some_and(|left| left > 0) && !none_at_all;
        let fault = match self.validate_served(&mut headers, Kind::Trailers, decoded) {
            Err(rule) => Some(rule),
            Ok(()) if short => Some(CONTENT_LENGTH),
            Ok(()) => None,
        };
        if let Some(rule) = fault {
            stock::recycle(headers);
            return self.malformed(at, rule);
        }
        self.remote_end(at);
        Ok(Some(Event::Trailers {
            stream,
            key,
            headers,
        }))
    }

    /// Client role: `at` was answered. A reset of it that waited can't be an early one any more.
    fn answered(&mut self, at: Handle) {
        if self.doomed == 0 {
            return;
        }
        if let Some(reason) = self.streams.get(at).and_then(|s| s.doomed) {
            self.write_reset(at, reason);
        }
        self.release_cancels();
    }
}

/// The end of the connection, since the table is out of step.
fn undecodable(error: DecodeError) -> ConnectionError {
    match error {
        DecodeError::Broken(rule) => ConnectionError {
            reason: Reason::COMPRESSION_ERROR,
            rule,
            limit: None,
        },
        DecodeError::TooLarge => calm(
            Limit::HeaderBlock,
            "a header list of too many bytes (RFC 9113 §10.5.1)",
        ),
    }
}

/// What there is to say of a list that was dropped.
const TOO_LARGE: Decoded = Decoded {
    list_size: usize::MAX,
    valid: None,
};

/// RFC 7540 §5.3.1: the one rule of the old priority scheme that is a stream error.
const SELF_DEPENDENT: &str = "a stream that depends on itself (RFC 7540 §5.3.1)";
