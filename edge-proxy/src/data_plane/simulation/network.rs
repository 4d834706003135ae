//! What lies between: lines that are slow, stall and break, each at its own pace.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::{Rc, Weak},
    time::Duration,
};

use rand::{RngExt as _, rngs::SmallRng};
use tokio::time::Instant;

use super::{
    super::{
        pipe::{Line, PipeEnd, pair},
        stage::{self, Connecting, Stage},
    },
    backend::{Backend, State},
    peer::drive,
    world::World,
};

/// All lines, and who may have new ones.
pub(super) struct Network {
    world: Rc<World>,
    pub(super) backends: Vec<Rc<Backend>>,
    stage: RefCell<Option<Rc<Stage>>>,
    lines: RefCell<Vec<Wire>>,
    own: Weak<Self>,
}

/// A line, and whose it is.
#[derive(Clone)]
struct Wire {
    whose: Whose,
    line: Line,
    /// It carries nothing until then.
    stalled: Rc<Cell<Instant>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Client(usize),
    Backend(usize),
}

/// How a line is: drawn for each.
struct Pace {
    /// Of ten parts, how many wait.
    waits: u32,
    longest: Duration,
    most: usize,
}

impl Network {
    pub(super) fn new(world: Rc<World>, backends: Vec<Rc<Backend>>) -> Rc<Self> {
        Rc::new_cyclic(|own| Self {
            world,
            backends,
            stage: RefCell::default(),
            lines: RefCell::default(),
            own: own.clone(),
        })
    }

    /// Whom clients reach; `None`: nobody any more.
    pub(super) fn serve(&self, stage: Option<Rc<Stage>>) {
        *self.stage.borrow_mut() = stage;
    }

    /// A client's connection to the proxy.
    pub(super) fn dial(&self, client: usize) -> PipeEnd {
        let (near, far) = self.line(Whose::Client(client));
        if let Some(stage) = &*self.stage.borrow() {
            let peer = SocketAddr::new(Ipv4Addr::new(10, 0, 0, client as u8).into(), 50_000);
            stage.accept(far, peer);
        }
        near
    }

    /// Cuts all connections of `whose` (or the one that is `only`), and says how many.
    pub(super) fn cut(&self, whose: Whose, only: Option<usize>, how: io::ErrorKind) -> usize {
        let wires = self.wires(whose);
        let chosen = wires.iter().enumerate();
        let mut cut = 0;
        for (index, wire) in chosen {
            if only.is_none_or(|only| only % wires.len() == index) {
                wire.line.cut(how);
                cut += 1;
            }
        }
        cut
    }

    /// They carry nothing for so long.
    pub(super) fn stall(&self, whose: Whose, long: Duration) {
        for wire in self.wires(whose) {
            wire.stalled.set(Instant::now() + long);
        }
    }

    fn wires(&self, whose: Whose) -> Vec<Wire> {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|wire| !wire.line.is_over());
        let own = lines.iter().filter(|wire| wire.whose == whose);
        own.cloned().collect()
    }

    fn line(&self, whose: Whose) -> (PipeEnd, PipeEnd) {
        let mut random = self.world.random();
        let capacity = [1_000, 16_000, 200_000][random.random_range(0..3)];
        let (near, far, line) = pair(capacity);
        let wire = Wire {
            whose,
            line,
            stalled: Rc::new(Cell::new(Instant::now())),
        };
        self.lines.borrow_mut().push(wire.clone());
        for lane in [0, 1] {
            let random = self.world.random();
            tokio::task::spawn_local(carry(self.world.clone(), wire.clone(), lane, random));
        }
        (near, far)
    }

    async fn connected(self: Rc<Self>, address: SocketAddr) -> io::Result<PipeEnd> {
        let backend = self
            .backends
            .iter()
            .find(|backend| backend.address() == address);
        let Some(backend) = backend.cloned() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let delay = Duration::from_millis(self.world.random().random_range(0..50));
        tokio::time::sleep(delay).await;
        match backend.state.get() {
            State::Up => {}
            State::Down => return Err(io::ErrorKind::ConnectionRefused.into()),
            State::Hole => return std::future::pending().await,
        }
        let (near, far) = self.line(Whose::Backend(backend.index));
        let peer = backend.peer();
        let world = self.world.clone();
        let served = drive(
            world.clone(),
            peer,
            far,
            move |peer, engine, stream, head, ended| {
                backend.accept(&world, peer, engine, stream, &head, ended);
            },
        );
        tokio::task::spawn_local(served);
        Ok(near)
    }
}

impl stage::Network for Network {
    fn connect(&self, address: SocketAddr) -> Connecting {
        match self.own.upgrade() {
            Some(own) => Box::pin(own.connected(address)),
            None => Box::pin(std::future::ready(Err(io::ErrorKind::NetworkDown.into()))),
        }
    }
}

/// Carries one lane of a line: parts of what was sent, each after a while.
async fn carry(world: Rc<World>, wire: Wire, lane: usize, mut random: SmallRng) {
    let pace = Pace {
        waits: random.random_range(0..10),
        longest: Duration::from_millis([2, 20, 100][random.random_range(0..3)]),
        most: [10, 100, 3_000, usize::MAX][random.random_range(0..20_usize).min(3)],
    };
    let mut carried = 0;
    while wire.line.laden(lane).await.is_some() {
        tokio::time::sleep_until(wire.stalled.get()).await;
        if random.random_range(0..10) < pace.waits {
            tokio::time::sleep(pace.longest.mul_f64(random.random())).await;
        }
        // The rest comes later, often with what follows it.
        let bytes = match pace.most {
            usize::MAX if random.random_bool(0.8) => usize::MAX,
            // Small parts long enough to meet every frame's edge, and not for megabytes.
            _ if carried > MANY_PARTS => usize::MAX,
            most => random.random_range(1..=most.min(20_000)),
        };
        wire.line.carry(lane, bytes, |part| {
            carried += part.len();
            world.hash(&(world.now().as_millis() as u64).to_le_bytes());
            world.hash(part);
        });
        tokio::task::yield_now().await;
    }
}

/// Bytes.
const MANY_PARTS: usize = 1_000;
