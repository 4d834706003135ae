//! All shards added up, for one scrape or one refresh of the admin page.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    histogram::Distribution,
    labels::{AttemptResult, Flag, HandshakeResult, Label, Limit, ResetCause, RetryRefusal, Side},
    metrics::{Counter, Metrics, SERVER_ERRORS, Series, WITHOUT},
};

/// What all threads counted, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By route, cluster and method.
    pub series: BTreeMap<SeriesKey, SeriesTotals>,
    /// By name.
    pub clusters: BTreeMap<Arc<str>, ClusterTotals>,
    /// By side: opened, closed.
    pub connections: [(u64, u64); Side::COUNT],
    /// By result.
    pub handshakes: [u64; HandshakeResult::COUNT],
    /// By cause.
    pub resets: [u64; ResetCause::COUNT],
    /// By limit.
    pub limits: [u64; Limit::COUNT],
    /// By flag.
    pub flags: [u64; Flag::COUNT],
    /// Of clusters that are in none of the others any more.
    pub forgotten: Forgotten,
}

/// Route, cluster, method.
pub type SeriesKey = (Arc<str>, Arc<str>, Arc<str>);

/// The RPCs of one route, cluster and method.
#[derive(Clone, Debug, Default)]
pub struct SeriesTotals {
    /// Begun.
    pub started: u64,
    /// Ended, by index of [`STATUS_LABELS`](super::metrics::STATUS_LABELS).
    pub ended: [u64; Series::STATUSES],
}

/// The RPCs of one cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterTotals {
    /// How long RPCs took.
    pub duration: Distribution,
    /// Attempts that run.
    pub active: i64,
    /// Attempts after the first of an RPC.
    pub retries: u64,
    /// Attempts that ended, by result.
    pub attempts: [u64; AttemptResult::COUNT],
    /// Attempts that weren't made, by reason.
    pub retries_refused: [u64; RetryRefusal::COUNT],
}

/// All RPCs of clusters that a reload has removed.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    /// Begun and ended.
    pub rpcs: SeriesTotals,
    /// How long they took.
    pub duration: Distribution,
}

impl Metrics {
    /// Adds all shards up. Takes no lock for longer than a copy of some pointers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            forgotten: self.forgotten(),
            ..Totals::default()
        };
        for shard in self.shards() {
            for side in Side::ALL {
                let counters = shard.connections(*side);
                let (opened, closed) = &mut totals.connections[side.index()];
                // `closed` first: what closes in between is then counted as open, not as less than none.
                *closed += counters.closed.get();
                *opened += counters.opened.get();
            }
            add(&mut totals.handshakes, |result| shard.handshakes(result));
            add(&mut totals.resets, |cause| shard.resets(cause));
            add(&mut totals.limits, |limit| shard.limits(limit));
            add(&mut totals.flags, |flag| shard.flags(flag));
            for series in shard.all_series() {
                let key = (
                    Arc::clone(&series.route),
                    Arc::clone(&series.cluster),
                    Arc::clone(&series.method),
                );
                totals.series.entry(key).or_default().count(&series);
            }
            for (name, cluster) in shard.all_clusters() {
                let total = totals.clusters.entry(name).or_default();
                total.duration.add(&cluster.duration);
                total.active += cluster.active.get();
                total.retries += cluster.retries.get();
                add(&mut total.attempts, |result| cluster.attempts(result));
                add(&mut total.retries_refused, |by| cluster.retries_refused(by));
            }
        }
        totals
    }
}

impl SeriesTotals {
    /// Adds what one thread counted.
    pub(super) fn count(&mut self, series: &Series) {
        // `ended` first: what ends in between is then counted as running, not as less than none.
        for (sum, ended) in self.ended.iter_mut().zip(series.all_ended()) {
            *sum += ended.get();
        }
        self.started += series.started.get();
    }

    /// RPCs that ended, whatever their status.
    pub fn all_ended(&self) -> u64 {
        self.ended.iter().sum()
    }

    /// RPCs that run.
    pub fn in_flight(&self) -> u64 {
        self.started.saturating_sub(self.all_ended())
    }

    /// RPCs that ended with a grpc-status other than 0, or without one; of plain HTTP, those with a status of 500 or
    /// above, or without a whole response.
    pub fn failed(&self) -> u64 {
        self.ended[1..=WITHOUT].iter().sum::<u64>() + self.ended[SERVER_ERRORS]
    }
}

impl std::ops::AddAssign<&Self> for SeriesTotals {
    fn add_assign(&mut self, other: &Self) {
        self.started += other.started;
        for (sum, ended) in self.ended.iter_mut().zip(other.ended) {
            *sum += ended;
        }
    }
}

fn add<'a, L: Label>(sums: &mut [u64], counter: impl Fn(L) -> &'a Counter) {
    for label in L::ALL {
        sums[label.index()] += counter(*label).get();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::RpcEnd;

    #[test]
    fn what_is_no_success_is_a_failure_but_for_http_clients_own_mistakes() {
        let metrics = Metrics::new();
        let shard = metrics.shard();
        for end in [
            RpcEnd::Grpc(0),
            RpcEnd::Http(200),
            RpcEnd::Http(302),
            RpcEnd::Http(404),
        ] {
            shard.unrouted().ended(end).inc();
        }
        let failed = || metrics.totals().series.values().next().unwrap().failed();
        assert_eq!(failed(), 0);
        for (n, end) in [
            RpcEnd::Grpc(1),
            RpcEnd::Grpc(16),
            RpcEnd::Grpc(99),
            RpcEnd::Without,
            RpcEnd::Http(500),
            RpcEnd::Http(999),
        ]
        .into_iter()
        .enumerate()
        {
            shard.unrouted().ended(end).inc();
            assert_eq!(failed(), n as u64 + 1, "{end:?}");
        }
    }

    #[test]
    fn shards_add_up() {
        let metrics = Metrics::new();
        let (route, cluster) = ("/".into(), "echo".into());
        for shard in [metrics.shard(), metrics.shard()] {
            let series = shard.series(&route, &cluster, b"/s/m");
            series.started.add(4);
            series.ended(RpcEnd::Grpc(0)).inc();
            series.ended(RpcEnd::Grpc(14)).inc();
            series.ended(RpcEnd::Http(200)).inc();
            let cluster = shard.cluster(&cluster);
            cluster.duration.record(Duration::from_millis(1));
            cluster.active.inc();
            cluster.retries.inc();
            cluster.attempts(AttemptResult::Ok).add(2);
            shard.connections(Side::Downstream).opened.add(3);
            shard.connections(Side::Downstream).closed.inc();
            shard.limits(Limit::Streams).inc();
            shard.flags(Flag::NoRoute).inc();
        }
        let totals = metrics.totals();
        let series = &totals.series[&(route, Arc::clone(&cluster), "unknown".into())];
        assert_eq!(
            (series.started, series.in_flight(), series.failed()),
            (8, 2, 2)
        );
        let cluster = &totals.clusters[&cluster];
        assert_eq!(
            (cluster.active, cluster.retries, cluster.duration.count()),
            (2, 2, 2)
        );
        assert_eq!(cluster.attempts[AttemptResult::Ok.index()], 4);
        assert_eq!(totals.connections, [(6, 2), (0, 0)]);
        assert_eq!(totals.limits[Limit::Streams.index()], 2);
        assert_eq!(totals.flags[Flag::NoRoute.index()], 2);
    }
}
