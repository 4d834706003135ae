//! One cluster's state: its addresses, their health, who is ejected, and when each is looked at next. Pure: told what happened and
//! what time it is, it says what is due and what changed.
//!
//! What workers' hints do to it is in [`ejection`], what a reload does in [`reload`]. A check that changes nothing costs the
//! same however many endpoints there are ([`endpoints`]).

mod ejection;
mod endpoints;
mod reload;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::endpoints::{Endpoints, Entry};
use super::{
    config::{ClusterSpec, Discovery, HealthCheckSpec},
    discovery::{Answer, Lookup, Membership},
    health::{AT_A_TIME, Machine, Outcome, Passive},
    pace::{HURRIED, Pace, jittered},
    status::{CheckReport, CheckResult, Detected, LookupResult, Problem, Standing, now_ms},
};
use crate::snapshot::{EndpointShared, Health, Turns, circuit::Circuits, streak::Detector};

/// One cluster.
#[derive(Debug)]
pub(super) struct ClusterState {
    id: u64,
    pub(super) spec: ClusterSpec,
    /// Carried across publications and reloads.
    pub(super) turn: Arc<Turns>,
    /// Likewise.
    pub(super) circuits: Arc<Circuits>,
    pub(super) targets: Vec<TargetState>,
    pub(super) members: Membership,
    /// Exactly the members.
    pub(super) endpoints: Endpoints,
    /// Of the cluster that this one follows after a reload: an address that stays keeps its identity, and with it
    /// the workers' connections and its counters.
    inherited: BTreeMap<SocketAddr, Arc<EndpointShared>>,
    pub(super) lookups: BTreeMap<LookupResult, u64>,
    pub(super) checks: BTreeMap<CheckResult, u64>,
    /// Streaks of failures, by what became of them.
    pub(super) detections: BTreeMap<(Detector, Detected), u64>,
    /// The snapshot of it is out of date.
    pub(super) changed: bool,
    /// A reload waits for it to be healthy.
    awaited: bool,
}

/// One `host:port`.
#[derive(Debug)]
pub(super) struct TargetState {
    pub(super) pace: Pace,
    /// When it was first to be looked up.
    pub(super) since_ms: u64,
    /// The last answer, of either kind.
    pub(super) answered_at_ms: Option<u64>,
    /// Some answer has named an address.
    found: bool,
    pub(super) last_result: Option<LookupResult>,
    pub(super) last_error: Option<Problem>,
}

/// One address.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) shared: Arc<EndpointShared>,
    pub(super) machine: Machine,
    pub(super) pace: Pace,
    pub(super) since_ms: u64,
    pub(super) last_check: Option<CheckReport>,
    /// The check that the log's last line about its health is of.
    told: Option<CheckResult>,
    pub(super) passive: Passive,
    /// When its last ejection began, and when that ends by itself.
    pub(super) ejected_ms: (u64, u64),
    /// Its checks no longer come in step with those of the endpoints that came with it.
    spread: bool,
    /// As [`Endpoints`] knows it.
    entry: Entry,
}

/// What a check has changed of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// Nothing that others see.
    Nothing,
    /// Something that workers are to know.
    Published,
    /// That, and it is healthy now, or no longer.
    Turned,
}

/// Something to do now.
#[derive(Clone, Debug)]
pub(super) enum Due {
    /// Look up this target.
    LookUp(usize),
    /// Check this endpoint.
    Check(Arc<EndpointShared>),
}

impl ClusterState {
    /// Of a new cluster. `previous` is one of the same name that it will replace, if there is one: what DNS has said of the
    /// names that both have is known from the start, so that a reload forgets nothing that is still to be asked.
    pub(super) fn new(spec: ClusterSpec, previous: Option<&Self>, now: Instant) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut state = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            turn: previous.map_or_else(
                || Arc::new(Turns::anywhere()),
                |previous| previous.turn.clone(),
            ),
            circuits: previous.map_or_else(Arc::default, |previous| previous.circuits.clone()),
            targets: spec.targets.iter().map(|_| TargetState::new(now)).collect(),
            members: Membership::new(spec.targets.len(), spec.health_check.is_some()),
            endpoints: Endpoints::new(spec.health_check.is_some()),
            inherited: previous.map(Self::identities).unwrap_or_default(),
            lookups: BTreeMap::new(),
            checks: BTreeMap::new(),
            detections: BTreeMap::new(),
            changed: true,
            awaited: false,
            spec,
        };
        if let Some(previous) = previous {
            state.remember(previous, now);
        }
        if state.spec.discovery == Discovery::Static {
            for target in 0..state.spec.targets.len() {
                let spec = &state.spec.targets[target];
                // Validation let nothing but addresses through.
                let address = spec.host.parse();
                let found = Lookup::found(address.ok(), spec.port);
                state.looked_up(target, found, now, 0.0);
            }
        }
        state
    }

    /// Unique in the process: tells it from one of the same name that a reload brings.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Has the workers count by this cluster's thresholds and limits: it comes into force.
    pub(super) fn enforce(&mut self) {
        self.awaited = false;
        self.circuits.limit(&self.spec.circuit_breakers);
        for endpoint in self.endpoints.values() {
            let thresholds = &self.spec.outlier_detection.thresholds;
            endpoint.shared.streaks.watch(thresholds);
        }
    }

    /// What is to be done now, but for checks; counts as started.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Due> {
        while let Some(address) = self.endpoints.take_returning(now) {
            self.bring_back(address, |endpoint| endpoint.passive.advance(now));
        }
        let mut due = Vec::new();
        if self.spec.discovery == Discovery::StrictDns {
            let targets = self.targets.iter_mut().enumerate();
            due.extend(targets.filter_map(|(i, t)| t.pace.start(now).then_some(Due::LookUp(i))));
        }
        due
    }

    /// The check that has been due for longest; counts as started.
    pub(super) fn due_check(&mut self, now: Instant) -> Option<Due> {
        self.endpoints.start_check(now).map(Due::Check)
    }

    /// When the next check is due; the past, if it waits for room.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.endpoints.next_check()
    }

    /// When something else is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let look_up = match self.spec.discovery {
            Discovery::StrictDns => self.targets.iter().filter_map(|t| t.pace.due()).min(),
            Discovery::Static => None,
        };
        look_up
            .into_iter()
            .chain(self.endpoints.next_return())
            .min()
    }

    /// Whether the addresses that were found for `target` are IPv6.
    pub(super) fn is_at_six(&self, target: usize) -> bool {
        self.members.listed(target).any(|address| address.is_ipv6())
    }

    /// A look-up of `target` ended. `chance` (0 to 1) places the next one.
    pub(super) fn looked_up(&mut self, target: usize, lookup: Lookup, now: Instant, chance: f64) {
        let Some(state) = self.targets.get_mut(target) else {
            return;
        };
        *self.lookups.entry(lookup.result).or_default() += 1;
        state.found |= matches!(lookup.answer, Answer::Addresses(_));
        // Until the first address there is nothing to serve: no time to lose, also where DNS says that there is none. It
        // may not have heard of the name yet.
        let wait = if state.found {
            self.spec.refresh
        } else {
            self.spec.refresh.min(FIRST_ADDRESS)
        };
        state.pace.end(now + jittered(wait, chance));
        if lookup.answer != Answer::Failed {
            state.answered_at_ms = Some(now_ms());
        }
        self.tell(target, &lookup);
        let state = &mut self.targets[target];
        state.last_result = Some(lookup.result);
        state.last_error = lookup.error.map(Problem::now);
        self.members.answer(target, lookup.answer);
        self.settle(now);
    }

    /// A look-up of `target` ended by a panic: as one that failed, but it comes again in a second, whatever the refresh.
    pub(super) fn look_up_panicked(&mut self, target: usize, now: Instant, chance: f64) {
        let failed = Lookup::failed(LookupResult::Error, "internal error".into());
        self.looked_up(target, failed, now, chance);
        if let Some(state) = self.targets.get_mut(target) {
            state.pace.hurry(now);
        }
    }

    /// A check of the endpoint at `address` ended; `id` says whether it is still the one that was asked.
    pub(super) fn checked(
        &mut self,
        address: SocketAddr,
        id: u64,
        outcome: &Outcome,
        now: Instant,
        chance: f64,
    ) {
        let (Some(spec), Some(endpoint)) = (&self.spec.health_check, self.endpoints.get(&address))
        else {
            return;
        };
        if endpoint.shared.id != id {
            return;
        }
        *self.checks.entry(outcome.result()).or_default() += 1;
        let started = endpoint.pace.started().unwrap_or(now);
        let was_healthy = endpoint.machine.is_healthy();
        let threshold = spec.healthy_threshold;
        let cluster = &self.spec.name;
        let is_one_of_many = self.endpoints.len() > AT_A_TIME;
        let change = self.endpoints.change(address, |endpoint| {
            endpoint.spread |= !is_one_of_many;
            endpoint.checked(cluster, spec, outcome, now, chance)
        });
        self.changed |= change >= Some(Change::Published);
        if change >= Some(Change::Turned) {
            self.settle(now);
        }
        let passed = *outcome == Outcome::Serving;
        self.bring_back(address, |endpoint| {
            endpoint.passive.checked(passed, started, threshold, now)
        });
        let was_last = was_healthy && self.endpoints.healthy() == 0;
        self.hasten_checks((!was_last).then_some(address));
    }

    /// Every name has been answered, and not all with nothing.
    pub(super) fn answered(&self) -> bool {
        !self.endpoints.is_empty()
            && self
                .targets
                .iter()
                .all(|target| target.answered_at_ms.is_some())
    }

    /// That, and every endpoint's first check has ended.
    pub(super) fn warmed_up(&self) -> bool {
        self.answered() && self.endpoints.all_decided()
    }

    /// Some endpoint is healthy.
    pub(super) fn has_healthy(&self) -> bool {
        self.endpoints.healthy() > 0
    }

    /// Why none is, by endpoint, or by name where there is no endpoint.
    pub(super) fn why_none_is_healthy(&self) -> String {
        let endpoints = self.endpoints.values().map(|endpoint| {
            let label = &endpoint.shared.label;
            match endpoint.machine.health() {
                Health::Unhealthy(reason) => format!("{label}: {reason}"),
                Health::Unknown | Health::Healthy => {
                    format!("{label}: its first check hasn't ended")
                }
            }
        });
        let targets = self.spec.targets.iter().zip(&self.targets);
        let names = targets.filter(|_| self.endpoints.is_empty());
        let names = names.map(|(target, state)| match &state.last_error {
            Some(error) => format!("{}: {}", target.host, error.message),
            None => format!("{}: no answer yet", target.host),
        });
        let reasons: Vec<_> = endpoints.chain(names).take(REASONS).collect();
        reasons.join("; ")
    }

    /// Has endpoints that aren't healthy checked again a second after the last time, whatever the intervals, until it comes
    /// into force: somebody waits for a healthy one.
    pub(super) fn hurry_checks(&mut self) {
        self.awaited = true;
    }

    /// While no endpoint is healthy every RPC fails, so that the checks decide how long the cluster stays down after what
    /// ejected them all: they come as after a first failure, once a second at most.
    ///
    /// Looks at the endpoint at `address`, whose check has ended, or at all: the last healthy one no longer is.
    fn hasten_checks(&mut self, address: Option<SocketAddr>) {
        let Some(spec) = &self.spec.health_check else {
            return;
        };
        let period = if self.awaited {
            HURRIED
        } else if self.endpoints.healthy() == 0 {
            spec.unhealthy_edge_interval.max(HURRIED)
        } else {
            return;
        };
        let hasten = |endpoint: &mut EndpointState| {
            if !endpoint.machine.is_healthy() {
                endpoint.pace.at_least_every(period);
            }
        };
        match address {
            Some(address) => {
                self.endpoints.change(address, hasten);
            }
            None => self.endpoints.change_all(hasten),
        }
    }

    fn settle(&mut self, now: Instant) {
        let endpoints = &self.endpoints;
        let change = self.members.settle(|address| {
            endpoints
                .get(&address)
                .map_or(self.spec.health_check.is_none(), |endpoint| {
                    endpoint.machine.is_healthy()
                })
        });
        if change.is_empty() {
            return;
        }
        self.changed = true;
        for address in &change.removed {
            self.endpoints.remove(*address);
        }
        for address in &change.added {
            // What is inherited counts by the thresholds of the cluster in force, until this one is.
            let shared = self.inherited.remove(address).unwrap_or_else(|| {
                let shared = EndpointShared::new(*address);
                let thresholds = &self.spec.outlier_detection.thresholds;
                shared.streaks.watch(thresholds);
                shared
            });
            let machine = match self.spec.health_check {
                Some(_) => Machine::new(),
                None => Machine::always_healthy(),
            };
            self.endpoints.insert(
                *address,
                EndpointState {
                    shared,
                    machine,
                    pace: Pace::new(now),
                    since_ms: now_ms(),
                    last_check: None,
                    told: None,
                    passive: Passive::default(),
                    ejected_ms: (0, 0),
                    spread: false,
                    entry: Entry::default(),
                },
            );
        }
        let listed = |address: SocketAddr| self.members.standing(address) == Some(Standing::Listed);
        let mut unlisted = self.endpoints.keys().copied().collect::<Vec<_>>();
        unlisted.retain(|address| !listed(*address));
        tracing::info!(
            cluster = &*self.spec.name,
            added = ?change.added,
            removed = ?change.removed,
            // Endpoints still, though the last answer doesn't name them.
            unlisted = (!unlisted.is_empty()).then(|| tracing::field::debug(&unlisted)),
            endpoints = self.endpoints.len(),
            "endpoints changed"
        );
    }

    /// One line when a look-up fails after one that didn't, or the other way round; not one per look-up.
    fn tell(&self, target: usize, lookup: &Lookup) {
        if self.targets[target].last_result == Some(lookup.result) {
            return;
        }
        let cluster = &*self.spec.name;
        let name = &*self.spec.targets[target].host;
        match &lookup.error {
            Some(error) => {
                let becomes = match (&lookup.answer, &self.spec.health_check) {
                    (Answer::Empty, Some(_)) => {
                        "endpoints that are known stay while their checks pass"
                    }
                    _ => "the endpoints that are known stay",
                };
                let endpoints = self.endpoints.len();
                tracing::warn!(
                    cluster,
                    name,
                    error,
                    endpoints,
                    "DNS gave no addresses; {becomes}"
                );
            }
            None if self.targets[target].last_error.is_some() => {
                tracing::info!(cluster, name, "DNS answers again");
            }
            None => {}
        }
    }
}

impl EndpointState {
    /// A check of it ended.
    fn checked(
        &mut self,
        cluster: &str,
        spec: &HealthCheckSpec,
        outcome: &Outcome,
        now: Instant,
        chance: f64,
    ) -> Change {
        let started = self.pace.started().unwrap_or(now);
        let before = (
            self.machine.health().clone(),
            self.machine.close_connections(),
        );
        let wait = self.machine.record(outcome, spec);
        // Those that came together would go on in one row: an interval's checks in a second or two, then none.
        let wait = if wait == spec.interval && !std::mem::replace(&mut self.spread, true) {
            wait.mul_f64(chance)
        } else {
            jittered(wait, chance)
        };
        self.pace.end((started + wait).max(now));
        let (result, detail) = (outcome.result(), outcome.to_string());
        let previous = self.last_check.replace(CheckReport {
            at_ms: now_ms(),
            latency_us: now.duration_since(started).as_micros() as u64,
            result,
            detail: detail.clone(),
        });
        let after = (self.machine.health(), self.machine.close_connections());
        let turned = std::mem::discriminant(&before.0) != std::mem::discriminant(after.0);
        // What keeps it out may be something else than what it was first out for: a pod that refused connections while
        // it started has no health service. Of what isn't an answer two in a row, since such failures may alternate.
        let again = previous.is_some_and(|previous| previous.result == result);
        let is_why = matches!(after.0, Health::Unhealthy(reason) if **reason == *detail);
        let stands = is_why && (again || result.is_failing_answer());
        if turned || stands && self.told != Some(result) {
            self.told = Some(result);
            tell_health(cluster, &self.shared, after.0);
        }
        if turned {
            self.since_ms = now_ms();
            Change::Turned
        } else if (&before.0, before.1) != after {
            Change::Published
        } else {
            Change::Nothing
        }
    }
}

impl TargetState {
    fn new(now: Instant) -> Self {
        Self {
            pace: Pace::new(now),
            since_ms: now_ms(),
            answered_at_ms: None,
            found: false,
            last_result: None,
            last_error: None,
        }
    }
}

fn tell_health(cluster: &str, endpoint: &EndpointShared, health: &Health) {
    let endpoint = &*endpoint.label;
    match health {
        Health::Healthy => tracing::info!(cluster, endpoint, "healthy"),
        Health::Unhealthy(reason) => tracing::warn!(cluster, endpoint, %reason, "unhealthy"),
        // Nothing goes back to it.
        Health::Unknown => {}
    }
}

/// Between look-ups until a name's first address, if its refresh is longer.
const FIRST_ADDRESS: Duration = Duration::from_secs(1);

/// So many names or endpoints say why none is healthy; there may be thousands.
const REASONS: usize = 3;
