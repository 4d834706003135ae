//! Step 5: what is done to a request's and a response's header fields, and which requests end here.
//!
//! A request passes an ordered list of [`Filter`]s; each says [`Filtered::Continue`], or [`Filtered::Respond`] and
//! none after it runs. The block is read once ([`Facts::read`]): every filter decides from these facts and touches the
//! block only where they say that something has to change, so the ordinary gRPC request costs one pass and three
//! appended fields, and allocates nothing of its own.
//!
//! An enum and not a list of trait objects: the set is ours, the order is part of the behaviour, and it is checked by
//! reading one constant.

// Who is a gRPC request, and everything else that the rules ask of a block, in one pass.
mod classify;
// What is changed in a request's blocks.
pub mod request;
// What is changed in a response's blocks.
pub mod response;
// `grpc-timeout`: read, and written again with what is left of it.
pub mod timeout;

use http2::Headers;
use rand::rngs::SmallRng;

pub use self::classify::Facts;
use crate::{error::Failure, snapshot::ListenerPolicy};

/// What the rules know of a request besides its block.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext<'a> {
    /// The client's IP address as text, without its port.
    pub peer: &'a str,
    /// Whether the connection is TLS: the value of `x-forwarded-proto`.
    pub secure: bool,
    /// What the client speaks.
    pub version: Version,
}

/// The client's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1 (or 1.0).
    Http1,
    /// HTTP/2.
    Http2,
}

/// Whether a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// To its route.
    Continue,
    /// No further: the proxy answers.
    Respond(Respond),
}

/// What the proxy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Respond {
    /// `listener.health_check`: 200, or 503 while the snapshot isn't serving.
    HealthCheck,
    /// The request is refused.
    Failure(Failure),
}

/// One step of a request's way through the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `/healthz` is answered before any rule can refuse it.
    HealthCheck,
    /// CONNECT is refused: this is no forward proxy.
    Connect,
    /// gRPC needs HTTP/2.
    Protocol,
    /// `host` and `:authority` name the same server, and only `:authority` goes on.
    Authority,
    /// Fields dropped, appended and made.
    Fields,
}

impl Filter {
    /// The order.
    pub const ORDER: [Self; 5] = [
        Self::HealthCheck,
        Self::Connect,
        Self::Protocol,
        Self::Authority,
        Self::Fields,
    ];
}

/// Runs the filters: one per worker, since it holds the worker's random numbers and a buffer.
#[derive(Debug)]
pub struct Filters {
    /// For request ids. They are names, not secrets: a small generator, seeded from the system's, is enough.
    random: SmallRng,
    /// For values that are put together; empty between requests.
    buffer: Vec<u8>,
}

impl Filters {
    /// Seeds the generator from the operating system's.
    pub fn new() -> Self {
        Self::with(rand::make_rng())
    }

    /// With this generator.
    pub(crate) fn with(random: SmallRng) -> Self {
        Self {
            random,
            buffer: Vec::new(),
        }
    }

    /// Classifies the request, and takes it through the filters in order. On [`Filtered::Continue`] the block is as the
    /// backend shall see it, but for a `grpc-timeout` that could be read, which is written at each attempt.
    pub fn run(
        &mut self,
        headers: &mut Headers,
        context: &RequestContext<'_>,
        policy: &ListenerPolicy,
    ) -> (Facts, Filtered) {
        let facts = Facts::read(headers, policy.health_check.as_ref());
        for filter in Filter::ORDER {
            let flow = self.apply(filter, &facts, headers, context);
            if flow != Filtered::Continue {
                return (facts, flow);
            }
        }
        (facts, Filtered::Continue)
    }

    fn apply(
        &mut self,
        filter: Filter,
        facts: &Facts,
        headers: &mut Headers,
        context: &RequestContext<'_>,
    ) -> Filtered {
        match filter {
            Filter::HealthCheck if facts.health_check => Filtered::Respond(Respond::HealthCheck),
            Filter::Connect if facts.connect => {
                Filtered::Respond(Respond::Failure(Failure::ConnectMethod))
            }
            Filter::Protocol if facts.grpc && context.version == Version::Http1 => {
                Filtered::Respond(Respond::Failure(Failure::GrpcOverHttp1))
            }
            Filter::Authority => request::authority(facts, headers, &mut self.buffer),
            Filter::Fields => {
                request::fields(facts, headers, context, &mut self.random, &mut self.buffer)
            }
            Filter::HealthCheck | Filter::Connect | Filter::Protocol => Filtered::Continue,
        }
    }
}

impl Default for Filters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
