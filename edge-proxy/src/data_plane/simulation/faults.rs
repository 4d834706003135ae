//! What goes wrong in a run, and how it comes right again.

use std::{io, rc::Rc, time::Duration};

use http2::Reason;
use rand::{RngExt as _, rngs::SmallRng};

use super::{
    CONNECT, Simulation,
    backend::{Backend, State},
    network::Whose,
    shared,
    world::What,
};

impl Simulation {
    /// What goes wrong, one thing after the other, some of them at the same time.
    pub(super) async fn go_wrong(&mut self, random: &mut SmallRng, clients: usize, span: Duration) {
        let faults = random.random_range(0..12);
        let mut at: Vec<_> = (0..faults).map(|_| span.mul_f64(random.random())).collect();
        at.sort_unstable();
        for at in at {
            tokio::time::sleep(at.saturating_sub(self.world.now())).await;
            self.fault(random, clients);
        }
        tokio::time::sleep(span.saturating_sub(self.world.now())).await;
    }

    fn fault(&mut self, random: &mut SmallRng, clients: usize) {
        let client = random.random_range(0..clients);
        let at = random.random_range(0..self.network.backends.len());
        let backend = self.network.backends[at].clone();
        let long = Duration::from_millis(random.random_range(100..8_000));
        let one = Some(random.random_range(0..8_usize));
        let reset = io::ErrorKind::ConnectionReset;
        let peers = backend.peers.borrow().clone();
        match random.random_range(0..13) {
            0 => {
                self.world.fault(What::ClientCut(client), SHORT);
                self.network.cut(Whose::Client(client), one, reset);
            }
            1 => {
                self.world.fault(What::ClientStall(client), long);
                self.network.stall(Whose::Client(client), long);
            }
            2 => {
                self.world.fault(What::Lost(at), SHORT);
                self.network.cut(Whose::Backend(at), one, reset);
            }
            3 => {
                self.world.fault(What::Unreachable(at), long + CONNECT);
                self.network.stall(Whose::Backend(at), long);
            }
            4 => {
                // A crash; it comes back.
                self.world.fault(What::Lost(at), SHORT);
                self.world.fault(What::Unreachable(at), long + CONNECT);
                self.network.cut(Whose::Backend(at), None, reset);
                self.later(backend, State::Down, long);
            }
            5 => {
                self.world.fault(What::Unreachable(at), long + CONNECT);
                self.later(backend, State::Hole, long);
            }
            6 | 7 => {
                // A rollout, as servers do it.
                self.world.fault(What::Leaving(at), LEAVES);
                for peer in peers {
                    peer.with(|engine| {
                        engine.shutdown_notice();
                        engine.ping(1);
                    });
                }
            }
            8 => {
                // Without a notice, and closed behind the last stream.
                self.world.fault(What::Leaving(at), LEAVES);
                self.world.fault(What::Lost(at), LEAVES);
                for peer in peers {
                    peer.with(|engine| engine.shutdown(Reason::NO_ERROR));
                    peer.close_when_empty();
                }
            }
            9 => {
                self.world.fault(What::Leaving(at), LEAVES);
                self.world.fault(What::Lost(at), LEAVES);
                for peer in peers {
                    peer.with(|engine| engine.shutdown(Reason::NO_ERROR));
                    peer.close_now();
                }
            }
            10 => {
                // Its address leaves, and comes back as another endpoint.
                let known = &mut self.endpoints[at];
                known.present = !known.present;
                if known.present {
                    self.next_id += 1;
                    known.shared = shared(&backend, self.next_id);
                }
                self.world.fault(What::Unreachable(at), SHORT);
                self.publish();
            }
            11 => {
                self.endpoints[at].healthy = !self.endpoints[at].healthy;
                self.publish();
            }
            _ => {
                // Its checks time out: what runs there is cut.
                self.world.fault(What::Lost(at), SHORT);
                self.endpoints[at].close = true;
                self.endpoints[at].healthy = false;
                self.publish();
                self.endpoints[at].close = false;
            }
        }
    }

    /// `backend` is so for a while.
    fn later(&self, backend: Rc<Backend>, state: State, long: Duration) {
        backend.state.set(state);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(long).await;
            backend.state.set(State::Up);
        });
    }

    pub(super) fn heal(&mut self) {
        self.world.note(format_args!("heal"));
        for (at, backend) in self.network.backends.iter().enumerate() {
            backend.state.set(State::Up);
            let known = &mut self.endpoints[at];
            if !known.present {
                self.next_id += 1;
                known.shared = shared(backend, self.next_id);
            }
            (known.present, known.healthy) = (true, true);
        }
        self.publish();
    }
}

/// A cut is felt at once.
const SHORT: Duration = Duration::from_millis(100);
/// A connection that leaves is known to leave when the GOAWAY has come.
const LEAVES: Duration = Duration::from_secs(10);
