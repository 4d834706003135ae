//! Serves the admin page over made-up traffic, to look at it: `cargo run --example admin_page -- 200 trouble`.
//!
//! The first argument is the number of endpoints per cluster (2), `trouble` makes some of them fail. The page is at
//! http://127.0.0.1:8099/.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use edge_proxy::{
    control_plane::{
        admin::{self, State},
        status::Standing,
    },
    snapshot::EndpointShared,
    telemetry::metrics::{Limit, RpcEnd, Shard, Side},
};

#[path = "../tests/support/mod.rs"]
mod support;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoints = arguments.next().map_or(Ok(2), |n| n.parse())?;
    let trouble = arguments.next().is_some();

    let mut report = support::report(endpoints);
    if trouble {
        let [echo, reverse] = &mut report.clusters[..] else {
            unreachable!("there are two")
        };
        for endpoint in echo
            .endpoints
            .iter_mut()
            .step_by(7)
            .skip(usize::from(endpoints > 7))
        {
            support::eject(endpoint, "no answer within 1 s (3 checks in a row)");
            echo.eligible -= 1;
        }
        if let Some(last) = reverse.endpoints.last_mut() {
            last.standing = Standing::Leaving;
        }
        reverse.targets[0].last_error = support::problem("the name server answered SERVFAIL");
        report.certificate.last_error = support::problem(
            "/etc/edge-proxy/tls/tls.key isn't the key of /etc/edge-proxy/tls/tls.crt",
        );
    }
    let shared: Vec<_> = report
        .clusters
        .iter()
        .map(|cluster| {
            let eligible = cluster
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.eligible);
            (
                Arc::<str>::from(&*cluster.name),
                eligible.map(|e| Arc::clone(&e.shared)).collect(),
            )
        })
        .collect();
    let (state, _asked) = support::state(report);
    thread::spawn({
        let state = state.clone();
        move || traffic(&state, &shared, trouble)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8099").await?;
    println!("http://{}/", listener.local_addr()?);
    admin::serve(listener, state, std::future::pending()).await;
    Ok(())
}

/// Counts as workers would, about 2 000 RPCs a second that come in waves.
fn traffic(state: &State, clusters: &[(Arc<str>, Vec<Arc<EndpointShared>>)], trouble: bool) {
    let shard = state.metrics.shard();
    shard.connections(Side::Downstream).opened.add(143);
    shard.connections(Side::Upstream).opened.add(8);
    if trouble {
        shard.limits(Limit::HeaderBytes).add(3);
        shard.limits(Limit::ConnectionsPerSource).inc();
    }
    for tick in 0_u64.. {
        (0..2).for_each(|worker| state.heartbeats.beat(worker));
        let wave = 1.0 + 0.5 * (tick as f64 / 40.0).sin();
        for (name, endpoints) in clusters {
            let rpcs = (wave * 60.0) as u64 + tick % 7;
            count(&shard, name, rpcs, trouble.then_some(tick % 10));
            for (i, endpoint) in endpoints.iter().enumerate() {
                let share =
                    (rpcs + (tick + i as u64) % endpoints.len() as u64) / endpoints.len() as u64;
                endpoint.attempts.fetch_add(share, Ordering::Relaxed);
                endpoint.active.store(share % 5, Ordering::Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn count(shard: &Shard, cluster: &Arc<str>, rpcs: u64, failing: Option<u64>) {
    let series = shard.series(&"/".into(), cluster, b"/api.Echo/Echo");
    series.started.add(rpcs);
    let failed = if failing == Some(0) { rpcs / 5 } else { 0 };
    series.ended(RpcEnd::Grpc(14)).add(failed);
    series.ended(RpcEnd::Grpc(0)).add(rpcs - failed);
    let durations = &shard.cluster(cluster).duration;
    for i in 0..rpcs {
        durations.record(Duration::from_micros(600 + 17 * i * i * i % 9_000));
    }
}
