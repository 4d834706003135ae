//! The metrics, as a scrape reads them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use edge_proxy::{
    control_plane::{
        admin::scrape::{self, Scrape},
        status::Report,
    },
    snapshot::pressure::Pressure,
    telemetry::{
        exposition,
        families::FAMILIES,
        metrics::{AttemptResult, Flag, HandshakeResult, Limit, ResetCause, RpcEnd, Side},
    },
};

use crate::{server::Server, support};

#[tokio::test]
async fn metrics_are_the_listed_families_and_nothing_else() {
    let mut report = support::report(2);
    report.clusters[0].name = "odd \"name\"\\\n".into();
    let (state, asked) = support::state(report);
    let shard = state.metrics.shard();
    let cluster: Arc<str> = "echo-grpc".into();
    let series = shard.series(&"/api.Echo/".into(), &cluster, b"/api.Echo/Secret?token=1");
    series.started.add(3);
    series.ended(RpcEnd::Grpc(0)).inc();
    series.ended(RpcEnd::Grpc(99)).inc();
    shard
        .cluster(&cluster)
        .duration
        .record(Duration::from_millis(3));
    shard.cluster(&cluster).attempts(AttemptResult::Ok).add(2);
    shard.connections(Side::Downstream).opened.add(2);
    shard.connections(Side::Downstream).closed.inc();
    shard.handshakes(HandshakeResult::Resumed).inc();
    shard.resets(ResetCause::Flood).inc();
    shard.limits(Limit::Memory).inc();
    shard.flags(Flag::NoRoute).inc();

    let admin = Server::start(state.clone(), Arc::clone(&asked), true).await;
    let probes = Server::start(state, asked, false).await;
    let answer = probes.get("/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some(exposition::CONTENT_TYPE)
    );
    let text = answer.body;
    let names = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&admin.get("/stats/prometheus").await.body),
        names(&text),
        "the same on both"
    );
    check_format(&text);
    for line in [
        r#"edge_rpcs_started_total{route="/api.Echo/",cluster="echo-grpc",method="unknown"} 3"#,
        r#"edge_rpcs_ended_total{route="/api.Echo/",cluster="echo-grpc",method="unknown",grpc_status="0"} 1"#,
        r#"edge_rpcs_ended_total{route="/api.Echo/",cluster="echo-grpc",method="unknown",grpc_status="other"} 1"#,
        r#"edge_rpcs_in_flight{cluster="echo-grpc"} 1"#,
        r#"edge_rpc_duration_seconds_bucket{cluster="echo-grpc",le="0.002048"} 0"#,
        r#"edge_rpc_duration_seconds_bucket{cluster="echo-grpc",le="0.004096"} 1"#,
        r#"edge_rpc_duration_seconds_bucket{cluster="echo-grpc",le="+Inf"} 1"#,
        r#"edge_rpc_duration_seconds_sum{cluster="echo-grpc"} 0.003"#,
        r#"edge_rpc_duration_seconds_count{cluster="echo-grpc"} 1"#,
        r#"edge_attempts_total{cluster="echo-grpc",result="ok"} 2"#,
        r#"edge_connections{side="downstream"} 1"#,
        r#"edge_tls_handshakes_total{result="resumed"} 1"#,
        r#"edge_stream_resets_total{cause="flood"} 1"#,
        r#"edge_limits_total{limit="memory"} 1"#,
        r#"edge_rpc_flags_total{flag="NR"} 1"#,
        r#"edge_endpoints{cluster="odd \"name\"\\\n",health="healthy"} 2"#,
        r#"edge_health_checks_total{cluster="reverse-grpc",result="timeout"} 2"#,
        r#"edge_health_checks_total{cluster="reverse-grpc",result="unimplemented"} 0"#,
        r#"edge_dns_lookups_total{cluster="reverse-grpc",result="answer"} 3600"#,
        r#"edge_dns_lookups_total{cluster="reverse-grpc",result="no_name"} 0"#,
        r#"edge_outlier_detections_total{cluster="reverse-grpc",streak="consecutive_5xx",result="ejected"} 0"#,
        r#"edge_configuration_reloads_total{result="applied"} 1"#,
        "edge_access_log_dropped_lines_total 0",
        "edge_memory_limit_bytes 536870912",
        "edge_ready 1",
        "edge_draining 0",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("Secret"), "a raw path is no label");
}

#[tokio::test]
async fn what_is_configured_is_there_before_its_first_rpc() {
    let (state, asked) = support::state(support::report(2));
    let text = Server::start(state, asked, false)
        .await
        .get("/metrics")
        .await
        .body;
    for line in [
        r#"edge_rpcs_started_total{route="/api.Echo/",cluster="echo-grpc",method="unknown"} 0"#,
        r#"edge_rpcs_ended_total{route="/api.Echo/",cluster="echo-grpc",method="unknown",grpc_status="0"} 0"#,
        r#"edge_rpcs_in_flight{cluster="echo-grpc"} 0"#,
        r#"edge_rpc_duration_seconds_count{cluster="reverse-grpc"} 0"#,
        r#"edge_attempts_total{cluster="reverse-grpc",result="connect_failed"} 0"#,
        r#"edge_attempts_in_flight{cluster="reverse-grpc"} 0"#,
        r#"edge_retries_total{cluster="reverse-grpc"} 0"#,
        r#"edge_retries_refused_total{cluster="reverse-grpc",reason="budget"} 0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn a_removed_cluster_is_told_once_more_when_nothing_of_it_runs() {
    let (state, asked) = support::state(support::report(2));
    let shard = state.metrics.shard();
    let (route, removed): (Arc<str>, Arc<str>) = ("/removed/".into(), "removed".into());
    let running = shard.series(&route, &removed, b"/removed/x");
    running.started.inc();
    shard.cluster(&removed).attempts(AttemptResult::Ok).inc();
    let server = Server::start(state, asked, false).await;
    let mut scrapes = Vec::new();
    for _ in 0..2 {
        scrapes.push(server.get("/metrics").await.body);
    }
    running.ended(RpcEnd::Grpc(0)).inc();
    drop(running);
    for _ in 0..2 {
        scrapes.push(server.get("/metrics").await.body);
    }
    let ended = r#"edge_rpcs_ended_total{route="/removed/",cluster="removed",method="unknown",grpc_status="0"}"#;
    let told = scrapes.iter().map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix(ended));
        (line, text.contains(r#"cluster="removed""#))
    });
    let expected = [
        (Some(" 0"), true),
        (Some(" 0"), true),
        (Some(" 1"), true),
        (None, false),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_name_that_was_never_answered_has_waited_longest() {
    let mut report = support::report(2);
    let targets = &mut report.clusters[0].targets;
    let mut never = targets[0].clone();
    never.last_answer_at_ms = None;
    targets.push(never);
    let (state, asked) = support::state(report);
    let text = Server::start(state, asked, false)
        .await
        .get("/metrics")
        .await
        .body;
    let ages: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("edge_dns_last_answer_age_seconds{"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect();
    // Asked for an hour ago; the other cluster's name was answered 3 s ago.
    assert!(ages[0] >= 3_600.0 && ages[1] < 3_600.0, "{ages:?}");
}

/// Prometheus' text format 0.0.4, and the conventions for names.
fn check_format(text: &str) {
    let mut seen = HashSet::new();
    let mut samples = HashSet::new();
    let mut families = FAMILIES.iter();
    let mut family = None;
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let next = families.next().expect("a family that isn't listed");
            assert_eq!(help, format!("{} {}", next.name, next.help));
            assert!(seen.insert(next.name), "{} is named twice", next.name);
            family = Some(next);
            continue;
        }
        let family = family.unwrap();
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert_eq!(kind, format!("{} {}", family.name, family.kind));
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(samples.insert(sample), "{sample} is there twice");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let suffix = name
            .strip_prefix(family.name)
            .unwrap_or_else(|| panic!("{name} in {family:?}"));
        assert!(suffix.is_empty() || family.kind == "histogram", "{name}");
        for label in family.labels {
            assert!(labels.contains(&format!("{label}=\"")), "{line}");
        }
    }
    assert_eq!(families.next(), None, "every family is there");
    for family in FAMILIES {
        assert!(
            family.name.starts_with("edge_") && family.help.ends_with('.'),
            "{family:?}"
        );
        assert_eq!(
            family.name.ends_with("_total"),
            family.kind == "counter",
            "{family:?}"
        );
    }
}

#[tokio::test]
async fn a_scrape_without_anything_is_in_order_too() {
    let (state, _) = support::state(Report {
        clusters: Vec::new(),
        ..support::report(0)
    });
    check_format(&scrape::render(&Scrape {
        metrics: &state.metrics,
        report: &state.status.report(),
        ready: true,
        draining: false,
        heartbeats: &state.heartbeats,
        memory_limit: None,
        pressure: Pressure::default(),
    }));
}
