//! Step 1: accept, connection limits, hand-over to a worker.
//!
//! One acceptor on a thread of its own gives each connection to the worker with the fewest: gRPC clients open few,
//! long-lived connections, and hashing (SO_REUSEPORT) can put all of them on one core. The limits are enforced here,
//! before a connection costs more than its socket: connections in all, per source address, and handshakes that aren't
//! through. What is above a limit is closed at once, counted by limit.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::worker::{Handle, Load};
use crate::{
    snapshot::Reader,
    telemetry::metrics::{HandshakeResult, Limit, Shard},
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
    handshaking: bool,
}

/// How many connections there are, by each limit.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    open: AtomicUsize,
    handshaking: AtomicUsize,
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

/// The workers, as the acceptor hands over to them.
pub(crate) type Workers = Vec<(mpsc::UnboundedSender<Accepted>, Arc<Load>)>;

impl Acceptor {
    /// Accepts on `listener`, which is bound and listens, until [`close`](Self::close).
    pub(crate) fn spawn(
        listener: std::net::TcpListener,
        workers: &[Handle],
        reader: Reader,
        shard: Arc<Shard>,
    ) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
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
            let counts = counts.clone();
            move || {
                runtime.block_on(accept(listener, workers, counts, reader, shard, closing));
            }
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

async fn accept(
    listener: std::net::TcpListener,
    workers: Workers,
    counts: Arc<Counts>,
    mut reader: Reader,
    shard: Arc<Shard>,
    mut closing: watch::Receiver<bool>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the listener can't be polled"),
    };
    let mut backoff = BACKOFF_FIRST;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                backoff = BACKOFF_FIRST;
                counts.arrived.fetch_add(1, Ordering::Relaxed);
                let policy = reader.load().listener.clone();
                let Some((worker, load)) = workers
                    .iter()
                    .min_by_key(|(_, load)| load.connections.load(Ordering::Relaxed))
                else {
                    return;
                };
                let limits = [
                    policy.max_connections,
                    policy.max_connections_per_source,
                    policy.max_pending_handshakes,
                ];
                match Ticket::take(&counts, load, peer.ip(), limits) {
                    Ok(ticket) => {
                        if let Ok(socket) = socket.into_std()
                            && worker
                                .send(Accepted {
                                    socket,
                                    peer,
                                    ticket,
                                })
                                .is_err()
                        {
                            tracing::error!("a worker has ended: its connection is lost");
                        }
                    }
                    Err(limit) => {
                        shard.limits(limit).inc();
                        shard.handshakes(HandshakeResult::Refused).inc();
                    }
                }
            }
            // The peer gave up before we came to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of file descriptors, most often: accepting again at once would only spin.
                tracing::warn!(%error, "accept failed; trying again in {backoff:?}");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_LAST);
            }
        }
    }
}

impl Ticket {
    fn take(
        counts: &Arc<Counts>,
        load: &Arc<Load>,
        source: IpAddr,
        limits: [usize; 3],
    ) -> Result<Self, Limit> {
        let [connections, per_source, handshakes] = limits;
        if counts.open.load(Ordering::Relaxed) >= connections {
            return Err(Limit::Connections);
        }
        if counts.handshaking.load(Ordering::Relaxed) >= handshakes {
            return Err(Limit::PendingHandshakes);
        }
        let mut by_source = counts
            .by_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let from_there = by_source.entry(source).or_insert(0);
        if *from_there >= per_source {
            return Err(Limit::ConnectionsPerSource);
        }
        *from_there += 1;
        drop(by_source);
        counts.open.fetch_add(1, Ordering::Relaxed);
        counts.handshaking.fetch_add(1, Ordering::Relaxed);
        load.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            counts: counts.clone(),
            load: load.clone(),
            source,
            handshaking: true,
        })
    }

    /// The handshake is through (or failed).
    pub(crate) fn handshake_done(&mut self) {
        if std::mem::take(&mut self.handshaking) {
            self.counts.handshaking.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.handshake_done();
        self.load.connections.fetch_sub(1, Ordering::Relaxed);
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        let mut by_source = self
            .counts
            .by_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(from_there) = by_source.get_mut(&self.source) {
            *from_there -= 1;
            if *from_there == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

impl Counts {
    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted since the start.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// After a failed accept.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// An acceptor that recovers within a second is what clients with their own back-off don't notice.
const BACKOFF_LAST: Duration = Duration::from_millis(500);
