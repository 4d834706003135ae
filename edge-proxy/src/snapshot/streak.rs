//! Passive health, the workers' half: how many attempts on an endpoint have failed in a row.
//!
//! All workers count in one word per endpoint, so a streak is exact however its RPCs are spread over them; nothing is
//! locked. The word is written only while something fails: an attempt that went well costs one relaxed load of a line
//! that the endpoint's other counters have brought into the cache anyway. A streak that reaches its threshold is noted
//! and begins anew; the control plane takes the note ([`Streaks::take`]) and decides what it means
//! (`control_plane/health/passive.rs`), for it alone knows how many endpoints are left.
//!
//! What is counted, and in which streak, is Envoy's outlier detection, but for two things. What a client can bring about
//! at will says nothing about the endpoint: its own deadline (a received DEADLINE_EXCEEDED too) and a method that isn't
//! there (UNIMPLEMENTED). And a stream's reset is the backend's word, not a failure of its connection, unless it refuses
//! the RPC.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The streaks of one endpoint.
#[derive(Debug, Default)]
pub struct Streaks {
    /// One [`FIELD`] per [`Detector`]. Written by workers.
    counts: AtomicU64,
    /// [`Thresholds`], packed likewise. Written by the control plane.
    thresholds: AtomicU64,
    /// A bit per [`Detector`] whose threshold was reached: set by workers, taken by the control plane.
    reached: AtomicU8,
}

/// A kind of streak, by its configuration key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detector {
    /// RPCs that it didn't take.
    LocalOrigin,
    /// Answers that say "unavailable".
    GatewayFailure,
    /// Answers of any failure of the backend's.
    ServerError,
}

/// How an attempt ended, as far as it says something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It answered, and with no failure of its own.
    Well,
    /// The connection failed, timed out, or ended under its RPCs; the stream was refused.
    LocalOrigin,
    /// gRPC UNAVAILABLE; HTTP 502, 503, 504; a stream that the backend reset or broke.
    GatewayFailure,
    /// gRPC UNKNOWN, INTERNAL, DATA_LOSS, or no status; another HTTP 5xx.
    ServerError,
}

/// When a streak is long enough; 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// `consecutive_local_origin_failure`.
    pub local_origin: u32,
    /// `consecutive_gateway_failure`.
    pub gateway_failure: u32,
    /// `consecutive_5xx`.
    pub server_error: u32,
    /// `split_external_local_origin_errors` is off: failures of connections count as the other two.
    pub joined: bool,
}

impl Streaks {
    /// `times` attempts ended so, one after the other. True: the control plane has something new to take.
    #[inline]
    pub fn count(&self, ending: Ending, times: u32) -> bool {
        let counts = self.counts.load(Ordering::Relaxed);
        if ending == Ending::Well {
            if counts != 0 {
                self.counts.store(0, Ordering::Relaxed);
            }
            return false;
        }
        self.failed(ending, times)
    }

    #[cold]
    fn failed(&self, ending: Ending, times: u32) -> bool {
        let thresholds = self.thresholds.load(Ordering::Relaxed);
        let joined = thresholds & JOINED != 0;
        let mut reached = 0;
        let step = |counts: u64| {
            reached = 0;
            let mut next = 0;
            for detector in Detector::ALL {
                let threshold = detector.field(thresholds);
                let count = match ending.effect(detector, joined) {
                    Effect::Ends => 0,
                    Effect::Leaves => detector.field(counts),
                    Effect::Lengthens => detector.field(counts).saturating_add(times).min(FIELD),
                };
                // What isn't watched isn't counted either.
                if threshold == 0 {
                    continue;
                }
                if count >= threshold {
                    reached |= detector.bit();
                } else {
                    next |= detector.packed(count);
                }
            }
            Some(next)
        };
        // Relaxed: the word orders nothing but itself.
        let _ = self
            .counts
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        reached != 0 && self.reached.fetch_or(reached, Ordering::Relaxed) & reached != reached
    }

    /// Sets what is long enough, from now on.
    pub fn watch(&self, thresholds: &Thresholds) {
        let packed = Detector::LocalOrigin.packed(thresholds.local_origin)
            | Detector::GatewayFailure.packed(thresholds.gateway_failure)
            | Detector::ServerError.packed(thresholds.server_error)
            | if thresholds.joined { JOINED } else { 0 };
        self.thresholds.store(packed, Ordering::Relaxed);
    }

    /// The streaks that have reached their threshold since the last call.
    pub fn take(&self) -> impl Iterator<Item = Detector> + use<> {
        let reached = match self.reached.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.reached.swap(0, Ordering::Relaxed),
        };
        Detector::ALL
            .into_iter()
            .filter(move |detector| reached & detector.bit() != 0)
    }

    /// Forgets what was counted.
    pub fn clear(&self) {
        self.counts.store(0, Ordering::Relaxed);
        self.reached.store(0, Ordering::Relaxed);
    }
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LocalOrigin, Self::GatewayFailure, Self::ServerError];

    /// The configuration's key, which is the word in JSON and in metrics too.
    pub fn key(self) -> &'static str {
        match self {
            Self::LocalOrigin => "consecutive_local_origin_failure",
            Self::GatewayFailure => "consecutive_gateway_failure",
            Self::ServerError => "consecutive_5xx",
        }
    }

    fn field(self, word: u64) -> u32 {
        (word >> (self as u32 * FIELD_BITS)) as u32 & FIELD
    }

    fn packed(self, value: u32) -> u64 {
        u64::from(value.min(FIELD)) << (self as u32 * FIELD_BITS)
    }

    fn bit(self) -> u8 {
        1 << self as u32
    }
}

/// What an attempt's end does to a streak.
enum Effect {
    Lengthens,
    Ends,
    Leaves,
}

impl Ending {
    /// As Envoy: a gateway failure is a server error too, another server error isn't a gateway failure, and whoever
    /// answers takes RPCs.
    fn effect(self, detector: Detector, joined: bool) -> Effect {
        match (self, detector) {
            (Self::Well, _) => Effect::Ends,
            (Self::LocalOrigin, Detector::LocalOrigin) => Effect::Lengthens,
            (Self::LocalOrigin, _) if joined => Effect::Lengthens,
            (Self::LocalOrigin, _) => Effect::Leaves,
            (_, Detector::LocalOrigin) => Effect::Ends,
            (Self::GatewayFailure, _) => Effect::Lengthens,
            (Self::ServerError, Detector::ServerError) => Effect::Lengthens,
            (Self::ServerError, _) => Effect::Ends,
        }
    }
}

/// The width of a count: a million is as good as never.
const FIELD_BITS: u32 = 20;
const FIELD: u32 = (1 << FIELD_BITS) - 1;
/// See [`Thresholds::joined`]; above the three fields.
const JOINED: u64 = 1 << 63;

/// The largest threshold.
pub const MAX_THRESHOLD: u32 = FIELD;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn streaks(local_origin: u32, gateway_failure: u32, server_error: u32) -> Streaks {
        let streaks = Streaks::default();
        streaks.watch(&Thresholds {
            local_origin,
            gateway_failure,
            server_error,
            joined: false,
        });
        streaks
    }

    fn taken(streaks: &Streaks) -> Vec<Detector> {
        streaks.take().collect()
    }

    use Ending::{GatewayFailure, LocalOrigin, ServerError, Well};

    #[test]
    fn a_streak_that_is_long_enough_is_told_once_and_begins_anew() {
        let streaks = streaks(3, 0, 0);
        assert!(!streaks.count(LocalOrigin, 1));
        assert!(!streaks.count(LocalOrigin, 1));
        assert!(streaks.count(LocalOrigin, 1));
        assert!(!streaks.count(LocalOrigin, 1), "that is the first again");
        assert_eq!(taken(&streaks), [Detector::LocalOrigin]);
        assert_eq!(taken(&streaks), []);
        assert!(!streaks.count(LocalOrigin, 1));
        assert!(streaks.count(LocalOrigin, 1));
    }

    #[test]
    fn whoever_was_told_is_not_told_again_before_it_looked() {
        let streaks = streaks(1, 0, 0);
        assert!(streaks.count(LocalOrigin, 1));
        assert!(!streaks.count(LocalOrigin, 1));
        assert_eq!(taken(&streaks), [Detector::LocalOrigin]);
        assert!(streaks.count(LocalOrigin, 1));
    }

    #[test]
    fn one_that_goes_well_ends_every_streak() {
        let streaks = streaks(2, 2, 2);
        for ending in [LocalOrigin, GatewayFailure, ServerError] {
            for _ in 0..3 {
                assert!(!streaks.count(ending, 1), "{ending:?}");
                assert!(!streaks.count(Well, 1));
            }
        }
    }

    #[test]
    fn who_answers_takes_rpcs() {
        for answer in [GatewayFailure, ServerError] {
            let streaks = streaks(2, 0, 0);
            assert!(!streaks.count(LocalOrigin, 1));
            assert!(!streaks.count(answer, 1));
            assert!(!streaks.count(LocalOrigin, 1), "{answer:?}");
        }
    }

    #[test]
    fn a_gateway_failure_is_a_server_error_and_not_the_other_way_round() {
        let streaks = streaks(0, 2, 3);
        assert!(!streaks.count(GatewayFailure, 1));
        assert!(!streaks.count(ServerError, 1));
        assert!(
            streaks.count(GatewayFailure, 1),
            "the third in a row, and the gateway's first again"
        );
        assert_eq!(taken(&streaks), [Detector::ServerError]);
        assert!(streaks.count(GatewayFailure, 1));
        assert_eq!(taken(&streaks), [Detector::GatewayFailure]);
    }

    #[test]
    fn an_rpc_that_was_not_taken_leaves_the_answers_streaks_unless_they_are_joined() {
        let split = streaks(0, 0, 2);
        assert!(!split.count(ServerError, 1));
        assert!(!split.count(LocalOrigin, 1));
        assert!(split.count(ServerError, 1));

        let joined = streaks(0, 0, 0);
        joined.watch(&Thresholds {
            gateway_failure: 2,
            server_error: 3,
            joined: true,
            ..Thresholds::default()
        });
        assert!(!joined.count(LocalOrigin, 1));
        assert!(joined.count(LocalOrigin, 1));
        assert_eq!(taken(&joined), [Detector::GatewayFailure]);
        assert!(joined.count(LocalOrigin, 1));
        assert_eq!(taken(&joined), [Detector::ServerError]);
    }

    #[test]
    fn what_is_not_watched_is_not_counted() {
        let streaks = streaks(0, 0, 0);
        assert!(!streaks.count(LocalOrigin, 1000));
        streaks.watch(&Thresholds {
            local_origin: 2,
            ..Thresholds::default()
        });
        assert!(!streaks.count(LocalOrigin, 1));
        streaks.clear();
        assert!(!streaks.count(LocalOrigin, 1));
        assert!(streaks.count(LocalOrigin, 1));
        streaks.clear();
        assert_eq!(taken(&streaks), []);
    }

    #[test]
    fn several_at_once_count_as_many() {
        let streaks = streaks(5, 0, 0);
        assert!(!streaks.count(LocalOrigin, 4));
        assert!(streaks.count(LocalOrigin, 4));
        assert_eq!(taken(&streaks), [Detector::LocalOrigin]);
        assert!(streaks.count(LocalOrigin, u32::MAX));
    }

    #[test]
    fn workers_count_one_streak() {
        let streaks = streaks(0, 0, 100);
        let told: usize = thread::scope(|scope| {
            let worker = || {
                (0..1000)
                    .filter(|_| streaks.count(ServerError, 1) && taken(&streaks).len() == 1)
                    .count()
            };
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        // 40 streaks of 100; a worker may take what another was about to.
        assert!((1..=40).contains(&told), "{told}");
        assert_eq!(streaks.counts.load(Ordering::Relaxed), 0, "none was lost");
    }
}
