//! What goes when more is held back than may be, or the process is short of memory: copies for further attempts, then what
//! has stood still for longest.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Key, Rpc, State, Step, step};
use crate::{
    data_plane::worker::Worker,
    snapshot::pressure::{Level, Pressure},
    telemetry::metrics::Limit,
};

/// More is held back than may be: copies for further attempts go, then the streams that have been stalled for longest.
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
        shed(worker, worker.memory.to_free(), Duration::ZERO, BLOCKED)
    });
}

/// The process is short of memory: this worker's share of what is too much is freed, as far as streams and connections
/// hold it that stand still.
pub(crate) fn shed_stalled(worker: &Rc<Worker>, pressure: Pressure) {
    let excess = usize::try_from(pressure.excess()).unwrap_or(usize::MAX);
    // One that waits for a moment moves on by itself, if there is time for that.
    let least = match pressure.level {
        Level::Calm | Level::Shedding | Level::Parting => STALLED,
        Level::Refusing | Level::Closed => BLOCKED,
    };
    worker.search(|| shed(worker, worker.memory.share_of(excess), least, least));
}

/// Frees so many bytes of what has been stalled for longest: streams, and connections as a whole, that have been for so
/// long at least. Whether there was so much.
fn shed(worker: &Rc<Worker>, to_free: usize, streams: Duration, connections: Duration) -> bool {
    if to_free == 0 {
        return true;
    }
    let now = worker.now();
    let mut stalled = Vec::new();
    let is = |since: &Instant, least| now.saturating_duration_since(*since) >= least;
    worker.rpcs.borrow().for_each(|key, rpc| {
        // A connection is there in a moment, mostly, and so is the rest of a request.
        let least = match rpc.state {
            State::Waiting(..) | State::Answering(..) => connections,
            _ => streams,
        };
        let since = rpc.stalled().filter(|since| is(since, least));
        stalled.extend(since.map(|since| (since, Stalled::Rpc(key))));
    });
    for (id, client) in &*worker.clients.borrow() {
        let since = client.stalled().filter(|since| is(since, connections));
        stalled.extend(since.map(|since| (since, Stalled::Client(*id))));
    }
    stalled.sort_unstable();
    let enough = worker.memory.held().saturating_sub(to_free);
    for (_, what) in stalled {
        if worker.memory.held() <= enough {
            break;
        }
        match what {
            Stalled::Rpc(key) => shed_one(worker, key, Limit::Memory, now),
            Stalled::Client(id) => {
                let client = worker.clients.borrow().get(&id).cloned();
                if let Some(client) = client {
                    client.shed(worker, now);
                }
            }
        }
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
