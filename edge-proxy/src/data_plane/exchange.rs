//! The data path without sockets, TLS and tasks: bytes of a client and of backends in, bytes for them out.
//!
//! Everything between is what a worker runs: both engines, the steps of an RPC, filters, route, balance, counters, the
//! line in the access log. The same bytes take the same instructions each time, on any machine and beside any load, so
//! that `bench instructions` can tell a change of a few percent; nothing else calls this. Not here: `wire.rs`' turns,
//! but for their order of work, and deadlines.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use http2::ConnectionError;

use super::{
    access_log::{AccessLog, AccessLogConfig},
    downstream::Downstream,
    memory::{Account, Memory},
    upstream::Upstream,
    wire::turn_in_memory,
    worker::Worker,
};
use crate::{
    snapshot::{Hints, Snapshot},
    telemetry::metrics::Metrics,
};

/// A worker with one client's connection, and one connection to each endpoint of its snapshot.
pub struct Exchange {
    worker: Rc<Worker>,
    client: Rc<Downstream>,
    backends: Vec<Rc<Upstream>>,
    /// Ends with this value.
    _log: AccessLog,
}

impl Exchange {
    /// Serves `snapshot` to a client at `peer`.
    ///
    /// # Errors
    /// When the access log can't be written.
    pub fn new(
        snapshot: Arc<Snapshot>,
        log: &AccessLogConfig,
        peer: SocketAddr,
    ) -> io::Result<Self> {
        let log = AccessLog::start(log)?;
        let memory = Account::new(Memory::new(None, 1), 0);
        let shard = Metrics::new().shard();
        let hints = Arc::<Hints>::default();
        let worker = Worker::new(snapshot.clone(), shard, log.writer(), hints, memory);
        let now = worker.tick();
        let backends = snapshot.clusters.iter().flat_map(|cluster| {
            let attach = |endpoint: &Arc<crate::snapshot::Endpoint>| {
                worker.pool.attach(&worker, &endpoint.shared, cluster)
            };
            cluster.endpoints.iter().map(attach).collect::<Vec<_>>()
        });
        let backends = backends.collect();
        let policy = snapshot.listener.clone();
        let client = Rc::new(Downstream::new(&worker, peer, policy, now));
        Ok(Self {
            worker,
            client,
            backends,
            _log: log,
        })
    }

    /// How many backends there are: the endpoints of all clusters, in their order.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// A turn of the client's connection: `input` came from it, `output` gets what goes to it.
    ///
    /// # Errors
    /// When the client broke the protocol.
    pub fn client(&self, input: &[u8], output: &mut Vec<u8>) -> Result<(), ConnectionError> {
        turn_in_memory(&self.client, &self.worker, input, output)
    }

    /// A turn of the connection to the backend with this index: `input` came from it, `output` gets what goes to it. One
    /// that isn't there says nothing.
    ///
    /// # Errors
    /// When the backend broke the protocol.
    pub fn backend(
        &self,
        index: usize,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), ConnectionError> {
        match self.backends.get(index) {
            Some(backend) => turn_in_memory(backend, &self.worker, input, output),
            None => Ok(()),
        }
    }
}
