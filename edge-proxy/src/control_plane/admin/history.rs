//! The last two minutes, for rates and quantiles on the page.
//!
//! A sample of all counters every two seconds; what the page shows is the difference between the
//! newest and one further back. Counters only grow, so no event is lost between samples, and every
//! viewer sees the same numbers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use crate::telemetry::{
    histogram::Distribution,
    totals::{SeriesTotals, Totals},
};

/// Samples, oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

/// What the page says of all traffic, or of one cluster's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Traffic {
    /// RPCs begun per second, over [`SHORT`].
    pub(super) rate: Option<f64>,
    /// Share (0 to 1) of the RPCs ended in [`LONG`] that [failed](SeriesTotals::failed).
    pub(super) error_share: Option<f64>,
    /// Milliseconds, over [`LONG`].
    pub(super) p50_ms: Option<f64>,
    /// Milliseconds, over [`LONG`].
    pub(super) p99_ms: Option<f64>,
    /// RPCs that run.
    pub(super) in_flight: u64,
    /// RPCs begun since the start of the process.
    pub(super) started: u64,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    all: Part,
    clusters: BTreeMap<Arc<str>, Part>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    rpcs: SeriesTotals,
    duration: Distribution,
}

impl History {
    /// Adds a sample; forgets what is too old.
    pub(super) fn push(&mut self, at: Instant, totals: &Totals) {
        let mut sample = Sample {
            at,
            all: Part::default(),
            clusters: BTreeMap::new(),
        };
        for ((_, cluster, _), series) in &totals.series {
            sample.all.rpcs += series;
            sample.clusters.entry(Arc::clone(cluster)).or_default().rpcs += series;
        }
        for (name, cluster) in &totals.clusters {
            let part = sample.clusters.entry(Arc::clone(name)).or_default();
            part.duration = cluster.duration.clone();
            sample.all.duration.merge(&cluster.duration);
        }
        sample.all.rpcs += &totals.forgotten.rpcs;
        sample.all.duration.merge(&totals.forgotten.duration);
        self.0.push_back(sample);
        while self.0.len() > SAMPLES {
            self.0.pop_front();
        }
    }

    /// Everything, unmatched requests too.
    pub(super) fn all(&self) -> Traffic {
        self.traffic(|sample| Some(&sample.all))
    }

    /// One cluster.
    pub(super) fn cluster(&self, name: &str) -> Traffic {
        self.traffic(|sample| sample.clusters.get(name))
    }

    /// RPCs begun per second between any two samples, oldest first.
    pub(super) fn rates(&self) -> Vec<f64> {
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        pairs
            .filter_map(|(old, new)| rate(&old.all, &new.all, new.at - old.at))
            .collect()
    }

    fn traffic(&self, part: impl Fn(&Sample) -> Option<&Part>) -> Traffic {
        let none = Part::default();
        let Some(newest) = self.0.back() else {
            return Traffic::default();
        };
        let now = part(newest).unwrap_or(&none);
        let back = |span| self.0.iter().find(|sample| newest.at - sample.at <= span);
        let then = |span| back(span).map(|sample| (sample.at, part(sample).unwrap_or(&none)));
        let mut traffic = Traffic {
            in_flight: now.rpcs.in_flight(),
            started: now.rpcs.started,
            ..Traffic::default()
        };
        if let Some((at, old)) = then(SHORT) {
            traffic.rate = rate(old, now, newest.at - at);
        }
        if let Some((_, old)) = then(LONG) {
            let ended = now.rpcs.all_ended().saturating_sub(old.rpcs.all_ended());
            let failed = now.rpcs.failed().saturating_sub(old.rpcs.failed());
            traffic.error_share = (ended > 0).then(|| failed as f64 / ended as f64);
            let durations = now.duration.since(&old.duration);
            let millis = |quantile| durations.quantile(quantile).map(|d| d.as_secs_f64() * 1e3);
            (traffic.p50_ms, traffic.p99_ms) = (millis(0.5), millis(0.99));
        }
        traffic
    }
}

fn rate(old: &Part, new: &Part, between: Duration) -> Option<f64> {
    let begun = new.rpcs.started.saturating_sub(old.rpcs.started);
    (!between.is_zero()).then(|| begun as f64 / between.as_secs_f64())
}

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);
/// Two minutes.
const SAMPLES: usize = 61;
/// Long enough to be calm, short enough to see a change.
const SHORT: Duration = Duration::from_secs(10);
/// Enough RPCs for a p99 even with little traffic.
const LONG: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Metrics, RpcEnd};

    #[test]
    fn rates_and_quantiles_are_of_the_last_moments() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        let (route, cluster): (Arc<str>, Arc<str>) = ("/".into(), "echo".into());
        let shard = metrics.shard();
        let series = shard.series(&route, &cluster, b"/s/m");
        let start = Instant::now();
        assert_eq!(history.all(), Traffic::default());

        series.started.add(1_000);
        shard
            .cluster(&cluster)
            .duration
            .record(Duration::from_secs(30));
        history.push(start, &metrics.totals());
        assert_eq!(
            (history.all().rate, history.all().error_share),
            (None, None)
        );

        for i in 1..=31 {
            series.started.add(20);
            series.ended(RpcEnd::Grpc(0)).add(18);
            series.ended(RpcEnd::Grpc(14)).add(2);
            shard
                .cluster(&cluster)
                .duration
                .record(Duration::from_millis(1));
            history.push(start + INTERVAL * i, &metrics.totals());
        }
        let traffic = history.cluster("echo");
        assert_eq!((traffic.rate, traffic.error_share), (Some(10.0), Some(0.1)));
        assert!(
            traffic.p99_ms.unwrap() < 1.2,
            "the slow one is more than a minute ago"
        );
        assert_eq!((traffic.in_flight, traffic.started), (1_000, 1_620));
        assert_eq!(history.all(), traffic);
        assert_eq!(history.rates(), [10.0; 31]);
        assert_eq!(history.cluster("other").rate, Some(0.0));
    }

    #[test]
    fn what_a_removed_cluster_has_counted_is_in_all_for_ever() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        let (route, cluster): (Arc<str>, Arc<str>) = ("/".into(), "echo".into());
        let shard = metrics.shard();
        let start = Instant::now();
        shard.series(&route, &cluster, b"/s/m").started.add(3);
        history.push(start, &metrics.totals());
        shard.series(&route, &cluster, b"/s/m").started.add(2);
        metrics.forget_clusters(|_| false);
        history.push(start + INTERVAL, &metrics.totals());
        assert_eq!(history.all().started, 5);
        assert_eq!(history.all().rate, Some(1.0));
        assert_eq!(history.cluster("echo").started, 0);
    }

    #[test]
    fn old_samples_are_forgotten() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        for i in 0..200 {
            history.push(Instant::now() + INTERVAL * i, &metrics.totals());
        }
        assert_eq!(history.rates().len(), SAMPLES - 1);
    }
}
