//! Step 7: which endpoint gets this attempt. Round robin per RPC over the endpoints that the control plane calls
//! eligible.
//!
//! The turn is one counter per cluster, shared by all workers and carried from one snapshot to the next: 1000 RPCs over
//! two endpoints are 500 and 500, however connections and workers fall together. A further attempt of the same RPC
//! takes no turn. If it did, a dead endpoint of two would stand first in line for every RPC. Further attempts take turns of
//! their own, among the endpoints that their RPCs haven't tried: else what fails on a dead endpoint would all go to the
//! one that follows it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    error::Failure,
    snapshot::{Cluster, Endpoint},
};

/// The endpoint for the next attempt of an RPC that was tried on the endpoints with the ids `tried` (empty: its first
/// attempt, which takes the turn). One that was tried already comes again only when there is no other. `None`:
/// nothing is eligible, see [`absence`].
pub fn pick<'a>(cluster: &'a Cluster, tried: &[u64]) -> Option<&'a Arc<Endpoint>> {
    let eligible = &cluster.eligible;
    if eligible.is_empty() {
        return None;
    }
    // Relaxed: a turn orders nothing but itself.
    let turn = |turns: &AtomicUsize, of: usize| turns.fetch_add(1, Ordering::Relaxed) % of;
    if tried.is_empty() {
        return eligible.get(turn(&cluster.turn.first, eligible.len()));
    }
    let others = || {
        let all = eligible.iter();
        all.filter(|endpoint| !tried.contains(&endpoint.shared.id))
    };
    match others().count() {
        0 => eligible.get(turn(&cluster.turn.further, eligible.len())),
        count => others().nth(turn(&cluster.turn.further, count)),
    }
}

/// Why [`pick`] found nothing.
pub fn absence(cluster: &Cluster) -> Failure {
    if cluster.endpoints.is_empty() {
        Failure::NoEndpoint
    } else {
        Failure::NoHealthyUpstream
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, thread, time::Duration};

    use super::*;
    use crate::snapshot::{ClusterPolicy, EndpointShared, Health};

    fn cluster(endpoints: usize, eligible: usize) -> Cluster {
        let endpoints: Vec<_> = (0..endpoints)
            .map(|last| {
                Arc::new(Endpoint {
                    shared: EndpointShared::new(([127, 0, 0, last as u8], 1).into()),
                    health: Health::Healthy,
                    close_connections: false,
                })
            })
            .collect();
        Cluster {
            name: "echo".into(),
            policy: Arc::new(ClusterPolicy {
                connect_timeout: Duration::from_secs(1),
                max_connections: 1,
                per_connection_streams: 1,
                initial_stream_window_size: 1,
                initial_connection_window_size: 1,
                max_replay_bytes: 1,
            }),
            eligible: endpoints[..eligible].to_vec(),
            endpoints,
            turn: Arc::default(),
            circuits: Arc::default(),
        }
    }

    fn id(endpoint: Option<&Arc<Endpoint>>) -> u64 {
        endpoint.unwrap().shared.id
    }

    #[test]
    fn a_thousand_rpcs_over_two_endpoints_are_500_and_500() {
        let cluster = cluster(2, 2);
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for _ in 0..1000 {
            *counts.entry(id(pick(&cluster, &[]))).or_default() += 1;
        }
        assert!(counts.values().all(|count| *count == 500), "{counts:?}");
    }

    #[test]
    fn workers_share_the_turn() {
        let cluster = cluster(4, 4);
        let counts = thread::scope(|scope| {
            let worker = || {
                (0..1000)
                    .map(|_| id(pick(&cluster, &[])))
                    .collect::<Vec<_>>()
            };
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            let mut counts: HashMap<u64, usize> = HashMap::new();
            for worker in workers {
                for id in worker.join().unwrap() {
                    *counts.entry(id).or_default() += 1;
                }
            }
            counts
        });
        assert_eq!(counts.len(), 4);
        assert!(counts.values().all(|count| *count == 1000), "{counts:?}");
    }

    #[test]
    fn another_attempt_goes_elsewhere_and_takes_no_turn() {
        let cluster = cluster(3, 3);
        let ids: Vec<_> = cluster
            .endpoints
            .iter()
            .map(|endpoint| endpoint.shared.id)
            .collect();
        for round in 0..6 {
            let first = id(pick(&cluster, &[]));
            assert_eq!(first, ids[round % 3]);
            let second = id(pick(&cluster, &[first]));
            assert_ne!(second, first);
            let third = id(pick(&cluster, &[first, second]));
            assert!(third != first && third != second);
        }
    }

    #[test]
    fn what_a_dead_endpoint_leaves_is_shared_evenly() {
        let cluster = cluster(4, 4);
        let ids = || cluster.endpoints.iter().map(|endpoint| endpoint.shared.id);
        let dead = ids().next().unwrap();
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for _ in 0..1200 {
            let first = id(pick(&cluster, &[]));
            let served = if first == dead {
                id(pick(&cluster, &[dead]))
            } else {
                first
            };
            *counts.entry(served).or_default() += 1;
        }
        let served: Vec<_> = ids().map(|id| counts.get(&id).copied()).collect();
        assert_eq!(served, [None, Some(400), Some(400), Some(400)]);
    }

    #[test]
    fn the_same_again_only_when_there_is_no_other() {
        let alone = cluster(1, 1);
        let first = id(pick(&alone, &[]));
        assert_eq!(id(pick(&alone, &[first])), first);
        // An endpoint that was tried, then left: the ids of those that are gone don't matter.
        assert_eq!(id(pick(&alone, &[u64::MAX])), first);
    }

    #[test]
    fn nothing_eligible() {
        let empty = cluster(0, 0);
        assert!(pick(&empty, &[]).is_none());
        assert_eq!(absence(&empty), Failure::NoEndpoint);
        let unhealthy = cluster(2, 0);
        assert!(pick(&unhealthy, &[]).is_none());
        assert_eq!(absence(&unhealthy), Failure::NoHealthyUpstream);
    }

    #[test]
    fn the_turn_may_wrap() {
        let cluster = cluster(3, 3);
        cluster.turn.first.store(usize::MAX, Ordering::Relaxed);
        cluster.turn.further.store(usize::MAX, Ordering::Relaxed);
        for _ in 0..3 {
            let first = id(pick(&cluster, &[]));
            assert!(pick(&cluster, &[first]).is_some());
        }
    }
}
