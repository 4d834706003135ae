//! The harness of the end-to-end tests, and of `local-stack`: everything around the proxy, in one process.
//!
//! A story (one module of `e2e/`) is three lines of set-up and one behaviour:
//!
//! ```no_run
//! # async fn story() {
//! use e2e::{backend::Backend, proxy::Proxy};
//!
//! let backend = Backend::start().await;
//! let proxy = Proxy::to([&backend]).start().await;
//! let reply = proxy.test_client().await.unary(e2e::payload("hello")).await;
//! # }
//! ```
//!
//! Nothing here sleeps to wait: what a test waits for is an event (a journal's entry, a connection's end), or a
//! condition that [`eventually`](wait::eventually) asks for again and again until a generous deadline. Every address
//! is of a loopback network that belongs to the test's process, every port is chosen by the kernel, so tests run in
//! parallel, and next to other copies of themselves.

/// Waiting for what has no event of its own.
pub mod wait;

/// Loopback addresses that nobody else uses.
pub mod loopback;

/// A certificate authority, good pairs, broken pairs, and a directory that changes as a mounted Secret does.
pub mod certs;

/// A DNS server that answers, or fails to, as it is told.
pub mod dns;

/// Backends that behave: the tests' own service, and its journal of what arrived.
pub mod backend;

/// The journal: what a backend saw, and when.
pub mod journal;

/// Health checks as backends answer them, switched at run time.
pub mod health;

/// Backends that misbehave, stream by stream, through the crate `h2`.
pub mod scripted;

/// Peers that misbehave frame by frame.
pub mod frames;

/// A gRPC server that misbehaves in a way that is chosen at run time.
pub mod bad_backend;

/// A bad network between two peers.
pub mod relay;

/// The real services, as replicas on addresses of their own.
pub mod replicas;

/// The proxy under test: its configuration, its start, its end.
pub mod proxy;

/// The whole system on one machine, as `local-stack` shows it.
pub mod stack;

/// What `local-stack` shows: both services called, and who served how much.
pub mod demonstration;

/// What this crate's programs do the same.
pub mod program;

/// Programs as processes of their own: signals, exit codes, output, memory.
pub mod process;

/// A memory cgroup for one process.
pub mod cgroup;

/// Clients: tonic, HTTP/2 by hand, HTTP/1.1, the admin interface.
pub mod client;

/// Load at a fixed rate, and its account, as `edge-load` makes them.
pub mod load;

/// A hostile client: HTTP/2 written by hand over TLS, and an account of what it spends.
pub mod h2attack;

/// Attacks on a proxy's process beside a victim, and the bar that they are judged by.
pub mod attack;

/// Rollouts and failures around a proxy's process, under load.
pub mod rollouts;

/// gRPC's interoperability cases through the proxy, of several clients to several backends.
pub mod interop;

/// A long run of a proxy's process, and whether anything of it grows.
pub mod soak;

/// Types of `proto/test.proto`.
#[allow(missing_docs, unused_qualifications, reason = "generated")]
pub mod pb {
    tonic::include_proto!("e2e");
}

/// A message of the tests' service.
pub fn payload(data: impl Into<bytes::Bytes>) -> pb::Message {
    pb::Message { data: data.into() }
}
