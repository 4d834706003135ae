use std::net::SocketAddr;

use e2e::{
    backend::Backend,
    client::request,
    loopback, payload,
    proxy::Proxy,
    scripted::{Exchange, Scripted, framed, head, trailers},
    wait::eventually,
};
use h2::Reason;
use serde_json::{Value, json};

/// The endpoint's report on the operator's page.
async fn endpoint(proxy: &Proxy, address: SocketAddr) -> Value {
    let page = proxy.admin_json("/clusters").await;
    let endpoints = page["clusters"][0]["endpoints"].as_array().unwrap();
    let found = endpoints
        .iter()
        .find(|endpoint| endpoint["address"] == address.to_string());
    found.unwrap().clone()
}

async fn ejected(proxy: &Proxy, address: SocketAddr) -> Value {
    eventually("the ejection on the operator's page", || async {
        let endpoint = endpoint(proxy, address).await;
        endpoint["ejected_for"].is_string().then_some(endpoint)
    })
    .await
}

/// A backend that answers every RPC with this status.
async fn answers(status: i32) -> Scripted {
    Scripted::start(move |mut exchange: Exchange| async move {
        exchange.body().await;
        exchange.reply(head(200), &framed(b""), Some(trailers(status)));
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_connected_to_is_left_alone_after_five() {
    let backend = Backend::start().await;
    let refused = loopback::refused().unwrap();
    let proxy = Proxy::to(&[refused, backend.address()]).start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    let endpoint = ejected(&proxy, refused).await;
    assert_eq!(endpoint["ejected_for"], "consecutive_local_origin_failure");
    assert_eq!(
        (&endpoint["health"], &endpoint["eligible"]),
        (&json!("healthy"), &json!(false))
    );
    for _ in 0..100 {
        client.unary(payload("")).await.unwrap();
    }
    let failed = [("cluster", "test"), ("result", "connect_failed")];
    assert_eq!(proxy.metric("edge_attempts_total", &failed).await, 5.0);
    let of = [("cluster", "test")];
    assert_eq!(proxy.metric("edge_endpoints_ejected", &of).await, 1.0);
    let told = [
        ("cluster", "test"),
        ("streak", "consecutive_local_origin_failure"),
        ("result", "ejected"),
    ];
    assert_eq!(
        proxy.metric("edge_outlier_detections_total", &told).await,
        1.0
    );
    assert_eq!(backend.journal.count(), 110);
}

#[tokio::test]
async fn one_that_refuses_all_is_ejected_and_comes_back() {
    let refuses = Scripted::start(async |exchange: Exchange| match exchange.number {
        0..5 => exchange.reset(Reason::REFUSED_STREAM),
        _ => exchange.ok(b""),
    })
    .await;
    let backend = Backend::start().await;
    let proxy = Proxy::to(&[refuses.address(), backend.address()])
        .with(
            "outlier_detection",
            json!({ "base_ejection_time": "100ms" }),
        )
        .start()
        .await;
    let mut client = proxy.test_client().await;
    eventually("an RPC after its return", || async {
        client.clone().unary(payload("")).await.unwrap();
        (refuses.journal.count() > 5).then_some(())
    })
    .await;
    let endpoint = endpoint(&proxy, refuses.address()).await;
    assert_eq!(
        (&endpoint["ejections"], &endpoint["ejected_for"]),
        (&json!(1), &Value::Null)
    );
    client.unary(payload("")).await.unwrap();
}

#[tokio::test]
async fn answers_of_failure_eject_when_that_is_asked_for() {
    for (status, key) in [
        (14, "consecutive_gateway_failure"),
        (13, "consecutive_5xx"),
        (2, "consecutive_5xx"),
        (15, "consecutive_5xx"),
    ] {
        let (fails, backend) = (answers(status).await, Backend::start().await);
        let proxy = Proxy::to(&[fails.address(), backend.address()])
            .with(&format!("outlier_detection.{key}"), 3)
            .start()
            .await;
        let mut client = proxy.test_client().await;
        let mut failed = 0;
        for _ in 0..6 {
            failed += usize::from(client.unary(payload("")).await.is_err());
        }
        assert_eq!(failed, 3, "{status}");
        let endpoint = ejected(&proxy, fails.address()).await;
        assert_eq!(endpoint["ejected_for"], key, "{status}");
        for _ in 0..20 {
            client.unary(payload("")).await.unwrap();
        }
        assert_eq!(fails.journal.count(), 3, "{status}");
    }
}

#[tokio::test]
async fn answers_of_failure_eject_nobody_otherwise() {
    // The last two are what a client can have at will.
    for (status, detection) in [
        (14, json!({})),
        (13, json!({})),
        (
            12,
            json!({ "consecutive_5xx": 3, "consecutive_gateway_failure": 3 }),
        ),
        (
            4,
            json!({ "consecutive_5xx": 3, "consecutive_gateway_failure": 3 }),
        ),
    ] {
        let (fails, backend) = (answers(status).await, Backend::start().await);
        let proxy = Proxy::to(&[fails.address(), backend.address()])
            .with("outlier_detection", detection)
            .start()
            .await;
        let mut client = proxy.test_client().await;
        for _ in 0..40 {
            let _ = client.unary(payload("")).await;
        }
        assert_eq!(fails.journal.count(), 20, "{status}");
    }
}

#[tokio::test]
async fn a_client_that_cancels_or_does_not_wait_ejects_nobody() {
    let slow = Scripted::start(async |exchange: Exchange| exchange.hang().await).await;
    let backend = Backend::start().await;
    let proxy = Proxy::to(&[slow.address(), backend.address()])
        .with(
            "outlier_detection",
            json!({ "consecutive_5xx": 1, "consecutive_gateway_failure": 1 }),
        )
        .start()
        .await;
    let mut client = proxy.test_client().await;
    for _ in 0..20 {
        let mut hurried = request(payload(""), &[]);
        hurried.set_timeout(std::time::Duration::from_millis(20));
        let _ = client.unary(hurried).await;
    }
    // On a slow machine some of them never come so far.
    assert!(slow.journal.count() > 1);
    assert_eq!(
        endpoint(&proxy, slow.address()).await["ejections"],
        json!(0)
    );
}

#[tokio::test]
async fn the_last_endpoint_is_tried_again_and_again() {
    let refused = loopback::refused().unwrap();
    let proxy = Proxy::to(&[refused]).start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..20 {
        let status = client.unary(payload("")).await.unwrap_err();
        assert!(
            status.message().ends_with("remote connection failure"),
            "{status}"
        );
    }
    let overflow = [("cluster", "test"), ("result", "overflow")];
    eventually("the streak to be seen", || async {
        let seen = proxy.metric("edge_outlier_detections_total", &overflow);
        (seen.await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_configuration_forgives() {
    let backend = Backend::start().await;
    let refused = loopback::refused().unwrap();
    let mut proxy = Proxy::to(&[refused, backend.address()]).start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    ejected(&proxy, refused).await;
    proxy.files.change(|config| {
        config["clusters"][0]["outlier_detection"] =
            json!({ "consecutive_local_origin_failure": 0 });
    });
    eventually("its return", || async {
        let endpoint = endpoint(&proxy, refused).await;
        (endpoint["eligible"] == json!(true)).then_some(())
    })
    .await;
    for _ in 0..40 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(endpoint(&proxy, refused).await["ejections"], json!(1));
}
