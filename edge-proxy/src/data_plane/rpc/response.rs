//! The response's way back to the client.

use std::{rc::Rc, time::Instant};

use http2::{Headers, Reason, stock};

use super::{Rpc, State, Step};
use crate::data_plane::{filters::response, worker::Worker};

impl Rpc {
    pub(super) fn response_headers(
        &mut self,
        worker: &Rc<Worker>,
        mut headers: Headers,
        end_stream: bool,
        now: Instant,
    ) -> Step {
        self.active = now;
        let State::Open(_) = self.state else {
            return Step::On;
        };
        let status = headers.status().unwrap_or(0);
        if status < 200 {
            // gRPC knows no interim answers, and clients take them for the answer.
            if !self.is_grpc() {
                response::interim(&mut headers);
                self.client.send_headers(&headers, false);
            }
            return Step::On;
        }
        self.replay.release();
        let upstream_time = self
            .request_ended
            .map(|ended| now.saturating_duration_since(ended));
        worker.with_snapshot(|snapshot| {
            let mut date = worker.date.borrow_mut();
            let context = response::ResponseContext {
                server_name: &snapshot.listener.server_name,
                date: date.at(now, |now| worker.wall(now)),
                upstream_time,
            };
            response::head(&mut headers, &context);
        });
        self.record.responded(status, &headers, end_stream, now);
        self.client.send_headers(&headers, end_stream);
        if let State::Open(attempt) = std::mem::replace(&mut self.state, State::Flushing(None)) {
            stock::recycle(headers);
            self.state = State::Relaying(attempt);
        }
        if end_stream {
            self.response_ended()
        } else {
            Step::On
        }
    }

    pub(super) fn response_data(&mut self, bytes: &[u8], end_stream: bool, now: Instant) -> Step {
        self.active = now;
        let State::Relaying(attempt) = &self.state else {
            return Step::On;
        };
        if self.is_grpc() {
            self.messages.feed(bytes);
        }
        self.record.bytes_out += bytes.len() as u64;
        let framed = self.client.send_data(bytes, end_stream, now);
        if framed > 0 {
            attempt.link().credit(attempt.stream, framed);
        }
        if end_stream {
            self.response_ended()
        } else {
            Step::On
        }
    }

    pub(super) fn response_trailers(&mut self, mut headers: Headers, now: Instant) -> Step {
        self.active = now;
        let State::Relaying(_) = self.state else {
            return Step::On;
        };
        response::trailers(&mut headers);
        self.record.trailers(&headers);
        self.client.send_trailers(&headers);
        stock::recycle(headers);
        self.response_ended()
    }

    pub(super) fn response_sent(&mut self, bytes: usize, end_stream: bool, now: Instant) -> Step {
        if bytes > 0 {
            self.active = now;
            if let State::Relaying(attempt) = &self.state {
                attempt.link().credit(attempt.stream, bytes);
            }
        }
        match self.state {
            State::Flushing(_) if end_stream => Step::Done,
            _ => Step::On,
        }
    }

    /// The backend has said all: its leg ends, and the RPC when the client has what was said.
    pub(super) fn response_ended(&mut self) -> Step {
        if let State::Open(attempt) | State::Relaying(attempt) =
            std::mem::replace(&mut self.state, State::Flushing(None))
        {
            // An upload that is still under way is stopped; a stream that has ended on both sides ignores this.
            attempt.upstream.reset(attempt.stream, Reason::CANCEL);
            if self.record.failed(self.is_grpc()) {
                attempt.failed();
            }
            self.record.completed();
        }
        self.all_said()
    }
}
