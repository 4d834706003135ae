use std::net::SocketAddr;

use e2e::{
    backend::Backend,
    client::get_request,
    proxy::{Proxy, no_route},
    replicas::{Kind, Replica},
};
use proto::api::{
    EchoRequest, ReverseRequest, echo_client::EchoClient, reverse_client::ReverseClient,
};
use serde_json::json;

#[tokio::test]
async fn both_services_are_reached_by_their_prefixes() {
    let echo = Replica::group(Kind::Echo, 2).await;
    let reverse = Replica::group(Kind::Reverse, 2).await;
    let proxy = Proxy::builder()
        .route("/api.Echo/", "echo-grpc")
        .route("/api.Reverse/", "reverse-grpc")
        .cluster("echo-grpc", echo.iter().map(Replica::address))
        .checked()
        .with("health_check.service", "api.Echo")
        .cluster("reverse-grpc", reverse.iter().map(Replica::address))
        .checked()
        .with("health_check.service", "api.Reverse")
        .start()
        .await;

    let channel = proxy.channel().await;
    let mut hostnames = Vec::new();
    for _ in 0..2 {
        let reply = EchoClient::new(channel.clone())
            .echo(EchoRequest {
                content: "Grüße".into(),
            })
            .await
            .unwrap();
        hostnames.push(
            reply
                .metadata()
                .get("hostname")
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
        );
        assert_eq!(reply.into_inner().content, "Grüße");
        let reply = ReverseClient::new(channel.clone())
            .reverse(ReverseRequest {
                content: "Grüße".into(),
            })
            .await
            .unwrap();
        hostnames.push(
            reply
                .metadata()
                .get("hostname")
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
        );
        assert_eq!(reply.into_inner().content, "eßürG");
    }
    hostnames.sort();
    assert_eq!(
        hostnames,
        [
            "echo-grpc-1",
            "echo-grpc-2",
            "reverse-grpc-1",
            "reverse-grpc-2"
        ]
    );
}

#[tokio::test]
async fn a_path_is_compared_byte_for_byte() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for stranger in [
        "/e2e.TestAdmin/Unary",
        "//e2e.Test/Unary",
        "/e2e%2eTest/Unary",
        "/E2E.Test/Unary",
        "/x/../e2e.Test/Unary",
        "/e2e.Test",
        "/",
    ] {
        let reply = client.grpc(stranger, &[]).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(12), "{stranger}");
    }
    assert_eq!(backend.journal.count(), 0);
    let reply = client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    assert_eq!(reply.grpc_status(), Some(0));
    assert_eq!(backend.journal.last().path, "/e2e.Test/Unary");
    // What follows the prefix is the backend's to understand.
    let odd = "/e2e.Test/%55nary//a/../b%2F?q=%31&&";
    client.grpc(odd, &[]).await.unwrap();
    assert_eq!(backend.journal.last().path, odd);
}

#[tokio::test]
async fn the_first_route_that_matches_wins() {
    let (narrow, wide) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::builder()
        .route("/e2e.Test/Unary", "narrow")
        .route("/", "wide")
        .cluster("narrow", [narrow.address()])
        .cluster("wide", [wide.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    client.grpc("/e2e.Test/Unary", &[]).await.unwrap();
    client.grpc("/e2e.Test/Chat", &[]).await.unwrap();
    assert_eq!(narrow.journal.count(), 1);
    assert_eq!(wide.journal.last().path, "/e2e.Test/Chat");
}

#[tokio::test]
async fn a_route_can_answer_directly() {
    let proxy = Proxy::builder()
        .route_of(
            json!({ "prefix": "/hello", "direct_response": { "status": 200, "body": "hello" } }),
        )
        .route_of(json!({ "prefix": "/", "direct_response": { "status": 403, "body": "no" } }))
        .start()
        .await;
    let client = proxy.http2().await;
    let reply = client.call(get_request("/hello", &[]), b"").await.unwrap();
    assert_eq!(
        (reply.status.as_u16(), reply.body.as_slice()),
        (200, b"hello".as_slice())
    );
    assert_eq!(reply.header("content-type"), "text/plain");
    let reply = client.grpc("/any.Service/Method", &[]).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.grpc_status()), (200, Some(7)));
    assert!(reply.headers_only);
}

#[tokio::test]
async fn the_health_check_of_the_edge_asks_no_backend() {
    let backend = Backend::start().await;
    let proxy = Proxy::builder()
        .set(
            "listener.health_check",
            json!({ "path": "/healthz", "header": { "name": "x-envoy-livenessprobe", "value": "healthz" } }),
        )
        .route("/", "test")
        .cluster("test", [backend.address()])
        .start()
        .await;
    let client = proxy.http2().await;
    let probe = || get_request("/healthz", &[("x-envoy-livenessprobe", "healthz")]);
    let reply = client.call(probe(), b"").await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(backend.journal.count(), 0);

    // Over HTTP/1.1, as the kubelet asks.
    let head = "GET /healthz HTTP/1.1\nhost: grpc.example.com\nx-envoy-livenessprobe: healthz";
    let (head, _) = proxy.http1(head, b"").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    // Nothing was done for it that a backend would see: it has no id.
    for record in proxy.access_log(2).await {
        assert_eq!(record["request_id"], json!(null), "{record}");
        assert_eq!(record["user_agent"], json!(null), "{record}");
    }

    proxy.admin_post("/healthcheck/fail").await;
    let reply = client.call(probe(), b"").await.unwrap();
    assert_eq!(reply.status, 503);
    proxy.admin_post("/healthcheck/ok").await;
    assert_eq!(client.call(probe(), b"").await.unwrap().status, 200);
    assert_eq!(backend.journal.count(), 0);
}

#[tokio::test]
async fn without_its_header_healthz_is_an_ordinary_path() {
    let nobody: [SocketAddr; 0] = [];
    let proxy = Proxy::to(&nobody)
        .set("clusters", json!([]))
        .set("routes", no_route())
        .set(
            "listener.health_check",
            json!({ "path": "/healthz", "header": { "name": "x-envoy-livenessprobe", "value": "healthz" } }),
        )
        .start()
        .await;
    let client = proxy.http2().await;
    for headers in [&[][..], &[("x-envoy-livenessprobe", "other")]] {
        let reply = client
            .call(get_request("/healthz", headers), b"")
            .await
            .unwrap();
        assert_eq!(reply.status, 404);
    }
}
