//! What the process tells about itself: diagnostics and metrics.
//!
//! The rule for everything here: whoever serves requests only ever writes to memory that no other
//! thread writes to. Merging, formatting and sending are done by whoever asks (a scrape, the admin
//! page) or by a thread of their own.

// Diagnostics to stderr; the level.
pub mod log;
// What a test sees of them.
#[cfg(test)]
pub(crate) mod captured;

// Counters that one thread writes, and counters that many may.
pub mod counter;
// Durations in log-linear buckets.
pub mod histogram;

// The label values that metrics may have, each named once.
pub mod labels;
// Which gRPC methods have a label of their own.
pub mod methods;

// Every metric family, named once.
pub mod families;
// Prometheus' text.
pub mod exposition;
// What is counted where: shards and series.
pub mod metrics;
// What the kernel knows of this process.
pub mod process;
// The shards added up.
pub mod totals;
