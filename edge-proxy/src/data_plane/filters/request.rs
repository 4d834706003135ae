//! What is changed in a request's blocks before they go to a backend.
//!
//! Only what has to: `:authority`, `:path`, user metadata with its order, duplicates and `-bin` values are never
//! touched.

use http2::{Field, Headers, Known};
use rand::{Rng, rngs::SmallRng};
use uuid::fmt::Hyphenated;

use super::{
    Filtered, RequestContext, Respond, Version,
    classify::{
        Authority, FORBIDDEN_TRAILERS, Facts, RequestId, Te, is_dropped, is_spoofable, options,
    },
};
use crate::error::Failure;

/// `host` that differs from `:authority` is refused, one that repeats it is dropped, one that stands alone takes its
/// place if it can (RFC 9113 §8.3.1).
pub(super) fn authority(facts: &Facts, headers: &mut Headers, buffer: &mut Vec<u8>) -> Filtered {
    match facts.authority {
        Authority::Alone => {}
        Authority::Conflict => {
            return Filtered::Respond(Respond::Failure(Failure::InvalidAuthority));
        }
        Authority::Repeated => headers.remove_known(Known::Host),
        Authority::FromHost => {
            buffer.clear();
            buffer.extend_from_slice(headers.known(Known::Host).unwrap_or_default());
            if !http2::is_authority(buffer) {
                return Filtered::Respond(Respond::Failure(Failure::InvalidAuthority));
            }
            headers.remove_known(Known::Host);
            headers.set_known(Known::Authority, buffer);
        }
    }
    Filtered::Continue
}

/// Drops, appends and makes fields. More options of `connection` than anybody has are malformed: each is compared with
/// each field.
pub(super) fn fields(
    facts: &Facts,
    headers: &mut Headers,
    context: &RequestContext<'_>,
    random: &mut SmallRng,
    buffer: &mut Vec<u8>,
) -> Filtered {
    if facts.drop {
        buffer.clear();
        if facts.connection {
            for value in headers.all_known(Known::Connection) {
                buffer.extend_from_slice(value);
                buffer.push(b',');
            }
            if buffer.iter().filter(|&&byte| byte == b',').count() > MAX_OPTIONS {
                let rule = "more than 32 options of connection";
                tracing::debug!(peer = context.peer, rule, "malformed request");
                return Filtered::Respond(Respond::Failure(Failure::MalformedRequest));
            }
        }
        let named: &[u8] = buffer;
        headers.retain(|field| !is_dropped(&field) && !is_named(named, field.known, field.name));
    }
    if context.version == Version::Http1 {
        // Our own server has already answered it with 100 (RFC 9110 §10.1.1).
        headers.remove_known(Known::Expect);
    }
    match facts.te {
        Te::Clean => {}
        Te::Mixed => headers.set_known(Known::Te, b"trailers"),
        Te::Foreign => headers.remove_known(Known::Te),
    }

    // What differs from RPC to RPC goes last, and most of all what each attempt writes anew: the encoder copies what a
    // block begins with in common with the one before.
    if facts.grpc_timeout.is_some() {
        headers.pop_known(Known::GrpcTimeout);
    }

    let scheme: &[u8] = if context.secure { b"https" } else { b"http" };
    if facts.forwarded_proto {
        headers.set_known(Known::XForwardedProto, scheme);
    } else {
        headers.push_known(Known::XForwardedProto, scheme);
    }

    if facts.forwarded_for {
        buffer.clear();
        for value in headers
            .all_known(Known::XForwardedFor)
            .filter(|value| !value.is_empty())
        {
            buffer.extend_from_slice(value);
            buffer.extend_from_slice(b", ");
        }
        buffer.extend_from_slice(context.peer.as_bytes());
        headers.set_known(Known::XForwardedFor, buffer);
    } else {
        headers.push_known(Known::XForwardedFor, context.peer.as_bytes());
    }

    if facts.request_id != RequestId::Good {
        let mut bits = [0; 16];
        random.fill_bytes(&mut bits);
        let mut text = [0; Hyphenated::LENGTH];
        let id = uuid::Builder::from_random_bytes(bits).into_uuid();
        let id = id.hyphenated().encode_lower(&mut text);
        if facts.request_id == RequestId::Missing {
            headers.push_known(Known::XRequestId, id.as_bytes());
        } else {
            headers.set_known(Known::XRequestId, id.as_bytes());
        }
    }
    Filtered::Continue
}

/// Drops from a request's trailers what may not stand in trailers, and what a backend could take for a proxy's word.
/// Everything else is the application's and stays.
pub fn trailers(headers: &mut Headers) {
    let is_forbidden = |field: &Field<'_>| match field.known {
        Known::Other => is_spoofable(field.name),
        Known::XForwardedFor
        | Known::XForwardedProto
        | Known::XRequestId
        | Known::XEnvoyUpstreamServiceTime => true,
        known => FORBIDDEN_TRAILERS.contains(known),
    };
    if headers.iter().any(|field| is_forbidden(&field)) {
        headers.retain(|field| !is_forbidden(&field));
    }
}

/// Whether the options of `connection`, joined, name this field (RFC 9110 §7.6.1). Pseudo-header fields and those with
/// a rule of their own can't be taken away so: a client could hide from backends where it comes from.
fn is_named(connection: &[u8], known: Known, name: &[u8]) -> bool {
    !connection.is_empty()
        && !matches!(
            known,
            Known::Te | Known::XForwardedFor | Known::XForwardedProto | Known::XRequestId
        )
        && name.first() != Some(&b':')
        && options(connection).any(|option| option.eq_ignore_ascii_case(name))
}

/// Fields of a request that are taken, its trailers' and pseudo-header fields among them: with what the filters add, no more
/// than 100 reach a backend. For the 101st, Kestrel (ASP.NET Core) ends its connection, with the RPCs of all clients on it
/// (`MaxRequestHeaderCount`). Envoy, too, takes 100 unless told otherwise.
pub const MAX_FIELDS: usize = 100 - ADDED;
/// `x-forwarded-proto`, `x-forwarded-for` and `x-request-id`.
const ADDED: usize = 3;
/// Options of `connection`; clients have one or two.
const MAX_OPTIONS: usize = 32;
