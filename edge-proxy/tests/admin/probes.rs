//! The probes, and how a server ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use edge_proxy::{
    control_plane::status::{Readiness, Report},
    snapshot::{Health, Heartbeats},
};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    pages::{GET_PAGES, POST_ONLY},
    server::Server,
    support,
};

#[tokio::test]
async fn ready_is_503_until_every_part_is_and_names_what_is_missing() {
    for (serving, certificate, warmed_up, missing) in [
        (false, true, true, "told to fail by /healthcheck/fail\n"),
        (true, false, true, "no certificate is loaded yet\n"),
        (
            true,
            true,
            false,
            "the first health checks haven't ended yet\n",
        ),
    ] {
        let mut report = support::report(1);
        report.readiness = Readiness {
            serving,
            certificate,
            warmed_up,
        };
        let (admin, probes) = (
            Server::admin(report.clone()).await,
            Server::probes(report).await,
        );
        for answer in [admin.get("/ready").await, probes.get("/readyz").await] {
            assert_eq!((answer.status(), &*answer.body), (503, missing));
        }
        assert_eq!(admin.get("/ready?format=json").await.status(), 503);
        assert_eq!(
            probes.get("/livez").await.status(),
            200,
            "dead is something else"
        );
    }
    let probes = Server::probes(support::report(1)).await;
    assert_eq!(probes.get("/readyz").await.status(), 200);
}

#[tokio::test]
async fn ready_tells_names_without_an_address_and_checks_apart() {
    let told = async |report: &Report| {
        let probes = Server::probes(report.clone()).await;
        probes.get("/readyz").await.body
    };
    let checks = "the first health checks haven't ended yet\n";
    let mut report = support::report(1);
    report.readiness.warmed_up = false;
    // Checks can't begin where there is no address.
    report.clusters[0].endpoints.clear();
    let echo = "no address yet for echo-grpc.default.svc.cluster.local.:8081\n";
    assert_eq!(told(&report).await, echo);
    report.clusters[1].endpoints[0].health = Health::Unknown;
    assert_eq!(told(&report).await, format!("{echo}{checks}"));
    // Another name of a cluster that has addresses.
    let targets = &mut report.clusters[1].targets;
    for name in ["a.:1", "b.:1", "c.:1"] {
        let mut never = targets[0].clone();
        (never.target, never.last_answer_at_ms) = (name.into(), None);
        targets.push(never);
    }
    let names = echo.replace('\n', ", a.:1, b.:1 and 1 more\n");
    assert_eq!(told(&report).await, format!("{names}{checks}"));
    report.readiness.warmed_up = true;
    assert_eq!(told(&report).await, "ready\n", "5 s have passed");
}

#[tokio::test]
async fn probes_answer_three_paths_under_any_host_and_nothing_else() {
    let server = Server::probes(support::report(2)).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = server.ask("GET", path, &[("host", "10.0.0.7:8091")]).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(server.post(path).await.status(), 405, "{path}");
    }
    for path in GET_PAGES.iter().chain(&POST_ONLY) {
        assert_eq!(server.get(path).await.status(), 404, "{path}");
        assert_eq!(server.post(path).await.status(), 404, "{path}");
    }
    assert_eq!(server.asked(), [""; 0]);
}

#[tokio::test]
async fn live_does_not_depend_on_backends() {
    let mut report = support::report(2);
    for endpoint in report
        .clusters
        .iter_mut()
        .flat_map(|cluster| &mut cluster.endpoints)
    {
        support::eject(endpoint, "gone");
    }
    assert_eq!(
        Server::probes(report).await.get("/livez").await.status(),
        200
    );
}

#[tokio::test]
async fn live_is_503_once_one_worker_has_not_run_for_ten_seconds() {
    let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
    let (mut state, asked) = support::state(support::report(1));
    // To the millisecond that is a test of the code's own.
    state.heartbeats = Heartbeats::since(ago(1), 2);
    let server = Server::start(state.clone(), Arc::clone(&asked), false).await;
    assert_eq!(server.get("/livez").await.status(), 200);

    state.heartbeats = Heartbeats::since(ago(12), 2);
    state.heartbeats.beat(0);
    let server = Server::start(state.clone(), asked, false).await;
    let dead = server.get("/livez").await;
    assert_eq!(dead.status(), 503);
    let told = dead.body.strip_prefix("a worker hasn't run for ");
    let told = told.and_then(|rest| rest.strip_suffix(" s\n"));
    // Its answer may take its time.
    assert!(told.unwrap().parse::<u64>().unwrap() >= 12);
    assert_eq!(server.get("/readyz").await.status(), 200);
    state.heartbeats.beat(1);
    assert_eq!(server.get("/livez").await.status(), 200);
}

#[tokio::test]
async fn many_silent_connections_keep_no_probe_out() {
    let server = Server::probes(support::report(1)).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_eq!(server.get("/livez").await.status(), 200);
    let mut oldest = silent.swap_remove(0);
    assert!(
        matches!(oldest.read(&mut [0; 1]).await, Ok(0) | Err(_)),
        "the oldest went"
    );
}

#[tokio::test]
async fn shutdown_closes_the_listener_and_ends() {
    for is_admin in [true, false] {
        let (state, asked) = support::state(support::report(1));
        let mut server = Server::start(state, asked, is_admin).await;
        assert_ne!(server.get("/readyz").await.status(), 0);
        server.stop.take().unwrap().send(()).unwrap();
        server.task.await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
