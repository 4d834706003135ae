//! What the container was granted: cores and memory, from the cgroup (version 1 and 2).
//!
//! Cores are the standard library's to count: it reads the affinity mask and both versions' quotas, and rounds a
//! quota down, which suits: of 1.5 cores one is a worker's, and the acceptor, the control plane and the log's writer
//! live on the rest. The memory limit is read here; the parser is pure, [`Resources::detect`] reads the files. All
//! cgroups from the process's own up to the root count, as the kernel enforces every one of them: the smallest limit
//! wins.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

/// What this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// At least 1.
    pub cores: usize,
    /// Bytes; `None`: no limit but the machine's.
    pub memory_limit: Option<u64>,
}

impl Resources {
    /// Reads `/proc/self/cgroup` and the files it leads to. What can't be read sets no limit.
    pub fn detect() -> Self {
        let read = |path: &Path| fs::read_to_string(path).ok();
        let membership = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_limit: memory_limit(&membership, read),
        }
    }
}

/// `membership` is the text of `/proc/self/cgroup`; `read` gives a file's text.
fn memory_limit(membership: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = membership
        .lines()
        .filter_map(directories)
        .flatten()
        .filter_map(|directory| {
            let text = read(&directory.join("memory.max"))
                .or_else(|| read(&directory.join("memory.limit_in_bytes")))?;
            limit(&text)
        });
    limits.min()
}

/// The directories that may hold a memory limit, from the process's own cgroup up to the mount's root; `line` is
/// `hierarchy-ID:controller-list:cgroup-path` (cgroups(7)), where version 2 has no list.
fn directories(line: &str) -> Option<Vec<PathBuf>> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let mount = match controllers {
        "" => PathBuf::from(MOUNT),
        list if list.split(',').any(|name| name == "memory") => Path::new(MOUNT).join("memory"),
        _ => return None,
    };
    let own = path.trim_start_matches('/');
    // In a container the path is the host's, or leads out of what is mounted: directories that aren't there set no
    // limit, and the root, which is the container's own, always comes.
    if own.split('/').any(|part| part == "..") {
        return Some(vec![mount]);
    }
    Some(
        Path::new(own)
            .ancestors()
            .map(|level| mount.join(level))
            .collect(),
    )
}

/// `max` (version 2) and numbers close to 2^63 (version 1) mean no limit.
fn limit(text: &str) -> Option<u64> {
    let limit = text.trim().parse::<u64>().ok()?;
    (limit > 0 && limit < 1 << 60).then_some(limit)
}

/// cgroups(7): where both versions are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(membership: &str, files: &[(&str, &str)]) -> Option<u64> {
        memory_limit(membership, |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn version_2_takes_the_smallest_limit_on_the_way_to_the_root() {
        let files = [
            ("/sys/fs/cgroup/kubepods/pod1/memory.max", "max\n"),
            ("/sys/fs/cgroup/kubepods/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
        ];
        assert_eq!(limit_of("0::/kubepods/pod1\n", &files), Some(268_435_456));
    }

    #[test]
    fn version_2_in_a_container_sees_its_own_limit_at_the_root() {
        let files = [("/sys/fs/cgroup/memory.max", "1024")];
        assert_eq!(limit_of("0::/\n", &files), Some(1024));
        assert_eq!(limit_of("0::/kubepods/pod1\n", &files), Some(1024));
        assert_eq!(limit_of("0::/../../pod\n", &files), Some(1024));
    }

    #[test]
    fn version_1_reads_the_memory_controllers_own_hierarchy() {
        let membership = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/docker/x\n";
        let files = [
            (
                "/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("/sys/fs/cgroup/memory.max", "1\n"),
        ];
        assert_eq!(limit_of(membership, &files), Some(536_870_912));
    }

    #[test]
    fn what_is_missing_or_garbled_sets_no_limit() {
        assert_eq!(limit_of("", &[]), None);
        assert_eq!(limit_of("garbage\n::\n0::\n", &[]), None);
        assert_eq!(
            limit_of("0::/\n", &[("/sys/fs/cgroup/memory.max", "much")]),
            None
        );
        assert_eq!(
            limit_of("0::/\n", &[("/sys/fs/cgroup/memory.max", "0")]),
            None
        );
    }

    #[test]
    fn this_machine_grants_something() {
        assert!(Resources::detect().cores >= 1);
    }
}
