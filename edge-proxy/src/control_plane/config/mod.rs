//! The configuration: `source.rs` makes a text of the file, `file.rs` is the YAML as written, `read.rs` reads it and
//! explains what isn't YAML or isn't ours, `validate` turns it into [`Config`] and finds every mistake of meaning in one
//! go.
//!
//! [`Config::load_with_files`] is what `run` and `check` use; [`Config::parse`] is the same for a text, without a look at
//! the files that it names.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use crate::data_plane::access_log::{AccessLogConfig, AccessLogFormat};
use crate::{
    cgroup::Resources,
    snapshot::{
        ClusterPolicy, ListenerPolicy, Route,
        circuit::CircuitLimits,
        streak::{Detector, Thresholds},
    },
};

mod file;
mod files;
mod place;
mod problem;
mod read;
pub(in crate::control_plane) mod reload;
mod restart;
mod source;
#[cfg(test)]
mod tests;
mod validate;
mod values;

use self::files::Files;
pub use self::{
    place::Place,
    problem::{ConfigErrors, Problem},
    restart::restart_needed,
};

/// A configuration that is right, and what to look at all the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// For use.
    pub config: Config,
    /// In the file's order; `check` prints them, `run` logs them.
    pub warnings: Vec<Problem>,
}

/// A configuration that may be wrong, and what is known of that so far.
struct Draft {
    config: Config,
    file: PathBuf,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    files: Files,
}

/// A configuration that can't be wrong any more: every reference resolved, every number in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// 0: as many as the cgroup grants cores.
    pub workers: usize,
    /// Empty: `/etc/resolv.conf`.
    pub nameservers: Vec<SocketAddr>,
    /// `listener.address`.
    pub listener_address: SocketAddr,
    /// `listener`, but for its address and files.
    pub listener: Arc<ListenerPolicy>,
    /// `listener.tls.certificate_chain`.
    pub certificate_chain: PathBuf,
    /// `listener.tls.private_key`.
    pub private_key: PathBuf,
    /// `admin.address`.
    pub admin: SocketAddr,
    /// `probes.address`.
    pub probes: SocketAddr,
    /// `drain`.
    pub drain: Drain,
    /// `access_log`.
    pub access_log: AccessLogConfig,
    /// In file order; each leads to an index of `clusters`.
    pub routes: Vec<Route>,
    /// In file order.
    pub clusters: Vec<ClusterSpec>,
}

impl Config {
    /// The JSON Schema of the configuration file.
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(file::File)
    }

    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// It can't be read (one error without a place), or it is wrong: see [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
        Draft::load(path)?.finish()
    }

    /// [`load`](Self::load), and a look at the files that it names: what is wrong with these is told in the same go.
    ///
    /// # Errors
    /// As [`load`](Self::load); or with a file that it names `run` could not start, or would never serve.
    pub fn load_with_files(path: &Path) -> Result<Loaded, ConfigErrors> {
        let mut draft = Draft::load(path)?;
        draft.look_at_files();
        draft.finish()
    }

    /// Validates `text`; `file` is named in messages. Defaults that follow the memory limit follow this process's.
    ///
    /// # Errors
    /// One mistake of syntax or one unknown key, or else all mistakes of meaning.
    pub fn parse(text: &str, file: &Path) -> Result<Loaded, ConfigErrors> {
        Self::parse_for(text, file, &Resources::detect())
    }

    /// [`parse`](Self::parse) for a machine that grants `resources`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_for(
        text: &str,
        file: &Path,
        resources: &Resources,
    ) -> Result<Loaded, ConfigErrors> {
        Draft::parse(text, file, resources)?.finish()
    }
}

impl Draft {
    fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = source::read(path)?;
        Self::parse(&text, path, &Resources::detect())
    }

    fn parse(text: &str, file: &Path, resources: &Resources) -> Result<Self, ConfigErrors> {
        let (written, outline) = read::read(text, file)?;
        let mut report = problem::Report::new(file, &outline);
        let config = validate::validate(&written, resources, &mut report);
        let (errors, warnings) = report.finish();
        Ok(Self {
            config,
            file: file.to_owned(),
            errors,
            warnings,
            files: Files::of(&written),
        })
    }

    fn finish(mut self) -> Result<Loaded, ConfigErrors> {
        self.errors.sort_by_key(|problem| problem.place);
        self.warnings.sort_by_key(|problem| problem.place);
        if self.errors.is_empty() {
            return Ok(Loaded {
                config: self.config,
                warnings: self.warnings,
            });
        }
        Err(ConfigErrors {
            errors: self.errors,
            warnings: self.warnings,
        })
    }
}

/// `drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Over which connections get their GOAWAY.
    pub time: Duration,
    /// How long running RPCs may take after it.
    pub deadline: Duration,
}

/// One cluster as configured: what the control plane needs to find and check its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterSpec {
    /// Unique.
    pub name: Arc<str>,
    /// How `targets` become addresses.
    pub discovery: Discovery,
    /// `endpoints`, as host and port.
    pub targets: Vec<Target>,
    /// Which records are asked for.
    pub family: LookupFamily,
    /// From an answer to the next look-up, ± 10 %.
    pub refresh: Duration,
    /// The data plane's part.
    pub policy: Arc<ClusterPolicy>,
    /// Percent; 0: never send to unhealthy endpoints.
    pub panic_threshold: u8,
    /// `None`: all endpoints are healthy.
    pub health_check: Option<HealthCheckSpec>,
    /// Which failures of RPCs eject.
    pub outlier_detection: OutlierSpec,
    /// How much may be in use at once.
    pub circuit_breakers: CircuitLimits,
}

/// `discovery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Addresses as written.
    Static,
    /// All A/AAAA records of each name.
    StrictDns,
}

/// `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name (with its trailing dot, if written) or an IP address.
    pub host: String,
    /// 1–65535.
    pub port: u16,
}

/// `dns_lookup_family`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFamily {
    /// A.
    V4Only,
    /// AAAA.
    V6Only,
    /// AAAA, and A when there is none, as Envoy's `AUTO`.
    Auto,
}

/// `health_check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheckSpec {
    /// `service` of the check's request.
    pub service: String,
    /// Of one check.
    pub timeout: Duration,
    /// Between checks, ± 10 %.
    pub interval: Duration,
    /// Between checks after the first failure, and while no endpoint is healthy (a second at least).
    pub unhealthy_edge_interval: Duration,
    /// Failures in a row (refused, reset, time-out) that eject.
    pub unhealthy_threshold: u32,
    /// Passes in a row that bring back.
    pub healthy_threshold: u32,
}

/// `outlier_detection`. Its default is what a cluster without one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSpec {
    /// Failures in a row that eject.
    pub thresholds: Thresholds,
    /// The times of further ejections fall by one step for each of these without one.
    pub interval: Duration,
    /// The first ejection's time, and each further one's step.
    pub base_ejection_time: Duration,
    /// The longest ejection's.
    pub max_ejection_time: Duration,
    /// Of a cluster's endpoints, ejected at once; one may always be.
    pub max_ejection_percent: u8,
    /// Whether a streak ejects, or is only counted; in the order of [`Detector::ALL`].
    pub enforcing: [bool; Detector::ALL.len()],
}

impl Default for OutlierSpec {
    fn default() -> Self {
        Self {
            thresholds: Thresholds {
                local_origin: 5,
                ..Thresholds::default()
            },
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
            enforcing: [true; Detector::ALL.len()],
        }
    }
}
