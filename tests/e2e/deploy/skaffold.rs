//! `skaffold.yaml`: by structs of the fields that it uses, so that a misspelt key is found, for
//! skaffold's schema is too large to keep here.

use std::collections::BTreeSet;

use serde::Deserialize;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use super::manifests::{container, pod};
use super::{APPS, FOLDERS, Rendered, read, root};

#[test]
fn a_module_for_each_part_with_its_image_and_manifests() {
    let modules = modules();
    let names: Vec<_> = modules
        .iter()
        .map(|module| module.metadata.name.as_str())
        .collect();
    assert_eq!(names, APPS);
    for module in modules {
        let name = module.metadata.name;
        assert_eq!(
            (module.api_version.as_str(), module.kind.as_str()),
            ("skaffold/v4beta13", "Config")
        );
        let [artifact] = &module.build.artifacts[..] else {
            panic!("{name}: one image")
        };
        assert_eq!(
            (artifact.image.as_str(), artifact.context.as_str()),
            (name.as_str(), ".")
        );
        assert_eq!(artifact.docker.dockerfile, "deploy/Dockerfile");
        assert!(root().join(&artifact.docker.dockerfile).is_file());
        assert_eq!(artifact.docker.target, name);
        // Its cache mounts, and one compilation for all modules.
        assert!(module.build.local.use_buildkit, "{name}");
        assert_eq!(module.build.local.concurrency, 0, "{name}");
        assert_eq!(module.manifests.kustomize.paths, [format!("deploy/{name}")]);
    }
}

#[test]
fn every_image_that_is_deployed_is_built() {
    let built: BTreeSet<_> = modules()
        .iter()
        .flat_map(|m| m.build.artifacts.iter().map(|a| a.image.clone()))
        .collect();
    for folder in FOLDERS {
        for deployment in Rendered::new(folder).all::<Deployment>() {
            let image = container(&pod(&deployment)).image.clone().unwrap();
            assert!(built.contains(&image), "{folder}: nobody builds {image}");
        }
    }
}

#[test]
fn the_status_check_waits_as_long_as_a_rollout() {
    for module in modules() {
        let name = module.metadata.name;
        let spec = Rendered::base(&name).one::<Deployment>().spec;
        assert!(
            module.deploy.status_check_deadline_seconds >= spec.progress_deadline_seconds.unwrap()
        );
    }
}

#[test]
fn forwarded_ports_are_there() {
    for module in modules() {
        let name = module.metadata.name;
        let rendered = Rendered::base(&name);
        for forward in module.port_forward {
            assert_eq!(forward.resource_name, name);
            match forward.resource_type.as_str() {
                "service" => {
                    let ports = rendered.one::<Service>().spec.unwrap().ports.unwrap();
                    assert!(
                        ports.iter().any(|port| port.port == forward.port),
                        "{forward:?}"
                    );
                }
                // The admin pages, on the pod's loopback: no port that a Service could have.
                "deployment" => {
                    assert_eq!(forward.port, i32::from(super::sample().admin.port()));
                    assert_eq!(forward.local_port, 8080);
                }
                kind => panic!("{kind}"),
            }
        }
    }
}

#[test]
fn profiles_are_one_change_each() {
    let mut found = BTreeSet::new();
    for module in modules() {
        let name = module.metadata.name;
        for profile in module.profiles {
            found.insert((name.clone(), profile.name.clone()));
            // Only where it is asked for: they run here, and a cloud shell has no cargo.
            if profile.name == "test" {
                let [test] = &profile.test[..] else {
                    panic!("{name}: one test")
                };
                assert_eq!(
                    (test.image.as_str(), test.context.as_str()),
                    (name.as_str(), ".")
                );
                assert_eq!(
                    test.custom[0].command,
                    format!("cargo test --locked -p {name}")
                );
                assert!(test.custom[0].timeout_seconds > 0);
                assert!(profile.patches.is_empty() && profile.activation.is_empty());
                continue;
            }
            assert!(profile.test.is_empty(), "{name} {}", profile.name);
            if let Some(build) = profile.build {
                assert_eq!(profile.name, "gcb");
                assert_eq!(
                    build.platforms,
                    ["linux/amd64"],
                    "unnamed, BuildKit stays off there"
                );
                assert_eq!(build.google_cloud_build.machine_type, "E2_HIGHCPU_8");
                assert!(build.google_cloud_build.timeout.ends_with('s'));
                assert!(profile.patches.is_empty() && profile.activation.is_empty());
                continue;
            }
            let [patch] = &profile.patches[..] else {
                panic!("{name} {}", profile.name)
            };
            assert_eq!(
                (patch.op.as_str(), patch.path.as_str()),
                ("replace", "/manifests/kustomize/paths/0")
            );
            assert_eq!(
                patch.value,
                format!("deploy/overlays/{}/{name}", profile.name)
            );
            assert!(FOLDERS.contains(&patch.value.as_str()), "{}", patch.value);
            let contexts: Vec<_> = profile
                .activation
                .iter()
                .map(|activation| activation.kube_context.as_str())
                .collect();
            let expected = if profile.name == "local" {
                &["kind-.*", "minikube"][..]
            } else {
                &[]
            };
            assert_eq!(contexts, expected);
        }
    }
    let expected = [
        ("echo-grpc", "gcb"),
        ("echo-grpc", "istio"),
        ("echo-grpc", "test"),
        ("edge-proxy", "full"),
        ("edge-proxy", "gcb"),
        ("edge-proxy", "internal"),
        ("edge-proxy", "istio"),
        ("edge-proxy", "local"),
        ("edge-proxy", "namespace"),
        ("edge-proxy", "test"),
        ("reverse-grpc", "gcb"),
        ("reverse-grpc", "istio"),
        ("reverse-grpc", "test"),
    ];
    let expected: BTreeSet<_> = expected
        .into_iter()
        .map(|(module, profile)| (module.to_owned(), profile.to_owned()))
        .collect();
    assert_eq!(found, expected);
}

fn modules() -> Vec<Module> {
    serde_norway::Deserializer::from_str(&read("skaffold.yaml"))
        .map(|document| {
            Module::deserialize(document).unwrap_or_else(|e| panic!("skaffold.yaml: {e}"))
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Module {
    api_version: String,
    kind: String,
    metadata: Metadata,
    build: Build,
    manifests: Manifests,
    deploy: Deploy,
    port_forward: Vec<PortForward>,
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Build {
    artifacts: Vec<Artifact>,
    /// The digest of what an image is made of is its tag.
    #[serde(rename = "tagPolicy")]
    _tag_policy: TagPolicy,
    local: LocalBuild,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Artifact {
    image: String,
    context: String,
    docker: Docker,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Docker {
    dockerfile: String,
    target: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TagPolicy {
    #[serde(rename = "inputDigest")]
    _input_digest: Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalBuild {
    #[serde(rename = "useBuildkit")]
    use_buildkit: bool,
    concurrency: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    image: String,
    context: String,
    custom: Vec<CustomTest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CustomTest {
    command: String,
    timeout_seconds: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifests {
    kustomize: Kustomize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kustomize {
    paths: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Deploy {
    #[serde(rename = "kubectl")]
    _kubectl: Empty,
    status_check_deadline_seconds: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortForward {
    resource_type: String,
    resource_name: String,
    port: i32,
    local_port: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    name: String,
    build: Option<CloudBuild>,
    #[serde(default)]
    test: Vec<Test>,
    #[serde(default)]
    activation: Vec<Activation>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CloudBuild {
    platforms: Vec<String>,
    google_cloud_build: GoogleCloudBuild,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GoogleCloudBuild {
    machine_type: String,
    timeout: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Activation {
    kube_context: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    op: String,
    path: String,
    value: String,
}
