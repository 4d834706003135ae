//! What the kernel knows of this process: memory and processor time, from `/proc/self`.

use std::{fs, time::Duration};

/// Bytes of memory that are resident; `None` where `/proc` can't say.
pub fn resident_bytes() -> Option<u64> {
    parse_resident(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Processor time of all threads so far, in user space and in the kernel.
pub fn cpu_time() -> Option<Duration> {
    parse_cpu(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// `VmRSS:     1234 kB`. (`statm` has the same in pages, whose size would have to be asked for.)
fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// proc_pid_stat(5): fields 14 and 15 are `utime` and `stime`; field 2, the name, is in parentheses
/// and may hold anything, parentheses too.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest
        .split_ascii_whitespace()
        .skip(11)
        .map(str::parse::<u64>);
    let ticks = fields.next()?.ok()?.checked_add(fields.next()?.ok()?)?;
    Some(Duration::from_millis(ticks.checked_mul(MILLIS_PER_TICK)?))
}

/// Linux tells user space 100 ticks a second on every architecture that this runs on (`USER_HZ`).
const MILLIS_PER_TICK: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(cpu_time().is_some());
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        assert_eq!(
            parse_resident("Name:\tx\nVmRSS:\t   12 kB\n"),
            Some(12 * 1024)
        );
        assert_eq!(parse_resident("VmRSS: many kB"), None);
        assert_eq!(parse_resident(""), None);
        let stat = "1 (a) b) S 0 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_cpu("1 (x) S 0"), None);
        assert_eq!(parse_cpu(""), None);
    }
}
