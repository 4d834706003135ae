//! The real services, as replicas on addresses and with host names of their own, as pods of a Deployment have.

use std::net::SocketAddr;

use grpc_service::{Builder, Drain, Shutdown, StartError};
use tokio::task::JoinHandle;

use crate::loopback;

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `api.Echo`.
    Echo,
    /// `api.Reverse`.
    Reverse,
}

/// One running replica. It ends, abruptly, with this value.
#[derive(Debug)]
pub struct Replica {
    address: SocketAddr,
    hostname: String,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl Kind {
    /// The name of its Deployment, its Service and its cluster.
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo-grpc",
            Self::Reverse => "reverse-grpc",
        }
    }

    /// The name of its gRPC service.
    pub fn service(self) -> &'static str {
        match self {
            Self::Echo => "api.Echo",
            Self::Reverse => "api.Reverse",
        }
    }

    fn server(self) -> Builder {
        match self {
            Self::Echo => echo_grpc::server(),
            Self::Reverse => reverse_grpc::server(),
        }
    }
}

impl Replica {
    /// Starts a replica of `kind` at `address`, which calls itself `hostname`. After [`stop`](Self::stop) it accepts
    /// and finishes as long as `drain` says.
    ///
    /// # Errors
    /// When the port can't be had.
    pub async fn start_at(
        kind: Kind,
        address: SocketAddr,
        hostname: &str,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let server = kind
            .server()
            .hostname(hostname)
            .drain(drain)
            .bind(address)
            .await?;
        let (address, shutdown) = (server.local_addr(), server.shutdown());
        let serving = tokio::spawn(server.serve());
        Ok(Self {
            address,
            hostname: hostname.to_owned(),
            shutdown,
            serving,
        })
    }

    /// Starts `count` replicas that share a port, named as pods are: `echo-grpc-1`, `echo-grpc-2`…
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn group(kind: Kind, count: usize) -> Vec<Self> {
        let addresses = loopback::group(count).expect("the kernel has a free port");
        let mut replicas = Vec::new();
        for (number, address) in addresses.into_iter().enumerate() {
            let hostname = format!("{}-{}", kind.name(), number + 1);
            let started = Self::start_at(kind, address, &hostname, Drain::default()).await;
            replicas.push(started.unwrap_or_else(|error| panic!("{hostname}: {error}")));
        }
        replicas
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it calls itself.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// As SIGTERM: NOT_SERVING, accepts for a while, GOAWAY, finishes what runs.
    pub fn stop(&self) {
        self.shutdown.drain();
    }

    /// As SIGKILL.
    pub fn kill(&self) {
        self.shutdown.kill();
    }

    /// Waits for its end.
    pub async fn ended(mut self) {
        // A panic in it is reported by its own thread.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}
