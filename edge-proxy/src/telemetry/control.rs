//! What the control plane counts: rare events, written by whichever of its tasks sees them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    counter::SharedCounter,
    labels::{CertificateLoad, CheckResult, Label, LookupResult, ReloadResult},
    metrics::lock,
};

/// The control plane's numbers.
#[derive(Debug)]
pub struct Control {
    started: Instant,
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ControlCluster>>>,
    certificate_loads: [SharedCounter; CertificateLoad::COUNT],
    /// Seconds since the epoch; `i64::MIN`: none is served yet.
    certificate_not_after: AtomicI64,
    reloads: [SharedCounter; ReloadResult::COUNT],
    access_log_dropped: OnceLock<Arc<SharedCounter>>,
}

/// The control plane's numbers for one cluster.
#[derive(Debug)]
pub struct ControlCluster {
    started: Instant,
    checks: [SharedCounter; CheckResult::COUNT],
    lookups: [SharedCounter; LookupResult::COUNT],
    /// Milliseconds after `started`, plus one; 0: never.
    answered: AtomicU64,
}

impl Control {
    /// The numbers of `cluster`, made when it is first named.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ControlCluster> {
        let mut clusters = lock(&self.clusters);
        let cluster = clusters.entry(Arc::clone(name)).or_insert_with(|| {
            Arc::new(ControlCluster {
                started: self.started,
                checks: Default::default(),
                lookups: Default::default(),
                answered: AtomicU64::new(0),
            })
        });
        Arc::clone(cluster)
    }

    /// Attempts to load the certificate that ended so.
    pub fn certificate_loads(&self, result: CertificateLoad) -> &SharedCounter {
        &self.certificate_loads[result.index()]
    }

    /// The certificate served from now on expires then, in seconds since the epoch.
    pub fn set_certificate_not_after(&self, seconds: i64) {
        self.certificate_not_after.store(seconds, Ordering::Relaxed);
    }

    /// When the certificate that is served expires.
    pub fn certificate_not_after(&self) -> Option<i64> {
        let seconds = self.certificate_not_after.load(Ordering::Relaxed);
        (seconds != i64::MIN).then_some(seconds)
    }

    /// Attempts to reload the configuration that ended so.
    pub fn reloads(&self, result: ReloadResult) -> &SharedCounter {
        &self.reloads[result.index()]
    }

    /// Where the access log counts the lines that it drops. Only the first call has an effect.
    pub fn watch_access_log(&self, dropped: Arc<SharedCounter>) {
        let _ = self.access_log_dropped.set(dropped);
    }

    /// Lines that the access log dropped.
    pub fn access_log_dropped(&self) -> u64 {
        self.access_log_dropped
            .get()
            .map_or(0, |dropped| dropped.get())
    }

    /// All clusters named so far, by name.
    pub(super) fn clusters(&self) -> Vec<(Arc<str>, Arc<ControlCluster>)> {
        let clusters = lock(&self.clusters);
        clusters
            .iter()
            .map(|(name, cluster)| (Arc::clone(name), Arc::clone(cluster)))
            .collect()
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            clusters: Mutex::default(),
            certificate_loads: Default::default(),
            certificate_not_after: AtomicI64::new(i64::MIN),
            reloads: Default::default(),
            access_log_dropped: OnceLock::new(),
        }
    }
}

impl ControlCluster {
    /// Health checks that ended so.
    pub fn checks(&self, result: CheckResult) -> &SharedCounter {
        &self.checks[result.index()]
    }

    /// One look-up ended so. [`Ok`](LookupResult::Ok), `Empty` and `NoName` are answers: the age of
    /// the last answer starts anew.
    pub fn looked_up(&self, result: LookupResult) {
        self.lookups[result.index()].inc();
        if matches!(
            result,
            LookupResult::Ok | LookupResult::Empty | LookupResult::NoName
        ) {
            let millis = self.started.elapsed().as_millis() as u64;
            self.answered.store(millis + 1, Ordering::Relaxed);
        }
    }

    /// Look-ups that ended so.
    pub fn lookups(&self, result: LookupResult) -> u64 {
        self.lookups[result.index()].get()
    }

    /// How old the last answer is; `None` before the first.
    pub fn answer_age(&self) -> Option<Duration> {
        let answered = self.answered.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.started
                .elapsed()
                .saturating_sub(Duration::from_millis(answered)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_makes_the_last_answer_younger() {
        let cluster = Control::default().cluster(&"echo".into());
        cluster.looked_up(LookupResult::Failed);
        cluster.looked_up(LookupResult::TimedOut);
        assert_eq!(cluster.answer_age(), None);
        cluster.looked_up(LookupResult::NoName);
        assert!(cluster.answer_age().is_some());
        assert_eq!(cluster.lookups(LookupResult::Failed), 1);
    }

    #[test]
    fn a_cluster_keeps_its_numbers() {
        let control = Control::default();
        control
            .cluster(&"echo".into())
            .checks(CheckResult::Serving)
            .inc();
        assert_eq!(
            control
                .cluster(&"echo".into())
                .checks(CheckResult::Serving)
                .get(),
            1
        );
        assert_eq!(control.clusters().len(), 1);
    }

    #[test]
    fn no_certificate_has_no_expiry() {
        let control = Control::default();
        assert_eq!(control.certificate_not_after(), None);
        control.set_certificate_not_after(-1);
        assert_eq!(control.certificate_not_after(), Some(-1));
    }
}
