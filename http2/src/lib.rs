//! HTTP/2 without sockets and without a clock: bytes in, events out; calls in, bytes out. Both
//! roles.
//!
//! The owner of a [`Connection`] reads from its socket and passes the bytes to
//! [`Connection::receive`], event by event; it answers with calls like
//! [`send_data`](Connection::send_data); at the end of a turn it calls
//! [`flush`](Connection::flush) and writes what [`output`](Connection::output) holds. Events
//! borrow the input, never the connection, so that what leaves one connection can be applied to
//! another at once. Time is passed in; deadlines (an open header block, a blocked stream) are the
//! owner's, by what the accessors tell.
//!
//! ```
//! use std::time::Instant;
//!
//! use http2::{Config, Connection, Event, Headers, Role};
//!
//! let now = Instant::now();
//! let mut client = Connection::new(Role::Client, Config::default(), now);
//! let mut server = Connection::new(Role::Server, Config::default(), now);
//! let mut answer = Vec::new();
//!
//! for round in 0..4 {
//!     if round == 1 {
//!         // The server's SETTINGS have come: streams may be opened.
//!         let mut head = Headers::new();
//!         head.push(b":method", b"POST");
//!         head.push(b":scheme", b"http");
//!         head.push(b":path", b"/api.Echo/Echo");
//!         let stream = client.open(head, false, 7).expect("nothing else is open");
//!         client.send_data(stream, b"hello", true, now);
//!     }
//!     client.flush(now);
//!     let mut input = client.output();
//!     while let Some(event) = server.receive(&mut input, now).expect("an honest client") {
//!         match event {
//!             Event::Headers { stream, .. } => {
//!                 let mut head = Headers::new();
//!                 head.push(b":status", b"200");
//!                 server.send_headers(stream, &head, false);
//!             }
//!             Event::Data { stream, bytes, end_stream, .. } => {
//!                 server.send_data(stream, bytes, end_stream, now);
//!                 server.credit(stream, bytes.len());
//!             }
//!             _ => {}
//!         }
//!     }
//!     client.consume(client.output().len());
//!     server.flush(now);
//!     let mut input = server.output();
//!     while let Some(event) = client.receive(&mut input, now).expect("an honest server") {
//!         if let Event::Data { key, bytes, .. } = event {
//!             assert_eq!(key, 7);
//!             answer.extend_from_slice(bytes);
//!         }
//!     }
//!     server.consume(server.output().len());
//! }
//! assert_eq!(answer, b"hello");
//! assert!(client.is_empty() && server.is_empty());
//! ```

// The public face, top-down.
pub mod connection;
pub mod error;
pub mod headers;
pub mod hpack;
pub mod settings;

// A connection's parts: what is live, what may go, what a peer may cost.
mod flow;
mod limits;
mod stream;

// From a hash to an entry: of streams, and of HPACK's tables.
mod index;

// Bytes: frames on the wire, bytes held back, bytes to write.
mod frame;
mod output;
mod queue;

// Spare memory, for all connections of a thread.
pub mod stock;

pub use connection::{
    Blocked, BlockedBy, Connection, Event, OpenError, Orphan, Refusal, Role, Sent, UNCONFIRMED,
    Unread, Windows,
};
pub use error::{ConnectionError, Limit, Reason};
pub use headers::{Field, Headers, Known, KnownSet, Packed, Place, is_authority, is_path};
pub use settings::Config;
