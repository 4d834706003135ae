//! The service `api.Reverse`: returns what it is given, backwards.
//!
//! The binary is [`server`] with flags and signals; tests and the local stack run the same in
//! their own process.

mod service;

pub use service::Reverse;

use grpc_service::MAX_MESSAGE;
use proto::api::reverse_server::ReverseServer;

/// The service as tonic serves it, with this repository's message limit.
pub fn service() -> ReverseServer<Reverse> {
    ReverseServer::new(Reverse).max_decoding_message_size(MAX_MESSAGE)
}

/// A server of it, to be bound.
pub fn server() -> grpc_service::Builder {
    grpc_service::Server::builder(service(), proto::FILE_DESCRIPTOR_SET)
}
