//! From the control plane's state to what others read: a cluster of the snapshot, a cluster of the report. Pure.

use std::sync::Arc;

use super::{
    cluster::{ClusterState, EndpointState},
    config::{Discovery, Target},
    status::{ClusterReport, EjectionReport, EndpointReport, Standing, TargetReport},
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
    let ejected: Vec<_> = state
        .endpoints
        .values()
        .map(|endpoint| endpoint.passive.is_ejected())
        .collect();
    let eligible = eligible(&endpoints, &ejected, state.spec.panic_threshold);
    Cluster {
        name: state.spec.name.clone(),
        policy: state.spec.policy.clone(),
        endpoints,
        eligible,
        turn: state.turn.clone(),
        circuits: state.circuits.clone(),
    }
}

/// Those that the balancer may choose from: the healthy ones that aren't `ejected` (by the same index).
///
/// An ejection never leaves a cluster without an endpoint: should those that were in use fail their checks, the ejected
/// ones that pass theirs are better than none.
fn eligible(
    endpoints: &[Arc<Endpoint>],
    ejected: &[bool],
    panic_threshold: u8,
) -> Vec<Arc<Endpoint>> {
    let healthy = || {
        let all = endpoints.iter().zip(ejected);
        all.filter(|(endpoint, _)| endpoint.health == Health::Healthy)
    };
    let in_use: Vec<_> = healthy()
        .filter(|(_, ejected)| !**ejected)
        .map(|(endpoint, _)| endpoint.clone())
        .collect();
    if panics(in_use.len(), endpoints.len(), panic_threshold) {
        endpoints.to_vec()
    } else if in_use.is_empty() {
        healthy().map(|(endpoint, _)| endpoint.clone()).collect()
    } else {
        in_use
    }
}

/// As Envoy's healthy panic threshold: when less than `threshold` percent are in use, health is ignored (then it is
/// likelier that the checks are wrong than that all these endpoints are). 0 never acts.
fn panics(in_use: usize, total: usize, threshold: u8) -> bool {
    in_use * 100 < total * usize::from(threshold)
}

/// The cluster as operators see it; `published` is what workers have.
pub(super) fn report(state: &ClusterState, published: &Cluster) -> ClusterReport {
    let spec = &state.spec;
    let targets = spec.targets.iter().zip(&state.targets).enumerate();
    let in_use =
        |endpoint: &&EndpointState| endpoint.machine.is_healthy() && !endpoint.passive.is_ejected();
    let in_use = state.endpoints.values().filter(in_use).count();
    let ids = state.endpoints.values().map(|endpoint| endpoint.shared.id);
    let eligible = published.eligible.iter().map(|endpoint| endpoint.shared.id);
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
                asked_since_ms: target_state.since_ms,
                last_answer_at_ms: target_state.answered_at_ms,
                last_result: target_state.last_result,
                last_error: target_state.last_error.clone(),
            })
            .collect(),
        endpoints: state
            .endpoints
            .iter()
            .zip(chosen(ids, eligible))
            .map(|((address, endpoint), eligible)| EndpointReport {
                shared: endpoint.shared.clone(),
                health: endpoint.machine.health().clone(),
                standing: state
                    .members
                    .standing(*address)
                    .unwrap_or(Standing::Leaving),
                eligible,
                health_since_ms: endpoint.since_ms,
                last_check: endpoint.last_check.clone(),
                ejections: endpoint.passive.total(),
                ejection: endpoint.passive.ejection().map(|ejection| EjectionReport {
                    ejected_for: ejection.detector.key(),
                    ejected_at_ms: endpoint.ejected_ms.0,
                    returns_at_ms: endpoint.ejected_ms.1,
                }),
            })
            .collect(),
        eligible: published.eligible.len(),
        panic: panics(in_use, state.endpoints.len(), spec.panic_threshold),
        health_checked: spec.health_check.is_some(),
        lookups: state.lookups.clone(),
        checks: state.checks.clone(),
        detections: state.detections.clone(),
        circuits: state.circuits.clone(),
    }
}

/// Of each whether it is one of `some`, which are in the same order. Each is looked at once: the report is made many
/// times a second, and there may be thousands.
fn chosen<T: PartialEq>(
    all: impl Iterator<Item = T>,
    some: impl Iterator<Item = T>,
) -> impl Iterator<Item = bool> {
    let mut some = some.peekable();
    all.map(move |one| some.next_if_eq(&one).is_some())
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
        let none_ejected = vec![false; total.into()];
        let eligible = eligible(&endpoints(healthy, total), &none_ejected, threshold);
        let panics = panics(healthy.into(), total.into(), threshold);
        (eligible.len(), panics)
    }

    /// The last parts of those who are eligible of four, of which the first `healthy` are, and `ejected` are out.
    fn of_four(healthy: u8, ejected: [bool; 4], threshold: u8) -> Vec<u8> {
        let eligible = eligible(&endpoints(healthy, 4), &ejected, threshold);
        let last = |endpoint: &Arc<Endpoint>| match endpoint.shared.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("they are made above"),
        };
        eligible.iter().map(last).collect()
    }

    #[test]
    fn ejected_ones_are_used_only_when_there_is_no_other() {
        let out = |who: &[usize]| std::array::from_fn(|i| who.contains(&i));
        assert_eq!(of_four(4, out(&[1]), 0), [0, 2, 3]);
        assert_eq!(of_four(2, out(&[1]), 0), [0]);
        assert_eq!(
            of_four(1, out(&[0, 1]), 0),
            [0],
            "healthy, and the only one"
        );
        assert!(of_four(0, out(&[0, 1]), 0).is_empty());
        assert_eq!(of_four(3, out(&[0]), 75), [0, 1, 2, 3], "out is unhealthy");
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
    fn each_is_compared_once_to_tell_the_chosen_ones() {
        use std::cell::Cell;
        thread_local! {
            static COMPARED: Cell<usize> = const { Cell::new(0) };
        }
        struct Id(usize);
        impl PartialEq for Id {
            fn eq(&self, other: &Self) -> bool {
                COMPARED.set(COMPARED.get() + 1);
                self.0 == other.0
            }
        }
        // The last is chosen, and the first isn't.
        let third = (1..1000).filter(|id| id % 3 == 0);
        let told: Vec<_> = chosen((1..1000).map(Id), third.map(Id)).collect();
        let expected: Vec<_> = (1..1000).map(|id| id % 3 == 0).collect();
        assert_eq!(told, expected);
        assert_eq!(COMPARED.get(), 999);
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
