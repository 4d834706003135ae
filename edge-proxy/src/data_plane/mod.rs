//! One request, top-down.

/// Step 5.
pub mod route;
/// Step 10.
pub mod access_log;
