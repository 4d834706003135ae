//! One request, top-down.

/// Step 5.
pub mod route;

/// Step 6: the rules for header fields, and the requests that end there.
pub mod filters;

/// Where gRPC messages begin and end in a leg's DATA.
pub mod message;

/// Step 7: which endpoint gets this attempt.
pub mod balance;

/// Step 8: to a backend.
pub mod upstream;

/// Step 9: the proxy answers itself, in the client's protocol.
pub mod answer;

/// The `date` header's text.
pub mod date;

/// Step 10.
pub mod access_log;
