//! The service `api.Echo`: returns what it is given.
//!
//! The binary is [`server`] with flags and signals; tests and the local stack run the same in
//! their own process.

mod service;

pub use service::Echo;

use grpc_service::MAX_MESSAGE;
use proto::api::echo_server::EchoServer;

/// The service as tonic serves it, with this repository's message limit.
pub fn service() -> EchoServer<Echo> {
    EchoServer::new(Echo).max_decoding_message_size(MAX_MESSAGE)
}

/// A server of it, to be bound.
pub fn server() -> grpc_service::Builder {
    grpc_service::Server::builder(service(), proto::FILE_DESCRIPTOR_SET)
}
