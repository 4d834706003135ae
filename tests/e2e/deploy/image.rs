//! The Dockerfile, and what of the repository its build sees.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;

use super::manifests::{container, pod};
use super::{APPS, Rendered, read};

#[test]
fn an_image_for_each_part_that_exposes_its_ports() {
    let stages = Dockerfile::read().stages;
    let targets: Vec<_> = stages
        .iter()
        .map(|s| s.name.as_str())
        .filter(|name| APPS.contains(name))
        .collect();
    assert_eq!(targets, APPS);
    assert_eq!(
        stages.last().unwrap().name,
        "edge-proxy",
        "what a build without --target makes"
    );
    for app in APPS {
        let stage = stages.iter().find(|stage| stage.name == app).unwrap();
        assert_eq!(stage.from, "runtime", "{app}");
        let pod = pod(&Rendered::base(app).one::<Deployment>());
        let ports: BTreeSet<_> = container(&pod)
            .ports
            .iter()
            .flatten()
            .map(|port| port.container_port)
            .collect();
        let exposed: BTreeSet<_> = stage
            .all("EXPOSE")
            .flat_map(|ports| ports.split_whitespace())
            .map(|port| port.parse::<i32>().unwrap())
            .collect();
        assert_eq!(exposed, ports, "{app}");
        let entry: Vec<_> = stage.all("ENTRYPOINT").collect();
        assert_eq!(
            entry,
            [format!(r#"["/{app}"]"#)],
            "{app}: no shell, no PATH"
        );
        let copies: Vec<_> = stage.all("COPY").collect();
        assert_eq!(copies, [format!("--from=build /out/{app} /{app}")]);
    }
}

#[test]
fn images_run_as_nobody_and_say_what_they_are() {
    let stages = Dockerfile::read().stages;
    let runtime = stages.iter().find(|stage| stage.name == "runtime").unwrap();
    assert_eq!(runtime.from, "gcr.io/distroless/static-debian13:nonroot");
    assert_eq!(runtime.all("USER").collect::<Vec<_>>(), ["65532:65532"]);
    let labels = runtime.all("LABEL").collect::<String>();
    let workspace = read("Cargo.toml");
    for (label, value) in [
        ("source", value(&workspace, "repository")),
        ("licenses", value(&workspace, "license")),
        ("version", "${VERSION}".to_owned()),
        ("revision", "${REVISION}".to_owned()),
    ] {
        let label = format!(r#"org.opencontainers.image.{label}="{value}""#);
        assert!(labels.contains(&label), "no {label} in {labels}");
    }
    let bake = read("deploy/docker-bake.hcl");
    let matrix = APPS.map(|app| format!("{app:?}")).join(", ");
    assert!(
        bake.contains(&format!("bin = [{matrix}]")),
        "docker-bake.hcl builds {matrix}"
    );
}

#[test]
fn the_compiler_is_the_one_of_the_tests() {
    let channel = value(&read("rust-toolchain.toml"), "channel");
    let version = Dockerfile::read().arguments["RUST_VERSION"].clone();
    // The image's tag has no patch level: its newest is the channel's.
    assert_eq!(channel.rsplit_once('.').unwrap().0, version);
    assert!(
        !allowed().contains("rust-toolchain.toml"),
        "rustup would fetch it in every build"
    );
}

#[test]
fn the_build_sees_every_member_of_the_workspace_and_no_more() {
    let members: BTreeSet<_> = members().into_iter().collect();
    let mut seen = allowed();
    for file in ["Cargo.toml", "Cargo.lock"] {
        assert!(seen.remove(file), "{file} is not in .dockerignore");
    }
    let folders: BTreeSet<_> = seen
        .iter()
        .map(|path| path.split('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        folders, members,
        ".dockerignore: Cargo needs of every member its manifest and a source, \
         such as !tests/Cargo.toml and !tests/src/lib.rs"
    );
    for member in members {
        let whole = seen.contains(&member);
        let manifest = seen.contains(&format!("{member}/Cargo.toml"));
        let source = seen
            .iter()
            .any(|path| path.starts_with(&format!("{member}/src/")));
        assert!(
            whole || (manifest && source),
            "{member}: its manifest and a source"
        );
    }
}

#[test]
fn what_is_compiled_is_touched_first() {
    let text = read("deploy/Dockerfile");
    let built: Vec<_> = APPS.iter().map(|app| format!("-p {app}")).collect();
    for app in &built {
        assert!(
            text.contains(app.as_str()),
            "cargo auditable build has no {app}"
        );
    }
    let folders = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("set -- "))
        .unwrap()
        .trim_end_matches("; \\");
    let touched: BTreeSet<_> = folders.split(' ').map(str::to_owned).collect();
    assert_eq!(
        touched,
        compiled(),
        "else an old build in the cache is taken for a new one"
    );

    // What COPY doesn't bring in, skaffold's digest doesn't see.
    let copies: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("COPY . "))
        .collect();
    assert_eq!(copies, ["COPY . ."]);
    assert!(
        !text
            .lines()
            .any(|line| !line.starts_with('#') && line.contains("type=bind"))
    );
}

/// As much of a Dockerfile as these tests ask for.
struct Dockerfile {
    /// `ARG`s before the first stage.
    arguments: BTreeMap<String, String>,
    stages: Vec<Stage>,
}

struct Stage {
    name: String,
    from: String,
    /// Instructions and what follows them, continued lines joined.
    instructions: Vec<(String, String)>,
}

impl Dockerfile {
    fn read() -> Self {
        let text = read("deploy/Dockerfile");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let joined = lines.join("\n").replace("\\\n", " ");
        let mut file = Self {
            arguments: BTreeMap::new(),
            stages: Vec::new(),
        };
        for line in joined.lines().filter(|line| !line.trim().is_empty()) {
            let (instruction, rest) = line.split_once(' ').unwrap();
            let words: Vec<_> = rest.split_whitespace().collect();
            match (instruction, file.stages.last_mut()) {
                ("FROM", _) => {
                    let [.., from, "AS", name] = words[..] else {
                        panic!("{line}")
                    };
                    let (name, from) = (name.to_owned(), from.to_owned());
                    file.stages.push(Stage {
                        name,
                        from,
                        instructions: Vec::new(),
                    });
                }
                ("ARG", None) => {
                    let (name, value) = rest.split_once('=').unwrap();
                    file.arguments.insert(name.to_owned(), value.to_owned());
                }
                (_, Some(stage)) => {
                    stage
                        .instructions
                        .push((instruction.to_owned(), rest.to_owned()));
                }
                (_, None) => panic!("{line}"),
            }
        }
        file
    }
}

impl Stage {
    fn all<'a>(&'a self, instruction: &'a str) -> impl Iterator<Item = &'a str> {
        self.instructions
            .iter()
            .filter(move |(name, _)| name == instruction)
            .map(|(_, rest)| rest.as_str())
    }
}

/// What `.dockerignore` lets in.
fn allowed() -> BTreeSet<String> {
    read(".dockerignore")
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(str::to_owned)
        .collect()
}

fn members() -> Vec<String> {
    let text = read("Cargo.toml");
    let (_, rest) = text.split_once("members = [").unwrap();
    let (list, _) = rest.split_once(']').unwrap();
    list.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// The members that the images are made of: the three, and what they depend on.
fn compiled() -> BTreeSet<String> {
    let members = members();
    let mut found: BTreeSet<String> = BTreeSet::new();
    let mut open = APPS.map(str::to_owned).to_vec();
    while let Some(member) = open.pop() {
        let manifest = read(&format!("{member}/Cargo.toml"));
        if !found.insert(member) {
            continue;
        }
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            } else if section == "[dependencies]" || section == "[build-dependencies]" {
                let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
                open.extend(members.iter().filter(|name| **name == line[..end]).cloned());
            }
        }
    }
    found
}

/// The text of the first `key = "value"`.
fn value(toml: &str, key: &str) -> String {
    let line = toml
        .lines()
        .find(|line| line.split(' ').next() == Some(key))
        .unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}
