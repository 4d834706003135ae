//! What one scrape reads: the workers' counters added up, the control plane's report and the process's own figures, as
//! the metric families that [`families`](crate::telemetry::families) names.
//!
//! Values that are always 0 are left out where a label has many values (grpc-status other than 0), and methods begin when
//! a backend makes them known; everything else is there from the start, so that a rate sees the first event: workers make
//! their counters with the first RPC, and what the configuration names is added here.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{
    control_plane::status::{
        CheckResult, Detected, EndpointReport, LookupResult, Report, TargetReport, now_ms,
    },
    snapshot::{
        Health, Heartbeats, RouteAction, circuit::CircuitUse, pressure::Pressure, streak::Detector,
    },
    telemetry::{
        exposition::Text,
        families::Family,
        labels::{
            AttemptResult, Flag, HandshakeResult, Label, Limit, ResetCause, RetryRefusal, Side,
        },
        methods::UNKNOWN,
        metrics::{Metrics, NONE, STATUS_LABELS},
        process,
        totals::Totals,
    },
};

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

/// All families as text.
pub fn render(scrape: &Scrape<'_>) -> String {
    let mut text = Text::new();
    rpcs(&mut text, scrape);
    clusters(&mut text, scrape.report);
    process(&mut text, scrape);
    text.finish()
}

fn rpcs(text: &mut Text, scrape: &Scrape<'_>) {
    let metrics = scrape.metrics;
    let mut totals = metrics.totals();
    expect_configured(&mut totals, scrape.report);
    text.family(Family::STARTED);
    for ((route, cluster, method), series) in &totals.series {
        text.sample(Family::STARTED, &[route, cluster, method], series.started);
    }
    text.family(Family::ENDED);
    for ((route, cluster, method), series) in &totals.series {
        for (i, status) in STATUS_LABELS.iter().enumerate() {
            if i == 0 || series.ended[i] > 0 {
                text.sample(
                    Family::ENDED,
                    &[route, cluster, method, status],
                    series.ended[i],
                );
            }
        }
    }
    text.family(Family::IN_FLIGHT);
    let mut in_flight = BTreeMap::<&str, u64>::new();
    in_flight.extend(totals.clusters.keys().map(|name| (&**name, 0)));
    for ((_, cluster, _), series) in &totals.series {
        *in_flight.entry(cluster).or_default() += series.in_flight();
    }
    for (cluster, count) in in_flight {
        text.sample(Family::IN_FLIGHT, &[cluster], count);
    }
    text.family(Family::DURATION);
    for (name, cluster) in &totals.clusters {
        text.histogram(Family::DURATION, name, &cluster.duration);
    }
    text.labelled::<Flag>(Family::FLAGS, &totals.flags);
    text.family(Family::ATTEMPTS);
    for (name, cluster) in &totals.clusters {
        for result in AttemptResult::ALL {
            let count = cluster.attempts[result.index()];
            text.sample(Family::ATTEMPTS, &[name, result.as_str()], count);
        }
    }
    text.family(Family::ATTEMPTS_IN_FLIGHT);
    for (name, cluster) in &totals.clusters {
        text.sample(Family::ATTEMPTS_IN_FLIGHT, &[name], cluster.active);
    }
    text.family(Family::RETRIES);
    for (name, cluster) in &totals.clusters {
        text.sample(Family::RETRIES, &[name], cluster.retries);
    }
    text.family(Family::RETRIES_REFUSED);
    for (name, cluster) in &totals.clusters {
        for reason in RetryRefusal::ALL {
            let count = cluster.retries_refused[reason.index()];
            text.sample(Family::RETRIES_REFUSED, &[name, reason.as_str()], count);
        }
    }
    let [opened, open] = [|(opened, _)| opened, |(opened, closed)| opened - closed]
        .map(|value: fn((u64, u64)) -> u64| totals.connections.map(value));
    text.labelled::<Side>(Family::CONNECTIONS_OPENED, &opened);
    text.labelled::<Side>(Family::CONNECTIONS, &open);
    text.family(Family::CONNECTIONS_LIMIT);
    let limit = &metrics.listener().connections_limit;
    let limit = limit.load(Ordering::Relaxed);
    if limit > 0 {
        text.sample(
            Family::CONNECTIONS_LIMIT,
            &[Side::Downstream.as_str()],
            limit,
        );
    }
    text.labelled::<HandshakeResult>(Family::HANDSHAKES, &totals.handshakes);
    let pending = &metrics.listener().handshakes_pending;
    text.single(
        Family::HANDSHAKES_PENDING,
        Some(pending.load(Ordering::Relaxed)),
    );
    text.labelled::<ResetCause>(Family::RESETS, &totals.resets);
    text.labelled::<Limit>(Family::LIMITS, &totals.limits);
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
    text.family(Family::ENDPOINTS);
    for cluster in &report.clusters {
        for (word, is) in HEALTH {
            let count = cluster
                .endpoints
                .iter()
                .filter(|endpoint| is(&endpoint.health))
                .count();
            text.sample(Family::ENDPOINTS, &[&cluster.name, word], count);
        }
    }
    text.family(Family::ELIGIBLE);
    for cluster in &report.clusters {
        text.sample(Family::ELIGIBLE, &[&cluster.name], cluster.eligible);
    }
    text.family(Family::PANIC);
    for cluster in &report.clusters {
        text.sample(Family::PANIC, &[&cluster.name], u8::from(cluster.panic));
    }
    text.family(Family::EJECTED);
    for cluster in &report.clusters {
        let ejected = |endpoint: &&EndpointReport| endpoint.ejection.is_some();
        let count = cluster.endpoints.iter().filter(ejected).count();
        text.sample(Family::EJECTED, &[&cluster.name], count);
    }
    text.family(Family::OUTLIERS);
    for cluster in &report.clusters {
        for detector in Detector::ALL {
            for detected in Detected::ALL {
                let labels = [&*cluster.name, detector.key(), detected.as_str()];
                let count = cluster.detections.get(&(detector, detected));
                text.sample(Family::OUTLIERS, &labels, count.unwrap_or(&0));
            }
        }
    }
    circuits(text, report);
    text.family(Family::CHECKS);
    for cluster in report.clusters.iter().filter(|c| c.health_checked) {
        for result in CheckResult::ALL {
            let count = cluster.checks.get(&result).unwrap_or(&0);
            text.sample(Family::CHECKS, &[&cluster.name, result.as_str()], count);
        }
    }
    let resolved = || report.clusters.iter().filter(|c| c.discovery != "static");
    text.family(Family::LOOKUPS);
    for cluster in resolved() {
        for result in LookupResult::ALL {
            let count = cluster.lookups.get(&result).unwrap_or(&0);
            text.sample(Family::LOOKUPS, &[&cluster.name, result.as_str()], count);
        }
    }
    text.family(Family::ANSWER_AGE);
    for cluster in resolved() {
        let waits_since = |target: &TargetReport| {
            let answered = target.last_answer_at_ms;
            answered.unwrap_or(target.asked_since_ms)
        };
        if let Some(at) = cluster.targets.iter().map(waits_since).min() {
            let age = Duration::from_millis(now_ms().saturating_sub(at));
            text.sample(Family::ANSWER_AGE, &[&cluster.name], age.as_secs_f64());
        }
    }
}

fn circuits(text: &mut Text, report: &Report) {
    type Value = fn(&CircuitUse, u32) -> u64;
    let families: [(Family, Value); 3] = [
        (Family::CIRCUIT_LIMIT, |_, limit| limit.into()),
        (Family::CIRCUIT_USED, |of, _| of.used.into()),
        (Family::CIRCUIT_REFUSED, |of, _| of.refused),
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
    text.family(Family::CERTIFICATE_EXPIRY);
    if let Some(certificate) = &report.certificate.current {
        text.sample(Family::CERTIFICATE_EXPIRY, &[], certificate.not_after);
    }
    text.family(Family::CERTIFICATE_LOADS);
    text.sample(
        Family::CERTIFICATE_LOADS,
        &["loaded"],
        report.certificate.loads,
    );
    text.sample(
        Family::CERTIFICATE_LOADS,
        &["rejected"],
        report.certificate.rejected,
    );
    let certificate = &report.certificate;
    let current = certificate.current.is_some() && certificate.last_error.is_none();
    text.single(Family::CERTIFICATE_CURRENT, Some(u8::from(current)));
    text.family(Family::RELOADS);
    text.sample(Family::RELOADS, &["applied"], report.configuration.reloads);
    text.sample(
        Family::RELOADS,
        &["rejected"],
        report.configuration.rejected,
    );
    let loaded = Duration::from_millis(report.configuration.loaded_at_ms).as_secs_f64();
    text.single(Family::LOADED, Some(loaded));
    let refused = report.configuration.last_error.is_some();
    text.single(Family::CURRENT, Some(u8::from(!refused)));
    text.single(Family::READY, Some(u8::from(scrape.ready)));
    text.single(Family::DRAINING, Some(u8::from(scrape.draining)));
    text.single(
        Family::HEARTBEAT,
        Some(scrape.heartbeats.oldest().as_secs_f64()),
    );
    text.single(Family::PANICS, Some(report.panics));
    text.single(
        Family::LOG_DROPPED,
        Some(scrape.metrics.access_log_dropped()),
    );
    text.single(Family::MEMORY, process::resident_bytes());
    text.single(Family::MEMORY_LIMIT, scrape.memory_limit);
    let pressure = scrape.pressure;
    text.single(
        Family::MEMORY_USED,
        (pressure.limit > 0).then_some(pressure.used),
    );
    text.single(Family::OVERLOAD, Some(pressure.level as u8));
    text.single(
        Family::CPU,
        process::cpu_time().map(|time| time.as_secs_f64()),
    );
    text.single(Family::UPTIME, Some(scrape.metrics.uptime().as_secs_f64()));
    text.family(Family::BUILD);
    text.sample(Family::BUILD, &[env!("CARGO_PKG_VERSION")], 1);
}

type IsHealth = fn(&Health) -> bool;

/// The values of `health`, and whose they are.
pub const HEALTH: [(&str, IsHealth); 3] = [
    ("healthy", |health| matches!(health, Health::Healthy)),
    ("unknown", |health| matches!(health, Health::Unknown)),
    ("unhealthy", |health| matches!(health, Health::Unhealthy(_))),
];
