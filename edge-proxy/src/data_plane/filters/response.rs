//! What is changed in a response's blocks before they go to the client.

use std::time::Duration;

use http2::{Headers, Known, KnownSet};

use super::classify::{FORBIDDEN_TRAILERS, HOP_BY_HOP};

/// What the rules put into a response's head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseContext<'a> {
    /// The listener's `server_name`.
    pub server_name: &'a str,
    /// The time now, as an HTTP date.
    pub date: &'a [u8],
    /// From the request's end to this head; `None` while the request hasn't ended: then it would tell of the client
    /// and not of the backend.
    pub upstream_time: Option<Duration>,
}

/// A final response's head, a trailers-only one included: `server` is ours, `date` stays or is made,
/// `x-envoy-upstream-service-time` tells whole milliseconds, and what speaks of one connection is dropped.
pub fn head(headers: &mut Headers, context: &ResponseContext<'_>) {
    if headers.has_any(REPLACED) {
        headers.retain(|field| !REPLACED.contains(field.known));
    }
    headers.set_known(Known::Server, context.server_name.as_bytes());
    if headers.known(Known::Date).is_none() {
        headers.push_known(Known::Date, context.date);
    }
    if let Some(time) = context.upstream_time {
        let mut digits = itoa::Buffer::new();
        let millis = time.as_secs().saturating_mul(1000);
        let time = digits.format(millis.saturating_add(time.subsec_millis().into()));
        headers.push_known(Known::XEnvoyUpstreamServiceTime, time.as_bytes());
    }
}

/// An interim (1xx) head: only what speaks of one connection is dropped, nothing is added (RFC 9110 §15.2).
pub fn interim(headers: &mut Headers) {
    headers.retain(|field| !HOP_BY_HOP.contains(field.known));
}

/// Trailers: untouched, but for fields that may not stand there (RFC 9110 §6.5.1).
pub fn trailers(headers: &mut Headers) {
    if headers.has_any(FORBIDDEN_TRAILERS) {
        headers.retain(|field| !FORBIDDEN_TRAILERS.contains(field.known));
    }
}

/// What speaks of one connection, and what we say ourselves.
const REPLACED: KnownSet = HOP_BY_HOP.with(Known::XEnvoyUpstreamServiceTime);
