//! Which changes a reload can't make.

use super::Config;

/// The keys that differ between `old` and `new` and are only read at start: sockets, threads and the log's writer are
/// made then. A reload with such a change is refused whole, so that the file never promises what the process doesn't
/// do; everything else takes effect on reload.
pub fn restart_needed(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("workers", old.workers != new.workers),
        // The resolver is made with them.
        ("dns.nameservers", old.nameservers != new.nameservers),
        (
            "listener.address",
            old.listener_address != new.listener_address,
        ),
        ("admin.address", old.admin != new.admin),
        ("probes.address", old.probes != new.probes),
        // The writer's thread holds the open file and its format.
        (
            "access_log.format",
            old.access_log.format != new.access_log.format,
        ),
        (
            "access_log.path",
            old.access_log.path != new.access_log.path,
        ),
    ];
    changed
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key)
        .collect()
}
