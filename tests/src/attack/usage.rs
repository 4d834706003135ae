//! Memory, files and processor time, as the kernel counts them (proc(5)).

use std::{fs, time::Duration};

use super::until;

/// What a process has now, or what it has used since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Resident memory, in bytes.
    pub(crate) memory: u64,
    /// Open files.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Processor time, user's and system's.
    pub(crate) cpu: Duration,
}

impl Usage {
    /// Of the process `id`; all 0 if there is none.
    pub(crate) fn of(id: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.map(|text| text.trim().trim_end_matches(" kB").parse::<u64>());
        Self {
            memory: kibibytes.and_then(Result::ok).unwrap_or_default() * 1024,
            threads: fs::read_dir(format!("/proc/{id}/task")).map_or(0, Iterator::count),
            files: fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count),
            cpu: cpu(&format!("/proc/{id}/stat")),
        }
    }

    /// With so many connections to the backend more: what was opened because it was needed stays, and others' RPCs find it.
    pub(crate) fn and_connections(self, more: usize) -> Self {
        Self {
            files: self.files + more,
            ..self
        }
    }

    /// Whether memory is what it was `before`, but for 10 % or 8 MiB.
    pub(super) fn memory_is_back(&self, before: &Self) -> bool {
        self.memory <= before.memory + (before.memory / 10).max(SLACK)
    }

    /// Whether there are as many files as `before`, but for 5.
    pub(super) fn files_are_back(&self, before: &Self) -> bool {
        self.files <= before.files + 5
    }

    /// Of the process `id` once both are back; or what it has `most` later.
    pub(crate) async fn at_rest(id: u32, before: &Self, most: Duration) -> Self {
        let mut rest = Self::of(id);
        until(most, || {
            rest = Self::of(id);
            std::future::ready(rest.memory_is_back(before) && rest.files_are_back(before))
        })
        .await;
        rest
    }
}

/// Processor time of this process's threads of that name, those that still run.
pub(super) fn threads(name: &str) -> Duration {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Duration::ZERO;
    };
    tasks
        .flatten()
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .map(|task| cpu(&task.path().join("stat").display().to_string()))
        .sum()
}

/// Processor time of programs that this process has started and waited for: fields 16 and 17 of its own.
pub(super) fn children() -> Duration {
    ticks("/proc/self/stat", 13)
}

/// A process's or a thread's own: fields 14 and 15.
fn cpu(path: &str) -> Duration {
    ticks(path, 11)
}

/// Two fields after so many that follow the name, which may have spaces; in ticks of 10 ms.
fn ticks(path: &str, skip: usize) -> Duration {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields = after.split_whitespace().skip(skip).take(2);
    Duration::from_millis(10 * fields.flat_map(str::parse::<u64>).sum::<u64>())
}

/// Bytes: allocators keep some.
pub(super) const SLACK: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files() {
        let usage = Usage::of(std::process::id());
        assert!(usage.memory > 1 << 20 && usage.files > 2);
        let leaked = Usage {
            memory: usage.memory + 2 * SLACK.max(usage.memory / 10),
            files: usage.files + 6,
            ..usage
        };
        assert!(usage.memory_is_back(&usage) && usage.files_are_back(&usage));
        assert!(!leaked.memory_is_back(&usage) && !leaked.files_are_back(&usage));
        assert_eq!(Usage::of(u32::MAX).files, 0);
    }
}
