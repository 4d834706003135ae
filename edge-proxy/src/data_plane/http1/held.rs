//! What a connection holds that waits for its client, and how that is given up.

use std::{rc::Rc, time::Instant};

use super::{Connection, Stage, io::Buffers};
use crate::{
    data_plane::{holder::Holder, rpc, wire::WORTHWHILE},
    telemetry::metrics::Limit,
};

impl Connection {
    /// Tells the worker's account what waits for the client: to take it, or to send the rest of what it began. Not what a
    /// request takes while it is answered: nothing could free that, and others would pay for it.
    pub(super) fn account(&self, buffers: Buffers) {
        let blocked = self.write_blocked.get().is_some();
        let (hyper, transport) = match self.stage.get() {
            Stage::First { begun: true } | Stage::Head(_) => (true, true),
            Stage::First { begun: false } | Stage::Idle(_) => (blocked, true),
            Stage::Busy => (blocked, blocked),
        };
        let counted = |counts, memory| if counts { memory } else { 0 };
        let held = counted(hyper, buffers.hyper) + counted(transport, buffers.transport);
        self.holds(buffers.ahead + held);
    }

    pub(super) fn holds(&self, memory: usize) {
        if self.shed.get() {
            return;
        }
        self.worker.memory.change(self.held.replace(memory), memory);
        if memory == 0 {
            self.holds_since.set(None);
        } else if self.holds_since.get().is_none() {
            self.holds_since.set(Some(self.worker.now()));
        }
    }

    /// Whom others share with.
    pub(crate) fn holder(&self) -> &Rc<Holder> {
        &self.holder
    }

    /// What waits for the client, and bytes of answers that wait for hyper.
    pub(crate) fn held(&self) -> usize {
        let exchanges = self.exchanges.borrow();
        let queued = exchanges.iter().map(|exchange| exchange.queued());
        self.held.get() + queued.sum::<usize>()
    }

    /// Since when it holds something that waits for the client.
    pub(crate) fn stalled(&self) -> Option<Instant> {
        let since = self.holds_since.get();
        since.filter(|_| self.held.get() >= WORTHWHILE)
    }

    /// What it holds is needed elsewhere: it ends, with its RPC.
    pub(crate) fn shed(&self, now: Instant) {
        self.worker.shard.limits(Limit::Memory).inc();
        let exchanges = self.exchanges.borrow();
        let keys: Vec<_> = exchanges.iter().filter_map(|e| e.key()).collect();
        drop(exchanges);
        for key in keys {
            rpc::shed_one(&self.worker, key, Limit::Memory, now);
        }
        // At once, or more would go than has to. So does the memory itself: its task's turn may be far behind those of many
        // that take more.
        self.holds(0);
        self.shed.set(true);
        drop(self.parts.take());
        self.wake();
    }
}
