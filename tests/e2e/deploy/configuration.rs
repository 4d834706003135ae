//! The proxy's configuration in the cluster: how it gets there, and that what it names is there and may be reached.

use std::collections::{BTreeMap, BTreeSet};

use edge_proxy::control_plane::config::Config;
use k8s_openapi::api::core::v1::{ConfigMap, ProjectedVolumeSource, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::manifests::{container, pod};
use super::{Rendered, config, read, sample};

#[test]
fn the_proxy_gets_the_sample_configuration() {
    let rendered = Rendered::base("edge-proxy");
    let map: ConfigMap = rendered.one();
    assert_eq!(map.immutable, Some(true));
    let name = map.metadata.name.clone().unwrap();
    assert!(
        name.starts_with("edge-proxy-config-"),
        "no hash in {name}: a change would roll no pod"
    );
    let data = map.data.unwrap();
    let text = &data["edge-proxy.yaml"];
    assert_eq!(text, &read("deploy/edge-proxy/edge-proxy.yaml"));
    // What `edge-proxy check` does.
    let loaded = Config::parse(text, "edge-proxy.yaml".as_ref()).unwrap_or_else(|e| panic!("{e}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);

    let pod = pod(&rendered.one());
    let container = container(&pod);
    let volume = |name: &str| {
        pod.volumes
            .iter()
            .flatten()
            .find(|v| v.name == name)
            .unwrap()
            .clone()
    };
    let mount = |name: &str| {
        let mount = container
            .volume_mounts
            .iter()
            .flatten()
            .find(|m| m.name == name)
            .unwrap();
        assert!(
            mount.sub_path.is_none(),
            "files under a subPath are never updated"
        );
        assert_eq!(mount.read_only, Some(true));
        std::path::PathBuf::from(&mount.mount_path)
    };
    assert_eq!(volume("config").config_map.unwrap().name, name);
    let file = mount("config").join("edge-proxy.yaml");
    let expected = ["run", "--config", file.to_str().unwrap()].map(str::to_owned);
    assert_eq!(container.args.as_deref(), Some(&expected[..]));

    // The files of a Secret of type kubernetes.io/tls have these names.
    let config = loaded.config;
    assert_eq!(config.certificate_chain, mount("certs").join("tls.crt"));
    assert_eq!(config.private_key, mount("certs").join("tls.key"));
    let ProjectedVolumeSource {
        default_mode,
        sources,
        ..
    } = volume("certs").projected.unwrap();
    assert_eq!(default_mode, Some(0o440));
    let secrets: Vec<_> = sources
        .into_iter()
        .flatten()
        .map(|s| s.secret.unwrap())
        .collect();
    let names: Vec<_> = secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(
        names,
        ["envoy-certs", "edge-certs"],
        "of two that exist the later wins"
    );
    assert!(secrets.iter().all(|secret| secret.optional == Some(true)));
}

#[test]
fn every_cluster_is_a_service() {
    let overlay = "deploy/overlays/namespace/edge-proxy";
    let other = Rendered::new(overlay);
    let namespace = other.objects[0]["metadata"]["namespace"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_ne!(namespace, "default");
    assert!(
        other
            .objects
            .iter()
            .all(|object| object["metadata"]["namespace"] == *namespace)
    );
    let data = other.one::<ConfigMap>().data.unwrap();
    let expected = read("deploy/edge-proxy/edge-proxy.yaml")
        .replace(".default.svc.", &format!(".{namespace}.svc."));
    assert_eq!(
        data["edge-proxy.yaml"], expected,
        "{overlay}: the sample, but for the namespace"
    );

    let services: BTreeMap<_, _> = ["echo-grpc", "reverse-grpc"]
        .map(|app| {
            let service: Service = Rendered::base(app).one();
            let ports = service.spec.unwrap().ports.unwrap();
            (
                service.metadata.name.unwrap(),
                u16::try_from(ports[0].port).unwrap(),
            )
        })
        .into();
    for (namespace, config) in [
        ("default", sample()),
        (
            namespace.as_str(),
            config(&format!("{overlay}/edge-proxy.yaml")),
        ),
    ] {
        for cluster in config.clusters {
            let [target] = &cluster.targets[..] else {
                panic!("{cluster:?}")
            };
            let suffix = format!(".{namespace}.svc.cluster.local.");
            let service = target.host.strip_suffix(&suffix).unwrap_or_else(|| {
                panic!(
                    "{}: not a whole name of a Service in {namespace}",
                    target.host
                )
            });
            assert_eq!(services.get(service), Some(&target.port), "{}", target.host);
        }
    }
    // Whole names, and no search list tried before them.
    let options = pod(&Rendered::base("edge-proxy").one())
        .dns_config
        .unwrap()
        .options
        .unwrap();
    let ndots = options
        .iter()
        .find(|option| option.name.as_deref() == Some("ndots"))
        .unwrap();
    assert_eq!(ndots.value.as_deref(), Some("1"));
}

#[test]
fn network_policies_let_through_what_the_system_needs() {
    let full = Rendered::new("deploy/overlays/full/edge-proxy");
    let policies: Vec<NetworkPolicy> = full.all();
    let policy = |name: &str| {
        let found = policies
            .iter()
            .find(|policy| policy.metadata.name.as_deref() == Some(name));
        found.unwrap().spec.clone().unwrap()
    };
    let number = |port: Option<IntOrString>| match port {
        Some(IntOrString::Int(port)) => port,
        port => panic!("{port:?}"),
    };
    let backends: BTreeSet<_> = sample()
        .clusters
        .iter()
        .map(|cluster| i32::from(cluster.targets[0].port))
        .collect();

    let services = policy("grpc-backends");
    let accepted: BTreeSet<_> = services.ingress.unwrap()[0]
        .ports
        .iter()
        .flatten()
        .map(|port| number(port.port.clone()))
        .collect();
    assert_eq!(accepted, backends);
    assert!(
        services.egress.is_none_or(|egress| egress.is_empty()),
        "they call nobody"
    );

    let proxy = policy("edge-proxy");
    let ingress = proxy.ingress.unwrap();
    assert!(ingress[0].from.is_none(), "clients are anywhere");
    let accepted: Vec<_> = ingress
        .iter()
        .flat_map(|rule| rule.ports.clone().unwrap())
        .map(|p| number(p.port))
        .collect();
    assert_eq!(accepted, [8443, 8091]);
    let egress = proxy.egress.unwrap();
    let dns = egress
        .iter()
        .find(|rule| rule.to.is_none())
        .expect("a rule for DNS to any address");
    assert!(
        dns.ports
            .iter()
            .flatten()
            .all(|port| number(port.port.clone()) == 53)
    );
    let reached: BTreeSet<_> = egress
        .iter()
        .filter(|rule| rule.to.is_some())
        .flat_map(|rule| rule.ports.clone().unwrap())
        .map(|port| number(port.port))
        .collect();
    assert_eq!(reached, backends);
}
