//! `routes`: what each leads to, and whether it is ever reached.

use std::time::Duration;

use super::check::Check;
use crate::{
    control_plane::config::{file, place::At, problem::did_you_mean},
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
        let mut routes: Vec<Route> = Vec::new();
        for route in &file.value {
            self.path(&route.prefix, "/package.Service/");
            self.reachable(&route.prefix, &routes);
            let action = match (&route.cluster, &route.direct_response) {
                (Some(name), None) => {
                    let cluster = index_of(&name.value);
                    match cluster {
                        Some(index) => used[index] = true,
                        None => self.unknown_cluster(name, &clusters.value),
                    }
                    self.cluster_action(route, cluster.unwrap_or_default())
                }
                (None, Some(response)) => self.direct_response(route, &response.value),
                (None, None) => {
                    let message =
                        "leads nowhere: write `cluster: NAME` or `direct_response:` below it";
                    self.report.error(route.prefix.place, message);
                    continue;
                }
                (Some(_), Some(response)) => {
                    let message = "a route has either this or `cluster`: take one of them out";
                    self.report.error(response.place, message);
                    continue;
                }
            };
            routes.push(Route {
                prefix: route.prefix.value.as_str().into(),
                action,
            });
        }
        for (cluster, used) in clusters.value.iter().zip(used) {
            if !used {
                let message = format!("no route leads to `{}`", cluster.name.value);
                self.report.warning(cluster.name.place, message);
            }
        }
        routes
    }

    fn cluster_action(&mut self, route: &file::Route, cluster: usize) -> RouteAction {
        RouteAction::Cluster {
            cluster,
            timeout: route
                .timeout
                .as_ref()
                .map(|at| self.duration(Some(at), Duration::MAX)),
            max_grpc_timeout: route
                .max_grpc_timeout
                .as_ref()
                .map(|at| self.duration(Some(at), Duration::MAX)),
        }
    }

    fn direct_response(&mut self, route: &file::Route, file: &file::DirectResponse) -> RouteAction {
        for at in [&route.timeout, &route.max_grpc_timeout]
            .into_iter()
            .flatten()
        {
            self.report.error(
                at.place,
                "has no effect beside `direct_response`: take it out",
            );
        }
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
        let known = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let message = format!(
            "no cluster is named `{}`: {}clusters here: {known}",
            name.value,
            did_you_mean(&name.value, names),
        );
        self.report.error(name.place, message);
    }

    /// The first match wins: behind a prefix of itself a route is never tried.
    fn reachable(&mut self, prefix: &At<String>, before: &[Route]) {
        if let Some(first) = before
            .iter()
            .find(|route| prefix.value.starts_with(&*route.prefix))
        {
            let message = format!(
                "is never reached, as `{}` before it takes its requests: put this one first",
                first.prefix
            );
            self.report.warning(prefix.place, message);
        }
    }
}
