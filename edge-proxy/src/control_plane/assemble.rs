//! From the control plane's state to what others read: a cluster of the snapshot, a cluster of the report. Pure.

use std::sync::Arc;

use super::{
    cluster::ClusterState,
    config::{Discovery, Target},
    status::{ClusterReport, EndpointReport, Standing, TargetReport},
};
use crate::snapshot::{Cluster, Endpoint, Health};

/// The cluster as workers see it.
pub(super) fn cluster(state: &ClusterState) -> Cluster {
    let endpoints: Vec<_> = state
        .endpoints
        .values()
        .map(|endpoint| {
            Arc::new(Endpoint {
                shared: endpoint.shared.clone(),
                health: endpoint.machine.health().clone(),
                close_connections: endpoint.machine.close_connections(),
            })
        })
        .collect();
    let eligible = eligible(&endpoints, state.spec.panic_threshold).0;
    Cluster {
        name: state.spec.name.clone(),
        policy: state.spec.policy.clone(),
        endpoints,
        eligible,
        turn: state.turn.clone(),
    }
}

/// Those that the balancer may choose from, and whether that is because `panic_threshold` acts.
///
/// As Envoy's healthy panic threshold: when less than `panic_threshold` percent are healthy, health is ignored (then
/// it is likelier that the checks are wrong than that all these endpoints are). 0 never acts.
fn eligible(endpoints: &[Arc<Endpoint>], panic_threshold: u8) -> (Vec<Arc<Endpoint>>, bool) {
    let healthy: Vec<_> = endpoints
        .iter()
        .filter(|e| e.health == Health::Healthy)
        .cloned()
        .collect();
    if healthy.len() * 100 < endpoints.len() * usize::from(panic_threshold) {
        (endpoints.to_vec(), true)
    } else {
        (healthy, false)
    }
}

/// The cluster as operators see it; `published` is what workers have.
pub(super) fn report(state: &ClusterState, published: &Cluster) -> ClusterReport {
    let spec = &state.spec;
    let targets = spec.targets.iter().zip(&state.targets).enumerate();
    ClusterReport {
        name: spec.name.to_string(),
        discovery: match spec.discovery {
            Discovery::StrictDns => "strict_dns",
            Discovery::Static => "static",
        },
        targets: targets
            .map(|(i, (target, target_state))| TargetReport {
                target: display(target),
                addresses: state.members.listed(i).collect(),
                last_answer_at_ms: target_state.answered_at_ms,
                last_result: target_state.last_result,
                last_error: target_state.last_error.clone(),
            })
            .collect(),
        endpoints: state
            .endpoints
            .iter()
            .map(|(address, endpoint)| EndpointReport {
                shared: endpoint.shared.clone(),
                health: endpoint.machine.health().clone(),
                standing: state
                    .members
                    .standing(*address)
                    .unwrap_or(Standing::Leaving),
                eligible: published
                    .eligible
                    .iter()
                    .any(|e| e.shared.id == endpoint.shared.id),
                health_since_ms: endpoint.since_ms,
                last_check: endpoint.last_check.clone(),
            })
            .collect(),
        eligible: published.eligible.len(),
        panic: eligible(&published.endpoints, spec.panic_threshold).1,
        health_checked: spec.health_check.is_some(),
        lookups: state.lookups.clone(),
        checks: state.checks.clone(),
    }
}

fn display(target: &Target) -> String {
    if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::EndpointShared;

    /// `healthy` of `total` endpoints are.
    fn endpoints(healthy: u8, total: u8) -> Vec<Arc<Endpoint>> {
        (0..total)
            .map(|i| {
                Arc::new(Endpoint {
                    shared: EndpointShared::new(([10, 0, 0, i], 1).into()),
                    health: match i {
                        _ if i < healthy => Health::Healthy,
                        _ if i % 2 == 0 => Health::Unknown,
                        _ => Health::Unhealthy("test".into()),
                    },
                    close_connections: false,
                })
            })
            .collect()
    }

    fn count(healthy: u8, total: u8, threshold: u8) -> (usize, bool) {
        let (eligible, panic) = eligible(&endpoints(healthy, total), threshold);
        (eligible.len(), panic)
    }

    #[test]
    fn zero_never_sends_to_an_endpoint_that_is_not_healthy() {
        assert_eq!(count(0, 4, 0), (0, false));
        assert_eq!(count(1, 4, 0), (1, false));
        assert_eq!(count(0, 0, 0), (0, false));
    }

    #[test]
    fn below_the_threshold_all_are_eligible() {
        assert_eq!(count(1, 4, 50), (4, true));
        assert_eq!(
            count(2, 4, 50),
            (2, false),
            "at the threshold it doesn't act"
        );
        assert_eq!(count(3, 4, 50), (3, false));
        assert_eq!(count(0, 4, 1), (4, true));
        assert_eq!(count(3, 4, 100), (4, true));
        assert_eq!(count(4, 4, 100), (4, false));
        assert_eq!(count(0, 0, 100), (0, false));
    }

    #[test]
    fn an_ipv6_target_is_written_in_brackets() {
        let target = Target {
            host: "::1".into(),
            port: 8081,
        };
        assert_eq!(display(&target), "[::1]:8081");
    }
}
