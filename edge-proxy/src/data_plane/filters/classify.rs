//! One pass over a request's block: what every filter needs to know of it.
//!
//! Names are told apart by the number that the HTTP/2 engine gave them ([`Known`]); only names that nobody knows and
//! that start like one of the spoofable ones are looked at byte by byte.

use std::time::Duration;

use http2::{Field, Headers, Known};

use super::timeout;
use crate::snapshot::EdgeHealthCheck;

/// What one pass over a request's block found.
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
    /// `te` says more than `trailers`.
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
    /// Reads the block once.
    pub fn read(headers: &Headers, health_check: Option<&EdgeHealthCheck>) -> Self {
        let mut facts = Self::default();
        let mut authority = None;
        let mut host: Option<&[u8]> = None;
        let mut hosts_differ = false;
        let mut content_type = None;
        let mut grpc_timeout = None;
        let mut te_trailers = false;
        let mut health_path = false;
        let (path, header) = match health_check {
            Some(check) => (Some(check.path.as_bytes()), check.header.as_ref()),
            None => (None, None),
        };
        let mut health_header = header.is_none();

        for field in headers.iter() {
            match field.known {
                Known::Method => {
                    facts.head = field.value == b"HEAD";
                    facts.connect = field.value == b"CONNECT";
                }
                Known::Path => health_path = path == Some(field.value),
                Known::Authority => authority = Some(field.value),
                Known::Host => match host {
                    None => host = Some(field.value),
                    Some(first) => hosts_differ |= !first.eq_ignore_ascii_case(field.value),
                },
                Known::ContentType => _ = content_type.get_or_insert(field.value),
                Known::GrpcTimeout => _ = grpc_timeout.get_or_insert(field.value),
                Known::Te => {
                    if field.value != b"trailers" {
                        facts.te = Te::Foreign;
                    }
                    te_trailers |=
                        options(field.value).any(|option| option.eq_ignore_ascii_case(b"trailers"));
                }
                Known::Connection => {
                    facts.connection = true;
                    facts.drop = true;
                }
                Known::XForwardedFor => facts.forwarded_for = true,
                Known::XForwardedProto => facts.forwarded_proto = true,
                Known::XRequestId => {
                    let good = facts.request_id == RequestId::Missing && is_request_id(field.value);
                    facts.request_id = if good {
                        RequestId::Good
                    } else {
                        RequestId::Bad
                    };
                }
                _ => facts.drop |= is_dropped(&field),
            }
            if !health_header
                && let Some((name, value)) = header
                && field.name == name.as_bytes()
                && field.value == value.as_bytes()
            {
                health_header = true;
            }
        }

        facts.health_check = health_path && health_header;
        facts.grpc = content_type.is_some_and(is_grpc);
        facts.grpc_timeout = grpc_timeout.filter(|_| facts.grpc).and_then(timeout::parse);
        if facts.te == Te::Foreign && te_trailers {
            facts.te = Te::Mixed;
        }
        facts.authority = match (authority, host) {
            (_, None) => Authority::Alone,
            (_, Some(_)) if hosts_differ => Authority::Conflict,
            (None, Some(_)) => Authority::FromHost,
            // Host names are case-insensitive (RFC 3986 §3.2.2).
            (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => {
                Authority::Repeated
            }
            (Some(_), Some(_)) => Authority::Conflict,
        };
        facts
    }
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
        known => is_hop_by_hop(known),
    }
}

/// Fields that HTTP/2 forbids, since they speak of one connection (RFC 9113 §8.2.2).
pub(super) fn is_hop_by_hop(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade
            | Known::Http2Settings
    )
}

/// Fields of framing, routing and the connection, which may not stand in trailers (RFC 9110 §6.5.1).
pub(super) fn is_forbidden_trailer(known: Known) -> bool {
    is_hop_by_hop(known) || matches!(known, Known::Te | Known::Host | Known::ContentLength)
}

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
