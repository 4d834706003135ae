//! What the control plane does to the network, behind one trait: look-ups and checks.
//!
//! The loop only ever sees how they ended, so a test replaces them by a script and runs under paused time.

use std::{collections::HashMap, fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use super::{
    config::{HealthCheckSpec, LookupFamily, Target},
    discovery::{Lookup, Resolver},
    health::{Checker, Outcome},
};
use crate::snapshot::EndpointShared;

/// A job that the loop spawns and awaits.
pub(super) type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Look-ups and checks.
pub(super) trait Network: fmt::Debug + Send {
    /// Asks for the addresses of `target`; `at_six`: those that it has are IPv6.
    fn look_up(&mut self, target: &Target, family: LookupFamily, at_six: bool) -> Job<Lookup>;

    /// Checks `endpoint` once.
    fn check(&mut self, endpoint: &EndpointShared, spec: &HealthCheckSpec) -> Job<Outcome>;

    /// Closes what was kept for the checks of all endpoints but those that `kept` names by id.
    fn retain(&mut self, kept: &dyn Fn(u64) -> bool);
}

/// The real one.
#[derive(Debug)]
pub(super) struct Sockets {
    resolver: Resolver,
    /// By the endpoint's id: each has a lasting connection, and is made anew when the check is another.
    checkers: HashMap<u64, (HealthCheckSpec, Arc<Checker>)>,
}

impl Sockets {
    /// Asks these name servers (none: those of `/etc/resolv.conf`).
    pub(super) fn new(nameservers: &[SocketAddr]) -> Self {
        Self {
            resolver: Resolver::new(nameservers),
            checkers: HashMap::new(),
        }
    }
}

impl Network for Sockets {
    fn look_up(&mut self, target: &Target, family: LookupFamily, at_six: bool) -> Job<Lookup> {
        let (resolver, target) = (self.resolver.clone(), target.clone());
        Box::pin(async move { resolver.look_up(&target, family, at_six).await })
    }

    fn check(&mut self, endpoint: &EndpointShared, spec: &HealthCheckSpec) -> Job<Outcome> {
        let known = self
            .checkers
            .get(&endpoint.id)
            .filter(|(made_for, _)| made_for == spec);
        let checker = match known {
            Some((_, checker)) => checker.clone(),
            None => match Checker::new(endpoint, spec) {
                Ok(checker) => {
                    let checker = Arc::new(checker);
                    self.checkers
                        .insert(endpoint.id, (spec.clone(), checker.clone()));
                    checker
                }
                Err(error) => {
                    let outcome = Outcome::Connection(error.to_string());
                    return Box::pin(std::future::ready(outcome));
                }
            },
        };
        Box::pin(async move { checker.check().await })
    }

    fn retain(&mut self, kept: &dyn Fn(u64) -> bool) {
        self.checkers.retain(|id, _| kept(*id));
    }
}
