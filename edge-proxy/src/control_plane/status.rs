//! What the control plane knows, as plain data for the admin pages, the probes and the metrics.
//!
//! The control plane builds a whole new [`Report`] within 50 ms of an event and swaps it in; a reader takes an `Arc` and
//! never waits, and never makes the control plane wait. What changes with every RPC (an endpoint's counters) isn't
//! copied: each endpoint's report carries the [`EndpointShared`] that the workers count in.
//!
//! All times are milliseconds since the Unix epoch, so that a page can show both the moment and its age.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    control_plane::config::Config,
    snapshot::{EndpointShared, Health, circuit::Circuits, streak::Detector},
};

/// The newest [`Report`]: written by the control plane, read by everybody.
#[derive(Debug)]
pub struct Status {
    current: ArcSwap<Report>,
}

/// Everything, as of one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When the process's control plane began.
    pub started_at_ms: u64,
    /// The generation of the published snapshot that this report belongs to.
    pub generation: u64,
    /// What `/readyz` asks for, part by part.
    pub readiness: Readiness,
    /// Where the configuration came from and what became of the last reload.
    pub configuration: ConfigurationReport,
    /// The certificate that is served, and what was wrong with the last pair, if anything.
    pub certificate: CertificateReport,
    /// In the configuration's order.
    pub clusters: Vec<ClusterReport>,
    /// Panics caught in the control plane's own tasks; each was restarted within a second.
    pub panics: u64,
}

/// How far the process is in its life, in this order. What runs it tells it, not the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// The listener isn't open yet.
    #[default]
    Starting,
    /// The listener is open.
    Serving,
    /// The listener is still open, and every connection gets its GOAWAY.
    Draining,
    /// The listener is closed, and what runs may finish.
    Closing,
    /// No connection is left. The process stays only if `/drain_listeners` is all that was asked of it.
    Drained,
}

/// Ready is all three; see [`Readiness::ready`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// False after `/healthcheck/fail`, until `/healthcheck/ok`.
    pub serving: bool,
    /// A certificate is loaded.
    pub certificate: bool,
    /// Every name was answered and every endpoint's first check ended, or 5 s have passed since the start.
    pub warmed_up: bool,
}

/// The configuration in force.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigurationReport {
    /// The file; `None`: it was made in memory (tests).
    pub source: Option<PathBuf>,
    /// When it came into force.
    pub loaded_at_ms: u64,
    /// Reloads that came into force.
    pub reloads: u64,
    /// Reloads refused.
    pub rejected: u64,
    /// A reload that is resolving and checking its new clusters before it comes into force.
    pub pending: bool,
    /// Why the file as it was last read isn't in force; `None` if it is, or is on its way.
    pub last_error: Option<Problem>,
    /// The configuration itself, for `/config_dump`.
    #[serde(skip)]
    pub config: Arc<Config>,
}

/// Something that went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// When.
    pub at_ms: u64,
    /// What, in words for operators; may have several lines.
    pub message: String,
}

/// The files of `listener.tls` and the pair read from them.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateReport {
    /// `listener.tls.certificate_chain`.
    pub chain_path: PathBuf,
    /// `listener.tls.private_key`.
    pub key_path: PathBuf,
    /// The pair that is served; `None`: none yet.
    pub current: Option<CertificateInfo>,
    /// Pairs that came into force.
    pub loads: u64,
    /// Bad pairs that were refused.
    pub rejected: u64,
    /// Why the files as they are now aren't served; `None` once they are.
    pub last_error: Option<Problem>,
}

/// The leaf of the certificate chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateInfo {
    /// The distinguished name.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names and IP addresses of the subject alternative name.
    pub names: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    /// `RSA 2048`, `ECDSA P-256`: what a handshake signs with.
    pub key: String,
    /// When it came into force.
    pub loaded_at_ms: u64,
}

/// One cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterReport {
    /// The configuration's name.
    pub name: String,
    /// `strict_dns` or `static`.
    pub discovery: &'static str,
    /// One per `endpoints` entry, in file order.
    pub targets: Vec<TargetReport>,
    /// By address.
    pub endpoints: Vec<EndpointReport>,
    /// How many of `endpoints` the balancer may choose from.
    pub eligible: usize,
    /// `panic_threshold` acts: the balancer chooses from all endpoints, healthy or not.
    pub panic: bool,
    /// The cluster has a `health_check`.
    pub health_checked: bool,
    /// DNS look-ups ended, by result; their metric, too.
    pub lookups: BTreeMap<LookupResult, u64>,
    /// Health checks ended, by result; their metric, too.
    pub checks: BTreeMap<CheckResult, u64>,
    /// Streaks of failures that reached their threshold, by kind and consequence; their metric, too.
    #[serde(serialize_with = "detections")]
    pub detections: BTreeMap<(Detector, Detected), u64>,
    /// Its circuit limits and what is in use; in JSON those that are set.
    #[serde(rename = "circuit_breakers", serialize_with = "circuits")]
    pub circuits: Arc<Circuits>,
}

/// One `host:port` of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct TargetReport {
    /// As configured.
    pub target: String,
    /// Addresses in force for it.
    pub addresses: Vec<SocketAddr>,
    /// Since when it is asked for.
    pub asked_since_ms: u64,
    /// When DNS last answered (with addresses or that there are none); `None`: never yet. Addresses as written are
    /// answered at the start.
    pub last_answer_at_ms: Option<u64>,
    /// How the last look-up ended; `None`: none has yet.
    pub last_result: Option<LookupResult>,
    /// Why the last look-up gave nothing to use; `None` when it did. The last good set stays.
    pub last_error: Option<Problem>,
}

/// One endpoint of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointReport {
    /// Identity and counters; in JSON its address and counters.
    #[serde(flatten, serialize_with = "counters")]
    pub shared: Arc<EndpointShared>,
    /// As the health checker sees it; in JSON a word, and `reason` if unhealthy.
    #[serde(flatten, serialize_with = "health")]
    pub health: Health,
    /// Why it is there.
    pub standing: Standing,
    /// The balancer may choose it now.
    pub eligible: bool,
    /// Since when its health is what it is.
    pub health_since_ms: u64,
    /// The last check that ended; `None`: none yet, or the cluster has none.
    pub last_check: Option<CheckReport>,
    /// How often failures of its RPCs have ejected it.
    pub ejections: u64,
    /// It is ejected now.
    #[serde(flatten)]
    pub ejection: Option<EjectionReport>,
}

/// An endpoint that gets no new RPCs because its last ones failed in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EjectionReport {
    /// The key of `outlier_detection` whose threshold was reached.
    pub ejected_for: &'static str,
    /// Since when.
    pub ejected_at_ms: u64,
    /// When it ends, if health checks don't end it earlier.
    pub returns_at_ms: u64,
}

/// How one health check ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// When it ended.
    pub at_ms: u64,
    /// From its start to its end, microseconds.
    pub latency_us: u64,
    /// In one word.
    pub result: CheckResult,
    /// In words for operators.
    pub detail: String,
}

/// Why an address is an endpoint of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The last good answer names it.
    Listed,
    /// Its name's answer became empty (or NXDOMAIN); it stays until its check fails.
    Withdrawn,
    /// Its name's answer doesn't name it any more; it serves until a listed endpoint is healthy.
    Leaving,
}

/// How a DNS look-up ended. Its metric's label, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LookupResult {
    /// With addresses.
    Answer,
    /// An answer without addresses.
    Empty,
    /// NXDOMAIN.
    NoName,
    /// No answer in time.
    Timeout,
    /// SERVFAIL.
    ServFail,
    /// REFUSED.
    Refused,
    /// Anything else: an answer that can't be read, no route to the name server, a panic.
    Error,
}

/// How a health check ended. Its metric's label, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// Status 0 and SERVING.
    Pass,
    /// Status 0 and another serving status.
    NotServing,
    /// The backend has no health service (status 12).
    Unimplemented,
    /// Another received status than 0.
    Status,
    /// No answer in time.
    Timeout,
    /// Refused, reset, closed, or not HTTP/2.
    Connection,
    /// The backend said GOAWAY (NO_ERROR) meanwhile: asked again on a new connection.
    GoAway,
    /// An error of ours (a panic in the checker).
    Internal,
}

/// What became of a streak of failures. Its metric's label, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detected {
    /// The endpoint was ejected.
    Ejected,
    /// Nothing: `max_ejection_percent` are ejected already, or no other endpoint is in use.
    Overflow,
    /// Nothing: `enforcing_…` is false.
    NotEnforced,
}

impl Status {
    /// Starts with `first`.
    pub fn new(first: Report) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
        })
    }

    /// The newest report. Never waits.
    pub fn report(&self) -> Arc<Report> {
        self.current.load_full()
    }

    /// Ready, which `/readyz` answers while the listener is open: certificate loaded, first checks ended (or 5 s gone), not told to fail.
    pub fn ready(&self) -> bool {
        self.current.load().readiness.ready()
    }

    /// The control plane's end.
    pub(crate) fn set(&self, report: Report) {
        self.current.store(Arc::new(report));
    }
}

impl ProcessState {
    /// New connections are accepted.
    pub fn is_listening(self) -> bool {
        matches!(self, Self::Serving | Self::Draining)
    }

    /// A drain has begun: it ends in no other state than these.
    pub fn is_draining(self) -> bool {
        matches!(self, Self::Draining | Self::Closing | Self::Drained)
    }
}

impl Readiness {
    /// All of its parts.
    pub fn ready(self) -> bool {
        self.serving && self.certificate && self.warmed_up
    }
}

impl Problem {
    /// Something that went wrong just now.
    pub(crate) fn now(message: impl Into<String>) -> Self {
        Self {
            at_ms: now_ms(),
            message: message.into(),
        }
    }
}

impl LookupResult {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Answer,
        Self::Empty,
        Self::NoName,
        Self::Timeout,
        Self::ServFail,
        Self::Refused,
        Self::Error,
    ];

    /// The word in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Empty => "empty",
            Self::NoName => "no_name",
            Self::Timeout => "timeout",
            Self::ServFail => "serv_fail",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

impl CheckResult {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pass,
        Self::NotServing,
        Self::Unimplemented,
        Self::Status,
        Self::Timeout,
        Self::Connection,
        Self::GoAway,
        Self::Internal,
    ];

    /// The backend answered, and not that it serves.
    pub(crate) fn is_failing_answer(self) -> bool {
        matches!(self, Self::NotServing | Self::Unimplemented | Self::Status)
    }

    /// The word in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::NotServing => "not_serving",
            Self::Unimplemented => "unimplemented",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::GoAway => "go_away",
            Self::Internal => "internal",
        }
    }
}

impl Detected {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ejected, Self::Overflow, Self::NotEnforced];

    /// The word in JSON and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ejected => "ejected",
            Self::Overflow => "overflow",
            Self::NotEnforced => "not_enforced",
        }
    }
}

/// Now, in this module's unit.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// An endpoint's address and counters as JSON.
fn counters<S: Serializer>(shared: &Arc<EndpointShared>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(5))?;
    map.serialize_entry("address", &*shared.label)?;
    map.serialize_entry("attempts", &shared.attempts.load(Ordering::Relaxed))?;
    map.serialize_entry("failures", &shared.failures.load(Ordering::Relaxed))?;
    map.serialize_entry("active", &shared.active.load(Ordering::Relaxed))?;
    map.serialize_entry("connections", &shared.connections.load(Ordering::Relaxed))?;
    map.end()
}

/// Health as a word and, if unhealthy, a reason.
fn health<S: Serializer>(health: &Health, serializer: S) -> Result<S::Ok, S::Error> {
    let (word, reason) = match health {
        Health::Healthy => ("healthy", None),
        Health::Unknown => ("unknown", None),
        Health::Unhealthy(reason) => ("unhealthy", Some(&**reason)),
    };
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("health", word)?;
    if let Some(reason) = reason {
        map.serialize_entry("reason", reason)?;
    }
    map.end()
}

/// By kind, then by consequence.
fn detections<S: Serializer>(
    detections: &BTreeMap<(Detector, Detected), u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut by_detector = BTreeMap::<_, BTreeMap<_, _>>::new();
    for ((detector, detected), count) in detections {
        let counts = by_detector.entry(detector.key()).or_default();
        counts.insert(detected.as_str(), count);
    }
    by_detector.serialize(serializer)
}

/// The limits that are set, by key.
fn circuits<S: Serializer>(circuits: &Arc<Circuits>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for of in circuits.uses() {
        if let Some(limit) = of.limit {
            let counts = [
                ("limit", u64::from(limit)),
                ("used", of.used.into()),
                ("refused", of.refused),
            ];
            map.serialize_entry(of.circuit.key(), &BTreeMap::from(counts))?;
        }
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_all_of_its_parts() {
        let all = Readiness {
            serving: true,
            certificate: true,
            warmed_up: true,
        };
        assert!(all.ready());
        assert!(
            !Readiness {
                serving: false,
                ..all
            }
            .ready()
        );
        assert!(
            !Readiness {
                certificate: false,
                ..all
            }
            .ready()
        );
        assert!(
            !Readiness {
                warmed_up: false,
                ..all
            }
            .ready()
        );
    }

    #[test]
    fn an_endpoint_is_flat_json_with_its_counters_and_its_reason() {
        let shared = EndpointShared::new("10.0.0.7:8081".parse().unwrap());
        shared.attempts.store(3, Ordering::Relaxed);
        let report = EndpointReport {
            shared,
            health: Health::Unhealthy("NOT_SERVING".into()),
            standing: Standing::Listed,
            eligible: false,
            health_since_ms: 1,
            last_check: None,
            ejections: 2,
            ejection: Some(EjectionReport {
                ejected_for: "consecutive_5xx",
                ejected_at_ms: 3,
                returns_at_ms: 4,
            }),
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["address"], "10.0.0.7:8081");
        assert_eq!(json["attempts"], 3);
        assert_eq!(json["health"], "unhealthy");
        assert_eq!(json["reason"], "NOT_SERVING");
        assert_eq!(json["standing"], "listed");
        assert_eq!(
            (&json["ejections"], &json["ejected_for"]),
            (&2.into(), &"consecutive_5xx".into())
        );
    }

    #[test]
    fn words_of_results_are_the_same_in_json_and_in_metrics() {
        use CheckResult as C;
        use LookupResult as L;
        for result in [
            L::Answer,
            L::Empty,
            L::Timeout,
            L::ServFail,
            L::Refused,
            L::Error,
        ] {
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
        }
        for result in [
            C::Pass,
            C::NotServing,
            C::Status,
            C::Timeout,
            C::Connection,
            C::GoAway,
            C::Internal,
        ] {
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
        }
    }
}
