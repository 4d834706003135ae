//! One connection, kept as a gRPC client keeps it (`pick_first` with one address at a time).
//!
//! ```text
//!                   SETTINGS, PING answered
//!   CONNECTING ───────────────────────────────▶ READY ──▶ CONNECTING: after GOAWAY, or when the connection ends
//!       │ fails                                   ▲
//!       ▼                                         │ an attempt after the back-off succeeds
//!   TRANSIENT_FAILURE ────────────────────────────┘
//! ```
//!
//! RPCs wait while it is CONNECTING, and fail with UNAVAILABLE in TRANSIENT_FAILURE, which lasts until READY, also
//! while a new attempt is under way (gRFC A62): that is wait_for_ready=false. After GOAWAY new RPCs wait for a new
//! connection, and those that run end on the old one. gRPC would make the new connection with the next RPC; in an
//! open loop that is at once, so it is made at once.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client::SendRequest};
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::Status;

use super::{
    Keepalive,
    backoff::{Backoff, MIN_CONNECT_TIMEOUT},
    tally::Tally,
};

/// Where to connect to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `host:port`, looked up again for each attempt.
    pub(super) address: String,
    /// Whom the certificate is to name.
    pub(super) name: ServerName<'static>,
    /// Whom to trust.
    pub(super) tls: Arc<ClientConfig>,
    /// When a connection is given up that nothing comes from.
    pub(super) keepalive: Option<Keepalive>,
}

/// The connection. It ends, abruptly, with this value.
pub(super) struct Link {
    state: Arc<watch::Sender<State>>,
    task: JoinHandle<()>,
}

/// What RPCs are to do.
#[derive(Clone)]
enum State {
    Connecting,
    Ready(Connection),
    TransientFailure(Arc<str>),
}

/// One connection among those that a link has had.
#[derive(Clone)]
pub(super) struct Connection {
    generation: u64,
    pub(super) send: SendRequest<Bytes>,
}

impl Link {
    pub(super) fn start(target: Arc<Target>, tally: Arc<Mutex<Tally>>) -> Self {
        let state = Arc::new(watch::Sender::new(State::Connecting));
        let task = tokio::spawn(keep(target, state.clone(), tally));
        Self { state, task }
    }

    /// A connection that was usable when it was last heard of. Cancel-safe.
    pub(super) async fn ready(&self) -> Result<Connection, Status> {
        let mut states = self.state.subscribe();
        let state = states
            .wait_for(|state| !matches!(state, State::Connecting))
            .await;
        match state.as_deref() {
            Ok(State::Ready(connection)) => Ok(connection.clone()),
            Ok(State::TransientFailure(why)) => Err(Status::unavailable(&**why)),
            // The sender lives as long as this link.
            Ok(State::Connecting) | Err(_) => Err(Status::unavailable("no connection")),
        }
    }

    /// `connection` takes no more RPCs.
    pub(super) fn lost(&self, connection: &Connection) {
        lose(&self.state, connection.generation);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects, and connects again whenever the connection is lost.
async fn keep(target: Arc<Target>, state: Arc<watch::Sender<State>>, tally: Arc<Mutex<Tally>>) {
    let mut backoff = Backoff::new();
    // Connections after their GOAWAY are in here, too, until their last stream has ended.
    let mut drivers = JoinSet::new();
    let mut states = state.subscribe();
    for generation in 0.. {
        while drivers.try_join_next().is_some() {}
        let next = backoff.attempt(rand::random());
        let next_at = Instant::now() + next;
        let connecting = connect(&target, &state, generation, &mut drivers);
        match limited(next.max(MIN_CONNECT_TIMEOUT), connecting).await {
            Ok(send) => {
                backoff.reset();
                tally
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .connections += 1;
                state.send_replace(State::Ready(Connection { generation, send }));
                let ready = |state: &State| matches!(state, State::Ready(_));
                // The sender is in this function: this can't fail.
                let _ = states.wait_for(|state| !ready(state)).await;
            }
            Err(error) => {
                let why = format!("cannot connect to {}: {error}", target.address);
                state.send_replace(State::TransientFailure(why.into()));
                sleep_until(next_at).await;
            }
        }
    }
}

async fn limited<T>(
    limit: Duration,
    connecting: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect(
    target: &Target,
    state: &Arc<watch::Sender<State>>,
    generation: u64,
    drivers: &mut JoinSet<()>,
) -> io::Result<SendRequest<Bytes>> {
    // Tries the addresses of the name in turn.
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    if let Some(keepalive) = target.keepalive {
        SockRef::from(&stream).set_tcp_user_timeout(Some(keepalive.timeout))?;
    }
    let connector = TlsConnector::from(target.tls.clone());
    let stream = connector.connect(target.name.clone(), stream).await?;
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(stream)
        .await
        .map_err(io::Error::other)?;
    let ping = connection.ping_pong();
    let state = state.clone();
    let (settled, has_settled) = oneshot::channel();
    let keepalive = target.keepalive;
    drivers.spawn(async move {
        // How it ends is seen by its RPCs, each for itself.
        tokio::select! {
            _ = connection => {}
            () = ping_it(ping, settled, keepalive) => {}
        }
        lose(&state, generation);
    });
    // A connection counts, and ends the back-off, when the peer's SETTINGS have come: those are before its first PONG.
    has_settled
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
    let usable = send.ready().await.map_err(io::Error::other)?;
    Ok(usable)
}

/// The first PING's answer says that the connection is `settled`; one that isn't answered in time afterwards ends this
/// function, and so the connection. Without keep-alive there is only the first.
async fn ping_it(
    ping: Option<PingPong>,
    settled: oneshot::Sender<()>,
    keepalive: Option<Keepalive>,
) {
    // There is one: nobody else has taken it.
    let Some(mut ping) = ping else { return };
    if ping.ping(Ping::opaque()).await.is_err() {
        return pending().await;
    }
    // Nobody waits for it any more when the time to connect has passed.
    let _ = settled.send(());
    let Some(keepalive) = keepalive else {
        return pending().await;
    };
    loop {
        sleep(keepalive.interval).await;
        match timeout(keepalive.timeout, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own future says that it has ended.
            Ok(Err(_)) => return pending().await,
            Err(_) => return,
        }
    }
}

fn lose(state: &watch::Sender<State>, lost: u64) {
    state.send_if_modified(|state| {
        let is_it = matches!(state, State::Ready(connection) if connection.generation == lost);
        if is_it {
            *state = State::Connecting;
        }
        is_it
    });
}

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
