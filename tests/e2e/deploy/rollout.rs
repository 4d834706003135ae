//! The sums by which no RPC is lost when pods come and go, from what is rendered and configured.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::manifests::{container, pod};
use super::{APPS, Rendered, sample};

#[test]
fn a_new_pod_comes_before_an_old_one_goes() {
    for app in APPS {
        let spec = Rendered::base(app).one::<Deployment>().spec;
        let update = spec.strategy.unwrap().rolling_update.unwrap();
        assert_eq!(update.max_surge, Some(IntOrString::Int(1)), "{app}");
        assert_eq!(update.max_unavailable, Some(IntOrString::Int(0)), "{app}");
    }
}

#[test]
fn a_pod_of_a_service_outlives_what_proxies_believe() {
    let stale = CLUSTER_DNS_CACHE + refresh();
    for app in ["echo-grpc", "reverse-grpc"] {
        let times = Times::of(app);
        // Known everywhere before the next old one is told to go ...
        assert!(
            times.min_ready > stale,
            "{app}: {times:?}, and a proxy may be {stale:?} behind"
        );
        // ... and when a node is drained, which doesn't wait for that, by its own patience.
        assert!(
            times.pre_stop > stale,
            "{app}: {times:?}, and a proxy may be {stale:?} behind"
        );
        let drain = grpc_service::Drain::default();
        let needed = times.pre_stop + drain.accept + drain.finish;
        assert!(
            times.grace > needed,
            "{app}: {times:?}, and {needed:?} are needed"
        );
    }
}

#[test]
fn a_proxy_outlives_what_the_load_balancer_believes() {
    let times = Times::of("edge-proxy");
    assert!(times.min_ready > LOAD_BALANCER_DETECTION, "{times:?}");
    assert!(times.pre_stop > LOAD_BALANCER_DETECTION, "{times:?}");
    let drain = sample().drain;
    let needed = times.pre_stop + drain.time + drain.deadline;
    assert!(times.grace > needed, "{times:?}, and {needed:?} are needed");
}

#[test]
fn a_sidecar_outlives_what_it_carries() {
    for app in APPS {
        let times = Times::of(app);
        let deployment: Deployment = Rendered::new(&format!("deploy/overlays/istio/{app}")).one();
        let metadata = deployment.spec.template.metadata.unwrap();
        let config = &metadata.annotations.unwrap()["proxy.istio.io/config"];
        let config: SidecarConfig = serde_norway::from_str(config).unwrap();
        let drain = config.termination_drain_duration.strip_suffix('s');
        let drain = Duration::from_secs(drain.unwrap().parse().unwrap());
        // Its time runs from the pod's end, as `preStop` does; the kubelet ends it with the grace.
        let needed = match app {
            "edge-proxy" => sample().drain.time + sample().drain.deadline,
            _ => grpc_service::Drain::default().accept + grpc_service::Drain::default().finish,
        } + times.pre_stop;
        assert!(
            drain > needed && drain <= times.grace,
            "{app}: {drain:?}, {times:?}, and {needed:?} are needed"
        );
        // Who calls at its start needs what carries it.
        assert_eq!(
            config.hold_application_until_proxy_starts,
            app == "edge-proxy",
            "{app}"
        );
    }
}

#[test]
fn a_rollout_is_given_the_time_it_takes() {
    for app in APPS {
        let spec = Rendered::base(app).one::<Deployment>().spec;
        let deadline = spec.progress_deadline_seconds.unwrap();
        assert!(deadline > 2 * spec.min_ready_seconds.unwrap_or(0), "{app}");
    }
}

/// The annotation by which a pod configures its sidecar.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SidecarConfig {
    termination_drain_duration: String,
    #[serde(default)]
    hold_application_until_proxy_starts: bool,
}

/// The times of one Deployment's pods.
#[derive(Debug)]
struct Times {
    min_ready: Duration,
    pre_stop: Duration,
    grace: Duration,
}

impl Times {
    fn of(app: &str) -> Self {
        let deployment: Deployment = Rendered::base(app).one();
        let seconds = |seconds: i64| Duration::from_secs(seconds.try_into().unwrap());
        let pod = pod(&deployment);
        let stop = container(&pod).lifecycle.clone().unwrap().pre_stop.unwrap();
        Self {
            min_ready: seconds(deployment.spec.min_ready_seconds.unwrap().into()),
            // The kubelet's own: there is no `sleep` in these images.
            pre_stop: seconds(stop.sleep.unwrap().seconds),
            grace: seconds(pod.termination_grace_period_seconds.unwrap()),
        }
    }
}

/// The longest time between two look-ups of a cluster: the configured one and its jitter.
fn refresh() -> Duration {
    sample()
        .clusters
        .iter()
        .map(|cluster| cluster.refresh)
        .max()
        .unwrap()
        .mul_f64(1.1)
}

/// How old a record may be that cluster DNS serves: its TTL, which a cache may have in full.
const CLUSTER_DNS_CACHE: Duration = Duration::from_secs(30);

/// Two failed checks of a node, 3 s apart.
const LOAD_BALANCER_DETECTION: Duration = Duration::from_secs(6);
