//! The admin pages and the probes through real listeners, asked as a browser, curl and the kubelet ask.

#![allow(clippy::unwrap_used, reason = "a test: it may panic")]

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use edge_proxy::{
    control_plane::{
        admin::{self, State, probes},
        status::{Readiness, Report},
    },
    snapshot::{Heartbeats, pressure::Pressure},
    telemetry::{
        exposition::{self, FAMILIES, Scrape},
        metrics::{AttemptResult, Flag, HandshakeResult, Limit, ResetCause, Side},
    },
};
use serde_json::Value;
use support::Asked;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

mod support;

const GET_PAGES: [&str; 9] = [
    "/",
    "/ready",
    "/clusters",
    "/stats",
    "/stats/prometheus",
    "/config_dump",
    "/certs",
    "/listeners",
    "/server_info",
];
const POST_ONLY: [&str; 5] = [
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/drain_listeners",
    "/logging",
    "/quitquitquit",
];

/// A server and where it listens; it ends with this.
struct Server {
    address: SocketAddr,
    asked: Arc<Asked>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn admin(report: Report) -> Self {
        let (state, asked) = support::state(report);
        Self::start(state, asked, true).await
    }

    async fn probes(report: Report) -> Self {
        let (state, asked) = support::state(report);
        Self::start(state, asked, false).await
    }

    async fn start(state: State, asked: Arc<Asked>, is_admin: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(async move {
            if is_admin {
                admin::serve(listener, state, shutdown).await;
            } else {
                probes::serve(listener, state, shutdown).await;
            }
        });
        Self {
            address,
            asked,
            stop: Some(stop),
            task,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.ask("GET", path, &[("host", "localhost:8090")]).await
    }

    async fn post(&self, path: &str) -> Response {
        self.ask("POST", path, &[("host", "localhost:8090")]).await
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(
            response.header("content-type"),
            Some("application/json"),
            "{path}"
        );
        serde_json::from_str(&response.body).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream
            .write_all(format!("{request}\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Response {
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.0.lock().unwrap().clone()
    }
}

/// An answer; its head in lower case.
#[derive(Debug)]
struct Response {
    head: String,
    body: String,
}

impl Response {
    fn status(&self) -> u16 {
        self.head["http/1.1 ".len()..][..3].parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

#[tokio::test]
async fn every_page_is_there_as_text_and_as_json() {
    let server = Server::admin(support::report(2)).await;
    for path in GET_PAGES {
        let text = server.get(path).await;
        assert_eq!(
            (text.status(), text.body.is_empty()),
            (200, false),
            "{path}"
        );
        assert_eq!(
            text.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(text.header("cache-control"), Some("no-store"), "{path}");
        server.json(&format!("{path}?format=json")).await;
    }
    let nothing = server.get("/nothing").await;
    assert_eq!((nothing.status(), &*nothing.body), (404, "no such page\n"));
}

#[tokio::test]
async fn what_changes_something_needs_post_and_a_get_changes_nothing() {
    let server = Server::admin(support::report(2)).await;
    for path in POST_ONLY {
        let refused = server.get(path).await;
        assert_eq!(
            (refused.status(), refused.header("allow")),
            (405, Some("post")),
            "{path}"
        );
        assert!(refused.body.contains("use POST"), "{}", refused.body);
    }
    assert_eq!(server.asked(), [""; 0]);
    for path in POST_ONLY {
        assert_eq!(server.post(path).await.status(), 200, "{path}");
    }
    assert_eq!(
        server.asked(),
        ["serving false", "serving true", "drain", "quit"]
    );
    for path in GET_PAGES {
        let refused = server.post(path).await;
        assert_eq!(
            (refused.status(), refused.header("allow")),
            (405, Some("get,head")),
            "{path}"
        );
        assert!(refused.body.contains("use GET"), "{}", refused.body);
    }
}

#[tokio::test]
async fn the_log_level_is_set_by_its_query_and_a_wrong_one_is_explained() {
    let server = Server::admin(support::report(2)).await;
    assert_eq!(server.post("/logging").await.body, "level: info\n");
    assert_eq!(server.post("/logging?level=debug").await.status(), 200);
    let refused = server.post("/logging?level=loud").await;
    assert_eq!(refused.status(), 400);
    assert!(
        refused
            .body
            .contains("`loud` isn't a level: write error, warn"),
        "{}",
        refused.body
    );
    assert_eq!(server.asked(), ["level debug"]);
}

#[tokio::test]
async fn a_foreign_page_can_neither_change_nor_read() {
    let server = Server::admin(support::report(2)).await;
    let host = ("host", "localhost:8090");
    let foreign = server
        .ask(
            "POST",
            "/quitquitquit",
            &[host, ("origin", "https://evil.example")],
        )
        .await;
    assert_eq!(foreign.status(), 403);
    let own = server
        .ask(
            "POST",
            "/drain_listeners",
            &[host, ("origin", "http://localhost:8090")],
        )
        .await;
    assert_eq!(own.status(), 200);
    let rebound = [
        ("host", "evil.example:8090"),
        ("origin", "http://evil.example:8090"),
    ];
    assert_eq!(
        server.ask("POST", "/quitquitquit", &rebound).await.status(),
        403
    );
    assert_eq!(
        server.ask("GET", "/config_dump", &rebound).await.status(),
        403
    );
    assert_eq!(server.asked(), ["drain"]);
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_its_links_are_relative() {
    let mut report = support::report(2);
    support::eject(
        &mut report.clusters[0].endpoints[0],
        "</script><script>alert(1)</script>{{data}}",
    );
    let page = Server::admin(report).await.get("/").await;
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'nonce-"),
        "{policy}"
    );
    let nonce = policy
        .split('\'')
        .nth(3)
        .unwrap()
        .strip_prefix("nonce-")
        .unwrap();
    assert_eq!(
        page.body.matches(&format!("nonce=\"{nonce}\"")).count(),
        2,
        "style and script"
    );
    assert_eq!(
        page.body.matches("<script").count(),
        2,
        "the data can't add one"
    );
    for link in page
        .body
        .split("href=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
    {
        assert!(
            link == "data:," || !link.contains(':') && !link.starts_with('/'),
            "{link}"
        );
    }
    assert!(!page.body.contains("src=\""));
}

#[tokio::test]
async fn the_page_has_its_first_data_inside() {
    for endpoints in [2, 200] {
        has_all_that_it_shows(endpoints).await;
    }
}

/// With so many endpoints in each cluster, one of them out.
async fn has_all_that_it_shows(endpoints: usize) {
    let mut report = support::report(endpoints);
    support::eject(&mut report.clusters[1].endpoints[0], "NOT_SERVING");
    let page = Server::admin(report).await.get("/").await;
    let data = page
        .body
        .split("id=\"data\">")
        .nth(1)
        .unwrap()
        .split("</script>")
        .next()
        .unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    for cluster in 0..2 {
        let listed = data["clusters"][cluster]["endpoints"].as_array().unwrap();
        assert_eq!(listed.len(), endpoints);
        for endpoint in listed {
            assert!(endpoint["health"].is_string(), "{endpoint}");
        }
    }
    let ejected = &data["clusters"][1]["endpoints"][0];
    assert_eq!(
        (&ejected["health"], &ejected["reason"]),
        (&"unhealthy".into(), &"NOT_SERVING".into())
    );
    // A number, or `null` as long as there is nothing to count.
    for traffic in [&data["traffic"], &data["clusters"][0]["traffic"]] {
        let traffic = traffic.as_object().unwrap();
        for key in ["rate", "error_share", "p50_ms", "p99_ms", "in_flight"] {
            assert!(traffic.contains_key(key), "{key} in {traffic:?}");
        }
    }
    for side in ["downstream", "upstream"] {
        assert!(data["connections"][side].is_u64(), "{data}");
    }
    assert!(
        data["certificate"]["current"]["not_after"].is_i64(),
        "{data}"
    );
    assert_eq!(
        data["certificate"]["current"]["names"][0],
        "grpc.example.com"
    );
    assert_eq!(
        data["configuration"]["source"],
        "/etc/edge-proxy/edge-proxy.yaml"
    );
    assert_eq!(data["process"]["workers_ms"].as_array().unwrap().len(), 2);
    assert_eq!(data["server"]["hostname"], "edge-proxy-6c9f7d5b8-x2x7k");
}

#[tokio::test]
async fn clusters_say_health_and_its_reason() {
    let mut report = support::report(2);
    support::eject(
        &mut report.clusters[0].endpoints[1],
        "NOT_SERVING\nsecond line",
    );
    report.clusters[1].targets[0].last_error = support::problem("SERVFAIL");
    let server = Server::admin(report).await;
    let text = server.get("/clusters").await.body;
    for line in [
        "echo-grpc::10.8.3.4:8081::health::healthy",
        "echo-grpc::10.8.3.5:8081::health::unhealthy",
        "echo-grpc::10.8.3.5:8081::reason::NOT_SERVING; second line",
        "reverse-grpc::reverse-grpc.default.svc.cluster.local.:8082::last_error::SERVFAIL",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    let json = server.json("/clusters?format=json").await;
    assert_eq!(json["clusters"][0]["endpoints"][1]["health"], "unhealthy");
}

#[tokio::test]
async fn certs_listeners_and_server_info_say_what_they_promise() {
    let server = Server::admin(support::report(2)).await;
    assert!(
        server
            .get("/certs")
            .await
            .body
            .contains("current.names.0: grpc.example.com\n")
    );
    let listeners = server.json("/listeners?format=json").await;
    assert_eq!(listeners["proxy"]["address"], "0.0.0.0:8443");
    assert_eq!(listeners["admin"]["address"], "127.0.0.1:8090");
    let info = server.get("/server_info").await.body;
    assert!(
        info.contains(&format!("version: {}\n", env!("CARGO_PKG_VERSION"))),
        "{info}"
    );
    let dump = server.json("/config_dump").await;
    assert_eq!(dump["clusters"][1]["name"], "reverse-grpc");
}

#[tokio::test]
async fn ready_is_503_until_every_part_is_and_names_what_is_missing() {
    for (serving, certificate, warmed_up, missing) in [
        (false, true, true, "told to fail by /healthcheck/fail\n"),
        (true, false, true, "no certificate is loaded yet\n"),
        (
            true,
            true,
            false,
            "the first health checks haven't ended yet\n",
        ),
    ] {
        let mut report = support::report(1);
        report.readiness = Readiness {
            serving,
            certificate,
            warmed_up,
        };
        let (admin, probes) = (
            Server::admin(report.clone()).await,
            Server::probes(report).await,
        );
        for answer in [admin.get("/ready").await, probes.get("/readyz").await] {
            assert_eq!((answer.status(), &*answer.body), (503, missing));
        }
        assert_eq!(admin.get("/ready?format=json").await.status(), 503);
        assert_eq!(
            probes.get("/livez").await.status(),
            200,
            "dead is something else"
        );
    }
    let probes = Server::probes(support::report(1)).await;
    assert_eq!(probes.get("/readyz").await.status(), 200);
}

#[tokio::test]
async fn probes_answer_three_paths_under_any_host_and_nothing_else() {
    let server = Server::probes(support::report(2)).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = server.ask("GET", path, &[("host", "10.0.0.7:8091")]).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(server.post(path).await.status(), 405, "{path}");
    }
    for path in GET_PAGES.iter().chain(&POST_ONLY) {
        assert_eq!(server.get(path).await.status(), 404, "{path}");
        assert_eq!(server.post(path).await.status(), 404, "{path}");
    }
    assert_eq!(server.asked(), [""; 0]);
}

#[tokio::test]
async fn live_does_not_depend_on_backends() {
    let mut report = support::report(2);
    for endpoint in report
        .clusters
        .iter_mut()
        .flat_map(|cluster| &mut cluster.endpoints)
    {
        support::eject(endpoint, "gone");
    }
    assert_eq!(
        Server::probes(report).await.get("/livez").await.status(),
        200
    );
}

#[tokio::test]
async fn live_is_503_once_one_worker_has_not_run_for_ten_seconds() {
    let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
    let (mut state, asked) = support::state(support::report(1));
    state.heartbeats = Heartbeats::since(ago(9), 2);
    let server = Server::start(state.clone(), Arc::clone(&asked), false).await;
    assert_eq!(server.get("/livez").await.status(), 200);

    state.heartbeats = Heartbeats::since(ago(12), 2);
    state.heartbeats.beat(0);
    let server = Server::start(state.clone(), asked, false).await;
    let dead = server.get("/livez").await;
    assert_eq!(
        (dead.status(), &*dead.body),
        (503, "a worker hasn't run for 12 s\n")
    );
    assert_eq!(server.get("/readyz").await.status(), 200);
    state.heartbeats.beat(1);
    assert_eq!(server.get("/livez").await.status(), 200);
}

#[tokio::test]
async fn many_silent_connections_keep_no_probe_out() {
    let server = Server::probes(support::report(1)).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_eq!(server.get("/livez").await.status(), 200);
    let mut oldest = silent.swap_remove(0);
    assert!(
        matches!(oldest.read(&mut [0; 1]).await, Ok(0) | Err(_)),
        "the oldest went"
    );
}

#[tokio::test]
async fn shutdown_closes_the_listener_and_ends() {
    for is_admin in [true, false] {
        let (state, asked) = support::state(support::report(1));
        let mut server = Server::start(state, asked, is_admin).await;
        assert_ne!(server.get("/readyz").await.status(), 0);
        server.stop.take().unwrap().send(()).unwrap();
        server.task.await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}

#[tokio::test]
async fn metrics_are_the_listed_families_and_nothing_else() {
    let mut report = support::report(2);
    report.clusters[0].name = "odd \"name\"\\\n".into();
    let (state, asked) = support::state(report);
    let shard = state.metrics.shard();
    let cluster: Arc<str> = "echo-grpc".into();
    let series = shard.series(&"/api.Echo/".into(), &cluster, b"/api.Echo/Secret?token=1");
    series.started.add(3);
    series.ended(Some(0)).inc();
    series.ended(Some(99)).inc();
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
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("Secret"), "a raw path is no label");
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
    check_format(&exposition::render(&Scrape {
        metrics: &state.metrics,
        report: &state.status.report(),
        ready: true,
        heartbeats: &state.heartbeats,
        memory_limit: None,
        pressure: Pressure::default(),
    }));
}
