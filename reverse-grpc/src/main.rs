//! Flags, then serve: everything else is `grpc-service`'s.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The gRPC service api.Reverse: returns what it is given, backwards
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    serve: grpc_service::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    grpc_service::run(Cli::parse().serve, reverse_grpc::server()).await
}
