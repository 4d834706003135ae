//! One h2c connection to a backend, which the RPCs of many clients share.
//!
//! So what one of them does must neither end it nor stop the others. A stream that gets no credit for a second marks it as
//! congested, and new RPCs go to another connection. Where no other may be opened, they come here all the same as long as
//! what all streams share is to be had, the connection's window and its socket: a stream's own window stops nobody
//! else. A cancel may have to wait for the engine's pace, and counts against
//! its client as long as it does ([`Busy`]); a connection on which as many wait as it may have streams is left alone as a
//! congested one is. When it ends, by a GOAWAY, an ejection or a deadline of ours, every RPC that
//! had a stream here is told whether its request had left: that decides if it may be attempted again.

// Who waits for the backend's credit.
mod congestion;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http2::{Connection, Event, Headers, OpenError, Reason, Role, Sent};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

pub(super) use self::congestion::Congestion;
use super::{EndpointPool, Pool, retry::Outcome};
use crate::{
    data_plane::{
        downstream::Busy,
        holder::Holder,
        rpc::{self, Key},
        tls::Transport,
        wire::{self, Check, End, FAR, Link, QUIET, Side},
        worker::Worker,
    },
    error::{Failure, ResetCause},
    snapshot::{ClusterPolicy, EndpointShared, circuit::Permits, streak::Ending},
    telemetry::metrics::{self, ClusterSeries, Limit},
};

/// A connection to a backend: the engine in its client role, and what the pool has to know.
pub(crate) struct Upstream {
    link: Link,
    pool: Rc<EndpointPool>,
    state: Cell<State>,
    /// The pool counts it as opening.
    opening: Cell<bool>,
    congestion: Cell<Congestion>,
    /// Congestion is looked at when this turn has written what it could.
    look: Cell<bool>,
    /// The window was used up when last looked at: since when, and the number of [`http2::Windows::credits`] then.
    used_up: Cell<Option<(Instant, u32)>>,
    /// The peer's SETTINGS have to be here by then.
    ready_by: Instant,
    /// A stream ended or was never opened: those that wait may be served.
    made_room: Cell<bool>,
    /// When the PING that we sent last went out, or the backend was last heard after that; `None` when it was answered.
    ping: Cell<Option<Instant>>,
    next_ping: Cell<Instant>,
    /// Streams whose reset waits, and whose client's they are: the backend is still busy with them.
    cancelling: RefCell<HashMap<u32, Busy, foldhash::fast::FixedState>>,
    /// A stream was opened, or one has ended, since memory was last given back.
    used: Cell<bool>,
    /// Its last turn before that.
    moved: Cell<Instant>,
    /// Since when it has had no stream, as long as there is no memory to give back.
    quiet_since: Cell<Option<Instant>>,
    /// No stream was ever opened, and it isn't our doing if it ends so: RPCs that wait then have met a backend that takes
    /// none, as if they had been refused a connection.
    untouched: Cell<bool>,
    /// Its place in the cluster's circuits, until it takes no more RPCs: what only leaves keeps no other from coming.
    permits: Cell<Permits>,
}

/// ```text
/// Opening ──SETTINGS──▶ Ready ──GOAWAY, retired, surplus, worn out──▶ Leaving ──last stream ends──▶ (closed)
///    └── connect_timeout, error ──────────────────────────────────────────────────────────────────▶ (closed)
///   any ── its endpoint is ejected ──▶ Abandoned ───────────────────────────────────────────────────▶ (closed)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The preface is sent, the peer's SETTINGS are awaited.
    Opening,
    /// Streams may be opened.
    Ready,
    /// Streams that run may finish.
    Leaving,
    /// Everything ends now.
    Abandoned,
}

/// Connects, then runs the connection until it ends. Spawned by the pool, which counted it as opening. `permits` are
/// its own.
pub(super) async fn open(
    worker: Rc<Worker>,
    pool: Rc<EndpointPool>,
    policy: Arc<ClusterPolicy>,
    permits: Permits,
) {
    let started = worker.tick();
    let connect = connect(pool.shared.address);
    #[cfg(any(test, fuzzing))]
    let connect = crate::data_plane::stage::instead(&worker, pool.shared.address, connect);
    let connected = tokio::time::timeout(policy.connect_timeout, connect).await;
    worker.tick();
    let mut transport = match connected {
        Ok(Ok(transport)) => transport,
        failed => {
            // First of all: whoever waited may try this endpoint again.
            drop(permits);
            pool.opened();
            let failure = match failed {
                Ok(_) => Failure::ConnectFailed,
                Err(_) => Failure::ConnectTimeout,
            };
            return pool.open_failed(&worker, failure);
        }
    };
    let ready_by = started + policy.connect_timeout;
    let connection = Rc::new(Upstream::new(&worker, pool.clone(), &policy, ready_by));
    connection.permits.set(permits);
    pool.add(connection.clone());
    worker
        .shard
        .connections(metrics::Side::Upstream)
        .opened
        .inc();
    let end = wire::run(&connection, &worker, &mut transport, Vec::new()).await;
    connection.ended(&worker, end);
    worker
        .shard
        .connections(metrics::Side::Upstream)
        .closed
        .inc();
    wire::close(&connection, &mut transport, end).await;
}

impl Upstream {
    /// A connection on which nothing has been said yet.
    pub(super) fn new(
        worker: &Worker,
        pool: Rc<EndpointPool>,
        policy: &ClusterPolicy,
        ready_by: Instant,
    ) -> Self {
        let now = worker.now();
        Self {
            link: Link::new(
                Connection::new(Role::Client, engine_config(policy), now),
                worker.wakes.clone(),
                now,
            ),
            pool,
            state: Cell::new(State::Opening),
            opening: Cell::new(true),
            congestion: Cell::new(Congestion::None),
            look: Cell::new(false),
            used_up: Cell::new(None),
            ready_by,
            made_room: Cell::new(false),
            ping: Cell::new(None),
            next_ping: Cell::new(now + PING_INTERVAL),
            cancelling: RefCell::default(),
            used: Cell::new(false),
            moved: Cell::new(now),
            quiet_since: Cell::default(),
            untouched: Cell::new(true),
            permits: Cell::default(),
        }
    }

    /// Where it leads.
    pub(crate) fn endpoint(&self) -> &EndpointShared {
        &self.pool.shared
    }

    /// What is counted of its cluster.
    pub(crate) fn series(&self) -> &ClusterSeries {
        &self.pool.series
    }

    /// An RPC of this client has a stream here.
    pub(crate) fn taken_by(&self, client: &Holder) {
        let streams = client.takes(self.pool.number);
        self.pool.holds(client, streams);
    }

    /// And has it no more.
    pub(crate) fn left_by(&self, client: &Holder) {
        let streams = client.leaves(self.pool.number);
        self.pool.holds(client, streams);
    }

    /// Opens a stream for `rpc`. The request leaves with the connection's next turn.
    pub(crate) fn open_stream(
        &self,
        headers: Headers,
        end_stream: bool,
        rpc: Key,
    ) -> Result<u32, (OpenError, Headers)> {
        let stream = self
            .link
            .engine()
            .open(headers, end_stream, rpc.for_engine())?;
        self.used.set(true);
        self.untouched.set(false);
        self.link.wake();
        Ok(stream)
    }

    /// Ends a stream that the proxy or its client doesn't want any more.
    pub(crate) fn reset(&self, stream: u32, reason: Reason) {
        self.link.engine().reset(stream, reason);
        self.made_room.set(true);
        self.link.wake();
    }

    /// [`reset`](Self::reset), for a client for which the stream counts until the backend can know of it.
    pub(crate) fn cancel(&self, stream: u32, busy: impl FnOnce() -> Option<Busy>) {
        self.reset(stream, Reason::CANCEL);
        if self.link.engine().cancel_waits(stream)
            && let Some(busy) = busy()
        {
            self.cancelling.borrow_mut().insert(stream, busy);
        }
    }

    /// No new streams; closes when the last one ends.
    pub(super) fn retire(&self) {
        if self.state.get() != State::Abandoned {
            self.leave(State::Leaving);
        }
        self.untouched.set(false);
        self.link.wake();
    }

    /// Closes now: its endpoint doesn't answer, and RPCs on it would hang.
    pub(super) fn abandon(&self) {
        self.leave(State::Abandoned);
        self.untouched.set(false);
        self.link.wake();
    }

    /// It takes no more RPCs.
    fn leave(&self, state: State) {
        self.state.set(state);
        drop(self.permits.take());
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.get() == State::Ready
    }

    /// It takes no more RPCs, and is there for those that run.
    pub(super) fn leaves(&self) -> bool {
        matches!(self.state.get(), State::Leaving | State::Abandoned)
    }

    pub(super) fn has_room(&self, limit: u32, most: Congestion) -> bool {
        if self.state.get() != State::Ready || self.congestion.get() > most || self.link.is_closed()
        {
            return false;
        }
        let engine = self.link.engine();
        // Of the few that clients may have each, all come together here. Where there is no other, it takes more.
        let crowded = most == Congestion::None && engine.cancels_waiting() >= limit as usize;
        engine.can_open() && (engine.stream_count() as u32) < limit && !crowded
    }

    /// For how many streams more it has room, as [`has_room`](Self::has_room) would say.
    pub(super) fn room(&self, limit: u32, most: Congestion) -> u32 {
        if !self.has_room(limit, most) {
            return 0;
        }
        let engine = self.link.engine();
        let ours = engine.stream_count() as u32;
        let known = ours + engine.cancels_waiting() as u32;
        let theirs = engine.peer_max_streams().saturating_sub(known);
        limit.saturating_sub(ours).min(theirs)
    }

    /// Streams that have ended here and still are some for the peer.
    pub(super) fn coming(&self) -> usize {
        self.link.engine().cancels_waiting()
    }

    /// The RPCs that have a stream whose end would make room for another.
    pub(super) fn makes_room(&self) -> Vec<Key> {
        if self.state.get() != State::Ready || self.congestion.get() > Congestion::Stream {
            return Vec::new();
        }
        let engine = self.link.engine();
        engine.keys().map(Key::from_engine).collect()
    }

    /// The PING that was sent last isn't answered yet.
    #[cfg(test)]
    pub(crate) fn awaits_pong(&self) -> bool {
        self.ping.get().is_some()
    }

    /// A byte of any kind shows that a backend is there which hasn't answered its PING yet. Whether one came.
    fn hear(&self, now: Instant) -> bool {
        let heard = self.link.take_heard();
        if heard && self.ping.get().is_some() {
            self.ping.set(Some(now));
        }
        heard
    }

    /// It has no stream, nor has one for the peer only.
    fn is_quiet(&self) -> bool {
        let engine = self.link.engine();
        engine.is_empty() && engine.cancels_waiting() == 0
    }

    /// Notes when something has moved, as long as it has memory to give back, and since when it has had no stream after that;
    /// and has itself looked at when either will have been for long.
    fn watch_quiet(&self, heard: bool, now: Instant) {
        if self.used.get() || self.made_room.get() {
            self.used.set(true);
            // A worker that is late each time would never find that nothing has moved.
            if heard || self.made_room.get() || !self.link.puts_off() {
                self.moved.set(now);
            }
            self.quiet_since.set(None);
            return self.link.check_by(self.moved.get() + QUIET);
        }
        if !self.is_quiet() {
            self.quiet_since.set(None);
            return;
        }
        let since = self.quiet_since.get().unwrap_or(now);
        self.quiet_since.set(Some(since));
        if now < since + SURPLUS {
            self.link.check_by(since + SURPLUS);
        }
    }

    /// A burst has opened it, and nothing has needed it for long: streams are opened on the first connection that has room.
    fn is_surplus(self: &Rc<Self>, now: Instant) -> bool {
        let since = self.quiet_since.get().filter(|_| self.is_ready());
        since.is_some_and(|since| now >= since + SURPLUS) && self.pool.can_spare(self)
    }

    /// Gives back what only busy times need. Streams may be open for days, and say something now and then.
    fn shrink(&self) {
        self.link.engine().shrink();
        self.cancelling.borrow_mut().shrink_to_fit();
        self.used.set(false);
        let since = self.is_quiet().then(|| self.moved.get());
        self.quiet_since.set(since);
    }

    /// Every RPC that still had a stream here learns how it ended.
    fn ended(self: &Rc<Self>, worker: &Rc<Worker>, end: End) {
        self.leave(State::Abandoned);
        self.cancelling.borrow_mut().clear();
        self.pool.remove(worker, self);
        let cause = match end {
            End::Protocol(_) | End::Panic => ResetCause::ProtocolError,
            _ => ResetCause::Termination,
        };
        if end == End::Panic {
            tracing::error!(endpoint = %self.pool.shared.label, "a panic ended an upstream connection");
            for key in rpc::of_upstream(worker, self) {
                rpc::upstream_gone(worker, key, true, cause);
            }
        }
        let streams: Vec<_> = self.link.engine().take_streams().collect();
        if !streams.is_empty() && !self.opening.get() && is_the_endpoints(end) {
            // Once, however many RPCs it had: a restart is no series of failures.
            let hints = &worker.hints;
            hints.attempted(&self.pool.shared, Ending::LocalOrigin, 1);
        }
        for stream in streams {
            rpc::upstream_gone(
                worker,
                Key::from_engine(stream.key),
                stream.headers_left,
                cause,
            );
        }
        let opening = self.opening.replace(false);
        if opening {
            self.pool.opened();
        }
        if opening || self.untouched.get() && self.pool.is_waited_for() {
            let failure = match end {
                End::TimedOut(_) | End::Shed | End::Ejected => Failure::ConnectTimeout,
                _ => Failure::ConnectFailed,
            };
            self.pool.open_failed(worker, failure);
        } else {
            if !matches!(end, End::Finished) {
                tracing::debug!(endpoint = %self.pool.shared.label, ?end, "upstream connection ended");
            }
            Pool::offer(worker, &self.pool);
        }
    }
}

impl Side for Rc<Upstream> {
    fn link(&self) -> &Link {
        &self.link
    }

    fn on_event(&self, worker: &Rc<Worker>, event: Event<'_>, now: Instant) {
        match event {
            Event::Headers {
                key,
                headers,
                end_stream,
                ..
            } => {
                self.made_room.set(self.made_room.get() || end_stream);
                rpc::response_headers(worker, Key::from_engine(key), headers, end_stream, now);
            }
            Event::Data {
                key,
                bytes,
                end_stream,
                ..
            } => {
                self.made_room.set(self.made_room.get() || end_stream);
                rpc::response_data(worker, Key::from_engine(key), bytes, end_stream, now);
            }
            Event::Trailers { key, headers, .. } => {
                self.made_room.set(true);
                rpc::response_trailers(worker, Key::from_engine(key), headers, now);
            }
            Event::HeadersTooLarge { stream, key, .. } => {
                self.reset(stream, Reason::CANCEL);
                rpc::upstream_reset(
                    worker,
                    Key::from_engine(key),
                    Outcome::Other,
                    ResetCause::ProtocolError,
                );
            }
            Event::Malformed { key, .. } => {
                rpc::upstream_reset(
                    worker,
                    Key::from_engine(key),
                    Outcome::Other,
                    ResetCause::ProtocolError,
                );
            }
            Event::Reset {
                key,
                reason,
                by_peer,
                unprocessed,
                headers_left,
                ..
            } => {
                self.made_room.set(true);
                let outcome = Outcome::of_reset(reason, unprocessed, headers_left);
                let cause = match outcome {
                    // Not this stream was refused: its connection is going away, or takes fewer of them from now on.
                    Outcome::NeverSent => ResetCause::Termination,
                    _ if by_peer => ResetCause::RemoteReset,
                    _ => ResetCause::ProtocolError,
                };
                rpc::upstream_reset(worker, Key::from_engine(key), outcome, cause);
            }
            Event::Settings { first } => {
                if first && self.state.get() == State::Opening {
                    self.state.set(State::Ready);
                    self.opening.set(false);
                    self.pool.became_ready();
                }
                self.made_room.set(true);
            }
            Event::GoAway {
                last_stream,
                reason,
                debug_data,
            } => {
                // What it says isn't ours: a line stays one, whatever is in it.
                let said = debug_data.escape_ascii();
                tracing::debug!(endpoint = %self.pool.shared.label, %reason, last_stream, %said, "GOAWAY from a backend");
                if self.state.get() == State::Ready {
                    self.leave(State::Leaving);
                    // Another one may be opened in its place.
                    self.made_room.set(true);
                }
                worker.hints.suspect(&self.pool.shared);
            }
            Event::Pong { .. } => self.ping.set(None),
            // Of a server's engine.
            Event::Refused { .. } => {}
        }
    }

    fn on_sent(&self, worker: &Rc<Worker>, sent: Sent) {
        rpc::request_sent(worker, Key::from_engine(sent.key), sent.bytes);
    }

    fn check(&self, worker: &Rc<Worker>, now: Instant) -> Check {
        self.hear(now);
        let mut next = now + FAR;
        if self.state.get() == State::Opening {
            if now >= self.ready_by {
                return Check::Close(End::TimedOut("connect_timeout"));
            }
            next = next.min(self.ready_by);
        }
        if let Some(since) = self.link.write_blocked() {
            // One key for both sides: what a socket is given doesn't depend on who is behind it.
            let stalled = since + worker.with_snapshot(|now| now.listener.timeouts.write_stall);
            if now >= stalled {
                worker.shard.limits(Limit::WriteStall).inc();
                return Check::Close(End::TimedOut("write_stall"));
            }
            next = next.min(stalled);
        }
        // The PING asks for life; the engine's barrier for its acknowledgement, for which cancels wait, and with them their
        // clients.
        let asked = [self.ping.get(), self.link.engine().barrier_unacked_since()];
        if let Some(sent) = asked.into_iter().flatten().min() {
            if now >= sent + ANSWER_TIMEOUT {
                return Check::Close(End::TimedOut("keepalive"));
            }
            next = next.min(sent + ANSWER_TIMEOUT);
        }
        if self.ping.get().is_none() {
            if now >= self.next_ping.get() {
                self.next_ping.set(now + PING_INTERVAL);
                if !self.link.engine().is_empty() {
                    self.link.engine().ping(0);
                    self.link.wake();
                    self.ping.set(Some(now));
                    next = next.min(now + ANSWER_TIMEOUT);
                }
            }
            next = next.min(self.next_ping.get());
        }
        if self.used.get() {
            let at = self.moved.get() + QUIET;
            if now < at {
                next = next.min(at);
            } else {
                self.shrink();
            }
        }
        self.look.set(true);
        Check::Until(next)
    }

    fn after_turn(&self, worker: &Rc<Worker>, now: Instant) -> Option<End> {
        let heard = self.hear(now);
        // Only those that go are looked at: thousands may wait.
        while let Some(stream) = { self.link.engine().take_cancelled() } {
            self.cancelling.borrow_mut().remove(&stream);
            // For the peer it was a stream until now.
            self.made_room.set(true);
        }
        let barrier = self.link.engine().barrier_unacked_since();
        if let Some(since) = barrier {
            self.link.check_by(since + ANSWER_TIMEOUT);
        }
        self.watch_quiet(heard, now);
        self.watch_credit(worker, now);
        let worn = {
            let engine = self.link.engine();
            engine.complaints() >= COMPLAINTS || engine.used_up()
        };
        if self.state.get() == State::Ready && worn {
            self.leave(State::Leaving);
            // Another one may be opened in its place.
            self.made_room.set(true);
        }
        // One that leaves untouched has made none: what follows is decided when it has ended.
        let in_vain = self.state.get() == State::Leaving && self.untouched.get();
        if self.made_room.replace(false) && !self.link.is_closed() && !in_vain {
            Pool::offer(worker, &self.pool);
        }
        if self.pool.retired.get() && self.state.get() == State::Ready && !self.pool.is_waited_for()
        {
            self.leave(State::Leaving);
            // As for `retire`: that it ends unused is not its endpoint's doing, if that comes back meanwhile.
            self.untouched.set(false);
        }
        if self.is_surplus(now) {
            self.retire();
        }
        match self.state.get() {
            State::Abandoned => Some(End::Ejected),
            State::Leaving if self.link.engine().is_empty() => Some(End::Finished),
            _ => None,
        }
    }
}

/// Whether a connection's end is to be held against its endpoint; none that we wanted is, nor an error of ours.
fn is_the_endpoints(end: End) -> bool {
    !matches!(end, End::Finished | End::Panic | End::Ejected)
}

/// The socket of a backend: small frames leave at once, and a peer that vanished is noticed by the kernel, while something is
/// unacknowledged or by keep-alive probes (PINGs as often, or without a stream, would be answered with `too_many_pings`).
async fn connect(address: SocketAddr) -> io::Result<Transport> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let kernel = SockRef::from(&socket);
    kernel.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    // USER_TIMEOUT decides after how many unanswered probes it ends, too (tcp(7)): the second one finds it over.
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER);
    kernel.set_tcp_keepalive(&probes.with_interval(USER_TIMEOUT))?;
    Ok(Transport::Plain(socket))
}

fn engine_config(policy: &ClusterPolicy) -> http2::Config {
    http2::Config {
        max_concurrent_streams: 0,
        stream_window: policy.initial_stream_window_size,
        connection_window: policy.initial_connection_window_size,
        max_header_list: MAX_RESPONSE_HEADERS,
        max_header_fields: u32::MAX,
        max_header_list_hard: MAX_RESPONSE_HEADERS,
        max_header_block: MAX_RESPONSE_HEADERS,
        max_header_frames: MAX_RESPONSE_FRAMES,
        header_table: 4096,
        output_limit: 256 * 1024,
    }
}

/// Resets by a backend for what it calls faults of ours before another connection takes this one's place. All that a strict
/// server refuses stays at the edge; but a server on the crate `h2` forgets streams that were reset when there are many,
/// resets them anew for each frame that was on its way, and ends a connection with all its streams at the 1025th such
/// reset. What runs here when half of them are used up ends well.
const COMPLAINTS: u32 = 500;

/// A connection beside others that has had no stream for so long leaves: as long as clients' connections may be idle.
const SURPLUS: Duration = Duration::from_secs(15 * 60);

/// Backends' response headers, decoded and encoded: more of them, as a client may have asked for, ends their stream. 16 times
/// as much in a block, or more frames than have room for that, ends the connection.
const MAX_RESPONSE_HEADERS: u32 = 64 * 1024;
const MAX_RESPONSE_FRAMES: u32 = 80;

/// No PING under 5 minutes, and none at all unless a stream runs: grpc servers answer those with `too_many_pings` (without a
/// stream they bear one in 2 h).
const PING_INTERVAL: Duration = Duration::from_secs(5 * 60 + 10);

/// How long the backend may say nothing after a PING, and leave SETTINGS unacknowledged for which cancels wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection on which nothing comes, with streams or without, is probed by the kernel.
const PROBE_AFTER: Duration = Duration::from_secs(5 * 60);

/// What was sent and isn't acknowledged for this long ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
