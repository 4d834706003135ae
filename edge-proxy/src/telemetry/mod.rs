//! What the process tells about itself: diagnostics, metrics.
//!
//! The rule for everything here: whoever serves requests only ever writes to memory that no other
//! thread writes to. Merging, formatting and sending are done by whoever asks (a scrape, the admin
//! page) or by a thread of their own.

/// Counters that one thread writes, and counters that many may.
pub mod counter;
/// Durations in log-linear buckets.
pub mod histogram;

/// The label values that metrics may have, each named once.
pub mod labels;
/// Which gRPC methods have a label of their own.
pub mod methods;

/// What is counted where: shards, series, the control plane's numbers.
pub mod metrics;
