use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use e2e::{
    backend::Backend,
    dns::{Answer, DnsServer},
    health, loopback, payload,
    proxy::{Builder, Proxy, TEST},
    wait::eventually,
};
use serde_json::Value;
use tonic::Code;

const NAME: &str = "pods.test";

struct System {
    dns: DnsServer,
    backends: Vec<Backend>,
    addresses: Vec<SocketAddr>,
}

impl System {
    /// `count` backends, all in the answer.
    async fn start(count: usize) -> Self {
        let addresses = loopback::group(count).unwrap();
        let mut backends = Vec::new();
        for address in &addresses {
            backends.push(Backend::start_at(*address).await);
        }
        let dns = DnsServer::start().await.unwrap();
        dns.set_addresses(NAME, &addresses);
        Self {
            dns,
            backends,
            addresses,
        }
    }

    fn proxy(&self) -> Builder {
        Proxy::builder().route(TEST, "test").dns_cluster(
            "test",
            &self.dns,
            NAME,
            self.addresses[0].port(),
        )
    }
}

async fn endpoints(proxy: &Proxy) -> Vec<Value> {
    cluster(proxy).await["endpoints"]
        .as_array()
        .unwrap()
        .clone()
}

/// The first cluster of the operator's page.
async fn cluster(proxy: &Proxy) -> Value {
    let page = proxy.admin_json("/clusters").await;
    let list = page.get("clusters").unwrap_or(&page);
    list.as_array()
        .unwrap_or_else(|| panic!("no list of clusters in {page}"))[0]
        .clone()
}

#[tokio::test]
async fn every_failure_of_the_name_server_keeps_the_last_good_set() {
    let system = System::start(2).await;
    let proxy = system.proxy().start().await;
    let mut client = proxy.test_client().await;
    for failure in [
        Answer::ServerFailure,
        Answer::Refused,
        Answer::Garbage,
        Answer::Silence,
    ] {
        let error = |cluster: &Value| !cluster["targets"][0]["last_error"].is_null();
        system.dns.set(NAME, failure.clone());
        eventually("the failure on the operator's page", || async {
            error(&cluster(&proxy).await).then_some(())
        })
        .await;
        let before = system
            .backends
            .iter()
            .map(|backend| backend.journal.count())
            .collect::<Vec<_>>();
        for _ in 0..10 {
            client.unary(payload("")).await.unwrap();
        }
        for (backend, before) in system.backends.iter().zip(before) {
            assert_eq!(backend.journal.count() - before, 5, "{failure:?}");
        }
        system.dns.set_addresses(NAME, &system.addresses);
        eventually(
            "the name server's recovery on the operator's page",
            || async { (!error(&cluster(&proxy).await)).then_some(()) },
        )
        .await;
    }
}

#[tokio::test]
async fn an_empty_answer_keeps_the_last_set_of_a_cluster_without_checks() {
    let system = System::start(2).await;
    let proxy = system.proxy().start().await;
    let mut client = proxy.test_client().await;
    for lie in [Answer::NoSuchName, Answer::Empty] {
        system.dns.set(NAME, lie);
        system.dns.asked(NAME, 3).await;
        for _ in 0..10 {
            client.unary(payload("")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn after_an_empty_answer_endpoints_stay_until_their_check_fails() {
    let system = System::start(2).await;
    let proxy = system.proxy().checked().start().await;
    let mut client = proxy.test_client().await;
    system.dns.set(NAME, Answer::NoSuchName);
    system.dns.asked(NAME, 3).await;
    system.backends[0].health.checked(2).await;
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    for backend in &system.backends {
        backend.health.set(health::NOT_SERVING);
    }
    eventually("the set to be empty", || async {
        endpoints(&proxy).await.is_empty().then_some(())
    })
    .await;
    let failure = client.unary(payload("")).await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Unavailable, "no healthy upstream")
    );
}

#[tokio::test]
async fn a_name_that_never_resolves_is_a_cluster_without_endpoints() {
    let dns = DnsServer::start().await.unwrap();
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, NAME, 80)
        .start()
        .await;
    let failure = proxy
        .test_client()
        .await
        .unary(payload(""))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Unavailable, "no healthy upstream")
    );
}

#[tokio::test]
async fn the_listener_opens_after_5_s_when_no_name_server_answers() {
    let dns = DnsServer::start().await.unwrap();
    dns.set(NAME, Answer::Silence);
    let start = Instant::now();
    let proxy = Proxy::builder()
        .route(TEST, "test")
        .dns_cluster("test", &dns, NAME, 80)
        .start_unready()
        .await;
    eventually("the listener to open", || async {
        tokio::net::TcpStream::connect(proxy.address()).await.ok()
    })
    .await;
    assert!(
        start.elapsed() >= Duration::from_secs(5),
        "open after {:?}, without an answer",
        start.elapsed()
    );
    assert!(dns.queries(NAME) > 0);
}

#[tokio::test]
async fn rpcs_ask_no_name_server() {
    let system = System::start(2).await;
    let proxy = system.proxy().with("dns_refresh_rate", "1h").start().await;
    let mut client = proxy.test_client().await;
    let asked = system.dns.queries(NAME);
    for _ in 0..50 {
        client.unary(payload("")).await.unwrap();
    }
    // Nor does a new connection.
    let mut client = proxy.test_client().await;
    client.unary(payload("")).await.unwrap();
    assert_eq!(system.dns.queries(NAME), asked);
}

#[tokio::test]
async fn a_name_server_that_comes_back_is_believed() {
    let system = System::start(1).await;
    system.dns.set(NAME, Answer::ServerFailure);
    // Ready after 5 s without an answer.
    let proxy = system.proxy().start().await;
    let failure = proxy
        .test_client()
        .await
        .unary(payload(""))
        .await
        .unwrap_err();
    assert_eq!(failure.code(), Code::Unavailable);
    system.dns.set_addresses(NAME, &system.addresses);
    let client = proxy.test_client().await;
    eventually("the pod to be served", || {
        let mut client = client.clone();
        async move { client.unary(payload("")).await.ok() }
    })
    .await;
}

#[tokio::test]
async fn an_address_that_comes_twice_counts_once() {
    let system = System::start(2).await;
    let (first, second) = (system.addresses[0].ip(), system.addresses[1].ip());
    system
        .dns
        .set(NAME, Answer::Addresses(vec![first, second, first, first]));
    let proxy = system.proxy().start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(system.backends[0].journal.count(), 5);
    assert_eq!(endpoints(&proxy).await.len(), 2);
}

#[tokio::test]
async fn a_long_answer_comes_by_tcp() {
    let system = System::start(1).await;
    let mut many: Vec<_> = (0..199).map(|_| loopback::address()).collect();
    many.push(system.addresses[0].ip());
    system.dns.set(NAME, Answer::Addresses(many));
    let proxy = system.proxy().start().await;
    assert_eq!(endpoints(&proxy).await.len(), 200);
}

#[tokio::test]
async fn an_address_that_stays_keeps_its_connection_and_counters() {
    let system = System::start(2).await;
    system.dns.set_addresses(NAME, &system.addresses[..1]);
    let proxy = system.proxy().set("workers", 1).start().await;
    let mut client = proxy.test_client().await;
    client.unary(payload("")).await.unwrap();
    system.dns.set_addresses(NAME, &system.addresses);
    eventually("two endpoints", || async {
        (endpoints(&proxy).await.len() == 2).then_some(())
    })
    .await;
    for _ in 0..4 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(system.backends[0].journal.read().connections, 1);
    let first = system.addresses[0].to_string();
    let all = endpoints(&proxy).await;
    let kept = all
        .iter()
        .find(|endpoint| endpoint["address"] == first.as_str())
        .unwrap();
    assert_eq!(kept["attempts"], 3);
}

#[tokio::test]
async fn a_leaving_address_serves_until_a_remaining_one_is_healthy() {
    let system = System::start(2).await;
    system.dns.set_addresses(NAME, &system.addresses[..1]);
    system.backends[1].health.set(health::NOT_SERVING);
    let proxy = system.proxy().checked().start().await;
    let mut client = proxy.test_client().await;
    system.dns.set_addresses(NAME, &system.addresses[1..]);
    system.backends[1].health.checked(2).await;
    // The only one that the answer names isn't healthy: no RPC may fail for that.
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(system.backends[1].journal.count(), 0);
    system.backends[1].health.set(health::SERVING);
    let probe = client.clone();
    eventually("the new address to serve", || {
        let mut client = probe.clone();
        let count = system.backends[1].journal.count();
        async move {
            client.unary(payload("")).await.unwrap();
            (count > 2).then_some(())
        }
    })
    .await;
    let before = system.backends[0].journal.count();
    for _ in 0..10 {
        client.unary(payload("")).await.unwrap();
    }
    assert_eq!(system.backends[0].journal.count(), before);
}

#[tokio::test]
async fn a_refused_connection_asks_for_an_early_look_up() {
    let mut system = System::start(2).await;
    system.dns.set_addresses(NAME, &system.addresses[..1]);
    let proxy = system.proxy().with("dns_refresh_rate", "1h").start().await;
    let mut client = proxy.test_client().await;
    client.unary(payload("")).await.unwrap();
    system.dns.set_addresses(NAME, &system.addresses[1..]);
    system.backends[0].kill();
    let client = client.clone();
    eventually("the pod that replaced it", || {
        let mut client = client.clone();
        async move { client.unary(payload("")).await.ok() }
    })
    .await;
    assert!(system.backends[1].journal.count() > 0);
}

#[tokio::test]
async fn a_goaway_asks_for_an_early_look_up() {
    let mut system = System::start(2).await;
    let proxy = system.proxy().with("dns_refresh_rate", "1h").start().await;
    let mut client = proxy.test_client().await;
    for _ in 0..4 {
        client.unary(payload("")).await.unwrap();
    }
    let asked = system.dns.queries(NAME);
    system.backends[0].stop();
    eventually("an early look-up", || async {
        (system.dns.queries(NAME) > asked).then_some(())
    })
    .await;
    for _ in 0..20 {
        client.unary(payload("")).await.unwrap();
    }
}

#[tokio::test]
async fn without_ipv6_records_auto_takes_the_others() {
    let system = System::start(1).await;
    let proxy = system
        .proxy()
        .with("dns_lookup_family", "auto")
        .start()
        .await;
    proxy.test_client().await.unary(payload("")).await.unwrap();
}

/// A backend that listens on IPv6 alone, and its records: an IPv4 address too, where nobody listens.
async fn by_ipv6() -> (DnsServer, Backend) {
    let backend = Backend::start_at("[::1]:0".parse().unwrap()).await;
    let dns = DnsServer::start().await.unwrap();
    dns.set(
        NAME,
        Answer::Addresses(vec![loopback::address(), backend.address().ip()]),
    );
    (dns, backend)
}

#[tokio::test]
async fn ipv6_records_are_taken_alone_by_auto_and_v6_only() {
    for family in ["auto", "v6_only"] {
        let (dns, backend) = by_ipv6().await;
        let proxy = Proxy::builder()
            .route(TEST, "test")
            .dns_cluster("test", &dns, NAME, backend.address().port())
            .with("dns_lookup_family", family)
            .start()
            .await;
        let mut client = proxy.test_client().await;
        for _ in 0..4 {
            client.unary(payload("")).await.unwrap();
        }
        let all = endpoints(&proxy).await;
        assert_eq!(all.len(), 1, "{family}: {all:?}");
        assert_eq!(all[0]["address"], backend.address().to_string(), "{family}");
    }
}

#[tokio::test]
async fn v4_only_takes_no_ipv6() {
    let system = System::start(1).await;
    let both = vec![
        system.addresses[0].ip(),
        std::net::Ipv6Addr::LOCALHOST.into(),
    ];
    system.dns.set(NAME, Answer::Addresses(both));
    let proxy = system
        .proxy()
        .with("dns_lookup_family", "v4_only")
        .start()
        .await;
    let all = endpoints(&proxy).await;
    assert_eq!(all.len(), 1, "{all:?}");
    proxy.test_client().await.unary(payload("")).await.unwrap();
}

#[tokio::test]
async fn v6_only_without_ipv6_records_has_no_endpoint() {
    let system = System::start(1).await;
    let proxy = system
        .proxy()
        .with("dns_lookup_family", "v6_only")
        .start()
        .await;
    let failure = proxy
        .test_client()
        .await
        .unary(payload(""))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Unavailable, "no healthy upstream")
    );
}
