//! Step 5: path to route. (Skeleton: the author of the leaves replaces it.)
use crate::snapshot::Route;

/// The routes of one configuration, in file order.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
}

impl RouteTable {
    /// In file order: the first match wins.
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes }
    }

    /// All of them, in file order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first route whose prefix starts `path`, byte for byte.
    pub fn find(&self, path: &[u8]) -> Option<&Route> {
        self.routes.iter().find(|route| path.starts_with(route.prefix.as_bytes()))
    }
}
