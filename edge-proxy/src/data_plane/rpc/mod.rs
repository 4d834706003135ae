//! Step 4: THE STORY. One RPC's life, from its head to its log line; the only place that knows the order of the steps.
//!
//! ```text
//!             filters, route          pick, connection            response head
//!   (start) ──────────────▶ Waiting ───────────────────▶ Open ───────────────────▶ Relaying
//!              │               │  ▲                        │                          │
//!              │ answered here │  └── another attempt ─────┤                          │ trailers, END_STREAM
//!              ▼               ▼                           ▼                          ▼
//!           Flushing ◀──────── failure: answered here ─────┴── failure: trailers ──▶ Flushing ──▶ (log, end)
//!
//!   (start) ── direct_response ──▶ Answering ── the request's end ──▶ Flushing
//!   any state ── the client is gone, the process ends ──▶ (log, end)
//! ```
//!
//! An RPC is an entry of its worker's slab, and both of its connections know it by its key. Everything that happens to
//! it (an event of one of the connections, a deadline, an endpoint that could be connected to or not) is one of the
//! functions below: it finds the entry, takes one synchronous step, and ends the RPC if that was the last. A step that
//! panics ends its RPC with `internal error` and nothing else.
//!
//! Flow control is end to end: the sender of a leg gets credit for what the other leg has framed, or for what nobody
//! wants any more (of a request whose answer is complete). So what is held back is bounded by the windows that we gave.

// The steps: from the head to an attempt, from its answer to the client, and how all of it ends.
mod request;

mod response;

mod ending;

mod body;
mod client;
mod head;
mod record;
mod shedding;
mod table;

#[cfg(test)]
mod tests;

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use http2::{Headers, Reason};

use self::{
    body::Replay,
    head::{Head, Logged},
    record::Record,
};
pub(crate) use self::{
    client::Client,
    shedding::{relieve, shed_one, shed_stalled},
    table::{Key, Table},
};
use super::{
    answer::Form,
    downstream::Downstream,
    holder::Holder,
    local::Local,
    message::Messages,
    source::Source,
    upstream::{
        Place, Upstream,
        retry::{MAX_ATTEMPTS, Outcome},
    },
    wire::{Link, Side as _},
    worker::Worker,
};
use crate::{
    error::{Failure, Flag, ResetCause},
    snapshot::{Cluster, EndpointShared, Timeouts, circuit::Permits},
    telemetry::{labels, metrics::Limit},
};

/// One RPC (or plain HTTP request), both of its legs.
pub(crate) struct Rpc {
    client: Client,
    /// What its answers look like: gRPC's form, or plain.
    form: Form,
    /// The request's head as every attempt sends it, but for `grpc-timeout`.
    head: Head,
    /// The request's body as far as another attempt may need it.
    replay: Replay,
    /// The request's trailers, which gRPC doesn't have and plain HTTP may.
    trailers: Option<Headers>,
    /// When the client's half ended.
    request_ended: Option<Instant>,
    state: State,
    /// Where the route leads; `None` while (or because) no cluster is asked.
    cluster: Option<Local<Cluster>>,
    /// Endpoints that were tried, in order.
    tried: Tried,
    /// What the next attempt holds of the cluster's circuits before it has a stream.
    permits: Permits,
    /// gRPC messages of the response, so that it can be cut between two of them.
    messages: Messages,
    /// When the client (or the route) wants it ended.
    deadline: Option<Instant>,
    /// The client said so itself, in a `grpc-timeout` that could be read: each attempt is told what is left.
    has_grpc_timeout: bool,
    /// When a byte last came or went on, either way.
    active: Instant,
    /// What the worker's account has of it.
    counted: usize,
    record: Record,
}

/// Where an RPC is; the drawing is at the module's head.
enum State {
    /// Waits for the request's end; then the route's own answer is sent. A client that hasn't ended its request may still
    /// break it, and is told so only while the stream is open.
    Answering(u16, Arc<str>),
    /// Waits for a connection to this endpoint, at this place of its queue.
    Waiting(Arc<EndpointShared>, Place),
    /// The request goes to this stream; no head of a response yet.
    Open(Attempt),
    /// The response's head went to the client.
    Relaying(Attempt),
    /// The response is complete, or ours: what is left of it waits for the client. The moment is when that began, if
    /// the response was cut short.
    Flushing(Option<Instant>),
}

/// One try of an RPC on one endpoint.
struct Attempt {
    upstream: Rc<Upstream>,
    stream: u32,
    /// Whose it is.
    holder: Rc<Holder>,
    /// Given back when it ends.
    _permits: Permits,
}

/// The ids of endpoints that were tried: no more than may be, so that they need no memory of their own.
#[derive(Clone, Copy, Default)]
struct Tried {
    ids: [u64; MAX_ATTEMPTS as usize],
    len: usize,
}

/// Whether an RPC goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    On,
    Done,
}

// --- What happens to an RPC, in the order in which it usually does -----------------------------------------------

/// A client's request begins.
pub(crate) fn start(
    worker: &Rc<Worker>,
    client: Client,
    headers: Headers,
    end_stream: bool,
    now: Instant,
) {
    let rpc = Rpc::new(client, headers, end_stream, now);
    admit(worker, rpc, now, |rpc, key| rpc.begin(worker, key, now));
}

/// A client's request is refused before it became an RPC, with what is known of its head.
pub(crate) fn refuse(
    worker: &Rc<Worker>,
    client: Client,
    headers: Headers,
    failure: Failure,
    now: Instant,
) {
    let mut rpc = Rpc::new(client, headers, false, now);
    rpc.form = rpc.client.form(rpc.head.block());
    admit(worker, rpc, now, |rpc, _| rpc.fail(worker, failure, now));
}

/// A client's request was answered with a reset, above a limit of its connection or ours, or malformed: all that comes of
/// it is its line.
pub(crate) fn refused_stream(
    worker: &Rc<Worker>,
    client: &Client,
    head: Headers,
    failure: Failure,
    now: Instant,
) {
    leave_line(worker, client, Head::new(head), failure, now);
}

/// The endpoint that the RPC waits for has a connection with room.
pub(crate) fn connected(worker: &Rc<Worker>, key: Key, upstream: Rc<Upstream>) {
    let now = worker.now();
    step(worker, key, |rpc| match rpc.state {
        State::Waiting(..) => rpc.open(worker, key, upstream, now),
        _ => Step::On,
    });
}

/// The endpoint that the RPC waits for can't be connected to, or not in time, or has no room for it.
pub(crate) fn connect_failed(worker: &Rc<Worker>, key: Key, outcome: Outcome, failure: Failure) {
    let now = worker.now();
    step(worker, key, |rpc| match rpc.state {
        State::Waiting(..) => rpc.again_or_fail(worker, key, outcome, failure, now),
        _ => Step::On,
    });
}

/// DATA of the request.
pub(crate) fn request_data(
    worker: &Rc<Worker>,
    key: Key,
    bytes: &[u8],
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| {
        rpc.request_data(worker, bytes, end_stream, now)
    });
}

/// Trailers of the request.
pub(crate) fn request_trailers(worker: &Rc<Worker>, key: Key, headers: Headers, now: Instant) {
    step(worker, key, |rpc| {
        rpc.request_trailers(worker, headers, now)
    });
}

/// The request has ended in trailers that no backend is to see.
pub(crate) fn refuse_trailers(worker: &Rc<Worker>, key: Key, failure: Failure, now: Instant) {
    step(worker, key, |rpc| rpc.refuse_trailers(worker, failure, now));
}

/// Queued DATA of the request was framed.
pub(crate) fn request_sent(worker: &Rc<Worker>, key: Key, bytes: usize) {
    let now = worker.now();
    step(worker, key, |rpc| {
        rpc.request_forwarded(bytes, now);
        Step::On
    });
}

/// A head of the response: an interim one (1xx), or the final one.
pub(crate) fn response_headers(
    worker: &Rc<Worker>,
    key: Key,
    headers: Headers,
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| {
        rpc.response_headers(worker, headers, end_stream, now)
    });
}

/// DATA of the response.
pub(crate) fn response_data(
    worker: &Rc<Worker>,
    key: Key,
    bytes: &[u8],
    end_stream: bool,
    now: Instant,
) {
    step(worker, key, |rpc| rpc.response_data(bytes, end_stream, now));
}

/// Trailers of the response.
pub(crate) fn response_trailers(worker: &Rc<Worker>, key: Key, headers: Headers, now: Instant) {
    step(worker, key, |rpc| rpc.response_trailers(headers, now));
}

/// Queued DATA of the response was framed; with `end_stream`, all of it.
pub(crate) fn response_sent(worker: &Rc<Worker>, key: Key, bytes: usize, end_stream: bool) {
    let now = worker.now();
    step(worker, key, |rpc| rpc.response_sent(bytes, end_stream, now));
}

/// The backend's stream ended before its time.
pub(crate) fn upstream_reset(worker: &Rc<Worker>, key: Key, outcome: Outcome, cause: ResetCause) {
    let now = worker.now();
    step(worker, key, |rpc| {
        rpc.attempt_ended(worker, key, outcome, cause, now)
    });
}

/// The backend's connection ended under the stream; `headers_left`: it may have seen the request.
pub(crate) fn upstream_gone(worker: &Rc<Worker>, key: Key, headers_left: bool, cause: ResetCause) {
    let now = worker.now();
    let outcome = if headers_left {
        Outcome::Other
    } else {
        Outcome::NeverSent
    };
    step(worker, key, |rpc| {
        rpc.attempt_ended(worker, key, outcome, cause, now)
    });
}

/// The client reset its stream, or broke a rule in it: `flag` tells which.
pub(crate) fn client_reset(worker: &Rc<Worker>, key: Key, flag: Flag) {
    step(worker, key, |rpc| rpc.client_left(worker, flag));
}

/// The client's connection ended.
pub(crate) fn client_gone(worker: &Rc<Worker>, key: Key) {
    let cause = labels::ResetCause::ConnectionClosed;
    worker.shard.resets(cause).inc();
    step(worker, key, |rpc| {
        rpc.client_left(worker, Flag::DownstreamTermination)
    });
}

/// The client's connection ended, and the client had all of its response: what the backend still says is nobody's.
pub(crate) fn client_satisfied(worker: &Rc<Worker>, key: Key) {
    step(worker, key, |_| Step::Done);
}

/// A deadline has come: this RPC's, or that of one before it with the same key.
pub(crate) fn deadline(worker: &Rc<Worker>, key: Key, now: Instant) {
    step(worker, key, |rpc| match rpc.state {
        State::Flushing(_) => Step::On,
        _ if rpc.deadline.is_none_or(|deadline| now < deadline) => Step::On,
        _ => rpc.fail(worker, Failure::DeadlineExceeded, now),
    });
}

/// Enforces the limits that are looked at now and then; names the next moment to look.
pub(crate) fn check(
    worker: &Rc<Worker>,
    key: Key,
    now: Instant,
    timeouts: &Timeouts,
) -> Option<Instant> {
    let mut next = None;
    step(worker, key, |rpc| {
        rpc.check(worker, now, timeouts, &mut next)
    });
    next
}

/// The RPC has to end now: the process, or its connection's grace, has come to its end.
pub(crate) fn cut(worker: &Rc<Worker>, key: Key, now: Instant) {
    step(worker, key, |rpc| rpc.cut(worker, now));
}

/// Whose RPC this is, as others share with it, and when a byte of it last came or went.
pub(crate) fn moved(worker: &Worker, key: Key) -> Option<(Source, Instant)> {
    let mut rpcs = worker.rpcs.borrow_mut();
    let rpc = rpcs.get_mut(key)?;
    Some((rpc.client.holder().source(), rpc.active))
}

/// Others wait for its stream, and its client has more than its share of these.
pub(crate) fn give_way(worker: &Rc<Worker>, key: Key, now: Instant) {
    step(worker, key, |rpc| match rpc.state {
        State::Open(_) | State::Relaying(_) => {
            worker.shard.limits(Limit::StreamShare).inc();
            rpc.fail(worker, Failure::AboveShare, now)
        }
        State::Answering(..) | State::Waiting(..) | State::Flushing(_) => Step::On,
    });
}

/// [`cut`], for every RPC of the worker.
pub(crate) fn cut_all(worker: &Rc<Worker>) {
    let keys = worker.rpcs.borrow().keys();
    let now = worker.now();
    for key in keys {
        cut(worker, key, now);
    }
}

/// The thread ends, and all connections with it: every RPC of the worker ends here and leaves its line.
pub(crate) fn stop_all(worker: &Rc<Worker>) {
    let keys = worker.rpcs.borrow().keys();
    for key in keys {
        step(worker, key, Rpc::stop);
    }
}

/// An RPC's first step.
fn admit(
    worker: &Rc<Worker>,
    rpc: Box<Rpc>,
    now: Instant,
    first: impl FnOnce(&mut Rpc, Key) -> Step,
) {
    let admitted = worker.rpcs.borrow_mut().insert(rpc);
    match admitted {
        Ok(key) => step(worker, key, |rpc| first(rpc, key)),
        Err(rpc) => {
            rpc.client.reset(Reason::REFUSED_STREAM);
            rpc.client.ended(now);
            worker.shard.limits(Limit::Streams).inc();
            leave_line(worker, &rpc.client, rpc.head, Failure::Overloaded, now);
        }
    }
}

/// The line of a request that is no RPC.
fn leave_line(
    worker: &Rc<Worker>,
    client: &Client,
    mut head: Head,
    failure: Failure,
    now: Instant,
) {
    let grpc = client.form(head.block()) == Form::Grpc;
    let mut record = Record::new(now);
    record.failed_with(failure);
    record.write(worker, client, &head, grpc, now);
    head.recycle();
}

/// The RPCs with a leg on a client's connection: for one whose engine can't be asked.
pub(crate) fn of_client(worker: &Worker, connection: &Rc<Downstream>) -> Vec<Key> {
    worker.rpcs.borrow().keys_where(|rpc| match &rpc.client {
        Client::Http2 { connection: of, .. } => Rc::ptr_eq(of, connection),
        Client::Http1(_) => false,
    })
}

/// The RPCs with a leg on a backend's connection: for one whose engine can't be asked.
pub(crate) fn of_upstream(worker: &Worker, connection: &Rc<Upstream>) -> Vec<Key> {
    worker.rpcs.borrow().keys_where(|rpc| match &rpc.state {
        State::Open(attempt) | State::Relaying(attempt) => {
            Rc::ptr_eq(&attempt.upstream, connection)
        }
        State::Answering(..) | State::Waiting(..) | State::Flushing(_) => false,
    })
}

/// One step of one RPC. A panic in it ends this RPC and nothing else.
fn step(worker: &Rc<Worker>, key: Key, work: impl FnOnce(&mut Rpc) -> Step) {
    let done = {
        let mut rpcs = worker.rpcs.borrow_mut();
        let Some(rpc) = rpcs.get_mut(key) else { return };
        let work = || {
            #[cfg(test)]
            super::testing::trip("step");
            work(rpc)
        };
        let done = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(step) => step == Step::Done,
            Err(panic) => {
                let panic = panic_text(panic.as_ref());
                tracing::error!(request_id = %rpc.request_id(), panic, "a panic ended an RPC");
                let answer = || {
                    // It may not have come so far as to know.
                    rpc.form = rpc.client.form(rpc.head.block());
                    rpc.fail(worker, Failure::Internal, worker.now())
                };
                let answered = catch_unwind(AssertUnwindSafe(answer));
                if answered.is_err() {
                    rpc.client.reset(Reason::INTERNAL_ERROR);
                }
                answered.map_or(true, |step| step == Step::Done)
            }
        };
        let kept = if done { 0 } else { rpc.kept() };
        worker.memory.change(rpc.counted, kept);
        rpc.counted = kept;
        done
    };
    if done {
        let rpc = worker.rpcs.borrow_mut().remove(key);
        if let Some(rpc) = rpc
            && catch_unwind(AssertUnwindSafe(|| rpc.end(worker))).is_err()
        {
            tracing::error!("a panic at the end of an RPC");
        }
    }
}

/// What a panic said, if it was words.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

impl Rpc {
    /// Boxed here, and never moved again: it is nearly a KiB.
    fn new(client: Client, head: Headers, end_stream: bool, now: Instant) -> Box<Self> {
        Box::new(Self {
            client,
            form: Form::Plain,
            head: Head::new(head),
            replay: Replay::default(),
            trailers: None,
            request_ended: end_stream.then_some(now),
            state: State::Flushing(None),
            cluster: None,
            tried: Tried::default(),
            permits: Permits::default(),
            messages: Messages::new(),
            deadline: None,
            has_grpc_timeout: false,
            active: now,
            counted: 0,
            record: Record::new(now),
        })
    }

    fn is_grpc(&self) -> bool {
        self.form == Form::Grpc
    }

    fn request_id(&self) -> String {
        String::from_utf8_lossy(self.head.value(Logged::RequestId).unwrap_or_default()).into_owned()
    }
}

impl Tried {
    /// Another one. What is beyond [`MAX_ATTEMPTS`] isn't attempted, and so isn't noted.
    fn push(&mut self, id: u64) {
        if let Some(place) = self.ids.get_mut(self.len) {
            *place = id;
            self.len += 1;
        }
    }
}

impl Deref for Tried {
    type Target = [u64];
    fn deref(&self) -> &[u64] {
        &self.ids[..self.len]
    }
}

impl Attempt {
    /// It has a stream, and is counted as one that runs.
    fn new(upstream: Rc<Upstream>, stream: u32, holder: Rc<Holder>, permits: Permits) -> Self {
        let endpoint = upstream.endpoint();
        endpoint.attempts.fetch_add(1, Ordering::Relaxed);
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        upstream.series().active.inc();
        upstream.taken_by(&holder);
        Self {
            upstream,
            stream,
            holder,
            _permits: permits,
        }
    }

    /// The connection, as far as it is like a client's.
    fn link(&self) -> &Link {
        self.upstream.link()
    }

    /// It has come to its end, and that is its endpoint's failure.
    fn failed(self) {
        let failures = &self.upstream.endpoint().failures;
        failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.upstream
            .endpoint()
            .active
            .fetch_sub(1, Ordering::Relaxed);
        self.upstream.series().active.dec();
        self.upstream.left_by(&self.holder);
    }
}
