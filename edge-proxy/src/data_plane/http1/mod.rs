//! HTTP/1.1, by hyper, into the same path as HTTP/2.
//!
//! hyper parses, frames and enforces the syntax of RFC 9112; what a request means is decided where HTTP/2's are. One
//! task runs a connection, as in [`wire`](super::wire): its turn looks at the deadlines, lets hyper read and write, then
//! moves the request's body on. hyper's bodies meet [`rpc`] in an [`Exchange`], one bounded buffer each way: the
//! request is read only as far as the RPC's credit goes, and what hyper hasn't taken of the response counts as queued.
//!
//! hyper is there from a request's first byte until its answer has left. What it buffers, with room for the largest head and
//! answer that came, would be most of what a quiet connection takes, and clients may have as many of these as they like.
//!
//! hyper has no clock here. The limits of a connection (first head, later heads, idleness, age, a socket that takes
//! nothing) are the listener's, kept in `deadlines.rs`. What bytes tell of where the connection stands is in `traffic.rs`,
//! a request's way into [`rpc`] in `request.rs`, and what a client leaves here in `held.rs`. Requests that hyper refuses
//! itself are answered, counted and logged as ours, in `refused.rs`.
//!
//! A client that ends its half (FIN, TLS's close_notify) while it waits for an answer has gone away, as to Envoy; hyper's
//! `half_close` stays off. `close` and `shutdown(SHUT_WR)` send the same, and which of them it was only an answer's
//! first bytes would tell, by the reset that they bring: until then a backend would work for nobody, for as long as
//! `stream_idle`. RFC 9112 §9.5 wants a closure to be noticed, and in TLS 1.2 close_notify ends both halves (RFC 5246
//! §7.2.1). With `half_close`, hyper doesn't read at all while it waits, so that not even a reset would be seen.

mod convert;
mod deadlines;
mod exchange;
mod framing;
mod held;
mod io;
mod refused;
mod request;
mod traffic;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use hyper::{
    body::Incoming,
    server::conn::http1::{Builder, Connection as Hyper},
};
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Sleep,
};

pub(crate) use self::exchange::Exchange;
use self::{framing::Framing, io::Io, request::Service};
use super::{
    downstream::{ClientConnection, Open},
    holder::Holder,
    rpc,
    tls::Tls,
    wire::FAR,
    worker::Worker,
};
use crate::snapshot::ListenerPolicy;

/// A client's HTTP/1.1 connection.
pub(crate) struct Connection {
    worker: Rc<Worker>,
    peer: SocketAddr,
    /// Whom others share with.
    holder: Rc<Holder>,
    /// Its address as text, for `x-forwarded-for`.
    peer_text: String,
    /// The listener's rules when the connection was accepted.
    policy: Arc<ListenerPolicy>,
    accepted: Instant,
    /// When it will have reached its age.
    old_at: Instant,
    /// Of the connection's task.
    waker: RefCell<Option<Waker>>,
    /// Its [`Parts`], between two turns of its task.
    parts: RefCell<Option<Box<dyn Any>>>,
    /// The next moment at which the deadlines are looked at.
    check_at: Cell<Instant>,
    /// Requests whose RPC hasn't ended: one, or two after a HEAD, whose answer hyper ends early.
    exchanges: RefCell<Vec<Rc<Exchange>>>,
    stage: Cell<Stage>,
    output: Cell<Output>,
    /// A request of which nobody wants the rest. hyper ends the connection when this is dropped, whatever it still has to
    /// write: so not before the answer has left.
    given_up: RefCell<Option<Incoming>>,
    /// Of what hyper has got.
    framing: Cell<Framing>,
    /// hyper waits for bytes that came before the answer to the request before them had left: whether a head is among
    /// them.
    put_off: Cell<Option<bool>>,
    /// Bytes of the head under way that hyper has got.
    head: Cell<usize>,
    /// What waits for the client, as the worker's account has it.
    held: Cell<usize>,
    /// Since when there is any.
    holds_since: Cell<Option<Instant>>,
    /// What it holds is needed elsewhere.
    shed: Cell<bool>,
    /// When to start leaving: age, or the moment that a drain chose.
    leave_at: Cell<Instant>,
    /// Since when the next response is the last one.
    leaving: Cell<Option<Instant>>,
    /// Since when the socket has taken nothing of what waits for it.
    write_blocked: Cell<Option<Instant>>,
}

/// ```text
/// First ──▶ Busy ──▶ Idle ──▶ Head ──▶ Busy …
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No request yet; whether some of its head is here.
    First { begun: bool },
    /// A request is answered.
    Busy,
    /// No byte of a next request since then.
    Idle(Instant),
    /// The next request's head began then.
    Head(Instant),
}

/// What hyper's writes are.
///
/// ```text
/// Quiet ──request──▶ Answering ──all of the answer is written──▶ Quiet
///   └──hyper writes──▶ Refused
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// It was given nothing to write.
    Quiet,
    /// Of a request's answer.
    Answering,
    /// Its own word to a head that it can't read, which isn't passed on.
    Refused,
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// All is said, or the peer closed.
    Finished,
    /// hyper refused what came, or an exchange was given up.
    Failed(hyper::Error),
    /// A deadline passed: drop the socket whatever is still to be written.
    TimedOut(&'static str),
    /// What it holds is needed elsewhere: the same.
    Shed,
    /// hyper or what stands between panicked.
    Panic,
}

/// What takes memory.
struct Parts<T> {
    io: Io<T>,
    /// Boxed, since most connections are quiet.
    hyper: Option<Box<Hyper<TokioIo<Io<T>>, Service>>>,
}

/// Tells the RPCs of a connection that it is gone, however its task ends.
struct Gone<'a>(&'a Connection);

/// Serves a connection on which HTTP/1.1 was chosen, until it ends; then drops `open`. `early` is what was read of it
/// before.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    tls: Box<Tls>,
    early: Vec<u8>,
    peer: SocketAddr,
    policy: Arc<ListenerPolicy>,
    accepted: Instant,
    open: Open,
) {
    serve_on(
        &worker,
        tls,
        |tls| tls.memory(),
        early,
        peer,
        policy,
        accepted,
    )
    .await;
    drop(open);
}

/// [`serve`], on any transport; `kept`: the memory that it keeps.
async fn serve_on<T: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Rc<Worker>,
    transport: T,
    kept: fn(&T) -> usize,
    early: Vec<u8>,
    peer: SocketAddr,
    policy: Arc<ListenerPolicy>,
    accepted: Instant,
) {
    let connection = Connection::new(worker, peer, policy, accepted);
    let id = worker.next_client();
    let client = ClientConnection::Http1(connection.clone());
    worker.clients.borrow_mut().insert(id, client);
    connection.follow(worker.phase.get(), worker.now());
    let io = Io::new(transport, kept, early, connection.clone());
    let parts = Parts { io, hyper: None };
    connection.parts.replace(Some(Box::new(parts)));
    run::<T>(&connection).await;
    worker.clients.borrow_mut().remove(&id);
}

async fn run<T: AsyncRead + AsyncWrite + Unpin + 'static>(connection: &Rc<Connection>) {
    let gone = Gone(connection);
    let sleep = tokio::time::sleep_until(connection.check_at.get().into());
    tokio::pin!(sleep);
    let end = poll_fn(|cx| {
        let turn = AssertUnwindSafe(|| connection.turn_with::<T>(sleep.as_mut(), cx));
        catch_unwind(turn).unwrap_or(Poll::Ready(End::Panic))
    })
    .await;
    let parts = connection.take_parts::<T>();
    drop(gone);
    let mut answer = Vec::new();
    match end {
        End::Finished => {}
        End::Failed(error) => {
            answer = connection.failed(&error);
            // A response was given up. Where only the connection's end is its own (HTTP/1.0), a close_notify would call it
            // whole (RFC 9112 §9.8).
            if error.is_user() {
                return;
            }
        }
        End::Shed => return,
        End::TimedOut(limit) => {
            return tracing::debug!(peer = %connection.peer, limit, "client connection ended");
        }
        End::Panic => {
            return tracing::error!(peer = %connection.peer, "a panic ended a client's connection");
        }
    }
    let io = parts.map(|parts| parts.io);
    if let Some(transport) = io.and_then(Io::into_transport) {
        close(transport, &answer).await;
    }
}

impl Connection {
    fn new(
        worker: &Rc<Worker>,
        peer: SocketAddr,
        policy: Arc<ListenerPolicy>,
        accepted: Instant,
    ) -> Rc<Self> {
        // ± 10 %, so that clients that came together don't come back together.
        let age = policy
            .max_connection_age
            .mul_f64(rand::rng().random_range(0.9..=1.1));
        Rc::new(Self {
            worker: worker.clone(),
            peer,
            holder: worker.holders.of(peer.ip().into()),
            peer_text: peer.ip().to_canonical().to_string(),
            policy,
            accepted,
            old_at: accepted + age,
            waker: RefCell::default(),
            parts: RefCell::default(),
            check_at: Cell::new(worker.now()),
            exchanges: RefCell::default(),
            stage: Cell::new(Stage::First { begun: false }),
            output: Cell::new(Output::Quiet),
            given_up: RefCell::default(),
            framing: Cell::new(Framing::new()),
            put_off: Cell::new(None),
            head: Cell::new(0),
            held: Cell::new(0),
            holds_since: Cell::new(None),
            shed: Cell::new(false),
            leave_at: Cell::new(accepted + age),
            leaving: Cell::new(None),
            write_blocked: Cell::new(None),
        })
    }

    fn take_parts<T: 'static>(&self) -> Option<Box<Parts<T>>> {
        let parts = self.parts.take()?;
        parts.downcast().ok()
    }

    /// A turn, unless the connection was shed.
    fn turn_with<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        self: &Rc<Self>,
        sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<End> {
        let Some(mut parts) = self.take_parts::<T>() else {
            return Poll::Ready(End::Shed);
        };
        let end = self.turn(&mut parts, sleep, cx);
        self.parts.replace(Some(parts));
        end
    }

    /// The order of work in one turn.
    fn turn<T: AsyncRead + AsyncWrite + Unpin>(
        self: &Rc<Self>,
        Parts { io, hyper }: &mut Parts<T>,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<End> {
        let now = self.worker.tick();
        self.waker.borrow_mut().replace(cx.waker().clone());

        if self.shed.get() {
            return Poll::Ready(End::Shed);
        }

        // 1. Deadlines.
        if now >= self.check_at.get() {
            self.check_at.set(now + FAR);
            match self.check(now) {
                Ok(next) => self.check_at.set(next.min(self.check_at.get())),
                Err(end) => return Poll::Ready(end),
            }
        }
        if self.leaving.get().is_some() && self.may_leave() {
            match hyper {
                Some(hyper) => Pin::new(&mut **hyper).graceful_shutdown(),
                None => return Poll::Ready(End::Finished),
            }
        }

        // 2. hyper reads, calls the service, and writes, if there is anything for it.
        if hyper.is_none()
            && let Poll::Ready(some) = io.poll_some(cx)
        {
            if !some {
                return Poll::Ready(End::Finished);
            }
            let service = Service(self.clone());
            let new = builder(&self.policy).serve_connection(TokioIo::new(io.clone()), service);
            *hyper = Some(Box::new(new));
        }
        if let Some(running) = hyper {
            let was_quiet = self.is_quiet();
            match running.poll_without_shutdown(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(End::Finished),
                Poll::Ready(Err(error)) => return Poll::Ready(End::Failed(error)),
                Poll::Pending => {}
            }
            // It has settled what was, and has asked the transport for the next head: that wakes this task. What it may have
            // of it are empty lines.
            if was_quiet && self.is_quiet() && io.is_empty() {
                *hyper = None;
                io.hyper_gone();
                self.head.set(0);
            }
        }

        // 3. What it read of bodies goes on. hyper wakes this task when it has more.
        let exchanges = self.exchanges.borrow().clone();
        for exchange in exchanges {
            exchange.pump(cx, now);
        }
        self.account(io.buffers());

        // 4. Sleep until the socket, an RPC or a deadline has something for us.
        if sleep.deadline() != self.check_at.get().into() {
            sleep.as_mut().reset(self.check_at.get().into());
        }
        if sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.holds(0);
        // hyper has the connection, too: each would keep the other.
        drop(self.0.parts.take());
        let exchanges = std::mem::take(&mut *self.0.exchanges.borrow_mut());
        // What hyper has and the socket didn't take, the client hasn't.
        let written = self.0.output.get() != Output::Answering;
        for exchange in exchanges {
            match exchange.key() {
                Some(key) if written && exchange.is_told() => {
                    rpc::client_satisfied(&self.0.worker, key)
                }
                Some(key) => rpc::client_gone(&self.0.worker, key),
                None => {}
            }
        }
    }
}

fn builder(policy: &ListenerPolicy) -> Builder {
    let max_head = MAX_HEAD.max(policy.http2.max_header_bytes as usize);
    let mut builder = Builder::new();
    builder
        .header_read_timeout(None)
        .max_header_size(max_head)
        .max_headers(max_head / LEAST_FIELD)
        .max_buf_size(max_head);
    builder
}

/// Closes a connection so that the peer reads our last words, `answer` if hyper had none: shut our half, then read until
/// the peer has closed its own. A socket that is dropped with unread bytes is reset, and a reset overtakes the answer.
async fn close(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    let linger = async {
        if io.write_all(answer).await.is_err() || io.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        let mut buffer = [0; 4096];
        while left > 0 {
            match io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    };
    // An error here means that the peer took too long: the socket is dropped either way.
    let _ = tokio::time::timeout(LINGER, linger).await;
}

/// A head above this, or above `max_header_bytes` if that is more, ends the connection with its answer; after one that is
/// above `max_header_bytes` alone it goes on. As HTTP/2's limit for a list that is still decoded.
const MAX_HEAD: usize = 32 * 1024;
/// Bytes that a field counts at least (RFC 9113 §10.5.1): bounds how many hyper makes room for.
const LEAST_FIELD: usize = 33;

/// As HTTP/2's: how long a closing connection waits for the peer to close too, and how much it reads meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests;
