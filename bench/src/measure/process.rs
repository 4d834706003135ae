//! The processes of one peer: a master and its workers, with all of their threads.
//!
//! CPU time is the scheduler's own account (`/proc/PID/task/TID/schedstat`, nanoseconds on a core, user and system
//! together): `utime` and `stime` count ticks of 10 ms. Memory is the proportional set size, so that pages which a
//! master shares with its workers count once.

use std::fs;

use anyhow::Context as _;

/// A process and its descendants, as they were when it was ready: no peer starts more under load.
#[derive(Clone, Debug)]
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    /// `root` and all that descends from it.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub(crate) fn of(root: u32) -> anyhow::Result<Self> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // It may have ended since.
            if let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat"))
                && let Some(parent) = parent(&stat)
            {
                parents.push((id, parent));
            }
        }
        let mut found = vec![root];
        let mut next = 0;
        while let Some(&of) = found.get(next) {
            found.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| *parent == of)
                    .map(|(id, _)| *id),
            );
            next += 1;
        }
        Ok(Self(found))
    }

    /// Their ids.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.0.clone()
    }

    /// Nanoseconds that all threads have been on a core.
    ///
    /// # Errors
    /// When a process has ended, or the kernel keeps no such account.
    pub(crate) fn cpu(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for id in &self.0 {
            let tasks = fs::read_dir(format!("/proc/{id}/task"))
                .with_context(|| format!("process {id} has ended"))?;
            for task in tasks {
                let path = task?.path().join("schedstat");
                // A thread may have ended since.
                let Ok(text) = fs::read_to_string(&path) else {
                    continue;
                };
                total += first_number(&text).with_context(|| {
                    format!(
                        "{}: no time in {text:?}; is CONFIG_SCHED_INFO on?",
                        path.display()
                    )
                })?;
            }
        }
        Ok(total)
    }

    /// Bytes of memory, shared pages divided among those who share them.
    ///
    /// # Errors
    /// When a process has ended, or isn't ours to look at.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        self.sum("smaps_rollup", "Pss:")
    }

    /// The most memory that was resident since [`forget_peak`](Self::forget_peak), in bytes.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<u64> {
        self.sum("status", "VmHWM:")
    }

    /// Starts [`peak_memory`](Self::peak_memory) anew: proc(5), `clear_refs`, 5.
    ///
    /// # Errors
    /// When a process has ended, or isn't ours to change.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        for id in &self.0 {
            let path = format!("/proc/{id}/clear_refs");
            fs::write(&path, "5").with_context(|| format!("cannot write {path}"))?;
        }
        Ok(())
    }

    fn sum(&self, file: &str, field: &str) -> anyhow::Result<u64> {
        let mut kib = 0;
        for id in &self.0 {
            let path = format!("/proc/{id}/{file}");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            kib += line
                .and_then(first_number)
                .with_context(|| format!("{path} has no {field}"))?;
        }
        Ok(kib * 1024)
    }
}

/// The parent in `/proc/PID/stat`: the second field after the name, which is in parentheses and may hold some.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(parent("12 (a) b (c)) S 7 12 12 0"), Some(7));
    }

    #[test]
    fn this_process_has_time_and_memory() {
        let own = Processes::of(std::process::id()).unwrap();
        let before = own.cpu().unwrap();
        let mut sum = 0_u64;
        while own.cpu().unwrap() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own.memory().unwrap() > 100_000);
        assert!(own.peak_memory().unwrap() > 100_000);
    }
}
