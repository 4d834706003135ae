//! What goes when more is held back than may be, or the process is short of memory: copies for further attempts, then what
//! stands still, of the client that holds most first, and of that what has for longest.

// Who goes first.
mod order;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use self::order::{Order, Young};
use super::{Key, Rpc, State, Step, step};
use crate::{
    data_plane::worker::Worker,
    snapshot::pressure::{Level, Pressure},
    telemetry::metrics::Limit,
};

/// More is held back than may be: copies for further attempts go, then streams and connections that stand still.
pub(crate) fn relieve(worker: &Rc<Worker>) {
    worker.search(|| {
        let has_copy = |rpc: &Rpc| {
            matches!(rpc.state, State::Open(_) | State::Relaying(_)) && rpc.can_forget()
        };
        let copies = worker.rpcs.borrow().keys_where(has_copy);
        for key in copies {
            step(worker, key, |rpc| {
                rpc.forget();
                Step::On
            });
        }
        let to_free = worker.memory.to_free();
        shed(worker, to_free, Duration::ZERO, BLOCKED, Young::Go)
    });
}

/// The process is short of memory: this worker's share of what is too much is freed, as far as streams and connections
/// hold it that stand still. What a client holds that can't be freed so yet is [`relieve`]'s to free, in a moment: no more
/// may be held then than is left.
pub(crate) fn shed_stalled(worker: &Rc<Worker>, pressure: Pressure) {
    let excess = usize::try_from(pressure.excess()).unwrap_or(usize::MAX);
    // One that waits for a moment moves on by itself, if there is time for that.
    let least = match pressure.level {
        Level::Calm | Level::Shedding | Level::Parting => STALLED,
        Level::Refusing | Level::Closed => BLOCKED,
    };
    let to_free = || worker.memory.share_of(excess);
    worker.search(|| shed(worker, to_free(), least, least, Young::Stay));
}

/// Frees so many bytes of what is stalled: streams, and connections as a whole; those that haven't been for so long are
/// `young`. Whether there was so much.
fn shed(
    worker: &Rc<Worker>,
    to_free: usize,
    streams: Duration,
    connections: Duration,
    young: Young,
) -> bool {
    if to_free == 0 {
        return true;
    }
    let now = worker.now();
    let mut order = Order::new(young);
    let is_young = |since, least| now.saturating_duration_since(since) < least;
    worker.rpcs.borrow().for_each(|key, rpc| {
        let client = rpc.client.holder().source();
        order.holds(client, rpc.holds());
        // A connection is there in a moment, mostly, and so is the rest of a request.
        let least = match rpc.state {
            State::Waiting(..) | State::Answering(..) => connections,
            _ => streams,
        };
        if let Some(since) = rpc.stalled() {
            order.add(client, is_young(since, least), since, Stalled::Rpc(key));
        }
    });
    for (id, connection) in &*worker.clients.borrow() {
        let client = connection.holder().source();
        order.holds(client, connection.held());
        if let Some(since) = connection.stalled() {
            let is_young = is_young(since, connections);
            order.add(client, is_young, since, Stalled::Client(*id));
        }
    }
    order.sort();
    let enough = worker.memory.held().saturating_sub(to_free);
    while worker.memory.held() > enough
        && let Some((client, what)) = order.next()
    {
        let before = worker.memory.held();
        match what {
            Stalled::Rpc(key) => shed_one(worker, key, Limit::Memory, now),
            Stalled::Client(id) => {
                let client = worker.clients.borrow().get(&id).cloned();
                if let Some(client) = client {
                    client.shed(worker, now);
                }
            }
        }
        order.freed(client, before.saturating_sub(worker.memory.held()));
    }
    worker.memory.held() <= enough
}

/// What this RPC holds is needed elsewhere, says `limit`.
pub(crate) fn shed_one(worker: &Rc<Worker>, key: Key, limit: Limit, now: Instant) {
    step(worker, key, |rpc| rpc.shed(worker, limit, now));
}

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stalled {
    Rpc(Key),
    /// A client's connection, by its number.
    Client(u64),
}

/// A stream that has waited for this long stands still.
const STALLED: Duration = Duration::from_secs(1);

/// So does, when there is no time, what has for this long: longer than a round trip.
const BLOCKED: Duration = Duration::from_millis(250);
