//! What is deployed: `deploy/`, `skaffold.yaml`, the Dockerfile and what it may see of the repository.
//!
//! These tests know what no schema knows: that a name here is a name there, and that the times of a
//! rollout add up. They need no cluster, only `kubectl kustomize`, which renders as skaffold does.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

mod configuration;

mod foreign;

mod image;

mod manifests;

mod rollout;

mod skaffold;

use std::path::{Path, PathBuf};
use std::process::Command;

use edge_proxy::control_plane::config::Config;
use k8s_openapi::Resource;
use serde::de::{Deserialize as _, DeserializeOwned};
use serde_json::Value;

/// What this repository deploys: modules of skaffold, targets of the Dockerfile, folders of `deploy/`.
const APPS: [&str; 3] = ["echo-grpc", "reverse-grpc", "edge-proxy"];

/// All folders that can be rendered. Components can't be, alone: `full` holds them all.
const FOLDERS: [&str; 11] = [
    "deploy/echo-grpc",
    "deploy/reverse-grpc",
    "deploy/edge-proxy",
    "deploy/overlays/full/edge-proxy",
    "deploy/overlays/internal/edge-proxy",
    "deploy/overlays/local/edge-proxy",
    "deploy/overlays/namespace/edge-proxy",
    "deploy/overlays/istio/edge-proxy",
    "deploy/overlays/istio/echo-grpc",
    "deploy/overlays/istio/reverse-grpc",
    "deploy/overlays/istio/gateway",
];

/// The objects of one folder, as the API server would get them.
struct Rendered {
    folder: String,
    objects: Vec<Value>,
}

impl Rendered {
    /// Renders a folder with the real kustomize.
    fn new(folder: &str) -> Self {
        let output = Command::new("kubectl")
            .arg("kustomize")
            .arg(root().join(folder))
            .output()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot run kubectl ({error}): these tests render deploy/ with it; install it \
                     from https://kubernetes.io/docs/tasks/tools/"
                )
            });
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "kubectl kustomize {folder}: {problem}"
        );
        let objects = documents(&String::from_utf8(output.stdout).unwrap());
        Self {
            folder: folder.to_owned(),
            objects,
        }
    }

    /// The base of one of [`APPS`].
    fn base(app: &str) -> Self {
        Self::new(&format!("deploy/{app}"))
    }

    fn all<T: Resource + serde::Serialize + DeserializeOwned>(&self) -> Vec<T> {
        let of_kind =
            |object: &&Value| object["kind"] == T::KIND && object["apiVersion"] == T::API_VERSION;
        self.objects.iter().filter(of_kind).map(typed).collect()
    }

    /// The one object of this type.
    fn one<T: Resource + serde::Serialize + DeserializeOwned>(&self) -> T {
        let mut all = self.all();
        assert_eq!(all.len(), 1, "{}: objects of kind {}", self.folder, T::KIND);
        all.remove(0)
    }
}

/// Reads an object into its type and back. What doesn't survive that is no field of the type: the
/// API server would refuse it, or worse, ignore it.
fn typed<T: serde::Serialize + DeserializeOwned>(object: &Value) -> T {
    let name = format!("{}/{}", object["kind"], object["metadata"]["name"]);
    let read: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    survives(object, &serde_json::to_value(&read).unwrap(), &name);
    read
}

fn survives(written: &Value, read: &Value, place: &str) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let place = format!("{place}.{key}");
                let read = read
                    .get(key)
                    .unwrap_or_else(|| panic!("{place} is no field"));
                survives(value, read, &place);
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            assert_eq!(written.len(), read.len(), "{place}");
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                survives(written, read, &format!("{place}[{index}]"));
            }
        }
        _ => assert_eq!(written, read, "{place}"),
    }
}

/// The sample configuration, as the proxy itself reads it.
fn sample() -> Config {
    config("deploy/edge-proxy/edge-proxy.yaml")
}

fn config(path: &str) -> Config {
    Config::load(&root().join(path))
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_folder_with_a_kustomization_is_in_these_tests() {
    fn find(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                find(&path, found);
            } else if path.file_name().unwrap() == "kustomization.yaml" {
                let folder = folder.strip_prefix(root()).unwrap();
                found.push(folder.to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    find(&root().join("deploy"), &mut found);
    let (components, mut folders): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|folder| folder.starts_with("deploy/components/"));
    folders.sort();
    let mut expected = FOLDERS.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(folders, expected);

    let full = read("deploy/overlays/full/edge-proxy/kustomization.yaml");
    for component in components {
        let path = component.replace("deploy/", "../../../");
        assert!(
            full.contains(&path),
            "{component} is not in the overlay that has all of them"
        );
    }
}
