//! The objects: their fields exist, and what names something names something that is there.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PodSpec, Probe, SecurityContext, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::foreign::{DestinationRule, Foreign, Gateway, GrpcRoute, PodMonitoring};
use super::{APPS, FOLDERS, Rendered, documents, read, sample, typed};

#[test]
fn every_field_of_every_object_exists() {
    for folder in FOLDERS {
        for object in &Rendered::new(folder).objects {
            match object["kind"].as_str().unwrap() {
                "ConfigMap" => drop(typed::<ConfigMap>(object)),
                "Deployment" => drop(typed::<Deployment>(object)),
                "HorizontalPodAutoscaler" => drop(typed::<HorizontalPodAutoscaler>(object)),
                "NetworkPolicy" => drop(typed::<NetworkPolicy>(object)),
                "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(object)),
                "Service" => drop(typed::<Service>(object)),
                "ServiceAccount" => drop(typed::<ServiceAccount>(object)),
                // Of others' definitions.
                "PodMonitoring" => drop(typed::<Foreign<PodMonitoring>>(object)),
                "Gateway" => drop(typed::<Foreign<Gateway>>(object)),
                "GRPCRoute" => drop(typed::<Foreign<GrpcRoute>>(object)),
                "DestinationRule" => drop(typed::<Foreign<DestinationRule>>(object)),
                kind => panic!("{folder}: no type to check a {kind} with"),
            }
        }
    }
}

#[test]
fn the_tutorial_finds_what_it_names() {
    for app in APPS {
        let rendered = Rendered::base(app);
        let deployment: Deployment = rendered.one();
        assert_eq!(deployment.metadata.name.as_deref(), Some(app));
        assert_eq!(deployment.spec.replicas, Some(2), "{app}");
        // No namespace of its own: kubectl's and skaffold's choice holds.
        assert!(
            rendered
                .objects
                .iter()
                .all(|object| object["metadata"]["namespace"].is_null())
        );
    }
    for (app, port, name) in [
        ("echo-grpc", 8081, "http2-echo"),
        ("reverse-grpc", 8082, "http2-reverse"),
    ] {
        let service = Rendered::base(app).one::<Service>().spec.unwrap();
        assert_eq!(service.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(
            service.cluster_ip.as_deref(),
            Some("None"),
            "{app} is headless"
        );
        let ports = service.ports.unwrap();
        assert_eq!(ports.len(), 1);
        assert_eq!(
            (ports[0].port, ports[0].name.as_deref()),
            (port, Some(name))
        );
        assert_eq!(ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
        let pod = pod(&Rendered::base(app).one());
        assert_eq!(
            environment(container(&pod), "PORT"),
            Some(port.to_string().as_str())
        );
    }

    let service: Service = Rendered::base("edge-proxy").one();
    let annotations = service.metadata.annotations.unwrap();
    assert_eq!(annotations["cloud.google.com/l4-rbs"], "enabled");
    assert_eq!(
        annotations["networking.gke.io/weighted-load-balancing"],
        "pods-per-node"
    );
    let service = service.spec.unwrap();
    assert_eq!(service.type_.as_deref(), Some("LoadBalancer"));
    assert_eq!(service.external_traffic_policy.as_deref(), Some("Local"));
    let ports = service.ports.unwrap();
    assert_eq!((ports.len(), ports[0].port), (1, 443));
    assert_eq!(
        ports[0].target_port,
        Some(IntOrString::String("https".to_owned()))
    );
}

#[test]
fn selectors_find_their_own_pods() {
    for (folder, rendered, deployment) in deployments() {
        let spec = &deployment.spec;
        let labels = spec
            .template
            .metadata
            .as_ref()
            .unwrap()
            .labels
            .as_ref()
            .unwrap();
        let expected = BTreeMap::from([("app".to_owned(), labels["app"].clone())]);
        let of = |selector: &LabelSelector| {
            assert!(selector.match_expressions.is_none(), "{folder}");
            selector.match_labels.clone().unwrap()
        };
        assert_eq!(of(&spec.selector), expected, "{folder}");
        let service: Service = rendered.one();
        assert_eq!(
            service.spec.unwrap().selector.unwrap(),
            expected,
            "{folder}"
        );
        let budget: PodDisruptionBudget = rendered.one();
        let budget = budget.spec.unwrap();
        assert_eq!(of(&budget.selector.unwrap()), expected, "{folder}");
        assert_eq!(
            budget.max_unavailable,
            Some(IntOrString::Int(1)),
            "{folder}"
        );

        let spread = pod(&deployment).topology_spread_constraints.unwrap();
        let over: Vec<_> = spread
            .iter()
            .map(|constraint| constraint.topology_key.as_str())
            .collect();
        assert_eq!(
            over,
            ["kubernetes.io/hostname", "topology.kubernetes.io/zone"],
            "{folder}"
        );
        for constraint in spread {
            assert_eq!(
                of(&constraint.label_selector.unwrap()),
                expected,
                "{folder}"
            );
        }
    }
}

#[test]
fn ports_have_one_number_and_one_name() {
    for (folder, rendered, deployment) in deployments() {
        let pod = pod(&deployment);
        let container = container(&pod);
        let ports: BTreeMap<_, _> = container
            .ports
            .iter()
            .flatten()
            .map(|port| (port.name.clone().unwrap(), port.container_port))
            .collect();
        for port in rendered.one::<Service>().spec.unwrap().ports.unwrap() {
            let Some(IntOrString::String(target)) = port.target_port else {
                panic!("{folder}: a Service's targetPort is a name");
            };
            assert!(
                ports.contains_key(&target),
                "{folder}: no port is called {target}"
            );
        }

        let numbers: BTreeSet<_> = ports.values().copied().collect();
        for (kind, probe) in [
            ("startup", &container.startup_probe),
            ("readiness", &container.readiness_probe),
            ("liveness", &container.liveness_probe),
        ] {
            let probe = probe
                .as_ref()
                .unwrap_or_else(|| panic!("{folder}: no {kind} probe"));
            let port = match probed(probe) {
                IntOrString::Int(port) => port,
                IntOrString::String(name) => ports[&name],
            };
            assert!(
                numbers.contains(&port),
                "{folder}: the {kind} probe asks at port {port}"
            );
        }

        if folder.ends_with("edge-proxy") {
            let config = sample();
            assert_eq!(i32::from(config.listener_address.port()), ports["https"]);
            assert_eq!(i32::from(config.probes.port()), ports["probes"]);
            assert!(config.listener_address.ip().is_unspecified());
            assert!(
                config.probes.ip().is_unspecified(),
                "a kubelet asks at the pod's address"
            );
            assert!(
                config.admin.ip().is_loopback(),
                "the admin pages are nobody else's"
            );
            assert_eq!(config.admin.port(), 8090);
        } else {
            let port = environment(container, "PORT").unwrap().parse().unwrap();
            assert_eq!(numbers, BTreeSet::from([port]), "{folder}");
            // Their limit of memory is measured with it: see grpc-service's budget.
            let delay = environment(container, "MIMALLOC_PURGE_DELAY");
            assert_eq!(delay, Some("0"), "{folder}");
        }
    }
}

#[test]
fn probes_ask_what_a_drain_answers_rightly() {
    for app in ["echo-grpc", "reverse-grpc"] {
        let pod = pod(&Rendered::base(app).one());
        let container = container(&pod);
        let service = |probe: &Option<Probe>| {
            probe
                .as_ref()
                .unwrap()
                .grpc
                .as_ref()
                .unwrap()
                .service
                .clone()
                .unwrap_or_default()
        };
        assert_eq!(service(&container.readiness_probe), "", "{app}");
        assert_eq!(
            service(&container.liveness_probe),
            grpc_service::LIVENESS,
            "{app}"
        );
    }
    let pod = pod(&Rendered::base("edge-proxy").one());
    let container = container(&pod);
    let path = |probe: &Option<Probe>| {
        probe
            .as_ref()
            .unwrap()
            .http_get
            .as_ref()
            .unwrap()
            .path
            .clone()
            .unwrap()
    };
    assert_eq!(path(&container.readiness_probe), "/readyz");
    assert_eq!(path(&container.liveness_probe), "/livez");
}

#[test]
fn one_security_context_everywhere() {
    for (folder, rendered, deployment) in deployments() {
        let pod = pod(&deployment);
        let mut context = serde_json::to_value(pod.security_context.as_ref().unwrap()).unwrap();
        let group = context.as_object_mut().unwrap().remove("fsGroup");
        // Only the proxy reads a file that is its group's.
        assert_eq!(group.is_some(), folder.ends_with("edge-proxy"), "{folder}");
        assert!(group.is_none_or(|group| group == 65532), "{folder}");
        let expected = json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(context, expected, "{folder}");

        let container = container(&pod);
        let expected: SecurityContext = serde_json::from_value(json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        }))
        .unwrap();
        assert_eq!(
            container.security_context.as_ref(),
            Some(&expected),
            "{folder}"
        );

        assert_eq!(pod.automount_service_account_token, Some(false), "{folder}");
        assert_eq!(pod.enable_service_links, Some(false), "{folder}");
        let account: ServiceAccount = rendered.one();
        assert_eq!(pod.service_account_name, account.metadata.name, "{folder}");
        assert_eq!(
            account.automount_service_account_token,
            Some(false),
            "{folder}"
        );
    }
}

#[test]
fn memory_is_limited_and_cpu_is_not() {
    for (folder, _, deployment) in deployments() {
        let pod = pod(&deployment);
        let resources = container(&pod).resources.clone().unwrap();
        let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
        assert!(
            !limits.contains_key("cpu"),
            "{folder}: a limit of CPU makes pauses"
        );
        for (resource, limit) in &limits {
            assert!(
                amount(&requests[resource]) <= amount(limit),
                "{folder}: {resource}"
            );
        }
        assert!(
            amount(&limits["memory"]) >= 128.0 * 1024.0 * 1024.0,
            "{folder}"
        );
        assert!(amount(&requests["cpu"]) > 0.0, "{folder}");
    }
}

#[test]
fn no_log_has_a_pod_evicted() {
    for (folder, _, deployment) in deployments() {
        let pod = pod(&deployment);
        let resources = container(&pod).resources.clone().unwrap();
        assert!(
            !resources.limits.unwrap().contains_key("ephemeral-storage"),
            "{folder}: its log counts, clients decide how much that is, and an eviction is no drain"
        );
        assert!(
            amount(&resources.requests.unwrap()["ephemeral-storage"]) > 0.0,
            "{folder}: nodes short of space evict first what asked for none"
        );
        // There is nothing else that would need a limit: the root is read-only (`one_security_context_everywhere`).
        let volumes = pod.volumes.unwrap_or_default();
        assert!(
            volumes.iter().all(|volume| volume.empty_dir.is_none()),
            "{folder}: a volume that counts as its pod's storage"
        );
    }
}

#[test]
fn the_autoscaler_acts_before_the_workers_are_full() {
    let full = Rendered::new("deploy/overlays/full/edge-proxy");
    let scaler: HorizontalPodAutoscaler = full.one();
    let metrics = scaler.spec.metrics.unwrap();
    let resource = metrics[0].container_resource.clone().unwrap();
    let target = amount(&resource.target.average_value.unwrap());
    assert!(
        target > 0.0 && target < sample().workers as f64,
        "{target} cores per pod"
    );
    // Machines with shared cores sustain one at most, and then it would never act.
    let told = read("README.md").contains("`--machine-type e2-standard-2` or a larger one");
    assert!(target < 1.0 || told, "{target} cores per pod");
}

#[test]
fn the_services_differ_in_names_and_ports_only() {
    let as_reverse = |text: String| {
        text.replace("http2-echo", "http2-reverse")
            .replace("echo-grpc", "reverse-grpc")
            .replace("8081", "8082")
    };
    for file in [
        "deployment",
        "kustomization",
        "pdb",
        "service",
        "serviceaccount",
    ] {
        let echo = read(&format!("deploy/echo-grpc/{file}.yaml"));
        assert_eq!(
            as_reverse(echo),
            read(&format!("deploy/reverse-grpc/{file}.yaml")),
            "{file}"
        );
    }
}

#[test]
fn variants_change_what_they_say() {
    let internal: Service = Rendered::new("deploy/overlays/internal/edge-proxy").one();
    let annotations = internal.metadata.annotations.unwrap();
    let expected = (
        "networking.gke.io/load-balancer-type".to_owned(),
        "Internal".to_owned(),
    );
    assert_eq!(annotations, BTreeMap::from([expected]));

    let local: Service = Rendered::new("deploy/overlays/local/edge-proxy").one();
    assert!(local.metadata.annotations.is_none());

    let full = Rendered::new("deploy/overlays/full/edge-proxy");
    let deployment: Deployment = full.one();
    assert!(
        deployment.spec.replicas.is_none(),
        "the autoscaler's number"
    );
    let scaler = full.one::<HorizontalPodAutoscaler>().spec;
    assert_eq!(scaler.scale_target_ref.name, "edge-proxy");
    assert_eq!(scaler.min_replicas, Some(2));
}

/// No mesh runs where these tests do: they hold what was read in Istio's sources and documents.
#[test]
fn a_mesh_can_balance_what_the_proxy_sends() {
    for app in ["echo-grpc", "reverse-grpc"] {
        let folder = format!("deploy/overlays/istio/{app}");
        let service: Service = Rendered::new(&folder).one();
        let spec = service.spec.unwrap();
        assert!(
            spec.cluster_ip.is_none(),
            "{app}: the mesh balances over an address"
        );
        // Of a port that names its protocol a sidecar goes by :authority, which is the client's.
        let port = &spec.ports.unwrap()[0];
        let name = port.name.as_deref().unwrap();
        assert_eq!(port.app_protocol, None, "{app}");
        assert!(
            !ISTIO_PROTOCOLS.contains(&name.split('-').next().unwrap()),
            "{app}: {name}"
        );
        let text = read(&format!("{folder}/kustomization.yaml"));
        assert!(
            text.contains(&format!("kubectl delete service {app}")),
            "{app}"
        );
    }
    // A gateway, unlike a sidecar, doesn't look: it must be told.
    let gateway = Rendered::new("deploy/overlays/istio/gateway").objects;
    let of_kind = |kind| gateway.iter().filter(move |object| object["kind"] == kind);
    let told: BTreeSet<String> = of_kind("DestinationRule")
        .map(|object| typed::<Foreign<DestinationRule>>(object).spec)
        .filter(DestinationRule::uses_client_protocol)
        .map(|rule| rule.host)
        .collect();
    let called: BTreeSet<String> = of_kind("GRPCRoute")
        .flat_map(|object| typed::<Foreign<GrpcRoute>>(object).spec.rules)
        .flat_map(|rule| rule.backend_refs)
        .map(|backend| backend.name)
        .collect();
    assert_eq!(told, called);
}

/// What the first word of a port's name says to Istio, if it is one of these.
const ISTIO_PROTOCOLS: [&str; 10] = [
    "grpc", "http", "http2", "https", "mongo", "mysql", "redis", "tcp", "tls", "udp",
];

#[test]
fn who_calls_and_who_is_called_has_a_sidecar() {
    for app in APPS {
        let deployment: Deployment = Rendered::new(&format!("deploy/overlays/istio/{app}")).one();
        let metadata = deployment.spec.template.metadata.clone().unwrap();
        let labels = metadata.labels.unwrap();
        assert_eq!(labels["sidecar.istio.io/inject"], "true", "{app}");
        let annotations = metadata.annotations.unwrap();
        let excluded = annotations.get("traffic.sidecar.istio.io/excludeInboundPorts");
        let probes = annotations.get("sidecar.istio.io/rewriteAppHTTPProbers");
        if app == "edge-proxy" {
            // Clients' own addresses, and probes of the proxy, not of what answers for it.
            let excluded: BTreeSet<i32> = excluded
                .unwrap()
                .split(',')
                .map(|port| port.parse().unwrap())
                .collect();
            let pod = pod(&deployment);
            let ports = container(&pod).ports.iter().flatten();
            assert_eq!(excluded, ports.map(|port| port.container_port).collect());
            assert_eq!(probes.unwrap(), "false");
        } else {
            // With mutual TLS only sidecars may call, and kubelets have none.
            assert_eq!((excluded, probes), (None, None), "{app}");
        }
    }
}

#[test]
fn the_metrics_that_are_collected_are_there() {
    let text = read("deploy/components/gmp/podmonitoring.yaml");
    let monitoring: Foreign<PodMonitoring> = typed(&documents(&text)[0]);
    let pod = pod(&Rendered::base("edge-proxy").one());
    let ports = container(&pod).ports.clone().unwrap();
    for endpoint in monitoring.spec.endpoints {
        assert_eq!(endpoint.path, "/metrics");
        assert!(
            ports
                .iter()
                .any(|port| port.name.as_ref() == Some(&endpoint.port))
        );
    }
}

/// The Deployments of all folders, with what stands beside them.
fn deployments() -> Vec<(&'static str, Rendered, Deployment)> {
    let with = |folder| {
        let rendered = Rendered::new(folder);
        let deployment = rendered.all::<Deployment>().pop()?;
        Some((folder, rendered, deployment))
    };
    let found: Vec<_> = FOLDERS.into_iter().filter_map(with).collect();
    assert_eq!(found.len(), FOLDERS.len() - 1, "all but the mesh's gateway");
    found
}

pub(super) fn pod(deployment: &Deployment) -> PodSpec {
    deployment.spec.template.spec.clone().unwrap()
}

pub(super) fn container(pod: &PodSpec) -> &Container {
    let [container] = &pod.containers[..] else {
        panic!("one container in a pod")
    };
    container
}

fn environment<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container
        .env
        .iter()
        .flatten()
        .find(|variable| variable.name == name)?
        .value
        .as_deref()
}

fn probed(probe: &Probe) -> IntOrString {
    match (&probe.grpc, &probe.http_get) {
        (Some(grpc), None) => IntOrString::Int(grpc.port),
        (None, Some(http)) => http.port.clone(),
        _ => panic!("{probe:?}"),
    }
}

/// A quantity in its base unit; a text that is none panics.
fn amount(Quantity(text): &Quantity) -> f64 {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        unit => panic!("{text}: {unit} is no unit of a quantity"),
    };
    number
        .parse::<f64>()
        .unwrap_or_else(|_| panic!("{text} is no quantity"))
        * factor
}
