//! One HTTP/2 connection on a socket, either side: the order of work in one turn.
//!
//! Every connection is one task, and a turn of it is always the same four steps: look at deadlines if one is due, read
//! once and hand every event on, frame and write everything that this (or another connection's turn) left to send,
//! tell the other legs what went out. Writing once per turn is worth a factor of 2.6 over writing per reply; reading
//! once per turn gives the other connections of the worker theirs.
//!
//! No step borrows two engines: an event leaves one, that borrow ends, then the event is applied to the other, whose
//! task is woken and flushes in a turn of its own.

use std::{
    cell::{Cell, RefCell, RefMut},
    future::poll_fn,
    io,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use http2::{Config, Connection, ConnectionError, Event, Reason, Role, Sent};
use tokio::time::Sleep;

use super::{memory::Account, tls::Transport, worker::Worker};

/// A connection's engine, as everything on the worker reaches it, and the way to wake its task.
pub(crate) struct Link {
    engine: RefCell<Connection>,
    waker: RefCell<Option<Waker>>,
    /// Something is to be flushed: set by [`wake`](Self::wake), cleared by the task before it flushes.
    dirty: Cell<bool>,
    /// The task is in its turn and will look at `dirty` before it ends.
    in_turn: Cell<bool>,
    /// A panic unwound through the engine: its state can't be trusted, the connection ends.
    poisoned: Cell<bool>,
    /// The next moment at which [`Side::check`] wants to be called.
    check_at: Cell<Instant>,
    /// Since when the socket has taken nothing of what waits for it.
    write_blocked: Cell<Option<Instant>>,
    /// Bytes that the worker's account has of this connection: queued, and in the output.
    held: Cell<usize>,
    /// The task has ended: whatever is still said to the engine leads nowhere.
    closed: Cell<bool>,
}

/// What differs between a client's connection and a backend's.
pub(crate) trait Side {
    /// The connection itself.
    fn link(&self) -> &Link;
    /// Something arrived.
    fn on_event(&self, worker: &Rc<Worker>, event: Event<'_>, now: Instant);
    /// Queued bytes went into the output: the other leg may be credited.
    fn on_sent(&self, worker: &Rc<Worker>, sent: Sent);
    /// Called when the moment that it named last has come: enforces deadlines, and names the next moment.
    fn check(&self, worker: &Rc<Worker>, now: Instant) -> Check;
    /// Called at the end of each turn, when everything was written that can be.
    fn after_turn(&self, worker: &Rc<Worker>, now: Instant) -> Option<End>;
}

/// What [`Side::check`] decided.
pub(crate) enum Check {
    /// All is well until then.
    Until(Instant),
    /// The connection is over.
    Close(End),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed it.
    Eof,
    /// The socket failed: reset, timed out.
    Io(io::ErrorKind),
    /// The peer broke the protocol; the GOAWAY is in the output.
    Protocol(ConnectionError),
    /// Our own decision, everything is settled: flush and close.
    Finished,
    /// A deadline passed: drop the socket whatever is still to be written.
    TimedOut(&'static str),
    /// The engine panicked.
    Panic,
}

/// Mutable access to an engine that notices a panic.
pub(crate) struct EngineGuard<'a> {
    engine: RefMut<'a, Connection>,
    link: &'a Link,
}

impl Link {
    pub(crate) fn new(engine: Connection, now: Instant) -> Self {
        Self {
            engine: RefCell::new(engine),
            waker: RefCell::new(None),
            dirty: Cell::new(true),
            in_turn: Cell::new(false),
            poisoned: Cell::new(false),
            check_at: Cell::new(now),
            write_blocked: Cell::new(None),
            held: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    /// The engine, for the length of one call. Whoever leaves something to send calls [`wake`](Self::wake) too.
    pub(crate) fn engine(&self) -> EngineGuard<'_> {
        EngineGuard {
            engine: self.engine.borrow_mut(),
            link: self,
        }
    }

    /// There is something to flush.
    pub(crate) fn wake(&self) {
        if !self.dirty.replace(true) && !self.in_turn.get() {
            self.wake_task();
        }
    }

    /// Calls [`Side::check`] at `at`, or earlier if it is due earlier.
    pub(crate) fn check_by(&self, at: Instant) {
        if at < self.check_at.get() {
            self.check_at.set(at);
            if !self.in_turn.get() {
                self.wake_task();
            }
        }
    }

    /// How long the socket has taken nothing of what waits for it.
    pub(crate) fn write_blocked(&self) -> Option<Instant> {
        self.write_blocked.get()
    }

    /// Whether the connection's task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Tells the worker's account what is held back here.
    pub(crate) fn account(&self, memory: &Account) {
        let held = {
            let engine = self.engine();
            engine.pending_bytes() + engine.output().len()
        };
        memory.change(self.held.replace(held), held);
    }

    fn wake_task(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn begin_turn(&self, cx: &Context<'_>) {
        self.in_turn.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }
}

impl Deref for EngineGuard<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.engine
    }
}

impl DerefMut for EngineGuard<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.engine
    }
}

impl Drop for EngineGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody may ask what is left of it: one that has ended takes its place, which ignores everything.
            let mut ended =
                Connection::new(Role::Client, Config::default(), self.link.check_at.get());
            ended.close(Reason::INTERNAL_ERROR);
            *self.engine = ended;
            self.link.poisoned.set(true);
            self.link.wake_task();
        }
    }
}

/// Runs a connection until it ends; then the owner tells its RPCs, and calls [`close`]. `early` is what was read before
/// HTTP/2 was certain.
pub(crate) async fn run<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    transport: &mut Transport,
    early: &[u8],
) -> End {
    let link = side.link();
    let sleep = tokio::time::sleep_until(link.check_at.get().into());
    tokio::pin!(sleep);
    let mut early = early;
    let end = poll_fn(|cx| {
        link.begin_turn(cx);
        let turn = catch_unwind(AssertUnwindSafe(|| {
            let first = std::mem::take(&mut early);
            let turn = turn(side, worker, transport, first, sleep.as_mut(), cx);
            link.in_turn.set(false);
            turn
        }));
        turn.unwrap_or(Poll::Ready(End::Panic))
    })
    .await;
    link.closed.set(true);
    worker.memory.change(link.held.replace(0), 0);
    end
}

fn turn<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    transport: &mut Transport,
    early: &[u8],
    mut sleep: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<End> {
    let link = side.link();
    if link.poisoned.get() {
        return Poll::Ready(End::Panic);
    }
    let now = worker.tick();

    // 1. Deadlines.
    if now >= link.check_at.get() {
        link.check_at.set(now + FAR);
        match side.check(worker, now) {
            Check::Until(at) => link.check_at.set(at.min(link.check_at.get())),
            Check::Close(end) => return Poll::Ready(end),
        }
    }

    // 2. Read once, hand on. A peer that makes us answer and doesn't read the answers is not read from either; one that
    // only doesn't take data is, for it may be waiting for us to read.
    if !early.is_empty()
        && let Err(error) = feed(side, worker, early, now)
    {
        return fail(link, transport, error, cx);
    }
    let mut more = false;
    let paused = link.engine().overfull();
    if !paused {
        let mut failed = None;
        let read = transport.poll_read(cx, &worker.scratch, |bytes| {
            if failed.is_none() {
                failed = feed(side, worker, bytes, now).err();
            }
        });
        if let Some(error) = failed {
            return fail(link, transport, error, cx);
        }
        match read {
            Poll::Ready(Ok(0)) => return Poll::Ready(End::Eof),
            Poll::Ready(Ok(_)) => more = true,
            Poll::Ready(Err(error)) => return Poll::Ready(End::Io(error.kind())),
            Poll::Pending => {}
        }
    }

    // 3. Frame and write; 4. tell the other legs. Each round either moved bytes or was asked for by `wake`.
    let mut rounds = 0;
    loop {
        link.dirty.set(false);
        link.engine().flush(now);
        let wrote = match write(link, transport, now, cx) {
            Ok(wrote) => wrote,
            Err(kind) => return Poll::Ready(End::Io(kind)),
        };
        loop {
            let sent = link.engine().take_sent();
            let Some(sent) = sent else { break };
            side.on_sent(worker, sent);
        }
        rounds += 1;
        let again = link.dirty.get()
            || (wrote && link.engine().pending_bytes() > 0 && link.write_blocked.get().is_none());
        if !again {
            break;
        }
        if rounds == ROUNDS_PER_TURN {
            more = true;
            break;
        }
    }
    link.account(&worker.memory);
    // Nothing has asked the socket to wake us for input: that is made up for as soon as there is room again.
    more |= paused && !link.engine().overfull();
    match side.after_turn(worker, now) {
        // Whatever the output still holds.
        Some(end @ End::TimedOut(_)) => return Poll::Ready(end),
        Some(end) if link.engine().output().is_empty() => return Poll::Ready(end),
        Some(_) | None => {}
    }

    // 5. Sleep until the socket, another connection or a deadline has something for us.
    if sleep.deadline() != link.check_at.get().into()
        && (link.check_at.get() < sleep.deadline().into_std() || sleep.is_elapsed())
    {
        sleep.as_mut().reset(link.check_at.get().into());
    }
    if sleep.as_mut().poll(cx).is_ready() || more || link.dirty.get() {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

/// Hands every event of `bytes` on.
fn feed<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    bytes: &[u8],
    now: Instant,
) -> Result<(), ConnectionError> {
    let mut input = bytes;
    loop {
        let event = {
            let mut engine = side.link().engine();
            #[cfg(test)]
            super::testing::trip(std::any::type_name::<S>());
            engine.receive(&mut input, now)?
        };
        match event {
            Some(event) => side.on_event(worker, event, now),
            None => return Ok(()),
        }
    }
}

/// Writes what the engine has; says whether the socket took anything.
fn write(
    link: &Link,
    transport: &mut Transport,
    now: Instant,
    cx: &mut Context<'_>,
) -> Result<bool, io::ErrorKind> {
    let mut wrote = false;
    loop {
        let mut engine = link.engine();
        if engine.output().is_empty() && !transport.wants_write() {
            link.write_blocked.set(None);
            return Ok(wrote);
        }
        match transport.poll_write(cx, engine.output()) {
            Poll::Ready(Ok(n)) => {
                engine.consume(n);
                wrote = true;
                link.write_blocked.set(None);
            }
            Poll::Ready(Err(error)) => return Err(error.kind()),
            Poll::Pending => {
                if link.write_blocked.get().is_none() {
                    link.write_blocked.set(Some(now));
                    // The owner's `check` decides how long this may last.
                    link.check_by(now + Duration::from_secs(1));
                }
                return Ok(wrote);
            }
        }
    }
}

/// The peer broke the protocol: what the engine has to say about it is written as far as the socket takes it now.
fn fail(
    link: &Link,
    transport: &mut Transport,
    error: ConnectionError,
    cx: &mut Context<'_>,
) -> Poll<End> {
    let mut engine = link.engine();
    while !engine.output().is_empty() {
        match transport.poll_write(cx, engine.output()) {
            Poll::Ready(Ok(n)) => engine.consume(n),
            _ => break,
        }
    }
    Poll::Ready(End::Protocol(error))
}

/// Closes a connection so that the peer reads our last words: shut our half, then read until the peer has closed its
/// own. A socket that is dropped with unread bytes is reset, and a reset overtakes the GOAWAY. Where nobody listens any
/// more, dropping it is all there is to do.
pub(crate) async fn close<S: Side>(side: &S, transport: &mut Transport, end: End) {
    if !matches!(end, End::Eof | End::Protocol(_) | End::Finished) {
        return;
    }
    let link = side.link();
    let linger = async {
        loop {
            let output = link.engine().output().to_vec();
            if output.is_empty() && !transport.wants_write() {
                break;
            }
            match poll_fn(|cx| transport.poll_write(cx, &output)).await {
                Ok(n) => link.engine().consume(n),
                Err(_) => return,
            }
        }
        if transport.shutdown().await.is_ok() {
            transport.drain(LINGER_BYTES).await;
        }
    };
    // An error here means that the peer took too long: the socket is dropped either way.
    let _ = tokio::time::timeout(LINGER, linger).await;
}

/// How often one turn may flush before the other connections of the worker have theirs.
const ROUNDS_PER_TURN: usize = 8;

/// "No deadline": far, but a moment that an `Instant` can name.
pub(crate) const FAR: Duration = Duration::from_secs(24 * 3600);

/// How long a closing connection waits for the peer to close too, and how much it reads meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_panicked_in_anothers_turn_is_not_asked_again() {
        let now = Instant::now();
        let link = Link::new(Connection::new(Role::Client, Config::default(), now), now);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _engine = link.engine();
            panic!("as an engine would");
        }));
        assert!(panicked.is_err());
        assert!(link.poisoned.get());
        assert!(!link.engine().can_open());
        assert!(link.engine().is_empty());
    }
}
