//! A control plane that runs over a network which answers as a test says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    super::{Core, REPORT_PACE, Wires},
    SECOND,
};
use crate::{
    control_plane::{
        ControlHandle,
        certs::Served,
        config::{Config, HealthCheckSpec, LookupFamily, Target},
        discovery::Lookup,
        health::Outcome,
        network::{Job, Network},
        status::Report,
        supervise::Panics,
    },
    snapshot::{Cluster, EndpointShared, Hints, Reader, Snapshot},
};

/// What the network does, and what was asked of it.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// By host; a host that isn't there isn't answered.
    pub(super) names: HashMap<String, Answered>,
    /// By address; an address that isn't there passes.
    pub(super) checks: HashMap<SocketAddr, Checked>,
    pub(super) looked_up: Vec<(Instant, String)>,
    /// Whether the last look-up was told that the addresses before were IPv6.
    pub(super) at_six: bool,
    pub(super) checked: Vec<(Instant, SocketAddr)>,
}

#[derive(Clone, Debug)]
pub(super) enum Answered {
    Lookup(Lookup),
    /// After so long.
    Later(Duration, Lookup),
    Panic,
    /// Before there is a job.
    PanicAtOnce,
}

#[derive(Clone, Debug)]
pub(super) enum Checked {
    Outcome(Outcome),
    /// After so long.
    Later(Duration, Outcome),
    Never,
    Panic,
    /// Before there is a job.
    PanicAtOnce,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Scripted(pub(super) Arc<Mutex<Script>>);

impl Network for Scripted {
    fn look_up(&mut self, target: &Target, _: LookupFamily, at_six: bool) -> Job<Lookup> {
        let mut script = self.0.lock().unwrap();
        script.at_six = at_six;
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
                Some(Checked::Later(after, outcome)) => {
                    sleep(after).await;
                    outcome
                }
                Some(Checked::Panic | Checked::PanicAtOnce) => panic!("on purpose"),
                Some(Checked::Never) => std::future::pending().await,
            }
        })
    }

    fn retain(&mut self, _: &dyn Fn(u64) -> bool) {}
}

impl Scripted {
    /// `host` has these addresses from now on.
    pub(super) fn name(&self, host: &str, last: &[u8]) {
        let ips = last.iter().map(|last| ip(*last).ip());
        self.look_up_says(host, Lookup::found(ips, 8081));
    }

    pub(super) fn look_up_says(&self, host: &str, lookup: Lookup) {
        self.look_up_does(host, Answered::Lookup(lookup));
    }

    /// The endpoint's checks end so from now on.
    pub(super) fn check(&self, last: u8, outcome: Outcome) {
        self.check_does(last, Checked::Outcome(outcome));
    }

    pub(super) fn check_does(&self, last: u8, what: Checked) {
        self.0.lock().unwrap().checks.insert(ip(last), what);
    }

    pub(super) fn look_up_does(&self, host: &str, what: Answered) {
        self.0.lock().unwrap().names.insert(host.into(), what);
    }

    pub(super) fn checked(&self, last: u8) -> Vec<Instant> {
        let script = self.0.lock().unwrap();
        script
            .checked
            .iter()
            .filter(|(_, at)| *at == ip(last))
            .map(|(when, _)| *when)
            .collect()
    }

    pub(super) fn looked_up(&self, host: &str) -> Vec<Instant> {
        let script = self.0.lock().unwrap();
        script
            .looked_up
            .iter()
            .filter(|(_, name)| name == host)
            .map(|(when, _)| *when)
            .collect()
    }
}

pub(super) fn ip(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8081))
}

pub(super) fn refused() -> Outcome {
    Outcome::Connection("refused".into())
}

/// A control plane that runs.
pub(super) struct Running {
    pub(super) network: Scripted,
    pub(super) handle: ControlHandle,
    pub(super) reader: Reader,
    pub(super) hints: Arc<Hints>,
    pub(super) task: JoinHandle<()>,
}

impl Running {
    /// With one cluster `echo` of the name `echo.`, checked every 10 s.
    pub(super) fn start(network: Scripted) -> Self {
        Self::with(network, &yaml(&[("echo", CHECKED)]), None)
    }

    pub(super) fn with(network: Scripted, yaml: &str, source: Option<&Path>) -> Self {
        let (core, handle, reader) = core(&network, yaml, source);
        Self {
            network,
            handle,
            reader,
            hints: core.hints.clone(),
            task: tokio::spawn(core.run()),
        }
    }

    /// The first snapshot whose cluster 0 is as wanted.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Cluster) -> bool) -> Arc<Snapshot> {
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

    pub(super) async fn until_eligible(&mut self, last: &[u8]) -> Arc<Snapshot> {
        self.until(|cluster| eligible(cluster) == last).await
    }

    pub(super) fn report(&self) -> Arc<Report> {
        self.handle.status().report()
    }

    /// The report with all that has happened by now: one that was made a moment ago may keep the next one back.
    pub(super) async fn next_report(&self) -> Arc<Report> {
        pass(2 * REPORT_PACE).await;
        self.report()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A control plane whose loop doesn't run yet.
pub(super) fn core(
    network: &Scripted,
    yaml: &str,
    source: Option<&Path>,
) -> (Core, ControlHandle, Reader) {
    let config = Config::parse(yaml, Path::new("test.yaml")).unwrap().config;
    let (commands, orders) = mpsc::unbounded_channel();
    let (first_answered, first_answers) = watch::channel(false);
    let wires = Wires {
        hints: Arc::default(),
        orders,
        first_answered,
        network: Box::new(network.clone()),
        panics: Panics::default(),
    };
    let certificate = Served::read(&config.certificate_chain, &config.private_key).unwrap();
    let source = source.map(Path::to_owned);
    let (core, reader, status) = Core::new(config, source, certificate, wires);
    let handle = ControlHandle {
        commands,
        first_answers,
        status,
    };
    (core, handle, reader)
}

pub(super) fn eligible(cluster: &Cluster) -> Vec<u8> {
    cluster
        .eligible
        .iter()
        .map(|endpoint| last(endpoint.shared.address))
        .collect()
}

pub(super) fn last(address: SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    }
}

pub(super) const CHECKED: &str = "health_check: { service: api.Echo, timeout: 1s, interval: 10s, \
                       unhealthy_threshold: 2, healthy_threshold: 2 }";
pub(super) const UNCHECKED: &str = "";

/// A configuration with these clusters and a route to each.
pub(super) fn yaml(clusters: &[(&str, &str)]) -> String {
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

/// Lets so much of the paused clock pass: what comes due meanwhile comes in its order, and nothing waits for it really.
pub(super) async fn pass(time: Duration) {
    sleep(time).await;
}

/// `period` ± 10 %.
pub(super) fn about(measured: Duration, period: Duration) -> bool {
    measured >= period.mul_f64(0.89) && measured <= period.mul_f64(1.11)
}
