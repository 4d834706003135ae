//! Step 3: one client connection: engine, limits, age, GOAWAY.
//!
//! [`serve`] takes a socket from hand-over to its end: the TLS handshake under its deadline, ALPN (or the first bytes)
//! to choose the protocol, then HTTP/2 here or HTTP/1.1 in [`http1`]. What a client may cost is decided here, what it
//! may take its time with in [`deadlines`], and what becomes of its requests in [`rpc`].

mod deadlines;

use std::{cell::Cell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use deadlines::{Leaving, Ping, tenths};
use http2::{Connection, Event, Headers, Reason, Refusal, Role, Sent};
use rand::RngExt as _;
use tokio::{net::TcpStream, time::timeout};

use super::{
    filters::request::MAX_FIELDS,
    holder::Holder,
    http1,
    listener::{Accepted, Ticket},
    rpc::{self, Key},
    tls::{Alpn, Tls, Transport},
    wire::{self, Check, End, Link, Side},
    worker::{Phase, Worker},
};
use crate::{
    error::{Failure, Flag},
    snapshot::ListenerPolicy,
    telemetry::metrics::{self, HandshakeResult, Limit, ResetCause, Shard},
};

/// A client's connection, as a drain, shedding and timers reach it.
#[derive(Clone)]
pub(crate) enum ClientConnection {
    Http1(Rc<http1::Connection>),
    Http2(Rc<Downstream>),
}

/// A connection whose handshake is through, in all the counts: it leaves them when this is dropped.
pub(crate) struct Open {
    shard: Arc<Shard>,
    _ticket: Ticket,
}

/// A client's HTTP/2 connection.
pub(crate) struct Downstream {
    link: Link,
    port: u16,
    /// Whom others share with.
    holder: Rc<Holder>,
    /// The client's address as text, for `x-forwarded-for`.
    pub(crate) peer_text: Box<str>,
    /// The listener's rules when the connection was accepted.
    policy: Arc<ListenerPolicy>,
    accepted: Instant,
    /// When it will be old, in tenths of a second as `moved`; a drain or idleness may have it leave before.
    age: u32,
    /// When the client's SETTINGS came, in tenths of a second as `moved`.
    ready: Cell<Option<u32>>,
    /// Streams whose RPC hasn't ended.
    rpcs: Cell<u32>,
    /// Ended RPCs that a backend doesn't know to be cancelled yet.
    cancelling: Cell<u32>,
    /// Since when there has been no RPC, or at least one: `rpcs` tells which.
    since: Cell<Instant>,
    /// What only busy times need was given back since a request came, taken or refused, or an RPC ended.
    shrunk: Cell<bool>,
    /// Its last turn before that, in tenths of a second since it was accepted: an `Instant` takes four times as much.
    moved: Cell<u32>,
    leaving: Cell<Leaving>,
    ping: Cell<Ping>,
}

/// Takes an accepted connection through its handshake, then serves it, whatever it speaks, in a task of its own: a task
/// takes the room of the largest part of its life for as long as it lives.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted {
        socket,
        peer,
        mut ticket,
    } = accepted;
    let started = worker.tick();
    let snapshot = worker.snapshot();
    let Some(identity) = &snapshot.tls else {
        return;
    };
    let policy = snapshot.listener.clone();
    let Ok(socket) = nonblocking(socket) else {
        return;
    };

    let given_up = ticket.given_up();
    let turn = |turn| ticket.turn(turn);
    let handshake = Box::pin(Tls::accept(
        socket,
        identity.config.clone(),
        &worker.gate,
        turn,
    ));
    let result = tokio::select! {
        result = timeout(policy.timeouts.tls_handshake, handshake) => result,
        () = given_up.notified() => {
            return worker.shard.handshakes(HandshakeResult::Refused).inc();
        }
    };
    ticket.handshake_done();
    let (mut tls, handshake) = match result {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return worker.shard.handshakes(HandshakeResult::Failed).inc();
        }
        Err(_) => {
            worker.shard.limits(Limit::HandshakeTimeout).inc();
            return worker.shard.handshakes(HandshakeResult::TimedOut).inc();
        }
    };
    let kind = if handshake.resumed {
        HandshakeResult::Resumed
    } else {
        HandshakeResult::Ok
    };
    worker.shard.handshakes(kind).inc();
    let open = Open::new(&worker, ticket);

    let preface_by = started + policy.timeouts.preface;
    let version = match handshake.alpn {
        Alpn::Http2 => Some((Alpn::Http2, tls.early())),
        Alpn::Http1 => Some((Alpn::Http1, tls.early())),
        Alpn::None => {
            let time = preface_by.saturating_duration_since(worker.now());
            let guess = timeout(time, Box::pin(tls.guess())).await;
            guess.unwrap_or_else(|_| {
                worker.shard.limits(Limit::PrefaceTimeout).inc();
                None
            })
        }
    };
    match version {
        Some((Alpn::Http2, early)) => {
            let transport = Transport::Tls(tls);
            tokio::task::spawn_local(http2(worker, transport, early, peer, policy, started, open));
        }
        Some((_, early)) => {
            tokio::task::spawn_local(http1::serve(
                worker, tls, early, peer, policy, started, open,
            ));
        }
        None => {}
    }
}

/// Serves a connection on which HTTP/2 was chosen, until it ends; then drops `open`. `early` is what was read of it before.
///
/// No `async fn`, and the end boxed, since this is every connection's task: it has room for what it needs while it runs,
/// once, and for nothing else.
pub(super) fn http2(
    worker: Rc<Worker>,
    mut transport: Transport,
    early: Vec<u8>,
    peer: SocketAddr,
    policy: Arc<ListenerPolicy>,
    accepted: Instant,
    open: impl Sized,
) -> impl Future<Output = ()> {
    let now = worker.now();
    let connection = Rc::new(Downstream::new(&worker, peer, policy, accepted));
    let id = worker.next_client();
    let entry = ClientConnection::Http2(connection.clone());
    worker.clients.borrow_mut().insert(id, entry);
    connection.follow(&worker, worker.phase.get(), now);
    async move {
        let end = wire::run(&connection, &worker, &mut transport, early).await;
        worker.clients.borrow_mut().remove(&id);
        connection.ended(&worker, end);
        Box::pin(wire::close(&connection, &mut transport, end)).await;
        drop(open);
    }
}

impl Open {
    fn new(worker: &Worker, ticket: Ticket) -> Self {
        let shard = worker.shard.clone();
        shard.connections(metrics::Side::Downstream).opened.inc();
        Self {
            shard,
            _ticket: ticket,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let counters = self.shard.connections(metrics::Side::Downstream);
        counters.closed.inc();
    }
}

impl ClientConnection {
    /// Looks at its deadlines at `at`, or earlier.
    pub(crate) fn check_by(&self, at: Instant) {
        match self {
            Self::Http1(connection) => connection.check_by(at),
            Self::Http2(connection) => connection.check_by(at),
        }
    }

    /// Whom others share with.
    pub(crate) fn holder(&self) -> &Rc<Holder> {
        match self {
            Self::Http1(connection) => connection.holder(),
            Self::Http2(connection) => connection.holder(),
        }
    }

    /// Bytes that it holds back, beside what is counted of its RPCs.
    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Http1(connection) => connection.held(),
            Self::Http2(connection) => connection.link.held(),
        }
    }

    /// Since when it stands still as a whole.
    pub(crate) fn stalled(&self) -> Option<Instant> {
        match self {
            // Of its streams, of which it has one at a time, they themselves know.
            Self::Http1(connection) => connection.stalled(),
            Self::Http2(connection) => connection.link.stalled(),
        }
    }

    /// What it holds is needed elsewhere: it ends, with all of its streams.
    pub(crate) fn shed(&self, worker: &Rc<Worker>, now: Instant) {
        let connection = match self {
            Self::Http1(connection) => return connection.shed(now),
            Self::Http2(connection) => connection,
        };
        worker.shard.limits(Limit::Memory).inc();
        let keys: Vec<_> = connection.link.engine().keys().collect();
        for key in keys {
            rpc::shed_one(worker, Key::from_engine(key), Limit::Memory, now);
        }
        connection.link.give_up(&worker.memory);
    }

    /// The process wants something else of its connections.
    pub(crate) fn follow(&self, worker: &Worker, phase: Phase, now: Instant) {
        match self {
            Self::Http1(connection) => connection.follow(phase, now),
            Self::Http2(connection) => connection.follow(worker, phase, now),
        }
    }
}

impl Downstream {
    /// A connection of `peer` on which nothing has been said yet.
    pub(super) fn new(
        worker: &Worker,
        peer: SocketAddr,
        policy: Arc<ListenerPolicy>,
        accepted: Instant,
    ) -> Self {
        let now = worker.now();
        let age = policy.max_connection_age;
        // ± 10 %, so that clients that came together don't come back together.
        let age = age.mul_f64(worker.random.borrow_mut().random_range(0.9..=1.1));
        Self {
            link: Link::new(
                Connection::new(Role::Server, engine_config(&policy), now),
                worker.wakes.clone(),
                now,
            ),
            port: peer.port(),
            holder: worker.holders.of(peer.ip().into()),
            peer_text: peer.ip().to_canonical().to_string().into(),
            accepted,
            age: tenths(age),
            ready: Cell::new(None),
            rpcs: Cell::new(0),
            cancelling: Cell::new(0),
            since: Cell::new(now),
            shrunk: Cell::new(false),
            moved: Cell::new(0),
            leaving: Cell::new(Leaving::At(accepted + age)),
            ping: Cell::new(Ping::Answered(now)),
            policy,
        }
    }

    /// Later events of `stream` carry the key of its RPC.
    pub(crate) fn set_key(&self, stream: u32, key: u32) {
        self.link.engine().set_key(stream, key);
    }

    /// A response's head; 1xx any number of times before it.
    pub(crate) fn send_headers(&self, stream: u32, headers: &Headers, end_stream: bool) {
        self.link.engine().send_headers(stream, headers, end_stream);
        self.link.wake();
    }

    /// Ends a stream.
    pub(crate) fn reset(&self, stream: u32, reason: Reason) {
        self.link.engine().reset(stream, reason);
        self.link.wake();
    }

    /// Whether the end of the response has been framed.
    pub(crate) fn send_closed(&self, stream: u32) -> bool {
        self.link.engine().send_closed(stream)
    }

    /// Takes back the last `bytes` of what waits, if all of them still do.
    pub(crate) fn unqueue(&self, stream: u32, bytes: usize) -> bool {
        self.link.engine().unqueue(stream, bytes)
    }

    /// The client, for diagnostics: a `SocketAddr` takes too much to be kept for them.
    pub(crate) fn peer(&self) -> String {
        let (text, port) = (&self.peer_text, self.port);
        if text.contains(':') {
            format!("[{text}]:{port}")
        } else {
            format!("{text}:{port}")
        }
    }

    /// Whom others share with.
    pub(crate) fn holder(&self) -> &Rc<Holder> {
        &self.holder
    }

    /// A stream of this client's that a backend is still busy with.
    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.cancelling.set(self.cancelling.get() + 1);
        Busy(self.clone())
    }

    /// Looks at this connection's streams at `at`, or earlier.
    pub(crate) fn check_by(&self, at: Instant) {
        self.link.check_by(at);
    }

    /// An RPC of this connection has ended.
    pub(crate) fn rpc_ended(&self, now: Instant) {
        self.rpcs.set(self.rpcs.get().saturating_sub(1));
        self.shrunk.set(false);
        if self.rpcs.get() == 0 {
            self.since.set(now);
            self.link.wake();
        }
    }

    fn request(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        stream: u32,
        headers: Headers,
        end_stream: bool,
        now: Instant,
    ) {
        self.shrunk.set(false);
        if self.is_late(worker.phase.get()) {
            self.leave(now);
        }
        // Cancelling is no way to have more at the backends at a time than the limit: what they aren't told of yet counts.
        let busy = self.cancelling.get();
        if busy > 0 && self.rpcs.get() + busy >= self.policy.http2.max_concurrent_streams {
            self.reset(stream, Reason::REFUSED_STREAM);
            return self.refused(worker, stream, headers, Refusal::TooManyStreams, now);
        }
        if self.rpcs.replace(self.rpcs.get() + 1) == 0 {
            self.since.set(now);
            if let Ping::Answered(since) = self.ping.get() {
                self.link.check_by(self.ping_at(since));
            }
        }
        rpc::start(
            worker,
            rpc::Client::Http2 {
                connection: self.clone(),
                stream,
            },
            headers,
            end_stream,
            now,
        );
        self.link.check_by(now + self.policy.timeouts.stream_idle);
    }

    /// A stream was answered with a reset before it became an RPC.
    fn refused(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        stream: u32,
        headers: Headers,
        why: Refusal,
        now: Instant,
    ) {
        self.shrunk.set(false);
        let client = rpc::Client::Http2 {
            connection: self.clone(),
            stream,
        };
        let failure = match why {
            Refusal::TooManyStreams => {
                worker.shard.limits(Limit::Streams).inc();
                Failure::Overloaded
            }
            Refusal::HeadersTooLarge => {
                worker.shard.limits(Limit::HeaderBytes).inc();
                Failure::HeadersTooLarge
            }
            Refusal::Malformed(rule) => {
                tracing::debug!(peer = %self.peer(), rule, "malformed request");
                worker.shard.resets(ResetCause::Malformed).inc();
                Failure::MalformedRequest
            }
        };
        rpc::refused_stream(worker, &client, headers, failure, now);
    }

    /// Every RPC that still had a stream here learns that its client is gone.
    fn ended(self: &Rc<Self>, worker: &Rc<Worker>, end: End) {
        match end {
            End::Protocol(error) => {
                tracing::debug!(peer = %self.peer(), %error, "client connection ended");
                let cause = match error.limit {
                    Some(_) => ResetCause::Flood,
                    None => ResetCause::Malformed,
                };
                worker.shard.resets(cause).inc();
                match error.limit {
                    Some(http2::Limit::HeaderBlock) => {
                        worker.shard.limits(Limit::HeaderBlock).inc()
                    }
                    Some(http2::Limit::RapidReset) => worker.shard.limits(Limit::ResetFlood).inc(),
                    Some(http2::Limit::Flood) | None => {}
                }
            }
            End::Panic => {
                tracing::error!(peer = %self.peer(), "a panic ended a client's connection");
                for key in rpc::of_client(worker, self) {
                    rpc::client_gone(worker, key);
                }
                return;
            }
            End::Eof | End::Io(_) | End::Finished | End::TimedOut(_) | End::Shed | End::Ejected => {
            }
        }
        let streams: Vec<_> = self.link.engine().take_streams().collect();
        for stream in streams {
            rpc::client_gone(worker, Key::from_engine(stream.key));
        }
    }
}

impl Side for Rc<Downstream> {
    fn link(&self) -> &Link {
        &self.link
    }

    fn on_event(&self, worker: &Rc<Worker>, event: Event<'_>, now: Instant) {
        match event {
            Event::Headers {
                stream,
                headers,
                end_stream,
                ..
            } => {
                self.request(worker, stream, headers, end_stream, now);
            }
            Event::Data {
                key,
                bytes,
                end_stream,
                ..
            } => {
                rpc::request_data(worker, Key::from_engine(key), bytes, end_stream, now);
            }
            Event::Trailers { key, headers, .. } => {
                rpc::request_trailers(worker, Key::from_engine(key), headers, now);
            }
            Event::HeadersTooLarge { stream, .. } => {
                let headers = self
                    .link
                    .engine()
                    .take_large_head(stream)
                    .unwrap_or_default();
                worker.shard.limits(Limit::HeaderBytes).inc();
                self.rpcs.set(self.rpcs.get() + 1);
                let client = rpc::Client::Http2 {
                    connection: self.clone(),
                    stream,
                };
                rpc::refuse(worker, client, headers, Failure::HeadersTooLarge, now);
            }
            Event::Refused {
                stream,
                headers,
                why,
            } => self.refused(worker, stream, headers, why, now),
            Event::Malformed { key, rule, .. } => {
                tracing::debug!(peer = %self.peer(), rule, "malformed request");
                worker.shard.resets(ResetCause::Malformed).inc();
                let flag = Flag::DownstreamProtocolError;
                rpc::client_reset(worker, Key::from_engine(key), flag);
            }
            Event::Reset {
                key,
                reason,
                by_peer,
                ..
            } => {
                let (cause, flag) = if by_peer {
                    (ResetCause::ClientCancel, Flag::DownstreamReset)
                } else {
                    tracing::debug!(peer = %self.peer(), %reason, "stream reset for what the client sent");
                    // Once the request is taken, nothing but its trailers can be too much.
                    if reason == Reason::ENHANCE_YOUR_CALM {
                        worker.shard.limits(Limit::HeaderBytes).inc();
                    }
                    (ResetCause::Malformed, Flag::DownstreamProtocolError)
                };
                worker.shard.resets(cause).inc();
                rpc::client_reset(worker, Key::from_engine(key), flag);
            }
            Event::Settings { first } => {
                if first {
                    let age = now.saturating_duration_since(self.accepted);
                    self.ready.set(Some(tenths(age)));
                }
            }
            Event::GoAway { .. } => {
                // The client opens no more streams; it closes when it has what it waits for.
            }
            Event::Pong { payload } => self.pong(payload, now),
        }
    }

    fn on_sent(&self, worker: &Rc<Worker>, sent: Sent) {
        rpc::response_sent(
            worker,
            Key::from_engine(sent.key),
            sent.bytes,
            sent.end_stream,
        );
    }

    fn check(&self, worker: &Rc<Worker>, now: Instant) -> Check {
        self.check_deadlines(worker, now)
    }

    fn after_turn(&self, worker: &Rc<Worker>, now: Instant) -> Option<End> {
        self.deadlines_after_turn(worker, now)
    }
}

/// A stream that a client has ended, and a backend is still busy with.
pub(crate) struct Busy(Rc<Downstream>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.cancelling.set(self.0.cancelling.get() - 1);
    }
}

fn nonblocking(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

fn engine_config(policy: &ListenerPolicy) -> http2::Config {
    http2::Config {
        max_concurrent_streams: policy.http2.max_concurrent_streams,
        stream_window: policy.http2.initial_stream_window_size,
        connection_window: policy.http2.initial_connection_window_size,
        max_header_list: policy.http2.max_header_bytes,
        max_header_fields: MAX_FIELDS as u32,
        max_header_list_hard: MAX_HEADER_LIST,
        max_header_block: MAX_HEADER_BLOCK,
        max_header_frames: MAX_HEADER_FRAMES,
        header_table: 4096,
        output_limit: OUTPUT_LIMIT,
    }
}

/// A decoded list above this ends the stream, undelivered.
const MAX_HEADER_LIST: u32 = 32 * 1024;
/// An encoded block above this, or of more frames than that, ends the connection.
const MAX_HEADER_BLOCK: u32 = 32 * 1024;
const MAX_HEADER_FRAMES: u32 = 6;

/// Framed DATA that may wait for the socket: as much as TLS seals at once. More would only be held for clients that don't
/// read, since a turn writes several times over.
const OUTPUT_LIMIT: usize = 64 * 1024;

#[cfg(test)]
mod tests;
