//! A client: one connection at a time, as gRPC's libraries have it, and a task per RPC that follows the plan.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use http2::{Config, Reason, Role};

use super::{
    super::testing::headers,
    backend::pause,
    network::Network,
    now,
    peer::{Got, Inbox, Peer, drive},
    world::{Ending, Plan, World, messages},
};

/// Who calls.
pub(super) struct Client {
    pub(super) index: usize,
    pub(super) current: RefCell<Option<Rc<Peer>>>,
    config: Config,
    connections: Cell<usize>,
}

/// How one try of an RPC ended.
enum Try {
    Ended(Ending),
    /// The proxy has proven that it did nothing with it: the client tries again, as libraries do.
    Refused,
}

impl Client {
    pub(super) fn new(index: usize, config: Config) -> Rc<Self> {
        Rc::new(Self {
            index,
            current: RefCell::default(),
            config,
            connections: Cell::new(0),
        })
    }

    /// The connection for a new RPC.
    fn connection(&self, world: &Rc<World>, network: &Rc<Network>) -> Option<Rc<Peer>> {
        let mut current = self.current.borrow_mut();
        if let Some(peer) = &*current {
            if peer.serves() {
                return Some(peer.clone());
            }
            // What runs there may go on.
            peer.close_when_empty();
        }
        if world.shut.get() {
            return None;
        }
        let number = self.connections.replace(self.connections.get() + 1);
        let name = format!("client {}, connection {number}", self.index);
        let peer = Peer::new(name, Role::Client, self.config);
        let end = network.dial(self.index);
        let nobody = |_: &Rc<Peer>, _: &mut _, _, _, _| {};
        tokio::task::spawn_local(drive(world.clone(), peer.clone(), end, nobody));
        *current = Some(peer.clone());
        Some(peer)
    }
}

/// Makes an RPC, whatever that takes.
pub(super) async fn call(world: Rc<World>, network: Rc<Network>, client: Rc<Client>, id: usize) {
    let plan = world.plan(id);
    tokio::time::sleep(plan.at).await;
    world.begun(id);
    let random = RefCell::new(world.random());
    let calls = async {
        loop {
            let Some(peer) = client.connection(&world, &network) else {
                return Ending::NoConnection;
            };
            if !peer.room().await {
                if peer.is_over() && world.now() > plan.at + PATIENCE {
                    return Ending::Gone;
                }
                continue;
            }
            match attempt(&world, &peer, &plan, id, &random).await {
                Try::Ended(ending) => return ending,
                Try::Refused => world.note(format_args!("rpc {id} goes to another connection")),
            }
        }
    };
    let ending = match plan.cancel {
        None => calls.await,
        Some(after) => tokio::select! {
            biased;
            ending = calls => ending,
            () = tokio::time::sleep(after) => Ending::Cancelled,
        },
    };
    world.ended(id, ending);
}

/// A stream, until its end.
async fn attempt(
    world: &Rc<World>,
    peer: &Rc<Peer>,
    plan: &Plan,
    id: usize,
    random: &RefCell<rand::rngs::SmallRng>,
) -> Try {
    let number = id.to_string();
    let mut head = headers(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/api.Simulated/Call"),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-rpc", &number),
    ]);
    if let Some(deadline) = plan.deadline {
        let value = format!("{}m", deadline.as_millis());
        head.push(b"grpc-timeout", value.as_bytes());
    }
    let opened = peer.with(|engine| engine.open(head, plan.request.is_empty(), 0));
    let Ok(stream) = opened else {
        return Try::Refused;
    };
    let inbox = peer.stream(stream);
    let abandoned = Abandoned {
        peer,
        stream,
        over: Cell::new(false),
    };
    let upload = async {
        let mut messages = messages(id, &plan.request).into_iter().peekable();
        while let Some(message) = messages.next() {
            let last = messages.peek().is_none();
            peer.with(|engine| engine.send_data(stream, &message, last, now()));
            if !last {
                pause(random, plan.request_gap).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        ended = download(world, peer, plan, id, stream, &inbox) => ended,
        () = upload => Try::Refused,
    };
    abandoned.over.set(true);
    ended
}

async fn download(
    world: &Rc<World>,
    peer: &Rc<Peer>,
    plan: &Plan,
    id: usize,
    stream: u32,
    inbox: &Rc<Inbox>,
) -> Try {
    let wanted = messages(id, &plan.response).concat();
    let mut at = 0;
    let mut headed = false;
    loop {
        let ending = match inbox.next().await {
            Got::Head(head, end) => {
                headed = true;
                end.then_some(head)
            }
            Got::Trailers(trailers) => Some(trailers),
            Got::Data(bytes, end) => {
                if wanted.get(at..at + bytes.len()) != Some(&bytes) {
                    world.problem(format!("rpc {id}: its response is garbled at {at}"));
                }
                at += bytes.len();
                if end {
                    world.problem(format!("rpc {id}: a response without trailers"));
                }
                tokio::time::sleep(plan.client_reads).await;
                peer.with(|engine| engine.credit(stream, bytes.len()));
                None
            }
            Got::Reset(_, true) => return Try::Refused,
            Got::Reset(Reason::REFUSED_STREAM, _) if !headed => return Try::Refused,
            Got::Reset(reason, _) => return Try::Ended(Ending::Reset(reason)),
            Got::Gone => return Try::Ended(Ending::Gone),
        };
        if let Some(trailers) = ending {
            let text = |name: &[u8]| {
                String::from_utf8_lossy(trailers.get(name).unwrap_or_default()).into_owned()
            };
            let status = text(b"grpc-status").parse().unwrap_or(u32::MAX);
            if status == 0 && at != wanted.len() {
                world.problem(format!(
                    "rpc {id}: status 0 with {at} bytes of {}",
                    wanted.len()
                ));
            }
            return Try::Ended(Ending::Status(status, text(b"grpc-message")));
        }
    }
}

/// Resets its stream unless that is over.
struct Abandoned<'a> {
    peer: &'a Rc<Peer>,
    stream: u32,
    over: Cell<bool>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if !self.over.get() {
            self.peer
                .with(|engine| engine.reset(self.stream, Reason::CANCEL));
        }
    }
}

/// For how long a client tries to get a connection.
const PATIENCE: Duration = Duration::from_secs(60);
