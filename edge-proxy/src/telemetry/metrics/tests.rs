use std::cell::{Cell, RefCell};

use super::*;

fn names() -> (Arc<str>, Arc<str>) {
    ("/api.Echo/".into(), "echo-grpc".into())
}

#[test]
fn an_unknown_path_shares_one_series_until_a_backend_answers_it() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let shard = metrics.shard();
    let first = shard.series(&route, &cluster, b"/api.Echo/Echo");
    assert_eq!(&*first.method, UNKNOWN);
    assert!(Arc::ptr_eq(
        &first,
        &shard.series(&route, &cluster, b"/api.Echo/Other")
    ));
    assert!(Arc::ptr_eq(
        &first,
        &shard.series(&route, &cluster, b"/\xff")
    ));

    first.learn(b"/api.Echo/Echo");
    let known = shard.series(&route, &cluster, b"/api.Echo/Echo");
    assert_eq!(&*known.method, "api.Echo/Echo");
    assert!(Arc::ptr_eq(
        &known,
        &shard.series(&route, &cluster, b"/api.Echo/Echo")
    ));
    assert!(Arc::ptr_eq(
        &first,
        &shard.series(&route, &cluster, b"/api.Echo/Other")
    ));

    let other = metrics.shard().series(&route, &cluster, b"/api.Echo/Echo");
    assert_eq!(&*other.method, "api.Echo/Echo", "known to every shard");
    assert!(!Arc::ptr_eq(&known, &other), "but counted apart");
}

#[test]
fn series_are_told_apart_by_content_not_by_address() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let shard = metrics.shard();
    let series = shard.series(&route, &cluster, b"/x");
    let (same_route, same_cluster) = names();
    assert!(Arc::ptr_eq(
        &series,
        &shard.series(&same_route, &same_cluster, b"/x")
    ));
    assert!(!Arc::ptr_eq(
        &series,
        &shard.series(&"/".into(), &cluster, b"/x")
    ));
    assert!(!Arc::ptr_eq(
        &series,
        &shard.series(&route, &"b".into(), b"/x")
    ));
    assert_eq!(shard.all_series().len(), 4);
}

#[test]
fn any_number_of_raw_paths_makes_no_series() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let shard = metrics.shard();
    for i in 0..10_000 {
        shard.series(&route, &cluster, format!("/s/{i}").as_bytes());
    }
    assert_eq!(shard.all_series().len(), 2);
}

#[test]
fn every_status_has_its_counter() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let series = metrics.shard().series(&route, &cluster, b"/x");
    for status in [0, 16, 17, u32::MAX] {
        series.ended(RpcEnd::Grpc(status)).inc();
    }
    series.ended(RpcEnd::Without).inc();
    for status in [0, 199, 200, 299, 300, 404, 499, 500, 503, 999] {
        series.ended(RpcEnd::Http(status)).inc();
    }
    let counts = STATUS_LABELS.iter().zip(series.all_ended());
    let counted: Vec<_> = counts
        .map(|(label, count)| (*label, count.get()))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(
        counted,
        [
            ("0", 1),
            ("16", 1),
            ("other", 2),
            ("none", 3),
            ("http_2xx", 2),
            ("http_3xx", 1),
            ("http_4xx", 2),
            ("http_5xx", 3)
        ]
    );
}

#[test]
fn a_cluster_is_made_once_per_shard() {
    let (metrics, (_, cluster)) = (Metrics::new(), names());
    let shard = metrics.shard();
    let series = shard.cluster(&cluster);
    series.attempts(AttemptResult::Refused).inc();
    assert_eq!(
        shard
            .cluster(&cluster)
            .attempts(AttemptResult::Refused)
            .get(),
        1
    );
    assert_eq!(shard.all_clusters().len(), 1);
}

#[test]
fn a_removed_cluster_is_forgotten_once_nobody_counts_in_it() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let shards = [metrics.shard(), metrics.shard()];
    let other: Arc<str> = "other".into();
    let held = shards.each_ref().map(|shard| {
        shard.series(&route, &other, b"/x").started.inc();
        shard.series(&route, &NONE.into(), b"/x").started.inc();
        let series = shard.series(&route, &cluster, b"/api.Echo/Echo");
        series.started.inc();
        series.learn(b"/api.Echo/Echo");
        series.ended(RpcEnd::Grpc(0)).inc();
        let of_cluster = shard.cluster(&cluster);
        of_cluster.duration.record(Duration::from_secs(1));
        (series, of_cluster)
    });
    let known = || {
        let totals = metrics.totals();
        let series = totals.series.keys().map(|(_, cluster, _)| cluster.clone());
        let names: std::collections::BTreeSet<_> =
            series.chain(totals.clusters.keys().cloned()).collect();
        names
            .iter()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    metrics.forget_clusters(|_| true);
    assert_eq!(known(), ["echo-grpc", NONE, "other"]);
    let is_kept = |name: &str| name == "other";
    let [(series, of_cluster), (series_too, of_cluster_too)] = held;
    drop((series, of_cluster, series_too));
    metrics.forget_clusters(is_kept);
    let series = metrics.totals().series;
    let of_it = series.iter().filter(|((_, name, _), _)| *name == cluster);
    let started = of_it.map(|(_, series)| series.started).sum::<u64>();
    assert_eq!(started, 2, "of both threads, or of none");
    drop(of_cluster_too);
    metrics.forget_clusters(is_kept);
    assert_eq!(known(), [NONE, "other"]);
    let forgotten = metrics.totals().forgotten;
    assert_eq!((forgotten.rpcs.started, forgotten.rpcs.in_flight()), (2, 0));
    assert_eq!(forgotten.duration.count(), 2);

    // Should it come back, it begins anew.
    let again = shards[0].series(&route, &cluster, b"/api.Echo/Echo");
    assert_eq!((&*again.method, again.started.get()), (UNKNOWN, 0));
}

#[test]
fn a_cluster_in_which_a_thread_counts_again_while_it_is_looked_for_is_kept_by_all() {
    let (metrics, (route, cluster)) = (Metrics::new(), names());
    let shards = [metrics.shard(), metrics.shard()];
    for shard in &shards {
        let series = shard.series(&route, &cluster, b"/x");
        series.started.inc();
        shard.cluster(&cluster).duration.record(Duration::ZERO);
    }
    // One series and one cluster each: at the third look the first thread has been looked at.
    let (looks, held) = (Cell::new(0), RefCell::default());
    metrics.forget_clusters(|_| {
        looks.set(looks.get() + 1);
        if looks.get() == 3 {
            held.replace(Some(shards[0].series(&route, &cluster, b"/x")));
        }
        false
    });
    assert_eq!(looks.get(), 4);
    let started = || {
        metrics
            .totals()
            .series
            .values()
            .map(|of| of.started)
            .sum::<u64>()
    };
    assert_eq!(started(), 2, "of both threads");
    held.take();
    metrics.forget_clusters(|_| false);
    assert_eq!((started(), metrics.totals().forgotten.rpcs.started), (0, 2));
}
