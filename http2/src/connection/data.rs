//! DATA as it comes in (RFC 9113 §6.1): the rules of a whole frame when its head is there, then its
//! payload, cut through.

use super::{
    Connection, Event, Role,
    frames::{CONTENT_LENGTH, Outcome},
    receive::{Parse, error, protocol},
};
use crate::{
    error::Reason,
    frame::{Head, flag},
    stream::{Closed, Handle, State},
};

impl Connection {
    /// A DATA frame begins (RFC 9113 §6.1): all its rules, applied to the whole frame.
    pub(super) fn begin_data(&mut self, head: Head, pad: Option<u8>) -> Outcome {
        if head.stream == 0 {
            return protocol("DATA on stream 0 (RFC 9113 §6.1)");
        }
        let overhead = pad.map_or(0, |pad| usize::from(pad) + 1);
        let padding = usize::from(pad.unwrap_or(0));
        let Some(payload) = head.len.checked_sub(overhead) else {
            return protocol("padding as long as the payload (RFC 9113 §6.1)");
        };
        // The whole payload counts, padding and its length included (RFC 9113 §6.9.1).
        if self.recv.take(head.len, 0).is_err() {
            return error(
                Reason::FLOW_CONTROL_ERROR,
                "DATA beyond the connection's window (RFC 9113 §6.9.1)",
            );
        }
        let end_stream = head.has(flag::END_STREAM);
        self.limits.data(payload, end_stream, self.now)?;
        // Until an arm below says otherwise, what comes is dropped.
        self.skip(payload + padding);

        let slack = if self.settings_since.is_some() {
            self.config.unacknowledged_slack()
        } else {
            0
        };
        let client = self.role == Role::Client;
        let found = self.streams.find(head.stream);
        let Some((at, s)) = found.and_then(|at| Some((at, self.streams.get_mut(at)?))) else {
            self.recv.give(head.len);
            return self.data_after_end(head.stream);
        };
        if s.state == State::Opening {
            return protocol("DATA on an idle stream (RFC 9113 §5.1)");
        }
        if s.remote_ended() || !s.head_received || s.recv.take(head.len, slack).is_err() {
            let reason = if s.remote_ended() {
                Reason::STREAM_CLOSED
            } else if !s.head_received {
                Reason::PROTOCOL_ERROR
            } else {
                Reason::FLOW_CONTROL_ERROR
            };
            self.recv.give(head.len);
            return self.stream_error(at, reason);
        }
        if s.doomed.is_none()
            && let Some(left) = s.content_left
        {
            // RFC 9113 §8.1.1. A response without any content may announce the length that
            // a GET would have had.
            let later = left.checked_sub(payload as u64);
            let none_at_all = client && payload == 0 && left == s.content_length;
            match later {
                Some(later) if !end_stream || later == 0 || none_at_all => {
                    s.content_left = Some(later);
                }
                _ => {
                    self.recv.give(head.len);
                    return self.malformed(at, CONTENT_LENGTH);
                }
            }
        }
        if overhead > 0 {
            self.drop_data(at, overhead);
        }
        self.parse = if payload + padding > 0 || end_stream {
            Parse::Data(DataFrame {
                at,
                left: payload,
                padding,
                end_stream,
            })
        } else {
            Parse::Head
        };
        Ok(None)
    }

    /// Hands on what there is of a DATA frame.
    #[inline]
    pub(super) fn data<'a>(
        &mut self,
        mut frame: DataFrame,
        input: &mut &'a [u8],
    ) -> Option<Event<'a>> {
        let n = frame.left.min(input.len());
        let (bytes, rest) = input.split_at(n);
        frame.left -= n;
        let padding = if frame.left == 0 {
            frame.padding.min(rest.len())
        } else {
            0
        };
        frame.padding -= padding;
        *input = &rest[padding..];
        let done = frame.left + frame.padding == 0;
        self.parse = if done {
            Parse::Head
        } else {
            Parse::Data(frame)
        };

        let end_stream = done && frame.end_stream;
        let Some(s) = self.streams.get_mut(frame.at) else {
            // Reset since the frame began.
            self.recv.give(n);
            return None;
        };
        let (key, audible) = (s.key, s.audible());
        if audible {
            s.uncredited += n as u32;
        } else {
            self.drop_data(frame.at, n);
        }
        if end_stream {
            self.remote_end(frame.at);
        }
        (audible && (end_stream || !bytes.is_empty())).then_some(Event::Data {
            stream: frame.at.id,
            key,
            bytes,
            end_stream,
        })
    }

    /// `n` bytes of a live stream that nobody will pass on: both windows get them back.
    pub(super) fn drop_data(&mut self, at: Handle, n: usize) {
        self.recv.give(n);
        if let Some(s) = self.streams.get_mut(at)
            && s.doomed.is_none()
            && !s.remote_ended()
        {
            s.recv.give(n);
            if s.recv.due(self.config.stream_window) && !s.in_updates {
                s.in_updates = true;
                self.updates.push(at);
            }
        }
    }

    /// DATA for a stream that isn't live (RFC 9113 §5.1, "idle" and "closed").
    fn data_after_end(&mut self, stream: u32) -> Outcome {
        if self.is_idle(stream) {
            return protocol("DATA on an idle stream (RFC 9113 §5.1)");
        }
        match self.streams.cause(stream) {
            Closed::ByUs | Closed::Forgotten => Ok(None),
            Closed::ByPeer | Closed::Ended => self.closed_error(stream),
            Closed::NeverOpened => protocol("DATA on a skipped stream (RFC 9113 §5.1.1)"),
        }
    }
}

/// What is still to come of a DATA frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataFrame {
    pub(super) at: Handle,
    pub(super) left: usize,
    pub(super) padding: usize,
    pub(super) end_stream: bool,
}
