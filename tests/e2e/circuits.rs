use std::net::SocketAddr;

use e2e::{
    backend::Backend,
    client::request,
    frames::RawBackend,
    loopback, payload,
    pb::{Message, test_client::TestClient},
    proxy::Proxy,
    wait::{eventually, within},
};
use serde_json::json;
use tokio::{io::AsyncReadExt, task::JoinHandle};
use tonic::{Code, Response, Status, transport::Channel};

type Running = JoinHandle<Result<Response<Message>, Status>>;

/// Begins an RPC that ends when the backend's gate opens.
fn gated(client: &TestClient<Channel>) -> Running {
    let mut client = client.clone();
    let asked = request(payload(""), &[("x-test-gate", "end")]);
    tokio::spawn(async move { client.unary(asked).await })
}

fn refused_by(result: Result<Response<Message>, Status>, key: &str) {
    let status = result.unwrap_err();
    let text = format!("upstream circuit limit reached: {key}");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, &*text)
    );
}

async fn used(proxy: &Proxy, key: &str) -> f64 {
    let of = [("cluster", "test"), ("limit", key)];
    proxy.metric("edge_circuit_used", &of).await
}

#[tokio::test]
async fn so_many_rpcs_run_over_all_workers_and_one_more_is_told() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .with("circuit_breakers.max_requests", 2)
        .start()
        .await;
    // On two workers.
    let (first, mut second) = (proxy.test_client().await, proxy.test_client().await);
    let running = [gated(&first), gated(&second)];
    let both = |all: &e2e::journal::Entries| (all.requests.len() == 2).then_some(());
    backend.journal.wait("two RPCs", both).await;
    refused_by(second.unary(payload("")).await, "max_requests");
    assert_eq!(used(&proxy, "max_requests").await, 2.0);
    let page = proxy.admin_json("/clusters").await;
    assert_eq!(
        page["clusters"][0]["circuit_breakers"],
        json!({ "max_requests": { "limit": 2, "used": 2, "refused": 1 } })
    );
    let of = [("cluster", "test"), ("limit", "max_requests")];
    assert_eq!(proxy.metric("edge_circuit_refused_total", &of).await, 1.0);
    let record = &proxy.access_log(1).await[0];
    assert_eq!(record["flags"], "UO");
    assert_eq!(
        record["detail"],
        "upstream circuit limit reached: max_requests"
    );
    backend.open("end");
    for rpc in running {
        within("its end", rpc).await.unwrap().unwrap();
    }
    eventually("nothing in use", || async {
        (used(&proxy, "max_requests").await == 0.0).then_some(())
    })
    .await;
    second.unary(payload("")).await.unwrap();
}

#[tokio::test]
async fn so_many_rpcs_wait_for_a_connection_and_one_more_is_told() {
    // Accepts, and never says SETTINGS.
    let silent = RawBackend::start(async |mut stream, _| {
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let proxy = Proxy::to([&silent])
        .with("circuit_breakers.max_pending_requests", 1)
        .start()
        .await;
    let mut client = proxy.test_client().await;
    let waiting = gated(&client);
    eventually("an RPC that waits", || async {
        (used(&proxy, "max_pending_requests").await == 1.0).then_some(())
    })
    .await;
    refused_by(client.unary(payload("")).await, "max_pending_requests");
    waiting.abort();
    eventually("nobody to wait", || async {
        (used(&proxy, "max_pending_requests").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_another_connection_an_rpc_goes_where_there_is_one_or_is_told() {
    let backends = [Backend::start().await, Backend::start().await];
    let proxy = Proxy::to(&backends)
        .with("circuit_breakers.max_connections", 1)
        .start()
        .await;
    let mut first = proxy.test_client().await;
    // Every second one has its turn at the endpoint that may not be connected to.
    for _ in 0..10 {
        first.unary(payload("")).await.unwrap();
    }
    let connections: usize = backends.iter().map(|b| b.journal.read().connections).sum();
    assert_eq!(connections, 1);
    // The other worker has none.
    let mut second = proxy.test_client().await;
    refused_by(second.unary(payload("")).await, "max_connections");
    first.unary(payload("")).await.unwrap();
}

#[tokio::test]
async fn so_many_further_attempts_run_and_one_more_is_told() {
    let backend = Backend::start().await;
    let addresses: [SocketAddr; 2] = [loopback::refused().unwrap(), backend.address()];
    let proxy = Proxy::to(&addresses)
        .with("circuit_breakers.max_retries", 1)
        .start()
        .await;
    let mut client = proxy.test_client().await;
    // One of two meets the dead endpoint first, and is at the other one by its second attempt.
    let running = [gated(&client), gated(&client)];
    let both = |all: &e2e::journal::Entries| (all.requests.len() == 2).then_some(());
    backend.journal.wait("two RPCs", both).await;
    assert_eq!(used(&proxy, "max_retries").await, 1.0);
    let results = [
        client.unary(payload("")).await,
        client.unary(payload("")).await,
    ];
    let [refused] = results
        .into_iter()
        .filter(Result::is_err)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    refused_by(refused, "max_retries");
    backend.open("end");
    for rpc in running {
        within("its end", rpc).await.unwrap().unwrap();
    }
    for _ in 0..4 {
        client.unary(payload("")).await.unwrap();
    }
}

#[tokio::test]
async fn without_limits_nothing_is_counted() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    proxy.test_client().await.unary(payload("")).await.unwrap();
    let page = proxy.admin_json("/clusters").await;
    assert_eq!(page["clusters"][0]["circuit_breakers"], json!({}));
}
