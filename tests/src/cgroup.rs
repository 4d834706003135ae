//! A memory cgroup for one process, with a hard limit, as a container has it: version 1 or 2, whichever the machine
//! mounts. It takes root.
//!
//! Its parent is the deepest cgroup of this process's that can have one with a memory controller. (Of version 2 that is
//! seldom the process's own: a cgroup with processes in it can't give its children controllers.)

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use edge_proxy::cgroup::MemoryGroup;

/// The cgroup. It is removed with this value, as soon as the processes in it have ended.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    version: &'static Version,
}

/// What a version calls its files (cgroup-v1/memory.txt and cgroup-v2.txt of the kernel).
#[derive(Debug)]
struct Version {
    limit: &'static str,
    /// Swap would hide what doesn't fit; absent where there is none. The value that leaves none, given the limit.
    swap: (&'static str, fn(u64) -> u64),
    /// The most that was ever charged, what the kernel could have dropped included.
    peak: &'static str,
    /// Has a line `oom_kill COUNT`.
    events: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        limit: "memory.max",
        swap: ("memory.swap.max", |_| 0),
        peak: "memory.peak",
        events: "memory.events",
    },
    Version {
        limit: "memory.limit_in_bytes",
        // Memory and swap together.
        swap: ("memory.memsw.limit_in_bytes", |limit| limit),
        peak: "memory.max_usage_in_bytes",
        events: "memory.oom_control",
    },
];

impl Cgroup {
    /// With a limit of `bytes`.
    ///
    /// # Errors
    /// Why there can be none: no root, no controller.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(rustix::process::geteuid().is_root(), "this takes root");
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("edge-e2e-{}-{count}", std::process::id());
        let membership = fs::read_to_string("/proc/self/cgroup").context("no cgroups")?;
        let mut why = anyhow::anyhow!("no cgroup of this process has the memory controller");
        for parent in parents(&membership) {
            match Self::within(&parent, &name, bytes) {
                Ok(Some(group)) => return Ok(group),
                Ok(None) => {}
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// `None`: children of `parent` have no memory controller.
    fn within(parent: &Path, name: &str, bytes: u64) -> anyhow::Result<Option<Self>> {
        let directory = parent.join(name);
        let told = || format!("cannot make {}", directory.display());
        fs::create_dir(&directory).with_context(told)?;
        let has = |version: &&Version| directory.join(version.limit).exists();
        let Some(version) = VERSIONS.iter().find(has) else {
            fs::remove_dir(&directory).with_context(told)?;
            return Ok(None);
        };
        let group = Self { directory, version };
        group.write(version.limit, bytes)?;
        let (swap, value) = version.swap;
        if group.directory.join(swap).exists() {
            group.write(swap, value(bytes))?;
        }
        Ok(Some(group))
    }

    /// What starts `program` in it, as a program and its arguments. The shell that enters becomes the program, so that
    /// nothing of it is charged to another.
    pub fn command<S: Into<OsString>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> (&'static str, Vec<OsString>) {
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        let processes = self.directory.join("cgroup.procs");
        let mut all: Vec<OsString> = vec!["-c".into(), script.into(), processes.into()];
        all.push(program.into());
        all.extend(arguments.into_iter().map(Into::into));
        ("sh", all)
    }

    /// Its memory, as the proxy sees it.
    pub fn memory(&self) -> MemoryGroup {
        MemoryGroup::at(self.directory.clone())
    }

    /// The most that was ever charged; `None` if the kernel doesn't say (version 2 before Linux 5.19).
    pub fn peak(&self) -> Option<u64> {
        self.read(self.version.peak)?.trim().parse().ok()
    }

    /// How often the kernel has killed a process of it; `None` if it doesn't say (version 1 before Linux 4.13).
    pub fn kills(&self) -> Option<u64> {
        let events = self.read(self.version.events)?;
        let count = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        count?.trim().parse().ok()
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(file)).ok()
    }

    fn write(&self, file: &str, value: u64) -> anyhow::Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, value.to_string())
            .with_context(|| format!("cannot set {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was killed leaves it a moment later.
        let begun = Instant::now();
        while let Err(why) = fs::remove_dir(&self.directory) {
            if begun.elapsed() > Duration::from_secs(5) {
                eprintln!("cannot remove {}: {why}", self.directory.display());
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where a child might be made, the deepest first. `membership` is the text of `/proc/self/cgroup` (cgroups(7)):
/// `hierarchy-ID:controller-list:cgroup-path`, where version 2 has no list.
fn parents(membership: &str) -> impl Iterator<Item = PathBuf> {
    membership.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next(), fields.next().unwrap_or_default());
        let mount = match controllers {
            Some("") => Some(PathBuf::from(MOUNT)),
            Some("memory") => Some(Path::new(MOUNT).join("memory")),
            _ => None,
        };
        let own = Path::new(path.trim_start_matches('/'));
        let levels = mount.into_iter().flat_map(move |mount| {
            own.ancestors()
                .map(move |level| mount.join(level))
                .collect::<Vec<_>>()
        });
        // In a container the path may be the host's.
        levels.filter(|level| level.is_dir()).collect::<Vec<_>>()
    })
}

/// cgroups(7): where both versions are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    #[tokio::test]
    async fn a_process_is_charged_to_it_and_killed_above_its_limit() {
        let Ok(group) = Cgroup::new(16 << 20) else {
            return;
        };
        // A shell variable of 4 MiB, then one that doubles for ever.
        let grow = "x=$(head -c 4194304 /dev/zero | tr '\\0' x); echo has; read y < /dev/null; while :; do x=$x$x; done";
        let (program, arguments) = group.command(Path::new("sh"), ["-c", grow]);
        let process = Process::start(program, arguments);
        process.prints("has").await;
        let ended = process.ended().await;
        assert_eq!(ended.code(), None, "{ended:?}");
        assert_eq!(group.kills(), Some(1));
        assert!(group.peak().is_none_or(|peak| peak > 4 << 20));
        let directory = group.directory.clone();
        drop(group);
        assert!(!directory.exists());
    }

    #[test]
    fn the_deepest_comes_first_and_only_what_is_there() {
        let all: Vec<_> = parents("3:cpu:/\n0::/not/there\n").collect();
        assert_eq!(all, [PathBuf::from(MOUNT)]);
    }
}
