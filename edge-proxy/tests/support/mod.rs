//! A state for the admin pages that no proxy stands behind: for their tests, and to look at the page.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "for tests, which may panic; each of them uses a part"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering},
};

use edge_proxy::{
    control_plane::{
        admin::{Actions, Addresses, State},
        config::Config,
        status::{
            CertificateInfo, CertificateReport, CheckReport, CheckResult, ClusterReport,
            ConfigurationReport, Detected, EndpointReport, LookupResult, Problem, ProcessState,
            Readiness, Report, Standing, Status, TargetReport, now_ms,
        },
    },
    snapshot::{EndpointShared, Health, Heartbeats, pressure::Pressure, streak::Detector},
    telemetry::{log::SetLevelError, metrics::Metrics},
};

/// Writes down what it is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Asked(pub(crate) Mutex<Vec<String>>);

impl Asked {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }
}

impl Actions for Asked {
    fn set_serving(&self, serving: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.note(format!("serving {serving}"));
        Box::pin(async {})
    }

    fn drain_listeners(&self) {
        self.note("drain");
    }

    fn quit(&self) {
        self.note("quit");
    }

    fn set_log_level(&self, level: &str) -> Result<(), SetLevelError> {
        if level == "loud" {
            return Err(SetLevelError::Unknown(level.to_owned()));
        }
        self.note(format!("level {level}"));
        Ok(())
    }

    fn log_level(&self) -> String {
        "info".to_owned()
    }
}

/// A report with two clusters of `endpoints` endpoints each, all healthy.
pub(crate) fn report(endpoints: usize) -> Report {
    let now = now_ms();
    let config = Config::parse(CONFIG, Path::new("edge-proxy.yaml"))
        .unwrap()
        .config;
    let clusters = [("echo-grpc", 8081), ("reverse-grpc", 8082)];
    Report {
        started_at_ms: now - 5 * 3_600_000,
        generation: 17,
        readiness: Readiness {
            serving: true,
            certificate: true,
            warmed_up: true,
        },
        configuration: ConfigurationReport {
            source: Some(PathBuf::from("/etc/edge-proxy/edge-proxy.yaml")),
            loaded_at_ms: now - 3_600_000,
            reloads: 1,
            rejected: 0,
            pending: false,
            last_error: None,
            config: Arc::new(config),
        },
        certificate: CertificateReport {
            chain_path: "/etc/edge-proxy/tls/tls.crt".into(),
            key_path: "/etc/edge-proxy/tls/tls.key".into(),
            current: Some(certificate(now)),
            loads: 1,
            rejected: 0,
            last_error: None,
        },
        clusters: clusters
            .map(|(name, port)| cluster(name, port, endpoints, now))
            .into(),
        panics: 0,
    }
}

/// A state that shows `report`; what is asked of it goes to the second.
pub(crate) fn state(report: Report) -> (State, Arc<Asked>) {
    let asked = Arc::<Asked>::default();
    let state = State {
        status: Status::new(report),
        metrics: Metrics::new(),
        heartbeats: Heartbeats::new(2),
        memory_limit: Some(512 << 20),
        pressure: tokio::sync::watch::channel(Pressure::default()).1,
        process: tokio::sync::watch::channel(ProcessState::Serving).1,
        addresses: Addresses {
            listener: ([0, 0, 0, 0], 8443).into(),
            admin: ([127, 0, 0, 1], 8090).into(),
            probes: ([0, 0, 0, 0], 8091).into(),
        },
        hostname: "edge-proxy-6c9f7d5b8-x2x7k".into(),
        actions: asked.clone(),
    };
    (state, asked)
}

fn certificate(now: u64) -> CertificateInfo {
    let now = now as i64 / 1000;
    CertificateInfo {
        subject: "CN=grpc.example.com".into(),
        issuer: "CN=grpc.example.com".into(),
        names: vec!["grpc.example.com".into()],
        serial: "5f:1e:9a:02:77:c4:10:8b".into(),
        not_before: now - 30 * 86_400,
        not_after: now + 335 * 86_400,
        key: "RSA 4096".into(),
        loaded_at_ms: (now as u64 - 18_000) * 1000,
    }
}

fn cluster(name: &str, port: u16, endpoints: usize, now: u64) -> ClusterReport {
    let endpoints: Vec<_> = (0..endpoints)
        .map(|i| {
            let ip = [
                10,
                8,
                (port % 7) as u8 + (i / 250) as u8,
                (i % 250) as u8 + 4,
            ];
            endpoint((ip, port).into(), now)
        })
        .collect();
    ClusterReport {
        name: name.to_owned(),
        discovery: "strict_dns",
        targets: vec![TargetReport {
            target: format!("{name}.default.svc.cluster.local.:{port}"),
            addresses: endpoints
                .iter()
                .map(|endpoint| endpoint.shared.address)
                .collect(),
            asked_since_ms: now - 3_600_000,
            last_answer_at_ms: Some(now - 3_000),
            last_result: Some(LookupResult::Answer),
            last_error: None,
        }],
        eligible: endpoints.len(),
        endpoints,
        panic: false,
        health_checked: true,
        lookups: BTreeMap::from([(LookupResult::Answer, 3_600)]),
        checks: BTreeMap::from([(CheckResult::Pass, 3_600), (CheckResult::Timeout, 2)]),
        detections: BTreeMap::from([((Detector::LocalOrigin, Detected::Ejected), 2)]),
        circuits: Arc::default(),
    }
}

fn endpoint(address: std::net::SocketAddr, now: u64) -> EndpointReport {
    let shared = EndpointShared::new(address);
    shared.connections.store(2, Ordering::Relaxed);
    EndpointReport {
        shared,
        health: Health::Healthy,
        standing: Standing::Listed,
        eligible: true,
        health_since_ms: now - 7_200_000,
        last_check: Some(CheckReport {
            at_ms: now - 4_000,
            latency_us: 840,
            result: CheckResult::Pass,
            detail: "SERVING".into(),
        }),
        ejections: 0,
        ejection: None,
    }
}

/// Makes `endpoint` unhealthy for `reason`.
pub(crate) fn eject(endpoint: &mut EndpointReport, reason: &str) {
    endpoint.health = Health::Unhealthy(reason.into());
    endpoint.eligible = false;
    endpoint.health_since_ms = now_ms() - 42_000;
    if let Some(check) = &mut endpoint.last_check {
        check.result = CheckResult::Timeout;
        check.detail = reason.to_owned();
    }
}

/// Something that went wrong just now.
pub(crate) fn problem(message: &str) -> Option<Problem> {
    Some(Problem {
        at_ms: now_ms() - 9_000,
        message: message.to_owned(),
    })
}

const CONFIG: &str = "
listener:
  address: 0.0.0.0:8443
  tls: { certificate_chain: /etc/edge-proxy/tls/tls.crt, private_key: /etc/edge-proxy/tls/tls.key }
routes:
  - { prefix: /api.Echo/, cluster: echo-grpc }
  - { prefix: /api.Reverse/, cluster: reverse-grpc }
clusters:
  - { name: echo-grpc, endpoints: ['echo-grpc.default.svc.cluster.local.:8081'] }
  - { name: reverse-grpc, endpoints: ['reverse-grpc.default.svc.cluster.local.:8082'] }
";
