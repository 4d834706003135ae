//! The configuration as written: one struct per mapping of the YAML file, unknown keys refused.
//!
//! Nothing is interpreted here. Every value keeps its place in the file ([`At`]) and durations and addresses stay
//! text, so that `validate` can report all mistakes of meaning in one go, each with line and column. The doc
//! comments and ranges are what `edge-proxy schema` shows in an editor; a test holds the ranges against `validate`'s.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::place::At;

/// Configuration of edge-proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "edge-proxy")]
pub(super) struct File {
    /// The `server` response header. Default: edge-proxy.
    pub(super) server_name: Option<At<String>>,
    /// Worker threads; 0: as many as the cgroup grants cores. Default: 0.
    #[schemars(range(max = 1024))]
    pub(super) workers: Option<At<u64>>,
    /// How names are resolved.
    #[serde(default)]
    pub(super) dns: Dns,
    /// Where clients come in.
    pub(super) listener: Listener,
    /// The operator's pages.
    #[serde(default)]
    pub(super) admin: Server,
    /// /livez, /readyz and /metrics, for the node and the monitoring.
    #[serde(default)]
    pub(super) probes: Server,
    /// What SIGTERM does.
    #[serde(default)]
    pub(super) drain: Drain,
    /// One line per RPC.
    #[serde(default)]
    pub(super) access_log: AccessLog,
    /// Tried in this order; the first match wins.
    #[schemars(length(min = 1))]
    pub(super) routes: At<Vec<Route>>,
    /// The backends.
    pub(super) clusters: At<Vec<Cluster>>,
}

/// `dns`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dns {
    /// IP addresses, with a port if it isn't 53 (`"[fd00::a]:5353"`). Empty: those of /etc/resolv.conf, as it is at the start.
    /// Default: empty.
    pub(super) nameservers: Vec<At<String>>,
}

/// `listener`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// IP address and port, as 0.0.0.0:8443.
    pub(super) address: At<String>,
    /// The certificate.
    pub(super) tls: Tls,
    /// A path that is answered here, no backend asked. Default: none.
    #[serde(default, deserialize_with = "mapping")]
    #[schemars(with = "EdgeHealthCheck")]
    pub(super) health_check: Option<EdgeHealthCheck>,
    /// Connections open at once; never more than the memory limit ÷ 32 KiB, nor than nine tenths of the limit of open files
    /// (`ulimit -n`), less 64: the log says when that is less than what is configured, and `edge_connections_limit` what
    /// holds. Default: 10000, or memory limit ÷ 32 KiB if less.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_connections: Option<At<u64>>,
    /// Connections open at once from one source: an IPv4 address, or the /64 of an IPv6 address. Default: 256.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_connections_per_source: Option<At<u64>>,
    /// Connections between accept and the end of their TLS handshake. Default: 512.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_pending_handshakes: Option<At<u64>>,
    /// After this (± 10 %) a connection gets its GOAWAY. Default: 30m.
    pub(super) max_connection_age: Option<At<Span>>,
    /// How long running streams may go on after that; then they end, and what waits for a shut window 5 s later. A drain has
    /// `drain.deadline`. Default: as long as they want.
    pub(super) max_connection_age_grace: Option<At<Span>>,
    /// PINGs to clients.
    #[serde(default)]
    pub(super) keepalive: Keepalive,
    /// Time limits.
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    /// HTTP/2 limits towards clients.
    #[serde(default)]
    pub(super) http2: ListenerHttp2,
}

/// `listener.tls`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// PEM file: the leaf first, then the intermediates.
    #[schemars(regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"))]
    pub(super) certificate_chain: At<String>,
    /// PEM file: the leaf's key.
    #[schemars(regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"))]
    pub(super) private_key: At<String>,
}

/// `listener.health_check`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EdgeHealthCheck {
    /// Compared byte for byte. Default: /healthz.
    pub(super) path: Option<At<String>>,
    /// A header that must be there too. Default: none, the path alone decides.
    #[serde(default, deserialize_with = "mapping")]
    #[schemars(with = "Header")]
    pub(super) header: Option<Header>,
}

/// `listener.health_check.header`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// In lower case.
    pub(super) name: At<String>,
    /// Compared byte for byte.
    pub(super) value: At<String>,
}

/// `listener.keepalive`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keepalive {
    /// Between PINGs while streams are open; five times as long otherwise. Default: 60s.
    pub(super) interval: Option<At<Span>>,
    /// How long the answer may take, or the next byte of any kind. Default: 20s.
    pub(super) timeout: Option<At<Span>>,
}

/// `listener.timeouts`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    /// Accept to the end of the TLS handshake. Default: 5s.
    pub(super) tls_handshake: Option<At<Span>>,
    /// Accept to HTTP/2 preface and SETTINGS, or to whole HTTP/1.1 headers. Default: 10s.
    pub(super) preface: Option<At<Span>>,
    /// An open HTTP/2 header block; over HTTP/1.1 the rest of a head, but the first (`preface`). Default: 10s.
    pub(super) header_block: Option<At<Span>>,
    /// No byte either way on a stream. Default: 5m.
    pub(super) stream_idle: Option<At<Span>>,
    /// A socket write without progress. To a backend 10 s at most: the kernel gives up then. Default: 30s.
    pub(super) write_stall: Option<At<Span>>,
    /// A stream whose window the client keeps shut; a connection's window that a backend keeps shut while others wait for it:
    /// the RPC that holds most of it ends. Default: 60s.
    pub(super) stream_window_stall: Option<At<Span>>,
    /// A connection without streams. Default: 15m.
    pub(super) idle: Option<At<Span>>,
}

/// `listener.http2`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenerHttp2 {
    /// Streams that a client may have open. Default: 100.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_concurrent_streams: Option<At<u64>>,
    /// Bytes per stream before credit. Default: 65536.
    #[schemars(range(min = 16_384, max = 2_147_483_647))]
    pub(super) initial_stream_window_size: Option<At<u64>>,
    /// Bytes per connection before credit. Default: 1048576.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    pub(super) initial_connection_window_size: Option<At<u64>>,
    /// Size of a request's header list above which it is answered 431. So is a request of more than 97 fields, of any size.
    /// Default: 8192.
    #[schemars(range(min = 1024, max = 32_768))]
    pub(super) max_header_bytes: Option<At<u64>>,
}

/// `admin`, `probes`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    /// IP address and port. Default: 127.0.0.1:8090 (admin), 0.0.0.0:8091 (probes).
    pub(super) address: Option<At<String>>,
}

/// `drain`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drain {
    /// Over which connections get their GOAWAY. Default: 10s.
    pub(super) time: Option<At<Span>>,
    /// How long running RPCs may take after it. Default: 60s.
    pub(super) deadline: Option<At<Span>>,
}

/// `access_log`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessLog {
    /// How a line looks; off: no lines. Default: json.
    pub(super) format: Option<At<AccessLogFormat>>,
    /// A file that lines are appended to. Default: standard output.
    #[schemars(regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"))]
    pub(super) path: Option<At<String>>,
}

/// `access_log.format`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AccessLogFormat {
    Json,
    Text,
    Off,
}

/// `routes[]`: `prefix`, and either `cluster` or `direct_response`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Start of the path, compared byte for byte: /api.Echo/ with both slashes is one service.
    pub(super) prefix: At<String>,
    /// Name of the cluster that it leads to.
    pub(super) cluster: Option<At<String>>,
    /// Covers the whole RPC. Default: no limit.
    pub(super) timeout: Option<At<Span>>,
    /// Caps what clients ask for by grpc-timeout. Default: no cap.
    pub(super) max_grpc_timeout: Option<At<Span>>,
    /// An answer from here, no backend asked.
    #[serde(default, deserialize_with = "mapping")]
    #[schemars(with = "DirectResponse")]
    pub(super) direct_response: Option<At<DirectResponse>>,
}

/// `routes[].direct_response`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectResponse {
    /// HTTP status; a gRPC client gets the gRPC status that it maps to.
    #[schemars(range(min = 200, max = 599))]
    pub(super) status: At<u64>,
    /// Text. Default: empty.
    pub(super) body: Option<At<String>>,
}

/// `clusters[]`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    /// What routes call it.
    #[schemars(regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"))]
    pub(super) name: At<String>,
    /// strict_dns: all addresses of each name; static: IP addresses, as written. Default: strict_dns.
    pub(super) discovery: Option<At<Discovery>>,
    /// host:port each.
    #[schemars(length(min = 1))]
    pub(super) endpoints: At<Vec<At<String>>>,
    /// Which addresses are asked for; auto: IPv6, and IPv4 when there are none. Default: auto.
    pub(super) dns_lookup_family: Option<At<LookupFamily>>,
    /// From an answer to the next look-up, ± 10 %. Default: 5s.
    pub(super) dns_refresh_rate: Option<At<Span>>,
    /// How an endpoint is picked for each RPC. Default: round_robin.
    #[expect(
        dead_code,
        reason = "one policy so far; the key is there so that files name it"
    )]
    pub(super) lb_policy: Option<At<LbPolicy>>,
    /// For one connection attempt, and for the backend's SETTINGS. Default: 5s.
    pub(super) connect_timeout: Option<At<Span>>,
    /// grpc.health.v1 checks. Default: none, all endpoints count as healthy.
    #[serde(default, deserialize_with = "mapping")]
    #[schemars(with = "HealthCheck")]
    pub(super) health_check: Option<HealthCheck>,
    /// Failures in a row that take an endpoint out of use for a while. Default: 5 RPCs that it didn't take.
    #[serde(default)]
    pub(super) outlier_detection: OutlierDetection,
    /// How much of the cluster may be in use at once, over all workers; an RPC above it gets 14. Default: no limit.
    #[serde(default)]
    pub(super) circuit_breakers: CircuitBreakers,
    /// Percent of healthy endpoints below which all are used; 0: never. Default: 0.
    #[schemars(range(max = 100))]
    pub(super) panic_threshold: Option<At<u64>>,
    /// HTTP/2 connections per endpoint and worker; all but the first are closed after 15 minutes without a stream. One
    /// that takes no more RPCs (after a GOAWAY) isn't counted; while 256 of those are left, no other is opened. Default: 8.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_connections: Option<At<u64>>,
    /// Streams per such connection. Default: 100.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) per_connection_streams: Option<At<u64>>,
    /// Windows towards the backends.
    #[serde(default)]
    pub(super) http2: ClusterHttp2,
    /// Bytes of a request's body kept for another attempt. Default: 65536.
    #[schemars(range(max = 67_108_864))]
    pub(super) max_replay_bytes: Option<At<u64>>,
}

/// `clusters[].discovery`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Discovery {
    StrictDns,
    Static,
}

/// `clusters[].dns_lookup_family`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LookupFamily {
    V4Only,
    V6Only,
    Auto,
}

/// `clusters[].lb_policy`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LbPolicy {
    RoundRobin,
}

/// `clusters[].health_check`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HealthCheck {
    /// Service that is asked for; empty: the whole server. Default: empty.
    pub(super) service: Option<At<String>>,
    /// Of one check. Default: 1s.
    pub(super) timeout: Option<At<Span>>,
    /// Between checks, ± 10 %. Default: 10s.
    pub(super) interval: Option<At<Span>>,
    /// Between checks after the first failure, and while no endpoint is healthy (1s at least). Default: 1s.
    pub(super) unhealthy_edge_interval: Option<At<Span>>,
    /// Failures in a row that eject. Default: 2.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) unhealthy_threshold: Option<At<u64>>,
    /// Passes in a row that bring back. Default: 2.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) healthy_threshold: Option<At<u64>>,
}

/// `clusters[].outlier_detection`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OutlierDetection {
    /// RPCs in a row that it didn't take: connections that fail, time out or end under them, refused streams; 0: not counted. Default: 5.
    #[schemars(range(max = 1_048_575))]
    pub(super) consecutive_local_origin_failure: Option<At<u64>>,
    /// Answers in a row with gRPC status 14 or HTTP 502 to 504, and streams that it resets or breaks; 0: not counted. Default: 0.
    #[schemars(range(max = 1_048_575))]
    pub(super) consecutive_gateway_failure: Option<At<u64>>,
    /// These, and gRPC status 2, 13, 15 or none and any HTTP 5xx; 0: not counted. Default: 0.
    #[schemars(range(max = 1_048_575))]
    pub(super) consecutive_5xx: Option<At<u64>>,
    /// false: RPCs that it didn't take count in the other two instead. Default: true.
    pub(super) split_external_local_origin_errors: Option<At<bool>>,
    /// For each of these without an ejection, the next one is a step shorter. Default: 10s.
    pub(super) interval: Option<At<Span>>,
    /// How long the first ejection lasts; the second twice as long, and so on. Default: 30s.
    pub(super) base_ejection_time: Option<At<Span>>,
    /// How long any ejection lasts at most. Default: 300s, or base_ejection_time if that is more.
    pub(super) max_ejection_time: Option<At<Span>>,
    /// Percent of the endpoints that may be ejected at once; one may always be, the last one in use never. Default: 10.
    #[schemars(range(max = 100))]
    pub(super) max_ejection_percent: Option<At<u64>>,
    /// false: counted and told, nothing is ejected. Default: true.
    pub(super) enforcing_consecutive_local_origin_failure: Option<At<bool>>,
    /// Likewise. Default: true.
    pub(super) enforcing_consecutive_gateway_failure: Option<At<bool>>,
    /// Likewise. Default: true.
    pub(super) enforcing_consecutive_5xx: Option<At<bool>>,
}

/// `clusters[].circuit_breakers`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CircuitBreakers {
    /// Connections to all endpoints, over all workers; one for each endpoint and worker is the least that serves well. One
    /// that takes no more RPCs (after a GOAWAY) isn't counted. Default: no limit.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_connections: Option<At<u64>>,
    /// RPCs that wait for a connection. Default: no limit.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_pending_requests: Option<At<u64>>,
    /// RPCs that run. Default: no limit.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_requests: Option<At<u64>>,
    /// Attempts after an RPC's first one. Default: no limit.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(super) max_retries: Option<At<u64>>,
}

/// `clusters[].http2`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClusterHttp2 {
    /// Bytes per stream before credit. Default: 262144.
    #[schemars(range(min = 16_384, max = 2_147_483_647))]
    pub(super) initial_stream_window_size: Option<At<u64>>,
    /// Bytes per connection before credit. Default: per_connection_streams × the stream's window.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    pub(super) initial_connection_window_size: Option<At<u64>>,
}

/// A duration: digits and one of ms, s, m, h.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(rename = "Duration")]
pub(super) struct Span(#[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h)$"))] pub(super) String);

/// A mapping that may be left out as a whole, but not be nothing: of a file that is cut off behind `health_check:` that
/// would switch the checks off.
fn mapping<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
