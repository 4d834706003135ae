//! What a reload makes of a cluster: whether it stays, what it takes on, what the one that takes its place begins with.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::ClusterState;
use crate::{
    control_plane::{
        config::{ClusterSpec, Discovery},
        discovery::Answer,
        pace::Pace,
    },
    snapshot::EndpointShared,
};

impl ClusterState {
    /// A reload doesn't touch which names this cluster looks for and what its checks ask: it may stay as it is. Another
    /// family of addresses is another answer to the same question, and its addresses come and go as after any answer.
    pub(in crate::control_plane) fn continues_as(&self, spec: &ClusterSpec) -> bool {
        fn asks(spec: &ClusterSpec) -> Option<&str> {
            spec.health_check.as_ref().map(|check| &*check.service)
        }
        let old = &self.spec;
        old.discovery == spec.discovery && old.targets == spec.targets && asks(old) == asks(spec)
    }

    /// Takes the parts of a configuration that don't make it another cluster.
    pub(in crate::control_plane) fn adopt(&mut self, spec: ClusterSpec, now: Instant) {
        self.changed |= self.spec != spec;
        let judged_anew = self.spec.outlier_detection != spec.outlier_detection;
        let looked_up_anew = self.spec.refresh != spec.refresh || self.spec.family != spec.family;
        let checked_anew = self.spec.health_check != spec.health_check;
        self.spec = spec;
        // By the old times the next one may be hours away.
        if looked_up_anew {
            self.targets.iter_mut().for_each(|t| t.pace.hurry(now));
        }
        if checked_anew {
            self.endpoints.change_all(|e| e.pace.hurry(now));
        }
        if judged_anew {
            let addresses: Vec<_> = self.endpoints.keys().copied().collect();
            for address in addresses {
                self.bring_back(address, |endpoint| endpoint.passive.forgive(now));
            }
        }
    }

    /// Goes on with what `previous` has counted: it comes into force in its place. Not earlier, since that one counts
    /// until then.
    pub(in crate::control_plane) fn succeed(&mut self, previous: &Self) {
        add(&mut self.lookups, &previous.lookups);
        add(&mut self.checks, &previous.checks);
        add(&mut self.detections, &previous.detections);
        // No snapshot names the others any more: workers close their connections, and no identity is used again.
        self.inherited.clear();
    }

    /// Begins with what `previous` knows of the names that both ask for.
    pub(super) fn remember(&mut self, previous: &Self, now: Instant) {
        let (spec, old) = (&self.spec, &previous.spec);
        let dns = |spec: &ClusterSpec| spec.discovery == Discovery::StrictDns;
        if !dns(spec) || !dns(old) {
            return;
        }
        for (i, target) in spec.targets.iter().enumerate() {
            let Some(at) = old.targets.iter().position(|old| old == target) else {
                continue;
            };
            self.targets[i].since_ms = previous.targets[at].since_ms;
            let known: BTreeSet<_> = previous.members.named(at).collect();
            if known.is_empty() {
                continue;
            }
            self.members.answer(i, Answer::Addresses(known));
            let (state, old) = (&mut self.targets[i], &previous.targets[at]);
            state.answered_at_ms = old.answered_at_ms;
            state.found = true;
            state.last_result = old.last_result;
            state.last_error = old.last_error.clone();
            // The checks come first: of what an empty answer withdraws only those stay that have passed one.
            state.pace = Pace::new(now + AFTER_THE_CHECKS);
        }
        self.settle(now);
    }

    pub(super) fn identities(&self) -> BTreeMap<SocketAddr, Arc<EndpointShared>> {
        self.endpoints
            .iter()
            .map(|(address, e)| (*address, e.shared.clone()))
            .collect()
    }
}

fn add<K: Copy + Ord>(counts: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (key, count) in more {
        *counts.entry(*key).or_default() += count;
    }
}

/// Before the first look-up of a name whose addresses are known.
const AFTER_THE_CHECKS: Duration = Duration::from_secs(1);
