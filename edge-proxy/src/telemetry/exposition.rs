//! Every metric family, named once, and all of them as Prometheus' text (format 0.0.4).
//!
//! Written by hand: the counters live in shards and reports that no registry owns, and the format is
//! a dozen lines. Values that are always 0 are left out where a label has many values (grpc-status
//! other than 0), and methods begin when a backend makes them known; everything else is there from
//! the start, so that a rate sees the first event: workers make their counters with the first RPC,
//! and what the configuration names is added here.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    histogram::{BOUNDS, Distribution},
    labels::{AttemptResult, Flag, HandshakeResult, Label, Limit, ResetCause, RetryRefusal, Side},
    methods::UNKNOWN,
    metrics::{Metrics, NONE, STATUS_LABELS},
    process,
    totals::Totals,
};
use crate::{
    control_plane::status::{
        CheckResult, Detected, EndpointReport, LookupResult, Report, TargetReport, now_ms,
    },
    snapshot::{
        Health, Heartbeats, RouteAction, circuit::CircuitUse, pressure::Pressure, streak::Detector,
    },
};

/// The `content-type` of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// With the unit and `_total` as Prometheus wants them.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// In the order in which they are written.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

/// What one scrape looks at.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// The workers' side.
    pub metrics: &'a Metrics,
    /// The control plane's side.
    pub report: &'a Report,
    /// What `/readyz` says.
    pub ready: bool,
    /// A drain has begun.
    pub draining: bool,
    /// Of the workers.
    pub heartbeats: &'a Heartbeats,
    /// Bytes that the cgroup allows.
    pub memory_limit: Option<u64>,
    /// As the overload manager published it last.
    pub pressure: Pressure,
}

macro_rules! families {
    ($($(#[$section:meta])* $id:ident = $kind:literal $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $id: Family = Family { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+

        /// All of them, in the order in which they are written.
        pub const FAMILIES: &[Family] = &[$($id),+];
    };
}

families! {
    STARTED = "counter" "edge_rpcs_started_total" ["route", "cluster", "method"]
        "RPCs and plain HTTP requests whose headers were read.";
    ENDED = "counter" "edge_rpcs_ended_total" ["route", "cluster", "method", "grpc_status"]
        "RPCs whose stream ended, by the grpc-status that the client got, plain HTTP by its status; none: without one, or without a whole response.";
    IN_FLIGHT = "gauge" "edge_rpcs_in_flight" ["cluster"]
        "RPCs that have started and not ended.";
    DURATION = "histogram" "edge_rpc_duration_seconds" ["cluster"]
        "From the request's headers to the end of its stream.";
    FLAGS = "counter" "edge_rpc_flags_total" ["flag"]
        "RPCs by response flag of the access log.";
    ATTEMPTS = "counter" "edge_attempts_total" ["cluster", "result"]
        "Attempts on an endpoint that ended.";
    ATTEMPTS_IN_FLIGHT = "gauge" "edge_attempts_in_flight" ["cluster"]
        "Attempts on an endpoint that run.";
    RETRIES = "counter" "edge_retries_total" ["cluster"]
        "Attempts after the first one of an RPC.";
    RETRIES_REFUSED = "counter" "edge_retries_refused_total" ["cluster", "reason"]
        "Further attempts that would have been safe and weren't made: budget, too many were refused lately; body, what was sent of it isn't kept.";
    CONNECTIONS_OPENED = "counter" "edge_connections_opened_total" ["side"]
        "Connections from clients whose TLS handshake is done (downstream), and made to backends (upstream).";
    CONNECTIONS = "gauge" "edge_connections" ["side"]
        "Connections that are open; clients' from the end of their TLS handshake on.";
    CONNECTIONS_LIMIT = "gauge" "edge_connections_limit" ["side"]
        "Connections that may be open, those in their TLS handshake too: listener.max_connections, or fewer if memory or open files leave room for fewer.";
    HANDSHAKES = "counter" "edge_tls_handshakes_total" ["result"]
        "TLS handshakes with clients that ended; refused: given up for a newer one, or a limit or overload closed the connection before it began.";
    HANDSHAKES_PENDING = "gauge" "edge_tls_handshakes_pending" []
        "TLS handshakes with clients that have begun and not ended, of listener.max_pending_handshakes.";
    RESETS = "counter" "edge_stream_resets_total" ["cause"]
        "Streams that ended by a reset.";
    LIMITS = "counter" "edge_limits_total" ["limit"]
        "How often a limit acted.";
    ENDPOINTS = "gauge" "edge_endpoints" ["cluster", "health"]
        "Endpoints that are known, by health.";
    ELIGIBLE = "gauge" "edge_endpoints_eligible" ["cluster"]
        "Endpoints that the balancer may choose.";
    PANIC = "gauge" "edge_cluster_panic" ["cluster"]
        "1 while panic_threshold sends RPCs to unhealthy endpoints too.";
    EJECTED = "gauge" "edge_endpoints_ejected" ["cluster"]
        "Endpoints that get no new RPCs because their last ones failed in a row.";
    OUTLIERS = "counter" "edge_outlier_detections_total" ["cluster", "streak", "result"]
        "Streaks of failures that reached their threshold, by what became of the endpoint.";
    CIRCUIT_LIMIT = "gauge" "edge_circuit_limit" ["cluster", "limit"]
        "Circuit limits that are set.";
    CIRCUIT_USED = "gauge" "edge_circuit_used" ["cluster", "limit"]
        "What is in use of a circuit limit.";
    CIRCUIT_REFUSED = "counter" "edge_circuit_refused_total" ["cluster", "limit"]
        "How often a circuit limit acted.";
    CHECKS = "counter" "edge_health_checks_total" ["cluster", "result"]
        "Health checks that ended.";
    LOOKUPS = "counter" "edge_dns_lookups_total" ["cluster", "result"]
        "DNS look-ups that ended.";
    ANSWER_AGE = "gauge" "edge_dns_last_answer_age_seconds" ["cluster"]
        "Age of the last answer, of the cluster's name that has waited longest; without one, since it is asked for.";
    CERTIFICATE_EXPIRY = "gauge" "edge_certificate_expiry_timestamp_seconds" []
        "When the certificate that is served expires, in Unix time.";
    CERTIFICATE_LOADS = "counter" "edge_certificate_loads_total" ["result"]
        "Certificates that came into force (loaded) or were refused (rejected).";
    CERTIFICATE_CURRENT = "gauge" "edge_certificate_last_load_successful" []
        "1 while the certificate that is served is that of the files as they were last read.";
    RELOADS = "counter" "edge_configuration_reloads_total" ["result"]
        "Reloads of the configuration that came into force (applied) or were refused (rejected).";
    LOADED = "gauge" "edge_configuration_loaded_timestamp_seconds" []
        "When the configuration came into force, in Unix time.";
    CURRENT = "gauge" "edge_configuration_last_reload_successful" []
        "1 unless the configuration's file, as it was last read, was refused.";
    READY = "gauge" "edge_ready" []
        "1 while /readyz answers 200.";
    DRAINING = "gauge" "edge_draining" []
        "1 from the moment in which a drain begins.";
    HEARTBEAT = "gauge" "edge_worker_heartbeat_age_seconds" []
        "How long the worker that is furthest behind hasn't run.";
    PANICS = "counter" "edge_control_plane_panics_total" []
        "Panics caught in the control plane's tasks.";
    LOG_DROPPED = "counter" "edge_access_log_dropped_lines_total" []
        "Lines of the access log that were dropped because its output was too slow or failed.";
    MEMORY = "gauge" "edge_memory_resident_bytes" []
        "Memory that is resident.";
    MEMORY_LIMIT = "gauge" "edge_memory_limit_bytes" []
        "Memory that the cgroup allows; absent without a limit.";
    MEMORY_USED = "gauge" "edge_memory_working_set_bytes" []
        "Memory of the cgroup that the kernel can't drop; absent without a limit.";
    OVERLOAD = "gauge" "edge_overload_level" []
        "What the overload manager does, by memory: 0 nothing, 1 resets stalled streams, 2 closes idle connections, 3 refuses RPCs, 4 refuses connections.";
    CPU = "counter" "edge_cpu_seconds_total" []
        "Processor time of all threads, user space and kernel.";
    UPTIME = "gauge" "edge_uptime_seconds" []
        "Since the start of the process.";
    BUILD = "gauge" "edge_build_info" ["version"]
        "Always 1.";
}

/// All families as text.
pub fn render(scrape: &Scrape<'_>) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    rpcs(&mut text, scrape);
    clusters(&mut text, scrape.report);
    process(&mut text, scrape);
    text.0
}

fn rpcs(text: &mut Text, scrape: &Scrape<'_>) {
    let metrics = scrape.metrics;
    let mut totals = metrics.totals();
    expect_configured(&mut totals, scrape.report);
    text.family(STARTED);
    for ((route, cluster, method), series) in &totals.series {
        text.sample(STARTED, &[route, cluster, method], series.started);
    }
    text.family(ENDED);
    for ((route, cluster, method), series) in &totals.series {
        for (i, status) in STATUS_LABELS.iter().enumerate() {
            if i == 0 || series.ended[i] > 0 {
                text.sample(ENDED, &[route, cluster, method, status], series.ended[i]);
            }
        }
    }
    text.family(IN_FLIGHT);
    let mut in_flight = BTreeMap::<&str, u64>::new();
    in_flight.extend(totals.clusters.keys().map(|name| (&**name, 0)));
    for ((_, cluster, _), series) in &totals.series {
        *in_flight.entry(cluster).or_default() += series.in_flight();
    }
    for (cluster, count) in in_flight {
        text.sample(IN_FLIGHT, &[cluster], count);
    }
    text.family(DURATION);
    for (name, cluster) in &totals.clusters {
        text.histogram(DURATION, name, &cluster.duration);
    }
    text.labelled::<Flag>(FLAGS, &totals.flags);
    text.family(ATTEMPTS);
    for (name, cluster) in &totals.clusters {
        for result in AttemptResult::ALL {
            let count = cluster.attempts[result.index()];
            text.sample(ATTEMPTS, &[name, result.as_str()], count);
        }
    }
    text.family(ATTEMPTS_IN_FLIGHT);
    for (name, cluster) in &totals.clusters {
        text.sample(ATTEMPTS_IN_FLIGHT, &[name], cluster.active);
    }
    text.family(RETRIES);
    for (name, cluster) in &totals.clusters {
        text.sample(RETRIES, &[name], cluster.retries);
    }
    text.family(RETRIES_REFUSED);
    for (name, cluster) in &totals.clusters {
        for reason in RetryRefusal::ALL {
            let count = cluster.retries_refused[reason.index()];
            text.sample(RETRIES_REFUSED, &[name, reason.as_str()], count);
        }
    }
    let [opened, open] = [|(opened, _)| opened, |(opened, closed)| opened - closed]
        .map(|value: fn((u64, u64)) -> u64| totals.connections.map(value));
    text.labelled::<Side>(CONNECTIONS_OPENED, &opened);
    text.labelled::<Side>(CONNECTIONS, &open);
    text.family(CONNECTIONS_LIMIT);
    let limit = &metrics.listener().connections_limit;
    let limit = limit.load(Ordering::Relaxed);
    if limit > 0 {
        text.sample(CONNECTIONS_LIMIT, &[Side::Downstream.as_str()], limit);
    }
    text.labelled::<HandshakeResult>(HANDSHAKES, &totals.handshakes);
    let pending = &metrics.listener().handshakes_pending;
    text.single(HANDSHAKES_PENDING, Some(pending.load(Ordering::Relaxed)));
    text.labelled::<ResetCause>(RESETS, &totals.resets);
    text.labelled::<Limit>(LIMITS, &totals.limits);
}

/// Counters at 0 for what no RPC has come to yet.
fn expect_configured(totals: &mut Totals, report: &Report) {
    let config = &report.configuration.config;
    let (none, unknown): (Arc<str>, Arc<str>) = (NONE.into(), UNKNOWN.into());
    for route in &config.routes {
        let cluster = match route.action {
            RouteAction::Cluster { cluster, .. } => match config.clusters.get(cluster) {
                Some(cluster) => &cluster.name,
                None => continue,
            },
            RouteAction::DirectResponse { .. } => &none,
        };
        let key = (route.prefix.clone(), cluster.clone(), unknown.clone());
        totals.series.entry(key).or_default();
    }
    for cluster in &report.clusters {
        totals.clusters.entry((*cluster.name).into()).or_default();
    }
}

fn clusters(text: &mut Text, report: &Report) {
    text.family(ENDPOINTS);
    for cluster in &report.clusters {
        for (word, is) in HEALTH {
            let count = cluster
                .endpoints
                .iter()
                .filter(|endpoint| is(&endpoint.health))
                .count();
            text.sample(ENDPOINTS, &[&cluster.name, word], count);
        }
    }
    text.family(ELIGIBLE);
    for cluster in &report.clusters {
        text.sample(ELIGIBLE, &[&cluster.name], cluster.eligible);
    }
    text.family(PANIC);
    for cluster in &report.clusters {
        text.sample(PANIC, &[&cluster.name], u8::from(cluster.panic));
    }
    text.family(EJECTED);
    for cluster in &report.clusters {
        let ejected = |endpoint: &&EndpointReport| endpoint.ejection.is_some();
        let count = cluster.endpoints.iter().filter(ejected).count();
        text.sample(EJECTED, &[&cluster.name], count);
    }
    text.family(OUTLIERS);
    for cluster in &report.clusters {
        for detector in Detector::ALL {
            for detected in Detected::ALL {
                let labels = [&*cluster.name, detector.key(), detected.as_str()];
                let count = cluster.detections.get(&(detector, detected));
                text.sample(OUTLIERS, &labels, count.unwrap_or(&0));
            }
        }
    }
    circuits(text, report);
    text.family(CHECKS);
    for cluster in report.clusters.iter().filter(|c| c.health_checked) {
        for result in CheckResult::ALL {
            let count = cluster.checks.get(&result).unwrap_or(&0);
            text.sample(CHECKS, &[&cluster.name, result.as_str()], count);
        }
    }
    let resolved = || report.clusters.iter().filter(|c| c.discovery != "static");
    text.family(LOOKUPS);
    for cluster in resolved() {
        for result in LookupResult::ALL {
            let count = cluster.lookups.get(&result).unwrap_or(&0);
            text.sample(LOOKUPS, &[&cluster.name, result.as_str()], count);
        }
    }
    text.family(ANSWER_AGE);
    for cluster in resolved() {
        let waits_since = |target: &TargetReport| {
            let answered = target.last_answer_at_ms;
            answered.unwrap_or(target.asked_since_ms)
        };
        if let Some(at) = cluster.targets.iter().map(waits_since).min() {
            let age = Duration::from_millis(now_ms().saturating_sub(at));
            text.sample(ANSWER_AGE, &[&cluster.name], age.as_secs_f64());
        }
    }
}

fn circuits(text: &mut Text, report: &Report) {
    type Value = fn(&CircuitUse, u32) -> u64;
    let families: [(Family, Value); 3] = [
        (CIRCUIT_LIMIT, |_, limit| limit.into()),
        (CIRCUIT_USED, |of, _| of.used.into()),
        (CIRCUIT_REFUSED, |of, _| of.refused),
    ];
    for (family, value) in families {
        text.family(family);
        for cluster in &report.clusters {
            for of in cluster.circuits.uses() {
                if let Some(limit) = of.limit {
                    let labels = [&*cluster.name, of.circuit.key()];
                    text.sample(family, &labels, value(&of, limit));
                }
            }
        }
    }
}

fn process(text: &mut Text, scrape: &Scrape<'_>) {
    let report = scrape.report;
    text.family(CERTIFICATE_EXPIRY);
    if let Some(certificate) = &report.certificate.current {
        text.sample(CERTIFICATE_EXPIRY, &[], certificate.not_after);
    }
    text.family(CERTIFICATE_LOADS);
    text.sample(CERTIFICATE_LOADS, &["loaded"], report.certificate.loads);
    text.sample(
        CERTIFICATE_LOADS,
        &["rejected"],
        report.certificate.rejected,
    );
    let certificate = &report.certificate;
    let current = certificate.current.is_some() && certificate.last_error.is_none();
    text.single(CERTIFICATE_CURRENT, Some(u8::from(current)));
    text.family(RELOADS);
    text.sample(RELOADS, &["applied"], report.configuration.reloads);
    text.sample(RELOADS, &["rejected"], report.configuration.rejected);
    let loaded = Duration::from_millis(report.configuration.loaded_at_ms).as_secs_f64();
    text.single(LOADED, Some(loaded));
    let refused = report.configuration.last_error.is_some();
    text.single(CURRENT, Some(u8::from(!refused)));
    text.single(READY, Some(u8::from(scrape.ready)));
    text.single(DRAINING, Some(u8::from(scrape.draining)));
    text.single(HEARTBEAT, Some(scrape.heartbeats.oldest().as_secs_f64()));
    text.single(PANICS, Some(report.panics));
    text.single(LOG_DROPPED, Some(scrape.metrics.access_log_dropped()));
    text.single(MEMORY, process::resident_bytes());
    text.single(MEMORY_LIMIT, scrape.memory_limit);
    let pressure = scrape.pressure;
    text.single(MEMORY_USED, (pressure.limit > 0).then_some(pressure.used));
    text.single(OVERLOAD, Some(pressure.level as u8));
    text.single(CPU, process::cpu_time().map(|time| time.as_secs_f64()));
    text.single(UPTIME, Some(scrape.metrics.uptime().as_secs_f64()));
    text.family(BUILD);
    text.sample(BUILD, &[env!("CARGO_PKG_VERSION")], 1);
}

/// The text as far as it is written. (Writing to a `String` can't fail.)
struct Text(String);

impl Text {
    fn family(&mut self, family: Family) {
        let Family {
            name, kind, help, ..
        } = family;
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, family: Family, values: &[&str], value: impl std::fmt::Display) {
        self.line(family, "", values, None, value);
    }

    /// A family without labels; only its header if there is no value.
    fn single(&mut self, family: Family, value: Option<impl std::fmt::Display>) {
        self.family(family);
        if let Some(value) = value {
            self.sample(family, &[], value);
        }
    }

    /// A family whose one label is `L`.
    fn labelled<L: Label>(&mut self, family: Family, counts: &[u64]) {
        self.family(family);
        for (label, count) in L::ALL.iter().zip(counts) {
            self.sample(family, &[label.as_str()], count);
        }
    }

    fn histogram(&mut self, family: Family, value: &str, distribution: &Distribution) {
        let counts = distribution.cumulative();
        for (bound, count) in BOUNDS.iter().zip(counts) {
            let bound = bound.as_secs_f64().to_string();
            self.line(family, "_bucket", &[value], Some(&bound), count);
        }
        let all = counts[BOUNDS.len()];
        self.line(family, "_bucket", &[value], Some("+Inf"), all);
        self.line(
            family,
            "_sum",
            &[value],
            None,
            distribution.sum().as_secs_f64(),
        );
        self.line(family, "_count", &[value], None, all);
    }

    fn line(
        &mut self,
        family: Family,
        suffix: &str,
        values: &[&str],
        bound: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
        let _ = write!(self.0, "{}{suffix}", family.name);
        let labels = family.labels.iter().copied().zip(values.iter().copied());
        for (i, (label, value)) in labels.chain(bound.map(|bound| ("le", bound))).enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if i == 0 { '{' } else { ',' });
            self.escaped(value);
            self.0.push('"');
        }
        if !values.is_empty() || bound.is_some() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A label's value: backslash, quote and line feed are escaped.
    fn escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }
}

type IsHealth = fn(&Health) -> bool;

/// The values of `health`, and whose they are.
pub const HEALTH: [(&str, IsHealth); 3] = [
    ("healthy", |health| matches!(health, Health::Healthy)),
    ("unknown", |health| matches!(health, Health::Unknown)),
    ("unhealthy", |health| matches!(health, Health::Unhealthy(_))),
];
