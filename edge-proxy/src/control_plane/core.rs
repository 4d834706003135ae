//! The control plane's loop: waits for anything to happen, applies it, starts what is due, publishes what changed.
//!
//! Nothing here blocks or takes long: look-ups, checks and file reads are jobs of their own ([`jobs`]), and one that
//! panics costs its own result. The loop itself is caught, too: its state is plain data and each step leaves it
//! whole enough to go on.
//!
//! The loop is its runtime's root, and what shares that (probes, metrics, every job) runs when it waits. Endpoints that
//! refuse under load leave new hints as fast as they are taken, so these are looked at every [`HINTS_PACE`] at most; and
//! after each step everybody else has a turn.
//!
//! With a thousand endpoints a check ends every few milliseconds, or more often. Most change nothing but a time and a count: such a
//! step looks at no other endpoint. What workers are to know is published at once; the report, which names all endpoints, is
//! made every [`REPORT_PACE`] at most.

mod jobs;
mod reload;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{Instant, sleep_until},
};

use self::{
    jobs::{Ended, Jobs},
    reload::Reloads,
};
use super::{
    Command, assemble, certs,
    cluster::ClusterState,
    config::Config,
    network::Network,
    status::{Readiness, Report, Status, now_ms},
    supervise::{Panics, RESTART, caught},
};
use crate::{
    data_plane::route::RouteTable,
    snapshot::{Cluster, Hints, Publisher, Reader, Snapshot},
};

/// All of the control plane's state.
pub(super) struct Core {
    config: Arc<Config>,
    /// In the configuration's order.
    clusters: Vec<InForce>,
    certificate: certs::Served,
    reloads: Reloads,
    jobs: Jobs,
    /// Which cluster's check was started last.
    turn: usize,
    serving: bool,
    /// Latched: see [`Readiness::warmed_up`].
    warmed_up: bool,
    started: Instant,
    started_at_ms: u64,
    /// The snapshot is out of date in something else than its clusters.
    changed: bool,
    /// So is the report.
    unreported: bool,
    /// It is brought up to date no sooner, unless somebody waits for it.
    report_from: Instant,
    panics: Panics,
    publisher: Publisher,
    status: Arc<Status>,
    /// Told once: the listener may open.
    first_answered: watch::Sender<bool>,
    hints: Arc<Hints>,
    /// They are looked at no sooner.
    hints_from: Instant,
    orders: mpsc::UnboundedReceiver<Command>,
}

/// A cluster, and its part of the published snapshot.
#[derive(Debug)]
struct InForce {
    state: ClusterState,
    published: Arc<Cluster>,
}

/// What the loop is connected to.
pub(super) struct Wires {
    pub(super) hints: Arc<Hints>,
    pub(super) orders: mpsc::UnboundedReceiver<Command>,
    pub(super) first_answered: watch::Sender<bool>,
    pub(super) network: Box<dyn Network>,
    pub(super) panics: Panics,
}

/// Whether the loop goes on.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Continue,
    Stop,
}

impl Core {
    /// With nothing resolved or checked yet, and the first snapshot of it.
    pub(super) fn new(
        config: Config,
        source: Option<PathBuf>,
        certificate: certs::Served,
        wires: Wires,
    ) -> (Self, Reader, Arc<Status>) {
        let now = Instant::now();
        let config = Arc::new(config);
        let clusters: Vec<_> = config
            .clusters
            .iter()
            .map(|spec| InForce::new(ClusterState::new(spec.clone(), None, now)))
            .collect();
        let (publisher, reader) = Publisher::new(Snapshot {
            generation: 1,
            listener: config.listener.clone(),
            routes: Arc::new(RouteTable::new(config.routes.clone())),
            clusters: clusters
                .iter()
                .map(|cluster| cluster.published.clone())
                .collect(),
            tls: certificate.current().map(|pair| pair.identity.clone()),
            serving: true,
        });
        let mut core = Self {
            reloads: Reloads::new(source),
            jobs: Jobs::new(wires.network, wires.panics.clone()),
            turn: 0,
            serving: true,
            warmed_up: false,
            started: now,
            started_at_ms: now_ms(),
            changed: false,
            unreported: true,
            report_from: now,
            status: Status::new(Report {
                started_at_ms: now_ms(),
                generation: 1,
                readiness: Readiness::default(),
                configuration: Reloads::new(None).report(&config),
                certificate: certificate.report(),
                clusters: Vec::new(),
                panics: 0,
            }),
            config,
            clusters,
            certificate,
            panics: wires.panics,
            publisher,
            first_answered: wires.first_answered,
            hints: wires.hints,
            hints_from: now,
            orders: wires.orders,
        };
        core.report(now);
        let status = core.status.clone();
        (core, reader, status)
    }

    /// Until it is told to stop, or nobody is left to tell it.
    pub(super) async fn run(mut self) {
        self.certificate.watch(&self.panics);
        self.reloads.watch(&self.panics);
        loop {
            match caught(self.step()).await {
                // Other tasks, timers and sockets come first, whatever is ready here.
                Ok(Step::Continue) => yield_now().await,
                Ok(Step::Stop) => return,
                Err(_) => {
                    self.panics.count("control loop");
                    self.unreported = true;
                    tokio::time::sleep(RESTART).await;
                }
            }
        }
    }

    /// Starts what is due, publishes, waits for something to happen, and applies it.
    async fn step(&mut self) -> Step {
        let now = Instant::now();
        self.start_due(now);
        self.advance_reload(now);
        self.latch(now);
        self.publish();
        self.announce(now);
        if self.unreported && now >= self.report_from {
            self.report(now);
        }

        let wake = self.next_wake(now);
        tokio::select! {
            order = self.orders.recv() => match order {
                None | Some(Command::Stop) => return Step::Stop,
                Some(order) => self.obey(order),
            },
            ended = self.jobs.next() => {
                let now = Instant::now();
                self.ended(ended, now);
                while let Some(ended) = self.jobs.try_next() {
                    self.ended(ended, now);
                }
            }
            () = hinted(&self.hints, self.hints_from) => {
                let now = Instant::now();
                self.hints_from = now + HINTS_PACE;
                self.all_clusters().for_each(|cluster| cluster.take_hints(now));
                self.unreported = true;
            }
            event = self.certificate.next_event() => {
                self.unreported = true;
                self.changed |= self.certificate.found(event, Instant::now());
            }
            () = self.reloads.file_changed() => self.reread(None),
            () = sleep_until(wake) => {}
        }
        Step::Continue
    }

    fn obey(&mut self, order: Command) {
        match order {
            Command::SetServing(serving, done) => {
                self.changed |= self.serving != serving;
                self.serving = serving;
                self.publish();
                self.report(Instant::now());
                // Whoever asked may have gone.
                let _ = done.send(());
            }
            Command::Reload(done) => self.reread(Some(done)),
            // `step` returned for it.
            Command::Stop => {}
        }
    }

    fn ended(&mut self, ended: Ended, now: Instant) {
        self.unreported = true;
        let chance = rand::random::<f64>();
        match ended {
            Ended::LookUp {
                cluster,
                target,
                lookup,
            } => {
                if let Some(cluster) = self.all_clusters().find(|c| c.id() == cluster) {
                    match lookup {
                        Some(lookup) => cluster.looked_up(target, lookup, now, chance),
                        None => cluster.look_up_panicked(target, now, chance),
                    }
                }
            }
            Ended::Check {
                cluster,
                endpoint,
                outcome,
            } => {
                if let Some(cluster) = self.all_clusters().find(|c| c.id() == cluster) {
                    cluster.checked(endpoint.address, endpoint.id, &outcome, now, chance);
                }
            }
            Ended::Read(read) => self.read(read, now),
        }
    }

    fn start_due(&mut self, now: Instant) {
        let fresh = self
            .reloads
            .plan
            .iter_mut()
            .flat_map(|plan| plan.fresh_mut());
        let in_force = self.clusters.iter_mut().map(|cluster| &mut cluster.state);
        let mut clusters: Vec<_> = in_force.chain(fresh).collect();
        for cluster in &mut clusters {
            for due in cluster.due(now) {
                self.jobs.start(cluster, due, now);
            }
        }
        // One check of each cluster in turn, for as long as there is room.
        let (count, mut idle) = (clusters.len(), 0);
        while idle < count && self.jobs.has_room(now) {
            self.turn = (self.turn + 1) % count;
            let cluster = &mut clusters[self.turn];
            match cluster.due_check(now) {
                Some(due) => {
                    self.jobs.start(cluster, due, now);
                    idle = 0;
                }
                None => idle += 1,
            }
        }
    }

    /// Takes note, once, that the first checks have ended.
    fn latch(&mut self, now: Instant) {
        if self.warmed_up {
            return;
        }
        self.warmed_up = self.clusters.iter().all(|c| c.state.warmed_up());
        if !self.warmed_up && now >= self.started + PATIENCE {
            self.warmed_up = true;
            let clusters = self.clusters.iter().map(|c| &c.state);
            clusters.for_each(|cluster| waited(cluster, "the cluster begins without one"));
        }
        if self.warmed_up {
            // `/readyz` is asked for it.
            self.unreported = true;
            self.report_from = now;
        }
    }

    /// Tells, once, that the first answers are there; after they were published and reported.
    fn announce(&mut self, now: Instant) {
        let patience_over = now >= self.started + PATIENCE;
        if !*self.first_answered.borrow()
            && (patience_over || self.clusters.iter().all(|c| c.state.answered()))
        {
            self.report(now);
            self.first_answered.send_replace(true);
        }
    }

    fn publish(&mut self) {
        for cluster in &mut self.clusters {
            if std::mem::take(&mut cluster.state.changed) {
                cluster.published = Arc::new(assemble::cluster(&cluster.state));
                self.changed = true;
            }
        }
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.unreported = true;
        self.publisher.publish(Snapshot {
            generation: 0, // counted by the publisher
            listener: self.config.listener.clone(),
            routes: Arc::new(RouteTable::new(self.config.routes.clone())),
            clusters: self
                .clusters
                .iter()
                .map(|cluster| cluster.published.clone())
                .collect(),
            tls: self.certificate.current().map(|pair| pair.identity.clone()),
            serving: self.serving,
        });
        let fresh = self.reloads.plan.iter().flat_map(|plan| plan.fresh());
        self.jobs
            .keep_checkers(self.clusters.iter().map(|c| &c.state).chain(fresh));
    }

    fn report(&mut self, now: Instant) {
        self.status.set(Report {
            started_at_ms: self.started_at_ms,
            generation: self.publisher.current().generation,
            readiness: Readiness {
                serving: self.serving,
                certificate: self.certificate.current().is_some(),
                warmed_up: self.warmed_up,
            },
            configuration: self.reloads.report(&self.config),
            certificate: self.certificate.report(),
            clusters: self
                .clusters
                .iter()
                .map(|cluster| assemble::report(&cluster.state, &cluster.published))
                .collect(),
            panics: self.panics.total(),
        });
        self.unreported = false;
        self.report_from = now + REPORT_PACE;
    }

    /// When to look again though nothing happens.
    fn next_wake(&self, now: Instant) -> Instant {
        let patience = (!self.warmed_up).then_some(self.started + PATIENCE);
        let plan = self.reloads.plan.as_ref();
        let fresh = plan.into_iter().flat_map(|plan| plan.fresh());
        let clusters = self.clusters.iter().map(|c| &c.state).chain(fresh);
        let dues = clusters.clone().filter_map(ClusterState::next_due);
        let check = clusters.filter_map(ClusterState::next_check).min();
        // One that is due waits for room.
        let check = check.map(|due| self.jobs.room_from().map_or(due, |from| due.max(from)));
        let report = self.unreported.then_some(self.report_from);
        let deadlines = patience.into_iter().chain(plan.map(|plan| plan.deadline()));
        dues.chain(check)
            .chain(deadlines)
            .chain(report)
            .min()
            .unwrap_or(now + IDLE)
    }

    /// Those in force and those of a plan.
    fn all_clusters(&mut self) -> impl Iterator<Item = &mut ClusterState> {
        let fresh = self
            .reloads
            .plan
            .iter_mut()
            .flat_map(|plan| plan.fresh_mut());
        self.clusters
            .iter_mut()
            .map(|cluster| &mut cluster.state)
            .chain(fresh)
    }
}

/// Tells of a cluster that has been waited for, if it was in vain.
fn waited(cluster: &ClusterState, then: &str) {
    if !cluster.has_healthy() {
        tracing::warn!(
            cluster = &*cluster.spec.name,
            reason = cluster.why_none_is_healthy(),
            "waited in vain for a healthy endpoint; {then}"
        );
    }
}

/// Waits for a hint, until `from` at least. Cancel safe.
async fn hinted(hints: &Hints, from: Instant) {
    sleep_until(from).await;
    hints.wait().await;
}

impl InForce {
    fn new(mut state: ClusterState) -> Self {
        state.enforce();
        state.changed = false;
        Self {
            published: Arc::new(assemble::cluster(&state)),
            state,
        }
    }
}

/// How long the first answers and the first checks are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between looks at the hints. Each may cost a check of every endpoint; the first after a quiet time waits for nothing.
const HINTS_PACE: Duration = Duration::from_millis(50);

/// Between reports: operators and probes see no difference, and with thousands of endpoints each takes a millisecond.
const REPORT_PACE: Duration = Duration::from_millis(50);

/// With nothing due at all (static endpoints without checks).
const IDLE: Duration = Duration::from_secs(3600);
