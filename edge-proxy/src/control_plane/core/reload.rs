//! The loop's side of a reload: when the file is read, who waits for it, and how a plan comes into force.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Core, InForce, waited};
use crate::control_plane::{
    ReloadError,
    config::{
        Config,
        reload::{self, Candidate, Plan, Planned, Read, Refusal},
    },
    files::Directories,
    status::{ConfigurationReport, Problem, now_ms},
    supervise::{Owned, Panics, supervise},
};

/// Where the configuration comes from, and what became of its reloads.
#[derive(Debug)]
pub(super) struct Reloads {
    source: Option<PathBuf>,
    watch: Option<(mpsc::Receiver<()>, Owned)>,
    /// The text of the last attempt: a change of the directory that doesn't change it is none. `None` if what was wrong
    /// isn't in the text, but in the certificate that it names: that may come later.
    last_text: Option<String>,
    /// The file is being read, and judged against this configuration, which was in force then.
    reading: Option<Arc<Config>>,
    /// Somebody asked meanwhile: what is being read may be older.
    again: bool,
    /// Who asked for what is being read. An order counts even if the text is the same.
    readers: Vec<Waiter>,
    /// On its way into force.
    pub(super) plan: Option<Plan>,
    /// Who asked for the plan.
    planners: Vec<Waiter>,
    loaded_at_ms: u64,
    reloads: u64,
    rejected: u64,
    last_error: Option<Problem>,
}

type Waiter = oneshot::Sender<Result<(), ReloadError>>;

impl Reloads {
    pub(super) fn new(source: Option<PathBuf>) -> Self {
        Self {
            source,
            watch: None,
            last_text: None,
            reading: None,
            again: false,
            readers: Vec::new(),
            plan: None,
            planners: Vec::new(),
            loaded_at_ms: now_ms(),
            reloads: 0,
            rejected: 0,
            last_error: None,
        }
    }

    /// Begins to watch the file. Called on the runtime.
    pub(super) fn watch(&mut self, panics: &Panics) {
        let Some(path) = self.source.clone() else {
            return;
        };
        let (changed, changes) = mpsc::channel(1);
        let task = supervise("configuration watch", panics.clone(), move || {
            watch(path.clone(), changed.clone())
        });
        self.watch = Some((changes, task));
    }

    /// Waits for a change near the file. Cancel safe.
    pub(super) async fn file_changed(&mut self) {
        if let Some((changes, _)) = &mut self.watch
            && changes.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }

    pub(super) fn report(&self, config: &Arc<Config>) -> ConfigurationReport {
        ConfigurationReport {
            source: self.source.clone(),
            loaded_at_ms: self.loaded_at_ms,
            reloads: self.reloads,
            rejected: self.rejected,
            pending: self.plan.is_some(),
            last_error: self.last_error.clone(),
            config: config.clone(),
        }
    }
}

impl Core {
    /// Reads the file; `waiter` asked for it, or the file's directory changed.
    pub(super) fn reread(&mut self, waiter: Option<Waiter>) {
        let Some(path) = self.reloads.source.clone() else {
            if let Some(waiter) = waiter {
                let _ = waiter.send(Err(ReloadError("there is no configuration file".into())));
            }
            return;
        };
        self.reloads.readers.extend(waiter);
        if self.reloads.reading.is_some() {
            self.reloads.again = true;
            return;
        }
        let (config, judged_against) = (self.config.clone(), self.config.clone());
        let identities = self.certificate.identities().clone();
        self.jobs
            .start_read(move || reload::read(&path, &config, &identities));
        // Only now: where no thread can be had for it, that panics, and the next one may be read.
        self.reloads.reading = Some(judged_against);
    }

    /// The file was read.
    pub(super) fn read(&mut self, read: Option<Read>, now: Instant) {
        let judged_against = self.reloads.reading.take();
        // A plan has come into force meanwhile: the certificate's files may be others than those in force now.
        let outdated = judged_against.is_some_and(|config| !Arc::ptr_eq(&config, &self.config));
        if std::mem::take(&mut self.reloads.again) || outdated {
            return self.reread(None);
        }
        let readers = std::mem::take(&mut self.reloads.readers);
        let Some(Read { text, outcome }) = read else {
            return answer(readers, Err(ReloadError("internal error".into())));
        };
        if readers.is_empty() && text.is_some() && text == self.reloads.last_text {
            return;
        }
        let elsewhere = matches!(outcome, Err(Refusal::Certificate(_)));
        self.reloads.last_text = text.filter(|_| !elsewhere);
        match outcome {
            Err(refusal) => self.refuse(&refusal, readers, now),
            Ok(candidate) if self.reloads.plan.is_none() && candidate.config == *self.config => {
                // Whoever asked, or was told that the file is wrong, is to hear how that ended.
                let was_wrong = self.reloads.last_error.take().is_some();
                if was_wrong || !readers.is_empty() {
                    tracing::info!("configuration unchanged: the file says what is in force");
                }
                self.report(now);
                answer(readers, Ok(()));
            }
            Ok(candidate) => self.plan(*candidate, readers, now),
        }
    }

    /// Puts the plan into force if its time has come.
    pub(super) fn advance_reload(&mut self, now: Instant) {
        let Some(plan) = self.reloads.plan.take_if(|plan| plan.is_ripe(now)) else {
            return;
        };
        plan.fresh()
            .for_each(|cluster| waited(cluster, "the cluster is reloaded without one"));
        let Plan {
            config,
            pair,
            clusters,
            ..
        } = plan;
        let mut old = std::mem::take(&mut self.clusters);
        for (planned, spec) in clusters.into_iter().zip(&config.clusters) {
            let at = old
                .iter()
                .position(|cluster| cluster.state.spec.name == spec.name);
            let previous = at.map(|at| old.swap_remove(at).state);
            let state = match (planned, previous) {
                (Planned::New(mut state), Some(previous)) => {
                    state.succeed(&previous);
                    Some(*state)
                }
                (Planned::New(state), None) => Some(*state),
                (Planned::Kept, previous) => previous,
            };
            // `Kept` was planned from these very clusters, and they change only here.
            if let Some(mut state) = state {
                state.adopt(spec.clone(), now);
                self.clusters.push(InForce::new(state));
            }
        }
        if let Some(pair) = pair {
            self.certificate.replace(
                &config.certificate_chain,
                &config.private_key,
                pair,
                &self.panics,
            );
        }
        self.config = Arc::new(config);
        self.changed = true;
        self.publish();
        let reloads = &mut self.reloads;
        reloads.reloads += 1;
        reloads.loaded_at_ms = now_ms();
        tracing::info!(
            clusters = self.clusters.len(),
            routes = self.config.routes.len(),
            "configuration reloaded"
        );
        let planners = std::mem::take(&mut reloads.planners);
        self.report(now);
        answer(planners, Ok(()));
    }

    fn plan(&mut self, candidate: Candidate, readers: Vec<Waiter>, now: Instant) {
        for warning in &candidate.warnings {
            tracing::warn!("{warning}");
        }
        // A plan that is on its way is given up for the newer one; who waits for it waits for that.
        self.reloads.planners.extend(readers);
        let in_force = self.clusters.iter().map(|cluster| &cluster.state);
        self.reloads.plan = Some(Plan::new(candidate, in_force, now));
        // Here, not when the plan comes into force: the file may have become another meanwhile, and been refused.
        self.reloads.last_error = None;
    }

    fn refuse(&mut self, refusal: &Refusal, readers: Vec<Waiter>, now: Instant) {
        let message = refusal.to_string();
        let last = self.reloads.last_error.as_ref();
        if readers.is_empty() && last.is_some_and(|last| last.message == message) {
            // Nobody asked, and nothing is new: the next look may find more.
            return;
        }
        tracing::error!("configuration not reloaded, the old one stays: {message}");
        self.reloads.rejected += 1;
        self.reloads.last_error = Some(Problem::now(message.clone()));
        self.report(now);
        answer(readers, Err(ReloadError(message)));
    }
}

/// Tells after each change near the file. Ends when nobody listens.
async fn watch(path: PathBuf, changed: mpsc::Sender<()>) {
    loop {
        let directories = Directories::of([Path::new(&path)]);
        // At once, too: the file may have changed before the watch was there.
        if changed.send(()).await.is_err() {
            return;
        }
        directories.changed(POLL).await;
    }
}

fn answer(waiters: Vec<Waiter>, result: Result<(), ReloadError>) {
    for waiter in waiters {
        // Whoever asked may have gone.
        let _ = waiter.send(result.clone());
    }
}

/// Between looks at a file whose directory is watched: events can get lost.
const POLL: Duration = Duration::from_secs(60);
