//! Compiles the tests' services with protox, as the crate `proto` does for the real ones.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/test.proto", "proto/interop.proto"], ["."])?;
    tonic_prost_build::configure()
        .bytes(".e2e.Message.data")
        .bytes(".grpc.testing.Payload.body")
        .compile_fds(files)?;
    Ok(())
}
