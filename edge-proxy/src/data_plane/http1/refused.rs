//! Requests that hyper refuses itself: answered, counted and logged as ours.

use std::time::Duration;

use super::{Connection, convert, request::PROTOCOL};
use crate::{
    data_plane::{
        access_log,
        answer::{self, Answer, AnswerContext, Form},
    },
    error::Failure,
    telemetry::{
        labels::Flags,
        metrics::{Limit, RpcEnd},
    },
};

impl Connection {
    /// hyper gave up: when it was over what a client sent, that was a request too. Its answer, as hyper's own was kept back.
    pub(super) fn failed(&self, error: &hyper::Error) -> Vec<u8> {
        tracing::debug!(peer = %self.peer, %error, "client connection ended");
        let failure = if error.is_parse_too_large() {
            self.worker.shard.limits(Limit::HeaderBytes).inc();
            Failure::HeadersTooLarge
        } else if error.is_parse() {
            Failure::MalformedRequest
        } else {
            return Vec::new();
        };
        let answer = self.answer(failure);
        self.log_refused(failure, &answer);
        convert::last_answer(&answer)
    }

    fn answer(&self, failure: Failure) -> Answer {
        let worker = &self.worker;
        worker.with_snapshot(|snapshot| {
            let mut date = worker.date.borrow_mut();
            let context = AnswerContext {
                server_name: &snapshot.listener.server_name,
                date: date.at(worker.now(), |now| worker.wall(now)),
            };
            answer::failure(failure, Form::Plain, &context)
        })
    }

    /// The line and the counters of a request that never became an RPC.
    fn log_refused(&self, failure: Failure, answer: &Answer) {
        let worker = &self.worker;
        let now = worker.now();
        worker.shard.unrouted().started.inc();
        let status = failure.http_status();
        worker.shard.unrouted().ended(RpcEnd::Http(status)).inc();
        worker.shard.flags(failure.flag()).inc();
        worker.log.write(&access_log::Record {
            time: worker.wall(now),
            request_id: None,
            client: &self.peer_text,
            method: None,
            path: None,
            authority: None,
            protocol: PROTOCOL,
            status,
            grpc_status: None,
            flags: Flags::NONE.with(failure.flag()),
            detail: Some(failure.text()),
            bytes_in: 0,
            bytes_out: answer.body.len() as u64,
            duration: Duration::ZERO,
            upstream_time: None,
            attempts: 0,
            cluster: None,
            endpoint: None,
            user_agent: None,
        });
    }
}
