//! What the page shows, as one JSON document: the page's script asks for it every two seconds.

use serde::Serialize;

use super::{
    State,
    history::{History, Traffic},
};
use crate::{
    control_plane::status::{
        CertificateReport, ClusterReport, ConfigurationReport, ProcessState, Readiness, Report,
        now_ms,
    },
    telemetry::{
        labels::{Label, Limit, Side},
        process,
    },
};

/// Everything, as of one moment. Times end in `_ms`; moments are since the Unix epoch.
#[derive(Debug, Serialize)]
pub(super) struct Overview<'a> {
    now_ms: u64,
    server: Server<'a>,
    readiness: Readiness,
    traffic: Traffic,
    /// RPCs begun per second, oldest first, two seconds each.
    rates: Vec<f64>,
    connections: Connections,
    configuration: &'a ConfigurationReport,
    certificate: &'a CertificateReport,
    clusters: Vec<Cluster<'a>>,
    process: Process,
    /// Those that acted: name, how often.
    limits: Vec<(&'static str, u64)>,
}

/// `/server_info`.
#[derive(Debug, Serialize)]
pub(super) struct Server<'a> {
    name: &'a str,
    version: &'static str,
    hostname: &'a str,
    listener: String,
    started_at_ms: u64,
    uptime_ms: u64,
    generation: u64,
    state: ProcessState,
    ready: bool,
    log_level: String,
}

#[derive(Debug, Serialize)]
struct Connections {
    downstream: u64,
    upstream: u64,
}

#[derive(Debug, Serialize)]
struct Cluster<'a> {
    #[serde(flatten)]
    report: &'a ClusterReport,
    traffic: Traffic,
}

#[derive(Debug, Serialize)]
struct Process {
    /// Milliseconds since each worker ran.
    workers_ms: Vec<u64>,
    memory_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    /// What the overload manager does.
    overload: &'static str,
    cpu_ms: Option<u64>,
    access_log_dropped: u64,
    control_plane_panics: u64,
}

impl<'a> Overview<'a> {
    pub(super) fn new(state: &'a State, report: &'a Report, history: &History) -> Self {
        let totals = state.metrics.totals();
        let open = |side: Side| {
            let (opened, closed) = totals.connections[side.index()];
            opened.saturating_sub(closed)
        };
        let acted = Limit::ALL
            .iter()
            .map(|limit| (limit.as_str(), totals.limits[limit.index()]));
        let clusters = report.clusters.iter().map(|report| Cluster {
            report,
            traffic: history.cluster(&report.name),
        });
        Self {
            now_ms: now_ms(),
            server: Server::new(state, report),
            readiness: report.readiness,
            traffic: history.all(),
            rates: history.rates(),
            connections: Connections {
                downstream: open(Side::Downstream),
                upstream: open(Side::Upstream),
            },
            configuration: &report.configuration,
            certificate: &report.certificate,
            clusters: clusters.collect(),
            process: Process {
                workers_ms: state
                    .heartbeats
                    .ages()
                    .map(|age| age.as_millis() as u64)
                    .collect(),
                memory_bytes: process::resident_bytes(),
                memory_limit_bytes: state.memory_limit,
                overload: state.pressure.borrow().level.as_str(),
                cpu_ms: process::cpu_time().map(|time| time.as_millis() as u64),
                access_log_dropped: state.metrics.access_log_dropped(),
                control_plane_panics: report.panics,
            },
            limits: acted.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl<'a> Server<'a> {
    pub(super) fn new(state: &'a State, report: &'a Report) -> Self {
        Self {
            name: &report.configuration.config.listener.server_name,
            version: env!("CARGO_PKG_VERSION"),
            hostname: &state.hostname,
            listener: state.addresses.listener.to_string(),
            started_at_ms: report.started_at_ms,
            uptime_ms: state.metrics.uptime().as_millis() as u64,
            generation: report.generation,
            state: state.process(),
            ready: state.is_ready(report),
            log_level: state.actions.log_level(),
        }
    }
}
