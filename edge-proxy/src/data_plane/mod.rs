//! One request, top-down.

/// Step 5.
pub mod route;

/// Step 6: the rules for header fields, and the requests that end there.
pub mod filters;

/// Step 10.
pub mod access_log;
