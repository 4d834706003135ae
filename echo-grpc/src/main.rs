//! Flags, then serve: everything else is `grpc-service`'s.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The gRPC service api.Echo: returns what it is given
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    serve: grpc_service::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    grpc_service::run(Cli::parse().serve, echo_grpc::server()).await
}
