//! A connection's engine as everything on its worker reaches it: other connections' turns leave bytes in it and wake its
//! task. One whose code panicked is not asked again.

use std::{
    cell::{Cell, RefCell, RefMut},
    ops::{Deref, DerefMut},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use http2::{Config, Connection, Headers, Reason, Role};

use crate::data_plane::memory::Account;

/// A connection's engine, as everything on the worker reaches it, and the way to wake its task.
pub(crate) struct Link {
    engine: RefCell<Connection>,
    pub(super) waker: RefCell<Option<Waker>>,
    /// Something is to be flushed: set by [`wake`](Self::wake), cleared by the task before it flushes.
    pub(super) dirty: Cell<bool>,
    /// The task is in its turn and will look at `dirty` before it ends.
    pub(super) in_turn: Cell<bool>,
    /// A panic unwound through the engine: its state can't be trusted, the connection ends.
    pub(super) poisoned: Cell<bool>,
    /// The next moment at which [`Side::check`](super::Side::check) wants to be called.
    pub(super) check_at: Cell<Instant>,
    /// Since when the socket has taken nothing of what waits for it.
    pub(super) write_blocked: Cell<Option<Instant>>,
    /// Bytes of any kind came since [`take_heard`](Self::take_heard) was last asked.
    pub(super) heard: Cell<bool>,
    /// Since when a TLS record is incomplete, none having been completed meanwhile.
    pub(super) incomplete_since: Cell<Option<Instant>>,
    /// Bytes that the worker's account has of this connection: queued, in its buffers, and unread.
    pub(super) held: Cell<usize>,
    /// What it holds is needed elsewhere: it ends with its next turn.
    pub(super) given_up: Cell<bool>,
    /// Bytes beside the engine: that were read and are left for the next turn, and what the transport keeps.
    pub(super) beside: Cell<usize>,
    /// Turns in a row that broke off after a [`PIECE`](super::PIECE).
    pub(super) pieces: Cell<u8>,
    /// Turns in a row that put off a look at deadlines which came late.
    pub(super) put_off: Cell<u8>,
    wakes: Rc<Wakes>,
    /// The task has ended: whatever is still said to the engine leads nowhere.
    pub(super) closed: Cell<bool>,
}

/// Collects the wake-ups of one turn, so that a connection whose turn broke off isn't overtaken by writes for each part
/// of what it read.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    /// A connection is in its turn.
    collecting: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Mutable access to an engine that notices a panic.
pub(crate) struct EngineGuard<'a> {
    engine: RefMut<'a, Connection>,
    link: &'a Link,
}

impl Link {
    /// `wakes`: those of the connection's worker.
    pub(crate) fn new(engine: Connection, wakes: Rc<Wakes>, now: Instant) -> Self {
        Self {
            engine: RefCell::new(engine),
            waker: RefCell::new(None),
            dirty: Cell::new(true),
            in_turn: Cell::new(false),
            poisoned: Cell::new(false),
            check_at: Cell::new(now),
            write_blocked: Cell::new(None),
            heard: Cell::new(false),
            incomplete_since: Cell::new(None),
            held: Cell::new(0),
            given_up: Cell::new(false),
            beside: Cell::new(0),
            pieces: Cell::new(0),
            put_off: Cell::new(0),
            wakes,
            closed: Cell::new(false),
        }
    }

    /// The engine, for the length of one call. Whoever leaves something to send calls [`wake`](Self::wake) too.
    #[inline]
    pub(crate) fn engine(&self) -> EngineGuard<'_> {
        EngineGuard {
            engine: self.engine.borrow_mut(),
            link: self,
        }
    }

    /// DATA; returns what was framed at once.
    pub(crate) fn send_data(
        &self,
        stream: u32,
        bytes: &[u8],
        end_stream: bool,
        now: Instant,
    ) -> usize {
        let framed = self.engine().send_data(stream, bytes, end_stream, now);
        self.wake();
        framed
    }

    /// Trailers.
    pub(crate) fn send_trailers(&self, stream: u32, trailers: &Headers) {
        self.engine().send_trailers(stream, trailers);
        self.wake();
    }

    /// DATA of the peer's went on to the other leg, or is of no interest any more.
    pub(crate) fn credit(&self, stream: u32, bytes: usize) {
        self.engine().credit(stream, bytes);
        self.wake();
    }

    /// Since when bytes of this stream wait.
    pub(crate) fn blocked(&self, stream: u32) -> Option<Instant> {
        self.engine().blocked(stream)
    }

    /// Since when bytes of this stream wait for a window that its peer keeps shut.
    pub(crate) fn window_shut(&self, stream: u32) -> Option<Instant> {
        self.engine().window_shut(stream)
    }

    /// There is something to flush.
    pub(crate) fn wake(&self) {
        if !self.dirty.replace(true) && !self.in_turn.get() {
            self.wake_task();
        }
    }

    /// Calls [`Side::check`](super::Side::check) at `at`, or earlier if it is due earlier.
    pub(crate) fn check_by(&self, at: Instant) {
        if at < self.check_at.get() {
            self.check_at.set(at);
            if !self.in_turn.get() {
                self.wake_task();
            }
        }
    }

    /// Since when the socket has taken nothing of what waits for it.
    pub(crate) fn write_blocked(&self) -> Option<Instant> {
        self.write_blocked.get()
    }

    /// Whether the peer gave a sign of life in the turn that ends: any byte is one. The answer to a PING may be long in
    /// coming from a slow reader, since the PING stands behind what is in the output, in TLS and in the kernel's buffers;
    /// windows that it gives back meanwhile, or data, come earlier.
    #[inline]
    pub(crate) fn take_heard(&self) -> bool {
        self.heard.replace(false)
    }

    /// The turn that ends only puts off a look at deadlines that comes late.
    pub(crate) fn puts_off(&self) -> bool {
        self.put_off.get() > 0
    }

    /// Whether the connection's task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Tells the worker's account what is held back here: after each turn, and when streams were reset outside of one.
    pub(crate) fn account(&self, memory: &Account) {
        let held = if self.given_up.get() {
            0
        } else {
            let engine = self.engine();
            engine.pending_bytes() + engine.buffered() + self.beside.get()
        };
        memory.change(self.held.replace(held), held);
    }

    /// What the worker's account has of it.
    pub(crate) fn held(&self) -> usize {
        self.held.get()
    }

    /// Since when the connection itself stands still, whatever its streams do, and holds something: its peer takes nothing,
    /// or owes the rest of what it began.
    pub(crate) fn stalled(&self) -> Option<Instant> {
        if self.held.get() < WORTHWHILE {
            return None;
        }
        let block = self.engine().header_block_since();
        let all = [self.write_blocked.get(), self.incomplete_since.get(), block];
        all.into_iter().flatten().min()
    }

    /// Ends the connection with its next turn, which is soon. What it holds counts no more.
    pub(crate) fn give_up(&self, memory: &Account) {
        self.given_up.set(true);
        self.account(memory);
        self.dirty.set(true);
        self.wake_task();
    }

    fn wake_task(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            self.wakes.wake(waker);
        }
    }

    pub(super) fn begin_turn(&self, cx: &Context<'_>) {
        self.in_turn.set(true);
        self.wakes.collecting.set(true);
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }
}

impl Wakes {
    /// At the end of the turn that runs, or at once if none does.
    fn wake(&self, waker: &Waker) {
        if self.collecting.get() {
            self.waiting.borrow_mut().push(waker.clone());
        } else {
            waker.wake_by_ref();
        }
    }

    /// The turn has ended. One that broke off is certain to have another: what it woke may wait until then.
    pub(super) fn end_turn(&self, broke_off: bool) {
        self.collecting.set(false);
        if !broke_off {
            for waker in self.waiting.borrow_mut().drain(..) {
                waker.wake();
            }
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
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.poison();
        }
    }
}

impl EngineGuard<'_> {
    #[cold]
    fn poison(&mut self) {
        // Nobody may ask what is left of it: one that has ended takes its place, which ignores everything.
        let mut ended = Connection::new(Role::Client, Config::default(), self.link.check_at.get());
        ended.close(Reason::INTERNAL_ERROR);
        *self.engine = ended;
        self.link.poisoned.set(true);
        self.link.wake_task();
    }
}

/// Of a connection that holds less it isn't worth having its peer come again.
pub(crate) const WORTHWHILE: usize = 4 * 1024;
