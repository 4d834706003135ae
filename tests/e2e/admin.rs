use bytes::Bytes;
use e2e::{backend::Backend, payload, proxy::Proxy, wait::eventually};
use http::Request;

const PAGES: [&str; 9] = [
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
const ACTIONS: [&str; 5] = [
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/drain_listeners",
    "/logging",
    "/quitquitquit",
];

#[tokio::test]
async fn every_page_is_there_for_people_and_as_json() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).checked().start().await;
    proxy.test_client().await.unary(payload("")).await.unwrap();
    for page in PAGES {
        let answer = proxy.admin(page).await;
        assert_eq!(answer.status(), 200, "{page}");
        assert!(!answer.body().is_empty(), "{page}");
        if page != "/stats/prometheus" {
            proxy.admin_json(page).await;
        }
    }
    assert!(proxy.admin("/").await.body().contains("<html"));
    assert!(
        proxy
            .admin("/clusters")
            .await
            .body()
            .contains(&backend.address().to_string())
    );
    // With the ports that it really got: all are 0 in the configuration.
    let listeners = proxy.admin_json("/listeners").await;
    let address = |of: &str| listeners[of]["address"].as_str().map(str::to_owned);
    for (of, at) in [
        ("proxy", proxy.address()),
        ("admin", proxy.admin_address()),
        ("probes", proxy.probes_address()),
    ] {
        assert_eq!(address(of), Some(at.to_string()), "{of}");
    }
    assert_eq!(proxy.admin("/nowhere").await.status(), 404);
}

#[tokio::test]
async fn links_are_relative_and_nothing_comes_from_outside() {
    let proxy = Proxy::builder().start().await;
    let page = proxy.admin("/").await.into_body();
    for absolute in [
        "href=\"/",
        "src=\"/",
        "action=\"/",
        "href=\"http",
        "src=\"http",
        "url(http",
    ] {
        assert!(!page.contains(absolute), "{absolute}");
    }
}

#[tokio::test]
async fn actions_are_posts() {
    let proxy = Proxy::builder().start().await;
    for action in ACTIONS {
        let answer = proxy.admin(action).await;
        assert_eq!(answer.status(), 405, "{action}");
        assert_eq!(answer.headers()["allow"], "POST", "{action}");
    }
    assert_eq!(
        proxy.probe("/readyz").await.unwrap().status(),
        200,
        "nothing was changed"
    );
    for action in ["/healthcheck/fail", "/quitquitquit"] {
        let foreign = Request::post(action)
            .header("host", proxy.admin_address().to_string())
            .header("origin", "https://evil.example.com");
        let answer = proxy
            .admin_request(foreign.body(Bytes::new()).unwrap())
            .await;
        assert_eq!(answer.status(), 403, "{action}");
    }
    assert_eq!(
        proxy.probe("/readyz").await.unwrap().status(),
        200,
        "nothing was changed"
    );
}

#[tokio::test]
async fn readiness_can_be_taken_away_and_given_back() {
    let proxy = Proxy::builder().start().await;
    assert_eq!(proxy.admin_post("/healthcheck/fail").await.status(), 200);
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 503);
    assert_eq!(proxy.admin("/ready").await.status(), 503);
    assert_eq!(proxy.probe("/livez").await.unwrap().status(), 200);
    assert_eq!(proxy.admin_post("/healthcheck/ok").await.status(), 200);
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_operator_can_end_it() {
    let proxy = Proxy::builder().start().await;
    assert_eq!(proxy.admin_post("/quitquitquit").await.status(), 200);
    proxy.ended().await;
}

#[tokio::test]
async fn the_operator_can_drain_it() {
    let proxy = Proxy::builder().start().await;
    let client = proxy.http2().await;
    assert_eq!(
        client.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
        Some(12)
    );
    assert_eq!(proxy.admin_post("/drain_listeners").await.status(), 200);
    eventually("the connection's end", || async {
        client.ended().then_some(())
    })
    .await;
}

#[tokio::test]
async fn probes_have_their_pages_and_nothing_else() {
    let proxy = Proxy::builder().start().await;
    for page in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(proxy.probe(page).await.unwrap().status(), 200, "{page}");
    }
    for page in PAGES.into_iter().chain(ACTIONS) {
        assert_eq!(proxy.probe(page).await.unwrap().status(), 404, "{page}");
    }
}

#[tokio::test]
async fn liveness_never_depends_on_backends() {
    let proxy = Proxy::to(&[e2e::loopback::refused().unwrap()])
        .checked()
        .start()
        .await;
    assert_eq!(proxy.probe("/livez").await.unwrap().status(), 200);
    assert_eq!(
        proxy.probe("/readyz").await.unwrap().status(),
        200,
        "the first check has ended"
    );
}

#[tokio::test]
async fn metrics_follow_the_conventions_and_hold_no_clients_words() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for number in 0..50 {
        client
            .grpc(&format!("/e2e.Test/Evil{number}"), &[])
            .await
            .unwrap();
        client
            .grpc(&format!("/nowhere.Evil{number}/X"), &[])
            .await
            .unwrap();
    }
    let page = eventually("all RPCs to be counted", || async {
        let page = proxy.probe("/metrics").await?.into_body();
        (e2e::client::metric(&page, "edge_rpcs_ended_total", &[])? >= 100.0).then_some(page)
    })
    .await;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.starts_with("edge_") || line.starts_with("process_"),
            "{line}"
        );
    }
    assert!(!page.contains("nowhere.Evil"), "a raw path is no label");
    let evil = page.lines().filter(|line| line.contains("Evil")).count();
    assert_eq!(
        evil, 0,
        "methods that no backend has answered share one label"
    );
    assert_eq!(proxy.admin("/stats/prometheus").await.status(), 200);
}
