use std::{collections::HashSet, net::SocketAddr, time::Duration};

use e2e::{
    backend::Backend,
    dns::DnsServer,
    loopback, payload,
    proxy::{Proxy, TEST},
    replicas::{Kind, Replica},
    scripted::{Exchange, Scripted},
    wait::{eventually, within},
};
use grpc_service::Drain;
use proto::api::{EchoRequest, echo_client::EchoClient};
use tokio::sync::watch;
use tonic::Status;

async fn backends(count: usize) -> Vec<Backend> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Backend::start().await);
    }
    all
}

fn counts(backends: &[Backend]) -> Vec<usize> {
    backends
        .iter()
        .map(|backend| backend.journal.count())
        .collect()
}

#[tokio::test]
async fn one_connection_and_a_thousand_rpcs_are_500_and_500() {
    let backends = backends(2).await;
    let proxy = Proxy::to(&backends).start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..1000 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(counts(&backends), [500, 500]);
    assert!(
        backends
            .iter()
            .all(|backend| backend.journal.read().connections <= 2)
    );
}

#[tokio::test]
async fn the_balance_is_exact_across_connections_and_workers() {
    let backends = backends(3).await;
    let proxy = Proxy::to(&backends).set("workers", 3).start().await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = proxy.test_client().await;
        clients.push(tokio::spawn(async move {
            for _ in 0..100 {
                client.unary(payload("")).await.unwrap();
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(counts(&backends), [200, 200, 200]);
}

#[tokio::test]
async fn concurrent_streams_are_balanced_too() {
    let backends = backends(2).await;
    let proxy = Proxy::to(&backends).start().await;
    let client = proxy.test_client().await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.unary(payload("")).await.unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(counts(&backends), [50, 50]);
}

#[tokio::test]
async fn one_endpoint_has_few_connections() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.test_client().await;
        for _ in 0..5 {
            client.unary(payload("")).await.unwrap();
        }
        clients.push(client);
    }
    assert_eq!(backend.journal.read().connections, 1);
}

#[tokio::test]
async fn a_full_connection_gets_a_sibling() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend])
        .set("workers", 1)
        .with("per_connection_streams", 10)
        .start()
        .await;
    let client = proxy.test_client().await;
    let calls: Vec<_> = (0..25)
        .map(|_| {
            let mut client = client.clone();
            let asked = e2e::client::request(payload(""), &[("x-test-gate", "all")]);
            tokio::spawn(async move { client.unary(asked).await })
        })
        .collect();
    backend
        .journal
        .wait("25 RPCs at once", |all| {
            (all.requests.len() == 25).then_some(())
        })
        .await;
    assert_eq!(backend.journal.read().connections, 3);
    backend.open("all");
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_connection_carries_100_streams_unless_told_otherwise() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    // A client may have 100 itself.
    let clients = [proxy.test_client().await, proxy.test_client().await];
    let calls = |range: std::ops::Range<usize>| {
        range
            .map(|number| {
                let mut client = clients[number % 2].clone();
                let asked = e2e::client::request(payload(""), &[("x-test-gate", "all")]);
                tokio::spawn(async move { client.unary(asked).await })
            })
            .collect::<Vec<_>>()
    };
    let begun = async |count: usize| {
        backend
            .journal
            .wait("RPCs at once", |all| {
                (all.requests.len() == count).then_some(all.connections)
            })
            .await
    };
    let hundred = calls(0..100);
    assert_eq!(begun(100).await, 1);
    let one_more = calls(100..101);
    assert_eq!(begun(101).await, 2);
    backend.open("all");
    for call in hundred.into_iter().chain(one_more) {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_connection_carries_what_the_backend_allows_and_then_there_is_another() {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(2);
    let backend =
        Scripted::start_with(settings, async |exchange: Exchange| exchange.hang().await).await;
    let proxy = Proxy::to([&backend]).set("workers", 1).start().await;
    let client = proxy.http2().await;
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.grpc("/e2e.Test/Unary", &[]).await })
        })
        .collect();
    let connections = backend
        .journal
        .wait("six RPCs at once", |all| {
            (all.requests.len() == 6).then_some(all.connections)
        })
        .await;
    assert_eq!(connections, 3);
    for call in calls {
        call.abort();
    }
}

/// A Service's pods, by DNS: backends on one port, of which some are in the answer.
async fn by_dns(count: usize) -> (DnsServer, Vec<Backend>) {
    let mut all = Vec::new();
    for address in loopback::group(count).unwrap() {
        all.push(Backend::start_at(address).await);
    }
    (DnsServer::start().await.unwrap(), all)
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(Backend::address).collect()
}

#[tokio::test]
async fn pods_that_are_added_get_their_share_and_pods_that_leave_get_nothing() {
    let (dns, backends) = by_dns(4).await;
    let all = addresses(&backends);
    dns.set_addresses("pods.test", &all[..2]);
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, "pods.test", all[0].port())
        .start()
        .await;
    let mut client = proxy.test_client().await;
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(counts(&backends), [5, 5, 0, 0]);

    dns.set_addresses("pods.test", &all);
    let mut probe = client.clone();
    eventually("new pods to be served", || {
        let mut client = probe.clone();
        let count = backends[3].journal.count();
        async move {
            client.unary(payload("")).await.unwrap();
            (count > 0).then_some(())
        }
    })
    .await;
    let before = counts(&backends);
    for _ in 0..40 {
        client.unary(payload("")).await.unwrap();
    }
    let after = counts(&backends);
    let shares: Vec<_> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before)
        .collect();
    assert_eq!(shares, [10, 10, 10, 10]);

    // Down to one: once the others are gone from the set, it gets everything, on the same client connection.
    dns.set_addresses("pods.test", &all[3..]);
    let others = || {
        backends[..3]
            .iter()
            .map(|backend| backend.journal.count())
            .sum::<usize>()
    };
    eventually("the others to get nothing", || {
        let before = others();
        let mut client = probe.clone();
        let others = &others;
        async move {
            for _ in 0..8 {
                client.unary(payload("")).await.unwrap();
            }
            (others() == before).then_some(())
        }
    })
    .await;
    let before = others();
    for _ in 0..20 {
        probe.unary(payload("")).await.unwrap();
    }
    assert_eq!(others(), before);
}

#[tokio::test]
async fn running_rpcs_finish_on_a_pod_that_leaves() {
    let (dns, backends) = by_dns(2).await;
    let all = addresses(&backends);
    dns.set_addresses("pods.test", &all[..1]);
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, "pods.test", all[0].port())
        .start()
        .await;
    let mut client = proxy.test_client().await;
    let asked = e2e::client::request(
        payload(""),
        &[("x-test-id", "long"), ("x-test-gate", "end")],
    );
    let running = tokio::spawn({
        let mut client = client.clone();
        async move { client.unary(asked).await }
    });
    backends[0].journal.begun("long").await;
    dns.set_addresses("pods.test", &all[1..]);
    let probe = client.clone();
    eventually("the new pod to serve", || {
        let mut client = probe.clone();
        let count = backends[1].journal.count();
        async move {
            client.unary(payload("")).await.unwrap();
            (count > 3).then_some(())
        }
    })
    .await;
    let before = backends[0].journal.count();
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(backends[0].journal.count(), before);
    backends[0].open("end");
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn replicas_are_replaced_under_load_and_nothing_fails() {
    let addresses = loopback::group(6).unwrap();
    let start = async |number: usize| {
        let drain = Drain {
            accept: Duration::from_secs(1),
            finish: Duration::from_secs(20),
        };
        let hostname = format!("echo-grpc-{number}");
        Replica::start_at(Kind::Echo, addresses[number], &hostname, drain)
            .await
            .unwrap()
    };
    let dns = DnsServer::start().await.unwrap();
    let mut replicas = [start(0).await, start(1).await];
    dns.set_addresses("echo.test", &addresses[..2]);
    let proxy = Proxy::builder()
        .route("/api.Echo/", "echo-grpc")
        .dns_cluster("echo-grpc", &dns, "echo.test", addresses[0].port())
        .checked()
        .with("health_check.service", "api.Echo")
        .start()
        .await;
    let channel = proxy.channel().await;
    let (stop, stopped) = watch::channel(false);
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (mut echo, stopped) = (EchoClient::new(channel.clone()), stopped.clone());
            tokio::spawn(async move {
                let mut hostnames = HashSet::new();
                while !*stopped.borrow() {
                    let content = "under way".into();
                    let reply = echo.echo(EchoRequest { content }).await?;
                    let hostname = reply.metadata().get("hostname").unwrap();
                    hostnames.insert(hostname.to_str().unwrap().to_owned());
                }
                Ok::<_, Status>(hostnames)
            })
        })
        .collect();

    // A rollout: a new pod, its address in the answer, then the old one out of it and told to end.
    for number in 2..6 {
        let replica = start(number).await;
        let hostname = replica.hostname().to_owned();
        let old = std::mem::replace(&mut replicas[number % 2], replica);
        let now = replicas.iter().map(Replica::address).collect::<Vec<_>>();
        dns.set_addresses("echo.test", now.iter().chain([&old.address()]));
        let mut probe = EchoClient::new(channel.clone());
        eventually("the new replica to serve", || {
            let mut probe = probe.clone();
            let hostname = hostname.clone();
            async move {
                let reply = probe.echo(EchoRequest::default()).await.unwrap();
                (reply.metadata().get("hostname").unwrap().to_str().unwrap() == hostname)
                    .then_some(())
            }
        })
        .await;
        dns.set_addresses("echo.test", &now);
        old.stop();
        within("the old replica's end", old.ended()).await;
        probe.echo(EchoRequest::default()).await.unwrap();
    }
    stop.send_replace(true);
    let mut hostnames = HashSet::new();
    for task in load {
        hostnames.extend(within("the load's end", task).await.unwrap().unwrap());
    }
    assert_eq!(hostnames.len(), 6, "{hostnames:?}");
}
