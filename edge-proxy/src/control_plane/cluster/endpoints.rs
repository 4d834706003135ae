//! A cluster's endpoints, found by their address and by when something of theirs is due. Pure.
//!
//! There may be thousands, and as many checks that end each second, most of which change nothing. What is asked after each
//! of them (what is due now, when is something due next, is any endpoint healthy) is answered without a look at the
//! others: by an [`Index`]. That it always says what the endpoints say is why they change only within
//! [`change`](Endpoints::change).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Deref,
    sync::Arc,
};

use tokio::time::Instant;

use super::EndpointState;
use crate::snapshot::EndpointShared;

/// The endpoints. To be read it is the map by their addresses.
#[derive(Debug)]
pub(in crate::control_plane) struct Endpoints {
    by_address: BTreeMap<SocketAddr, EndpointState>,
    index: Index,
}

/// What is known of the endpoints without looking at them.
#[derive(Debug)]
struct Index {
    /// The cluster has health checks.
    checked: bool,
    /// When the next check is due of each endpoint that isn't being checked.
    checks: BTreeSet<(Instant, SocketAddr)>,
    /// When the ejection ends of each that is ejected.
    returns: BTreeSet<(Instant, SocketAddr)>,
    healthy: usize,
    /// Those whose first check hasn't ended.
    undecided: usize,
}

/// What of an endpoint is in the index. It stays with the endpoint, so that the index has what was put into it, whatever
/// has panicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    check: Option<Instant>,
    returns: Option<Instant>,
    healthy: bool,
    undecided: bool,
}

impl Endpoints {
    /// None yet, of a cluster with health checks or without.
    pub(super) fn new(checked: bool) -> Self {
        Self {
            by_address: BTreeMap::new(),
            index: Index {
                checked,
                checks: BTreeSet::new(),
                returns: BTreeSet::new(),
                healthy: 0,
                undecided: 0,
            },
        }
    }

    /// Changes the endpoint at `address`; `None`: there is none.
    pub(super) fn change<R>(
        &mut self,
        address: SocketAddr,
        change: impl FnOnce(&mut EndpointState) -> R,
    ) -> Option<R> {
        let endpoint = self.by_address.get_mut(&address)?;
        Some(self.index.follow(address, endpoint, change))
    }

    /// Changes each endpoint.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut EndpointState)) {
        for (address, endpoint) in &mut self.by_address {
            self.index.follow(*address, endpoint, &mut change);
        }
    }

    pub(super) fn insert(&mut self, address: SocketAddr, mut endpoint: EndpointState) {
        self.remove(address);
        self.index.follow(address, &mut endpoint, |_| ());
        self.by_address.insert(address, endpoint);
    }

    pub(super) fn remove(&mut self, address: SocketAddr) {
        if let Some(endpoint) = self.by_address.remove(&address) {
            self.index.remove(address, endpoint.entry);
        }
    }

    /// So many are healthy.
    pub(super) fn healthy(&self) -> usize {
        self.index.healthy
    }

    /// Of each the first check has ended.
    pub(super) fn all_decided(&self) -> bool {
        self.index.undecided == 0
    }

    /// When the next check is due.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.index.checks.first().map(|(due, _)| *due)
    }

    /// When the next ejection ends.
    pub(super) fn next_return(&self) -> Option<Instant> {
        self.index.returns.first().map(|(until, _)| *until)
    }

    /// Of the endpoints whose checks are due the one that has waited longest; the check counts as started.
    pub(super) fn start_check(&mut self, now: Instant) -> Option<Arc<EndpointShared>> {
        // Taken out first: whatever the endpoint says then, it isn't found here again.
        while let Some(address) = pop_due(&mut self.index.checks, now) {
            let started = self.change(address, |endpoint| {
                let starts = endpoint.pace.start(now);
                starts.then(|| endpoint.shared.clone())
            });
            if let Some(Some(shared)) = started {
                return Some(shared);
            }
        }
        None
    }

    /// One whose ejection is over at `now`: to be told so.
    pub(super) fn take_returning(&mut self, now: Instant) -> Option<SocketAddr> {
        pop_due(&mut self.index.returns, now)
    }
}

impl Deref for Endpoints {
    type Target = BTreeMap<SocketAddr, EndpointState>;
    fn deref(&self) -> &Self::Target {
        &self.by_address
    }
}

impl Index {
    fn follow<R>(
        &mut self,
        address: SocketAddr,
        endpoint: &mut EndpointState,
        change: impl FnOnce(&mut EndpointState) -> R,
    ) -> R {
        let result = change(endpoint);
        let entry = self.entry(endpoint);
        self.remove(address, endpoint.entry);
        self.add(address, entry);
        endpoint.entry = entry;
        result
    }

    fn entry(&self, endpoint: &EndpointState) -> Entry {
        Entry {
            check: endpoint.pace.due().filter(|_| self.checked),
            returns: endpoint.passive.ejection().map(|ejection| ejection.until),
            healthy: endpoint.machine.is_healthy(),
            undecided: !endpoint.machine.decided(),
        }
    }

    fn add(&mut self, address: SocketAddr, entry: Entry) {
        self.checks.extend(entry.check.map(|due| (due, address)));
        self.returns
            .extend(entry.returns.map(|until| (until, address)));
        self.healthy += usize::from(entry.healthy);
        self.undecided += usize::from(entry.undecided);
    }

    fn remove(&mut self, address: SocketAddr, entry: Entry) {
        if let Some(due) = entry.check {
            self.checks.remove(&(due, address));
        }
        if let Some(until) = entry.returns {
            self.returns.remove(&(until, address));
        }
        self.healthy -= usize::from(entry.healthy);
        self.undecided -= usize::from(entry.undecided);
    }
}

fn pop_due(times: &mut BTreeSet<(Instant, SocketAddr)>, now: Instant) -> Option<SocketAddr> {
    let (due, _) = times.first()?;
    if *due > now {
        return None;
    }
    times.pop_first().map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        control_plane::{
            config::{HealthCheckSpec, OutlierSpec},
            health::{Machine, Outcome, Passive},
            pace::Pace,
        },
        snapshot::streak::Detector,
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 8081))
    }

    fn endpoint(last: u8, now: Instant) -> EndpointState {
        EndpointState {
            shared: EndpointShared::new(address(last)),
            machine: Machine::new(),
            pace: Pace::new(now),
            since_ms: 0,
            last_check: None,
            told: None,
            passive: Passive::default(),
            ejected_ms: (0, 0),
            spread: false,
            entry: Entry::default(),
        }
    }

    fn spec() -> HealthCheckSpec {
        HealthCheckSpec {
            service: String::new(),
            timeout: SECOND,
            interval: 10 * SECOND,
            unhealthy_edge_interval: SECOND,
            unhealthy_threshold: 2,
            healthy_threshold: 2,
        }
    }

    /// What the index says is what a look at all endpoints finds.
    fn check(endpoints: &Endpoints) {
        let all = || endpoints.values();
        let due = all().filter_map(|endpoint| endpoint.pace.due()).min();
        assert_eq!(endpoints.next_check(), due);
        let ejections = all().filter_map(|endpoint| endpoint.passive.ejection());
        let until = ejections.map(|ejection| ejection.until).min();
        assert_eq!(endpoints.next_return(), until);
        let healthy = all().filter(|endpoint| endpoint.machine.is_healthy());
        assert_eq!(endpoints.healthy(), healthy.count());
        let all_decided = all().all(|endpoint| endpoint.machine.decided());
        assert_eq!(endpoints.all_decided(), all_decided);
    }

    #[test]
    fn the_index_follows_whatever_happens_to_an_endpoint() {
        let mut now = Instant::now();
        let mut endpoints = Endpoints::new(true);
        check(&endpoints);
        for last in 1..=5 {
            endpoints.insert(address(last), endpoint(last, now));
            check(&endpoints);
        }
        for round in 0..30_u8 {
            now += SECOND;
            while let Some(shared) = endpoints.start_check(now) {
                check(&endpoints);
                let outcome = match (usize::from(round) / 4 + shared.id as usize) % 3 {
                    0 => Outcome::TimedOut(SECOND),
                    1 => Outcome::NotServing(String::new()),
                    _ => Outcome::Serving,
                };
                endpoints.change(shared.address, |endpoint| {
                    let wait = endpoint.machine.record(&outcome, &spec());
                    endpoint.pace.end(now + wait);
                });
                check(&endpoints);
            }
            let one = address(round % 5 + 1);
            endpoints.change(one, |endpoint| endpoint.pace.hurry(now));
            endpoints.change(one, |endpoint| {
                let outliers = OutlierSpec::default();
                endpoint
                    .passive
                    .eject(Detector::LocalOrigin, &outliers, now);
            });
            check(&endpoints);
            while let Some(address) = endpoints.take_returning(now) {
                endpoints.change(address, |endpoint| endpoint.passive.advance(now));
                check(&endpoints);
            }
            endpoints.change_all(|endpoint| endpoint.pace.at_least_every(3 * SECOND));
            check(&endpoints);
            if round % 7 == 0 {
                endpoints.remove(one);
                check(&endpoints);
                endpoints.insert(one, endpoint(round % 5 + 1, now));
                // In the place of another.
                endpoints.insert(one, endpoint(round % 5 + 1, now));
                check(&endpoints);
            }
        }
        assert_eq!(endpoints.change(address(9), |_| ()), None);
    }

    #[test]
    fn what_has_waited_longest_is_checked_first_and_none_where_there_are_no_checks() {
        let now = Instant::now();
        for checked in [true, false] {
            let mut endpoints = Endpoints::new(checked);
            for (last, ago) in [(1, 1), (2, 3), (3, 2)] {
                endpoints.insert(address(last), endpoint(last, now - ago * SECOND));
            }
            let order: Vec<_> = std::iter::from_fn(|| endpoints.start_check(now))
                .map(|shared| shared.address)
                .collect();
            let expected = [2, 3, 1].map(address);
            assert_eq!(order, expected[..if checked { 3 } else { 0 }]);
        }
    }

    #[test]
    fn a_change_that_panics_leaves_nothing_wrong_behind() {
        let now = Instant::now();
        let mut endpoints = Endpoints::new(true);
        endpoints.insert(address(1), endpoint(1, now));
        let panics = std::panic::AssertUnwindSafe(|| {
            endpoints.change(address(1), |endpoint| {
                endpoint.machine.record(&Outcome::Serving, &spec());
                panic!("on purpose");
            })
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        endpoints.change(address(1), |_| ());
        check(&endpoints);
        assert_eq!(endpoints.healthy(), 1);
    }
}
