//! Which gRPC methods have a label of their own.
//!
//! Operators want RPCs by method; the proxy knows no service definitions, and a path is whatever a
//! client writes into it. So a method becomes known once a backend *answered* it with OK or with a
//! message: then it exists, and their number is the backends', not the clients'. Any other status
//! proves nothing: what checks tokens or deadlines before it looks for a method gives them to made-up
//! names, too. As a backend may answer anything to everything, there is a bound per cluster too. All
//! other paths share one label.
//!
//! The set changes a few times in the life of a process and is looked at whenever a worker meets a
//! path it hasn't counted yet: it is an immutable map behind an `ArcSwap`, copied to change it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arc_swap::ArcSwap;

/// The known methods of all clusters; shared by all threads.
#[derive(Debug, Default)]
pub struct Methods(ArcSwap<HashMap<Arc<str>, HashSet<Arc<str>>>>);

impl Methods {
    /// The label of `path` (`/api.Echo/Echo` → `api.Echo/Echo`), if it is known in `cluster`.
    pub fn label(&self, cluster: &str, path: &[u8]) -> Option<Arc<str>> {
        let label = label(path)?;
        self.0.load().get(cluster)?.get(label).cloned()
    }

    /// Makes `path` known, unless it looks odd or the cluster has [`MAX_PER_CLUSTER`] already.
    pub fn learn(&self, cluster: &Arc<str>, path: &[u8]) {
        let Some(label) = label(path) else { return };
        let known = self.0.load();
        if known
            .get(cluster)
            .is_some_and(|set| set.len() >= MAX_PER_CLUSTER || set.contains(label))
        {
            return;
        }
        self.0.rcu(|known| {
            let mut next = HashMap::clone(known);
            let set = next.entry(Arc::clone(cluster)).or_default();
            if set.len() < MAX_PER_CLUSTER {
                set.insert(label.into());
            }
            next
        });
    }

    /// Knows nothing of these clusters any more.
    pub(super) fn forget(&self, clusters: &HashSet<Arc<str>>) {
        self.0.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.retain(|cluster, _| !clusters.contains(cluster));
            next
        });
    }
}

/// `/package.Service/Method` without its slash, if it has the form and the characters of gRPC names.
/// (The form also keeps [`UNKNOWN`] from being one.)
fn label(path: &[u8]) -> Option<&str> {
    let name = path.strip_prefix(b"/")?;
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_./-".contains(b);
    if name.len() > MAX_LENGTH || !name.contains(&b'/') || !name.iter().all(plain) {
        return None;
    }
    std::str::from_utf8(name).ok()
}

/// Everything else's label.
pub const UNKNOWN: &str = "unknown";
/// More than a large service has, few enough for every series of every worker.
pub const MAX_PER_CLUSTER: usize = 200;
const MAX_LENGTH: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_known_in_its_cluster_once_learned() {
        let (methods, echo) = (Methods::default(), Arc::from("echo"));
        assert_eq!(methods.label("echo", b"/api.Echo/Echo"), None);
        methods.learn(&echo, b"/api.Echo/Echo");
        assert_eq!(
            methods.label("echo", b"/api.Echo/Echo").as_deref(),
            Some("api.Echo/Echo")
        );
        assert_eq!(methods.label("other", b"/api.Echo/Echo"), None);
    }

    #[test]
    fn odd_paths_are_never_learned() {
        let (methods, echo) = (Methods::default(), Arc::from("echo"));
        let long = format!("/s/{}", "a".repeat(MAX_LENGTH + 1));
        for path in [
            "/s/a\"b", "/s/a b", "/s/a?b", "/s/ä", "/", "", "s/b", "/s/a\n", "/unknown", &long,
        ] {
            methods.learn(&echo, path.as_bytes());
            assert_eq!(methods.label("echo", path.as_bytes()), None, "{path:?}");
        }
    }

    #[test]
    fn a_backend_that_answers_everything_fills_its_own_cluster_only() {
        let (methods, echo) = (Methods::default(), Arc::from("echo"));
        for i in 0..MAX_PER_CLUSTER + 10 {
            methods.learn(&echo, format!("/s/m{i}").as_bytes());
        }
        assert!(
            methods
                .label("echo", format!("/s/m{}", MAX_PER_CLUSTER - 1).as_bytes())
                .is_some()
        );
        assert_eq!(
            methods.label("echo", format!("/s/m{MAX_PER_CLUSTER}").as_bytes()),
            None
        );
        methods.learn(&Arc::from("other"), b"/s/m");
        assert!(methods.label("other", b"/s/m").is_some());
    }
}
