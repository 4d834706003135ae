//! What is counted where.
//!
//! Every thread that serves requests has a [`Shard`]; it alone writes to it ([`Counter`] says why).
//! What belongs to an RPC is in a [`Series`] (route × cluster × method), found once per RPC by one
//! hash look-up, and in its [`ClusterSeries`]. A scrape adds the shards up
//! ([`totals`](super::totals)) and joins what the control plane reports of itself.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

pub use super::{
    counter::{Counter, Gauge, SharedCounter},
    histogram::Histogram,
    labels::{
        AttemptResult, Flag, Flags, HandshakeResult, Label, Limit, ResetCause, RetryRefusal, Side,
    },
};
use super::{
    methods::{Methods, UNKNOWN},
    totals::Forgotten,
};

/// Everything that the process counts. One per process, shared by all threads.
#[derive(Debug)]
pub struct Metrics {
    /// For the uptime.
    started: Instant,
    /// Set once, by whoever starts the access log.
    access_log_dropped: OnceLock<Arc<SharedCounter>>,
    methods: Arc<Methods>,
    shards: Mutex<Vec<Arc<Shard>>>,
    /// What clusters had counted that are forgotten.
    forgotten: Mutex<Forgotten>,
    listener: Arc<ListenerGauges>,
}

/// What the listener has now. Set by whichever thread changes it, under the lock that guards what is counted.
#[derive(Debug, Default)]
pub struct ListenerGauges {
    /// Handshakes with clients that have begun and not ended.
    pub handshakes_pending: AtomicUsize,
    /// How many connections there may be, by the configuration and by what there is room for. 0: it isn't open yet.
    pub connections_limit: AtomicUsize,
}

/// The counters that one thread writes: a worker, the acceptor.
#[derive(Debug)]
pub struct Shard {
    connections: [ConnectionCounters; Side::COUNT],
    handshakes: [Counter; HandshakeResult::COUNT],
    resets: [Counter; ResetCause::COUNT],
    limits: [Counter; Limit::COUNT],
    flags: [Counter; Flag::COUNT],
    methods: Arc<Methods>,
    unrouted: Arc<Series>,
    /// By a hash of route, cluster and path, with this state; a taken place moves on to the next
    /// number. The owning thread locks for each RPC, and meets nobody there but a scrape.
    series: Mutex<HashMap<u64, Arc<Series>, AlreadyHashed>>,
    hasher: foldhash::fast::RandomState,
    clusters: Mutex<HashMap<Arc<str>, Arc<ClusterSeries>>>,
}

/// Connections of one side.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    /// Accepted, or connected.
    pub opened: Counter,
    /// Of these, those that ended.
    pub closed: Counter,
}

/// The RPCs of one route, cluster and method.
#[derive(Debug)]
pub struct Series {
    /// The route's prefix; [`NONE`] when no route matched.
    pub route: Arc<str>,
    /// The cluster's name; [`NONE`] when the proxy answers itself.
    pub cluster: Arc<str>,
    /// `package.Service/Method`, or [`UNKNOWN`].
    pub method: Arc<str>,
    /// Requests whose headers were read.
    pub started: Counter,
    ended: [Counter; Self::STATUSES],
    methods: Arc<Methods>,
}

/// How a stream ended, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpcEnd {
    /// gRPC, with this grpc-status.
    Grpc(u32),
    /// Plain HTTP: a whole response with this status.
    Http(u16),
    /// gRPC without a grpc-status, or plain HTTP without a whole response.
    Without,
}

/// The RPCs of one cluster.
#[derive(Debug, Default)]
pub struct ClusterSeries {
    /// From the request's headers to the end of its stream.
    pub duration: Histogram,
    /// Attempts that run now.
    pub active: Gauge,
    /// Attempts after the first one of an RPC.
    pub retries: Counter,
    attempts: [Counter; AttemptResult::COUNT],
    retries_refused: [Counter; RetryRefusal::COUNT],
}

impl Metrics {
    /// With everything at zero and the uptime starting now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            access_log_dropped: OnceLock::new(),
            methods: Arc::default(),
            shards: Mutex::default(),
            forgotten: Mutex::default(),
            listener: Arc::default(),
        })
    }

    /// A new set of counters, for one thread to write to.
    pub fn shard(&self) -> Arc<Shard> {
        let none: Arc<str> = NONE.into();
        let unrouted = Series::new(&none, &none, UNKNOWN.into(), &self.methods);
        let shard = Arc::new(Shard {
            connections: Default::default(),
            handshakes: Default::default(),
            resets: Default::default(),
            limits: Default::default(),
            flags: Default::default(),
            methods: Arc::clone(&self.methods),
            unrouted,
            series: Mutex::default(),
            hasher: foldhash::fast::RandomState::default(),
            clusters: Mutex::default(),
        });
        lock(&self.shards).push(Arc::clone(&shard));
        shard
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

    /// For the acceptor to set.
    pub fn listener(&self) -> &Arc<ListenerGauges> {
        &self.listener
    }

    /// Since [`new`](Self::new).
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Forgets the clusters that `is_kept` doesn't know, each once nobody counts in it any more: a stream of a cluster that a
    /// reload has removed may run for days. That is of all threads at once, or a scrape would see a counter fall and
    /// take it for one that began anew.
    pub fn forget_clusters(&self, is_kept: impl Fn(&str) -> bool) {
        let shards = self.shards();
        let (mut gone, mut used) = (HashSet::new(), HashSet::new());
        for shard in &shards {
            shard.lock_clusters().look(|name, is_used| {
                if **name != *NONE && !is_kept(name) {
                    if is_used { &mut used } else { &mut gone }.insert(name.clone());
                }
            });
        }
        gone.retain(|name| !used.contains(name));
        if gone.is_empty() {
            return;
        }
        // A thread may have begun to count in one meanwhile. None can from here on, until all have forgotten it.
        let mut locked: Vec<_> = shards.iter().map(|shard| shard.lock_clusters()).collect();
        for clusters in &locked {
            clusters.look(|name, is_used| {
                if is_used {
                    gone.remove(name);
                }
            });
        }
        let mut forgotten = lock(&self.forgotten);
        for clusters in &mut locked {
            clusters.forget(&gone, &mut forgotten);
        }
        self.methods.forget(&gone);
    }

    /// What [`forget_clusters`](Self::forget_clusters) has taken away.
    pub(super) fn forgotten(&self) -> Forgotten {
        lock(&self.forgotten).clone()
    }

    /// All shards made so far.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        lock(&self.shards).clone()
    }
}

impl Shard {
    /// Connections of `side`.
    #[inline]
    pub fn connections(&self, side: Side) -> &ConnectionCounters {
        &self.connections[side.index()]
    }

    /// Handshakes with clients that ended so.
    #[inline]
    pub fn handshakes(&self, result: HandshakeResult) -> &Counter {
        &self.handshakes[result.index()]
    }

    /// Streams reset for this cause.
    #[inline]
    pub fn resets(&self, cause: ResetCause) -> &Counter {
        &self.resets[cause.index()]
    }

    /// How often this limit acted.
    #[inline]
    pub fn limits(&self, limit: Limit) -> &Counter {
        &self.limits[limit.index()]
    }

    /// RPCs with this flag in the access log.
    #[inline]
    pub fn flags(&self, flag: Flag) -> &Counter {
        &self.flags[flag.index()]
    }

    /// RPCs that no route matched.
    pub fn unrouted(&self) -> &Arc<Series> {
        &self.unrouted
    }

    /// The series that an RPC belongs to. `path` is as the client sent it: it has a series of its own
    /// only if a backend made it known ([`Series::learn`]). `cluster` is [`NONE`] for a direct
    /// response.
    pub fn series(&self, route: &Arc<str>, cluster: &Arc<str>, path: &[u8]) -> Arc<Series> {
        let mut series = lock(&self.series);
        let mut place = match self.find(&series, route, cluster, path) {
            Ok(found) => return Arc::clone(found),
            Err(place) => place,
        };
        let method = match self.methods.label(cluster, path) {
            Some(known) => known,
            None => {
                place = match self.find(&series, route, cluster, b"") {
                    Ok(found) => return Arc::clone(found),
                    Err(place) => place,
                };
                UNKNOWN.into()
            }
        };
        let new = Series::new(route, cluster, method, &self.methods);
        series.insert(place, Arc::clone(&new));
        new
    }

    /// The counters of `cluster`; for callers to keep as long as they keep the cluster.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterSeries> {
        let mut clusters = lock(&self.clusters);
        if let Some(found) = clusters.get(name) {
            return Arc::clone(found);
        }
        Arc::clone(clusters.entry(Arc::clone(name)).or_default())
    }

    /// Every series made so far, that of the unrouted too.
    pub(crate) fn all_series(&self) -> Vec<Arc<Series>> {
        let series = lock(&self.series);
        series.values().chain([&self.unrouted]).cloned().collect()
    }

    /// Every cluster met so far.
    pub(crate) fn all_clusters(&self) -> Vec<(Arc<str>, Arc<ClusterSeries>)> {
        let clusters = lock(&self.clusters);
        clusters
            .iter()
            .map(|(name, cluster)| (Arc::clone(name), Arc::clone(cluster)))
            .collect()
    }

    /// For a look at all that is counted by cluster: the owning thread waits as long as this is kept.
    fn lock_clusters(&self) -> LockedClusters<'_> {
        LockedClusters {
            series: lock(&self.series),
            clusters: lock(&self.clusters),
        }
    }

    /// The series of exactly these (an empty path: of the unknown methods), or its place if there is
    /// none.
    fn find<'a>(
        &self,
        series: &'a HashMap<u64, Arc<Series>, AlreadyHashed>,
        route: &str,
        cluster: &str,
        path: &[u8],
    ) -> Result<&'a Arc<Series>, u64> {
        let mut place = self.hasher.hash_one((route, cluster, path));
        while let Some(found) = series.get(&place) {
            if found.is(route, cluster, path) {
                return Ok(found);
            }
            place = place.wrapping_add(1);
        }
        Err(place)
    }
}

/// What a [`Shard`] counts by cluster.
struct LockedClusters<'a> {
    series: MutexGuard<'a, HashMap<u64, Arc<Series>, AlreadyHashed>>,
    clusters: MutexGuard<'a, HashMap<Arc<str>, Arc<ClusterSeries>>>,
}

impl LockedClusters<'_> {
    /// Calls `look` with the cluster of each series, and whether somebody counts in that.
    fn look(&self, mut look: impl FnMut(&Arc<str>, bool)) {
        for series in self.series.values() {
            look(&series.cluster, Arc::strong_count(series) > 1);
        }
        for (name, cluster) in self.clusters.iter() {
            look(name, Arc::strong_count(cluster) > 1);
        }
    }

    /// Forgets these clusters, in which nobody counts.
    fn forget(&mut self, gone: &HashSet<Arc<str>>, forgotten: &mut Forgotten) {
        // A series that moved on from a place that is free now isn't found any more, and is made anew: of the same
        // labels, and so told as one.
        self.series.retain(|_, series| {
            let stays = !gone.contains(&series.cluster);
            if !stays {
                forgotten.rpcs.count(series);
            }
            stays
        });
        self.clusters.retain(|name, cluster| {
            let stays = !gone.contains(name);
            if !stays {
                forgotten.duration.add(&cluster.duration);
            }
            stays
        });
    }
}

impl Series {
    /// How many [`ended`](Self::ended) tells apart: 0 to 16, other numbers, none, and four classes of plain HTTP.
    pub const STATUSES: usize = 23;

    fn new(
        route: &Arc<str>,
        cluster: &Arc<str>,
        method: Arc<str>,
        methods: &Arc<Methods>,
    ) -> Arc<Self> {
        Arc::new(Self {
            route: Arc::clone(route),
            cluster: Arc::clone(cluster),
            method,
            started: Counter::default(),
            ended: Default::default(),
            methods: Arc::clone(methods),
        })
    }

    /// RPCs whose stream ended so.
    #[inline]
    pub fn ended(&self, end: RpcEnd) -> &Counter {
        let index = match end {
            RpcEnd::Grpc(status @ 0..=16) => status as usize,
            RpcEnd::Grpc(_) => 17,
            // Below 200 is no end.
            RpcEnd::Without | RpcEnd::Http(..200) => WITHOUT,
            RpcEnd::Http(200..300) => 19,
            RpcEnd::Http(300..400) => 20,
            RpcEnd::Http(400..500) => 21,
            // A server's fault, as what has no known class is to whoever gets it (RFC 9110 §15).
            RpcEnd::Http(500..) => SERVER_ERRORS,
        };
        &self.ended[index]
    }

    /// To be called when a method of the *backend* (not the proxy, nor what stands before the backend's methods) answered
    /// `path`: from then on the method has series of its own. Costs one comparison once that is so.
    #[inline]
    pub fn learn(&self, path: &[u8]) {
        if &*self.method == UNKNOWN {
            self.methods.learn(&self.cluster, path);
        }
    }

    /// All counters behind [`ended`](Self::ended), in the order of [`STATUS_LABELS`].
    pub(crate) fn all_ended(&self) -> &[Counter; Self::STATUSES] {
        &self.ended
    }

    /// Whether RPCs of this method, of this route and cluster, are counted here. An unknown method's never are: its
    /// series is found by an empty path.
    pub(crate) fn is(&self, route: &str, cluster: &str, path: &[u8]) -> bool {
        let method = self.method.as_bytes();
        let same_method = match path {
            [] => self.method.as_bytes() == UNKNOWN.as_bytes(),
            [b'/', path @ ..] => method == path,
            _ => false,
        };
        // Mostly the very texts that are counted here.
        let same = |one: &str, other: &str| std::ptr::eq(one, other) || one == other;
        same_method && same(&self.route, route) && same(&self.cluster, cluster)
    }
}

impl ClusterSeries {
    /// Attempts that ended so.
    #[inline]
    pub fn attempts(&self, result: AttemptResult) -> &Counter {
        &self.attempts[result.index()]
    }

    /// Attempts that weren't made for this.
    #[inline]
    pub fn retries_refused(&self, by: RetryRefusal) -> &Counter {
        &self.retries_refused[by.index()]
    }
}

/// A key that is a hash: it stands for itself.
#[derive(Debug, Default)]
struct Itself(u64);

type AlreadyHashed = BuildHasherDefault<Itself>;

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write(&mut self, bytes: &[u8]) {
        // The keys are u64, so this isn't called; if it were, it would still be a hash.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// Nothing is left half-done under these locks: after a panic elsewhere the data is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The label of a route or a cluster that there isn't.
pub const NONE: &str = "none";
/// The exported values of `grpc_status`, by index of [`Series::ended`].
pub const STATUS_LABELS: [&str; Series::STATUSES] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
    "other", "none", "http_2xx", "http_3xx", "http_4xx", "http_5xx",
];
/// The index of `none`.
pub(super) const WITHOUT: usize = 18;
/// That of `http_5xx`.
pub(super) const SERVER_ERRORS: usize = 22;

#[cfg(test)]
mod tests;
