//! A backend: connections, and a handler per RPC that follows the plan.

use std::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use http2::{Config, Connection, Headers, Reason, Role};
use rand::{RngExt as _, rngs::SmallRng};

use super::{
    super::testing::headers,
    now,
    peer::{Got, Inbox, Peer},
    world::{ANSWERED, Answer, Plan, World, messages},
};

/// One address, and who serves there.
pub(super) struct Backend {
    pub(super) index: usize,
    pub(super) state: Cell<State>,
    pub(super) peers: RefCell<Vec<Rc<Peer>>>,
    config: Config,
    connections: Cell<usize>,
}

/// What becomes of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    /// They are refused.
    Down,
    /// They are never answered.
    Hole,
}

impl Backend {
    pub(super) fn new(index: usize, config: Config) -> Self {
        Self {
            index,
            state: Cell::new(State::Up),
            peers: RefCell::default(),
            config,
            connections: Cell::new(0),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8000 + self.index as u16)
    }

    /// A new connection's end.
    pub(super) fn peer(&self) -> Rc<Peer> {
        let number = self.connections.replace(self.connections.get() + 1);
        let name = format!("backend {}, connection {number}", self.index);
        let peer = Peer::new(name, Role::Server, self.config);
        let mut peers = self.peers.borrow_mut();
        peers.retain(|peer| !peer.is_over());
        peers.push(peer.clone());
        peer
    }

    /// A request has come.
    pub(super) fn accept(
        &self,
        world: &Rc<World>,
        peer: &Rc<Peer>,
        engine: &mut Connection,
        stream: u32,
        head: &Headers,
        ended: bool,
    ) {
        let id = head
            .get(b"x-rpc")
            .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let Some(id) = id else {
            return world.problem(format!("{}: a request without its number", peer.name));
        };
        let refused = {
            let mut rpcs = world.rpcs.borrow_mut();
            let rpc: &mut super::world::Rpc = &mut rpcs[id];
            let refused = rpc.refusals < rpc.plan.refusals;
            rpc.refusals += usize::from(refused);
            refused
        };
        if refused {
            world.note(format_args!(
                "rpc {id} is refused by backend {}",
                self.index
            ));
            engine.reset(stream, Reason::REFUSED_STREAM);
            return;
        }
        let execution = world.executed(id, self.index);
        let inbox = peer.stream(stream);
        let handler = Handler {
            world: world.clone(),
            peer: peer.clone(),
            stream,
            id,
            plan: world.plan(id),
            inbox,
            cut: Cell::new(false),
            read: Cell::new(ended),
            answered: Cell::new(false),
        };
        world.handlers.set(world.handlers.get() + 1);
        let random = RefCell::new(world.random());
        tokio::task::spawn_local(async move {
            let how = handler.run(&random).await;
            handler.world.execution_ended(id, execution, how);
            handler.world.handlers.set(handler.world.handlers.get() - 1);
        });
    }
}

/// One RPC, as its backend serves it.
struct Handler {
    world: Rc<World>,
    peer: Rc<Peer>,
    stream: u32,
    id: usize,
    plan: Plan,
    inbox: Rc<Inbox>,
    /// The stream is gone.
    cut: Cell<bool>,
    /// The request has ended.
    read: Cell<bool>,
    /// All of the response was said.
    answered: Cell<bool>,
}

impl Handler {
    async fn run(&self, random: &RefCell<SmallRng>) -> &'static str {
        match self.plan.answer {
            Answer::Unary => {
                self.read(true).await;
                self.respond(random).await;
            }
            Answer::Stream => {
                tokio::join!(biased; self.read(true), self.respond(random));
            }
            Answer::Early => {
                // Nobody takes the request: the proxy has to end it, since the client doesn't want to.
                tokio::join!(biased; self.respond(random), self.read(false));
            }
            Answer::Hang => {
                self.read(true).await;
                while !self.cut.get() {
                    self.next().await;
                }
            }
            Answer::Status(status) => {
                pause(random, self.plan.response_gap).await;
                let status = status.to_string();
                let head = headers(&[
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", &status),
                ]);
                self.peer
                    .with(|engine| engine.send_headers(self.stream, &head, true));
                self.answered.set(true);
            }
            Answer::ResetBefore | Answer::ResetAfter => {
                if self.plan.answer == Answer::ResetAfter {
                    self.head();
                    if let Some(first) = messages(self.id, &self.plan.response).first() {
                        self.send(first);
                    }
                }
                pause(random, self.plan.response_gap).await;
                self.peer
                    .with(|engine| engine.reset(self.stream, Reason::INTERNAL_ERROR));
                return "reset";
            }
        }
        if self.answered.get() { ANSWERED } else { "cut" }
    }

    /// Reads the request to its end; with `take`, gives credit for it, and looks whether it is what was sent.
    async fn read(&self, take: bool) {
        let sent = messages(self.id, &self.plan.request).concat();
        let mut at = 0;
        while !self.read.get() && !self.cut.get() {
            let Some(bytes) = self.next().await else {
                continue;
            };
            if !take {
                continue;
            }
            if sent.get(at..at + bytes.len()) != Some(&bytes) {
                self.world
                    .problem(format!("rpc {}: its request is garbled at {at}", self.id));
            }
            at += bytes.len();
            tokio::time::sleep(self.plan.backend_reads).await;
            self.peer
                .with(|engine| engine.credit(self.stream, bytes.len()));
        }
        if take && !self.cut.get() && at != sent.len() {
            self.world.problem(format!(
                "rpc {}: its request has {at} bytes of {}",
                self.id,
                sent.len()
            ));
        }
    }

    async fn next(&self) -> Option<Vec<u8>> {
        match self.inbox.next().await {
            Got::Data(bytes, end) => {
                self.read.set(self.read.get() || end);
                Some(bytes)
            }
            Got::Trailers(_) => {
                self.read.set(true);
                None
            }
            Got::Reset(..) | Got::Gone => {
                self.cut.set(true);
                None
            }
            Got::Head(..) => None,
        }
    }

    fn head(&self) {
        let head = headers(&[(":status", "200"), ("content-type", "application/grpc")]);
        self.peer
            .with(|engine| engine.send_headers(self.stream, &head, false));
    }

    fn send(&self, message: &[u8]) {
        self.peer
            .with(|engine| engine.send_data(self.stream, message, false, now()));
    }

    async fn respond(&self, random: &RefCell<SmallRng>) {
        if self.cut.get() {
            return;
        }
        self.head();
        for message in messages(self.id, &self.plan.response) {
            pause(random, self.plan.response_gap).await;
            if self.cut.get() {
                return;
            }
            self.send(&message);
        }
        let trailers = headers(&[("grpc-status", "0")]);
        self.peer
            .with(|engine| engine.send_trailers(self.stream, &trailers));
        self.answered.set(true);
    }
}

/// Up to twice as long as on average; nothing, if that is nothing.
pub(super) async fn pause(random: &RefCell<SmallRng>, average: Duration) {
    if !average.is_zero() {
        let long = average.mul_f64(random.borrow_mut().random_range(0.0..2.0));
        tokio::time::sleep(long).await;
    }
}
