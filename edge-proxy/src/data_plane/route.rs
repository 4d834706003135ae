//! Step 6: path to route. The first route in file order whose prefix starts the path, byte for byte, never decoded or
//! normalised: what a backend would make of `/api%2eEcho/` is not the edge's to guess.
//!
//! A loop over the routes costs more with every route. Here the distinct prefixes stand sorted, and each knows the
//! longest other one that starts it (its parent). Whatever starts the path is an ancestor of the last prefix that
//! doesn't sort behind the path, so one binary search and a short walk up find the longest match; and because all
//! shorter matches are *its* ancestors, the smallest index among them is known when the table is built. A look-up with
//! 1000 routes is ten comparisons over bytes that lie together, with two routes it is one or two.

use crate::snapshot::Route;

/// The routes of one configuration, in file order.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    /// The distinct prefixes, sorted by their bytes.
    prefixes: Vec<Prefix>,
    /// All their bytes, one behind the other.
    bytes: Vec<u8>,
}

/// One distinct prefix.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Its place in `bytes`.
    start: usize,
    end: usize,
    /// The longest other prefix that starts this one, as an index into `prefixes`.
    parent: Option<usize>,
    /// The smallest index into `routes` among this prefix and all its ancestors.
    first: usize,
}

/// A route that no request can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Its index, in file order.
    pub route: usize,
    /// The earlier route that takes all its requests.
    pub because_of: usize,
}

impl RouteTable {
    /// In file order: the first match wins.
    pub fn new(routes: Vec<Route>) -> Self {
        let prefix = |index: &usize| routes[*index].prefix.as_bytes();
        let mut order: Vec<usize> = (0..routes.len()).collect();
        // Stable: of equal prefixes the first in the file stays in front, and the others are never asked.
        order.sort_by(|a, b| prefix(a).cmp(prefix(b)));
        order.dedup_by(|later, first| prefix(later) == prefix(first));

        let mut bytes = Vec::new();
        let mut prefixes: Vec<Prefix> = Vec::with_capacity(order.len());
        for index in order {
            let start = bytes.len();
            bytes.extend_from_slice(prefix(&index));
            let end = bytes.len();
            // Whatever starts this prefix is the one before it, or starts that one too.
            let mut parent = prefixes.len().checked_sub(1);
            while let Some(at) = parent
                && !bytes[start..end].starts_with(&bytes[prefixes[at].start..prefixes[at].end])
            {
                parent = prefixes[at].parent;
            }
            let first = parent.map_or(index, |at| index.min(prefixes[at].first));
            prefixes.push(Prefix {
                start,
                end,
                parent,
                first,
            });
        }
        Self {
            routes,
            prefixes,
            bytes,
        }
    }

    /// All of them, in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first route whose prefix starts `path`, byte for byte.
    pub fn find(&self, path: &[u8]) -> Option<&Route> {
        self.position(path).and_then(|index| self.routes.get(index))
    }

    /// The routes that an earlier one shadows: its prefix starts theirs. Told to the operator by `check`.
    pub fn unreachable(&self) -> Vec<Unreachable> {
        let routes = self.routes.iter().enumerate();
        routes
            .filter_map(|(route, Route { prefix, .. })| {
                let because_of = self.position(prefix.as_bytes())?;
                (because_of != route).then_some(Unreachable { route, because_of })
            })
            .collect()
    }

    fn position(&self, path: &[u8]) -> Option<usize> {
        let behind = self
            .prefixes
            .partition_point(|prefix| self.text(prefix) <= path);
        let mut at = behind.checked_sub(1);
        while let Some(prefix) = at.and_then(|at| self.prefixes.get(at)) {
            if path.starts_with(self.text(prefix)) {
                return Some(prefix.first);
            }
            at = prefix.parent;
        }
        None
    }

    fn text(&self, prefix: &Prefix) -> &[u8] {
        &self.bytes[prefix.start..prefix.end]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::RouteAction;

    fn table<S: AsRef<str>>(prefixes: &[S]) -> RouteTable {
        let routes = prefixes.iter().enumerate().map(|(cluster, prefix)| Route {
            prefix: prefix.as_ref().into(),
            action: RouteAction::Cluster {
                cluster,
                timeout: None,
                max_grpc_timeout: None,
            },
        });
        RouteTable::new(routes.collect())
    }

    fn found(table: &RouteTable, path: &str) -> Option<usize> {
        let route = table.find(path.as_bytes())?;
        table
            .routes()
            .iter()
            .position(|other| std::ptr::eq(other, route))
    }

    #[test]
    fn paths_are_compared_byte_for_byte() {
        let table = table(&["/api.Echo/", "/api.Reverse/"]);
        assert_eq!(found(&table, "/api.Echo/Echo"), Some(0));
        assert_eq!(found(&table, "/api.Echo/"), Some(0));
        assert_eq!(found(&table, "/api.Reverse/Reverse"), Some(1));
        for path in [
            "",
            "/",
            "/api.Echo",
            "/api.EchoAdmin/x",
            "//api.Echo/",
            "/api%2eEcho/",
            "/api%2EEcho/Echo",
            "/API.Echo/Echo",
            "/x/../api.Echo/Echo",
            "/api.Zecho/",
            "api.Echo/Echo",
        ] {
            assert_eq!(found(&table, path), None, "{path:?}");
        }
    }

    #[test]
    fn the_first_match_in_file_order_wins_not_the_longest() {
        let wide_first = table(&["/api.", "/api.Echo/", "/"]);
        assert_eq!(found(&wide_first, "/api.Echo/Echo"), Some(0));
        assert_eq!(found(&wide_first, "/x"), Some(2));
        let narrow_first = table(&["/api.Echo/", "/api.", "/"]);
        assert_eq!(found(&narrow_first, "/api.Echo/Echo"), Some(0));
        assert_eq!(found(&narrow_first, "/api.Other/x"), Some(1));
        assert_eq!(found(&narrow_first, "/other"), Some(2));
    }

    #[test]
    fn an_empty_table_and_an_empty_prefix() {
        assert_eq!(found(&RouteTable::default(), "/a"), None);
        assert_eq!(found(&table::<&str>(&[]), "/a"), None);
        let all = table(&["/a/", ""]);
        assert_eq!(found(&all, ""), Some(1));
        assert_eq!(found(&all, "/a/b"), Some(0));
    }

    #[test]
    fn shadowed_routes_are_told() {
        let shadowed = table(&["/a/", "/b/", "/a/b/", "/b/", "/a"]).unreachable();
        let pairs: Vec<_> = shadowed.iter().map(|u| (u.route, u.because_of)).collect();
        assert_eq!(pairs, [(2, 0), (3, 1)]);
        assert_eq!(table(&["/a/b/", "/a/", "/"]).unreachable(), []);
    }

    proptest! {
        /// Few letters, so that prefixes of one another, duplicates and near misses are the rule.
        #[test]
        fn agrees_with_the_loop(
            prefixes in prop::collection::vec("[ab/]{0,5}", 0..40),
            paths in prop::collection::vec("[ab/]{0,8}", 1..40),
        ) {
            let table = table(&prefixes);
            for path in &paths {
                let naive = prefixes.iter().position(|prefix| path.starts_with(prefix.as_str()));
                prop_assert_eq!(found(&table, path), naive, "{:?} in {:?}", path, &prefixes);
            }
            let naive = prefixes.iter().enumerate().filter_map(|(route, prefix)| {
                let because_of = prefixes.iter().position(|p| prefix.starts_with(p.as_str()))?;
                (because_of != route).then_some(Unreachable { route, because_of })
            });
            prop_assert_eq!(table.unreachable(), naive.collect::<Vec<_>>());
        }
    }
}
