//! An honest end of a connection: an engine on a [`pipe`](super::super::pipe), and a box per stream for what arrives.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use http2::{Config, Connection, Event, Headers, Reason, Role};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    sync::Notify,
};

use super::{super::pipe::PipeEnd, now, world::World};

/// One end. Whoever changes something in the engine calls [`wake`](Self::wake).
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) engine: RefCell<Connection>,
    boxes: RefCell<BTreeMap<u32, Rc<Inbox>>>,
    wake: Notify,
    /// Something has changed for those that wait for a stream: SETTINGS, a stream that ended, the connection's end.
    changed: Notify,
    ready: Cell<bool>,
    /// The other end has sent a GOAWAY.
    leaving: Cell<bool>,
    over: Cell<bool>,
    close: Cell<Close>,
}

/// How an end wants to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    No,
    /// When no stream is left and everything is written.
    WhenEmpty,
    /// At once.
    Now,
}

/// What arrives for one stream.
#[derive(Default)]
pub(super) struct Inbox {
    events: RefCell<VecDeque<Got>>,
    more: Notify,
}

/// One thing that arrived.
#[derive(Debug)]
pub(super) enum Got {
    Head(Headers, bool),
    Data(Vec<u8>, bool),
    Trailers(Headers),
    Reset(Reason, bool),
    /// The connection has ended.
    Gone,
}

impl Peer {
    pub(super) fn new(name: String, role: Role, config: Config) -> Rc<Self> {
        Rc::new(Self {
            name,
            engine: RefCell::new(Connection::new(role, config, now())),
            boxes: RefCell::default(),
            wake: Notify::new(),
            changed: Notify::new(),
            ready: Cell::new(false),
            leaving: Cell::new(false),
            over: Cell::new(false),
            close: Cell::new(Close::No),
        })
    }

    /// A box for a stream that was opened.
    pub(super) fn stream(&self, stream: u32) -> Rc<Inbox> {
        let inbox = Rc::<Inbox>::default();
        self.boxes.borrow_mut().insert(stream, inbox.clone());
        inbox
    }

    /// Works on the engine, then has it flushed.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Connection) -> R) -> R {
        let result = work(&mut self.engine.borrow_mut());
        self.wake.notify_one();
        result
    }

    /// Whether streams can be opened here, now or later.
    pub(super) fn serves(&self) -> bool {
        !self.over.get() && !self.leaving.get() && self.close.get() == Close::No
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Waits until a stream can be opened; `false`: never here.
    pub(super) async fn room(&self) -> bool {
        loop {
            if !self.serves() {
                return false;
            }
            if self.ready.get() && self.engine.borrow().can_open() {
                return true;
            }
            self.changed.notified().await;
        }
    }

    pub(super) fn close_when_empty(&self) {
        self.set_close(Close::WhenEmpty);
    }

    pub(super) fn close_now(&self) {
        self.set_close(Close::Now);
    }

    fn set_close(&self, close: Close) {
        self.close.set(close);
        self.wake.notify_one();
        self.changed.notify_waiters();
    }

    /// What is here although nothing is under way.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let engine = self.engine.borrow();
        let windows = engine.windows();
        let counts = [
            ("streams", engine.stream_count() as i64),
            ("bytes queued", engine.pending_bytes() as i64),
            ("bytes of the window outstanding", windows.outstanding()),
        ];
        let found = counts.into_iter().filter(|(_, count)| *count != 0);
        found
            .map(|(what, count)| format!("{}: {what}: {count}", self.name))
            .collect()
    }

    fn put(&self, stream: u32, got: Got) {
        let last = matches!(got, Got::Reset(..) | Got::Trailers(_) | Got::Gone);
        let boxes = &mut *self.boxes.borrow_mut();
        if let Some(inbox) = boxes.get(&stream) {
            inbox.events.borrow_mut().push_back(got);
            inbox.more.notify_one();
        }
        if last {
            boxes.remove(&stream);
        }
    }
}

impl Inbox {
    pub(super) async fn next(&self) -> Got {
        loop {
            if let Some(got) = self.events.borrow_mut().pop_front() {
                return got;
            }
            self.more.notified().await;
        }
    }
}

/// What one look at the socket brought.
enum Look {
    Woken,
    Read(usize),
    Over,
}

/// Runs a connection until it ends. `accept` is told of every stream that the other end opened.
pub(super) async fn drive(
    world: Rc<World>,
    peer: Rc<Peer>,
    mut end: PipeEnd,
    mut accept: impl FnMut(&Rc<Peer>, &mut Connection, u32, Headers, bool),
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut writes = true;
    loop {
        let look = {
            let mut woken = pin!(peer.wake.notified());
            poll_fn(|cx| {
                let mut engine = peer.engine.borrow_mut();
                while writes {
                    engine.flush(now());
                    if engine.output().is_empty() {
                        break;
                    }
                    match Pin::new(&mut end).poll_write(cx, engine.output()) {
                        Poll::Ready(Ok(n)) => engine.consume(n),
                        Poll::Ready(Err(_)) => writes = false,
                        Poll::Pending => break,
                    }
                }
                while engine.take_sent().is_some() {}
                let done = engine.is_empty() && (engine.output().is_empty() || !writes);
                drop(engine);
                match peer.close.get() {
                    Close::Now => return Poll::Ready(Look::Over),
                    Close::WhenEmpty if done => return Poll::Ready(Look::Over),
                    Close::WhenEmpty | Close::No => {}
                }
                let mut into = ReadBuf::new(&mut buffer);
                match Pin::new(&mut end).poll_read(cx, &mut into) {
                    Poll::Ready(Ok(())) if into.filled().is_empty() => Poll::Ready(Look::Over),
                    Poll::Ready(Ok(())) => Poll::Ready(Look::Read(into.filled().len())),
                    Poll::Ready(Err(_)) => Poll::Ready(Look::Over),
                    Poll::Pending => woken.as_mut().poll(cx).map(|()| Look::Woken),
                }
            })
            .await
        };
        let mut input = match look {
            Look::Woken => continue,
            Look::Over => break,
            Look::Read(n) => &buffer[..n],
        };
        loop {
            let mut engine = peer.engine.borrow_mut();
            let event = match engine.receive(&mut input, now()) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    world.problem(format!("{}: the proxy broke a rule: {error}", peer.name));
                    break;
                }
            };
            let got = match event {
                Event::Headers {
                    stream,
                    headers,
                    end_stream,
                    ..
                } => {
                    let known = peer.boxes.borrow().contains_key(&stream);
                    if known {
                        Some((stream, Got::Head(headers, end_stream)))
                    } else {
                        accept(&peer, &mut engine, stream, headers, end_stream);
                        None
                    }
                }
                Event::Data {
                    stream,
                    bytes,
                    end_stream,
                    ..
                } => Some((stream, Got::Data(bytes.to_vec(), end_stream))),
                Event::Trailers {
                    stream, headers, ..
                } => Some((stream, Got::Trailers(headers))),
                Event::Reset {
                    stream,
                    reason,
                    unprocessed,
                    ..
                } => Some((stream, Got::Reset(reason, unprocessed))),
                Event::HeadersTooLarge { stream, .. } | Event::Malformed { stream, .. } => {
                    world.problem(format!("{}: bad headers on stream {stream}", peer.name));
                    None
                }
                Event::Refused { stream, why, .. } => {
                    world.problem(format!("{}: stream {stream} refused: {why:?}", peer.name));
                    None
                }
                Event::GoAway { reason, .. } => {
                    peer.leaving.set(true);
                    if reason != Reason::NO_ERROR {
                        world.problem(format!("{}: GOAWAY with {reason:?}", peer.name));
                    }
                    None
                }
                Event::Settings { .. } => {
                    peer.ready.set(true);
                    None
                }
                Event::Pong { .. } => {
                    // Only asked before a GOAWAY: the other end has seen that one is coming.
                    engine.shutdown(Reason::NO_ERROR);
                    None
                }
            };
            drop(engine);
            if let Some((stream, got)) = got {
                peer.put(stream, got);
            }
            peer.changed.notify_waiters();
        }
    }
    peer.over.set(true);
    let left = std::mem::take(&mut *peer.boxes.borrow_mut());
    for (_, inbox) in left {
        inbox.events.borrow_mut().push_back(Got::Gone);
        inbox.more.notify_one();
    }
    peer.changed.notify_waiters();
    world.note(format_args!("{} is over", peer.name));
}
