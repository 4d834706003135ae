//! Step 8: to a backend.

/// May an RPC be attempted again?
pub mod retry;
