//! `routes`: what each leads to, and whether it is ever reached.

use std::time::Duration;

use super::check::Check;
use crate::{
    control_plane::config::{
        file,
        place::At,
        problem::{Shown, did_you_mean},
    },
    data_plane::route::{RouteTable, Unreachable},
    snapshot::{Route, RouteAction},
};

impl Check<'_, '_> {
    pub(super) fn routes(
        &mut self,
        file: &At<Vec<file::Route>>,
        clusters: &At<Vec<file::Cluster>>,
    ) -> Vec<Route> {
        if file.value.is_empty() {
            self.report.error(
                file.place,
                "no route: write at least one `prefix` and its `cluster`",
            );
        }
        let index_of = |name: &str| clusters.value.iter().position(|c| c.name.value == name);
        let mut used = vec![false; clusters.value.len()];
        // One for each of the file, whatever is wrong with it.
        let mut routes: Vec<Route> = Vec::new();
        for route in &file.value {
            self.path(&route.prefix, "/package.Service/");
            let cluster = route.cluster.as_ref().map(|name| {
                let cluster = index_of(&name.value);
                match cluster {
                    Some(index) => used[index] = true,
                    None => self.unknown_cluster(name, &clusters.value),
                }
                cluster.unwrap_or_default()
            });
            let direct = route.direct_response.as_ref();
            match (cluster, direct) {
                (None, None) => self.report.error(
                    route.prefix.place,
                    "leads nowhere: write `cluster: NAME` or `direct_response:` below it",
                ),
                (Some(_), Some(direct)) => self.report.error(
                    direct.place,
                    "a route has either this or `cluster`: take one of them out",
                ),
                _ => {}
            }
            let times = [&route.timeout, &route.max_grpc_timeout];
            let [timeout, max_grpc_timeout] = times.map(|at| {
                let at = at.as_ref()?;
                if cluster.is_none() && direct.is_some() {
                    let message = "has no effect beside `direct_response`: take it out";
                    self.report.error(at.place, message);
                    return None;
                }
                Some(self.duration(Some(at), Duration::MAX))
            });
            let direct = direct.map(|at| self.direct_response(&at.value));
            let action = direct.unwrap_or(RouteAction::Cluster {
                cluster: cluster.unwrap_or_default(),
                timeout,
                max_grpc_timeout,
            });
            routes.push(Route {
                prefix: route.prefix.value.as_str().into(),
                action,
            });
        }
        self.unreachable(&file.value, &routes);
        for (cluster, used) in clusters.value.iter().zip(used) {
            if !used {
                let message = format!("no route leads to `{}`", Shown(&cluster.name.value));
                self.report.warning(cluster.name.place, message);
            }
        }
        routes
    }

    fn direct_response(&mut self, file: &file::DirectResponse) -> RouteAction {
        RouteAction::DirectResponse {
            status: self.number(Some(&file.status), 200, 200..=599) as u16,
            body: file.body.as_ref().map_or("", |at| &at.value).into(),
        }
    }

    fn unknown_cluster(&mut self, name: &At<String>, clusters: &[file::Cluster]) {
        let mut names: Vec<_> = clusters
            .iter()
            .map(|cluster| cluster.name.value.as_str())
            .collect();
        names.dedup();
        let known: Vec<_> = names.iter().map(|name| Shown(name).to_string()).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        let message = format!(
            "no cluster is named `{}`: {}clusters here: {known}",
            Shown(&name.value),
            did_you_mean(&name.value, names),
        );
        self.report.error(name.place, message);
    }

    /// The first match wins: behind a prefix of itself a route is never tried.
    fn unreachable(&mut self, written: &[file::Route], routes: &[Route]) {
        for Unreachable { route, because_of } in RouteTable::new(routes.to_vec()).unreachable() {
            let first = &routes[because_of].prefix;
            let message = if *first == routes[route].prefix {
                "is never reached, as the same prefix before it takes its requests: take one of them out"
                    .to_owned()
            } else {
                format!(
                    "is never reached, as `{}` before it takes its requests: put this one first",
                    Shown(first)
                )
            };
            self.report.warning(written[route].prefix.place, message);
        }
    }
}
