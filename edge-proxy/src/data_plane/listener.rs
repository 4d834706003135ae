//! Step 1: accept, connection limits, hand-over to a worker.
//!
//! One acceptor on a thread of its own gives each connection to the worker with the fewest: gRPC clients open few,
//! long-lived connections, and hashing (SO_REUSEPORT) can put all of them on one core. The limits are enforced here,
//! before a connection costs more than its socket: connections in all, of one source, and handshakes that aren't
//! through. What is above a limit is closed at once, counted by limit.

// The pending handshakes, and who goes when there are too many.
mod pending;
// A connection's place in all the counts.
mod ticket;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, watch};

pub(crate) use self::ticket::{Counts, Ticket};

use super::{
    source::Source,
    worker::{Handle, Load},
};
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
        self.counts.arrive();
        let policy = self.policy();
        while let Some((worker, load)) = self.fewest() {
            let ticket = match self.ticket(load, peer.ip().into(), &policy) {
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
        source: Source,
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
    use std::net::IpAddr;

    use super::*;
    use crate::{data_plane::testing, snapshot::Publisher, telemetry::captured::Log};

    fn source(last: u8) -> Source {
        IpAddr::from([192, 0, 2, last]).into()
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
