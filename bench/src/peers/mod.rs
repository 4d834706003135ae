//! Who is compared: how each peer is started, and what it has written.

/// Where the programs come from.
mod install;
/// `@name@` in the configurations.
mod template;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub(crate) use install::{Programs, debian};

use crate::{
    machine::{self, Cores},
    measure::Processes,
};
use template::Values;

/// A peer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Ours.
    EdgeProxy,
    /// Ours as it was: another binary, --baseline FILE
    Baseline,
    /// Of the tutorial.
    Envoy,
    /// HTTP/2 on both sides.
    Haproxy,
    /// grpc_pass.
    Nginx,
    /// reverse_proxy to h2c.
    Caddy,
    /// The floor: ends TLS and copies bytes
    HaproxyTcp,
}

/// How peers are to be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Threads that serve.
    pub(crate) workers: usize,
    /// Addresses of backends.
    pub(crate) endpoints: usize,
    /// Routes, all to the same backends; those that are used stand last.
    pub(crate) routes: usize,
}

/// Where a peer's files are. What it writes is apart from what it may watch.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// `tls.crt`, `tls.key`, and `both.pem` for HAProxy.
    pub(crate) tls: PathBuf,
    /// All else.
    pub(crate) root: PathBuf,
}

/// A running peer. It ends with this value.
pub(crate) struct Peer {
    /// Who it is.
    pub(crate) kind: Kind,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// When it was started.
    pub(crate) started: Instant,
    child: Child,
    log: PathBuf,
    out: PathBuf,
    lines: u64,
    processes: Option<Processes>,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 7] = [
        Self::EdgeProxy,
        Self::Baseline,
        Self::Envoy,
        Self::Haproxy,
        Self::Nginx,
        Self::Caddy,
        Self::HaproxyTcp,
    ];

    /// As in the tables and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EdgeProxy => "edge-proxy",
            Self::Baseline => "baseline",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Caddy => "caddy",
            Self::HaproxyTcp => "haproxy-tcp",
        }
    }

    /// Whether it is one to win against, or only what is possible at all, or ourselves.
    pub(crate) fn is_rival(self) -> bool {
        !matches!(self, Self::EdgeProxy | Self::Baseline | Self::HaproxyTcp)
    }

    /// Whether it has a line in its log for each RPC, balances each, and has routes.
    pub(crate) fn knows_rpcs(self) -> bool {
        self != Self::HaproxyTcp
    }

    /// Its configuration, to be filled in.
    fn template(self) -> &'static str {
        match self {
            Self::EdgeProxy | Self::Baseline => include_str!("../../peers/edge-proxy.yaml.in"),
            Self::Envoy => include_str!("../../peers/envoy.yaml.in"),
            Self::Haproxy => include_str!("../../peers/haproxy.cfg.in"),
            Self::Nginx => include_str!("../../peers/nginx.conf.in"),
            Self::Caddy => include_str!("../../peers/Caddyfile.in"),
            Self::HaproxyTcp => include_str!("../../peers/haproxy-tcp.cfg.in"),
        }
    }

    /// Its configuration's file; Envoy looks at the ending.
    fn config_name(self) -> &'static str {
        match self {
            Self::EdgeProxy | Self::Baseline => "edge-proxy.yaml",
            Self::Envoy => "envoy.yaml",
            Self::Haproxy | Self::HaproxyTcp => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Caddy => "Caddyfile",
        }
    }

    /// Its command and Debian's package, if it comes from there.
    fn package(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::EdgeProxy | Self::Baseline | Self::Envoy => None,
            Self::Haproxy | Self::HaproxyTcp => Some(("haproxy", "haproxy")),
            Self::Nginx => Some(("nginx", "nginx")),
            Self::Caddy => Some(("caddy", "caddy")),
        }
    }

    /// Its version, in its own words.
    pub(crate) fn version(self, program: &Path) -> String {
        let argument = match self {
            Self::Haproxy | Self::HaproxyTcp | Self::Nginx => "-v",
            Self::Caddy => "version",
            Self::EdgeProxy | Self::Baseline | Self::Envoy => "--version",
        };
        let version = machine::version(program, argument);
        // Envoy's and nginx' begin with where they are.
        let (_, number) = version.split_once("version: ").unwrap_or(("", &version));
        number.trim().to_owned()
    }

    fn arguments(self, config: &Path, setting: Setting) -> Vec<String> {
        let config = config.display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::EdgeProxy | Self::Baseline => words(&["run", "--config", &config]),
            Self::Envoy => {
                let workers = setting.workers.to_string();
                let mut all: Vec<String> = words(&["-c", &config, "--concurrency", &workers]);
                // Lines are counted after each sample: 10 s, the default, would be a long wait.
                all.extend(words(&["--file-flush-interval-msec", "250"]));
                all.extend(words(&["--disable-hot-restart", "--log-level", "error"]));
                all
            }
            Self::Haproxy | Self::HaproxyTcp => words(&["-db", "-f", &config]),
            Self::Nginx => words(&["-q", "-c", &config, "-e", "stderr"]),
            Self::Caddy => words(&["run", "--adapter", "caddyfile", "--config", &config]),
        }
    }
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            workers: 1,
            endpoints: 2,
            routes: 2,
        }
    }
}

impl Peer {
    /// Starts `kind` on a port that is free. It isn't ready yet.
    ///
    /// # Errors
    /// When its files can't be written or its program not started.
    pub(crate) fn start(
        kind: Kind,
        program: &Path,
        folders: &Folders,
        setting: Setting,
        endpoints: &[SocketAddr],
        cores: &Cores,
    ) -> anyhow::Result<Self> {
        let address = free_port()?;
        let own = folders.root.join(kind.name());
        let (settings, logs) = (own.join("config"), own.join("log"));
        for folder in [&settings, &logs] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let config = settings.join(kind.config_name());
        let (log, out) = (logs.join("access.log"), logs.join("out"));
        // Also for who logs to standard output, which is this file then.
        let _ = fs::remove_file(&log);
        let log_file = append(&log)?;
        let out_file = append(&out)?;
        let path = |path: &Path| path.display().to_string();
        let routes = extra_routes(setting);
        let values = Values {
            once: vec![
                ("workers", setting.workers.to_string()),
                ("listen", address.to_string()),
                ("ip", address.ip().to_string()),
                ("port", address.port().to_string()),
                ("name", e2e::certs::SERVER_NAME.to_owned()),
                ("tls", path(&folders.tls)),
                ("log", path(&log)),
                ("out", path(&out)),
                ("dir", path(&logs)),
                ("connections", machine::most_connections().to_string()),
            ],
            endpoints,
            routes: &routes,
        };
        fs::write(&config, template::fill(kind.template(), &values))
            .with_context(|| format!("cannot write {}", config.display()))?;

        let cores: Vec<String> = cores.peer.iter().map(ToString::to_string).collect();
        let logs_to_stdout = matches!(kind, Kind::Haproxy | Kind::HaproxyTcp);
        let started = Instant::now();
        // It ends with the bench, however that ends. Both programs replace themselves: the process is the peer's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "taskset", "--cpu-list"])
            .arg(cores.join(","))
            .arg(program)
            .args(kind.arguments(&config, setting))
            .env("GOMAXPROCS", setting.workers.to_string())
            .env("HOME", &logs)
            .env_remove("RUST_LOG")
            .current_dir(&logs)
            .stdin(Stdio::null())
            .stdout(if logs_to_stdout {
                log_file
            } else {
                out_file.try_clone()?
            })
            .stderr(out_file)
            .spawn()
            .with_context(|| format!("cannot start {}: is util-linux there?", program.display()))?;
        Ok(Self {
            kind,
            address,
            started,
            child,
            log,
            out,
            lines: 0,
            processes: None,
        })
    }

    /// Its processes, looked up when first asked for: it is ready then.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub(crate) fn processes(&mut self) -> anyhow::Result<Processes> {
        if self.processes.is_none() {
            self.processes = Some(Processes::of(self.child.id())?);
        }
        self.processes.clone().context("it was just set")
    }

    /// Whether it still runs; if not, the error says why.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let words = fs::read_to_string(&self.out).unwrap_or_default();
                let to = words.floor_char_boundary(words.len().min(WORDS));
                anyhow::bail!(
                    "{} ended with {status}:\n{}",
                    self.kind.name(),
                    &words[..to]
                )
            }
        }
    }

    /// Lines that its access log has got since the last call; the file is emptied, so that runs of any length fit.
    /// Waits until there are `expected`, or no more come.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn log_lines(&mut self, expected: u64) -> anyhow::Result<u64> {
        let mut file = OpenOptions::new().read(true).write(true).open(&self.log)?;
        let mut buffer = vec![0; 1 << 16];
        self.lines = 0;
        let mut progress = Instant::now();
        while self.lines < expected && progress.elapsed() < FLUSHED {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            progress = Instant::now();
            self.lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        // All peers append: what comes later starts a new file in the same place.
        file.set_len(0)?;
        Ok(self.lines)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // TERM, for masters end their workers; KILL if that isn't enough.
        if let Some(id) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(id, Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let processes = Processes::of(self.child.id());
        for id in processes.iter().flat_map(Processes::ids) {
            if let Some(id) = Pid::from_raw(id.cast_signed()) {
                let _ = kill_process(id, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// Every peer's version, by name.
///
/// # Errors
/// When a program is missing.
pub(crate) fn versions(
    kinds: &[Kind],
    programs: &Programs,
) -> anyhow::Result<BTreeMap<String, String>> {
    let version = |kind: &Kind| {
        let program = programs.get(*kind)?;
        Ok((kind.name().to_owned(), kind.version(program)))
    };
    kinds.iter().map(version).collect()
}

/// Before the two routes that are used, in front of them.
fn extra_routes(setting: Setting) -> Vec<String> {
    (0..setting.routes.saturating_sub(2))
        .map(|number| format!("/company.product{number:04}.v1.Service/"))
        .collect()
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}

fn append(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Longer than any peer keeps lines back: they are told 250 ms.
const FLUSHED: Duration = Duration::from_secs(2);
/// For a peer to end by itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of what a peer printed that are shown when it has ended: its first words say what was wrong.
const WORDS: usize = 1000;
