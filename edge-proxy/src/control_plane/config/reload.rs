//! From a file that may have changed to a configuration in force.
//!
//! Read and judged off the loop ([`read`]), then planned ([`Plan`], pure): which clusters stay as they are, which are new.
//! The old routes serve until the new clusters are resolved and checked and each has a healthy endpoint, or
//! [`Plan::PATIENCE`] is over; then all of it changes in one publication. Whatever is wrong is found before anything changes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::{Config, ConfigErrors, Loaded, Problem, restart_needed, source};
use crate::control_plane::{
    certs::{Identities, Pair, PairError},
    cluster::ClusterState,
    status::now_ms,
};

/// What was read: the text (to know it again), and what it means.
#[derive(Debug)]
pub(in crate::control_plane) struct Read {
    /// As it is in the file; `None`: it can't be read.
    pub(in crate::control_plane) text: Option<String>,
    /// A configuration to plan for, or why not.
    pub(in crate::control_plane) outcome: Result<Box<Candidate>, Refusal>,
}

/// A configuration that may come into force.
#[derive(Debug)]
pub(in crate::control_plane) struct Candidate {
    pub(in crate::control_plane) config: Config,
    /// The pair of its files, if they aren't those in force.
    pub(in crate::control_plane) pair: Option<Pair>,
    /// What to look at all the same.
    pub(in crate::control_plane) warnings: Vec<Problem>,
}

/// Why a file changes nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::control_plane) enum Refusal {
    #[error("{0}")]
    Invalid(#[from] ConfigErrors),
    #[error("{}: {} can't change without a restart: restart edge-proxy, or undo the change",
        .path.display(), .keys.join(", "))]
    NeedsRestart {
        path: PathBuf,
        keys: Vec<&'static str>,
    },
    #[error("the certificate of the new configuration can't be served: {0}")]
    Certificate(#[from] PairError),
}

/// A candidate on its way into force.
#[derive(Debug)]
pub(in crate::control_plane) struct Plan {
    pub(in crate::control_plane) config: Config,
    pub(in crate::control_plane) pair: Option<Pair>,
    /// In the new configuration's order.
    pub(in crate::control_plane) clusters: Vec<Planned>,
    deadline: Instant,
}

/// What becomes of one cluster of the new configuration.
#[derive(Debug)]
pub(in crate::control_plane) enum Planned {
    /// The one in force stays, with its endpoints, their health and its turn.
    Kept,
    /// It is new, or looks for or checks something else.
    New(Box<ClusterState>),
}

/// Reads the file at `path` and judges it against `current`. Blocks.
pub(in crate::control_plane) fn read(
    path: &Path,
    current: &Config,
    identities: &Identities,
) -> Read {
    let text = match source::read(path) {
        Ok(text) => text,
        Err(errors) => {
            return Read {
                text: None,
                outcome: Err(errors.into()),
            };
        }
    };
    let outcome = judge(&text, path, current, identities);
    Read {
        text: Some(text),
        outcome,
    }
}

fn judge(
    text: &str,
    path: &Path,
    current: &Config,
    identities: &Identities,
) -> Result<Box<Candidate>, Refusal> {
    let Loaded { config, warnings } = Config::parse(text, path)?;
    let keys = restart_needed(current, &config);
    if !keys.is_empty() {
        return Err(Refusal::NeedsRestart {
            path: path.to_owned(),
            keys,
        });
    }
    let files = |config: &Config| (config.certificate_chain.clone(), config.private_key.clone());
    let pair = if files(&config) == files(current) {
        None
    } else {
        let now = (now_ms() / 1000) as i64;
        Some(identities.read_pair(&config.certificate_chain, &config.private_key, now)?)
    };
    Ok(Box::new(Candidate {
        config,
        pair,
        warnings,
    }))
}

impl Plan {
    /// How long the new clusters may take to be resolved and checked before they are served as they are.
    pub(in crate::control_plane) const PATIENCE: Duration = Duration::from_secs(5);

    /// From what is in force to `candidate`.
    pub(in crate::control_plane) fn new<'a>(
        candidate: Candidate,
        in_force: impl Iterator<Item = &'a ClusterState> + Clone,
        now: Instant,
    ) -> Self {
        let Candidate { config, pair, .. } = candidate;
        let clusters = config
            .clusters
            .iter()
            .map(|spec| {
                let old = in_force.clone().find(|old| old.spec.name == spec.name);
                match old {
                    Some(old) if old.continues_as(spec) => Planned::Kept,
                    old => {
                        let mut new = ClusterState::new(spec.clone(), old, now);
                        new.hurry_checks();
                        Planned::New(Box::new(new))
                    }
                }
            })
            .collect();
        Self {
            config,
            pair,
            clusters,
            deadline: now + Self::PATIENCE,
        }
    }

    /// Its new clusters.
    pub(in crate::control_plane) fn fresh(&self) -> impl Iterator<Item = &ClusterState> + Clone {
        self.clusters.iter().filter_map(|planned| match planned {
            Planned::New(cluster) => Some(&**cluster),
            Planned::Kept => None,
        })
    }

    /// Its new clusters, to be told things.
    pub(in crate::control_plane) fn fresh_mut(
        &mut self,
    ) -> impl Iterator<Item = &mut ClusterState> {
        self.clusters
            .iter_mut()
            .filter_map(|planned| match planned {
                Planned::New(cluster) => Some(&mut **cluster),
                Planned::Kept => None,
            })
    }

    /// It may come into force: every new cluster is resolved and checked and has a healthy endpoint, or time is up.
    /// Without one it would take the place of a cluster that works, perhaps for a name server's or a backend's one wrong
    /// answer.
    pub(in crate::control_plane) fn is_ripe(&self, now: Instant) -> bool {
        let ready = |cluster: &ClusterState| cluster.warmed_up() && cluster.has_healthy();
        now >= self.deadline || self.fresh().all(ready)
    }

    /// When it comes into force at the latest.
    pub(in crate::control_plane) fn deadline(&self) -> Instant {
        self.deadline
    }
}
