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
            memory_limit: tightest(&membership, read).map(|(limit, _)| limit),
        }
    }
}

/// The cgroup whose memory limit this process meets first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryGroup {
    directory: PathBuf,
}

/// A cgroup's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the kernel can't drop: usage less inactive file pages, the working set of kubelet.
    pub used: u64,
    /// Bytes; `None`: there is no limit (any more).
    pub limit: Option<u64>,
}

impl MemoryGroup {
    /// This process's; `None` without a limit.
    pub fn detect() -> Option<Self> {
        let read = |path: &Path| fs::read_to_string(path).ok();
        let membership = read(Path::new("/proc/self/cgroup"))?;
        tightest(&membership, read).map(|(_, directory)| Self { directory })
    }

    /// The one with its files in `directory`, of either version.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What it has now; the limit too may change while the process runs, or be lifted. `None` if the files don't say.
    pub fn usage(&self) -> Option<Usage> {
        usage(&self.directory, |path| fs::read_to_string(path).ok())
    }
}

/// `membership` is the text of `/proc/self/cgroup`; `read` gives a file's text.
fn tightest(membership: &str, read: impl Fn(&Path) -> Option<String>) -> Option<(u64, PathBuf)> {
    let limits = membership
        .lines()
        .filter_map(directories)
        .flatten()
        .filter_map(|directory| {
            let text =
                read(&directory.join(V2.limit)).or_else(|| read(&directory.join(V1.limit)))?;
            Some((limit(&text)?, directory))
        });
    limits.min_by_key(|(limit, _)| *limit)
}

fn usage(directory: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<Usage> {
    [V2, V1].into_iter().find_map(|version| {
        let text = read(&directory.join(version.limit))?;
        let limit = limit(&text);
        if limit.is_none() && !is_unlimited(&text) {
            return None;
        }
        let used: u64 = read(&directory.join(version.used))?.trim().parse().ok()?;
        let statistics = read(&directory.join("memory.stat")).unwrap_or_default();
        let inactive = statistics
            .lines()
            .find_map(|line| line.strip_prefix(version.inactive)?.trim().parse().ok());
        Some(Usage {
            used: used.saturating_sub(inactive.unwrap_or(0)),
            limit,
        })
    })
}

/// What a version calls its files and fields (cgroup-v1/memory.txt, cgroup-v2.txt of the kernel).
struct Version {
    limit: &'static str,
    used: &'static str,
    /// With the space behind it.
    inactive: &'static str,
}

const V2: Version = Version {
    limit: "memory.max",
    used: "memory.current",
    inactive: "inactive_file ",
};

/// With children, as its limit counts them too.
const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    inactive: "total_inactive_file ",
};

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

/// `None`: no limit, or no number.
fn limit(text: &str) -> Option<u64> {
    let limit = text.trim().parse::<u64>().ok()?;
    (limit > 0 && limit < UNLIMITED).then_some(limit)
}

/// What the kernel says where there is no limit.
fn is_unlimited(text: &str) -> bool {
    let text = text.trim();
    text == "max" || text.parse::<u64>().is_ok_and(|limit| limit >= UNLIMITED)
}

/// `max` (version 2) and numbers close to 2^63 (version 1) mean no limit.
const UNLIMITED: u64 = 1 << 60;

/// cgroups(7): where both versions are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(membership: &str, files: &[(&str, &str)]) -> Option<u64> {
        tightest(membership, reads(files)).map(|(limit, _)| limit)
    }

    fn reads(files: &[(&str, &str)]) -> impl Fn(&Path) -> Option<String> {
        move |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned())
        }
    }

    #[test]
    fn what_the_kernel_can_drop_does_not_count_in_either_version() {
        let directory = Path::new("/x");
        let v2 = [
            ("/x/memory.max", "1000\n"),
            ("/x/memory.current", "900\n"),
            (
                "/x/memory.stat",
                "anon 1\ninactive_anon 7\ninactive_file 200\n",
            ),
        ];
        let expected = Some(Usage {
            used: 700,
            limit: Some(1000),
        });
        assert_eq!(usage(directory, reads(&v2)), expected);
        let v1 = [
            ("/x/memory.limit_in_bytes", "1000\n"),
            ("/x/memory.usage_in_bytes", "900\n"),
            (
                "/x/memory.stat",
                "inactive_file 1\ntotal_inactive_file 200\n",
            ),
        ];
        assert_eq!(usage(directory, reads(&v1)), expected);
        assert_eq!(usage(directory, reads(&v2[..1])), None);
        let unlimited = [("/x/memory.max", "max"), v2[1], v2[2]];
        let lifted = Some(Usage {
            used: 700,
            limit: None,
        });
        assert_eq!(usage(directory, reads(&unlimited)), lifted);
        let unlimited = [
            ("/x/memory.limit_in_bytes", "9223372036854771712\n"),
            v1[1],
            v1[2],
        ];
        assert_eq!(usage(directory, reads(&unlimited)), lifted);
        let garbled = [("/x/memory.max", "much"), v2[1], v2[2]];
        assert_eq!(usage(directory, reads(&garbled)), None);
    }

    #[test]
    fn the_group_with_the_smallest_limit_is_the_one_to_watch() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "10\n"),
            ("/sys/fs/cgroup/memory.max", "20\n"),
        ];
        let found = tightest("0::/a/b\n", reads(&files));
        assert_eq!(found, Some((10, PathBuf::from("/sys/fs/cgroup/a"))));
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
