//! An edge proxy for gRPC: TLS and clients that nobody trusts on one side, balanced h2c backends on the other.
//!
//! Read it in this order.

#![recursion_limit = "256"]

// All wiring, top to bottom; binds; returns a running [`App`](app::App) with its addresses.
pub mod app;
// What the operator typed.
pub mod cli;
// Signals, drain order, deadlines.
pub mod shutdown;

// What the container was granted: cores, memory.
pub mod cgroup;
// How many files it may have open, and how many connections that leaves room for.
pub mod open_files;

// What happened, whose fault, may it be retried: HTTP and gRPC status in one table.
pub mod error;
// THE SEAM: immutable routes, clusters, endpoints, TLS identity; publisher and reader.
pub mod snapshot;
// Log format; every metric family, named once.
pub mod telemetry;

// One request, top-down.
pub mod data_plane;

// What changes over time; never on the request path.
pub mod control_plane;
