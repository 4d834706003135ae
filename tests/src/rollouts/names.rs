//! The name server fails, lies, or can't make up its mind.

use std::{net::SocketAddr, time::Duration};

use anyhow::ensure;
use tokio::time::sleep;

use super::{
    Load, Running,
    backends::{health_check, patience},
    none_failed,
};
use crate::{
    attack::{Finding, Options, until},
    backend::Backend,
    dns::{Answer, DnsServer},
    loopback,
    proxy::{Builder, Proxy},
};

/// In each shape as long as 10 minutes are for a refresh of 5 s: here it is 50 ms. Nothing listens at last.
pub(super) async fn lost(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let outage = scale.of(Duration::from_secs(6), Duration::from_millis(200));
    let addresses = loopback::group(2)?;
    let backends = start(&addresses).await;
    let dns = DnsServer::start().await?;
    dns.set_addresses(NAME, &addresses);
    let builder = builder(&dns, &addresses)
        .with("health_check", health_check(scale))
        .with("health_check.timeout", patience(scale));
    let mut proxy = Running::start(&options, builder).await;
    let ready = proxy.has_eligible(2, PATIENCE).await;
    ensure!(ready.is_some(), "the backends' first checks");
    let load = Load::start(proxy.load(scale.of(500, 100), scale.of(20, 4)));
    let mut kept = 0;
    for shape in [
        Answer::ServerFailure,
        Answer::Refused,
        Answer::Garbage,
        Answer::NoSuchName,
        Answer::Empty,
        Answer::Silence,
    ] {
        dns.set(NAME, shape);
        sleep(outage).await;
        kept += usize::from(proxy.has_eligible(2, Duration::ZERO).await.is_some());
        dns.set_addresses(NAME, &addresses);
        dns.asked(NAME, 1).await;
    }
    // A query is answered by ICMP, as where the name server's pods are gone.
    let at = dns.address();
    drop(dns);
    sleep(outage).await;
    kept += usize::from(proxy.has_eligible(2, Duration::ZERO).await.is_some());
    let dns = DnsServer::start_at(at).await?;
    dns.set_addresses(NAME, &addresses[..1]);
    let believed = proxy.has_eligible(1, PATIENCE).await;
    let tally = load.end().await?;
    drop(backends);
    Ok(vec![
        none_failed(&tally),
        Finding::exactly("shapes in which the last answer is kept", kept, 7),
        Finding::within(
            "believed when it is back",
            believed,
            Duration::from_secs(10),
        ),
        proxy.sound(),
    ])
}

/// 1 to 50 addresses, others each time.
pub(super) async fn flaps(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let most = scale.of(50, 8);
    let (rounds, pace) = scale.of(
        (60, Duration::from_secs(1)),
        (10, Duration::from_millis(60)),
    );
    let addresses = loopback::group(most)?;
    let backends = start(&addresses).await;
    let dns = DnsServer::start().await?;
    dns.set_addresses(NAME, &addresses[..1]);
    let mut proxy = Running::start(&options, builder(&dns, &addresses)).await;
    let load = Load::start(proxy.load(scale.of(500, 100), scale.of(20, 4)));
    for round in 0..rounds {
        let (count, from) = (1 + round * 7 % most, round * 5 % most);
        let answer: Vec<_> = addresses.iter().cycle().skip(from).take(count).collect();
        dns.set_addresses(NAME, answer);
        sleep(pace).await;
    }
    dns.set_addresses(NAME, &addresses[..2]);
    let settled = proxy.has_eligible(2, PATIENCE).await;
    let gone = until(PATIENCE, || async {
        let open = |backend: &Backend| {
            let journal = &backend.journal;
            journal.look(|all| all.connections > all.connections_ended)
        };
        !backends[2..].iter().any(open)
    })
    .await;
    let tally = load.end().await?;
    Ok(vec![
        none_failed(&tally),
        Finding::within(
            "the last answer is in force",
            settled,
            Duration::from_secs(5),
        ),
        Finding::within(
            "connections to all others are gone",
            gone,
            Duration::from_secs(5),
        ),
        proxy.sound(),
    ])
}

async fn start(addresses: &[SocketAddr]) -> Vec<Backend> {
    let mut backends = Vec::new();
    for address in addresses {
        backends.push(Backend::start_at(*address).await);
    }
    backends
}

fn builder(dns: &DnsServer, addresses: &[SocketAddr]) -> Builder {
    let port = addresses.first().map_or(0, SocketAddr::port);
    Proxy::builder()
        .route("/api.Echo/", "test")
        .dns_cluster("test", dns, NAME, port)
}

const NAME: &str = "pods.test";
const PATIENCE: Duration = Duration::from_secs(20);
