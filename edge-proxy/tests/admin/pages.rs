//! The pages, and what may change something.

use serde_json::Value;

use crate::{server::Server, support};

pub(crate) const GET_PAGES: [&str; 9] = [
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
pub(crate) const POST_ONLY: [&str; 5] = [
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/drain_listeners",
    "/logging",
    "/quitquitquit",
];

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
    assert_eq!(listeners["probes"]["address"], "0.0.0.0:8091");
    let info = server.get("/server_info").await.body;
    assert!(
        info.contains(&format!("version: {}\n", env!("CARGO_PKG_VERSION"))),
        "{info}"
    );
    let dump = server.json("/config_dump").await;
    assert_eq!(dump["clusters"][1]["name"], "reverse-grpc");
}
