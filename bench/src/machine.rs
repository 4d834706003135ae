//! Which core is whose, and what machine this is.
//!
//! The peer under test has a core to itself; whatever makes or answers its load has the others. So a peer's CPU time is
//! its own, and a load generator that is too slow shows as a core that isn't busy, never as a peer that is slow.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, ensure};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};
use serde::{Deserialize, Serialize};

/// Who runs where.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    /// A peer's, one per worker if the machine has as many to give.
    pub(crate) peer: Vec<usize>,
    /// The generator's and the backends'.
    pub(crate) load: Vec<usize>,
}

/// What the figures were measured on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's own name.
    pub(crate) processor: String,
    /// How many cores are online.
    pub(crate) cores: usize,
    /// GiB.
    pub(crate) memory: u64,
    /// The kernel.
    pub(crate) kernel: String,
    /// The distribution.
    pub(crate) system: String,
    /// Of the last minute, when the run began: above 0.5, somebody else used the machine.
    pub(crate) load_average: f64,
}

impl Cores {
    /// For peers with so many workers: theirs are the first cores, as long as as many are left for the load.
    ///
    /// # Errors
    /// On a machine with one core.
    pub(crate) fn divide(workers: usize) -> anyhow::Result<Self> {
        let all = online();
        ensure!(
            all >= 2,
            "two cores are needed, one for the peer and one for its load; this machine has {all}"
        );
        let peers = workers.clamp(1, all / 2);
        Ok(Self {
            peer: (0..peers).collect(),
            load: (peers..all).collect(),
        })
    }

    /// Moves this process, and all that it starts from now on, to the load's cores.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn pin_load(&self) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        for core in &self.load {
            set.set(*core);
        }
        sched_setaffinity(None, &set)
            .with_context(|| format!("cannot move to the cores {:?}", self.load))
    }
}

impl Machine {
    /// This one, now.
    pub(crate) fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.unwrap_or_default();
            value
                .trim_start_matches([':', '=', ' ', '\t'])
                .trim_matches('"')
                .to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.trim_end_matches(" kB").parse::<u64>();
        let load = read("/proc/loadavg");
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: online(),
            memory: kib.unwrap_or_default() / (1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: field(&read("/etc/os-release"), "PRETTY_NAME"),
            load_average: load
                .split(' ')
                .next()
                .and_then(|first| first.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// Raises the limit on open files as far as the kernel allows, for this process and all that it starts.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(WANTED_FILES);
    for maximum in [hard.max(WANTED_FILES), hard] {
        let raised = Rlimit {
            current: Some(maximum),
            maximum: Some(maximum),
        };
        // Above the hard limit only root may go.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return;
        }
    }
}

/// As many connections as a peer can have with two files for each, and some for itself.
pub(crate) fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(WANTED_FILES);
    usize::try_from(files.min(WANTED_FILES)).unwrap_or(usize::MAX) / 2 - 300
}

/// What a program prints when it is asked for its version: the first line that has a digit.
pub(crate) fn version(program: &std::path::Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return "unknown".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .find(|line| line.contains(|c: char| c.is_ascii_digit()));
    line.unwrap_or("unknown").trim().to_owned()
}

fn online() -> usize {
    // Counts what this process may use, so it is asked before anything is pinned, and remembered.
    static ONLINE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *ONLINE.get_or_init(|| thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Enough for 10 000 connections through a peer that needs two files for each, and counts on it at its start.
const WANTED_FILES: u64 = 65_536;
