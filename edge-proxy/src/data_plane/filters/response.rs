//! What is changed in a response's blocks before they go to the client.

use std::time::Duration;

use http2::{Headers, Known};

use super::classify::{is_forbidden_trailer, is_hop_by_hop};

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
    let (mut drop, mut server, mut date) = (false, false, false);
    for field in headers.iter() {
        match field.known {
            Known::Server => server = true,
            Known::Date => date = true,
            Known::Other => drop |= field.name == UPSTREAM_TIME,
            known => drop |= is_hop_by_hop(known),
        }
    }
    if drop {
        headers.retain(|field| !is_hop_by_hop(field.known) && field.name != UPSTREAM_TIME);
    }
    if server {
        headers.set_known(Known::Server, context.server_name.as_bytes());
    } else {
        headers.push_known(Known::Server, context.server_name.as_bytes());
    }
    if !date {
        headers.push_known(Known::Date, context.date);
    }
    if let Some(time) = context.upstream_time {
        let mut digits = itoa::Buffer::new();
        headers.push(UPSTREAM_TIME, digits.format(time.as_millis()).as_bytes());
    }
}

/// An interim (1xx) head: only what speaks of one connection is dropped, nothing is added (RFC 9110 §15.2).
pub fn interim(headers: &mut Headers) {
    headers.retain(|field| !is_hop_by_hop(field.known));
}

/// Trailers: untouched, but for fields that may not stand there (RFC 9110 §6.5.1).
pub fn trailers(headers: &mut Headers) {
    if headers
        .iter()
        .any(|field| is_forbidden_trailer(field.known))
    {
        headers.retain(|field| !is_forbidden_trailer(field.known));
    }
}

/// Envoy's name for it, which dashboards know.
const UPSTREAM_TIME: &[u8] = b"x-envoy-upstream-service-time";
