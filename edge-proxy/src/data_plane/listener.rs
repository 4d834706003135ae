//! Step 1: accept, connection limits, hand-over to a worker.
//!
//! One acceptor on a thread of its own gives each connection to the worker with the fewest: gRPC clients open few,
//! long-lived connections, and hashing (SO_REUSEPORT) can put all of them on one core. The limits are enforced here,
//! before a connection costs more than its socket: connections in all, per source address, and handshakes that aren't
//! through. What is above a limit is closed at once, counted by limit. Of pending handshakes the oldest goes that hasn't
//! sent a whole ClientHello: whoever connects and says nothing can't keep others out. It is the worker that closes it:
//! while a worker is behind, only a few may wait for that, and newcomers are refused instead; else a flood of connections
//! would take as many files as it likes.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{Notify, mpsc, watch};

use super::worker::{Handle, Load};
use crate::{
    snapshot::{
        Heartbeats, ListenerPolicy, Reader,
        pressure::{Level, Pressure},
    },
    telemetry::metrics::{HandshakeResult, Limit, ListenerGauges, Metrics, Shard},
};

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// Counted until the connection ends.
    pub(crate) ticket: Ticket,
}

/// A connection's place in all the counts; leaving them is dropping it.
#[derive(Debug)]
pub(crate) struct Ticket {
    counts: Arc<Counts>,
    load: Arc<Load>,
    source: IpAddr,
    /// Until it is through.
    handshake: Option<Handshake>,
}

/// A pending handshake.
#[derive(Debug)]
struct Handshake {
    /// Its place in the order of arrival.
    number: u64,
    /// Its ClientHello is here: it isn't given up any more.
    heard: bool,
    given_up: Arc<Notify>,
}

/// The pending handshakes.
#[derive(Debug, Default)]
struct Pending {
    /// How many.
    count: usize,
    /// Those of them without a whole ClientHello, oldest first, and how to tell them that they are given up.
    silent: BTreeMap<u64, Arc<Notify>>,
    /// Those that were given up, and whose sockets aren't closed yet: not counted above.
    given_up: usize,
    /// The next one's number.
    next: u64,
    /// Where `count` is shown.
    gauges: Arc<ListenerGauges>,
}

/// How many connections there are, by each limit.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    open: AtomicUsize,
    pending: Mutex<Pending>,
    by_source: Mutex<HashMap<IpAddr, usize>>,
    /// Connections accepted since the start: the drain looks whether still some arrive.
    arrived: AtomicUsize,
}

/// The acceptor's thread and what others ask of it.
#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) counts: Arc<Counts>,
    close: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// How many connections of clients there may be, whatever the configuration says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Within the memory limit.
    pub(crate) by_memory: usize,
    /// Within the limit of open files.
    pub(crate) by_files: usize,
    /// That limit.
    pub(crate) open_files: usize,
}

/// The workers, as the acceptor hands over to them.
pub(crate) type Workers = Vec<(mpsc::UnboundedSender<Accepted>, Arc<Load>)>;

impl Acceptor {
    /// Accepts on `listener`, which is bound and listens, until [`close`](Self::close). There is never room for more than
    /// `room` connections, whatever the configuration says.
    pub(crate) fn spawn(
        listener: std::net::TcpListener,
        workers: &[Handle],
        heartbeats: Arc<Heartbeats>,
        reader: Reader,
        pressure: watch::Receiver<Pressure>,
        metrics: &Metrics,
        room: Room,
    ) -> io::Result<Self> {
        let counts = Arc::new(Counts::shown_by(metrics.listener()));
        let (close, closing) = watch::channel(false);
        let workers: Workers = workers
            .iter()
            .map(|worker| (worker.accepted.clone(), worker.load.clone()))
            .collect();
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new().name("acceptor".into()).spawn({
            let mut accepting = Accepting {
                workers,
                heartbeats,
                counts: counts.clone(),
                reader,
                pressure,
                shard: metrics.shard(),
                gauges: metrics.listener().clone(),
                room,
                configured: None,
            };
            // Before anybody can say that the listener is open.
            accepting.policy();
            move || runtime.block_on(accepting.run(listener, closing))
        })?;
        Ok(Self {
            counts,
            close,
            thread: Some(thread),
        })
    }

    /// Closes the listener. Connections that the kernel had accepted and nobody took are served first.
    pub(crate) fn close(&mut self) {
        self.close.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the acceptor panicked");
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the acceptor's thread has.
struct Accepting {
    workers: Workers,
    /// In the workers' order.
    heartbeats: Arc<Heartbeats>,
    counts: Arc<Counts>,
    reader: Reader,
    pressure: watch::Receiver<Pressure>,
    shard: Arc<Shard>,
    gauges: Arc<ListenerGauges>,
    room: Room,
    /// `max_connections` as it was last compared with the room for it.
    configured: Option<usize>,
}

impl Accepting {
    async fn run(mut self, listener: std::net::TcpListener, closing: watch::Receiver<bool>) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the listener can't be polled"),
        };
        self.accept_until(&listener, closing).await;
        if let Ok(listener) = listener.into_std() {
            self.accept_the_rest(&listener);
        }
    }

    /// Also while there is always one to accept, or an error each time.
    async fn accept_until(
        &mut self,
        listener: &tokio::net::TcpListener,
        mut closing: watch::Receiver<bool>,
    ) {
        let mut backoff = BACKOFF_FIRST;
        let mut follows = true;
        loop {
            let accepted = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                changed = self.reader.changed(), if follows => {
                    follows = changed;
                    self.policy();
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    backoff = BACKOFF_FIRST;
                    if let Ok(socket) = socket.into_std() {
                        self.admit(socket, peer);
                    }
                }
                // The peer gave up before we came to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of file descriptors, most often: accepting again at once would only spin.
                    tracing::warn!(%error, "accept failed; trying again in {backoff:?}");
                    let closes = closing.wait_for(|closing| *closing);
                    // What it says is asked again above.
                    let _ = tokio::time::timeout(backoff, closes).await;
                    backoff = (backoff * 2).min(BACKOFF_LAST);
                }
            }
        }
    }

    /// Those that the kernel has accepted already: they are as many as its queue holds, and no more that come meanwhile.
    fn accept_the_rest(&mut self, listener: &std::net::TcpListener) {
        for _ in 0..BACKLOG {
            match listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => return,
            }
        }
    }

    /// Hands it to a worker, or closes it.
    fn admit(&mut self, mut socket: std::net::TcpStream, peer: SocketAddr) {
        self.counts.arrived.fetch_add(1, Ordering::Relaxed);
        let policy = self.policy();
        while let Some((worker, load)) = self.fewest() {
            let ticket = match self.ticket(load, peer.ip(), &policy) {
                Ok(ticket) => ticket,
                Err(limit) => {
                    self.shard.limits(limit).inc();
                    self.shard.handshakes(HandshakeResult::Refused).inc();
                    return;
                }
            };
            let accepted = Accepted {
                socket,
                peer,
                ticket,
            };
            let Err(mpsc::error::SendError(accepted)) = worker.send(accepted) else {
                return;
            };
            // It has ended meanwhile, and isn't asked again.
            socket = accepted.socket;
        }
    }

    /// What is configured now; if that is more than there is room for, the log says so, each time that it has changed.
    fn policy(&mut self) -> Arc<ListenerPolicy> {
        let policy = self.reader.load().listener.clone();
        let wanted = policy.max_connections;
        if self.configured.replace(wanted) != Some(wanted) {
            self.room.judge(wanted);
            let limit = wanted.min(self.room.connections());
            self.gauges
                .connections_limit
                .store(limit, Ordering::Relaxed);
        }
        policy
    }

    /// The worker with the fewest connections, of those that run: one that has ended would have the fewest for ever. One
    /// that is late would get them while it hangs, so it comes after those that aren't; where all are late (the whole
    /// process stood still, say), the measure says nothing.
    fn fewest(&self) -> Option<&(mpsc::UnboundedSender<Accepted>, Arc<Load>)> {
        self.workers
            .iter()
            .zip(self.heartbeats.ages())
            .filter(|((worker, _), _)| !worker.is_closed())
            .min_by_key(|((_, load), age)| (*age > LATE, load.connections.load(Ordering::Relaxed)))
            .map(|(worker, _)| worker)
    }

    /// A place for a connection from `source`, or the limit that has none.
    fn ticket(
        &self,
        load: &Arc<Load>,
        source: IpAddr,
        policy: &ListenerPolicy,
    ) -> Result<Ticket, Limit> {
        if self.pressure.borrow().level >= Level::Closed {
            return Err(Limit::Overload);
        }
        let limits = [
            policy.max_connections.min(self.room.connections()),
            policy.max_connections_per_source,
            policy.max_pending_handshakes,
        ];
        let (ticket, given_up) = Ticket::take(&self.counts, load, source, limits)?;
        if given_up {
            self.shard.limits(Limit::PendingHandshakes).inc();
        }
        Ok(ticket)
    }
}

impl Room {
    fn connections(self) -> usize {
        self.by_memory.min(self.by_files)
    }

    /// Says what there is too little of for `wanted` connections.
    fn judge(self, wanted: usize) {
        let room = self.connections();
        if wanted <= room {
            return;
        }
        if self.by_files < self.by_memory {
            tracing::warn!(
                open_files = self.open_files,
                "the limit of open files leaves room for {room} connections, not for the {wanted} of \
                 listener.max_connections: raise it (ulimit -n)",
            );
        } else {
            tracing::warn!(
                "the memory limit leaves room for {room} connections, not for the {wanted} of \
                 listener.max_connections: raise it, or lower the key",
            );
        }
    }
}

impl Ticket {
    /// A place for one more connection; whether a pending handshake was given up for it.
    pub(super) fn take(
        counts: &Arc<Counts>,
        load: &Arc<Load>,
        source: IpAddr,
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
        let (handshake, given_up) = lock(&counts.pending).enter(handshakes)?;
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

    /// The ClientHello has come.
    pub(crate) fn heard(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            let mut pending = lock(&self.counts.pending);
            handshake.heard |= pending.silent.remove(&handshake.number).is_some();
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
            let mut pending = lock(&self.counts.pending);
            if handshake.heard || pending.silent.remove(&handshake.number).is_some() {
                pending.count -= 1;
                pending.show();
            } else {
                pending.given_up -= 1;
            }
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
            }
        }
    }
}

impl Pending {
    /// One more; whether the oldest silent one had to go for it.
    fn enter(&mut self, limit: usize) -> Result<(Handshake, bool), Limit> {
        let full = self.count >= limit;
        if full {
            if self.given_up >= GIVEN_UP {
                return Err(Limit::PendingHandshakes);
            }
            // Those that have said who they are are being answered.
            let (_, oldest) = self.silent.pop_first().ok_or(Limit::PendingHandshakes)?;
            oldest.notify_one();
            self.given_up += 1;
        } else {
            self.count += 1;
            self.show();
        }
        let handshake = Handshake {
            number: self.next,
            heard: false,
            given_up: Arc::default(),
        };
        self.next += 1;
        self.silent
            .insert(handshake.number, handshake.given_up.clone());
        Ok((handshake, full))
    }

    /// Within the lock, so that the last one to show is the last one to count.
    fn show(&self) {
        let gauge = &self.gauges.handshakes_pending;
        gauge.store(self.count, Ordering::Relaxed);
    }
}

impl Counts {
    fn shown_by(gauges: &Arc<ListenerGauges>) -> Self {
        Self {
            pending: Mutex::new(Pending {
                gauges: gauges.clone(),
                ..Pending::default()
            }),
            ..Self::default()
        }
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted since the start.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Nothing is left half-done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handshakes that were given up and wait for their worker to close them.
const GIVEN_UP: usize = 64;

/// Connections that the kernel completes before we come to them.
pub(crate) const BACKLOG: i32 = 4096;

/// A worker beats every second.
const LATE: Duration = Duration::from_secs(3);

/// After a failed accept.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// An acceptor that recovers within a second is what clients with their own back-off don't notice.
const BACKOFF_LAST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;
    use crate::{data_plane::testing, snapshot::Publisher, telemetry::captured::Log};

    const LIMITS: [usize; 3] = [4, 3, 2];

    fn source(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
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
        heard.heard();
        let (silent, given_up) = take().unwrap();
        assert!(!given_up);
        let (mut newer, given_up) = take().unwrap();
        assert!(given_up, "for the newer one");
        assert_eq!(shown(), 2, "the other one's is over");
        assert!(is_given_up(&silent) && !is_given_up(&heard) && !is_given_up(&newer));
        newer.heard();
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
        assert_eq!((lock(&counts.pending).count, shown()), (0, 0));
        assert!(lock(&counts.pending).silent.is_empty());
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
        late.heard();
        assert!(is_given_up(&late));
        drop(late);
        assert_eq!(lock(&counts.pending).count, 1);
        drop(newer);
        assert_eq!(lock(&counts.pending).count, 0);
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
        assert_eq!(lock(&counts.pending).given_up, 0);
        assert_eq!(lock(&counts.pending).count, 0);
    }

    fn accepting(workers: Workers, room: usize) -> Accepting {
        let (listener, cluster) = (testing::policy(), testing::cluster_policy());
        let (_, reader) = Publisher::new(testing::snapshot(&[], listener, cluster));
        let room = Room {
            by_memory: usize::MAX,
            by_files: room,
            open_files: room,
        };
        Accepting {
            heartbeats: Heartbeats::new(workers.len()),
            workers,
            counts: Arc::default(),
            reader,
            pressure: watch::channel(Pressure::default()).1,
            shard: Metrics::new().shard(),
            gauges: Arc::default(),
            room,
            configured: None,
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_said_once_for_each_configuration() {
        let log = Log::default();
        let _captured = log.capture();
        let snapshot = |max_connections| {
            let listener = ListenerPolicy {
                max_connections,
                ..testing::policy()
            };
            testing::snapshot(&[], listener, testing::cluster_policy())
        };
        let (publisher, reader) = Publisher::new(snapshot(9000));
        let mut accepting = Accepting {
            reader,
            room: Room {
                by_memory: 2048,
                by_files: 4000,
                open_files: 4515,
            },
            ..accepting(Vec::new(), 0)
        };
        let limit = |accepting: &mut Accepting| {
            accepting.policy();
            accepting.gauges.connections_limit.load(Ordering::Relaxed)
        };
        assert_eq!(limit(&mut accepting), 2048);
        let memory = log.lines("the memory limit leaves room for 2048 connections");
        assert!(memory[0].contains("the 9000 of listener.max_connections"));
        assert_eq!(limit(&mut accepting), 2048);
        publisher.publish(snapshot(2048));
        assert_eq!(limit(&mut accepting), 2048);
        publisher.publish(snapshot(100));
        assert_eq!(limit(&mut accepting), 100);
        assert_eq!(log.lines("leaves room").len(), 1, "the others fit");
        accepting.room.by_files = 1000;
        publisher.publish(snapshot(5000));
        assert_eq!(limit(&mut accepting), 1000);
        assert_eq!(log.lines("the limit of open files leaves room").len(), 1);
    }

    #[test]
    fn a_worker_that_has_ended_gets_no_connections() {
        let worker = || {
            let (sender, accepted) = mpsc::unbounded_channel();
            ((sender, Arc::<Load>::default()), accepted)
        };
        let ((ended, _), (runs, mut accepted)) = (worker(), worker());
        let mut accepting = accepting(vec![ended, runs], 100);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut connections = Vec::new();
        for open in 1..=3 {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, peer) = listener.accept().unwrap();
            accepting.admit(socket, peer);
            connections.push((client, accepted.try_recv().unwrap()));
            assert_eq!(accepting.counts.open(), open);
        }
        drop((accepted, connections));
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        accepting.admit(listener.accept().unwrap().0, client.local_addr().unwrap());
        assert_eq!(accepting.counts.open(), 0, "there is nobody left");
    }

    #[test]
    fn a_worker_that_hangs_gets_connections_only_if_all_do() {
        let worker = || {
            let (sender, accepted) = mpsc::unbounded_channel();
            ((sender, Arc::<Load>::default()), accepted)
        };
        let ((hangs, mut in_vain), (runs, mut served)) = (worker(), worker());
        let mut accepting = accepting(vec![hangs, runs], 100);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let admit = |accepting: &mut Accepting| {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, peer) = listener.accept().unwrap();
            accepting.admit(socket, peer);
            client
        };
        // Longer than this test takes; what beats has run an hour later.
        let hour = Duration::from_secs(3600);
        accepting.heartbeats = Heartbeats::since(std::time::Instant::now() - hour, 2);
        accepting.heartbeats.beat(1);
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push((admit(&mut accepting), served.try_recv().unwrap()));
        }
        assert!(in_vain.try_recv().is_err());
        // Both hang, as far as can be seen: the one with the fewest, and nobody is turned away.
        accepting.heartbeats = Heartbeats::since(std::time::Instant::now() - hour, 2);
        open.push((admit(&mut accepting), in_vain.try_recv().unwrap()));
        accepting.heartbeats = Heartbeats::new(2);
        open.push((admit(&mut accepting), in_vain.try_recv().unwrap()));
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
    fn there_is_room_for_no_more_than_there_are_files_whatever_is_configured() {
        let accepting = accepting(Vec::new(), 2);
        let load = Arc::<Load>::default();
        let take = |max_connections| {
            let policy = ListenerPolicy {
                max_connections,
                ..testing::policy()
            };
            accepting.ticket(&load, source(1), &policy)
        };
        let tickets = [take(3).unwrap(), take(3).unwrap()];
        assert_eq!(take(3).unwrap_err(), Limit::Connections);
        drop(tickets);
        // Nor for more than is configured, however many files there are.
        let _ticket = take(1).unwrap();
        assert_eq!(take(1).unwrap_err(), Limit::Connections);
    }
}
