//! HTTP/2 without sockets and without a clock: bytes in, events out; calls in, bytes out. Both roles.

pub mod connection;
pub mod error;
pub mod headers;
pub mod hpack;
pub mod settings;

pub use connection::{Connection, Event, OpenError, Role, Sent};
pub use error::{ConnectionError, Reason};
pub use headers::{Field, Headers, Known};
pub use settings::Config;
