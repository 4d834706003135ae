//! The name by which users tell one replica from another.

use std::ffi::OsString;

/// This machine's name: the variable `HOSTNAME` (Kubernetes' container runtimes set it to the
/// pod's name), else what the kernel calls this host.
pub(crate) fn hostname() -> String {
    choose(std::env::var_os("HOSTNAME"), || {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    })
}

fn choose(variable: Option<OsString>, kernel: impl FnOnce() -> String) -> String {
    match variable {
        Some(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => kernel(),
    }
}

#[cfg(test)]
mod tests {
    use super::{choose, hostname};

    #[test]
    fn the_variable_wins_unless_it_is_empty() {
        let kernel = || "node".to_owned();
        assert_eq!(choose(Some("pod-1".into()), kernel), "pod-1");
        assert_eq!(choose(Some("".into()), kernel), "node");
        assert_eq!(choose(None, kernel), "node");
    }

    #[test]
    fn there_is_always_a_name() {
        assert!(!hostname().is_empty());
    }
}
