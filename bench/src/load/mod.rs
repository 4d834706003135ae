//! What is asked of the peers, and how: closed loops by h2load, open loops by the tests' own `edge-load`, connections
//! and handshakes by hand.

/// One RPC, or a connection that stays.
pub(crate) mod client;

/// TLS handshakes, full and resumed.
pub(crate) mod handshake;

/// As many RPCs as possible.
pub(crate) mod h2load;

/// RPCs at their times.
pub(crate) mod open;
