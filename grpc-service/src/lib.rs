//! What every tonic service of this repository shares, so that a service itself is one trait
//! implementation and a `main` of a few lines.
//!
//! A service gets from here, in the order in which an RPC meets it:
//!
//! - [`Args`]: `--port`/`PORT` and `--address`;
//! - [`Server`]: the listener, HTTP/2 with windows that let no handler stop another's upload, and
//!   the way a server ends: [`Shutdown`], [`Drain`];
//! - the life of one RPC (`rpc`): the response header `hostname`, `grpc-timeout`, panics, one log
//!   line when its response stream ends;
//! - [`Budget`]: how many bytes of messages all RPCs together may have in work;
//! - `health`: `grpc.health.v1.Health` for the server, the service and [`LIVENESS`];
//! - server reflection, v1 and v1alpha;
//! - [`run()`]: the process: log, signals, exit code.
//!
//! ```no_run
//! # async fn example<S>(service: S) -> Result<(), grpc_service::StartError> where
//! #     S: tower::Service<http::Request<tonic::body::Body>, Response = http::Response<tonic::body::Body>, Error = std::convert::Infallible>
//! #         + tonic::server::NamedService + Clone + Send + Sync + 'static, S::Future: Send {
//! let server = grpc_service::Server::builder(service, &[])
//!     .hostname("echo-1")
//!     .bind("127.0.0.1:0".parse().unwrap())
//!     .await?;
//! println!("listening on {}", server.local_addr());
//! let shutdown = server.shutdown();
//! let serving = tokio::spawn(server.serve());
//! shutdown.drain(); // or shutdown.kill()
//! serving.await.unwrap();
//! # Ok(()) }
//! ```

mod args;

mod run;

mod log;

mod server;

mod rpc;

mod messages;

mod budget;

mod health;

mod hostname;

pub use args::{Args, PortError};
pub use budget::Budget;
pub use health::LIVENESS;
pub use rpc::HOSTNAME;
pub use run::run;
pub use server::{Builder, Drain, Server, Shutdown, StartError};

/// The largest message that a service here accepts, in bytes: gRPC's usual limit, 4 MiB. What it
/// sends has no limit.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
