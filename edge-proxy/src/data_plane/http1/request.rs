//! A request, from hyper to the path of all RPCs.

use std::rc::Rc;

use http2::Headers;
use hyper::body::{Body as _, Incoming};

use super::{
    Connection, Exchange, Output, Stage,
    convert::{self, Refusal},
    exchange::{self, Responding},
};
use crate::{
    data_plane::{filters::request::MAX_FIELDS, rpc, worker::Phase},
    error::Failure,
    telemetry::metrics::Limit,
};

/// What hyper calls for each request.
pub(super) struct Service(pub(super) Rc<Connection>);

impl hyper::service::Service<http::Request<Incoming>> for Service {
    type Response = http::Response<exchange::Body>;
    type Error = exchange::Aborted;
    type Future = Responding;

    fn call(&self, request: http::Request<Incoming>) -> Responding {
        self.0.request(request)
    }
}

impl Connection {
    fn request(self: &Rc<Self>, request: http::Request<Incoming>) -> Responding {
        let now = self.worker.now();
        self.stage.set(Stage::Busy);
        self.head.set(0);
        self.output.set(Output::Answering);
        if self.worker.phase.get() != Phase::Running {
            let since = match self.worker.phase.get() {
                Phase::Draining { since, .. } => since,
                _ => now,
            };
            if self.accepted >= since || self.leave_at.get() <= now {
                self.leaving.set(self.leaving.get().or(Some(now)));
            }
        }
        if let Some(at) = self.leaving.get().and_then(|since| self.cut_at(since)) {
            self.check_by(at);
        }
        let (head, body) = request.into_parts();
        let end_stream = body.is_end_stream();
        let mut framing = self.framing.get();
        framing.body(body.size_hint().exact());
        self.framing.set(framing);
        let protocol = protocol(head.version);
        let (headers, failure) = match convert::request(&head) {
            Ok(headers) if self.is_too_large(&headers, 0) => {
                self.worker.shard.limits(Limit::HeaderBytes).inc();
                (headers, Some(Failure::HeadersTooLarge))
            }
            Ok(headers) => (headers, None),
            Err(Refusal::Host(headers)) => (headers, Some(Failure::InvalidAuthority)),
            Err(Refusal::Malformed(rule, headers)) => {
                tracing::debug!(peer = %self.peer, rule, "malformed request");
                (headers, Some(Failure::MalformedRequest))
            }
        };
        let body = (!end_stream).then_some(body);
        let exchange = Exchange::new(self.clone(), protocol, headers.len(), body);
        let client = rpc::Client::Http1(exchange.clone());
        self.exchanges.borrow_mut().push(exchange.clone());
        match failure {
            Some(failure) => rpc::refuse(&self.worker, client, headers, failure, now),
            None => {
                rpc::start(&self.worker, client, headers, end_stream, now);
                self.check_by(now + self.policy.timeouts.stream_idle);
            }
        }
        exchange.started();
        Responding::new(exchange)
    }

    /// Whether a head, or trailers behind a head of so many fields, are above what HTTP/2's engine takes of its clients.
    pub(super) fn is_too_large(&self, headers: &Headers, before: usize) -> bool {
        headers.list_size() > self.policy.http2.max_header_bytes as usize
            || before + headers.len() > MAX_FIELDS
    }
}

/// As the access log names it.
fn protocol(version: http::Version) -> &'static str {
    if version == http::Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        PROTOCOL
    }
}

/// The protocol of a head that couldn't be read, too.
pub(super) const PROTOCOL: &str = "HTTP/1.1";
