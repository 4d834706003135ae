//! Endpoints out of use by what workers tell of them: hints are taken up, streaks of failures eject, ejections end.

use std::{net::SocketAddr, sync::atomic::Ordering};

use tokio::time::Instant;

use super::{ClusterState, EndpointState};
use crate::{
    control_plane::{
        health::{Return, may_eject},
        status::{Detected, now_ms},
    },
    snapshot::streak::Detector,
};

impl ClusterState {
    /// Takes up the workers' hints: endpoints that refused or said GOAWAY are checked and their names looked up, those
    /// that failed too often in a row are ejected.
    pub(in crate::control_plane) fn take_hints(&mut self, now: Instant) {
        let mut suspects = Vec::new();
        let mut outliers = Vec::new();
        for (address, endpoint) in self.endpoints.iter() {
            let reached = endpoint.shared.streaks.take();
            outliers.extend(reached.map(|detector| (*address, detector)));
            if endpoint.shared.suspect.swap(false, Ordering::Relaxed) {
                suspects.push(*address);
            }
        }
        for address in &suspects {
            let hurry = |endpoint: &mut EndpointState| endpoint.pace.hurry(now);
            self.endpoints.change(*address, hurry);
        }
        if !suspects.is_empty() {
            for target in &mut self.targets {
                target.pace.hurry(now);
            }
        }
        for (address, detector) in outliers {
            self.outlier(address, detector, now);
        }
    }

    /// The endpoint at `address` has failed too often in a row: ejects it, if that may be.
    fn outlier(&mut self, address: SocketAddr, detector: Detector, now: Instant) {
        let spec = &self.spec.outlier_detection;
        let in_use = |endpoint: &EndpointState| {
            endpoint.machine.is_healthy() && !endpoint.passive.is_ejected()
        };
        let ejected = self.endpoints.values().filter(|e| e.passive.is_ejected());
        let ejected = ejected.count();
        let others = self.endpoints.values().filter(|e| in_use(e)).count();
        let total = self.endpoints.len();
        // One that is out of use already has nothing to lose: these are its last RPCs.
        let Some(endpoint) = self.endpoints.get(&address).filter(|e| in_use(e)) else {
            return;
        };
        let detected = if !spec.enforcing[detector as usize] {
            Detected::NotEnforced
        } else if !may_eject(ejected, others - 1, total, spec.max_ejection_percent) {
            Detected::Overflow
        } else {
            Detected::Ejected
        };
        *self.detections.entry((detector, detected)).or_default() += 1;
        let (cluster, label) = (&*self.spec.name, endpoint.shared.label.clone());
        let (streak, detected_as) = (detector.key(), detected.as_str());
        if detected != Detected::Ejected {
            // Not above: an endpoint that is kept goes on failing, and so would the lines.
            tracing::debug!(
                cluster,
                endpoint = &*label,
                streak,
                detected_as,
                "fails in a row; not ejected"
            );
            return;
        }
        let length = self.endpoints.change(address, |endpoint| {
            let length = endpoint.passive.eject(detector, spec, now);
            let at_ms = now_ms();
            endpoint.ejected_ms = (at_ms, at_ms + length.as_millis() as u64);
            length
        });
        self.changed = true;
        tracing::warn!(
            cluster,
            endpoint = &*label,
            streak,
            for_seconds = length.map(|length| length.as_secs_f64()),
            "ejected: its RPCs fail in a row"
        );
    }

    /// Ends the ejection of the endpoint at `address`, if `ended` gives a reason.
    pub(super) fn bring_back(
        &mut self,
        address: SocketAddr,
        ended: impl FnOnce(&mut EndpointState) -> Option<Return>,
    ) {
        let returned = self.endpoints.change(address, |endpoint| {
            let why = ended(endpoint)?;
            endpoint.shared.streaks.clear();
            Some((endpoint.shared.label.clone(), why))
        });
        if let Some(Some((endpoint, why))) = returned {
            self.changed = true;
            let (cluster, endpoint) = (&*self.spec.name, &*endpoint);
            tracing::info!(cluster, endpoint, ?why, "no longer ejected");
        }
    }
}
