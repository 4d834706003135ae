//! How many files this process may have open, and how many connections of clients that leaves room for.
//!
//! Every connection is a file. A listener that runs out of them can't accept, but nor can the proxy connect to a backend
//! or open a certificate then: so the last tenth, and some, is never a client's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the kernel lets us (shells and service managers often start programs with 1024 of many
/// thousands that they might have), and gives it. No limit is `usize::MAX`.
pub fn raise() -> usize {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(_) => before,
    };
    let limit = now.current.map(usize::try_from);
    limit.and_then(Result::ok).unwrap_or(usize::MAX)
}

/// How many connections of clients there is room for within `files`; at least one.
pub fn connections(files: usize) -> usize {
    files.saturating_sub(files / 10 + OWN).max(1)
}

/// Listeners, runtimes' own, logs, operators' connections, the first connections to backends.
const OWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_and_some_is_kept() {
        assert_eq!(connections(20_000), 17_936);
        assert_eq!(connections(1024), 858);
        assert_eq!(connections(10), 1);
        assert!(connections(usize::MAX) > 10_000);
    }

    #[test]
    fn the_limit_is_what_the_kernel_has() {
        let limit = raise();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files"));
        let soft = line.unwrap().split_whitespace().nth(3).unwrap();
        assert!(soft == "unlimited" || soft == limit.to_string());
    }
}
