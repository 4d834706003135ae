//! One HTTP/2 connection on a socket, either side: the order of work in one turn.
//!
//! Every connection is one task, and a turn of it is always the same five steps: read once and hand every event on, frame
//! and write everything that this (or another connection's turn) left to send, tell the other legs what went out, look at
//! deadlines if one is due, sleep. Deadlines come after reading and writing, since what keeps one may be there already
//! when a turn comes late. Writing once per turn is worth a factor of 2.6 over writing per reply; reading
//! once per turn, and no more than [`FRAMES_PER_TURN`], gives the other connections of the worker theirs.
//!
//! A read of 64 KiB holds hundreds of small RPCs. The turn that breaks off in the middle of it keeps the rest
//! ([`Unread`]) and goes on with that in its next turn, before it reads again. The connections that it left something
//! to flush for would write for each part of the read then, so they are woken by the first turn that ends without a
//! rest, its own or another's ([`Wakes`]): while nobody else has work, what one read brought still leaves in one write
//! per connection; when somebody has, nobody waits for the rest.
//!
//! A large message comes in pieces of 16 KiB, a TLS record or a frame each, a hundred small ones in a few reads, and a
//! worker with time to spare would pass on each by itself. So a turn that read a piece of something larger ([`PIECE`])
//! breaks off too, a few times at the most: the sockets are looked at once more, and what has come meanwhile leaves in
//! the same write. (A pause instead would bring still larger writes, and was tried: see the bench's README.)
//!
//! No step borrows two engines: an event leaves one, that borrow ends, then the event is applied to the other, whose
//! task is woken and flushes in a turn of its own.

// The engine, and the way to wake its task.
mod link;

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http2::{ConnectionError, Event, Sent};
use tokio::time::Sleep;

pub(crate) use self::link::{Link, WORTHWHILE, Wakes};
use super::{tls::Transport, worker::Worker};

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
    /// The deadline of this name passed: drop the socket, whatever is still to be written.
    TimedOut(&'static str),
    /// What it holds is needed elsewhere: the same.
    Shed,
    /// The endpoint that it leads to doesn't answer its checks: the same.
    Ejected,
    /// The engine panicked.
    Panic,
}

impl End {
    /// Whatever the output still holds.
    fn is_at_once(self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Shed | Self::Ejected)
    }
}

/// Runs a connection until it ends; then the owner tells its RPCs, and calls [`close`]. `early` is what was read before
/// HTTP/2 was certain.
pub(crate) fn run<'a, S: Side>(
    side: &'a S,
    worker: &'a Rc<Worker>,
    transport: &'a mut Transport,
    early: Vec<u8>,
) -> impl Future<Output = End> + 'a {
    // Not in an `async fn`, which would have room for `early` too.
    let mut unread = Unread {
        bytes: early,
        from: 0,
    };
    async move {
        let mut sleep = pin!(tokio::time::sleep_until(side.link().check_at.get().into()));
        let end = poll_fn(|cx| {
            let link = side.link();
            link.begin_turn(cx);
            let turn = catch_unwind(AssertUnwindSafe(|| {
                turn(side, worker, transport, &mut unread, sleep.as_mut(), cx)
            }));
            link.in_turn.set(false);
            let turn = turn.unwrap_or(Poll::Ready(End::Panic));
            // A turn that doesn't read its rest, since its peer doesn't read, sleeps until the peer does.
            let rest = !unread.is_empty() && !link.engine().overfull();
            let broke_off = turn.is_pending() && (rest || link.pieces.get() > 0);
            worker.wakes.end_turn(broke_off);
            turn
        })
        .await;
        let link = side.link();
        link.closed.set(true);
        worker.memory.change(link.held.replace(0), 0);
        end
    }
}

fn turn<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    transport: &mut Transport,
    unread: &mut Unread,
    sleep: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<End> {
    let link = side.link();
    if link.poisoned.get() {
        return Poll::Ready(End::Panic);
    }
    if link.given_up.get() {
        return Poll::Ready(End::Shed);
    }
    let now = worker.tick();
    // A client that makes us answer and doesn't read the answers is not read from either; one that only doesn't take data
    // is, for it may be waiting for us to read.
    let paused = link.engine().overfull();
    let mut next = Next::Woken;
    if !paused {
        match read(side, worker, transport, unread, now, cx) {
            Ok(Read::Piece) => return Poll::Pending,
            Ok(Read::All(rest)) => next = rest,
            Err(end) => return Poll::Ready(end),
        }
    }
    link.pieces.set(0);
    match settle(side, worker, now, || write(link, transport, now, cx)) {
        Ok(settled) => next = next.max(settled),
        Err(kind) => return Poll::Ready(End::Io(kind)),
    }
    if now >= link.check_at.get() {
        if catches_up(link, next, now) {
            next = Next::BehindOthers;
        } else if let Some(end) = deadlines(side, worker, now) {
            return Poll::Ready(end);
        } else if link.dirty.get() {
            match settle(side, worker, now, || write(link, transport, now, cx)) {
                Ok(settled) => next = next.max(settled),
                Err(kind) => return Poll::Ready(End::Io(kind)),
            }
        }
    }
    let kept = transport.incomplete() + transport.sealed();
    link.beside.set(unread.bytes().len() + kept);
    link.account(&worker.memory);
    if paused && !link.engine().overfull() {
        // Nothing has asked the socket to wake us for input: that is made up for as soon as there is room again.
        next = next.max(Next::Soon);
    }
    match side.after_turn(worker, now) {
        Some(end) if end.is_at_once() || link.engine().output().is_empty() => {
            return Poll::Ready(end);
        }
        Some(_) | None => {}
    }
    rest(link, next, sleep, cx);
    Poll::Pending
}

/// When a connection has its next turn, if nothing wakes it before: the later, the more there is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// When the socket, another connection or a deadline has something for it.
    Woken,
    /// At once.
    Soon,
    /// Behind all that are ready, and those too whose sockets have become ready meanwhile: the runtime would look at
    /// them only after 61 turns.
    BehindOthers,
}

/// How a turn's reading ended.
enum Read {
    /// With a piece of something larger: the turn ends here, and the next one is certain.
    Piece,
    /// With all that there was, or that a turn takes.
    All(Next),
}

/// 1. Reads once, or takes what the last turn left unread, and hands every event on.
fn read<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    transport: &mut Transport,
    unread: &mut Unread,
    now: Instant,
    cx: &mut Context<'_>,
) -> Result<Read, End> {
    let link = side.link();
    link.engine().allow(FRAMES_PER_TURN);
    let mut failed = None;
    let mut read = Poll::Ready(Ok(1));
    let from_socket = unread.is_empty();
    if from_socket {
        let mut opened = false;
        read = transport.poll_read(cx, &worker.scratch, |bytes| {
            opened = true;
            if failed.is_none() {
                // TLS gives what one read brought record by record.
                match feed(side, worker, bytes, now) {
                    Ok(rest) => unread.keep(rest),
                    Err(error) => failed = Some(error),
                }
            }
        });
        if let Poll::Ready(Ok(1..)) = read {
            link.heard.set(true);
        }
        if transport.incomplete() == 0 {
            link.incomplete_since.set(None);
        } else if opened || link.incomplete_since.get().is_none() {
            link.incomplete_since.set(Some(now));
        }
    } else {
        match feed(side, worker, unread.bytes(), now).map(<[u8]>::len) {
            Ok(rest) => unread.shrink_to(rest),
            Err(error) => failed = Some(error),
        }
    }
    link.beside.set(unread.bytes().len());
    if let Some(error) = failed {
        return Err(fail(link, transport, error, cx));
    }
    let n = match read {
        Poll::Ready(Ok(0)) => return Err(End::Eof),
        Poll::Ready(Ok(n)) => n,
        Poll::Ready(Err(error)) => return Err(End::Io(error.kind())),
        Poll::Pending => return Ok(Read::All(Next::Woken)),
    };
    if n == worker.scratch.borrow().len() || !unread.is_empty() {
        return Ok(Read::All(Next::BehindOthers));
    }
    if from_socket && n >= PIECE && link.pieces.get() < PIECES {
        link.pieces.set(link.pieces.get() + 1);
        // The next turn is certain: nobody needs to wake it.
        link.dirty.set(true);
        behind_others(cx);
        return Ok(Read::Piece);
    }
    // A short read has drained the socket, which wakes us for the next one: no turn to find that out.
    Ok(Read::All(if !from_socket || transport.is_readable(cx) {
        Next::Soon
    } else {
        Next::Woken
    }))
}

/// 2. Frames and writes; 3. tells the other legs what went out. Each round either moved bytes or was asked for by `wake`.
///
/// `write`: whether it took any of the output.
fn settle<S: Side, E>(
    side: &S,
    worker: &Rc<Worker>,
    now: Instant,
    mut write: impl FnMut() -> Result<bool, E>,
) -> Result<Next, E> {
    let link = side.link();
    for _ in 0..ROUNDS_PER_TURN {
        link.dirty.set(false);
        link.engine().flush(now);
        let wrote = write()?;
        loop {
            let sent = link.engine().take_sent();
            let Some(sent) = sent else { break };
            side.on_sent(worker, sent);
        }
        let again = link.dirty.get()
            || (wrote && link.write_blocked.get().is_none() && {
                let engine = link.engine();
                engine.pending_bytes() > 0 || engine.opens_waiting()
            });
        if !again {
            return Ok(Next::Woken);
        }
    }
    Ok(Next::BehindOthers)
}

/// 4. Deadlines, of which one is due.
fn deadlines<S: Side>(side: &S, worker: &Rc<Worker>, now: Instant) -> Option<End> {
    let check_at = &side.link().check_at;
    check_at.set(now + FAR);
    match side.check(worker, now) {
        Check::Until(at) => check_at.set(at.min(check_at.get())),
        Check::Close(end) => return Some(end),
    }
    None
}

/// Whether deadlines have to wait for another turn. One that is looked at late by [`LATE`] passed while this process got no
/// processor, and what keeps it may be anywhere in what the socket holds: so the runtime looks at the sockets once
/// more, and all that has come is read first, in [`CATCH_UP`] turns at the most.
fn catches_up(link: &Link, next: Next, now: Instant) -> bool {
    let late = now >= link.check_at.get() + LATE;
    let turns = link.put_off.get();
    let catches_up = late && (turns == 0 || turns < CATCH_UP && next != Next::Woken);
    link.put_off.set(if catches_up { turns + 1 } else { 0 });
    catches_up
}

/// 5. Sleeps until the next turn.
fn rest(link: &Link, next: Next, mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) {
    let check_at = link.check_at.get();
    if sleep.deadline() != check_at.into()
        && (check_at < sleep.deadline().into_std() || sleep.is_elapsed())
    {
        sleep.as_mut().reset(check_at.into());
    }
    if next == Next::BehindOthers {
        behind_others(cx);
    } else if sleep.poll(cx).is_ready() || next == Next::Soon || link.dirty.get() {
        cx.waker().wake_by_ref();
    }
}

/// See [`Next::BehindOthers`].
fn behind_others(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// A turn of a connection that has no socket: `input` is what was read, and what is to be written goes behind `output`.
/// No deadline is looked at. For [`exchange`](super::exchange).
pub(super) fn turn_in_memory<S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    input: &[u8],
    output: &mut Vec<u8>,
) -> Result<(), ConnectionError> {
    let link = side.link();
    link.in_turn.set(true);
    let now = worker.tick();
    link.engine().allow(usize::MAX);
    let fed = feed(side, worker, input, now).map(|_| ());
    let Ok(_) = settle(side, worker, now, || {
        let mut engine = link.engine();
        output.extend_from_slice(engine.output());
        let written = engine.output().len();
        engine.consume(written);
        Ok::<_, Infallible>(written > 0)
    });
    link.account(&worker.memory);
    side.after_turn(worker, now);
    link.in_turn.set(false);
    fed
}

/// What was read and belongs to the next turn, from a frame's head on.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    from: usize,
}

impl Unread {
    fn is_empty(&self) -> bool {
        self.from == self.bytes.len()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// All but the last `rest` bytes were used.
    fn shrink_to(&mut self, rest: usize) {
        self.from = self.bytes.len() - rest;
        if rest == 0 {
            // A quiet connection holds nothing.
            *self = Self::default();
        }
    }
}

/// Hands every event of `bytes` on; returns what the turn's frames left of them.
fn feed<'a, S: Side>(
    side: &S,
    worker: &Rc<Worker>,
    bytes: &'a [u8],
    now: Instant,
) -> Result<&'a [u8], ConnectionError> {
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
            None => return Ok(input),
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
        let unsent = transport.unsent();
        match transport.poll_write(cx, engine.output()) {
            Poll::Ready(Ok(n)) => {
                engine.consume(n);
                wrote = true;
                link.write_blocked.set(None);
            }
            Poll::Ready(Err(error)) => return Err(error.kind()),
            Poll::Pending => {
                let first = link.write_blocked.get().is_none();
                // A slow reader takes a batch of records in many parts.
                if first || transport.unsent() < unsent {
                    link.write_blocked.set(Some(now));
                }
                if first {
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
) -> End {
    let mut engine = link.engine();
    while !engine.output().is_empty() {
        match transport.poll_write(cx, engine.output()) {
            Poll::Ready(Ok(n)) => engine.consume(n),
            _ => break,
        }
    }
    End::Protocol(error)
}

/// Closes a connection so that the peer reads our last words: shut our half, then read until the peer has closed its
/// own. A socket that is dropped with unread bytes is reset, and a reset overtakes the GOAWAY. Where nobody listens any
/// more, dropping it is all there is to do.
pub(crate) async fn close<S: Side>(side: &S, transport: &mut Transport, end: End) {
    let link = side.link();
    if !matches!(end, End::Eof | End::Protocol(_) | End::Finished) {
        if link.write_blocked().is_some() {
            transport.discard();
        }
        return;
    }
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

/// How many frames of its peer's one turn takes; the read bounds their bytes.
const FRAMES_PER_TURN: usize = 100;

/// A read of so much that doesn't fill the scratch is a piece of something larger: more is likely to be on its way.
const PIECE: usize = 8 * 1024;

/// How many of them are read before they are passed on.
const PIECES: u8 = 4;

/// How often one turn may flush before the other connections of the worker have theirs.
const ROUNDS_PER_TURN: usize = 8;

/// So late a look at deadlines is nobody's doing but the machine's.
const LATE: Duration = Duration::from_secs(1);

/// Turns that read more than the kernel keeps of a socket's input (6 MiB, where nobody has raised `tcp_rmem`).
const CATCH_UP: u8 = 100;

/// "No deadline": far, but a moment that an `Instant` can name.
pub(crate) const FAR: Duration = Duration::from_secs(24 * 3600);

/// When nothing has moved for so long, a connection gives back what only busy times need. Most connections are quiet most of the
/// time, and a busy one is never quiet for so long.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// How long a closing connection waits for the peer to close too, and how much it reads meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests;
