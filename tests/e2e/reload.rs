use e2e::{
    backend::Backend,
    dns::DnsServer,
    payload,
    proxy::{Proxy, no_route, set},
    wait::eventually,
};
use serde_json::{Value, json};
use tonic::Code;

/// The operator's page has seen this many reloads, good and refused.
async fn reloads(proxy: &Proxy, key: &str) -> u64 {
    let page = proxy.admin_json("/config_dump").await;
    find(&page, key)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no `{key}` in {page}"))
}

fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

async fn refused(proxy: &Proxy, before: u64) {
    eventually("the reload to be refused", || async {
        (reloads(proxy, "rejected").await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_changed_route_is_served_on_old_connections_too() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    client.unary(payload("")).await.unwrap();
    proxy.files.change(|config| config["routes"] = no_route());
    eventually("the route to be gone", || {
        let mut client = client.clone();
        async move {
            (client.unary(payload("")).await.err()?.code() == Code::Unimplemented).then_some(())
        }
    })
    .await;
    proxy
        .files
        .change(|config| config["routes"] = json!([{ "prefix": "/", "cluster": "test" }]));
    eventually("the route to be back", || {
        let mut client = client.clone();
        async move { client.unary(payload("")).await.ok() }
    })
    .await;
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    for wrong in [
        json!([{ "prefix": "/", "cluster": "nowhere" }]),
        json!([{ "prefix": "/", "clutser": "test" }]),
    ] {
        let before = reloads(&proxy, "rejected").await;
        proxy.files.change(|config| config["routes"] = wrong);
        refused(&proxy, before).await;
        client.unary(payload("")).await.unwrap();
    }
    let before = reloads(&proxy, "rejected").await;
    proxy.files.replace("routes: [");
    refused(&proxy, before).await;
    client.unary(payload("")).await.unwrap();
    let page = proxy.admin_json("/config_dump").await;
    assert!(
        find(&page, "last_error").is_some_and(|error| !error.is_null()),
        "{page}"
    );
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_whole_and_named() {
    let backend = Backend::start().await;
    for (key, value) in [
        ("workers", json!(3)),
        ("listener.address", json!("127.0.0.1:1")),
        ("admin.address", json!("127.0.0.1:1")),
        ("probes.address", json!("127.0.0.1:1")),
    ] {
        let mut proxy = Proxy::to([&backend]).start().await;
        let before = reloads(&proxy, "rejected").await;
        proxy.files.change(|config| {
            set(config, key, value);
            config["routes"] = no_route();
        });
        refused(&proxy, before).await;
        let page = proxy.admin_json("/config_dump").await;
        assert!(
            find(&page, "last_error").unwrap().to_string().contains(key),
            "{key} in {page}"
        );
        proxy.test_client().await.unary(payload("")).await.unwrap();
    }
}

#[tokio::test]
async fn new_clusters_are_resolved_and_checked_before_their_routes_are_served() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let dns = DnsServer::start().await.unwrap();
    dns.set_addresses("new.test", &[new.address()]);
    let mut proxy = Proxy::to([&old])
        .set("dns.nameservers", json!([dns.address().to_string()]))
        .start()
        .await;
    let mut client = proxy.test_client().await;
    proxy.files.change(|config| {
        config["clusters"].as_array_mut().unwrap().push(json!({
            "name": "new", "discovery": "strict_dns",
            "endpoints": [format!("new.test.:{}", new.address().port())],
            "health_check": { "service": "", "interval": "100ms" },
        }));
        config["routes"] = json!([{ "prefix": "/", "cluster": "new" }]);
    });
    // Not one RPC fails between the two.
    for _ in 0..100_000 {
        client.unary(payload("")).await.unwrap();
        if new.journal.count() > 10 {
            return;
        }
    }
    panic!("the new cluster was never served");
}

#[tokio::test]
async fn what_stays_keeps_its_connections() {
    let backend = Backend::start().await;
    let mut proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut client = proxy.test_client().await;
    client.unary(payload("")).await.unwrap();
    let before = reloads(&proxy, "reloads").await;
    proxy
        .files
        .change(|config| set(config, "server_name", json!("another")));
    eventually("the reload", || async {
        (reloads(&proxy, "reloads").await > before).then_some(())
    })
    .await;
    let reply = proxy.grpc("/e2e.Test/Unary", &[]).await;
    assert_eq!(reply.header("server"), "another");
    client.unary(payload("")).await.unwrap();
    assert_eq!(backend.journal.read().connections, 1);
}
