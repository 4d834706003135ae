//! One request, top-down: the modules in the order in which it meets them.
//!
//! ```text
//!  client ── listener ── tls ── downstream ──┐                       ┌── upstream ── backend
//!            accept      keys   HTTP/2, or   │  rpc: one RPC's life  │   connections per
//!            and limits         http1        ├─▶ filters ─▶ route ─▶ balance   endpoint
//!                                            │        (answer, when there is no backend to ask)
//!                                            └─▶ access_log, when its stream ends
//! ```
//!
//! Everything here runs on a `worker`'s thread, but for the acceptor and the log's writer, and reads what the control plane published
//! ([`snapshot`](crate::snapshot)); nothing here names the control plane.

// 1: accept, connection limits, hand-over to a worker.
pub(crate) mod listener;
// Whose a connection or an RPC is, wherever clients are counted or take turns.
mod source;
// One thread: its runtime, its state, its clock.
pub(crate) mod worker;
// How much may be held back for peers that don't take it.
pub(crate) mod memory;
// What all threads share, counted within one.
mod local;
// Whom clients are taken for, where they share something.
mod holder;

// 2: rustls behind a narrow interface.
mod tls;
// One HTTP/2 connection on a socket, either side: the order of work in one turn.
mod wire;

// 3: one client connection.
mod downstream;
// HTTP/1.1, by hyper, into the same path.
mod http1;

// 4: THE STORY: one RPC's life.
mod rpc;

// 5: the rules for header fields, and the requests that end there.
pub mod filters;

// 6: path to route.
pub mod route;

// 7: which endpoint gets this attempt.
pub mod balance;

// 8: HTTP/2 connections to the backends, and whether an attempt may follow another.
pub mod upstream;

// 9: the proxy answers itself, in the client's protocol.
pub mod answer;

// 10: one line per RPC, written when its stream ends.
pub mod access_log;

// The `date` header's text.
pub mod date;
// Where gRPC messages begin and end in a leg's DATA.
pub mod message;

// The same path without sockets, TLS and tasks: for `bench -- instructions`.
pub mod exchange;

// The same path without sockets and TLS: for the simulation and the fuzz targets.
#[cfg(any(test, fuzzing))]
pub mod pipe;
#[cfg(any(test, fuzzing))]
pub mod stage;

/// A worker, a backend and a client's socket for the tests of these modules.
#[cfg(test)]
pub(crate) mod testing;

/// Clients, the data path and backends that fail, by a seed.
#[cfg(test)]
mod simulation;
