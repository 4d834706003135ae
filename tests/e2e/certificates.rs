use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{
    certs::{Authority, Broken, Pair},
    client::Http2,
    proxy::Proxy,
    wait::eventually,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

/// The certificate that a new connection is served.
async fn served(proxy: &Proxy) -> Vec<u8> {
    let stream = proxy.tls(&["h2"]).await.expect("no handshake fails");
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

fn leaf(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.chain.as_bytes())
        .unwrap()
        .to_vec()
}

/// The number of pairs that were refused, as the operator's page has it.
async fn rejected(proxy: &Proxy) -> u64 {
    let page = proxy.admin_json("/certs").await;
    find(&page, "rejected")
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no `rejected` in {page}"))
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

#[tokio::test]
async fn a_new_pair_is_served_to_new_connections_and_no_handshake_fails() {
    let proxy = Proxy::builder().start().await;
    let old = proxy.http2().await;
    for _ in 0..3 {
        let pair = proxy.files.authority.pair();
        proxy.files.secret.swap(&pair).unwrap();
        eventually("the new certificate", || async {
            (served(&proxy).await == leaf(&pair)).then_some(())
        })
        .await;
        // Workers have it before the page does.
        eventually("the page to show it", || async {
            let page = proxy.admin("/certs").await;
            page.body().contains(&pair.serial).then_some(())
        })
        .await;
    }
    assert_eq!(
        old.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
        Some(12),
        "an old connection lives on"
    );
}

#[tokio::test]
async fn a_broken_pair_is_never_served_and_the_old_one_stays() {
    let proxy = Proxy::builder().start().await;
    let good = served(&proxy).await;
    for how in Broken::ALL {
        let before = rejected(&proxy).await;
        proxy
            .files
            .secret
            .swap(&proxy.files.authority.broken(how))
            .unwrap();
        eventually(&format!("a {how:?} pair to be refused"), || async {
            (rejected(&proxy).await > before).then_some(())
        })
        .await;
        assert!(served(&proxy).await == good, "{how:?}");
        let page = proxy.admin_json("/certs").await;
        assert!(
            find(&page, "last_error").is_some_and(|error| !error.is_null()),
            "{how:?}"
        );
    }
    // And from there to a good one.
    let pair = proxy.files.authority.pair();
    proxy.files.secret.swap(&pair).unwrap();
    eventually("the new certificate", || async {
        (served(&proxy).await == leaf(&pair)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hundred_swaps_fail_no_handshake_whatever_comes_between() {
    let proxy = Proxy::builder().start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (address, config) = (proxy.address(), proxy.tls_config(&["h2"]));
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut handshakes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let http2 = Http2::connect(address, config.clone()).await.unwrap();
                    let reply = http2.grpc("/a.B/C", &[]).await.unwrap();
                    assert_eq!(reply.grpc_status(), Some(12));
                    handshakes += 1;
                }
                handshakes
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for swap in 0..100 {
        let broken = Broken::ALL.get(swap % 10);
        if let Some(how) = broken {
            let pair = proxy.files.authority.broken(*how);
            proxy.files.secret.swap(&pair).unwrap();
        }
        let pair = proxy.files.authority.pair();
        proxy.files.secret.swap(&pair).unwrap();
        let swapped = Instant::now();
        eventually("the new certificate", || async {
            (served(&proxy).await == leaf(&pair)).then_some(())
        })
        .await;
        longest = longest.max(swapped.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let handshakes = client.await.expect("no handshake fails");
        assert!(handshakes > 0);
    }
    // Promised are 2 s, on a machine with nothing else to do: the proxy's own tests have that bound (`certs/tests/watch.rs`,
    // the fastest of some). Here handshakes fill the machine, and the longest of a hundred is looked at.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

#[tokio::test]
async fn without_a_certificate_it_waits_alive_and_not_ready() {
    let proxy = Proxy::builder().without_certificate().start_unready().await;
    eventually("the probes", || async { proxy.probe("/livez").await }).await;
    assert_eq!(proxy.probe("/livez").await.unwrap().status(), 200);
    assert_eq!(proxy.probe("/readyz").await.unwrap().status(), 503);
    let pair = proxy.files.authority.pair();
    proxy.files.secret.swap(&pair).unwrap();
    proxy.ready().await;
    assert!(served(&proxy).await == leaf(&pair));
}

#[tokio::test]
async fn a_client_that_does_not_trust_it_costs_nothing() {
    let proxy = Proxy::builder().start().await;
    let stranger = Authority::new();
    for _ in 0..10 {
        let config = stranger.client(&["h2"]);
        assert!(e2e::client::tls(proxy.address(), config).await.is_err());
    }
    served(&proxy).await;
}

#[tokio::test]
async fn a_session_is_resumed() {
    let proxy = Proxy::builder().start().await;
    let config = Arc::clone(&proxy.tls_config(&["h2"]));
    let mut resumed = 0.0;
    for _ in 0..3 {
        let client = Http2::connect(proxy.address(), config.clone())
            .await
            .unwrap();
        client.grpc("/a.B/C", &[]).await.unwrap();
        let stream = e2e::client::tls(proxy.address(), config.clone())
            .await
            .unwrap();
        if stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            resumed += 1.0;
        }
    }
    assert!(resumed > 0.0);
    // `Http2` doesn't say of its own three what they were.
    eventually("all handshakes to be counted", || async {
        let all = proxy.metric("edge_tls_handshakes_total", &[]).await;
        (all == 6.0).then_some(())
    })
    .await;
    let of = |result| proxy.metric("edge_tls_handshakes_total", result);
    let counted = of(&[("result", "resumed")]).await;
    assert!((resumed..=resumed + 3.0).contains(&counted), "{counted}");
    assert_eq!(counted + of(&[("result", "ok")]).await, 6.0);
}
