//! What every filter needs to know of a request's block, found out once.
//!
//! Names are told apart by the number that the HTTP/2 engine gave them ([`Known`]); only names that nobody knows and
//! that start like one of the spoofable ones are looked at byte by byte.

use std::time::Duration;

use http2::{Field, Headers, Known, KnownSet};

use super::timeout;
use crate::snapshot::EdgeHealthCheck;

/// What a request's block says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// A gRPC request: answers of ours take gRPC's form.
    pub grpc: bool,
    /// The method is HEAD: an answer has no body.
    pub head: bool,
    /// What the client gives the RPC, if it is gRPC and said so in a way that can be read.
    pub grpc_timeout: Option<Duration>,
    /// The listener's health check.
    pub(super) health_check: bool,
    /// The method is CONNECT.
    pub(super) connect: bool,
    /// What `:authority` and `host` say.
    pub(super) authority: Authority,
    /// Something is to be dropped: one more pass.
    pub(super) drop: bool,
    /// There is a `connection` field, whose options name fields to drop (HTTP/1.1 only, the engine refuses it in
    /// HTTP/2).
    pub(super) connection: bool,
    /// What `te` says.
    pub(super) te: Te,
    /// There is an `x-forwarded-for`.
    pub(super) forwarded_for: bool,
    /// There is an `x-forwarded-proto`.
    pub(super) forwarded_proto: bool,
    /// What `x-request-id` there is.
    pub(super) request_id: RequestId,
}

/// `:authority` and `host`, which must name the same server (RFC 9113 §8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Authority {
    /// No `host` field: nothing to do.
    #[default]
    Alone,
    /// `host` repeats it: dropped.
    Repeated,
    /// Only `host`: becomes `:authority`.
    FromHost,
    /// They differ.
    Conflict,
}

/// `te`, hop-by-hop but for the word `trailers`, which gRPC needs end to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Te {
    /// None, or `trailers`: stays.
    #[default]
    Clean,
    /// `trailers` among others: becomes `trailers`.
    Mixed,
    /// Without `trailers`: dropped.
    Foreign,
}

/// `x-request-id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RequestId {
    /// To be made.
    #[default]
    Missing,
    /// `[A-Za-z0-9-]{1,64}`, once: kept.
    Good,
    /// Anything else: replaced.
    Bad,
}

impl Facts {
    /// Asks the block what the filters want to know. Fields of known names are asked for one by one, which costs a
    /// comparison where there is none; only those of other names are looked at in turn.
    pub fn read(headers: &Headers, health_check: Option<&EdgeHealthCheck>) -> Self {
        let method = headers.known(Known::Method).unwrap_or_default();
        let grpc = headers.known(Known::ContentType).is_some_and(is_grpc);
        let connection = headers.has_any(CONNECTION);
        Self {
            grpc,
            head: method == b"HEAD",
            connect: method == b"CONNECT",
            grpc_timeout: headers
                .known(Known::GrpcTimeout)
                .filter(|_| grpc)
                .and_then(timeout::parse),
            health_check: health_check.is_some_and(|check| asks_for_health(headers, check)),
            authority: Authority::of(headers),
            connection,
            drop: connection || headers.has_any(DROPPED) || {
                let mut others = headers.others();
                others.any(|field| is_spoofable(field.name))
            },
            te: Te::of(headers),
            forwarded_for: headers.known(Known::XForwardedFor).is_some(),
            forwarded_proto: headers.known(Known::XForwardedProto).is_some(),
            request_id: RequestId::of(headers),
        }
    }
}

impl Authority {
    fn of(headers: &Headers) -> Self {
        let mut hosts = headers.all_known(Known::Host);
        // Host names are case-insensitive (RFC 3986 §3.2.2).
        match (headers.known(Known::Authority), hosts.next()) {
            (_, None) => Self::Alone,
            (_, Some(host)) if !hosts.all(|other| other.eq_ignore_ascii_case(host)) => {
                Self::Conflict
            }
            (None, Some(_)) => Self::FromHost,
            (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => Self::Repeated,
            (Some(_), Some(_)) => Self::Conflict,
        }
    }
}

impl Te {
    fn of(headers: &Headers) -> Self {
        if headers.all_known(Known::Te).all(|te| te == b"trailers") {
            return Self::Clean;
        }
        let mut options = headers.all_known(Known::Te).flat_map(options);
        if options.any(|option| option.eq_ignore_ascii_case(b"trailers")) {
            Self::Mixed
        } else {
            Self::Foreign
        }
    }
}

impl RequestId {
    fn of(headers: &Headers) -> Self {
        let mut ids = headers.all_known(Known::XRequestId);
        match (ids.next(), ids.next()) {
            (None, _) => Self::Missing,
            (Some(id), None) if is_request_id(id) => Self::Good,
            (Some(_), _) => Self::Bad,
        }
    }
}

fn asks_for_health(headers: &Headers, check: &EdgeHealthCheck) -> bool {
    headers.known(Known::Path) == Some(check.path.as_bytes())
        && check.header.as_ref().is_none_or(|(name, value)| {
            let mut values = headers.get_all(name.as_bytes());
            values.any(|there| there == value.as_bytes())
        })
}

/// Whether this `content-type` is gRPC's: `application/grpc`, alone or before a `+` or `;`. `application/grpc-web` is
/// another protocol, which a bare prefix test would let in.
pub(super) fn is_grpc(content_type: &[u8]) -> bool {
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Fields of one hop, and fields that only a proxy may say: never passed on. `te`, `host` and `connection` have rules
/// of their own.
pub(super) fn is_dropped(field: &Field<'_>) -> bool {
    match field.known {
        Known::Other => is_spoofable(field.name),
        known => DROPPED.contains(known),
    }
}

/// Fields that HTTP/2 forbids, since they speak of one connection (RFC 9113 §8.2.2).
pub(super) const HOP_BY_HOP: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::Http2Settings,
]);

/// These, and those of known names that only a proxy may say.
const DROPPED: KnownSet = HOP_BY_HOP.with(Known::XEnvoyUpstreamServiceTime);

/// The field whose options name others to be dropped.
const CONNECTION: KnownSet = KnownSet::of(&[Known::Connection]);

/// Fields of framing, routing and the connection, which may not stand in trailers (RFC 9110 §6.5.1).
pub(super) const FORBIDDEN_TRAILERS: KnownSet = HOP_BY_HOP
    .with(Known::Te)
    .with(Known::Host)
    .with(Known::ContentLength);

/// Names under which backends read what a trusted proxy said, also as written with `_`: many servers (CGI's
/// environment, WSGI) read both spellings as one name.
pub(super) fn is_spoofable(name: &[u8]) -> bool {
    if !matches!(name.first(), Some(b'x' | b'f')) {
        return false;
    }
    let reads_as = |wanted: &[u8]| {
        name.len() == wanted.len() && name.iter().zip(wanted).all(|(&a, &b)| dashed(a) == b)
    };
    let envoy = b"x-envoy-";
    (name.len() >= envoy.len() && name.iter().zip(envoy).all(|(&a, &b)| dashed(a) == b))
        || [&b"x-forwarded-client-cert"[..], b"x-real-ip", b"forwarded"].into_iter().any(reads_as)
        // Spelled with `-`, these have a number and rules of their own.
        || (name.contains(&b'_')
            && [&b"x-forwarded-for"[..], b"x-forwarded-proto", b"x-request-id"]
                .into_iter()
                .any(reads_as))
}

/// The members of a comma-separated list, without blanks around them.
pub(super) fn options(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn dashed(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

fn is_request_id(value: &[u8]) -> bool {
    matches!(value.len(), 1..=64)
        && value
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}
