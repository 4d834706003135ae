//! What happened to an RPC, whose fault it is, may it be attempted again: and the HTTP and gRPC status of each case,
//! in one table.
//!
//! A [`Failure`] is what the proxy knows when it has to answer in place of a backend. The answer's form depends on the
//! client's protocol and is made by `data_plane/answer.rs`; every number and every text is here. The texts are Envoy's
//! wherever Envoy has one, because operators and their alerts know them, and never hold an address or an error of the
//! operating system: they go to clients that nobody trusts.

use std::borrow::Cow;

use crate::snapshot::circuit::Circuit;
pub use crate::telemetry::labels::Flag;

/// Why the proxy answers itself: one case per row of the table of local answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No route's prefix starts the path.
    NoRoute,
    /// The cluster has no endpoint at all (nothing discovered).
    NoEndpoint,
    /// The cluster has endpoints, none of them eligible.
    NoHealthyUpstream,
    /// Connections were refused or failed, on every attempt.
    ConnectFailed,
    /// No connection within `connect_timeout`, on every attempt.
    ConnectTimeout,
    /// The attempt ended before response headers came.
    ResetBeforeHeaders(ResetCause),
    /// The upstream failed after its response headers were relayed: told in trailers.
    ResetAfterHeaders(ResetCause),
    /// The deadline (`grpc-timeout`, or the route's `timeout`) passed.
    DeadlineExceeded,
    /// No byte either way for `stream_idle`.
    StreamIdle,
    /// `host` differs from `:authority`.
    InvalidAuthority,
    /// The request breaks HTTP's rules.
    MalformedRequest,
    /// The request's header list is above `max_header_bytes`, or of too many fields.
    HeadersTooLarge,
    /// Overload, or a limit of clients.
    Overloaded,
    /// Others waited for a stream to the backend, and the client had more than its share of them.
    AboveShare,
    /// A circuit limit of the cluster.
    CircuitLimit(Circuit),
    /// The process ends, and `drain.deadline` (or a connection's grace) has passed.
    Draining,
    /// A panic in the RPC's steps, or an error of ours. The detail goes to the log only.
    Internal,
    /// A gRPC request over HTTP/1.1.
    GrpcOverHttp1,
    /// The method CONNECT: this is no forward proxy.
    ConnectMethod,
}

/// How an upstream's stream ended when it shouldn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetCause {
    /// The connection closed under it.
    Termination,
    /// The backend sent RST_STREAM.
    RemoteReset,
    /// The backend broke a rule of HTTP/2, and we reset the stream or the connection.
    ProtocolError,
}

/// Who has to change something for this not to happen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Whoever sent the request.
    Client,
    /// The backend, or the network to it.
    Upstream,
    /// This proxy, its configuration or its size.
    Proxy,
}

/// Envoy's words for an upstream that failed before its response, or in it.
macro_rules! before_headers {
    ($reason:literal) => {
        concat!(
            "upstream connect error or disconnect/reset before headers. reset reason: ",
            $reason
        )
    };
}
macro_rules! after_headers {
    ($reason:literal) => {
        concat!(
            "upstream disconnect/reset after headers. reset reason: ",
            $reason
        )
    };
}

impl Failure {
    /// The status for a plain HTTP request. After relayed headers ([`Failure::ResetAfterHeaders`]) nobody sees it.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidAuthority | Self::MalformedRequest => 400,
            Self::NoRoute => 404,
            Self::ConnectMethod => 405,
            Self::HeadersTooLarge => 431,
            Self::Internal => 500,
            Self::NoEndpoint
            | Self::NoHealthyUpstream
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::ResetBeforeHeaders(_)
            | Self::ResetAfterHeaders(_)
            | Self::Overloaded
            | Self::AboveShare
            | Self::CircuitLimit(_)
            | Self::Draining => 503,
            Self::DeadlineExceeded | Self::StreamIdle => 504,
            Self::GrpcOverHttp1 => 505,
        }
    }

    /// The status for a gRPC request: [`grpc_from_http`] of the HTTP status, but where gRPC has a better word.
    pub fn grpc_status(self) -> u32 {
        match self {
            // Envoy says UNAVAILABLE unless told otherwise; clients then retry what has no time left.
            Self::DeadlineExceeded | Self::StreamIdle => grpc::DEADLINE_EXCEEDED,
            Self::HeadersTooLarge | Self::Overloaded | Self::AboveShare => grpc::RESOURCE_EXHAUSTED,
            Self::Internal => grpc::INTERNAL,
            other => grpc_from_http(other.http_status()),
        }
    }

    /// The words that the client gets: `grpc-message`, or the body of a plain answer. Empty: none.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoRoute => "",
            Self::NoEndpoint | Self::NoHealthyUpstream => "no healthy upstream",
            Self::ConnectFailed => before_headers!("remote connection failure"),
            Self::ConnectTimeout => before_headers!("connection timeout"),
            Self::ResetBeforeHeaders(cause) => match cause {
                ResetCause::Termination => before_headers!("connection termination"),
                ResetCause::RemoteReset => before_headers!("remote reset"),
                ResetCause::ProtocolError => before_headers!("protocol error"),
            },
            Self::ResetAfterHeaders(cause) => match cause {
                ResetCause::Termination => after_headers!("connection termination"),
                ResetCause::RemoteReset => after_headers!("remote reset"),
                ResetCause::ProtocolError => after_headers!("protocol error"),
            },
            Self::DeadlineExceeded => "upstream request timeout",
            Self::StreamIdle => "stream timeout",
            Self::InvalidAuthority => "invalid authority",
            Self::MalformedRequest => "malformed request",
            Self::HeadersTooLarge => "request header fields too large",
            Self::Overloaded => "overloaded",
            Self::AboveShare => {
                "ended for others: more than this client's share of the streams to the backend"
            }
            Self::CircuitLimit(Circuit::Connections) => {
                "upstream circuit limit reached: max_connections"
            }
            Self::CircuitLimit(Circuit::PendingRequests) => {
                "upstream circuit limit reached: max_pending_requests"
            }
            Self::CircuitLimit(Circuit::Requests) => "upstream circuit limit reached: max_requests",
            Self::CircuitLimit(Circuit::Retries) => "upstream circuit limit reached: max_retries",
            Self::Draining => "the proxy is shutting down",
            Self::Internal => "internal error",
            Self::GrpcOverHttp1 => "gRPC needs HTTP/2",
            Self::ConnectMethod => "CONNECT is not supported",
        }
    }

    /// The flag of the access log.
    pub fn flag(self) -> Flag {
        match self {
            Self::NoRoute => Flag::NoRoute,
            Self::NoEndpoint | Self::NoHealthyUpstream => Flag::NoHealthyUpstream,
            Self::ConnectFailed | Self::ConnectTimeout => Flag::UpstreamConnectFailure,
            Self::ResetBeforeHeaders(cause) | Self::ResetAfterHeaders(cause) => match cause {
                ResetCause::Termination => Flag::UpstreamConnectionTermination,
                ResetCause::RemoteReset => Flag::UpstreamReset,
                ResetCause::ProtocolError => Flag::UpstreamProtocolError,
            },
            Self::DeadlineExceeded => Flag::UpstreamTimeout,
            Self::StreamIdle => Flag::StreamIdle,
            Self::InvalidAuthority => Flag::InvalidHost,
            Self::MalformedRequest
            | Self::HeadersTooLarge
            | Self::GrpcOverHttp1
            | Self::ConnectMethod => Flag::DownstreamProtocolError,
            Self::Overloaded | Self::AboveShare => Flag::Overload,
            Self::CircuitLimit(_) => Flag::UpstreamOverflow,
            Self::Draining | Self::Internal => Flag::LocalReset,
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::NoRoute
            | Self::InvalidAuthority
            | Self::MalformedRequest
            | Self::HeadersTooLarge
            | Self::GrpcOverHttp1
            | Self::ConnectMethod => Fault::Client,
            Self::NoEndpoint
            | Self::NoHealthyUpstream
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::ResetBeforeHeaders(_)
            | Self::ResetAfterHeaders(_)
            | Self::DeadlineExceeded
            | Self::StreamIdle => Fault::Upstream,
            Self::Overloaded
            | Self::AboveShare
            | Self::CircuitLimit(_)
            | Self::Draining
            | Self::Internal => Fault::Proxy,
        }
    }

    /// Whether this failure by itself proves that no backend processed the RPC, so that another attempt may follow.
    /// A reset proves it only together with its code or a GOAWAY, which `upstream/retry.rs` judges.
    pub fn may_retry(self) -> bool {
        matches!(self, Self::ConnectFailed | Self::ConnectTimeout)
    }
}

/// The gRPC status for an HTTP status, where one has to be mapped. gRPC's `http-grpc-status-mapping` document, which
/// clients apply to answers without `grpc-status`: a client sees the same whether we map or it does.
pub fn grpc_from_http(status: u16) -> u32 {
    match status {
        400 => grpc::INTERNAL,
        401 => grpc::UNAUTHENTICATED,
        403 => grpc::PERMISSION_DENIED,
        404 => grpc::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => grpc::UNAVAILABLE,
        _ => grpc::UNKNOWN,
    }
}

/// A text as `grpc-message` carries it: bytes outside `%x20-%x7E`, and `%` itself, as `%XX` of their UTF-8 (gRPC over
/// HTTP/2, "Percent-Encoded").
pub fn encode_grpc_message(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(encoded)
}

/// The gRPC status codes that the proxy gives, or reads something from (gRPC's `statuscodes` document). What a backend says
/// may be any number.
pub mod grpc {
    /// All went well.
    pub const OK: u32 = 0;
    /// The client took its request back.
    pub const CANCELLED: u32 = 1;
    /// Also what stands for a status of HTTP that has no better word.
    pub const UNKNOWN: u32 = 2;
    /// The deadline passed.
    pub const DEADLINE_EXCEEDED: u32 = 4;
    /// Of a health check: the service isn't known there.
    pub const NOT_FOUND: u32 = 5;
    /// As 403.
    pub const PERMISSION_DENIED: u32 = 7;
    /// A limit, of the proxy's or the backend's.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// Of a health check: there is no health service.
    pub const UNIMPLEMENTED: u32 = 12;
    /// An error of whoever says so.
    pub const INTERNAL: u32 = 13;
    /// Whoever asks may try again.
    pub const UNAVAILABLE: u32 = 14;
    /// An error of the backend's.
    pub const DATA_LOSS: u32 = 15;
    /// As 401.
    pub const UNAUTHENTICATED: u32 = 16;
}

/// Upper case, as the gRPC document's grammar has it.
const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::labels::Label as _;

    #[test]
    fn the_table_of_local_answers() {
        const BEFORE: &str =
            "upstream connect error or disconnect/reset before headers. reset reason: ";
        let before = |cause: &str| format!("{BEFORE}{cause}");
        let rows: &[(Failure, u16, u32, String, &str)] = &[
            (Failure::NoRoute, 404, 12, String::new(), "NR"),
            (
                Failure::NoEndpoint,
                503,
                14,
                "no healthy upstream".into(),
                "UH",
            ),
            (
                Failure::NoHealthyUpstream,
                503,
                14,
                "no healthy upstream".into(),
                "UH",
            ),
            (
                Failure::ConnectFailed,
                503,
                14,
                before("remote connection failure"),
                "UF",
            ),
            (
                Failure::ConnectTimeout,
                503,
                14,
                before("connection timeout"),
                "UF",
            ),
            (
                Failure::ResetBeforeHeaders(ResetCause::Termination),
                503,
                14,
                before("connection termination"),
                "UC",
            ),
            (
                Failure::ResetBeforeHeaders(ResetCause::RemoteReset),
                503,
                14,
                before("remote reset"),
                "UR",
            ),
            (
                Failure::ResetBeforeHeaders(ResetCause::ProtocolError),
                503,
                14,
                before("protocol error"),
                "UPE",
            ),
            (
                Failure::ResetAfterHeaders(ResetCause::RemoteReset),
                503,
                14,
                "upstream disconnect/reset after headers. reset reason: remote reset".into(),
                "UR",
            ),
            (
                Failure::DeadlineExceeded,
                504,
                4,
                "upstream request timeout".into(),
                "UT",
            ),
            (Failure::StreamIdle, 504, 4, "stream timeout".into(), "SI"),
            (
                Failure::InvalidAuthority,
                400,
                13,
                "invalid authority".into(),
                "IH",
            ),
            (
                Failure::MalformedRequest,
                400,
                13,
                "malformed request".into(),
                "DPE",
            ),
            (
                Failure::HeadersTooLarge,
                431,
                8,
                "request header fields too large".into(),
                "DPE",
            ),
            (Failure::Overloaded, 503, 8, "overloaded".into(), "OM"),
            (
                Failure::AboveShare,
                503,
                8,
                "ended for others: more than this client's share of the streams to the backend"
                    .into(),
                "OM",
            ),
            (
                Failure::CircuitLimit(Circuit::PendingRequests),
                503,
                14,
                "upstream circuit limit reached: max_pending_requests".into(),
                "UO",
            ),
            (
                Failure::Draining,
                503,
                14,
                "the proxy is shutting down".into(),
                "LR",
            ),
            (Failure::Internal, 500, 13, "internal error".into(), "LR"),
            (
                Failure::GrpcOverHttp1,
                505,
                2,
                "gRPC needs HTTP/2".into(),
                "DPE",
            ),
            (
                Failure::ConnectMethod,
                405,
                2,
                "CONNECT is not supported".into(),
                "DPE",
            ),
        ];
        for (failure, http, grpc, text, flag) in rows {
            assert_eq!(failure.http_status(), *http, "{failure:?}");
            assert_eq!(failure.grpc_status(), *grpc, "{failure:?}");
            assert_eq!(failure.text(), text.as_str(), "{failure:?}");
            assert_eq!(failure.flag().as_str(), *flag, "{failure:?}");
        }
    }

    #[test]
    fn a_circuit_limit_is_named_by_its_key() {
        for circuit in Circuit::ALL {
            let text = Failure::CircuitLimit(circuit).text();
            assert_eq!(text.rsplit_once(": ").unwrap().1, circuit.key());
        }
    }

    #[test]
    fn only_failed_connects_prove_by_themselves_that_nothing_was_processed() {
        assert!(Failure::ConnectFailed.may_retry());
        assert!(Failure::ConnectTimeout.may_retry());
        assert!(!Failure::ResetBeforeHeaders(ResetCause::Termination).may_retry());
        assert!(!Failure::DeadlineExceeded.may_retry());
    }

    #[test]
    fn fault_is_the_clients_for_4xx_and_never_the_clients_for_5xx() {
        assert_eq!(Failure::InvalidAuthority.fault(), Fault::Client);
        assert_eq!(Failure::NoRoute.fault(), Fault::Client);
        assert_eq!(Failure::ConnectFailed.fault(), Fault::Upstream);
        assert_eq!(Failure::Internal.fault(), Fault::Proxy);
    }

    #[test]
    fn http_statuses_map_as_grpc_clients_do() {
        let table = [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (502, 14),
            (503, 14),
            (504, 14),
            (200, 2),
            (405, 2),
            (418, 2),
            (500, 2),
        ];
        for (http, grpc) in table {
            assert_eq!(grpc_from_http(http), grpc, "{http}");
        }
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(
            encode_grpc_message("no healthy upstream"),
            "no healthy upstream"
        );
        assert_eq!(
            encode_grpc_message("100 % Grüße\n"),
            "100 %25 Gr%C3%BC%C3%9Fe%0A"
        );
    }

    proptest! {
        #[test]
        fn a_percent_encoded_message_decodes_to_the_text(text in ".*") {
            let encoded = encode_grpc_message(&text);
            prop_assert!(encoded.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
            let mut decoded = Vec::new();
            let mut rest = encoded.as_bytes();
            while let Some((&byte, tail)) = rest.split_first() {
                if byte == b'%' {
                    let digits = std::str::from_utf8(&tail[..2]).unwrap();
                    decoded.push(u8::from_str_radix(digits, 16).unwrap());
                    rest = &tail[2..];
                } else {
                    decoded.push(byte);
                    rest = tail;
                }
            }
            prop_assert_eq!(String::from_utf8(decoded).unwrap(), text);
        }
    }
}
