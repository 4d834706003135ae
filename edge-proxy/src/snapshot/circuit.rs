//! Circuit limits of a cluster: how much of it may be in use at once, over all workers.
//!
//! One count per limit and cluster, shared by all workers and carried across publications. What is counted holds a
//! [`Permits`], which gives back when it is dropped: nothing can leave without being counted out. A limit that isn't set
//! costs one relaxed load and counts nothing; so what began before a limit was set (by a reload) isn't counted in it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// A limit, by its configuration key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Circuit {
    /// Connections to all endpoints, from the decision to open them, as long as they take RPCs.
    Connections,
    /// RPCs that wait for a connection.
    PendingRequests,
    /// Attempts that run: RPCs on a stream.
    Requests,
    /// Attempts after the first one of an RPC, until they end.
    Retries,
}

/// The limits of one cluster, and what is in use.
#[derive(Debug)]
pub struct Circuits([Gauge; Circuit::ALL.len()]);

#[derive(Debug)]
struct Gauge {
    /// [`OFF`]: no limit. Written by the control plane.
    limit: AtomicU32,
    used: AtomicU32,
    /// How often the limit acted.
    refused: AtomicU64,
}

/// `circuit_breakers`: each limit, in the order of [`Circuit::ALL`]; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitLimits(pub [Option<u32>; Circuit::ALL.len()]);

/// One limit as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitUse {
    /// Which.
    pub circuit: Circuit,
    /// The limit; `None`: there is none, and nothing is counted.
    pub limit: Option<u32>,
    /// What is in use.
    pub used: u32,
    /// How often it acted.
    pub refused: u64,
}

/// What somebody holds of a cluster's circuits; given back on drop.
#[derive(Debug, Default)]
pub struct Permits {
    /// `None`: nothing is held.
    circuits: Option<Arc<Circuits>>,
    /// A bit per [`Circuit`].
    held: u8,
}

impl Circuits {
    /// Sets the limits, from now on. What is in use above them may go on.
    pub fn limit(&self, limits: &CircuitLimits) {
        for (gauge, limit) in self.0.iter().zip(limits.0) {
            gauge.limit.store(limit.unwrap_or(OFF), Ordering::Relaxed);
        }
    }

    /// Every limit and its use.
    pub fn uses(&self) -> impl Iterator<Item = CircuitUse> {
        Circuit::ALL
            .into_iter()
            .zip(&self.0)
            .map(|(circuit, gauge)| {
                let limit = gauge.limit.load(Ordering::Relaxed);
                CircuitUse {
                    circuit,
                    limit: (limit != OFF).then_some(limit),
                    used: gauge.used.load(Ordering::Relaxed),
                    refused: gauge.refused.load(Ordering::Relaxed),
                }
            })
    }

    fn gauge(&self, circuit: Circuit) -> &Gauge {
        &self.0[circuit as usize]
    }
}

impl Default for Circuits {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Gauge {
            limit: AtomicU32::new(OFF),
            used: AtomicU32::new(0),
            refused: AtomicU64::new(0),
        }))
    }
}

impl Permits {
    /// One more of `circuit`, of a cluster whose circuits these are.
    ///
    /// # Errors
    /// The limit is reached: it gives its name, and nothing is held of it.
    #[inline]
    pub fn enter(&mut self, circuits: &Arc<Circuits>, circuit: Circuit) -> Result<(), Circuit> {
        let limit = circuits.gauge(circuit).limit.load(Ordering::Relaxed);
        if limit == OFF {
            return Ok(());
        }
        self.enter_limited(circuits, circuit, limit)
    }

    #[cold]
    fn enter_limited(
        &mut self,
        circuits: &Arc<Circuits>,
        circuit: Circuit,
        limit: u32,
    ) -> Result<(), Circuit> {
        debug_assert!(self.held & circuit.bit() == 0, "one of each");
        let gauge = circuits.gauge(circuit);
        // Relaxed: the count orders nothing but itself. Compared before it is added to, so that one who is refused
        // never stands in the way of one who isn't.
        let entered = gauge
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < limit).then_some(used + 1)
            });
        if entered.is_err() {
            gauge.refused.fetch_add(1, Ordering::Relaxed);
            return Err(circuit);
        }
        self.circuits.get_or_insert_with(|| Arc::clone(circuits));
        self.held |= circuit.bit();
        Ok(())
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        let Some(circuits) = &self.circuits else {
            return;
        };
        for circuit in Circuit::ALL {
            if self.held & circuit.bit() != 0 {
                circuits.gauge(circuit).used.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Circuit {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::PendingRequests,
        Self::Requests,
        Self::Retries,
    ];

    /// The configuration's key, which is the word in JSON and in metrics too.
    pub fn key(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::PendingRequests => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u32
    }
}

/// No limit.
const OFF: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn limited(requests: u32) -> Arc<Circuits> {
        let circuits = Arc::<Circuits>::default();
        circuits.limit(&CircuitLimits([None, None, Some(requests), None]));
        circuits
    }

    fn enter(circuits: &Arc<Circuits>, circuit: Circuit) -> Result<Permits, Circuit> {
        let mut permits = Permits::default();
        permits.enter(circuits, circuit).map(|()| permits)
    }

    fn used(circuits: &Circuits) -> u32 {
        circuits.uses().map(|of| of.used).sum()
    }

    #[test]
    fn as_many_as_the_limit_and_again_when_one_has_left() {
        let circuits = limited(2);
        let first = enter(&circuits, Circuit::Requests).unwrap();
        let _second = enter(&circuits, Circuit::Requests).unwrap();
        assert_eq!(
            enter(&circuits, Circuit::Requests).unwrap_err(),
            Circuit::Requests
        );
        drop(first);
        let _third = enter(&circuits, Circuit::Requests).unwrap();
        let requests = circuits.uses().nth(2).unwrap();
        assert_eq!(
            (requests.limit, requests.used, requests.refused),
            (Some(2), 2, 1)
        );
    }

    #[test]
    fn what_has_no_limit_is_not_counted() {
        let circuits = limited(1);
        let held: Vec<_> = (0..10)
            .map(|_| enter(&circuits, Circuit::Retries).unwrap())
            .collect();
        assert_eq!(used(&circuits), 0);
        // Set now, the limit counts who comes from now on, and no one twice.
        circuits.limit(&CircuitLimits([None, None, None, Some(1)]));
        let one = enter(&circuits, Circuit::Retries).unwrap();
        drop(held);
        assert!(enter(&circuits, Circuit::Retries).is_err());
        circuits.limit(&CircuitLimits::default());
        drop(one);
        assert_eq!(used(&circuits), 0);
    }

    #[test]
    fn one_holder_gives_back_all_that_it_holds() {
        let circuits = Arc::<Circuits>::default();
        circuits.limit(&CircuitLimits([Some(5); 4]));
        let mut permits = Permits::default();
        for circuit in Circuit::ALL {
            permits.enter(&circuits, circuit).unwrap();
        }
        assert_eq!(used(&circuits), 4);
        drop(permits);
        assert_eq!(used(&circuits), 0);
    }

    #[test]
    fn workers_never_hold_more_than_the_limit_together() {
        let circuits = limited(3);
        let most = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if let Ok(_held) = enter(&circuits, Circuit::Requests) {
                            most.fetch_max(used(&circuits), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert_eq!(used(&circuits), 0);
    }
}
