//! A connection's place in all the counts: connections in all, of one source, pending handshakes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::pending::{Handshake, Pending};
use crate::{
    data_plane::{memory::room_to_keep, source::Source, tls::Turn, worker::Load},
    telemetry::metrics::{Limit, ListenerGauges},
};

/// A connection's place in all the counts; leaving them is dropping it.
#[derive(Debug)]
pub(crate) struct Ticket {
    counts: Arc<Counts>,
    load: Arc<Load>,
    source: Source,
    /// Until it is through.
    handshake: Option<Handshake>,
}

/// How many connections there are, by each limit.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    open: AtomicUsize,
    pending: Mutex<Pending>,
    by_source: Mutex<HashMap<Source, usize>>,
    /// Connections accepted since the start: the drain looks whether still some arrive.
    arrived: AtomicUsize,
}

impl Ticket {
    /// A place for one more connection; whether a pending handshake was given up for it.
    pub(crate) fn take(
        counts: &Arc<Counts>,
        load: &Arc<Load>,
        source: Source,
        limits: [usize; 3],
    ) -> Result<(Self, bool), Limit> {
        let [connections, per_source, handshakes] = limits;
        if counts.open.load(Ordering::Relaxed) >= connections {
            return Err(Limit::Connections);
        }
        let mut by_source = lock(&counts.by_source);
        let from_there = by_source.get(&source).copied().unwrap_or(0);
        if from_there >= per_source {
            return Err(Limit::ConnectionsPerSource);
        }
        let (handshake, given_up) = lock(&counts.pending).enter(source, handshakes, now())?;
        by_source.insert(source, from_there + 1);
        drop(by_source);
        counts.open.fetch_add(1, Ordering::Relaxed);
        load.connections.fetch_add(1, Ordering::Relaxed);
        let ticket = Self {
            counts: counts.clone(),
            load: load.clone(),
            source,
            handshake: Some(handshake),
        };
        Ok((ticket, given_up))
    }

    /// How the handshake goes on.
    pub(crate) fn turn(&mut self, turn: Turn) {
        let Some(handshake) = &mut self.handshake else {
            return;
        };
        let mut pending = lock(&self.counts.pending);
        match turn {
            Turn::Answered => pending.heard(handshake, now()),
            Turn::Came => pending.waits_for_us(handshake, true),
            Turn::Read => pending.waits_for_us(handshake, false),
        }
    }

    /// Wakes when the handshake is given up for a newer one.
    pub(crate) fn given_up(&self) -> Arc<Notify> {
        match &self.handshake {
            Some(handshake) => handshake.given_up.clone(),
            None => Arc::default(),
        }
    }

    /// The handshake is through (or failed).
    pub(crate) fn handshake_done(&mut self) {
        if let Some(handshake) = self.handshake.take() {
            lock(&self.counts.pending).leave(&handshake);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.handshake_done();
        self.load.connections.fetch_sub(1, Ordering::Relaxed);
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        let mut by_source = lock(&self.counts.by_source);
        if let Some(from_there) = by_source.get_mut(&self.source) {
            *from_there -= 1;
            if *from_there == 0 {
                by_source.remove(&self.source);
                // No beat comes by here; each that goes pays for a part of the next time.
                if let Some(room) = room_to_keep(by_source.capacity(), by_source.len()) {
                    by_source.shrink_to(room);
                }
            }
        }
    }
}

impl Counts {
    pub(super) fn shown_by(gauges: &Arc<ListenerGauges>) -> Self {
        Self {
            pending: Mutex::new(Pending::shown_by(gauges)),
            ..Self::default()
        }
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// One more is accepted.
    pub(super) fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections accepted since the start.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Tokio's, so that a test may pass it; for what happens once in a connection's life, on any thread.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Nothing is left half-done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        pin::pin,
        task::{Context, Waker},
    };

    use super::{super::pending::GIVEN_UP, *};

    const LIMITS: [usize; 3] = [4, 3, 2];

    fn source(last: u8) -> Source {
        IpAddr::from([192, 0, 2, last]).into()
    }

    fn is_given_up(ticket: &Ticket) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let given_up = ticket.given_up();
        pin!(given_up.notified()).poll(&mut context).is_ready()
    }

    #[test]
    fn the_oldest_without_a_client_hello_goes_when_pending_handshakes_are_full() {
        let gauges = Arc::<ListenerGauges>::default();
        let shown = || gauges.handshakes_pending.load(Ordering::Relaxed);
        let counts = Arc::new(Counts::shown_by(&gauges));
        let load = Arc::<Load>::default();
        let take = || Ticket::take(&counts, &load, source(1), [100, 100, 2]);
        let (mut heard, _) = take().unwrap();
        assert_eq!(shown(), 1);
        heard.turn(Turn::Answered);
        let (silent, given_up) = take().unwrap();
        assert!(!given_up);
        let (mut newer, given_up) = take().unwrap();
        assert!(given_up, "for the newer one");
        assert_eq!(shown(), 2, "the other one's is over");
        assert!(is_given_up(&silent) && !is_given_up(&heard) && !is_given_up(&newer));
        newer.turn(Turn::Answered);
        // All that are pending have said who they are.
        assert_eq!(take().unwrap_err(), Limit::PendingHandshakes);
        drop(silent);
        assert_eq!(
            take().unwrap_err(),
            Limit::PendingHandshakes,
            "it counted no more"
        );
        heard.handshake_done();
        assert_eq!(shown(), 1);
        take().unwrap();
        drop((newer, heard));
        assert_eq!((lock(&counts.pending).count(), shown()), (0, 0));
        assert_eq!(counts.open(), 0);
    }

    #[test]
    fn a_hello_that_comes_too_late_saves_nobody() {
        let (counts, load) = (Arc::<Counts>::default(), Arc::<Load>::default());
        let take = || {
            Ticket::take(&counts, &load, source(1), [100, 100, 1])
                .unwrap()
                .0
        };
        let mut late = take();
        let newer = take();
        late.turn(Turn::Answered);
        assert!(is_given_up(&late));
        drop(late);
        assert_eq!(lock(&counts.pending).count(), 1);
        drop(newer);
        assert_eq!(lock(&counts.pending).count(), 0);
    }

    #[test]
    fn a_worker_that_is_behind_is_given_no_more_to_close() {
        let (counts, load) = (Arc::<Counts>::default(), Arc::<Load>::default());
        let take = || Ticket::take(&counts, &load, source(1), [1000, 1000, 2]);
        let mut tickets: Vec<_> = (0..2 + GIVEN_UP).map(|_| take().unwrap().0).collect();
        assert_eq!(take().unwrap_err(), Limit::PendingHandshakes);
        assert_eq!(counts.open(), 2 + GIVEN_UP);
        // The worker closes the oldest, which was given up first.
        tickets.remove(0);
        tickets.push(take().unwrap().0);
        assert_eq!(take().unwrap_err(), Limit::PendingHandshakes);
        tickets.clear();
        assert_eq!(lock(&counts.pending).count(), 0);
    }

    #[test]
    fn what_many_sources_have_taken_is_given_back_when_they_are_gone() {
        let (counts, load) = (Arc::<Counts>::default(), Arc::<Load>::default());
        let take = |number: u32| {
            let source = IpAddr::V4(number.into()).into();
            let taken = Ticket::take(&counts, &load, source, [usize::MAX; 3]);
            taken.unwrap().0
        };
        let mut tickets: Vec<_> = (0..10_000).map(take).collect();
        let room = || lock(&counts.by_source).capacity();
        assert!(room() >= 10_000);
        tickets.truncate(3);
        assert!(room() < 2000, "{}", room());
        assert_eq!(lock(&counts.by_source).len(), 3);
    }

    #[test]
    fn connections_in_all_and_of_one_source() {
        let (counts, load) = (Arc::<Counts>::default(), Arc::<Load>::default());
        let take = |last| {
            Ticket::take(&counts, &load, source(last), LIMITS).map(|(mut ticket, _)| {
                ticket.handshake_done();
                ticket
            })
        };
        let mut tickets: Vec<_> = (0..3).map(|_| take(1).unwrap()).collect();
        assert_eq!(take(1).unwrap_err(), Limit::ConnectionsPerSource);
        tickets.push(take(2).unwrap());
        assert_eq!(take(2).unwrap_err(), Limit::Connections);
        assert_eq!(load.connections.load(Ordering::Relaxed), 4);
        tickets.remove(0);
        take(1).unwrap();
        tickets.clear();
        assert_eq!(load.connections.load(Ordering::Relaxed), 0);
        assert!(lock(&counts.by_source).is_empty());
    }

    #[test]
    fn all_addresses_of_an_ipv6_host_are_one_source() {
        let (counts, load) = (Arc::<Counts>::default(), Arc::<Load>::default());
        let take = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            Ticket::take(&counts, &load, address.into(), [100, 2, 100])
        };
        let _two = ["2001:db8::1", "2001:db8::2"].map(|address| take(address).unwrap());
        let another = take("2001:db8::3").unwrap_err();
        assert_eq!(another, Limit::ConnectionsPerSource);
        take("2001:db8:0:1::1").unwrap();
    }
}
