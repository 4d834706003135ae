//! From the configuration as written to [`Config`]: references resolved, defaults filled in, every number in range.
//!
//! Pure: no file and no clock is read. A mistake is noted and the work goes on with the default in its place, so all
//! of them are told in one go; the result is used only if there was none.

use std::{collections::HashMap, net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    AccessLogConfig, AccessLogFormat, ClusterSpec, Config, Discovery, Drain, HealthCheckSpec,
    LookupFamily, Target,
    file::{self, File},
    place::{At, Place},
    problem::{Report, did_you_mean},
    values,
};
use crate::{
    cgroup::Resources,
    snapshot::{
        ClusterPolicy, EdgeHealthCheck, Http2Policy, ListenerPolicy, Route, RouteAction, Timeouts,
    },
};

/// What is wrong has its default in the result, which is for nobody's use when
/// `report` has errors.
pub(super) fn validate(file: &File, resources: &Resources, report: &mut Report<'_>) -> Config {
    let mut check = Check { report };
    let listener = check.listener(&file.listener, file.server_name.as_ref(), resources);
    let listener_address = check.address(Some(&file.listener.address), DEFAULT_LISTENER);
    let admin = check.address(file.admin.address.as_ref(), DEFAULT_ADMIN);
    let probes = check.address(file.probes.address.as_ref(), DEFAULT_PROBES);
    check.addresses_differ(file, [listener_address, admin, probes]);
    if let (Some(at), false) = (&file.admin.address, admin.ip().is_loopback()) {
        check.report.warning(
            at.place,
            "anybody who reaches this address can stop the proxy: write 127.0.0.1 and use a port-forward",
        );
    }
    let clusters = check.clusters(&file.clusters);
    let routes = check.routes(&file.routes, &file.clusters);
    Config {
        workers: check.number(file.workers.as_ref(), 0, 0..=1024) as usize,
        nameservers: check.nameservers(&file.dns.nameservers),
        listener_address,
        listener: Arc::new(listener),
        certificate_chain: check.text(&file.listener.tls.certificate_chain).into(),
        private_key: check.text(&file.listener.tls.private_key).into(),
        admin,
        probes,
        drain: Drain {
            time: check
                .duration_or_zero(file.drain.time.as_ref())
                .unwrap_or(seconds(10)),
            deadline: check
                .duration_or_zero(file.drain.deadline.as_ref())
                .unwrap_or(seconds(60)),
        },
        access_log: check.access_log(&file.access_log),
        routes,
        clusters,
    }
}

struct Check<'a, 'r> {
    report: &'a mut Report<'r>,
}

impl Check<'_, '_> {
    fn listener(
        &mut self,
        file: &file::Listener,
        server_name: Option<&At<String>>,
        resources: &Resources,
    ) -> ListenerPolicy {
        let affordable = resources
            .memory_limit
            .map_or(u64::MAX, |limit| limit / BYTES_PER_CONNECTION);
        let max_connections = affordable.clamp(1, 10_000);
        let age_grace = file.max_connection_age_grace.as_ref();
        ListenerPolicy {
            server_name: self.server_name(server_name),
            health_check: file
                .health_check
                .as_ref()
                .map(|file| self.edge_health_check(file)),
            max_connections: self.count(file.max_connections.as_ref(), max_connections) as usize,
            max_connections_per_source: self.count(file.max_connections_per_source.as_ref(), 256)
                as usize,
            max_pending_handshakes: self.count(file.max_pending_handshakes.as_ref(), 512) as usize,
            max_connection_age: self.duration(file.max_connection_age.as_ref(), minutes(30)),
            max_connection_age_grace: self.duration_or_zero(age_grace),
            keepalive_interval: self.duration(file.keepalive.interval.as_ref(), seconds(60)),
            keepalive_timeout: self.duration(file.keepalive.timeout.as_ref(), seconds(20)),
            timeouts: self.timeouts(&file.timeouts),
            http2: self.listener_http2(&file.http2),
        }
    }

    fn timeouts(&mut self, file: &file::Timeouts) -> Timeouts {
        Timeouts {
            tls_handshake: self.duration(file.tls_handshake.as_ref(), seconds(5)),
            preface: self.duration(file.preface.as_ref(), seconds(10)),
            header_block: self.duration(file.header_block.as_ref(), seconds(10)),
            stream_idle: self.duration(file.stream_idle.as_ref(), minutes(5)),
            write_stall: self.duration(file.write_stall.as_ref(), seconds(30)),
            stream_window_stall: self.duration(file.stream_window_stall.as_ref(), seconds(60)),
            idle: self.duration(file.idle.as_ref(), minutes(15)),
        }
    }

    fn listener_http2(&mut self, file: &file::ListenerHttp2) -> Http2Policy {
        let stream = self.number(
            file.initial_stream_window_size.as_ref(),
            65_536,
            STREAM_WINDOW,
        );
        let connection = self.number(
            file.initial_connection_window_size.as_ref(),
            stream.max(1_048_576),
            CONNECTION_WINDOW,
        );
        if let (Some(at), true) = (&file.initial_connection_window_size, connection < stream) {
            self.report.error(
                at.place,
                format!("is less than a stream's window, which could never be used: write {stream} or more"),
            );
        }
        Http2Policy {
            max_concurrent_streams: self.count(file.max_concurrent_streams.as_ref(), 100) as u32,
            initial_stream_window_size: stream as u32,
            initial_connection_window_size: connection as u32,
            max_header_bytes: self.number(file.max_header_bytes.as_ref(), 8_192, HEADER_BYTES)
                as u32,
        }
    }

    fn edge_health_check(&mut self, file: &file::EdgeHealthCheck) -> EdgeHealthCheck {
        if let Some(at) = &file.path {
            self.path(at, "/healthz");
        }
        let header = file.header.as_ref().map(|header| {
            let name = &header.name;
            if name.value.is_empty() || !name.value.bytes().all(is_lower_case_token) {
                self.report.error(
                    name.place,
                    format!(
                        "`{}` isn't a header name in lower case: write it as x-envoy-livenessprobe",
                        name.value
                    ),
                );
            }
            self.header_value(&header.value);
            (
                name.value.as_str().into(),
                header.value.value.as_str().into(),
            )
        });
        let path = file.path.as_ref().map_or("/healthz", |at| &at.value);
        EdgeHealthCheck {
            path: path.into(),
            header,
        }
    }

    fn server_name(&mut self, at: Option<&At<String>>) -> Arc<str> {
        let Some(at) = at else {
            return "edge-proxy".into();
        };
        self.header_value(at);
        at.value.as_str().into()
    }

    fn access_log(&mut self, file: &file::AccessLog) -> AccessLogConfig {
        let format = match file.format.as_ref().map(|at| at.value) {
            None | Some(file::AccessLogFormat::Json) => AccessLogFormat::Json,
            Some(file::AccessLogFormat::Text) => AccessLogFormat::Text,
            Some(file::AccessLogFormat::Off) => AccessLogFormat::Off,
        };
        AccessLogConfig {
            format,
            path: file.path.as_ref().map(|at| self.text(at).into()),
        }
    }

    fn nameservers(&mut self, written: &[At<String>]) -> Vec<SocketAddr> {
        let parsed = written
            .iter()
            .map(|at| self.take(at.place, values::nameserver(&at.value)));
        parsed.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    fn clusters(&mut self, file: &At<Vec<file::Cluster>>) -> Vec<ClusterSpec> {
        let mut seen = HashMap::new();
        let mut clusters = Vec::new();
        for cluster in &file.value {
            let name = &cluster.name;
            self.text(name);
            if let Some(first) = seen.insert(name.value.as_str(), name.place) {
                let message = format!(
                    "`{}` is the name of the cluster in line {} too: give each its own",
                    name.value, first.line
                );
                self.report.error(name.place, message);
            }
            clusters.push(self.cluster(cluster));
        }
        clusters
    }

    fn cluster(&mut self, file: &file::Cluster) -> ClusterSpec {
        let discovery = match file.discovery.as_ref().map(|at| at.value) {
            None | Some(file::Discovery::StrictDns) => Discovery::StrictDns,
            Some(file::Discovery::Static) => Discovery::Static,
        };
        let family = match file.dns_lookup_family.as_ref().map(|at| at.value) {
            None | Some(file::LookupFamily::Auto) => LookupFamily::Auto,
            Some(file::LookupFamily::V4Only) => LookupFamily::V4Only,
            Some(file::LookupFamily::V6Only) => LookupFamily::V6Only,
        };
        ClusterSpec {
            name: file.name.value.as_str().into(),
            discovery,
            targets: self.targets(&file.endpoints, discovery),
            family,
            refresh: self.duration(file.dns_refresh_rate.as_ref(), seconds(5)),
            policy: Arc::new(self.cluster_policy(file)),
            panic_threshold: self.number(file.panic_threshold.as_ref(), 0, 0..=100) as u8,
            health_check: file
                .health_check
                .as_ref()
                .map(|file| self.health_check(file)),
        }
    }

    fn targets(&mut self, written: &At<Vec<At<String>>>, discovery: Discovery) -> Vec<Target> {
        if written.value.is_empty() {
            self.report
                .error(written.place, "no endpoint: write at least one `host:port`");
        }
        let mut targets: Vec<Target> = Vec::new();
        for at in &written.value {
            let Some(target) = self.take(at.place, values::endpoint(&at.value)) else {
                continue;
            };
            let is_ip = target.host.parse::<std::net::IpAddr>().is_ok();
            if discovery == Discovery::Static && !is_ip {
                self.report.error(
                    at.place,
                    format!(
                        "`{}` is a name, and `discovery: static` takes IP addresses: write one, or `discovery: strict_dns`",
                        target.host
                    ),
                );
            } else if targets.contains(&target) {
                self.report
                    .warning(at.place, "is listed before and counts once: take it out");
            } else {
                targets.push(target);
            }
        }
        targets
    }

    fn cluster_policy(&mut self, file: &file::Cluster) -> ClusterPolicy {
        let streams = self.count(file.per_connection_streams.as_ref(), 100);
        let stream_at = file.http2.initial_stream_window_size.as_ref();
        let connection_at = file.http2.initial_connection_window_size.as_ref();
        let stream = self.number(stream_at, 262_144, STREAM_WINDOW);
        // A download that stands still keeps its stream's window full. Only a connection window of all streams'
        // windows together leaves the others theirs.
        let needed = streams.saturating_mul(stream);
        let connection = self.number(
            connection_at,
            needed.clamp(65_535, MAX_WINDOW),
            CONNECTION_WINDOW,
        );
        if needed > MAX_WINDOW {
            let place = stream_at
                .or(file.per_connection_streams.as_ref())
                .map(|at| at.place);
            self.report.error(
                place.unwrap_or(file.name.place),
                format!(
                    "{streams} streams of {stream} bytes each are more than a connection's window can be ({MAX_WINDOW}): \
                     lower per_connection_streams or initial_stream_window_size"
                ),
            );
        } else if let (Some(at), true) = (connection_at, connection < needed) {
            self.report.error(
                at.place,
                format!(
                    "is less than {streams} streams' windows of {stream} bytes, so stalled streams would stop others: \
                     write {needed} or more, or leave it out"
                ),
            );
        }
        ClusterPolicy {
            connect_timeout: self.duration(file.connect_timeout.as_ref(), seconds(5)),
            max_connections: self.count(file.max_connections.as_ref(), 8) as usize,
            per_connection_streams: streams as u32,
            initial_stream_window_size: stream as u32,
            initial_connection_window_size: connection as u32,
            max_replay_bytes: self.number(file.max_replay_bytes.as_ref(), 65_536, 0..=64 << 20)
                as usize,
        }
    }

    fn health_check(&mut self, file: &file::HealthCheck) -> HealthCheckSpec {
        let service = file.service.as_ref().map_or("", |at| {
            if !at
                .value
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/')
            {
                self.report.error(
                    at.place,
                    format!(
                        "`{}` isn't a service's full name: write it as api.Echo",
                        at.value
                    ),
                );
            }
            &at.value
        });
        let spec = HealthCheckSpec {
            service: service.to_owned(),
            timeout: self.duration(file.timeout.as_ref(), seconds(1)),
            interval: self.duration(file.interval.as_ref(), seconds(10)),
            unhealthy_edge_interval: self
                .duration(file.unhealthy_edge_interval.as_ref(), seconds(1)),
            unhealthy_threshold: self.count(file.unhealthy_threshold.as_ref(), 2) as u32,
            healthy_threshold: self.count(file.healthy_threshold.as_ref(), 2) as u32,
        };
        let place = file
            .timeout
            .as_ref()
            .or(file.interval.as_ref())
            .map(|at| at.place);
        if let (Some(place), true) = (place, spec.timeout > spec.interval) {
            self.report.warning(
                place,
                "a check may take longer than the interval between two, which then waits for it: \
                 write a shorter timeout",
            );
        }
        spec
    }

    fn routes(
        &mut self,
        file: &At<Vec<file::Route>>,
        clusters: &At<Vec<file::Cluster>>,
    ) -> Vec<Route> {
        if file.value.is_empty() {
            self.report.error(
                file.place,
                "no route: write at least one `prefix` and its `cluster`",
            );
        }
        let index_of = |name: &str| clusters.value.iter().position(|c| c.name.value == name);
        let mut used = vec![false; clusters.value.len()];
        let mut routes: Vec<Route> = Vec::new();
        for route in &file.value {
            self.path(&route.prefix, "/package.Service/");
            self.reachable(&route.prefix, &routes);
            let action = match (&route.cluster, &route.direct_response) {
                (Some(name), None) => {
                    let cluster = index_of(&name.value);
                    match cluster {
                        Some(index) => used[index] = true,
                        None => self.unknown_cluster(name, &clusters.value),
                    }
                    self.cluster_action(route, cluster.unwrap_or_default())
                }
                (None, Some(response)) => self.direct_response(route, &response.value),
                (None, None) => {
                    let message =
                        "leads nowhere: write `cluster: NAME` or `direct_response:` below it";
                    self.report.error(route.prefix.place, message);
                    continue;
                }
                (Some(_), Some(response)) => {
                    let message = "a route has either this or `cluster`: take one of them out";
                    self.report.error(response.place, message);
                    continue;
                }
            };
            routes.push(Route {
                prefix: route.prefix.value.as_str().into(),
                action,
            });
        }
        for (cluster, used) in clusters.value.iter().zip(used) {
            if !used {
                let message = format!("no route leads to `{}`", cluster.name.value);
                self.report.warning(cluster.name.place, message);
            }
        }
        routes
    }

    fn cluster_action(&mut self, route: &file::Route, cluster: usize) -> RouteAction {
        RouteAction::Cluster {
            cluster,
            timeout: route
                .timeout
                .as_ref()
                .map(|at| self.duration(Some(at), Duration::MAX)),
            max_grpc_timeout: route
                .max_grpc_timeout
                .as_ref()
                .map(|at| self.duration(Some(at), Duration::MAX)),
        }
    }

    fn direct_response(&mut self, route: &file::Route, file: &file::DirectResponse) -> RouteAction {
        for at in [&route.timeout, &route.max_grpc_timeout]
            .into_iter()
            .flatten()
        {
            self.report.error(
                at.place,
                "has no effect beside `direct_response`: take it out",
            );
        }
        RouteAction::DirectResponse {
            status: self.number(Some(&file.status), 200, 200..=599) as u16,
            body: file.body.as_ref().map_or("", |at| &at.value).into(),
        }
    }

    fn unknown_cluster(&mut self, name: &At<String>, clusters: &[file::Cluster]) {
        let mut names: Vec<_> = clusters
            .iter()
            .map(|cluster| cluster.name.value.as_str())
            .collect();
        names.dedup();
        let known = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let message = format!(
            "no cluster is named `{}`: {}clusters here: {known}",
            name.value,
            did_you_mean(&name.value, names),
        );
        self.report.error(name.place, message);
    }

    /// The first match wins: behind a prefix of itself a route is never tried.
    fn reachable(&mut self, prefix: &At<String>, before: &[Route]) {
        if let Some(first) = before
            .iter()
            .find(|route| prefix.value.starts_with(&*route.prefix))
        {
            let message = format!(
                "is never reached, as `{}` before it takes its requests: put this one first",
                first.prefix
            );
            self.report.warning(prefix.place, message);
        }
    }

    fn address(&mut self, at: Option<&At<String>>, default: &str) -> SocketAddr {
        let written =
            at.and_then(|at| self.take(at.place, values::socket_address(&at.value, default)));
        // The defaults are constants of this file, and a test parses them.
        written
            .or_else(|| default.parse().ok())
            .unwrap_or_else(|| ([0, 0, 0, 0], 0).into())
    }

    /// Each listener needs a port of its own where their IP addresses overlap.
    fn addresses_differ(&mut self, file: &File, addresses: [SocketAddr; 3]) {
        let names = ["listener.address", "admin.address", "probes.address"];
        let places = [
            Some(&file.listener.address),
            file.admin.address.as_ref(),
            file.probes.address.as_ref(),
        ];
        for (second, first) in [(1, 0), (2, 0), (2, 1)] {
            if !overlap(addresses[first], addresses[second]) {
                continue;
            }
            // One of the two is written: two defaults differ.
            let (Some(at), other) = (match places[second] {
                Some(at) => (Some(at), names[first]),
                None => (places[first], names[second]),
            }) else {
                continue;
            };
            self.report.error(
                at.place,
                format!(
                    "port {} is {other}'s too: write another one",
                    addresses[first].port()
                ),
            );
        }
    }

    /// A path or its prefix: what a `:path` can hold, up to the query.
    fn path(&mut self, at: &At<String>, example: &str) {
        let what = if !at.value.starts_with('/') {
            "doesn't start with `/`"
        } else if !at.value.bytes().all(|byte| byte.is_ascii_graphic()) {
            "holds a character that no path can have"
        } else if at.value.contains(['?', '#']) {
            "holds a query or fragment, which isn't compared"
        } else {
            return;
        };
        self.report.error(
            at.place,
            format!("`{}` {what}: write it as {example}", at.value),
        );
    }

    fn header_value(&mut self, at: &At<String>) {
        // RFC 9110 §5.5 without obs-text, and no space at either end.
        let inner = at
            .value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if at.value.is_empty() || !inner || at.value.trim() != at.value {
            let message = format!(
                "`{}` can't be a header's value: write printable ASCII, no space at its ends",
                at.value.escape_debug()
            );
            self.report.error(at.place, message);
        }
    }

    fn text<'t>(&mut self, at: &'t At<String>) -> &'t str {
        if at.value.trim().is_empty() {
            self.report.error(at.place, "is empty: write a value");
        }
        &at.value
    }

    /// At least one.
    fn count(&mut self, at: Option<&At<u64>>, default: u64) -> u64 {
        self.number(at, default, 1..=MAX_WINDOW)
    }

    fn number(&mut self, at: Option<&At<u64>>, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(at) = at else { return default };
        if range.contains(&at.value) {
            return at.value;
        }
        let message = format!(
            "{} is out of range: write {} to {}",
            at.value,
            range.start(),
            range.end()
        );
        self.report.error(at.place, message);
        default
    }

    fn duration(&mut self, at: Option<&At<file::Span>>, default: Duration) -> Duration {
        let duration = self.duration_or_zero(at);
        if let (Some(at), Some(Duration::ZERO)) = (at, duration) {
            self.report.error(
                at.place,
                "0 isn't a time that can be kept: write more, or leave it out for the default",
            );
        }
        duration.unwrap_or(default)
    }

    fn duration_or_zero(&mut self, at: Option<&At<file::Span>>) -> Option<Duration> {
        at.and_then(|at| self.take(at.place, values::duration(&at.value.0)))
    }

    fn take<T>(&mut self, place: Place, parsed: Result<T, String>) -> Option<T> {
        parsed
            .map_err(|message| self.report.error(place, message))
            .ok()
    }
}

/// RFC 9110 §5.6.2, in lower case as RFC 9113 §8.2.1 asks.
fn is_lower_case_token(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let ips = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    ips && a.port() == b.port() && a.port() != 0
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

const fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

/// RFC 9113 §6.9.1: the largest flow-control window.
const MAX_WINDOW: u64 = (1 << 31) - 1;

/// From one frame of the smallest MAX_FRAME_SIZE (RFC 9113 §4.2): with less, every frame waits for credit.
const STREAM_WINDOW: RangeInclusive<u64> = 16_384..=MAX_WINDOW;

/// RFC 9113 §6.9.2: a connection's window begins at 65 535 and nothing can make it smaller.
const CONNECTION_WINDOW: RangeInclusive<u64> = 65_535..=MAX_WINDOW;

/// A decoded header list above 32 KiB ends the stream whatever is configured.
const HEADER_BYTES: RangeInclusive<u64> = 1_024..=32_768;

/// What a busy connection may hold, generously: TLS state, engine, buffers.
const BYTES_PER_CONNECTION: u64 = 32 * 1024;

const DEFAULT_LISTENER: &str = "0.0.0.0:8443";
const DEFAULT_ADMIN: &str = "127.0.0.1:8090";
const DEFAULT_PROBES: &str = "0.0.0.0:8091";
