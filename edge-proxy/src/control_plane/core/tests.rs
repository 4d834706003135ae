//! The loop under paused time, over a scripted network: what is looked at when, and what is published of it.

mod names;
mod passive;
mod reload;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{Core, Wires};
use crate::{
    control_plane::{
        ControlHandle,
        certs::Served,
        config::{Config, HealthCheckSpec, LookupFamily, Target},
        discovery::Lookup,
        health::Outcome,
        network::{Job, Network},
        status::{CheckResult, Detected, LookupResult, Report, Standing},
    },
    snapshot::{
        Cluster, EndpointShared, Health, Hints, Reader, Snapshot,
        streak::{Detector, Ending},
    },
    telemetry::captured::Log,
};

const SECOND: Duration = Duration::from_secs(1);

/// What the network does, and what was asked of it.
#[derive(Debug, Default)]
struct Script {
    /// By host; a host that isn't there isn't answered.
    names: HashMap<String, Answered>,
    /// By address; an address that isn't there passes.
    checks: HashMap<SocketAddr, Checked>,
    looked_up: Vec<(Instant, String)>,
    checked: Vec<(Instant, SocketAddr)>,
}

#[derive(Clone, Debug)]
enum Answered {
    Lookup(Lookup),
    /// After so long.
    Later(Duration, Lookup),
    Panic,
    /// Before there is a job.
    PanicAtOnce,
}

#[derive(Clone, Debug)]
enum Checked {
    Outcome(Outcome),
    Never,
    Panic,
    /// Before there is a job.
    PanicAtOnce,
}

#[derive(Clone, Debug, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Network for Scripted {
    fn look_up(&mut self, target: &Target, _: LookupFamily) -> Job<Lookup> {
        let mut script = self.0.lock().unwrap();
        script.looked_up.push((Instant::now(), target.host.clone()));
        let said = script.names.get(&target.host).cloned();
        drop(script);
        if matches!(said, Some(Answered::PanicAtOnce)) {
            panic!("on purpose");
        }
        Box::pin(async move {
            match said {
                Some(Answered::Lookup(lookup)) => lookup,
                Some(Answered::Later(after, lookup)) => {
                    sleep(after).await;
                    lookup
                }
                Some(Answered::Panic | Answered::PanicAtOnce) => panic!("on purpose"),
                None => std::future::pending().await,
            }
        })
    }

    fn check(&mut self, endpoint: &EndpointShared, _: &HealthCheckSpec) -> Job<Outcome> {
        let mut script = self.0.lock().unwrap();
        script.checked.push((Instant::now(), endpoint.address));
        let said = script.checks.get(&endpoint.address).cloned();
        drop(script);
        if matches!(said, Some(Checked::PanicAtOnce)) {
            panic!("on purpose");
        }
        Box::pin(async move {
            match said {
                None => Outcome::Serving,
                Some(Checked::Outcome(outcome)) => outcome,
                Some(Checked::Panic | Checked::PanicAtOnce) => panic!("on purpose"),
                Some(Checked::Never) => std::future::pending().await,
            }
        })
    }

    fn retain(&mut self, _: &dyn Fn(u64) -> bool) {}
}

impl Scripted {
    /// `host` has these addresses from now on.
    fn name(&self, host: &str, last: &[u8]) {
        let ips = last.iter().map(|last| ip(*last).ip());
        self.look_up_says(host, Lookup::found(ips, 8081));
    }

    fn look_up_says(&self, host: &str, lookup: Lookup) {
        self.0
            .lock()
            .unwrap()
            .names
            .insert(host.into(), Answered::Lookup(lookup));
    }

    /// The endpoint's checks end so from now on.
    fn check(&self, last: u8, outcome: Outcome) {
        self.0
            .lock()
            .unwrap()
            .checks
            .insert(ip(last), Checked::Outcome(outcome));
    }

    fn checked(&self, last: u8) -> Vec<Instant> {
        let script = self.0.lock().unwrap();
        script
            .checked
            .iter()
            .filter(|(_, at)| *at == ip(last))
            .map(|(when, _)| *when)
            .collect()
    }

    fn looked_up(&self, host: &str) -> Vec<Instant> {
        let script = self.0.lock().unwrap();
        script
            .looked_up
            .iter()
            .filter(|(_, name)| name == host)
            .map(|(when, _)| *when)
            .collect()
    }
}

fn ip(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8081))
}

fn refused() -> Outcome {
    Outcome::Connection("refused".into())
}

/// A control plane that runs.
struct Running {
    network: Scripted,
    handle: ControlHandle,
    reader: Reader,
    hints: Arc<Hints>,
    task: JoinHandle<()>,
}

impl Running {
    /// With one cluster `echo` of the name `echo.`, checked every 10 s.
    fn start(network: Scripted) -> Self {
        Self::with(network, &yaml(&[("echo", CHECKED)]), None)
    }

    fn with(network: Scripted, yaml: &str, source: Option<&Path>) -> Self {
        let config = Config::parse(yaml, Path::new("test.yaml")).unwrap().config;
        let (commands, orders) = mpsc::unbounded_channel();
        let (first_answered, first_answers) = watch::channel(false);
        let hints = Arc::new(Hints::default());
        let wires = Wires {
            hints: hints.clone(),
            orders,
            first_answered,
            network: Box::new(network.clone()),
        };
        let certificate = Served::read(&config.certificate_chain, &config.private_key).unwrap();
        let source = source.map(Path::to_owned);
        let (core, reader, status) = Core::new(config, source, certificate, wires);
        let handle = ControlHandle {
            commands,
            first_answers,
            status,
        };
        Self {
            network,
            handle,
            reader,
            hints,
            task: tokio::spawn(core.run()),
        }
    }

    /// The first snapshot whose cluster 0 is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Cluster) -> bool) -> Arc<Snapshot> {
        timeout(3600 * SECOND, async {
            loop {
                let snapshot = self.reader.load();
                if snapshot
                    .clusters
                    .first()
                    .is_some_and(|cluster| wanted(cluster))
                {
                    return snapshot;
                }
                assert!(self.reader.changed().await, "the control plane has ended");
            }
        })
        .await
        .expect("the snapshot never came to be so")
    }

    async fn until_eligible(&mut self, last: &[u8]) -> Arc<Snapshot> {
        self.until(|cluster| eligible(cluster) == last).await
    }

    fn report(&self) -> Arc<Report> {
        self.handle.status().report()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn eligible(cluster: &Cluster) -> Vec<u8> {
    cluster
        .eligible
        .iter()
        .map(|endpoint| last(endpoint.shared.address))
        .collect()
}

fn last(address: SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    }
}

const CHECKED: &str = "health_check: { service: api.Echo, timeout: 1s, interval: 10s, \
                       unhealthy_threshold: 2, healthy_threshold: 2 }";
const UNCHECKED: &str = "";

/// A configuration with these clusters and a route to each.
fn yaml(clusters: &[(&str, &str)]) -> String {
    let routes: String = clusters
        .iter()
        .map(|(name, _)| format!("  - {{ prefix: /api.{name}/, cluster: {name} }}\n"))
        .collect();
    let clusters: String = clusters
        .iter()
        .map(|(name, more)| {
            format!(
                "  - name: {name}\n    endpoints: [\"{name}.:8081\"]\n    dns_refresh_rate: 5s\n    {more}\n"
            )
        })
        .collect();
    format!(
        "listener:\n  address: 127.0.0.1:8443\n  tls: {{ certificate_chain: /no/such/tls.crt, \
         private_key: /no/such/tls.key }}\nroutes:\n{routes}clusters:\n{clusters}"
    )
}

/// `period` ± 10 %.
fn about(measured: Duration, period: Duration) -> bool {
    measured >= period.mul_f64(0.89) && measured <= period.mul_f64(1.11)
}

#[tokio::test(start_paused = true)]
async fn endpoints_serve_after_their_first_pass() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network
        .0
        .lock()
        .unwrap()
        .checks
        .insert(ip(2), Checked::Never);
    let mut running = Running::start(network);
    let snapshot = running.until_eligible(&[1]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
    assert_eq!(snapshot.clusters[0].endpoints[1].health, Health::Unknown);
}

#[tokio::test(start_paused = true)]
async fn checks_start_at_once_and_come_at_the_interval() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let begin = Instant::now();
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    sleep(100 * SECOND).await;
    let checked = network.checked(1);
    assert_eq!(checked[0], begin);
    assert!(
        checked
            .windows(2)
            .all(|pair| about(pair[1] - pair[0], 10 * SECOND)),
        "{checked:?}"
    );
    assert!(
        checked.windows(3).any(|w| w[1] - w[0] != w[2] - w[1]),
        "they don't come in step"
    );
}

#[tokio::test(start_paused = true)]
async fn who_stays_in_the_answer_keeps_its_health() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check(2, Outcome::NotServing("on purpose".into()));
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    sleep(SECOND).await;
    let before = running.reader.load().clusters[0].endpoints.clone();
    network
        .0
        .lock()
        .unwrap()
        .checks
        .insert(ip(3), Checked::Never);
    network.name("echo.", &[1, 2, 3]);
    let checks = [1, 2].map(|last| network.checked(last).len());
    let snapshot = running.until(|cluster| cluster.endpoints.len() == 3).await;
    for (before, after) in before.iter().zip(&snapshot.clusters[0].endpoints) {
        assert_eq!(before.shared.id, after.shared.id);
        assert_eq!(before.health, after.health);
        assert_ne!(after.health, Health::Unknown);
    }
    assert_eq!(snapshot.clusters[0].endpoints[2].health, Health::Unknown);
    // The answer alone has no one checked anew: only the interval does.
    let again = [1, 2].map(|last| network.checked(last).len());
    assert!(again.iter().zip(checks).all(|(now, then)| now - then <= 1));
}

#[tokio::test(start_paused = true)]
async fn the_log_and_the_page_say_that_there_is_no_health_service() {
    let log = Log::default();
    let _guard = log.capture();
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    let text = "Unimplemented: ".into();
    network.check(1, Outcome::Status { code: 12, text });
    let snapshot = running.until_eligible(&[]).await;
    let endpoint = &snapshot.clusters[0].endpoints[0];
    let Health::Unhealthy(reason) = &endpoint.health else {
        panic!("{:?}", endpoint.health)
    };
    assert!(reason.contains("UNIMPLEMENTED"), "{reason}");
    let lines = log.lines("has no health service");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&*endpoint.shared.label), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_endpoint_is_ejected_after_two_checks_a_second_apart() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    network.check(1, refused());
    let snapshot = running.until_eligible(&[2]).await;
    let ejected = Instant::now();
    let endpoint = &snapshot.clusters[0].endpoints[0];
    assert!(matches!(endpoint.health, Health::Unhealthy(_)) && !endpoint.close_connections);
    let checked = network.checked(1);
    assert_eq!(checked.last(), Some(&ejected));
    assert!(about(ejected - checked[checked.len() - 2], SECOND));

    network.check(1, Outcome::Serving);
    running.until_eligible(&[1, 2]).await;
    assert_eq!(
        network.checked(1).len(),
        checked.len() + 2,
        "two passes in a row"
    );
    let report = running.report();
    assert_eq!(report.clusters[0].checks[&CheckResult::Connection], 2);
    assert_eq!(
        report.clusters[0].endpoints[0]
            .last_check
            .as_ref()
            .unwrap()
            .detail,
        "SERVING"
    );
}

#[tokio::test(start_paused = true)]
async fn ejected_by_time_outs_is_told_to_close_its_connections() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    network.check(1, Outcome::TimedOut(SECOND));
    let snapshot = running.until_eligible(&[]).await;
    assert!(snapshot.clusters[0].endpoints[0].close_connections);
    network.check(1, Outcome::Serving);
    let snapshot = running
        .until(|cluster| !cluster.endpoints[0].close_connections)
        .await;
    assert!(
        snapshot.clusters[0].eligible.is_empty(),
        "one pass isn't enough to come back"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rollout_never_leaves_the_cluster_without_an_endpoint() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    let old = running.until_eligible(&[1]).await;
    network.check(2, refused());
    network.name("echo.", &[2]);
    let snapshot = running.until(|cluster| cluster.endpoints.len() == 2).await;
    assert_eq!(
        eligible(&snapshot.clusters[0]),
        [1],
        "the old one serves until the new one does"
    );
    assert_eq!(
        snapshot.clusters[0].endpoints[0].shared.id, old.clusters[0].endpoints[0].shared.id,
        "and is still the same"
    );
    assert_eq!(
        running.report().clusters[0].endpoints[0].standing,
        Standing::Leaving
    );
    network.check(2, Outcome::Serving);
    let snapshot = running.until_eligible(&[2]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hint_asks_for_a_check_and_a_look_up_now_at_most_once_a_second() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    let snapshot = running.until_eligible(&[1]).await;
    sleep(2 * SECOND).await;
    let (checks, look_ups) = (network.checked(1).len(), network.looked_up("echo.").len());
    let endpoint = snapshot.clusters[0].endpoints[0].shared.clone();
    let begin = Instant::now();
    while begin.elapsed() < SECOND / 2 {
        running.hints.suspect(&endpoint);
        sleep(SECOND / 100).await;
    }
    assert_eq!(network.checked(1).len(), checks + 1);
    assert_eq!(network.looked_up("echo.").len(), look_ups + 1);
    assert!(*network.checked(1).last().unwrap() - begin < SECOND / 50);
    sleep(SECOND).await;
    assert_eq!(
        network.checked(1).len(),
        checks + 2,
        "the storm went on after the first look"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_check_or_a_look_up_is_counted_and_comes_again_within_a_second() {
    let network = Scripted::default();
    network
        .0
        .lock()
        .unwrap()
        .names
        .insert("echo.".into(), Answered::Panic);
    let mut running = Running::start(network.clone());
    let begin = Instant::now();
    sleep(SECOND / 2).await;
    assert_eq!(running.report().panics, 1);
    network
        .0
        .lock()
        .unwrap()
        .checks
        .insert(ip(1), Checked::Panic);
    network.name("echo.", &[1]);
    running.until(|cluster| cluster.endpoints.len() == 1).await;
    assert!(
        begin.elapsed() <= SECOND + SECOND / 5,
        "{:?}",
        begin.elapsed()
    );
    sleep(SECOND / 2).await;
    assert_eq!(running.report().panics, 2);
    network.check(1, Outcome::Serving);
    running.until_eligible(&[1]).await;
    let checked = network.checked(1);
    assert!(
        checked[1] - checked[0] <= SECOND + SECOND / 5,
        "{checked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_panics_before_it_runs_or_long_after_the_start_is_back_in_a_second_too() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    // The look-ups are 5 s apart, the checks 10.
    for panics in [
        (Answered::PanicAtOnce, Checked::PanicAtOnce),
        (Answered::Panic, Checked::Panic),
    ] {
        let before = running.report().panics;
        {
            let mut script = network.0.lock().unwrap();
            script.names.insert("echo.".into(), panics.0);
            script.checks.insert(ip(1), panics.1);
        }
        // A check may be a tenth late, and so may the next after its panic.
        sleep(14 * SECOND).await;
        assert!(running.report().panics >= before + 2);
        let (looked_up, checked) = (network.looked_up("echo."), network.checked(1));
        for times in [looked_up, checked] {
            let last = &times[times.len() - 2..];
            assert!(last[1] - last[0] <= SECOND + SECOND / 5, "{last:?}");
        }
        // Nothing else has noticed: the last answer holds, and the other endpoint's checks.
        let snapshot = running.reader.load();
        assert_eq!(eligible(&snapshot.clusters[0]), [1, 2]);
        network.name("echo.", &[1, 2]);
        network.check(1, Outcome::Serving);
        sleep(12 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn first_answers_are_waited_for_but_not_more_than_five_seconds() {
    let begin = Instant::now();
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let running = Running::start(network);
    running.handle.first_answers().await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
    drop(running);

    // Never answered: the name isn't in the script.
    let running = Running::start(Scripted::default());
    running.handle.first_answers().await;
    assert_eq!(begin.elapsed(), 5 * SECOND);
    drop(running);

    // A failure is no answer.
    let network = Scripted::default();
    network.look_up_says(
        "echo.",
        Lookup::failed(LookupResult::ServFail, "on purpose".into()),
    );
    let begin = Instant::now();
    let running = Running::start(network.clone());
    sleep(SECOND / 2).await;
    network.name("echo.", &[1]);
    running.handle.first_answers().await;
    assert!(
        begin.elapsed() <= SECOND + SECOND / 5,
        "asked again soon: {:?}",
        begin.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn warmed_up_is_after_all_first_checks_or_five_seconds_and_for_good() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check(2, refused());
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    sleep(SECOND / 10).await;
    assert!(
        running.report().readiness.warmed_up,
        "a failed check has ended, too"
    );
    network
        .0
        .lock()
        .unwrap()
        .checks
        .insert(ip(3), Checked::Never);
    network.name("echo.", &[1, 2, 3]);
    running.until(|cluster| cluster.endpoints.len() == 3).await;
    assert!(
        running.report().readiness.warmed_up,
        "a new endpoint doesn't make it unready"
    );
    drop(running);

    let network = Scripted::default();
    network.name("echo.", &[1]);
    network
        .0
        .lock()
        .unwrap()
        .checks
        .insert(ip(1), Checked::Never);
    let running = Running::start(network);
    sleep(5 * SECOND - SECOND / 10).await;
    assert!(!running.report().readiness.warmed_up);
    sleep(SECOND / 5).await;
    assert!(running.report().readiness.warmed_up);
}

#[tokio::test(start_paused = true)]
async fn told_to_fail_it_says_so_everywhere_at_once() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network);
    running.until_eligible(&[1]).await;
    for serving in [false, true] {
        running.handle.set_serving(serving).await;
        assert_eq!(running.reader.load().serving, serving);
        assert_eq!(running.report().readiness.serving, serving);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_changes_nothing_publishes_nothing() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network);
    let generation = running.until_eligible(&[1, 2]).await.generation;
    sleep(3600 * SECOND).await;
    assert_eq!(running.reader.load().generation, generation);
}

#[tokio::test(start_paused = true)]
async fn static_endpoints_are_there_from_the_first_snapshot() {
    let text = yaml(&[("echo", "discovery: static")]).replace("echo.:8081", "10.0.0.7:8081");
    let mut running = Running::with(Scripted::default(), &text, None);
    let first = running.reader.load();
    assert_eq!(
        (first.generation, eligible(&first.clusters[0])),
        (1, vec![7])
    );
    running.handle.first_answers().await;
    assert!(running.network.0.lock().unwrap().looked_up.is_empty());
}
