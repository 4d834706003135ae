//! What RPCs tell of endpoints, and what is made of it.

use super::*;
use crate::control_plane::cluster::ClusterState;

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_fails_in_a_row_ejects_it_for_a_while() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2, 3]);
    let mut running = Running::with(network, &yaml(&[("echo", UNCHECKED)]), None);
    let snapshot = running.until_eligible(&[1, 2, 3]).await;
    let [first, second, _] = &snapshot.clusters[0].endpoints[..] else {
        panic!("three endpoints")
    };
    let hints = running.hints.clone();
    hints.attempted(&first.shared, Ending::LocalOrigin, 4);
    hints.attempted(&first.shared, Ending::Well, 1);
    hints.attempted(&first.shared, Ending::LocalOrigin, 4);
    hints.attempted(&second.shared, Ending::LocalOrigin, 5);
    running.until_eligible(&[1, 3]).await;
    let begin = Instant::now();
    let report = &running.next_report().await.clusters[0];
    let ejection = report.endpoints[1].ejection.unwrap();
    assert_eq!(ejection.ejected_for, "consecutive_local_origin_failure");
    assert_eq!(ejection.returns_at_ms - ejection.ejected_at_ms, 30_000);
    // A tenth of three, but one at least: the next one has to stay.
    hints.attempted(&first.shared, Ending::LocalOrigin, 5);
    running.until_eligible(&[1, 2, 3]).await;
    assert_eq!(begin.elapsed(), 30 * SECOND);
    let report = &running.next_report().await.clusters[0];
    assert_eq!(
        report.detections,
        BTreeMap::from([
            ((Detector::LocalOrigin, Detected::Ejected), 1),
            ((Detector::LocalOrigin, Detected::Overflow), 1),
        ])
    );
    // Again at once: twice as long.
    hints.attempted(&second.shared, Ending::LocalOrigin, 5);
    running.until_eligible(&[1, 3]).await;
    let begin = Instant::now();
    running.until_eligible(&[1, 2, 3]).await;
    assert_eq!(begin.elapsed(), 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn passing_checks_end_an_ejection_for_taking_no_rpcs_and_no_other() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let more = format!("{CHECKED}\n    outlier_detection: {{ consecutive_5xx: 3 }}");
    let mut running = Running::with(network, &yaml(&[("echo", &more)]), None);
    let snapshot = running.until_eligible(&[1, 2]).await;
    let first = snapshot.clusters[0].endpoints[0].shared.clone();
    for (ending, at_least, at_most) in [
        (Ending::LocalOrigin, SECOND, 25 * SECOND),
        (Ending::ServerError, 60 * SECOND, 60 * SECOND),
    ] {
        running.hints.attempted(&first, ending, 5);
        running.until_eligible(&[2]).await;
        let begin = Instant::now();
        running.until_eligible(&[1, 2]).await;
        let lasted = begin.elapsed();
        assert!(
            lasted >= at_least && lasted <= at_most,
            "{ending:?}: {lasted:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_ejection_never_leaves_a_cluster_without_endpoints() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    let snapshot = running.until_eligible(&[1, 2]).await;
    let endpoints = &snapshot.clusters[0].endpoints;
    running
        .hints
        .attempted(&endpoints[0].shared, Ending::LocalOrigin, 5);
    running.until_eligible(&[2]).await;
    running
        .hints
        .attempted(&endpoints[1].shared, Ending::LocalOrigin, 5);
    network.check(2, refused());
    // The ejected one is better than none.
    running.until_eligible(&[1]).await;
    let report = &running.next_report().await.clusters[0];
    assert_eq!(
        report.detections[&(Detector::LocalOrigin, Detected::Overflow)],
        1
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_not_enforced_is_counted_only() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let detection = "outlier_detection: { enforcing_consecutive_local_origin_failure: false }";
    let mut running = Running::with(network, &yaml(&[("echo", detection)]), None);
    let snapshot = running.until_eligible(&[1, 2]).await;
    let first = &snapshot.clusters[0].endpoints[0].shared;
    running.hints.attempted(first, Ending::LocalOrigin, 5);
    pass(SECOND).await;
    let report = &running.report().clusters[0];
    assert_eq!(
        report.detections,
        BTreeMap::from([((Detector::LocalOrigin, Detected::NotEnforced), 1)])
    );
    assert_eq!(report.eligible, 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_reload_plans_is_not_counted_by_before_it_comes_into_force() {
    let (core, _handle) = unhurried();
    let in_force = &core.clusters[0].state;
    let mut spec = in_force.spec.clone();
    spec.outlier_detection.thresholds.local_origin = 1;
    let mut planned = ClusterState::new(spec, Some(in_force), Instant::now());
    let address = in_force.endpoints.keys().next().unwrap();
    let shared = &in_force.endpoints[address].shared;
    assert!(Arc::ptr_eq(shared, &planned.endpoints[address].shared));
    assert!(!shared.streaks.count(Ending::LocalOrigin, 1));
    planned.enforce();
    assert!(shared.streaks.count(Ending::LocalOrigin, 1));
}
