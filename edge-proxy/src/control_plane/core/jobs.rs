//! What the loop has others do: look-ups, checks, reading the configuration.
//!
//! All are in one [`JoinSet`]: dropped with it, and one that panics is reported as a failed look-up or check, which
//! comes again in at most a second. So is one that panics before there is anything to await: it counts as running since
//! the loop was told that it is due, and nothing else would ever say that it has ended.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

use crate::{
    control_plane::{
        cluster::{ClusterState, Due},
        config::reload::Read,
        discovery::Lookup,
        health::{Outcome, Place, Room},
        network::{self, Network},
        supervise::Panics,
    },
    snapshot::EndpointShared,
};

/// The running jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    network: Box<dyn Network>,
    tasks: JoinSet<Finished>,
    running: HashMap<Id, Job>,
    /// For checks.
    room: Room,
    panics: Panics,
}

/// How a job ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// A look-up of a cluster's target; `None`: it panicked.
    LookUp {
        cluster: u64,
        target: usize,
        lookup: Option<Lookup>,
    },
    /// A check of a cluster's endpoint.
    Check {
        cluster: u64,
        endpoint: Arc<EndpointShared>,
        outcome: Outcome,
    },
    /// The configuration's file; `None`: the reader panicked.
    Read(Option<Read>),
}

#[derive(Debug)]
enum Job {
    Cluster {
        cluster: u64,
        due: Due,
        /// Of a check.
        place: Option<Place>,
    },
    Read,
}

#[derive(Debug)]
enum Finished {
    LookUp(Lookup),
    Check(Outcome),
    Read(Read),
}

impl Jobs {
    pub(super) fn new(network: Box<dyn Network>, panics: Panics) -> Self {
        Self {
            network,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            room: Room::default(),
            panics,
        }
    }

    /// Whether a check may begin.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        self.room.is_free(now)
    }

    /// When a check may begin at the latest; `None`: now.
    pub(super) fn room_from(&self) -> Option<Instant> {
        self.room.free_from()
    }

    /// Starts what `cluster` said is due.
    pub(super) fn start(&mut self, cluster: &ClusterState, due: Due, now: Instant) {
        let (task, place) = match &due {
            Due::LookUp(target) => {
                let at_six = cluster.is_at_six(*target);
                let target = &cluster.spec.targets[*target];
                let job = made(|| self.network.look_up(target, cluster.spec.family, at_six));
                let task = self.tasks.spawn(async { Finished::LookUp(job.await) });
                (task, None)
            }
            Due::Check(endpoint) => {
                // Only a cluster with checks has any due.
                let Some(spec) = &cluster.spec.health_check else {
                    return;
                };
                let job = made(|| self.network.check(endpoint, spec));
                let task = self.tasks.spawn(async { Finished::Check(job.await) });
                (task, Some(self.room.take(spec.timeout, now)))
            }
        };
        let job = Job::Cluster {
            cluster: cluster.id(),
            due,
            place,
        };
        self.running.insert(task.id(), job);
    }

    /// Starts `read` on a thread for blocking work.
    pub(super) fn start_read(&mut self, read: impl FnOnce() -> Read + Send + 'static) {
        let task = self.tasks.spawn_blocking(|| Finished::Read(read()));
        self.running.insert(task.id(), Job::Read);
    }

    /// The next job that ends; waits for ever when none runs. Cancel safe.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            let Some(joined) = self.tasks.join_next_with_id().await else {
                return std::future::pending().await;
            };
            if let Some(ended) = self.joined(joined) {
                return ended;
            }
        }
    }

    /// A job that has ended already.
    pub(super) fn try_next(&mut self) -> Option<Ended> {
        let joined = self.tasks.try_join_next_with_id()?;
        self.joined(joined)
    }

    /// Closes the checkers of all endpoints but those of `clusters`.
    pub(super) fn keep_checkers<'a>(&mut self, clusters: impl Iterator<Item = &'a ClusterState>) {
        let kept: std::collections::HashSet<u64> = clusters
            .flat_map(|cluster| {
                cluster
                    .endpoints
                    .values()
                    .map(|endpoint| endpoint.shared.id)
            })
            .collect();
        self.network.retain(&|id| kept.contains(&id));
    }

    fn joined(&mut self, joined: Result<(Id, Finished), JoinError>) -> Option<Ended> {
        let (id, finished) = match joined {
            Ok((id, finished)) => (id, Some(finished)),
            Err(error) => (error.id(), None),
        };
        let job = self.running.remove(&id)?;
        if let Job::Cluster {
            place: Some(place), ..
        } = job
        {
            self.room.leave(place);
        }
        if finished.is_none() {
            self.panics.count(match &job {
                Job::Cluster {
                    due: Due::LookUp(_),
                    ..
                } => "look-up",
                Job::Cluster {
                    due: Due::Check(_), ..
                } => "health check",
                Job::Read => "configuration reader",
            });
        }
        Some(match job {
            Job::Cluster {
                cluster,
                due: Due::LookUp(target),
                ..
            } => {
                let lookup = match finished {
                    Some(Finished::LookUp(lookup)) => Some(lookup),
                    _ => None,
                };
                Ended::LookUp {
                    cluster,
                    target,
                    lookup,
                }
            }
            Job::Cluster {
                cluster,
                due: Due::Check(endpoint),
                ..
            } => {
                let outcome = match finished {
                    Some(Finished::Check(outcome)) => outcome,
                    _ => Outcome::Internal,
                };
                Ended::Check {
                    cluster,
                    endpoint,
                    outcome,
                }
            }
            Job::Read => Ended::Read(match finished {
                Some(Finished::Read(read)) => Some(read),
                _ => None,
            }),
        })
    }
}

/// What `make` makes; if that panics, a job that panics as soon as it runs. The panic hook has logged it then.
fn made<T: 'static>(make: impl FnOnce() -> network::Job<T>) -> network::Job<T> {
    // What it leaves half done are the connections that are kept for checks: each is made anew when it is missing.
    catch_unwind(AssertUnwindSafe(make))
        .unwrap_or_else(|panic| Box::pin(async move { resume_unwind(panic) }))
}
