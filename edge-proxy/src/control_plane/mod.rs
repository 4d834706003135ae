//! What changes over time; never on the request path.

/// The configuration: as written, as validated, reloaded.
pub mod config;
